//! Which remote bytes a lane reaches.

use overbank_fabric::token::Rights;

use super::DataError;

/// What an attach allows, as the provider's answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Remote address of `first_block`.
    pub address: u64,
    /// Remote key.
    pub rkey: u32,
    /// First block.
    pub first_block: u64,
    /// Blocks.
    pub blocks: u64,
    /// Remote bytes from one block to the next.
    pub stride: u32,
    /// What may be done.
    pub rights: Rights,
}

impl Window {
    /// Checks what a provider could have got wrong, for a lease of `blocks` blocks of `stride` remote bytes.
    pub(super) fn check(&self, stride: usize, blocks: u64) -> Result<(), DataError> {
        if self.stride as usize != stride {
            return Err(DataError::Window("its stride does not fit the block size"));
        }
        if self.first_block.checked_add(self.blocks).is_none_or(|end| end > blocks) {
            return Err(DataError::Window("its blocks are not blocks of the lease"));
        }
        let bytes = self.blocks.checked_mul(u64::from(self.stride));
        if bytes.and_then(|bytes| self.address.checked_add(bytes)).is_none() {
            return Err(DataError::Window("its addresses wrap"));
        }
        Ok(())
    }

    /// Whether these blocks are in it.
    pub(super) fn has(&self, first: u64, count: usize) -> bool {
        first >= self.first_block
            && first.checked_add(count as u64).is_some_and(|end| end <= self.first_block + self.blocks)
    }

    /// Remote address of a block of it.
    pub(super) fn address_of(&self, block: u64) -> u64 {
        self.address + (block - self.first_block) * u64::from(self.stride)
    }
}
