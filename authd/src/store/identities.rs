//! Rows of the trust store: identities, and the invitations that make them trusted.

use std::collections::HashSet;

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{Fingerprint, Name, Tenant};
use overbank_fabric::message::{Role, TrustEntry, TrustState};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::StoreError;
use super::columns::Text;

/// How many operators agreed to an invitation: so far, one each.
pub(crate) const AGREED: &str = "ALTER TABLE invitations ADD COLUMN agreed INTEGER NOT NULL DEFAULT 1;";

/// What an identity is trusted as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What it may do.
    pub(crate) role: Role,
    /// For whom; consumers only.
    pub(crate) tenant: Option<Tenant>,
}

/// An invitation as it is kept: without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvitationRow {
    /// SHA-256 of the secret, see [`overbank_fabric::labels::INVITATION`].
    pub(crate) hash: [u8; 32],
    /// As what it makes trusted.
    pub(crate) standing: Standing,
    /// The operator who asked for it; none for the first.
    pub(crate) made_by: Option<PublicKey>,
    /// How many operators agreed to it.
    pub(crate) agreed: u32,
    /// When it can no longer be redeemed.
    pub(crate) expires_unix_ms: u64,
    /// Who redeemed it.
    pub(crate) used_by: Option<PublicKey>,
}

const ENTRY: &str = "SELECT key, fingerprint, state, role, tenant, last_seen_from, name FROM identities";

fn entry(row: &Row<'_>) -> rusqlite::Result<TrustEntry> {
    Ok(TrustEntry {
        key: PublicKey(row.get(0)?),
        fingerprint: Fingerprint(row.get(1)?),
        state: row.get::<_, Text<TrustState>>(2)?.0,
        role: row.get::<_, Text<Option<Role>>>(3)?.0,
        tenant: row.get::<_, Text<Option<Tenant>>>(4)?.0,
        last_seen_from: row.get(5)?,
        name: row.get::<_, Text<Option<Name>>>(6)?.0,
    })
}

/// The identity with this key.
pub(crate) fn find(db: &Connection, key: &PublicKey) -> Result<Option<TrustEntry>, StoreError> {
    let mut query = db.prepare_cached(&format!("{ENTRY} WHERE key = ?1"))?;
    Ok(query.query_row([&key.0], entry).optional()?)
}

/// The identity with exactly this fingerprint.
pub(crate) fn find_by_fingerprint(db: &Connection, it: &Fingerprint) -> Result<Option<TrustEntry>, StoreError> {
    let mut query = db.prepare_cached(&format!("{ENTRY} WHERE fingerprint = ?1"))?;
    Ok(query.query_row([&it.0], entry).optional()?)
}

/// All of them: those that wait first, then the trusted, then the revoked; within those the last seen first.
pub(crate) fn list(db: &Connection) -> Result<Vec<TrustEntry>, StoreError> {
    let mut query = db.prepare_cached(&format!("{ENTRY} ORDER BY state = 'revoked', state, last_seen_unix_ms DESC"))?;
    let rows = query.query_map([], entry)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The trusted providers.
pub(crate) fn providers(db: &Connection) -> Result<Vec<TrustEntry>, StoreError> {
    let mut query = db.prepare_cached(&providers_sql())?;
    let rows = query.query_map([], entry)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn providers_sql() -> String {
    format!("{ENTRY} WHERE role = 'provider' AND state = 'trusted'")
}

/// At most `most` of those that somebody has decided on, by key, after this one.
pub(crate) fn decided_after(
    db: &Connection,
    after: Option<&PublicKey>,
    most: u32,
) -> Result<Vec<TrustEntry>, StoreError> {
    let mut query = db.prepare_cached(&format!(
        "{ENTRY} WHERE state <> 'pending' AND (?1 IS NULL OR key > ?1) ORDER BY key LIMIT ?2"
    ))?;
    let rows = query.query_map(params![after.map(|key| key.0), most], entry)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes down an identity that never connected, as revoked: [`trust`] makes more of it.
pub(crate) fn insert_unseen(db: &Connection, key: &PublicKey, unix_ms: u64) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO identities (key, fingerprint, state, last_seen_unix_ms) VALUES (?1, ?2, 'revoked', ?3)",
    )?
    .execute(params![key.0, key.fingerprint().0, unix_ms])?;
    Ok(())
}

/// Forgets an identity that waits.
pub(crate) fn forget_pending(db: &Connection, key: &PublicKey) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM identities WHERE key = ?1 AND state = 'pending'")?.execute([&key.0])?;
    Ok(())
}

/// Names an identity.
pub(crate) fn rename(db: &Connection, key: &PublicKey, name: Option<&Name>) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE identities SET name = ?2 WHERE key = ?1")?.execute(params![key.0, Text(name)])?;
    Ok(())
}

/// Whether a provider gets no new leases.
pub(crate) fn is_drained(db: &Connection, key: &PublicKey) -> Result<bool, StoreError> {
    let mut query = db.prepare_cached("SELECT drained FROM identities WHERE key = ?1")?;
    Ok(query.query_row([&key.0], |row| row.get(0)).optional()?.unwrap_or(false))
}

/// The providers that get no new leases.
pub(crate) fn drained(db: &Connection) -> Result<HashSet<PublicKey>, StoreError> {
    let mut query = db.prepare_cached(DRAINED)?;
    let rows = query.query_map([], |row| Ok(PublicKey(row.get(0)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) const DRAINED: &str = "SELECT key FROM identities WHERE role = 'provider' AND drained = 1";

/// Says whether a provider gets new leases.
pub(crate) fn drain(db: &Connection, key: &PublicKey, drained: bool) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE identities SET drained = ?2 WHERE key = ?1")?.execute(params![key.0, drained])?;
    Ok(())
}

/// Writes down a stranger; of more than `most` that wait, the one that was seen longest ago is forgotten.
pub(crate) fn insert_pending(
    db: &Connection,
    key: &PublicKey,
    from: &str,
    unix_ms: u64,
    most: u32,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "DELETE FROM identities WHERE key IN (SELECT key FROM identities WHERE state = 'pending'
         ORDER BY last_seen_unix_ms DESC, key LIMIT -1 OFFSET ?1)",
    )?
    .execute([most.saturating_sub(1)])?;
    db.prepare_cached(
        "INSERT INTO identities (key, fingerprint, state, last_seen_from, last_seen_unix_ms)
         VALUES (?1, ?2, 'pending', ?3, ?4)",
    )?
    .execute(params![key.0, key.fingerprint().0, from, unix_ms])?;
    Ok(())
}

/// Notes from where and when an identity was last seen.
pub(crate) fn seen(db: &Connection, key: &PublicKey, from: &str, unix_ms: u64) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE identities SET last_seen_from = ?2, last_seen_unix_ms = ?3 WHERE key = ?1")?
        .execute(params![key.0, from, unix_ms])?;
    Ok(())
}

/// When an identity was last noted as seen.
pub(crate) fn last_seen_unix_ms(db: &Connection, key: &PublicKey) -> Result<Option<u64>, StoreError> {
    let mut query = db.prepare_cached("SELECT last_seen_unix_ms FROM identities WHERE key = ?1")?;
    Ok(query.query_row([&key.0], |row| row.get(0)).optional()?)
}

/// Trusts an identity.
pub(crate) fn trust(db: &Connection, key: &PublicKey, standing: &Standing) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE identities SET state = 'trusted', role = ?2, tenant = ?3 WHERE key = ?1")?
        .execute(params![key.0, Text(standing.role), Text(&standing.tenant)])?;
    Ok(())
}

/// Trusts an identity no more, and nobody by the invitations that it made.
pub(crate) fn revoke(db: &Connection, key: &PublicKey) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE identities SET state = 'revoked' WHERE key = ?1")?.execute([&key.0])?;
    db.prepare_cached("DELETE FROM invitations WHERE made_by = ?1 AND used_by IS NULL")?.execute([&key.0])?;
    Ok(())
}

/// How many trusted operators there are.
pub(crate) fn operators(db: &Connection) -> Result<u64, StoreError> {
    let count = "SELECT count(*) FROM identities WHERE state = 'trusted' AND role = 'operator'";
    Ok(db.prepare_cached(count)?.query_row([], |row| row.get(0))?)
}

/// Keeps an invitation.
pub(crate) fn insert_invitation(db: &Connection, row: &InvitationRow) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO invitations (hash, role, tenant, made_by, expires_unix_ms, used_by, agreed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        row.hash,
        Text(row.standing.role),
        Text(&row.standing.tenant),
        row.made_by.map(|key| key.0),
        row.expires_unix_ms,
        row.used_by.map(|key| key.0),
        row.agreed,
    ])?;
    Ok(())
}

/// The invitation with this hash.
pub(crate) fn invitation(db: &Connection, hash: &[u8; 32]) -> Result<Option<InvitationRow>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT hash, role, tenant, made_by, expires_unix_ms, used_by, agreed FROM invitations WHERE hash = ?1",
    )?;
    let row = query.query_row([hash], |row| {
        Ok(InvitationRow {
            hash: row.get(0)?,
            standing: Standing {
                role: row.get::<_, Text<Role>>(1)?.0,
                tenant: row.get::<_, Text<Option<Tenant>>>(2)?.0,
            },
            made_by: row.get::<_, Option<[u8; 32]>>(3)?.map(PublicKey),
            expires_unix_ms: row.get(4)?,
            used_by: row.get::<_, Option<[u8; 32]>>(5)?.map(PublicKey),
            agreed: row.get(6)?,
        })
    });
    Ok(row.optional()?)
}

/// Marks an invitation as redeemed.
pub(crate) fn use_invitation(db: &Connection, hash: &[u8; 32], by: &PublicKey) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE invitations SET used_by = ?2 WHERE hash = ?1")?.execute(params![hash, by.0])?;
    Ok(())
}

/// Drops the invitations that are out of date, and counts those that can still be redeemed.
pub(crate) fn tidy_invitations(db: &Connection, unix_ms: u64) -> Result<u64, StoreError> {
    db.prepare_cached("DELETE FROM invitations WHERE expires_unix_ms <= ?1")?.execute([unix_ms])?;
    let open = "SELECT count(*) FROM invitations WHERE used_by IS NULL";
    Ok(db.prepare_cached(open)?.query_row([], |row| row.get(0))?)
}
