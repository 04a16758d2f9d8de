//! How a daemon that was started as root gives up what root can do, before it opens or listens to anything.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{Uid, User, geteuid, initgroups, setresgid, setresuid};

/// Why the process keeps rights that it should not have.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none.
    #[error("there is no user '{0}': make one with `useradd --system {0}`, or give another --user")]
    Unknown(String),
    /// Only root can.
    #[error("only root can become user '{0}': leave --user out, or start it as root")]
    NotRoot(String),
    /// The directory cannot be made for that user.
    #[error("cannot make {} for user '{user}': {source}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// Whose it was to be.
        user: String,
        /// Why.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {what}: {why}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

fn system(what: &'static str) -> impl Fn(Errno) -> UserError {
    move |error| UserError::System { what, why: error.to_string() }
}

/// Becomes `user`, where one is named, and gives up every capability but those of `keep`. A state directory that is not
/// there yet is made for that user first. Memory may be locked without limit afterwards, as root may. To be called before
/// there are threads.
///
/// # Errors
/// [`UserError`].
pub fn give_up_rights(user: Option<&str>, state: Option<&Path>, keep: &[Capability]) -> Result<(), UserError> {
    if geteuid().is_root() {
        // What root may lock, the daemon must: the pool, and what devices pin. A container may not allow it.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    } else if let Some(name) = user {
        return Err(UserError::NotRoot(name.to_owned()));
    }
    if let Some(name) = user {
        become_user(name, state, keep)?;
    }
    let failed = |what| move |error: caps::errors::CapsError| UserError::System { what, why: error.to_string() };
    let keep = keep.iter().copied().collect();
    let now = caps::read(None, CapSet::Permitted).map_err(failed("read its capabilities"))?;
    let kept = now.intersection(&keep).copied().collect();
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        caps::clear(None, CapSet::Bounding).map_err(failed("clear its bounding set"))?;
    }
    let give_up = "give up its capabilities";
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable).map_err(failed(give_up))?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed(give_up))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed(give_up))
}

/// Gives up what was kept. Of this thread alone, and what it starts from then on.
pub fn give_up_the_rest() {
    // Where one of them cannot be done, there was nothing to give up.
    let _ = caps::clear(None, CapSet::Effective);
    let _ = caps::clear(None, CapSet::Permitted);
}

/// Makes one directory: what is above it is not a daemon's to make.
fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other("the directory above it is not there: make that first"),
        _ => error,
    })
}

/// Gives a directory that was just made to a user. Not by its name: who may write to the directory above could have put
/// something else there, and get that.
fn hand_over(made: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let made = OpenOptions::new().read(true).custom_flags(flags).open(made)?;
    let found = made.metadata()?;
    if found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::other("another directory was put in its place: who may write to the one above it?"));
    }
    fchown(&made, Some(uid), Some(gid))
}

fn become_user(name: &str, state: Option<&Path>, keep: &[Capability]) -> Result<(), UserError> {
    let user = User::from_name(name).map_err(system("look the user up"))?;
    let user = user.ok_or_else(|| UserError::Unknown(name.to_owned()))?;
    if let Some(state) = state.filter(|state| !state.exists()) {
        let made = make(state).and_then(|()| hand_over(state, user.uid.as_raw(), user.gid.as_raw()));
        made.map_err(|source| UserError::State { path: state.to_owned(), user: name.to_owned(), source })?;
    }
    let groups = std::ffi::CString::new(name).map_err(|_| UserError::Unknown(name.to_owned()))?;
    initgroups(&groups, user.gid).map_err(system("take on the user's groups"))?;
    setresgid(user.gid, user.gid, user.gid).map_err(system("take on the user's group"))?;
    if !keep.is_empty() {
        caps::securebits::set_keepcaps(true)
            .map_err(|error| UserError::System { what: "keep a capability", why: error.to_string() })?;
    }
    setresuid(user.uid, user.uid, user.uid).map_err(system("become the user"))?;
    if !user.uid.is_root() && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(UserError::System { what: "become the user", why: "it could become root again".to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_the_directory_that_was_made_is_handed_over() {
        let folder = tempfile::tempdir().expect("a directory");
        let at = |name: &str| folder.path().join(name);
        // Root alone can give away what is its own.
        let (me, root) = (geteuid().as_raw(), geteuid().is_root());
        let (uid, gid) = if root { (12_345, 12_345) } else { (me, nix::unistd::getegid().as_raw()) };
        let owner = |name: &str| std::fs::metadata(at(name)).expect("there").uid();
        for name in ["made", "victim", "open"] {
            make(&at(name)).expect("made");
        }
        let refused = make(&at("none/made")).expect_err("one alone").to_string();
        assert!(refused.contains("make that first") && !at("none").exists(), "{refused}");
        symlink(at("victim"), at("link")).expect("made");
        std::fs::set_permissions(at("open"), PermissionsExt::from_mode(0o755)).expect("changed");
        hand_over(&at("made"), uid, gid).expect("handed over");
        assert_eq!(owner("made"), uid);
        for name in ["link", "open", "missing"] {
            hand_over(&at(name), uid, gid).expect_err(name);
        }
        assert_eq!((owner("victim"), owner("open")), (me, me));
        if root {
            hand_over(&at("made"), 54_321, gid).expect_err("somebody else's");
            assert_eq!(owner("made"), uid);
        }
    }
}
