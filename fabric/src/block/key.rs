//! The lease key, and what is derived from it.

use std::sync::Arc;

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::{Stamp, aead};
use crate::ids::LeaseId;
use crate::labels;

/// Made by the consumer, never sent. Clones share one copy in memory, which is wiped when the last is dropped. No Debug.
#[derive(Clone)]
pub struct LeaseKey(Arc<Zeroizing<[u8; 32]>>);

impl LeaseKey {
    /// A fresh one from the operating system's random numbers.
    ///
    /// # Panics
    /// Where the system has no random numbers to give: nothing safe can be done then.
    #[must_use]
    pub fn generate() -> Self {
        Self::filled(|bytes| getrandom::fill(bytes).expect("the operating system gives random numbers"))
    }

    /// One that was kept. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self::filled(|own| own.copy_from_slice(&bytes));
        bytes.zeroize();
        key
    }

    /// Filled where it stays: a value that moves leaves its old place unwiped.
    fn filled(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut key = Arc::new(Zeroizing::new([0; 32]));
        if let Some(bytes) = Arc::get_mut(&mut key) {
            fill(bytes);
        }
        Self(key)
    }

    /// To be kept where nobody else reads.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A code that only a holder of this key can make, for data that the holder stores and reads back: `label` says
    /// what kind of data, `context` which of that kind.
    #[must_use]
    pub fn authenticate(&self, label: &[u8], context: &[u8], data: &[u8]) -> [u8; 32] {
        let digest = Sha256::digest(data);
        let mut code = [0; 32];
        self.expand(&[label, &(context.len() as u64).to_be_bytes(), context, &digest], &mut code);
        code
    }

    /// Whether `code` is [`LeaseKey::authenticate`] of the same; in constant time.
    #[must_use]
    pub fn verify(&self, label: &[u8], context: &[u8], data: &[u8], code: &[u8]) -> bool {
        self.authenticate(label, context, data).as_slice().ct_eq(code).into()
    }

    /// The engine's key for what bears this stamp; None where the engine fails (out of memory).
    pub(super) fn block_key(&self, lease: &LeaseId, stamp: Stamp) -> Option<aead::Key> {
        let mut key = Zeroizing::new([0; 32]);
        self.expand(&[labels::BLOCK_KEY, &lease.0, &stamp.salt.0, &stamp.epoch().to_be_bytes()], &mut key);
        aead::Key::new(&key)
    }

    fn expand(&self, info: &[&[u8]], out: &mut [u8; 32]) {
        let (mut extracted, hkdf) = Hkdf::<Sha256>::extract(None, self.0.as_slice());
        hkdf.expand_multi_info(info, out).expect("32 bytes are within HKDF's limit");
        extracted.as_mut_slice().zeroize();
    }
}
