//! Leases shared with others: a part of what one holds, for another identity, in a file that needs no auth daemon.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use overbank_fabric::block::LeaseKey;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{Fingerprint, LeaseId};
use overbank_fabric::share::{self, MAX_LEN, ShareError, ShareFacts};
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope};

use crate::client::{Client, load_identity, ms};
use crate::clock::Until;
use crate::config::Config;
use crate::error::Error;
use crate::lease::Lease;
use crate::lease_file::{self, Facts, LeaseFile, LeaseFileError, Sharing};
use crate::local::{self, LocalError};

/// What to share of a lease, and with whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareRequest {
    /// With whom: the whole key. [`Client::key_of`] finds it by its fingerprint.
    pub to: PublicKey,
    /// Whether it may only read.
    pub read_only: bool,
    /// Which bytes of the lease, from and to whole blocks (or to the lease's end); none: all that we have of it.
    pub range: Option<Range<u64>>,
    /// For how long; none: as long as our own token lasts. A renewal of the lease does not make it longer.
    pub ttl: Option<Duration>,
}

impl ShareRequest {
    /// Everything that we have, with this identity.
    #[must_use]
    pub fn new(to: PublicKey) -> Self {
        Self { to, read_only: false, range: None, ttl: None }
    }
}

/// Why a lease is not shared, or a share not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharingError {
    /// The bundle itself.
    #[error(transparent)]
    Bundle(#[from] ShareError),
    /// A range that is not one of whole blocks.
    #[error("bytes {} to {} are not whole blocks of {block} bytes, and nothing less can be shared", range.start, range.end)]
    NotBlocks {
        /// What was asked for.
        range: Range<u64>,
        /// Bytes of a block.
        block: u32,
    },
    /// A range of which we have not all.
    #[error("bytes {} to {} are not within bytes {} to {}, which is what this lease file is good for", range.start, range.end, have.start, have.end)]
    OutOfRange {
        /// What was asked for.
        range: Range<u64>,
        /// What there is.
        have: Range<u64>,
    },
    /// We may not write ourselves.
    #[error("the lease was shared with us for reading only: share it with --read-only")]
    ReadOnly,
    /// Its time is over, or was counted on another start of this machine.
    #[error("it is not known here how long the lease lasts: renew it, or leave the time out")]
    TimeUnknown,
    /// From somebody else than expected.
    #[error("the share is from {from}, not from {expected}")]
    OtherSender {
        /// Who made it.
        from: Fingerprint,
        /// Who should have.
        expected: Fingerprint,
    },
    /// Granted by another auth daemon than the one that we talk to.
    #[error("the share is of a lease of the auth daemon {granted_by}, and this one is {authd}: use --authd")]
    OtherAuthd {
        /// Whose it is.
        granted_by: Fingerprint,
        /// Who answers here.
        authd: Fingerprint,
    },
    /// We hold the lease itself.
    #[error("lease {0} is this identity's own: there is nothing to open")]
    Own(LeaseId),
    /// Only its holder can do that.
    #[error(
        "lease {lease} was shared by {from}, and only its holder can {what} it; to be rid of the share, remove {path}"
    )]
    NotHolder {
        /// Which.
        lease: LeaseId,
        /// Who shared it.
        from: Fingerprint,
        /// What was asked for.
        what: &'static str,
        /// Its file.
        path: String,
    },
    /// What was shared cannot be used any more.
    #[error("what {from} shared of lease {lease} is over ({why}): have it shared anew")]
    Over {
        /// Which.
        lease: LeaseId,
        /// Who shared it.
        from: Fingerprint,
        /// How that was seen.
        why: String,
    },
}

/// A share that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedLease {
    /// Which lease.
    pub lease: LeaseId,
    /// Who shared it.
    pub from: Fingerprint,
    /// Its bytes that can be reached.
    pub range: Range<u64>,
    /// Whether they can only be read.
    pub read_only: bool,
}

/// Shares a lease of which there is a file here. Nobody is asked, so it works without the auth daemon. Other processes
/// may use the lease meanwhile, unless who it is shared with is to write: then the lease's freshness is unknown from here
/// on (see [`Lease::freshness_is_known`]), which nobody who uses it may miss.
///
/// The bundle is of use to `request.to` alone, and can be sent in any way.
///
/// ```no_run
/// use overbank::{Config, LeaseId, PublicKey, ShareRequest, share};
/// # fn example(config: &Config, lease: LeaseId, rank_7: PublicKey) -> Result<(), Box<dyn std::error::Error>> {
/// let request = ShareRequest { read_only: true, range: Some(0..1 << 20), ..ShareRequest::new(rank_7) };
/// std::fs::write("rank-7.share", share(config, lease, &request)?)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::LeaseFile`] where there is none, or it is in use and somebody else is to write; [`Error::Sharing`];
/// [`Error::KeyFile`].
pub fn share(config: &Config, lease: LeaseId, request: &ShareRequest) -> Result<Vec<u8>, Error> {
    let (identity, _) = load_identity(config)?;
    if request.read_only {
        let (facts, key) = lease_file::peek_with_key(config.leases(), lease)?;
        return seal(&facts, &key, &identity, request);
    }
    let (mut file, _) = LeaseFile::open(config.leases(), lease)?;
    let bundle = seal(file.facts(), file.key(), &identity, request)?;
    if file.facts().sharing == Sharing::No {
        let facts = Facts { sharing: Sharing::WithWriters, ..file.facts().clone() };
        file.save(facts, &[])?;
    }
    Ok(bundle)
}

/// Reads a bundle from a file, as far as one can be long.
///
/// # Errors
/// What the system says; a longer one is refused when it is opened.
pub fn read_bundle(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |doing| LocalError::io(doing, path);
    let file = File::open(path).map_err(failed("open")).map_err(LeaseFileError::from)?;
    let mut bytes = Vec::new();
    file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed("read")).map_err(LeaseFileError::from)?;
    Ok(bytes)
}

/// Writes a bundle to a new file, mode 0600, in the place of one that was there. What is no file, such as /dev/null, is not
/// replaced.
///
/// # Errors
/// [`Error::LeaseFile`]: what the system says.
pub fn write_bundle(path: &Path, bundle: &[u8]) -> Result<(), Error> {
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let kind = LocalError::Kind { path: path.to_owned(), wanted: "a file that a new one can take the place of" };
        return Err(LeaseFileError::from(kind).into());
    }
    local::replace(path, &[bundle], |_| Ok::<_, LocalError>(())).map_err(LeaseFileError::from)?;
    Ok(())
}

impl Lease {
    /// As [`share()`], of a lease that this process uses.
    ///
    /// # Errors
    /// [`Error::Sharing`]; [`Error::LeaseFile`].
    pub fn share(&mut self, request: &ShareRequest) -> Result<Vec<u8>, Error> {
        let bundle = seal(self.facts(), self.key(), &self.identity(), request)?;
        if !request.read_only {
            self.shared_with_writers()?;
        }
        Ok(bundle)
    }
}

impl Client {
    /// The key of a trusted consumer, by its fingerprint.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is none, [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn key_of(&self, fingerprint: Fingerprint) -> Result<PublicKey, Error> {
        let key = self.ask_key_of(fingerprint)?;
        // The auth daemon can leave a key out, but not put another in its place.
        if key.fingerprint() == fingerprint {
            Ok(key)
        } else {
            Err(Error::MisbehavingAuthd("a key with another fingerprint".to_owned()))
        }
    }

    /// Opens what somebody shared with us, and writes it down as a lease file, so that [`Client::open_lease`] takes it into
    /// use. `from` is who is expected to have shared it; none: whoever holds the lease, or was given it.
    ///
    /// A lease that was shared has writers that know nothing of each other, so its freshness is unknown: what comes back
    /// was sealed for its place by somebody who has the lease's key, and may be older than what was written last.
    ///
    /// ```no_run
    /// # fn example(client: &overbank::Client) -> Result<(), overbank::Error> {
    /// let bundle = overbank::read_bundle("rank-7.share".as_ref())?;
    /// let shared = client.open_share(&bundle, None)?;
    /// let mut lease = client.open_lease(shared.lease)?;
    /// let mut bytes = vec![0; 4096];
    /// lease.read(shared.range.start, &mut bytes)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Sharing`]; [`Error::LeaseFile`].
    pub fn open_share(&self, bundle: &[u8], from: Option<Fingerprint>) -> Result<SharedLease, Error> {
        let opened = share::open(bundle, &self.identity()).map_err(SharingError::from)?;
        let sender = opened.from.fingerprint();
        if let Some(expected) = from.filter(|&expected| expected != sender) {
            return Err(SharingError::OtherSender { from: sender, expected }.into());
        }
        let ShareFacts { to, lease, generation, tenant, authd, provider, boot, bytes, block, token } = opened.facts;
        if !self.is_authd(&authd) {
            return Err(SharingError::OtherAuthd { granted_by: authd.fingerprint(), authd: self.authd() }.into());
        }
        let facts = Facts {
            lease,
            generation,
            tenant,
            authd: self.config().authd().to_owned(),
            authd_key: authd,
            holder: to,
            provider,
            boot,
            bytes,
            block,
            token,
            until: Until::unknown(),
            dirty: false,
            sharing: Sharing::By(opened.from),
        };
        let directory = self.config().leases();
        // Held until the new one is in its place: nobody uses the old one meanwhile.
        let _old = match LeaseFile::open(directory, lease) {
            Ok((file, _)) if !matches!(file.facts().sharing, Sharing::By(_)) => {
                return Err(SharingError::Own(lease).into());
            }
            Err(error @ LeaseFileError::InUse { .. }) => return Err(error.into()),
            old => old.ok(),
        };
        let range = reach(&opened.scope, &facts);
        let read_only = !opened.scope.rights.contains(Rights::WRITE);
        LeaseFile::create(directory, facts, opened.key, &[])?;
        Ok(SharedLease { lease, from: sender, range, read_only })
    }
}

/// The bytes of the lease that a token reaches.
pub(crate) fn reach(scope: &Scope, facts: &Facts) -> Range<u64> {
    let byte = |block: u64| block.saturating_mul(u64::from(facts.block)).min(facts.bytes);
    byte(scope.first_block)..byte(scope.first_block.saturating_add(scope.blocks))
}

fn seal(facts: &Facts, key: &LeaseKey, identity: &Identity, request: &ShareRequest) -> Result<Vec<u8>, Error> {
    let scope = facts.token.verify(&facts.authd_key).map_err(ShareError::from).map_err(SharingError::from)?;
    let narrowed = narrowed(facts, &scope, request)?;
    let token = facts.token.narrow(&facts.authd_key, &narrowed, identity).map_err(ShareError::from);
    let facts = ShareFacts {
        to: request.to,
        lease: facts.lease,
        generation: facts.generation,
        tenant: facts.tenant.clone(),
        authd: facts.authd_key,
        provider: facts.provider,
        boot: facts.boot,
        bytes: facts.bytes,
        block: facts.block,
        token: token.map_err(SharingError::from)?,
    };
    Ok(share::seal(&facts, key, identity).map_err(SharingError::from)?)
}

/// What the recipient's token is to say.
fn narrowed(facts: &Facts, scope: &Scope, request: &ShareRequest) -> Result<Scope, SharingError> {
    let have = reach(scope, facts);
    let range = request.range.clone().unwrap_or(have.clone());
    if range.start >= range.end || range.start < have.start || range.end > have.end {
        return Err(SharingError::OutOfRange { range, have });
    }
    let block = u64::from(facts.block);
    if !range.start.is_multiple_of(block) || !(range.end.is_multiple_of(block) || range.end == facts.bytes) {
        return Err(SharingError::NotBlocks { range, block: facts.block });
    }
    let rights = match request.read_only {
        true => Rights::READ,
        false if scope.rights.contains(Rights::READ_WRITE) => Rights::READ_WRITE,
        false => return Err(SharingError::ReadOnly),
    };
    let tick = match request.ttl {
        None => scope.deadline.tick,
        Some(ttl) => {
            let left = facts.until.left_to_deadline().ok_or(SharingError::TimeUnknown)?;
            Tick(scope.deadline.tick.0.saturating_sub(ms(left.saturating_sub(ttl))))
        }
    };
    let first_block = range.start / block;
    let deadline = Deadline { tick, ..scope.deadline };
    Ok(Scope {
        deadline,
        first_block,
        blocks: range.end.div_ceil(block) - first_block,
        rights,
        holder: request.to,
        ..*scope
    })
}

#[cfg(test)]
#[path = "sharing_tests.rs"]
mod tests;
