//! What several operators must agree on: a proposal that names its exact effect, and each one's signature over it.

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;
use crate::ids::{Fingerprint, Nonce};
use crate::labels;
use crate::message::Call;
use crate::signed::Statement;

/// A call that takes more than one operator, and waits for the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Never used twice: an approval is good for one proposal.
    pub id: Nonce,
    /// What will be done, and nothing else.
    pub effect: Call,
    /// Wall-clock time, milliseconds since 1970, when it is void. Part of what is signed.
    pub expires_unix_ms: u64,
    /// Milliseconds until then, by the auth daemon's clock.
    pub left_ms: u64,
    /// The operator who asked for it.
    pub by: Fingerprint,
    /// Operators who approved it so far; who asked is one of them once it has signed.
    pub approved: Vec<Fingerprint>,
    /// How many it takes.
    pub needed: u32,
}

impl Proposal {
    /// What an operator signs to approve it at that auth daemon.
    #[must_use]
    pub fn approval(&self, authd: PublicKey) -> Approval {
        Approval { authd, proposal: self.id, effect: self.effect.clone(), expires_unix_ms: self.expires_unix_ms }
    }
}

/// An operator's approval: good for one proposal, once, at one auth daemon, for one effect, until it expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The auth daemon that is to do it.
    pub authd: PublicKey,
    /// Which proposal.
    pub proposal: Nonce,
    /// What is approved.
    pub effect: Call,
    /// Until when.
    pub expires_unix_ms: u64,
}

impl Statement for Approval {
    const LABEL: &'static [u8] = labels::APPROVAL;
}
