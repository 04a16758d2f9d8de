//! Rows of leases.

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{BootId, LeaseId, Nonce, Tenant};
use overbank_fabric::receipt::{EndReason, Receipt};
use overbank_fabric::signed::{Signed, from_cbor, to_cbor};
use overbank_fabric::time::Tick;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::columns::Text;

/// Where a lease is in its life, as the auth daemon knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The provider was asked to set memory aside; nobody was told of the lease yet.
    Carving,
    /// The making failed; the provider may hold it all the same and is told to fence it. Nobody was ever told of it.
    Abandoned,
    /// Granted.
    Active,
    /// Ended by order or by its deadline; the provider's complete receipt is not in.
    Ending,
    /// The receipt is in.
    Ended,
    /// The provider died, or no longer knows it.
    Lost,
}

/// One lease.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LeaseRow {
    pub(crate) id: LeaseId,
    /// None once a repeated request may no longer find it.
    pub(crate) nonce: Option<Nonce>,
    pub(crate) holder: PublicKey,
    pub(crate) tenant: Tenant,
    pub(crate) provider: PublicKey,
    pub(crate) boot: BootId,
    pub(crate) generation: u64,
    pub(crate) bytes: u64,
    pub(crate) block: u32,
    pub(crate) blocks: u64,
    /// What the provider pins for it, and what a quota charges.
    pub(crate) pinned_bytes: u64,
    pub(crate) deadline: Tick,
    /// An estimate for people, for when the provider's clock is not known.
    pub(crate) deadline_unix_ms: u64,
    pub(crate) made_unix_ms: u64,
    pub(crate) stage: Stage,
    pub(crate) reason: Option<EndReason>,
    /// Whether the provider said that nothing reaches its memory any more.
    pub(crate) fenced: bool,
    pub(crate) receipt: Option<Signed<Receipt>>,
    /// The provider's key as the holder has pinned it, by which the provider signs whatever is about this lease.
    pub(crate) signer: PublicKey,
}

const LEASE: &str = "SELECT id, nonce, holder, tenant, provider, boot, generation, bytes, block, blocks, pinned_bytes,
    deadline_tick, deadline_unix_ms, made_unix_ms, stage, reason, fenced, receipt,
    coalesce(signer, provider) FROM leases";

fn lease(row: &Row<'_>) -> rusqlite::Result<LeaseRow> {
    let receipt: Option<Vec<u8>> = row.get(17)?;
    let receipt = receipt
        .map(|bytes| from_cbor(&bytes))
        .transpose()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(17, rusqlite::types::Type::Blob, Box::new(error)))?;
    Ok(LeaseRow {
        id: LeaseId(row.get(0)?),
        nonce: row.get::<_, Option<[u8; 16]>>(1)?.map(Nonce),
        holder: PublicKey(row.get(2)?),
        tenant: row.get::<_, Text<Tenant>>(3)?.0,
        provider: PublicKey(row.get(4)?),
        boot: BootId(row.get(5)?),
        generation: row.get(6)?,
        bytes: row.get(7)?,
        block: row.get(8)?,
        blocks: row.get(9)?,
        pinned_bytes: row.get(10)?,
        deadline: Tick(row.get(11)?),
        deadline_unix_ms: row.get(12)?,
        made_unix_ms: row.get(13)?,
        stage: row.get::<_, Text<Stage>>(14)?.0,
        reason: row.get::<_, Text<Option<EndReason>>>(15)?.0,
        fenced: row.get(16)?,
        receipt,
        signer: PublicKey(row.get(18)?),
    })
}

/// The lease with this id.
pub(crate) fn find(db: &Connection, id: &LeaseId) -> Result<Option<LeaseRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("{LEASE} WHERE id = ?1"))?;
    Ok(query.query_row([&id.0], lease).optional()?)
}

/// The lease that this request of this holder made.
pub(crate) fn find_by_nonce(
    db: &Connection,
    holder: &PublicKey,
    nonce: &Nonce,
) -> Result<Option<LeaseRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("{LEASE} WHERE holder = ?1 AND nonce = ?2"))?;
    Ok(query.query_row(params![holder.0, nonce.0], lease).optional()?)
}

/// Writes a new lease down.
pub(crate) fn insert(db: &Connection, row: &LeaseRow) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO leases (id, nonce, holder, tenant, provider, boot, generation, bytes, block, blocks, pinned_bytes,
         deadline_tick, deadline_unix_ms, made_unix_ms, stage)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?
    .execute(params![
        row.id.0,
        row.nonce.map(|nonce| nonce.0),
        row.holder.0,
        Text(&row.tenant),
        row.provider.0,
        row.boot.0,
        row.generation,
        row.bytes,
        row.block,
        row.blocks,
        row.pinned_bytes,
        row.deadline.0,
        row.deadline_unix_ms,
        row.made_unix_ms,
        Text(row.stage),
    ])?;
    Ok(())
}

/// Writes back what can change in a lease's life.
pub(crate) fn update(db: &Connection, row: &LeaseRow) -> Result<(), StoreError> {
    db.prepare_cached(
        "UPDATE leases SET nonce = ?2, deadline_tick = ?3, deadline_unix_ms = ?4, stage = ?5, reason = ?6, fenced = ?7,
         receipt = ?8 WHERE id = ?1",
    )?
    .execute(params![
        row.id.0,
        row.nonce.map(|nonce| nonce.0),
        row.deadline.0,
        row.deadline_unix_ms,
        Text(row.stage),
        Text(row.reason),
        row.fenced,
        row.receipt.as_ref().map(to_cbor),
    ])?;
    Ok(())
}

/// Forgets a lease that nobody was ever told of.
pub(crate) fn delete(db: &Connection, id: &LeaseId) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([&id.0])?;
    Ok(())
}

/// The condition for one holder's leases, or for all of them, on parameter 1: apart, so that an index serves each.
fn whose(holder: Option<&PublicKey>) -> &'static str {
    match holder {
        Some(_) => "holder = ?1",
        None => "?1 IS NULL",
    }
}

/// Leases that their holders were told of, those that are not over first, then the newest first.
pub(crate) fn granted(
    db: &Connection,
    holder: Option<&PublicKey>,
    mut each: impl FnMut(LeaseRow) -> std::ops::ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut query = db.prepare_cached(&format!(
        "{LEASE} WHERE stage NOT IN ('carving', 'abandoned') AND {}
         ORDER BY stage IN ('ended', 'lost'), made_unix_ms DESC, id",
        whose(holder)
    ))?;
    for row in query.query_map([holder.map(|key| key.0)], lease)? {
        if each(row?).is_break() {
            break;
        }
    }
    Ok(())
}

/// A provider's leases that are not over.
pub(crate) fn open_at(db: &Connection, provider: &PublicKey) -> Result<Vec<LeaseRow>, StoreError> {
    let mut query = db.prepare_cached(&format!(
        "{LEASE} WHERE provider = ?1 AND stage IN ('carving', 'abandoned', 'active', 'ending')"
    ))?;
    let rows = query.query_map([&provider.0], lease)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A provider's leases of this life of it that an order to fence may be due for: ended by order and not yet fenced,
/// being made or abandoned, or over their deadline by a grace (before the tick `overdue`).
pub(crate) fn to_fence(
    db: &Connection,
    provider: &PublicKey,
    boot: &BootId,
    overdue: Tick,
    most: u32,
) -> Result<Vec<LeaseRow>, StoreError> {
    let mut query = db.prepare_cached(&format!(
        "{LEASE} WHERE provider = ?1 AND boot = ?2 AND (stage IN ('carving', 'abandoned') OR (stage = 'ending' AND fenced = 0)
         OR (stage = 'active' AND deadline_tick < ?3)) LIMIT ?4"
    ))?;
    let rows = query.query_map(params![provider.0, boot.0, overdue.0, most], lease)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Leases of this holder that are being made or active.
pub(crate) fn live_of_holder(db: &Connection, holder: &PublicKey) -> Result<Vec<LeaseRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("{LEASE} WHERE holder = ?1 AND stage IN ('carving', 'active')"))?;
    let rows = query.query_map([&holder.0], lease)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Leases of this tenant that are being made or active.
pub(crate) fn live_of_tenant(db: &Connection, tenant: &Tenant) -> Result<Vec<LeaseRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("{LEASE} WHERE tenant = ?1 AND stage IN ('carving', 'active')"))?;
    let rows = query.query_map([Text(tenant)], lease)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Moves all that one identity holds or lends to another. What the old one signed so far stays known by its key.
pub(crate) fn hand_over(db: &Connection, old: &PublicKey, new: &PublicKey) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE leases SET holder = ?2 WHERE holder = ?1")?.execute([&old.0, &new.0])?;
    db.prepare_cached("UPDATE leases SET signer = coalesce(signer, provider), provider = ?2 WHERE provider = ?1")?
        .execute([&old.0, &new.0])?;
    Ok(())
}

/// Number of active leases and usable bytes in them; one holder's or all.
pub(crate) fn active(db: &Connection, holder: Option<&PublicKey>) -> Result<(u64, u64), StoreError> {
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    Ok(db.prepare_cached(&active_sql(holder))?.query_row([holder.map(|key| key.0)], row)?)
}

pub(super) fn active_sql(holder: Option<&PublicKey>) -> String {
    format!("SELECT count(*), coalesce(sum(bytes), 0) FROM leases WHERE stage = 'active' AND {}", whose(holder))
}

/// Of a holder's leases that are over, keeps the newest `most`.
pub(crate) fn forget_old(db: &Connection, holder: &PublicKey, most: u32) -> Result<(), StoreError> {
    db.prepare_cached(
        "DELETE FROM leases WHERE id IN (SELECT id FROM leases WHERE holder = ?1 AND stage IN ('ended', 'lost')
         ORDER BY made_unix_ms DESC, id LIMIT -1 OFFSET ?2)",
    )?
    .execute(params![holder.0, most])?;
    Ok(())
}
