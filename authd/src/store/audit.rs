//! Rows of the audit log, and writing them inside the transaction of what they are about.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;

use overbank_fabric::audit::{Checkpoint, Hash, Hashed, Record};
use overbank_fabric::signed::{from_cbor, to_cbor};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{StoreError, identities};
use crate::audit::{Bounds, Cause, Class, Entry};

/// Records that are kept in memory while there is no room for them.
pub(crate) const MAX_KEPT: usize = 1024;

/// Where the chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) hash: Hash,
    /// Bytes of all records so far.
    ends_at: u64,
}

/// What the store knows of its audit log besides the rows.
pub(crate) struct Trail {
    /// The last record that is on the disk.
    pub(crate) head: Head,
    /// The record before the first that is in the store.
    before: Head,
    pub(crate) bounds: Bounds,
    /// On whose behalf decisions are made right now.
    pub(crate) cause: Cause,
    /// Why nothing may be granted, besides a full log.
    pub(crate) stopped: Option<&'static str>,
    /// Records of what was done without room for them.
    pub(crate) kept: VecDeque<Record>,
    /// Records that not even memory had room for.
    pub(crate) lost: u64,
}

impl Trail {
    /// The log as the store has it.
    pub(super) fn of(db: &Connection) -> Result<Self, StoreError> {
        let ends_at = |row: &Row<'_>| Ok(Head { seq: row.get(0)?, hash: Hash(row.get(1)?), ends_at: row.get(2)? });
        let last = "SELECT seq, hash, ends_at FROM audit ORDER BY seq DESC LIMIT 1";
        let first = "SELECT seq, hash, ends_at - length(record) FROM audit ORDER BY seq LIMIT 1";
        let genesis = Head { seq: 0, hash: Hash::genesis(), ends_at: 0 };
        let head = db.query_row(last, [], ends_at).optional()?;
        let before = db.query_row(first, [], ends_at).optional()?;
        Ok(Self {
            head: head.unwrap_or(genesis),
            before: before.map_or(genesis, |first| Head { seq: first.seq - 1, ..first }),
            bounds: Bounds::default(),
            cause: Cause::default(),
            stopped: None,
            kept: VecDeque::new(),
            lost: 0,
        })
    }

    /// Whether one more record of this class may be written after `head`.
    fn has_room(&self, head: &Head, class: Class) -> bool {
        let (records, bytes) = (head.seq - self.before.seq, head.ends_at - self.before.ends_at);
        let most = self.bounds.of(class);
        records < most.records && bytes < most.bytes
    }

    /// Why nothing can be granted at present.
    pub(crate) fn no_grants(&self) -> Option<StoreError> {
        if cfg!(feature = "danger-grant-unrecorded") {
            return None;
        }
        match self.stopped {
            Some(why) => Some(StoreError::AuditStopped(why)),
            None if self.has_room(&self.head, Class::Grant) && self.kept.is_empty() => None,
            None => Some(StoreError::AuditStopped("the audit log is full")),
        }
    }

    /// The records up to and with this one are in the store no more.
    pub(crate) fn forgotten(&mut self, to: Head) {
        self.before = to;
    }

    /// Whether what was kept in memory can be written now.
    pub(crate) fn can_write_kept(&self) -> bool {
        (self.lost > 0 || !self.kept.is_empty()) && self.has_room(&self.head, Class::End)
    }
}

/// A transaction that can write audit records.
pub(crate) struct Tx<'a> {
    pub(super) tx: Transaction<'a>,
    trail: &'a Trail,
    head: Cell<Head>,
    kept: RefCell<Vec<Record>>,
}

impl Deref for Tx<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.tx
    }
}

/// What a transaction has added to the audit log.
pub(super) struct Added {
    head: Head,
    kept: Vec<Record>,
}

impl Added {
    /// It is on the disk.
    pub(super) fn settle(self, trail: &mut Trail) {
        trail.head = self.head;
        for record in self.kept {
            if trail.kept.len() < MAX_KEPT {
                trail.kept.push_back(record);
            } else {
                trail.lost += 1;
            }
        }
    }
}

impl<'a> Tx<'a> {
    pub(super) fn new(tx: Transaction<'a>, trail: &'a Trail) -> Self {
        Self { tx, trail, head: Cell::new(trail.head), kept: RefCell::default() }
    }

    /// Writes the transaction, its audit records included.
    pub(super) fn commit(self) -> rusqlite::Result<Added> {
        self.tx.commit()?;
        Ok(Added { head: self.head.get(), kept: self.kept.into_inner() })
    }

    /// Records what this transaction decides. It is in the log exactly where the decision is in the store.
    ///
    /// # Errors
    /// [`StoreError::AuditStopped`] for what grants something while there is no room: the transaction is to fail with it.
    /// What ends something never fails for want of room; its record is then kept in memory.
    pub(crate) fn audit(&self, entry: Entry) -> Result<(), StoreError> {
        let class = entry.event.class();
        let head = self.head.get();
        if class == Class::Grant
            && let Some(none) = self.trail.no_grants()
        {
            return Err(none);
        }
        let room = self.trail.has_room(&head, class) && self.trail.kept.is_empty() && self.kept.borrow().is_empty();
        let cause = &self.trail.cause;
        let role = match &cause.who {
            Some(key) => identities::find(self, key)?.and_then(|entry| entry.role),
            None => None,
        };
        let record = entry.record(cause, role);
        match (room, class) {
            (true, _) => self.append(record),
            (false, Class::Grant) if cfg!(feature = "danger-grant-unrecorded") => Ok(()),
            (false, Class::Grant) => Err(StoreError::AuditStopped("the audit log is full")),
            (false, Class::End) => {
                self.kept.borrow_mut().push(record);
                Ok(())
            }
            (false, Class::Note) => Ok(()),
        }
    }

    /// Adds a record to the chain, with the next number.
    pub(crate) fn append(&self, record: Record) -> Result<(), StoreError> {
        let before = self.head.get();
        let record = Record { seq: before.seq + 1, ..record };
        let bytes = to_cbor(&record);
        let ends_at = before.ends_at + bytes.len() as u64;
        let head = Head { seq: record.seq, hash: before.hash.after(&bytes), ends_at };
        self.prepare_cached("INSERT INTO audit (seq, record, hash, ends_at) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![head.seq, bytes, head.hash.0, head.ends_at])?;
        self.head.set(head);
        Ok(())
    }
}

/// The records from `from` on, at most `most`, as long as `each` goes on.
pub(crate) fn scan(
    db: &Connection,
    from: u64,
    most: u32,
    mut each: impl FnMut(Hashed) -> std::ops::ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut query = db.prepare_cached("SELECT record, hash FROM audit WHERE seq >= ?1 ORDER BY seq LIMIT ?2")?;
    let mut rows = query.query(params![from, most])?;
    while let Some(row) = rows.next()? {
        let record = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
        let record = from_cbor(record).map_err(|error| StoreError::AuditDamaged(error.to_string()))?;
        if each(Hashed { record, hash: Hash(row.get(1)?) }).is_break() {
            break;
        }
    }
    Ok(())
}

/// The first record that is in the store.
pub(crate) fn first_seq(db: &Connection) -> Result<Option<u64>, StoreError> {
    Ok(db.prepare_cached("SELECT min(seq) FROM audit")?.query_row([], |row| row.get(0))?)
}

/// Keeps a checkpoint.
pub(crate) fn insert_checkpoint(db: &Connection, checkpoint: &Checkpoint) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO checkpoints (seq, checkpoint) VALUES (?1, ?2)")?
        .execute(params![checkpoint.seq, to_cbor(checkpoint)])?;
    Ok(())
}

/// The first checkpoint at or after this record.
pub(crate) fn checkpoint_from(db: &Connection, seq: u64) -> Result<Option<Checkpoint>, StoreError> {
    checkpoint(db, "SELECT checkpoint FROM checkpoints WHERE seq >= ?1 ORDER BY seq LIMIT 1", seq)
}

/// The last checkpoint at or before this record.
pub(crate) fn checkpoint_until(db: &Connection, seq: u64) -> Result<Option<Checkpoint>, StoreError> {
    checkpoint(db, "SELECT checkpoint FROM checkpoints WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1", seq)
}

fn checkpoint(db: &Connection, query: &str, seq: u64) -> Result<Option<Checkpoint>, StoreError> {
    let bytes: Option<Vec<u8>> = db.prepare_cached(query)?.query_row([seq], |row| row.get(0)).optional()?;
    bytes.map(|bytes| from_cbor(&bytes).map_err(|error| StoreError::AuditDamaged(error.to_string()))).transpose()
}

/// Where the chain was at this record, if it is in the store.
pub(crate) fn at(db: &Connection, seq: u64) -> Result<Option<Head>, StoreError> {
    let mut query = db.prepare_cached("SELECT seq, hash, ends_at FROM audit WHERE seq = ?1")?;
    let head = |row: &Row<'_>| Ok(Head { seq: row.get(0)?, hash: Hash(row.get(1)?), ends_at: row.get(2)? });
    Ok(query.query_row([seq], head).optional()?)
}

/// Forgets the records up to this one, and the checkpoints before it. Says how many.
pub(crate) fn forget(db: &Connection, seq: u64) -> Result<usize, StoreError> {
    db.prepare_cached("DELETE FROM checkpoints WHERE seq < ?1")?.execute([seq])?;
    Ok(db.prepare_cached("DELETE FROM audit WHERE seq <= ?1")?.execute([seq])?)
}
