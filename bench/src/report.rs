//! The result of a run: a table for people, JSON for programs, and raw data for who doubts it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::adapter;
use crate::cpus::Cpus;
use crate::ends::{self, Ends};
use crate::error::BenchError;
use crate::figures::{Figures, Measured};
use crate::machine::Machine;
use crate::percentiles;
use crate::plot::{self, Below, Plot, Scale, Series};
use crate::rates::Rated;

/// What a kept report looks like: raised where who reads the old would take the new for something else.
pub(crate) const FORMAT: u64 = 1;
/// The setting of a report whose rounds were measured in turn with another's.
pub(crate) const INTERLEAVED: &str = "interleaved";

/// Everything said about one run.
#[derive(Serialize)]
pub(crate) struct Report {
    /// How to read it.
    format: u64,
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
    /// By subject. Where there is a list, that is called `results`, and this `subjects`.
    pub(crate) results: Map<String, Value>,
    /// Figures of this run divided by each other.
    pub(crate) ratios: Map<String, Value>,
    /// By what was compared, where it was.
    #[serde(skip)]
    pub(crate) list: Option<Vec<Value>>,
    #[serde(skip)]
    measured: Vec<Measured>,
    #[serde(skip)]
    rated: Vec<Rated>,
    /// Drawings of percentiles, where all of them in one would be too many lines.
    #[serde(skip)]
    percentiles_of: Vec<Few>,
    /// Further lines of the rates by size.
    #[serde(skip)]
    rates_by_size: Vec<Series>,
    /// Further drawings, by the end of their file's name.
    #[serde(skip)]
    drawings: Vec<(&'static str, Vec<Plot>)>,
}

/// Subjects whose percentiles are one drawing.
struct Few {
    /// Behind `COMMAND-percentiles`, in the name of the file.
    which: String,
    /// What they have in common.
    what: String,
    names: BTreeSet<String>,
}

impl Report {
    /// Of what is measured on these processors.
    pub(crate) fn new(command: &'static str, cpus: Cpus, plan: &impl Serialize) -> Result<Self, BenchError> {
        let Value::Object(plan) = value(plan)? else {
            return Err(BenchError::Histogram("a plan has no names".to_owned()));
        };
        Ok(Self {
            format: FORMAT,
            command,
            arguments: std::env::args().skip(1).collect(),
            machine: Machine::record(cpus),
            cpus,
            plan,
            settings: Map::new(),
            warnings: Vec::new(),
            results: Map::new(),
            ratios: Map::new(),
            list: None,
            measured: Vec::new(),
            rated: Vec::new(),
            percentiles_of: Vec::new(),
            rates_by_size: Vec::new(),
            drawings: Vec::new(),
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

    /// Notes the devices of both ends, and what the kernel says of real ones.
    pub(crate) fn ends(&mut self, ends: &Ends) {
        self.device("device", &ends.device);
        self.device("peer_device", ends.peer_device());
    }

    /// Notes a device that was asked for by this name, and where it is a real one its firmware, driver and interface.
    pub(crate) fn device(&mut self, setting: &str, name: &str) {
        self.setting(setting, name);
        let (chosen, mtu) = ends::chosen(name);
        if chosen != name {
            self.setting(&format!("{setting}_chosen"), chosen.as_str());
        }
        if let Some(mtu) = mtu {
            self.setting(&format!("{setting}_mtu"), mtu);
        }
        if let Some(adapter) = adapter::record(&chosen) {
            self.setting(&format!("{setting}_adapter"), adapter);
        }
    }

    /// Draws percentiles of these subjects alone, in the file `COMMAND-percentiles` with `which` behind it; of many, nobody
    /// could tell one line from another.
    pub(crate) fn draw_percentiles_of(&mut self, which: &str, what: &str, names: impl IntoIterator<Item = String>) {
        let (which, what, names) = (which.to_owned(), format!(": {what}"), names.into_iter().collect());
        self.percentiles_of.push(Few { which, what, names });
    }

    /// Draws these lines of GiB a second too, beside those of what is rated here.
    pub(crate) fn add_rates_by_size(&mut self, lines: Vec<Series>) {
        self.rates_by_size.extend(lines);
    }

    /// Draws this too, one below the other, in the file `COMMAND` with this end.
    pub(crate) fn draw(&mut self, rest: &'static str, panels: Vec<Plot>) {
        self.drawings.push((rest, panels));
    }

    /// Notes the p50, or the operations a second, of `above` divided by that of `below`, where both were measured.
    pub(crate) fn ratio(&mut self, name: &str, above: &str, below: &str) {
        if let (Some(above), Some(below)) = (self.figure(above), self.figure(below)) {
            self.put_ratio(name, above / below.max(1.0));
        }
    }

    /// Notes what part `subject` has of the operations a second that there are when `one` and `other` follow each other.
    pub(crate) fn ratio_to_one_after_the_other(&mut self, subject: &str, one: &str, other: &str) {
        let figures = (self.figure(subject), self.figure(one), self.figure(other));
        if let (Some(subject_rate), Some(one_rate), Some(other_rate)) = figures {
            let possible = 1.0 / (1.0 / one_rate.max(1.0) + 1.0 / other_rate.max(1.0));
            self.put_ratio(&format!("{subject} / (1 / (1/{one} + 1/{other}))"), subject_rate / possible);
        }
    }

    /// Notes the p50 of `subject` divided by that of `one` and so many times that of `other` together.
    pub(crate) fn ratio_to_sum(&mut self, subject: &str, one: &str, times: f64, other: &str) {
        if let (Some(above), Some(one_ns), Some(other_ns)) =
            (self.figure(subject), self.figure(one), self.figure(other))
        {
            self.put_ratio(
                &format!("{subject} / ({one} + {times} {other})"),
                above / (one_ns + times * other_ns).max(1.0),
            );
        }
    }

    /// Notes the p50 of `subject` divided by so many nanoseconds and so many times that of `other` together.
    pub(crate) fn ratio_to_allowed(&mut self, subject: &str, fixed_ns: f64, times: f64, other: &str) {
        if let (Some(above), Some(other_ns)) = (self.figure(subject), self.figure(other)) {
            let name = format!("{subject} / ({} µs + {times} {other})", fixed_ns / 1000.0);
            self.put_ratio(&name, above / (fixed_ns + times * other_ns).max(1.0));
        }
    }

    fn figure(&self, subject: &str) -> Option<f64> {
        let result = self.results.get(subject)?;
        ["p50_ns", "per_second"].iter().find_map(|name| result.get(name)?.as_f64())
    }

    fn put_ratio(&mut self, name: &str, ratio: f64) {
        self.ratios.insert(name.to_owned(), json!((ratio * 1000.0).round() / 1000.0));
    }

    /// Looks at the machine once more, keeps the raw data under `out`, then prints the report to standard output.
    pub(crate) fn finish(mut self, json: bool, out: Option<&Path>) -> Result<(), BenchError> {
        self.machine = Machine::record(self.cpus);
        self.warnings.splice(..0, self.machine.warnings(self.cpus));
        if let Some(out) = out {
            self.keep(out)?;
        }
        print(&if json { self.json()? } else { self.table() })
    }

    fn json(&self) -> Result<String, BenchError> {
        let text = match &self.list {
            None => serde_json::to_string_pretty(self),
            Some(list) => {
                let mut report = value(self)?;
                report["subjects"] = report["results"].take();
                report["results"] = json!(list);
                serde_json::to_string_pretty(&report)
            }
        };
        let text = text.map_err(|error| BenchError::Histogram(error.to_string()))?;
        Ok(text + "\n")
    }

    fn table(&self) -> String {
        let mut text = String::new();
        if !self.measured.is_empty() {
            text += &row("µs", ["p50", "p99", "p99.9", "mean", "min"].map(str::to_owned));
        }
        for one in &self.measured {
            let figures = one.figures();
            let cells = |figures: &Figures| {
                let all = [figures.p50_ns, figures.p99_ns, figures.p999_ns, figures.mean_ns, figures.min_ns];
                all.map(|ns| format!("{:.2}", ns as f64 / 1000.0))
            };
            text += &row(&one.name, cells(&figures));
            if let Some(since_due) = &figures.since_due {
                text += &row("    since it was due", cells(since_due));
            }
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

    /// `COMMAND.json` (this report). Where times were measured, `COMMAND.hlog` (every round's histogram, HdrHistogram log
    /// format, V2 deflate), `COMMAND-SUBJECT.hgrm` (percentiles of all rounds) and `COMMAND-percentiles.svg`, or several such; where
    /// something was measured at several sizes, `COMMAND-sizes.svg`.
    fn keep(&self, out: &Path) -> Result<(), BenchError> {
        fs::create_dir_all(out).map_err(BenchError::io(format!("create {}", out.display())))?;
        let write = |rest: &str, bytes: &[u8]| {
            let path = out.join(format!("{}{rest}", self.command));
            fs::write(&path, bytes).map_err(BenchError::io(format!("write {}", path.display())))
        };
        write(".json", self.json()?.as_bytes())?;
        if !self.measured.is_empty() {
            let mut log = Vec::new();
            self.write_log(&mut log)?;
            write(".hlog", &log)?;
            let mut lines = Vec::new();
            for (name, rounds) in self.measured.iter().flat_map(Measured::all) {
                let all = percentiles::merged(rounds)?;
                write(&format!("-{name}.hgrm"), percentiles::text(&all).as_bytes())?;
                lines.push(Series { name, points: percentiles::points(&all) });
            }
            let draw = |which: &str, what: &str, lines| {
                let plot = self.plot(what, Below::Percentiles, "µs", lines);
                write(&format!("-percentiles{which}.svg"), plot::svg(&[plot])?.as_bytes())
            };
            for Few { which, what, names } in &self.percentiles_of {
                draw(which, what, lines.iter().filter(|line| names.contains(&line.name)).cloned().collect())?;
            }
            if self.percentiles_of.is_empty() {
                draw("", "", lines)?;
            }
        }
        let mut rates = by_size(self.rated.iter().map(|one| (&*one.name, one.gib_per_second())));
        rates.extend(self.rates_by_size.iter().cloned());
        for (what, values, rest, series) in [
            (
                ": medians by size",
                "µs",
                "-sizes.svg",
                by_size(self.measured.iter().map(|one| (&*one.name, one.median_us()))),
            ),
            (": throughput by size", "GiB/s", "-rates.svg", rates),
        ] {
            if !series.is_empty() {
                write(rest, plot::svg(&[self.plot(what, Below::Bytes, values, series)])?.as_bytes())?;
            }
        }
        for (rest, panels) in &self.drawings {
            write(rest, plot::svg(panels)?.as_bytes())?;
        }
        Ok(())
    }

    fn plot(&self, what: &str, below: Below, values: &str, series: Vec<Series>) -> Plot {
        let (title, values) = (format!("{}{what}", self.command), values.to_owned());
        Plot { title, below, values, scale: Scale::Logarithmic, series }
    }

    fn write_log(&self, log: &mut Vec<u8>) -> Result<(), BenchError> {
        let failed = |error: &dyn std::fmt::Debug| BenchError::Histogram(format!("{error:?}"));
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .add_comment("nanoseconds; one line a round and subject; the tag is the subject")
            .with_start_time(SystemTime::now())
            .begin_log_with(log, &mut serializer)
            .map_err(BenchError::io("write a histogram"))?;
        for (name, rounds) in self.measured.iter().flat_map(Measured::all) {
            let tag = Tag::new(&name).ok_or_else(|| BenchError::Histogram(format!("'{name}' is no tag")))?;
            for (round, histogram) in rounds.iter().enumerate() {
                let start = Duration::from_secs(round as u64);
                writer
                    .write_histogram(histogram, start, Duration::from_secs(1), Some(tag))
                    .map_err(|error| failed(&error))?;
            }
        }
        Ok(())
    }
}

/// Of what was measured at several sizes, a line each: the size is the first number between underscores in a name.
pub(crate) fn by_size<'a>(measured: impl Iterator<Item = (&'a str, f64)>) -> Vec<Series> {
    let mut lines: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
    for (name, value) in measured {
        let parts: Vec<&str> = name.split('_').collect();
        let number = |part: &&str| part.parse::<u64>().ok();
        if let Some((at, size)) = parts.iter().enumerate().find_map(|(at, part)| Some((at, number(part)?))) {
            let rest = [&parts[..at], &parts[at + 1..]].concat().join("_");
            lines.entry(rest).or_default().insert(size, value);
        }
    }
    let several = lines.into_iter().filter(|(_, points)| points.len() > 1);
    let series = |(name, points): (String, BTreeMap<u64, f64>)| Series {
        name,
        points: points.into_iter().map(|(size, value)| (size as f64, value)).collect(),
    };
    several.map(series).collect()
}

/// Prints to standard output.
pub(crate) fn print(text: &str) -> Result<(), BenchError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(BenchError::io("print the result"))
}

fn value(of: &impl Serialize) -> Result<Value, BenchError> {
    serde_json::to_value(of).map_err(|error| BenchError::Histogram(error.to_string()))
}

/// One line of the table.
pub(crate) fn row(name: &str, columns: [String; 5]) -> String {
    let columns: String = columns.iter().map(|column| format!("{column:>12}")).collect();
    format!("{name:<32}{columns}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_percentiles_each_drawing_has_a_few() {
        let dir = tempfile::tempdir().expect("a directory");
        let measured = ["a_read_64", "b_read_64", "a_write_64"].map(|name| {
            let mut round = crate::figures::histogram().expect("one");
            (1..=1000).for_each(|value| round.saturating_record(value));
            Measured::new(name, vec![round])
        });
        let drawn = |out: &str, few: &[(&str, &[&str])]| {
            let plan = BTreeMap::from([("rounds", 1)]);
            let mut report = Report::new("compare", Cpus { asker: 0, answerer: 0 }, &plan).expect("a report");
            let measured = measured.iter().map(|one| Measured::new(&*one.name, one.rounds.clone())).collect();
            report.times(measured).expect("figures");
            for (which, names) in few {
                report.draw_percentiles_of(which, "few", names.iter().map(|name| (*name).to_owned()));
            }
            report.keep(&dir.path().join(out)).expect("kept");
            let names = ["a_read_64", "b_read_64", "a_write_64", "compare: few"];
            let files = ["", "-read_64", "-write_64"].map(|which| format!("compare-percentiles{which}.svg"));
            files.map(|file| {
                let svg = fs::read_to_string(dir.path().join(out).join(file)).ok()?;
                Some(names.map(|name| svg.contains(name)))
            })
        };
        let (read, write) = (&["a_read_64", "b_read_64"][..], &["a_write_64"][..]);
        let few = drawn("few", &[("-read_64", read), ("-write_64", write)]);
        assert_eq!(few, [None, Some([true, true, false, true]), Some([false, false, true, true])]);
        assert_eq!(drawn("all", &[]), [Some([true, true, true, false]), None, None]);
    }

    #[test]
    fn the_machine_is_looked_at_when_all_is_measured() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = BTreeMap::from([("rounds", 1)]);
        let mut report = Report::new("floor", Cpus { asker: 0, answerer: 0 }, &plan).expect("a report");
        report.machine.taken_at = 0;
        report.warnings.push("of a peer".to_owned());
        report.finish(false, Some(dir.path())).expect("kept");
        let kept = fs::read_to_string(dir.path().join("floor.json")).expect("kept");
        let kept: Value = serde_json::from_str(&kept).expect("JSON");
        assert!(kept["machine"]["taken_at"].as_u64() > Some(0), "{kept}");
        let warnings = kept["warnings"].to_string();
        assert!(warnings.contains("TOO FEW PROCESSORS") && warnings.contains("of a peer"), "{warnings}");
    }

    #[test]
    fn lines_by_size_need_two_sizes() {
        let measured =
            [("seal_512", 1.0), ("seal_4096", 2.0), ("udp_read", 3.0), ("read_64_x32", 4.0), ("memcpy_64", 5.0)];
        let lines = by_size(measured.into_iter());
        assert_eq!(lines.len(), 1);
        assert_eq!((&*lines[0].name, &*lines[0].points), ("seal", &[(512.0, 1.0), (4096.0, 2.0)][..]));
    }
}
