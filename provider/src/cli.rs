//! The command line, and what the process exits with.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use overbank_fabric::daemon::sandbox::Mode;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::message::Invitation;
use overbank_fabric::units::{Size, parse_duration};
use overbank_verbs::Mtu;
use tracing_subscriber::EnvFilter;

use crate::pages::Pages;
use crate::rotate::{self, Rotated};
use crate::serve;

const STATUSES: &str = "\
Exit statuses:
  0   stopped by a signal, all memory cleaned
  1   another failure (the device, memory that could not be cleaned)
  2   the command line
  4   not trusted: revoked, not a provider, or a bad invitation
  5   the auth daemon's key is not the pinned one
  6   no room: the pool's memory or hugepages cannot be had
  12  local state: the state directory, the key file";

const ROTATE_STATUSES: &str = "\
Exit statuses:
  0   it has taken over, or does at the next start
  1   the provider runs and has not handed over within 30 s; it goes on trying
  2   the command line
  4   the auth daemon takes no new key of it
  12  local state: the state directory, a key file";

const EXAMPLES: &str = "\
Examples:
  overbank-provider serve --authd 10.0.0.1 --state /var/lib/overbank --pool 64GiB --invitation CODE
  overbank-provider serve --authd 127.0.0.1:7471 --state ./provider --pool 256MiB --pages thp

An identity that nobody has approved waits; an operator lets it in with
  overbank trust approve FINGERPRINT --role provider
SIGTERM or SIGINT ends all leases, cleans their memory and stops; a second one stops at once.";

/// Lends this machine's memory.
#[derive(Debug, Parser)]
#[command(name = "overbank-provider", version, after_help = STATUSES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lend memory until stopped.
    #[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{STATUSES}"))]
    Serve(Box<Serve>),
    /// Give the provider a new key, which the old one signs. It goes on meanwhile, and so do its leases.
    ///
    /// A provider that runs hands over at once, and this waits for it; one that is stopped does when it starts. Run it as
    /// the provider's user. What was lent before goes on being signed by the old key, as long as the provider runs.
    #[command(after_help = ROTATE_STATUSES)]
    Rotate {
        /// The directory with the provider's key.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print {"fingerprint", "took_over_from", "done"} as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `serve`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Address of the auth daemon; port 7471 unless given.
    #[arg(long, value_name = "HOST[:PORT]", env = "OVERBANK_AUTHD", value_parser = parse_authd)]
    pub authd: String,
    /// Directory of this provider's key and of the auth daemon's pinned fingerprint; made if there is none.
    #[arg(long, value_name = "DIR", required_unless_present = "amnesia")]
    pub state: Option<PathBuf>,
    /// Write no file: a new identity at each start, which joins with an invitation or waits for approval.
    #[arg(long, conflicts_with = "state")]
    pub amnesia: bool,
    /// The auth daemon's fingerprint, as it prints it; without it, or an invitation, the first one met is pinned.
    #[arg(long, value_name = "FINGERPRINT")]
    pub authd_fingerprint: Option<Fingerprint>,
    /// One-time code to join with, where this provider is not yet trusted.
    #[arg(long, value_name = "CODE", env = "OVERBANK_INVITATION", hide_env_values = true, value_parser = parse_invitation)]
    pub invitation: Option<Invitation>,
    /// Memory to lend, rounded up to whole pages.
    #[arg(long, value_name = "SIZE", value_parser = parse_pool)]
    pub pool: Size,
    /// Pages of the pool. auto: hugepages of 2 MiB where enough are free, else transparent ones with a warning.
    #[arg(long, value_enum, default_value_t = Pages::Auto)]
    pub pages: Pages,
    /// RDMA device: a name, soft, or auto.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub device: String,
    /// Local address that borrowers reach. Default: the one from which the auth daemon is reached.
    #[arg(long, value_name = "IP", value_parser = parse_address)]
    pub address: Option<IpAddr>,
    /// UDP port of the soft device. Default: 4791 where it is free, else any.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// How long the soft device polls for the next packet before it sleeps.
    #[arg(long, value_name = "TIME", default_value = "50us", value_parser = parse_spin)]
    pub spin: Duration,
    /// So many of a million datagrams the soft device does not send: for tests and measurements of loss.
    #[cfg(any(debug_assertions, feature = "lossy"))]
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub lose_per_million: u32,
    /// Most bytes in one packet; what fits through the network between. Real devices take 4096 at most.
    #[arg(long, value_name = "BYTES", default_value = "8192", value_parser = parse_mtu)]
    pub mtu: Mtu,
    /// Longest time until a lease's deadline.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_max_lease)]
    pub max_lease: Duration,
    /// Started as root: become this user first, who then owns the state directory.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What is left to the process, by seccomp and Landlock. auto: as much as this kernel offers; strict: all of it, or it does
    /// not start; off.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = str::parse::<Mode>)]
    pub sandbox: Mode,
    /// How log lines on stderr look. RUST_LOG chooses which there are.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Serve {
    /// How many of a million datagrams are lost on purpose: in a release build without the feature `lossy`, none.
    #[must_use]
    pub fn lose_per_million(&self) -> u32 {
        #[cfg(any(debug_assertions, feature = "lossy"))]
        return self.lose_per_million;
        #[cfg(not(any(debug_assertions, feature = "lossy")))]
        0
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

fn parse_authd(text: &str) -> Result<String, String> {
    const PORT: u16 = 7471;
    if text.is_empty() {
        return Err("an address is HOST or HOST:PORT".to_owned());
    }
    // An IPv6 address has colons of its own; with a port it stands in brackets.
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(std::net::SocketAddr::new(address, PORT).to_string());
    }
    match text.rsplit_once(':') {
        None => Ok(format!("{text}:{PORT}")),
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        Some(_) => Err(format!("'{text}' is no address: write HOST or HOST:PORT")),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            Err(format!("borrowers cannot reach {address}: name one address of this machine"))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(format!("'{text}' is no IP address")),
    }
}

/// The code is a secret: what is wrong with it is said without it.
fn parse_invitation(text: &str) -> Result<Invitation, String> {
    text.trim().parse().map_err(|error| format!("this is no invitation code ({error}); it is FINGERPRINT.SECRET"))
}

fn parse_pool(text: &str) -> Result<Size, String> {
    match text.parse::<Size>() {
        Ok(Size(0)) => Err("a pool has at least one page".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

/// Microseconds too: how long to spin is short.
fn parse_spin(text: &str) -> Result<Duration, String> {
    let micros = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    let spin = match text.strip_suffix("us").or_else(|| text.strip_suffix("µs")) {
        Some(digits) => micros(digits).map(Duration::from_micros),
        None => parse_duration(text).ok(),
    };
    match spin {
        Some(spin) if spin <= Duration::from_secs(1) => Ok(spin),
        Some(_) => Err("spinning for more than 1s wakes up no earlier".to_owned()),
        None => Err(format!("'{text}' is no duration: write a whole number and us, ms or s, such as 50us")),
    }
}

fn parse_mtu(text: &str) -> Result<Mtu, String> {
    let sizes = ["256", "512", "1024", "2048", "4096", "8192"];
    let found = sizes.iter().zip(Mtu::ALL).find(|(size, _)| **size == text);
    found.map(|(_, mtu)| mtu).ok_or_else(|| format!("the path MTU is one of {}", sizes.join(", ")))
}

fn parse_max_lease(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(longest) if longest < Duration::from_secs(1) => Err("leases are at least 1s long".to_owned()),
        Ok(longest) => Ok(longest),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let failed = |error: &dyn Display, status| {
        // Nobody is left to tell where stderr is gone.
        let _ = writeln!(std::io::stderr(), "overbank-provider: {error}");
        ExitCode::from(status)
    };
    match Cli::parse().command {
        Command::Serve(options) => {
            log_to_stderr(options.log_format);
            serve::serve(*options).map_or_else(|error| failed(&error, error.status()), |()| ExitCode::SUCCESS)
        }
        Command::Rotate { state, json } => rotate::rotate(&state).map_or_else(
            |error| failed(&error, error.status()),
            |rotated| {
                let _ = writeln!(std::io::stdout(), "{}", said(rotated, json));
                ExitCode::SUCCESS
            },
        ),
    }
}

fn said(Rotated { old, new, done }: Rotated, json: bool) -> String {
    match (json, done) {
        (true, _) => format!(r#"{{"fingerprint":"{new}","took_over_from":"{old}","done":{done}}}"#),
        (false, true) => format!("{new} took over from {old}; leases go on"),
        (false, false) => format!("{new} takes over from {old} when the provider starts"),
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Serve, clap::Error> {
        let mut line = vec!["overbank-provider", "serve"];
        for default in [["--authd", "localhost"], ["--state", "/tmp/x"], ["--pool", "2GiB"]] {
            if !args.contains(&default[0]) {
                line.extend(default);
            }
        }
        Cli::try_parse_from(line.iter().chain(args)).map(|cli| {
            let Command::Serve(serve) = cli.command else { panic!("another command") };
            *serve
        })
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_as_documented() {
        let serve = parse(&[]).expect("complete");
        assert_eq!(serve.authd, "localhost:7471");
        assert_eq!((serve.pool, serve.pages, serve.mtu), (Size(2 << 30), Pages::Auto, Mtu::Mtu8192));
        assert_eq!((serve.spin, serve.max_lease), (Duration::from_micros(50), Duration::from_secs(86400)));
        assert_eq!(serve.device, "auto");
    }

    #[test]
    fn wrong_values_are_refused_and_named() {
        for (args, named) in [
            (["--pool", "lots"], "lots"),
            (["--pool", "0"], "at least one page"),
            (["--spin", "1h"], "1s"),
            (["--spin", "+1us"], "no duration"),
            (["--mtu", "1500"], "256"),
            (["--max-lease", "10"], "no duration"),
            (["--pages", "4M"], "4M"),
            (["--authd", "a:b"], "HOST"),
            (["--authd", ":7471"], "HOST"),
            (["--authd-fingerprint", "12"], "40 hexadecimal"),
            (["--address", "0.0.0.0"], "cannot reach"),
            (["--address", "localhost"], "no IP address"),
            (["--invitation", "abc"], "no invitation code"),
        ] {
            let error = parse(&args).expect_err("refused").to_string();
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }

    #[test]
    fn addresses_get_the_default_port() {
        for (text, whole) in
            [("h", "h:7471"), ("h:1", "h:1"), ("::1", "[::1]:7471"), ("[::1]", "[::1]:7471"), ("[::1]:9", "[::1]:9")]
        {
            assert_eq!(parse_authd(text).as_deref(), Ok(whole));
        }
    }
}
