//! A sealed identity, backups, and a state that is nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use overbank_authd::sealed::{SealedError, Secret};
use overbank_authd::state::{State, StateError};

fn secret(dir: &Path, name: &str, contents: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, contents).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
    path
}

fn holds(dir: &Path, piece: &[u8]) -> bool {
    fs::read_dir(dir).expect("it").any(|entry| {
        let bytes = fs::read(entry.expect("it").path()).unwrap_or_default();
        bytes.windows(piece.len()).any(|window| window == piece)
    })
}

#[test]
fn a_sealed_identity_opens_with_its_secret_alone() {
    let top = tempfile::tempdir().expect("a directory");
    let key = Secret::key(&secret(top.path(), "key", &[9; 32])).expect("a key");
    let other = Secret::key(&secret(top.path(), "other", &[8; 32])).expect("a key");
    let dir = top.path().join("state");
    let made = State::init_sealed(&dir, Some(&key)).expect("made");
    assert!(!dir.join("authd.key").exists());
    let mode = fs::metadata(dir.join("authd.key.sealed")).expect("it").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(matches!(State::open(&dir), Err(StateError::Sealed(_))));
    let refused = State::open_sealed(&dir, Some(&other)).err().expect("another secret");
    assert!(matches!(refused, StateError::Secret(SealedError::Refused(_))), "{refused}");
    let state = State::open_sealed(&dir, Some(&key)).expect("opened");
    drop(state);
    assert!(matches!(State::init(&dir), Err(StateError::Exists(_))), "never overwritten");
    assert_eq!(made.fingerprint, made.operator_invitation.authd);
}

#[test]
fn a_backup_is_of_one_moment_and_is_restored_whole() {
    let top = tempfile::tempdir().expect("a directory");
    let phrase = Secret::passphrase(&secret(top.path(), "phrase", b"a long passphrase\n")).expect("a passphrase");
    let dir = top.path().join("state");
    State::init(&dir).expect("made");
    let seed = fs::read(dir.join("authd.key")).expect("a key");
    // While it is in use.
    let using = State::open(&dir).expect("opened");
    let file = top.path().join("backup");
    State::backup(&dir, &file, &phrase).expect("backed up");
    drop(using);
    assert!(!holds(top.path(), &seed[20..60]), "the seed is nowhere in the clear but in the state");
    let again = State::backup(&dir, &file, &phrase).expect_err("never overwritten");
    assert!(again.to_string().contains("backup"), "{again}");

    let back = top.path().join("back");
    State::restore(&back, &file, &phrase).expect("restored");
    assert_eq!(fs::read(back.join("authd.key")).expect("a key"), seed);
    for entry in fs::read_dir(&back).expect("it") {
        let path = entry.expect("it").path();
        assert_eq!(fs::metadata(&path).expect("it").permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    State::open(&back).expect("a whole state");
    assert!(matches!(State::restore(&back, &file, &phrase), Err(StateError::Exists(_))));

    let mut bytes = fs::read(&file).expect("it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).expect("changed");
    let refused = State::restore(&top.path().join("third"), &file, &phrase).expect_err("changed");
    assert!(matches!(refused, StateError::Secret(SealedError::Refused(_))), "{refused}");
    assert!(!top.path().join("third").exists());
}

#[test]
fn a_sealed_identity_is_rotated_and_stays_sealed() {
    let top = tempfile::tempdir().expect("a directory");
    let key = Secret::key(&secret(top.path(), "key", &[9; 32])).expect("a key");
    let dir = top.path().join("state");
    let first = State::init_sealed(&dir, Some(&key)).expect("made").fingerprint;
    let before = fs::read(dir.join("authd.key.sealed")).expect("it");
    assert!(matches!(State::rotate(&dir, None), Err(StateError::Sealed(_))));
    let (old, new) = State::rotate(&dir, Some(&key)).expect("rotated");
    assert_eq!(old, first);
    for name in ["authd.key", "authd.key.next", "authd.key.sealed.next"] {
        assert!(!dir.join(name).exists(), "{name}");
    }
    let after = fs::read(dir.join("authd.key.sealed")).expect("it");
    assert_ne!(before, after);
    assert!(matches!(State::open(&dir), Err(StateError::Sealed(_))));

    // Cut off after the database was written: the next start goes on with the new one.
    let next = dir.join("authd.key.sealed.next");
    fs::write(dir.join("authd.key.sealed"), &before).expect("written");
    fs::write(&next, &after).expect("written");
    drop(State::open_sealed(&dir, Some(&key)).expect("settled"));
    assert_eq!(fs::read(dir.join("authd.key.sealed")).expect("it"), after);
    // Before it, with half a file: the key stays.
    fs::write(&next, &before[..60]).expect("written");
    let (old, third) = State::rotate(&dir, Some(&key)).expect("rotated again");
    assert_eq!(old, new);
    assert_ne!(third, new);
}

#[test]
fn a_plain_identity_is_rotated_whatever_secret_is_given() {
    let top = tempfile::tempdir().expect("a directory");
    let key = Secret::key(&secret(top.path(), "key", &[9; 32])).expect("a key");
    let dir = top.path().join("state");
    State::init(&dir).expect("made");
    State::rotate(&dir, Some(&key)).expect("rotated");
    State::open(&dir).expect("as plain as it was");
}
