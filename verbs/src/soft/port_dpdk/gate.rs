//! Keeps DPDK's own thread and ours apart. That thread handles what happens at the sockets of memifs, and unmaps a memif's
//! memory when its other end is gone, whoever is using it at that moment. So it may run only while the gate is closed, and
//! frames go and ports change only while it is open.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// That thread runs, or waits to.
const CLOSED: u32 = 1 << 31;
/// Of those who wait for the other side.
const PAUSE: Duration = Duration::from_micros(50);

/// One for the process.
pub(crate) static GATE: Gate = Gate::new();

/// Whether it is closed, and how many are inside.
pub(crate) struct Gate(AtomicU32);

/// Somebody is inside until it is dropped.
pub(crate) struct Inside<'a>(&'a Gate);

impl Gate {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Goes inside, where that is possible at once.
    #[inline]
    pub(crate) fn try_enter(&self) -> Option<Inside<'_>> {
        let inside = Inside(self);
        (self.0.fetch_add(1, Ordering::Acquire) & CLOSED == 0).then_some(inside)
    }

    /// Goes inside. It is closed for microseconds only.
    pub(crate) fn enter(&self) -> Inside<'_> {
        loop {
            match self.try_enter() {
                Some(inside) => return inside,
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Lets nobody in any more, and waits until all are out.
    pub(crate) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) != CLOSED {
            std::thread::sleep(PAUSE);
        }
    }

    pub(crate) fn open(&self) {
        self.0.fetch_and(!CLOSED, Ordering::Release);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        static HERE: Gate = Gate::new();
        static ALONE: AtomicBool = AtomicBool::new(false);
        static OVER: AtomicBool = AtomicBool::new(false);
        let enters = [(); 2].map(|()| {
            std::thread::spawn(|| {
                let mut entered = 0_u64;
                while !OVER.load(Ordering::Relaxed) {
                    let Some(_inside) = HERE.try_enter() else { continue };
                    assert!(!ALONE.load(Ordering::Relaxed));
                    entered += 1;
                }
                entered
            })
        });
        for _ in 0..200 {
            HERE.close();
            ALONE.store(true, Ordering::Relaxed);
            assert!(HERE.try_enter().is_none());
            std::thread::sleep(PAUSE);
            ALONE.store(false, Ordering::Relaxed);
            HERE.open();
            std::thread::sleep(PAUSE);
        }
        OVER.store(true, Ordering::Relaxed);
        let entered: u64 = enters.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(entered > 200 && HERE.try_enter().is_some());
    }
}
