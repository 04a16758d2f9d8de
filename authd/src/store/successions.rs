//! Rows of who took over from whom: among the identities, and among the auth daemon's own keys.

use overbank_fabric::identity::PublicKey;
use overbank_fabric::signed::{Signed, from_cbor, to_cbor};
use overbank_fabric::succession::{Handover, Succession};
use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;

/// Who took over from this identity.
pub(crate) fn successor(db: &Connection, old: &PublicKey) -> Result<Option<PublicKey>, StoreError> {
    let mut query = db.prepare_cached("SELECT new FROM successions WHERE old = ?1")?;
    Ok(query.query_row([&old.0], |row| row.get(0)).optional()?.map(PublicKey))
}

/// From whom this identity took over, the last first.
pub(crate) fn predecessors(db: &Connection, key: &PublicKey) -> Result<Vec<PublicKey>, StoreError> {
    let mut query = db.prepare_cached(
        "WITH RECURSIVE line (key, depth) AS (SELECT ?1, 0 UNION ALL
         SELECT old, depth + 1 FROM successions JOIN line ON new = line.key)
         SELECT key FROM line WHERE depth > 0 ORDER BY depth",
    )?;
    let rows = query.query_map([&key.0], |row| Ok(PublicKey(row.get(0)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How often this identity's line went on since then.
pub(crate) fn steps_since(db: &Connection, key: &PublicKey, unix_ms: u64) -> Result<u64, StoreError> {
    let mut query = db.prepare_cached(
        "WITH RECURSIVE line (key) AS (SELECT ?1 UNION
         SELECT old FROM successions JOIN line ON new = line.key WHERE unix_ms >= ?2)
         SELECT count(*) - 1 FROM line",
    )?;
    Ok(query.query_row(params![key.0, unix_ms], |row| row.get(0))?)
}

/// Writes down that one identity took over from another.
pub(crate) fn insert(
    db: &Connection,
    step: &Handover,
    statement: &Signed<Handover>,
    unix_ms: u64,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO successions (old, new, statement, unix_ms) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![step.old.0, step.new.0, to_cbor(statement), unix_ms])?;
    Ok(())
}

/// A key that the auth daemon had.
#[derive(Debug, Clone)]
pub(crate) struct FormerKey {
    pub(crate) key: PublicKey,
    /// Until when, by the wall clock.
    pub(crate) until_unix_ms: u64,
    /// Its word on the next one.
    pub(crate) statement: Signed<Succession>,
}

/// The auth daemon's former keys, the oldest first.
pub(crate) fn former_keys(db: &Connection) -> Result<Vec<FormerKey>, StoreError> {
    let mut query = db.prepare_cached("SELECT old, unix_ms, statement FROM authd_keys ORDER BY number")?;
    let rows = query.query_map([], |row| {
        let statement: Vec<u8> = row.get(2)?;
        let statement = from_cbor(&statement).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Blob, Box::new(error))
        })?;
        Ok(FormerKey { key: PublicKey(row.get(0)?), until_unix_ms: row.get(1)?, statement })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// From now on the database is the new key's. What the old one was to approve is void; what it has signed of the audit log
/// stands.
pub(crate) fn rotate_authd(
    db: &Connection,
    step: &Succession,
    statement: &Signed<Succession>,
    unix_ms: u64,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO authd_keys (old, statement, unix_ms) VALUES (?1, ?2, ?3)")?.execute(params![
        step.old.0,
        to_cbor(statement),
        unix_ms
    ])?;
    db.prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'authd'")?.execute([&step.new.0])?;
    db.prepare_cached("DELETE FROM proposals")?.execute([])?;
    Ok(())
}
