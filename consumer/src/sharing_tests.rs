use super::*;
use crate::clock;
use crate::lease_file::tests::facts as plain_facts;
use overbank_fabric::token::Token;

/// A lease of 16 blocks of 4 KiB, the last of which is not whole, that ends in a minute.
fn held() -> (Facts, Identity) {
    let (authd, me) = (Identity::generate(), Identity::generate());
    let facts = plain_facts();
    let scope = facts.token.verify(&facts.authd_key).expect("granted");
    let scope = Scope { holder: me.public(), deadline: Deadline { tick: Tick(1_000_000), ..scope.deadline }, ..scope };
    let facts = Facts {
        bytes: 15 * 4096 + 100,
        token: Token::grant(&scope, &authd),
        authd_key: authd.public(),
        holder: me.public(),
        until: Until::new(clock::now_ms(), 60_000),
        ..facts
    };
    (facts, me)
}

fn request(range: Option<Range<u64>>) -> ShareRequest {
    ShareRequest { range, ..ShareRequest::new(Identity::generate().public()) }
}

#[test]
fn ranges_are_whole_blocks_of_what_we_have() {
    let (facts, _) = held();
    let scope = facts.token.verify(&facts.authd_key).expect("granted");
    let blocks = |range| narrowed(&facts, &scope, &request(range)).map(|scope| (scope.first_block, scope.blocks));
    assert_eq!(blocks(None).expect("all"), (0, 16));
    assert_eq!(blocks(Some(4096..12_288)).expect("two"), (1, 2));
    assert_eq!(blocks(Some(15 * 4096..facts.bytes)).expect("the last"), (15, 1));
    for range in [1..4096, 0..4097, 4096..4097, 15 * 4096..facts.bytes - 1] {
        assert!(matches!(blocks(Some(range.clone())), Err(SharingError::NotBlocks { .. })), "{range:?}");
    }
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..0, 8192..4096, 0..facts.bytes + 1, 0..u64::MAX, u64::MAX - 1..u64::MAX] {
        assert!(matches!(blocks(Some(range.clone())), Err(SharingError::OutOfRange { .. })), "{range:?}");
    }
}

#[test]
fn a_share_of_a_share_is_no_more_than_that() {
    let (facts, me) = held();
    let bob = Identity::generate();
    let first = ShareRequest { read_only: true, range: Some(8192..16_384), ..ShareRequest::new(bob.public()) };
    let key = LeaseKey::from_bytes([5; 32]);
    let opened = share::open(&seal(&facts, &key, &me, &first).expect("shared"), &bob).expect("opened");
    let facts = Facts { token: opened.facts.token, holder: bob.public(), until: Until::unknown(), ..facts };
    let again = |request: &ShareRequest| seal(&facts, &key, &bob, request);
    let carol = Identity::generate();
    let reading = ShareRequest { read_only: true, ..ShareRequest::new(carol.public()) };
    let opened = share::open(&again(&reading).expect("shared on"), &carol).expect("opened");
    assert_eq!((opened.scope.first_block, opened.scope.blocks, opened.scope.rights), (2, 2, Rights::READ));
    assert_eq!(opened.from, bob.public());
    for (request, wanted) in [
        (ShareRequest { read_only: false, ..reading.clone() }, "--read-only"),
        (ShareRequest { range: Some(0..8192), ..reading.clone() }, "not within bytes 8192 to 16384"),
        (ShareRequest { ttl: Some(Duration::from_secs(1)), ..reading.clone() }, "how long the lease lasts"),
    ] {
        let error = again(&request).expect_err("refused").to_string();
        assert!(error.contains(wanted), "{error}");
    }
    // Who has the file of a lease without being its holder makes nothing of it.
    assert!(seal(&facts, &key, &me, &reading).is_err());
}

#[test]
fn a_time_shortens_and_never_lengthens() {
    let (facts, _) = held();
    let scope = facts.token.verify(&facts.authd_key).expect("granted");
    let tick = |seconds| {
        let request = ShareRequest { ttl: Some(Duration::from_secs(seconds)), ..request(None) };
        narrowed(&facts, &scope, &request).expect("for that time").deadline.tick.0
    };
    // 60 s before the tick of the deadline it is now.
    assert!((950_000..=950_500).contains(&tick(10)), "{}", tick(10));
    assert_eq!(tick(61), 1_000_000);
    assert_eq!(tick(u64::MAX), 1_000_000);
}

#[test]
fn a_bundle_takes_the_place_of_a_file_and_of_nothing_else() {
    let home = tempfile::tempdir().expect("a directory");
    let (pipe, link, file) = (home.path().join("pipe"), home.path().join("link"), home.path().join("file"));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
    std::os::unix::fs::symlink(&pipe, &link).expect("made");
    for path in [&pipe, &link, home.path()] {
        let error = write_bundle(path, b"bundle").expect_err("no file");
        assert!(error.to_string().contains("a new one can take the place of"), "{error}");
    }
    assert!(!std::fs::metadata(&link).expect("it").is_file());
    assert_eq!(std::fs::read_dir(home.path()).expect("it").count(), 2);
    for bundle in [b"first", b"later"] {
        write_bundle(&file, bundle).expect("written");
        assert_eq!(std::fs::read(&file).expect("it"), bundle);
    }
}
