//! Plain operations for a moment, here on the soft device and on the one that OVERBANK_TEST_DEVICE names; and what is
//! refused before anything runs.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overbank-bench")).args(arguments).output().expect("the program runs")
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const SHORT: [&str; 7] = ["--rounds", "2", "--count", "20", "--warmup", "5", "--json"];

/// A real device, where the tests run with one.
fn real_device() -> Option<String> {
    std::env::var("OVERBANK_TEST_DEVICE").ok().filter(|device| device != "soft")
}

#[test]
fn every_operation_of_every_size_is_timed() {
    let device = real_device().unwrap_or_else(|| "soft".to_owned());
    // One byte, one packet, and more packets than one.
    let mut arguments = vec!["raw", "--device", &device, "--size", "1,4096,20000"];
    arguments.extend(SHORT);
    let report = report(&bench(&arguments));
    for name in ["read", "write", "ping_pong"] {
        for size in [1, 4096, 20_000] {
            let figures = &report["results"][format!("{name}_{size}")];
            assert_eq!(figures["count"], 40, "{name}_{size}");
            let at = |figure: &str| figures[figure].as_u64().expect("a number");
            assert!(0 < at("min_ns") && at("min_ns") <= at("p50_ns") && at("min_ns") <= at("mean_ns"), "{name}_{size}");
        }
    }
    assert_eq!(report["settings"]["device"], device);
    assert_eq!(report["settings"]["peer_device"], device);
    assert!(report["settings"]["mtu"].as_u64().is_some_and(|mtu| [1024, 2048, 4096, 8192].contains(&mtu)));
    assert!(report["settings"]["gid"].as_str().expect("an address").parse::<std::net::IpAddr>().is_ok());
    assert_eq!(report["arguments"][0], "raw");
    assert!(!report["machine"]["commit"].as_str().expect("a commit").is_empty());
}

#[test]
fn what_is_asked_for_is_what_is_timed() {
    let mut arguments = vec!["raw", "--device", "soft", "--size", "64", "--op", "write,write"];
    arguments.extend(SHORT);
    let report = report(&bench(&arguments));
    assert_eq!(report["results"].as_object().expect("results").keys().collect::<Vec<_>>(), ["write_64"]);
}

#[test]
fn the_floor_takes_turns_with_what_fits_a_packet() {
    let mut arguments = vec!["raw", "--device", "soft", "--size", "1,4096", "--with-floor"];
    arguments.extend(SHORT);
    let report = report(&bench(&arguments));
    for name in ["read_1", "read_4096", "write_1", "write_4096"] {
        assert_eq!(report["results"][format!("udp_{name}")]["count"], 40, "{name}");
        assert!(report["ratios"][format!("{name} / udp_{name}")].as_f64().expect("a ratio") > 0.0, "{name}");
    }
    assert!(report["results"]["ping_pong_1"].is_object() && report["results"]["udp_ping_pong_1"].is_null());
}

#[test]
fn operations_are_due_at_a_rate() {
    let mut arguments = vec!["raw", "--device", "soft", "--size", "64", "--op", "read,write", "--rate", "2000"];
    arguments.extend(SHORT);
    let report = report(&bench(&arguments));
    for name in ["read_64", "write_64"] {
        assert_eq!(report["results"][name]["since_due"]["count"], 40, "{name}");
    }
    assert_eq!(report["per_second"], 2000.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, said) in [
        (
            &["raw", "--device", "soft", "--size", "64,8193", "--with-floor"][..],
            "8193 bytes are more than a packet's 8192",
        ),
        (&["raw", "--size", "0"], "--size is 1 to"),
        (&["raw", "--size", "64,8388609"], "--size is 1 to"),
        (&["raw", "--device", "soft", "--count", "0"], "--count 1 to"),
        (&["raw", "--device", "soft", "--count", "10000001"], "--count 1 to"),
        (&["raw", "--op", "send"], "invalid value 'send'"),
        (&["raw", "--device", "soft", "--rate", "0"], "--rate is 0.01 to"),
        (
            &["raw", "--device", "soft", "--size", "64", "--count", "1", "--rate", "1000"],
            "--rate cannot be kept by ping_pong_64:",
        ),
        (&["floor", "--count", "1", "--rate", "1000"], "--rate cannot be kept by memcpy_hot, memcpy_random:"),
        (&["seal", "--size", "512", "--rate", "1000"], "--rate cannot be kept by seal_512, open_512,"),
        (&["compare", "--device", "soft", "--peers", "perftest"], "perftest needs a real RDMA device"),
        (&["compare", "--peers", "nobody"], "invalid value 'nobody'"),
    ] {
        let output = bench(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
    let output = bench(&["raw", "--device", "no_such_device"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no_such_device"), "{stderr}");
}

#[test]
fn perftest_takes_its_turns_on_the_same_device() {
    let Some(device) = real_device() else {
        println!("SKIPPED compare: perftest needs a real device (OVERBANK_TEST_DEVICE)");
        return;
    };
    if Command::new("ib_read_lat").arg("--version").output().is_err() {
        println!("SKIPPED compare: perftest is not installed");
        return;
    }
    let mut arguments = vec!["compare", "--device", &device, "--ours", "raw", "--peers", "perftest", "--size", "64"];
    arguments.extend(["--depth", "4", "--seconds", "0.1", "--warmup-seconds", "0.01"]);
    arguments.extend(SHORT);
    let report = report(&bench(&arguments));
    for name in ["read_64", "ping_pong_64"] {
        for program in ["overbank_raw", "perftest"] {
            let figures = &report["subjects"][format!("{program}_{name}")];
            assert_eq!(figures["count"], 40, "{program}_{name}");
            assert!(figures["p50_ns"].as_u64().expect("a number") > 0, "{program}_{name}");
        }
        let ratio = format!("overbank_raw_{name} / perftest_{name}");
        assert!(report["ratios"][&ratio].is_f64(), "{ratio}");
    }
    for name in ["read_64_x4", "write_64_x4"] {
        assert!(report["subjects"][format!("perftest_{name}")]["per_second"].as_u64().expect("a number") > 0, "{name}");
        let ratio = format!("overbank_raw_{name} / perftest_{name}");
        assert!(report["ratios"][&ratio].is_f64(), "{ratio}");
    }
    let commands = report["settings"]["peer_commands"].as_array().expect("commands").clone();
    assert!(commands[0].as_str().expect("a command").starts_with(&format!("ib_read_lat -d {device} ")), "{commands:?}");
}
