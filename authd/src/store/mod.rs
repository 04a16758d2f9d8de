//! What must outlive the process: identities, invitations, leases and the audit log, in one SQLite file.
//!
//! WAL mode with `synchronous=FULL`: a transaction that returned is on the disk. One connection, one writer.

pub(crate) mod audit;
mod ballast;
mod columns;
pub(crate) mod delegates;
pub(crate) mod identities;
pub(crate) mod leases;
pub(crate) mod proposals;
pub(crate) mod quotas;
pub(crate) mod successions;

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use overbank_fabric::identity::PublicKey;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

pub(crate) use audit::{Trail, Tx};
use ballast::Ballast;

/// Marks the file as ours (SQLite's `application_id`): "OBad".
const APPLICATION_ID: i32 = 0x4f42_6164;
/// Version 1 of the schema.
const SCHEMA: &str = include_str!("schema.sql");
/// Steps to version 2, 3, …: a changed schema gets one more, and none is ever changed.
const UPGRADES: [&str; 7] = [
    delegates::SCHEMA,
    include_str!("audit.sql"),
    include_str!("trust.sql"),
    quotas::SCHEMA,
    include_str!("indexes.sql"),
    audit::GAP,
    identities::AGREED,
];
/// Version of the schema after all of them (SQLite's `user_version`).
const SCHEMA_VERSION: i32 = 1 + UPGRADES.len() as i32;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("{0} does not exist: make a state with `overbank-authd init --state DIR`")]
    Missing(PathBuf),
    /// There is one already.
    #[error("{0} exists already: init never overwrites a state; use another --state DIR")]
    Exists(PathBuf),
    /// Not a database, or a damaged one.
    #[error("{path} is damaged or is no database ({cause}): restore it from a backup, or init a new state")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        cause: String,
    },
    /// A database, but of another program.
    #[error("{0} is a database of another program: give the state that `overbank-authd init` made")]
    Foreign(PathBuf),
    /// Made by a later version.
    #[error(
        "{path} has schema version {found}, this program knows versions to {SCHEMA_VERSION}: use a newer overbank-authd"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// The key file beside it is not the one that it was made with.
    #[error("{path} belongs to the identity {database}, but the key file is {key}: put back the matching pair")]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// Fingerprint in the database.
        database: String,
        /// Fingerprint of the key file.
        key: String,
    },
    /// The file cannot be made or read.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What grants something must be on record, and cannot be.
    #[error("{0}")]
    AuditStopped(&'static str),
    /// A row of the audit log is none.
    #[error("the audit log is damaged ({0}): see `overbank audit verify`")]
    AuditDamaged(String),
    /// Anything else that SQLite says, such as a full disk.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    /// Whether it may be for want of room on the disk.
    fn is_full(&self) -> bool {
        let Self::Sqlite(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure))
    }
}

/// Why a transaction was undone: for a reason of its own, or because the store failed.
pub(crate) trait Undone: From<StoreError> {
    /// How the store failed, if it did.
    fn store(&self) -> Option<&StoreError>;
}

impl Undone for StoreError {
    fn store(&self) -> Option<&StoreError> {
        Some(self)
    }
}

/// When a transaction is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// Once it is committed.
    AtOnce,
    /// Within seconds.
    Soon,
}

/// The database, open.
pub(crate) struct Store {
    connection: Connection,
    /// What the connection is set to.
    durable: Option<Durable>,
    /// None: it is on no disk.
    ballast: Option<Ballast>,
    pub(crate) trail: Trail,
}

impl Store {
    /// Makes an empty database, mode 0600, for this identity of the auth daemon.
    pub(crate) fn create(path: &Path, authd: &PublicKey) -> Result<Self, StoreError> {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists(path.to_owned()),
            _ => StoreError::File { path: path.to_owned(), source },
        })?;
        let connection = connect(path)?;
        Self::lay_out(connection, authd)
    }

    /// One that lives in memory alone.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn in_memory(authd: &PublicKey) -> Self {
        Self::lay_out(Connection::open_in_memory().expect("memory"), authd).expect("a new database")
    }

    /// One that ends with the process, and is on no disk at any time.
    pub(crate) fn amnesiac(authd: &PublicKey) -> Result<Self, StoreError> {
        let connection = Connection::open_in_memory()?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Self::lay_out(connection, authd)
    }

    /// The bytes of a database file, as of one moment; a daemon may be using it.
    pub(crate) fn copy(path: &Path) -> Result<Vec<u8>, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        let from = connect(path)?;
        from.busy_timeout(std::time::Duration::from_secs(5))?;
        let mut to = Connection::open_in_memory()?;
        rusqlite::backup::Backup::new(&from, &mut to)?.run_to_completion(
            i32::MAX,
            std::time::Duration::from_millis(5),
            None,
        )?;
        Ok(to.serialize("main")?.to_vec())
    }

    fn lay_out(mut connection: Connection, authd: &PublicKey) -> Result<Self, StoreError> {
        prepare(&connection)?;
        let tx = connection.transaction()?;
        tx.execute_batch(SCHEMA)?;
        UPGRADES.iter().try_for_each(|step| tx.execute_batch(step))?;
        tx.execute("INSERT INTO meta (key, value) VALUES ('authd', ?1)", [&authd.0])?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tx.commit()?;
        let trail = Trail::of(&connection)?;
        Ok(Self { connection, durable: None, ballast: None, trail })
    }

    /// Opens the database that [`Store::create`] made for this identity.
    pub(crate) fn open(path: &Path, authd: &PublicKey) -> Result<Self, StoreError> {
        let corrupt = |cause: String| StoreError::Corrupt { path: path.to_owned(), cause };
        match std::fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(path.to_owned())),
            Err(source) => return Err(StoreError::File { path: path.to_owned(), source }),
        }
        let mut connection = connect(path)?;
        let damaged = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                corrupt(error.to_string())
            }
            _ => StoreError::Sqlite(error),
        };
        let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0)).map_err(damaged);
        if number("application_id")? != APPLICATION_ID {
            return Err(StoreError::Foreign(path.to_owned()));
        }
        let found = number("user_version")?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer { path: path.to_owned(), found });
        }
        if found < 1 {
            return Err(corrupt(format!("schema version {found} was never in use")));
        }
        prepare(&connection).map_err(damaged)?;
        let verdict: String =
            connection.pragma_query_value(None, "integrity_check", |row| row.get(0)).map_err(damaged)?;
        if verdict != "ok" {
            return Err(corrupt(verdict));
        }
        let database: Option<[u8; 32]> = connection
            .query_row("SELECT value FROM meta WHERE key = 'authd'", [], |row| row.get(0))
            .optional()
            .map_err(damaged)?;
        match database.map(PublicKey) {
            Some(key) if key == *authd => {
                upgrade(&mut connection, found)?;
                let mut trail = Trail::of(&connection)?;
                let ballast = Ballast::new(path.with_extension("ballast"));
                trail.disk_full = !ballast.is_there();
                Ok(Self { connection, durable: None, ballast: Some(ballast), trail })
            }
            Some(key) => Err(StoreError::OtherIdentity {
                path: path.to_owned(),
                database: key.fingerprint().to_string(),
                key: authd.fingerprint().to_string(),
            }),
            None => Err(corrupt("it does not say whose it is".to_owned())),
        }
    }

    /// Reads outside a transaction: the one connection sees every commit.
    pub(crate) fn read(&self) -> &Connection {
        &self.connection
    }

    /// Does `work` as one transaction: on the disk when this returns `Ok`, undone otherwise. Where the disk is full, what is
    /// kept back of it makes way, and `work` is tried again: it then grants nothing.
    pub(crate) fn write<T, E: Undone>(&mut self, work: impl Fn(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        self.transact(Durable::AtOnce, work)
    }

    /// As [`Store::write`], but lost where the machine, not the process alone, dies within seconds. For what is no
    /// decision and what strangers can cause: it waits for no disk.
    pub(crate) fn note<T, E: Undone>(&mut self, work: impl Fn(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        self.transact(Durable::Soon, work)
    }

    fn transact<T, E: Undone>(&mut self, durable: Durable, work: impl Fn(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        match self.attempt(durable, &work) {
            Err(undone) if undone.store().is_some_and(StoreError::is_full) && self.make_way() => {
                self.attempt(durable, &work)
            }
            outcome => outcome,
        }
    }

    fn attempt<T, E: Undone>(&mut self, durable: Durable, work: impl Fn(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        self.set(durable)?;
        let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let tx = Tx::new(begun.map_err(StoreError::Sqlite)?, &self.trail);
        let done = work(&tx)?;
        let added = tx.commit().map_err(StoreError::Sqlite)?;
        added.settle(&mut self.trail);
        Ok(done)
    }

    /// Nothing is begun at all where this fails.
    fn set(&mut self, durable: Durable) -> Result<(), StoreError> {
        if self.durable.replace(durable) != Some(durable) {
            let how = if durable == Durable::AtOnce { "FULL" } else { "NORMAL" };
            let set = self.connection.pragma_update(None, "synchronous", how);
            set.inspect_err(|_| self.durable = None)?;
        }
        Ok(())
    }

    /// Has what is kept back of the disk make way. Whether there is more room by that.
    fn make_way(&mut self) -> bool {
        let made = self.ballast.as_mut().is_some_and(Ballast::make_way);
        if made {
            tracing::error!("the disk of the state is full: nothing is granted, what ends things goes on");
            self.trail.disk_full = true;
        }
        made
    }

    /// Keeps part of the disk back again, once there is room: then things are granted again.
    pub(crate) fn look_at_disk(&mut self) {
        if self.trail.disk_full && self.ballast.as_mut().is_none_or(Ballast::look_again) {
            tracing::warn!("the disk of the state has room again");
            self.trail.disk_full = false;
        }
    }
}

/// Brings a database of version `found` to this one's, in one go.
fn upgrade(connection: &mut Connection, found: i32) -> Result<(), StoreError> {
    let done = usize::try_from(found - 1).unwrap_or(0);
    if done < UPGRADES.len() {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        UPGRADES[done..].iter().try_for_each(|step| tx.execute_batch(step))?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tx.commit()?;
        tracing::info!(from = found, to = SCHEMA_VERSION, "the database is upgraded");
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::CannotOpen) => {
            StoreError::File { path: path.to_owned(), source: io::Error::other(error.to_string()) }
        }
        _ => StoreError::Sqlite(error),
    })
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.busy_timeout(std::time::Duration::from_secs(1))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `status` comes from everybody, on the one thread of the decisions: it must not look at every identity and every lease
    /// that ever was.
    #[test]
    fn what_everybody_may_ask_for_is_found_by_an_index() {
        let me = PublicKey([1; 32]);
        let store = Store::in_memory(&me);
        let asked = [
            identities::providers_sql(),
            identities::DRAINED.to_owned(),
            leases::active_sql(Some(&me)),
            leases::active_sql(None),
        ];
        for sql in asked {
            let mut plan = store.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a query");
            let steps = plan.raw_query().mapped(|row| row.get::<_, String>(3)).collect::<Result<Vec<_>, _>>();
            let steps = steps.expect("a plan");
            assert!(!steps.is_empty() && steps.iter().all(|step| step.contains("USING")), "{sql}: {steps:?}");
        }
    }

    #[test]
    fn a_decision_is_on_the_disk_at_once_whatever_was_noted_before() {
        let mut store = Store::in_memory(&PublicKey([1; 32]));
        let how = |tx: &Tx<'_>| Ok::<i64, StoreError>(tx.pragma_query_value(None, "synchronous", |row| row.get(0))?);
        for _ in 0..2 {
            assert_eq!(store.note(how).expect("noted"), 1);
            assert_eq!(store.write(how).expect("decided"), 2);
        }
        // Also after a note that failed.
        let failed: Result<(), StoreError> = store.note(|_| Err(StoreError::AuditStopped("for the test")));
        assert!(failed.is_err());
        assert_eq!(store.write(how).expect("decided"), 2);
    }
}
