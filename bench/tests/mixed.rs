//! Sealed reads and writes mixed, by real processes: what was asked for is what is done, and the seed says in which order.

use std::path::Path;
use std::process::{Command, Output};

/// What the command says; None where the programs that it starts are not built.
fn mixed(arguments: &[&str]) -> Option<Output> {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    for other in ["overbank", "overbank-authd", "overbank-provider"] {
        if !program.with_file_name(other).exists() {
            println!("SKIPPED mixed: {other} is not built (cargo build --workspace)");
            return None;
        }
    }
    let own = ["mixed", "--self-contained", "--device", "soft", "--rounds", "2", "--json"];
    Some(Command::new(program).args(own).args(arguments).output().expect("the program runs"))
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const SMALL: [&str; 6] = ["--count", "200", "--warmup", "20", "--span", "256KiB"];

#[test]
fn reads_and_writes_are_told_apart_and_the_seed_says_which_come() {
    let sequence = |arguments: &[&str]| {
        let report = report(&mixed(&[&SMALL[..], arguments].concat())?);
        let count = |name: &str| report["results"][name]["count"].as_u64().expect("a number");
        assert_eq!(count("mixed"), 400);
        assert_eq!(count("mixed_read") + count("mixed_write"), 400);
        assert!((100..300).contains(&count("mixed_read")), "{}", count("mixed_read"));
        assert!(report["ratios"]["mixed_write / mixed_read"].as_f64() > Some(0.0));
        let settings = &report["settings"];
        assert_eq!((&settings["places"], &settings["reads_percent"]), (&64.into(), &50.into()));
        Some((settings["sequence_sha256"].as_str().expect("text").to_owned(), count("mixed_write")))
    };
    let Some(first) = sequence(&["--reads", "50", "--seed", "7"]) else { return };
    assert_eq!(sequence(&["--reads", "50", "--seed", "7"]).as_ref(), Some(&first));
    assert_ne!(sequence(&["--reads", "50", "--seed", "8"]).map(|other| other.0), Some(first.0.clone()));
    let uniform = sequence(&["--reads", "50", "--seed", "7", "--pattern", "uniform"]);
    assert_ne!(uniform.map(|other| other.0), Some(first.0));
}

#[test]
fn operations_are_due_at_a_rate_of_both_kinds() {
    // Larger than a block, and not whole ones.
    let arguments = ["--rate", "1000", "--reads", "50", "--size", "10000"];
    let Some(output) = mixed(&[&SMALL[..], &arguments].concat()) else { return };
    let report = report(&output);
    for name in ["mixed_read", "mixed_write", "mixed"] {
        let figures = &report["results"][name];
        assert!(figures["since_due"]["count"].as_u64() > Some(0), "{name}");
        assert_eq!(figures["since_due"]["count"], figures["count"], "{name}");
        assert!(figures["since_due"]["min_ns"].as_u64() >= figures["min_ns"].as_u64(), "{name}");
    }
}

#[test]
fn reads_alone_and_writes_alone_have_no_figures_of_the_other() {
    for (reads, there, not_there) in [("100", "mixed_read", "mixed_write"), ("0", "mixed_write", "mixed_read")] {
        let Some(output) = mixed(&[&SMALL[..], &["--reads", reads]].concat()) else { return };
        let report = report(&output);
        assert_eq!(report["results"][there]["count"], 400);
        assert!(report["results"][not_there].is_null());
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, said) in [
        (&["--reads", "101"][..], "101"),
        (&["--size", "15"], "--size is 16 to"),
        (&["--size", "1048577"], "--size is 16 to"),
        (&["--span", "4095B"], "--span is at least --size"),
        (&["--span", "2TiB"], "--span is at least --size"),
        (&["--theta", "11"], "--theta is 0 to 10"),
        (&["--theta", "nan"], "--theta is 0 to 10"),
        (&["--pattern", "all"], "invalid value 'all'"),
        (&["--home", "/nowhere"], "cannot be used with"),
    ] {
        let Some(output) = mixed(arguments) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
