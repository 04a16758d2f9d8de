use std::os::unix::fs::{PermissionsExt, symlink};

use overbank_fabric::identity::Identity;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope};
use proptest::prelude::*;

use super::*;

pub(crate) fn facts() -> Facts {
    let (authd, holder) = (Identity::generate(), Identity::generate());
    let lease = LeaseId::random();
    let boot = BootId::random();
    let scope = Scope {
        lease,
        deadline: Deadline { boot, tick: Tick(1) },
        first_block: 0,
        blocks: 16,
        rights: Rights::READ_WRITE,
        holder: holder.public(),
    };
    Facts {
        lease,
        generation: 7,
        tenant: "blue".parse().expect("a name"),
        authd: "127.0.0.1:7471".to_owned(),
        authd_key: authd.public(),
        holder: holder.public(),
        provider: Identity::generate().public(),
        boot,
        bytes: 65_536,
        block: 4096,
        token: Token::grant(&scope, &authd),
        until: Until::new(0, 60_000),
        dirty: false,
        sharing: Sharing::No,
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().expect("a directory")
}

/// A directory with one lease file in it, not in use.
fn written(freshness: &[u8]) -> (tempfile::TempDir, Facts, PathBuf) {
    let home = directory();
    let facts = facts();
    let mut file = LeaseFile::create(home.path(), facts.clone(), LeaseKey::generate(), b"").expect("made");
    file.save(facts.clone(), freshness).expect("saved");
    let path = path_of(home.path(), facts.lease);
    (home, facts, path)
}

#[test]
fn what_was_written_is_read_and_nobody_else_can_read_it() {
    let home = directory();
    let directory = home.path().join("leases");
    let mut facts = facts();
    let mut file = LeaseFile::create(&directory, facts.clone(), LeaseKey::from_bytes([9; 32]), b"").expect("made");
    assert_eq!(list(&directory).expect("read"), [facts.lease]);
    facts.dirty = true;
    file.save(facts.clone(), b"fresh").expect("saved");
    drop(file);
    let (file, freshness) = LeaseFile::open(&directory, facts.lease).expect("opened");
    assert_eq!((file.facts(), &freshness[..], file.key().bytes()), (&facts, &b"fresh"[..], &[9; 32]));
    assert_eq!(fs::metadata(file.path()).expect("it").mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(&directory).expect("it").mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(&directory).expect("it").count(), 1);
}

#[test]
fn one_process_at_a_time() {
    let (home, facts, _) = written(b"");
    let (mut first, _) = LeaseFile::open(home.path(), facts.lease).expect("opened");
    assert!(matches!(LeaseFile::open(home.path(), facts.lease), Err(LeaseFileError::InUse { .. })));
    first.save(facts.clone(), b"new").expect("saved");
    assert!(matches!(LeaseFile::open(home.path(), facts.lease), Err(LeaseFileError::InUse { .. })));
    drop(first);
    assert!(LeaseFile::open(home.path(), facts.lease).is_ok());
}

#[test]
fn a_released_lease_is_not_written_down_again() {
    let (home, facts, path) = written(b"");
    let (mut file, _) = LeaseFile::open(home.path(), facts.lease).expect("opened");
    assert!(remove(home.path(), facts.lease).expect("removed"));
    assert!(!remove(home.path(), facts.lease).expect("gone already"));
    assert!(matches!(file.save(facts.clone(), b""), Err(LeaseFileError::Removed { .. })));
    assert!(!path.exists());
    assert!(matches!(LeaseFile::open(home.path(), facts.lease), Err(LeaseFileError::Missing { .. })));
    assert!(matches!(LeaseFile::open(&home.path().join("nowhere"), facts.lease), Err(LeaseFileError::Missing { .. })));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (home, facts, path) = written(b"fresh");
    let whole = fs::read(&path).expect("it");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("cut");
        let error = LeaseFile::open(home.path(), facts.lease).err().expect("refused");
        assert!(matches!(error, LeaseFileError::Damaged { .. }), "cut at {length}: {error}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).expect("longer");
    assert!(matches!(LeaseFile::open(home.path(), facts.lease), Err(LeaseFileError::Damaged { .. })));
}

#[test]
fn a_file_with_any_bit_flipped_is_refused() {
    let (home, facts, path) = written(b"fresh");
    let whole = fs::read(&path).expect("it");
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).expect("flipped");
        let error = LeaseFile::open(home.path(), facts.lease).err().expect("refused");
        match error {
            LeaseFileError::Foreign { .. } => assert!(at < 8, "{at}"),
            LeaseFileError::Newer { .. } => assert!((8..10).contains(&at), "{at}"),
            LeaseFileError::Damaged { .. } => assert!(at >= 8, "{at}"),
            other => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn lengths_that_lie_allocate_nothing() {
    let (home, facts, path) = written(b"");
    let whole = fs::read(&path).expect("it");
    for (at, lie) in [(10, &[0xff; 4][..]), (14, &[0xff; 8]), (14, &[0, 0, 0xff, 0, 0, 0, 0, 0])] {
        let mut lying = whole.clone();
        lying[at..at + lie.len()].copy_from_slice(lie);
        fs::write(&path, &lying).expect("written");
        assert!(matches!(LeaseFile::open(home.path(), facts.lease), Err(LeaseFileError::Damaged { .. })));
    }
}

#[test]
fn a_file_under_another_name_or_that_others_can_read_is_refused() {
    let (home, facts, path) = written(b"");
    let other = LeaseId::random();
    fs::copy(&path, path_of(home.path(), other)).expect("copied");
    assert!(matches!(LeaseFile::open(home.path(), other), Err(LeaseFileError::Damaged { .. })));
    let link = LeaseId::random();
    symlink(&path, path_of(home.path(), link)).expect("a link");
    let local = |lease| match LeaseFile::open(home.path(), lease) {
        Err(LeaseFileError::Local(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    assert!(matches!(local(link), LocalError::Kind { .. }));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    assert!(matches!(local(facts.lease), LocalError::Mode { .. }));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    assert!(matches!(local(facts.lease), LocalError::Mode { .. }));
}

#[test]
fn facts_that_make_no_sense_are_refused_though_their_checksum_holds() {
    let (home, good, path) = written(b"");
    for bad in [
        Facts { bytes: 0, ..good.clone() },
        Facts { block: 0, ..good.clone() },
        Facts { block: 256, ..good.clone() },
        Facts { block: 4097, ..good.clone() },
        Facts { block: 1 << 21, ..good.clone() },
    ] {
        write(&path, &bad, &LeaseKey::generate(), b"").expect("written");
        assert!(matches!(LeaseFile::open(home.path(), good.lease), Err(LeaseFileError::Damaged { .. })));
    }
}

#[test]
fn only_lease_files_are_listed() {
    let (home, facts, _) = written(b"");
    for name in ["x.lease", ".lease", "0123.lease", &format!(".{}.lease.new", facts.lease)] {
        fs::write(home.path().join(name), b"").expect("written");
    }
    assert_eq!(list(home.path()).expect("read"), [facts.lease]);
    assert_eq!(list(&home.path().join("nowhere")).expect("nothing"), []);
}

proptest! {
    #[test]
    fn no_file_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), real_head in any::<bool>()) {
        let home = directory();
        let lease = LeaseId([1; 16]);
        let mut contents = bytes.clone();
        if real_head {
            contents = [&head(bytes.len().saturating_sub(KEY + SUM), 0)[..], &bytes].concat();
        }
        let path = path_of(home.path(), lease);
        fs::write(&path, &contents).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        prop_assert!(LeaseFile::open(home.path(), lease).is_err());
    }
}
