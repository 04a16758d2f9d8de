//! Reading.

use std::mem;
use std::time::{Duration, Instant};

use overbank_verbs::{Op, SlotId};

use super::verify::Verdict;
use super::{DataError, SealedLane, in_time};

/// How often a block that does not open is fetched again.
const REREADS: u32 = 3;
/// How often a block that is being written is fetched again at once; then, after a pause each time.
const AT_ONCE: u32 = 16;
const PAUSE: Duration = Duration::from_micros(50);

/// A READ of blocks into a slot.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) slot: SlotId,
    pub(super) first: u64,
    pub(super) count: usize,
}

impl SealedLane {
    /// Reads bytes from `offset` on into `out`, by `deadline`. On an error `out` holds zeros.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn read(&mut self, offset: u64, out: &mut [u8], deadline: Instant) -> Result<(), DataError> {
        self.forget_reads();
        let result = self.read_unwiped(offset, out, deadline);
        result.map_err(|error| {
            out.fill(0);
            self.late(error)
        })
    }

    fn read_unwiped(&mut self, offset: u64, out: &mut [u8], deadline: Instant) -> Result<(), DataError> {
        let deadline = self.admit(Op::Read, offset, out.len(), deadline)?;
        if out.is_empty() {
            return Ok(());
        }
        let size = self.block as u64;
        let (first, last) = (offset / size, (offset + (out.len() as u64 - 1)) / size);
        if first == last {
            let slot = self.slots.take_within(deadline)?;
            let result = self.fetch_part(slot, first, offset, out, deadline);
            self.slots.give(slot);
            return result;
        }
        let result = self.read_blocks(first, last, offset, out, deadline);
        self.forget_reads();
        result
    }

    /// Many blocks, with as many requests in flight as there are slots.
    fn read_blocks(
        &mut self,
        first: u64,
        last: u64,
        offset: u64,
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), DataError> {
        let piece = self.pieces((last - first + 1) as usize);
        let mut next = first;
        loop {
            let begun = next;
            while next <= last
                && let Some(slot) = self.slots.take()
            {
                let count = piece.min((last - next + 1) as usize);
                self.ask(Asked { slot, first: next, count });
                next += count as u64;
            }
            if next > begun {
                self.slots.post_reads()?;
            }
            let Some(asked) = self.asked.front().copied() else {
                if next > last {
                    return Ok(());
                }
                let slot = self.slots.take_within(deadline)?;
                self.slots.give(slot);
                continue;
            };
            self.slots.wait(asked.slot, deadline)?;
            self.open(asked, offset, out, deadline)?;
            self.asked.pop_front();
            self.slots.give(asked.slot);
            in_time(deadline)?;
        }
    }

    /// Makes a READ ready to be posted, and puts it behind the others of the call.
    pub(super) fn ask(&mut self, asked: Asked) {
        let Asked { slot, first, count } = asked;
        let from = slot.0 as usize * self.slot_blocks();
        for (before, block) in self.before[from..from + count].iter_mut().zip(first..) {
            *before = self.freshness.entry(block);
        }
        self.slots.prepare_read(slot, first, count);
        self.asked.push_back(asked);
    }

    /// Opens what a READ has brought, and fetches what is worth it once more.
    pub(super) fn open(
        &mut self,
        asked: Asked,
        offset: u64,
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), DataError> {
        let Asked { slot, first, count } = asked;
        let (stride, from) = (self.stride(), slot.0 as usize * self.slot_blocks());
        let mut again = 0_u64;
        for at in 0..count {
            let block = first + at as u64;
            let (within, part) = self.part_of(block, offset, out);
            let whole = part.len() == self.block;
            let bytes = &self.slots.bytes(slot)[at * stride..(at + 1) * stride];
            let target = if whole { &mut *part } else { &mut self.scratch[..] };
            match self.verifier.check(block, self.before[from + at], false, bytes, target) {
                Verdict::Good if whole => {}
                Verdict::Good => part.copy_from_slice(&self.scratch[within..within + part.len()]),
                Verdict::Racing | Verdict::Unopened(_) => again |= 1 << at,
                Verdict::Bad(error) => return Err(error),
            }
        }
        while again != 0 {
            let block = first + u64::from(again.trailing_zeros());
            again &= again - 1;
            let (within, part) = self.part_of(block, offset, out);
            let at = block * self.block as u64 + within as u64;
            self.fetch_part(slot, block, at, part, deadline)?;
        }
        Ok(())
    }

    /// The part of a block that bytes from `offset` on cover: where it begins in the block, and where it goes.
    fn part_of<'a>(&self, block: u64, offset: u64, out: &'a mut [u8]) -> (usize, &'a mut [u8]) {
        let start = block * self.block as u64;
        let within = offset.saturating_sub(start) as usize;
        let from = start.saturating_sub(offset) as usize;
        let len = (self.block - within).min(out.len() - from);
        (within, &mut out[from..from + len])
    }

    /// Fetches the bytes from `offset` on, which lie in one block.
    fn fetch_part(
        &mut self,
        slot: SlotId,
        block: u64,
        offset: u64,
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), DataError> {
        if out.len() == self.block {
            return self.fetch(slot, block, false, out, deadline);
        }
        let mut scratch = mem::take(&mut self.scratch);
        let result = self.fetch(slot, block, false, &mut scratch, deadline);
        if result.is_ok() {
            let within = (offset % self.block as u64) as usize;
            out.copy_from_slice(&scratch[within..within + out.len()]);
        }
        self.scratch = scratch;
        result
    }

    /// Fetches a whole block into `out`, through a slot of the caller's. `mine`: the caller has the right to write it.
    pub(super) fn fetch(
        &mut self,
        slot: SlotId,
        block: u64,
        mine: bool,
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), DataError> {
        let stride = self.stride();
        let (mut unopened, mut raced) = (0, 0);
        loop {
            let before = self.freshness.entry(block);
            self.slots.prepare_read(slot, block, 1);
            self.slots.post_reads()?;
            self.slots.wait(slot, deadline)?;
            let bytes = &self.slots.bytes(slot)[..stride];
            match self.verifier.check(block, before, mine, bytes, out) {
                Verdict::Good => return Ok(()),
                Verdict::Bad(error) => return Err(error),
                Verdict::Unopened(error) if unopened == REREADS => {
                    let home = self.verifier.home_of(block, bytes, out, deadline);
                    return Err(home.map_or(error, |from| DataError::Moved { block, from }));
                }
                Verdict::Unopened(_) => unopened += 1,
                Verdict::Racing => {
                    in_time(deadline)?;
                    raced += 1;
                    if raced > AT_ONCE {
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
    }
}
