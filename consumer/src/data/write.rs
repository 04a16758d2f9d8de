//! Writing.

use std::mem;
use std::time::{Duration, Instant};

use overbank_verbs::{Op, SlotId};

use super::{DataError, SealedLane, in_time};
use crate::freshness::Entry;

/// How often a block that somebody else writes is tried again before the thread sleeps between two tries.
const AT_ONCE: u32 = 64;
const PAUSE: Duration = Duration::from_micros(20);

impl SealedLane {
    /// Writes bytes from `offset` on, by `deadline`. They have arrived when this returns.
    ///
    /// # Errors
    /// [`DataError`]. Of bytes in several blocks, some blocks may have been written then. A block of which it is not
    /// known reads as [`DataError::Unsettled`] until its answer comes in or [`SealedLane::resume`] has written it again.
    pub fn write(&mut self, offset: u64, bytes: &[u8], deadline: Instant) -> Result<(), DataError> {
        let deadline = self.admit(Op::Write, offset, bytes.len(), deadline)?;
        let size = self.block as u64;
        if !offset.is_multiple_of(size) || !(bytes.len() as u64).is_multiple_of(size) {
            self.admit(Op::Read, offset, bytes.len(), deadline)?;
        }
        self.forget_reads();
        let written = self.write_blocks(offset, bytes, deadline);
        self.settle(written, deadline)
    }

    /// Waits for the WRITEs of a call that went so far. Those that do not end in time are open from then on.
    pub(super) fn settle(&mut self, written: Result<(), DataError>, deadline: Instant) -> Result<(), DataError> {
        let settled = self.slots.wait_writes(deadline);
        self.slots.unsettle_writes();
        written.and(settled).map_err(|error| self.late(error))
    }

    fn write_blocks(&mut self, offset: u64, bytes: &[u8], deadline: Instant) -> Result<(), DataError> {
        let size = self.block;
        let most = self.pieces(bytes.len() / size) * size;
        let mut done = 0;
        while done < bytes.len() {
            if done > 0 {
                self.slots.poll()?;
                in_time(deadline)?;
            }
            let rest = &bytes[done..];
            let at = offset + done as u64;
            let (block, within) = (at / size as u64, (at % size as u64) as usize);
            let slot = self.slots.take_within(deadline)?;
            let sent = if within > 0 || rest.len() < size {
                let part = &rest[..rest.len().min(size - within)];
                self.write_part(slot, block, within, part, deadline)
            } else {
                self.write_whole(slot, block, &rest[..(rest.len() - rest.len() % size).min(most)], deadline)
            };
            match sent {
                Ok(sent) => done += sent,
                Err(error) => {
                    self.slots.give(slot);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Seals and sends whole blocks from `first` on, as many as nobody else is writing. Returns their bytes.
    pub(super) fn write_whole(
        &mut self,
        slot: SlotId,
        first: u64,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<usize, DataError> {
        self.begin(first, deadline)?;
        let most = (bytes.len() / self.block) as u64;
        let count = (1..most).find(|&at| !self.freshness.begin(first + at)).unwrap_or(most);
        let len = count as usize * self.block;
        match self.send(slot, first, &bytes[..len]) {
            Ok(()) => Ok(len),
            Err(error) => {
                (0..count).for_each(|at| self.freshness.release(first + at));
                Err(error)
            }
        }
    }

    /// Reads a block, modifies part of it and writes it. Returns the part's bytes.
    fn write_part(
        &mut self,
        slot: SlotId,
        block: u64,
        within: usize,
        part: &[u8],
        deadline: Instant,
    ) -> Result<usize, DataError> {
        self.begin(block, deadline)?;
        let mut scratch = mem::take(&mut self.scratch);
        let result = self.fetch(slot, block, true, &mut scratch, deadline).and_then(|()| {
            scratch[within..within + part.len()].copy_from_slice(part);
            self.send(slot, block, &scratch)
        });
        self.scratch = scratch;
        match result {
            Ok(()) => Ok(part.len()),
            Err(error) => {
                self.freshness.release(block);
                Err(error)
            }
        }
    }

    /// Seals whole blocks into the slot and posts them.
    fn send(&mut self, slot: SlotId, first: u64, bytes: &[u8]) -> Result<(), DataError> {
        let stride = self.stride();
        let mut entry = None;
        let strides = self.slots.bytes_mut(slot).chunks_exact_mut(stride);
        let mut count = 0;
        for ((payload, out), index) in bytes.chunks_exact(self.block).zip(strides).zip(first..) {
            let stamp = self.sealer.seal(index, payload, out)?;
            entry.get_or_insert(Entry::new(self.salt, stamp.counter));
            count += 1;
        }
        self.slots.write(slot, first, count, entry.unwrap_or(Entry::NEVER))
    }

    /// Waits for the right to write a block.
    fn begin(&mut self, block: u64, deadline: Instant) -> Result<(), DataError> {
        let mut tries = 0;
        while !self.freshness.begin(block) {
            // It may be a write of this lane that came in late.
            self.slots.poll()?;
            self.slots.usable()?;
            if self.freshness.entry(block) == Entry::UNSETTLED && self.slots.writes() == 0 {
                return Err(DataError::Unsettled { block });
            }
            in_time(deadline)?;
            tries += 1;
            if tries > AT_ONCE {
                std::thread::sleep(PAUSE);
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}
