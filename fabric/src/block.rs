//! Sealed blocks.
#![allow(missing_docs, clippy::unimplemented, unused_variables)]
use crate::ids::{LeaseId, Tenant};

/// Bytes of header before each block's payload: salt 10, counter u48, tag 16.
pub const HEADER_LEN: usize = 32;
/// Largest and smallest payload of a block, bytes, powers of two.
pub const MAX_BLOCK: u32 = 1 << 20;
pub const MIN_BLOCK: u32 = 512;
pub const DEFAULT_BLOCK: u32 = 4096;

/// One lane's share of one process life. Zero refuses to seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt(pub [u8; 10]);
/// Which sealing of a block: what the freshness table remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub salt: Salt,
    pub counter: u64,
}

/// Made by the consumer, never sent. Wiped on drop; no Debug.
pub struct LeaseKey(zeroize::Zeroizing<[u8; 32]>);
impl LeaseKey {
    pub fn generate() -> Self {
        unimplemented!()
    }
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        unimplemented!()
    }
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
/// What a block is bound to besides its index.
#[derive(Debug, Clone)]
pub struct BlockContext {
    pub tenant: Tenant,
    pub lease: LeaseId,
    pub generation: u64,
    pub block: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("stub")]
    Stub,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The header is all zero: never written, or erased by somebody.
    #[error("empty")]
    Empty,
    /// The tag does not hold for this index.
    #[error("tag")]
    Tag,
    /// Slices of the wrong length (caller's fault).
    #[error("length")]
    Length,
}

/// Seals blocks of one lane. Not Clone: its counter never repeats.
pub struct Sealer;
impl Sealer {
    pub fn new(key: &LeaseKey, context: &BlockContext) -> Self {
        unimplemented!()
    }
    pub fn salt(&self) -> Salt {
        unimplemented!()
    }
    /// `payload` is exactly one block, `out` exactly one stride.
    pub fn seal(&mut self, index: u64, payload: &[u8], out: &mut [u8]) -> Result<Stamp, SealError> {
        unimplemented!()
    }
}
/// Opens blocks of one lease, whichever salt they were sealed under; keeps the keys it derived (bounded).
pub struct Opener;
impl Opener {
    pub fn new(key: &LeaseKey, context: &BlockContext) -> Self {
        unimplemented!()
    }
    /// The stamp in a stride's header, unverified; None where the header is all zero.
    pub fn stamp(stride: &[u8]) -> Option<Stamp> {
        unimplemented!()
    }
    /// Verifies, decrypts into `out` (exactly one block); on an error `out` holds zeros.
    pub fn open(&mut self, index: u64, stride: &[u8], out: &mut [u8]) -> Result<Stamp, OpenError> {
        unimplemented!()
    }
}
