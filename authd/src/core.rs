//! Every decision of the auth daemon, without a socket, a thread or a clock: requests, answers to orders and the time go
//! in; answers, orders and [`Effect`]s come out. What it says was done is in the store before it says so.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{CorrelationId, LeaseId};
use overbank_fabric::message::{Call, Refusal, RefusalCode, Reply, TrustEntry};

use crate::audit::{Bounds, Cause, Keeping};
use crate::clock::Now;
use crate::proposals::Consent;
use crate::providers::Provider;
use crate::store::{Store, StoreError, Undone};

/// What an operator of the daemon may set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest time that a lease may run without being renewed.
    pub max_lease: Duration,
    /// Most bytes pinned in one tenant's name; none: as many as there are.
    pub quota: Option<u64>,
    /// Most leases of one tenant at once; none: as many as there is room for.
    pub quota_leases: Option<u64>,
    /// Most identities that wait for approval; of more, the one seen longest ago is forgotten.
    pub max_pending: u32,
    /// How much at once, and how much a second.
    pub load: Load,
    /// How large the audit log may become before nothing is granted any more.
    pub audit: Bounds,
    /// What takes more than one operator.
    pub consent: Consent,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_lease: Duration::from_secs(24 * 3600),
            quota: None,
            quota_leases: Some(4096),
            max_pending: 1000,
            load: Load::default(),
            audit: Bounds::default(),
            consent: Consent::default(),
        }
    }
}

/// How much of everything there may be at once, and how much a second.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Connections at once whose peer has not proven who it is; as many again from hosts of operators, and of others who are
    /// trusted.
    pub unproven: usize,
    /// Of those, from one address.
    pub unproven_each: usize,
    /// Time to prove it.
    pub handshake_time: Duration,
    /// Handshakes a second from one address; from all that no trusted identity came from lately. From those of operators, and of
    /// others who are trusted, four times as many each.
    pub handshakes_per_second: u32,
    /// Handshakes at once, where there were none for some time.
    pub handshake_burst: u32,
    /// Sessions of consumers at once.
    pub sessions: usize,
    /// Sessions of identities that are not trusted.
    pub strangers: usize,
    /// Requests of consumers in flight at once, over all sessions.
    pub requests: usize,
    /// Requests of clients that are decided on a second.
    pub requests_per_second: u32,
    /// Requests a second of one identity, and from one address.
    pub requests_per_second_each: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            unproven: 256,
            unproven_each: 64,
            handshake_time: Duration::from_secs(5),
            handshakes_per_second: 100,
            handshake_burst: 512,
            sessions: 4096,
            strangers: 128,
            requests: 512,
            requests_per_second: 500,
            requests_per_second_each: 250,
        }
    }
}

/// One session, unique in the life of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// Who asks, as the handshake has proven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) key: PublicKey,
    pub(crate) party: Party,
    pub(crate) session: SessionId,
    /// From where; for the audit log.
    pub(crate) from: Option<SocketAddr>,
    /// Which request; for the audit log.
    pub(crate) correlation: Option<CorrelationId>,
}

/// What comes next for a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and it lives shortly")]
pub(crate) enum Next {
    /// It is answered.
    Answer(Reply),
    /// A provider must do something first; its outcome goes to [`Core::answered`].
    Order(Box<Order>),
    /// Another request has the same lease in hand: ask again after the next [`Effect::Changed`].
    Wait,
}

/// Something for a provider to do.
#[derive(Debug)]
pub(crate) struct Order {
    /// Over which session.
    pub(crate) session: SessionId,
    /// Carve, Bind, Extend, Fence or Detach.
    pub(crate) call: Call,
    /// What to do with the outcome.
    pub(crate) then: Then,
}

/// What an order was for.
#[derive(Debug)]
pub(crate) enum Then {
    /// A lease is being made.
    Carved(crate::leases::Making),
    /// A lease is being renewed, to this tick.
    Extended(LeaseId, overbank_fabric::time::Tick),
    /// A provider lagged behind the store.
    CaughtUp(LeaseId),
    /// A lease is being ended; whether its holder waits for it.
    Fenced(Fencing, Waiting),
    /// Queue pairs are being bound to a lease.
    Bound(LeaseId),
    /// Somebody with whom a lease was shared is being detached.
    Detached(LeaseId, PublicKey),
}

/// Which lease is told to end, and whom: one provider's word ends nothing at another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fencing {
    pub(crate) provider: PublicKey,
    pub(crate) lease: LeaseId,
}

/// Whether somebody waits for the outcome of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// A request.
    Somebody,
    /// It was ordered of the daemon's own accord.
    Nobody,
}

/// Why an order has no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OrderError {
    /// The provider refused.
    Refused(Refusal),
    /// The session ended first. It may have been done.
    Gone,
    /// The provider did not answer in time. It may still be done.
    Late,
}

/// What must happen outside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Close every session of this identity.
    Close(PublicKey),
    /// What this identity is trusted as has changed: its sessions look again.
    Standing(PublicKey),
    /// Close this session.
    CloseSession(SessionId),
    /// [`Core::due_orders`] has something for this provider's session.
    Orders(SessionId),
    /// Give these last orders to a provider that was revoked, for a moment and concurrently, then close its sessions.
    Farewell(PublicKey, SessionId, Vec<Call>),
    /// A lease has moved on: who was told to wait asks again.
    Changed,
    /// The daemon stops, as if by SIGTERM.
    Shutdown,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// For a reason that the asker is told.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// For one that is in the log.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AuditStopped(why) => {
                refuse(RefusalCode::AuditFull, format!("nothing is granted: {why}; what is there goes on"))
            }
            error => Self::Store(error),
        }
    }
}

impl Undone for Fault {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}

/// Shorthand for a refusal as a fault.
pub(crate) fn refuse(code: RefusalCode, message: impl Into<String>) -> Fault {
    Fault::Refused(Refusal::new(code, message))
}

/// The decisions, and all that they rest on.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) identity: Arc<Identity>,
    pub(crate) limits: Limits,
    pub(crate) started: Instant,
    /// Every provider that spoke in the life of this process.
    pub(crate) providers: HashMap<PublicKey, Provider>,
    /// Leases that a provider is told to carve right now. One that is being made and is not here has nobody who makes it.
    pub(crate) making: HashSet<LeaseId>,
    /// Leases that a provider is told to fence right now.
    pub(crate) fencing: HashSet<Fencing>,
    /// Leases, and from which of them a provider is told right now to detach whom.
    pub(crate) detaching: HashSet<(LeaseId, PublicKey)>,
    pub(crate) keeping: Keeping,
    effects: Vec<Effect>,
}

impl Core {
    /// Takes up where the store left off.
    pub(crate) fn new(mut store: Store, identity: Arc<Identity>, limits: Limits, now: Now) -> Self {
        store.trail.bounds = limits.audit;
        let keeping = Keeping::new(store.trail.head.seq, limits.audit, now.instant);
        Self {
            store,
            identity,
            limits,
            started: now.instant,
            providers: HashMap::new(),
            making: HashSet::new(),
            fencing: HashSet::new(),
            detaching: HashSet::new(),
            keeping,
            effects: Vec::new(),
        }
    }

    /// Decides on one request.
    pub(crate) fn request(&mut self, asker: &Asker, call: Call, now: Now) -> Result<Next, Fault> {
        self.on_behalf(Cause::of(asker, now));
        let me = self.authorize(asker, &call)?;
        if let Some(proposal) = self.proposed(&me, &call, now)? {
            return Ok(Next::Answer(Reply::Proposed(Box::new(proposal))));
        }
        self.carry_out(asker, me, call, now)
    }

    /// Does what somebody may ask, and enough operators agree to.
    pub(crate) fn carry_out(&mut self, asker: &Asker, me: TrustEntry, call: Call, now: Now) -> Result<Next, Fault> {
        let reply = match call {
            Call::WhoAmI => Reply::You(me),
            Call::Join(join) => Reply::You(self.join(&me, asker.party, &join, now)?),
            Call::Rotate(rotate) => Reply::You(self.rotate(&me, asker.party, &rotate, now)?),
            Call::Successions => Reply::Successions(self.successions(&me)?),
            Call::TrustList => Reply::Trust(self.trust_list()?),
            Call::TrustApprove(approve) => Reply::Trust(vec![self.approve(approve)?]),
            Call::TrustRevoke(fingerprint) => Reply::Trust(vec![self.revoke(&fingerprint, now)?]),
            Call::TrustInvite(invite) => Reply::Invitation(self.invite(&me.key, invite, now)?),
            Call::AuditForget(head) => self.audit_forget(&head, now)?,
            Call::Audit(query) => Reply::Audit(Box::new(self.audit_page(&query, now)?)),
            Call::TrustShow(fingerprint) => Reply::Trust(vec![self.trust_show(&fingerprint)?]),
            Call::TrustDeny(fingerprint) => Reply::Trust(vec![self.deny(&fingerprint)?]),
            Call::TrustRename(rename) => Reply::Trust(vec![self.rename(&rename)?]),
            Call::TrustExport(after) => Reply::Trust(self.export(after.as_ref())?),
            Call::TrustImport(entries) => Reply::Imported(self.import(&entries, now)?),

            Call::LeaseStop(lease) => return self.stop_lease(&lease, now),
            Call::TenantStop(tenant) => Reply::Stopped(self.stop_tenant(&tenant)?),
            Call::ProviderStop(fingerprint) => Reply::Stopped(self.stop_provider(&fingerprint)?),
            Call::ProviderDrain(fingerprint) => self.drain(&fingerprint, true)?,
            Call::ProviderUndrain(fingerprint) => self.drain(&fingerprint, false)?,
            Call::Shutdown => self.shutdown(&me)?,
            Call::ProposalList => Reply::Proposals(self.proposals(now)?),
            Call::ProposalApprove(approval) => return self.approve_proposal(asker, me, &approval, now),

            Call::TenantList => Reply::Tenants(self.tenants()?),
            Call::TenantQuota(quota) => Reply::Tenants(vec![self.set_quota(quota)?]),

            Call::CreateLease(wish) => return self.create(&me, wish, now),
            Call::RenewLease(renew) => return self.renew(&me, &renew, now),
            Call::ReleaseLease(lease) => return self.release(&me, &lease, now),
            Call::Attach(attach) => return self.attach(&me, attach, now),
            Call::ListLeases => Reply::Leases(self.list_leases(&me, now)?),
            Call::ShowLease(lease) => Reply::Leases(vec![self.show_lease(&me, &lease, now)?]),
            Call::KeyOf(fingerprint) => Reply::Key(self.key_of(&fingerprint)?),
            Call::Status => Reply::Status(self.status(me, now)?),

            Call::Offer(offer) => self.offer(asker, offer, now)?,
            Call::Heartbeat(heartbeat) => self.heartbeat(asker, &heartbeat, now)?,
            Call::Ended(receipt) => self.ended(&me, receipt, now)?,
            Call::Carve(_) | Call::Bind(_) | Call::Extend(_) | Call::Fence(_) | Call::Detach(_) => {
                return Err(refuse(RefusalCode::Forbidden, "the auth daemon takes no orders"));
            }
        };
        Ok(Next::Answer(reply))
    }

    /// Goes on with what an order was for.
    pub(crate) fn answered(&mut self, then: Then, outcome: Result<Reply, OrderError>, now: Now) -> Result<Next, Fault> {
        match then {
            Then::Carved(making) => self.carved(making, outcome, now),
            Then::Extended(lease, tick) => self.extended(&lease, tick, outcome, now),
            Then::CaughtUp(lease) => self.caught_up(&lease, outcome),
            Then::Fenced(fencing, waiting) => self.fenced(&fencing, waiting, outcome, now),
            Then::Bound(lease) => self.bound(&lease, outcome),
            Then::Detached(lease, holder) => self.detached(lease, holder, outcome),
        }
    }

    /// Notes that something must happen outside.
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// What must happen outside since the last time.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The entry of an identity that the session has proven and [`Core::admit`] has written down.
    pub(crate) fn entry(&self, key: &PublicKey) -> Result<Option<TrustEntry>, StoreError> {
        crate::store::identities::find(self.store.read(), key)
    }
}

#[cfg(test)]
mod tests;
