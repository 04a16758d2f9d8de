//! `overbank-authd`: see `overbank-authd --help`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overbank_authd::cli::{Cli, Command, Copy, LogFormat, Seal, Serve};
use overbank_authd::sealed::Secret;
use overbank_authd::server::{ServeError, Server};
use overbank_authd::state::{Made, State, StateError};
use overbank_authd::{Consent, Limits};
use overbank_fabric::daemon::foreign;
use overbank_fabric::daemon::sandbox::{self, Needs};
use overbank_fabric::daemon::user::give_up_rights;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !cfg!(feature = "danger-foreign-code")
        && let Err(error) = foreign::refuse()
    {
        eprintln!("overbank-authd: {error}");
        return ExitCode::FAILURE;
    }
    let done = match command {
        Command::Init { state, listen, seal, json } => init(&state, &seal, listen, json),
        Command::Backup(copy) => backup(&copy),
        Command::Restore(copy) => restore(&copy),
        Command::Rotate { state, seal, json } => rotate(&state, &seal, json),
        Command::Serve(how) => serve(&how),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overbank-authd: {}", chain(&*error));
            status(&*error)
        }
    }
}

/// The error with its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(&format!(": {said}"));
        }
        cause = error.source();
    }
    text
}

fn status(error: &(dyn Error + 'static)) -> ExitCode {
    ExitCode::from(match (error.downcast_ref::<StateError>(), error.downcast_ref::<ServeError>()) {
        (Some(StateError::InUse { .. }), _) => 4,
        (Some(_), _) | (_, Some(ServeError::Store(_))) => 3,
        (_, Some(ServeError::Listen { .. })) => 5,
        (_, Some(ServeError::AuditFile(_))) => 6,
        _ => 1,
    })
}

fn init(dir: &Path, seal: &Seal, listen: SocketAddr, json: bool) -> Result<(), Box<dyn Error>> {
    let secret = seal.secret().map_err(StateError::from)?;
    let made = State::init_sealed(dir, secret.as_ref())?;
    let (fingerprint, invitation) = (made.fingerprint.to_string(), made.operator_invitation.code());
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({"fingerprint": fingerprint, "operator_invitation": invitation}))?;
    } else {
        writeln!(out, "state:               {}", dir.display())?;
        writeln!(out, "fingerprint:         {fingerprint}")?;
        writeln!(out, "operator invitation: {invitation}")?;
        writeln!(out, "The invitation is good once, within 7 days, and a secret until then. To go on:")?;
        writeln!(out, "  overbank-authd serve --state {} --listen {listen}", dir.display())?;
        writeln!(out, "  overbank --authd {listen} join INVITATION")?;
    }
    Ok(out.flush()?)
}

/// The secret of a backup, which must have one.
fn secret_of(copy: &Copy) -> Result<Secret, Box<dyn Error>> {
    let secret = copy.seal.secret().map_err(StateError::from)?;
    secret.ok_or_else(|| "a backup is sealed: give --passphrase-file FILE or --key-file FILE".into())
}

fn backup(copy: &Copy) -> Result<(), Box<dyn Error>> {
    State::backup(&copy.state, &copy.file, &secret_of(copy)?)?;
    Ok(writeln!(std::io::stdout(), "backed up to {}", copy.file.display())?)
}

fn restore(copy: &Copy) -> Result<(), Box<dyn Error>> {
    State::restore(&copy.state, &copy.file, &secret_of(copy)?)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "restored to {}", copy.state.display())?;
    Ok(writeln!(out, "It is as of the backup: who was revoked since then is trusted again.")?)
}

/// Takes up the state that is to be served; what it made, where there was none.
fn state(how: &Serve) -> Result<(State, Option<Made>), Box<dyn Error>> {
    let secret = how.seal.secret().map_err(StateError::from)?;
    let (mut state, made) = match &how.state {
        Some(dir) if !how.amnesia => (State::open_sealed(dir, secret.as_ref())?, None),
        _ => State::in_memory(how.identity.as_deref()).map(|(state, made)| (state, Some(made)))?,
    };
    state.audit_files = how.audit_files();
    Ok((state, made))
}

fn rotate(dir: &Path, seal: &Seal, json: bool) -> Result<(), Box<dyn Error>> {
    let secret = seal.secret().map_err(StateError::from)?;
    let (old, new) = State::rotate(dir, secret.as_ref())?;
    let mut out = std::io::stdout().lock();
    if json {
        let answer = serde_json::json!({"fingerprint": new.to_string(), "took_over_from": old.to_string()});
        writeln!(out, "{answer}")?;
    } else {
        writeln!(out, "{new} takes over from {old}: start the daemon again")?;
    }
    Ok(out.flush()?)
}

fn serve(how: &Serve) -> Result<(), Box<dyn Error>> {
    log_to_stderr(how.log_format)?;
    // A port below 1024 takes a capability.
    let low_port = (1..1024).contains(&how.listen.port()).then_some(caps::Capability::CAP_NET_BIND_SERVICE);
    give_up_rights(how.user.as_deref(), how.state.as_deref(), low_port.as_slice())?;
    harden();
    let limits = Limits {
        max_lease: how.max_lease,
        quota: how.quota_bytes.map(|size| size.0),
        quota_leases: Some(how.quota_leases),
        max_pending: how.max_pending,
        load: how.load.load(),
        audit: how.audit_bounds(),
        consent: Consent::new(how.approvals, &how.critical),
    };
    let (state, made) = state(how)?;
    confine(how)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("stopping on SIGTERM"),
                _ = interrupt.recv() => tracing::info!("stopping on SIGINT"),
            }
        };
        let server = Server::bind(state, how.listen, limits).await?;
        let (address, fingerprint) = (server.address(), server.fingerprint());
        let mut out = std::io::stdout();
        writeln!(out, "overbank-authd listening on {address}, fingerprint {fingerprint}")?;
        if let Some(made) = made {
            writeln!(out, "operator invitation: {}", made.operator_invitation.code())?;
        }
        out.flush()?;
        tracing::info!(%address, %fingerprint, max_lease = ?limits.max_lease, "serving");
        server.run(stop).await?;
        Ok::<_, Box<dyn Error>>(())
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    served
}

/// Before there are threads: they inherit it.
fn confine(how: &Serve) -> Result<(), Box<dyn Error>> {
    // A log file that is rotated away is made again, in its directory.
    let logs = [&how.audit_file, &how.audit_witness].into_iter().flatten();
    let directory = |file: &PathBuf| match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let write = logs.map(directory).chain(how.state.clone()).collect();
    let needs =
        Needs { write, connect: Vec::new(), listen: vec![how.listen.port()], devices: false, memory_files: false };
    let sandbox = sandbox::confine(how.sandbox, &needs)?;
    tracing::info!(user = %nix::unistd::geteuid(), %sandbox, "confined");
    Ok(())
}

fn log_to_stderr(format: LogFormat) -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env()?;
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logger.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logger.json().init(),
    }
    Ok(())
}

/// No core dump, no debugger and no swap sees the secrets, and there are as many file descriptors as may be.
fn harden() {
    lock_memory();
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    let dumps = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| nix::sys::prctl::set_dumpable(false));
    for (what, done) in [("the limit of open files is not raised", raised), ("core dumps are not off", dumps)] {
        if let Err(error) = done {
            tracing::warn!(%error, "{what}");
        }
    }
}

/// Keeps all memory out of swap, as it is used, where that is allowed without a limit: with one, a thread or a buffer
/// beyond it could not be had.
fn lock_memory() {
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).map(|()| hard == libc::RLIM_INFINITY));
    if unlimited != Ok(true) {
        tracing::info!("memory is not locked, so keys may get into swap: raise RLIMIT_MEMLOCK, or encrypt swap");
        return;
    }
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault) {
        tracing::warn!(%error, "memory is not locked");
    }
}
