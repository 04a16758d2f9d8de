//! What a tenant may fill of the audit log: so many grants an hour, and half of them each of its identities.

use std::time::{Duration, Instant};

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::Tenant;

use super::Bounds;
use crate::bucket::{Buckets, Rate};

/// A tenant may make this part of the log's records an hour, and as many at once; each of its identities half of that.
const PART: u64 = 50;
/// But that many in any case.
const LEAST: u64 = 128;
/// Tenants, and identities, that are told apart.
const MOST: usize = 16_384;

/// Who has made how many grants lately.
pub(crate) struct Budget {
    tenants: Buckets<Tenant>,
    members: Buckets<PublicKey>,
}

impl Budget {
    pub(crate) fn new(bounds: Bounds, now: Instant) -> Self {
        let rate = |part: u64| {
            let burst = u32::try_from((bounds.records / part).max(LEAST * PART / part)).unwrap_or(u32::MAX);
            Rate::every(Duration::from_secs(3600) / burst, burst)
        };
        let (tenants, members) = (rate(PART), rate(2 * PART));
        Self { tenants: Buckets::new(tenants, MOST, now), members: Buckets::new(members, MOST, now) }
    }

    /// Counts one grant. Where it may not be made, how long until it may.
    pub(crate) fn take(&mut self, tenant: &Tenant, member: &PublicKey, now: Instant) -> Result<(), Duration> {
        let wait = self.tenants.wait(tenant, now).max(self.members.wait(member, now));
        if !wait.is_zero() {
            return Err(wait);
        }
        self.tenants.reserve(tenant, now);
        self.members.reserve(member, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_leaves_its_tenant_half_and_one_tenant_the_others_all() {
        let start = Instant::now();
        let mut budget = Budget::new(Bounds { records: 100_000, ..Bounds::default() }, start);
        let (red, blue): (Tenant, Tenant) = ("red".parse().expect("a tenant"), "blue".parse().expect("a tenant"));
        let mut made = |tenant, member, now| {
            (0..10_000).filter(|_| budget.take(tenant, &PublicKey([member; 32]), now).is_ok()).count()
        };
        assert_eq!(made(&red, 1, start), 1000);
        assert_eq!(made(&red, 2, start), 1000);
        assert_eq!(made(&red, 3, start), 0, "the tenant has had its part");
        assert_eq!(made(&blue, 4, start), 1000);
        assert_eq!(made(&red, 3, start + Duration::from_secs(1800)), 1000, "half an hour, half a part");
        // However small the log is.
        let mut budget = Budget::new(Bounds { records: 64, ..Bounds::default() }, start);
        assert!((0..64).all(|_| budget.take(&red, &PublicKey([1; 32]), start).is_ok()));
    }
}
