//! DPDK's own thread: it is let go only when a memif's socket has something, and frames rest meanwhile (see `gate`).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{UnixAddr, getpeername, getsockname};

use super::gate::GATE;
use super::sys;

/// How long that thread rests at most and at least, and after how many microseconds it rests again.
const REST: u16 = 50;
const LEAST: Duration = Duration::from_micros(200);
const EVENTS: u64 = 10;

/// Where memifs of this process have their sockets.
static SOCKETS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A memif has its socket there.
pub(crate) fn add(socket: &Path) {
    let mut sockets = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    if !sockets.iter().any(|known| known == socket) {
        sockets.push(socket.to_owned());
    }
}

/// Lets DPDK's own thread call `rest` in a moment, and from then on again and again.
pub(crate) fn rest_soon() -> Result<(), i32> {
    // SAFETY: a function that takes no argument, and lives as long as the program.
    match unsafe { sys::rte_eal_alarm_set(EVENTS, Some(rest), null_mut()) } {
        0 => Ok(()),
        error => Err(error),
    }
}

/// DPDK's own thread, between the events that it handles: others may use its ports meanwhile.
extern "C" fn rest(_: *mut c_void) {
    GATE.open();
    // At least so long, or frames would never go while a socket has something that nobody takes.
    std::thread::sleep(LEAST);
    let until = Instant::now() + 2 * Duration::from_millis(REST.into());
    while !has_something() && Instant::now() < until {}
    GATE.close();
    if rest_soon().is_err() {
        // It has no memory for a timer: better events and frames at once than no frames.
        GATE.open();
    }
}

/// Waits until a socket of a memif's has something, but no longer than it rests.
fn has_something() -> bool {
    let fds = sockets();
    // SAFETY: used by the call below only. A number that was closed since, or is another file's, says so or wakes us.
    let borrowed = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) });
    let mut watched: Vec<PollFd<'_>> = borrowed.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut watched, PollTimeout::from(REST)).is_ok_and(|count| count > 0)
}

/// This process's own ends of them.
fn sockets() -> Vec<RawFd> {
    let known = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let is_known = |address: nix::Result<UnixAddr>| {
        address.is_ok_and(|address| address.path().is_some_and(|path| known.iter().any(|known| known == path)))
    };
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let fds = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    fds.filter(|fd| is_known(getsockname(*fd)) || is_known(getpeername(*fd))).collect()
}
