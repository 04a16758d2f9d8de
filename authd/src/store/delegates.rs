//! Rows of those with whom a lease was shared and who asked to attach to it: whom a provider must be told to detach.

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{BootId, LeaseId};
use rusqlite::{Connection, params};

use super::StoreError;

/// Made where it is missing: a database of before has nobody in it.
pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS delegates (
    lease BLOB NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    holder BLOB NOT NULL,
    -- 0: trusted; 1: revoked, and the provider is to be told; 2: revoked, and it was told.
    barred INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (lease, holder)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delegates_by_holder ON delegates (holder)";

/// Whether these, of this lease, are written down.
pub(crate) fn has(db: &Connection, lease: &LeaseId, holder: &PublicKey) -> Result<bool, StoreError> {
    let mut query = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM delegates WHERE lease = ?1 AND holder = ?2)")?;
    Ok(query.query_row(params![lease.0, holder.0], |row| row.get(0))?)
}

/// How many there are of a lease.
pub(crate) fn count(db: &Connection, lease: &LeaseId) -> Result<u64, StoreError> {
    let mut query = db.prepare_cached("SELECT count(*) FROM delegates WHERE lease = ?1")?;
    Ok(query.query_row([&lease.0], |row| row.get(0))?)
}

/// Writes one down.
pub(crate) fn insert(db: &Connection, lease: &LeaseId, holder: &PublicKey) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO delegates (lease, holder) VALUES (?1, ?2)")?
        .execute(params![lease.0, holder.0])?;
    Ok(())
}

/// From now on the providers of all leases that were shared with it are to be told; those providers.
pub(crate) fn bar(db: &Connection, holder: &PublicKey) -> Result<Vec<PublicKey>, StoreError> {
    db.prepare_cached("UPDATE delegates SET barred = 1 WHERE holder = ?1 AND barred = 0")?.execute([&holder.0])?;
    let mut query = db.prepare_cached(
        "SELECT DISTINCT provider FROM leases JOIN delegates ON lease = id
         WHERE delegates.holder = ?1 AND barred = 1 AND stage = 'active'",
    )?;
    let rows = query.query_map([&holder.0], |row| row.get(0).map(PublicKey))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whom this life of a provider is to be told of.
pub(crate) fn due(
    db: &Connection,
    provider: &PublicKey,
    boot: &BootId,
    most: u32,
) -> Result<Vec<(LeaseId, PublicKey)>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT lease, delegates.holder FROM leases JOIN delegates ON lease = id
         WHERE provider = ?1 AND boot = ?2 AND stage = 'active' AND barred = 1 LIMIT ?3",
    )?;
    let row = |row: &rusqlite::Row<'_>| Ok((LeaseId(row.get(0)?), PublicKey(row.get(1)?)));
    Ok(query.query_map(params![provider.0, boot.0, most], row)?.collect::<Result<_, _>>()?)
}

/// The provider was told of it.
pub(crate) fn told(db: &Connection, lease: &LeaseId, holder: &PublicKey) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE delegates SET barred = 2 WHERE lease = ?1 AND holder = ?2 AND barred = 1")?
        .execute(params![lease.0, holder.0])?;
    Ok(())
}
