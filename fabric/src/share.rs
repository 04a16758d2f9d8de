//! A share: what another identity needs to use a part of a lease, in one file that can go any way to it. The token that was
//! narrowed for it, the facts of the lease, and the lease key, sealed for its eyes alone. None of it passes the auth daemon.
//!
//! Layout: magic 8 (`OVBSHARE`) ‖ version u16 (1) ‖ who shares 32 ‖ CBOR of a signed [`Bundle`]. The lease key is sealed
//! under HKDF-SHA256(X25519(fresh key, recipient), label ‖ context), with the context as associated data too: label ‖ who
//! shares ‖ for whom ‖ fresh public key ‖ SHA-256 of the facts. The recipient's X25519 key is its Ed25519 key in Montgomery
//! form. Who shares signs all of it, and is who signed the token's last block: nobody else's bundle opens.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Tag};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, Zeroizing};

use crate::block::{LeaseKey, MAX_BLOCK, MIN_BLOCK};
use crate::identity::{Identity, IdentityError, PublicKey};
use crate::ids::{BootId, Fingerprint, LeaseId, Tenant};
use crate::labels;
use crate::signed::{CborError, Signed, Statement, StatementError, from_cbor, to_cbor};
use crate::token::{Scope, Token, TokenError};

const MAGIC: [u8; 8] = *b"OVBSHARE";
const VERSION: u16 = 1;
const HEAD: usize = 8 + 2 + 32;
/// Longest bundle that is read: a token of eight blocks, and room to spare.
pub const MAX_LEN: usize = 8192;
const KEY: usize = 32;
const TAG: usize = 16;

/// What is shared, in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareFacts {
    /// For whom.
    pub to: PublicKey,
    /// The lease.
    pub lease: LeaseId,
    /// Constant for the life of its contents.
    pub generation: u64,
    /// In whose name it was made.
    pub tenant: Tenant,
    /// Who granted it.
    pub authd: PublicKey,
    /// Who lends.
    pub provider: PublicKey,
    /// The provider's life.
    pub boot: BootId,
    /// Usable bytes of the whole lease.
    pub bytes: u64,
    /// Payload bytes of a block.
    pub block: u32,
    /// The token, narrowed for the recipient by who shares.
    pub token: Token,
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`ShareFacts`] in CBOR.
    #[serde(with = "serde_bytes")]
    facts: Vec<u8>,
    /// The public half of a key that was made for this bundle alone.
    #[serde(with = "serde_bytes")]
    fresh: [u8; 32],
    /// The lease key, sealed, and its tag.
    #[serde(with = "serde_bytes")]
    sealed: [u8; KEY + TAG],
}

impl Statement for Bundle {
    const LABEL: &'static [u8] = labels::SHARE;
}

/// Why a share is not made, or not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It never was one, or it was cut.
    #[error("this is no share bundle: {0}")]
    Malformed(&'static str),
    /// Made by a newer version.
    #[error("the share bundle has version {0}, and this program reads {VERSION}: use a newer one")]
    Newer(u16),
    /// The signature does not hold.
    #[error("the share bundle was changed, or is not from {0}")]
    Signature(Fingerprint),
    /// For somebody else.
    #[error("the share is for {to}, not for {me}: use that identity, or have it shared with this one")]
    NotForMe {
        /// For whom.
        to: Fingerprint,
        /// Who opens it.
        me: Fingerprint,
    },
    /// The token in it does not hold.
    #[error("the share's token does not hold: {0}")]
    Token(#[from] TokenError),
    /// Token and facts contradict each other.
    #[error("the share contradicts itself: {0}")]
    Contradiction(&'static str),
    /// A public key that nothing can be sealed for.
    #[error("{0}")]
    Key(#[from] IdentityError),
    /// The lease key in it does not open.
    #[error("the lease key in the share does not open: it was sealed for somebody else, or by somebody else")]
    Sealed,
}

impl From<CborError> for ShareError {
    fn from(_: CborError) -> Self {
        Self::Malformed("its contents make no sense")
    }
}

/// A share that holds.
pub struct Opened {
    /// Who shares.
    pub from: PublicKey,
    /// What.
    pub facts: ShareFacts,
    /// What the token comes down to.
    pub scope: Scope,
    /// Opens and seals the blocks.
    pub key: LeaseKey,
}

/// Seals a lease key for `facts.to`, by who signed the last block of `facts.token`.
///
/// # Errors
/// [`ShareError`] where the token does not fit the facts, or `facts.to` is no usable key.
pub fn seal(facts: &ShareFacts, key: &LeaseKey, from: &Identity) -> Result<Vec<u8>, ShareError> {
    check(facts, &from.public(), &facts.to)?;
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *random).expect("the operating system gives random numbers");
    let secret = StaticSecret::from(*random);
    let fresh = x25519_dalek::PublicKey::from(&secret).to_bytes();
    let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(facts.to.to_x25519()?));
    let to = facts.to;
    let facts = to_cbor(facts);
    let context = context(&from.public(), &to, &fresh, &facts);
    let mut sealed = [0; KEY + TAG];
    sealed[..KEY].copy_from_slice(key.bytes());
    let tag = cipher(&shared, &context)
        .and_then(|cipher| cipher.encrypt_inout_detached(&NONCE.into(), &context, (&mut sealed[..KEY]).into()).ok());
    let Some(tag) = tag else {
        sealed.zeroize();
        return Err(IdentityError::Key.into());
    };
    sealed[KEY..].copy_from_slice(&tag);
    let signed = Signed::new(&Bundle { facts, fresh, sealed }, from);
    Ok([&MAGIC[..], &VERSION.to_be_bytes(), &from.public().0, &to_cbor(&signed)].concat())
}

/// Opens a share that is for `me`. That its auth daemon is the right one, and its sender somebody to listen to, is the
/// caller's to check.
///
/// # Errors
/// [`ShareError`]. The work is bounded: at most [`MAX_LEN`] bytes are looked at, and ten signatures checked.
pub fn open(bytes: &[u8], me: &Identity) -> Result<Opened, ShareError> {
    if bytes.len() > MAX_LEN {
        return Err(ShareError::Malformed("it is too long"));
    }
    let (head, body) = bytes.split_first_chunk::<HEAD>().ok_or(ShareError::Malformed("it is cut short"))?;
    if head[..8] != MAGIC {
        return Err(ShareError::Malformed("it does not begin like one"));
    }
    let version = u16::from_be_bytes([head[8], head[9]]);
    if version != VERSION {
        return Err(if version > VERSION { ShareError::Newer(version) } else { ShareError::Malformed("version 0") });
    }
    let from = PublicKey(head[10..].try_into().expect("32 bytes are left of the head"));
    let signed: Signed<Bundle> = from_cbor(body)?;
    let bundle = signed.open(&from).map_err(|error| match error {
        StatementError::Identity(_) => ShareError::Signature(from.fingerprint()),
        StatementError::Cbor(error) => error.into(),
    })?;
    let facts: ShareFacts = from_cbor(&bundle.facts)?;
    let scope = check(&facts, &from, &me.public())?;
    let context = context(&from, &facts.to, &bundle.fresh, &bundle.facts);
    let cipher = cipher(&me.agree(&bundle.fresh), &context).ok_or(ShareError::Sealed)?;
    let (sealed, tag) = bundle.sealed.split_first_chunk::<KEY>().expect("longer than a key");
    let tag: [u8; TAG] = tag.try_into().expect("a tag is left");
    let mut key = Zeroizing::new(*sealed);
    cipher
        .decrypt_inout_detached(&NONCE.into(), &context, (&mut key[..]).into(), &Tag::from(tag))
        .map_err(|_| ShareError::Sealed)?;
    Ok(Opened { from, facts, scope, key: LeaseKey::from_bytes(*key) })
}

/// A key seals one message, ever.
const NONCE: [u8; 12] = [0; 12];

/// Whether token and facts say the same.
fn check(facts: &ShareFacts, from: &PublicKey, me: &PublicKey) -> Result<Scope, ShareError> {
    if facts.to != *me {
        return Err(ShareError::NotForMe { to: facts.to.fingerprint(), me: me.fingerprint() });
    }
    let chain = facts.token.chain(&facts.authd)?;
    let scope = chain.scope();
    if scope.holder != facts.to || chain.giver() != Some(*from) {
        return Err(ShareError::Contradiction("its token was not given by who shares, to whom it is shared with"));
    }
    if scope.lease != facts.lease || scope.deadline.boot != facts.boot {
        return Err(ShareError::Contradiction("its token is for another lease"));
    }
    let sound = facts.bytes > 0 && facts.block.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&facts.block);
    let blocks = facts.bytes.div_ceil(u64::from(facts.block).max(1));
    if !sound || scope.first_block.checked_add(scope.blocks).is_none_or(|end| end > blocks) {
        return Err(ShareError::Contradiction("its token is for more than the lease has"));
    }
    Ok(scope)
}

fn context(from: &PublicKey, to: &PublicKey, fresh: &[u8; 32], facts: &[u8]) -> Vec<u8> {
    [labels::SHARE_KEY, &from.0, &to.0, fresh, &Sha256::digest(facts)].concat()
}

/// None where the other side's key is one with which everybody agrees on the same.
fn cipher(shared: &x25519_dalek::SharedSecret, context: &[u8]) -> Option<Aes256Gcm> {
    if !shared.was_contributory() {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, shared.as_bytes()).expand(context, &mut *key).expect("32 bytes are within HKDF's limit");
    Some(Aes256Gcm::new((&*key).into()))
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
