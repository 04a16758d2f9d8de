//! Who is trusted, and whose lease is whose.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Running, eventually};
use crate::stack::{Stack, noise, seconds, text};

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
    stack.operator.run(&["trust", "approve", &fingerprint[..39], "--role", "consumer", "--tenant", "blue"]).expect(2);
    stack.operator.run(&["trust", "approve", &fingerprint, "--role", "consumer", "--tenant", "blue"]).expect(0);
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
fn an_invitation_is_read_from_standard_input_where_nobody_else_sees_it() {
    let stack = Stack::start();
    let user = stack.stranger("eve");
    let join = |words: &str| {
        let mut running = Running::start(user.command(&["join", "-"]).stdin(Stdio::piped()));
        // It may have ended by then, with more than it takes.
        let _ = running.child.stdin.take().expect("piped").write_all(words.as_bytes());
        running.end()
    };
    join("").expect(2);
    join(&"x".repeat(1 << 20)).expect(2).saying("no invitation");
    join(&(stack.invite(&["--role", "consumer", "--tenant", "blue"]) + "\nmore")).expect(0);
    user.lease("64KiB", "10m");
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
fn attack_07_a_changed_auth_daemon_key() {
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
    let state = stack.path().join("provider/known_authd");
    let pinned = fs::read_to_string(&state).expect("a pin");
    eventually("the provider refuses it too", seconds(20.0), || {
        stack.provider.as_ref().expect("it runs").log().contains("is pinned")
    });
    assert_eq!(fs::read_to_string(&state).expect("a pin"), pinned);
    println!("attack 07 -: seen another key at the old address: refused by clients and provider, with the way out");
}

#[test]
fn a_revocation_reaches_a_stopped_consumer_within_a_second() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let id = user.run(&["id", "--json"]).expect(0).json();
    let lease = user.lease("8MiB", "10m");
    let (running, stdin) = user.half_way(&lease, &noise(4 << 20, 7));
    let pid = Pid::from_raw(running.child.id().try_into().expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("stopped");
    let begun = Instant::now();
    stack.operator.run(&["trust", "revoke", text(&id, "fingerprint")]).expect(0);
    stack.wait_ended(&stack.operator, &lease);
    let took = begun.elapsed();
    let entry = stack.lease(&stack.operator, &lease);
    assert_eq!((text(&entry, "state"), text(&entry, "reason")), ("ended", "revoked"));
    assert!(took < seconds(2.0), "fenced, wiped and reported after {took:?}, two commands included");
    kill(pid, Signal::SIGCONT).expect("goes on");
    drop(stdin);
    let end = running.end();
    assert!(![0, 9].contains(&end.status), "{}: {}", end.status, end.stderr);
}

#[test]
fn a_stopped_lease_is_over_for_who_uses_it() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("1MiB", "10m");
    user.put(&lease, b"hello").expect(0);
    user.run(&["lease", "stop", &lease]).expect(4);
    stack.operator.run(&["lease", "stop", &lease[..8], "--json"]).expect(0);
    stack.wait_ended(&user, &lease);
    assert_eq!(text(&stack.lease(&user, &lease), "reason"), "stopped");
    user.run(&["get", &lease, "-", "--len", "5"]).expect(7).saying("stopped");

    let list = stack.operator.run(&["provider", "list", "--json"]).expect(0).json();
    let provider = text(&list["providers"][0], "fingerprint").to_owned();
    stack.operator.run(&["trust", "rename", &provider, "node 7"]).expect(0);
    stack.operator.run(&["provider", "drain", &provider[..8]]).expect(0);
    user.run(&["lease", "create", "--size", "1MiB", "--ttl", "1m"]).expect(6).saying("drained");
    let list = stack.operator.run(&["provider", "list"]).expect(0);
    let said = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(said.contains("node 7") && said.contains("drained"), "{said}");
    stack.operator.run(&["provider", "undrain", &provider]).expect(0);
    let lease = user.lease("1MiB", "10m");
    stack.operator.run(&["tenant", "stop", "blue", "--json"]).expect(0);
    stack.wait_ended(&user, &lease);
    stack.operator.run(&["shutdown"]).expect(0);
    eventually("it stops", seconds(5.0), || stack.operator.run(&["status"]).status == 3);
}

#[test]
fn trust_moves_to_another_auth_daemon() {
    let (stack, other) = (Stack::start(), Stack::start());
    let (ann, ben) = (stack.consumer("ann", "blue"), stack.consumer("ben", "blue"));
    let of = |user: &crate::stack::User| text(&user.run(&["id", "--json"]).expect(0).json(), "fingerprint").to_owned();
    let (ann, ben) = (of(&ann), of(&ben));
    stack.operator.run(&["trust", "revoke", &ben]).expect(0);
    let file = stack.path().join("trust.json");
    fs::write(&file, stack.operator.run(&["trust", "export"]).expect(0).stdout).expect("written");
    let path = file.display().to_string();
    let first = other.operator.run(&["trust", "import", &path, "--json"]).expect(0).json();
    assert_eq!((first["added"].as_u64(), first["same"].as_u64()), (Some(4), Some(0)), "{first}");
    let state =
        |who: &str| text(&other.operator.run(&["trust", "show", who, "--json"]).expect(0).json(), "state").to_owned();
    assert_eq!((state(&ann), state(&ben)), ("trusted".to_owned(), "revoked".to_owned()));
    // What is revoked here is not trusted by what others trust.
    other.operator.run(&["trust", "revoke", &ann]).expect(0);
    let again = other.operator.run(&["trust", "import", &path, "--json"]).expect(0).json();
    assert_eq!((again["added"].as_u64(), again["different"].as_u64()), (Some(0), Some(1)), "{again}");
    assert_eq!(state(&ann), "revoked");
}

#[test]
fn two_operators_agree() {
    let stack = Stack::with(&["--approvals=2", "--critical=revoke"]);
    // Both were made by one, who was alone then.
    let (code, early) = (stack.invite(&["--role", "operator"]), stack.invite(&["--role", "operator"]));
    let (first, second) = (&stack.operator, stack.stranger("second"));
    second.run(&["join", &code]).expect(0);
    stack.stranger("puppet").run(&["join", &early]).expect(4).saying("operator, takes 2");

    let user = stack.consumer("ann", "blue");
    let who = text(&user.run(&["id", "--json"]).expect(0).json(), "fingerprint").to_owned();
    first.run(&["trust", "revoke", &who]).expect(14);
    let list = second.run(&["proposal", "list", "--json"]).expect(0).json();
    let proposal = text(&list["proposals"][0], "proposal").to_owned();
    let shown = second.run(&["proposal", "show", &proposal[..8]]).expect(0);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.contains(&who) && shown.contains(&proposal), "{shown}");
    let one = first.run(&["proposal", "approve", &proposal, "--json"]).expect(0).json();
    assert_eq!(one["done"].as_bool(), Some(false));
    user.run(&["status"]).expect(0);
    // What is signed is said as it is signed.
    let two = second.run(&["proposal", "approve", &proposal[..8], "--json"]).expect(0).saying(&who).saying(&proposal);
    assert_eq!(two.json()["done"].as_bool(), Some(true));
    user.run(&["status"]).expect(4);
    let records = first.run(&["audit", "query", "--who", &who, "--event", "consented"]).expect(0);
    let records = String::from_utf8(records.stdout).expect("text");
    // Who asks has agreed, and said so twice.
    assert_eq!(records.lines().count(), 3, "{records}");
    assert!(records.contains(", enough: trust-revoke"), "{records}");
}
