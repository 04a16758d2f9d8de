//! Who a party is: an Ed25519 key pair, and the fingerprint of its public half (RFC 8032).

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::Fingerprint;
use crate::labels;
use crate::wipe::wiped;

/// A signature that does not hold, or a key that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not the encoding of an Ed25519 public key, or one of small order.
    #[error("these 32 bytes are no usable Ed25519 public key")]
    Key,
    /// The signature is not this key's over these bytes.
    #[error("the signature does not hold")]
    Signature,
}

/// A secret identity. Has no `Debug`, and is wiped when dropped. Where it moves, its key stays in its place.
pub struct Identity(Box<SigningKey>);

impl Identity {
    /// Bytes of the secret seed.
    pub const SEED_LEN: usize = 32;

    /// A fresh one.
    ///
    /// # Panics
    /// Where the operating system has no random numbers to give.
    #[must_use]
    pub fn generate() -> Self {
        wiped(|| {
            let mut seed = zeroize::Zeroizing::new([0; Self::SEED_LEN]);
            getrandom::fill(&mut *seed).expect("the operating system gives random numbers");
            Self::from_seed(&seed)
        })
    }

    /// The one that this seed makes.
    #[must_use]
    pub fn from_seed(seed: &[u8; Self::SEED_LEN]) -> Self {
        if cfg!(feature = "danger-no-wipe") {
            // A copy that nobody wipes.
            std::mem::forget(std::hint::black_box(Box::new(*seed)));
        }
        wiped(|| Self(Box::new(SigningKey::from_bytes(seed))))
    }

    /// The secret seed, for the key file.
    #[must_use]
    pub fn seed(&self) -> zeroize::Zeroizing<[u8; Self::SEED_LEN]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// X25519 with the same key in Montgomery form, as [`PublicKey::to_x25519`] has it. The caller refuses a result to which
    /// this key contributed nothing.
    #[must_use]
    pub(crate) fn agree(&self, theirs: &[u8; 32]) -> x25519_dalek::SharedSecret {
        let scalar = zeroize::Zeroizing::new(self.0.to_scalar_bytes());
        x25519_dalek::StaticSecret::from(*scalar).diffie_hellman(&x25519_dalek::PublicKey::from(*theirs))
    }

    /// Signs `label` ‖ each of `parts`. Parts that vary in length are the caller's to delimit.
    #[must_use]
    pub fn sign(&self, label: &[u8], parts: &[&[u8]]) -> Signature {
        wiped(|| Signature(self.0.sign(&joined(label, parts)).to_bytes()))
    }
}

/// The public half of an identity. It is only bytes until [`PublicKey::verify`] has used it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl PublicKey {
    /// What people compare.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::new().chain_update(labels::FINGERPRINT).chain_update(self.0).finalize();
        let mut short = [0; 20];
        short.copy_from_slice(&digest[..20]);
        Fingerprint(short)
    }

    /// The same key for X25519, to seal something for its owner.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub(crate) fn to_x25519(self) -> Result<[u8; 32], IdentityError> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| IdentityError::Key)?;
        if key.is_weak() { Err(IdentityError::Key) } else { Ok(key.to_montgomery().to_bytes()) }
    }

    /// Checks a signature over `label` ‖ each of `parts`, strictly: no key of small order, no malleable signature.
    ///
    /// # Errors
    /// [`IdentityError::Key`] or [`IdentityError::Signature`].
    pub fn verify(&self, label: &[u8], parts: &[&[u8]], signature: &Signature) -> Result<(), IdentityError> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| IdentityError::Key)?;
        if key.is_weak() {
            return Err(IdentityError::Key);
        }
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&joined(label, parts), &signature).map_err(|_| IdentityError::Signature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signature(#[serde(with = "serde_bytes")] pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(64 bytes)")
    }
}

/// The label's length first, so that no label is the beginning of another's message.
fn joined(label: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + label.len() + parts.iter().map(|part| part.len()).sum::<usize>());
    message.push(u8::try_from(label.len()).expect("labels are short"));
    message.extend_from_slice(label);
    for part in parts {
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_label_and_bytes_alone() {
        let identity = Identity::generate();
        let signature = identity.sign(b"one", &[b"ab", b"c"]);
        let key = identity.public();
        assert_eq!(key.verify(b"one", &[b"abc"], &signature), Ok(()));
        assert_eq!(key.verify(b"two", &[b"abc"], &signature), Err(IdentityError::Signature));
        assert_eq!(key.verify(b"onea", &[b"bc"], &signature), Err(IdentityError::Signature));
        assert_eq!(Identity::generate().public().verify(b"one", &[b"abc"], &signature), Err(IdentityError::Signature));
    }

    #[test]
    fn weak_keys_verify_nothing() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let verdict = PublicKey(identity_point).verify(b"x", &[], &Signature([0; 64]));
        assert_eq!(verdict, Err(IdentityError::Key));
    }
}
