//! `overbank-bench sweep`: plain and sealed READs and WRITEs of many sizes, one at a time and many, and what sealing costs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use overbank_fabric::units::Size;
use serde_json::json;

use crate::cpus::Cpus;
use crate::deep::Deep;
use crate::ends::Ends;
use crate::error::BenchError;
use crate::figures::{self, Measured, Plan, Subject};
use crate::one_sided::OneSided;
use crate::options::{Measuring, Period};
use crate::pipeline::{Pipeline, Shape};
use crate::plot::{Below, Plot, Scale, Series};
use crate::rates::{self, Pace, Rated};
use crate::report::{Report, by_size};
use crate::sealed::Sealed;
use crate::stack::{Places, Setup, Stack};
use crate::throughput::Kind;

/// Memory that plain operations go round in one at a time: as much as the sealed ones do.
const SPAN: usize = 16 << 20;
/// What is sealed is written once before, in pieces that fill the lease: of at least this many bytes.
const PIECE: usize = 1 << 20;
/// Most bytes outstanding, all sizes taken together; plain or sealed, both ends have memory for them at once.
const MAX_OUTSTANDING: usize = 256 << 20;
/// What a provider's pages and the headers of blocks take of each lease.
const ROOM: usize = 4 << 20;

const EXAMPLES: &str = "\
--depth 1 with one lane is timed: each operation from its beginning to its end. Everything deeper is counted by the second.
What is sealed goes through the library on leases of an auth daemon and a provider that are started for this; many at once
are reads alone. One at a time, a sealed operation moves whole blocks of 4096 bytes: what it costs of fewer bytes is mostly
that. With --out there are sweep-percentiles.svg (of one size), sweep-sizes.svg, sweep-rates.svg and sweep-cost.svg.

Examples
  overbank-bench sweep --device soft --out DIR
  overbank-bench sweep --op read --size 4096,65536,1048576 --depth 1,8,64 --lanes 1,4
  overbank-bench sweep --device mlx5_0 --plain --depth 1,16 --seconds 2 --json
  overbank-bench sweep --size 64,8388608 --depth 1 --count 2000 --most-bytes 1GiB";

/// What `sweep` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Sweep {
    #[command(flatten)]
    ends: Ends,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Read, Kind::Write])]
    op: Vec<Kind>,
    /// Bytes of one operation, 1 to 8388608; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512, 4096, 32_768, 262_144, 1_048_576])]
    size: Vec<usize>,
    /// Operations outstanding in each queue pair, 1 to 4096; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32])]
    depth: Vec<u32>,
    /// Queue pairs between the two ends, 1 to 64; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1], value_parser = clap::value_parser!(u8).range(1..=64))]
    lanes: Vec<u8>,
    /// Plain operations alone: needs no other program
    #[arg(long)]
    plain: bool,
    /// One at a time: most bytes of a turn; large operations are fewer than --count
    #[arg(long, value_name = "BYTES", default_value = "256MiB")]
    most_bytes: Size,
    /// Draw the percentiles of this size [default: 4096, or else the middle one]
    #[arg(long, value_name = "BYTES")]
    percentiles_of: Option<usize>,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    measuring: Measuring,
}

/// What is measured, once each.
struct Wanted {
    ops: BTreeSet<Kind>,
    sizes: BTreeSet<usize>,
    /// Whether anything is timed by itself.
    single: bool,
    shapes: Vec<Shape>,
}

impl Wanted {
    fn of(sweep: &Sweep) -> Result<Self, BenchError> {
        let lanes: BTreeSet<u8> = sweep.lanes.iter().copied().collect();
        let mut shapes = Vec::new();
        for &lanes in &lanes {
            shapes.extend(Shape::all(&sweep.size, &sweep.depth, lanes, &[0])?);
        }
        let all = shapes.len();
        shapes.retain(|shape| (shape.depth, shape.lanes) != (1, 1));
        let outstanding = shapes.iter().map(bytes).sum::<usize>();
        if outstanding > MAX_OUTSTANDING {
            let message = format!(
                "{outstanding} bytes outstanding of all sizes together are more than {MAX_OUTSTANDING}: lower --size, \
                 --depth or --lanes"
            );
            return Err(BenchError::Usage(message));
        }
        let (ops, sizes) = (sweep.op.iter().copied().collect(), sweep.size.iter().copied().collect());
        Ok(Self { ops, sizes, single: shapes.len() < all, shapes })
    }

    /// The size whose percentiles are drawn.
    fn drawn(&self, asked: Option<usize>) -> Result<usize, BenchError> {
        let middle = self.sizes.iter().nth(self.sizes.len() / 2).copied().unwrap_or(0);
        match asked {
            Some(asked) if !self.sizes.contains(&asked) => {
                Err(BenchError::Usage(format!("--percentiles-of {asked} is none of --size")))
            }
            Some(asked) => Ok(asked),
            None => Ok(if self.sizes.contains(&4096) { 4096 } else { middle }),
        }
    }
}

/// All that is outstanding.
fn bytes(shape: &Shape) -> usize {
    shape.size * shape.depth as usize * usize::from(shape.lanes)
}

/// Measures and reports.
pub(crate) fn run(sweep: &Sweep) -> Result<(), BenchError> {
    let plan = sweep.measuring.plan()?;
    let pace = sweep.period.pace(plan.rounds, None)?;
    let wanted = Wanted::of(sweep)?;
    let drawn = wanted.drawn(sweep.percentiles_of)?;
    let cpus = sweep.measuring.cpus()?;
    let mut report = Report::new("sweep", cpus, &plan)?;
    let stack = if sweep.plain { None } else { Some(daemons(sweep, &wanted, cpus)?) };
    if wanted.single {
        let measured = singles(sweep, &wanted, stack.as_ref(), &plan, cpus, &mut report)?;
        let names = measured.iter().map(|one| one.name.clone());
        let names = names.filter(|name| has_size(name, drawn));
        report.draw_percentiles_of("", &format!("one at a time, {drawn} bytes"), names);
        let costs = Costs::of(&wanted, &measured);
        costs.note(&mut report);
        report.times(measured)?;
    }
    let rated = many(sweep, &wanted, stack.as_ref(), &pace, cpus, &mut report)?;
    let rates = rated.iter().filter_map(|one| Some((one.name.clone(), one.name.strip_prefix("sealed_")?.to_owned())));
    let sealed_rates: Vec<_> = rates.collect();
    report.rates(rated)?;
    report.ends(&sweep.ends);
    for (name, value) in [("depth", json!(sweep.depth)), ("lanes", json!(sweep.lanes)), ("sealed", json!(!sweep.plain))]
    {
        report.setting(name, value);
    }
    report.setting("most_bytes", sweep.most_bytes.0);
    report.setting("seconds", pace.seconds);
    report.setting("warmup_seconds", pace.warmup_seconds);
    for (kind, size) in wanted.ops.iter().flat_map(|kind| wanted.sizes.iter().map(move |size| (kind, size))) {
        let [sealed, plain] = ["sealed", "plain"].map(|how| single(how, *kind, *size));
        report.ratio(&format!("{sealed} / {plain}"), &sealed, &plain);
    }
    for (sealed, rest) in &sealed_rates {
        let plain = format!("plain_{rest}");
        report.ratio(&format!("{sealed} / {plain}"), sealed, &plain);
    }
    sweep.measuring.finish(report)
}

fn single(how: &str, kind: Kind, size: usize) -> String {
    format!("{how}_{}_{size}", kind.name())
}

fn has_size(name: &str, size: usize) -> bool {
    name.rsplit('_').next() == Some(&size.to_string())
}

/// An auth daemon and a provider that lends enough for all leases at once.
fn daemons(sweep: &Sweep, wanted: &Wanted, cpus: Cpus) -> Result<Stack, BenchError> {
    // The header of the smallest block is a sixteenth of it.
    let leases = wanted.shapes.iter().map(|shape| bytes(shape) / 16 * 17 + ROOM).sum::<usize>() + 2 * SPAN;
    let mut setup = Setup::new(sweep.ends.peer_device(), Size(leases.next_multiple_of(2 << 20) as u64));
    setup.places = Some(Places { home: cpus.asker, authd: cpus.asker, provider: cpus.answerer });
    Stack::set_up(&setup)
}

/// One at a time, plain and sealed.
fn singles(
    sweep: &Sweep,
    wanted: &Wanted,
    stack: Option<&Stack>,
    plan: &Plan,
    cpus: Cpus,
    report: &mut Report,
) -> Result<Vec<Measured>, BenchError> {
    let mut plain = Vec::new();
    for &size in &wanted.sizes {
        plain.push((size, RefCell::new(OneSided::start(&sweep.ends, size, SPAN, cpus)?)));
    }
    if let Some((_, first)) = plain.first() {
        let (own, other) = first.borrow().reach();
        report.setting("mtu", own.path_mtu(&other));
    }
    let largest = wanted.sizes.last().copied().unwrap_or(PIECE).next_power_of_two().max(PIECE);
    let sealed = match stack {
        Some(stack) => Some(RefCell::new(Sealed::attach(&stack.config, None, &sweep.ends.device, largest)?)),
        None => None,
    };
    let most = sweep.most_bytes.0;
    let mut subjects = Vec::new();
    for &kind in &wanted.ops {
        for (size, plain) in &plain {
            let size = *size;
            let once = move || plain.borrow_mut().once(kind.op());
            subjects.push(bounded(Subject::timed(single("plain", kind, size), once), size, most));
            if let Some(sealed) = &sealed {
                let once = move || {
                    let mut sealed = sealed.borrow_mut();
                    sealed.resize(size);
                    if kind == Kind::Read { sealed.read() } else { sealed.write() }
                };
                subjects.push(bounded(Subject::timed(single("sealed", kind, size), once), size, most));
            }
        }
    }
    let measured = figures::measure(plan, &mut subjects)?;
    drop(subjects);
    if let Some(sealed) = sealed {
        sealed.into_inner().finish()?;
    }
    Ok(measured)
}

/// The same with turns of at most so many bytes.
fn bounded(subject: Subject<'_>, size: usize, most: u64) -> Subject<'_> {
    let Subject { mut turn, .. } = subject;
    let most = (most / size.max(1) as u64).max(1);
    let turn = Box::new(move |plan: &Plan| {
        turn(&Plan { count: plan.count.min(most), warmup: plan.warmup.min(most), ..*plan })
    });
    Subject { turn, ..subject }
}

/// Many at a time.
fn many(
    sweep: &Sweep,
    wanted: &Wanted,
    stack: Option<&Stack>,
    pace: &Pace,
    cpus: Cpus,
    report: &mut Report,
) -> Result<Vec<Rated>, BenchError> {
    let pipelines = wanted.shapes.iter().map(|shape| Ok(RefCell::new(Pipeline::start(&sweep.ends, *shape, cpus)?)));
    let pipelines: Vec<_> = pipelines.collect::<Result<_, BenchError>>()?;
    if let Some((own, other)) = pipelines.first().and_then(|pipeline| pipeline.borrow().reach()) {
        report.setting("mtu", own.path_mtu(&other));
    }
    let deep = match stack {
        Some(stack) if wanted.ops.contains(&Kind::Read) => {
            let start = |&Shape { size, depth, lanes, .. }: &Shape| {
                Ok(RefCell::new(Deep::start(&stack.config, &sweep.ends.device, size, depth, lanes)?))
            };
            wanted.shapes.iter().map(start).collect::<Result<Vec<_>, BenchError>>()?
        }
        _ => Vec::new(),
    };
    let mut subjects = Vec::new();
    for &kind in &wanted.ops {
        for (at, (&Shape { size, depth, lanes, .. }, pipeline)) in wanted.shapes.iter().zip(&pipelines).enumerate() {
            let lanes = if lanes > 1 { format!("x{lanes}") } else { String::new() };
            let name = |how| format!("{}_x{depth}{lanes}", single(how, kind, size));
            let turn = Box::new(move |pace: &Pace| pipeline.borrow_mut().turn(kind.op(), pace));
            subjects.push(rates::Subject { name: name("plain"), size, turn });
            if let (Kind::Read, Some(deep)) = (kind, deep.get(at)) {
                let turn = Box::new(move |pace: &Pace| deep.borrow_mut().turn(pace));
                subjects.push(rates::Subject { name: name("sealed"), size, turn });
            }
        }
    }
    let rated = rates::measure(pace, &mut subjects)?;
    drop(subjects);
    for deep in deep {
        deep.into_inner().finish()?;
    }
    Ok(rated)
}

/// What sealing costs of each size, by operation.
struct Costs {
    /// Size, microseconds more than plain, percent more than plain.
    by_op: BTreeMap<&'static str, Vec<(usize, f64, f64)>>,
    /// GiB a second of one at a time, by size.
    rates: Vec<Series>,
}

impl Costs {
    fn of(wanted: &Wanted, measured: &[Measured]) -> Self {
        let medians: BTreeMap<&str, f64> = measured.iter().map(|one| (&*one.name, one.median_us())).collect();
        let mut by_op = BTreeMap::new();
        for &kind in &wanted.ops {
            let cost = |&size: &usize| {
                let [sealed, plain] = ["sealed", "plain"].map(|how| medians.get(&*single(how, kind, size)).copied());
                let (sealed, plain) = (sealed?, plain.filter(|plain| *plain > 0.0)?);
                Some((size, sealed - plain, (sealed / plain - 1.0) * 100.0))
            };
            let costs: Vec<_> = wanted.sizes.iter().filter_map(cost).collect();
            if !costs.is_empty() {
                by_op.insert(kind.name(), costs);
            }
        }
        let rate = |size: f64, us: f64| size / (us.max(0.001) * 1e-6) / (1_u64 << 30) as f64;
        let lines = by_size(medians.iter().map(|(name, us)| (*name, *us)));
        let rates = lines.into_iter().map(|Series { name, points }| Series {
            name: format!("{name}, one at a time"),
            points: points.into_iter().map(|(size, us)| (size, rate(size, us))).collect(),
        });
        Self { by_op, rates: rates.collect() }
    }

    fn note(self, report: &mut Report) {
        let round = |value: f64| (value * 100.0).round() / 100.0;
        let cost = |(size, us, percent): &(usize, f64, f64)| json!({ "size": size, "us": round(*us), "percent": round(*percent) });
        let costs: serde_json::Map<_, _> =
            self.by_op.iter().map(|(op, costs)| ((*op).to_owned(), costs.iter().map(cost).collect())).collect();
        if !costs.is_empty() {
            report.setting("sealing_cost", costs);
        }
        let lines = |figure: fn(&(usize, f64, f64)) -> f64| -> Vec<Series> {
            let series = |(op, costs): (&&str, &Vec<(usize, f64, f64)>)| Series {
                name: format!("sealed {op}"),
                points: costs.iter().map(|cost| (cost.0 as f64, figure(cost))).collect(),
            };
            self.by_op.iter().filter(|(_, costs)| costs.len() > 1).map(series).collect()
        };
        let panel = |title: &str, values: &str, scale, series| Plot {
            title: title.to_owned(),
            below: Below::Bytes,
            values: values.to_owned(),
            scale,
            series,
        };
        let panels = vec![
            panel(
                "sweep: what sealing adds to a plain operation, medians",
                "µs",
                Scale::Logarithmic,
                lines(|cost| cost.1),
            ),
            panel("sweep: the same in percent of the plain operation", "%", Scale::Linear, lines(|cost| cost.2)),
        ];
        if panels.iter().any(|panel| !panel.series.is_empty()) {
            report.draw("-cost.svg", panels);
        }
        report.add_rates_by_size(self.rates);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sweep: Sweep,
    }

    fn wanted(arguments: &str) -> Result<Wanted, BenchError> {
        let line = std::iter::once("sweep").chain(arguments.split_whitespace());
        let sweep = Line::parse_from(line).sweep;
        let wanted = Wanted::of(&sweep)?;
        wanted.drawn(sweep.percentiles_of)?;
        Ok(wanted)
    }

    #[test]
    fn what_is_one_at_a_time_is_timed_and_the_rest_is_counted() {
        let shapes = |wanted: &Wanted| -> Vec<_> {
            wanted.shapes.iter().map(|shape| (shape.size, shape.depth, shape.lanes)).collect()
        };
        let both = wanted("--size 64,4096,64 --depth 1,8 --lanes 2,1").expect("fine");
        assert!(both.single);
        assert_eq!(shapes(&both), [(64, 8, 1), (4096, 8, 1), (64, 1, 2), (64, 8, 2), (4096, 1, 2), (4096, 8, 2)]);
        assert!(!wanted("--depth 1 --lanes 2").expect("fine").single);
        let default = wanted("").expect("fine");
        assert!(default.single && default.shapes.len() == 6 && default.ops.len() == 2);
        assert_eq!(default.drawn(None).expect("one"), 4096);
        assert_eq!(wanted("--size 1,2,3").expect("fine").drawn(None).expect("one"), 2);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for (arguments, said) in [
            ("--size 0", "--size is 1 to 8388608"),
            ("--size 8388609", "--size is 1 to 8388608"),
            ("--depth 0", "--depth is 1 to 4096"),
            ("--size 8388608,4194304 --depth 16,32", "bytes outstanding of all sizes together"),
            ("--size 64 --percentiles-of 65", "--percentiles-of 65 is none of --size"),
        ] {
            let error = wanted(arguments).map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains(said), "{arguments}: {error}");
        }
    }

    #[test]
    fn large_operations_are_fewer() {
        let counts = RefCell::new(Vec::new());
        let count = |size| {
            let subject = Subject::at_its_own_pace("a", |plan: &Plan| {
                counts.borrow_mut().push((plan.count, plan.warmup));
                Ok(figures::histogram()?.into())
            });
            let plan = Plan { rounds: 1, count: 100, warmup: 20, per_second: None };
            (bounded(subject, size, 1000).turn)(&plan).expect("a turn");
        };
        [1, 20, 100, 5000].into_iter().for_each(count);
        assert_eq!(*counts.borrow(), [(100, 20), (50, 20), (10, 10), (1, 1)]);
    }

    #[test]
    fn sealing_costs_what_it_takes_longer() {
        let of = |name: &str, us: u64| {
            let mut histogram = figures::histogram().expect("one");
            histogram.saturating_record(us * 1000);
            Measured::new(name, vec![histogram])
        };
        let measured =
            [of("plain_read_64", 4), of("sealed_read_64", 8), of("plain_read_4096", 10), of("sealed_read_4096", 15)];
        let costs = Costs::of(&wanted("--size 64,4096 --depth 1").expect("fine"), &measured);
        let read = &costs.by_op["read"];
        assert_eq!((read.len(), costs.by_op.len()), (2, 1));
        assert!((read[0].1 - 4.0).abs() < 0.02 && (read[0].2 - 100.0).abs() < 0.5, "{read:?}");
        assert!((read[1].1 - 5.0).abs() < 0.02 && (read[1].2 - 50.0).abs() < 0.5, "{read:?}");
        assert_eq!(costs.rates.len(), 2);
        // 4096 bytes in 10 µs.
        let plain = costs.rates.iter().find(|line| line.name == "plain_read, one at a time").expect("a line");
        assert!((plain.points[1].1 - 0.3815).abs() < 0.001, "{:?}", plain.points);
    }
}
