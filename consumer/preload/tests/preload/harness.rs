//! Starts programs with the library preloaded, and compiles those that are ours.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const MIB: usize = 1 << 20;

/// The library, beside this test's own program.
pub(crate) fn library() -> PathBuf {
    let mut directory = std::env::current_exe().expect("a test knows its own program");
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let path = directory.join("liboverbank_preload.so");
    assert!(path.is_file(), "{} is not there: run `cargo build -p overbank-preload` first", path.display());
    path
}

/// A directory, with a pool for the programs that run in it.
pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) remote: usize,
    pub(crate) local: usize,
    /// More variables.
    pub(crate) more: Vec<(&'static str, &'static str)>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Negative: the signal.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

impl Bench {
    pub(crate) fn new(remote_mib: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory, remote: remote_mib * MIB, local: 8 * MIB, more: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has the library preloaded into that program.
    pub(crate) fn with_pool(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", library())
            .env("OVERBANK_RUN_REMOTE", self.remote.to_string())
            .env("OVERBANK_RUN_LOCAL", self.local.to_string())
            .env("OVERBANK_RUN_LOCK", self.path("lock"))
            .env("OVERBANK_RUN_STATISTICS", self.path("statistics"))
            .envs(self.more.iter().copied());
    }

    /// Runs it with the pool. The time that it may take is bounded.
    #[track_caller]
    pub(crate) fn run(&self, program: &Path, args: &[&str]) -> Outcome {
        let mut command = bounded(program, args);
        // Where `timeout` runs the library does too, and asks for nothing large.
        self.with_pool(&mut command);
        outcome(&mut command, b"")
    }

    /// The lines of those that had the pool, in the order in which they ended.
    pub(crate) fn statistics(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("statistics")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// The one line, of one that used it.
    #[track_caller]
    pub(crate) fn used(&self, at_least: usize) -> Value {
        let lines = self.statistics();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let bytes = lines[0]["bytes"].as_u64().expect("a number");
        assert!(bytes >= at_least as u64, "the pool was not used: {}", lines[0]);
        lines[0].clone()
    }

    /// Compiles C or C++.
    pub(crate) fn compile(&self, compiler: &str, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let file = self.path(&format!("{name}.{}", if compiler == "c++" { "cc" } else { "c" }));
        std::fs::write(&file, source).expect("written");
        let program = self.path(name);
        let compiled = outcome(Command::new(compiler).arg(&file).arg("-o").arg(&program).args(flags), b"");
        compiled.expect(0);
        program
    }
}

/// The same without any pool.
pub(crate) fn plainly(program: &Path, args: &[&str]) -> Outcome {
    outcome(&mut bounded(program, args), b"")
}

pub(crate) fn bounded(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg("100").arg(program).args(args).env("LC_ALL", "C");
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("OVERBANK") || name.starts_with("LD_") {
            command.env_remove(variable);
        }
    }
    command
}

pub(crate) fn outcome(command: &mut Command, input: &[u8]) -> Outcome {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("it starts");
    // A program need not read all of it.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("it ends");
    let status = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Where that program is, if it is installed.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|path| path.join(name)).find(|path| path.is_file())
}
