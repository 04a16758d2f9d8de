//! Redis, over TCP and over TLS: a store of values that a machine without RDMA would use instead. Its server is started
//! here for one measurement, keeps nothing, and is asked by a client of this program that polls.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use overbank_fabric::ids;
use overbank_verbs::Op;
use tempfile::TempDir;

use crate::cpus::{self, Cpus};
use crate::error::BenchError;
use crate::figures::{Plan, Subject, Times};
use crate::peer::Peer;
use crate::perftest::{free_port, listens};
use crate::rates::{Pace, Rate};
use crate::resp::{self, Flow, Stream};
use crate::tls::{self, Certificate};
use crate::{tcp, tied};

const SERVER: &str = "redis-server";
/// How long the server may take to listen.
const START: Duration = Duration::from_secs(20);
/// A port that was free may be somebody's a moment later.
const TRIES: usize = 3;
/// What it says of itself that an error repeats.
const SAID: usize = 400;

/// A running server and a session with it.
pub(crate) struct Redis {
    /// What it says of itself.
    pub(crate) version: String,
    /// The server's command.
    pub(crate) command: String,
    stream: RefCell<Box<dyn Stream>>,
    /// Each turn has its own.
    contents: Cell<u8>,
    // Dropped in this order: the server before its directory.
    _server: Peer,
    _dir: TempDir,
}

impl Redis {
    /// Starts it on the answering processor; or says, inside, why there can be none here.
    pub(crate) fn start(tls: bool, cpus: Cpus) -> Result<Result<Self, String>, BenchError> {
        let mut look = Command::new(SERVER);
        look.arg("--version");
        let version = match Peer::start(look, None) {
            Ok(mut server) => server.rest(START)?.join(" "),
            Err(BenchError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(Err(format!("there is no {SERVER} here; install redis-server (Debian's name)")));
            }
            Err(error) => return Err(error),
        };
        let dir = tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?;
        let certificate = match tls.then(|| Certificate::make(dir.path())).transpose()? {
            Some(Err(reason)) => return Ok(Err(reason)),
            Some(Ok(certificate)) => Some(certificate),
            None => None,
        };
        // Everybody on this machine reaches the port, and who may configure the server may write files as we may.
        let password = password()?;
        let secret = dir.path().join("redis.conf");
        std::fs::write(&secret, format!("requirepass {password}\n"))
            .map_err(BenchError::io(format!("write {}", secret.display())))?;

        let mut reason = String::new();
        for _ in 0..TRIES {
            let port = free_port()?;
            let arguments = arguments(dir.path(), &secret, port, certificate.as_ref());
            let mut command = tied::command(SERVER)?;
            command.args(&arguments).current_dir(dir.path());
            let errors = dir.path().join("errors");
            let mut server = cpus::started_on(cpus.answerer, cpus.asker, || Peer::start(command, Some(&errors)))?;
            if !listening(&mut server, port)? {
                let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
                reason = format!("{SERVER} ended before it was ready: {}", last(&(server.complaint() + &log)));
                continue;
            }
            let stream = RefCell::new(session(port, certificate.as_ref(), &password)?);
            let shown = arguments.iter().map(|word| if word.is_empty() { "''" } else { word });
            let command = shown.fold(SERVER.to_owned(), |command, word| format!("{command} {word}"));
            return Ok(Ok(Self { version, command, stream, contents: Cell::new(0), _server: server, _dir: dir }));
        }
        Ok(Err(reason))
    }

    /// One turn of single operations.
    pub(crate) fn times(&self, op: Op, size: usize, plan: &Plan) -> Result<Times, BenchError> {
        self.turn(op, size, 1, |flow, stream| {
            let mut turn = Subject::timed("", || flow.once(stream)).turn;
            turn(plan)
        })
    }

    /// One turn of many at once.
    pub(crate) fn rate(&self, op: Op, size: usize, depth: u32, pace: &Pace) -> Result<Rate, BenchError> {
        self.turn(op, size, depth as usize, |flow, stream| flow.rate(pace, stream))
    }

    /// One turn, and a check that every value is what it should be.
    fn turn<T>(
        &self,
        op: Op,
        size: usize,
        depth: usize,
        take: impl FnOnce(&mut Flow, &mut dyn Stream) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut stream = self.stream.borrow_mut();
        let stream: &mut dyn Stream = &mut **stream;
        let contents = self.contents.get().wrapping_add(1);
        self.contents.set(contents);
        let mut writes = Flow::new(Op::Write, size, depth, contents);
        let mut reads = Flow::new(Op::Read, size, depth, contents);
        let taken = match op {
            Op::Read => {
                writes.round(stream)?;
                take(&mut reads, stream)?
            }
            Op::Write => {
                let taken = take(&mut writes, stream)?;
                reads.round(stream)?;
                taken
            }
        };
        if reads.holds(contents) {
            return Ok(taken);
        }
        Err(BenchError::Child { program: SERVER.to_owned(), what: format!("has other bytes than its {op:?}s had") })
    }
}

/// What the server is told: to listen on this machine's loopback alone, and to keep nothing.
fn arguments(dir: &Path, secret: &Path, port: u16, certificate: Option<&Certificate>) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let log = path(&dir.join("log"));
    let mut words = vec![path(secret)];
    let common = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", &path(dir), "--logfile", &log];
    words.extend(common.map(str::to_owned));
    let port = port.to_string();
    match certificate {
        None => words.extend(["--port", &port].map(str::to_owned)),
        Some(Certificate { certificate, key }) => {
            let (certificate, key) = (path(certificate), path(key));
            let ports = ["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"];
            let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
            let suite = ["--tls-protocols", "TLSv1.3", "--tls-ciphersuites", tls::SUITE];
            words.extend([&ports[..], &files, &suite].concat().into_iter().map(str::to_owned));
        }
    }
    words
}

/// Waits until the server listens; false where it has ended.
fn listening(server: &mut Peer, port: u16) -> Result<bool, BenchError> {
    let end = Instant::now() + START;
    while server.runs() {
        if listens(port) {
            return Ok(true);
        }
        if Instant::now() > end {
            return Err(BenchError::Silent { what: SERVER, after: START });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// Connects, and shows the password.
fn session(port: u16, certificate: Option<&Certificate>, password: &str) -> Result<Box<dyn Stream>, BenchError> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(BenchError::io(format!("reach {SERVER}")))?;
    let mut stream: Box<dyn Stream> = match certificate {
        None => {
            tcp::polled(&stream)?;
            Box::new(stream)
        }
        Some(certificate) => {
            let sealed = tls::connect(stream, &certificate.certificate)?;
            tcp::polled(&sealed.sock)?;
            Box::new(sealed)
        }
    };
    resp::order(&[b"AUTH", password.as_bytes()], &mut *stream)?;
    Ok(stream)
}

fn password() -> Result<String, BenchError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| BenchError::io("get random bytes")(std::io::Error::other("the generator failed")))?;
    Ok(ids::hex(&bytes))
}

/// The end of what was said.
fn last(said: &str) -> String {
    let said = said.trim();
    let from = said.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
    said[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_nobody_elses_and_keeps_nothing() {
        let (dir, secret) = (Path::new("/d"), Path::new("/d/redis.conf"));
        let plain = arguments(dir, secret, 7, None);
        assert_eq!(plain[..5], ["/d/redis.conf", "--bind", "127.0.0.1", "--save", ""].map(str::to_owned));
        assert!(plain.join(" ").ends_with("--port 7"));
        let certificate = Certificate { certificate: "/d/c".into(), key: "/d/k".into() };
        let sealed = arguments(dir, secret, 7, Some(&certificate)).join(" ");
        assert!(sealed.contains("--port 0 --tls-port 7 ") && sealed.contains("TLSv1.3 --tls-ciphersuites TLS_AES_256"));
        assert_ne!(password().expect("random"), password().expect("random"));
    }

    #[test]
    fn of_a_long_log_the_end_is_shown() {
        assert_eq!(last(" short\n"), "short");
        let long = format!("{}end", "ä".repeat(1000));
        assert!(last(&long).ends_with("äend") && last(&long).chars().count() == SAID + 1);
    }
}
