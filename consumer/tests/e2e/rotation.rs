//! New keys, of a borrower, an operator and the auth daemon, while leases go on.

use std::fs;

use crate::process::eventually;
use crate::stack::{Stack, noise, seconds, text};

#[test]
fn a_borrower_takes_a_new_key_and_keeps_its_leases() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let old = text(&user.run(&["id", "--json"]).expect(0).json(), "fingerprint").to_owned();
    let (lease, contents) = (user.lease("1MiB", "10m"), noise(1 << 20, 3));
    user.put(&lease, &contents).expect(0);

    let key = fs::read(user.home.join("identity.key")).expect("a key");
    let rotated = user.run(&["id", "--rotate", "--json"]).expect(0).json();
    let new = text(&rotated, "fingerprint").to_owned();
    assert_eq!(text(&rotated, "took_over_from"), old);
    assert!(!user.home.join("identity.key.next").exists());
    let id = user.run(&["id", "--json"]).expect(0).json();
    assert_eq!((text(&id, "fingerprint"), text(&id["authd"]["you"], "tenant")), (&*new, "blue"));
    let state =
        |who: &str| text(&stack.operator.run(&["trust", "show", who, "--json"]).expect(0).json(), "state").to_owned();
    assert_eq!((state(&old), state(&new)), ("revoked".to_owned(), "trusted".to_owned()));

    assert_eq!(user.get(&lease, 1 << 20), contents, "in the new name");
    user.put(&lease, b"more").expect(0);
    user.run(&["lease", "renew", &lease, "--ttl", "20m"]).expect(0);
    let entry = stack.lease(&user, &lease);
    assert_eq!((text(&entry, "state"), text(&entry, "holder")), ("active", &*new));

    // The old key is worth nothing, and cannot take over a second time.
    fs::write(user.home.join("identity.key"), key).expect("written");
    user.run(&["status"]).expect(4);
    user.run(&["id", "--rotate"]).expect(4);
    // Whoever took over is who a revocation of the old one means.
    stack.operator.run(&["trust", "revoke", &old]).expect(0);
    assert_eq!(state(&new), "revoked");
    stack.wait_ended(&stack.operator, &lease);
}

#[test]
fn an_operator_takes_a_new_key() {
    let stack = Stack::start();
    stack.operator.run(&["id", "--rotate"]).expect(0);
    stack.operator.run(&["trust", "list"]).expect(0);
    stack.invite(&["--role", "operator"]);
}

#[test]
fn the_auth_daemon_takes_a_new_key_and_all_follow() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let unused = stack.invite(&["--role", "consumer", "--tenant", "blue"]);
    let (lease, contents) = (user.lease("1MiB", "10m"), noise(1 << 20, 4));
    user.put(&lease, &contents).expect(0);
    let pins = || fs::read_to_string(user.home.join("known_authds")).expect("pins");
    let before = pins();
    for turn in 0..2 {
        let rotated = stack.rotate_authd();
        let (old, new) = (text(&rotated, "took_over_from").to_owned(), text(&rotated, "fingerprint").to_owned());
        if turn == 1 {
            // Over both steps at once, in one command.
            fs::write(user.home.join("known_authds"), &before).expect("written");
        }
        let said = user.run(&["status"]).expect(0);
        assert!(said.stderr.contains(&new) && said.stderr.contains("has signed"), "{}", said.stderr);
        assert!(pins().contains(&new) && !pins().contains(&old), "{}", pins());
        assert!(user.run(&["status"]).expect(0).stderr.is_empty(), "said once");
        let here = || stack.operator.run(&["provider", "list", "--json"]).expect(0).json();
        eventually("the provider follows", seconds(20.0), || here()["providers"][0]["connected"] == true);
        // A token of the old key is good as long as its lease is.
        assert_eq!(user.get(&lease, 1 << 20), contents);
        assert_eq!(user.lease("64KiB", "10m").len(), 32);
    }
    user.run(&["lease", "renew", &lease, "--ttl", "20m"]).expect(0);
    assert_eq!(user.get(&lease, 1 << 20), contents, "and one of the new key");
    user.run(&["lease", "release", &lease]).expect(0);
    stack.stranger("ben").run(&["join", &unused]).expect(0).saying("has signed");
    // Who has another key without the old one's word is nobody.
    stack.replace_authd();
    user.run(&["status"]).expect(5);
}
