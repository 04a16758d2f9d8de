//! Binds our queue pairs to a lease, and believes only what its provider signed.

use std::net::IpAddr;
use std::time::Duration;

pub use overbank_fabric::attach::MAX_LANES;
use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes};
use overbank_fabric::block::HEADER_LEN;
use overbank_fabric::ids::Nonce;
use overbank_fabric::signed::Signed;
use overbank_fabric::token::Scope;
use overbank_verbs::{Endpoint, Lane, Retry};

use crate::client::Client;
use crate::clock::{self, Until};
use crate::data::{OnUnknown, Window};
use crate::error::Error;
use crate::lease_file::Facts;

/// A provider that is silent for this long is given up: 0.1 s after each of the sendings.
const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 15 };

/// How a lease is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachOptions {
    /// `auto`, `soft`, or the name of an RDMA device.
    pub device: String,
    /// Our address as the provider is to see it. By default the one from which we reach the auth daemon.
    pub address: Option<IpAddr>,
    /// Queue pairs, 1 to [`MAX_LANES`]: one for each thread that is to read and write at once, see
    /// [`crate::Lease::split`]. 1 by default.
    pub lanes: usize,
    /// How long to spin for a completion before sleeping for it. 50 µs by default: longer costs a core, shorter latency.
    pub spin: Duration,
    /// How long a read or a write may take, with everything that it has to try again. 10 s by default.
    pub deadline: Duration,
    /// What to do with a block of which nobody knows what was written to it last, because a process that wrote this lease
    /// was killed, or because the lease is shared. By default it is refused in the first case, and accepted in the second.
    pub on_unknown: Option<OnUnknown>,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            address: None,
            lanes: 1,
            spin: Duration::from_micros(50),
            deadline: Duration::from_secs(10),
            on_unknown: None,
        }
    }
}

/// What an attach came to, beside the connected lane.
pub(crate) struct Attached {
    pub(crate) window: Window,
    pub(crate) until: Until,
}

/// Asks the lease's provider to bind these lanes, and connects them.
pub(crate) fn attach(client: &Client, facts: &Facts, lanes: &mut [&mut Lane]) -> Result<Attached, Error> {
    let scope = facts
        .token
        .verify(&facts.authd_key)
        .map_err(|error| Error::MisbehavingAuthd(format!("a token that does not hold ({error})")))?;
    let request = AttachRequest {
        token: facts.token.hash(),
        lanes: lanes.iter().map(|lane| EndpointBytes(lane.endpoint().to_bytes())).collect(),
        provider: facts.provider,
        boot: facts.boot,
        nonce: Nonce::random(),
    };
    let signed = Signed::new(&request, &client.identity());
    let hash = signed.hash();
    let asked_ms = clock::now_ms();
    let answer = client.attach(facts.lease, facts.token.clone(), signed)?;
    let misbehaving = |what: String| Error::MisbehavingProvider { provider: facts.provider.fingerprint(), what };
    let answer = answer.open(&facts.provider).map_err(|error| misbehaving(error.to_string()))?;
    let checked = check(&answer, &hash, &scope, facts, lanes.len());
    let (window, remotes) = checked.map_err(|what| misbehaving(what.to_owned()))?;
    for (lane, remote) in lanes.iter_mut().zip(&remotes) {
        lane.connect(remote, RETRY)?;
    }
    Ok(Attached { window, until: Until::new(asked_ms, answer.left_ms) })
}

/// What the answer allows, if it answers this request and covers all that the token grants.
fn check(
    answer: &AttachAnswer,
    hash: &[u8; 32],
    scope: &Scope,
    facts: &Facts,
    lanes: usize,
) -> Result<(Window, Vec<Endpoint>), &'static str> {
    if answer.request != *hash || answer.lease != facts.lease {
        return Err("an answer to another request");
    }
    if answer.lanes.len() != lanes {
        return Err("another number of queue pairs than was asked for");
    }
    let remotes = answer.lanes.iter().map(|EndpointBytes(remote)| Endpoint::from_bytes(remote));
    let remotes = remotes.collect::<Result<_, _>>().map_err(|_| "an endpoint that is none")?;
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
    Ok((window, remotes))
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
