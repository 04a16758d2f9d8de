//! A process at the other end of a measurement: started here, and gone when this one is.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::BenchError;

/// How long a process may take to say something.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to end when it is asked to.
const FAREWELL: Duration = Duration::from_secs(10);

/// A running process that was started here. Ended when dropped: SIGTERM, then SIGKILL.
pub(crate) struct Peer {
    program: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Option<PathBuf>,
}

impl Peer {
    /// Starts `command`. Its standard error goes to the file `errors`, or where this process's own goes.
    pub(crate) fn start(mut command: Command, errors: Option<&Path>) -> Result<Self, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(path) = errors {
            command.stderr(File::create(path).map_err(BenchError::io(format!("create {}", path.display())))?);
        }
        let mut child = command.spawn().map_err(BenchError::io(format!("start {program}")))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // What nobody waits for is read too: a full pipe would stop the process.
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
                let Ok(line) = line else { break };
                let _ = sender.send(line);
            }
        });
        Ok(Self { program, child, stdin, lines, errors: errors.map(Path::to_owned) })
    }

    /// The next line that the process says.
    pub(crate) fn line(&self) -> Result<String, BenchError> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(BenchError::Silent { what: "a peer", after: PATIENCE }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.failed(&format!("ended before it was ready: {}", self.complaint())))
            }
        }
    }

    /// Every line that it still says; waits for its end, which must be a good one.
    pub(crate) fn rest(&mut self, patience: Duration) -> Result<Vec<String>, BenchError> {
        let end = Instant::now() + patience;
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => return Err(self.failed(&format!("did not end within {patience:?}"))),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = loop {
            match self.child.try_wait().map_err(BenchError::io(format!("wait for {}", self.program)))? {
                Some(status) => break status,
                None if Instant::now() > end => return Err(self.failed(&format!("did not end within {patience:?}"))),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if status.success() { Ok(said) } else { Err(self.failed(&format!("failed ({status}): {}", self.complaint()))) }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to its standard error, where that was kept.
    pub(crate) fn complaint(&self) -> String {
        let said = self.errors.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        said.trim().to_owned()
    }

    /// Sends one line to the process.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), BenchError> {
        match &mut self.stdin {
            Some(stdin) => writeln!(stdin, "{line}").map_err(BenchError::io(format!("talk to {}", self.program))),
            None => Err(self.failed("has no standard input")),
        }
    }

    /// An error that names the process.
    pub(crate) fn failed(&self, what: &str) -> BenchError {
        BenchError::Child { program: self.program.clone(), what: what.to_owned() }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stdin = None;
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let end = Instant::now() + FAREWELL;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
