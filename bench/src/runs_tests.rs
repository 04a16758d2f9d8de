use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;

const COMMANDS: [&str; 3] = ["latency", "raw", "throughput"];

fn commands() -> Vec<String> {
    COMMANDS.map(str::to_owned).to_vec()
}

/// Directories with reports in them.
struct Planted(TempDir);

impl Planted {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, dir: &str, command: &str, report: &Value) -> PathBuf {
        let dir = self.dir(dir);
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join(format!("{command}.json")), report.to_string()).expect("written");
        dir
    }

    fn beside(&self, dirs: &[&str]) -> Beside {
        Beside::of(&read(&dirs.iter().map(|dir| self.dir(dir)).collect::<Vec<_>>(), &commands()).expect("readable"))
    }
}

fn raw(read: &[u64], write: &[u64]) -> Value {
    json!({
        "format": 1, "command": "raw", "arguments": ["raw", "--device", "soft", "--out", "/somewhere", "--json"],
        "machine": { "kernel": "6", "commit": "c", "load": "1", "load_before": "0.1", "mitigations": { "l1tf": "none" } },
        "cpus": { "asker": 0, "answerer": 1 },
        "rounds": read.len(), "settings": { "device": "soft" }, "warnings": [],
        "results": { "read_64": { "p50_ns_by_round": read, "p50_ns": 1 }, "write_64": { "p50_ns_by_round": write } },
        "ratios": { "read_64 / write_64": 1.5, "memory": 2.0 },
    })
}

const ONE: [u64; 7] = [5000, 5010, 4990, 5020, 4980, 5005, 5015];
const NOISY: [u64; 7] = [5100, 5010, 4700, 5400, 4900, 4990, 5300];

fn slower() -> Vec<u64> {
    ONE.iter().map(|round| round * 12 / 10).collect()
}

#[test]
fn one_difference_is_beyond_the_noise_and_one_within() {
    let planted = Planted::new();
    planted.put("before", "raw", &raw(&ONE, &ONE));
    planted.put("after", "raw", &raw(&slower(), &NOISY));
    let beside = planted.beside(&["before", "after"]);
    let figures = &beside.commands[0].figures;
    let [read, write] = [0, 1].map(|at| figures[at].beside_first[0].as_ref().expect("a verdict"));
    assert!(read.beyond_the_noise && (read.quotient.ratio - 1.2).abs() < 0.01, "{:?}", read.quotient);
    assert!(!write.beyond_the_noise && !write.few_rounds, "{:?}", write.quotient);
    let text = beside.text(Form::People);
    let line = |begin: &str| text.lines().find(|line| line.starts_with(begin)).expect("a line").to_owned();
    for part in ["5.00 µs", "6.01 µs", "1.200", "longer"] {
        assert!(line("read_64 ").contains(part), "{part}: {}", line("read_64 "));
    }
    assert!(line("write_64").ends_with("within the noise"), "{}", line("write_64"));
    assert!(text.contains("NO CLAIM") && text.contains("(no claim)"), "{text}");
    // The other way round it is shorter.
    let text = planted.beside(&["after", "before"]).text(Form::People);
    assert!(text.lines().any(|line| line.starts_with("read_64 ") && line.ends_with("shorter")), "{text}");
}

#[test]
fn more_operations_a_second_are_more() {
    let planted = Planted::new();
    let rate = |rounds: &[u64]| {
        json!({ "command": "throughput", "rounds": rounds.len(),
                "results": { "read_64_x32": { "per_second": 1, "per_second_by_round": rounds } } })
    };
    planted.put("a", "throughput", &rate(&ONE));
    planted.put("b", "throughput", &rate(&slower()));
    for (dirs, word) in [(["a", "b"], "more"), (["b", "a"], "fewer")] {
        let text = planted.beside(&dirs).text(Form::Markdown);
        let line = text.lines().find(|line| line.starts_with("| read_64_x32 |")).expect("a line");
        assert!(line.ends_with(&format!("| {word} |")) && line.contains(" /s |"), "{line}");
    }
}

#[test]
fn ratios_of_one_run_have_intervals_of_their_own() {
    let planted = Planted::new();
    planted.put("a", "raw", &raw(&slower(), &ONE));
    planted.put("b", "raw", &raw(&slower(), &NOISY));
    let beside = planted.beside(&["a", "b"]);
    let ratios = &beside.commands[0].ratios;
    assert_eq!(ratios.iter().map(|inner| &*inner.name).collect::<Vec<_>>(), ["memory", "read_64 / write_64"]);
    assert!(ratios[0].intervals.iter().all(Option::is_none) && ratios[0].ratios == [Some(2.0), Some(2.0)]);
    let width = |quotient: Quotient| quotient.interval.map_or(0.0, |interval| interval.high - interval.low);
    let [steady, noisy] = [0, 1].map(|at| ratios[1].intervals[at].expect("an interval"));
    assert!(steady.paired && width(steady) < 0.001, "{steady:?}");
    assert!(width(noisy) > 0.02, "{noisy:?}");
    // Of one directory alone there is no difference, and the ratios are there.
    let alone = planted.beside(&["a"]);
    assert!(alone.notes.is_empty() && alone.commands[0].figures[0].beside_first.is_empty(), "{:?}", alone.notes);
    let text = alone.text(Form::Markdown);
    assert!(text.contains("| read_64 / write_64 | 1.500 | 1.200 to 1.200 |"), "{text}");
    assert!(!text.contains("NO CLAIM"), "{text}");
}

#[test]
fn rounds_that_took_turns_are_compared_pair_by_pair() {
    let planted = Planted::new();
    // A tenth more in each round, and rounds that differ by far more.
    let wild: Vec<u64> = [100, 300, 120, 900, 150, 700, 200].map(|round| round * 100).to_vec();
    let more: Vec<u64> = wild.iter().map(|round| round * 11 / 10).collect();
    for (in_turn, beyond) in [(true, true), (false, false)] {
        for (dir, rounds) in [("a", &wild), ("b", &more)] {
            let mut report = raw(rounds, rounds);
            let sitting = if in_turn { "one" } else { dir };
            report["settings"][INTERLEAVED] = json!({ "sitting": sitting, "side": dir });
            planted.put(dir, "raw", &report);
        }
        let beside = planted.beside(&["a", "b"]);
        let verdict = beside.commands[0].figures[0].beside_first[0].as_ref().expect("a verdict");
        assert_eq!((beside.commands[0].interleaved, verdict.quotient.paired), (in_turn, in_turn));
        assert_eq!(verdict.beyond_the_noise, beyond, "{:?}", verdict.quotient);
        assert_eq!(beside.text(Form::People).contains("NO CLAIM"), !in_turn);
        assert!(beside.commands[0].differences.is_empty(), "{:?}", beside.commands[0].differences);
    }
}

#[test]
fn what_differs_and_what_was_warned_of_is_said() {
    let planted = Planted::new();
    planted.put("a", "raw", &raw(&ONE, &ONE));
    let mut other = raw(&ONE[..4], &ONE[..3]);
    other["machine"]["kernel"] = json!("7");
    other["machine"]["load"] = json!("9");
    other["machine"]["mitigations"]["l1tf"] = json!("flush");
    other["machine"]["smt"] = json!(true);
    other["cpus"]["answerer"] = json!(5);
    other["settings"]["device"] = json!("rxe0");
    other["arguments"] = json!(["raw", "--device", "rxe0", "--out=x"]);
    other["warnings"] = json!(["this is a debug build\u{1b}[2J"]);
    planted.put("b", "raw", &other);
    let beside = planted.beside(&["a", "b"]);
    let section = &beside.commands[0];
    assert_eq!(
        section.differences,
        [
            "command line (A: raw --device soft; B: raw --device rxe0)",
            "device (A: soft; B: rxe0)",
            "kernel (A: 6; B: 7)",
            "mitigations l1tf (A: none; B: flush)",
            "processors answerer (A: 1; B: 5)",
            "recorded in B alone: smt",
        ]
    );
    // A round of the WRITEs is missing.
    assert_eq!(section.warnings.len(), 2, "{:?}", section.warnings);
    assert_eq!(section.warnings[1], "B: 3 of 4 rounds have a figure of their own: write_64");
    assert!(section.figures[0].beside_first[0].as_ref().expect("a verdict").few_rounds);
    let text = beside.text(Form::People);
    assert!(text.contains("fewer than 5 rounds") && text.contains("*  "), "{text}");
    assert!(text.contains("warning: B: this is a debug build?[2J"), "{text}");
}

#[test]
fn what_one_directory_lacks_is_named() {
    let planted = Planted::new();
    planted.put("a", "raw", &raw(&ONE, &ONE));
    planted.put("a", "throughput", &json!({ "command": "throughput", "results": {} }));
    planted.put("a", "profile", &json!({ "command": "throughput" }));
    let mut fewer = raw(&ONE, &ONE);
    fewer["results"].as_object_mut().expect("results").remove("read_64");
    fewer["results"]["new"] = json!({ "p50_ns_by_round": [1] });
    planted.put("b", "raw", &fewer);
    let beside = planted.beside(&["a", "b"]);
    let notes = beside.notes.join("\n");
    assert!(notes.contains("throughput is in A alone"), "{notes}");
    assert!(notes.contains("A: not looked at, for no command is called so: profile.json"), "{notes}");
    let text = beside.text(Form::Markdown);
    assert!(text.contains("| new | not measured | 0.00 µs |  |  |  |"), "{text}");
    assert!(text.contains("| read_64 | 5.00 µs | not measured |  |  |  |"), "{text}");
}

#[test]
fn every_bad_file_is_named_once_and_nothing_is_compared() {
    let planted = Planted::new();
    let good = planted.put("good", "raw", &raw(&ONE, &ONE));
    let bad = planted.put("bad", "raw", &json!({ "command": "latency", "results": {} }));
    let whole = raw(&ONE, &ONE).to_string();
    fs::write(bad.join("latency.json"), &whole[..whole.len() / 2]).expect("written");
    fs::write(bad.join("throughput.json"), "\0\0").expect("written");
    fs::create_dir(planted.dir("empty")).expect("made");
    let dirs = [good, bad, planted.dir("empty"), planted.dir("nowhere")];
    let error = read(&dirs, &commands()).map(|_| ()).expect_err("refused").to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 5, "{error}");
    for (line, said) in lines.iter().zip([
        "bad/latency.json is no report: it is cut off",
        "bad/raw.json is a report of 'latency', not of 'raw'",
        "bad/throughput.json is no report: expected value",
        "empty holds no report",
        "there is no directory",
    ]) {
        assert!(line.contains(said), "{said}: {line}");
    }
}

#[test]
fn names_stand_in_the_order_of_their_numbers() {
    let mut names =
        ["b_64", "a_4096_x32", "a_64 / c_64", "a_512", "a_4096", "a_64_x8", "a_64", "plain_read_64", "plain_read_512"];
    names.sort_by_cached_key(|name| by_number(name));
    let right =
        ["a_64", "a_64 / c_64", "a_64_x8", "a_512", "a_4096", "a_4096_x32", "b_64", "plain_read_64", "plain_read_512"];
    assert_eq!(names, right);
}

#[test]
fn it_is_the_same_each_time_and_more_than_two_stand_beside_the_first() {
    let planted = Planted::new();
    planted.put("a", "raw", &raw(&ONE, &ONE));
    planted.put("b", "raw", &raw(&NOISY, &ONE));
    planted.put("c", "raw", &raw(&slower(), &ONE));
    let text = || serde_json::to_string(&planted.beside(&["a", "b", "c"])).expect("JSON");
    assert_eq!(text(), text());
    let report: Value = serde_json::from_str(&text()).expect("JSON");
    let read = &report["commands"][0]["figures"][0];
    assert_eq!(read["medians"], json!([5005, 5010, 6006]));
    assert_eq!(read["beside_first"][0]["beyond_the_noise"], false);
    assert_eq!(read["beside_first"][1]["beyond_the_noise"], true);
    assert!(read["beside_first"][1]["interval"]["low"].as_f64() > Some(1.1));
}
