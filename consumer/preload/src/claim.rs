//! The claim on the pool: one process of those that `overbank run` started has it at a time.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// File descriptors of ours are from here on, where the program does not expect them.
const HIGH: libc::c_int = 900;

/// A lock on a file, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Claim(OwnedFd);

impl Claim {
    /// None where another process has it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: a name that ends in a zero; what is returned is checked.
        let file = owned(unsafe { libc::open(name.as_ptr(), flags, 0o600) })?;
        // SAFETY: a file descriptor of ours; what is returned is checked. Where none is left up there it stays.
        let file = owned(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH) }).unwrap_or(file);
        // SAFETY: a file descriptor of ours.
        match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
            0 => Ok(Some(Self(file))),
            _ => match io::Error::last_os_error() {
                busy if busy.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }

    /// In a forked child: the claim is the parent's, and must not outlive it here.
    pub(crate) fn leave_to_parent(&self) {
        // SAFETY: the child's copy of the descriptor; the child uses it no more, and never drops the value.
        unsafe { libc::close(self.0.as_raw_fd()) };
    }
}

fn owned(file: libc::c_int) -> io::Result<OwnedFd> {
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("lock");
        let claim = Claim::take(&path).expect("no error").expect("nobody has it");
        assert!(claim.0.as_raw_fd() >= HIGH);
        assert!(Claim::take(&path).expect("no error").is_none());
        drop(claim);
        assert!(Claim::take(&path).expect("no error").is_some());
        assert!(Claim::take(&home.path().join("no/lock")).is_err());
    }
}
