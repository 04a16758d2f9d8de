//! Rows of proposals, and of the operators' approvals of them.

use overbank_fabric::approval::Approval;
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::Call;
use overbank_fabric::signed::{Signed, from_cbor, to_cbor};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::StoreError;

/// A call that waits for more operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProposalRow {
    pub(crate) id: Nonce,
    pub(crate) effect: Call,
    pub(crate) made_by: PublicKey,
    pub(crate) expires_unix_ms: u64,
}

const PROPOSAL: &str = "SELECT id, effect, made_by, expires_unix_ms FROM proposals";

fn proposal(row: &Row<'_>) -> rusqlite::Result<ProposalRow> {
    let effect: Vec<u8> = row.get(1)?;
    let effect = from_cbor(&effect)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Blob, Box::new(error)))?;
    Ok(ProposalRow { id: Nonce(row.get(0)?), effect, made_by: PublicKey(row.get(2)?), expires_unix_ms: row.get(3)? })
}

/// Writes a new one down.
pub(crate) fn insert(db: &Connection, row: &ProposalRow) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO proposals (id, effect, made_by, expires_unix_ms) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![row.id.0, to_cbor(&row.effect), row.made_by.0, row.expires_unix_ms])?;
    Ok(())
}

/// The one with this id.
pub(crate) fn find(db: &Connection, id: &Nonce) -> Result<Option<ProposalRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("{PROPOSAL} WHERE id = ?1"))?;
    Ok(query.query_row([&id.0], proposal).optional()?)
}

/// All, the one that expires next first.
pub(crate) fn list(db: &Connection) -> Result<Vec<ProposalRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("{PROPOSAL} ORDER BY expires_unix_ms, id"))?;
    let rows = query.query_map([], proposal)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets one, with its approvals.
pub(crate) fn delete(db: &Connection, id: &Nonce) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM proposals WHERE id = ?1")?.execute([&id.0])?;
    Ok(())
}

/// Forgets those that are out of date.
pub(crate) fn tidy(db: &Connection, unix_ms: u64) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM proposals WHERE expires_unix_ms <= ?1")?.execute([unix_ms])?;
    Ok(())
}

/// Keeps an operator's approval; a second one of the same operator changes nothing.
pub(crate) fn approve(
    db: &Connection,
    proposal: &Nonce,
    operator: &PublicKey,
    statement: &Signed<Approval>,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR IGNORE INTO approvals (proposal, operator, statement) VALUES (?1, ?2, ?3)")?
        .execute(params![proposal.0, operator.0, to_cbor(statement)])?;
    Ok(())
}

/// Who approved it, and is an operator to this day.
pub(crate) fn approved_by(db: &Connection, proposal: &Nonce) -> Result<Vec<PublicKey>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT operator FROM approvals JOIN identities ON key = operator
         WHERE proposal = ?1 AND state = 'trusted' AND role = 'operator' ORDER BY approvals.rowid",
    )?;
    let rows = query.query_map([&proposal.0], |row| Ok(PublicKey(row.get(0)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
