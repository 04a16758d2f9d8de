//! Rows of tenants' quotas, and what tenants have.

use overbank_fabric::ids::Tenant;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::StoreError;
use super::columns::Text;

/// A tenant that has no row has the daemon's defaults; so has one with a NULL.
pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS quotas (
    tenant TEXT PRIMARY KEY,
    bytes  INTEGER CHECK (bytes >= 0),
    leases INTEGER CHECK (leases >= 0)
) STRICT, WITHOUT ROWID";

/// What an operator has set for a tenant. None: what the daemon has for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) bytes: Option<u64>,
    pub(crate) leases: Option<u64>,
}

/// What a tenant has: until receipts say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) bytes: u64,
    pub(crate) leases: u64,
}

pub(crate) fn find(db: &Connection, tenant: &Tenant) -> Result<Quota, StoreError> {
    let mut query = db.prepare_cached("SELECT bytes, leases FROM quotas WHERE tenant = ?1")?;
    let row = |row: &Row<'_>| Ok(Quota { bytes: row.get(0)?, leases: row.get(1)? });
    Ok(query.query_row([Text(tenant)], row).optional()?.unwrap_or_default())
}

pub(crate) fn set(db: &Connection, tenant: &Tenant, quota: Quota) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO quotas (tenant, bytes, leases) VALUES (?1, ?2, ?3)")?
        .execute(params![Text(tenant), quota.bytes, quota.leases])?;
    db.prepare_cached("DELETE FROM quotas WHERE bytes IS NULL AND leases IS NULL")?.execute([])?;
    Ok(())
}

pub(crate) fn used(db: &Connection, tenant: &Tenant) -> Result<Used, StoreError> {
    let sums = "SELECT coalesce(sum(pinned_bytes), 0), count(*) FROM leases
                WHERE tenant = ?1 AND stage IN ('carving', 'active', 'ending') AND receipt IS NULL";
    let row = |row: &Row<'_>| Ok(Used { bytes: row.get(0)?, leases: row.get(1)? });
    Ok(db.prepare_cached(sums)?.query_row([Text(tenant)], row)?)
}

/// All tenants that somebody belongs to, that have a lease, or a quota of their own; by name.
pub(crate) fn tenants(db: &Connection) -> Result<Vec<Tenant>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT tenant FROM identities WHERE state = 'trusted' AND tenant IS NOT NULL
         UNION SELECT tenant FROM quotas
         UNION SELECT tenant FROM leases WHERE stage IN ('carving', 'active', 'ending')
         ORDER BY tenant",
    )?;
    let rows = query.query_map([], |row| Ok(row.get::<_, Text<Tenant>>(0)?.0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
