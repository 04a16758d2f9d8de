//! `overbank-bench tied`: another program, which ends when the one that started it does. A peer of a benchmark that
//! somebody kills must not go on listening.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::answer::own_binary;
use crate::error::BenchError;

/// What `tied` takes.
#[derive(clap::Args)]
pub(crate) struct Tied {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// The command that starts this one tied; its arguments are still to come.
pub(crate) fn command(program: &str) -> Result<Command, BenchError> {
    let mut command = Command::new(own_binary()?);
    command.args(["tied", program]);
    Ok(command)
}

/// Becomes that program. The signal stays with the process.
pub(crate) fn run(tied: &Tied) -> Result<(), BenchError> {
    set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| BenchError::Io { what: "tie this process to its parent".to_owned(), source: errno.into() })?;
    let (program, arguments) =
        tied.command.split_first().ok_or_else(|| BenchError::Usage("no program to start".to_owned()))?;
    let error = Command::new(program).args(arguments).exec();
    Err(BenchError::io(format!("start {}", program.to_string_lossy()))(error))
}
