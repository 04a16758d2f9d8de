//! The life of a lease, step by step, by real processes: every step is timed, at any pace, and every receipt comes.

use std::path::Path;
use std::process::{Command, Output};

/// What the command says; None where the programs that it starts are not built.
fn grant(arguments: &[&str]) -> Option<Output> {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    for other in ["overbank", "overbank-authd", "overbank-provider"] {
        if !program.with_file_name(other).exists() {
            println!("SKIPPED grant: {other} is not built (cargo build --workspace)");
            return None;
        }
    }
    Some(Command::new(program).arg("grant").args(arguments).output().expect("the program runs"))
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const STEPS: [&str; 6] = ["handshake", "allocate", "attach", "renew", "release", "receipt"];
const OWN: [&str; 5] = ["--self-contained", "--device", "soft", "--warmup", "1"];

#[test]
fn every_step_of_every_life_is_timed() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().to_str().expect("text");
    let arguments = ["--rounds", "2", "--count", "5", "--lanes", "3", "--size", "64KiB", "--json", "--out", out];
    let Some(output) = grant(&[&OWN[..], &arguments].concat()) else { return };
    let report = report(&output);
    let result = |name: &str, figure: &str| report["results"][name][figure].as_u64().expect("a number");
    for step in STEPS {
        assert_eq!(result(step, "count"), 10, "{step}");
        assert!(result(step, "min_ns") > 0 && result(step, "max_ns") <= result("life", "max_ns"), "{step}");
    }
    // The order is given once for both.
    assert!(result("release", "p50_ns") <= result("receipt", "p50_ns"));
    let steps = ["handshake", "allocate", "attach", "renew", "receipt"];
    let least: u64 = steps.iter().map(|step| result(step, "min_ns")).sum();
    assert!(result("life", "max_ns") >= least, "the whole is less than its parts");
    assert_eq!((&report["settings"]["lanes"], &report["settings"]["size"]), (&3.into(), &65536.into()));
    assert!(report["results"]["life"]["since_due"].is_null());
    let in_memory = std::path::Path::new("/dev/shm").is_dir();
    assert_eq!(report["settings"]["lease_files_in_memory"], in_memory);
    assert!(dir.path().join("grant.hlog").exists() && dir.path().join("grant-receipt.hgrm").exists());
}

#[test]
fn lives_are_due_at_a_rate() {
    let arguments = ["--rounds", "1", "--count", "10", "--rate", "20", "--size", "4096", "--json"];
    let start = std::time::Instant::now();
    let Some(output) = grant(&[&OWN[..], &arguments].concat()) else { return };
    let report = report(&output);
    // The last of eleven is due after half a second, not before.
    assert!(start.elapsed().as_millis() >= 500);
    let life = &report["results"]["life"];
    assert_eq!((&life["count"], &life["since_due"]["count"]), (&10.into(), &10.into()));
    assert!(life["since_due"]["min_ns"].as_u64() >= life["min_ns"].as_u64(), "{life}");
    assert!(report["results"]["attach"]["since_due"].is_null());
    assert_eq!(report["per_second"], 20.0);
}

#[test]
fn the_auth_daemon_can_be_left_to_hold_back() {
    // Six requests and a handshake a life, and four a second: one life takes a second and more.
    let arguments = ["--rounds", "1", "--count", "1", "--requests-per-second", "4", "--json"];
    let Some(output) = grant(&[&OWN[..], &arguments].concat()) else { return };
    let report = report(&output);
    assert_eq!(report["settings"]["requests_per_second"], 4);
    assert!(report["results"]["life"]["p50_ns"].as_u64() > Some(500_000_000), "{report}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, said) in [
        (&["--self-contained", "--lanes", "0"][..], "--lanes 1 to 16"),
        (&["--self-contained", "--lanes", "17"], "--lanes 1 to 16"),
        (&["--self-contained", "--size", "0"], "--size is 1B"),
        (&["--self-contained", "--rate", "0"], "--rate is 0.01 to"),
        (&["--self-contained", "--home", "/nowhere"], "cannot be used with"),
        (&["--requests-per-second", "9"], "--self-contained"),
    ] {
        let Some(output) = grant(arguments) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
