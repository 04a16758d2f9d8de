//! Memory regions of an `ibv` device.

use std::sync::Arc;

use super::sys::{Mr, Pd};
use crate::{Access, VerbsError};

pub(crate) struct IbvMr {
    pub(super) pd: Arc<Pd>,
    pub(super) mr: Mr,
    pub(super) access: Access,
    pub(super) address: u64,
    pub(super) len: usize,
}

impl IbvMr {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn rkey(&self) -> u32 {
        self.mr.rkey()
    }

    pub(crate) fn deregister(mut self) -> Result<(), VerbsError> {
        self.mr.end().map_err(|source| VerbsError::Deregister {
            memory: Arc::clone(self.mr.memory()),
            source: Box::new(VerbsError::System { call: "ibv_dereg_mr", source }),
        })
    }
}

impl Drop for IbvMr {
    fn drop(&mut self) {
        if let Err(error) = self.mr.end() {
            tracing::error!(%error, "a memory region was dropped and could not be deregistered");
            // The device may still write there: the memory stays mapped for good.
            std::mem::forget(Arc::clone(self.mr.memory()));
        }
    }
}
