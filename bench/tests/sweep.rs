//! Sizes, depths and lanes, for a moment: that every figure and every drawing is there, not which.

use std::path::Path;
use std::process::{Command, Output};

fn sweep(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-bench"));
    command.args(["sweep", "--device", "soft"]).args(arguments);
    command.output().expect("the program runs")
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const SHORT: [&str; 11] =
    ["--rounds", "2", "--count", "20", "--warmup", "2", "--seconds", "0.02", "--warmup-seconds", "0.01", "--json"];

#[test]
fn plain_operations_need_no_other_program() {
    let arguments = ["--plain", "--op", "read", "--size", "64,20000", "--depth", "1,4", "--lanes", "1,2"];
    let report = report(&sweep(&[&arguments[..], &SHORT].concat()));
    let results = report["results"].as_object().expect("results");
    let names: Vec<&String> = results.keys().collect();
    assert_eq!(
        names,
        [
            "plain_read_20000",
            "plain_read_20000_x1x2",
            "plain_read_20000_x4",
            "plain_read_20000_x4x2",
            "plain_read_64",
            "plain_read_64_x1x2",
            "plain_read_64_x4",
            "plain_read_64_x4x2",
        ]
    );
    for (name, figures) in results {
        let single = ["plain_read_20000", "plain_read_64"].contains(&&**name);
        if single {
            assert_eq!(figures["count"], 40, "{name}");
        } else {
            assert!(figures["per_second"].as_u64() > Some(0), "{name}");
        }
    }
    let settings = &report["settings"];
    assert_eq!((&settings["device"], &settings["mtu"]), (&"soft".into(), &8192.into()));
    assert!(settings["sealing_cost"].is_null() && report["ratios"].as_object().is_some_and(|ratios| ratios.is_empty()));
}

#[test]
fn what_sealing_costs_is_drawn_by_size() {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    for other in ["overbank", "overbank-authd", "overbank-provider"] {
        if !program.with_file_name(other).exists() {
            println!("SKIPPED sweep: {other} is not built (cargo build --workspace)");
            return;
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().to_str().expect("UTF-8");
    let arguments = ["--size", "64,4096,100000", "--depth", "1,4", "--most-bytes", "1MiB", "--out", out];
    let report = report(&sweep(&[&arguments[..], &SHORT].concat()));
    for op in ["read", "write"] {
        for (size, count) in [(64, 40), (4096, 40), (100_000, 20)] {
            for how in ["plain", "sealed"] {
                let name = format!("{how}_{op}_{size}");
                assert_eq!(report["results"][&name]["count"], count, "{name}");
            }
            let ratio = format!("sealed_{op}_{size} / plain_{op}_{size}");
            assert!(report["ratios"][&ratio].as_f64().expect("a ratio") > 0.0, "{ratio}");
            let each = |how: &str| report["results"][format!("{how}_{op}_{size}_x4")]["per_second"].as_u64();
            // Many writes at once are not sealed.
            assert!(each("plain") > Some(0) && each("sealed").is_some() == (op == "read"), "{op} {size}");
        }
        let costs = report["settings"]["sealing_cost"][op].as_array().expect("costs");
        assert_eq!(costs.iter().map(|cost| &cost["size"]).collect::<Vec<_>>(), [64, 4096, 100_000]);
    }
    let svg = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("drawn");
    let percentiles = svg("sweep-percentiles.svg");
    assert!(percentiles.contains("one at a time, 4096 bytes"));
    assert!(percentiles.contains("sealed_read_4096") && !percentiles.contains("sealed_read_64"));
    for (name, line) in [
        ("sweep-sizes.svg", "sealed_write"),
        ("sweep-rates.svg", "plain_read_x4"),
        ("sweep-rates.svg", "sealed_read_x4"),
        ("sweep-rates.svg", "sealed_read, one at a time"),
        ("sweep-cost.svg", "sealed read"),
        ("sweep-cost.svg", "in percent of"),
    ] {
        assert!(svg(name).contains(line), "{name}: {line}");
    }
}

#[test]
fn what_cannot_be_swept_is_refused() {
    for (arguments, said) in [
        (&["--size", "0"][..], "--size is 1 to"),
        (&["--lanes", "65"], "65 is not in 1..=64"),
        (&["--percentiles-of", "5"], "none of --size"),
        (&["--size", "8388608", "--depth", "64,100"], "bytes outstanding"),
    ] {
        let output = sweep(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
