//! `overbank-bench answer`: the other end of a measurement, as a process of its own. Started by this program itself.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::cpus::{self, Cpus};
use crate::error::BenchError;
use crate::peer::Peer;
use crate::{one_sided, opening, ping_pong, pipeline, tcp, udp};

/// What `answer` takes.
#[derive(clap::Args)]
pub(crate) struct Answer {
    /// What answers
    kind: Kind,
    /// Its device, where it has one
    #[arg(long, default_value = "auto")]
    device: String,
    /// Bytes of its memory, or of its WRITEs
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    size: u64,
    /// Its queue pairs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    lanes: u8,
    /// Datagrams of a million that its soft device loses
    #[arg(long, default_value_t = 0)]
    lose: u32,
}

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Datagrams.
    Udp,
    /// One stream.
    Tcp,
    /// READs and WRITEs.
    OneSided,
    /// READs and WRITEs, many at a time.
    Pipeline,
    /// WRITEs, with WRITEs.
    PingPong,
    /// Connections that come and go, and a READ of each queue pair.
    Opening,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::OneSided => "one-sided",
            Self::Pipeline => "pipeline",
            Self::PingPong => "ping-pong",
            Self::Opening => "opening",
        }
    }
}

/// Starts an answering process on its processor.
pub(crate) fn spawn(kind: Kind, arguments: &[&str], cpus: Cpus) -> Result<Peer, BenchError> {
    let mut command = Command::new(own_binary()?);
    command.args(["answer", kind.name()]).args(arguments);
    cpus::started_on(cpus.answerer, cpus.asker, || Peer::start(command, None))
}

/// Starts an answering process that says its address; where it can be reached.
pub(crate) fn start(kind: Kind, cpus: Cpus) -> Result<(Peer, SocketAddr), BenchError> {
    let peer = spawn(kind, &[], cpus)?;
    let hello = peer.line()?;
    let address = hello.parse().map_err(|_| peer.failed(&format!("said '{hello}', not its address")))?;
    Ok((peer, address))
}

/// This program's own file.
pub(crate) fn own_binary() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::io("find this program's own file"))
}

/// Answers until whoever started this process is gone.
pub(crate) fn run(answer: &Answer) -> Result<(), BenchError> {
    set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| BenchError::Io { what: "tie this process to its parent".to_owned(), source: errno.into() })?;
    match answer.kind {
        Kind::Udp => udp::answer(|at| say(&at.to_string())),
        Kind::Tcp => tcp::answer(|at| say(&at.to_string())),
        Kind::OneSided => one_sided::answer(&answer.device, answer.size as usize, say, hear),
        Kind::Pipeline => pipeline::answer(&answer.device, answer.size as usize, answer.lanes, answer.lose, say, hear),
        Kind::PingPong => ping_pong::answer(&answer.device, answer.size as usize, say, hear),
        Kind::Opening => opening::answer(&answer.device, answer.size as usize, say, hear),
    }
}

fn hear() -> Result<String, BenchError> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(BenchError::io("hear the asking end"))?;
    Ok(line)
}

fn say(line: &str) {
    let mut stdout = std::io::stdout();
    // Who cannot hear it gives up by itself.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
