//! The result of a run: a table for people, JSON for programs, and raw data for who doubts it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cpus::Cpus;
use crate::error::BenchError;
use crate::figures::Measured;
use crate::machine::Machine;
use crate::rates::Rated;

/// Everything said about one run.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Which command.
    pub(crate) command: &'static str,
    /// All that the command line said behind the program's name.
    pub(crate) arguments: Vec<String>,
    /// On what.
    pub(crate) machine: Machine,
    /// Where the two ends ran.
    pub(crate) cpus: Cpus,
    /// How often, and how long.
    #[serde(flatten)]
    pub(crate) plan: Map<String, Value>,
    /// What the command was told, or found.
    pub(crate) settings: Map<String, Value>,
    /// Why the figures may not mean what they seem to.
    pub(crate) warnings: Vec<String>,
    /// By subject.
    pub(crate) results: Map<String, Value>,
    /// Figures of this run divided by each other.
    pub(crate) ratios: Map<String, Value>,
    #[serde(skip)]
    measured: Vec<Measured>,
    #[serde(skip)]
    rated: Vec<Rated>,
}

impl Report {
    /// Of what is measured on these processors.
    pub(crate) fn new(command: &'static str, cpus: Cpus, plan: &impl Serialize) -> Result<Self, BenchError> {
        let machine = Machine::record();
        let mut warnings = Vec::new();
        if machine.build != "release" {
            warnings.push("this is a debug build: its figures say nothing about a release build".to_owned());
        }
        if cpus.shared() {
            warnings.push("both ends share one processor: busy polling measures the scheduler here".to_owned());
        }
        let Value::Object(plan) = value(plan)? else {
            return Err(BenchError::Histogram("a plan has no names".to_owned()));
        };
        Ok(Self {
            command,
            arguments: std::env::args().skip(1).collect(),
            machine,
            cpus,
            plan,
            settings: Map::new(),
            warnings,
            results: Map::new(),
            ratios: Map::new(),
            measured: Vec::new(),
            rated: Vec::new(),
        })
    }

    /// Adds how long operations took.
    pub(crate) fn times(&mut self, measured: Vec<Measured>) -> Result<(), BenchError> {
        for one in &measured {
            self.results.insert(one.name.clone(), value(&one.figures())?);
        }
        self.measured.extend(measured);
        Ok(())
    }

    /// Adds how many operations a second there were.
    pub(crate) fn rates(&mut self, rated: Vec<Rated>) -> Result<(), BenchError> {
        for one in &rated {
            self.results.insert(one.name.clone(), value(&one.figures())?);
        }
        self.rated.extend(rated);
        Ok(())
    }

    /// Notes something that the command was told or found.
    pub(crate) fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Notes the p50, or the operations a second, of `above` divided by that of `below`, where both were measured.
    pub(crate) fn ratio(&mut self, name: &str, above: &str, below: &str) {
        let figure = |subject: &str| {
            let result = self.results.get(subject)?;
            ["p50_ns", "per_second"].iter().find_map(|name| result.get(name)?.as_f64())
        };
        if let (Some(above), Some(below)) = (figure(above), figure(below)) {
            self.ratios.insert(name.to_owned(), json!((above / below.max(1.0) * 1000.0).round() / 1000.0));
        }
    }

    /// Keeps the raw data under `out`, then prints the report to standard output.
    pub(crate) fn finish(&self, json: bool, out: Option<&Path>) -> Result<(), BenchError> {
        if let Some(out) = out {
            self.keep(out)?;
        }
        let text = if json { self.json()? } else { self.table() };
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(BenchError::io("print the result"))
    }

    fn json(&self) -> Result<String, BenchError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| BenchError::Histogram(error.to_string()))?;
        Ok(text + "\n")
    }

    fn table(&self) -> String {
        let mut text = String::new();
        if !self.measured.is_empty() {
            text += &row("µs", ["p50", "p99", "p99.9", "mean", "min"].map(str::to_owned));
        }
        for one in &self.measured {
            let figures = one.figures();
            let all = [figures.p50_ns, figures.p99_ns, figures.p999_ns, figures.mean_ns, figures.min_ns];
            text += &row(&one.name, all.map(|ns| format!("{:.2}", ns as f64 / 1000.0)));
        }
        if !self.rated.is_empty() {
            text += &row("", ["each s", "GiB/s", "packets", "again", "again %"].map(str::to_owned));
        }
        for one in &self.rated {
            text += &one.figures().lines(&one.name);
        }
        for (name, ratio) in &self.ratios {
            text += &format!("{name}: {ratio}\n");
        }
        for warning in &self.warnings {
            text += &format!("warning: {warning}\n");
        }
        text
    }

    /// `COMMAND.json` (this report) and, where times were measured, `COMMAND.hlog` (every round's histogram, HdrHistogram
    /// log format, V2 deflate).
    fn keep(&self, out: &Path) -> Result<(), BenchError> {
        fs::create_dir_all(out).map_err(BenchError::io(format!("create {}", out.display())))?;
        let path = out.join(format!("{}.json", self.command));
        fs::write(&path, self.json()?).map_err(BenchError::io(format!("write {}", path.display())))?;
        if self.measured.is_empty() {
            return Ok(());
        }
        let path = out.join(format!("{}.hlog", self.command));
        let mut log = Vec::new();
        self.write_log(&mut log)?;
        fs::write(&path, log).map_err(BenchError::io(format!("write {}", path.display())))
    }

    fn write_log(&self, log: &mut Vec<u8>) -> Result<(), BenchError> {
        let failed = |error: &dyn std::fmt::Debug| BenchError::Histogram(format!("{error:?}"));
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .add_comment("nanoseconds; one line a round and subject; the tag is the subject")
            .with_start_time(SystemTime::now())
            .begin_log_with(log, &mut serializer)
            .map_err(BenchError::io("write a histogram"))?;
        for one in &self.measured {
            let tag = Tag::new(&one.name).ok_or_else(|| BenchError::Histogram(format!("'{}' is no tag", one.name)))?;
            for (round, histogram) in one.rounds.iter().enumerate() {
                let start = Duration::from_secs(round as u64);
                writer
                    .write_histogram(histogram, start, Duration::from_secs(1), Some(tag))
                    .map_err(|error| failed(&error))?;
            }
        }
        Ok(())
    }
}

fn value(of: &impl Serialize) -> Result<Value, BenchError> {
    serde_json::to_value(of).map_err(|error| BenchError::Histogram(error.to_string()))
}

/// One line of the table.
pub(crate) fn row(name: &str, columns: [String; 5]) -> String {
    let columns: String = columns.iter().map(|column| format!("{column:>12}")).collect();
    format!("{name:<32}{columns}\n")
}
