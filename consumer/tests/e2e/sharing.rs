//! Leases that are shared: with whom, how much of them, for how long, and what a revocation makes of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use overbank::{ErrorKind, LeaseId};

use crate::library::{client, options};
use crate::process::eventually;
use crate::stack::{Stack, User, device, noise, seconds, text};

const BLOCK: usize = 4096;

impl User {
    fn fingerprint(&self) -> String {
        text(&self.run(&["id", "--json"]).expect(0).json(), "fingerprint").to_owned()
    }

    /// The file of a share.
    fn share(&self, lease: &str, to: &User, more: &[&str]) -> PathBuf {
        let file = self.home.join(format!("for-{}", to.fingerprint()));
        let (to, out) = (to.fingerprint(), file.display().to_string());
        self.run(&[&["lease", "share", lease, "--to", &to, "--out", &out], more].concat()).expect(0);
        file
    }

    fn open(&self, share: &std::path::Path) -> crate::process::Outcome {
        self.run(&["lease", "open", &share.display().to_string(), "--json"])
    }
}

/// A lease of 8 blocks, all written.
fn written(stack: &Stack) -> (User, String, Vec<u8>) {
    let ann = stack.consumer("ann", "blue");
    let lease = ann.lease("32KiB", "10m");
    let bytes = noise(8 * BLOCK, 1);
    ann.put(&lease, &bytes).expect(0);
    (ann, lease, bytes)
}

#[test]
fn what_is_shared_for_writing_is_read_and_written_by_both() {
    let stack = Stack::start();
    let (ann, lease, mut bytes) = written(&stack);
    let ben = stack.consumer("ben", "red");
    let share = ann.share(&lease, &ben, &[]);
    let opened = ben.open(&share).expect(0).json();
    assert_eq!(text(&opened, "from"), ann.fingerprint());
    assert_eq!(opened["freshness_known"].as_bool(), Some(false));
    let got = ben.run(&["get", &lease, "-"]).expect(0).saying("freshness unknown");
    assert_eq!(got.stdout, bytes);
    let (theirs, ours) = (noise(100, 2), noise(BLOCK, 3));
    ben.put(&format!("{lease}@5000"), &theirs).expect(0);
    bytes[5000..5100].copy_from_slice(&theirs);
    let got = ann.run(&["get", &lease, "-"]).expect(0).saying("freshness unknown");
    assert_eq!(got.stdout, bytes, "who shared it sees what was written");
    ann.put(&format!("{lease}@4KiB"), &ours).expect(0);
    bytes[BLOCK..2 * BLOCK].copy_from_slice(&ours);
    assert_eq!(ben.get(&lease, 8 * BLOCK), bytes);
    // Both attached at the same time, each through its own.
    let (ann_client, ben_client) = (client(&stack, &ann), client(&stack, &ben));
    let id: LeaseId = lease.parse().expect("an id");
    let (mut at_ann, mut at_ben) =
        (ann_client.open_lease(id).expect("opened"), ben_client.open_lease(id).expect("opened"));
    at_ann.attach(&options()).expect("attached");
    at_ben.attach(&options()).expect("attached");
    let mut buffer = [0; 100];
    for round in 0..20_u8 {
        let (writer, reader) = if round % 2 == 0 { (&mut at_ann, &mut at_ben) } else { (&mut at_ben, &mut at_ann) };
        writer.write(300, &[round; 100]).expect("written");
        reader.read(300, &mut buffer).expect("read");
        assert_eq!(buffer, [round; 100]);
    }
    assert!(at_ann.is_shared() && !at_ann.freshness_is_known() && !at_ben.freshness_is_known());
}

#[test]
fn a_part_for_reading_is_no_more_than_that_and_says_so() {
    let stack = Stack::start();
    let (ann, lease, bytes) = written(&stack);
    let ben = stack.consumer("ben", "red");
    let share = ann.share(&lease, &ben, &["--read-only", "--range", "8KiB..16KiB"]);
    let opened = ben.open(&share).expect(0).json();
    assert_eq!(opened["range"], serde_json::json!([8192, 16_384]));
    assert_eq!(ben.run(&["get", &lease[..8], "-"]).expect(0).stdout, bytes[2 * BLOCK..4 * BLOCK]);
    assert_eq!(ben.get(&format!("{lease}@12KiB"), BLOCK), bytes[3 * BLOCK..4 * BLOCK]);
    ben.put(&format!("{lease}@8KiB"), b"x").expect(4).saying("not granted for writing");
    for target in ["@0", "@4KiB", "@16KiB"] {
        ben.run(&["get", &format!("{lease}{target}"), "-", "--len", "1"]).expect(10).saying("8192 to 16384");
    }
    ben.run(&["get", &lease, "-", "--len", "8193"]).expect(10);
    ben.run(&["lease", "renew", &lease, "--ttl", "1h"]).expect(4).saying("only its holder can renew it");
    ben.run(&["lease", "release", &lease]).expect(4).saying("only its holder can release it");
    ben.run(&["lease", "share", &lease, "--to", &ann.fingerprint(), "--out", "/dev/null"])
        .expect(4)
        .saying("--read-only");
    // Who shared it for reading alone knows what was written last still, and a process may be using it meanwhile.
    assert!(ann.run(&["get", &lease, "-"]).expect(0).stderr.is_empty());
    let ann_client = client(&stack, &ann);
    let _used = ann_client.open_lease(lease.parse().expect("an id")).expect("opened");
    ann.share(&lease, &ben, &["--read-only"]);
    ann.run(&["lease", "share", &lease, "--to", &ben.fingerprint(), "--out", "/dev/null"]).expect(12).saying("in use");
}

#[test]
fn a_share_is_for_one_identity_and_one_auth_daemon() {
    let stack = Stack::start();
    let (ann, lease, _) = written(&stack);
    let (ben, eve) = (stack.consumer("ben", "red"), stack.consumer("eve", "red"));
    let share = ann.share(&lease, &ben, &[]);
    eve.open(&share).expect(12).saying("not for");
    ann.open(&share).expect(12);
    let mut bytes = std::fs::read(&share).expect("it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let bad = ann.home.join("bad");
    std::fs::write(&bad, &bytes).expect("written");
    ben.open(&bad).expect(12).saying("was changed");
    std::fs::write(&bad, b"nothing of the kind").expect("written");
    ben.open(&bad).expect(12).saying("no share bundle");
    let file = share.display().to_string();
    ben.run(&["lease", "open", &file, "--from", &eve.fingerprint()]).expect(4);
    ben.run(&["lease", "open", &file, "--from", &ann.fingerprint()]).expect(0);
    ben.open(&share).expect(0);
    // The lease file is made like any other: for the owner's eyes.
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(ben.runtime.join(format!("overbank/{lease}.lease"))).expect("made");
    assert_eq!(made.mode() & 0o777, 0o600);
    // A stranger, and somebody who is not trusted, are told before anything is sealed for them.
    let stranger = stack.stranger("zoe");
    let to = stranger.run(&["id", "--json"]).json();
    let out = ann.home.join("x").display().to_string();
    ann.run(&["lease", "share", &lease, "--to", text(&to, "fingerprint"), "--out", &out])
        .expect(1)
        .saying("no trusted consumer");
    // By its whole key it goes without the auth daemon, and is of no use as long as it is not trusted.
    let mut offline = ann.command(&["lease", "share", &lease, "--to", text(&to, "key"), "--out", &out]);
    assert!(offline.env("OVERBANK_AUTHD", "127.0.0.1:1").status().expect("runs").success());
    stranger.open(out.as_ref()).expect(0);
    stranger.run(&["get", &lease, "-"]).expect(4);
}

#[test]
fn a_share_ends_when_it_was_said_and_the_lease_does_not() {
    let stack = Stack::start();
    let (ann, lease, bytes) = written(&stack);
    let ben = stack.consumer("ben", "red");
    let (short, took) = (seconds(4.0), Instant::now());
    let share = ann.share(&lease, &ben, &["--for", &format!("{}s", short.as_secs())]);
    ben.open(&share).expect(0);
    assert_eq!(ben.get(&lease, BLOCK), bytes[..BLOCK]);
    std::thread::sleep((short + Duration::from_millis(200)).saturating_sub(took.elapsed()));
    ben.run(&["get", &lease, "-"]).expect(7).saying("shared of lease").saying("is over");
    assert_eq!(ann.get(&lease, BLOCK), bytes[..BLOCK]);
}

/// As far as the programs go; what a client does that asks nobody is tried at the provider.
#[test]
fn attack_13_a_revoked_delegate_is_out_with_all_whom_it_shared_with() {
    let stack = Stack::start();
    let (ann, lease, bytes) = written(&stack);
    let [ben, cid, dan] = ["ben", "cid", "dan"].map(|name| stack.consumer(name, "red"));
    ben.open(&ann.share(&lease, &ben, &[])).expect(0);
    cid.open(&ben.share(&lease, &cid, &["--read-only", "--range", "4KiB..8KiB"])).expect(0);
    dan.open(&ann.share(&lease, &dan, &["--read-only"])).expect(0);
    let id: LeaseId = lease.parse().expect("an id");
    let users = [&ann, &cid, &dan];
    let clients = users.map(|user| client(&stack, user));
    let mut leases = clients.iter().map(|client| {
        let mut lease = client.open_lease(id).expect("opened");
        lease.attach(&options()).expect("attached");
        lease
    });
    let (mut at_ann, mut at_cid, mut at_dan) =
        (leases.next().expect("ann"), leases.next().expect("cid"), leases.next().expect("dan"));
    let mut byte = [0];
    at_cid.read(4096, &mut byte).expect("cid reads");
    assert_eq!(byte[0], bytes[4096]);

    let revoked = Instant::now();
    stack.operator.run(&["trust", "revoke", &ben.fingerprint()]).expect(0);
    let log = || stack.authd.as_ref().expect("it runs").log();
    eventually("the provider has detached", seconds(1.0), || log().contains("detached: it was revoked"));
    let took = revoked.elapsed();
    let end = at_cid.read(4096, &mut byte).expect_err("cid, whose share came from ben, is out");
    assert_eq!(end.kind(), ErrorKind::LeaseOver, "{end}");
    drop(at_cid);
    cid.run(&["get", &lease, "-"]).expect(7).saying("no trusted consumer (any more)");
    ben.run(&["get", &lease, "-"]).expect(4);
    at_ann.read(0, &mut byte).expect("the lease is ann's");
    at_dan.read(0, &mut byte).expect("and dan's share came from ann");
    assert_eq!(byte[0], bytes[0]);

    stack.operator.run(&["trust", "revoke", &ann.fingerprint()]).expect(0);
    eventually("the holder's revocation ends all", seconds(1.0), || at_dan.read(0, &mut byte).is_err());
    drop(at_dan);
    dan.run(&["get", &lease, "-"]).expect(7);
    println!("device {}, detached {took:?} after the revocation began", device());
    println!(
        "attack 13 -: seen a revoked delegate detached within a second, with all whom it shared with, and nobody else"
    );
}
