//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use overbank_fabric::daemon::sandbox::Mode;
use overbank_fabric::units::{Size, parse_duration};

use crate::audit::Bounds;
use crate::core::Load;
use crate::proposals::Critical;
use crate::sealed::{SealedError, Secret};
use crate::state::AuditFiles;

const LISTEN: &str = "127.0.0.1:7471";

const EXIT_STATUSES: &str = "\
Exit statuses:
  0  done, or stopped by SIGTERM or SIGINT
  1  any other failure
  2  the command line is wrong
  3  the state cannot be used: missing, there already, open to others, damaged, or made by a newer version
  4  the state is in use by another overbank-authd
  5  the address cannot be listened on
  6  a file for the audit log cannot be used";

const EXAMPLES: &str = "\
Examples:
  overbank-authd init --state /var/lib/overbank/authd
      Makes the daemon's identity and database, and prints a one-time invitation for the first operator.
  overbank-authd serve --state /var/lib/overbank/authd --listen 10.0.0.1:7471
      Serves the machines that can reach that address, until SIGTERM.
  overbank --authd 10.0.0.1:7471 join INVITATION
      Makes whoever runs it the first operator.";

/// The auth daemon of Overbank: it knows who is trusted, and grants leases of other machines' memory.
#[derive(Debug, Parser)]
#[command(name = "overbank-authd", version, after_help = format!("{EXAMPLES}\n\n{EXIT_STATUSES}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the daemon can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new state: the daemon's identity, its database, and an invitation for the first operator.
    ///
    /// The invitation can be used once, within 7 days. Whoever has it can become operator: pass it on in secret.
    #[command(after_help = EXIT_STATUSES)]
    Init {
        /// Directory for it: made with mode 0700, or an existing one with that mode and no state in it.
        #[arg(long, value_name = "DIR", env = "OVERBANK_AUTHD_STATE")]
        state: PathBuf,
        /// Where `serve` will listen: only for the commands that are printed as the next steps.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = LISTEN, env = "OVERBANK_AUTHD_LISTEN")]
        listen: SocketAddr,
        /// Seal the identity, so that the file alone is of no use; `serve` then needs the same.
        #[command(flatten)]
        seal: Seal,
        /// Print {"fingerprint", "operator_invitation"} as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give the daemon a new key, which the old one signs. The daemon must be stopped; leases go on meanwhile.
    ///
    /// Clients and providers that know the old key follow to the new one, and say so. Whoever has the old key can still lead
    /// them elsewhere: where it was stolen, make a new state instead, and tell people its fingerprint.
    #[command(after_help = EXIT_STATUSES)]
    Rotate {
        /// The directory that `init` made.
        #[arg(long, value_name = "DIR", env = "OVERBANK_AUTHD_STATE")]
        state: PathBuf,
        /// What the identity in it was sealed with; the new one is sealed with the same.
        #[command(flatten)]
        seal: Seal,
        /// Print {"fingerprint", "took_over_from"} as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve consumers, operators and providers.
    ///
    /// Prints one line when it is ready: `overbank-authd listening on ADDRESS, fingerprint FINGERPRINT`. Logs to stderr;
    /// RUST_LOG sets how much (default: info).
    #[command(after_help = EXIT_STATUSES)]
    Serve(Box<Serve>),
    /// Write an encrypted copy of a state to a new file, whether it is being served or not.
    #[command(after_help = EXIT_STATUSES)]
    Backup(Copy),
    /// Make a new state of a backup.
    ///
    /// It is as of the backup: who was revoked since then is trusted again. Revoke them anew before others reach it.
    #[command(after_help = EXIT_STATUSES)]
    Restore(Copy),
}

/// A copy of a state in a file.
#[derive(Debug, clap::Args)]
pub struct Copy {
    /// The backup: made new, or read.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The directory of the state.
    #[arg(long, value_name = "DIR", env = "OVERBANK_AUTHD_STATE")]
    pub state: PathBuf,
    /// What opens the backup.
    #[command(flatten)]
    pub seal: Seal,
}

/// What something is sealed with.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub struct Seal {
    /// A file whose first line is a passphrase, mode 0600; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// A file of at least 32 random bytes, mode 0600.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

impl Seal {
    /// The secret, if one is named.
    ///
    /// # Errors
    /// [`SealedError`].
    pub fn secret(&self) -> Result<Option<Secret>, SealedError> {
        match (&self.passphrase_file, &self.key_file) {
            (Some(path), _) => Secret::passphrase(path).map(Some),
            (None, Some(path)) => Secret::key(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// The directory that `init` made.
    #[arg(long, value_name = "DIR", env = "OVERBANK_AUTHD_STATE", required_unless_present = "amnesia")]
    pub state: Option<PathBuf>,
    /// What the identity in it was sealed with.
    #[command(flatten)]
    pub seal: Seal,
    /// Keep everything in memory and write no file: a new start knows nobody, and prints an invitation for its first
    /// operator. Who was revoked is forgotten too, and so is who was trusted.
    #[arg(long, conflicts_with_all = ["state", "passphrase_file"])]
    pub amnesia: bool,
    /// With --amnesia: a key file to be this identity at each start, instead of a new one.
    #[arg(long, value_name = "FILE", requires = "amnesia", conflicts_with = "key_file")]
    pub identity: Option<PathBuf>,
    /// IP address and TCP port to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = LISTEN, env = "OVERBANK_AUTHD_LISTEN")]
    pub listen: SocketAddr,
    /// Longest time that a lease may run before it is renewed: 1s to 30d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = lease_time)]
    pub max_lease: Duration,
    /// Most memory pinned in one tenant's name, such as 64GiB [default: no limit].
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<Size>)]
    pub quota_bytes: Option<Size>,
    /// Most leases of one tenant at once. Like --quota-bytes for tenants that `overbank tenant quota` was not used for.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(0..=1 << 40))]
    pub quota_leases: u64,
    /// Most identities that wait for approval; of more, the one seen longest ago is forgotten.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_pending: u32,
    /// How much at once, and how much a second.
    #[command(flatten)]
    pub load: LoadOptions,
    /// Started as root: become this user first, who then owns the state directory.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What is left to the process, by seccomp and Landlock. auto: as much as this kernel offers; strict: all of it, or it does
    /// not start; off.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = str::parse::<Mode>)]
    pub sandbox: Mode,
    /// Also write the audit log to this file, as JSON lines. As long as it cannot be written, nothing is granted. What it has on a
    /// disk, operators can have the daemon forget.
    #[arg(long, value_name = "FILE")]
    pub audit_file: Option<PathBuf>,
    /// Append the signed heads of the audit log to this file, on a disk of another machine, for `overbank audit verify`.
    #[arg(long, value_name = "FILE")]
    pub audit_witness: Option<PathBuf>,
    /// Most records in the audit log. Where it is full nothing is granted; what ends leases and trust goes on.
    #[arg(long, value_name = "N", default_value_t = Bounds::default().records, value_parser = clap::value_parser!(u64).range(16..=1_000_000_000))]
    pub audit_max_records: u64,
    /// Most bytes in the audit log.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = str::parse::<Size>)]
    pub audit_max_bytes: Size,
    /// How many operators must approve what --critical names. With more than one, making and revoking operators, and
    /// forgetting audit records, takes as many also.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub approvals: u32,
    /// What takes several operators: any of trust, revoke, stop-lease, stop-tenant, stop-provider, drain, shutdown, quota,
    /// with commas.
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',', value_parser = str::parse::<Critical>)]
    pub critical: Vec<Critical>,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How much at once, and how much a second. What is refused for one of these is counted, and shown by `overbank status`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Load")]
pub struct LoadOptions {
    /// Connections at once that have not proven who they are; as many again from addresses of operators, and of others who are
    /// trusted.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_handshakes: u32,
    /// Of those, from one address (an IPv4 address, an IPv6 network of 64 bits).
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_handshakes_each: u32,
    /// Handshakes a second: from one address, and from all that no trusted identity came from lately. From those of operators, and
    /// of others who are trusted, four times as many each.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub handshakes_per_second: u32,
    /// Handshakes at once, where there were none for some time.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub handshake_burst: u32,
    /// Sessions of consumers at once; a tenant gets at most as many as are still free. Operators and providers find room beyond.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_sessions: u32,
    /// Sessions of identities that are not trusted; one address gets at most as many as are still free.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_strangers: u32,
    /// Requests of consumers in flight; a tenant gets at most as many as are still free, an identity half.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_requests: u32,
    /// Requests of consumers and operators that are decided on a second; tenants take turns.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests_per_second: u32,
    /// Requests a second of one identity, and from one address. More wait, as long as their deadline allows.
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests_per_second_each: u32,
}

impl LoadOptions {
    /// As the daemon takes it.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            unproven: self.max_handshakes as usize,
            unproven_each: self.max_handshakes_each as usize,
            handshakes_per_second: self.handshakes_per_second,
            handshake_burst: self.handshake_burst,
            sessions: self.max_sessions as usize,
            strangers: self.max_strangers as usize,
            requests: self.max_requests as usize,
            requests_per_second: self.requests_per_second,
            requests_per_second_each: self.requests_per_second_each,
            ..Load::default()
        }
    }
}

impl Serve {
    /// How large the audit log may become.
    #[must_use]
    pub fn audit_bounds(&self) -> Bounds {
        Bounds { records: self.audit_max_records, bytes: self.audit_max_bytes.0 }
    }

    /// The files that get the audit log.
    #[must_use]
    pub fn audit_files(&self) -> AuditFiles {
        AuditFiles { export: self.audit_file.clone(), witness: self.audit_witness.clone() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn lease_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    match time.as_secs() {
        1..=2_592_000 => Ok(time),
        _ => Err(format!("'{text}': the longest lease is between 1s and 30d")),
    }
}
