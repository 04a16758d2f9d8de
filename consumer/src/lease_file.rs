//! The file in which a lease lives on between commands: its key, what was granted, and what is known of its contents.
//!
//! Layout, integers big-endian: magic 8 ‖ version u16 ‖ length of facts u32 ‖ length of freshness u64 ‖ lease key 32 ‖
//! facts (CBOR) ‖ freshness ‖ SHA-256 over all before it. Named `LEASEID.lease`, mode 0600, replaced whole. Who uses a
//! lease holds a lock on its file; the lock moves to each new file before that one can be seen.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use overbank_fabric::block::{BlockContext, LeaseKey};
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{BootId, Fingerprint, LeaseId, Tenant};
use overbank_fabric::signed::{from_cbor, to_cbor};
use overbank_fabric::token::Token;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::clock::Until;
use crate::freshness::FreshnessError;
use crate::local::{self, LocalError};

const MAGIC: [u8; 8] = *b"OVERBANK";
const VERSION: u16 = 1;
const HEAD: usize = 8 + 2 + 4 + 8;
const KEY: usize = 32;
const SUM: usize = 32;
/// Longest facts that are read.
const MAX_FACTS: usize = 1 << 16;
const SUFFIX: &str = ".lease";

/// Why a lease's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseFileError {
    /// The directory or the file cannot be read or written, or others can get at it.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// There is none.
    #[error(
        "no lease file {}: only the user and machine that made a lease have its key. `overbank lease list` shows your leases",
        path.display()
    )]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// It never was one.
    #[error("{} is no lease file: remove it", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// Made by a newer version of this program.
    #[error("{} has format {version}, and this version reads {VERSION}: use the version that made it", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format.
        version: u16,
    },
    /// Cut short or changed since it was written.
    #[error(
        "{} is damaged ({what}): the lease cannot be used any more; `overbank lease release` it and make a new one",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How that was seen.
        what: &'static str,
    },
    /// Another process uses the lease.
    #[error("{} is in use by another process: one process uses a lease at a time; wait for it to end", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Somebody removed it while it was in use: the lease was released.
    #[error("{} was removed while it was in use: the lease was released", path.display())]
    Removed {
        /// Which.
        path: PathBuf,
    },
    /// The table of what was written last, in it, is not believed.
    #[error("{}: {source}", path.display())]
    Freshness {
        /// Which.
        path: PathBuf,
        /// Why.
        source: FreshnessError,
    },
    /// Granted by another auth daemon.
    #[error("{} was granted by the auth daemon {granted_by} at {authd}: use it with --authd", path.display())]
    OtherAuthd {
        /// Which.
        path: PathBuf,
        /// HOST:PORT of the one that granted it.
        authd: String,
        /// Its key.
        granted_by: Fingerprint,
    },
    /// Made by another identity.
    #[error("{} belongs to the identity {holder}, not to {me}: use that identity's --home", path.display())]
    OtherHolder {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        holder: Fingerprint,
        /// Who asks.
        me: Fingerprint,
    },
}

/// Everything about a lease but its key and its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Facts {
    /// Which.
    pub(crate) lease: LeaseId,
    /// Constant for the life of its contents.
    pub(crate) generation: u64,
    /// For whom.
    pub(crate) tenant: Tenant,
    /// HOST:PORT of the auth daemon that granted it.
    pub(crate) authd: String,
    /// Its key.
    pub(crate) authd_key: PublicKey,
    /// Who holds the token.
    pub(crate) holder: PublicKey,
    /// Who lends, pinned when the lease was made.
    pub(crate) provider: PublicKey,
    /// The provider's life.
    pub(crate) boot: BootId,
    /// Usable bytes, at least 1.
    pub(crate) bytes: u64,
    /// Payload bytes of a block.
    pub(crate) block: u32,
    /// The latest grant.
    pub(crate) token: Token,
    /// When to stop using it.
    pub(crate) until: Until,
    /// Whether a process has written, or is writing, since the freshness was saved: what it wrote is not known here.
    pub(crate) dirty: bool,
    /// Who else may write to it, or from whom we have it.
    #[serde(default, skip_serializing_if = "Sharing::is_no")]
    pub(crate) sharing: Sharing,
}

/// Who has a lease beside its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sharing {
    /// Nobody, or others who only read.
    #[default]
    No,
    /// Others who write.
    WithWriters,
    /// We are not its holder: this identity shared it with us.
    By(PublicKey),
}

impl Sharing {
    fn is_no(&self) -> bool {
        *self == Self::No
    }
}

impl Facts {
    /// Blocks of the lease.
    pub(crate) fn blocks(&self) -> u64 {
        self.bytes.div_ceil(u64::from(self.block))
    }

    /// What its blocks are bound to.
    pub(crate) fn context(&self) -> BlockContext {
        BlockContext { tenant: self.tenant.clone(), lease: self.lease, generation: self.generation, block: self.block }
    }
}

/// A lease file that this process holds.
pub(crate) struct LeaseFile {
    path: PathBuf,
    /// Locked; the file that is at `path`.
    file: File,
    key: LeaseKey,
    facts: Facts,
}

impl LeaseFile {
    /// Writes down a new lease.
    pub(crate) fn create(
        directory: &Path,
        facts: Facts,
        key: LeaseKey,
        freshness: &[u8],
    ) -> Result<Self, LeaseFileError> {
        local::private_dir(directory)?;
        let path = path_of(directory, facts.lease);
        let file = write(&path, &facts, &key, freshness)?;
        Ok(Self { path, file, key, facts })
    }

    /// Takes a lease into use: its file, and the freshness that was saved in it.
    pub(crate) fn open(directory: &Path, lease: LeaseId) -> Result<(Self, Vec<u8>), LeaseFileError> {
        let path = path_of(directory, lease);
        if fs::symlink_metadata(directory).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Err(LeaseFileError::Missing { path });
        }
        local::private_dir(directory)?;
        // A file that was replaced between its opening and its locking is opened anew; nobody replaces without a lock.
        for _ in 0..8 {
            let Some(file) = local::open_owned(&path, local::OTHERS_NOTHING)? else {
                return Err(LeaseFileError::Missing { path });
            };
            lock(&path, &file)?;
            let opened = file.metadata().map_err(LocalError::io("look at", &path))?;
            match fs::symlink_metadata(&path) {
                Ok(named) if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) => {}
                _ => continue,
            }
            let (key, facts, freshness) = read(&path, &file)?;
            return Ok((Self { path, file, key, facts }, freshness));
        }
        Err(LeaseFileError::InUse { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn key(&self) -> &LeaseKey {
        &self.key
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Replaces the file. On an error it is as it was before.
    pub(crate) fn save(&mut self, facts: Facts, freshness: &[u8]) -> Result<(), LeaseFileError> {
        let held = self.file.metadata().map_err(LocalError::io("look at", &self.path))?;
        if held.nlink() == 0 {
            return Err(LeaseFileError::Removed { path: self.path.clone() });
        }
        self.file = write(&self.path, &facts, &self.key, freshness)?;
        self.facts = facts;
        Ok(())
    }
}

/// What a lease's file says, whoever uses the lease.
pub(crate) fn peek(directory: &Path, lease: LeaseId) -> Result<Facts, LeaseFileError> {
    Ok(peek_with_key(directory, lease)?.0)
}

/// The same, and the lease's key.
pub(crate) fn peek_with_key(directory: &Path, lease: LeaseId) -> Result<(Facts, LeaseKey), LeaseFileError> {
    let path = path_of(directory, lease);
    match local::open_owned(&path, local::OTHERS_NOTHING)? {
        Some(file) => {
            let (key, facts, _) = read(&path, &file)?;
            Ok((facts, key))
        }
        None => Err(LeaseFileError::Missing { path }),
    }
}

/// Removes a lease's file, in use or not: the lease is over. Whether there was one.
pub(crate) fn remove(directory: &Path, lease: LeaseId) -> Result<bool, LeaseFileError> {
    let path = path_of(directory, lease);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LocalError::io("remove", &path)(error).into()),
    }
}

/// The leases that have a file in `directory`, in the order of their ids.
pub(crate) fn list(directory: &Path) -> Result<Vec<LeaseId>, LeaseFileError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LocalError::io("read", directory)(error).into()),
    };
    let mut leases = Vec::new();
    for entry in entries {
        let entry = entry.map_err(LocalError::io("read", directory))?;
        let name = entry.file_name();
        if let Some(lease) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok()) {
            leases.push(lease);
        }
    }
    leases.sort_unstable();
    Ok(leases)
}

pub(crate) fn path_of(directory: &Path, lease: LeaseId) -> PathBuf {
    directory.join(format!("{lease}{SUFFIX}"))
}

fn lock(path: &Path, file: &File) -> Result<(), LeaseFileError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(LeaseFileError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(LocalError::io("lock", path)(error).into()),
    }
}

fn head(facts: usize, freshness: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_be_bytes());
    head[10..14].copy_from_slice(&(facts as u32).to_be_bytes());
    head[14..].copy_from_slice(&(freshness as u64).to_be_bytes());
    head
}

/// The new file, locked.
fn write(path: &Path, facts: &Facts, key: &LeaseKey, freshness: &[u8]) -> Result<File, LeaseFileError> {
    let facts = to_cbor(facts);
    debug_assert!(facts.len() <= MAX_FACTS);
    let head = head(facts.len(), freshness.len());
    let sum = checksum(&head, key, &facts, freshness);
    local::replace(path, &[&head, key.bytes(), &facts, freshness, &sum], |file| lock(path, file))
}

fn read(path: &Path, mut file: &File) -> Result<(LeaseKey, Facts, Vec<u8>), LeaseFileError> {
    let damaged = |what| LeaseFileError::Damaged { path: path.to_owned(), what };
    let io = |error: std::io::Error| -> LeaseFileError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            damaged("cut short")
        } else {
            LocalError::io("read", path)(error).into()
        }
    };
    let length = file.metadata().map_err(LocalError::io("look at", path))?.len();
    let mut head = [0; HEAD];
    file.read_exact(&mut head).map_err(io)?;
    let (magic, rest) = head.split_at(8);
    if magic != MAGIC {
        return Err(LeaseFileError::Foreign { path: path.to_owned() });
    }
    let field = |range: std::ops::Range<usize>| rest[range].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let (version, facts_len, freshness_len) = (field(0..2) as u16, field(2..6), field(6..14));
    if version > VERSION {
        return Err(LeaseFileError::Newer { path: path.to_owned(), version });
    }
    if version != VERSION || facts_len > MAX_FACTS as u64 {
        return Err(damaged("its head makes no sense"));
    }
    // What is allocated below is no more than the file really has.
    if freshness_len.checked_add(facts_len + (HEAD + KEY + SUM) as u64) != Some(length) {
        return Err(damaged("cut short"));
    }
    let mut key = Zeroizing::new([0; KEY]);
    file.read_exact(&mut *key).map_err(io)?;
    let key = LeaseKey::from_bytes(*key);
    let mut facts = vec![0; facts_len as usize];
    file.read_exact(&mut facts).map_err(io)?;
    let mut freshness = vec![0; freshness_len as usize];
    file.read_exact(&mut freshness).map_err(io)?;
    let mut sum = [0; SUM];
    file.read_exact(&mut sum).map_err(io)?;
    if checksum(&head, &key, &facts, &freshness) != sum {
        return Err(damaged("its checksum does not hold"));
    }
    let facts: Facts = from_cbor(&facts).map_err(|_| damaged("its facts make no sense"))?;
    let block = overbank_fabric::block::MIN_BLOCK..=overbank_fabric::block::MAX_BLOCK;
    if path.file_name().and_then(|name| name.to_str()) != Some(&format!("{}{SUFFIX}", facts.lease)) {
        return Err(damaged("it is another lease's"));
    }
    if facts.bytes == 0 || !block.contains(&facts.block) || !facts.block.is_power_of_two() {
        return Err(damaged("its facts make no sense"));
    }
    Ok((key, facts, freshness))
}

fn checksum(head: &[u8], key: &LeaseKey, facts: &[u8], freshness: &[u8]) -> [u8; SUM] {
    Sha256::new()
        .chain_update(b"overbank lease file v1")
        .chain_update(head)
        .chain_update(key.bytes())
        .chain_update(facts)
        .chain_update(freshness)
        .finalize()
        .into()
}

#[cfg(test)]
#[path = "lease_file_tests.rs"]
pub(crate) mod tests;
