//! Making, opening, renewing and releasing leases.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use overbank_fabric::block::{DEFAULT_BLOCK, LeaseKey};
use overbank_fabric::ids::{Fingerprint, LeaseId, Nonce};
use overbank_fabric::message::{CreateLease, LeaseInfo, LeaseState};
use overbank_fabric::receipt::{self, Receipt, ReceiptError};

use crate::client::{Client, ms};
use crate::clock::{self, Until};
use crate::config::Config;
use crate::error::Error;
use crate::freshness::Freshness;
use crate::grant;
use crate::lease::Lease;
use crate::lease_file::{self, Facts, LeaseFile, LeaseFileError, Sharing};
use crate::local;
use crate::sharing::SharingError;

/// What to lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRequest {
    /// Usable bytes, at least 1.
    pub bytes: u64,
    /// Until it ends, unless renewed.
    pub ttl: Duration,
    /// Payload bytes of a block, a power of two from 512 to 1 MiB; 4 KiB by default. A block is what a write makes anew and
    /// a read fetches, however little of it is asked for.
    pub block: u32,
}

impl LeaseRequest {
    /// That many bytes for that long, in blocks of the default size.
    #[must_use]
    pub fn new(bytes: u64, ttl: Duration) -> Self {
        Self { bytes, ttl, block: DEFAULT_BLOCK }
    }
}

impl Client {
    /// Leases memory, and writes its key down so that later commands can use it. No queue pair is made yet.
    ///
    /// # Errors
    /// [`Error::NoRoom`], [`Error::NotTrusted`], [`Error::LeaseFile`] (the lease is then given back), and what
    /// [`Client::who_am_i`] says.
    pub fn lease(&self, request: &LeaseRequest) -> Result<Lease, Error> {
        // Where the key cannot be kept there is no use in asking.
        local::private_dir(self.config().leases()).map_err(LeaseFileError::from)?;
        let create =
            CreateLease { nonce: Nonce::random(), bytes: request.bytes, block: request.block, ttl_ms: ms(request.ttl) };
        let asked_ms = clock::now_ms();
        let granted = self.create_lease(create)?;
        let scope = grant::check(&granted, &self.authd_key(), &self.identity().public())?;
        if (granted.bytes, granted.block) != (request.bytes, request.block) {
            return Err(Error::MisbehavingAuthd("a grant of another size".to_owned()));
        }
        let facts = Facts {
            lease: granted.lease,
            generation: granted.generation,
            tenant: granted.tenant,
            authd: self.config().authd().to_owned(),
            authd_key: self.authd_key(),
            holder: self.identity().public(),
            provider: granted.provider,
            boot: granted.boot,
            bytes: granted.bytes,
            block: granted.block,
            token: granted.token,
            until: Until::new(asked_ms, granted.left_ms),
            dirty: false,
            sharing: Sharing::No,
        };
        let key = LeaseKey::generate();
        let freshness = Freshness::new(facts.blocks());
        let table = freshness.to_bytes(&key, &facts.context());
        match LeaseFile::create(self.config().leases(), facts, key, &table) {
            Ok(file) => Ok(Lease::new(self.clone(), file, freshness, &scope)),
            Err(error) => {
                // A lease whose key is gone is of no use to anybody; where it cannot be given back it expires.
                let _ = self.release_lease(granted.lease);
                Err(error.into())
            }
        }
    }

    /// Takes a lease into use that this identity made on this machine. One process at a time.
    ///
    /// # Errors
    /// [`Error::LeaseOver`], [`Error::LeaseLost`] and [`Error::LeaseFile`].
    pub fn open_lease(&self, lease: LeaseId) -> Result<Lease, Error> {
        let (mut file, table) = match LeaseFile::open(self.config().leases(), lease) {
            Err(missing @ LeaseFileError::Missing { .. }) => {
                // The file of a lease that was released is gone; what became of the lease says more than that.
                let info = self.show_lease(lease)?;
                return Err(over(&info).unwrap_or(missing.into()));
            }
            opened => opened?,
        };
        let (holder, me) = (file.facts().holder, self.identity().public());
        if !self.is_authd(&file.facts().authd_key) {
            return Err(other_authd(file.facts(), self.config().leases()));
        }
        if holder != me && !self.take_over(&mut file, &table)? {
            let path = file.path().to_owned();
            return Err(LeaseFileError::OtherHolder { path, holder: holder.fingerprint(), me: me.fingerprint() }.into());
        }
        let facts = file.facts();
        let freshness = if facts.dirty || facts.sharing != Sharing::No {
            Freshness::unknown(facts.blocks())
        } else {
            Freshness::from_bytes(&table, file.key(), &facts.context(), facts.blocks())
                .map_err(|source| LeaseFileError::Freshness { path: file.path().to_owned(), source })?
        };
        if facts.sharing != Sharing::No {
            freshness.share();
        }
        let scope = facts
            .token
            .verify(&facts.authd_key)
            .map_err(|error| Error::MisbehavingAuthd(format!("a token that does not hold ({error})")))?;
        Ok(Lease::new(self.clone(), file, freshness, &scope))
    }

    /// Whether a lease that another identity made is this one's by now, which took over from it: its file says so then.
    fn take_over(&self, file: &mut LeaseFile, table: &[u8]) -> Result<bool, Error> {
        if file.facts().sharing != Sharing::No {
            return Ok(false);
        }
        let asked_ms = clock::now_ms();
        // Asks for as little as can be asked for: a renewal shortens nothing, and comes with a token.
        let granted = match self.renew_lease(file.facts().lease, Duration::from_secs(1)) {
            Err(Error::LeaseOver { .. }) => return Ok(false),
            granted => granted?,
        };
        grant::check(&granted, &self.authd_key(), &self.identity().public())?;
        grant::check_same(&granted, file.facts())?;
        let (authd_key, holder) = (self.authd_key(), self.identity().public());
        let until = Until::new(asked_ms, granted.left_ms);
        file.save(Facts { authd_key, holder, token: granted.token, until, ..file.facts().clone() }, table)?;
        Ok(true)
    }

    /// Moves a lease's deadline to `ttl` from now; never sooner. Returns how long it can be used from now on.
    ///
    /// # Errors
    /// [`Error::LeaseOver`], [`Error::LeaseLost`], [`Error::NotTrusted`], [`Error::LeaseFile`], and what
    /// [`Client::who_am_i`] says.
    pub fn renew(&self, lease: LeaseId, ttl: Duration) -> Result<Duration, Error> {
        if let Ok(facts) = lease_file::peek(self.config().leases(), lease) {
            self.holds(&facts, "renew")?;
        }
        let asked_ms = clock::now_ms();
        let granted = self.renew_lease(lease, ttl)?;
        grant::check(&granted, &self.authd_key(), &self.identity().public())?;
        let until = Until::new(asked_ms, granted.left_ms);
        match LeaseFile::open(self.config().leases(), lease) {
            Ok((mut file, freshness)) => {
                grant::check_same(&granted, file.facts())?;
                let (authd_key, holder) = (self.authd_key(), self.identity().public());
                let facts = Facts { authd_key, holder, token: granted.token, until, ..file.facts().clone() };
                file.save(facts, &freshness)?;
            }
            // Who uses it asks for itself when its time is up.
            Err(LeaseFileError::Missing { .. } | LeaseFileError::InUse { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(until.left_here())
    }

    /// Ends a lease now, whoever uses it. When this returns nothing reaches its memory any more, and its local file is
    /// gone. Waits at most `patience` longer for the provider's receipt that says that the memory is wiped.
    ///
    /// # Errors
    /// [`Error::LeaseOver`] and [`Error::LeaseLost`] where it had ended before (its file is removed then too);
    /// [`Error::LeaseFile`], [`Error::NotTrusted`], and what [`Client::who_am_i`] says.
    pub fn release(&self, lease: LeaseId, patience: Duration) -> Result<Released, Error> {
        use LeaseFileError::{Damaged, Foreign, Missing, Newer};
        let directory = self.config().leases();
        let facts = match lease_file::peek(directory, lease) {
            Ok(facts) if !self.is_authd(&facts.authd_key) => return Err(other_authd(&facts, directory)),
            Ok(facts) => Some(facts),
            Err(Missing { .. } | Damaged { .. } | Foreign { .. } | Newer { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(facts) = &facts {
            self.holds(facts, "release")?;
        }
        let released = self.release_lease(lease);
        // To somebody else the auth daemon says that there is no such lease: that is no reason to lose its key.
        let ours = facts.as_ref().is_none_or(|facts| facts.holder == self.identity().public());
        if ours && matches!(released, Ok(_) | Err(Error::LeaseOver { .. } | Error::LeaseLost { .. })) {
            lease_file::remove(directory, lease)?;
        }
        let mut info = released?;
        let until = Instant::now() + patience;
        while info.receipt.is_none() && info.state == LeaseState::Ending && Instant::now() < until {
            sleep(Duration::from_millis(20));
            info = self.show_lease(lease)?;
        }
        let receipt = facts.and_then(|facts| receipt_of(&info, &facts));
        Ok(Released { info, receipt })
    }

    /// Whether we are a lease's holder, who alone can do that.
    pub(crate) fn holds(&self, facts: &Facts, what: &'static str) -> Result<(), Error> {
        match facts.sharing {
            Sharing::No | Sharing::WithWriters => Ok(()),
            Sharing::By(from) => {
                let path = lease_file::path_of(self.config().leases(), facts.lease).display().to_string();
                Err(SharingError::NotHolder { lease: facts.lease, from: from.fingerprint(), what, path }.into())
            }
        }
    }

    /// The receipt in what a list says of a lease that ended, if the provider that its local file names made it.
    #[must_use]
    pub fn receipt(&self, info: &LeaseInfo) -> Option<Receipt> {
        receipt_of(info, &lease_file::peek(self.config().leases(), info.lease).ok()?)
    }

    /// The leases that have a file on this machine, whoever made them.
    ///
    /// # Errors
    /// [`Error::LeaseFile`].
    pub fn local_leases(&self) -> Result<Vec<LeaseId>, Error> {
        local_leases(self.config())
    }
}

/// The leases that have a file on this machine, whoever made them.
///
/// # Errors
/// [`Error::LeaseFile`].
pub fn local_leases(config: &Config) -> Result<Vec<LeaseId>, Error> {
    Ok(lease_file::list(config.leases())?)
}

impl Client {
    /// The receipt of a lease that ended, as a file that [`verify_receipt`] checks anywhere; and whether the provider that
    /// made it is the one that was pinned when the lease was made. Where that lease's file is gone, or on another machine,
    /// which provider it was is the auth daemon's word. None where no receipt is in yet.
    ///
    /// # Errors
    /// [`Error::MisbehavingAuthd`] where the receipt is another lease's, or another provider's.
    pub fn receipt_file(&self, info: &LeaseInfo) -> Result<Option<(Vec<u8>, bool)>, Error> {
        let Some(signed) = &info.receipt else { return Ok(None) };
        let odd = |what: &str| Error::MisbehavingAuthd(format!("a receipt {what}"));
        let receipt = signed.open_by(|receipt| receipt.provider).map_err(|error| odd(&error.to_string()))?;
        if receipt.lease != info.lease {
            return Err(odd("of another lease"));
        }
        let pinned = match lease_file::peek(self.config().leases(), info.lease) {
            Ok(facts) if facts.provider != receipt.provider => return Err(odd("of another provider than lent it")),
            pinned => pinned.is_ok(),
        };
        Ok(Some((receipt::to_file(signed), pinned)))
    }
}

/// Checks the file of a receipt. Nobody is asked; `provider` is who should have signed it.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let receipt = overbank::verify_receipt(&std::fs::read("3fa9.receipt")?, None)?;
/// println!("{} bytes of lease {} were overwritten by {}", receipt.bytes, receipt.lease, receipt.provider.fingerprint());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ReceiptError`]; also where the receipt holds but does not say that the memory is clean.
pub fn verify_receipt(file: &[u8], provider: Option<Fingerprint>) -> Result<Receipt, ReceiptError> {
    receipt::verify_file(file, provider)
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// What the auth daemon knows of it.
    pub info: LeaseInfo,
    /// The provider's word, checked against the key that was pinned when the lease was made; `None` where it is not in
    /// yet, or where there is no lease file to say who the provider is.
    pub receipt: Option<Receipt>,
}

fn receipt_of(info: &LeaseInfo, facts: &Facts) -> Option<Receipt> {
    let receipt = info.receipt.as_ref()?.open(&facts.provider).ok()?;
    (receipt.lease == facts.lease && receipt.provider == facts.provider && receipt.boot == facts.boot)
        .then_some(receipt)
}

fn other_authd(facts: &Facts, directory: &Path) -> Error {
    let (granted_by, authd) = (facts.authd_key.fingerprint(), facts.authd.clone());
    LeaseFileError::OtherAuthd { path: lease_file::path_of(directory, facts.lease), authd, granted_by }.into()
}

/// The error that the end of a lease is for who wants to use it.
pub(crate) fn over(info: &LeaseInfo) -> Option<Error> {
    let lease = Some(info.lease);
    match info.state {
        LeaseState::Active => None,
        LeaseState::Lost => {
            let why = "its provider died or restarted, and what was in it is gone: release it and make a new one";
            Some(Error::LeaseLost { lease, why: why.to_owned() })
        }
        LeaseState::Ending | LeaseState::Ended => {
            let reason = info.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            Some(Error::LeaseOver { lease, why: format!("it is over{reason}: make a new one") })
        }
    }
}
