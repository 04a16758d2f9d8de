//! ML-KEM-768 (FIPS 203): the secret that keeps what is recorded today from a later quantum computer.

use getrandom::SysRng;
use getrandom::rand_core::UnwrapErr;
use ml_kem::kem::{Decapsulate, Encapsulate, KeyExport};
use ml_kem::{DecapsulationKey768, EncapsulationKey768, Seed};
use zeroize::Zeroizing;

use super::HandshakeError;

/// Bytes of an encapsulation key.
pub(super) const KEY_LEN: usize = 1184;
/// Bytes of a ciphertext.
pub(super) const CIPHERTEXT_LEN: usize = 1088;

/// Known to both ends, and to nobody else.
pub(super) type SharedSecret = Zeroizing<[u8; 32]>;

/// Opens one ciphertext. Wiped on drop.
pub(super) struct DecapsulationKey(DecapsulationKey768);

impl DecapsulationKey {
    pub(super) fn generate() -> Result<Self, HandshakeError> {
        let mut seed = Zeroizing::new([0; 64]);
        getrandom::fill(&mut *seed).map_err(|_| HandshakeError::Random)?;
        Ok(Self(DecapsulationKey768::from_seed(Seed::from(*seed))))
    }

    #[cfg(test)]
    pub(super) fn seed(&self) -> Zeroizing<[u8; 64]> {
        Zeroizing::new(self.0.to_seed().expect("made from one").into())
    }

    pub(super) fn encapsulation_key(&self) -> [u8; KEY_LEN] {
        self.0.encapsulation_key().to_bytes().into()
    }

    /// A ciphertext that was not made for this key gives another secret, not an error (FIPS 203, section 6.3).
    pub(super) fn decapsulate(self, ciphertext: &[u8; CIPHERTEXT_LEN]) -> SharedSecret {
        Zeroizing::new(self.0.decapsulate(ciphertext.into()).into())
    }
}

/// A fresh secret and the ciphertext that brings it to the holder of `key`.
pub(super) fn encapsulate(key: &[u8; KEY_LEN]) -> Result<([u8; CIPHERTEXT_LEN], SharedSecret), HandshakeError> {
    let key = EncapsulationKey768::new(key.into()).map_err(|_| HandshakeError::EncapsulationKey)?;
    let (ciphertext, secret) = key.encapsulate_with_rng(&mut UnwrapErr(SysRng));
    Ok((ciphertext.into(), Zeroizing::new(secret.into())))
}
