//! Connections that are opened and closed for a moment, here on the soft device and on the one that OVERBANK_TEST_DEVICE
//! names.

use std::process::{Command, Output};

fn connect(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-bench"));
    command.arg("connect").args(arguments).output().expect("the program runs")
}

#[test]
fn every_step_of_every_connection_is_timed() {
    let device = std::env::var("OVERBANK_TEST_DEVICE").unwrap_or_else(|_| "soft".to_owned());
    // More than a packet, on the last lane too.
    let arguments =
        ["--lanes", "4,1,4,16", "--size", "5000", "--rounds", "2", "--count", "5", "--warmup", "1", "--json"];
    let output = connect(&[&["--device", &device][..], &arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["results"].as_object().expect("results").len(), 15);
    for lanes in [1, 4, 16] {
        let figure = |step: &str, name: &str| report["results"][format!("{step}_x{lanes}")][name].as_u64();
        let cycle = figure("cycle", "max_ns").expect("a number");
        for step in ["create", "connect", "first_read", "destroy"] {
            assert_eq!(figure(step, "count"), Some(10), "{step}_x{lanes}");
            assert!((1..cycle).contains(&figure(step, "min_ns").expect("a number")), "{step}_x{lanes}");
        }
    }
    assert_eq!(report["settings"]["lanes"], serde_json::json!([1, 4, 16]));
    for step in ["create", "connect", "first_read", "destroy"] {
        assert!(report["ratios"][format!("{step}_x16 / {step}_x1")].as_f64() > Some(0.0), "{step}");
    }
}

#[test]
fn connections_are_due_at_a_rate() {
    let arguments =
        ["--device", "soft", "--lanes", "2", "--rounds", "1", "--count", "6", "--warmup", "0", "--rate", "50"];
    let output = connect(&[&arguments[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["results"]["cycle_x2"]["since_due"]["count"], 6);
    assert!(report["results"]["create_x2"]["since_due"].is_null());
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, said) in [
        (&["--lanes", "0"][..], "--lanes is 1 to 64"),
        (&["--lanes", "1,65"], "--lanes is 1 to 64"),
        (&["--size", "0"], "--size is 1 to"),
        (&["--size", "8388609"], "--size is 1 to"),
    ] {
        let output = connect(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
