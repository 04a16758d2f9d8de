//! Memory regions.

use std::fmt;

use crate::VerbsError;
#[cfg(feature = "ibv")]
use crate::ibv::mr::IbvMr;
use crate::soft::device::SoftMr;

/// Memory that the device may use, with exactly the rights it was registered with. Dropping it deregisters it; a
/// failure there is logged, and its memory then stays mapped for good.
pub struct MemoryRegion(pub(crate) Backend);

pub(crate) enum Backend {
    Soft(SoftMr),
    #[cfg(feature = "ibv")]
    Ibv(IbvMr),
}

impl Backend {
    pub(crate) fn soft(&self) -> Option<&SoftMr> {
        match self {
            Self::Soft(mr) => Some(mr),
            #[cfg(feature = "ibv")]
            Self::Ibv(_) => None,
        }
    }

    #[cfg(feature = "ibv")]
    pub(crate) fn ibv(&self) -> Option<&IbvMr> {
        match self {
            Self::Soft(_) => None,
            Self::Ibv(mr) => Some(mr),
        }
    }
}

impl MemoryRegion {
    /// Address of the first byte, which a peer's requests count from.
    #[must_use]
    pub fn address(&self) -> u64 {
        match &self.0 {
            Backend::Soft(mr) => mr.address(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(mr) => mr.address(),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Backend::Soft(mr) => mr.len(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(mr) => mr.len(),
        }
    }

    /// Never: there is no region of zero bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key that a peer's requests must carry.
    #[must_use]
    pub fn rkey(&self) -> u32 {
        match &self.0 {
            Backend::Soft(mr) => mr.rkey(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(mr) => mr.rkey(),
        }
    }

    /// Takes the memory back. After Ok no packet touches it through this region any more.
    ///
    /// # Errors
    /// [`VerbsError::Deregister`]: the device may still use the memory, which the error keeps alive. Quarantine it.
    pub fn deregister(self) -> Result<(), VerbsError> {
        match self.0 {
            Backend::Soft(mr) => mr.deregister(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(mr) => mr.deregister(),
        }
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryRegion({} bytes at {:#x})", self.len(), self.address())
    }
}
