//! An auth daemon with its operator, a provider, and borrowers: each in a directory of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Daemon, Outcome, Running, eventually, private, program};

thread_local! {
    /// Whether this test's programs log all that they have to say.
    static LOUD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// How much slower all is than on the soft device: with a real one, these tests run in a virtual machine.
fn pace() -> u32 {
    if device() == "soft" { 1 } else { 3 }
}

/// That much time where all goes at its usual pace.
pub(crate) fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count) * pace()
}

/// The same, as a command takes it.
pub(crate) fn ttl(seconds: u32) -> String {
    format!("{}s", seconds * pace())
}

/// The provider's pool: small, so that all of it can be looked at.
pub(crate) const POOL: usize = 16 << 20;

/// The device that provider and consumers use: OVERBANK_TEST_DEVICE, or the soft one.
pub(crate) fn device() -> String {
    std::env::var("OVERBANK_TEST_DEVICE").unwrap_or_else(|_| "soft".to_owned())
}

pub(crate) struct Stack {
    // Daemons first: they end before their directories go.
    pub(crate) provider: Option<Daemon>,
    pub(crate) authd: Option<Daemon>,
    pub(crate) address: String,
    pub(crate) operator: User,
    root: tempfile::TempDir,
}

impl Stack {
    /// All of it, ready, with logs of all that there is to say, and more arguments of the auth daemon's; those that do not
    /// begin with a dash are files beside its state.
    pub(crate) fn loud(authd: &[&str]) -> Self {
        LOUD.set(true);
        Self::with(authd)
    }

    /// All of it, ready.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// The same, with these arguments more for the auth daemon; see [`Stack::loud`].
    pub(crate) fn with(more: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let init = run(program_with("overbank-authd", &["init", "--json", "--state"]).arg(root.path().join("authd")));
        let init = init.expect(0).json();
        let authd = serve_with(root.path(), "127.0.0.1:0", more);
        let address = address(&authd);
        let operator = User::new(root.path(), "operator", &address);
        operator.run(&["join", text(&init, "operator_invitation")]).expect(0);
        let mut stack = Self { provider: None, authd: Some(authd), address, operator, root };
        stack.provider = Some(stack.start_provider(&["--invitation", &stack.invite(&["--role", "provider"])]));
        stack
    }

    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// A provider on the stack's provider directory.
    pub(crate) fn start_provider(&self, more: &[&str]) -> Daemon {
        let mut command = program_with("overbank-provider", &["serve", "--authd", &self.address, "--state"]);
        command.arg(self.path().join("provider"));
        for default in [["--pool", "16MiB"], ["--pages", "plain"], ["--device", &device()]] {
            if !more.contains(&default[0]) {
                command.args(default);
            }
        }
        command.args(more);
        Daemon::start(&mut command)
    }

    /// The same auth daemon again, at the same address.
    pub(crate) fn restart_authd(&mut self) {
        self.authd = None;
        self.authd = Some(serve(self.path(), &self.address));
    }

    /// The same auth daemon again, with a new key that the old one has signed.
    pub(crate) fn rotate_authd(&mut self) -> Value {
        self.rotate_authd_with(&[])
    }

    /// With more arguments of the auth daemon's after it.
    pub(crate) fn rotate_authd_with(&mut self, more: &[&str]) -> Value {
        self.authd = None;
        let mut command = program_with("overbank-authd", &["rotate", "--json", "--state"]);
        let rotated = run(command.arg(self.path().join("authd"))).expect(0).json();
        self.authd = Some(serve_with(self.path(), &self.address, more));
        rotated
    }

    /// An auth daemon with another key, at the same address.
    pub(crate) fn replace_authd(&mut self) {
        self.authd = None;
        let other = self.path().join("other");
        private(&other);
        run(program_with("overbank-authd", &["init", "--json", "--state"]).arg(other.join("authd"))).expect(0);
        self.authd = Some(serve(&other, &self.address));
    }

    pub(crate) fn provider_pid(&self) -> u32 {
        self.provider.as_ref().expect("it runs").pid()
    }

    /// An invitation's code.
    pub(crate) fn invite(&self, role: &[&str]) -> String {
        let args: Vec<&str> = ["trust", "invite", "--json"].iter().chain(role).copied().collect();
        text(&self.operator.run(&args).expect(0).json(), "invitation").to_owned()
    }

    /// A borrower of that tenant, trusted.
    pub(crate) fn consumer(&self, name: &str, tenant: &str) -> User {
        let user = self.stranger(name);
        user.run(&["join", &self.invite(&["--role", "consumer", "--tenant", tenant])]).expect(0);
        user
    }

    /// Somebody whom nobody knows.
    pub(crate) fn stranger(&self, name: &str) -> User {
        User::new(self.path(), name, &self.address)
    }

    /// The lease as its holder's list has it.
    pub(crate) fn lease(&self, user: &User, lease: &str) -> Value {
        let list = user.run(&["lease", "list", "--json"]).expect(0).json();
        let leases = list["leases"].as_array().expect("a list").clone();
        leases.into_iter().find(|entry| entry["lease"] == lease).expect("it is listed")
    }

    /// Waits until the auth daemon has heard of the end of a lease and of its wipe.
    pub(crate) fn wait_ended(&self, user: &User, lease: &str) {
        eventually("the lease has ended", seconds(15.0), || self.lease(user, lease)["state"] == "ended");
    }
}

/// Somebody with an identity, and a directory for lease files.
pub(crate) struct User {
    pub(crate) home: PathBuf,
    pub(crate) runtime: PathBuf,
    address: String,
}

impl User {
    pub(crate) fn new(root: &Path, name: &str, address: &str) -> Self {
        let (home, runtime) = (root.join(name), root.join(format!("{name}.run")));
        private(&runtime);
        Self { home, runtime, address: address.to_owned() }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = program_with("overbank", args);
        if let Some(&("put" | "get")) = args.first() {
            command.args(["--device", &device()]);
        }
        command
            .stdin(Stdio::null())
            .env("OVERBANK_HOME", &self.home)
            .env("OVERBANK_AUTHD", &self.address)
            .env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        run(&mut self.command(args))
    }

    /// A new lease's id.
    #[track_caller]
    pub(crate) fn lease(&self, size: &str, ttl: &str) -> String {
        let outcome = self.run(&["lease", "create", "--size", size, "--ttl", ttl, "--json"]).expect(0);
        text(&outcome.json(), "lease").to_owned()
    }

    /// Writes bytes.
    #[track_caller]
    pub(crate) fn put(&self, target: &str, bytes: &[u8]) -> Outcome {
        let file = self.home.join("to-put");
        std::fs::write(&file, bytes).expect("written");
        self.run(&["put", target, &file.display().to_string()])
    }

    /// A `put` of 6 MiB that got the first 4 and has begun to write them; it waits for the rest.
    #[track_caller]
    pub(crate) fn half_way(&self, lease: &str, first: &[u8]) -> (Running, ChildStdin) {
        let file = self.runtime.join(format!("overbank/{lease}.lease"));
        let before = std::fs::read(&file).expect("it");
        let mut running = Running::start(self.command(&["put", lease, "-", "--len", "6MiB"]).stdin(Stdio::piped()));
        let mut stdin = running.child.stdin.take().expect("piped");
        stdin.write_all(first).expect("taken");
        eventually("it writes", seconds(20.0), || std::fs::read(&file).expect("it") != before);
        (running, stdin)
    }

    /// Reads bytes.
    #[track_caller]
    pub(crate) fn get(&self, target: &str, len: usize) -> Vec<u8> {
        let bytes = self.run(&["get", target, "-", "--len", &len.to_string()]).expect(0).stdout;
        assert_eq!(bytes.len(), len);
        bytes
    }

    /// Reads into a file, which must then be there or, where it failed, not.
    #[track_caller]
    pub(crate) fn try_get(&self, target: &str) -> Outcome {
        let file = self.home.join("got");
        let outcome = self.run(&["get", target, &file.display().to_string()]);
        assert_eq!(std::fs::remove_file(&file).is_ok(), outcome.status == 0, "{}", outcome.stderr);
        let left: Vec<_> =
            std::fs::read_dir(&self.home).expect("it").map(|entry| entry.expect("it").file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("got")), "{left:?}");
        outcome
    }
}

pub(crate) fn program_with(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(args);
    for (variable, _) in std::env::vars_os() {
        // What the tests' own surroundings say is not what is tested; a daemon refuses a library path.
        let name = variable.to_string_lossy();
        if name.starts_with("OVERBANK") || name.starts_with("LD_") || name == "RUST_LOG" {
            command.env_remove(variable);
        }
    }
    if LOUD.get() {
        command.env("RUST_LOG", "trace");
    }
    command
}

#[track_caller]
pub(crate) fn run(command: &mut Command) -> Outcome {
    Running::start(command).end()
}

fn serve(root: &Path, listen: &str) -> Daemon {
    serve_with(root, listen, &[])
}

fn serve_with(root: &Path, listen: &str, more: &[&str]) -> Daemon {
    let mut command = program_with("overbank-authd", &["serve", "--listen", listen, "--state"]);
    command.arg(root.join("authd"));
    for argument in more {
        match argument.starts_with('-') {
            true => command.arg(argument),
            false => command.arg(root.join(argument)),
        };
    }
    Daemon::start(&mut command)
}

/// The address in `overbank-authd listening on ADDRESS, fingerprint …`.
pub(crate) fn address(authd: &Daemon) -> String {
    let address = authd.ready.split("listening on ").nth(1).and_then(|rest| rest.split(',').next());
    address.unwrap_or_else(|| panic!("no address in: {}", authd.ready)).to_owned()
}

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// Bytes that look like nothing else, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
