//! `overbank-bench answer`: the other end of a measurement, as a process of its own. Started by this program itself.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::cpus::{self, Cpus};
use crate::error::BenchError;
use crate::peer::Peer;
use crate::{tcp, udp};

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Datagrams.
    Udp,
    /// One stream.
    Tcp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Starts an answering process on its processor; where it can be reached.
pub(crate) fn start(kind: Kind, cpus: Cpus) -> Result<(Peer, SocketAddr), BenchError> {
    let mut command = Command::new(own_binary()?);
    command.args(["answer", kind.name()]);
    let peer = cpus::started_on(cpus.answerer, cpus.asker, || Peer::start(command, None))?;
    let address = peer.hello.parse().map_err(|_| peer.failed(&format!("said '{}', not its address", peer.hello)))?;
    Ok((peer, address))
}

/// This program's own file.
pub(crate) fn own_binary() -> Result<std::path::PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::io("find this program's own file"))
}

/// Answers until whoever started this process is gone.
pub(crate) fn run(kind: Kind) -> Result<(), BenchError> {
    set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| BenchError::Io { what: "tie this process to its parent".to_owned(), source: errno.into() })?;
    let ready = |at: SocketAddr| {
        let mut stdout = std::io::stdout();
        // Who cannot hear the address gives up by itself.
        let _ = writeln!(stdout, "{at}").and_then(|()| stdout.flush());
    };
    match kind {
        Kind::Udp => udp::answer(ready),
        Kind::Tcp => tcp::answer(ready),
    }
}
