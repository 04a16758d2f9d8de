//! Communication libraries over TCP, UCX and libfabric: what a machine without RDMA would use instead; and shared memory
//! alone. Small clients are compiled here when they are needed, and each turn starts both ends anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use overbank_verbs::Op;
use tempfile::TempDir;

use crate::cpus::{self, Cpus};
use crate::error::BenchError;
use crate::figures::{Plan, histogram};
use crate::peer::Peer;
use crate::rates::{Pace, Rate};
use crate::systems::System;

/// How long both ends may take beside what is measured.
const START: Duration = Duration::from_secs(30);
/// How long a turn of single operations may take.
const TURN: Duration = Duration::from_secs(120);

/// What both clients are made of.
const COMMON: [(&str, &str); 2] =
    [("peer.h", include_str!("../peers/peer.h")), ("peer.c", include_str!("../peers/peer.c"))];

/// A library.
struct Library {
    source: (&'static str, &'static str),
    /// Without it there is nothing to compile against.
    header: &'static str,
    linked: &'static [&'static str],
    package: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

const UCX: Library = Library {
    source: ("ucx.c", include_str!("../peers/ucx.c")),
    header: "ucp/api/ucp.h",
    linked: &["-lucp", "-lucs"],
    package: "libucx-dev",
    // What it has to say goes where complaints go.
    environment: &[("UCX_TLS", "tcp,self"), ("UCX_LOG_FILE", "stderr")],
};

const FABRIC: Library = Library {
    source: ("fabric.c", include_str!("../peers/fabric.c")),
    header: "rdma/fabric.h",
    linked: &["-lfabric"],
    package: "libfabric-dev",
    environment: &[],
};

const SHARED: Library = Library {
    source: ("shared.c", include_str!("../peers/shared.c")),
    header: "sys/mman.h",
    linked: &[],
    package: "libc6-dev",
    environment: &[],
};

/// Which one is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// UCX's get and put over its TCP transport.
    Ucx,
    /// libfabric's RMA over TCP: the utility provider RxM over tcp, and the provider that does it by itself (tcp; net in
    /// versions before 1.18).
    Fabric,
    /// Two processes and the memory that both have: READs, one at a time.
    Shared,
}

/// One that is here, ready to be started.
pub(crate) struct Client {
    /// As which it appears in results.
    pub(crate) system: System,
    /// What it says of itself.
    pub(crate) version: String,
    program: PathBuf,
    provider: &'static str,
    environment: &'static [(&'static str, &'static str)],
    cpus: Cpus,
    /// Holds the program.
    _dir: Rc<TempDir>,
}

/// One that is not, and why.
pub(crate) type Missing = (System, String);

/// What is here of the one that is asked for, and what is missing.
pub(crate) fn find(wanted: Wanted, cpus: Cpus) -> Result<(Vec<Client>, Vec<Missing>), BenchError> {
    let (library, variants): (_, &[(_, &[_])]) = match wanted {
        Wanted::Ucx => (&UCX, &[(System::UcxTcp, &["ucx"])]),
        Wanted::Shared => (&SHARED, &[(System::SharedMemory, &["shared"])]),
        Wanted::Fabric => {
            (&FABRIC, &[(System::LibfabricTcpRxm, &["tcp;ofi_rxm"]), (System::LibfabricTcp, &["tcp", "net"])])
        }
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let dir = Rc::new(tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?);
    let program = match library.compile(dir.path())? {
        Ok(program) => program,
        Err(reason) => {
            missing.extend(variants.iter().map(|&(system, _)| (system, reason.clone())));
            return Ok((found, missing));
        }
    };
    for &(system, providers) in variants {
        let mut refusal = String::new();
        for &provider in providers {
            match library.version(&program, provider)? {
                Ok(version) => {
                    let (program, environment, dir) = (program.clone(), library.environment, Rc::clone(&dir));
                    found.push(Client { system, version, program, provider, environment, cpus, _dir: dir });
                    refusal.clear();
                    break;
                }
                Err(reason) => refusal = reason,
            }
        }
        if !refusal.is_empty() {
            missing.push((system, refusal));
        }
    }
    Ok((found, missing))
}

impl Library {
    /// The client; or, inside, why there can be none here.
    fn compile(&self, dir: &Path) -> Result<Result<PathBuf, String>, BenchError> {
        for (name, text) in COMMON.iter().chain([&self.source]) {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(BenchError::io(format!("write {}", path.display())))?;
        }
        let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut look = Command::new(&cc);
        look.args(["-E", "-include", self.header, "-x", "c", "/dev/null"]);
        match look.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(_) => {
                return Ok(Err(format!("there is no {}; install {} (Debian's name)", self.header, self.package)));
            }
            Err(error) => return Ok(Err(format!("there is no C compiler {cc}: {error}"))),
        }
        let program = dir.join("peer");
        let mut command = Command::new(&cc);
        command.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
        command.arg(dir.join("peer.c")).arg(dir.join(self.source.0)).args(self.linked);
        let output = command.output().map_err(BenchError::io(format!("start {cc}")))?;
        if !output.status.success() {
            let what = format!("did not compile {}: {}", self.source.0, String::from_utf8_lossy(&output.stderr).trim());
            return Err(BenchError::Child { program: cc, what });
        }
        Ok(Ok(program))
    }

    /// What it says of itself; or, inside, why it is of no use here.
    fn version(&self, program: &Path, provider: &str) -> Result<Result<String, String>, BenchError> {
        const MISSING: i32 = 3;
        let mut command = Command::new(program);
        command.args([provider, "version"]).envs(self.environment.iter().copied()).stdin(Stdio::null());
        let output = command.output().map_err(BenchError::io("start a client that was just compiled"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.code() {
            Some(0) => Ok(Ok(said(&output.stdout))),
            Some(MISSING) => Ok(Err(said(&output.stderr))),
            _ => Err(BenchError::Child {
                program: self.source.0.to_owned(),
                what: format!("failed ({}): {}", output.status, said(&output.stderr)),
            }),
        }
    }
}

impl Client {
    /// The command of its asking end, for the record.
    pub(crate) fn command(&self, arguments: &[String]) -> String {
        let environment = self.environment.iter().map(|(name, value)| format!("{name}={value} "));
        format!("{}{} '{}' {}", environment.collect::<String>(), self.system.name(), self.provider, arguments.join(" "))
    }

    /// One turn of single operations.
    pub(crate) fn times(&self, op: Op, size: usize, plan: &Plan) -> Result<Histogram<u64>, BenchError> {
        let said = self.turn(size, &timed(op, size, plan), TURN)?;
        let mut counted = histogram()?;
        for line in &said {
            if let Some(time) = line.strip_prefix("time ").and_then(|time| time.parse().ok()) {
                counted.saturating_record(time);
            }
        }
        if counted.len() == plan.count {
            return Ok(counted);
        }
        Err(self.failed(&format!("gave {} times, not {}", counted.len(), plan.count)))
    }

    /// One turn of many at once.
    pub(crate) fn rate(&self, op: Op, size: usize, depth: u32, pace: &Pace) -> Result<Rate, BenchError> {
        let time = TURN + pace.warmup() + pace.time();
        let said = self.turn(size * depth as usize, &rated(op, size, depth, pace), time)?;
        let rate = said.iter().find_map(|line| {
            let (operations, nanoseconds) = line.strip_prefix("rate ")?.split_once(' ')?;
            Some(Rate { operations: operations.parse().ok()?, nanoseconds: nanoseconds.parse().ok()?, packets: None })
        });
        rate.ok_or_else(|| self.failed("gave no rate"))
    }

    /// Both ends, started, run and ended: what the asking one said.
    fn turn(&self, length: usize, arguments: &[String], time: Duration) -> Result<Vec<String>, BenchError> {
        let dir = tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?;
        let start = |words: &[String], cpu: usize, name: &str, time: Duration| {
            let mut command = Command::new(&self.program);
            command.args([self.provider, &time.as_secs().to_string()]).args(words);
            command.envs(self.environment.iter().copied());
            let errors = dir.path().join(name);
            cpus::started_on(cpu, self.cpus.asker, || Peer::start(command, Some(&errors)))
        };
        let words = ["server".to_owned(), length.to_string()];
        let server = start(&words, self.cpus.answerer, "server", time + 2 * START)?;
        let reach = server.line()?;
        let mut client = start(arguments, self.cpus.asker, "client", time + START)?;
        client.say(&reach)?;
        client.rest(time + 2 * START)
    }

    fn failed(&self, what: &str) -> BenchError {
        BenchError::Child { program: self.system.name().to_owned(), what: what.to_owned() }
    }
}

/// What the asking end is told for single operations.
pub(crate) fn timed(op: Op, size: usize, plan: &Plan) -> Vec<String> {
    let numbers = [plan.warmup, plan.count].map(|number| number.to_string());
    [client(op, size, 1), vec!["times".to_owned()], numbers.to_vec()].concat()
}

/// What the asking end is told for many at once.
pub(crate) fn rated(op: Op, size: usize, depth: u32, pace: &Pace) -> Vec<String> {
    let (warmup, time) = (pace.warmup().as_nanos(), pace.time().as_nanos());
    let numbers = [warmup.to_string(), time.to_string(), pace.count.unwrap_or(0).to_string()];
    [client(op, size, depth), vec!["rate".to_owned()], numbers.to_vec()].concat()
}

fn client(op: Op, size: usize, depth: u32) -> Vec<String> {
    let op = if op == Op::Read { "read" } else { "write" };
    ["client", op, &size.to_string(), &depth.to_string()].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_its_header_is_missing_and_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let library = Library { header: "no/such/header.h", package: "some-package", ..UCX };
        let reason = library.compile(dir.path()).expect("no failure").expect_err("no header");
        assert!(reason.contains("no/such/header.h") || reason.contains("C compiler"), "{reason}");
    }

    #[test]
    fn the_asking_end_is_told_what_was_asked_for() {
        let plan = Plan { rounds: 1, count: 20, warmup: 5, per_second: None };
        assert_eq!(timed(Op::Read, 64, &plan).join(" "), "client read 64 1 times 5 20");
        let pace = Pace { rounds: 1, seconds: 0.5, count: None, warmup_seconds: 0.001 };
        assert_eq!(rated(Op::Write, 4096, 32, &pace).join(" "), "client write 4096 32 rate 1000000 500000000 0");
    }
}
