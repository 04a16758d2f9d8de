//! A call to a memif's server, made before DPDK's driver makes its own: the driver waits until there is room for its
//! connection, and a server that is stopped makes none. Who is answered knows too that all connections made before were
//! taken, and may be closed: a server of DPDK's does not survive one that is cut short before.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket};

/// How long a server that is not stopped takes to answer, at most.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);

/// Connections that were given up before they were answered, until the server answers or ends.
static LEFT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Keeps a connection that nobody needs until its server has taken it.
pub(crate) fn leave(line: OwnedFd) {
    // No more than servers have room for.
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

/// Closes those that were answered. Returns whether that was all.
pub(crate) fn prune() -> bool {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain(|line| said(line) == Answer::NotYet);
    left.is_empty()
}

/// Dropped last of all that calls, it waits for those answers for a moment: the program may be about to end.
pub(crate) struct Farewell;

impl Drop for Farewell {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !prune() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// What comes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server is there, and handles what it is sent.
    Yes,
    NotYet,
    Nobody,
}

pub(crate) struct Call {
    server: PathBuf,
    line: Option<OwnedFd>,
}

impl Call {
    pub(crate) fn new(server: &Path) -> Self {
        Self { server: server.to_owned(), line: None }
    }

    /// Calls, unless a call is under way, and looks for its answer. Waits for nothing.
    pub(crate) fn answer(&mut self) -> Answer {
        if self.line.is_none() {
            self.line = self.dial().ok();
        }
        let answer = self.line.as_ref().map_or(Answer::Nobody, said);
        if answer != Answer::NotYet {
            self.line = None;
        }
        answer
    }

    fn dial(&self) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let line = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(line.as_raw_fd(), &UnixAddr::new(&self.server)?)?;
        Ok(line)
    }
}

/// A server greets whoever connects.
fn said(line: &OwnedFd) -> Answer {
    match recv(line.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK) {
        Ok(len) if len > 0 => Answer::Yes,
        Err(Errno::EAGAIN | Errno::EINTR) => Answer::NotYet,
        _ => Answer::Nobody,
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            leave(line);
            prune();
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{Backlog, accept, bind, listen, send};

    use super::*;

    #[test]
    fn a_server_that_does_not_answer_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut first = Call::new(&path);
        assert_eq!(first.answer(), Answer::Nobody);
        let server = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        bind(server.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&server, Backlog::new(1).unwrap()).unwrap();
        let mut more = [(); 3].map(|()| Call::new(&path));
        assert_eq!(first.answer(), Answer::NotYet);
        // It has room for two, and the others are not kept.
        assert_eq!(more.each_mut().map(Call::answer), [Answer::NotYet, Answer::Nobody, Answer::Nobody]);
        // Who leaves meanwhile is no connection cut short.
        drop(more);
        let begun = Instant::now();
        drop(Farewell);
        assert!(begun.elapsed() >= PATIENCE && !prune());
        let taken = [(); 2].map(|()| accept(server.as_raw_fd()).unwrap());
        for taken in taken {
            assert_eq!(send(taken, b"hello", MsgFlags::MSG_NOSIGNAL), Ok(5));
        }
        drop(Farewell);
        assert!(prune());
        assert_eq!(first.answer(), Answer::Yes);
        taken.into_iter().for_each(|taken| nix::unistd::close(taken).unwrap());
        drop(server);
        assert_eq!(first.answer(), Answer::Nobody);
    }
}
