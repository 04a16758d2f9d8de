//! `overbank-bench report`: what several directories keep, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::BenchError;
use crate::grid::{Grid, clean};
use crate::interval::{FEW, Quotient};
use crate::kept::{self, Kept, Measure};
use crate::report::{INTERLEAVED, print};
use crate::table;

/// Of the machine's record, what differs without telling anything.
const EVER_NEW: [&str; 4] = ["load", "load_before", "others_cpus", "taken_at"];
/// Longest text of a value in a list of differences.
const LONGEST: usize = 80;
const MISSING: &str = "not measured";

const EXAMPLES: &str = "\
The first directory is what the others are compared with. An interval holds 95 % of the ratios of medians that come out
when the rounds are drawn anew (2000 times, the same each time). A difference between directories that were measured in
different sittings is no claim, however narrow its interval; one between rounds that took turns is (interleave).

Examples
  overbank-bench report before after
  overbank-bench report bench/data/soft --json
  overbank-bench report before after --markdown difference.md";

/// What `report` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Runs {
    /// Where other commands left their reports (--out)
    #[arg(required = true, num_args = 1..=8)]
    dirs: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write the tables to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl Runs {
    /// These, printed for people.
    pub(crate) fn of(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, json: false, markdown: None }
    }
}

/// Reads, compares and prints. `commands` are those that may have left a report.
pub(crate) fn run(runs: &Runs, commands: &[String]) -> Result<(), BenchError> {
    let beside = Beside::of(&read(&runs.dirs, commands)?);
    if let Some(path) = &runs.markdown {
        fs::write(path, beside.text(Form::Markdown)).map_err(BenchError::io(format!("write {}", path.display())))?;
    }
    if runs.json {
        let text = serde_json::to_string_pretty(&beside).map_err(|error| BenchError::Histogram(error.to_string()))?;
        return print(&(text + "\n"));
    }
    print(&beside.text(Form::People))
}

/// One directory.
struct Run {
    letter: char,
    dir: PathBuf,
    reports: BTreeMap<String, Kept>,
    /// Files that may be reports and have no command's name.
    others: Vec<String>,
}

/// All of them, or everything that is wrong with any of them.
fn read(dirs: &[PathBuf], commands: &[String]) -> Result<Vec<Run>, BenchError> {
    let (mut runs, mut faults) = (Vec::new(), Vec::new());
    for (dir, letter) in dirs.iter().zip('A'..='Z') {
        let mut reports = BTreeMap::new();
        if !dir.is_dir() {
            faults.push(format!("there is no directory {}", dir.display()));
            continue;
        }
        let faults_before = faults.len();
        for command in commands {
            match kept::read(dir, command) {
                Ok(kept) => reports.extend(kept.map(|kept| (command.clone(), kept))),
                Err(error) => faults.push(error.to_string()),
            }
        }
        if reports.is_empty() && faults.len() == faults_before {
            faults.push(format!("{} holds no report: name the --out directory of another command", dir.display()));
        }
        let others = others(dir, commands)?;
        runs.push(Run { letter, dir: dir.clone(), reports, others });
    }
    if faults.is_empty() { Ok(runs) } else { Err(BenchError::Usage(faults.join("\n"))) }
}

fn others(dir: &Path, commands: &[String]) -> Result<Vec<String>, BenchError> {
    let entries = fs::read_dir(dir).map_err(BenchError::io(format!("read {}", dir.display())))?;
    let names: BTreeSet<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).take(10_000).collect();
    let known = |name: &&str| commands.iter().any(|command| command == name);
    let other = |name: &String| name.strip_suffix(".json").is_some_and(|stem| !known(&stem));
    Ok(names.into_iter().filter(other).take(20).collect())
}

/// What is said of them together.
#[derive(Serialize)]
struct Beside {
    /// The directories, by letter.
    runs: BTreeMap<char, PathBuf>,
    notes: Vec<String>,
    commands: Vec<Section>,
}

/// One command.
#[derive(Serialize)]
struct Section {
    command: String,
    /// The letters of the directories that have it, in their order; all lists below have the same.
    runs: Vec<char>,
    taken: Vec<Taken>,
    /// Whether all took turns in one sitting, round by round.
    interleaved: bool,
    /// How the machines, the programs and what they were told differ.
    differences: Vec<String>,
    warnings: Vec<String>,
    figures: Vec<Line>,
    ratios: Vec<Inner>,
}

/// How a run came to be.
#[derive(Serialize)]
struct Taken {
    arguments: Vec<String>,
    commit: String,
    build: String,
    rounds: Option<u64>,
    load_before: String,
    /// Seconds since 1970.
    taken_at: Option<u64>,
}

/// One subject.
#[derive(Serialize)]
struct Line {
    subject: String,
    /// Whether these are nanoseconds, or operations a second.
    unit: &'static str,
    #[serde(skip)]
    measure: Measure,
    /// Medians over the rounds.
    medians: Vec<Option<u64>>,
    /// Of each but the first: through the first.
    beside_first: Vec<Option<Verdict>>,
}

#[derive(Serialize)]
struct Verdict {
    #[serde(flatten)]
    quotient: Quotient,
    beyond_the_noise: bool,
    few_rounds: bool,
}

/// A ratio of two subjects of one run, as each run has it.
#[derive(Serialize)]
struct Inner {
    name: String,
    ratios: Vec<Option<f64>>,
    /// Where both subjects and their rounds are known.
    intervals: Vec<Option<Quotient>>,
}

impl Beside {
    fn of(runs: &[Run]) -> Self {
        let mut notes = Vec::new();
        let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.reports.keys()).collect();
        let mut commands = Vec::new();
        for name in names {
            let having: Vec<(char, &Kept)> =
                runs.iter().filter_map(|run| Some((run.letter, run.reports.get(name)?))).collect();
            if let ([(letter, _)], true) = (&having[..], runs.len() > 1) {
                notes.push(format!("{name} is in {letter} alone and stands beside nothing"));
            } else {
                commands.push(Section::of(name, &having));
            }
        }
        let several = commands.iter().filter(|section| section.runs.len() > 1);
        if several.clone().any(|section| !section.interleaved) {
            notes.push(
                "these directories were measured in different sittings: runs of a virtual machine drift apart by 1.5 to 2 \
                 times from one sitting to the next, so a difference between directories is NO CLAIM here. Rounds that \
                 take turns, A B A B, in one run are: overbank-bench interleave"
                    .to_owned(),
            );
        }
        let few = |section: &Section| {
            let verdicts = section.figures.iter().flat_map(|line| line.beside_first.iter().flatten());
            let inner = section.ratios.iter().flat_map(|inner| inner.intervals.iter().flatten());
            verdicts.map(|verdict| &verdict.quotient).chain(inner).any(|quotient| quotient.has_few_rounds())
        };
        let verdicts = commands.iter().flat_map(|section| &section.figures).flat_map(|line| &line.beside_first);
        let verdicts = verdicts.flatten().count();
        if verdicts > 1 {
            notes.push(format!(
                "{verdicts} differences are looked at: of twenty that are nothing but chance, about one is beyond the noise"
            ));
        }
        if commands.iter().any(few) {
            notes.push(format!(
                "of fewer than {FEW} rounds an interval means little (marked *), and of one there is none"
            ));
        }
        for run in runs.iter().filter(|run| !run.others.is_empty()) {
            notes.push(format!(
                "{}: not looked at, for no command is called so: {}",
                run.letter,
                run.others.join(", ")
            ));
        }
        Self { runs: runs.iter().map(|run| (run.letter, run.dir.clone())).collect(), notes, commands }
    }
}

impl Section {
    fn of(command: &str, having: &[(char, &Kept)]) -> Self {
        let first = having.first().map(|(_, kept)| *kept);
        let interleaved = having.iter().all(|(_, kept)| first.is_some_and(|first| in_turn(first, kept)));
        let subjects: BTreeMap<String, Measure> = having
            .iter()
            .flat_map(|(_, kept)| kept.subjects())
            .filter_map(|(name, figures)| Some((name, figures.by_round()?.0)))
            .collect();
        let tables: Vec<BTreeMap<_, _>> = having.iter().map(|(_, kept)| kept.subjects().collect()).collect();
        let mut subjects: Vec<_> = subjects.into_iter().collect();
        subjects.sort_by_cached_key(|(subject, _)| by_number(subject));
        let figures = subjects.into_iter().map(|(subject, measure)| {
            let rounds = |table: &BTreeMap<String, &kept::Figures>| {
                let (found, rounds) = table.get(&subject)?.by_round()?;
                (found == measure).then(|| rounds.to_vec())
            };
            let all: Vec<Option<Vec<u64>>> = tables.iter().map(rounds).collect();
            Line::of(subject, measure, &all, interleaved)
        });
        let mut warnings = Vec::new();
        for (letter, kept) in having {
            warnings.extend(kept.warnings.iter().map(|warning| format!("{letter}: {warning}")));
            warnings.extend(rounds_missing(kept).map(|missing| format!("{letter}: {missing}")));
        }
        Self {
            command: command.to_owned(),
            runs: having.iter().map(|(letter, _)| *letter).collect(),
            taken: having.iter().map(|(_, kept)| Taken::of(kept)).collect(),
            interleaved,
            differences: differences(having),
            warnings,
            figures: figures.collect(),
            ratios: inner(having),
        }
    }
}

/// What names are sorted by: their words, then their numbers, then all of them.
fn by_number(name: &str) -> (String, Vec<u64>, String) {
    let first = name.split(" / ").next().unwrap_or(name);
    let words: Vec<&str> =
        first.split('_').take_while(|word| !word.starts_with(|letter: char| letter.is_ascii_digit())).collect();
    (words.join("_"), table::numbers(first), name.to_owned())
}

/// Whether the rounds of these two were measured in turn.
fn in_turn(one: &Kept, other: &Kept) -> bool {
    let sitting = |kept: &Kept| kept.settings.get(INTERLEAVED).and_then(|found| found.get("sitting").cloned());
    std::ptr::eq(one, other) || sitting(one).is_some() && sitting(one) == sitting(other)
}

/// What has figures of another number of rounds than there were.
fn rounds_missing(kept: &Kept) -> impl Iterator<Item = String> {
    let mut missing: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (name, figures) in kept.subjects() {
        let found = figures.by_round().map_or(0, |(_, rounds)| rounds.len());
        if kept.rounds.is_some_and(|rounds| rounds != found as u64) {
            missing.entry(found).or_default().push(name);
        }
    }
    let all = kept.rounds.unwrap_or(0);
    let line = move |(found, names): (usize, Vec<String>)| {
        format!("{found} of {all} rounds have a figure of their own: {}", names.join(", "))
    };
    missing.into_iter().map(line)
}

impl Taken {
    fn of(kept: &Kept) -> Self {
        let text = |name: &str| kept.machine.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        Self {
            arguments: told(kept),
            commit: text("commit"),
            build: text("build"),
            rounds: kept.rounds,
            load_before: text("load_before"),
            taken_at: kept.machine.get("taken_at").and_then(Value::as_u64),
        }
    }
}

/// The command line, but for what becomes of the figures.
fn told(kept: &Kept) -> Vec<String> {
    let mut told = Vec::new();
    let mut arguments = kept.arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => {}
            "--out" => drop(arguments.next()),
            out if out.starts_with("--out=") => {}
            _ => told.push(argument.clone()),
        }
    }
    told
}

/// Every value of the machine's record and of the settings that is not the same in all, with each run's.
fn differences(having: &[(char, &Kept)]) -> Vec<String> {
    let records: Vec<(char, BTreeMap<String, String>)> = having
        .iter()
        .map(|(letter, kept)| {
            let mut record = BTreeMap::new();
            flatten("", &Value::Object(kept.machine.clone()), &mut record);
            flatten("processors", &kept.cpus, &mut record);
            flatten("", &Value::Object(kept.settings.clone()), &mut record);
            record.insert("command line".to_owned(), told(kept).join(" "));
            record.retain(|name, _| !EVER_NEW.contains(&&**name) && !name.starts_with(INTERLEAVED));
            (*letter, record)
        })
        .collect();
    let names: BTreeSet<&String> = records.iter().flat_map(|(_, record)| record.keys()).collect();
    let mut differences = Vec::new();
    // What only some know of, as of an older program: by who does.
    let mut alone: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for name in names {
        let mut by_value: BTreeMap<Option<&String>, String> = BTreeMap::new();
        for (letter, record) in &records {
            by_value.entry(record.get(name)).or_default().push(*letter);
        }
        let known: Vec<_> = by_value.iter().filter(|(value, _)| value.is_some()).collect();
        if let ([(_, letters)], true) = (&known[..], by_value.len() > 1) {
            alone.entry((*letters).clone()).or_default().insert(name.split(' ').next().unwrap_or(name));
        } else if by_value.len() > 1 {
            let mut sides: Vec<_> = by_value.into_iter().map(|(value, letters)| (letters, value)).collect();
            sides.sort_unstable();
            let side = |(letters, value): (String, Option<&String>)| {
                format!("{letters}: {}", value.map_or_else(|| "not recorded".to_owned(), |value| cut(value)))
            };
            differences.push(format!("{name} ({})", sides.into_iter().map(side).collect::<Vec<_>>().join("; ")));
        }
    }
    for (letters, names) in alone {
        differences.push(format!("recorded in {letters} alone: {}", names.into_iter().collect::<Vec<_>>().join(", ")));
    }
    differences
}

fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let under = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name} {part}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(field, value)| flatten(&under(field), value, into)),
        Value::Null => {}
        Value::String(text) => drop(into.insert(name.to_owned(), text.clone())),
        other => drop(into.insert(name.to_owned(), other.to_string())),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Line {
    fn of(subject: String, measure: Measure, all: &[Option<Vec<u64>>], interleaved: bool) -> Self {
        let divide = if interleaved { Quotient::paired } else { Quotient::unpaired };
        let beside = |rounds: &Option<Vec<u64>>| {
            let quotient = divide(rounds.as_ref()?, all.first()?.as_ref()?)?;
            Some(Verdict {
                quotient,
                beyond_the_noise: quotient.is_beyond_the_noise(),
                few_rounds: quotient.has_few_rounds(),
            })
        };
        Self {
            subject,
            unit: match measure {
                Measure::Time => "p50_ns",
                Measure::Rate => "per_second",
            },
            measure,
            medians: all.iter().map(|rounds| rounds.clone().map(crate::figures::median)).collect(),
            beside_first: all.iter().skip(1).map(beside).collect(),
        }
    }

    fn median(&self, median: Option<u64>) -> String {
        match (median, self.measure) {
            (None, _) => MISSING.to_owned(),
            (Some(ns), Measure::Time) => format!("{:.2} µs", ns as f64 / 1000.0),
            (Some(rate), Measure::Rate) => format!("{rate} /s"),
        }
    }

    fn verdict(&self, verdict: &Verdict) -> String {
        let more = verdict.quotient.ratio > 1.0;
        let word = match (verdict.beyond_the_noise, self.measure, more) {
            _ if verdict.quotient.interval.is_none() => "one round",
            (false, _, _) => "within the noise",
            (true, Measure::Time, true) => "longer",
            (true, Measure::Time, false) => "shorter",
            (true, Measure::Rate, true) => "more",
            (true, Measure::Rate, false) => "fewer",
        };
        word.to_owned()
    }
}

fn interval(quotient: &Quotient) -> String {
    let mark = if quotient.has_few_rounds() { "*" } else { "" };
    quotient.interval.map_or_else(String::new, |interval| format!("{:.3} to {:.3}{mark}", interval.low, interval.high))
}

/// Every ratio that a run has of its own; those of `one / other` with an interval over their rounds, which took turns.
fn inner(having: &[(char, &Kept)]) -> Vec<Inner> {
    let names: BTreeSet<&String> = having.iter().flat_map(|(_, kept)| kept.ratios.keys()).collect();
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_by_cached_key(|name| by_number(name));
    let quotient = |kept: &Kept, name: &str| {
        let (above, below) = name.split_once(" / ")?;
        let ((unit, above), (other, below)) = (kept.subject(above)?, kept.subject(below)?);
        if unit == other { Quotient::paired(above, below) } else { None }
    };
    let all = names.into_iter().map(|name| Inner {
        name: name.clone(),
        ratios: having.iter().map(|(_, kept)| kept.ratios.get(name)?.as_f64()).collect(),
        intervals: having.iter().map(|(_, kept)| kept.ratios.get(name).and_then(|_| quotient(kept, name))).collect(),
    });
    all.collect()
}

/// For whom the text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    People,
    Markdown,
}

impl Beside {
    fn text(&self, form: Form) -> String {
        let list = |line: &str| match form {
            Form::People => format!("{}\n", clean(line)),
            Form::Markdown => format!("- {}\n", clean(line)),
        };
        let mut text: String =
            self.runs.iter().map(|(letter, dir)| list(&format!("{letter}: {}", dir.display()))).collect();
        text.extend(self.notes.iter().map(|note| list(&format!("note: {note}"))));
        for section in &self.commands {
            text += &match form {
                Form::People => format!("\n{}\n", clean(&section.command)),
                Form::Markdown => format!("\n## {}\n\n", clean(&section.command)),
            };
            for (letter, taken) in section.runs.iter().zip(&section.taken) {
                text += &list(&taken.line(*letter));
            }
            let in_turn = "the rounds took turns in one sitting, and are compared pair by pair";
            text.extend((section.runs.len() > 1 && section.interleaved).then(|| list(in_turn)));
            text.extend(section.differences.iter().map(|difference| list(&format!("differs: {difference}"))));
            text.extend(section.warnings.iter().map(|warning| list(&format!("warning: {warning}"))));
            for grid in [section.figures(), section.ratios()].iter().filter(|grid| !grid.is_empty()) {
                text += "\n";
                text += &if form == Form::People { grid.people() } else { grid.markdown() };
            }
        }
        text
    }
}

impl Taken {
    fn line(&self, letter: char) -> String {
        let rounds = self.rounds.map_or("unknown".to_owned(), |rounds| rounds.to_string());
        format!(
            "{letter}: commit {}, {} build, rounds {rounds}, load before {}: overbank-bench {}",
            self.commit,
            self.build,
            self.load_before,
            self.arguments.join(" ")
        )
    }
}

impl Section {
    fn figures(&self) -> Grid {
        let mut head = vec!["median".to_owned()];
        for (at, letter) in self.runs.iter().enumerate() {
            head.push(letter.to_string());
            if at > 0 {
                let first = self.runs[0];
                let noise = if self.interleaved { "beyond the noise?" } else { "beyond its rounds' noise? (no claim)" };
                head.extend([format!("{letter} / {first}"), "95 %".to_owned(), noise.to_owned()]);
            }
        }
        let row = |line: &Line| {
            let mut row = vec![line.subject.clone()];
            for (at, median) in line.medians.iter().enumerate() {
                row.push(line.median(*median));
                if at > 0 {
                    row.extend(match &line.beside_first[at - 1] {
                        Some(verdict) => {
                            let quotient = &verdict.quotient;
                            [format!("{:.3}", quotient.ratio), interval(quotient), line.verdict(verdict)]
                        }
                        None => ["", "", ""].map(str::to_owned),
                    });
                }
            }
            row
        };
        Grid { head, rows: self.figures.iter().map(row).collect() }
    }

    fn ratios(&self) -> Grid {
        let mut head = vec!["within one run, in turn".to_owned()];
        head.extend(self.runs.iter().flat_map(|letter| [letter.to_string(), "95 %".to_owned()]));
        let row = |inner: &Inner| {
            let mut row = vec![inner.name.clone()];
            for (ratio, quotient) in inner.ratios.iter().zip(&inner.intervals) {
                row.push(ratio.map_or(MISSING.to_owned(), |ratio| format!("{ratio:.3}")));
                row.push(quotient.as_ref().map_or_else(String::new, interval));
            }
            row
        };
        Grid { head, rows: self.ratios.iter().map(row).collect() }
    }
}

#[cfg(test)]
#[path = "runs_tests.rs"]
mod tests;
