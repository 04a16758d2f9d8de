//! Which key each auth daemon has: taken on trust at the first contact, or known from an invitation, and held to from
//! then on.
//!
//! The file is lines of `ADDRESS FINGERPRINT`; blank lines and lines that begin with `#` are kept and ignored.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc;
use overbank_fabric::ids::Fingerprint;

use crate::local::{self, LocalError};

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why the pins cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A line is no pin.
    #[error("line {line} of {} is not ADDRESS FINGERPRINT: mend or remove that line", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// What pinning came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// It was pinned already, or by somebody else just now, to this same key.
    Known,
    /// Nothing was pinned to that address before.
    First,
    /// Another key is pinned.
    Other(Fingerprint),
}

/// The pins in one file.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    path: PathBuf,
}

impl Pins {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The key that the auth daemon at `address` has to have.
    pub(crate) fn find(&self, address: &str) -> Result<Option<Fingerprint>, PinsError> {
        Ok(self.load()?.1.into_iter().find(|(known, _)| known == address).map(|(_, key)| key))
    }

    /// Pins `address` to `key` unless something is pinned there. Of two that do so at once, the second sees the first's.
    pub(crate) fn pin(&self, address: &str, key: Fingerprint) -> Result<Pinned, PinsError> {
        let _lock = self.lock()?;
        let (mut text, pins) = self.load()?;
        if let Some((_, known)) = pins.iter().find(|(known, _)| known == address) {
            return Ok(if *known == key { Pinned::Known } else { Pinned::Other(*known) });
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{address} {key}\n"));
        local::replace::<PinsError>(&self.path, &[text.as_bytes()], |_| Ok(()))?;
        Ok(Pinned::First)
    }

    /// Pins `address` to `new` in place of `old`; nothing changes where something else is pinned there by now.
    pub(crate) fn repin(&self, address: &str, old: Fingerprint, new: Fingerprint) -> Result<(), PinsError> {
        let _lock = self.lock()?;
        let (text, pins) = self.load()?;
        if !pins.iter().any(|(known, key)| known == address && *key == old) {
            return Ok(());
        }
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let theirs = words.next() == Some(address) && words.next().map(str::parse) == Some(Ok(old));
            if theirs { format!("{address} {new}\n") } else { format!("{line}\n") }
        };
        let text: String = text.lines().map(line).collect();
        local::replace::<PinsError>(&self.path, &[text.as_bytes()], |_| Ok(())).map(|_| ())
    }

    /// The file's text and its pins.
    fn load(&self) -> Result<(String, Vec<(String, Fingerprint)>), PinsError> {
        let Some(file) = local::open_owned(&self.path, local::OTHERS_READ)? else { return Ok(Default::default()) };
        let bytes = local::read_bounded(&self.path, &file, MAX_BYTES)?;
        let malformed = |line| PinsError::Malformed { path: self.path.clone(), line };
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            malformed(1 + good.iter().filter(|&&byte| byte == b'\n').count())
        })?;
        let mut pins = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next().map(str::parse), words.next()) {
                (None, ..) => {}
                (Some(word), ..) if word.starts_with('#') => {}
                (Some(address), Some(Ok(key)), None) => pins.push((address.to_owned(), key)),
                _ => return Err(malformed(number)),
            }
        }
        Ok((text, pins))
    }

    /// Held while the file is changed. A file of its own, as the pins' own file is replaced.
    fn lock(&self) -> Result<File, LocalError> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&path)
            .map_err(LocalError::io("open", &path))?;
        // Others hold it for as long as it takes to write one small file.
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(LocalError::io("lock", &path)(error)),
                Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(Duration::from_millis(2)),
                Err(TryLockError::WouldBlock) => return Err(LocalError::InUse { path }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::*;

    fn pins(home: &tempfile::TempDir) -> Pins {
        Pins::new(home.path().join("known_authds"))
    }

    fn write(pins: &Pins, bytes: &[u8]) {
        fs::write(&pins.path, bytes).expect("written");
        fs::set_permissions(&pins.path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    #[test]
    fn the_first_key_stays() {
        let home = tempfile::tempdir().expect("a directory");
        let pins = pins(&home);
        let (one, two) = (Fingerprint([1; 20]), Fingerprint([2; 20]));
        assert_eq!(pins.find("a:1").expect("no file is no error"), None);
        assert_eq!(pins.pin("a:1", one).expect("pinned"), Pinned::First);
        assert_eq!(pins.pin("a:1", one).expect("pinned"), Pinned::Known);
        assert_eq!(pins.pin("a:1", two).expect("not pinned"), Pinned::Other(one));
        assert_eq!(pins.pin("a:2", two).expect("another address"), Pinned::First);
        assert_eq!(pins.find("a:1").expect("read"), Some(one));
        assert_eq!(pins.find("a:2").expect("read"), Some(two));
        assert_eq!(pins.find("a").expect("read"), None);
    }

    #[test]
    fn a_pin_moves_only_from_the_key_that_it_has() {
        let home = tempfile::tempdir().expect("a directory");
        let pins = pins(&home);
        let (one, two, three) = (Fingerprint([1; 20]), Fingerprint([2; 20]), Fingerprint([3; 20]));
        write(&pins, format!("# mine\nb:1 {one}\na:1 {one}").as_bytes());
        pins.repin("a:1", two, three).expect("no error");
        assert_eq!(pins.find("a:1").expect("read"), Some(one));
        pins.repin("a:1", one, two).expect("no error");
        assert_eq!((pins.find("a:1").expect("read"), pins.find("b:1").expect("read")), (Some(two), Some(one)));
        assert!(fs::read_to_string(&pins.path).expect("it").starts_with("# mine\n"));
    }

    #[test]
    fn attack_07_two_first_contacts_race() {
        for _ in 0..20 {
            let home = tempfile::tempdir().expect("a directory");
            let (pins, start) = (pins(&home), Barrier::new(8));
            let outcomes: Vec<Pinned> = std::thread::scope(|scope| {
                let contacts: Vec<_> = (0..8)
                    .map(|key| {
                        let (pins, start) = (&pins, &start);
                        scope.spawn(move || {
                            start.wait();
                            pins.pin("a:1", Fingerprint([key; 20])).expect("no error")
                        })
                    })
                    .collect();
                contacts.into_iter().map(|contact| contact.join().expect("no panic")).collect()
            });
            let winner = pins.find("a:1").expect("read").expect("one");
            assert_eq!(outcomes.iter().filter(|outcome| **outcome == Pinned::First).count(), 1);
            assert_eq!(outcomes.iter().filter(|outcome| **outcome == Pinned::Other(winner)).count(), 7);
        }
        println!("attack 07 -: seen of eight first contacts with eight keys one pinned, and seven refused");
    }

    #[test]
    fn malformed_lines_are_named_and_comments_kept() {
        let home = tempfile::tempdir().expect("a directory");
        let pins = pins(&home);
        let key = "ab".repeat(20);
        write(&pins, format!("# mine\n\na:1 {key}").as_bytes());
        assert_eq!(pins.pin("b:1", Fingerprint([1; 20])).expect("pinned"), Pinned::First);
        let text = fs::read_to_string(&pins.path).expect("it");
        assert!(text.starts_with(&format!("# mine\n\na:1 {key}\nb:1 0101")), "{text}");
        for bad in ["a:1", &format!("a:1 {key} x"), &format!("a:1 {key}0"), "a:1 fingerprint"] {
            write(&pins, format!("\n{bad}\n").as_bytes());
            assert!(matches!(pins.find("a:1"), Err(PinsError::Malformed { line: 2, .. })), "{bad}");
        }
        write(&pins, b"#\n#\xff");
        assert!(matches!(pins.find("a:1"), Err(PinsError::Malformed { line: 2, .. })));
        fs::set_permissions(&pins.path, fs::Permissions::from_mode(0o666)).expect("chmod");
        assert!(matches!(pins.find("a:1"), Err(PinsError::Local(LocalError::Mode { .. }))));
    }

    proptest! {
        #[test]
        fn no_file_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let home = tempfile::tempdir().expect("a directory");
            let pins = pins(&home);
            write(&pins, &bytes);
            let _ = pins.find("a:1");
        }
    }
}
