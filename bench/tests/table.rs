//! The table of what was kept.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overbank-bench")).args(arguments).output().expect("the program runs")
}

#[test]
fn what_was_kept_makes_a_table() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().to_str().expect("UTF-8");
    let output = bench(&["table", out]);
    assert_eq!(output.status.code(), Some(2), "an empty directory holds no report");

    let short = ["--device", "soft", "--rounds", "1", "--out", out];
    for arguments in [
        &["raw", "--op", "read", "--with-floor", "--count", "50", "--warmup", "5"][..],
        &["throughput", "--size", "4096", "--loss", "1", "--count", "500", "--warmup-seconds", "0.01"],
    ] {
        let output = bench(&[arguments, &short].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = bench(&["table", out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = |begin: &str| {
        text.lines()
            .find(|line| line.starts_with(begin))
            .unwrap_or_else(|| panic!("no '{begin}' in\n{text}"))
            .to_owned()
    };
    for begin in [
        "| READ of 64 B, one outstanding, beside UDP",
        "| READ of 4096 B, one outstanding, beside UDP",
        "| READs of 4 KiB, deep",
        "| READ of 4096 B, deep, with 1 % of all",
        "| read 4096 x32, lost 1% |",
    ] {
        assert!(!line(begin).contains("not measured"), "{}", line(begin));
    }
    assert!(line("| READ of 64 B, one outstanding, beside UCX").contains("not measured"));

    let list = r#"{ "results": [{ "system": "overbank-raw", "subject": "overbank_raw_read_64" }],
        "subjects": { "overbank_raw_read_64": { "p50_ns": 5000, "p99_ns": 6000 }, "ucx_tcp_read_64": { "p50_ns": 10000 } } }"#;
    std::fs::write(dir.path().join("compare.json"), list).expect("written");
    let text = String::from_utf8(bench(&["table", out]).stdout).expect("UTF-8");
    assert!(text.contains("beside UCX, tcp | 5.00 / 10.00 µs = 0.50 | below 1 | holds |"), "{text}");

    std::fs::write(dir.path().join("compare.json"), "{").expect("written");
    let output = bench(&["table", out]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("compare.json is no report"));
}
