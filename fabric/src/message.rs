//! Every message of the control plane: what may be asked, by whom, and how a refusal is said.
//!
//! All travel as CBOR inside an authenticated [`crate::channel`]. Both ends of a session may ask: consumers, operators
//! and providers ask the auth daemon; the auth daemon asks (orders) a provider over the session that the provider opened.
//! Unknown fields and unknown calls are refused. A changed meaning gets a new [`VERSION`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::approval::{Approval, Proposal};
use crate::attach::{AttachAnswer, AttachRequest};
use crate::identity::PublicKey;
use crate::ids::{BootId, CorrelationId, Fingerprint, LeaseId, Name, Nonce, Tenant};
use crate::receipt::{EndReason, Receipt};
use crate::signed::Signed;
use crate::succession::{Handover, Succession};
use crate::time::{Deadline, Tick};
use crate::token::Token;

/// Version of the protocol, proven equal by the handshake.
pub const VERSION: u16 = 1;

/// What travels, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Somebody asks.
    Request(Request),
    /// And is answered.
    Response(Response),
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by who asks, unique among its open requests of the session.
    pub id: u64,
    /// Appears in every log line that this request causes, at all parties.
    pub correlation: CorrelationId,
    /// Milliseconds that the asker will wait; work on it stops then.
    pub deadline_ms: u32,
    /// What is asked.
    pub call: Call,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The answer, or why there is none.
    pub outcome: Result<Reply, Refusal>,
}

/// Everything that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    // -- anyone, trusted or not ---------------------------------------------------------------------------------
    /// Who does the auth daemon think I am? -> [`Reply::You`]
    WhoAmI,
    /// Redeem a one-time invitation. -> [`Reply::You`]
    Join(Join),
    /// Who asks takes over from another identity, which has signed that: its role, tenant and leases; that one is revoked.
    /// -> [`Reply::You`]
    Rotate(Rotate),
    /// By which signed steps did the auth daemon come by its key? -> [`Reply::Successions`], the first step first
    Successions,

    // -- consumers ------------------------------------------------------------------------------------------------
    /// -> [`Reply::Granted`]
    CreateLease(CreateLease),
    /// One's own leases; an operator sees all. -> [`Reply::Leases`]
    ListLeases,
    /// One lease. -> [`Reply::Leases`] with one entry
    ShowLease(LeaseId),
    /// -> [`Reply::Granted`]
    RenewLease(RenewLease),
    /// Answered when the provider has fenced it; the wipe may still be going on. -> [`Reply::Leases`] with one entry
    ReleaseLease(LeaseId),
    /// -> [`Reply::Attached`]
    Attach(Attach),

    /// The whole key behind the fingerprint of a consumer that is trusted, to share a lease with it. -> [`Reply::Key`]
    KeyOf(Fingerprint),

    // -- operators, but for Status -----------------------------------------------------------------------------
    /// The pool as a whole; a consumer sees its own share. -> [`Reply::Status`]
    Status,
    /// -> [`Reply::Trust`]
    TrustList,
    /// -> [`Reply::Trust`] with one entry
    TrustApprove(Approve),
    /// Fences every lease of that identity. -> [`Reply::Trust`] with one entry
    TrustRevoke(Fingerprint),
    /// -> [`Reply::Invitation`]
    TrustInvite(Invite),
    /// -> [`Reply::Tenants`]
    TenantList,
    /// -> [`Reply::Tenants`] with one entry
    TenantQuota(TenantQuota),
    /// A part of the audit log. -> [`Reply::Audit`]
    Audit(crate::audit::Query),
    /// -> [`Reply::Trust`] with one entry
    TrustShow(Fingerprint),
    /// Refuses a pending identity, for good. -> [`Reply::Trust`] with one entry
    TrustDeny(Fingerprint),
    /// -> [`Reply::Trust`] with one entry
    TrustRename(Rename),
    /// The trust store by key, the next entries after this one; none: from the first. -> [`Reply::Trust`], empty at its end
    TrustExport(Option<PublicKey>),
    /// Takes in what another auth daemon exported: keys that nobody decided on here. -> [`Reply::Imported`]
    TrustImport(Vec<Import>),
    /// Ends any lease. Answered when it is fenced, or when its provider, where that is away, is sure to be told.
    /// -> [`Reply::Leases`] with one entry
    LeaseStop(LeaseId),
    /// Ends every lease of a tenant. -> [`Reply::Stopped`]
    TenantStop(Tenant),
    /// Ends every lease at a provider, and drains it. -> [`Reply::Stopped`]
    ProviderStop(Fingerprint),
    /// No new lease at this provider, also after a restart; those that it has go on. -> [`Reply::Done`]
    ProviderDrain(Fingerprint),
    /// -> [`Reply::Done`]
    ProviderUndrain(Fingerprint),
    /// Stops the auth daemon. Leases go on, and end on time without it. -> [`Reply::Done`]
    Shutdown,
    /// What waits for more operators' approval. -> [`Reply::Proposals`]
    ProposalList,
    /// Approves a proposal; the last approval that it takes has it done.
    /// -> [`Reply::Proposed`], or what the call that was proposed is answered with
    ProposalApprove(Signed<Approval>),
    /// Forget the records of the audit log to this head, which are archived elsewhere. -> [`Reply::Done`]
    AuditForget(crate::audit::Checkpoint),

    // -- a provider to the auth daemon -------------------------------------------------------------------------
    /// First thing a provider says in a session. -> [`Reply::Done`]
    Offer(Offer),
    /// -> [`Reply::Done`]
    Heartbeat(Heartbeat),
    /// A lease has ended here. Repeated until answered. -> [`Reply::Done`]
    Ended(Signed<Receipt>),

    // -- the auth daemon to a provider ---------------------------------------------------------------------------
    /// Set memory aside for a lease. Twice the same is once. -> [`Reply::Done`]
    Carve(Carve),
    /// Bind queue pairs to a lease. -> [`Reply::Attached`]
    Bind(Attach),
    /// Move a lease's deadline. -> [`Reply::Done`]
    Extend(Extend),
    /// End a lease now. Answered when it is fenced: nothing reaches its memory any more. -> [`Reply::Done`]
    Fence(Fence),
    /// Detach somebody with whom a lease was shared, for good. Answered when nothing reaches the lease's memory any more
    /// by a token that was in those hands. -> [`Reply::Done`]
    Detach(Detach),
}

/// Everything that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// To [`Call::WhoAmI`] and [`Call::Join`].
    You(TrustEntry),
    /// A lease, and the token for it.
    Granted(Box<Granted>),
    /// Leases.
    Leases(Vec<LeaseInfo>),
    /// The provider's signed answer, passed on untouched.
    Attached(Signed<AttachAnswer>),
    /// To [`Call::Status`].
    Status(Status),
    /// To [`Call::KeyOf`].
    Key(PublicKey),
    /// Entries of the trust store.
    Trust(Vec<TrustEntry>),
    /// A one-time invitation.
    Invitation(Invitation),
    /// Tenants.
    Tenants(Vec<TenantInfo>),
    /// To [`Call::Audit`].
    Audit(Box<crate::audit::Page>),
    /// To [`Call::TrustImport`].
    Imported(Imported),
    /// To [`Call::TenantStop`] and [`Call::ProviderStop`]: how many leases end by it.
    Stopped(u64),
    /// It takes more operators: nothing was done yet.
    Proposed(Box<Proposal>),
    /// To [`Call::ProposalList`].
    Proposals(Vec<Proposal>),
    /// To [`Call::Successions`].
    Successions(Vec<Signed<Succession>>),
}

/// Why something was not done. The code is for programs, the message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// One or two sentences that name the thing, the cause and the way out.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Kinds of refusal. Codes are only ever added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The identity waits for an operator's approval.
    Pending,
    /// The identity was revoked.
    Revoked,
    /// The identity's role does not allow this call.
    Forbidden,
    /// The request makes no sense (a size of zero, a range outside).
    Invalid,
    /// The invitation is used up, out of date or was never made.
    BadInvitation,
    /// No lease of that id, or not the asker's.
    NoSuchLease,
    /// The lease has expired, was released, revoked or stopped.
    LeaseEnded,
    /// The lease's provider has crashed or restarted; its contents are gone.
    LeaseLost,
    /// No provider has that much free.
    PoolFull,
    /// The tenant's quota is used up.
    Quota,
    /// The lease's provider is not connected.
    ProviderAway,
    /// The token does not allow it.
    BadToken,
    /// A signature does not hold, or names another provider, boot or request.
    BadSignature,
    /// No such entry in the trust store, or more than one begins like that.
    NoSuchIdentity,
    /// No such proposal: it was carried out, has expired, or was never made.
    NoSuchProposal,
    /// Not done before the request's deadline. It may still happen.
    Deadline,
    /// Too much at once; try again later.
    Busy,
    /// The audit log is full or cannot be written: nothing is granted. What ends things still works.
    AuditFull,
    /// A defect or a fault on the other side; its log has the details under the correlation id.
    Internal,
}

/// What a trusted identity may do. Exactly one to an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Leases memory for its tenant.
    Consumer,
    /// Lends memory.
    Provider,
    /// Approves, revokes, stops, looks on.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consumer => "consumer",
            Self::Provider => "provider",
            Self::Operator => "operator",
        })
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "consumer" => Ok(Self::Consumer),
            "provider" => Ok(Self::Provider),
            "operator" => Ok(Self::Operator),
            _ => Err(format!("'{text}' is no role: use consumer, provider or operator")),
        }
    }
}

/// Whether an identity is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustState {
    /// Seen, not yet approved.
    Pending,
    /// Approved.
    Trusted,
    /// No more, and never again.
    Revoked,
}

impl fmt::Display for TrustState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Trusted => "trusted",
            Self::Revoked => "revoked",
        })
    }
}

/// One identity in the trust store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustEntry {
    /// Whose.
    pub key: PublicKey,
    /// Its fingerprint, as people see it.
    pub fingerprint: Fingerprint,
    /// Pending, trusted or revoked.
    pub state: TrustState,
    /// What it may do; none while pending.
    pub role: Option<Role>,
    /// For whom; consumers only.
    pub tenant: Option<Tenant>,
    /// From where it was last seen, an IP address and port.
    pub last_seen_from: Option<String>,
    /// What operators call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// Redeems an invitation. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The secret half of the invitation code.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; 16],
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Join(…)")
    }
}

/// Asks for memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateLease {
    /// The same nonce from the same identity is the same lease, however often it is sent.
    pub nonce: Nonce,
    /// Usable bytes, at least 1.
    pub bytes: u64,
    /// Payload bytes of a block: a power of two from 512 to 1 MiB.
    pub block: u32,
    /// Milliseconds until it ends, unless renewed.
    pub ttl_ms: u64,
}

/// Asks for more time: the deadline becomes `ttl_ms` from now. Never shortens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewLease {
    /// Which.
    pub lease: LeaseId,
    /// Milliseconds from now.
    pub ttl_ms: u64,
}

/// A lease as its holder gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granted {
    /// Which.
    pub lease: LeaseId,
    /// Constant for the life of its contents.
    pub generation: u64,
    /// For whom.
    pub tenant: Tenant,
    /// Who lends; pinned by the consumer from now on.
    pub provider: PublicKey,
    /// The provider's life.
    pub boot: BootId,
    /// Usable bytes.
    pub bytes: u64,
    /// Payload bytes of a block.
    pub block: u32,
    /// Milliseconds left when this was sent, at most.
    pub left_ms: u64,
    /// The grant.
    pub token: Token,
}

/// Asks to attach. Travels from the consumer through the auth daemon to the provider; neither half can be forged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Which lease, for routing; the token decides.
    pub lease: LeaseId,
    /// The grant.
    pub token: Token,
    /// Signed by the token's holder.
    pub request: Signed<AttachRequest>,
}

/// What has become of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// Memory is set aside and nobody is attached yet, or it is in use.
    Active,
    /// Its end has begun; the memory is not yet known to be clean.
    Ending,
    /// Over, wiped and checked.
    Ended,
    /// Its provider died; what was in it is gone.
    Lost,
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Ending => "ending",
            Self::Ended => "ended",
            Self::Lost => "lost",
        })
    }
}

/// A lease as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseInfo {
    /// Which.
    pub lease: LeaseId,
    /// Whose.
    pub holder: Fingerprint,
    /// For whom.
    pub tenant: Tenant,
    /// Where.
    pub provider: Fingerprint,
    /// Usable bytes.
    pub bytes: u64,
    /// What has become of it.
    pub state: LeaseState,
    /// Milliseconds left; 0 where it is over.
    pub left_ms: u64,
    /// Why it ended, once it has.
    pub reason: Option<EndReason>,
    /// The provider's word on its end, once it is in.
    pub receipt: Option<Signed<Receipt>>,
}

/// The pool as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Version of the auth daemon.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Who asks.
    pub you: TrustEntry,
    /// The asker's active leases; all of them for an operator.
    pub leases: u64,
    /// Usable bytes in them.
    pub leased_bytes: u64,
    /// The providers known; a consumer sees only whether they are connected and what is free.
    pub providers: Vec<ProviderStatus>,
    /// For operators: how often something was refused since the daemon started, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// One provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderStatus {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Whether its session is up.
    pub connected: bool,
    /// Bytes of its pool.
    pub pool_bytes: u64,
    /// Bytes free for leases.
    pub free_bytes: u64,
    /// Bytes withheld because a step of a lease's end failed.
    pub quarantined_bytes: u64,
    /// Its device, as it describes it.
    pub device: String,
    /// Whether it gets no new leases.
    #[serde(default)]
    pub drained: bool,
    /// What operators call it; for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// What a tenant has, and how much it may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantInfo {
    /// Which.
    pub tenant: Tenant,
    /// Its leases, those included whose memory is not clean yet.
    pub leases: u64,
    /// Bytes pinned for them.
    pub pinned_bytes: u64,
    /// Most bytes; none: as many as there are.
    pub quota_bytes: Option<u64>,
    /// Most leases; none: as many as there is room for.
    pub quota_leases: Option<u64>,
    /// Whether any of this was set for this tenant. Otherwise it is what holds for all.
    pub own: bool,
}

/// Sets how much a tenant may have, from the next lease on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantQuota {
    /// Which.
    pub tenant: Tenant,
    /// Bytes pinned.
    pub bytes: Allowance,
    /// Leases.
    pub leases: Allowance,
}

/// A quota's new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allowance {
    /// The one that it has.
    AsItIs,
    /// What holds for all tenants that have none of their own.
    AsForAll,
    /// So much, 0 included.
    Most(u64),
}

/// Approves a pending identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Who.
    pub fingerprint: Fingerprint,
    /// As what.
    pub role: Role,
    /// For whom; consumers need one, others have none.
    pub tenant: Option<Tenant>,
}

/// Asks for an invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// As what the one who redeems it is trusted.
    pub role: Role,
    /// For whom; consumers need one, others have none.
    pub tenant: Option<Tenant>,
    /// Milliseconds that it can be redeemed.
    pub ttl_ms: u64,
}

/// Gives an identity a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Its name; none takes it away.
    pub name: Option<Name>,
}

/// What another auth daemon had decided on an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// Whose.
    pub key: PublicKey,
    /// As what it is trusted; none: it was revoked.
    pub role: Option<Role>,
    /// For whom; consumers need one, others have none.
    pub tenant: Option<Tenant>,
    /// What operators called it.
    pub name: Option<Name>,
}

/// What came of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imported {
    /// Identities that are trusted, or revoked, now.
    pub added: u64,
    /// Of those that had been decided on here already and stay as they are, the ones that agree.
    pub same: u64,
    /// And those that do not.
    pub different: u64,
}

/// Takes over from another identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Who gives way.
    pub old: PublicKey,
    /// Its word on that, to this auth daemon.
    pub handover: Signed<Handover>,
}

/// A one-time invitation: the auth daemon's fingerprint, so that who joins need not take its key on trust, and a secret.
///
/// Written `FINGERPRINT.SECRET`, both in hexadecimal. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The auth daemon that made it.
    #[zeroize(skip)]
    pub authd: Fingerprint,
    /// Known to who redeems it; the auth daemon keeps a hash.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; 16],
}

impl Invitation {
    /// The code that people pass on. It is a secret until it is used.
    #[must_use]
    pub fn code(&self) -> String {
        format!("{}.{}", self.authd, crate::ids::hex(&self.secret))
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation({}.…)", self.authd)
    }
}

impl FromStr for Invitation {
    type Err = crate::ids::IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (authd, secret) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self { authd: authd.parse()?, secret: crate::ids::unhex("an invitation's secret", secret)? })
    }
}

/// A provider introduces itself, with what it holds: after a broken session both sides compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// This life of its process.
    pub boot: BootId,
    /// Its clock, and how full it is.
    pub heartbeat: Heartbeat,
    /// Bytes of its pool.
    pub pool_bytes: u64,
    /// Bytes of one of its pages: what it sets aside is a multiple.
    pub page_bytes: u64,
    /// Its device in plain words.
    pub device: String,
    /// Leases it holds, with their deadlines.
    pub leases: Vec<HeldLease>,
}

/// A lease as the provider holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldLease {
    /// Which.
    pub lease: LeaseId,
    /// Until when.
    pub deadline: Deadline,
}

/// A provider is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Its clock as this was sent.
    pub tick: Tick,
    /// Bytes free for leases.
    pub free_bytes: u64,
    /// Bytes withheld because a step of a lease's end failed.
    pub quarantined_bytes: u64,
}

/// Sets memory aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carve {
    /// Which lease.
    pub lease: LeaseId,
    /// In whose name.
    pub tenant: Tenant,
    /// Blocks.
    pub blocks: u64,
    /// Payload bytes of a block; the stride is this and [`crate::block::HEADER_LEN`].
    pub block: u32,
    /// Until when.
    pub deadline: Deadline,
}

/// Moves a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// Which lease.
    pub lease: LeaseId,
    /// To when. A sooner one than now holds is ignored.
    pub deadline: Deadline,
}

/// Ends what one identity, not the lease's holder, has of a lease, and what it has passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Which lease.
    pub lease: LeaseId,
    /// Whose.
    pub holder: PublicKey,
}

/// Ends a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// Which lease.
    pub lease: LeaseId,
    /// Why.
    pub reason: EndReason,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signed::{from_cbor, to_cbor};

    #[test]
    fn unknown_fields_and_calls_are_refused() {
        let message = Message::Request(Request {
            id: 1,
            correlation: CorrelationId([0; 8]),
            deadline_ms: 5000,
            call: Call::RenewLease(RenewLease { lease: LeaseId([3; 16]), ttl_ms: 1 }),
        });
        assert_eq!(from_cbor::<Message>(&to_cbor(&message)), Ok(message));
        let text = |key: &str| ciborium::Value::Text(key.to_owned());
        let lease = ciborium::Value::Bytes(vec![3; 16]);
        let fields = vec![(text("lease"), lease), (text("ttl_ms"), 1.into()), (text("extra"), 1.into())];
        assert!(from_cbor::<RenewLease>(&to_cbor(&ciborium::Value::Map(fields))).is_err());
        assert!(from_cbor::<Call>(&to_cbor(&"open_sesame")).is_err());
    }

    #[test]
    fn invitations_survive_text_and_hide_in_logs() {
        let invitation = Invitation { authd: Fingerprint([0xab; 20]), secret: [0xcd; 16] };
        assert_eq!(invitation.code().parse(), Ok(invitation.clone()));
        let join = Call::Join(Join { secret: invitation.secret });
        for shown in [format!("{invitation:?}"), format!("{join:?}")] {
            assert!(!shown.contains("cdcd") && !shown.contains("205"), "{shown}");
        }
        assert!("abc".parse::<Invitation>().is_err());
    }
}
