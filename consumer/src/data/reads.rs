//! Many reads at once: while one is opened, others travel.

use std::collections::VecDeque;
use std::time::Instant;

use overbank_verbs::Op;

use super::{DataError, SealedLane, in_time};

/// Requests that are posted together at most, and bytes that they come to at most: one system call for several small
/// ones, and large ones at once.
const TOGETHER: usize = 4;
const TOGETHER_BYTES: usize = 16 << 10;

/// Reads under way on a lane, answered in the order in which they were asked for.
///
/// After an error nothing is under way any more, and every buffer that was not given back holds zeros.
pub struct Reads<'lane, 'buffer> {
    lane: &'lane mut SealedLane,
    pending: VecDeque<Pending<'buffer>>,
}

/// One read.
struct Pending<'buffer> {
    offset: u64,
    out: &'buffer mut [u8],
    /// Blocks from `asked` on, and before `end`, have no request yet.
    asked: u64,
    /// Blocks from `opened` on have not come.
    opened: u64,
    end: u64,
    /// Blocks of each request.
    piece: usize,
    deadline: Instant,
}

impl SealedLane {
    /// Begins to read many at once.
    pub fn reads<'buffer>(&mut self) -> Reads<'_, 'buffer> {
        self.forget_reads();
        let pending = VecDeque::with_capacity(2 * self.slots.count());
        Reads { lane: self, pending }
    }

    /// Gives back the slots of all READs that somebody has lost interest in.
    pub(super) fn forget_reads(&mut self) {
        self.forget_ahead();
        self.slots.unprepare();
        while let Some(asked) = self.asked.pop_front() {
            self.slots.give(asked.slot);
        }
    }
}

impl<'buffer> Reads<'_, 'buffer> {
    /// Asks for the bytes from `offset` on; they are in `out` when it is given back, by `deadline`. Where no slot is free
    /// this waits for the oldest read. Gives back the buffer of the oldest read that is done, if one is.
    ///
    /// # Errors
    /// [`DataError`], of this read or of any that is under way.
    pub fn push(
        &mut self,
        offset: u64,
        out: &'buffer mut [u8],
        deadline: Instant,
    ) -> Result<Option<&'buffer mut [u8]>, DataError> {
        let admitted = self.lane.admit(Op::Read, offset, out.len(), deadline);
        let size = self.lane.block as u64;
        let first = offset / size;
        // What is not admitted may have no end.
        let end =
            if out.is_empty() || admitted.is_err() { first } else { (offset + (out.len() as u64 - 1)) / size + 1 };
        let piece = self.lane.pieces((end - first) as usize);
        let deadline = *admitted.as_ref().unwrap_or(&deadline);
        self.pending.push_back(Pending { offset, out, asked: first, opened: first, end, piece, deadline });
        let result = admitted.and_then(|_| {
            while !self.ask()? {
                self.open_oldest()?;
            }
            Ok(self.done())
        });
        result.map_err(|error| self.fail(error))
    }

    /// Waits for the oldest read and gives its buffer back; None where nothing is under way.
    ///
    /// # Errors
    /// [`DataError`], of any read that is under way.
    pub fn wait(&mut self) -> Result<Option<&'buffer mut [u8]>, DataError> {
        loop {
            if let Some(done) = self.done() {
                return Ok(Some(done));
            }
            if self.pending.is_empty() {
                return Ok(None);
            }
            self.open_oldest().map_err(|error| self.fail(error))?;
        }
    }

    /// The buffer of the oldest read, if it is done.
    fn done(&mut self) -> Option<&'buffer mut [u8]> {
        let done = self.pending.front().is_some_and(|oldest| oldest.opened == oldest.end);
        if done { self.pending.pop_front().map(|oldest| oldest.out) } else { None }
    }

    /// Makes ready what is not asked for yet, as far as there are slots. Whether that is all.
    fn ask(&mut self) -> Result<bool, DataError> {
        let lane = &mut *self.lane;
        // All but the newest have been asked for.
        let Some(newest) = self.pending.back_mut() else { return Ok(true) };
        while newest.asked < newest.end {
            let Some(slot) = lane.slots.take() else { return Ok(false) };
            let count = newest.piece.min((newest.end - newest.asked) as usize);
            lane.ask(super::read::Asked { slot, first: newest.asked, count });
            newest.asked += count as u64;
            if lane.slots.prepared() >= TOGETHER || count * lane.block >= TOGETHER_BYTES {
                lane.slots.post_reads()?;
            }
        }
        Ok(true)
    }

    /// Opens what the oldest request brings, after waiting for it.
    fn open_oldest(&mut self) -> Result<(), DataError> {
        let lane = &mut *self.lane;
        let oldest = self.pending.iter_mut().find(|pending| pending.opened < pending.end);
        let (Some(oldest), Some(asked)) = (oldest, lane.asked.front().copied()) else {
            // Every slot is held by a WRITE, or by a READ that nobody waits for.
            let deadline = self.pending.back().map_or_else(Instant::now, |newest| newest.deadline);
            let slot = lane.slots.take_within(deadline)?;
            lane.slots.give(slot);
            return Ok(());
        };
        if !lane.slots.has_ended(asked.slot) {
            lane.slots.post_reads()?;
            lane.slots.wait(asked.slot, oldest.deadline)?;
        }
        lane.open(asked, oldest.offset, oldest.out, oldest.deadline)?;
        oldest.opened += asked.count as u64;
        lane.asked.pop_front();
        lane.slots.give(asked.slot);
        in_time(oldest.deadline)
    }

    fn fail(&mut self, error: DataError) -> DataError {
        self.abandon();
        self.lane.late(error)
    }

    fn abandon(&mut self) {
        self.lane.forget_reads();
        self.pending.drain(..).for_each(|pending| pending.out.fill(0));
    }
}

impl Drop for Reads<'_, '_> {
    fn drop(&mut self) {
        self.abandon();
    }
}
