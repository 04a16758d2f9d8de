//! The program that `run` starts: signals are passed on to it, and its end is passed on from it.

use std::ffi::OsStr;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Command, ExitStatus};
use std::task::Poll;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::Failure;

/// Signals that are passed on.
const PASSED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];
/// Those that a terminal sends to each process in front of it, the program among them.
const OF_TERMINAL: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH];

/// The program, once it was started.
pub(super) struct Child {
    runtime: Runtime,
    streams: Vec<(Signal, Stream)>,
    ends: Stream,
    process: Option<process::Child>,
}

/// What happened.
pub(super) enum Event {
    Ended(Ended),
    /// A signal was passed on.
    Passed,
    /// It is so late.
    Time,
}

/// How it ended.
pub(super) enum Ended {
    NotStarted(io::Error),
    Status(u8),
    Signal(i32),
}

impl Child {
    /// From now on signals are noticed, instead of being deadly. Those that are ignored stay so, here and in the program.
    pub(super) fn watch() -> Result<Self, Failure> {
        let failed = |error| Failure::file("watch for signals in", "this process")(error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let inside = runtime.enter();
        let ignored = ignored();
        let mut streams = Vec::new();
        for passed in PASSED.into_iter().filter(|&passed| ignored >> (passed as u32 - 1) & 1 == 0) {
            streams.push((passed, signal(SignalKind::from_raw(passed as i32)).map_err(failed)?));
        }
        let ends = signal(SignalKind::child()).map_err(failed)?;
        drop(inside);
        Ok(Self { runtime, streams, ends, process: None })
    }

    pub(super) fn start(&mut self, command: &mut Command) -> io::Result<()> {
        self.process = Some(command.spawn()?);
        Ok(())
    }

    /// Waits for the next event, at most until then.
    pub(super) fn next(&mut self, until: Instant) -> Event {
        let Some(process) = &mut self.process else { return Event::Time };
        match process.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Event::Ended(Ended::from(status)),
            // Somebody else waited for it: its status is lost.
            Err(error) => return Event::Ended(Ended::NotStarted(error)),
        }
        let Self { runtime, streams, ends, .. } = self;
        let came = runtime.block_on(async {
            let any = poll_fn(|context| {
                let came =
                    |(signal, stream): &mut (Signal, Stream)| stream.poll_recv(context).is_ready().then_some(*signal);
                streams.iter_mut().find_map(came).map_or(Poll::Pending, Poll::Ready)
            });
            tokio::select! {
                signal = any => Some(signal),
                _ = ends.recv() => None,
                () = tokio::time::sleep_until(until.into()) => None,
            }
        });
        match came {
            Some(signal) => {
                // Where it has just ended there is nobody to tell.
                if !(OF_TERMINAL.contains(&signal) && in_front()) {
                    let _ = kill(Pid::from_raw(process.id().cast_signed()), signal);
                }
                Event::Passed
            }
            None if Instant::now() >= until => Event::Time,
            None => Event::Passed,
        }
    }
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Signal(signal),
            None => Self::Status(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        }
    }
}

impl Ended {
    /// Ends as it did.
    pub(super) fn pass_on(self, command: &OsStr) -> Result<(), Failure> {
        match self {
            Self::Status(0) => Ok(()),
            Self::Status(status) => Err(Failure::Program(status)),
            Self::Signal(signal) => {
                // A shell's default for each signal is this process's own by now; where there is no shell, a status as one
                // would give it.
                let _ = Command::new("/bin/sh").args(["-c", &format!("kill -{signal} $$")]).env_clear().exec();
                Err(Failure::Program(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0))))
            }
            Self::NotStarted(source) => {
                let status = if source.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
                Err(Failure::NotStarted { command: command.to_string_lossy().into_owned(), source, status })
            }
        }
    }
}

/// The signals that this process ignores, a bit for each.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether a terminal's signals come to us, and so to the program.
fn in_front() -> bool {
    fs::File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(&terminal).is_ok_and(|front| front == getpgrp()))
}
