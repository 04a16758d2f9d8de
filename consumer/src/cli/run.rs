//! `run`: an unchanged program whose large memory is a lease.

mod child;
mod summary;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use overbank::{Client, Faults, LeaseId, LeaseRequest, MAX_BLOCK, Size};

use super::exit::Failure;
use super::{Context, some_size, some_time};
use child::{Child, Ended, Event};
use summary::Summary;

/// The library, beside the command or in `../lib`.
const LIBRARY: &str = "liboverbank_preload.so";
/// Names another one.
const LIBRARY_VARIABLE: &str = "OVERBANK_PRELOAD";
/// A page of the kernel is the least that can be fetched.
const LEAST_PAGE: u32 = 4096;
/// How long to wait for the provider's receipt at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Run a program whose large memory is on other machines
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  overbank run --local 1GiB --remote 8GiB -- ./job input.dat
  overbank run --local 512MiB --remote 4GiB --summary run.json -- sort -S 3G big.txt
  overbank run --local 2GiB --remote 16GiB --threshold 4MiB -- python3 fit.py
                                      small objects of Python stay local, and forked children can use them

What the program allocates or maps in pieces of THRESHOLD or more is in the lease: its pages are fetched when they are
touched, and at most LOCAL bytes of it are in this machine's memory at a time. Everything else is local, as ever. A
forked child does not get that memory: it may start programs, but ends by SIGSEGV where it uses it. A program that is
linked statically, or has the rights of another user, runs as if nothing were there.

One process of those that the command starts has the lease at a time: the first that asks for something large. SIGINT,
SIGTERM, SIGHUP and other signals are passed on. The lease is renewed while the command runs, and released at its end.

Exit status: that of the command; where a signal ended it, the same signal ends this. 126 where the command cannot be
started, 127 where there is none. What fails before ends as `overbank --help` says.")]
pub(crate) struct Run {
    /// Bytes of this machine's memory that hold what is in use of it
    #[arg(long, value_name = "SIZE", value_parser = some_size)]
    local: u64,
    /// Bytes of large memory that the program can have: the size of the lease
    #[arg(long, value_name = "SIZE", value_parser = some_size)]
    remote: u64,
    /// Bytes that are fetched and sealed at a time: a power of two from 4KiB to 1MiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = page_size)]
    page: u32,
    /// Pieces of this size or more are in the lease
    #[arg(long, value_name = "SIZE", default_value = "128KiB", value_parser = some_size)]
    threshold: u64,
    /// For how long the lease is made and renewed: so long it outlives this command where that is killed
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = some_time)]
    ttl: Duration,
    /// auto, soft, or the name of an RDMA device
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Our address as the provider is to see it [default: the one from which we reach the auth daemon]
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Where the lease is full, go on with local memory instead of failing
    #[arg(long)]
    spill: bool,
    /// Say of each process that has local memory alone why that is so
    #[arg(long)]
    verbose: bool,
    /// Write what happened to this file, as JSON
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// The command, and what it is given
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let library = library()?;
        if self.local < 64 * u64::from(self.page) {
            let least = Size(64 * u64::from(self.page));
            return Err(Failure::Usage(format!("--local is less than 64 pages: ask for {least} or more")));
        }
        Faults::Thread.check().map_err(overbank::Error::from)?;
        // From here on a signal is no end: there is a lease to release.
        let mut child = Child::watch()?;
        let client = context.connect()?;
        let request = LeaseRequest { bytes: self.remote, ttl: self.ttl, block: self.page };
        let lease = client.lease(&request)?;
        let id = lease.id();
        let held = Held { client: &client, id, files: Files::of(context, id), context };
        // Whoever uses it next is another process.
        if let Err(error) = lease.close() {
            held.release();
            return Err(error.into());
        }
        let started = Instant::now();
        let ended = match child.start(&mut self.command(context, &library, &held)) {
            Ok(()) => self.attend(&mut child, &held),
            Err(error) => Ended::NotStarted(error),
        };
        let processes = summary::read(&held.files.statistics);
        let released = held.release();
        let summary = Summary { run: &self, lease: id, ended: &ended, took: started.elapsed(), processes, released };
        if !matches!(ended, Ended::NotStarted(_)) {
            context.output.notice(&summary.to_text());
        }
        if let Some(path) = &self.summary {
            let written = fs::write(path, format!("{:#}\n", summary.to_json()));
            if let Err(error) = written {
                context.output.notice(&format!("the summary cannot be written to {}: {error}", path.display()));
            }
        }
        ended.pass_on(&self.command[0])
    }

    /// The command, with the library and what that needs to know.
    fn command(&self, context: &Context, library: &Path, held: &Held<'_>) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        let mut preload = OsString::from(library);
        if let Some(before) = env::var_os("LD_PRELOAD").filter(|before| !before.is_empty()) {
            preload.push(":");
            preload.push(before);
        }
        let config = &context.config;
        // What one run says is not said to a run within it.
        for (variable, _) in env::vars_os() {
            if variable.to_string_lossy().starts_with("OVERBANK_RUN_") {
                command.env_remove(variable);
            }
        }
        command
            .env("LD_PRELOAD", preload)
            .env("OVERBANK_RUN_LEASE", held.id.to_string())
            .env("OVERBANK_RUN_LEASES", config.leases())
            .env("OVERBANK_RUN_HOME", config.home())
            .env("OVERBANK_RUN_AUTHD", config.authd())
            .env("OVERBANK_RUN_REMOTE", self.remote.to_string())
            .env("OVERBANK_RUN_LOCAL", self.local.to_string())
            .env("OVERBANK_RUN_PAGE", self.page.to_string())
            .env("OVERBANK_RUN_THRESHOLD", self.threshold.to_string())
            .env("OVERBANK_RUN_DEVICE", &self.device)
            .env("OVERBANK_RUN_LOCK", &held.files.lock)
            .env("OVERBANK_RUN_STATISTICS", &held.files.statistics);
        if let Some(address) = self.address {
            command.env("OVERBANK_RUN_ADDRESS", address.to_string());
        }
        for (variable, wanted) in [("OVERBANK_RUN_SPILL", self.spill), ("OVERBANK_RUN_VERBOSE", self.verbose)] {
            if wanted {
                command.env(variable, "1");
            }
        }
        command
    }

    /// Passes signals on and renews the lease, until the command has ended.
    fn attend(&self, child: &mut Child, held: &Held<'_>) -> Ended {
        let pause = self.ttl / 3;
        let mut renew = Instant::now() + pause;
        let mut said = false;
        loop {
            match child.next(renew) {
                Event::Ended(ended) => return ended,
                Event::Passed => {}
                Event::Time => {
                    // Its process asks for itself when its time is up, and finds that it was renewed.
                    let renewed = held.client.renew(held.id, self.ttl);
                    if let Err(error) = &renewed
                        && !std::mem::replace(&mut said, true)
                    {
                        let id = held.id;
                        held.context
                            .output
                            .notice(&format!("lease {id} could not be renewed, and will be tried: {error}"));
                    }
                    renew = Instant::now() + if renewed.is_ok() { pause } else { pause.min(Duration::from_secs(1)) };
                }
            }
        }
    }
}

/// A lease that is released, with the files of its run, whatever happens.
struct Held<'a> {
    client: &'a Client,
    id: LeaseId,
    files: Files,
    context: &'a Context,
}

impl Held<'_> {
    fn release(self) -> bool {
        match self.client.release(self.id, PATIENCE) {
            Ok(_) => true,
            Err(error) => {
                self.context.output.notice(&format!("lease {} was not released, and expires: {error}", self.id));
                false
            }
        }
    }
}

/// Beside the lease's own file, in a directory that nobody else enters.
struct Files {
    lock: PathBuf,
    statistics: PathBuf,
}

impl Files {
    fn of(context: &Context, lease: LeaseId) -> Self {
        let beside = |what| context.config.leases().join(format!("{lease}.{what}"));
        Self { lock: beside("run-lock"), statistics: beside("run-statistics") }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // One that was never made cannot be removed.
        let _ = fs::remove_file(&self.lock);
        let _ = fs::remove_file(&self.statistics);
    }
}

fn library() -> Result<PathBuf, Failure> {
    let doing = "find the library that goes into the program,";
    let library = match env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(&path).canonicalize().map_err(Failure::file(doing, path))?,
        None => {
            let program = env::current_exe().map_err(Failure::file(doing, LIBRARY))?;
            let directory = program.parent().unwrap_or(Path::new("/"));
            let places = [directory.join(LIBRARY), directory.join("../lib").join(LIBRARY)];
            let found = places.iter().find_map(|place| place.canonicalize().ok());
            found.ok_or_else(|| {
                let why = format!("it is neither there nor in ../lib: install it, or name it in {LIBRARY_VARIABLE}");
                Failure::file(doing, &places[0])(io::Error::new(io::ErrorKind::NotFound, why))
            })?
        }
    };
    // The dynamic linker ends a name there.
    if library.as_os_str().as_encoded_bytes().iter().any(|byte| b" :".contains(byte)) {
        let why = "no library can be preloaded from a path with a blank or a colon: put it elsewhere";
        return Err(Failure::file("use", library)(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    Ok(library)
}

fn page_size(text: &str) -> Result<u32, String> {
    let size = text.parse::<Size>().map_err(|error| error.to_string())?;
    let page = u32::try_from(size.0).ok();
    page.filter(|page| page.is_power_of_two() && (LEAST_PAGE..=MAX_BLOCK).contains(page))
        .ok_or_else(|| "a page is a power of two from 4KiB to 1MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_powers_of_two_within_bounds() {
        assert_eq!(page_size("4KiB"), Ok(4096));
        assert_eq!(page_size("1MiB"), Ok(1 << 20));
        for bad in ["0", "2KiB", "2MiB", "5000", "4GiB", "x"] {
            assert!(page_size(bad).is_err(), "{bad}");
        }
    }
}
