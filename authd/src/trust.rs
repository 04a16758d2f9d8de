//! Who is trusted, as what, and what that allows.

use overbank_fabric::handshake::Party;
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{Fingerprint, Tenant};
use overbank_fabric::labels;
use overbank_fabric::message::{
    Approve, Call, Fence, Invitation, Invite, Join, RefusalCode, Role, TrustEntry, TrustState,
};
use overbank_fabric::receipt::EndReason;
use sha2::{Digest, Sha256};

use crate::audit::{Cause, Entry, Event};
use crate::clock::{Now, millis};
use crate::core::{Asker, Core, Effect, Fault, refuse};
use crate::store::delegates;
use crate::store::identities::{self, InvitationRow, Standing};
use crate::store::leases::{self, Stage};
use crate::store::successions;
use crate::store::{Store, StoreError};

/// Longest time that an invitation can be redeemed.
const MAX_INVITATION: std::time::Duration = std::time::Duration::from_secs(30 * 86400);
/// Most invitations that wait to be redeemed.
const MAX_INVITATIONS: u64 = 1000;
/// Where an identity was last seen is written down again after this long.
const SEEN_AGAIN_MS: u64 = 60_000;

/// Who may ask something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Anyone whose key the handshake has proven.
    Anyone,
    /// Trusted identities of these roles.
    Roles(&'static [Role]),
    /// Nobody: the auth daemon gives these orders, it takes none.
    Nobody,
}

/// The name of a call in logs, and who may ask it. The only place that says so.
pub(crate) fn rule(call: &Call) -> (&'static str, Who) {
    use Role::{Consumer, Operator, Provider};
    match call {
        Call::WhoAmI => ("who-am-i", Who::Anyone),
        Call::Join(_) => ("join", Who::Anyone),
        Call::Rotate(_) => ("rotate", Who::Anyone),
        Call::Successions => ("successions", Who::Anyone),
        Call::CreateLease(_) => ("create-lease", Who::Roles(&[Consumer])),
        Call::ListLeases => ("list-leases", Who::Roles(&[Consumer, Operator])),
        Call::ShowLease(_) => ("show-lease", Who::Roles(&[Consumer, Operator])),
        Call::RenewLease(_) => ("renew-lease", Who::Roles(&[Consumer])),
        Call::ReleaseLease(_) => ("release-lease", Who::Roles(&[Consumer])),
        Call::Attach(_) => ("attach", Who::Roles(&[Consumer])),
        Call::KeyOf(_) => ("key-of", Who::Roles(&[Consumer, Operator])),
        Call::Status => ("status", Who::Roles(&[Consumer, Operator])),
        Call::TrustList => ("trust-list", Who::Roles(&[Operator])),
        Call::TrustApprove(_) => ("trust-approve", Who::Roles(&[Operator])),
        Call::TrustRevoke(_) => ("trust-revoke", Who::Roles(&[Operator])),
        Call::TrustInvite(_) => ("trust-invite", Who::Roles(&[Operator])),
        Call::TenantList => ("tenant-list", Who::Roles(&[Operator])),
        Call::TenantQuota(_) => ("tenant-quota", Who::Roles(&[Operator])),
        Call::Audit(_) => ("audit", Who::Roles(&[Operator])),
        Call::TrustShow(_) => ("trust-show", Who::Roles(&[Operator])),
        Call::TrustDeny(_) => ("trust-deny", Who::Roles(&[Operator])),
        Call::TrustRename(_) => ("trust-rename", Who::Roles(&[Operator])),
        Call::TrustExport(_) => ("trust-export", Who::Roles(&[Operator])),
        Call::TrustImport(_) => ("trust-import", Who::Roles(&[Operator])),
        Call::LeaseStop(_) => ("lease-stop", Who::Roles(&[Operator])),
        Call::TenantStop(_) => ("tenant-stop", Who::Roles(&[Operator])),
        Call::ProviderStop(_) => ("provider-stop", Who::Roles(&[Operator])),
        Call::ProviderDrain(_) => ("provider-drain", Who::Roles(&[Operator])),
        Call::ProviderUndrain(_) => ("provider-undrain", Who::Roles(&[Operator])),
        Call::Shutdown => ("shutdown", Who::Roles(&[Operator])),
        Call::ProposalList => ("proposal-list", Who::Roles(&[Operator])),
        Call::ProposalApprove(_) => ("proposal-approve", Who::Roles(&[Operator])),
        Call::AuditForget(_) => ("audit-forget", Who::Roles(&[Operator])),
        Call::Offer(_) => ("offer", Who::Roles(&[Provider])),
        Call::Heartbeat(_) => ("heartbeat", Who::Roles(&[Provider])),
        Call::Ended(_) => ("ended", Who::Roles(&[Provider])),
        Call::Carve(_) => ("carve", Who::Nobody),
        Call::Bind(_) => ("bind", Who::Nobody),
        Call::Extend(_) => ("extend", Who::Nobody),
        Call::Fence(_) => ("fence", Who::Nobody),
        Call::Detach(_) => ("detach", Who::Nobody),
    }
}

/// As what an identity of this role must have introduced itself in the handshake.
pub(crate) fn party_of(role: Role) -> Party {
    match role {
        Role::Provider => Party::Provider,
        Role::Consumer | Role::Operator => Party::Client,
    }
}

/// A role and a tenant that belong together.
pub(crate) fn standing(role: Role, tenant: Option<Tenant>) -> Result<Standing, Fault> {
    match (role, &tenant) {
        (Role::Consumer, None) => Err(refuse(RefusalCode::Invalid, "a consumer needs a tenant: name one")),
        (Role::Provider | Role::Operator, Some(_)) => {
            Err(refuse(RefusalCode::Invalid, format!("a tenant is for consumers alone: a {role} has none")))
        }
        _ => Ok(Standing { role, tenant }),
    }
}

/// An invitation for this standing: what its holder gets, and what is kept.
pub(crate) fn new_invitation(
    authd: Fingerprint,
    standing: Standing,
    made_by: Option<PublicKey>,
    agreed: u32,
    expires_unix_ms: u64,
) -> (Invitation, InvitationRow) {
    let secret = overbank_fabric::ids::Nonce::random().0;
    let row = InvitationRow { hash: secret_hash(&secret), standing, made_by, agreed, expires_unix_ms, used_by: None };
    (Invitation { authd, secret }, row)
}

/// Writes the first operator's invitation into a new store.
pub(crate) fn first_invitation(
    store: &mut Store,
    authd: Fingerprint,
    expires_unix_ms: u64,
) -> Result<Invitation, StoreError> {
    let operator = Standing { role: Role::Operator, tenant: None };
    let (invitation, row) = new_invitation(authd, operator, None, 1, expires_unix_ms);
    store.write(|tx| identities::insert_invitation(tx, &row))?;
    Ok(invitation)
}

fn secret_hash(secret: &[u8; 16]) -> [u8; 32] {
    Sha256::new().chain_update(labels::INVITATION).chain_update(secret).finalize().into()
}

impl Core {
    /// Writes down who has opened a session: a stranger becomes pending.
    pub(crate) fn admit(&mut self, key: &PublicKey, from: &str, now: Now) -> Result<TrustEntry, StoreError> {
        let most = self.limits.max_pending;
        self.on_behalf(Cause { who: Some(*key), from: from.parse().ok(), ..Cause::own(now) });
        match identities::find(self.store.read(), key)? {
            None => {
                let seen = self
                    .keeping
                    .arrivals
                    .pass(&(), now.instant)
                    .map(|_| Entry::new(Event::Seen).detail("the first time"));
                self.store.note(|tx| {
                    identities::insert_pending(tx, key, from, now.unix_ms, most)?;
                    seen.as_ref().map_or(Ok(()), |seen| tx.audit(seen.clone()))
                })?;
            }
            Some(entry) => {
                let noted = identities::last_seen_unix_ms(self.store.read(), key)?.unwrap_or(0);
                let host = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
                let moved = entry.last_seen_from.as_deref().and_then(host) != host(from);
                if moved || now.unix_ms.abs_diff(noted) >= SEEN_AGAIN_MS {
                    let seen = if moved { self.keeping.arrivals.pass(&(), now.instant) } else { None };
                    self.store.note(|tx| {
                        identities::seen(tx, key, from, now.unix_ms)?;
                        seen.map_or(Ok(()), |_| tx.audit(Entry::new(Event::Seen).detail("from another host")))
                    })?;
                }
            }
        }
        self.entry(key)?.ok_or_else(|| StoreError::Sqlite(rusqlite::Error::QueryReturnedNoRows))
    }

    /// Who asks, if the asker may. Read from the store for each request: a revocation counts from the next one on.
    pub(crate) fn authorize(&self, asker: &Asker, call: &Call) -> Result<TrustEntry, Fault> {
        let fingerprint = asker.key.fingerprint();
        let Some(me) = self.entry(&asker.key)? else {
            let text = format!("the auth daemon has forgotten {fingerprint}: connect again");
            return Err(refuse(RefusalCode::Pending, text));
        };
        let (name, who) = rule(call);
        let roles = match who {
            Who::Anyone => return Ok(me),
            Who::Roles(roles) => roles,
            Who::Nobody => {
                return Err(refuse(RefusalCode::Forbidden, format!("the auth daemon takes no '{name}' from anybody")));
            }
        };
        let role = match (me.state, me.role) {
            (TrustState::Trusted, Some(role)) => role,
            (TrustState::Revoked, Some(role)) if cfg!(feature = "danger-revoked-stay") => role,
            (TrustState::Revoked, _) => {
                let text = format!("{fingerprint} was revoked, for good: use another identity");
                return Err(refuse(RefusalCode::Revoked, text));
            }
            _ => {
                let text = format!(
                    "{fingerprint} waits for approval: an operator approves it (overbank trust approve), or it joins with an invitation"
                );
                return Err(refuse(RefusalCode::Pending, text));
            }
        };
        if !roles.contains(&role) && !cfg!(feature = "danger-any-role") {
            return Err(refuse(RefusalCode::Forbidden, format!("{fingerprint} is a {role}: it may not '{name}'")));
        }
        if asker.party != party_of(role) && !cfg!(feature = "danger-any-party") {
            let text = format!("{fingerprint} is trusted as a {role}, but another kind of program speaks with its key");
            return Err(refuse(RefusalCode::Forbidden, text));
        }
        Ok(me)
    }

    /// Redeems an invitation, once. The same identity may repeat it, having missed the answer.
    pub(crate) fn join(&mut self, me: &TrustEntry, party: Party, join: &Join, now: Now) -> Result<TrustEntry, Fault> {
        let bad = || {
            let text = "no such invitation, or it is used up or out of date: ask an operator for a new one";
            refuse(RefusalCode::BadInvitation, text)
        };
        if me.state == TrustState::Revoked {
            let text = format!("{} was revoked, for good: use another identity", me.fingerprint);
            return Err(refuse(RefusalCode::Revoked, text));
        }
        let hash = secret_hash(&join.secret);
        let invitation = identities::invitation(self.store.read(), &hash)?.ok_or_else(bad)?;
        match invitation.used_by {
            Some(key) if key == me.key => return Ok(me.clone()),
            Some(_) => return Err(bad()),
            None if invitation.expires_unix_ms <= now.unix_ms => return Err(bad()),
            None => {}
        }
        let Standing { role, tenant } = invitation.standing.clone();
        if me.state == TrustState::Trusted {
            let text = format!("{} is trusted already; the invitation is unused", me.fingerprint);
            return Err(refuse(RefusalCode::Invalid, text));
        }
        if party != party_of(role) {
            let text = format!("the invitation is for a {role}, which this program is not; it is unused");
            return Err(refuse(RefusalCode::Invalid, text));
        }
        // Else who was alone once would keep himself the others for later.
        let (agreed, takes) = (invitation.agreed, self.needed_to_invite(role)?);
        if agreed < takes {
            let text = format!(
                "as many operators as agreed to the invitation ({agreed}) do not suffice: what it makes, {role}, takes {takes} by now; have them make a new one"
            );
            return Err(refuse(RefusalCode::BadInvitation, text));
        }
        self.store.write(|tx| {
            identities::use_invitation(tx, &hash, &me.key)?;
            identities::trust(tx, &me.key, &invitation.standing)?;
            tx.audit(
                Entry::new(Event::Joined).target(me.fingerprint).tenant(tenant.clone()).detail(format!("as {role}")),
            )?;
            identities::find(tx, &me.key)?.ok_or_else(bad)
        })
    }

    /// The key of a trusted consumer, for who knows its fingerprint already.
    pub(crate) fn key_of(&self, fingerprint: &Fingerprint) -> Result<PublicKey, Fault> {
        let entry = identities::find_by_fingerprint(self.store.read(), fingerprint)?;
        let trusted = |entry: &TrustEntry| entry.state == TrustState::Trusted && entry.role == Some(Role::Consumer);
        entry.filter(trusted).map(|entry| entry.key).ok_or_else(|| {
            let text =
                format!("{fingerprint} is no trusted consumer here: let it join first, or check the fingerprint");
            refuse(RefusalCode::NoSuchIdentity, text)
        })
    }

    /// The trust store, as much as fits into a message.
    pub(crate) fn trust_list(&self) -> Result<Vec<TrustEntry>, Fault> {
        let mut entries = identities::list(self.store.read())?;
        let all = entries.len();
        entries.truncate(crate::reports::that_fit(&entries));
        if entries.len() < all {
            tracing::warn!(all, shown = entries.len(), "the trust store is larger than a message");
        }
        Ok(entries)
    }

    /// Trusts a pending identity.
    pub(crate) fn approve(&mut self, approve: Approve) -> Result<TrustEntry, Fault> {
        let standing = standing(approve.role, approve.tenant)?;
        let entry = self.store.write(|tx| {
            let entry = identities::find_by_fingerprint(tx, &approve.fingerprint)?
                .ok_or_else(|| no_such_identity(&approve.fingerprint))?;
            match entry.state {
                TrustState::Pending => {
                    identities::trust(tx, &entry.key, &standing)?;
                    let approved =
                        Entry::new(Event::Approved).target(entry.fingerprint).tenant(standing.tenant.clone());
                    tx.audit(approved.detail(format!("as {}", standing.role)))?;
                }
                TrustState::Trusted if entry.role == Some(standing.role) && entry.tenant == standing.tenant => {}
                TrustState::Trusted => {
                    let text = format!(
                        "{} is trusted already, as something else: revoke it, and let it come back with a new identity",
                        entry.fingerprint
                    );
                    return Err(refuse(RefusalCode::Invalid, text));
                }
                TrustState::Revoked => {
                    let text = format!("{} was revoked, for good: it needs a new identity", entry.fingerprint);
                    return Err(refuse(RefusalCode::Invalid, text));
                }
            }
            identities::find(tx, &entry.key)?.ok_or_else(|| no_such_identity(&approve.fingerprint))
        })?;
        self.effect(Effect::Standing(entry.key));
        Ok(entry)
    }

    /// Trusts an identity no more, nor who took over from it: its sessions end, and its leases with them.
    pub(crate) fn revoke(&mut self, fingerprint: &Fingerprint, now: Now) -> Result<TrustEntry, Fault> {
        let entry = self.newest(fingerprint)?;
        let (entry, theirs, lent, shared) = self.store.write(|tx| {
            let operator = entry.state == TrustState::Trusted && entry.role == Some(Role::Operator);
            if operator && identities::operators(tx)? == 1 {
                let text = format!("{fingerprint} is the last operator: invite another one first");
                return Err(refuse(RefusalCode::Invalid, text));
            }
            identities::revoke(tx, &entry.key)?;
            // What was shared with a key that it had before it may still be in use.
            let mut shared = delegates::bar(tx, &entry.key)?;
            for former in successions::predecessors(tx, &entry.key)? {
                shared.extend(delegates::bar(tx, &former)?);
            }
            tx.audit(Entry::new(Event::Revoked).target(entry.fingerprint).tenant(entry.tenant.clone()))?;
            let theirs = leases::live_of_holder(tx, &entry.key)?;
            for row in &theirs {
                leases::update(tx, &Core::stopped(row, EndReason::Revoked))?;
                tx.audit(Entry::new(Event::Ending).about(row).detail("its holder is revoked"))?;
            }
            let lent = leases::open_at(tx, &entry.key)?;
            for row in &lent {
                crate::providers::lose(tx, row, Some(EndReason::Revoked))?;
                tx.audit(Entry::new(Event::Lost).about(row).detail("its provider is revoked"))?;
            }
            let entry = identities::find(tx, &entry.key)?.ok_or_else(|| no_such_identity(fingerprint))?;
            Ok::<_, Fault>((entry, theirs, lent, shared))
        })?;
        for provider in theirs.iter().map(|row| &row.provider).chain(&shared) {
            self.order_fences(provider);
        }
        let session = self.providers.remove(&entry.key).and_then(|provider| provider.session);
        self.effect(match session {
            Some(session) => {
                let fence = |lease| Call::Fence(Fence { lease, reason: EndReason::Revoked });
                Effect::Farewell(entry.key, session, lent.iter().map(|row| fence(row.id)).collect())
            }
            None => Effect::Close(entry.key),
        });
        self.effect(Effect::Changed);
        let lost = lent.iter().filter(|row| row.stage == Stage::Active).count();
        tracing::info!(identity = %fingerprint, fenced = theirs.len(), lost, at_unix_ms = now.unix_ms, "revoked");
        Ok(entry)
    }

    /// Makes a one-time invitation.
    pub(crate) fn invite(&mut self, by: &PublicKey, invite: Invite, now: Now) -> Result<Invitation, Fault> {
        let standing = standing(invite.role, invite.tenant)?;
        if !(1000..=millis(MAX_INVITATION)).contains(&invite.ttl_ms) {
            return Err(refuse(RefusalCode::Invalid, "an invitation is good for 1 second to 30 days"));
        }
        let expires = now.unix_ms.saturating_add(invite.ttl_ms);
        // So many have agreed, where it has come to this.
        let agreed = self.needed_to_invite(standing.role)?;
        let authd = self.identity.public().fingerprint();
        let (invitation, row) = new_invitation(authd, standing, Some(*by), agreed, expires);
        self.store.write(|tx| {
            if identities::tidy_invitations(tx, now.unix_ms)? >= MAX_INVITATIONS {
                let text =
                    format!("{MAX_INVITATIONS} invitations wait to be redeemed: try again when some have expired");
                return Err(refuse(RefusalCode::Busy, text));
            }
            identities::insert_invitation(tx, &row)?;
            let Standing { role, tenant } = row.standing.clone();
            Ok(tx.audit(Entry::new(Event::Invited).tenant(tenant).detail(format!("as {role}")))?)
        })?;
        Ok(invitation)
    }
}

pub(crate) fn no_such_identity(fingerprint: &Fingerprint) -> Fault {
    let text =
        format!("{fingerprint} is not in the trust store: it must have connected once, see `overbank trust list`");
    refuse(RefusalCode::NoSuchIdentity, text)
}
