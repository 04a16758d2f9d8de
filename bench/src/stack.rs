//! A whole Overbank for one measurement: an auth daemon and a provider in a directory of their own, joined by invitation.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use overbank::Config;
use overbank_fabric::units::Size;
use tempfile::TempDir;

use crate::answer::own_binary;
use crate::cpus::{self, Cpus};
use crate::error::BenchError;
use crate::peer::Peer;
use crate::process::Usage;

/// Memory that the provider lends.
pub(crate) const POOL: Size = Size(128 << 20);

/// Which processor each runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// Who starts them, and measures.
    pub(crate) home: usize,
    pub(crate) authd: usize,
    pub(crate) provider: usize,
}

/// How daemons are started.
pub(crate) struct Setup<'a> {
    device: &'a str,
    pool: Size,
    /// On which processors; else on any.
    pub(crate) places: Option<Places>,
    /// Further arguments of the auth daemon.
    pub(crate) authd: Vec<String>,
    /// And of the provider.
    pub(crate) provider: Vec<String>,
}

impl<'a> Setup<'a> {
    /// A provider that lends so much through this device.
    pub(crate) fn new(device: &'a str, pool: Size) -> Self {
        Self { device, pool, places: None, authd: Vec::new(), provider: Vec::new() }
    }

    /// Who makes and gives back more leases than anybody has use for is not to be held up by how much room the audit
    /// log has.
    pub(crate) fn with_a_large_log(mut self) -> Self {
        self.authd.extend(["--audit-max-records", "1000000000", "--audit-max-bytes", "1TiB"].map(str::to_owned));
        self
    }
}

/// Running daemons. Ended and removed when dropped, the provider first.
pub(crate) struct Stack {
    /// How a consumer of theirs connects.
    pub(crate) config: Config,
    /// How their operator connects.
    pub(crate) operator: Config,
    _provider: Peer,
    authd: Peer,
    _dir: TempDir,
}

impl Stack {
    /// Starts them from the binaries beside this program, the provider on its processor.
    pub(crate) fn start(device: &str, cpus: Cpus) -> Result<Self, BenchError> {
        let places = Places { home: cpus.asker, authd: cpus.asker, provider: cpus.answerer };
        Self::set_up(&Setup { places: Some(places), ..Setup::new(device, POOL) })
    }

    /// The same, as it is asked for.
    pub(crate) fn set_up(setup: &Setup<'_>) -> Result<Self, BenchError> {
        let started = |place: fn(&Places) -> usize, serve: Command, log: &Path| match &setup.places {
            Some(places) => cpus::started_on(place(places), places.home, || Peer::start(serve, Some(log))),
            None => Peer::start(serve, Some(log)),
        };
        let dir = tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?;
        let at = |name: &str| dir.path().join(name);
        let init = output(beside("overbank-authd")?.args(["init", "--json", "--state"]).arg(at("authd")))?;
        let mut serve = beside("overbank-authd")?;
        serve.args(["serve", "--listen", "127.0.0.1:0"]).args(&setup.authd).arg("--state").arg(at("authd"));
        let authd = started(|places| places.authd, serve, &at("authd.log"))?;
        let hello = authd.line()?;
        let address = hello.split(['=', ' ', ',']).find(|word| word.contains(':'));
        let address = address.ok_or_else(|| authd.failed(&format!("said '{hello}', not its address")))?.to_owned();

        let overbank = |home: &str, arguments: &[&str]| -> Result<serde_json::Value, BenchError> {
            let mut command = beside("overbank")?;
            output(command.args(["--json", "--authd", &address, "--home"]).arg(at(home)).args(arguments))
        };
        overbank("operator", &["join", text(&init, "operator_invitation")?])?;
        let invitation = overbank("operator", &["trust", "invite", "--role", "provider"])?;
        let pool = setup.pool.0.to_string();
        let mut serve = beside("overbank-provider")?;
        serve
            .args(["serve", "--authd", &address, "--pool", &pool, "--address", "127.0.0.1", "--spin", "10ms"])
            .args(&setup.provider)
            .args(["--device", setup.device, "--invitation", text(&invitation, "invitation")?, "--state"])
            .arg(at("provider"));
        let provider = started(|places| places.provider, serve, &at("provider.log"))?;
        provider.line()?;
        let invitation = overbank("operator", &["trust", "invite", "--role", "consumer", "--tenant", "bench"])?;
        overbank("consumer", &["join", text(&invitation, "invitation")?])?;
        let config = Config::new(&address, at("consumer")).map_err(overbank::Error::from)?.with_leases(at("leases"));
        let operator = Config::new(&address, at("operator")).map_err(overbank::Error::from)?;
        Ok(Self { config, operator, _provider: provider, authd, _dir: dir })
    }

    /// What the auth daemon uses.
    pub(crate) fn authd_usage(&self) -> Result<Usage, BenchError> {
        Usage::of(self.authd.pid())
    }
}

/// Whether the provider that was built together with this one knows these options of `serve`.
pub(crate) fn provider_takes(options: &[String]) -> Result<bool, BenchError> {
    let asked = beside("overbank-provider")?.arg("serve").args(options).arg("--help").output();
    Ok(asked.map_err(BenchError::io("start overbank-provider"))?.status.success())
}

/// A program that was built and installed together with this one.
fn beside(program: &str) -> Result<Command, BenchError> {
    let path: PathBuf = own_binary()?.parent().unwrap_or(Path::new(".")).join(program);
    if path.is_file() {
        let mut command = Command::new(path);
        // The daemons refuse to run with other libraries than their own.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LD_")) {
            command.env_remove(name);
        }
        return Ok(command);
    }
    Err(BenchError::Usage(format!(
        "there is no {}: build or install all of Overbank's programs together",
        path.display()
    )))
}

/// Runs a command to its end; the JSON it answers with.
fn output(command: &mut Command) -> Result<serde_json::Value, BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |what: String| BenchError::Child { program: program.clone(), what };
    let Output { status, stdout, stderr } = command.output().map_err(BenchError::io(format!("start {program}")))?;
    if !status.success() {
        return Err(failed(format!("failed ({status}): {}", String::from_utf8_lossy(&stderr).trim())));
    }
    serde_json::from_slice(&stdout).map_err(|error| failed(format!("did not answer in JSON: {error}")))
}

fn text<'a>(answer: &'a serde_json::Value, field: &str) -> Result<&'a str, BenchError> {
    answer[field].as_str().ok_or_else(|| BenchError::Usage(format!("an answer without {field}")))
}
