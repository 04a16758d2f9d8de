//! `overbank-bench`: latency of sealed memory, the floors beside it, and a look into a lender's memory.
#![forbid(unsafe_code)]

mod answer;
mod cpus;
mod error;
mod figures;
mod floor;
mod inspect;
mod latency;
mod machine;
mod maps;
mod memcpy;
mod needles;
mod options;
mod patience;
mod peer;
mod raw;
mod report;
mod sealed;
mod stack;
mod tcp;
mod udp;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Overbank and what it is compared with, both sides in one run
#[derive(Parser)]
#[command(version, name = "overbank-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What the machine itself costs: UDP and TCP ping-pong with busy polling, and copying
    Floor(floor::Floor),
    /// Sealed reads and writes, one at a time, busy polling; with --with-floor beside what they cannot beat
    Latency(latency::Latency),
    /// Look into a running process's memory: for a file's bytes, or for anything but zeros
    Inspect(inspect::Inspect),
    /// The other end of a measurement
    #[command(hide = true)]
    Answer(answer::Answer),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Floor(floor) => floor::run(&floor).map(|()| ExitCode::SUCCESS),
        Command::Latency(latency) => latency::run(&latency).map(|()| ExitCode::SUCCESS),
        Command::Inspect(inspect) => inspect::run(&inspect),
        Command::Answer(answer) => answer::run(&answer).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("overbank-bench: {error}");
        ExitCode::from(error.exit_status())
    })
}
