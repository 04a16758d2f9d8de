//! The command line: what can be asked, and who answers it.

mod audit;
mod devices;
mod exit;
mod identity;
mod interrupt;
mod lease;
mod operate;
mod output;
mod receipt;
mod release;
mod run;
mod share;
mod tenant;
mod transfer;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overbank::{Client, Config, DEFAULT_AUTHD, parse_duration};

use exit::{Failure, STATUSES};
use output::Output;

const EXAMPLES: &str = "\
Examples:
  overbank join CODE                              be trusted, with an invitation
  overbank lease create --size 64MiB --ttl 10m    borrow memory
  overbank put 3fa9 results.bin                   write a file to the lease that begins with 3fa9
  overbank get 3fa9@1MiB part.bin --len 4KiB      read a piece of it
  overbank lease share 3fa9 --to FINGERPRINT --read-only --out bob.share
                                                  let somebody else read it
  overbank lease release 3fa9                     give it back
  overbank run --local 1GiB --remote 8GiB -- ./job
                                                  run a program with more memory than is here

";

/// Borrows memory of other machines: every byte is sealed before it leaves this one.
#[derive(Debug, Parser)]
#[command(name = "overbank", version, max_term_width = 110, after_help = format!("{EXAMPLES}{STATUSES}"))]
struct Args {
    /// Holds the identity and the pinned keys [default: $XDG_CONFIG_HOME/overbank or ~/.config/overbank]
    #[arg(long, global = true, value_name = "DIR", env = "OVERBANK_HOME", hide_env_values = true)]
    home: Option<PathBuf>,
    /// The auth daemon, HOST or HOST:PORT
    #[arg(long, global = true, value_name = "ADDR", env = "OVERBANK_AUTHD", default_value = DEFAULT_AUTHD)]
    authd: String,
    /// How long a request to the auth daemon may take
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = some_time)]
    request_deadline: Duration,
    /// Answer in JSON, one object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Asking(Asking),
    /// Check the receipt of a lease's end, offline
    #[command(subcommand)]
    Receipt(receipt::Command),
    /// Show the RDMA devices of this machine, and whether each can be used
    Devices(devices::Devices),
}

/// What is asked of the auth daemon, in the name of an identity.
#[derive(Debug, Subcommand)]
enum Asking {
    /// Show who you are, and make an identity at the first use
    Id(identity::Id),
    /// Redeem a one-time invitation
    Join(identity::Join),
    /// Who is trusted (operators only)
    #[command(subcommand)]
    Trust(trust::Command),
    /// Look after lenders (operators only)
    #[command(subcommand)]
    Provider(operate::Provider),
    /// How much each tenant has and may have, and stopping one (operators only)
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// Approve what takes several operators (operators only)
    #[command(subcommand)]
    Proposal(operate::ProposalCommand),
    /// Stop the auth daemon; leases go on (operators only)
    Shutdown,
    /// What the auth daemon decided, and whether its log of that holds (operators only)
    #[command(subcommand)]
    Audit(audit::Command),
    /// Borrow memory, and give it back
    #[command(subcommand)]
    Lease(lease::Command),
    /// Write a file to a lease
    Put(transfer::Put),
    /// Read from a lease into a file
    Get(transfer::Get),
    Run(run::Run),
    /// Show the pool and your share of it
    Status,
}

/// What every command works with.
struct Context {
    config: Config,
    output: Output,
}

impl Context {
    /// Connects, and shows a key that was taken on trust.
    fn connect(&self) -> Result<Client, Failure> {
        self.connect_with(&self.config)
    }

    fn connect_with(&self, config: &Config) -> Result<Client, Failure> {
        let client = Client::connect(config)?;
        if let Some(old) = client.followed() {
            self.output.notice(&format!(
                "the auth daemon at {} has a new key, {}, which its old one, {old}, has signed. The new one is pinned in {}",
                config.authd(),
                client.authd(),
                config.pins_path().display()
            ));
        }
        if client.first_contact() && client.followed().is_none() && config.authd_fingerprint.is_none() {
            self.output.notice(&format!(
                "first contact with the auth daemon at {}: its fingerprint is {}. Compare it with what its operator says. \
                 It is pinned in {} from now on",
                config.authd(),
                client.authd(),
                config.pins_path().display()
            ));
        }
        Ok(client)
    }
}

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help is no error, and a closed output is none of ours.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "overbank=warn".into()),
        )
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    let output = Output { json: args.json };
    // Lease keys are in this process: no core dump, and nobody of this user's other processes looks in.
    // Whom we start would inherit the limit, but not the other.
    let starts = matches!(args.command, Command::Asking(Asking::Run(_)));
    let limited = if starts { Ok(()) } else { setrlimit(Resource::RLIMIT_CORE, 0, 0) };
    let closed = limited.and_then(|()| nix::sys::prctl::set_dumpable(false));
    if let Err(error) = closed {
        output.notice(&format!("this process may leave a core dump with lease keys in it: {error}"));
    }
    lock_memory();
    let answered = match args.command {
        Command::Devices(devices) => devices.run(output),
        Command::Receipt(receipt) => receipt.run(output),
        Command::Asking(asking) => ask(args.home, &args.authd, args.request_deadline, asking, output),
    };
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.status().0)
        }
    }
}

/// Keeps keys out of swap, where memory may be locked without a limit: with one, a buffer beyond it could not be had.
fn lock_memory() {
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == libc::RLIM_INFINITY);
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if unlimited && let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault) {
        tracing::debug!(%error, "memory is not locked");
    }
}

fn ask(home: Option<PathBuf>, authd: &str, deadline: Duration, asking: Asking, output: Output) -> Result<(), Failure> {
    let home = match home {
        Some(home) if home.as_os_str().is_empty() => return Err(Failure::Usage("--home is empty".to_owned())),
        Some(home) => home,
        None => Config::default_home()?,
    };
    let mut config = Config::new(authd, home)?;
    config.deadline = deadline;
    let context = Context { config, output };
    match asking {
        Asking::Id(id) => id.run(&context),
        Asking::Join(join) => join.run(&context),
        Asking::Trust(trust) => trust.run(&context),
        Asking::Provider(provider) => provider.run(&context),
        Asking::Tenant(tenant) => tenant.run(&context),
        Asking::Proposal(proposal) => proposal.run(&context),
        Asking::Shutdown => operate::shutdown(&context),
        Asking::Audit(audit) => audit.run(&context),
        Asking::Lease(lease) => lease.run(&context),
        Asking::Put(put) => put.run(&context),
        Asking::Get(get) => get.run(&context),
        Asking::Run(run) => run.run(&context),
        Asking::Status => identity::status(&context),
    }
}

/// A duration that is not zero.
fn some_time(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(time) if time.is_zero() => Err("it has to be longer than nothing".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// A size that is not zero.
fn some_size(text: &str) -> Result<u64, String> {
    match text.parse::<overbank::Size>() {
        Ok(overbank::Size(0)) => Err("it has to be at least one byte".to_owned()),
        Ok(size) => Ok(size.0),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
