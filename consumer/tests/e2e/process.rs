//! Processes that the tests start: found, watched, and killed by their own id.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Longest that any command may take, whatever it waits for.
const COMMAND: Duration = Duration::from_secs(60);
/// Longest that a daemon may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// A program of this workspace, beside the test's own.
pub(crate) fn program(name: &str) -> PathBuf {
    let mut directory = std::env::current_exe().expect("a test knows its own program");
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let path = directory.join(name);
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace` first", path.display());
    path
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Outcome {
    /// The same, if it ended with that status.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]);
        assert_eq!(self.status, status, "stdout: {stdout}\nstderr: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// The same, if its stderr has those words.
    #[track_caller]
    pub(crate) fn saying(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "'{words}' is not in: {}", self.stderr);
        self
    }

    /// Its answer in JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).expect("one JSON object")
    }
}

/// A command that has been started.
pub(crate) struct Running {
    pub(crate) child: Child,
    started: Instant,
    stdout: thread::JoinHandle<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let started = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        Self { child, started, stdout: drain(stdout), stderr: drain(stderr) }
    }

    /// Waits for its end; a command that never ends is killed, and fails the test.
    #[track_caller]
    pub(crate) fn end(mut self) -> Outcome {
        let status = wait(&mut self.child, COMMAND);
        let took = self.started.elapsed();
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let stdout = self.stdout.join().expect("read");
        let stderr = String::from_utf8_lossy(&self.stderr.join().expect("read")).into_owned();
        let status = status.unwrap_or_else(|| panic!("it did not end within {COMMAND:?}; stderr: {stderr}"));
        use std::os::unix::process::ExitStatusExt;
        let status = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        Outcome { status, stdout, stderr, took }
    }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, at_most: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + at_most;
    loop {
        if let Some(status) = child.try_wait().expect("ours to wait for") {
            return Some(status);
        }
        if Instant::now() >= until {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A daemon: ready, and killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// The line that it printed when it was ready.
    pub(crate) ready: String,
    lines: Mutex<Receiver<String>>,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let lines = follow(child.stdout.take().expect("piped"));
        let log = Arc::new(Mutex::new(String::new()));
        let errors = follow(child.stderr.take().expect("piped"));
        let kept = log.clone();
        thread::spawn(move || {
            for line in errors {
                let mut log = kept.lock().expect("no panic");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let ready = lines.recv_timeout(READY);
        let mut daemon = Self { child, ready: String::new(), lines: Mutex::new(lines), log };
        match ready {
            Ok(ready) => {
                daemon.ready = ready;
                daemon
            }
            Err(error) => {
                let why = if error == RecvTimeoutError::Timeout { "is not ready" } else { "ended" };
                panic!("{command:?} {why}; its log: {}", daemon.log())
            }
        }
    }

    /// The next line that it prints.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.lock().expect("no panic").recv_timeout(READY).expect("one more line")
    }

    /// Sends SIGTERM and waits for its end; with which status.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is there");
        wait(&mut self.child, READY).expect("it ends").code()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- the last of the log of process {}", self.child.id());
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn follow(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                // Nobody wants to know, but the daemon must not be stopped by a full pipe.
                continue;
            }
        }
    });
    receiver
}

/// Tries until it is so.
#[track_caller]
pub(crate) fn eventually(what: &str, at_most: Duration, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + at_most;
    while !so() {
        assert!(Instant::now() < until, "not within {at_most:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A directory that nobody else can enter.
pub(crate) fn private(path: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path).expect("made");
}
