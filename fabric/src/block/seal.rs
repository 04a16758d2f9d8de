//! Sealing: payload in, stride out.

use super::{Aad, BlockContext, HEADER_LEN, LeaseKey, MAX_COUNTER, Salt, Stamp, TAG_LEN, aead};
use crate::fork::Process;
use crate::ids::LeaseId;

/// Why a block was not sealed. Nothing that could be sent was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Slices of the wrong length, or a block size that no lease has: the caller's fault.
    #[error("a block is sealed from exactly one block into exactly one stride")]
    Length,
    /// The operating system gave no random salt; without one a nonce could repeat.
    #[error("the operating system gave no random numbers for a salt: nothing is sealed without one")]
    NoSalt,
    /// All 2^48 - 1 counters of the salt are used.
    #[error("this sealer has sealed all the blocks it can: make a new one")]
    Exhausted,
    /// The process forked: parent and child would use the same nonces.
    #[error("this sealer was made before a fork and its twin may have sealed with the same nonces: attach anew")]
    Forked,
    /// The AEAD engine failed, which only lack of memory explains.
    #[error("the AES-GCM engine failed")]
    Engine,
}

/// Seals blocks of one lane. Not Clone: its counter never repeats under its salt.
///
/// A fork copies salt and counter into the child, where each next block would repeat a nonce. So each block makes sure
/// that this is still the process the sealer was made in; the child makes a sealer of its own.
pub struct Sealer {
    key: LeaseKey,
    lease: LeaseId,
    aad: Aad,
    block: Option<usize>,
    salt: Salt,
    /// The last one used.
    counter: u64,
    /// The key of `counter`'s epoch, once something was sealed in it.
    epoch: Option<(u32, aead::Key)>,
    process: Process,
}

impl Sealer {
    /// With a fresh random salt.
    #[must_use]
    pub fn new(key: &LeaseKey, context: &BlockContext) -> Self {
        let mut salt = Salt::ZERO;
        if getrandom::fill(&mut salt.0).is_err() {
            salt = Salt::ZERO;
        }
        Self::with_salt(key, context, salt, 0)
    }

    /// `counter` is the last one used. Only for those who know that the salt is theirs alone.
    pub(super) fn with_salt(key: &LeaseKey, context: &BlockContext, salt: Salt, counter: u64) -> Self {
        Self {
            key: key.clone(),
            lease: context.lease,
            aad: Aad::new(context),
            block: context.is_valid().then_some(context.block as usize),
            salt,
            counter,
            epoch: None,
            process: Process::current(),
        }
    }

    /// What every stamp of this sealer bears.
    #[must_use]
    pub fn salt(&self) -> Salt {
        self.salt
    }

    /// Seals one block: `payload` is exactly one block, `out` exactly one stride.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&mut self, index: u64, payload: &[u8], out: &mut [u8]) -> Result<Stamp, SealError> {
        if self.salt == Salt::ZERO {
            return Err(SealError::NoSalt);
        }
        if self.process != Process::current() && !cfg!(feature = "danger-no-fork-check") {
            return Err(SealError::Forked);
        }
        if self.block != Some(payload.len()) || out.len() != HEADER_LEN + payload.len() {
            return Err(SealError::Length);
        }
        if self.counter >= MAX_COUNTER {
            return Err(SealError::Exhausted);
        }
        // Used up even where sealing fails below: a counter is never used for a second try.
        self.counter += 1;
        let stamp = Stamp { salt: self.salt, counter: self.counter };
        let key = match &mut self.epoch {
            Some((epoch, key)) if *epoch == stamp.epoch() => key,
            other => {
                let key = self.key.block_key(&self.lease, stamp).ok_or(SealError::Engine)?;
                &mut other.insert((stamp.epoch(), key)).1
            }
        };
        let (header, sealed) = out.split_at_mut(HEADER_LEN);
        let mut tag = [0; TAG_LEN];
        if key.seal(stamp.nonce(), self.aad.of(index), payload, sealed, &mut tag).is_none() {
            out.fill(0);
            return Err(SealError::Engine);
        }
        header[..HEADER_LEN - TAG_LEN].copy_from_slice(&stamp.to_bytes());
        header[HEADER_LEN - TAG_LEN..].copy_from_slice(&tag);
        Ok(stamp)
    }
}
