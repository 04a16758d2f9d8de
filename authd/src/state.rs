//! The directory that holds the daemon's identity (`authd.key`), its database (`authd.db`) and its lock (`authd.lock`).

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::keyfile::{self, KeyFileError};
use overbank_fabric::message::Invitation;

use crate::clock::{Now, millis};
use crate::store::{Store, StoreError};
use crate::trust;

const KEY: &str = "authd.key";
const DATABASE: &str = "authd.db";
const LOCK: &str = "authd.lock";
/// How long the first operator's invitation is good.
const FIRST_INVITATION: Duration = Duration::from_secs(7 * 86400);

/// Why a state cannot be used. Each names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is none.
    #[error("there is no state in {}: make one with `overbank-authd init --state {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// There is one already.
    #[error("{} exists already: init never overwrites a state; use another --state DIR, or remove it all to begin anew", .0.display())]
    Exists(PathBuf),
    /// Not a directory.
    #[error("{} is not a directory: give --state the directory that init made", .0.display())]
    NotADirectory(PathBuf),
    /// Others may enter.
    #[error("{} is open to others (mode {mode:04o}): chmod 700 {}", path.display(), path.display())]
    Permissions {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else's.
    #[error("{} belongs to user {owner}, not to user {user} who runs this: run it as its owner, or chown it", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The user id of this process.
        user: u32,
    },
    /// Another daemon uses it.
    #[error("{} is in use by another overbank-authd ({holder}): stop that one first", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who, as far as is known.
        holder: String,
    },
    /// The key file is missing, open to others or damaged.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The database is missing, damaged, foreign or newer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What `init` made.
#[derive(Debug)]
pub struct Made {
    /// Who the daemon is.
    pub fingerprint: Fingerprint,
    /// Makes its bearer the first operator, once.
    pub operator_invitation: Invitation,
}

/// A state in use: nobody else can take it up as long as this lives.
pub struct State {
    pub(crate) identity: Identity,
    pub(crate) store: Store,
    pub(crate) lock: File,
    /// Files that get the audit log.
    pub audit_files: AuditFiles,
}

/// Files outside the state that get the audit log as it grows.
#[derive(Debug, Clone, Default)]
pub struct AuditFiles {
    /// All of it, as JSON lines. Where it cannot be written, nothing is granted.
    pub export: Option<PathBuf>,
    /// Its signed heads, for a witness on another machine.
    pub witness: Option<PathBuf>,
}

impl State {
    /// Makes a new state. Where that fails, what it made is gone again.
    ///
    /// # Errors
    /// [`StateError`]: also where the directory holds one already.
    pub fn init(dir: &Path) -> Result<Made, StateError> {
        let new_dir = match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(StateError::Io { action: "make", path: dir.to_owned(), source }),
        };
        check(dir)?;
        for name in [KEY, DATABASE] {
            let path = dir.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(StateError::Exists(path));
            }
        }
        let _lock = lock(dir)?;
        Self::fill(dir).inspect_err(|_| {
            // Best effort: what cannot be removed is named by the next attempt.
            for name in [KEY, DATABASE, "authd.db-wal", "authd.db-shm", LOCK] {
                let _ = fs::remove_file(dir.join(name));
            }
            if new_dir {
                let _ = fs::remove_dir(dir);
            }
        })
    }

    fn fill(dir: &Path) -> Result<Made, StateError> {
        let identity = keyfile::create(&dir.join(KEY))?;
        let fingerprint = identity.public().fingerprint();
        let mut store = Store::create(&dir.join(DATABASE), &identity.public())?;
        let expires = Now::read().unix_ms.saturating_add(millis(FIRST_INVITATION));
        let operator_invitation = trust::first_invitation(&mut store, fingerprint, expires)?;
        Ok(Made { fingerprint, operator_invitation })
    }

    /// Takes up a state that [`State::init`] made.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        check(dir)?;
        if dir.join(KEY).symlink_metadata().is_err() && dir.join(DATABASE).symlink_metadata().is_err() {
            return Err(StateError::Missing(dir.to_owned()));
        }
        let lock = lock(dir)?;
        let identity = keyfile::load(&dir.join(KEY))?;
        let store = Store::open(&dir.join(DATABASE), &identity.public())?;
        Ok(Self { identity, store, lock, audit_files: AuditFiles::default() })
    }
}

/// A directory of one's own that nobody else can enter.
fn check(dir: &Path) -> Result<(), StateError> {
    let io = |source| StateError::Io { action: "look at", path: dir.to_owned(), source };
    let found = match fs::metadata(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StateError::Missing(dir.to_owned())),
        Err(source) => return Err(io(source)),
    };
    if !found.is_dir() {
        return Err(StateError::NotADirectory(dir.to_owned()));
    }
    let (user, mode) = (nix::unistd::geteuid().as_raw(), found.mode() & 0o7777);
    if found.uid() != user {
        return Err(StateError::Owner { path: dir.to_owned(), owner: found.uid(), user });
    }
    if mode & 0o077 != 0 {
        return Err(StateError::Permissions { path: dir.to_owned(), mode });
    }
    Ok(())
}

/// The lock of a state, with this process's id in it. Held as long as the file is open.
fn lock(dir: &Path) -> Result<File, StateError> {
    let path = dir.join(LOCK);
    let io = |action| {
        let path = path.clone();
        move |source| StateError::Io { action, path, source }
    };
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(io("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message; a lock that was just taken is still empty.
            let _ = (&file).take(32).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "process unknown".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(StateError::InUse { path: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io("write"))?;
    writeln!(file, "{}", std::process::id()).map_err(io("write"))?;
    Ok(file)
}
