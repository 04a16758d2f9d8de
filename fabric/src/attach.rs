//! How a consumer's queue pairs get bound to a lease, with the auth daemon as a messenger that cannot forge either half.
//!
//! The consumer signs what it wants and from where; the provider checks token and signature, binds its queue pairs to
//! those endpoints only, and signs the address and key that it answers with.

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;
use crate::ids::{BootId, LeaseId, Nonce};
use crate::labels;
use crate::signed::Statement;
use crate::token::Rights;

/// Most lanes (queue pairs) in one attach.
pub const MAX_LANES: usize = 16;

/// Longest attach request that is passed on, bytes. One with all lanes has some 800.
pub const MAX_REQUEST: usize = 2048;

/// A queue pair's endpoint, as the verbs layer encodes it: who can read it needs no other knowledge of it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointBytes(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// What a consumer asks of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// [`crate::token::Token::hash`] of the token that allows it.
    #[serde(with = "serde_bytes")]
    pub token: [u8; 32],
    /// The consumer's queue pairs, 1 to [`MAX_LANES`].
    pub lanes: Vec<EndpointBytes>,
    /// The provider it is meant for.
    pub provider: PublicKey,
    /// The provider's life it is meant for.
    pub boot: BootId,
    /// Fresh for each request: a provider binds one nonce once.
    pub nonce: Nonce,
}

impl Statement for AttachRequest {
    const LABEL: &'static [u8] = labels::ATTACH_REQUEST;
}

/// What a provider answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachAnswer {
    /// [`crate::signed::Signed::hash`] of the request.
    #[serde(with = "serde_bytes")]
    pub request: [u8; 32],
    /// The lease.
    pub lease: LeaseId,
    /// The provider's queue pairs, one for each of the request's, in its order.
    pub lanes: Vec<EndpointBytes>,
    /// Remote address of the first block of the range.
    pub address: u64,
    /// Remote key of the region.
    pub rkey: u32,
    /// First block of the range.
    pub first_block: u64,
    /// Blocks of the range.
    pub blocks: u64,
    /// Remote bytes from one block to the next.
    pub stride: u32,
    /// What the region allows.
    pub rights: Rights,
    /// Milliseconds until the lease's deadline, as the provider's clock has it.
    pub left_ms: u64,
}

impl Statement for AttachAnswer {
    const LABEL: &'static [u8] = labels::ATTACH_ANSWER;
}
