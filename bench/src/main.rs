//! `overbank-bench`: latency and throughput of memory over RDMA, the floors beside it, and a look into a lender's memory.
#![forbid(unsafe_code)]

mod accesses;
mod adapter;
mod answer;
mod borrowed;
mod compare;
mod connect;
mod contest;
mod counted;
mod cpus;
mod deep;
mod ends;
mod engine;
mod error;
mod existing;
mod figures;
mod flood;
mod flooder;
mod floor;
mod grant;
mod grid;
mod inspect;
mod interleave;
mod interval;
mod kept;
mod latency;
mod library;
mod machine;
mod maps;
mod memcpy;
mod memif;
mod mixed;
mod needles;
mod one_sided;
mod opening;
mod options;
mod others;
mod own;
mod page;
mod parties;
mod patience;
mod peer;
mod peers;
mod percentiles;
mod perftest;
mod ping_pong;
mod pipeline;
mod plot;
mod process;
mod rates;
mod raw;
mod redis;
mod report;
mod resp;
mod revoke;
mod runs;
mod seal;
mod sealed;
mod several;
mod stack;
mod stamps;
mod sweep;
mod systems;
mod table;
mod tcp;
mod throughput;
mod tied;
mod tls;
mod udp;
mod writer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

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
    /// Sealed reads and writes mixed, uniform or with popular blocks; what is read is checked
    Mixed(mixed::Mixed),
    /// A lease used as memory: what a page that is touched takes to come, and a scan with and without fetching ahead
    Page(page::Page),
    /// What the control plane costs a consumer: handshake, allocate, attach, renew, release
    Grant(grant::Grant),
    /// What opening a connection of plain queue pairs costs, and closing it
    Connect(connect::Connect),
    /// Plain READs and WRITEs between two RDMA devices, one at a time, busy polling
    Raw(raw::Raw),
    /// READs and WRITEs of one queue pair or several, many at a time: operations and bytes a second, packets sent again
    Throughput(throughput::Throughput),
    /// READs through a memif of DPDK's, plain and sealed, beside the UDP port and shared memory, between two processes
    Memif(memif::Memif),
    /// Sealed and plain reads and writes beside other programs', taking turns
    Compare(compare::Compare),
    /// Plain and sealed, from a few bytes to MiB, one at a time and many: latency, throughput, what sealing costs by size
    Sweep(sweep::Sweep),
    /// What sealing and opening a block cost, beside the engines alone
    Seal(seal::Seal),
    /// What a trusted consumer notices while strangers flood the auth daemon with connections and handshakes
    Flood(flood::Flood),
    /// From an operator's word to the fence, with WRITEs and requests under way; and how fast memory is wiped
    Revoke(revoke::Revoke),
    /// What kept reports say, side by side, and whether their difference is more than the noise
    Report(runs::Runs),
    /// Two builds of this program measure the same, taking turns, A B A B
    Interleave(interleave::Interleave),
    /// What the kept reports of a directory say of the soft device, as Markdown
    Table(table::Table),
    /// Look into a running process's memory: for a file's bytes, or for anything but zeros
    Inspect(inspect::Inspect),
    /// The other end of a measurement
    #[command(hide = true)]
    Answer(answer::Answer),
    /// Another program, which ends with this one
    #[command(hide = true)]
    Tied(tied::Tied),
    /// Who floods
    #[command(hide = true)]
    Flooder(flooder::Flooder),
}

/// What every command is called.
fn commands() -> Vec<String> {
    Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

fn main() -> ExitCode {
    machine::look_before();
    let result = match Cli::parse().command {
        Command::Floor(floor) => floor::run(&floor).map(|()| ExitCode::SUCCESS),
        Command::Latency(latency) => latency::run(&latency).map(|()| ExitCode::SUCCESS),
        Command::Mixed(mixed) => mixed::run(&mixed).map(|()| ExitCode::SUCCESS),
        Command::Page(page) => page::run(&page).map(|()| ExitCode::SUCCESS),
        Command::Grant(grant) => grant::run(&grant).map(|()| ExitCode::SUCCESS),
        Command::Connect(connect) => connect::run(&connect).map(|()| ExitCode::SUCCESS),
        Command::Raw(raw) => raw::run(&raw).map(|()| ExitCode::SUCCESS),
        Command::Throughput(throughput) => throughput::run(&throughput).map(|()| ExitCode::SUCCESS),
        Command::Memif(memif) => memif::run(&memif).map(|()| ExitCode::SUCCESS),
        Command::Compare(compare) => compare::run(&compare).map(|()| ExitCode::SUCCESS),
        Command::Sweep(sweep) => sweep::run(&sweep).map(|()| ExitCode::SUCCESS),
        Command::Report(runs) => runs::run(&runs, &commands()).map(|()| ExitCode::SUCCESS),
        Command::Interleave(interleave) => interleave::run(&interleave, &commands()).map(|()| ExitCode::SUCCESS),
        Command::Seal(seal) => seal::run(&seal).map(|()| ExitCode::SUCCESS),
        Command::Flood(flood) => flood::run(&flood).map(|()| ExitCode::SUCCESS),
        Command::Flooder(flooder) => flooder::run(&flooder).map(|()| ExitCode::SUCCESS),
        Command::Revoke(revoke) => revoke::run(&revoke).map(|()| ExitCode::SUCCESS),
        Command::Table(table) => table::run(&table).map(|()| ExitCode::SUCCESS),
        Command::Inspect(inspect) => inspect::run(&inspect),
        Command::Tied(tied) => tied::run(&tied).map(|()| ExitCode::SUCCESS),
        Command::Answer(answer) => answer::run(&answer).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("overbank-bench: {error}");
        ExitCode::from(error.exit_status())
    })
}
