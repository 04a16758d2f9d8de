//! Sealed blocks: what the lender holds in place of the borrower's bytes.
//!
//! A lease is an array of blocks of one size. Each lies in the lender's memory as one *stride*:
//!
//! | bytes | what |
//! |---|---|
//! | 0..10 | salt: random, one for each [`Sealer`] |
//! | 10..16 | counter, u48 big-endian: 1 for a salt's first block, never repeated under it |
//! | 16..32 | tag of AES-256-GCM |
//! | 32.. | the payload, encrypted, as long as the block |
//!
//! - key = HKDF-SHA256(lease key, no salt, [`labels::BLOCK_KEY`] ‖ lease id ‖ salt ‖ epoch u32),
//!   where the epoch is the counter divided by 2^26, so that no key seals more than 2^26 blocks;
//! - nonce = 6 zero bytes ‖ counter u48;
//! - associated data = [`labels::BLOCK_AAD`] ‖ length of the tenant's name u8 ‖ tenant ‖ lease id
//!   ‖ generation u64 ‖ block index u64 ‖ block size u32.
//!
//! All numbers are big-endian. A block that was moved to another index, lease or tenant does not open. That it is the
//! *latest* content of its index is not said here: who keeps the [`Stamp`] of what was sealed last can tell.
//!
//! # What is wiped
//! The lease key, and each engine's expanded key when it is dropped. Copies that the engines and the hash make on the
//! stack while they run are theirs, and are not.

mod aead;
mod key;
mod open;
mod seal;
#[cfg(test)]
mod tests;

pub use aead::ENGINE;
pub use key::LeaseKey;
pub use open::{OpenError, Opener};
pub use seal::{SealError, Sealer};

use crate::ids::{LeaseId, Tenant};
use crate::labels;

/// Bytes of header before each block's payload: salt 10, counter 6, tag 16.
pub const HEADER_LEN: usize = 32;
/// Largest payload of a block, in bytes. Every size is a power of two.
pub const MAX_BLOCK: u32 = 1 << 20;
/// Smallest payload of a block, in bytes.
pub const MIN_BLOCK: u32 = 512;
/// Payload of a block where nobody asks for another, in bytes.
pub const DEFAULT_BLOCK: u32 = 4096;
/// Largest counter of a salt.
pub const MAX_COUNTER: u64 = (1 << 48) - 1;

/// Blocks that one key seals, as a power of two.
const EPOCH_BITS: u32 = 26;
const SALT_LEN: usize = 10;
const TAG_LEN: usize = 16;

/// One sealer's share of one process life. Zero refuses to seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt(pub [u8; SALT_LEN]);

impl Salt {
    const ZERO: Self = Self([0; SALT_LEN]);
}

/// Which sealing of a block: what a freshness table remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Whose.
    pub salt: Salt,
    /// The how-manieth under that salt, 1 to [`MAX_COUNTER`].
    pub counter: u64,
}

impl Stamp {
    /// Salt and counter as they stand in a header.
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..SALT_LEN].copy_from_slice(&self.salt.0);
        bytes[SALT_LEN..].copy_from_slice(&self.counter.to_be_bytes()[2..]);
        bytes
    }

    fn from_bytes(bytes: &[u8; 16]) -> Self {
        let mut stamp = Self { salt: Salt::ZERO, counter: 0 };
        stamp.salt.0.copy_from_slice(&bytes[..SALT_LEN]);
        stamp.counter = bytes[SALT_LEN..].iter().fold(0, |counter, &byte| counter << 8 | u64::from(byte));
        stamp
    }

    /// Which of the salt's keys.
    fn epoch(self) -> u32 {
        (self.counter >> EPOCH_BITS) as u32
    }

    fn nonce(self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[6..].copy_from_slice(&self.counter.to_be_bytes()[2..]);
        nonce
    }
}

/// What a block is bound to besides its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockContext {
    /// Who pays for the lease.
    pub tenant: Tenant,
    /// The lease.
    pub lease: LeaseId,
    /// Constant for the life of the lease's contents.
    pub generation: u64,
    /// Payload of a block in bytes: a power of two, [`MIN_BLOCK`] to [`MAX_BLOCK`].
    pub block: u32,
}

impl BlockContext {
    /// Whether the block size is one that a lease can have.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.block.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&self.block)
    }

    /// Remote bytes from one block to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        HEADER_LEN + self.block as usize
    }
}

/// Associated data of any block of one lease; only the index changes from block to block.
#[derive(Clone)]
struct Aad {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Aad {
    const MAX: usize = labels::BLOCK_AAD.len() + 1 + Tenant::MAX + 16 + 8 + 8 + 4;

    fn new(context: &BlockContext) -> Self {
        let tenant = context.tenant.as_str().as_bytes();
        let mut aad = Self { bytes: [0; Self::MAX], len: 0 };
        aad.push(labels::BLOCK_AAD);
        aad.push(&[tenant.len() as u8]);
        aad.push(tenant);
        aad.push(&context.lease.0);
        aad.push(&context.generation.to_be_bytes());
        aad.push(&[0; 8]);
        aad.push(&context.block.to_be_bytes());
        aad
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    fn of(&mut self, index: u64) -> &[u8] {
        if cfg!(feature = "danger-no-position") {
            return labels::BLOCK_AAD;
        }
        self.bytes[self.len - 12..self.len - 4].copy_from_slice(&index.to_be_bytes());
        &self.bytes[..self.len]
    }
}
