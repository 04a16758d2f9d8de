//! Tenants: what each has, and how much it may have.

use overbank_fabric::ids::Tenant;
use overbank_fabric::message::{Allowance, RefusalCode, TenantInfo, TenantQuota};
use overbank_fabric::units::Size;

use crate::audit::{Entry, Event};
use crate::core::{Core, Fault, refuse};
use crate::store::quotas::{self, Quota, Used};

/// No quota is larger than this; sums of such numbers stay far from overflow.
const MAX_QUOTA: u64 = 1 << 50;

impl Core {
    /// Whether a tenant may have one more lease, of so many bytes pinned.
    pub(crate) fn check_quota(&self, tenant: &Tenant, pinned_bytes: u64) -> Result<(), Fault> {
        let used = quotas::used(self.store.read(), tenant)?;
        let Quota { bytes, leases } = self.quota(quotas::find(self.store.read(), tenant)?);
        if let Some(quota) = bytes.filter(|&quota| used.bytes.saturating_add(pinned_bytes) > quota) {
            let text = format!(
                "tenant {tenant} has {} of its quota of {} pinned, and {} more would be: release some, or ask an operator",
                Size(used.bytes),
                Size(quota),
                Size(pinned_bytes)
            );
            return Err(refuse(RefusalCode::Quota, text));
        }
        if let Some(quota) = leases.filter(|&quota| used.leases >= quota) {
            let text = format!(
                "tenant {tenant} has {} leases, and its quota is {quota}: release some, or ask an operator",
                used.leases
            );
            return Err(refuse(RefusalCode::Quota, text));
        }
        Ok(())
    }

    /// What holds for a tenant: its own quota, else the daemon's for all.
    fn quota(&self, own: Quota) -> Quota {
        Quota { bytes: own.bytes.or(self.limits.quota), leases: own.leases.or(self.limits.quota_leases) }
    }

    /// Sets a tenant's quota, from the next lease on. Leases that there are stay.
    pub(crate) fn set_quota(&mut self, wanted: TenantQuota) -> Result<TenantInfo, Fault> {
        let TenantQuota { tenant, bytes, leases } = wanted;
        let number = |allowance, now| match allowance {
            Allowance::AsItIs => Ok(now),
            Allowance::AsForAll => Ok(None),
            Allowance::Most(most) if most <= MAX_QUOTA => Ok(Some(most)),
            Allowance::Most(_) => Err(refuse(RefusalCode::Invalid, "a quota is at most 1 PiB, or as many leases")),
        };
        self.store.write(|tx| {
            let now = quotas::find(tx, &tenant)?;
            let quota = Quota { bytes: number(bytes, now.bytes)?, leases: number(leases, now.leases)? };
            if quota == now {
                return Ok::<_, Fault>(());
            }
            quotas::set(tx, &tenant, quota)?;
            let word = |most: Option<u64>| most.map_or("as for all".to_owned(), |most| most.to_string());
            let detail = format!("bytes {}, leases {}", word(quota.bytes), word(quota.leases));
            Ok(tx.audit(Entry::new(Event::QuotaSet).tenant(Some(tenant.clone())).detail(detail))?)
        })?;
        self.tenant(tenant)
    }

    fn tenant(&self, tenant: Tenant) -> Result<TenantInfo, Fault> {
        let Used { bytes: pinned_bytes, leases } = quotas::used(self.store.read(), &tenant)?;
        let own = quotas::find(self.store.read(), &tenant)?;
        let Quota { bytes: quota_bytes, leases: quota_leases } = self.quota(own);
        let own = own != Quota::default();
        Ok(TenantInfo { tenant, leases, pinned_bytes, quota_bytes, quota_leases, own })
    }

    /// All tenants, as many as fit into a message.
    pub(crate) fn tenants(&self) -> Result<Vec<TenantInfo>, Fault> {
        let tenants = quotas::tenants(self.store.read())?.into_iter();
        let mut infos = tenants.map(|tenant| self.tenant(tenant)).collect::<Result<Vec<_>, _>>()?;
        infos.truncate(crate::reports::that_fit(&infos));
        Ok(infos)
    }
}
