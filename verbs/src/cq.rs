//! Completion queues.

use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "ibv")]
use crate::ibv::cq::IbvCq;
use crate::soft::device::SoftCq;
use crate::{Completion, VerbsError};

/// Where the ends of requests are found. Clones are the same queue.
#[derive(Clone)]
pub struct CompletionQueue(pub(crate) Backend);

#[derive(Clone)]
pub(crate) enum Backend {
    Soft(Arc<SoftCq>),
    #[cfg(feature = "ibv")]
    Ibv(Arc<IbvCq>),
}

impl CompletionQueue {
    /// Moves the device on, appends at most `max` completions to `out`, and returns how many. Never waits.
    ///
    /// # Errors
    /// The queue is lost.
    pub fn poll(&self, max: usize, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        match &self.0 {
            Backend::Soft(cq) => cq.poll(max, out),
            #[cfg(feature = "ibv")]
            Backend::Ibv(cq) => cq.poll(max, out),
        }
    }

    /// Polls, then sleeps, until there is a completion to poll (true) or the deadline has come (false).
    ///
    /// # Errors
    /// The queue is lost, or the system refused to wait.
    pub fn wait(&self, deadline: Instant) -> Result<bool, VerbsError> {
        match &self.0 {
            Backend::Soft(cq) => cq.wait(deadline),
            #[cfg(feature = "ibv")]
            Backend::Ibv(cq) => cq.wait(deadline),
        }
    }

    /// [`wait`](Self::wait) and [`poll`](Self::poll) at once: appends at most `max` completions to `out`, and returns how
    /// many; none once the deadline has come.
    ///
    /// # Errors
    /// As both.
    pub fn poll_within(&self, deadline: Instant, max: usize, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        match &self.0 {
            Backend::Soft(cq) => cq.poll_within(deadline, max, out),
            #[cfg(feature = "ibv")]
            Backend::Ibv(cq) => {
                if cq.wait(deadline)? {
                    cq.poll(max, out)
                } else {
                    Ok(0)
                }
            }
        }
    }
}
