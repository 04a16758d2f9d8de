//! `overbank-bench throughput`: how many READs or WRITEs a second, many at a time, and what went lost on the way.

use std::cell::RefCell;
use std::collections::BTreeSet;

use overbank_verbs::Op;

use crate::cpus::Cpus;
use crate::ends::{Ends, MAX_SIZE};
use crate::error::BenchError;
use crate::options::Output;
use crate::pipeline::{Pipeline, Shape};
use crate::rates::{Pace, Subject, measure};
use crate::report::Report;

/// Most operations outstanding in one queue pair.
pub(crate) const MAX_DEPTH: u32 = 4096;
/// Most bytes of all operations outstanding.
const MAX_SPAN: usize = 1 << 30;
/// Most of the datagrams, in percent, that may be lost on purpose.
const MAX_LOSS: f64 = 50.0;

const EXAMPLES: &str = "\
Two processes, each on a processor of its own; both poll. After every turn the bytes are checked. Of the packets both
ends are counted, warm-up included: sent, sent again, dropped by reason.

Examples
  overbank-bench throughput --device soft --op read --size 4096 --depth 32 --seconds 2
  overbank-bench throughput --device soft --op read,write --size 65536 --depth 16 --json
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
pub(crate) struct Rating {
    /// Rounds; in each, everything measured takes its turn, and the figures are medians over the rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each turn
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Operations of each turn, in place of the time
    #[arg(long, conflicts_with = "seconds")]
    count: Option<u64>,
    /// Seconds before each turn that do not count
    #[arg(long, default_value_t = 0.2)]
    warmup_seconds: f64,
}

impl Rating {
    /// How often and how long, if that makes a figure.
    fn pace(&self) -> Result<Pace, BenchError> {
        let Self { rounds, seconds, count, warmup_seconds } = *self;
        if rounds == 0 || !(0.001..=3600.0).contains(&seconds) || count == Some(0) {
            let message = "--rounds is at least 1, --seconds 0.001 to 3600, --count at least 1";
            return Err(BenchError::Usage(message.to_owned()));
        }
        if !(0.0..=60.0).contains(&warmup_seconds) {
            return Err(BenchError::Usage("--warmup-seconds is 0 to 60".to_owned()));
        }
        Ok(Pace { rounds, seconds, count, warmup_seconds })
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Kind {
    /// READs
    Read,
    /// WRITEs
    Write,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
        }
    }
}

/// Measures and reports.
pub(crate) fn run(throughput: &Throughput) -> Result<(), BenchError> {
    let pace = throughput.rating.pace()?;
    let shapes = shapes(throughput)?;
    let cpus = throughput.output.cpus()?;
    let ops: BTreeSet<_> = throughput.op.iter().copied().collect();
    let pipelines = start(&throughput.ends, &shapes, cpus)?;
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
    let rated = measure(&pace, &mut subjects)?;
    drop(subjects);

    let mut report = Report::new("throughput", cpus, &pace)?;
    report.rates(rated)?;
    report.setting("device", throughput.ends.device.as_str());
    report.setting("peer_device", throughput.ends.peer_device());
    report.setting("depth", throughput.depth.clone());
    report.setting("lanes", throughput.lanes);
    report.setting("loss_percent", throughput.loss.clone());
    if let Some((own, other)) = pipelines.first().and_then(|pipeline| pipeline.borrow().reach()) {
        report.setting("mtu", own.path_mtu(&other));
    }
    for (lossy, lossless) in &pairs {
        report.ratio(&format!("{lossy} / {lossless}"), lossy, lossless);
    }
    throughput.output.finish(&report)
}

fn start(ends: &Ends, shapes: &[Shape], cpus: Cpus) -> Result<Vec<RefCell<Pipeline>>, BenchError> {
    shapes.iter().map(|shape| Ok(RefCell::new(Pipeline::start(ends, *shape, cpus)?))).collect()
}

/// Every size at every depth, without loss and with each loss that was asked for.
fn shapes(throughput: &Throughput) -> Result<Vec<Shape>, BenchError> {
    let usage = |message: String| Err(BenchError::Usage(message));
    let mut losses = BTreeSet::from([0]);
    for &percent in &throughput.loss {
        if !(0.0..=MAX_LOSS).contains(&percent) {
            return usage(format!("--loss is 0 to {MAX_LOSS} percent, not {percent}"));
        }
        losses.insert((percent * 10_000.0).round() as u32);
    }
    let sizes: BTreeSet<_> = throughput.size.iter().copied().collect();
    let depths: BTreeSet<_> = throughput.depth.iter().copied().collect();
    let lanes = throughput.lanes;
    let mut shapes = Vec::new();
    for &size in &sizes {
        if !(1..=MAX_SIZE).contains(&size) {
            return usage(format!("--size is 1 to {MAX_SIZE} bytes, not {size}"));
        }
        for &depth in &depths {
            if !(1..=MAX_DEPTH).contains(&depth) {
                return usage(format!("--depth is 1 to {MAX_DEPTH}, not {depth}"));
            }
            let span = size * depth as usize * usize::from(lanes);
            if span > MAX_SPAN {
                return usage(format!(
                    "{span} bytes outstanding are more than {MAX_SPAN}: lower --size, --depth or --lanes"
                ));
            }
            shapes.extend(losses.iter().map(|&lose_per_million| Shape { size, depth, lanes, lose_per_million }));
        }
    }
    Ok(shapes)
}
