//! Completion queues of an `ibv` device.
//!
//! A device promises less than the API: it may lose a completion (rxe does), drops those of a destroyed queue pair, and
//! says of a failed request not what it was. So a queue keeps a ledger for each of its queue pairs, of what was posted
//! and has not completed; from it, what the device leaves out is flushed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};

use super::device::{IbvDevice, limit, refused};
use super::sys::{Channel, Context, Cq};
use crate::{Completion, Health, Op, VerbsError, WcStatus};

/// A sleeper looks this often for completions whose event was lost.
const LOOK: Duration = Duration::from_millis(10);

/// A request, as its completion names it.
pub(super) type Request = (u64, Op);

pub(crate) struct IbvCq {
    pub(super) device: Arc<IbvDevice>,
    pub(super) cq: Arc<Cq>,
    entries: usize,
    state: Mutex<CqState>,
}

/// The requests of one queue pair, oldest first.
pub(super) struct Ledger {
    key: u64,
    qpn: u32,
    /// Posted and not completed.
    pub(super) posted: VecDeque<Request>,
    /// What the device refused in the middle of a batch: flushed once all that was posted has ended.
    pub(super) refused: VecDeque<Request>,
}

impl Ledger {
    fn flush_refused(&mut self, ready: &mut VecDeque<Completion>) {
        if self.posted.is_empty() {
            ready.extend(self.refused.drain(..).map(|request| flushed(request, self.qpn)));
        }
    }
}

fn flushed((id, op): Request, qpn: u32) -> Completion {
    Completion { id, status: WcStatus::WR_FLUSH_ERR, op, qpn }
}

pub(super) struct CqState {
    ledgers: Vec<Ledger>,
    last_key: u64,
    /// Completions taken from the device, or made up for it, and not yet polled.
    ready: VecDeque<Completion>,
    /// Completions that were promised and not yet polled: never more than there is room for.
    owed: usize,
}

impl CqState {
    /// A ledger for a new queue pair. Returns its key: a number of a queue pair is used again.
    pub(super) fn open(&mut self, qpn: u32, send_queue: usize) -> u64 {
        self.last_key += 1;
        let (posted, refused) = (VecDeque::with_capacity(send_queue), VecDeque::new());
        self.ledgers.push(Ledger { key: self.last_key, qpn, posted, refused });
        self.last_key
    }

    pub(super) fn ledger(&mut self, key: u64) -> Option<&mut Ledger> {
        self.ledgers.iter_mut().find(|ledger| ledger.key == key)
    }

    /// Room for `count` more completions, or how much there is.
    pub(super) fn promise(&mut self, count: usize, entries: usize) -> Result<(), usize> {
        let free = entries.saturating_sub(self.owed);
        if count > free {
            return Err(free);
        }
        self.owed += count;
        Ok(())
    }

    /// Takes back a promise of requests that were not posted after all.
    pub(super) fn unpromise(&mut self, count: usize) {
        self.owed = self.owed.saturating_sub(count);
    }

    /// Ends a request that never gets to a device.
    pub(super) fn flush(&mut self, request: Request, qpn: u32) {
        self.ready.push_back(flushed(request, qpn));
    }

    /// What was refused is flushed at once where nothing before it is under way.
    pub(super) fn settle(&mut self, key: u64) {
        let Self { ledgers, ready, .. } = self;
        if let Some(ledger) = ledgers.iter_mut().find(|ledger| ledger.key == key) {
            ledger.flush_refused(ready);
        }
    }

    /// Flushes all that a queue pair has not completed, and forgets it: it is destroyed.
    pub(super) fn close(&mut self, key: u64) {
        if let Some(place) = self.ledgers.iter().position(|ledger| ledger.key == key) {
            let Ledger { qpn, posted, refused, .. } = self.ledgers.swap_remove(place);
            self.ready.extend(posted.into_iter().chain(refused).map(|request| flushed(request, qpn)));
        }
    }

    /// Takes what the device has, in batches, until it has no more or `enough` are ready.
    pub(super) fn take(&mut self, cq: &Cq, enough: usize) -> Result<(), VerbsError> {
        while self.ready.len() < enough {
            let Self { ledgers, ready, .. } = self;
            let count = cq
                .poll(|ended| {
                    let Some(ledger) = ledgers.iter_mut().find(|ledger| ledger.qpn == ended.qpn) else { return };
                    let Some(place) = ledger.posted.iter().position(|(id, _)| *id == ended.id) else { return };
                    // Completions come in order: what stands before this one was lost by the device. Whether it was
                    // carried out is not known, and a flush says just that.
                    for index in 0..=place {
                        let Some((id, op)) = ledger.posted.pop_front() else { break };
                        let status = if index == place { WcStatus(ended.status) } else { WcStatus::WR_FLUSH_ERR };
                        ready.push_back(Completion { id, status, op, qpn: ended.qpn });
                    }
                    ledger.flush_refused(ready);
                })
                .map_err(|source| VerbsError::System { call: "ibv_poll_cq", source })?;
            if count == 0 {
                break;
            }
        }
        Ok(())
    }
}

impl IbvCq {
    pub(super) fn new(device: &Arc<IbvDevice>, context: &Arc<Context>, entries: usize) -> Result<Self, VerbsError> {
        limit("number of completions", entries, 1, device.limits.completions)?;
        let channel = Channel::new(context).map_err(|source| refused("ibv_create_comp_channel", source))?;
        let cq = Cq::new(&Arc::new(channel), entries as u32).map_err(|source| refused("ibv_create_cq", source))?;
        let state = CqState { ledgers: Vec::new(), last_key: 0, ready: VecDeque::with_capacity(entries), owed: 0 };
        Ok(Self { device: Arc::clone(device), cq: Arc::new(cq), entries, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, CqState> {
        // Nothing that runs under this lock leaves its data half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completions that it holds.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    pub(crate) fn poll(&self, max: usize, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        let mut state = self.lock();
        state.take(&self.cq, max.min(self.entries))?;
        let count = max.min(state.ready.len());
        // One by one: mostly there is none or one, and draining a range costs more than that.
        for _ in 0..count {
            out.extend(state.ready.pop_front());
        }
        state.unpromise(count);
        Ok(count)
    }

    /// Spins for the device's time, then sleeps on the completion channel.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<bool, VerbsError> {
        let spin_until = Instant::now() + self.device.options.spin;
        loop {
            if self.ready()? {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            if now < spin_until {
                std::hint::spin_loop();
                continue;
            }
            if self.device.health() == Health::Fatal {
                return Err(VerbsError::DeviceFatal { name: self.device.name.clone() });
            }
            self.cq.arm().map_err(|source| VerbsError::System { call: "ibv_req_notify_cq", source })?;
            // What came between the look and the arming gives no event.
            if self.ready()? {
                return Ok(true);
            }
            let sleep = deadline.saturating_duration_since(now).min(LOOK);
            let mut fds = [PollFd::new(self.cq.channel().fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, Some(sleep.into()), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => self.cq.take_events(),
                Err(source) => return Err(VerbsError::System { call: "ppoll", source: source.into() }),
            }
        }
    }

    fn ready(&self) -> Result<bool, VerbsError> {
        let mut state = self.lock();
        state.take(&self.cq, 1)?;
        Ok(!state.ready.is_empty())
    }
}
