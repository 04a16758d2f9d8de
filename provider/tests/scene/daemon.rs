//! The provider as a process.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, device_name};

/// A running program, ended when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Daemon {
    pub(crate) fn start(authd: &str, state: &Path, more: &[&str]) -> Self {
        Self::of(&mut command(authd, state, more))
    }

    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("starts");
        let stdout = child.stdout.take().expect("piped");
        let (line, lines) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = line.send(text);
            }
        });
        Self { child, lines }
    }

    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line on stdout")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("it lives");
    }

    /// Its exit status (what a signal ended: minus its number) and what it wrote to stderr.
    pub(crate) fn end(mut self) -> (i32, String) {
        let start = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < PATIENCE, "it goes on and on");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut text = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
        let status = self.child.wait().expect("ended");
        (status.code().unwrap_or_else(|| -status.signal().expect("ended by a signal")), text)
    }

    /// The same, after a signal that it must live to get.
    pub(crate) fn end_with(self, signal: Signal) -> (i32, String) {
        let status = format!("/proc/{}/status", self.child.id());
        let start = Instant::now();
        // Until it catches the signal.
        let caught = |text: String| {
            let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux says so");
            u64::from_str_radix(mask.trim(), 16).expect("a mask") & (1 << (signal as u64 - 1)) != 0
        };
        while !caught(std::fs::read_to_string(&status).expect("it lives")) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.signal(signal);
        self.end()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already, most often.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn command(authd: &str, state: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-provider"));
    command.args(["serve", "--authd", authd, "--state"]).arg(state);
    let device = device_name();
    for default in [["--pool", "4MiB"], ["--pages", "plain"], ["--device", &device]] {
        if !more.contains(&default[0]) {
            command.args(default);
        }
    }
    clean(command.args(more)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Without what a test inherits: cargo tells it where libraries are, which a daemon refuses.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if ["LD_", "OVERBANK_"].iter().any(|begin| name.to_string_lossy().starts_with(begin)) {
            command.env_remove(name);
        }
    }
    command
}
