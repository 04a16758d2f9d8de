//! Other libraries' ends beside ours, for a moment: that they take their turns, that wrong bytes and lost ends are seen,
//! and that what is missing is named.

use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

fn compare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-bench"));
    command.args(["compare", "--device", "soft"]).args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What polls on both processors has them to itself.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHORT: [&str; 6] = ["--rounds", "1", "--count", "50", "--warmup", "10"];

#[test]
fn libraries_over_tcp_take_their_turns() {
    let _alone = alone();
    let mut arguments = vec!["--peers", "ucx-tcp,libfabric-tcp", "--size", "1,20000", "--depth", "16", "--json"];
    arguments.extend(["--seconds", "0.05", "--warmup-seconds", "0.01"]);
    arguments.extend(SHORT);
    let output = compare(&arguments).output().expect("the program runs");
    if said(&output).contains("nothing to compare with") {
        println!("SKIPPED compare with libraries: {}", said(&output).trim());
        return;
    }
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let missing = report["settings"]["missing"].to_string();
    for library in ["ucx_tcp", "libfabric_tcp_rxm", "libfabric_tcp"] {
        if missing.contains(&format!("{library}: ")) {
            println!("SKIPPED compare with {library}: {missing}");
            continue;
        }
        assert!(!report["settings"][library].as_str().expect("a version").is_empty());
        for operation in ["read_1", "read_20000", "write_1", "write_20000"] {
            assert_eq!(report["results"][format!("{library}_{operation}")]["count"], 50, "{library} {operation}");
            for suffix in ["", "_x16"] {
                let ratio = format!("overbank_{operation}{suffix} / {library}_{operation}{suffix}");
                assert!(report["ratios"][&ratio].as_f64().expect("a ratio") > 0.0, "{ratio}");
            }
            let rate = &report["results"][format!("{library}_{operation}_x16")];
            assert_eq!(rate["rounds"].as_array().expect("rounds").len(), 1, "{library} {operation}");
        }
        let commands = report["settings"]["peer_commands"].to_string();
        assert!(commands.contains(&format!("{library} ")), "{commands}");
    }
    assert!(report["results"].get("overbank_ping_pong_1").is_none(), "nobody else has a ping-pong");
}

#[test]
fn an_answering_library_that_stops_ends_the_comparison() {
    let _alone = alone();
    for (peer, header) in [("ucx-tcp", "ucp/api/ucp.h"), ("libfabric-tcp", "rdma/fabric.h")] {
        let look = Command::new("cc").args(["-E", "-include", header, "-x", "c", "/dev/null"]).output();
        if !look.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED stopped end of {peer}: there is no {header}");
            continue;
        }
        let arguments = ["--peers", peer, "--size", "64", "--op", "read", "--rounds", "1"];
        let mut bench = compare(&arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
        let server = wait_for(Duration::from_secs(60), || server_of(bench.id()));
        // Worse than dead: its connection stays.
        assert!(Command::new("kill").args(["-STOP", &server]).status().expect("kill runs").success());
        let status = wait_for(Duration::from_secs(60), || bench.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(1), "{peer}");
        return;
    }
}

/// The process beneath this one that answers for a library.
fn server_of(parent: u32) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let answers = |pid: &&str| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split('\0').nth(3) == Some("server")
    };
    children.split_whitespace().find(answers).map(str::to_owned)
}

fn wait_for<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "nothing within {time:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_missing_is_named() {
    let output = compare(&["--peers", "ucx-tcp,libfabric-tcp"]).env("CC", "/no/such/compiler").output().expect("runs");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for name in ["ucx_tcp: ", "libfabric_tcp_rxm: ", "libfabric_tcp: ", "/no/such/compiler"] {
        assert!(said(&output).contains(name), "{}", said(&output));
    }
}

#[test]
fn a_compiler_that_fails_is_no_missing_library() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let compiler = dir.path().join("cc");
    std::fs::write(&compiler, "#!/bin/sh\n[ \"$1\" = -E ] || { echo broken >&2; exit 1; }\n").expect("written");
    std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o755)).expect("may be started");
    let output = compare(&["--peers", "ucx-tcp"]).env("CC", &compiler).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("did not compile ucx.c: broken"), "{}", said(&output));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    for (arguments, message) in [
        (&["--peers", "ucx-tcp", "--size", "0"][..], "--size is 1 to"),
        (&["--peers", "ucx-tcp", "--depth", "0"], "--depth is 1 to"),
        (&["--peers", "ucx-tcp", "--depth", "1", "--seconds", "0"], "--seconds 0.001 to"),
        (&["--peers", "ucx"], "invalid value 'ucx'"),
    ] {
        let output = compare(arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(message), "{arguments:?}: {}", said(&output));
    }
}
