//! Files that get the audit log as it grows: all of it as JSON lines, or its signed heads for a witness.
//!
//! Each has a thread, so that no decision waits for its disk. What could not be written is tried again until it can be;
//! nothing is left out in between. What was written is on the disk a second later at the latest.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use overbank_fabric::audit::Line;
use rusqlite::Connection;

use crate::store::{StoreError, audit as rows};

/// Lines on their way to a file.
const QUEUE: usize = 4096;
/// Lines handed over in one go.
const BATCH: u32 = 512;
/// A line that could not be written is tried again after this long.
const AGAIN: Duration = Duration::from_millis(200);
/// A line is on the disk after this long, where the disk takes it.
const SYNC: Duration = Duration::from_secs(1);
/// And where so many bytes are not there yet.
const UNSYNCED: usize = 1 << 20;
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
    /// Neither a pipe nor a device.
    is_file: bool,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

/// What a file's thread says of it.
#[derive(Default)]
struct State {
    failed: AtomicBool,
    /// The last record of which the disk has said that it has it.
    on_disk: AtomicU64,
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
        let is_file = file.metadata().map_err(failed)?.is_file();
        if is_file {
            (sent, signed) = match last_line(&mut file).map_err(failed)? {
                None => (0, 0),
                Some(text) => resume(&text, kind, db).map_err(|error| match error {
                    Resume::Store(error) => OutletError::Store(error),
                    Resume::Foreign(why) => OutletError::Foreign { path: path.to_owned(), why },
                })?,
            };
        }
        let length = file.metadata().map_err(failed)?.len();
        let state = Arc::new(State::default());
        // A process before this one may have died before it knew.
        match file.sync_data() {
            Ok(()) => state.on_disk.store(sent, Ordering::Relaxed),
            Err(error) if has_no_disk(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        let writer = Writer::new(path, file, length, sent, Arc::clone(&state));
        let (lines, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit-file".to_owned()).spawn(move || writer.run(&queue, kind));
        let thread = Some(thread.map_err(failed)?);
        Ok(Self { kind, lines: Some(lines), sent, signed, lags: false, is_file, state, thread })
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
                // Signed when later records were in the file already: it would stand out of its order there.
                Some(it) if self.kind == Kind::Export && it.seq < self.sent => self.signed = it.seq,
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

    /// To which record it has the log on a disk; none: it is nothing that keeps it.
    pub(crate) fn on_disk(&self) -> Option<u64> {
        let keeps = self.kind == Kind::Export && self.is_file;
        keeps.then(|| self.state.on_disk.load(Ordering::Relaxed))
    }

    /// Why nothing may be granted as long as this file is as it is.
    pub(crate) fn why_stopped(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Witness => None,
            Kind::Export if self.state.failed.load(Ordering::Relaxed) => {
                Some("the audit file cannot be written: see the auth daemon's log")
            }
            Kind::Export if self.lags => Some("the audit file lags behind: try again in a moment"),
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

/// Whether it cannot be synchronised at all, as a pipe or a device cannot.
fn has_no_disk(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP))
}

/// What is written to.
trait Disk {
    /// Adds bytes at the end; how many of these.
    fn add(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Has all that was added on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts off what is beyond this length. How long it is then.
    fn cut(&mut self, to: u64) -> io::Result<u64>;
}

impl Disk for File {
    fn add(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, to: u64) -> io::Result<u64> {
        let length = self.metadata()?.len();
        if length > to {
            self.set_len(to)?;
        }
        Ok(length.min(to))
    }
}

/// Writes lines, each until it is written, and all of them until they are on the disk.
struct Writer<D> {
    path: PathBuf,
    disk: D,
    state: Arc<State>,
    /// Said that it cannot be written.
    said: bool,
    /// Bytes that are on the disk.
    length: u64,
    /// Those that follow, and since when there are any.
    unsynced: Vec<u8>,
    since: Option<Instant>,
    /// The last record written.
    last: u64,
}

impl<D: Disk> Writer<D> {
    fn new(path: &Path, disk: D, length: u64, last: u64, state: Arc<State>) -> Self {
        let (said, unsynced, since) = (false, Vec::new(), None);
        Self { path: path.to_owned(), disk, state, said, length, unsynced, since, last }
    }

    fn run(mut self, queue: &Receiver<Line>, kind: Kind) {
        loop {
            let wait = self.since.map_or(Duration::from_secs(3600), |since| SYNC.saturating_sub(since.elapsed()));
            match queue.recv_timeout(wait) {
                Ok(line) => {
                    self.line(&line);
                    if kind == Kind::Witness || self.unsynced.len() >= UNSYNCED {
                        self.sync();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if self.since.is_some() => return self.sync(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.since.is_some_and(|since| since.elapsed() >= SYNC) {
                self.sync();
            }
        }
    }

    fn line(&mut self, line: &Line) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        self.write(&text);
        self.unsynced.extend(text);
        self.since.get_or_insert_with(Instant::now);
        self.last = match line {
            Line::Record(hashed) => hashed.record.seq,
            Line::Checkpoint(checkpoint) => checkpoint.seq,
        };
    }

    /// Writes bytes, however long that takes.
    fn write(&mut self, text: &[u8]) {
        let mut done = 0;
        while done < text.len() {
            match self.disk.add(&text[done..]) {
                Ok(0) => std::thread::sleep(AGAIN),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.failed(&error),
            }
        }
        // Whether the disk has it is known when it is synchronised.
        if self.since.is_none() {
            self.good();
        }
    }

    /// Has all of it on the disk, however long that takes. Where that fails the system may have dropped what it could not
    /// write, and says so once: all since the last time that it went well is written again.
    fn sync(&mut self) {
        loop {
            match self.disk.sync() {
                Ok(()) => {
                    self.length += self.unsynced.len() as u64;
                    self.unsynced.clear();
                    self.state.on_disk.store(self.last, Ordering::Relaxed);
                    break;
                }
                Err(error) if has_no_disk(&error) => {
                    self.unsynced.clear();
                    break;
                }
                Err(error) => {
                    self.failed(&error);
                    match self.disk.cut(self.length) {
                        Ok(length) => self.length = length,
                        Err(error) => {
                            self.failed(&error);
                            continue;
                        }
                    }
                    let again = std::mem::take(&mut self.unsynced);
                    self.write(&again);
                    self.unsynced = again;
                }
            }
        }
        self.since = None;
        self.good();
    }

    fn failed(&mut self, error: &io::Error) {
        if !self.said {
            tracing::error!(path = %self.path.display(), %error, "an audit file cannot be written; tried again");
        }
        self.said = true;
        self.state.failed.store(true, Ordering::Relaxed);
        std::thread::sleep(AGAIN);
    }

    fn good(&mut self) {
        if std::mem::take(&mut self.said) {
            tracing::warn!(path = %self.path.display(), "an audit file can be written again");
        }
        self.state.failed.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use overbank_fabric::audit::{Checkpoint, Hash};
    use overbank_fabric::identity::Identity;

    use super::*;

    /// A disk that loses what it could not synchronise, as a system's page cache does, and says so once.
    #[derive(Default)]
    struct Faulty {
        on_disk: Vec<u8>,
        cached: Vec<u8>,
        fails: VecDeque<i32>,
    }

    impl Disk for &mut Faulty {
        fn add(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let some = bytes.len().min(10);
            self.cached.extend(&bytes[..some]);
            Ok(some)
        }

        fn sync(&mut self) -> io::Result<()> {
            let cached = std::mem::take(&mut self.cached);
            if let Some(error) = self.fails.pop_front() {
                self.on_disk.resize(self.on_disk.len() + cached.len(), 0);
                return Err(io::Error::from_raw_os_error(error));
            }
            self.on_disk.extend(cached);
            Ok(())
        }

        fn cut(&mut self, to: u64) -> io::Result<u64> {
            self.on_disk.truncate(usize::try_from(to).expect("a length"));
            Ok(self.on_disk.len() as u64)
        }
    }

    fn line(seq: u64) -> Line {
        Line::Checkpoint(Checkpoint::new(seq, Hash::genesis(), 0, &Identity::generate()))
    }

    #[test]
    fn what_a_disk_failed_to_take_is_written_again() {
        let lines: Vec<Line> = (1..=3).map(line).collect();
        let mut disk = Faulty { fails: VecDeque::from([libc::EIO, libc::ENOSPC]), ..Faulty::default() };
        let state = Arc::new(State::default());
        let mut writer = Writer::new(Path::new("x"), &mut disk, 0, 0, Arc::clone(&state));
        writer.line(&lines[0]);
        writer.line(&lines[1]);
        assert_eq!(state.on_disk.load(Ordering::Relaxed), 0, "written is not on the disk");
        writer.sync();
        assert_eq!(state.on_disk.load(Ordering::Relaxed), 2);
        writer.line(&lines[2]);
        writer.sync();
        assert!(!state.failed.load(Ordering::Relaxed));
        let text = String::from_utf8(disk.on_disk).expect("text");
        let read: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
        assert_eq!(read, lines);
    }

    #[test]
    fn what_has_no_disk_is_never_taken_for_one_that_has() {
        let mut disk = Faulty { fails: VecDeque::from([libc::EINVAL]), ..Faulty::default() };
        let state = Arc::new(State::default());
        let mut writer = Writer::new(Path::new("x"), &mut disk, 0, 0, Arc::clone(&state));
        writer.line(&line(7));
        writer.sync();
        assert_eq!(state.on_disk.load(Ordering::Relaxed), 0);
        assert!(!state.failed.load(Ordering::Relaxed));
    }
}
