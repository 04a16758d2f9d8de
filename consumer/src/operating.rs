//! What operators ask of the auth daemon. Where it wants more than one of them for something, the call comes back as
//! [`Error::Proposed`], with this one's approval given already.

use std::time::Duration;

use overbank_fabric::approval::Proposal;
use overbank_fabric::audit;
use overbank_fabric::ids::{Fingerprint, LeaseId, Name, Tenant};
use overbank_fabric::message::{
    Allowance, Approve, Call, Import, Imported, Invitation, Invite, LeaseInfo, Rename, Reply, Role, TenantInfo,
    TenantQuota, TrustEntry,
};
use overbank_fabric::signed::Signed;

use crate::client::{Client, Repeat, ms, odd, one_lease};
use crate::error::Error;

/// Identities in one message of an import.
const IMPORT_AT_ONCE: usize = 1000;

/// Each returns, besides what it names, what [`Client::who_am_i`] does, [`Error::NotTrusted`] to who is no operator, and
/// [`Error::Refused`] where there is no such identity, tenant or lease.
impl Client {
    /// The trust store.
    ///
    /// # Errors
    /// See above.
    pub fn trust_list(&self) -> Result<Vec<TrustEntry>, Error> {
        match self.call("listing identities", None, Repeat::Harmless, Call::TrustList)? {
            Reply::Trust(entries) => Ok(entries),
            reply => Err(odd(&reply)),
        }
    }

    /// One identity.
    ///
    /// # Errors
    /// See above.
    pub fn trust_show(&self, fingerprint: Fingerprint) -> Result<TrustEntry, Error> {
        one_entry(self.call("looking at the identity", None, Repeat::Harmless, Call::TrustShow(fingerprint))?)
    }

    /// Approves a pending identity. Consumers need a tenant, others have none.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn trust_approve(
        &self,
        fingerprint: Fingerprint,
        role: Role,
        tenant: Option<Tenant>,
    ) -> Result<TrustEntry, Error> {
        let approve = Approve { fingerprint, role, tenant };
        one_entry(self.order("approving the identity", Repeat::Harmless, Call::TrustApprove(approve))?)
    }

    /// Refuses a pending identity, for good.
    ///
    /// # Errors
    /// See above.
    pub fn trust_deny(&self, fingerprint: Fingerprint) -> Result<TrustEntry, Error> {
        one_entry(self.order("denying the identity", Repeat::Harmless, Call::TrustDeny(fingerprint))?)
    }

    /// Revokes an identity for good, and fences every lease it has.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn trust_revoke(&self, fingerprint: Fingerprint) -> Result<TrustEntry, Error> {
        one_entry(self.order("revoking the identity", Repeat::Harmless, Call::TrustRevoke(fingerprint))?)
    }

    /// Gives an identity a name, or takes it away.
    ///
    /// # Errors
    /// See above.
    pub fn trust_rename(&self, fingerprint: Fingerprint, name: Option<Name>) -> Result<TrustEntry, Error> {
        let rename = Rename { fingerprint, name };
        one_entry(self.order("naming the identity", Repeat::Harmless, Call::TrustRename(rename))?)
    }

    /// Makes a one-time invitation. Consumers need a tenant, others have none.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn trust_invite(&self, role: Role, tenant: Option<Tenant>, ttl: Duration) -> Result<Invitation, Error> {
        let invite = Invite { role, tenant, ttl_ms: ms(ttl) };
        match self.order("making an invitation", Repeat::Never, Call::TrustInvite(invite))? {
            Reply::Invitation(invitation) => Ok(invitation),
            reply => Err(odd(&reply)),
        }
    }

    /// Everybody who was decided on: trusted or revoked.
    ///
    /// # Errors
    /// See above.
    pub fn trust_export(&self) -> Result<Vec<TrustEntry>, Error> {
        let mut all: Vec<TrustEntry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.key);
            match self.call("exporting identities", None, Repeat::Harmless, Call::TrustExport(after))? {
                Reply::Trust(page) if page.is_empty() => return Ok(all),
                // Each page goes on beyond the one before, or this would have no end.
                Reply::Trust(page) if page.first().is_some_and(|first| after.is_none_or(|after| first.key > after)) => {
                    all.extend(page);
                }
                reply => return Err(odd(&reply)),
            }
        }
    }

    /// Takes in what was exported elsewhere: keys that nobody has decided on here. What was revoked stays revoked. What comes
    /// before an error has been taken in.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn trust_import(&self, entries: &[Import]) -> Result<Imported, Error> {
        let mut sum = Imported { added: 0, same: 0, different: 0 };
        for some in entries.chunks(IMPORT_AT_ONCE) {
            match self.order("importing identities", Repeat::Harmless, Call::TrustImport(some.to_vec()))? {
                Reply::Imported(part) => {
                    sum.added += part.added;
                    sum.same += part.same;
                    sum.different += part.different;
                }
                reply => return Err(odd(&reply)),
            }
        }
        Ok(sum)
    }

    /// Ends anybody's lease now. When this returns it is fenced, or its provider is away and fences it when it comes back.
    ///
    /// # Errors
    /// [`Error::LeaseOver`] where there is none; see above; [`Error::Proposed`].
    pub fn stop_lease(&self, lease: LeaseId) -> Result<LeaseInfo, Error> {
        one_lease(self.order("stopping the lease", Repeat::Harmless, Call::LeaseStop(lease))?, lease)
    }

    /// Ends every lease of a tenant; how many.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn stop_tenant(&self, tenant: Tenant) -> Result<u64, Error> {
        stopped(self.order("stopping the tenant", Repeat::Harmless, Call::TenantStop(tenant))?)
    }

    /// Ends every lease at a provider, and drains it; how many.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn stop_provider(&self, provider: Fingerprint) -> Result<u64, Error> {
        stopped(self.order("stopping the provider", Repeat::Harmless, Call::ProviderStop(provider))?)
    }

    /// Keeps new leases from a provider, or does not any more.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn drain_provider(&self, provider: Fingerprint, drained: bool) -> Result<(), Error> {
        let call = if drained { Call::ProviderDrain(provider) } else { Call::ProviderUndrain(provider) };
        done(self.order("draining the provider", Repeat::Harmless, call)?)
    }

    /// Stops the auth daemon.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn shutdown(&self) -> Result<(), Error> {
        done(self.order("stopping the auth daemon", Repeat::Never, Call::Shutdown)?)
    }

    /// Has the auth daemon forget the records of its audit log to this head. It forgets only what its own file
    /// (`overbank-authd serve --audit-file`) has on a disk, and is busy as long as that is a moment away.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn audit_forget(&self, head: &audit::Checkpoint) -> Result<(), Error> {
        match self.order("making room in the audit log", Repeat::Harmless, Call::AuditForget(head.clone()))? {
            Reply::Done => Ok(()),
            reply => Err(odd(&reply)),
        }
    }

    /// Sets how much a tenant may have, from its next lease on.
    ///
    /// # Errors
    /// See above; [`Error::Proposed`].
    pub fn tenant_quota(&self, tenant: Tenant, bytes: Allowance, leases: Allowance) -> Result<TenantInfo, Error> {
        let quota = TenantQuota { tenant, bytes, leases };
        match self.order("setting the quota", Repeat::Harmless, Call::TenantQuota(quota))? {
            Reply::Tenants(mut tenants) if tenants.len() == 1 => Ok(tenants.remove(0)),
            reply => Err(odd(&reply)),
        }
    }

    /// What waits for more operators.
    ///
    /// # Errors
    /// See above.
    pub fn proposals(&self) -> Result<Vec<Proposal>, Error> {
        match self.call("listing proposals", None, Repeat::Harmless, Call::ProposalList)? {
            Reply::Proposals(proposals) => Ok(proposals),
            reply => Err(odd(&reply)),
        }
    }

    /// Approves exactly what this proposal says. Where that was the last approval that it took, it is done, and this is how
    /// it was answered; else the proposal as it stands now.
    ///
    /// # Errors
    /// See above; and what the proposed call fails with.
    pub fn approve_proposal(&self, proposal: &Proposal) -> Result<Reply, Error> {
        let approval = Signed::new(&proposal.approval(self.authd_key()), &self.identity());
        self.call("approving the proposal", None, Repeat::Never, Call::ProposalApprove(approval))
    }

    /// A call that may take several operators. Where it does, this one approves, and is told what waits.
    fn order(&self, what: &'static str, repeat: Repeat, call: Call) -> Result<Reply, Error> {
        match self.call(what, None, repeat, call.clone())? {
            Reply::Proposed(proposal) if proposal.effect == call => match self.approve_proposal(&proposal)? {
                Reply::Proposed(proposal) => Err(Error::Proposed(proposal)),
                reply => Ok(reply),
            },
            Reply::Proposed(_) => Err(Error::MisbehavingAuthd("a proposal of something else".to_owned())),
            reply => Ok(reply),
        }
    }
}

fn one_entry(reply: Reply) -> Result<TrustEntry, Error> {
    match reply {
        Reply::Trust(mut entries) if entries.len() == 1 => Ok(entries.remove(0)),
        reply => Err(odd(&reply)),
    }
}

fn stopped(reply: Reply) -> Result<u64, Error> {
    match reply {
        Reply::Stopped(leases) => Ok(leases),
        reply => Err(odd(&reply)),
    }
}

fn done(reply: Reply) -> Result<(), Error> {
    match reply {
        Reply::Done => Ok(()),
        reply => Err(odd(&reply)),
    }
}
