//! Completion queues of an `ibv` device.
//!
//! A device promises less than the API: it may lose a completion (rxe does), drops those of a destroyed queue pair, and
//! says of a failed request not what it was. So each queue pair keeps a ledger of what was posted and has not
//! completed; from it, what the device leaves out is flushed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};

use super::device::{IbvDevice, limit};
use super::sys::{Channel, Context, Cq};
use crate::{Completion, Health, Op, VerbsError, WcStatus};

/// A sleeper looks this often for completions whose event was lost.
const LOOK: Duration = Duration::from_millis(10);

/// What was posted and has not completed, oldest first.
pub(super) type Ledger = Arc<Mutex<VecDeque<(u64, Op)>>>;

pub(crate) struct IbvCq {
    pub(super) device: Arc<IbvDevice>,
    pub(super) cq: Arc<Cq>,
    entries: usize,
    state: Mutex<CqState>,
}

pub(super) struct CqState {
    pub(super) ledgers: Vec<(u32, Ledger)>,
    /// Completions taken from the device, or made up for it, and not yet polled.
    pub(super) ready: VecDeque<Completion>,
}

impl CqState {
    /// Takes what the device has, in batches, until it has no more or `enough` are ready.
    pub(super) fn take(&mut self, cq: &Cq, enough: usize) -> Result<(), VerbsError> {
        while self.ready.len() < enough {
            let Self { ledgers, ready } = self;
            let count = cq
                .poll(|ended| {
                    let Some((_, ledger)) = ledgers.iter().find(|(qpn, _)| *qpn == ended.qpn) else { return };
                    let mut ledger = locked(ledger);
                    let Some(place) = ledger.iter().position(|(id, _)| *id == ended.id) else { return };
                    // Completions come in order: what stands before this one was lost by the device. Whether it was
                    // carried out is not known, and a flush says just that.
                    for index in 0..=place {
                        let Some((id, op)) = ledger.pop_front() else { break };
                        let status = if index == place { WcStatus(ended.status) } else { WcStatus::WR_FLUSH_ERR };
                        ready.push_back(Completion { id, status, op, qpn: ended.qpn });
                    }
                })
                .map_err(|source| VerbsError::System { call: "ibv_poll_cq", source })?;
            if count == 0 {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves its data half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IbvCq {
    pub(super) fn new(device: &Arc<IbvDevice>, context: &Arc<Context>, entries: usize) -> Result<Self, VerbsError> {
        limit("number of completions", entries, 1, device.limits.completions)?;
        let channel =
            Channel::new(context).map_err(|source| VerbsError::System { call: "ibv_create_comp_channel", source })?;
        let cq = Cq::new(&Arc::new(channel), entries as u32)
            .map_err(|source| VerbsError::System { call: "ibv_create_cq", source })?;
        let state = CqState { ledgers: Vec::new(), ready: VecDeque::with_capacity(entries) };
        Ok(Self { device: Arc::clone(device), cq: Arc::new(cq), entries, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, CqState> {
        locked(&self.state)
    }

    pub(crate) fn poll(&self, max: usize, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        let mut state = self.lock();
        state.take(&self.cq, max.min(self.entries))?;
        let count = max.min(state.ready.len());
        // One by one: mostly there is none or one, and draining a range costs more than that.
        for _ in 0..count {
            out.extend(state.ready.pop_front());
        }
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
