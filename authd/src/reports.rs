//! What the auth daemon tells about itself: leases, providers, totals.

use std::collections::BTreeMap;

use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{LeaseInfo, LeaseState, ProviderStatus, Role, Status, TrustEntry};
use overbank_fabric::signed::to_cbor;
use serde::Serialize;

use crate::clock::{Now, millis};
use crate::core::{Core, Fault};
use crate::leases::{Standing, no_such_lease};
use crate::store::identities;
use crate::store::leases::{self, LeaseRow, Stage};

/// Bytes of entries in one answer: a message has at most 1 MiB.
const MAX_ANSWER: usize = 960 << 10;

/// How many of `entries`, from the first, fit into one answer.
pub(crate) fn that_fit<T: Serialize>(entries: &[T]) -> usize {
    let mut room = MAX_ANSWER;
    entries.iter().take_while(|entry| take(&mut room, entry)).count()
}

fn take<T: Serialize>(room: &mut usize, entry: &T) -> bool {
    let left = room.checked_sub(to_cbor(entry).len());
    *room = left.unwrap_or(0);
    left.is_some()
}

impl Core {
    /// The asker's leases, or for an operator everybody's: those that are not over first, then the newest, as many as fit
    /// into a message.
    pub(crate) fn list_leases(&self, me: &TrustEntry, now: Now) -> Result<Vec<LeaseInfo>, Fault> {
        let holder = (me.role != Some(Role::Operator)).then_some(&me.key);
        let mut infos = Vec::new();
        let mut room = MAX_ANSWER;
        leases::granted(self.store.read(), holder, |row| {
            let info = self.info(&row, now);
            if !take(&mut room, &info) {
                return std::ops::ControlFlow::Break(());
            }
            infos.push(info);
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(infos)
    }

    /// One lease: one's own, or for an operator anybody's.
    pub(crate) fn show_lease(&self, me: &TrustEntry, lease: &LeaseId, now: Now) -> Result<LeaseInfo, Fault> {
        let operator = me.role == Some(Role::Operator);
        leases::find(self.store.read(), lease)?
            .filter(|row| operator || row.holder == me.key)
            .filter(|row| !matches!(row.stage, Stage::Carving | Stage::Abandoned))
            .map(|row| self.info(&row, now))
            .ok_or_else(|| no_such_lease(lease))
    }

    /// A lease as it is shown. One whose deadline has come is ending until its receipt is in.
    pub(crate) fn info(&self, row: &LeaseRow, now: Now) -> LeaseInfo {
        let (state, left_ms, reason) = match (self.stands(row, now), row.stage) {
            (Standing::Active(left), _) => (LeaseState::Active, left, None),
            (Standing::Lost, _) => (LeaseState::Lost, 0, row.reason),
            (Standing::Over(_), Stage::Ended) => (LeaseState::Ended, 0, row.reason),
            (Standing::Over(reason), _) => (LeaseState::Ending, 0, Some(reason)),
        };
        LeaseInfo {
            lease: row.id,
            holder: row.holder.fingerprint(),
            tenant: row.tenant.clone(),
            provider: row.provider.fingerprint(),
            bytes: row.bytes,
            state,
            left_ms,
            reason,
            receipt: row.receipt.clone(),
        }
    }

    /// The pool as a whole; for a consumer its own share of it, and what is free where.
    pub(crate) fn status(&self, me: TrustEntry, now: Now) -> Result<Status, Fault> {
        let operator = me.role == Some(Role::Operator);
        let (leases, leased_bytes) = leases::active(self.store.read(), (!operator).then_some(&me.key))?;
        let drained = identities::drained(self.store.read())?;
        let mut providers: Vec<ProviderStatus> = identities::providers(self.store.read())?
            .into_iter()
            .map(|entry| match self.providers.get(&entry.key) {
                Some(provider) => ProviderStatus {
                    fingerprint: entry.fingerprint,
                    connected: provider.is_here(now.instant),
                    pool_bytes: provider.pool_bytes,
                    free_bytes: provider.free_bytes,
                    quarantined_bytes: provider.quarantined_bytes,
                    device: provider.device.clone(),
                    drained: provider.drained,
                    name: entry.name,
                },
                None => ProviderStatus {
                    fingerprint: entry.fingerprint,
                    connected: false,
                    pool_bytes: 0,
                    free_bytes: 0,
                    quarantined_bytes: 0,
                    device: String::new(),
                    drained: drained.contains(&entry.key),
                    name: entry.name,
                },
            })
            .collect();
        providers.sort_by_key(|provider| provider.fingerprint);
        if !operator {
            for provider in &mut providers {
                *provider = ProviderStatus {
                    pool_bytes: 0,
                    quarantined_bytes: 0,
                    device: String::new(),
                    name: None,
                    ..provider.clone()
                };
            }
        }
        providers.truncate(that_fit(&providers));
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(now.instant.saturating_duration_since(self.started)),
            you: me,
            leases,
            leased_bytes,
            providers,
            rejected: BTreeMap::new(),
        })
    }
}
