//! `overbank-bench throughput`: how many READs or WRITEs a second, many at a time, and what went lost on the way.

use std::cell::RefCell;
use std::collections::BTreeSet;

use overbank_verbs::Op;

use crate::cpus::Cpus;
use crate::deep::{Deep, Opening};
use crate::ends::Ends;
use crate::error::BenchError;
use crate::options::{Output, Period};
use crate::pipeline::{Pipeline, Shape};
use crate::rates::{Pace, Subject, Turn, measure};
use crate::report::Report;
use crate::stack::Stack;

/// Most of the datagrams, in percent, that may be lost on purpose.
const MAX_LOSS: f64 = 50.0;

const EXAMPLES: &str = "\
Two processes, each on a processor of its own; both poll. After every turn the bytes are checked. Of the packets both
ends are counted, warm-up included: sent, sent again, dropped by reason.

Examples
  overbank-bench throughput --device soft --op read --size 4096 --depth 32 --seconds 2
  overbank-bench throughput --device soft --op read,write --size 65536 --depth 16 --json
  overbank-bench throughput --device soft --size 4096,65536 --sealed
  overbank-bench throughput --device soft --op read --size 65536 --depth 16 --loss 0.01,0.1,1,5 --rounds 7
  overbank-bench throughput --device rxe0 --peer-device rxe1 --count 2000";

/// What `throughput` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Throughput {
    #[command(flatten)]
    ends: Ends,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Read])]
    op: Vec<Kind>,
    /// Bytes of one operation, 1 to 8388608; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 65536])]
    size: Vec<usize>,
    /// Operations outstanding in each queue pair, 1 to 4096; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [32])]
    depth: Vec<u32>,
    /// Also sealed reads of a lease, of an auth daemon and a provider that are started for it: many at once, one thread a
    /// lane; beside them plain READs of the bytes that they move, and opening alone; only for sizes that a block can have
    #[arg(long, conflicts_with = "peer_device")]
    sealed: bool,
    /// Queue pairs between the two ends
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    lanes: u8,
    /// Also with so many percent of all datagrams lost, at random, by both ends' soft devices; several with commas
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    loss: Vec<f64>,
    #[command(flatten)]
    rating: Rating,
    #[command(flatten)]
    output: Output,
}

/// How often, and how long.
#[derive(clap::Args)]
struct Rating {
    /// Rounds; in each, everything measured takes its turn, and the figures are medians over the rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Operations of each turn, in place of the time
    #[arg(long, conflicts_with = "seconds")]
    count: Option<u64>,
    #[command(flatten)]
    period: Period,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// READs
    Read,
    /// WRITEs
    Write,
}

impl Kind {
    /// As it appears in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// As it is posted.
    pub(crate) fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
        }
    }
}

/// Measures and reports.
pub(crate) fn run(throughput: &Throughput) -> Result<(), BenchError> {
    let Rating { rounds, count, period } = &throughput.rating;
    let pace = period.pace(*rounds, *count)?;
    let losses = losses(&throughput.loss)?;
    let shapes = Shape::all(&throughput.size, &throughput.depth, throughput.lanes, &losses)?;
    let cpus = throughput.output.cpus()?;
    let ops: BTreeSet<_> = throughput.op.iter().copied().collect();
    let pipelines = start(&throughput.ends, &shapes, cpus)?;
    let sealed = if throughput.sealed { Some(Sealed::start(throughput, cpus)?) } else { None };
    let (mut subjects, mut pairs) = (Vec::new(), Vec::new());
    for &kind in &ops {
        for (shape, pipeline) in shapes.iter().zip(&pipelines) {
            let Shape { size, depth, lanes, lose_per_million } = *shape;
            let lanes = if lanes > 1 { format!("x{lanes}") } else { String::new() };
            let lossless = format!("{}_{size}_x{depth}{lanes}", kind.name());
            let loss = f64::from(lose_per_million) / 10_000.0;
            let name = if loss > 0.0 { format!("{lossless}_loss_{loss}%") } else { lossless.clone() };
            if name != lossless {
                pairs.push((name.clone(), lossless));
            }
            let turn = Box::new(move |pace: &Pace| pipeline.borrow_mut().turn(kind.op(), pace));
            subjects.push(Subject { name, size, turn });
        }
    }
    subjects.extend(sealed.iter().flat_map(Sealed::subjects));
    let rated = measure(&pace, &mut subjects)?;
    drop(subjects);

    let mut report = Report::new("throughput", cpus, &pace)?;
    report.rates(rated)?;
    report.ends(&throughput.ends);
    report.setting("depth", throughput.depth.clone());
    report.setting("lanes", throughput.lanes);
    report.setting("loss_percent", throughput.loss.clone());
    if let Some((own, other)) = pipelines.first().and_then(|pipeline| pipeline.borrow().reach()) {
        report.setting("mtu", own.path_mtu(&other));
    }
    for (lossy, lossless) in &pairs {
        report.ratio(&format!("{lossy} / {lossless}"), lossy, lossless);
    }
    if let Some(sealed) = sealed {
        sealed.finish(&mut report)?;
    }
    throughput.output.finish(report)
}

/// Sealed reads, and what they are to be compared with.
struct Sealed {
    rows: Vec<SealedRow>,
    lanes: u8,
    /// Ended when dropped.
    _stack: Stack,
}

struct SealedRow {
    size: usize,
    depth: u32,
    stride: usize,
    deep: RefCell<Deep>,
    raw: RefCell<Pipeline>,
    opening: RefCell<Opening>,
}

impl Sealed {
    fn start(throughput: &Throughput, cpus: Cpus) -> Result<Self, BenchError> {
        let (device, lanes) = (&throughput.ends.device, throughput.lanes);
        let stack = Stack::start(device, cpus)?;
        let mut rows = Vec::new();
        for Shape { size, depth, .. } in Shape::all(&throughput.size, &throughput.depth, lanes, &[0])? {
            let (Some(stride), Some(opening)) = (Deep::stride(size), Opening::new(size)?) else {
                let message = format!("--sealed takes sizes of a block, powers of two from 512 to 1048576, not {size}");
                return Err(BenchError::Usage(message));
            };
            let shape = Shape { size: stride, depth, lanes, lose_per_million: 0 };
            rows.push(SealedRow {
                size,
                depth,
                stride,
                deep: RefCell::new(Deep::start(&stack.config, device, size, depth, lanes)?),
                raw: RefCell::new(Pipeline::start(&throughput.ends, shape, cpus)?),
                opening: RefCell::new(opening),
            });
        }
        Ok(Self { rows, lanes, _stack: stack })
    }

    fn subjects(&self) -> impl Iterator<Item = Subject<'_>> {
        self.rows.iter().flat_map(move |row| {
            let [sealed, raw, open] = row.names(self.lanes);
            let subject = |name, turn| Subject { name, size: row.size, turn };
            [
                subject(sealed, Box::new(|pace: &Pace| row.deep.borrow_mut().turn(pace)) as Box<Turn<'_>>),
                subject(raw, Box::new(|pace: &Pace| row.raw.borrow_mut().turn(Op::Read, pace))),
                subject(open, Box::new(|pace: &Pace| row.opening.borrow_mut().turn(pace))),
            ]
        })
    }

    /// Says what part of what is possible the sealed reads reach, and gives the leases back.
    fn finish(self, report: &mut Report) -> Result<(), BenchError> {
        report.setting("self_contained", true);
        for row in self.rows {
            let [sealed, raw, open] = row.names(self.lanes);
            report.ratio(&format!("{sealed} / {raw}"), &sealed, &raw);
            report.ratio_to_one_after_the_other(&sealed, &raw, &open);
            row.deep.into_inner().finish()?;
        }
        Ok(())
    }
}

impl SealedRow {
    fn names(&self, lanes: u8) -> [String; 3] {
        let Self { size, depth, stride, .. } = *self;
        let lanes = if lanes > 1 { format!("x{lanes}") } else { String::new() };
        [
            format!("sealed_read_{size}_x{depth}{lanes}"),
            format!("raw_read_{stride}_x{depth}{lanes}"),
            format!("open_{size}"),
        ]
    }
}

fn start(ends: &Ends, shapes: &[Shape], cpus: Cpus) -> Result<Vec<RefCell<Pipeline>>, BenchError> {
    shapes.iter().map(|shape| Ok(RefCell::new(Pipeline::start(ends, *shape, cpus)?))).collect()
}

/// In datagrams of a million.
fn losses(percents: &[f64]) -> Result<Vec<u32>, BenchError> {
    let mut losses = BTreeSet::from([0]);
    for &percent in percents {
        if !(0.0..=MAX_LOSS).contains(&percent) {
            let message = format!("--loss is 0 to {MAX_LOSS} percent, not {percent}");
            return Err(BenchError::Usage(message));
        }
        losses.insert((percent * 10_000.0).round() as u32);
    }
    Ok(losses.into_iter().collect())
}
