//! The audit log: what the auth daemon decided, in a chain that shows every change to it.
//!
//! Each record is hashed together with the hash of the record before it. At times the auth daemon signs the hash of the
//! last record, a [`Checkpoint`]: whoever alters, inserts or removes a record before it would have to forge that signature.
//! A checkpoint that was carried elsewhere (a *witness*) shows more: that the log was cut at its end, or that the auth
//! daemon's key signed another history. [`Verifier`] checks all of it, and needs nothing but the log and the daemon's
//! fingerprint.
//!
//! As text, a log is one JSON object a line, each a [`Line`]:
//! ```text
//! {"record":{"record":{"seq":1,"unix_ms":1790000000000,"event":"started",…},"hash":"77ab…"}}
//! {"checkpoint":{"authd":"d75a…","seq":1,"hash":"77ab…","unix_ms":1790000000000,"signature":"e556…"}}
//! ```

mod verify;

pub use verify::{AuditError, Verified, Verifier};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::identity::{Identity, IdentityError, PublicKey, Signature};
use crate::ids::{CorrelationId, Fingerprint, LeaseId, Tenant};
use crate::labels;
use crate::message::Role;
use crate::signed::to_cbor;

/// Longest name of an event, and longest kind of outcome, in bytes.
pub const MAX_WORD: usize = 40;
/// Longest [`Record::detail`], in bytes.
pub const MAX_DETAIL: usize = 256;
/// Longest [`Record::from`], in bytes: an IPv6 address with its scope and port fits.
pub const MAX_FROM: usize = 80;

/// One thing that happened. Order is by `seq`; the clock may have been set back in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Counts from 1, without gaps.
    pub seq: u64,
    /// When: the auth daemon's wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// What: a word such as `granted`.
    pub event: String,
    /// `done`, or why not: the kind of refusal, such as `forbidden`.
    pub outcome: String,
    /// Who wanted it; none: the auth daemon of its own accord.
    #[serde(with = "as_text")]
    pub who: Option<Fingerprint>,
    /// As what they were trusted then.
    pub role: Option<Role>,
    /// From which IP address and port.
    pub from: Option<String>,
    /// The request that caused it: the same as in every party's log.
    #[serde(with = "as_text")]
    pub correlation: Option<CorrelationId>,
    /// About which lease.
    #[serde(with = "as_text")]
    pub lease: Option<LeaseId>,
    /// In which tenant's name.
    pub tenant: Option<Tenant>,
    /// About which identity: who was approved or revoked, which provider lends.
    #[serde(with = "as_text")]
    pub target: Option<Fingerprint>,
    /// What else there is to say, in a few words.
    pub detail: String,
}

/// A record with its hash, which is also over every record before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hashed {
    /// What happened.
    pub record: Record,
    /// See [`Hash::next`].
    pub hash: Hash,
}

/// The hash that a chain has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(#[serde(with = "as_hex")] pub [u8; 32]);

impl Hash {
    /// The hash before the first record.
    #[must_use]
    pub fn genesis() -> Self {
        Self(Sha256::digest(labels::AUDIT_GENESIS).into())
    }

    /// The hash after `record`: SHA-256 over label ‖ this hash ‖ the record as CBOR.
    #[must_use]
    pub fn next(&self, record: &Record) -> Self {
        Self::after(self, &to_cbor(record))
    }

    /// The same, of a record that is CBOR already.
    #[must_use]
    pub fn after(&self, record: &[u8]) -> Self {
        Self(
            Sha256::new()
                .chain_update(labels::AUDIT_RECORD)
                .chain_update(self.0)
                .chain_update(record)
                .finalize()
                .into(),
        )
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::ids::hex(&self.0))
    }
}

/// The auth daemon's signature under its log up to a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The auth daemon's key. Believed only where its fingerprint is the expected one.
    #[serde(with = "as_hex")]
    authd: [u8; 32],
    /// The last record that it covers; 0 where there is none yet.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
    /// When it was signed, by the auth daemon's wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    #[serde(with = "as_hex")]
    signature: [u8; 64],
}

impl Checkpoint {
    /// Signs.
    #[must_use]
    pub fn new(seq: u64, hash: Hash, unix_ms: u64, signer: &Identity) -> Self {
        let signature = signer.sign(labels::AUDIT_CHECKPOINT, &[&seq.to_be_bytes(), &unix_ms.to_be_bytes(), &hash.0]);
        Self { authd: signer.public().0, seq, hash, unix_ms, signature: signature.0 }
    }

    /// Who says to have signed.
    #[must_use]
    pub fn authd(&self) -> PublicKey {
        PublicKey(self.authd)
    }

    /// Whether the key in it signed it. Whose key that is remains to be compared.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn verify(&self) -> Result<(), IdentityError> {
        let parts: [&[u8]; 3] = [&self.seq.to_be_bytes(), &self.unix_ms.to_be_bytes(), &self.hash.0];
        self.authd().verify(labels::AUDIT_CHECKPOINT, &parts, &Signature(self.signature))
    }
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What happened.
    Record(Box<Hashed>),
    /// A signature under all before it. One that comes first stands for the records that are kept elsewhere.
    Checkpoint(Checkpoint),
}

/// Which records an operator wants to see. What is left out does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// From this record on; 0: from the first that is there.
    pub from_seq: u64,
    /// Whole lines, with checkpoints, to be verified; nothing below is then looked at.
    pub all: bool,
    /// By or about this identity.
    pub who: Option<Fingerprint>,
    /// Of this kind.
    pub event: Option<String>,
    /// Since then, by the auth daemon's wall clock.
    pub since_unix_ms: Option<u64>,
    /// About this lease.
    pub lease: Option<LeaseId>,
}

impl Query {
    /// Whether a record is one of those.
    #[must_use]
    pub fn wants(&self, record: &Record) -> bool {
        self.who.is_none_or(|who| record.who == Some(who) || record.target == Some(who))
            && self.event.as_ref().is_none_or(|event| record.event == *event)
            && self.since_unix_ms.is_none_or(|since| record.unix_ms >= since)
            && self.lease.is_none_or(|lease| record.lease == Some(lease))
    }
}

/// A part of the log, as far as one look reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// What was asked for, in order.
    pub lines: Vec<Line>,
    /// Where to go on: the first record that was not looked at.
    pub next_seq: u64,
    /// Signed for this answer: how far the log goes.
    pub head: Checkpoint,
}

impl Page {
    /// Whether this is the end of the log, for now.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.next_seq > self.head.seq
    }
}

/// Optional names in their text form, in CBOR too: a record reads the same everywhere.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.serialize_some(&value.to_string()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

/// Fixed-size bytes in hexadecimal.
mod as_hex {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::ids::{hex, unhex};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex(bytes))
    }

    pub(super) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(from: D) -> Result<[u8; N], D::Error> {
        unhex("a hash, key or signature", &String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
