//! Queue pairs, reliable connected.

use std::time::Duration;

#[cfg(feature = "ibv")]
use crate::ibv::qp::IbvQp;
use crate::soft::device::SoftQp;
use crate::{Access, Endpoint, MemoryRegion, Op, VerbsError, WorkRequest};

/// How much a queue pair holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QpCaps {
    /// Requests posted and not yet completed, at most.
    pub send_queue: usize,
    /// READs that may be under way at once, in each direction. Both ends should have as many: the soft device answers a
    /// READ again only if it is among the last so many.
    pub outstanding_reads: u8,
}

/// States of a queue pair, with the names of the InfiniBand specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QpState {
    /// New.
    Reset,
    /// Has its rights; no peer.
    Init,
    /// Answers its peer.
    ReadyToReceive,
    /// Answers its peer and takes requests.
    ReadyToSend,
    /// Neither: only flushes.
    Error,
}

/// When to stop waiting for a peer's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Without an answer, until a request is sent again. The soft device learns how soon answers come, and then sends
    /// again earlier.
    pub timeout: Duration,
    /// A peer is given up after this many and one more timeouts without any answer: requests then fail with
    /// [`WcStatus::RETRY_EXC_ERR`](crate::WcStatus::RETRY_EXC_ERR).
    pub count: u8,
}

/// One end of a connection. Dropping it destroys it.
pub struct QueuePair(pub(crate) Backend);

pub(crate) enum Backend {
    Soft(SoftQp),
    #[cfg(feature = "ibv")]
    Ibv(IbvQp),
}

impl QueuePair {
    /// What the peer needs to connect.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        match &self.0 {
            Backend::Soft(qp) => qp.endpoint(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(qp) => qp.endpoint(),
        }
    }

    /// Goes from RESET to INIT, RTR and RTS, bound to this one peer. `remote_rights` is what the peer may do through
    /// this queue pair: REMOTE_READ and REMOTE_WRITE, or nothing.
    ///
    /// # Errors
    /// Not in state RESET; a peer that this device cannot reach.
    pub fn connect(&self, remote: &Endpoint, remote_rights: Access, retry: Retry) -> Result<(), VerbsError> {
        match &self.0 {
            Backend::Soft(qp) => qp.connect(remote, remote_rights, retry),
            #[cfg(feature = "ibv")]
            Backend::Ibv(qp) => qp.connect(remote, remote_rights, retry),
        }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> QpState {
        match &self.0 {
            Backend::Soft(qp) => qp.state(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(qp) => qp.state(),
        }
    }

    /// Posts all of the batch or, with an error, none. They complete in order.
    ///
    /// # Errors
    /// A request of zero bytes, outside of its region or without the right to it; a queue without room; a queue pair
    /// that is not connected. In the error state requests are taken, and flushed.
    pub fn post(&self, batch: &[WorkRequest<'_>]) -> Result<(), VerbsError> {
        self.post_each(batch.iter().copied())
    }

    pub(crate) fn post_each<'a>(&self, batch: impl Iterator<Item = WorkRequest<'a>> + Clone) -> Result<(), VerbsError> {
        batch.clone().try_for_each(|request| check(&request))?;
        match &self.0 {
            Backend::Soft(qp) => {
                if batch.clone().any(|request| request.region.0.soft().is_none()) {
                    return Err(FOREIGN);
                }
                qp.post(batch.filter_map(|request| Some((request, request.region.0.soft()?))))
            }
            #[cfg(feature = "ibv")]
            Backend::Ibv(qp) => {
                if batch.clone().any(|request| request.region.0.ibv().is_none()) {
                    return Err(FOREIGN);
                }
                qp.post(batch.filter_map(|request| Some((request, request.region.0.ibv()?))))
            }
        }
    }

    /// Goes to ERROR: what was posted is flushed in order, and the peer gets no more answers. On a real device a packet
    /// that is being carried out goes on, so memory may change a little longer: [`destroy`](Self::destroy) and
    /// [`MemoryRegion::deregister`] are what stops it.
    ///
    /// # Errors
    /// The queue pair is lost.
    pub fn set_error(&self) -> Result<(), VerbsError> {
        match &self.0 {
            Backend::Soft(qp) => qp.set_error(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(qp) => qp.set_error(),
        }
    }

    /// Destroys it. After Ok nothing that was posted touches memory any more, on this side or the peer's behalf.
    ///
    /// # Errors
    /// The device did not destroy it: what it could touch must not be used again.
    pub fn destroy(self) -> Result<(), VerbsError> {
        match self.0 {
            Backend::Soft(qp) => qp.destroy(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(qp) => qp.destroy(),
        }
    }
}

const FOREIGN: VerbsError = VerbsError::Foreign { what: "memory region", owner: "device" };

fn check(request: &WorkRequest<'_>) -> Result<(), VerbsError> {
    let region: &MemoryRegion = request.region;
    let (offset, len, size) = (request.offset, request.len, region.len());
    if len == 0 {
        let what = if request.op == Op::Read { "a READ" } else { "a WRITE" };
        return Err(VerbsError::ZeroLength { what });
    }
    if len > 1 << 31 {
        return Err(VerbsError::Limit { what: "length of a request", value: len, min: 1, max: 1 << 31 });
    }
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(VerbsError::OutOfRange { what: "the memory region", offset, len, size }),
    }
}
