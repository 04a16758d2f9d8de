//! Files that get the audit log as it grows: all of it as JSON lines, or its signed heads for a witness.
//!
//! Each has a thread, so that no decision waits for its disk. What could not be written is tried again until it can be;
//! nothing is left out in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use overbank_fabric::audit::Line;
use rusqlite::Connection;

use crate::store::{StoreError, audit as rows};

/// Lines on their way to a file.
const QUEUE: usize = 4096;
/// Lines handed over in one go.
const BATCH: u32 = 512;
/// A line that could not be written is tried again after this long.
const AGAIN: Duration = Duration::from_millis(200);
/// What is still to be written at the end has this long.
const LAST: Duration = Duration::from_secs(1);
/// A line is never longer.
const LONGEST: u64 = 64 << 10;

/// What a file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every line. Where it cannot be written, nothing is granted.
    Export,
    /// Checkpoints alone. Where it cannot be written, that is said and tried again.
    Witness,
}

/// A file, and how far it is.
pub(crate) struct Outlet {
    kind: Kind,
    lines: Option<SyncSender<Line>>,
    /// The last record handed over.
    sent: u64,
    /// The last checkpoint handed over.
    signed: u64,
    lags: bool,
    failed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// It cannot be opened or read.
    #[error("cannot use {} for the audit log", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has lines of something else.
    #[error("{} is not this auth daemon's audit log ({why}): name another file, or move it away", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Outlet {
    /// Opens a file for appending, mode 0600, and finds how far it is. A pipe or a device begins with what comes next.
    pub(crate) fn open(path: &Path, kind: Kind, db: &Connection, head: u64) -> Result<Self, OutletError> {
        let failed = |source| OutletError::Io { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let (mut sent, mut signed) = (head, head);
        if file.metadata().map_err(failed)?.is_file() {
            (sent, signed) = match last_line(&mut file).map_err(failed)? {
                None => (0, 0),
                Some(text) => resume(&text, kind, db).map_err(|error| match error {
                    Resume::Store(error) => OutletError::Store(error),
                    Resume::Foreign(why) => OutletError::Foreign { path: path.to_owned(), why },
                })?,
            };
        }
        let (lines, queue) = sync_channel(QUEUE);
        let flag = Arc::new(AtomicBool::new(false));
        let writer = Writer { path: path.to_owned(), file, failed: Arc::clone(&flag), syncs: kind };
        let thread = std::thread::Builder::new().name("audit-file".to_owned()).spawn(move || writer.run(&queue));
        let thread = Some(thread.map_err(failed)?);
        Ok(Self { kind, lines: Some(lines), sent, signed, lags: false, failed: flag, thread })
    }

    /// Hands over what the log has beyond what was handed over, as far as the queue takes it.
    pub(crate) fn feed(&mut self, db: &Connection, head: u64) -> Result<(), StoreError> {
        loop {
            let checkpoint = rows::checkpoint_from(db, self.signed + 1)?.filter(|it| it.seq <= head);
            if self.kind == Kind::Witness {
                self.sent = head;
            }
            // A checkpoint that stands for records that were archived comes before all that is left.
            let first = rows::first_seq(db)?.unwrap_or(head + 1);
            match checkpoint {
                Some(it) if it.seq <= self.sent || it.seq < first => {
                    let seq = it.seq;
                    if !self.offer(Line::Checkpoint(it)) {
                        return Ok(());
                    }
                    (self.signed, self.sent) = (seq, self.sent.max(seq));
                }
                _ if self.sent >= head => {
                    self.lags = false;
                    return Ok(());
                }
                next => {
                    let until = next.map_or(head, |it| it.seq);
                    let most = u32::try_from(until.saturating_sub(self.sent)).unwrap_or(BATCH).min(BATCH);
                    let before = self.sent;
                    let mut full = false;
                    rows::scan(db, before + 1, most, |hashed| {
                        let seq = hashed.record.seq;
                        full = seq > until || !self.offer(Line::Record(Box::new(hashed)));
                        if full {
                            return std::ops::ControlFlow::Break(());
                        }
                        self.sent = seq;
                        std::ops::ControlFlow::Continue(())
                    })?;
                    if full || self.sent == before {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn offer(&mut self, line: Line) -> bool {
        let Some(lines) = &self.lines else { return false };
        match lines.try_send(line) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lags = true;
                false
            }
        }
    }

    /// Whether it was handed all that it is to have, to this record.
    pub(crate) fn has(&self, seq: u64) -> bool {
        self.kind == Kind::Witness || self.sent >= seq
    }

    /// Why nothing may be granted as long as this file is as it is.
    pub(crate) fn why_stopped(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Witness => None,
            Kind::Export if self.failed.load(Ordering::Relaxed) => Some("the audit file cannot be written"),
            Kind::Export if self.lags => Some("the audit file lags behind"),
            Kind::Export => None,
        }
    }

    /// Lets the last lines out.
    pub(crate) fn close(mut self) {
        self.lines = None;
        let until = Instant::now() + LAST;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !thread.is_finished() {
                tracing::error!("an audit file does not have the end of the log yet; it is written at the next start");
            }
        }
    }
}

/// Why a file is not gone on with.
enum Resume {
    Store(StoreError),
    Foreign(String),
}

/// How far a file is that ends with this line.
fn resume(text: &str, kind: Kind, db: &Connection) -> Result<(u64, u64), Resume> {
    let line: Line =
        serde_json::from_str(text).map_err(|_| Resume::Foreign("its last line is none of a log".into()))?;
    let (seq, hash) = match &line {
        Line::Record(it) => (it.record.seq, it.hash),
        Line::Checkpoint(it) => (it.seq, it.hash),
    };
    let mut ours = None;
    rows::scan(db, seq.max(1), 1, |hashed| {
        ours = Some(hashed);
        std::ops::ControlFlow::Break(())
    })
    .map_err(Resume::Store)?;
    match ours {
        // Archived by now.
        Some(it) if it.record.seq > seq => {}
        Some(it) if it.hash == hash => {}
        Some(_) => return Err(Resume::Foreign(format!("its record {seq} is another"))),
        None if seq == 0 => {}
        None => return Err(Resume::Foreign(format!("it has record {seq}, which this log does not have"))),
    }
    let signed = match (kind, &line) {
        (_, Line::Checkpoint(_)) => seq,
        (Kind::Witness, Line::Record(_)) => return Err(Resume::Foreign("it has records, not heads".into())),
        (Kind::Export, Line::Record(_)) => seq.saturating_sub(1),
    };
    Ok((seq, signed))
}

/// The last whole line of a file; what follows it, cut off by a crash, is removed.
fn last_line(file: &mut File) -> io::Result<Option<String>> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(2 * LONGEST);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(2 * LONGEST).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        file.set_len(from + whole as u64)?;
    }
    let text = String::from_utf8_lossy(&tail[..whole]);
    Ok(text.trim_end().lines().next_back().map(str::to_owned))
}

/// Writes lines, each until it is written.
struct Writer {
    path: PathBuf,
    file: File,
    failed: Arc<AtomicBool>,
    syncs: Kind,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Line>) {
        loop {
            let line = match queue.recv_timeout(Duration::from_secs(3600)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let sync = matches!(line, Line::Checkpoint(_)) || self.syncs == Kind::Witness;
            let Ok(mut text) = serde_json::to_vec(&line) else { continue };
            text.push(b'\n');
            self.write(&text, sync);
        }
    }

    /// Writes one line, however long that takes.
    fn write(&mut self, text: &[u8], sync: bool) {
        let mut done = 0;
        let mut said = false;
        loop {
            match self.file.write(&text[done..]) {
                Ok(0) => std::thread::sleep(AGAIN),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    if !said {
                        tracing::error!(path = %self.path.display(), %error, "an audit file cannot be written; tried again");
                        said = true;
                    }
                    self.failed.store(true, Ordering::Relaxed);
                    std::thread::sleep(AGAIN);
                    continue;
                }
            }
            if done == text.len() {
                break;
            }
        }
        if sync && let Err(error) = self.file.sync_data() {
            // Pipes and some devices cannot.
            tracing::debug!(path = %self.path.display(), %error, "an audit file is not synchronised");
        }
        if said {
            tracing::warn!(path = %self.path.display(), "an audit file can be written again");
        }
        self.failed.store(false, Ordering::Relaxed);
    }
}
