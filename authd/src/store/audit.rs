//! Rows of the audit log, and writing them inside the transaction of what they are about.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;

use overbank_fabric::audit::{Checkpoint, Hash, Hashed, Record};
use overbank_fabric::signed::{from_cbor, to_cbor};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{StoreError, identities};
use crate::audit::{Bounds, Cause, Class, Entry, Event};

/// What is on the disk of a time in which the log had no room.
pub(super) const GAP: &str = "CREATE TABLE audit_gap (
    only          INTEGER PRIMARY KEY CHECK (only = 1),
    since_unix_ms INTEGER NOT NULL,
    records       INTEGER NOT NULL
) STRICT";

const FULL: &str = "the audit log is full: an operator makes room (overbank audit archive FILE)";
const DISK_FULL: &str = "the disk of the auth daemon's state is full: free 32 MiB or more of it";
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

/// Records that are not in the log, because it had no room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) since_unix_ms: u64,
    /// How many; memory keeps the first of them.
    pub(crate) records: u64,
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
    /// The disk of the store is full.
    pub(super) disk_full: bool,
    /// Records of what was done without room for them. Those that a process before this one kept are gone.
    pub(crate) kept: VecDeque<Record>,
    /// That there are such, kept or not. It is on the disk.
    pub(crate) gap: Option<Gap>,
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
        let gap = "SELECT since_unix_ms, records FROM audit_gap";
        let gap =
            db.query_row(gap, [], |row| Ok(Gap { since_unix_ms: row.get(0)?, records: row.get(1)? })).optional()?;
        Ok(Self {
            head: head.unwrap_or(genesis),
            before: before.map_or(genesis, |first| Head { seq: first.seq - 1, ..first }),
            bounds: Bounds::default(),
            cause: Cause::default(),
            stopped: None,
            disk_full: false,
            kept: VecDeque::new(),
            gap,
        })
    }

    /// Whether one more record of this class may be written between these.
    fn has_room(&self, before: Head, head: Head, class: Class) -> bool {
        let (records, bytes) = (head.seq - before.seq, head.ends_at - before.ends_at);
        let most = self.bounds.of(class);
        records < most.records && bytes < most.bytes && (class == Class::End || !self.disk_full)
    }

    /// Why nothing can be granted at present.
    pub(crate) fn no_grants(&self) -> Option<StoreError> {
        if cfg!(feature = "danger-grant-unrecorded") {
            return None;
        }
        if self.disk_full {
            return Some(StoreError::AuditStopped(DISK_FULL));
        }
        match self.stopped {
            Some(why) => Some(StoreError::AuditStopped(why)),
            None if self.has_room(self.before, self.head, Class::Grant) && self.gap.is_none() => None,
            None => Some(StoreError::AuditStopped(FULL)),
        }
    }

    /// Whether there is a gap that ends now.
    pub(crate) fn can_close_gap(&self) -> bool {
        self.gap.is_some() && self.has_room(self.before, self.head, Class::End)
    }
}

/// A transaction that can write audit records.
pub(crate) struct Tx<'a> {
    pub(super) tx: Transaction<'a>,
    trail: &'a Trail,
    before: Cell<Head>,
    head: Cell<Head>,
    gap: Cell<Option<Gap>>,
    /// Of what the trail keeps, all is written.
    flushed: Cell<bool>,
    kept: RefCell<Vec<Record>>,
}

impl Deref for Tx<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.tx
    }
}

/// What a transaction has changed of the audit log.
pub(super) struct Added {
    before: Head,
    head: Head,
    gap: Option<Gap>,
    flushed: bool,
    kept: Vec<Record>,
}

impl Added {
    /// It is on the disk.
    pub(super) fn settle(self, trail: &mut Trail) {
        (trail.before, trail.head, trail.gap) = (self.before, self.head, self.gap);
        if self.flushed {
            trail.kept.clear();
        }
        let room = MAX_KEPT.saturating_sub(trail.kept.len());
        trail.kept.extend(self.kept.into_iter().take(room));
    }
}

impl<'a> Tx<'a> {
    pub(super) fn new(tx: Transaction<'a>, trail: &'a Trail) -> Self {
        let (before, head, gap) = (Cell::new(trail.before), Cell::new(trail.head), Cell::new(trail.gap));
        Self { tx, trail, before, head, gap, flushed: Cell::new(false), kept: RefCell::default() }
    }

    /// Writes the transaction, its audit records included.
    pub(super) fn commit(self) -> rusqlite::Result<Added> {
        self.tx.commit()?;
        Ok(Added {
            before: self.before.get(),
            head: self.head.get(),
            gap: self.gap.get(),
            flushed: self.flushed.get(),
            kept: self.kept.into_inner(),
        })
    }

    /// Records what this transaction decides. It is in the log exactly where the decision is in the store.
    ///
    /// # Errors
    /// [`StoreError::AuditStopped`] for what grants something while there is no room: the transaction is to fail with it.
    /// What ends something never fails for want of room; its record is then kept in memory, and the log itself says that
    /// something is missing from there on.
    pub(crate) fn audit(&self, entry: Entry) -> Result<(), StoreError> {
        let class = entry.event.class();
        if class == Class::Grant
            && let Some(none) = self.trail.no_grants()
        {
            return Err(none);
        }
        let cause = &self.trail.cause;
        let role = match &cause.who {
            Some(key) => identities::find(self, key)?.and_then(|entry| entry.role),
            None => None,
        };
        let record = entry.record(cause, role);
        match (self.has_room(class) && self.gap.get().is_none(), class) {
            (true, _) => self.append(record),
            (false, Class::Grant) if cfg!(feature = "danger-grant-unrecorded") => Ok(()),
            (false, Class::Grant) => Err(StoreError::AuditStopped(FULL)),
            (false, Class::End) => self.keep(record),
            (false, Class::Note | Class::Word) => Ok(()),
        }
    }

    fn has_room(&self, class: Class) -> bool {
        self.trail.has_room(self.before.get(), self.head.get(), class)
    }

    /// Keeps a record in memory, and counts it on the disk. The first is preceded by one in the log, which always has room
    /// for that one more: whoever reads the log sees that it has a gap, also where this process never gets to close it.
    fn keep(&self, record: Record) -> Result<(), StoreError> {
        let gap = match self.gap.get() {
            Some(gap) => gap,
            None => {
                let now = Cause { unix_ms: self.trail.cause.unix_ms, ..Cause::default() };
                let full = Entry::new(Event::AuditFull).detail("what follows is missing until audit-resumed");
                self.append(full.record(&now, None))?;
                Gap { since_unix_ms: now.unix_ms, records: 0 }
            }
        };
        let gap = Gap { records: gap.records + 1, ..gap };
        self.prepare_cached("INSERT OR REPLACE INTO audit_gap (only, since_unix_ms, records) VALUES (1, ?1, ?2)")?
            .execute(params![gap.since_unix_ms, gap.records])?;
        self.gap.set(Some(gap));
        self.kept.borrow_mut().push(record);
        Ok(())
    }

    /// Where there is room again, writes what memory kept, and that there was none.
    pub(crate) fn close_gap(&self, unix_ms: u64) -> Result<(), StoreError> {
        let Some(gap) = self.gap.get().filter(|_| self.has_room(Class::End)) else { return Ok(()) };
        let kept = self.trail.kept.len() as u64;
        self.trail.kept.iter().try_for_each(|record| self.append(record.clone()))?;
        let (since, lost) = (gap.since_unix_ms, gap.records.saturating_sub(kept));
        let detail =
            format!("no room since {since} (unix ms): {kept} records kept in memory and written now, {lost} lost");
        let now = Cause { unix_ms, ..Cause::default() };
        self.append(Entry::new(Event::AuditResumed).detail(detail).record(&now, None))?;
        self.execute("DELETE FROM audit_gap", [])?;
        self.gap.set(None);
        self.flushed.set(true);
        Ok(())
    }

    /// Forgets the records up to this one, and the checkpoints before it. Says how many.
    pub(crate) fn forget(&self, to: Head) -> Result<usize, StoreError> {
        self.prepare_cached("DELETE FROM checkpoints WHERE seq < ?1")?.execute([to.seq])?;
        let forgotten = self.prepare_cached("DELETE FROM audit WHERE seq <= ?1")?.execute([to.seq])?;
        self.before.set(to);
        Ok(forgotten)
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
