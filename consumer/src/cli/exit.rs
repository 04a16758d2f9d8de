//! How the command ends: one status for each kind of failure.

use std::fmt;
use std::io;
use std::path::PathBuf;

use overbank::audit::AuditError;
use overbank::{Error, ErrorKind, ReceiptError};
use overbank_verbs::SelfTestError;
use serde_json::{Value, json};

/// The table that `--help` shows.
pub(crate) const STATUSES: &str = "\
Exit statuses:
   0  done
   1  another failure
   2  the command line or a request makes no sense
   3  the auth daemon cannot be reached
   4  not trusted: pending, revoked, not allowed, or a bad invitation
   5  the auth daemon's key has changed
   6  no room: the pool is full or the quota used up
   7  the lease is over: expired, released, revoked, or there is none
   8  the lease is lost: its provider died or is away
   9  contents refused: changed, replayed, moved, erased, torn, of unknown freshness; an audit log or a receipt that does not hold
  10  does not fit: more bytes than the lease has there
  11  the deadline passed
  12  a local file: key, pins or lease file is missing, damaged, in use or open to others
  13  this machine's RDMA device has failed, is down or cannot be used
  14  not done yet: it waits for more operators' approval
 130  interrupted
 `overbank run` ends as its command does, and with 126 or 127 where that cannot be started";

/// Why the command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library said so.
    Library(Error),
    /// The command line makes no sense, in a way that only shows later.
    Usage(String),
    /// A file that is read or written.
    File { doing: &'static str, path: PathBuf, source: io::Error },
    /// A receipt that is not believed, or does not say that memory is clean.
    Receipt(ReceiptError),
    /// More to write than there is room for.
    DoesNotFit(String),
    /// An RDMA device does not do what it should.
    Device { name: String, source: SelfTestError },
    /// The audit log does not hold.
    Log(String),
    /// A signal came.
    Interrupted,
    /// The program that was run ended with that status, and said why itself.
    Program(u8),
    /// The program that should run cannot be started.
    NotStarted { command: String, source: io::Error, status: u8 },
    /// Nobody reads our output any more.
    Closed,
}

impl Failure {
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing, path: path.into(), source }
    }

    pub(crate) fn log(error: AuditError) -> Self {
        Self::Log(format!("the audit log does not hold: {error}"))
    }

    /// The exit status, and its name in JSON.
    pub(crate) fn status(&self) -> (u8, &'static str) {
        match self {
            Self::Library(error) => {
                let name = match error.kind() {
                    ErrorKind::Usage => "usage",
                    ErrorKind::AuthdUnreachable => "authd-unreachable",
                    ErrorKind::NotTrusted => "not-trusted",
                    ErrorKind::AuthdKeyChanged => "authd-key-changed",
                    ErrorKind::NoRoom => "no-room",
                    ErrorKind::LeaseOver => "lease-over",
                    ErrorKind::LeaseLost => "lease-lost",
                    ErrorKind::Contents => "contents-refused",
                    ErrorKind::DoesNotFit => "does-not-fit",
                    ErrorKind::Deadline => "deadline",
                    ErrorKind::Local => "local",
                    ErrorKind::Device => "device",
                    ErrorKind::Proposed => "proposed",
                    _ => "other",
                };
                (error.kind() as u8, name)
            }
            Self::Usage(_) => (2, "usage"),
            Self::Receipt(_) => (9, "contents-refused"),
            Self::Device { .. } => (13, "device"),
            Self::File { .. } | Self::Closed => (1, "other"),
            Self::Log(_) => (9, "contents-refused"),
            Self::DoesNotFit(_) => (10, "does-not-fit"),
            Self::Interrupted => (130, "interrupted"),
            Self::Program(status) => (*status, "program"),
            Self::NotStarted { status, .. } => (*status, "not-started"),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let (status, kind) = self.status();
        json!({ "error": { "kind": kind, "status": status, "message": self.to_string() } })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => error.fmt(f),
            Self::Receipt(error) => error.fmt(f),
            Self::Usage(text) | Self::DoesNotFit(text) | Self::Log(text) => f.write_str(text),
            Self::File { doing, path, source } => write!(f, "cannot {doing} {}: {source}", path.display()),
            Self::Device { name, source } => write!(f, "the device {name} is there and does not work: {source}"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Program(status) => write!(f, "the program ended with status {status}"),
            Self::NotStarted { command, source, .. } => write!(f, "cannot start {command}: {source}"),
            Self::Closed => f.write_str("nobody reads the output any more"),
        }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Library(error.into())
    }
}
