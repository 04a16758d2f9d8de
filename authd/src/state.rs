//! The directory that holds the daemon's identity (`authd.key`, or `authd.key.sealed`), its database (`authd.db`) and its
//! lock (`authd.lock`); or no directory at all, where nothing is to be left behind.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::keyfile::{self, KeyFileError};
use overbank_fabric::message::Invitation;
use overbank_fabric::signed::{Signed, from_cbor, to_cbor};
use overbank_fabric::succession::Succession;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::audit::{Entry, Event};
use crate::clock::{Now, millis};
use crate::sealed::{self, Kind, SealedError, Secret};
use crate::store::{Store, StoreError, successions};
use crate::trust;

const KEY: &str = "authd.key";
/// The identity, sealed.
const SEALED: &str = "authd.key.sealed";
const DATABASE: &str = "authd.db";
const LOCK: &str = "authd.lock";
/// The key that is to take over, as long as it has not: as it is, or sealed.
const NEXT: &str = "authd.key.next";
const NEXT_SEALED: &str = "authd.key.sealed.next";
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
    /// The identity is sealed, and nothing that opens it was given.
    #[error("the identity in {} is sealed: give what it was sealed with, --passphrase-file FILE or --key-file FILE", .0.display())]
    Sealed(PathBuf),
    /// The sealed identity, a backup, or the secret that is to open it.
    #[error(transparent)]
    Secret(#[from] SealedError),
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
    /// None for a state that is nowhere but in memory.
    pub(crate) lock: Option<File>,
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
        Self::init_sealed(dir, None)
    }

    /// The same, with its identity sealed where there is a secret to seal it with.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn init_sealed(dir: &Path, secret: Option<&Secret>) -> Result<Made, StateError> {
        Self::make(dir, |dir| Self::fill(dir, secret))
    }

    /// Makes the directory and has it filled. Where that fails, what was made is gone again.
    fn make<T>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T, StateError>) -> Result<T, StateError> {
        let new_dir = match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(StateError::Io { action: "make", path: dir.to_owned(), source }),
        };
        check(dir)?;
        for name in [KEY, SEALED, DATABASE] {
            let path = dir.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(StateError::Exists(path));
            }
        }
        let _lock = lock(dir)?;
        fill(dir).inspect_err(|_| {
            // Best effort: what cannot be removed is named by the next attempt.
            for name in [KEY, SEALED, DATABASE, "authd.db-wal", "authd.db-shm", LOCK] {
                let _ = fs::remove_file(dir.join(name));
            }
            if new_dir {
                let _ = fs::remove_dir(dir);
            }
        })
    }

    fn fill(dir: &Path, secret: Option<&Secret>) -> Result<Made, StateError> {
        let identity = create(&dir.join(if secret.is_some() { SEALED } else { KEY }), secret)?;
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
        Self::open_sealed(dir, None)
    }

    /// The same, with what its identity was sealed with.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open_sealed(dir: &Path, secret: Option<&Secret>) -> Result<Self, StateError> {
        check(dir)?;
        let none = |name| dir.join(name).symlink_metadata().is_err();
        if none(KEY) && none(SEALED) && dir.join(DATABASE).symlink_metadata().is_err() {
            return Err(StateError::Missing(dir.to_owned()));
        }
        let lock = lock(dir)?;
        settle(dir, secret)?;
        let identity = load(&dir.join(if none(SEALED) { KEY } else { SEALED }), !none(SEALED), secret)?;
        let store = Store::open(&dir.join(DATABASE), &identity.public())?;
        Ok(Self { identity, store, lock: Some(lock), audit_files: AuditFiles::default() })
    }

    /// One that is in memory alone and ends with the process, with a new identity, or with that of a key file, which is
    /// only read.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn in_memory(key: Option<&Path>) -> Result<(Self, Made), StateError> {
        let identity = match key {
            Some(path) => keyfile::load(path)?,
            None => Identity::generate(),
        };
        let fingerprint = identity.public().fingerprint();
        let mut store = Store::amnesiac(&identity.public())?;
        let expires = Now::read().unix_ms.saturating_add(millis(FIRST_INVITATION));
        let operator_invitation = trust::first_invitation(&mut store, fingerprint, expires)?;
        let state = Self { identity, store, lock: None, audit_files: AuditFiles::default() };
        Ok((state, Made { fingerprint, operator_invitation }))
    }

    /// Writes a copy of a state, as of one moment, into a new file that only `secret` opens. The daemon may go on meanwhile.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn backup(dir: &Path, file: &Path, secret: &Secret) -> Result<(), StateError> {
        check(dir)?;
        let read = |name: &str| match fs::read(dir.join(name)) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { action: "read", path: dir.join(name), source }),
        };
        let (key, sealed) = (read(KEY)?, read(SEALED)?);
        let key = match key.or(sealed) {
            Some(key) => key,
            None => return Err(StateError::Missing(dir.to_owned())),
        };
        let database = Store::copy(&dir.join(DATABASE))?;
        let backup = Backup { sealed: dir.join(SEALED).exists(), key: key.to_vec(), database };
        let bytes = Zeroizing::new(to_cbor(&backup));
        Ok(sealed::write(file, Kind::Backup, secret, &bytes)?)
    }

    /// Makes a new state of a backup, as it was then.
    ///
    /// # Errors
    /// [`StateError`]: also where the directory holds a state already.
    pub fn restore(dir: &Path, file: &Path, secret: &Secret) -> Result<(), StateError> {
        let bytes = sealed::read(file, Kind::Backup, secret)?;
        let backup: Backup =
            from_cbor(&bytes).map_err(|_| StateError::Secret(SealedError::Foreign(file.to_owned())))?;
        Self::make(dir, |dir| {
            let write = |name: &str, bytes: &[u8]| {
                let path = dir.join(name);
                let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let written = made.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
                written.map_err(|source| StateError::Io { action: "write", path, source })
            };
            write(if backup.sealed { SEALED } else { KEY }, &backup.key)?;
            write(DATABASE, &backup.database)?;
            sync(dir)
        })
    }
}

/// What a backup has.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    /// Whether the identity in it is sealed by itself.
    sealed: bool,
    /// The key file, or the sealed one.
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    /// The database file.
    #[serde(with = "serde_bytes")]
    database: Vec<u8>,
}

impl Drop for Backup {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

/// The identity in a file, which may be sealed.
fn load(path: &Path, is_sealed: bool, secret: Option<&Secret>) -> Result<Identity, StateError> {
    let Some(secret) = secret.filter(|_| is_sealed) else {
        return match is_sealed {
            true => Err(StateError::Sealed(path.parent().unwrap_or(path).to_owned())),
            false => Ok(keyfile::load(path)?),
        };
    };
    let seed = sealed::read(path, Kind::Identity, secret)?;
    let seed = seed.as_slice().try_into().map_err(|_| SealedError::Foreign(path.to_owned()))?;
    Ok(Identity::from_seed(seed))
}

/// A new identity in a new file, sealed where there is a secret to seal it with.
fn create(path: &Path, secret: Option<&Secret>) -> Result<Identity, StateError> {
    let Some(secret) = secret else { return Ok(keyfile::create(path)?) };
    let identity = Identity::generate();
    sealed::write(path, Kind::Identity, secret, &*identity.seed())?;
    path.parent().map_or(Ok(()), sync)?;
    Ok(identity)
}

impl State {
    /// Gives the daemon a new key, which the old one signs: clients and providers that know the old one follow. It is sealed
    /// as the old one is. The fingerprints: of the old one, and of the new one. The daemon must not run.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn rotate(dir: &Path, secret: Option<&Secret>) -> Result<(Fingerprint, Fingerprint), StateError> {
        let Self { identity: old, mut store, lock: _lock, .. } = Self::open_sealed(dir, secret)?;
        let secret = secret.filter(|_| dir.join(SEALED).symlink_metadata().is_ok());
        let new = create(&dir.join(if secret.is_some() { NEXT_SEALED } else { NEXT }), secret)?;
        let step = Succession { old: old.public(), new: new.public() };
        let statement = Signed::new(&step, &old);
        store.write(|tx| {
            successions::rotate_authd(tx, &step, &statement, Now::read().unix_ms)?;
            let what = format!("the auth daemon's own key, from {}", step.old.fingerprint());
            tx.audit(Entry::new(Event::Rotated).target(step.new.fingerprint()).detail(what))
        })?;
        drop(store);
        settle(dir, secret)?;
        Ok((step.old.fingerprint(), step.new.fingerprint()))
    }
}

/// Ends what an interrupted rotation left: the database says which key is the daemon's.
fn settle(dir: &Path, secret: Option<&Secret>) -> Result<(), StateError> {
    for (key, next, is_sealed) in [(KEY, NEXT, false), (SEALED, NEXT_SEALED, true)] {
        let (key, next) = (dir.join(key), dir.join(next));
        if next.symlink_metadata().is_err() {
            continue;
        }
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        let database = dir.join(DATABASE);
        match Store::open(&database, &load(&key, is_sealed, secret)?.public()) {
            // It was not to be; perhaps it is not even whole.
            Ok(_) => fs::remove_file(&next).map_err(failed("remove", &next))?,
            Err(StoreError::OtherIdentity { .. }) => {
                Store::open(&database, &load(&next, is_sealed, secret)?.public())?;
                fs::rename(&next, &key).map_err(failed("replace", &key))?;
            }
            Err(error) => return Err(error.into()),
        }
        sync(dir)?;
    }
    Ok(())
}

/// Names in a directory are on disk when this returns.
fn sync(dir: &Path) -> Result<(), StateError> {
    let failed = |source| StateError::Io { action: "sync", path: dir.to_owned(), source };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
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
