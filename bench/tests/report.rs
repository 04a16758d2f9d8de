//! Kept reports side by side: of two real runs, of two programs that take turns, and of what is no report.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_overbank-bench");

fn bench(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("the program runs")
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn two_runs_stand_side_by_side() {
    let dir = tempfile::tempdir().expect("a directory");
    let [one, other, file] = ["one", "other", "page.md"].map(|name| dir.path().join(name));
    for out in [&one, &other] {
        let raw = ["raw", "--device", "soft", "--op", "read", "--size", "64", "--with-floor"];
        done(&bench(&[&raw[..], &["--rounds", "2", "--count", "50", "--warmup", "5", "--out", text(out)]].concat()));
    }
    let said = done(&bench(&["report", text(&one), text(&other), "--json", "--markdown", text(&file)]));
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let raw = &report["commands"][0];
    assert_eq!((&raw["command"], &raw["interleaved"]), (&"raw".into(), &false.into()));
    let figures = raw["figures"].as_array().expect("figures");
    let names: Vec<&Value> = figures.iter().map(|line| &line["subject"]).collect();
    assert_eq!(names, ["read_64", "udp_read_64"]);
    for line in figures {
        let verdict = &line["beside_first"][0];
        let number = |name: &str| verdict[name].as_f64().expect("a number");
        assert!(number("ratio") > 0.0 && verdict["interval"]["low"].as_f64() <= Some(number("ratio")), "{line}");
        assert_eq!(verdict["few_rounds"], true);
    }
    assert!(raw["ratios"][0]["intervals"][0]["paired"] == true, "{}", raw["ratios"]);
    let warnings = raw["warnings"].to_string();
    assert!(
        warnings.contains("A: this is a debug build") && warnings.contains("B: this is a debug build"),
        "{warnings}"
    );
    assert!(report["notes"].to_string().contains("NO CLAIM"), "{}", report["notes"]);
    let page = fs::read_to_string(&file).expect("written");
    assert!(page.contains("## raw") && page.contains("| read_64 | "), "{page}");
    let same = done(&bench(&["report", text(&one), text(&other), "--json"]));
    assert_eq!(said, same, "the same each time");
}

#[test]
fn two_programs_take_turns() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let raw = ["raw", "--device", "soft", "--op", "read", "--size", "64", "--count", "50", "--warmup", "5"];
    let interleave = ["interleave", "--a", PROGRAM, "--b", PROGRAM, "--rounds", "2", "--out", text(&out), "--"];
    let output = bench(&[&interleave[..], &raw].concat());
    let said = done(&output);
    assert!(said.contains("took turns in one sitting") && !said.contains("NO CLAIM"), "{said}");
    let turns = String::from_utf8_lossy(&output.stderr);
    let turns: Vec<&str> = turns.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(turns, ["a", "b", "a", "b"]);
    for side in ["a", "b"] {
        let kept = fs::read(out.join(side).join("raw.json")).expect("kept");
        let report: Value = serde_json::from_slice(&kept).expect("JSON");
        assert_eq!((&report["rounds"], &report["results"]["read_64"]["count"]), (&2.into(), &100.into()));
        assert_eq!(report["results"]["read_64"]["p50_ns_by_round"].as_array().expect("rounds").len(), 2);
        assert_eq!(report["settings"]["interleaved"]["side"], side);
        assert!(out.join(side).join("rounds/2/raw.hlog").exists(), "each round's raw data");
    }
    // What is there is not written over, and what is told twice or fails says so.
    assert!(refused(&bench(&[&interleave[..], &raw].concat())).contains("is not empty"));
    let elsewhere = dir.path().join("elsewhere");
    let begin = ["interleave", "--a", PROGRAM, "--b", PROGRAM, "--rounds", "1", "--out", text(&elsewhere), "--"];
    assert!(refused(&bench(&[&begin[..], &["raw", "--rounds", "2"]].concat())).contains("--rounds stands before --"));
    assert!(refused(&bench(&[&begin[..], &["no-command"]].concat())).contains("a command of overbank-bench"));
    let failed = bench(&[&begin[..], &["raw", "--device", "no_such_device"]].concat());
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(1) && stderr.contains("no_such_device"), "{stderr}");
}

#[test]
fn what_is_no_report_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    assert!(refused(&bench(&["report", text(&at("nowhere"))])).contains("there is no directory"));
    assert!(refused(&bench(&["report", text(dir.path())])).contains("holds no report"));
    assert_eq!(bench(&["report"]).status.code(), Some(2));
    fs::write(at("raw.json"), r#"{ "command": "raw", "results": { "read_64": "#).expect("written");
    fs::write(at("latency.json"), r#"{ "command": "seal", "results": {} }"#).expect("written");
    fs::write(at("seal.json"), r#"{ "format": 2, "command": "seal", "results": {} }"#).expect("written");
    let said = refused(&bench(&["report", text(dir.path())]));
    for part in ["raw.json is no report: it is cut off", "a report of 'seal', not of 'latency'", "reads format 1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}
