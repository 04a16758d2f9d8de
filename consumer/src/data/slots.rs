//! Bounce slots, what each is used for, and how their requests end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_verbs::{Done, Lane, Op, SlotId, Transfer, WcStatus};

use super::{DataError, Window, in_time};
use crate::freshness::{Entry, Freshness};

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Free, or held by the caller.
    None,
    /// A READ; its status once it has ended.
    Read(Option<WcStatus>),
    /// A READ that nobody waits for any more.
    Forgotten,
    /// A WRITE.
    Write,
    /// The bytes of a WRITE that may not have arrived.
    Unsettled,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    used: Use,
    first: u64,
    count: usize,
    /// The first block's entry, of a WRITE; each next block has the next counter.
    entry: Entry,
}

const IDLE: Job = Job { used: Use::None, first: 0, count: 0, entry: Entry::NEVER };

/// A lane's slots. A WRITE is settled in the freshness table as soon as its end is polled, whoever polls.
pub(super) struct Slots {
    // Dropped in this order: nothing is sent any more when the jobs are given up.
    lane: Lane,
    jobs: Jobs,
    window: Window,
    /// Of `jobs`, those with `Use::Write`.
    writes: usize,
    /// Made ready to be posted.
    ready: Vec<Transfer>,
    done: Vec<Done>,
    /// Why the queue pair is of no use any more.
    broken: Option<WcStatus>,
}

impl Slots {
    pub(super) fn new(lane: Lane, window: Window, freshness: Arc<Freshness>) -> Self {
        let count = lane.slots();
        Self {
            lane,
            jobs: Jobs { list: vec![IDLE; count], freshness },
            window,
            writes: 0,
            ready: Vec::with_capacity(count),
            done: Vec::with_capacity(count),
            broken: None,
        }
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    #[cfg(feature = "measuring")]
    pub(super) fn wire(&mut self) -> (&mut Lane, &Window) {
        (&mut self.lane, &self.window)
    }

    pub(super) fn count(&self) -> usize {
        self.jobs.list.len()
    }

    pub(super) fn slot_len(&self) -> usize {
        self.lane.slot_len()
    }

    /// The error that the queue pair's end stands for, if it has ended.
    pub(super) fn usable(&self) -> Result<(), DataError> {
        self.broken.map_or(Ok(()), |status| Err(DataError::of(status)))
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// WRITEs that have not ended.
    pub(super) fn writes(&self) -> usize {
        self.writes
    }

    /// A free slot, now the caller's; None where all are in use.
    pub(super) fn take(&mut self) -> Option<SlotId> {
        self.lane.take()
    }

    /// The same, after waiting for one that comes free when a WRITE, or a READ that nobody waits for, ends.
    pub(super) fn take_within(&mut self, deadline: Instant) -> Result<SlotId, DataError> {
        loop {
            if let Some(slot) = self.lane.take() {
                return Ok(slot);
            }
            self.usable()?;
            let stuck = |job: &&Job| job.used == Use::Unsettled;
            if let (0, Some(job)) = (self.lane.in_flight(), self.jobs.list.iter().find(stuck)) {
                return Err(DataError::Unsettled { block: job.first });
            }
            self.wait_any(deadline)?;
        }
    }

    /// Gives a slot back that is the caller's. A READ that has not ended is forgotten.
    pub(super) fn give(&mut self, slot: SlotId) {
        let job = &mut self.jobs.list[slot.0 as usize];
        match job.used {
            Use::Read(None) => job.used = Use::Forgotten,
            Use::None | Use::Read(Some(_)) => {
                *job = IDLE;
                self.lane.give(slot);
            }
            Use::Forgotten | Use::Write | Use::Unsettled => debug_assert!(false, "slot {slot:?} is not the caller's"),
        }
    }

    /// The bytes of a slot that is the caller's.
    pub(super) fn bytes(&self, slot: SlotId) -> &[u8] {
        self.lane.bytes(slot).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self, slot: SlotId) -> &mut [u8] {
        self.lane.bytes_mut(slot).unwrap_or_default()
    }

    /// Makes ready a READ of blocks into a slot of the caller's.
    pub(super) fn prepare_read(&mut self, slot: SlotId, first: u64, count: usize) {
        self.prepare(slot, Op::Read, first, count);
    }

    /// READs that were made ready and not posted.
    pub(super) fn prepared(&self) -> usize {
        self.ready.len()
    }

    /// Forgets what was made ready and not posted.
    pub(super) fn unprepare(&mut self) {
        self.ready.clear();
    }

    /// Whether a READ of the caller's has ended, as far as was polled.
    pub(super) fn has_ended(&self, slot: SlotId) -> bool {
        matches!(self.jobs.list[slot.0 as usize].used, Use::Read(Some(_)))
    }

    /// Posts all READs that were made ready, if any. The caller waits for each, or gives its slot back.
    pub(super) fn post_reads(&mut self) -> Result<(), DataError> {
        self.post()?;
        for transfer in self.ready.drain(..) {
            self.jobs.list[transfer.slot.0 as usize].used = Use::Read(None);
        }
        Ok(())
    }

    /// Posts a WRITE of blocks from a slot of the caller's, who must have begun it in the freshness table. The slot and
    /// the table are seen to from here on; with an error, both are still the caller's.
    pub(super) fn write(&mut self, slot: SlotId, first: u64, count: usize, entry: Entry) -> Result<(), DataError> {
        self.prepare(slot, Op::Write, first, count);
        self.post()?;
        self.ready.clear();
        self.jobs.list[slot.0 as usize] = Job { used: Use::Write, first, count, entry };
        self.writes += 1;
        Ok(())
    }

    /// Waits for a READ of the caller's.
    pub(super) fn wait(&mut self, slot: SlotId, deadline: Instant) -> Result<(), DataError> {
        loop {
            match self.jobs.list[slot.0 as usize].used {
                Use::Read(Some(WcStatus::SUCCESS)) => return Ok(()),
                Use::Read(Some(status)) => return Err(DataError::of(self.broken.unwrap_or(status))),
                _ => self.wait_any(deadline)?,
            }
        }
    }

    /// Waits until no WRITE is under way.
    pub(super) fn wait_writes(&mut self, deadline: Instant) -> Result<(), DataError> {
        while self.writes > 0 {
            self.wait_any(deadline)?;
        }
        self.usable()
    }

    /// Waits until something has ended.
    fn wait_any(&mut self, deadline: Instant) -> Result<(), DataError> {
        let patience = if cfg!(feature = "danger-no-deadline") { Duration::from_secs(3600) } else { Duration::ZERO };
        self.done.clear();
        let deadline = deadline + patience;
        if self.lane.poll_within(deadline, &mut self.done)? == 0 {
            return in_time(deadline);
        }
        self.settle();
        Ok(())
    }

    /// Sees to what has ended. Never waits.
    pub(super) fn poll(&mut self) -> Result<(), DataError> {
        self.done.clear();
        self.lane.poll(&mut self.done)?;
        self.settle();
        Ok(())
    }

    /// Sees to what was polled.
    fn settle(&mut self) {
        for Done { slot, status } in self.done.iter().copied() {
            // The first failure says why; the rest are flushed on its account.
            if status != WcStatus::SUCCESS && self.broken.is_none_or(|first| first == WcStatus::WR_FLUSH_ERR) {
                self.broken = Some(status);
            }
            let job = &mut self.jobs.list[slot.0 as usize];
            match job.used {
                Use::Read(_) => job.used = Use::Read(Some(status)),
                Use::Write => {
                    self.writes -= 1;
                    if status == WcStatus::SUCCESS {
                        for at in 0..job.count as u64 {
                            self.jobs.freshness.commit(job.first + at, job.entry.after(at));
                        }
                        *job = IDLE;
                        self.lane.give(slot);
                    } else {
                        job.used = Use::Unsettled;
                        job.unsettle(&self.jobs.freshness);
                    }
                }
                _ => {
                    *job = IDLE;
                    self.lane.give(slot);
                }
            }
        }
    }

    /// Says of all WRITEs under way that nobody waits for them any more: until their end is polled, it is open.
    pub(super) fn unsettle_writes(&mut self) {
        self.jobs.list.iter().filter(|job| job.used == Use::Write).for_each(|job| job.unsettle(&self.jobs.freshness));
    }

    /// Destroys the queue pair and makes a fresh one, to be connected. What was in flight has ended when this returns.
    pub(super) fn renew(&mut self) -> Result<&mut Lane, DataError> {
        self.broken = Some(self.broken.unwrap_or(WcStatus::WR_FLUSH_ERR));
        self.lane.renew()?;
        while self.lane.in_flight() > 0 {
            self.poll()?;
        }
        Ok(&mut self.lane)
    }

    /// Goes on after an attach: what is unsettled is written again, before anything else.
    pub(super) fn resume(&mut self, window: Window, deadline: Instant) -> Result<(), DataError> {
        let unsettled = |job: &&Job| job.used == Use::Unsettled;
        if !self.jobs.list.iter().filter(unsettled).all(|job| window.has(job.first, job.count)) {
            return Err(DataError::Window("it lacks blocks that are to be written again"));
        }
        self.window = window;
        for number in 0..self.jobs.list.len() {
            let Job { used: Use::Unsettled, first, count, .. } = self.jobs.list[number] else { continue };
            self.prepare(SlotId(number as u32), Op::Write, first, count);
        }
        if !self.ready.is_empty() {
            self.post()?;
            self.writes += self.ready.len();
            for transfer in self.ready.drain(..) {
                self.jobs.list[transfer.slot.0 as usize].used = Use::Write;
            }
        }
        self.broken = None;
        self.wait_writes(deadline)
    }

    fn prepare(&mut self, slot: SlotId, op: Op, first: u64, count: usize) {
        let Window { stride, rkey, .. } = self.window;
        let (len, remote_address) = (count * stride as usize, self.window.address_of(first));
        self.ready.push(Transfer { slot, op, len, remote_address, rkey });
    }

    /// Posts what is ready, or nothing of it.
    fn post(&mut self) -> Result<(), DataError> {
        if self.ready.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.lane.post(&self.ready) {
            self.ready.clear();
            // A queue pair in the error state takes nothing; why it is there may wait to be polled.
            self.poll()?;
            self.usable()?;
            return Err(error.into());
        }
        Ok(())
    }
}

impl Job {
    fn unsettle(&self, freshness: &Freshness) {
        (0..self.count as u64).for_each(|at| freshness.unsettle(self.first + at));
    }
}

/// What all slots are used for.
struct Jobs {
    list: Vec<Job>,
    freshness: Arc<Freshness>,
}

impl Drop for Jobs {
    /// Nobody is left to write again what has not arrived.
    fn drop(&mut self) {
        for job in self.list.iter().filter(|job| matches!(job.used, Use::Write | Use::Unsettled)) {
            (0..job.count as u64).for_each(|at| self.freshness.abandon(job.first + at));
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // What has arrived by now is settled. Where the device fails it is given up with the rest.
        let _ = self.poll();
    }
}
