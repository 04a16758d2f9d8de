//! What takes more than one operator: it waits as a proposal until enough of them have signed its exact effect.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use overbank_fabric::approval::{Approval, Proposal};
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Call, Import, Invite, RefusalCode, Reply, Role, TrustEntry, TrustState};
use overbank_fabric::signed::{Signed, to_cbor};

use crate::audit::{Entry, Event};
use crate::clock::{Now, millis};
use crate::core::{Asker, Core, Fault, Next, refuse};
use crate::reports::that_fit;
use crate::store::identities;
use crate::store::proposals::{self, ProposalRow};

/// How long a proposal can be approved.
const LIFE: Duration = Duration::from_secs(3600);
/// Most proposals that wait.
const MAX_PROPOSALS: usize = 64;
/// Most of them by one operator: nobody keeps the others from proposing.
const MAX_EACH: usize = 8;
/// Largest effect of one, as CBOR.
const MAX_EFFECT: usize = 8 << 10;

/// Kinds of operations that an administrator can mark as critical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Critical {
    /// Approve, invite, import: whoever becomes trusted by it.
    Trust,
    /// Revoke an identity.
    Revoke,
    /// Stop a lease.
    StopLease,
    /// Stop a tenant.
    StopTenant,
    /// Stop a provider.
    StopProvider,
    /// Drain and undrain a provider.
    Drain,
    /// Stop the auth daemon.
    Shutdown,
    /// Set a tenant's quota.
    Quota,
}

impl Critical {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Trust,
        Self::Revoke,
        Self::StopLease,
        Self::StopTenant,
        Self::StopProvider,
        Self::Drain,
        Self::Shutdown,
        Self::Quota,
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// Of which kind a call is.
    fn of(call: &Call) -> Option<Self> {
        Some(match call {
            Call::TrustApprove(_) | Call::TrustInvite(_) | Call::TrustImport(_) => Self::Trust,
            Call::TrustRevoke(_) => Self::Revoke,
            Call::LeaseStop(_) => Self::StopLease,
            Call::TenantStop(_) => Self::StopTenant,
            Call::ProviderStop(_) => Self::StopProvider,
            Call::ProviderDrain(_) | Call::ProviderUndrain(_) => Self::Drain,
            Call::Shutdown => Self::Shutdown,
            Call::TenantQuota(_) => Self::Quota,
            Call::WhoAmI
            | Call::Join(_)
            | Call::Rotate(_)
            | Call::Successions
            | Call::CreateLease(_)
            | Call::ListLeases
            | Call::ShowLease(_)
            | Call::RenewLease(_)
            | Call::ReleaseLease(_)
            | Call::Attach(_)
            | Call::KeyOf(_)
            | Call::Audit(_)
            | Call::AuditForget(_)
            | Call::TenantList
            | Call::Status
            | Call::TrustList
            | Call::TrustShow(_)
            | Call::TrustDeny(_)
            | Call::TrustRename(_)
            | Call::TrustExport(_)
            | Call::ProposalList
            | Call::ProposalApprove(_)
            | Call::Offer(_)
            | Call::Heartbeat(_)
            | Call::Ended(_)
            | Call::Carve(_)
            | Call::Bind(_)
            | Call::Extend(_)
            | Call::Fence(_)
            | Call::Detach(_) => return None,
        })
    }
}

impl fmt::Display for Critical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trust => "trust",
            Self::Revoke => "revoke",
            Self::StopLease => "stop-lease",
            Self::StopTenant => "stop-tenant",
            Self::StopProvider => "stop-provider",
            Self::Drain => "drain",
            Self::Shutdown => "shutdown",
            Self::Quota => "quota",
        })
    }
}

impl FromStr for Critical {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|it| it.to_string() == text).ok_or_else(|| {
            let all = Self::ALL.map(|it| it.to_string()).join(", ");
            format!("'{text}' is no operation that can be critical: use {all}")
        })
    }
}

/// What takes how many operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consent {
    approvals: u32,
    critical: u8,
}

impl Default for Consent {
    fn default() -> Self {
        Self { approvals: 1, critical: 0 }
    }
}

impl Consent {
    /// These operations take `approvals` operators. Where that is more than one, making and revoking operators does too:
    /// else one of them would make himself the others. So does forgetting what they did.
    #[must_use]
    pub fn new(approvals: u32, critical: &[Critical]) -> Self {
        Self { approvals, critical: critical.iter().fold(0, |bits, it| bits | it.bit()) }
    }
}

impl Core {
    /// A proposal in place of the call, where it takes more than the one operator who asks.
    pub(crate) fn proposed(&mut self, me: &TrustEntry, call: &Call, now: Now) -> Result<Option<Proposal>, Fault> {
        if self.needed(call)? <= 1 {
            return Ok(None);
        }
        if to_cbor(call).len() > MAX_EFFECT {
            let text = format!("what several operators approve has at most {MAX_EFFECT} bytes: ask for less at a time");
            return Err(refuse(RefusalCode::Invalid, text));
        }
        let row = ProposalRow {
            id: Nonce::random(),
            effect: call.clone(),
            made_by: me.key,
            expires_unix_ms: now.unix_ms.saturating_add(millis(LIFE)),
        };
        self.store.write(|tx| {
            proposals::tidy(tx, now.unix_ms)?;
            let waiting = proposals::list(tx)?;
            if waiting.len() >= MAX_PROPOSALS {
                let text = format!("{MAX_PROPOSALS} proposals wait: approve some (overbank proposal list), or wait");
                return Err(refuse(RefusalCode::Busy, text));
            }
            if waiting.iter().filter(|other| other.made_by == me.key).count() >= MAX_EACH {
                let text = format!("{MAX_EACH} proposals of yours wait: have some approved, or wait");
                return Err(refuse(RefusalCode::Busy, text));
            }
            proposals::insert(tx, &row)?;
            Ok(tx.audit(recorded(Event::Proposed, &row, ""))?)
        })?;
        tracing::info!(proposal = %row.id, by = %me.fingerprint, call = crate::trust::rule(call).0, "proposed");
        Ok(Some(self.shown(&row, now)?))
    }

    /// How many operators a call takes. What makes or ends operators, or forgets what they did, takes all there are where
    /// those are too few: who has no others makes them alone, and of two neither gets rid of the other.
    fn needed(&self, call: &Call) -> Result<u32, Fault> {
        let Consent { approvals, critical } = self.limits.consent;
        if approvals > 1 && self.is_about_operators(call)? {
            let operators = identities::operators(self.store.read())?;
            return Ok(approvals.min(u32::try_from(operators).unwrap_or(u32::MAX)));
        }
        let marked = Critical::of(call).is_some_and(|kind| critical & kind.bit() != 0);
        Ok(if marked { approvals.max(1) } else { 1 })
    }

    /// How many operators an invitation for this role takes.
    pub(crate) fn needed_to_invite(&self, role: Role) -> Result<u32, Fault> {
        self.needed(&Call::TrustInvite(Invite { role, tenant: None, ttl_ms: 0 }))
    }

    /// Whether somebody becomes an operator by it, an operator ceases to be one, or records of theirs are forgotten.
    fn is_about_operators(&self, call: &Call) -> Result<bool, Fault> {
        Ok(match call {
            Call::TrustApprove(approve) => approve.role == Role::Operator,
            Call::TrustInvite(invite) => invite.role == Role::Operator,
            Call::TrustImport(entries) => entries.iter().any(|entry| entry.role == Some(Role::Operator)),
            Call::TrustRevoke(fingerprint) => {
                let whom = self.newest(fingerprint)?;
                (whom.state, whom.role) == (TrustState::Trusted, Some(Role::Operator))
            }
            Call::AuditForget(_) => true,
            _ => false,
        })
    }

    /// A proposal as operators see it.
    fn shown(&self, row: &ProposalRow, now: Now) -> Result<Proposal, Fault> {
        let approved = proposals::approved_by(self.store.read(), &row.id)?;
        Ok(Proposal {
            id: row.id,
            effect: row.effect.clone(),
            expires_unix_ms: row.expires_unix_ms,
            left_ms: row.expires_unix_ms.saturating_sub(now.unix_ms),
            by: row.made_by.fingerprint(),
            approved: approved.iter().map(overbank_fabric::identity::PublicKey::fingerprint).collect(),
            needed: self.needed(&row.effect)?,
        })
    }

    /// What waits for approval.
    pub(crate) fn proposals(&self, now: Now) -> Result<Vec<Proposal>, Fault> {
        let mut waiting = Vec::new();
        for row in proposals::list(self.store.read())?.iter().filter(|row| row.expires_unix_ms > now.unix_ms) {
            waiting.push(self.shown(row, now)?);
        }
        waiting.truncate(that_fit(&waiting));
        Ok(waiting)
    }

    /// One more operator approves. The one who completes the number has it done, and gets its answer.
    pub(crate) fn approve_proposal(
        &mut self,
        asker: &Asker,
        me: TrustEntry,
        signed: &Signed<Approval>,
        now: Now,
    ) -> Result<Next, Fault> {
        let bad = |text: &str| refuse(RefusalCode::BadSignature, text);
        let approval = signed.open(&me.key).map_err(|_| bad("the approval is not signed by who brings it"))?;
        if approval.authd != self.identity.public() {
            return Err(bad("the approval is for another auth daemon, or for a former key of this one"));
        }
        let row = proposals::find(self.store.read(), &approval.proposal)?
            .filter(|row| row.expires_unix_ms > now.unix_ms)
            .ok_or_else(|| {
                let text = format!(
                    "no proposal {} waits: it was carried out, has expired, or was never made",
                    approval.proposal
                );
                refuse(RefusalCode::NoSuchProposal, text)
            })?;
        if (&approval.effect, approval.expires_unix_ms) != (&row.effect, row.expires_unix_ms) {
            return Err(bad("the approval is for another effect, or another time, than what was proposed"));
        }
        let needed = self.needed(&row.effect)? as usize;
        // Gone before it is done: whatever happens then, it is not done twice.
        let enough = self.store.write(|tx| {
            proposals::approve(tx, &row.id, &me.key, signed)?;
            let approved = proposals::approved_by(tx, &row.id)?.len();
            let enough = approved >= needed || (approved > 0 && cfg!(feature = "danger-one-approval"));
            if enough {
                proposals::delete(tx, &row.id)?;
            }
            // What is done then is on record by itself.
            tx.audit(recorded(Event::Consented, &row, if enough { ", enough" } else { "" }))?;
            Ok::<_, Fault>(enough)
        })?;
        tracing::info!(proposal = %row.id, by = %me.fingerprint, enough, "a proposal was approved");
        if !enough {
            return Ok(Next::Answer(Reply::Proposed(Box::new(self.shown(&row, now)?))));
        }
        let lease = match &row.effect {
            Call::LeaseStop(lease) => Some(*lease),
            _ => None,
        };
        match (self.carry_out(asker, me.clone(), row.effect.clone(), now), lease) {
            // It is being fenced already; to ask again would be to approve again.
            (Ok(Next::Wait), Some(lease)) => Ok(Next::Answer(Reply::Leases(vec![self.show_lease(&me, &lease, now)?]))),
            (Err(fault), _) => {
                let what = format!(", and not done ({fault})");
                self.store.write(|tx| tx.audit(recorded(Event::Consented, &row, &what)))?;
                Err(fault)
            }
            (next, _) => next,
        }
    }
}

/// That something happened to a proposal, with what that is to do, and to whom.
fn recorded(event: Event, row: &ProposalRow, more: &str) -> Entry {
    let entry = Entry::new(event);
    let (entry, what) = match &row.effect {
        Call::TrustApprove(it) => (entry.target(it.fingerprint).tenant(it.tenant.clone()), format!(" as {}", it.role)),
        Call::TrustInvite(it) => (entry.tenant(it.tenant.clone()), format!(" as {}", it.role)),
        Call::TrustImport(entries) => {
            let who = |it: &Import| {
                let role = it.role.map_or_else(|| "revoked".to_owned(), |role| role.to_string());
                format!(" {} as {role}", it.key.fingerprint())
            };
            (entry, format!(" {}:{}", entries.len(), entries.iter().map(who).collect::<String>()))
        }
        Call::TrustRevoke(who) | Call::ProviderStop(who) | Call::ProviderDrain(who) | Call::ProviderUndrain(who) => {
            (entry.target(*who), String::new())
        }
        Call::LeaseStop(lease) => (entry.lease(*lease), String::new()),
        Call::TenantStop(tenant) => (entry.tenant(Some(tenant.clone())), String::new()),
        Call::AuditForget(head) => (entry, format!(" to record {}", head.seq)),
        _ => (entry, String::new()),
    };
    entry.detail(format!("{}{more}: {}{what}", row.id, crate::trust::rule(&row.effect).0))
}
