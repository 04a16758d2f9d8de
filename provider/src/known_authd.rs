//! Which auth daemon this provider obeys: a fingerprint given on the command line or by an invitation, or the one that
//! it met first. It is kept in the state directory, and another one is refused from then on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{Fingerprint, IdError};

/// The pin could not be read, kept, or does not agree.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The auth daemon's key is another than the pinned one.
    #[error(
        "the auth daemon has the fingerprint {seen}, but {pinned} is pinned ({source_of_pin}). Somebody may be in between. \
         If the auth daemon was set up anew, compare {seen} with what it prints at its start, then {way_out}"
    )]
    Changed {
        /// What it should be.
        pinned: Fingerprint,
        /// What it is.
        seen: Fingerprint,
        /// Where the pin comes from.
        source_of_pin: String,
        /// How to accept the new one.
        way_out: String,
    },
    /// The file does not hold a fingerprint.
    #[error("{} does not hold a fingerprint ({source}); delete it to pin the auth daemon anew", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdError,
    },
    /// The file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Reading or writing.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The pin, and where it is kept.
#[derive(Debug)]
pub struct KnownAuthd {
    /// None where nothing is kept.
    path: Option<PathBuf>,
    pinned: Option<Fingerprint>,
    source: String,
    kept: bool,
    /// Keys that it had before, each of which signed the next.
    former: Vec<PublicKey>,
}

impl KnownAuthd {
    /// Reads the file `known_authd` in `state`, if there is to be one, and takes in what the command line says.
    ///
    /// # Errors
    /// A file that cannot be read, or pins that do not agree.
    pub fn load(state: Option<&Path>, given: &[(Fingerprint, &'static str)]) -> Result<Self, PinError> {
        let path = state.map(|state| state.join("known_authd"));
        let kept = path.as_deref().map(read).transpose()?.flatten();
        let mut known =
            Self { source: found_in(path.as_deref()), path, pinned: kept, kept: kept.is_some(), former: Vec::new() };
        for (fingerprint, source) in given {
            known.check(*fingerprint)?;
            if known.pinned.is_none() {
                known.pinned = Some(*fingerprint);
                known.source = (*source).to_owned();
            }
        }
        Ok(known)
    }

    /// Whether this is the auth daemon to obey, as far as is known.
    ///
    /// # Errors
    /// [`PinError::Changed`].
    pub fn check(&self, seen: Fingerprint) -> Result<(), PinError> {
        match self.pinned {
            Some(pinned) if pinned != seen => {
                let way_out = match &self.path {
                    Some(path) if self.kept => format!("delete {} and start again", path.display()),
                    _ => "start again with that fingerprint, or a fresh invitation".to_owned(),
                };
                Err(PinError::Changed { pinned, seen, source_of_pin: self.source.clone(), way_out })
            }
            _ => Ok(()),
        }
    }

    /// Keeps the fingerprint of an auth daemon that has proven its key. True where nobody vouched for it before: a
    /// first contact, which people should be shown.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn keep(&mut self, seen: Fingerprint) -> Result<bool, PinError> {
        self.check(seen)?;
        let first_contact = self.pinned.is_none();
        if !self.kept {
            if let Some(path) = &self.path {
                replace(path, format!("{seen}\n").as_bytes()).map_err(|source| PinError::Io {
                    action: "write",
                    path: path.clone(),
                    source,
                })?;
            }
            self.pinned = Some(seen);
            self.source = found_in(self.path.as_deref());
            self.kept = true;
        }
        Ok(first_contact)
    }

    /// The fingerprint to obey, if there is one yet.
    #[must_use]
    pub fn pinned(&self) -> Option<Fingerprint> {
        self.pinned
    }

    /// The keys that the auth daemon had while this process ran.
    #[must_use]
    pub fn former(&self) -> &[PublicKey] {
        &self.former
    }

    /// Obeys another key from now on, to which signed steps lead from the pinned one, over these.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn follow(&mut self, to: Fingerprint, over: Vec<PublicKey>) -> Result<(), PinError> {
        self.former.extend(over);
        (self.pinned, self.kept) = (None, false);
        self.keep(to).map(|_| ())
    }

    /// The file, where the fingerprint is kept.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// The fingerprint in a file, if there is one.
fn read(path: &Path) -> Result<Option<Fingerprint>, PinError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PinError::Io { action: "read", path: path.to_owned(), source }),
    };
    let parsed = text.trim().parse().map(Some);
    parsed.map_err(|source| PinError::Malformed { path: path.to_owned(), source })
}

fn found_in(path: Option<&Path>) -> String {
    path.map_or_else(|| "since this start".to_owned(), |path| format!("in {}", path.display()))
}

/// The old contents or the new ones, whatever happens.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Fingerprint = Fingerprint([1; 20]);
    const TWO: Fingerprint = Fingerprint([2; 20]);

    #[test]
    fn the_first_auth_daemon_is_kept_and_another_is_refused() {
        let state = tempfile::tempdir().expect("a directory");
        let mut known = KnownAuthd::load(Some(state.path()), &[]).expect("no file yet");
        assert!(known.keep(ONE).expect("first contact"));
        assert!(!known.keep(ONE).expect("the same again"));
        let known = KnownAuthd::load(Some(state.path()), &[]).expect("the file");
        assert!(known.check(ONE).is_ok());
        let error = known.check(TWO).expect_err("changed").to_string();
        assert!(error.contains(&TWO.to_string()) && error.contains("delete "), "{error}");
    }

    #[test]
    fn what_the_command_line_says_needs_no_leap() {
        let state = tempfile::tempdir().expect("a directory");
        let mut known = KnownAuthd::load(Some(state.path()), &[(ONE, "from --authd-fingerprint")]).expect("agreed");
        assert!(matches!(known.check(TWO), Err(PinError::Changed { .. })));
        assert!(!known.keep(ONE).expect("as said"), "no first contact");
        assert!(matches!(
            KnownAuthd::load(Some(state.path()), &[(TWO, "from the invitation")]),
            Err(PinError::Changed { pinned: ONE, seen: TWO, .. })
        ));
    }

    #[test]
    fn sources_that_disagree_are_refused_before_anybody_is_called() {
        let state = tempfile::tempdir().expect("a directory");
        assert!(KnownAuthd::load(Some(state.path()), &[(ONE, "a"), (TWO, "b")]).is_err());
        fs::write(state.path().join("known_authd"), "nonsense").expect("written");
        assert!(matches!(KnownAuthd::load(Some(state.path()), &[]), Err(PinError::Malformed { .. })));
    }
}
