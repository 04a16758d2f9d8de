//! A process at the other end of a measurement: started here, on a processor of its own, and gone when this one is.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::BenchError;

/// How long a process may take to say its first line, and to end when asked to.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running process that was started here. Ended when dropped: SIGTERM, then SIGKILL.
pub(crate) struct Peer {
    program: String,
    child: Child,
    stdin: Option<ChildStdin>,
    /// The process's first line on standard output.
    pub(crate) hello: String,
}

impl Peer {
    /// Starts `command` and waits for its first line. Its standard error is `errors`, or this process's own.
    pub(crate) fn start(mut command: Command, errors: Option<&Path>) -> Result<Self, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(path) = errors {
            let file = std::fs::File::create(path).map_err(BenchError::io(format!("create {}", path.display())))?;
            command.stderr(file);
        }
        let mut child = command.spawn().map_err(BenchError::io(format!("start {program}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let mut peer = Self { program, child, stdin, hello: String::new() };
        peer.hello = peer.first_line(stdout, errors)?;
        Ok(peer)
    }

    /// Sends one line to the process.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), BenchError> {
        let what = format!("talk to {}", self.program);
        match &mut self.stdin {
            Some(stdin) => writeln!(stdin, "{line}").map_err(BenchError::io(what)),
            None => Err(self.failed("has no standard input")),
        }
    }

    fn first_line(&mut self, stdout: Option<ChildStdout>, errors: Option<&Path>) -> Result<String, BenchError> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = stdout.map(BufReader::new);
            let mut line = String::new();
            let read = reader.as_mut().map_or(Ok(0), |reader| reader.read_line(&mut line));
            let _ = sender.send(read.map(|_| line));
            // What else it says is of no interest, but a full pipe would stop it.
            if let Some(mut reader) = reader {
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
            }
        });
        let line =
            receiver.recv_timeout(PATIENCE).map_err(|_| BenchError::Silent { what: "a peer", after: PATIENCE })?;
        let line = line.map_err(BenchError::io(format!("read what {} says", self.program)))?;
        if line.trim().is_empty() {
            let said = errors.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            return Err(self.failed(&format!("ended before it was ready. {}", said.trim())));
        }
        Ok(line.trim().to_owned())
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
        let end = Instant::now() + Duration::from_secs(5);
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
