//! This provider's own key: who it is, who it was in this life, and the key that is to take over.
//!
//! `overbank-provider rotate` puts a new key beside the old one; the provider has the old one sign it and hands over at the
//! auth daemon, and only then is it the key. What was lent by the old key goes on being signed with that one, by which its
//! holders know the provider.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::keyfile::{self, KeyFileError};

/// The key, in the state directory.
pub(crate) const FILE: &str = "provider.key";
/// The one that is to take over.
pub(crate) const NEXT: &str = "provider.key.next";

/// The key of this provider.
pub struct OwnKey {
    identity: Arc<Identity>,
    /// Keys that it had in this life.
    former: Vec<PublicKey>,
    /// The state directory; none where nothing is kept.
    state: Option<PathBuf>,
    holders: Holders,
}

impl OwnKey {
    /// The key in a state directory, and whether it was made now.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load(state: &Path) -> Result<(Self, bool), KeyFileError> {
        let (identity, made) = keyfile::load_or_create(&state.join(FILE))?;
        Ok((Self { state: Some(state.to_owned()), ..Self::fleeting(Arc::new(identity)) }, made))
    }

    /// One that is in no file.
    #[must_use]
    pub fn fleeting(identity: Arc<Identity>) -> Self {
        let holders = Holders::default();
        holders.add(&identity);
        Self { identity, former: Vec::new(), state: None, holders }
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Every key by which a lease of this life may know this provider.
    #[must_use]
    pub fn all(&self) -> Vec<PublicKey> {
        self.former.iter().copied().chain([self.identity.public()]).collect()
    }

    /// Who holds any of them.
    #[must_use]
    pub fn holders(&self) -> Holders {
        self.holders.clone()
    }

    /// Whether a key waits to take over.
    #[must_use]
    pub fn has_next(&self) -> bool {
        self.next_file().is_some_and(|next| next.symlink_metadata().is_ok())
    }

    /// The key that waits to take over.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn next(&self) -> Result<Option<Identity>, KeyFileError> {
        match self.next_file().filter(|_| self.has_next()) {
            Some(next) => keyfile::load(&next).map(Some),
            None => Ok(None),
        }
    }

    /// It is the key from now on: the auth daemon has taken it.
    ///
    /// # Errors
    /// Where the file stays as it was. The next start does the same once more.
    pub fn take_next(&mut self, next: Identity) -> io::Result<()> {
        if next.public() != self.identity.public() {
            self.former.push(self.identity.public());
            self.identity = Arc::new(next);
            self.holders.add(&self.identity);
        }
        let Some(state) = &self.state else { return Ok(()) };
        fs::rename(state.join(NEXT), state.join(FILE))?;
        File::open(state)?.sync_all()
    }

    /// It is not to be.
    pub fn forget_next(&self) {
        if let Some(Err(error)) = self.next_file().map(fs::remove_file) {
            tracing::warn!(%error, "the key that was to take over is not removed");
        }
    }

    fn next_file(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|state| state.join(NEXT))
    }
}

/// Whoever holds a key of this provider; no key itself.
#[derive(Debug, Clone, Default)]
pub struct Holders(Arc<Mutex<Vec<Weak<Identity>>>>);

impl Holders {
    fn add(&self, identity: &Arc<Identity>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(identity));
    }

    /// Whether nobody does: every key is wiped.
    #[must_use]
    pub fn are_gone(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().all(|identity| identity.strong_count() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_takes_over_when_it_is_told_to_and_not_before() {
        let state = tempfile::tempdir().expect("a directory");
        let (mut key, made) = OwnKey::load(state.path()).expect("made");
        assert!(made && key.next().expect("none").is_none());
        let old = key.identity().public();
        let next = keyfile::create(&state.path().join(NEXT)).expect("made").public();
        let (again, made) = OwnKey::load(state.path()).expect("there");
        assert!(!made && again.identity().public() == old, "not by a start alone");

        let holders = key.holders();
        let lease = Arc::clone(key.identity());
        let waiting = key.next().expect("readable").expect("there");
        assert_eq!(waiting.public(), next);
        key.take_next(waiting).expect("taken");
        assert_eq!((key.identity().public(), key.all()), (next, vec![old, next]));
        assert!(!key.has_next());
        assert_eq!(OwnKey::load(state.path()).expect("there").0.identity().public(), next);
        drop(key);
        assert!(!holders.are_gone(), "a lease of before has the old one");
        drop(lease);
        assert!(holders.are_gone());
    }

    #[test]
    fn a_key_that_is_not_to_be_is_gone() {
        let state = tempfile::tempdir().expect("a directory");
        let (key, _) = OwnKey::load(state.path()).expect("made");
        keyfile::create(&state.path().join(NEXT)).expect("made");
        assert!(key.has_next());
        key.forget_next();
        assert!(!key.has_next() && key.next().expect("none").is_none());
        assert!(!OwnKey::fleeting(Arc::clone(key.identity())).has_next());
    }
}
