//! `overbank audit`: what an operator reads of the log, checks and puts away.

use crate::stack::{Stack, text};

/// The events of what a command printed, one JSON object a line.
fn events(stdout: &[u8]) -> Vec<String> {
    let lines = String::from_utf8_lossy(stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let lines: Vec<serde_json::Value> = lines;
    lines.iter().map(|line| text(line, "event").to_owned()).collect()
}

#[test]
fn an_operator_reads_checks_and_archives_the_log() {
    let stack = Stack::with(&["--audit-file", "export.jsonl", "--audit-witness", "heads"]);
    let user = stack.consumer("ann", "blue");
    let fingerprint = text(&user.run(&["id", "--json"]).expect(0).json(), "fingerprint").to_owned();
    let lease = user.lease("1MiB", "10m");
    user.run(&["lease", "release", &lease]).expect(0);
    stack.wait_ended(&user, &lease);
    let operator = &stack.operator;

    let all = events(&operator.run(&["audit", "tail", "-n", "1000", "--json"]).expect(0).stdout);
    assert_eq!(all[0], "started");
    let last = events(&operator.run(&["audit", "tail", "-n", "2", "--json"]).expect(0).stdout);
    assert_eq!(last, all[all.len() - 2..]);
    assert_eq!(events(&operator.run(&["audit", "tail", "-n", "0", "--json"]).expect(0).stdout), [""; 0]);
    let words = operator.run(&["audit", "tail"]).expect(0).stdout;
    assert!(String::from_utf8_lossy(&words).contains("granted  "), "{}", String::from_utf8_lossy(&words));
    user.run(&["audit", "tail"]).expect(4);

    let query = |more: &[&str]| {
        let args: Vec<&str> = ["audit", "query", "--json"].iter().chain(more).copied().collect();
        events(&operator.run(&args).expect(0).stdout)
    };
    assert_eq!(query(&["--lease", &lease]), ["granted", "ending", "ended"]);
    assert_eq!(query(&["--event", "granted", "--since", "1h"]), ["granted"]);
    assert_eq!(query(&["--who", &fingerprint, "--event", "joined"]), ["joined"]);
    let export = stack.path().join("export.jsonl").to_string_lossy().into_owned();
    let heads = stack.path().join("heads").to_string_lossy().into_owned();
    assert_eq!(query(&["--lease", &lease, "--file", &export]), ["granted", "ending", "ended"]);

    let verified = operator.run(&["audit", "verify", "--witness", &heads, "--json"]).expect(0).json();
    assert_eq!(verified["first"], 1);
    assert!(
        verified["last"].as_u64() >= Some(all.len() as u64) && verified["witnessed"].as_u64() > Some(0),
        "{verified}"
    );

    // Put away: the log goes on after what is in the file, and both hold.
    let archive = stack.path().join("archive.jsonl").to_string_lossy().into_owned();
    let archived = operator.run(&["audit", "archive", &archive, "--json"]).expect(0).json();
    assert_eq!(query(&["--event", "granted"]), [""; 0]);
    assert_eq!(query(&["--event", "granted", "--file", &archive]), ["granted"]);
    let rest = operator.run(&["audit", "verify", "--witness", &heads, "--json"]).expect(0).json();
    assert_eq!(rest["first"].as_u64(), archived["last"].as_u64().map(|last| last + 1));
    operator.run(&["audit", "verify", "--file", &archive]).expect(0);
    assert_eq!(events(&operator.run(&["audit", "tail", "-n", "1000", "--json"]).expect(0).stdout)[0], "archived");
}

#[test]
fn nothing_is_forgotten_without_a_file_of_the_auth_daemons_own() {
    let stack = Stack::start();
    let archive = stack.path().join("archive.jsonl").to_string_lossy().into_owned();
    stack.operator.run(&["audit", "archive", &archive]).expect(2).saying("--audit-file");
    let verified = stack.operator.run(&["audit", "verify", "--json"]).expect(0).json();
    assert_eq!(verified["first"], 1);
}
