//! `overbank-bench inspect`: what a lender could see. Reads another process's memory and looks for a file's bytes, or
//! for anything that is not zero.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use overbank_fabric::units::Size;

use crate::error::BenchError;
use crate::maps::Process;
use crate::needles::{Needles, PIECE};

/// Bytes read at once.
const READ: usize = 1 << 20;
/// Places told of a find; more would tell nothing new.
const TOLD: usize = 8;

/// What `inspect` takes.
#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// The process to look into
    #[arg(long)]
    pid: u32,
    /// Only mappings of at least this size (a provider's pool: its --pool)
    #[arg(long, value_name = "SIZE", default_value = "0")]
    at_least: Size,
    #[command(flatten)]
    wanted: Wanted,
    /// With --lacks: fail unless at least so many bytes are not zero, since who looks in the wrong place finds nothing
    #[arg(long, value_name = "SIZE", requires = "lacks")]
    holds: Option<Size>,
}

/// What the memory is expected to be like.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Wanted {
    /// No 16-byte piece of this file (aligned in the file, 8 or more distinct bytes) occurs at any offset
    #[arg(long, value_name = "FILE")]
    lacks: Option<PathBuf>,
    /// Every byte is zero
    #[arg(long)]
    zero: bool,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    nonzero: AtomicU64,
    unreadable: AtomicU64,
    found: Mutex<Vec<u64>>,
}

impl Seen {
    /// Notes places, until enough are known.
    fn note(&self, places: impl IntoIterator<Item = u64>) {
        let mut found = self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let room = TOLD.saturating_sub(found.len());
        found.extend(places.into_iter().take(room));
    }
}

/// Looks, and says what was seen. Fails where the memory is not as expected.
pub(crate) fn run(inspect: &Inspect) -> Result<ExitCode, BenchError> {
    let process = Process::open(inspect.pid)?;
    let mappings = process.mappings(inspect.at_least.0.max(1))?;
    if mappings.is_empty() {
        let message = format!("process {} has no writable mapping of {} or more", inspect.pid, inspect.at_least);
        return Err(BenchError::Usage(message));
    }
    let needles = match &inspect.wanted.lacks {
        Some(path) => {
            let file = std::fs::read(path).map_err(BenchError::io(format!("read {}", path.display())))?;
            let needles = Needles::of(&file);
            if needles.count() == 0 {
                let message = format!("{} has no piece worth looking for: use a file of varied bytes", path.display());
                return Err(BenchError::Usage(message));
            }
            Some(needles)
        }
        None => None,
    };
    let spans: Vec<(u64, u64)> = mappings.iter().flat_map(|mapping| pieces(mapping.start, mapping.len)).collect();
    let seen = look(&process, &spans, needles.as_ref());
    let (nonzero, unreadable) = (seen.nonzero.into_inner(), seen.unreadable.into_inner());
    let mut found = seen.found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_unstable();

    let bytes: u64 = mappings.iter().map(|mapping| mapping.len).sum();
    let mut words = format!("{} mapping(s), {bytes} bytes, {nonzero} of them not zero", mappings.len());
    let mut good = found.is_empty();
    match &needles {
        Some(needles) if good => words += &format!("; none of the file's {} pieces occurs in them", needles.count()),
        Some(_) => words += "; PIECES OF THE FILE are there",
        None if good => words += "; only zeros",
        None => words += "; NOT ONLY ZEROS",
    }
    for place in &found {
        words += &format!("\n  at address {place:#x}");
    }
    if unreadable > 0 {
        words += &format!("; {unreadable} bytes could not be read");
        // In a search through everything some device's mapping may refuse; a pool that was named must not.
        good &= inspect.at_least.0 == 0;
    }
    if let Some(holds) = inspect.holds.filter(|holds| nonzero < holds.0) {
        words += &format!("; at least {} bytes should not be zero: is this the right place?", holds.0);
        good = false;
    }
    writeln!(std::io::stdout(), "{words}").map_err(BenchError::io("print what was seen"))?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Spans that overlap by a piece less one byte, so that none lies unseen across two.
fn pieces(start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = READ as u64;
    (0..len.div_ceil(step)).map(move |index| {
        let from = index * step;
        (start + from, (len - from).min(step + PIECE as u64 - 1))
    })
}

fn look(process: &Process, spans: &[(u64, u64)], needles: Option<&Needles>) -> Seen {
    let seen = Seen::default();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; READ + PIECE];
                while let Some(&(start, len)) = spans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let buffer = &mut buffer[..len as usize];
                    if process.read(start, buffer) {
                        see(start, buffer, needles, &seen);
                    } else {
                        seen.unreadable.fetch_add(len.min(READ as u64), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    seen
}

fn see(start: u64, buffer: &[u8], needles: Option<&Needles>, seen: &Seen) {
    // The overlap is counted with the span that it belongs to.
    let own = &buffer[..buffer.len().min(READ)];
    let nonzero = own.iter().filter(|&&byte| byte != 0).count() as u64;
    seen.nonzero.fetch_add(nonzero, Ordering::Relaxed);
    match needles {
        Some(needles) if buffer.iter().any(|&byte| byte != 0) => {
            seen.note(needles.find(buffer, TOLD).into_iter().map(|at| start + at as u64));
        }
        None if nonzero > 0 => seen.note(own.iter().position(|&byte| byte != 0).map(|at| start + at as u64)),
        _ => {}
    }
}
