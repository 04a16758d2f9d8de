//! Who may attach: everything about an attach request that can be decided without looking at the lease itself.
//!
//! The auth daemon passes requests on and cannot make one: the token says what it granted, the signature says that the
//! token's holder asks, and the request names this provider, this life of it, and each of the holder's endpoints.

use overbank_fabric::attach::{AttachRequest, MAX_LANES};
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{BootId, Nonce};
use overbank_fabric::message::{Attach, Refusal, RefusalCode};
use overbank_fabric::time::Tick;
use overbank_fabric::token::Scope;
use overbank_verbs::Endpoint;

/// Whose word counts, and who is meant.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The auth daemon's key, as pinned and proven.
    pub authd: PublicKey,
    /// Keys that it had while this provider ran: leases of that time may have tokens of those.
    pub former: Vec<PublicKey>,
    /// This provider's keys, by one of which each holder knows it.
    pub provider: Vec<PublicKey>,
    /// This life of it.
    pub boot: BootId,
}

/// A request that is allowed as far as its own contents go.
#[derive(Debug, Clone)]
pub struct Admission {
    /// What the token grants.
    pub scope: Scope,
    /// Whether the token is the auth daemon's own grant, not narrowed by a holder.
    pub root: bool,
    /// All through whose hands the token went, the lease's holder first and the token's last.
    pub hands: Vec<PublicKey>,
    /// The holder's endpoints, 1 to [`MAX_LANES`].
    pub remotes: Vec<Endpoint>,
    /// Hash of the request, which the answer names.
    pub request: [u8; 32],
    /// Good for one attach.
    pub nonce: Nonce,
}

impl Gate {
    /// Checks a request. Work is bounded: at most eight token signatures and one more.
    ///
    /// # Errors
    /// A refusal that names what does not hold.
    pub fn admit(&self, attach: &Attach, now: Tick) -> Result<Admission, Refusal> {
        let chain = attach
            .token
            .chain(&self.authd)
            .or_else(|error| self.former.iter().find_map(|key| attach.token.chain(key).ok()).ok_or(error))
            .map_err(|error| refuse(RefusalCode::BadToken, format!("{error}; ask for the lease's token again")))?;
        let scope = chain.scope();
        if scope.lease != attach.lease {
            return Err(refuse(RefusalCode::BadToken, "the token is for another lease than the request"));
        }
        if scope.deadline.boot != self.boot {
            let why = "the provider has restarted since the token was made: the lease and its contents are gone";
            return Err(refuse(RefusalCode::LeaseLost, why));
        }
        if scope.deadline.tick <= now {
            return Err(refuse(RefusalCode::BadToken, "the token has expired; attach with the token of a renewal"));
        }
        let request: AttachRequest = attach.request.open(&scope.holder).map_err(|error| {
            refuse(
                RefusalCode::BadSignature,
                format!("the attach request is not signed by the token's holder: {error}"),
            )
        })?;
        for (same, what) in [
            (request.token == attach.token.hash(), "token"),
            (self.provider.contains(&request.provider), "provider"),
            (request.boot == self.boot, "life of this provider"),
        ] {
            if !same {
                return Err(refuse(RefusalCode::BadSignature, format!("the attach request is for another {what}")));
            }
        }
        if !(1..=MAX_LANES).contains(&request.lanes.len()) {
            let why = format!("an attach has 1 to {MAX_LANES} lanes, not {}", request.lanes.len());
            return Err(refuse(RefusalCode::Invalid, why));
        }
        let remotes = request.lanes.iter().map(|lane| Endpoint::from_bytes(&lane.0)).collect::<Result<Vec<_>, _>>();
        Ok(Admission {
            scope,
            root: chain.giver().is_none(),
            hands: chain.holders().collect(),
            remotes: remotes.map_err(|error| refuse(RefusalCode::Invalid, format!("no usable endpoint: {error}")))?,
            request: attach.request.hash(),
            nonce: request.nonce,
        })
    }
}

fn refuse(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal::new(code, message)
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
