//! Statements that outlive a session: CBOR bytes and the signature of who made them.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::{Identity, IdentityError, PublicKey, Signature};

/// Bytes that are not the one CBOR item they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// Malformed, of another shape, or with a field nobody knows.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Bytes follow the item.
    #[error("malformed message: {0} bytes follow its end")]
    Trailing(usize),
}

/// Nesting allowed in anything read from outside.
const DEPTH: usize = 16;

/// A value as CBOR (RFC 8949).
#[must_use]
pub fn to_cbor<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("our own types always serialize into memory");
    bytes
}

/// Exactly one value from CBOR; what follows it is refused.
///
/// # Errors
/// [`CborError`].
pub fn from_cbor<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, CborError> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH)
        .map_err(|error| CborError::Malformed(error.to_string()))?;
    if bytes.is_empty() { Ok(value) } else { Err(CborError::Trailing(bytes.len())) }
}

/// What can be signed: a type with a label of its own.
pub trait Statement: Serialize + DeserializeOwned {
    /// See [`crate::labels`].
    const LABEL: &'static [u8];
}

/// A statement as it travels. Nothing in it is readable before its signature was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Signed<T> {
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    signature: Signature,
    #[serde(skip)]
    of: PhantomData<T>,
}

/// Why a statement is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not signed by the key that it should be signed by.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Signed, but malformed.
    #[error(transparent)]
    Cbor(#[from] CborError),
}

impl<T: Statement> Signed<T> {
    /// Signs a statement.
    #[must_use]
    pub fn new(statement: &T, signer: &Identity) -> Self {
        let body = to_cbor(statement);
        let signature = signer.sign(T::LABEL, &[&body]);
        Self { body, signature, of: PhantomData }
    }

    /// The statement, if `signer` made it.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn open(&self, signer: &PublicKey) -> Result<T, StatementError> {
        signer.verify(T::LABEL, &[&self.body], &self.signature)?;
        let statement = from_cbor(&self.body)?;
        // Tags and long forms would let a valid statement be as long as a message.
        if to_cbor(&statement) != self.body {
            return Err(CborError::Malformed("not in the one form that it is written in".to_owned()).into());
        }
        Ok(statement)
    }

    /// Bytes that are signed.
    #[must_use]
    pub fn signed_bytes(&self) -> usize {
        self.body.len()
    }

    /// What it says, whoever signed it. Only to find out who should have: [`Signed::open`] decides.
    ///
    /// # Errors
    /// [`CborError`].
    pub(crate) fn unverified(&self) -> Result<T, CborError> {
        from_cbor(&self.body)
    }

    /// The statement, if it was made by whom it names itself. Whether that is somebody to believe is the caller's to check.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn open_by(&self, signer: impl FnOnce(&T) -> PublicKey) -> Result<T, StatementError> {
        let statement: T = from_cbor(&self.body)?;
        signer(&statement).verify(T::LABEL, &[&self.body], &self.signature)?;
        Ok(statement)
    }

    /// SHA-256 over the signed bytes, by which an answer names what it answers.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(&self.body).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Claim {
        number: u32,
    }

    impl Statement for Claim {
        const LABEL: &'static [u8] = b"test claim";
    }

    #[test]
    fn only_the_signer_is_believed_and_only_whole() {
        let (signer, other) = (Identity::generate(), Identity::generate());
        let signed = Signed::new(&Claim { number: 7 }, &signer);
        assert_eq!(signed.open(&signer.public()), Ok(Claim { number: 7 }));
        assert!(signed.open(&other.public()).is_err());
        let bytes = to_cbor(&signed);
        assert_eq!(from_cbor::<Signed<Claim>>(&bytes), Ok(signed.clone()));
        for cut in 0..bytes.len() {
            assert!(from_cbor::<Signed<Claim>>(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        // The same, said longer.
        let mut padded = vec![0xc0; 1000];
        padded.extend_from_slice(&signed.body);
        assert_eq!(from_cbor::<Claim>(&padded), Ok(Claim { number: 7 }), "tags are skipped");
        let signature = signer.sign(Claim::LABEL, &[&padded]);
        let padded = Signed::<Claim> { body: padded, signature, of: PhantomData };
        assert!(matches!(padded.open(&signer.public()), Err(StatementError::Cbor(CborError::Malformed(_)))));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(from_cbor::<Signed<Claim>>(&longer), Err(CborError::Trailing(1)));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = [vec![0x81; 100_000], vec![0]].concat();
        assert!(matches!(from_cbor::<ciborium::Value>(&deep), Err(CborError::Malformed(_))));
    }
}
