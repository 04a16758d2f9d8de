//! `rotate`: makes the key that is to take over, and waits for the running provider to have handed over to it.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use overbank_fabric::ids::Fingerprint;
use overbank_fabric::keyfile::{self, KeyFileError};

use crate::own_key::{FILE, NEXT};
use crate::process::{self, ProcessError, StateDir};

/// For the running provider to hand over.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// Why the key is the old one still.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The process or the state directory.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A key file.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The auth daemon will not have it.
    #[error(
        "the auth daemon takes no new key of this provider: its log, and the provider's, say why; it goes on with the old one"
    )]
    Refused,
    /// The running provider did not get it done.
    #[error(
        "the provider has not handed over within {PATIENCE:?}: it does as soon as it reaches the auth daemon; its log says why it does not"
    )]
    Late,
}

impl RotateError {
    /// What the process exits with.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Process(_) | Self::Key(_) => 12,
            Self::Refused => 4,
            Self::Late => 1,
        }
    }
}

/// A new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// The one before.
    pub old: Fingerprint,
    /// The new one.
    pub new: Fingerprint,
    /// Whether it has taken over. Where the provider does not run, it does when it starts.
    pub done: bool,
}

/// Makes a new key for the provider of a state directory, or goes on with the one that was made before.
///
/// # Errors
/// [`RotateError`].
pub fn rotate(state: &Path) -> Result<Rotated, RotateError> {
    process::harden(None, Some(state))?;
    let (file, next) = (state.join(FILE), state.join(NEXT));
    let old = keyfile::load(&file)?.public().fingerprint();
    // As long as it is ours, no provider starts in between.
    let idle = match StateDir::open(state) {
        Ok(lock) => Some(lock),
        Err(ProcessError::InUse(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let new = keyfile::load_or_create(&next)?.0.public().fingerprint();
    if idle.is_some() {
        return Ok(Rotated { old, new, done: false });
    }
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let gone = next.symlink_metadata().is_err();
        if keyfile::load(&file)?.public().fingerprint() == new {
            return Ok(Rotated { old, new, done: true });
        }
        if gone {
            return Err(RotateError::Refused);
        }
        sleep(LOOK);
    }
    Err(RotateError::Late)
}
