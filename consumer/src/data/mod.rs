//! The data path: bytes of a lease, read and written through a lane that an attach has connected.
//!
//! Any offset and length goes. Whole blocks are opened from the bounce slot straight into the caller's buffer and sealed
//! from it straight into the slot; of a block that is asked for in part, all is fetched, and a write of a part reads,
//! modifies and writes it. What comes back was sealed for its place by a holder of the lease key and is what was written
//! last, as far as the [`Freshness`] table knows; bytes never written are zeros. On an error the caller's buffer holds
//! zeros.
//!
//! A lane is for one thread. Several lanes may share a table and even a block: one write of a block is under way at a
//! time in a process, and a read that meets it is repeated.
//!
//! When a lane's queue pair is lost ([`SealedLane::is_broken`]) it can be attached anew: [`SealedLane::renew`], an attach,
//! [`SealedLane::resume`]. Writes whose outcome was open are written again first. A lane that is dropped instead leaves
//! their blocks as unknown.

mod error;
mod pages;
mod read;
mod reads;
mod slots;
mod verify;
mod window;
mod write;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use overbank_fabric::block::{BlockContext, HEADER_LEN, LeaseKey, Sealer};
use overbank_fabric::token::Rights;
use overbank_verbs::{Device, Lane, Op, VerbsError};
use zeroize::Zeroizing;

pub use error::DataError;
pub use reads::Reads;
pub use window::Window;

use crate::freshness::{Entry, Freshness, SaltNumber};
use read::Asked;
use slots::Slots;
use verify::Verifier;

/// Bytes that a slot holds at least half of, and more only where one block is larger.
const SLOT_BYTES: usize = 64 << 10;
/// Most blocks in one request.
const SLOT_BLOCKS: usize = 64;
const SLOTS: u32 = 16;
/// Requests that a call makes at least, where it has that many blocks.
const PIECES: usize = 4;

/// What to do with a block of which nobody knows what was written to it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnUnknown {
    /// Report it, whatever is in it.
    Refuse,
    /// Take what was sealed for it, which may be older than what was written last; report an empty one.
    #[default]
    AcceptSealed,
    /// The same, and take an empty one for one that was never written.
    Accept,
}

/// What lies in a lease, and how. All lanes of a lease in a process share one table.
#[derive(Clone)]
pub struct Contents {
    /// What its blocks are bound to.
    pub context: BlockContext,
    /// Opens and seals them.
    pub key: LeaseKey,
    /// Usable bytes.
    pub bytes: u64,
    /// What was written last.
    pub freshness: Arc<Freshness>,
    /// What to do where that is not known.
    pub on_unknown: OnUnknown,
}

/// A lane with slots of the right size for blocks of `block` bytes, not connected.
///
/// # Errors
/// [`VerbsError`].
pub fn bounce_lane(device: &Device, block: u32) -> Result<Lane, VerbsError> {
    let stride = HEADER_LEN + block as usize;
    Lane::new(device, SLOTS, stride * (SLOT_BYTES / stride).clamp(1, SLOT_BLOCKS))
}

/// A lane that reads and writes the bytes of a lease.
pub struct SealedLane {
    slots: Slots,
    verifier: Verifier,
    sealer: Sealer,
    /// The sealer's salt in the table.
    salt: SaltNumber,
    freshness: Arc<Freshness>,
    block: usize,
    bytes: u64,
    /// When to stop using the lease.
    until: Instant,
    /// Entries of the blocks that each slot reads, before they were asked for.
    before: Vec<Entry>,
    /// READs of the call that is going on.
    asked: VecDeque<Asked>,
    /// READs of pages for a call to come.
    ahead: pages::Ahead,
    /// One block of plaintext.
    scratch: Zeroizing<Vec<u8>>,
}

impl SealedLane {
    /// With a lane that an attach has connected ([`bounce_lane`]), what the attach allows, and when to stop.
    ///
    /// # Errors
    /// [`DataError::Window`] and [`DataError::Salts`].
    pub fn new(lane: Lane, contents: &Contents, window: Window, until: Instant) -> Result<Self, DataError> {
        let Contents { context, key, bytes, freshness, .. } = contents;
        let stride = context.stride();
        if !context.is_valid() {
            return Err(DataError::Window("no lease has blocks of this size"));
        }
        window.check(stride, freshness.blocks())?;
        if lane.slot_len() < stride {
            return Err(DataError::Window("its stride does not fit into the lane's slots"));
        }
        let sealer = Sealer::new(key, context);
        let salt = freshness.salt_number(sealer.salt())?;
        let slots = Slots::new(lane, window, Arc::clone(freshness));
        Ok(Self {
            verifier: Verifier::new(contents),
            sealer,
            salt,
            freshness: Arc::clone(freshness),
            block: context.block as usize,
            bytes: *bytes,
            until,
            before: vec![Entry::NEVER; slots.count() * (slots.slot_len() / stride).min(SLOT_BLOCKS)],
            asked: VecDeque::with_capacity(slots.count()),
            ahead: pages::Ahead::new(slots.count()),
            scratch: Zeroizing::new(vec![0; context.block as usize]),
            slots,
        })
    }

    /// Bytes of the lease that this lane reaches.
    #[must_use]
    pub fn reach(&self) -> Range<u64> {
        let (window, block) = (self.slots.window(), self.block as u64);
        let end = (window.first_block + window.blocks).saturating_mul(block).min(self.bytes);
        (window.first_block.saturating_mul(block)).min(end)..end
    }

    /// When to stop using the lease, after it was renewed.
    pub fn set_until(&mut self, until: Instant) {
        self.until = until;
    }

    /// Whether the queue pair is lost, so that nothing goes on before a new attach.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.slots.is_broken()
    }

    /// Destroys the queue pair and makes a fresh one: the lane is to be connected by a new attach, and [`SealedLane::resume`]
    /// called with what that allows.
    ///
    /// # Errors
    /// [`DataError::Device`].
    pub fn renew(&mut self) -> Result<&mut Lane, DataError> {
        self.forget_reads();
        self.slots.renew()
    }

    /// Goes on after a new attach: writes whose outcome was open are written again, and are settled when this returns.
    ///
    /// # Errors
    /// [`DataError::Window`], with which the lane stays down; and what [`SealedLane::write`] says.
    pub fn resume(&mut self, window: Window, until: Instant, deadline: Instant) -> Result<(), DataError> {
        window.check(self.stride(), self.freshness.blocks())?;
        self.until = until;
        let resumed = self.slots.resume(window, deadline.min(until));
        self.slots.unsettle_writes();
        resumed.map_err(|error| self.late(error))
    }

    /// The connection without the sealing, and what it reaches; no write is under way.
    #[cfg(feature = "measuring")]
    #[doc(hidden)]
    pub fn wire(&mut self) -> (&mut Lane, &Window) {
        self.slots.wire()
    }

    /// Learns the salts of all lanes that there are, which the first block of each would do.
    pub(crate) fn know_salts(&mut self) {
        self.verifier.know_salts();
    }

    fn stride(&self) -> usize {
        HEADER_LEN + self.block
    }

    /// Blocks that one request moves at most.
    fn slot_blocks(&self) -> usize {
        self.before.len() / self.slots.count()
    }

    /// Blocks that each of so many blocks' requests moves: few enough that one is opened or sealed while others travel.
    fn pieces(&self, blocks: usize) -> usize {
        blocks.div_ceil(PIECES).clamp(1, self.slot_blocks())
    }

    /// Checks a request and returns the deadline to keep.
    fn admit(&self, op: Op, offset: u64, len: usize, deadline: Instant) -> Result<Instant, DataError> {
        let Range { start: first, end } = self.reach();
        let len = len as u64;
        if offset < first || offset.checked_add(len).is_none_or(|last| last > end) {
            return Err(DataError::Range { offset, len, first, end });
        }
        let right = match op {
            Op::Read => Rights::READ,
            Op::Write => Rights::WRITE,
        };
        if !self.slots.window().rights.contains(right) {
            return Err(DataError::NotGranted { op });
        }
        self.slots.usable()?;
        // A deadline that comes sooner ends the wait, which looks at the clock anyway.
        if deadline > self.until && Instant::now() >= self.until {
            return Err(DataError::LeaseOver);
        }
        Ok(deadline.min(self.until))
    }

    /// Tells the two ends of time apart.
    fn late(&self, error: DataError) -> DataError {
        match error {
            DataError::Timeout if Instant::now() >= self.until => DataError::LeaseOver,
            error => error,
        }
    }
}

/// Whether there is time left; a transfer goes on for as long as bytes come, so waiting does not tell.
fn in_time(deadline: Instant) -> Result<(), DataError> {
    if Instant::now() < deadline { Ok(()) } else { Err(DataError::Timeout) }
}
