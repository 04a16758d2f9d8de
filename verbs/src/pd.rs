//! Protection domains.

use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "ibv")]
use crate::ibv::pd::IbvPd;
use crate::soft::device::SoftPd;
use crate::{Access, CompletionQueue, Memory, MemoryRegion, QpCaps, QueuePair, VerbsError, cq, mr, qp};

/// What keeps tenants apart: a queue pair reaches the regions of its own domain only. Freed with its last clone and
/// the last region and queue pair made from it.
#[derive(Clone)]
pub struct ProtectionDomain(pub(crate) Backend);

#[derive(Clone)]
pub(crate) enum Backend {
    Soft(Arc<SoftPd>),
    #[cfg(feature = "ibv")]
    Ibv(Arc<IbvPd>),
}

impl ProtectionDomain {
    /// Lets the device use `range` of `memory`, which lives at least as long as the region.
    ///
    /// # Errors
    /// A range that is empty or outside of the memory; a limit of the device.
    pub fn register(
        &self,
        memory: &Arc<Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<MemoryRegion, VerbsError> {
        match range.end.checked_sub(range.start) {
            Some(0) => return Err(VerbsError::ZeroLength { what: "a memory region" }),
            Some(_) if range.end <= memory.len() => {}
            len => {
                let (what, offset, size) = ("the memory", range.start, memory.len());
                return Err(VerbsError::OutOfRange { what, offset, len: len.unwrap_or(0), size });
            }
        }
        match &self.0 {
            Backend::Soft(pd) => Ok(MemoryRegion(mr::Backend::Soft(pd.register(memory, range, access)?))),
            #[cfg(feature = "ibv")]
            Backend::Ibv(pd) => Ok(MemoryRegion(mr::Backend::Ibv(pd.register(memory, range, access)?))),
        }
    }

    /// A new queue pair in state RESET; its completions go to `cq`.
    ///
    /// # Errors
    /// A completion queue of another device; capacities that the device does not have.
    pub fn create_qp(&self, cq: &CompletionQueue, caps: QpCaps) -> Result<QueuePair, VerbsError> {
        match (&self.0, &cq.0) {
            (Backend::Soft(pd), cq::Backend::Soft(cq)) => Ok(QueuePair(qp::Backend::Soft(pd.create_qp(cq, caps)?))),
            #[cfg(feature = "ibv")]
            (Backend::Ibv(pd), cq::Backend::Ibv(cq)) => Ok(QueuePair(qp::Backend::Ibv(pd.create_qp(cq, caps)?))),
            #[cfg(feature = "ibv")]
            _ => Err(VerbsError::Foreign { what: "completion queue", owner: "device" }),
        }
    }
}
