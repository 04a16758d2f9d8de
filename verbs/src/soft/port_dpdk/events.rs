//! DPDK's own thread: it is let go only when a memif's socket has something, and frames rest meanwhile (see `gate`).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{Shutdown, UnixAddr, getpeername, getsockname, getsockopt, shutdown, sockopt};

use super::gate::GATE;
use super::{call, sys};

/// How long that thread rests at most and at least.
const REST: u16 = 50;
const LEAST: Duration = Duration::from_micros(200);
/// How long somebody may keep it waiting before it rests again, so that frames go on.
const STAY: Duration = Duration::from_micros(100);
/// How long the end of a listener may take.
const RETIRE: Duration = Duration::from_secs(1);
/// What DPDK calls the files of its memory.
const MEMORY: [&str; 2] = ["/memfd:memif", "/memfd:nohuge"];

/// Where memifs of this process have their sockets: as often as they have.
static SOCKETS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static BELLS: OnceLock<Bells> = OnceLock::new();

struct Bells {
    /// Always has something: DPDK's thread comes by once each time that it has waited for events.
    always: OwnedFd,
    /// Never has anything.
    never: OwnedFd,
    /// Ends a rest early.
    now: OwnedFd,
}

/// A memif has its socket there.
pub(crate) fn add(socket: &Path) {
    SOCKETS.lock().unwrap_or_else(PoisonError::into_inner).push(socket.to_owned());
}

/// It has it no more. Returns whether it was the last there.
pub(crate) fn forget(socket: &Path) -> bool {
    let mut sockets = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = sockets.iter().position(|known| known == socket) {
        sockets.swap_remove(at);
    }
    !sockets.iter().any(|known| known == socket)
}

fn event(value: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: makes a file, which is ours if it has a number.
    let fd = unsafe { libc::eventfd(value, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    // SAFETY: it was just made, and nobody else knows it.
    if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Has DPDK's own thread call `rest` from now on, each time that it has handled events. Once, when DPDK has started.
pub(crate) fn start() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("no event for DPDK's thread: {error}");
    let bells =
        Bells { always: event(1).map_err(failed)?, never: event(0).map_err(failed)?, now: event(0).map_err(failed)? };
    let bells = BELLS.get_or_init(|| bells);
    // SAFETY: a file and a function, both of which live as long as the program.
    match unsafe { sys::ob_on_event(bells.always.as_raw_fd(), Some(rest)) } {
        0 => Ok(()),
        error => Err(failed(std::io::Error::from_raw_os_error(error.abs()))),
    }
}

/// Lets it handle what there is, at once.
pub(crate) fn hurry() {
    if let Some(bells) = BELLS.get() {
        let _ = nix::unistd::write(&bells.now, &1_u64.to_ne_bytes());
    }
}

/// DPDK's own thread, between the events that it handles: others may use its ports meanwhile.
extern "C" fn rest(_: *mut c_void) {
    static HANDLED: AtomicBool = AtomicBool::new(true);
    static FIRST: Once = Once::new();
    // A peer that is gone must be an error to it, not a signal, and the program's signals are not for it.
    FIRST.call_once(|| SigSet::all().thread_block().unwrap_or_default());
    if HANDLED.swap(false, Ordering::Relaxed) {
        keep_to_ourselves();
        call::prune();
    }
    GATE.open();
    BLOCKED.lock().unwrap_or_else(PoisonError::into_inner).retain(|(until, _)| GATE.rounds() < *until);
    // At least so long, or frames would never go while a socket has something that nobody takes.
    std::thread::sleep(LEAST);
    let until = Instant::now() + 2 * Duration::from_millis(REST.into());
    while Instant::now() < until {
        if has_something() {
            HANDLED.store(true, Ordering::Relaxed);
            break;
        }
    }
    while !GATE.close(STAY) {
        std::thread::sleep(LEAST);
    }
}

/// Waits until a socket of a memif's has something, but no longer than it rests.
fn has_something() -> bool {
    let fds = sockets(|fd, known| known(getsockname(fd)) || known(getpeername(fd)));
    // SAFETY: used by the call below only. A number that was closed since, or is another file's, says so or wakes us.
    let borrowed = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) });
    let mut watched: Vec<PollFd<'_>> = borrowed.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let now = BELLS.get().map(|bells| bells.now.as_fd());
    watched.extend(now.map(|now| PollFd::new(now, PollFlags::POLLIN)));
    let woken = poll(&mut watched, PollTimeout::from(REST)).is_ok_and(|count| count > 0);
    if let Some(now) = now {
        let _ = nix::unistd::read(now, &mut [0; 8]);
    }
    woken
}

/// The numbers of this process's files.
fn files() -> impl Iterator<Item = RawFd> {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Those of which `which` says so, and what it needs for that: whether an address is that of a memif of this process's.
fn sockets(which: impl Fn(RawFd, &dyn Fn(nix::Result<UnixAddr>) -> bool) -> bool) -> Vec<RawFd> {
    let known = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let is_known = |address: nix::Result<UnixAddr>| {
        address.is_ok_and(|address| address.path().is_some_and(|path| known.iter().any(|known| known == path)))
    };
    files().filter(|fd| which(*fd, &is_known)).collect()
}

/// Programs that this one runs get none of DPDK's sockets and none of its memory: a peer would not see us end while they
/// live.
fn keep_to_ourselves() {
    let is_memory = |fd: RawFd| {
        std::fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|file| file.to_str().is_some_and(|file| MEMORY.iter().any(|name| file.starts_with(name))))
    };
    for fd in sockets(|fd, known| known(getsockname(fd)) || known(getpeername(fd)) || is_memory(fd)) {
        // SAFETY: used by the call below only, while the thread that may close it is here.
        let _ = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// What this process has of that socket: its listener, and both ends of connections to it.
pub(crate) fn ends(socket: &Path) -> Vec<RawFd> {
    let is_it = |address: nix::Result<UnixAddr>| address.is_ok_and(|address| address.path() == Some(socket));
    files().filter(|fd| is_it(getsockname(*fd)) || is_it(getpeername(*fd))).collect()
}

/// Has this connection outlive the port whose it is, until its server has taken it. Called inside the gate.
pub(crate) fn outlive(call: RawFd) {
    // SAFETY: DPDK's thread, which alone may close it now, is at rest.
    let kept = unsafe { BorrowedFd::borrow_raw(call) }.try_clone_to_owned();
    kept.map(call::leave).unwrap_or_default();
}

/// Numbers that no file may have yet, and until which round.
static BLOCKED: Mutex<Vec<(u64, OwnedFd)>> = Mutex::new(Vec::new());

/// Keeps the number of a file of DPDK's that was just closed from those that come next: its thread may hold an event of
/// the old one still, and would wait at the new one for what never comes. Called inside the gate.
pub(crate) fn block(number: RawFd) {
    let Some(bells) = BELLS.get() else { return };
    // That number, or one that is free behind it where somebody was faster.
    if let Ok(taken) = fcntl(&bells.never, FcntlArg::F_DUPFD_CLOEXEC(number)) {
        // SAFETY: it was just made, and nobody else knows it.
        let taken = unsafe { OwnedFd::from_raw_fd(taken) };
        BLOCKED.lock().unwrap_or_else(PoisonError::into_inner).push((GATE.rounds() + 2, taken));
    }
}

/// Ends the listener of this process's at this socket, before its last memif there is removed. The driver would free what
/// a connection to it is handled with, and neither close it nor have DPDK's thread forget it. That thread aborts the
/// process when a file that it watches is closed, so the number stays, as a file that never has anything.
pub(crate) fn retire(socket: &Path) -> Result<(), String> {
    let late = || format!("DPDK's thread does not leave the socket {}", socket.display());
    let until = Instant::now() + RETIRE;
    loop {
        let inside = GATE.enter(RETIRE).ok_or_else(late)?;
        let at = |address: nix::Result<UnixAddr>| address.is_ok_and(|address| address.path() == Some(socket));
        let ends: Vec<RawFd> = files().filter(|fd| at(getsockname(*fd))).collect();
        if ends.is_empty() {
            return Ok(());
        }
        for fd in ends {
            // SAFETY: that thread, which alone closes it, is at rest as long as this one is inside.
            let end = unsafe { BorrowedFd::borrow_raw(fd) };
            let listens = getsockopt(&end, sockopt::AcceptConn).unwrap_or(false);
            match BELLS.get() {
                Some(bells) if listens => replace(fd, &bells.never)?,
                // That thread hears of the end, and clears up. What it still sends must not be a broken pipe.
                _ => shutdown(fd, Shutdown::Read).unwrap_or_default(),
            }
        }
        let then = GATE.rounds();
        drop(inside);
        while GATE.rounds() < then + 2 {
            if Instant::now() > until {
                return Err(late());
            }
            hurry();
            std::thread::sleep(LEAST);
        }
    }
}

/// From now on this number is that of another file too.
fn replace(fd: RawFd, by: &OwnedFd) -> Result<(), String> {
    // SAFETY: a number of DPDK's, which knows nothing of the file behind it.
    let done: c_int = unsafe { libc::dup3(by.as_raw_fd(), fd, libc::O_CLOEXEC) };
    if done == fd {
        Ok(())
    } else {
        Err(format!("a memif's listener could not be closed: {}", std::io::Error::last_os_error()))
    }
}
