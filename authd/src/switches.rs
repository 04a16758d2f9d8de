//! The operators' switches: stop a lease, a tenant, a provider, the daemon; keep new leases from a provider.
//!
//! Each is in the store before it is answered, so that a provider that is away learns of it when it comes back.

use overbank_fabric::ids::{Fingerprint, LeaseId, Tenant};
use overbank_fabric::message::{Call, Fence, RefusalCode, Reply, Role, TrustEntry, TrustState};
use overbank_fabric::receipt::EndReason;

use crate::audit::{Entry, Event};
use crate::clock::Now;
use crate::core::{Core, Effect, Fault, Fencing, Next, Order, Then, Waiting, refuse};
use crate::leases::{Standing, no_such_lease};
use crate::store::identities;
use crate::store::leases::{self, LeaseRow, Stage};

impl Core {
    /// Ends any lease now.
    pub(crate) fn stop_lease(&mut self, lease: &LeaseId, now: Now) -> Result<Next, Fault> {
        let row = leases::find(self.store.read(), lease)?
            .filter(|row| !matches!(row.stage, Stage::Carving | Stage::Abandoned))
            .ok_or_else(|| no_such_lease(lease))?;
        let over = matches!(self.stands(&row, now), Standing::Lost) || row.fenced || row.stage == Stage::Ended;
        let row = if row.stage == Stage::Active {
            let row = Self::stopped(&row, EndReason::Stopped);
            self.store.write(|tx| {
                leases::update(tx, &row)?;
                tx.audit(Entry::new(Event::StopOrdered).about(&row).detail("a lease"))
            })?;
            row
        } else {
            row
        };
        let session = self.providers.get(&row.provider).filter(|it| it.boot == row.boot).and_then(|it| it.session);
        let (false, Some(session)) = (over, session) else {
            return Ok(Next::Answer(Reply::Leases(vec![self.info(&row, now)])));
        };
        let fencing = Fencing { provider: row.provider, lease: row.id };
        if !self.fencing.insert(fencing) {
            return Ok(Next::Wait);
        }
        let reason = row.reason.unwrap_or(EndReason::Stopped);
        let call = Call::Fence(Fence { lease: row.id, reason });
        Ok(Next::Order(Box::new(Order { session, call, then: Then::Fenced(fencing, Waiting::Somebody) })))
    }

    /// Ends every lease of a tenant. It may lease again: that is for its quota, or for revocations.
    pub(crate) fn stop_tenant(&mut self, tenant: &Tenant) -> Result<u64, Fault> {
        let rows = leases::live_of_tenant(self.store.read(), tenant)?;
        let what = Entry::new(Event::StopOrdered).tenant(Some(tenant.clone())).detail("a tenant");
        let stopped = self.stop_all(&rows, &what)?;
        tracing::info!(%tenant, leases = stopped, "a tenant was stopped");
        Ok(stopped)
    }

    /// Ends every lease at a provider, which gets no new ones either.
    pub(crate) fn stop_provider(&mut self, fingerprint: &Fingerprint) -> Result<u64, Fault> {
        self.drain(fingerprint, true)?;
        let key = self.trust_show(fingerprint)?.key;
        let rows = leases::open_at(self.store.read(), &key)?;
        let what = Entry::new(Event::StopOrdered).target(*fingerprint).detail("a provider");
        let stopped = self.stop_all(&rows, &what)?;
        tracing::info!(provider = %fingerprint, leases = stopped, "a provider was stopped");
        Ok(stopped)
    }

    /// Ends those of these leases that are not ending yet; how many of them somebody was told of.
    fn stop_all(&mut self, rows: &[LeaseRow], what: &Entry) -> Result<u64, Fault> {
        let live: Vec<_> = rows.iter().filter(|row| matches!(row.stage, Stage::Carving | Stage::Active)).collect();
        self.store.write(|tx| {
            tx.audit(what.clone())?;
            live.iter().try_for_each(|row| {
                leases::update(tx, &Self::stopped(row, EndReason::Stopped))?;
                tx.audit(Entry::new(Event::Ending).about(row).detail("stopped"))
            })
        })?;
        for row in &live {
            self.order_fences(&row.provider);
        }
        self.effect(Effect::Changed);
        Ok(live.iter().filter(|row| row.stage == Stage::Active).count() as u64)
    }

    /// Says whether a provider gets new leases, now and after a restart.
    pub(crate) fn drain(&mut self, fingerprint: &Fingerprint, drained: bool) -> Result<Reply, Fault> {
        let entry = self.trust_show(fingerprint)?;
        if (entry.state, entry.role) != (TrustState::Trusted, Some(Role::Provider)) {
            let text = format!("{fingerprint} is no trusted provider: see `overbank provider list`");
            return Err(refuse(RefusalCode::Invalid, text));
        }
        self.store.write(|tx| {
            identities::drain(tx, &entry.key, drained)?;
            let event = if drained { Event::Drained } else { Event::Undrained };
            tx.audit(Entry::new(event).target(entry.fingerprint))
        })?;
        if let Some(provider) = self.providers.get_mut(&entry.key) {
            provider.drained = drained;
        }
        tracing::info!(provider = %fingerprint, drained, "a provider is drained, or not any more");
        Ok(Reply::Done)
    }

    /// Stops the daemon, once this is answered.
    pub(crate) fn shutdown(&mut self, me: &TrustEntry) -> Result<Reply, Fault> {
        self.store.write(|tx| tx.audit(Entry::new(Event::StopOrdered).detail("the auth daemon")))?;
        tracing::info!(operator = %me.fingerprint, "stopping by an operator's order");
        self.effect(Effect::Shutdown);
        Ok(Reply::Done)
    }
}
