//! Binds our queue pairs to a lease, and believes only what its provider signed.

use std::net::IpAddr;
use std::time::Duration;

use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes, MAX_LANES};
use overbank_fabric::block::HEADER_LEN;
use overbank_fabric::ids::Nonce;
use overbank_fabric::signed::Signed;
use overbank_fabric::token::{Rights, Scope};
use overbank_verbs::{Endpoint, Lane, Retry};

use crate::client::Client;
use crate::clock::{self, Until};
use crate::error::Error;
use crate::lease_file::Facts;

/// How a lease is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachOptions {
    /// `auto`, `soft`, or the name of an RDMA device.
    pub device: String,
    /// Our address as the provider is to see it. By default the one from which we reach the auth daemon.
    pub address: Option<IpAddr>,
    /// How long to spin for a completion before sleeping for it. 50 µs by default: longer costs a core, shorter latency.
    pub spin: Duration,
    /// How long a read or a write may take, with everything that it has to try again. 10 s by default.
    pub deadline: Duration,
    /// What to do with a block of which nobody knows whether it is the last one written, because a process that wrote
    /// this lease ended without saying so: by default it is refused.
    pub unknown_freshness: UnknownFreshness,
}

/// What to do with a block that opens, but may be older than the last one written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownFreshness {
    /// Report it and return nothing.
    #[default]
    Refuse,
    /// Return it: an honest provider has the last one.
    Accept,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            address: None,
            spin: Duration::from_micros(50),
            deadline: Duration::from_secs(10),
            unknown_freshness: UnknownFreshness::Refuse,
        }
    }
}

/// The part of a provider's memory that we may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Remote address of `first_block`.
    pub(crate) address: u64,
    /// Remote key.
    pub(crate) rkey: u32,
    /// First block.
    pub(crate) first_block: u64,
    /// Blocks, at least 1. `address` and all their strides fit into 64 bits.
    pub(crate) blocks: u64,
    /// Remote bytes from one block to the next.
    pub(crate) stride: u32,
    /// What we may do.
    pub(crate) rights: Rights,
}

impl Window {
    /// Remote address of a block; `None` outside the window.
    pub(crate) fn address_of(&self, block: u64) -> Option<u64> {
        let index = block.checked_sub(self.first_block).filter(|&index| index < self.blocks)?;
        Some(self.address + index * u64::from(self.stride))
    }
}

/// What an attach came to, beside the connected lane.
pub(crate) struct Attached {
    pub(crate) window: Window,
    pub(crate) until: Until,
}

/// Asks the lease's provider to bind `lane`, and connects it.
pub(crate) fn attach(client: &Client, facts: &Facts, lane: &mut Lane, retry: Retry) -> Result<Attached, Error> {
    let scope = facts
        .token
        .verify(&facts.authd_key)
        .map_err(|error| Error::MisbehavingAuthd(format!("a token that does not hold ({error})")))?;
    let request = AttachRequest {
        token: facts.token.hash(),
        lanes: vec![EndpointBytes(lane.endpoint().to_bytes())],
        provider: facts.provider,
        boot: facts.boot,
        nonce: Nonce::random(),
    };
    let signed = Signed::new(&request, client.identity());
    let hash = signed.hash();
    let asked_ms = clock::now_ms();
    let answer = client.attach(facts.lease, facts.token.clone(), signed)?;
    let misbehaving = |what: String| Error::MisbehavingProvider { provider: facts.provider.fingerprint(), what };
    let answer = answer.open(&facts.provider).map_err(|error| misbehaving(error.to_string()))?;
    let (window, remote) =
        check(&answer, &hash, &request, &scope, facts).map_err(|what| misbehaving(what.to_owned()))?;
    lane.connect(&remote, retry)?;
    Ok(Attached { window, until: Until::new(asked_ms, answer.left_ms) })
}

/// What the answer allows, if it answers this request and covers all that the token grants.
fn check(
    answer: &AttachAnswer,
    hash: &[u8; 32],
    request: &AttachRequest,
    scope: &Scope,
    facts: &Facts,
) -> Result<(Window, Endpoint), &'static str> {
    if answer.request != *hash || answer.lease != facts.lease {
        return Err("an answer to another request");
    }
    let &[EndpointBytes(remote)] = &answer.lanes[..] else {
        return Err("another number of queue pairs than was asked for");
    };
    debug_assert!(request.lanes.len() == 1 && request.lanes.len() <= MAX_LANES);
    let remote = Endpoint::from_bytes(&remote).map_err(|_| "an endpoint that is none")?;
    if u64::from(answer.stride) != u64::from(facts.block) + HEADER_LEN as u64 {
        return Err("another stride than the block size makes");
    }
    let end = answer.first_block.checked_add(answer.blocks).ok_or("a range that wraps")?;
    // A token's own end cannot wrap: its parser has seen to that.
    if answer.first_block > scope.first_block || end < scope.first_block + scope.blocks {
        return Err("a range that is less than the token's");
    }
    if !answer.rights.contains(scope.rights) {
        return Err("fewer rights than the token's");
    }
    answer
        .blocks
        .checked_mul(u64::from(answer.stride))
        .and_then(|bytes| answer.address.checked_add(bytes))
        .ok_or("an address range that wraps")?;
    let window = Window {
        address: answer.address,
        rkey: answer.rkey,
        first_block: answer.first_block,
        blocks: answer.blocks,
        stride: answer.stride,
        rights: scope.rights,
    };
    Ok((window, remote))
}
