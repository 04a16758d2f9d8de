//! What a function returns, and what it has to say about it.

use std::ffi::{CStr, c_char, c_int};

use overbank_lib::ErrorKind;

use crate::guard;

/// What every function returns. Codes are only ever added, and never change; those up to 99 are also the exit statuses of
/// the command `overbank`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum overbank_status {
    /// Done.
    OVERBANK_OK = 0,
    /// Another failure.
    OVERBANK_OTHER = 1,
    /// The call makes no sense: a null pointer, a length, an option, or a request that nobody could do.
    OVERBANK_USAGE = 2,
    /// The auth daemon cannot be reached.
    OVERBANK_AUTHD_UNREACHABLE = 3,
    /// This identity is not trusted, or not for this.
    OVERBANK_NOT_TRUSTED = 4,
    /// The auth daemon has another key than it had.
    OVERBANK_AUTHD_KEY_CHANGED = 5,
    /// The pool is full or the quota used up.
    OVERBANK_NO_ROOM = 6,
    /// The lease is over: expired, released, revoked, or there is none.
    OVERBANK_LEASE_OVER = 7,
    /// The lease is lost: its provider died or is away.
    OVERBANK_LEASE_LOST = 8,
    /// What was in the lease did not come back as it was written: changed, played back, moved, erased, torn, or of unknown
    /// freshness.
    OVERBANK_CONTENTS = 9,
    /// More bytes than the lease has there.
    OVERBANK_DOES_NOT_FIT = 10,
    /// Not done in time. It may have been done all the same.
    OVERBANK_DEADLINE = 11,
    /// A local file: the key, the pins or the lease's file is missing, damaged, in use or open to others.
    OVERBANK_LOCAL = 12,
    /// This machine's RDMA device has failed, is down or cannot be used.
    OVERBANK_DEVICE = 13,
    /// Not done yet: it waits for more operators' approval.
    OVERBANK_PROPOSED = 14,
    /// Another thread is in a call with this handle. Nothing was done.
    OVERBANK_BUSY = 100,
    /// The handle stands for nothing: it was closed, or never was one of this kind. Nothing was done.
    OVERBANK_CLOSED = 101,
    /// A fault of the library itself. Close the handle that the call was made with.
    OVERBANK_PANIC = 102,
}

use overbank_status::*;

impl overbank_status {
    /// All of them, and what each means.
    const ALL: [(Self, &'static CStr); 18] = [
        (OVERBANK_OK, c"done"),
        (OVERBANK_OTHER, c"another failure"),
        (OVERBANK_USAGE, c"the call makes no sense"),
        (OVERBANK_AUTHD_UNREACHABLE, c"the auth daemon cannot be reached"),
        (OVERBANK_NOT_TRUSTED, c"not trusted: pending, revoked, or not allowed"),
        (OVERBANK_AUTHD_KEY_CHANGED, c"the auth daemon's key has changed"),
        (OVERBANK_NO_ROOM, c"no room: the pool is full or the quota used up"),
        (OVERBANK_LEASE_OVER, c"the lease is over: expired, released, revoked, or there is none"),
        (OVERBANK_LEASE_LOST, c"the lease is lost: its provider died or is away"),
        (OVERBANK_CONTENTS, c"contents refused: changed, replayed, moved, erased, torn, or of unknown freshness"),
        (OVERBANK_DOES_NOT_FIT, c"does not fit: more bytes than the lease has there"),
        (OVERBANK_DEADLINE, c"the deadline passed"),
        (OVERBANK_LOCAL, c"a local file is missing, damaged, in use or open to others"),
        (OVERBANK_DEVICE, c"this machine's RDMA device has failed, is down or cannot be used"),
        (OVERBANK_PROPOSED, c"not done yet: it waits for more operators' approval"),
        (OVERBANK_BUSY, c"another thread is in a call with this handle"),
        (OVERBANK_CLOSED, c"the handle is not open"),
        (OVERBANK_PANIC, c"a fault of the library itself"),
    ];

    /// The code of a kind of error.
    pub(crate) const fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Other => OVERBANK_OTHER,
            ErrorKind::Usage => OVERBANK_USAGE,
            ErrorKind::AuthdUnreachable => OVERBANK_AUTHD_UNREACHABLE,
            ErrorKind::NotTrusted => OVERBANK_NOT_TRUSTED,
            ErrorKind::AuthdKeyChanged => OVERBANK_AUTHD_KEY_CHANGED,
            ErrorKind::NoRoom => OVERBANK_NO_ROOM,
            ErrorKind::LeaseOver => OVERBANK_LEASE_OVER,
            ErrorKind::LeaseLost => OVERBANK_LEASE_LOST,
            ErrorKind::Contents => OVERBANK_CONTENTS,
            ErrorKind::DoesNotFit => OVERBANK_DOES_NOT_FIT,
            ErrorKind::Deadline => OVERBANK_DEADLINE,
            ErrorKind::Local => OVERBANK_LOCAL,
            ErrorKind::Device => OVERBANK_DEVICE,
            ErrorKind::Proposed => OVERBANK_PROPOSED,
            _ => panic!("a kind of error without a code in C: add it to overbank_status"),
        }
    }
}

// Every kind has a code, and by the number that the kind has itself; otherwise this does not compile.
const _: () = {
    let mut at = 0;
    while at < ErrorKind::ALL.len() {
        let kind = ErrorKind::ALL[at];
        assert!(overbank_status::of(kind) as u32 == kind as u32);
        at += 1;
    }
};

/// What a status means, in a few words: a text that is there as long as the program runs, whatever the status. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_strerror(status: c_int) -> *const c_char {
    let known = overbank_status::ALL.iter().find(|(known, _)| *known as c_int == status);
    known.map_or(c"a status of another version of overbank".as_ptr(), |(_, text)| text.as_ptr())
}

/// What went wrong in this thread's last call that failed: the thing, the cause and the way out, as one line for people.
/// Empty where none has failed. The text belongs to the library and is there until the thread's next call that fails, or
/// its end: copy what is to be kept.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_last_error() -> *const c_char {
    guard::last()
}

/// The library's version, such as "0.1.0": a text that is there as long as the program runs. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no zero byte inside"),
    };
    VERSION.as_ptr()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
