//! The file that holds an identity: two lines of text, mode 0600, refused otherwise.
//!
//! ```text
//! overbank identity v1
//! 9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60
//! ```
//! The second line is the secret seed in hexadecimal. Nothing else is in the file.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::identity::Identity;
use crate::ids::{hex, unhex};
use crate::wipe::wiped;

const HEADER: &str = "overbank identity v1\n";
/// Bytes of the whole file.
const LEN: usize = HEADER.len() + 2 * Identity::SEED_LEN + 1;

/// Why a key file was not read or not made. Each names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("there is no key file {}: check the path, or have a new identity made there", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// There is one already, and a key is never overwritten.
    #[error("{} exists and is not overwritten: use it, or move it away first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A symbolic link, which may lead anywhere.
    #[error("{} is a symbolic link: name the key file itself", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A directory, a pipe, a device, or something that was exchanged while it was opened.
    #[error("{} is not an ordinary file: name the key file itself", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner can reach it.
    #[error("others can reach the key file (mode {mode:04o}), so it may be known to them: chmod 600 {}", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else's, who knows the key and can exchange it.
    #[error("{} belongs to user {owner}, not to user {user} who runs this: chown it, or make an identity of your own", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The user id of this process.
        user: u32,
    },
    /// Not the two lines that a key file has.
    #[error("{} is no key file of this version: restore it from a backup, or move it away and make a new identity", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Reads an identity.
///
/// # Errors
/// [`KeyFileError`]: every variant but `Exists`.
pub fn load(path: &Path) -> Result<Identity, KeyFileError> {
    wiped(|| read(path))
}

fn read(path: &Path) -> Result<Identity, KeyFileError> {
    let failed = |action| move |source| KeyFileError::Io { action, path: path.into(), source };
    let named = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(KeyFileError::Missing { path: path.into() });
        }
        named => named.map_err(failed("look at"))?,
    };
    // Before it is opened, since opening a pipe waits for a writer.
    if named.is_symlink() {
        return Err(KeyFileError::Symlink { path: path.into() });
    }
    if !named.is_file() {
        return Err(KeyFileError::NotAFile { path: path.into() });
    }
    let mut file = File::open(path).map_err(failed("open"))?;
    check(path, &named, &file.metadata().map_err(failed("look at"))?)?;

    // One byte more than a key file has, so that a longer one shows.
    let mut text = Zeroizing::new([0; LEN + 1]);
    let mut length = 0;
    while length < text.len() {
        match file.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read")(error)),
        }
    }
    parse(&text[..length]).ok_or_else(|| KeyFileError::Malformed { path: path.into() })
}

/// Makes a new identity and keeps it in `path`, together with the directories that lead there (mode 0700). It is on
/// disk, whole, when this returns; an interrupted attempt leaves no file of that name.
///
/// # Errors
/// [`KeyFileError::Exists`]: nothing is ever overwritten. [`KeyFileError::Io`].
pub fn create(path: &Path) -> Result<Identity, KeyFileError> {
    let failed = |action, path: &Path| {
        let path = path.into();
        move |source| KeyFileError::Io { action, path, source }
    };
    let Some(name) = path.file_name() else { return Err(KeyFileError::NotAFile { path: path.into() }) };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("make", directory))?;

    // Written under another name and then linked: who finds the name finds the whole file.
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| failed("find random numbers for", path)(error.into()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", hex(&random)));
    let temporary = directory.join(temporary);

    let identity = Identity::generate();
    let written = wiped(|| write(&temporary, &identity)).map_err(failed("write", &temporary));
    let linked = written.and_then(|()| {
        fs::hard_link(&temporary, path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.into() },
            _ => failed("make", path)(error),
        })
    });
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &temporary)(error)),
        _ => Ok(()),
    };
    linked?;
    removed?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))?;
    Ok(identity)
}

/// Reads the identity, or makes one where there is none. The bool: whether it was made now. Of several processes that
/// do this at once one makes it and all get it.
///
/// # Errors
/// [`KeyFileError`].
pub fn load_or_create(path: &Path) -> Result<(Identity, bool), KeyFileError> {
    match load(path) {
        Err(KeyFileError::Missing { .. }) => match create(path) {
            Err(KeyFileError::Exists { .. }) => Ok((load(path)?, false)),
            created => Ok((created?, true)),
        },
        loaded => Ok((loaded?, false)),
    }
}

/// Whether the opened file is the one that was `named` and looked at, and only its owner can reach it.
fn check(path: &Path, named: &Metadata, opened: &Metadata) -> Result<(), KeyFileError> {
    if (named.dev(), named.ino()) != (opened.dev(), opened.ino()) || !opened.is_file() {
        return Err(KeyFileError::NotAFile { path: path.into() });
    }
    let mode = opened.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Permissions { path: path.into(), mode });
    }
    // The directory is owned by the effective user, also where core dumps are off.
    let me = fs::metadata("/proc/self").map_err(|source| KeyFileError::Io {
        action: "look at",
        path: "/proc/self".into(),
        source,
    })?;
    owner(path, opened.uid(), me.uid())
}

/// A key is believed if it is the user's own or root's.
fn owner(path: &Path, owner: u32, user: u32) -> Result<(), KeyFileError> {
    if owner == user || owner == 0 {
        return Ok(());
    }
    Err(KeyFileError::Owner { path: path.into(), owner, user })
}

fn parse(text: &[u8]) -> Option<Identity> {
    let digits = text.strip_prefix(HEADER.as_bytes())?.strip_suffix(b"\n")?;
    let seed = unhex("a seed", std::str::from_utf8(digits).ok()?).ok()?;
    Some(Identity::from_seed(&Zeroizing::new(seed)))
}

fn write(path: &Path, identity: &Identity) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let digits = Zeroizing::new(hex(&*identity.seed()));
    file.write_all(HEADER.as_bytes())?;
    file.write_all(digits.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

    /// A private directory, and the path of a key file in it that is not there yet.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.key");
        (directory, path)
    }

    fn put(path: &Path, contents: &str, mode: u32) {
        fs::write(path, contents).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn whole() -> String {
        format!("{HEADER}{SEED}\n")
    }

    #[test]
    fn what_was_created_is_loaded_and_private() {
        let (directory, _) = place();
        let path = directory.path().join("new/deep/identity.key");
        let (made, now) = load_or_create(&path).unwrap();
        assert!(now);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        let (loaded, now) = load_or_create(&path).unwrap();
        assert!(!now);
        assert_eq!(loaded.public(), made.public());
    }

    #[test]
    fn the_layout_is_frozen() {
        let (_directory, path) = place();
        put(&path, "overbank identity v1\n9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60\n", 0o600);
        // RFC 8032, section 7.1, test 1.
        let expected = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(hex(&load(&path).unwrap().public().0), expected);
        let (_other, made) = place();
        let identity = create(&made).unwrap();
        let text = format!("{HEADER}{}\n", hex(&*identity.seed()));
        assert_eq!(fs::read_to_string(&made).unwrap(), text);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let (directory, path) = place();
        put(&path, "something", 0o600);
        assert!(matches!(create(&path), Err(KeyFileError::Exists { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "something");
        let dangling = directory.path().join("dangling");
        std::os::unix::fs::symlink(directory.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(create(&dangling), Err(KeyFileError::Exists { .. })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn every_bit_for_others_is_refused_and_the_error_says_what_to_do() {
        let (_directory, path) = place();
        for bit in 0..6 {
            put(&path, &whole(), 0o600 | 1 << bit);
            let error = load(&path).err().expect("refused");
            assert!(matches!(error, KeyFileError::Permissions { .. }), "bit {bit}");
            assert!(error.to_string().ends_with(&format!("chmod 600 {}", path.display())), "{error}");
        }
        for mode in [0o600, 0o400] {
            put(&path, &whole(), mode);
            assert!(load(&path).is_ok(), "mode {mode:o}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn links_directories_and_pipes_are_refused() {
        let (directory, path) = place();
        put(&path, &whole(), 0o600);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(load(&link), Err(KeyFileError::Symlink { .. })));
        assert!(matches!(load(directory.path()), Err(KeyFileError::NotAFile { .. })));
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap().success());
        // Elsewhere, since opening a pipe for reading would wait for ever.
        let (done, loaded) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(load(&pipe).err()));
        let refused = loaded.recv_timeout(std::time::Duration::from_secs(10)).expect("it does not wait");
        assert!(matches!(refused, Some(KeyFileError::NotAFile { .. })));
        let nowhere = directory.path().join("nowhere");
        assert!(matches!(load(&nowhere), Err(KeyFileError::Missing { .. })));
    }

    #[test]
    fn a_file_exchanged_while_it_is_opened_is_refused() {
        let (directory, path) = place();
        let other = directory.path().join("other");
        put(&path, &whole(), 0o600);
        put(&other, &whole(), 0o600);
        let (named, opened) = (fs::metadata(&path).unwrap(), fs::metadata(&other).unwrap());
        assert!(matches!(check(&path, &named, &opened), Err(KeyFileError::NotAFile { .. })));
        assert!(check(&path, &named, &named).is_ok());
    }

    #[test]
    fn the_owner_is_the_user_or_root() {
        let path = Path::new("key");
        assert!(owner(path, 1000, 1000).is_ok());
        assert!(owner(path, 0, 1000).is_ok());
        assert!(matches!(owner(path, 1001, 1000), Err(KeyFileError::Owner { owner: 1001, user: 1000, .. })));
        assert!(matches!(owner(path, 1000, 0), Err(KeyFileError::Owner { .. })));
    }

    /// Only root can give a file away, so elsewhere this shows no more than the test above.
    #[test]
    fn a_file_of_somebody_else_is_refused() {
        let (_directory, path) = place();
        put(&path, &whole(), 0o600);
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            eprintln!("skipped: giving a file away needs root");
            return;
        }
        assert!(matches!(load(&path), Err(KeyFileError::Owner { owner: 12_345, .. })));
    }

    #[test]
    fn only_the_exact_layout_is_read() {
        let (_directory, path) = place();
        let whole = whole();
        for cut in 0..whole.len() {
            put(&path, &whole[..cut], 0o600);
            assert!(matches!(load(&path), Err(KeyFileError::Malformed { .. })), "cut at {cut}");
        }
        for bad in [
            format!("{whole}\n"),
            format!("{whole}{}", "x".repeat(1 << 20)),
            whole.replace("v1", "v2"),
            whole.replace("9d", "9g"),
            format!("\u{feff}{whole}"),
            whole.replace('\n', "\r\n"),
        ] {
            put(&path, &bad, 0o600);
            let error = load(&path).err().expect("refused");
            assert!(matches!(error, KeyFileError::Malformed { .. }));
            assert!(!format!("{error} {error:?}").contains("61b19deffd"), "a seed never shows");
        }
    }

    #[test]
    fn many_at_once_get_the_same_identity() {
        let (_directory, path) = place();
        let all: Vec<_> = std::thread::scope(|scope| {
            let started: Vec<_> = (0..16).map(|_| scope.spawn(|| load_or_create(&path).unwrap())).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().filter(|(_, now)| *now).count(), 1);
        assert!(all.iter().all(|(identity, _)| identity.public() == all[0].0.public()));
    }
}
