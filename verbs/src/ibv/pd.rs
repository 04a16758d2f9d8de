//! Protection domains of an `ibv` device.

use std::ops::Range;
use std::sync::Arc;

use super::cq::IbvCq;
use super::device::{IbvDevice, refused};
use super::mr::IbvMr;
use super::qp::IbvQp;
use super::sys::{Mr, Pd};
use crate::{Access, Memory, QpCaps, VerbsError};

pub(crate) struct IbvPd {
    device: Arc<IbvDevice>,
    pd: Arc<Pd>,
}

impl IbvPd {
    pub(super) fn new(device: &Arc<IbvDevice>, pd: Pd) -> Self {
        Self { device: Arc::clone(device), pd: Arc::new(pd) }
    }

    pub(crate) fn register(
        &self,
        memory: &Arc<Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<IbvMr, VerbsError> {
        let (start, len) = (range.start, range.len());
        let mr =
            Mr::new(&self.pd, memory, start, len, flags(access)).map_err(|source| refused("ibv_reg_mr", source))?;
        Ok(IbvMr { pd: Arc::clone(&self.pd), mr, access, address: memory.address() + start as u64, len })
    }

    pub(crate) fn create_qp(&self, cq: &Arc<IbvCq>, caps: QpCaps) -> Result<IbvQp, VerbsError> {
        IbvQp::new(&self.device, &self.pd, cq, caps)
    }
}

/// `ibv_access_flags`. The specification wants local write wherever a peer may write.
pub(super) fn flags(access: Access) -> u32 {
    const LOCAL_WRITE: u32 = 1;
    const REMOTE_WRITE: u32 = 2;
    const REMOTE_READ: u32 = 4;
    const REMOTE_ATOMIC: u32 = 8;
    let mut flags = if cfg!(feature = "danger-any-request") { LOCAL_WRITE | REMOTE_ATOMIC } else { 0 };
    if access.contains(Access::LOCAL_WRITE) {
        flags |= LOCAL_WRITE;
    }
    if access.contains(Access::REMOTE_WRITE) {
        flags |= REMOTE_WRITE | LOCAL_WRITE;
    }
    if access.contains(Access::REMOTE_READ) {
        flags |= REMOTE_READ;
    }
    flags
}
