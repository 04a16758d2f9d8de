//! Files that only a passphrase or a key file opens: the daemon's sealed identity, and backups.
//!
//! Layout, integers big-endian: magic 16 ‖ kind of contents 1 ‖ kind of secret 1 ‖ KiB, passes and lanes of Argon2id, u32
//! each, 0 for a key file ‖ salt 16 ‖ nonce 12 ‖ AES-256-GCM ciphertext ‖ tag 16. All before the ciphertext is associated
//! data. The key is Argon2id of a passphrase, or HKDF-SHA256 of a key file. Salt and nonce are random, and each file has
//! its own key by its salt.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

const MAGIC: &[u8; 16] = b"overbank sealed\n";
const LABEL: &[u8] = b"overbank sealed file v1";
const SALT: usize = 16;
const NONCE: usize = 12;
const HEAD: usize = MAGIC.len() + 2 + 12 + SALT + NONCE;
/// What a new file costs who guesses: 64 MiB, three passes, one lane.
const COST: Cost = Cost { kib: 64 << 10, passes: 3, lanes: 1 };
/// What a file from outside may cost at most.
const MAX_COST: Cost = Cost { kib: 1 << 20, passes: 16, lanes: 16 };
/// Longest passphrase and key file, bytes.
const MAX_SECRET: u64 = 4096;
const MIN_KEY: usize = 32;
/// Longest file that is opened, bytes.
const MAX_FILE: u64 = 4 << 30;

/// What a sealed file contains. One kind is not opened as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The seed of the daemon's identity.
    Identity = 1,
    /// A whole state.
    Backup = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    kib: u32,
    passes: u32,
    lanes: u32,
}

/// What opens a sealed file. No Debug; wiped when dropped.
pub enum Secret {
    /// The first line of a file.
    Passphrase(Zeroizing<Vec<u8>>),
    /// All of a file of random bytes, at least 32.
    Key(Zeroizing<Vec<u8>>),
}

/// Why a sealed file or its secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others can read the secret.
    #[error("others can read {} (mode {mode:04o}): chmod 600 {}", path.display(), path.display())]
    Open {
        /// The file with the secret.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too short, too long or empty.
    #[error("{} is no secret: a passphrase has at least 8 bytes in one line, a key file at least 32 bytes, and neither more than 4096", .0.display())]
    Weak(PathBuf),
    /// Not a sealed file of this kind and version.
    #[error("{} is no sealed file of this kind: give the one that was made by this program", .0.display())]
    Foreign(PathBuf),
    /// Another kind of secret, another secret, or a changed file.
    #[error("{} does not open: it was sealed with another secret, or changed since", .0.display())]
    Refused(PathBuf),
    /// The memory that the passphrase takes cannot be had.
    #[error("the key cannot be derived: {0}")]
    Derivation(String),
}

impl Secret {
    /// A passphrase: the first line of a file, or of standard input where that is `-`.
    ///
    /// # Errors
    /// [`SealedError`].
    pub fn passphrase(path: &Path) -> Result<Self, SealedError> {
        let mut bytes = read_secret(path)?;
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            bytes[end..].zeroize();
            bytes.truncate(end);
        }
        if bytes.len() < 8 {
            return Err(SealedError::Weak(path.to_owned()));
        }
        Ok(Self::Passphrase(bytes))
    }

    /// A key: the bytes of a file.
    ///
    /// # Errors
    /// [`SealedError`].
    pub fn key(path: &Path) -> Result<Self, SealedError> {
        let bytes = read_secret(path)?;
        if bytes.len() < MIN_KEY {
            return Err(SealedError::Weak(path.to_owned()));
        }
        Ok(Self::Key(bytes))
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Passphrase(_) => 1,
            Self::Key(_) => 2,
        }
    }

    /// The key of the file with this salt.
    fn derive(&self, cost: Cost, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealedError> {
        let mut key = Zeroizing::new([0; 32]);
        match self {
            Self::Key(bytes) => Hkdf::<Sha256>::new(Some(salt), bytes)
                .expand(LABEL, &mut *key)
                .map_err(|error| SealedError::Derivation(error.to_string()))?,
            Self::Passphrase(bytes) => {
                let failed = |error: argon2::Error| SealedError::Derivation(error.to_string());
                let params = Params::new(cost.kib, cost.passes, cost.lanes, Some(32)).map_err(failed)?;
                let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                argon2.hash_password_into(bytes, salt, &mut *key).map_err(failed)?;
            }
        }
        Ok(key)
    }
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let failed = |source| SealedError::Io { action: "read", path: path.to_owned(), source };
    // Never grows: what grew would leave its old place unwiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET as usize + 1));
    if path == Path::new("-") {
        io::stdin().lock().take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let mode = found.permissions().mode() & 0o7777;
        if found.is_file() && mode & 0o077 != 0 {
            return Err(SealedError::Open { path: path.to_owned(), mode });
        }
        file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > MAX_SECRET {
        return Err(SealedError::Weak(path.to_owned()));
    }
    Ok(bytes)
}

/// Seals into a new file, mode 0600, which is on disk, whole, when this returns. Never overwrites.
pub(crate) fn write(path: &Path, kind: Kind, secret: &Secret, contents: &[u8]) -> Result<(), SealedError> {
    let failed = |action| {
        let path = path.to_owned();
        move |source| SealedError::Io { action, path, source }
    };
    let cost = match secret {
        Secret::Passphrase(_) => COST,
        Secret::Key(_) => Cost { kib: 0, passes: 0, lanes: 0 },
    };
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&[kind as u8, secret.kind()]);
    for number in [cost.kib, cost.passes, cost.lanes] {
        head.extend_from_slice(&number.to_be_bytes());
    }
    let mut random = [0; SALT + NONCE];
    getrandom::fill(&mut random).map_err(|error| failed("find random numbers for")(error.into()))?;
    head.extend_from_slice(&random);
    let key = secret.derive(cost, &random[..SALT])?;
    let nonce = Nonce::try_from(&random[SALT..]).map_err(|error| SealedError::Derivation(error.to_string()))?;
    let sealed = Aes256Gcm::new((&*key).into())
        .encrypt(&nonce, Payload { msg: contents, aad: &head })
        .map_err(|error| SealedError::Derivation(error.to_string()))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed("make"))?;
    let written = file.write_all(&head).and_then(|()| file.write_all(&sealed)).and_then(|()| file.sync_all());
    written.map_err(failed("write")).inspect_err(|_| {
        // Half a file is of use to nobody.
        let _ = fs::remove_file(path);
    })
}

/// Opens what [`write()`] made.
pub(crate) fn read(path: &Path, kind: Kind, secret: &Secret) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let failed = |source| SealedError::Io { action: "read", path: path.to_owned(), source };
    let foreign = || SealedError::Foreign(path.to_owned());
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    let (head, sealed) = bytes.split_at_checked(HEAD).ok_or_else(foreign)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    if magic != MAGIC || rest[0] != kind as u8 {
        return Err(foreign());
    }
    if rest[1] != secret.kind() {
        return Err(SealedError::Refused(path.to_owned()));
    }
    let number = |at: usize| rest[at..at + 4].try_into().map(u32::from_be_bytes).unwrap_or(u32::MAX);
    let cost = Cost { kib: number(2), passes: number(6), lanes: number(10) };
    if cost.kib > MAX_COST.kib || cost.passes > MAX_COST.passes || cost.lanes > MAX_COST.lanes {
        return Err(foreign());
    }
    let (salt, nonce) = rest[14..].split_at(SALT);
    let key = secret.derive(cost, salt)?;
    let nonce = Nonce::try_from(nonce).map_err(|_| foreign())?;
    let opened = Aes256Gcm::new((&*key).into()).decrypt(&nonce, Payload { msg: sealed, aad: head });
    opened.map(Zeroizing::new).map_err(|_| SealedError::Refused(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(dir: &Path) -> [Secret; 2] {
        let (phrase, key) = (dir.join("phrase"), dir.join("key"));
        fs::write(&phrase, b"correct horse battery\nnot this\n").expect("written");
        fs::write(&key, [7; 40]).expect("written");
        for path in [&phrase, &key] {
            assert!(matches!(Secret::passphrase(path), Err(SealedError::Open { .. })));
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("changed");
        }
        [Secret::passphrase(&phrase).expect("a passphrase"), Secret::key(&key).expect("a key")]
    }

    #[test]
    fn only_the_same_secret_opens_and_only_the_whole_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = secrets(dir.path());
        for (at, secret) in secrets.iter().enumerate() {
            let path = dir.path().join(format!("sealed-{at}"));
            write(&path, Kind::Identity, secret, b"a seed").expect("sealed");
            assert_eq!(**read(&path, Kind::Identity, secret).expect("opened"), *b"a seed");
            assert!(matches!(write(&path, Kind::Identity, secret, b"x"), Err(SealedError::Io { .. })), "never again");
            assert!(matches!(read(&path, Kind::Backup, secret), Err(SealedError::Foreign(_))));
            assert!(matches!(read(&path, Kind::Identity, &secrets[1 - at]), Err(SealedError::Refused(_))));
            let good = fs::read(&path).expect("it");
            assert!(!good.windows(6).any(|window| window == b"a seed"));
            if at == 0 {
                continue;
            }
            for byte in 0..good.len() {
                let mut bad = good.clone();
                bad[byte] ^= 1;
                fs::write(&path, &bad).expect("written");
                assert!(read(&path, Kind::Identity, secret).is_err(), "byte {byte}");
            }
            fs::write(&path, &good[..good.len() - 1]).expect("written");
            assert!(read(&path, Kind::Identity, secret).is_err());
        }
        let other = Secret::Passphrase(Zeroizing::new(b"correct horse batterz".to_vec()));
        assert!(matches!(read(&dir.path().join("sealed-0"), Kind::Identity, &other), Err(SealedError::Refused(_))));
    }

    #[test]
    fn a_file_cannot_ask_for_all_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let [phrase, _] = secrets(dir.path());
        let path = dir.path().join("sealed");
        write(&path, Kind::Backup, &phrase, b"all").expect("sealed");
        let mut bad = fs::read(&path).expect("it");
        bad[18..22].copy_from_slice(&u32::MAX.to_be_bytes());
        fs::write(&path, &bad).expect("written");
        assert!(matches!(read(&path, Kind::Backup, &phrase), Err(SealedError::Foreign(_))));
    }

    #[test]
    fn short_and_endless_secrets_are_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        for (bytes, good) in [(vec![b'a'; 7], false), (vec![b'a'; 8], true), (vec![b'a'; 5000], false)] {
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
            assert_eq!(Secret::passphrase(&path).is_ok(), good);
            assert!(Secret::key(&path).is_err());
        }
    }
}
