//! The provider's word on how a lease ended, as a file that needs nobody to be checked.

use crate::stack::{Stack, User, seconds, text};

/// Checks a receipt where there is no auth daemon and no home.
fn verify(user: &User, args: &[&str]) -> crate::process::Outcome {
    let mut command = user.command(&[&["receipt", "verify"], args].concat());
    command.env("OVERBANK_AUTHD", "127.0.0.1:1").env("OVERBANK_HOME", "/nonexistent");
    crate::process::Running::start(&mut command).end()
}

#[test]
fn a_receipt_is_kept_and_checked_offline() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("1MiB", "10m");
    user.put(&lease, b"something").expect(0);
    let file = user.home.join("receipt").display().to_string();
    user.run(&["lease", "receipt", &lease, "--out", &file]).expect(2).saying("no receipt of its end is in yet");
    user.run(&["lease", "release", &lease, "--receipt", &file]).expect(0);
    let list = stack.operator.run(&["status", "--json"]).expect(0).json();
    let provider = text(&list["providers"][0], "fingerprint").to_owned();
    let answer = verify(&user, &[&file, "--provider", &provider, "--json"]).expect(0).json();
    assert_eq!((text(&answer, "lease"), text(&answer, "reason")), (&lease[..], "released"));
    assert_eq!(answer["steps"].as_array().map(Vec::len), Some(6));
    let said = verify(&user, &[&file]).expect(0);
    assert!(String::from_utf8_lossy(&said.stdout).contains("compare it with the one that you know"));
    verify(&user, &[&file, "--provider", &"ab".repeat(20)]).expect(9).saying("not of abab");

    let whole = std::fs::read(&file).expect("it");
    let bad = user.home.join("bad");
    for (bytes, words) in [
        (whole[..whole.len() - 1].to_vec(), "no receipt"),
        ([&whole[..], b"x"].concat(), "no receipt"),
        (Vec::new(), "cut short"),
        (b"OVBRECPT\x00\x02whatever".to_vec(), "use a newer one"),
    ] {
        std::fs::write(&bad, bytes).expect("written");
        verify(&user, &[&bad.display().to_string()]).expect(9).saying(words);
    }
    // One byte of the memory's size, which nobody but the provider may say.
    for at in (10..whole.len()).step_by(37) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&bad, changed).expect("written");
        verify(&user, &[&bad.display().to_string()]).expect(9);
    }

    // It outlives the provider's process and the auth daemon's.
    stack.provider = None;
    stack.restart_authd();
    stack.provider = Some(stack.start_provider(&[]));
    let again = user.home.join("again").display().to_string();
    user.run(&["lease", "receipt", &lease, "--out", &again]).expect(0).saying("the auth daemon's word");
    assert_eq!(std::fs::read(&again).expect("it"), whole);
}

#[test]
fn the_receipt_of_an_expired_lease_is_fetched_by_who_pinned_its_provider() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("64KiB", "2s");
    crate::process::eventually("it has ended", seconds(15.0), || stack.lease(&user, &lease)["state"] == "ended");
    let file = user.home.join("receipt").display().to_string();
    let answer = user.run(&["lease", "receipt", &lease, "--out", &file, "--json"]).expect(0);
    assert_eq!(answer.json()["provider_pinned"].as_bool(), Some(true));
    assert_eq!(text(&verify(&user, &[&file, "--json"]).expect(0).json(), "reason"), "expired");
}

#[test]
fn all_that_an_identity_has_is_given_back_at_once_with_a_receipt_each() {
    let stack = Stack::start();
    let (ann, ben) = (stack.consumer("ann", "blue"), stack.consumer("ben", "blue"));
    let before = ann.lease("64KiB", "10m");
    ann.run(&["lease", "release", &before]).expect(0);
    stack.wait_ended(&ann, &before);
    let (one, two, other) = (ann.lease("1MiB", "10m"), ann.lease("64KiB", "10m"), ben.lease("64KiB", "10m"));
    ann.put(&one, b"something").expect(0);
    // Where the same identity is, and no file of a lease: as for who sees to a job's end.
    let elsewhere = stack.stranger("elsewhere");
    crate::process::private(&elsewhere.home);
    for file in ["identity.key", "known_authds"] {
        std::fs::copy(ann.home.join(file), elsewhere.home.join(file)).expect("copied");
    }
    let directory = elsewhere.home.join("receipts");
    let all = ["lease", "release", "--all", "--wait", "20s", "--json", "--receipts", directory.to_str().expect("text")];
    elsewhere.run(&all).expect(12);
    for lease in [&one, &two] {
        assert_eq!(text(&stack.lease(&ann, lease), "reason"), "released", "released, whatever became of its receipt");
    }
    crate::process::private(&directory);
    // A receipt that cannot be kept, of the newest and so the first, is no reason to keep no other.
    let taken = directory.join(format!("{two}.receipt"));
    crate::process::private(&taken);
    elsewhere.run(&all).expect(12);
    assert_eq!(std::fs::read_dir(&directory).expect("it").count(), 3);
    std::fs::remove_dir(&taken).expect("empty");
    let answer = elsewhere.run(&all).expect(0).json();
    let leases = answer["leases"].as_array().expect("a list");
    assert_eq!(leases.len(), 3, "{leases:?}");
    for lease in [&before, &one, &two] {
        let entry = leases.iter().find(|entry| entry["lease"] == **lease).expect("it is listed");
        assert_eq!(text(entry, "state"), "ended");
        assert_eq!(text(&verify(&ann, &[text(entry, "file"), "--json"]).expect(0).json(), "lease"), lease);
    }
    assert_eq!(std::fs::read_dir(&directory).expect("it").count(), 3);
    assert_eq!(text(&stack.lease(&ben, &other), "state"), "active", "somebody else's");
    ben.run(&["lease", "release", "--all"]).expect(0);
    assert_eq!(std::fs::read_dir(ben.runtime.join("overbank")).expect("it").count(), 0);
    for wrong in [
        &["lease", "release"][..],
        &["lease", "release", "--all", &one],
        &["lease", "release", &one, "--receipts", "x"],
    ] {
        ann.run(wrong).expect(2);
    }
}
