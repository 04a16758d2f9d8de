//! Registered memory, and who may do what to it.

use std::ops::Range;
use std::sync::Arc;

use super::handles::{EngineError, HandleMap, MrHandle, PdHandle, random};
use crate::{Access, Memory};

/// Keys are drawn at random until one is free: so few that most are.
const MAX_REGIONS: usize = 1 << 24;

/// A part of a memory that is registered.
pub(super) struct Region {
    index: u32,
    pd: PdHandle,
    memory: Arc<Memory>,
    start: usize,
    len: usize,
    access: Access,
}

impl Region {
    pub(super) fn pd(&self) -> PdHandle {
        self.pd
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where in the memory `len` bytes from `offset` of the region are, for a request of our own that `needs` a right.
    pub(super) fn local(&self, offset: usize, len: usize, needs: Access) -> Result<usize, EngineError> {
        if !self.access.contains(needs) {
            return Err(EngineError::Rights { has: self.access, needs });
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.start + offset),
            _ => Err(EngineError::OutOfRange { offset, len, size: self.len }),
        }
    }
}

/// All regions of a device.
#[derive(Default)]
pub(super) struct Regions {
    by_rkey: HandleMap<Region>,
    next: u32,
}

impl Regions {
    pub(super) fn register(
        &mut self,
        pd: PdHandle,
        memory: Arc<Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<MrHandle, EngineError> {
        let size = memory.len();
        let len = range.end.saturating_sub(range.start);
        if range.start > range.end || range.end > size {
            return Err(EngineError::OutOfRange { offset: range.start, len, size });
        }
        if len == 0 {
            return Err(EngineError::Limit { what: "length of a region", value: 0, min: 1, max: size });
        }
        let count = self.by_rkey.len();
        if count >= MAX_REGIONS {
            return Err(EngineError::Limit { what: "number of regions", value: count + 1, min: 0, max: MAX_REGIONS });
        }
        let rkey = random(|rkey| rkey != 0 && !self.by_rkey.contains_key(&rkey))?;
        let index = self.next;
        self.next = self.next.wrapping_add(1);
        self.by_rkey.insert(rkey, Region { index, pd, memory, start: range.start, len, access });
        Ok(MrHandle { index, rkey })
    }

    /// After this nobody finds the region: not by its key, and not in the middle of a message.
    pub(super) fn deregister(&mut self, handle: MrHandle) -> Option<Region> {
        self.get(handle)?;
        self.by_rkey.remove(&handle.rkey)
    }

    pub(super) fn get(&self, handle: MrHandle) -> Option<&Region> {
        self.by_rkey.get(&handle.rkey).filter(|region| region.index == handle.index)
    }

    /// Whether a peer in `pd` may do what `needs` says to `len` bytes at `address` with this key, and where they are.
    /// A request of no bytes is checked like any other.
    pub(super) fn remote(
        &self,
        pd: PdHandle,
        rkey: u32,
        address: u64,
        len: u32,
        needs: Access,
    ) -> Option<(MrHandle, usize)> {
        let region = self.by_rkey.get(&rkey).filter(|region| region.pd == pd && region.access.contains(needs))?;
        let base = region.memory.address().checked_add(region.start as u64)?;
        let offset = address.checked_sub(base)?;
        let end = offset.checked_add(u64::from(len))?;
        (end <= region.len as u64).then_some((MrHandle { index: region.index, rkey }, region.start + offset as usize))
    }
}
