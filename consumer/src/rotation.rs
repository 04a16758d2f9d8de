//! A new key for this borrower: the old one signs it, and it takes over role, tenant and leases.

use std::fs::{self, File};

use overbank_fabric::ids::Fingerprint;
use overbank_fabric::keyfile::{self, KeyFileError};
use overbank_fabric::message::{Call, Reply, Rotate};
use overbank_fabric::signed::Signed;

use crate::client::{Client, Repeat, odd};
use crate::clock::unix_ms;
use crate::config::Config;
use crate::error::Error;

/// Makes a new identity in place of the one in the configuration's home: from then on the old one is revoked, and all that
/// it had is the new one's. Nothing that is under way ends by it. What was cut off half way is finished by doing it again.
/// The fingerprints: of the old one, and of the new one.
///
/// # Errors
/// [`Error::NotTrusted`] where the old one is not trusted, [`Error::KeyFile`], and what [`Client::connect`] says.
pub fn rotate(config: &Config) -> Result<(Fingerprint, Fingerprint), Error> {
    let path = config.identity_path();
    let old = keyfile::load(&path)?;
    let next = path.with_extension("key.next");
    let (new, _) = keyfile::load_or_create(&next)?;
    let (was, is) = (old.public().fingerprint(), new.public());
    let client = Client::connect_as(config, new)?;
    let rotate = Rotate { old: old.public(), handover: Signed::to(&client.authd_key(), &old, &is, unix_ms()) };
    match client.call("handing over to the new identity", None, Repeat::Harmless, Call::Rotate(rotate)) {
        Ok(Reply::You(entry)) if entry.key == is => {}
        Ok(reply) => return Err(odd(&reply)),
        Err(error) => {
            if matches!(error, Error::NotTrusted(_) | Error::Refused { .. }) {
                // It is nobody's successor. What cannot be removed is tried again.
                let _ = fs::remove_file(&next);
            }
            return Err(error);
        }
    }
    let failed = |action| {
        let path = path.clone();
        move |source| KeyFileError::Io { action, path, source }
    };
    fs::rename(&next, &path).map_err(failed("replace"))?;
    File::open(config.home()).and_then(|home| home.sync_all()).map_err(failed("sync the directory of"))?;
    Ok((was, is.fingerprint()))
}
