//! Opening: stride in, payload out, or nothing.

use super::{Aad, BlockContext, HEADER_LEN, LeaseKey, Salt, Stamp, TAG_LEN, aead};
use crate::ids::LeaseId;

/// Why a block was not opened. The output holds zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The header is all zero: never written, or erased by somebody.
    #[error("the block's header is empty")]
    Empty,
    /// Not what was sealed for this index of this lease.
    #[error("the block is not what was sealed for its place")]
    Tag,
    /// Slices of the wrong length, or a block size that no lease has: the caller's fault.
    #[error("a block is opened from exactly one stride into exactly one block")]
    Length,
    /// The AEAD engine failed, which only lack of memory explains.
    #[error("the AES-GCM engine failed")]
    Engine,
}

/// Opens blocks of one lease, whichever salt they were sealed under.
///
/// It keeps the last [`Opener::KEYS`] keys that opened something. Whoever invents salts makes it derive a key for each
/// try, and no more: a key is kept only once a tag held under it.
pub struct Opener {
    key: LeaseKey,
    lease: LeaseId,
    aad: Aad,
    block: Option<usize>,
    keys: Vec<Kept>,
    /// Where in `keys` the last one found stands.
    last: usize,
    /// Blocks opened.
    opened: u64,
}

struct Kept {
    salt: Salt,
    epoch: u32,
    key: aead::Key,
    /// `opened` when it was last of use.
    used: u64,
}

impl Opener {
    /// Keys kept at most.
    pub const KEYS: usize = 64;

    /// Opens what a [`super::Sealer`] with the same key and context sealed.
    #[must_use]
    pub fn new(key: &LeaseKey, context: &BlockContext) -> Self {
        Self {
            key: key.clone(),
            lease: context.lease,
            aad: Aad::new(context),
            block: context.is_valid().then_some(context.block as usize),
            keys: Vec::with_capacity(Self::KEYS),
            last: 0,
            opened: 0,
        }
    }

    /// The stamp in a stride's header, unverified; None where the header is all zero or cut short.
    #[must_use]
    pub fn stamp(stride: &[u8]) -> Option<Stamp> {
        let header: &[u8; HEADER_LEN] = stride.first_chunk()?;
        let stamp = header.first_chunk()?;
        (*header != [0; HEADER_LEN]).then(|| Stamp::from_bytes(stamp))
    }

    /// Verifies `stride` and decrypts it into `out`, which is exactly one block; on an error `out` holds zeros.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&mut self, index: u64, stride: &[u8], out: &mut [u8]) -> Result<Stamp, OpenError> {
        let result = self.open_unwiped(index, stride, out);
        if result.is_err() {
            out.fill(0);
        }
        result
    }

    fn open_unwiped(&mut self, index: u64, stride: &[u8], out: &mut [u8]) -> Result<Stamp, OpenError> {
        let Some((header, sealed)) = stride.split_first_chunk::<HEADER_LEN>() else {
            return Err(OpenError::Length);
        };
        if self.block != Some(out.len()) || sealed.len() != out.len() {
            return Err(OpenError::Length);
        }
        let stamp = Self::stamp(header).ok_or(OpenError::Empty)?;
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&header[HEADER_LEN - TAG_LEN..]);
        if stamp.salt == Salt::ZERO || stamp.counter == 0 {
            return Err(OpenError::Tag);
        }
        let aad = self.aad.of(index);
        let found = match self.keys.get(self.last) {
            Some(kept) if kept.is_of(stamp) => Some(self.last),
            _ => self.keys.iter().position(|kept| kept.is_of(stamp)),
        };
        match found {
            Some(at) => {
                self.last = at;
                let kept = &mut self.keys[at];
                opened(&kept.key, stamp, aad, sealed, &tag, out)?;
                self.opened += 1;
                kept.used = self.opened;
            }
            None => {
                let key = self.key.block_key(&self.lease, stamp).ok_or(OpenError::Engine)?;
                opened(&key, stamp, aad, sealed, &tag, out)?;
                self.opened += 1;
                self.keep(Kept { salt: stamp.salt, epoch: stamp.epoch(), key, used: self.opened });
            }
        }
        Ok(stamp)
    }

    /// In place of the one that was of no use for longest, where all places are taken.
    fn keep(&mut self, kept: Kept) {
        if self.keys.len() < Self::KEYS {
            self.last = self.keys.len();
            self.keys.push(kept);
        } else if let Some((at, oldest)) = self.keys.iter_mut().enumerate().min_by_key(|(_, kept)| kept.used) {
            *oldest = kept;
            self.last = at;
        }
    }

    #[cfg(test)]
    pub(super) fn holds(&self, stamp: Stamp) -> bool {
        self.keys.iter().any(|kept| kept.is_of(stamp))
    }
}

fn opened(
    key: &aead::Key,
    stamp: Stamp,
    aad: &[u8],
    sealed: &[u8],
    tag: &[u8; TAG_LEN],
    out: &mut [u8],
) -> Result<(), OpenError> {
    if cfg!(feature = "danger-no-block-tags") {
        // In counter mode, deciphering is ciphering.
        return key.seal(stamp.nonce(), aad, sealed, out, &mut [0; TAG_LEN]).ok_or(OpenError::Tag);
    }
    key.open(stamp.nonce(), aad, sealed, tag, out).ok_or(OpenError::Tag)
}

impl Kept {
    fn is_of(&self, stamp: Stamp) -> bool {
        self.salt == stamp.salt && self.epoch == stamp.epoch()
    }
}
