//! `put` and `get`: files to and from a lease.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use overbank::{AttachOptions, DataError, Error, Lease, OnUnknown, Size, show_duration};
use serde_json::json;

use super::exit::Failure;
use super::interrupt::Interrupt;
use super::lease::{LeaseName, ms};
use super::{Context, some_size, some_time};

/// Bytes that one call of the library moves: enough to keep the wire full, little enough to stop soon.
const CHUNK: usize = 4 << 20;

/// Write a file to a lease.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  overbank put 3fa9 results.bin               from the lease's beginning
  overbank put 3fa9@1MiB results.bin          from offset 1 MiB on
  tar c dir | overbank put 3fa9 -             standard input, read to its end before anything is written
  tar c dir | overbank put 3fa9 - --len 2GiB  exactly that many bytes of it, written as they come")]
pub(crate) struct Put {
    /// The lease, or the first digits of it, and the offset to begin at
    #[arg(value_name = "LEASE[@OFFSET]")]
    target: Target,
    /// The file, or '-' for standard input
    file: PathBuf,
    /// Write exactly this many bytes
    #[arg(long, value_name = "SIZE", value_parser = some_size)]
    len: Option<u64>,
    #[command(flatten)]
    path: PathArgs,
}

/// Read from a lease into a file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  overbank get 3fa9 results.bin               all of it
  overbank get 3fa9@1MiB part.bin --len 4KiB  4 KiB from offset 1 MiB on
  overbank get 3fa9 - --len 2GiB | tar x      to standard output
The file appears whole or not at all. Bytes that were never written are zeros.")]
pub(crate) struct Get {
    /// The lease, or the first digits of it, and the offset to begin at
    #[arg(value_name = "LEASE[@OFFSET]")]
    target: Target,
    /// The file, or '-' for standard output
    file: PathBuf,
    /// How many bytes [default: all to the lease's end]
    #[arg(long, value_name = "SIZE", value_parser = some_size)]
    len: Option<u64>,
    /// Also return blocks that may be older than the last ones written, after a process that wrote them died
    #[arg(long)]
    accept_unknown_freshness: bool,
    #[command(flatten)]
    path: PathArgs,
}

/// The way to the memory.
#[derive(Debug, Args)]
struct PathArgs {
    /// auto, soft, or the name of an RDMA device
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Our address as the provider is to see it [default: the one from which we reach the auth daemon]
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// How long each 4 MiB of the transfer may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = some_time)]
    deadline: Duration,
}

impl PathArgs {
    fn options(&self, on_unknown: Option<OnUnknown>) -> AttachOptions {
        AttachOptions {
            device: self.device.clone(),
            address: self.address,
            deadline: self.deadline,
            on_unknown,
            ..AttachOptions::default()
        }
    }
}

/// LEASE[@OFFSET].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    lease: LeaseName,
    /// None: where what we have of the lease begins.
    offset: Option<u64>,
}

impl std::str::FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (lease, offset) = match text.split_once('@') {
            None => (text, None),
            Some((lease, offset)) => {
                let offset: Size = offset.parse().map_err(|error| format!("the offset: {error}"))?;
                (lease, Some(offset.0))
            }
        };
        Ok(Self { lease: lease.parse()?, offset })
    }
}

impl Put {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let source = Source::open(&self.file, self.len)?;
        let client = context.connect()?;
        let mut lease = client.open_lease(self.target.lease.resolve(&client)?)?;
        let reach = lease.reach();
        let offset = self.target.offset.unwrap_or(reach.start);
        if offset < reach.start {
            return Err(Error::from(DataError::Range { offset, len: 0, first: reach.start, end: reach.end }).into());
        }
        let room = reach.end.saturating_sub(offset);
        let (mut reader, len) = source.measure(room)?;
        let name = if is_dash(&self.file) { "standard input".to_owned() } else { self.file.display().to_string() };
        if len > room || offset > reach.end {
            let more = if len > room && matches!(reader, Reader::Memory(_)) { " or more" } else { "" };
            return Err(Failure::DoesNotFit(format!(
                "{name} has {}{more}, and lease {} has room for {} from offset {} on: nothing was written",
                Size(len),
                lease.id(),
                Size(room),
                offset
            )));
        }
        let interrupt = Interrupt::watch()?;
        let started = Instant::now();
        lease.attach(&self.path.options(None))?;
        notice_unknown(context, &lease);
        let device = lease.device().unwrap_or_default();
        let bar = context.output.progress("put", len);
        let moved = copy(len, |done, buffer| {
            reader.fill(buffer, &interrupt, &name)?;
            lease.write(offset + done, buffer)?;
            bar.inc(buffer.len() as u64);
            Ok(())
        });
        bar.finish_and_clear();
        let id = lease.id().to_string();
        // What was written is to be known later, even where not all of it was.
        let closed = lease.close();
        moved?;
        closed?;
        let text = report("wrote", "to", len, &id, offset, started.elapsed(), &device);
        let answer =
            json!({ "lease": id, "offset": offset, "bytes": len, "ms": ms(started.elapsed()), "device": device });
        context.output.answer(&text, &answer)
    }
}

impl Get {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let to_stdout = is_dash(&self.file);
        if to_stdout && context.output.json {
            let text = "--json and '-' both want standard output: leave one out";
            return Err(Failure::Usage(text.to_owned()));
        }
        let client = context.connect()?;
        let mut lease = client.open_lease(self.target.lease.resolve(&client)?)?;
        let (bytes, reach) = (lease.bytes(), lease.reach());
        let offset = self.target.offset.unwrap_or(reach.start);
        let len = self.len.unwrap_or(reach.end.saturating_sub(offset));
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > bytes) {
            return Err(Error::DoesNotFit { offset, len, bytes }.into());
        }
        if offset < reach.start || offset + len > reach.end {
            return Err(Error::from(DataError::Range { offset, len, first: reach.start, end: reach.end }).into());
        }
        let interrupt = Interrupt::watch()?;
        let started = Instant::now();
        let unknown = self.accept_unknown_freshness.then_some(OnUnknown::Accept);
        lease.attach(&self.path.options(unknown))?;
        notice_unknown(context, &lease);
        let device = lease.device().unwrap_or_default();
        let mut sink = Sink::open(&self.file)?;
        let bar = context.output.progress("get", len);
        let moved = copy(len, |done, buffer| {
            interrupt.check()?;
            lease.read(offset + done, buffer)?;
            sink.write(buffer)?;
            bar.inc(buffer.len() as u64);
            Ok(())
        });
        bar.finish_and_clear();
        let id = lease.id().to_string();
        let closed = lease.close();
        moved?;
        closed?;
        sink.finish()?;
        if to_stdout {
            return Ok(());
        }
        let text = report("read", "from", len, &id, offset, started.elapsed(), &device);
        let file = self.file.display().to_string();
        let answer = json!({ "lease": id, "offset": offset, "bytes": len, "ms": ms(started.elapsed()), "file": file, "device": device });
        context.output.answer(&text, &answer)
    }
}

/// Moves `len` bytes, a chunk at a time; `step` gets how many were moved before, and the chunk.
fn copy(len: u64, mut step: impl FnMut(u64, &mut [u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    let mut done = 0;
    while done < len {
        let now = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
        step(done, &mut buffer[..now])?;
        done += now as u64;
    }
    Ok(())
}

fn report(did: &str, whither: &str, len: u64, lease: &str, offset: u64, took: Duration, device: &str) -> String {
    let rate = len as f64 / took.as_secs_f64().max(1e-6) / f64::from(1 << 20);
    let took = show_duration(took);
    format!("{did} {} {whither} lease {lease} at offset {offset} in {took}, {rate:.1} MiB/s\n{device}", Size(len))
}

fn notice_unknown(context: &Context, lease: &Lease) {
    if lease.is_shared() {
        context.output.notice(
            "freshness unknown: the lease is shared, so nobody here knows what was written to it last. What comes back was \
             sealed for its place by somebody who has its key, and may be older than the latest",
        );
    } else if !lease.freshness_is_known() {
        context.output.notice(
            "the last process that wrote to this lease ended without saying what it wrote. A block written before that can \
             be read again only once it has been written anew, or with `get --accept-unknown-freshness`",
        );
    }
}

fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What is to be put.
struct Source {
    reader: Reader,
    name: PathBuf,
    /// Known before it is read.
    len: Option<u64>,
}

enum Reader {
    Stream(File),
    Memory(io::Cursor<Vec<u8>>),
}

/// How long it takes at most to notice a signal while no input comes.
const PATIENCE_MS: u16 = 100;

impl Source {
    fn open(path: &Path, len: Option<u64>) -> Result<Self, Failure> {
        if is_dash(path) {
            let name = PathBuf::from("standard input");
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(Failure::file("open", &name))?;
            return Ok(Self { reader: Reader::Stream(File::from(stdin)), name, len });
        }
        let file = File::open(path).map_err(Failure::file("open", path))?;
        let metadata = file.metadata().map_err(Failure::file("look at", path))?;
        if metadata.is_dir() {
            return Err(Failure::Usage(format!("{} is a directory: put a file", path.display())));
        }
        let len = match (metadata.is_file().then_some(metadata.len()), len) {
            (Some(has), Some(wanted)) if wanted > has => {
                let text = format!("{} has {}, fewer than --len {}", path.display(), Size(has), Size(wanted));
                return Err(Failure::Usage(text));
            }
            (_, Some(wanted)) => Some(wanted),
            (has, None) => has,
        };
        Ok(Self { reader: Reader::Stream(file), name: path.to_owned(), len })
    }

    /// How many bytes there are: where only reading tells, no more than one beyond `room` are read.
    fn measure(self, room: u64) -> Result<(Reader, u64), Failure> {
        match (self.len, self.reader) {
            (Some(len), reader) => Ok((reader, len)),
            (None, Reader::Stream(stream)) => {
                let mut bytes = Vec::new();
                let most = room.saturating_add(1);
                stream.take(most).read_to_end(&mut bytes).map_err(Failure::file("read", self.name))?;
                let len = bytes.len() as u64;
                Ok((Reader::Memory(io::Cursor::new(bytes)), len))
            }
            (None, Reader::Memory(bytes)) => {
                let len = bytes.get_ref().len() as u64;
                Ok((Reader::Memory(bytes), len))
            }
        }
    }
}

impl Reader {
    /// Fills the buffer, or fails; also where somebody asks to stop while it waits for input.
    fn fill(&mut self, mut buffer: &mut [u8], interrupt: &Interrupt, name: &str) -> Result<(), Failure> {
        while !buffer.is_empty() {
            interrupt.check()?;
            let read = match self {
                Self::Memory(bytes) => bytes.read(buffer),
                Self::Stream(stream) => {
                    let mut ready = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut ready, PATIENCE_MS) {
                        Ok(0) | Err(Errno::EINTR) => continue,
                        Ok(_) => stream.read(buffer),
                        Err(error) => Err(error.into()),
                    }
                }
            };
            match read {
                Ok(0) => Err(io::Error::other("it ended before the bytes that it was to have")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                read => read,
            }
            .map(|read| buffer = &mut std::mem::take(&mut buffer)[read..])
            .map_err(Failure::file("read", name))?;
        }
        interrupt.check()
    }
}

/// Where what is got goes: an ordinary file is replaced when all is there; anything else gets the bytes as they come.
enum Sink {
    Stream { to: Box<dyn Write>, name: PathBuf },
    Replace { to: File, temporary: PathBuf, path: PathBuf, mode: Option<fs::Permissions> },
    Finished,
}

impl Sink {
    fn open(path: &Path) -> Result<Self, Failure> {
        if is_dash(path) {
            return Ok(Self::Stream { to: Box::new(io::stdout()), name: "standard output".into() });
        }
        // A link's target is replaced, not the link.
        let (path, there) = match fs::metadata(path) {
            Ok(there) => (fs::canonicalize(path).map_err(Failure::file("find", path))?, Some(there)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
            Err(error) => return Err(Failure::file("look at", path)(error)),
        };
        match there {
            Some(there) if there.is_dir() => {
                Err(Failure::Usage(format!("{} is a directory: name a file", path.display())))
            }
            Some(there) if !there.is_file() => {
                let to = OpenOptions::new().write(true).open(&path).map_err(Failure::file("open", &path))?;
                Ok(Self::Stream { to: Box::new(to), name: path })
            }
            there => {
                let Some(name) = path.file_name() else {
                    return Err(Failure::Usage(format!("{} names no file", path.display())));
                };
                let mut hidden = std::ffi::OsString::from(".");
                hidden.push(name);
                hidden.push(format!(".overbank-{}", std::process::id()));
                let temporary = path.with_file_name(hidden);
                let to = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .custom_flags(nix::libc::O_NOFOLLOW)
                    .open(&temporary)
                    .map_err(Failure::file("make", &temporary))?;
                Ok(Self::Replace { to, temporary, path, mode: there.map(|there| there.permissions()) })
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stream { to, name } => to.write_all(bytes).map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Failure::Closed,
                _ => Failure::file("write to", name.clone())(error),
            }),
            Self::Replace { to, temporary, .. } => {
                to.write_all(bytes).map_err(Failure::file("write to", temporary.clone()))
            }
            Self::Finished => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        match &mut self {
            Self::Stream { to, name } => match to.flush() {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Failure::Closed),
                flushed => flushed.map_err(Failure::file("write to", name.clone()))?,
            },
            Self::Replace { to, temporary, path, mode } => {
                if let Some(mode) = mode.take() {
                    to.set_permissions(mode).map_err(Failure::file("change the mode of", temporary.clone()))?;
                }
                fs::rename(&*temporary, &*path).map_err(Failure::file("replace", path.clone()))?;
            }
            Self::Finished => {}
        }
        self = Self::Finished;
        drop(self);
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::Replace { temporary, .. } = self {
            // No half of a file stays behind.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_a_lease_and_an_offset() {
        let lease = |text: &str| text.parse::<LeaseName>().expect("a lease");
        assert_eq!("3f".parse(), Ok(Target { lease: lease("3f"), offset: None }));
        assert_eq!("3f@4KiB".parse(), Ok(Target { lease: lease("3f"), offset: Some(4096) }));
        for bad in ["", "@", "@1", "3f@", "3f@x", "3f@-1", "3f@1@2", "xyz@1", "3f@99999999TiB"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("file");
        let mut sink = Sink::open(&path).expect("opened");
        sink.write(b"half").expect("written");
        drop(sink);
        assert_eq!(fs::read_dir(home.path()).expect("it").count(), 0);
        fs::write(&path, b"old").expect("written");
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let mut sink = Sink::open(&link).expect("opened");
        sink.write(b"new").expect("written");
        assert_eq!(fs::read(&path).expect("it"), b"old");
        sink.finish().expect("finished");
        assert_eq!(fs::read(&path).expect("it"), b"new");
        assert!(fs::symlink_metadata(&link).expect("it").is_symlink());
        assert_eq!(fs::read_dir(home.path()).expect("it").count(), 2);
    }

    #[test]
    fn devices_and_directories_are_never_replaced() {
        let mut sink = Sink::open(Path::new("/dev/null")).expect("opened");
        sink.write(b"x").expect("written");
        sink.finish().expect("finished");
        assert!(!fs::metadata("/dev/null").expect("it").is_file());
        assert!(matches!(Sink::open(Path::new("/")), Err(Failure::Usage(_))));
    }
}
