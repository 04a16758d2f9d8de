//! What the process does to itself before it holds anything: no core dump, no debugger of its own user, no preloaded
//! code, and a state directory that is its own.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caps::Capability;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use overbank_fabric::daemon::foreign::{self, ForeignCode};
use overbank_fabric::daemon::sandbox::Missing;
use overbank_fabric::daemon::user::{UserError, give_up_rights};

/// The process or its directory is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Foreign code was loaded into the process.
    #[error(transparent)]
    Foreign(#[from] ForeignCode),
    /// It keeps rights that it should not have.
    #[error(transparent)]
    User(#[from] UserError),
    /// It was to be confined in full, and is not.
    #[error(transparent)]
    Sandbox(#[from] Missing),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: nix::Error,
    },
    /// The state directory could not be used.
    #[error("cannot use the state directory {}: {source}", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others could put another key there.
    #[error("others may write to the state directory {} (mode {mode:04o}): chmod 700 {}", path.display(), path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process uses it.
    #[error("another provider runs with the state directory {}: stop it, or use another --state", .0.display())]
    InUse(PathBuf),
}

/// Hardens the process, which becomes `user`. Secrets are made only after this.
///
/// # Errors
/// [`ProcessError`].
pub fn harden(user: Option<&str>, state: Option<&Path>) -> Result<(), ProcessError> {
    if !cfg!(feature = "danger-foreign-code") {
        foreign::refuse()?;
    }
    // For the soft device's receive buffer, until that is open.
    give_up_rights(user, state, &[Capability::CAP_NET_ADMIN])?;
    undumpable()
}

fn undumpable() -> Result<(), ProcessError> {
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|source| ProcessError::System { what: "switch core dumps off", source })?;
    prctl::set_dumpable(false)
        .map_err(|source| ProcessError::System { what: "make the process undumpable", source })?;
    // As much as is allowed; what is too little, the pool's mapping says.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_MEMLOCK) {
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, most, most) {
            tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
        } else if most == libc::RLIM_INFINITY {
            lock_memory();
        }
    }
    Ok(())
}

/// Keeps all memory out of swap, as it is used. Not under a limit: what is beyond it could then not be had at all.
fn lock_memory() {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault) {
        tracing::warn!(%error, "memory is not locked: keys may get into swap");
    }
}

/// The state directory, used by this process alone as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Locked.
    _lock: File,
}

impl StateDir {
    /// Makes the directory with mode 0700 if there is none, and locks it.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn open(path: &Path) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::State { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let metadata = fs::metadata(path).map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(ProcessError::Open { path: path.to_owned(), mode });
        }
        let user = nix::unistd::geteuid().as_raw();
        if metadata.uid() != user {
            let why = format!("it belongs to user {}, not to user {user} who runs this", metadata.uid());
            return Err(failed(io::Error::other(why)));
        }
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(ProcessError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core_dump() {
        // cargo tells its tests where libraries are, and a daemon would refuse that.
        undumpable().expect("hardened");
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
        assert_eq!(prctl::get_dumpable(), Ok(false));
    }

    #[test]
    fn a_state_directory_is_private_and_used_once() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("a/b");
        let state = StateDir::open(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
        assert!(matches!(StateDir::open(&path), Err(ProcessError::InUse(_))));
        drop(state);
        StateDir::open(&path).expect("free again");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).expect("changed");
        assert!(matches!(StateDir::open(&path), Err(ProcessError::Open { mode: 0o770, .. })));
    }
}
