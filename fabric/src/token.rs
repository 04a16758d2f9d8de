//! Grants: capability tokens that say which blocks of which lease, with which rights, until when, and for whom.
//!
//! A token is a chain of at most [`MAX_BLOCKS`] blocks of fixed fields. The auth daemon signs the first; the holder
//! that a block names signs the next, and each may only narrow: fewer rights, a range inside, a sooner deadline. So a
//! holder makes a token for somebody else without asking anybody. There is no policy language: a verifier does a
//! constant small amount of work, whatever a stranger wrote.
//!
//! Layout: version u8 (1) ‖ blocks u8 ‖ blocks × [ lease 16 ‖ boot 16 ‖ tick u64 ‖ first u64 ‖ count u64 ‖ rights u8 ‖
//! holder 32 ‖ signature 64 ], integers big-endian. A signature covers all bytes of the token before it but the second.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::identity::{Identity, PublicKey, Signature};
use crate::ids::{BootId, LeaseId};
use crate::labels;
use crate::time::{Deadline, Tick};

/// Longest chain.
pub const MAX_BLOCKS: usize = 8;
const VERSION: u8 = 1;
const HEAD: usize = 2;
const FIELDS: usize = 16 + 16 + 8 + 8 + 8 + 1 + 32;
const BLOCK: usize = FIELDS + 64;
/// Longest token, bytes.
pub const MAX_TOKEN: usize = HEAD + MAX_BLOCKS * BLOCK;

/// What may be done with the blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Rights(u8);

impl Rights {
    /// Remote READ.
    pub const READ: Self = Self(1);
    /// Remote WRITE.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(3);

    /// Whether all of `other` is in this.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl TryFrom<u8> for Rights {
    type Error = TokenError;
    fn try_from(bits: u8) -> Result<Self, TokenError> {
        if matches!(bits, 1..=3) { Ok(Self(bits)) } else { Err(TokenError::Malformed("rights")) }
    }
}

impl From<Rights> for u8 {
    fn from(rights: Rights) -> Self {
        rights.0
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "read",
            2 => "write",
            _ => "read+write",
        })
    }
}

/// What one block of a token grants; also what a whole token comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The lease.
    pub lease: LeaseId,
    /// When the grant ends.
    pub deadline: Deadline,
    /// First block of the range.
    pub first_block: u64,
    /// Blocks in the range, at least 1.
    pub blocks: u64,
    /// What may be done.
    pub rights: Rights,
    /// Who may use it, and who may narrow it further.
    pub holder: PublicKey,
}

impl Scope {
    /// Whether this grants nothing that `wider` does not (the holder may differ).
    fn narrows(&self, wider: &Self) -> bool {
        let end = |scope: &Self| scope.first_block.checked_add(scope.blocks);
        self.lease == wider.lease
            && self.deadline.boot == wider.deadline.boot
            && self.deadline.tick <= wider.deadline.tick
            && wider.rights.contains(self.rights)
            && self.first_block >= wider.first_block
            && matches!((end(self), end(wider)), (Some(inner), Some(outer)) if inner <= outer)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.lease.0);
        out.extend_from_slice(&self.deadline.boot.0);
        out.extend_from_slice(&self.deadline.tick.0.to_be_bytes());
        out.extend_from_slice(&self.first_block.to_be_bytes());
        out.extend_from_slice(&self.blocks.to_be_bytes());
        out.push(self.rights.0);
        out.extend_from_slice(&self.holder.0);
    }

    fn decode(fields: &[u8; FIELDS]) -> Result<Self, TokenError> {
        let mut rest = &fields[..];
        let scope = Self {
            lease: LeaseId(take(&mut rest)),
            deadline: Deadline { boot: BootId(take(&mut rest)), tick: Tick(u64::from_be_bytes(take(&mut rest))) },
            first_block: u64::from_be_bytes(take(&mut rest)),
            blocks: u64::from_be_bytes(take(&mut rest)),
            rights: Rights::try_from(take::<1>(&mut rest)[0])?,
            holder: PublicKey(take(&mut rest)),
        };
        match scope.first_block.checked_add(scope.blocks) {
            Some(end) if end > scope.first_block => Ok(scope),
            _ => Err(TokenError::Malformed("block range")),
        }
    }
}

/// The next `N` bytes of fields whose total length the caller has fixed.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (head, tail) = rest.split_first_chunk().expect("the fields add up to the length of a block");
    *rest = tail;
    *head
}

/// A token whose every block holds: what each of its holders was given, the auth daemon's own grant first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(Vec<Scope>);

impl Chain {
    /// What the token comes down to.
    #[must_use]
    pub fn scope(&self) -> Scope {
        *self.0.last().expect("a token has at least one block")
    }

    /// All through whose hands it went, from the lease's holder to the token's.
    pub fn holders(&self) -> impl ExactSizeIterator<Item = PublicKey> {
        self.0.iter().map(|scope| scope.holder)
    }

    /// Who signed the last block; none where that was the auth daemon.
    #[must_use]
    pub fn giver(&self) -> Option<PublicKey> {
        self.0.iter().rev().nth(1).map(|scope| scope.holder)
    }
}

/// Why a token grants nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the layout above.
    #[error("malformed token: {0}")]
    Malformed(&'static str),
    /// A block is not signed by the holder that the one before names, or the first not by the auth daemon.
    #[error("the token's block {0} is not signed by who should have signed it")]
    Signature(usize),
    /// A block grants more than the one before.
    #[error("the token's block {0} grants more than the one before it")]
    Widened(usize),
    /// Narrowing by someone who does not hold it.
    #[error("only the token's holder can narrow it")]
    NotHolder,
    /// Narrowed too often.
    #[error("a token has at most {MAX_BLOCKS} blocks")]
    TooLong,
}

/// A capability token as it travels: bytes, until [`Token::verify`] has checked them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(#[serde(with = "serde_bytes")] Vec<u8>);

impl Token {
    /// The auth daemon's grant.
    #[must_use]
    pub fn grant(scope: &Scope, authd: &Identity) -> Self {
        let mut token = Self(vec![VERSION, 0]);
        token.append(scope, authd);
        token
    }

    /// A token for `scope` out of this one, signed by its holder.
    ///
    /// # Errors
    /// Where this token is no good, is not `holder`'s, or `scope` is wider than it.
    pub fn narrow(&self, authd: &PublicKey, scope: &Scope, holder: &Identity) -> Result<Self, TokenError> {
        let now = self.verify(authd)?;
        let blocks = usize::from(self.0[1]);
        if now.holder != holder.public() {
            return Err(TokenError::NotHolder);
        }
        if blocks == MAX_BLOCKS {
            return Err(TokenError::TooLong);
        }
        if !scope.narrows(&now) {
            return Err(TokenError::Widened(blocks));
        }
        let mut token = self.clone();
        token.append(scope, holder);
        Ok(token)
    }

    /// What the token grants, if every block of it holds. Says nothing about the time: the provider compares the deadline.
    ///
    /// # Errors
    /// [`TokenError`]; at most [`MAX_BLOCKS`] signatures are checked.
    pub fn verify(&self, authd: &PublicKey) -> Result<Scope, TokenError> {
        Ok(self.chain(authd)?.scope())
    }

    /// The same, with all whose hands it went through.
    ///
    /// # Errors
    /// As [`Token::verify`].
    pub fn chain(&self, authd: &PublicKey) -> Result<Chain, TokenError> {
        let (&[version, blocks], body) =
            self.0.split_first_chunk::<HEAD>().ok_or(TokenError::Malformed("too short"))?;
        let blocks = usize::from(blocks);
        if version != VERSION {
            return Err(TokenError::Malformed("unknown version"));
        }
        let fits = (1..=MAX_BLOCKS).contains(&blocks) && body.len() == blocks * BLOCK;
        if !fits && cfg!(not(feature = "danger-long-token")) {
            return Err(TokenError::Malformed("number of blocks"));
        }
        let mut signer = *authd;
        let mut scopes: Vec<Scope> = Vec::with_capacity(blocks);
        for (index, block) in body.chunks_exact(BLOCK).enumerate() {
            let (fields, signature) = block.split_first_chunk::<FIELDS>().expect("a block begins with its fields");
            let signature = Signature(signature.try_into().expect("a block ends with its signature"));
            let signed = &body[..index * BLOCK + FIELDS];
            signer
                .verify(labels::TOKEN, &[&[version], signed], &signature)
                .map_err(|_| TokenError::Signature(index))?;
            let scope = Scope::decode(fields)?;
            if scopes.last().is_some_and(|wider| !scope.narrows(wider)) && cfg!(not(feature = "danger-widened-token")) {
                return Err(TokenError::Widened(index));
            }
            signer = scope.holder;
            scopes.push(scope);
        }
        Ok(Chain(scopes))
    }

    /// Whether a holder narrowed it since the auth daemon's grant. Means something only once it is verified.
    #[must_use]
    pub fn is_narrowed(&self) -> bool {
        self.0.get(1).is_some_and(|&blocks| blocks > 1)
    }

    /// SHA-256 by which an attach request names this token.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new().chain_update(labels::TOKEN_HASH).chain_update(&self.0).finalize().into()
    }

    fn append(&mut self, scope: &Scope, signer: &Identity) {
        scope.encode(&mut self.0);
        let signature = signer.sign(labels::TOKEN, &[&self.0[..1], &self.0[HEAD..]]);
        self.0.extend_from_slice(&signature.0);
        self.0[1] += 1;
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(holder: &Identity) -> Scope {
        Scope {
            lease: LeaseId([1; 16]),
            deadline: Deadline { boot: BootId([2; 16]), tick: Tick(1000) },
            first_block: 10,
            blocks: 100,
            rights: Rights::READ_WRITE,
            holder: holder.public(),
        }
    }

    #[test]
    fn a_holder_narrows_and_delegates_offline() {
        let (authd, alice, bob) = (Identity::generate(), Identity::generate(), Identity::generate());
        let token = Token::grant(&scope(&alice), &authd);
        assert_eq!(token.verify(&authd.public()), Ok(scope(&alice)));
        let narrow = Scope { rights: Rights::READ, first_block: 20, blocks: 5, ..scope(&bob) };
        let shared = token.narrow(&authd.public(), &narrow, &alice).expect("narrower");
        assert_eq!(shared.verify(&authd.public()), Ok(narrow));
        assert!(shared.is_narrowed() && !token.is_narrowed());
        assert_eq!(shared.narrow(&authd.public(), &narrow, &alice), Err(TokenError::NotHolder));
    }

    #[test]
    fn no_field_can_be_widened() {
        let (authd, alice) = (Identity::generate(), Identity::generate());
        let base = Scope { rights: Rights::READ, ..scope(&alice) };
        let token = Token::grant(&base, &authd);
        let other_boot = Deadline { boot: BootId([9; 16]), tick: Tick(1) };
        for wider in [
            Scope { rights: Rights::READ_WRITE, ..base },
            Scope { rights: Rights::WRITE, ..base },
            Scope { first_block: 9, ..base },
            Scope { blocks: 101, ..base },
            Scope { first_block: u64::MAX, blocks: 2, ..base },
            Scope { lease: LeaseId([8; 16]), ..base },
            Scope { deadline: base.deadline_at(1001), ..base },
            Scope { deadline: other_boot, ..base },
        ] {
            assert_eq!(token.narrow(&authd.public(), &wider, &alice), Err(TokenError::Widened(1)), "{wider:?}");
            // And one that the holder wrote and signed without asking this code.
            let mut forged = token.clone();
            forged.append(&wider, &alice);
            assert!(forged.verify(&authd.public()).is_err(), "{wider:?}");
        }
    }

    #[test]
    fn blocks_cannot_be_stripped_cut_flipped_or_piled_up() {
        let (authd, alice) = (Identity::generate(), Identity::generate());
        let mut token = Token::grant(&scope(&alice), &authd);
        token = token.narrow(&authd.public(), &scope(&alice), &alice).expect("as wide");
        for cut in 0..token.0.len() {
            assert!(Token(token.0[..cut].to_vec()).verify(&authd.public()).is_err(), "cut at {cut}");
        }
        for at in 0..token.0.len() {
            let mut flipped = token.clone();
            flipped.0[at] ^= 1;
            assert!(flipped.verify(&authd.public()).is_err(), "flipped at {at}");
        }
        while token.0[1] < MAX_BLOCKS as u8 {
            token = token.narrow(&authd.public(), &scope(&alice), &alice).expect("as wide");
        }
        assert_eq!(token.narrow(&authd.public(), &scope(&alice), &alice), Err(TokenError::TooLong));
        token.append(&scope(&alice), &alice);
        assert_eq!(token.verify(&authd.public()), Err(TokenError::Malformed("number of blocks")));
        let hostile = Token([vec![VERSION, 255], vec![0; 10_000 * BLOCK]].concat());
        assert_eq!(hostile.verify(&authd.public()), Err(TokenError::Malformed("number of blocks")));
    }

    impl Scope {
        fn deadline_at(&self, tick: u64) -> Deadline {
            Deadline { tick: Tick(tick), ..self.deadline }
        }
    }
}
