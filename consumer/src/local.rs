//! Files and directories that only their owner may touch: keys, pins and lease files lie in them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

/// Why a local file or directory is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symbolic link, or not the kind of file it should be: somebody may have put it there.
    #[error("{} is not {wanted}: look at what it is, and remove it if it is not yours", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
    /// It belongs to another user.
    #[error("{} belongs to user {owner}, not to you (user {me}): secrets are kept only in your own files", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        me: u32,
    },
    /// Others may read or change it.
    #[error(
        "{} has mode {mode:04o}, so other users can get at it: if nobody did, `chmod {wanted:04o}` it and try again",
        path.display()
    )]
    Mode {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// Another process holds it.
    #[error("{} is in use by another process: wait for it to end", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Longer than such a file can be.
    #[error("{} has {bytes} bytes, more than such a file ever has ({most})", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The most that is read.
        most: u64,
    },
}

impl LocalError {
    /// Turns what the system said into an error that says on what.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

/// Makes sure that `path` is a directory of ours that nobody else can enter, and makes it (and its parents) if need be.
pub(crate) fn private_dir(path: &Path) -> Result<(), LocalError> {
    if let Err(error) = fs::symlink_metadata(path)
        && error.kind() == io::ErrorKind::NotFound
    {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(LocalError::io("make", parent))?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(LocalError::io("make", path)(error));
            }
            _ => {}
        }
    }
    let metadata = fs::symlink_metadata(path).map_err(LocalError::io("look at", path))?;
    if !metadata.is_dir() {
        return Err(LocalError::Kind { path: path.to_owned(), wanted: "a directory" });
    }
    owned(path, &metadata, OTHERS_NOTHING, 0o700)
}

/// Makes sure that `path` leads to a directory of ours that nobody else can write in, and makes it if need be.
pub(crate) fn home_dir(path: &Path) -> Result<(), LocalError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return private_dir(path),
        Err(error) => return Err(LocalError::io("look at", path)(error)),
    };
    if !metadata.is_dir() {
        return Err(LocalError::Kind { path: path.to_owned(), wanted: "a directory" });
    }
    owned(path, &metadata, OTHERS_READ, 0o700)
}

/// Permission bits that a secret may not have.
pub(crate) const OTHERS_NOTHING: u32 = 0o077;
/// Permission bits that what is no secret may not have.
pub(crate) const OTHERS_READ: u32 = 0o022;

/// Opens a file of ours that has none of the permission bits in `forbidden`; `None` where there is none.
pub(crate) fn open_owned(path: &Path, forbidden: u32) -> Result<Option<File>, LocalError> {
    // NONBLOCK: a FIFO in its place is refused below, not waited for.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let wanted = "a regular file";
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(LocalError::Kind { path: path.to_owned(), wanted });
        }
        Err(error) => return Err(LocalError::io("open", path)(error)),
    };
    let metadata = file.metadata().map_err(LocalError::io("look at", path))?;
    if !metadata.is_file() {
        return Err(LocalError::Kind { path: path.to_owned(), wanted });
    }
    owned(path, &metadata, forbidden, 0o600)?;
    Ok(Some(file))
}

/// The whole of an open file of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, file: &File, most: u64) -> Result<Vec<u8>, LocalError> {
    let length = file.metadata().map_err(LocalError::io("look at", path))?.len();
    if length > most {
        return Err(LocalError::TooLong { path: path.to_owned(), bytes: length, most });
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(LocalError::io("read", path))?;
    Ok(bytes)
}

/// Puts a new file in the place of `path`, whole or not at all, even if the machine stops in the middle. Callers that
/// may meet each other here hold a lock. `prepare` gets the new file before it can be seen.
pub(crate) fn replace<E: From<LocalError>>(
    path: &Path,
    parts: &[&[u8]],
    prepare: impl FnOnce(&File) -> Result<(), E>,
) -> Result<File, E> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = directory.join(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(LocalError::io("remove", &temporary)(error).into());
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&temporary)
        .map_err(LocalError::io("make", &temporary))?;
    let written = prepare(&file).and_then(|()| {
        parts
            .iter()
            .try_for_each(|part| file.write_all(part))
            .and_then(|()| file.sync_all())
            .map_err(LocalError::io("write", &temporary))?;
        fs::rename(&temporary, path).map_err(LocalError::io("replace", path))?;
        let directory_file = File::open(directory).map_err(LocalError::io("open", directory))?;
        Ok(directory_file.sync_all().map_err(LocalError::io("write", directory))?)
    });
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            // What could not be put in place holds secrets, and is of no use.
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

fn owned(path: &Path, metadata: &fs::Metadata, forbidden: u32, wanted: u32) -> Result<(), LocalError> {
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(LocalError::Owner { path: path.to_owned(), owner: metadata.uid(), me });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(LocalError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn directories_are_made_private_and_open_ones_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("a/b");
        private_dir(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("it").mode() & 0o777, 0o700);
        private_dir(&path).expect("found");
        for mode in [0o701, 0o710, 0o750, 0o755, 0o777] {
            chmod(&path, mode);
            assert!(matches!(private_dir(&path), Err(LocalError::Mode { .. })), "{mode:o}");
        }
        chmod(&path, 0o700);
        let link = home.path().join("link");
        symlink(&path, &link).expect("a link");
        assert!(matches!(private_dir(&link), Err(LocalError::Kind { .. })));
        let file = home.path().join("file");
        fs::write(&file, b"").expect("a file");
        assert!(matches!(private_dir(&file), Err(LocalError::Kind { .. })));
    }

    #[test]
    fn files_that_others_could_touch_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("key");
        assert!(open_owned(&path, OTHERS_NOTHING).expect("no error").is_none());
        replace::<LocalError>(&path, &[b"ab", b"c"], |_| Ok(())).expect("written");
        let file = open_owned(&path, OTHERS_NOTHING).expect("ours").expect("there");
        assert_eq!(read_bounded(&path, &file, 3).expect("short"), b"abc");
        assert!(matches!(read_bounded(&path, &file, 2), Err(LocalError::TooLong { bytes: 3, most: 2, .. })));
        for mode in [0o601, 0o640, 0o604, 0o660, 0o666] {
            chmod(&path, mode);
            assert!(matches!(open_owned(&path, OTHERS_NOTHING), Err(LocalError::Mode { .. })), "{mode:o}");
        }
        chmod(&path, 0o644);
        assert!(open_owned(&path, OTHERS_READ).expect("others may read").is_some());
        chmod(&path, 0o600);
        let link = home.path().join("link");
        symlink(&path, &link).expect("a link");
        assert!(matches!(open_owned(&link, OTHERS_NOTHING), Err(LocalError::Kind { .. })));
        assert!(matches!(open_owned(home.path(), OTHERS_NOTHING), Err(LocalError::Kind { .. })));
        let fifo = home.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("a fifo");
        assert!(matches!(open_owned(&fifo, OTHERS_NOTHING), Err(LocalError::Kind { .. })));
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_nothing_else() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("file");
        replace::<LocalError>(&path, &[b"old"], |_| Ok(())).expect("written");
        let refused = replace(&path, &[b"new"], |_| Err(LocalError::Kind { path: path.clone(), wanted: "x" }));
        assert!(refused.is_err());
        assert_eq!(fs::read(&path).expect("it"), b"old");
        assert_eq!(fs::read_dir(home.path()).expect("it").count(), 1);
        // What a crash left behind is in nobody's way.
        fs::write(home.path().join(".file.new"), b"half").expect("left behind");
        replace::<LocalError>(&path, &[b"new"], |_| Ok(())).expect("written");
        assert_eq!(fs::read(&path).expect("it"), b"new");
    }
}
