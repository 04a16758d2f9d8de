//! `overbank-bench interleave`: two builds of this program measure the same, taking turns, A B A B.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::error::BenchError;
use crate::kept;
use crate::peer::Peer;
use crate::report::INTERLEAVED;
use crate::runs::{self, Runs};

const EXAMPLES: &str = "\
Each turn is a run of its own with one round, its daemons and its other end started anew. DIR/a and DIR/b have the
reports of each program, all rounds together, and DIR/a/rounds/N all that the round left.

Examples
  overbank-bench interleave --a old/overbank-bench --b new/overbank-bench --out DIR -- latency --self-contained
  overbank-bench interleave --a ./before --b ./after --rounds 9 --out DIR -- raw --device soft --op read
  overbank-bench report DIR/a DIR/b";

/// What `interleave` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Interleave {
    /// The one program
    #[arg(long, value_name = "PROGRAM")]
    a: PathBuf,
    /// The other
    #[arg(long, value_name = "PROGRAM")]
    b: PathBuf,
    /// Turns of each program
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Where the reports go; must not be there, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Longest that a turn may take, in seconds
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,
    /// What both measure, without --rounds, --out and --json
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Measures, gathers and compares.
pub(crate) fn run(interleave: &Interleave, commands: &[String]) -> Result<(), BenchError> {
    let name = checked(&interleave.command, commands)?;
    let out = &interleave.out;
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(BenchError::Usage(format!("{} is not empty: name a new directory", out.display())));
    }
    let sides = [("a", &interleave.a), ("b", &interleave.b)];
    for round in 1..=interleave.rounds {
        for (side, program) in sides {
            eprintln!("round {round} of {}: {side}: {}", interleave.rounds, program.display());
            turn(interleave, program, &round_dir(out, side, round))?;
        }
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let sitting = format!("{}-{}", now.as_nanos(), std::process::id());
    for (side, program) in sides {
        let mut rounds = Vec::new();
        for round in 1..=interleave.rounds {
            let dir = round_dir(out, side, round);
            // Looked at for its faults, then taken as it is.
            kept::read(&dir, name)?;
            let report = kept::value(&dir, name)?;
            rounds.push(report.ok_or_else(|| child(program, &format!("left no {name}.json in {}", dir.display())))?);
        }
        let mut report = gathered(rounds).map_err(|why| child(program, &why))?;
        let mark = json!({ "sitting": sitting, "side": side, "program": program.display().to_string() });
        set(&mut report, "settings", INTERLEAVED, mark);
        let path = out.join(side).join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&report).map_err(|error| BenchError::Histogram(error.to_string()))?;
        fs::write(&path, text + "\n").map_err(BenchError::io(format!("write {}", path.display())))?;
    }
    runs::run(&Runs::of(vec![out.join("a"), out.join("b")]), commands)
}

/// The command's name, if it can be told how many rounds there are and where its report goes.
fn checked<'a>(command: &'a [String], commands: &[String]) -> Result<&'a str, BenchError> {
    let name = command.first().filter(|name| commands.contains(name));
    let name = name.ok_or_else(|| BenchError::Usage("behind -- stands a command of overbank-bench".to_owned()))?;
    for ours in ["--rounds", "--out", "--json"] {
        if command.iter().any(|word| word == ours || word.starts_with(&format!("{ours}="))) {
            return Err(BenchError::Usage(format!("{ours} stands before --, not behind it")));
        }
    }
    Ok(name)
}

fn round_dir(out: &Path, side: &str, round: u16) -> PathBuf {
    out.join(side).join("rounds").join(round.to_string())
}

fn turn(interleave: &Interleave, program: &Path, dir: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(dir).map_err(BenchError::io(format!("create {}", dir.display())))?;
    // A bare name would be looked for elsewhere.
    let program = fs::canonicalize(program).map_err(BenchError::io(format!("find {}", program.display())))?;
    let mut command = Command::new(program);
    command.args(&interleave.command).args(["--rounds", "1", "--out"]).arg(dir);
    Peer::start(command, Some(&dir.join("log")))?.rest(Duration::from_secs(interleave.patience)).map(drop)
}

fn child(program: &Path, what: &str) -> BenchError {
    BenchError::Child { program: program.display().to_string(), what: what.to_owned() }
}

fn set(report: &mut Value, group: &str, name: &str, value: Value) {
    if let Some(group) = report.get_mut(group).and_then(Value::as_object_mut) {
        group.insert(name.to_owned(), value);
    }
}

/// One report of several that have one round each. What a command found out by itself stays where all found the same.
fn gathered(rounds: Vec<Value>) -> Result<Value, String> {
    let all: Vec<&Map<String, Value>> = rounds.iter().filter_map(Value::as_object).collect();
    let mut report = all.first().map(|first| (*first).clone()).unwrap_or_default();
    report.insert("rounds".to_owned(), json!(all.len()));
    let groups = |group: &str| all.iter().filter_map(|one| one.get(group)?.as_object()).collect::<Vec<_>>();
    let mut results = Map::new();
    let results_by_round = groups("results");
    let names: BTreeSet<&String> = results_by_round.iter().flat_map(|results| results.keys()).collect();
    for name in names {
        let found: Vec<_> = results_by_round.iter().filter_map(|results| results.get(name)?.as_object()).collect();
        if found.len() < all.len() {
            return Err(format!("has '{name}' in {} of {} rounds only", found.len(), all.len()));
        }
        results.insert(name.clone(), Value::Object(figures(&found)));
    }
    report.insert("results".to_owned(), Value::Object(results));
    report.insert("settings".to_owned(), Value::Object(same(&groups("settings"))));
    let ratios = groups("ratios");
    let names: BTreeSet<&String> = ratios.iter().flat_map(|ratios| ratios.keys()).collect();
    let middles = names.into_iter().map(|name| {
        let found = ratios.iter().filter_map(|ratios| ratios.get(name)).collect();
        (name.clone(), middle(found))
    });
    report.insert("ratios".to_owned(), Value::Object(middles.collect()));
    let mut warnings: Vec<Value> = Vec::new();
    // The figures in a warning may be others in each round.
    let begin = |warning: &Value| warning.as_str().and_then(|text| text.split(':').next().map(str::to_owned));
    for warning in all.iter().filter_map(|one| one.get("warnings")?.as_array()).flatten() {
        if !warnings.iter().any(|known| begin(known) == begin(warning)) {
            warnings.push(warning.clone());
        }
    }
    report.insert("warnings".to_owned(), Value::Array(warnings));
    Ok(Value::Object(report))
}

/// What is the same in all.
fn same(all: &[&Map<String, Value>]) -> Map<String, Value> {
    let mut same = all.first().map(|first| (*first).clone()).unwrap_or_default();
    same.retain(|name, value| all.iter().all(|one| one.get(name) == Some(value)));
    same
}

/// One subject's: lists of rounds are joined, what was counted is added up, of the rest the median is taken.
fn figures(all: &[&Map<String, Value>]) -> Map<String, Value> {
    let mut joined = Map::new();
    for (name, first) in all.first().into_iter().flat_map(|first| first.iter()) {
        let found: Vec<&Value> = all.iter().filter_map(|one| one.get(name)).collect();
        let numbers = || found.iter().filter_map(|value| value.as_u64());
        let value = match (name.as_str(), first) {
            (_, Value::Array(_)) => {
                found.iter().filter_map(|value| value.as_array()).flatten().cloned().collect::<Vec<_>>().into()
            }
            ("dropped", Value::Object(_)) => {
                let mut sums = Map::new();
                for (reason, count) in found.iter().filter_map(|value| value.as_object()).flatten() {
                    let sum = sums.get(reason).and_then(Value::as_u64).unwrap_or(0) + count.as_u64().unwrap_or(0);
                    sums.insert(reason.clone(), sum.into());
                }
                Value::Object(sums)
            }
            (_, Value::Object(_)) => {
                Value::Object(figures(&found.iter().filter_map(|value| value.as_object()).collect::<Vec<_>>()))
            }
            ("count" | "packets" | "retransmitted" | "udp_receive_buffer_errors", _) => numbers().sum::<u64>().into(),
            ("min_ns", _) => numbers().min().into(),
            ("max_ns", _) => numbers().max().into(),
            _ => middle(found),
        };
        joined.insert(name.clone(), value);
    }
    let number = |name: &str| joined.get(name).and_then(Value::as_f64);
    if let (Some(again), Some(packets)) = (number("retransmitted"), number("packets")) {
        let percent = (again * 1e6 / packets.max(1.0)).round() / 1e4;
        joined.insert("retransmitted_percent".to_owned(), percent.into());
    }
    joined
}

/// The lower middle one of numbers, as the medians of a run's own rounds are; else the first.
fn middle(mut values: Vec<&Value>) -> Value {
    if values.iter().all(|value| value.is_number()) {
        values.sort_by(|one, other| one.as_f64().unwrap_or(0.0).total_cmp(&other.as_f64().unwrap_or(0.0)));
        return values.get(values.len().saturating_sub(1) / 2).map_or(Value::Null, |value| (*value).clone());
    }
    values.first().map_or(Value::Null, |value| (*value).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(p50: u64, rate: u64, again: u64) -> Value {
        json!({
            "command": "raw", "rounds": 1, "warnings": ["debug", format!("BUSY: load {rate}")],
            "settings": { "device": "soft", "found": rate },
            "results": {
                "read_64": { "count": 10, "p50_ns": p50, "min_ns": p50 - 1, "max_ns": p50 + 1, "p50_ns_by_round": [p50],
                             "since_due": { "count": 10, "p50_ns": p50, "p50_ns_by_round": [p50 + 5] } },
                "read_64_x32": { "size": 64, "per_second": rate, "per_second_by_round": [rate], "packets": 1000,
                                 "retransmitted": again, "retransmitted_percent": 7.0, "dropped": { "ICRC": again },
                                 "rounds": [{ "operations": rate }] },
            },
            "ratios": { "a / b": rate as f64 / 100.0 },
        })
    }

    #[test]
    fn rounds_of_their_own_make_one_report() {
        let report = gathered(vec![round(50, 300, 1), round(90, 100, 0), round(70, 200, 2)]).expect("gathered");
        assert_eq!(report["rounds"], 3);
        let read = &report["results"]["read_64"];
        assert_eq!((&read["count"], &read["p50_ns"]), (&json!(30), &json!(70)));
        assert_eq!((&read["min_ns"], &read["max_ns"]), (&json!(49), &json!(91)));
        assert_eq!(read["p50_ns_by_round"], json!([50, 90, 70]));
        assert_eq!(read["since_due"]["p50_ns_by_round"], json!([55, 95, 75]));
        let deep = &report["results"]["read_64_x32"];
        assert_eq!((&deep["per_second"], &deep["packets"], &deep["size"]), (&json!(200), &json!(3000), &json!(64)));
        assert_eq!((&deep["retransmitted_percent"], &deep["dropped"]["ICRC"]), (&json!(0.1), &json!(3)));
        assert_eq!(deep["rounds"].as_array().expect("rounds").len(), 3);
        assert_eq!(report["settings"], json!({ "device": "soft" }));
        assert_eq!(report["ratios"]["a / b"], 2.0);
        assert_eq!(report["warnings"], json!(["debug", "BUSY: load 300"]));
    }

    #[test]
    fn a_round_without_a_subject_is_no_round() {
        let mut lacking = round(50, 300, 1);
        lacking["results"].as_object_mut().expect("results").remove("read_64");
        let error = gathered(vec![round(1, 2, 3), lacking]).expect_err("refused");
        assert_eq!(error, "has 'read_64' in 1 of 2 rounds only");
    }

    #[test]
    fn what_interleave_says_itself_is_not_said_behind_it() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let commands = words("raw latency");
        assert_eq!(checked(&words("raw --op read"), &commands).expect("fine"), "raw");
        for (bad, said) in [
            ("raw --rounds 3", "--rounds stands before"),
            ("raw --out=x", "--out stands before"),
            ("raw --json", "--json stands before"),
            ("table x", "a command of overbank-bench"),
        ] {
            let error = checked(&words(bad), &commands).expect_err("refused").to_string();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
