//! Names of what an engine holds, and why it refuses a call.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::{Access, QpState};

/// A protection domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PdHandle(pub(super) u32);

/// A completion queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CqHandle(pub(super) u32);

/// A queue pair, by its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Qpn(pub(crate) u32);

/// A registered region. The index tells it from an earlier one that chance gave the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MrHandle {
    pub(crate) index: u32,
    pub(crate) rkey: u32,
}

/// Why the engine did nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// Never made, or destroyed.
    #[error("there is no such {0} (any more)")]
    Gone(&'static str),
    /// Something else needs it.
    #[error("the {0} is still in use")]
    Busy(&'static str),
    /// Not of one protection domain.
    #[error("the {0} belongs to another protection domain")]
    Foreign(&'static str),
    /// The queue pair's state does not allow it.
    #[error("not while the queue pair is in state {0:?}")]
    State(QpState),
    /// Bytes outside of the memory or region.
    #[error("bytes {offset}..{offset}+{len} are not within {size}")]
    OutOfRange { offset: usize, len: usize, size: usize },
    /// A number out of its bounds.
    #[error("{what} is {value}, and must be {min} to {max}")]
    Limit { what: &'static str, value: usize, min: usize, max: usize },
    /// The region lacks a right.
    #[error("the region allows {has:?}; this needs {needs:?}")]
    Rights { has: Access, needs: Access },
    /// The send queue, or the completion queue behind it, cannot take the batch.
    #[error("the {what} has room for {free} of its {capacity}, not for {asked} more")]
    Full { what: &'static str, asked: usize, free: usize, capacity: usize },
    /// An endpoint that cannot be connected to.
    #[error("cannot connect to this endpoint: {0}")]
    Endpoint(&'static str),
    /// The system has no random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// A map from names that we chose. They are random or consecutive, so a multiplication hashes them well, and a stranger
/// who asks for others cannot lengthen a chain.
pub(super) type HandleMap<V> = HashMap<u32, V, BuildHasherDefault<HandleHasher>>;

#[derive(Default)]
pub(super) struct HandleHasher(u64);

impl Hasher for HandleHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// The next number after `last` that names nothing in the map.
pub(super) fn next_free<V>(map: &HandleMap<V>, last: &mut u32) -> u32 {
    loop {
        *last = last.wrapping_add(1);
        if !map.contains_key(last) {
            return *last;
        }
    }
}

/// A random number that `fits`. The caller sees to it that most do.
pub(super) fn random(mut fits: impl FnMut(u32) -> bool) -> Result<u32, getrandom::Error> {
    loop {
        let value = draw()?;
        if fits(value) {
            return Ok(value);
        }
    }
}

#[cfg(not(test))]
fn draw() -> Result<u32, getrandom::Error> {
    getrandom::u32()
}

#[cfg(test)]
pub(super) use seeded::Seeded;
#[cfg(test)]
use seeded::draw;

#[cfg(test)]
mod seeded {
    use std::cell::RefCell;

    use crate::soft::port_sim::Random;

    thread_local! {
        static SOURCE: RefCell<Option<Random>> = const { RefCell::new(None) };
    }

    pub(super) fn draw() -> Result<u32, getrandom::Error> {
        SOURCE.with_borrow_mut(|source| {
            let Some(source) = source else { return getrandom::u32() };
            // One in four lets a PSN wrap soon.
            let high = if source.one_in(4) { 0x00ff_ff00 } else { 0 };
            Ok(source.next() as u32 | high)
        })
    }

    /// While it lives, this thread draws from a seed, and not from the system.
    pub(in crate::soft) struct Seeded {
        before: Option<Random>,
    }

    impl Seeded {
        pub(in crate::soft) fn new(seed: u64) -> Self {
            Self { before: SOURCE.replace(Some(Random(seed))) }
        }
    }

    impl Drop for Seeded {
        fn drop(&mut self) {
            SOURCE.set(self.before.take());
        }
    }
}
