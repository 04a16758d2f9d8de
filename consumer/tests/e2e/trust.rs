//! Who is trusted, and whose lease is whose.

use std::fs;

use crate::stack::{Stack, text};

#[test]
fn a_stranger_waits_for_approval_and_a_revoked_one_is_out() {
    let stack = Stack::start();
    let user = stack.stranger("eve");
    let first = user.run(&["id", "--json"]).expect(0).saying("first contact");
    let id = first.json();
    assert_eq!((id["created"].as_bool(), text(&id["authd"]["you"], "state")), (Some(true), "pending"));
    let again = user.run(&["id", "--json"]).expect(0);
    assert!(again.stderr.is_empty(), "pinned: {}", again.stderr);
    assert_eq!(again.json()["fingerprint"], id["fingerprint"]);
    let create = ["lease", "create", "--size", "1MiB", "--ttl", "1m"];
    user.run(&create).expect(4).saying("approv");
    user.run(&["trust", "list"]).expect(4);

    let fingerprint = text(&id, "fingerprint").to_owned();
    stack.operator.run(&["trust", "approve", &fingerprint[..8], "--role", "consumer", "--tenant", "blue"]).expect(0);
    let lease = user.lease("1MiB", "10m");
    user.put(&lease, b"hello").expect(0);
    user.run(&["trust", "list"]).expect(4);

    let list = stack.operator.run(&["trust", "list", "--json"]).expect(0).json();
    let entry = list["identities"].as_array().expect("a list").iter().find(|entry| entry["fingerprint"] == fingerprint);
    assert_eq!(text(entry.expect("listed"), "tenant"), "blue");

    stack.operator.run(&["trust", "revoke", &fingerprint]).expect(0);
    user.run(&["get", &lease, "-", "--len", "5"]).expect(4);
    user.run(&create).expect(4);
    stack.wait_ended(&stack.operator, &lease);
    assert_eq!(text(&stack.lease(&stack.operator, &lease), "reason"), "revoked");
}

#[test]
fn an_invitation_serves_once_and_only_at_its_auth_daemon() {
    let stack = Stack::start();
    let code = stack.invite(&["--role", "consumer", "--tenant", "blue"]);
    let (ann, ben) = (stack.stranger("ann"), stack.stranger("ben"));
    let joined = ann.run(&["join", &code]).expect(0);
    assert!(joined.stderr.is_empty(), "nothing is taken on trust: {}", joined.stderr);
    ben.run(&["join", &code]).expect(4);
    let elsewhere = format!("{}{}", "0".repeat(40), &code[40..]);
    ben.run(&["join", &elsewhere]).expect(5);
    stack.stranger("cid").run(&["join", &elsewhere]).expect(5).saying("invitation");
}

#[test]
fn another_tenant_neither_sees_nor_uses_a_lease() {
    let stack = Stack::start();
    let (ann, ben) = (stack.consumer("ann", "blue"), stack.consumer("ben", "red"));
    let lease = ann.lease("64KiB", "10m");
    ann.put(&lease, b"secret").expect(0);
    let list = ben.run(&["lease", "list", "--json"]).expect(0).json();
    assert_eq!(list["leases"].as_array().map(Vec::len), Some(0));
    for args in [
        &["get", &lease, "-", "--len", "6"][..],
        &["put", &lease, "/etc/hostname"],
        &["lease", "renew", &lease, "--ttl", "1h"],
        &["lease", "release", &lease],
    ] {
        ben.run(args).expect(7);
    }
    // Not with the first one's file either, should it get out.
    let name = format!("overbank/{lease}.lease");
    crate::process::private(&ben.runtime.join("overbank"));
    fs::copy(ann.runtime.join(&name), ben.runtime.join(&name)).expect("copied");
    ben.run(&["get", &lease, "-", "--len", "6"]).expect(12).saying("belongs to the identity");
    ben.run(&["lease", "release", &lease]).expect(7);
    assert!(ben.runtime.join(&name).exists(), "whose lease it is has not said that it is over");
    assert_eq!(ann.get(&lease, 6), b"secret");
}

#[test]
fn a_changed_auth_daemon_key_is_refused() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("64KiB", "10m");
    stack.replace_authd();
    user.run(&["status"]).expect(5).saying("known_authds");
    user.run(&["id"]).expect(5);
    user.run(&["get", &lease, "-", "--len", "1"]).expect(5);
    user.run(&["lease", "release", &lease]).expect(5);
    // Somebody who has removed the pin is still not to lose what another auth daemon granted.
    fs::remove_file(user.home.join("known_authds")).expect("it");
    user.run(&["lease", "release", &lease]).expect(12).saying("was granted by the auth daemon");
    user.run(&["get", &lease, "-", "--len", "1"]).expect(12).saying("was granted by the auth daemon");
    assert!(user.runtime.join(format!("overbank/{lease}.lease")).exists());
}
