//! New keys, of a borrower, an operator, a provider and the auth daemon, while leases go on.

use std::fs;

use serde_json::Value;

use crate::process::eventually;
use crate::stack::{Stack, noise, program_with, run, seconds, text};

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

#[test]
fn the_audit_log_holds_across_a_new_key_of_the_auth_daemon() {
    let files = ["--audit-file", "audit.jsonl", "--audit-witness", "heads"];
    let mut stack = Stack::with(&files);
    let (log, heads, archive) =
        (stack.path().join("audit.jsonl"), stack.path().join("heads"), stack.path().join("old"));
    let [log, heads, archive] = [log, heads, archive].map(|path| path.display().to_string());
    stack.consumer("ann", "blue");
    // What is left after an archive begins with a signature of the old key.
    stack.operator.run(&["audit", "archive", &archive]).expect(0);
    stack.consumer("ben", "blue");
    let before = stack.operator.run(&["audit", "verify", "--json"]).expect(0).json();
    let rotated = stack.rotate_authd_with(&files);
    let after = stack.operator.run(&["audit", "verify", "--witness", &heads, "--json"]).expect(0).json();
    assert_eq!(before["first"], after["first"]);
    let number = |of: &Value, field: &str| of[field].as_u64().expect("a number");
    assert!(number(&after, "last") > number(&before, "last"), "{after}");
    assert!(number(&after, "signatures") > number(&before, "signatures"), "the old key's stand: {before} {after}");
    assert!(number(&after, "witnessed") > 0, "{after}");

    // A file says nothing of who followed whom: that has to be told.
    let old = text(&rotated, "took_over_from").to_owned();
    stack.operator.run(&["audit", "verify", "--file", &log, "--witness", &heads]).expect(9).saying("is not signed by");
    let told = ["audit", "verify", "--file", &log, "--witness", &heads, "--signed-by", &old];
    stack.operator.run(&told).expect(0);
    // And the daemon itself found nothing amiss when it started.
    let started = stack.operator.run(&["audit", "query", "--event", "started"]).expect(0);
    let started = String::from_utf8(started.stdout).expect("text");
    assert!(!started.contains("does not hold"), "{started}");

    let second = stack.path().join("new").display().to_string();
    stack.operator.run(&["audit", "archive", &second]).expect(0);
    stack.operator.run(&["audit", "verify"]).expect(0);
}

#[test]
fn a_provider_takes_a_new_key_and_its_leases_go_on() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let (lease, used) = (user.lease("1MiB", "10m"), user.lease("8MiB", "10m"));
    let contents = noise(1 << 20, 5);
    user.put(&lease, &contents).expect(0);
    let all = noise(6 << 20, 6);
    let (running, mut stdin) = user.half_way(&used, &all[..4 << 20]);

    let rotate = |stack: &Stack| {
        run(program_with("overbank-provider", &["rotate", "--json", "--state"]).arg(stack.path().join("provider")))
    };
    let rotated = rotate(&stack).expect(0).json();
    let (old, new) = (text(&rotated, "took_over_from").to_owned(), text(&rotated, "fingerprint").to_owned());
    assert_eq!(rotated["done"].as_bool(), Some(true));
    assert!(!stack.path().join("provider/provider.key.next").exists());
    let here = || stack.operator.run(&["provider", "list", "--json"]).expect(0).json()["providers"].clone();
    eventually("it is there with the new key", seconds(10.0), || {
        here().as_array().expect("a list").iter().any(|it| it["fingerprint"] == *new && it["connected"] == true)
    });
    let state =
        |who: &str| text(&stack.operator.run(&["trust", "show", who, "--json"]).expect(0).json(), "state").to_owned();
    assert_eq!((state(&old), state(&new)), ("revoked".to_owned(), "trusted".to_owned()));

    // Who was at it notices nothing, and who attaches anew is answered by the key that it knows.
    std::io::Write::write_all(&mut stdin, &all[4 << 20..]).expect("taken");
    drop(stdin);
    let end = running.end();
    assert_eq!(end.status, 0, "{}", end.stderr);
    assert_eq!(user.get(&used, 6 << 20), all);
    assert_eq!(user.get(&lease, 1 << 20), contents);
    user.run(&["lease", "renew", &lease, "--ttl", "20m"]).expect(0);
    assert_eq!(user.get(&lease, 1 << 20), contents, "by a renewed token");
    let fresh = user.lease("64KiB", "10m");
    user.put(&fresh, b"hello").expect(0);
    assert_eq!(user.get(&fresh, 5), b"hello");

    // Each lease's receipt is of the key that lent it.
    for (lease, signer, other) in [(&lease, &old, &new), (&fresh, &new, &old)] {
        let receipt = user.home.join("receipt").display().to_string();
        user.run(&["lease", "release", lease, "--receipt", &receipt]).expect(0);
        user.run(&["receipt", "verify", &receipt, "--provider", signer]).expect(0);
        user.run(&["receipt", "verify", &receipt, "--provider", other]).expect(9);
        fs::remove_file(&receipt).expect("it");
    }

    // One that is stopped takes its new key when it starts; what it lent is lost by the stop, as ever.
    stack.provider = None;
    let rotated = rotate(&stack).expect(0).json();
    assert_eq!((rotated["done"].as_bool(), text(&rotated, "took_over_from")), (Some(false), &*new));
    stack.provider = Some(stack.start_provider(&[]));
    let third = text(&rotated, "fingerprint").to_owned();
    assert_eq!((state(&new), state(&third)), ("revoked".to_owned(), "trusted".to_owned()));
    let lease = user.lease("64KiB", "10m");
    user.put(&lease, b"hello").expect(0);
}
