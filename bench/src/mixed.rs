//! `overbank-bench mixed`: sealed reads and writes mixed, in an order that follows from a seed.

use std::time::Instant;

use overbank::{LeaseId, Size};

use crate::accesses::{Accesses, Pattern, Shape};
use crate::error::BenchError;
use crate::existing::Existing;
use crate::figures::{Plan, Times, histogram};
use crate::options::Measuring;
use crate::report::Report;
use crate::sealed::Sealed;
use crate::several::{Several, measure};
use crate::stack::{POOL, Places, Setup, Stack};
use crate::stamps::{MARK, Stamps};

/// Largest `--span`.
const MAX_SPAN: u64 = 1 << 40;

const EXAMPLES: &str = "\
One operation at a time, busy polling. mixed_read and mixed_write are the reads and the writes,
mixed is both together. Which operation comes when follows from --seed (with --reads, --pattern,
--theta, --span and --size) alone; the result has the SHA-256 of the sequence. Every place is
written once before, and each read is checked to bring what was written there last.
With --rate operations are due at that rate, and all three are also counted from when each was due.

Examples
  overbank-bench mixed --self-contained
  overbank-bench mixed --self-contained --reads 50 --pattern uniform --size 65536 --span 64MiB --json
  overbank-bench mixed --self-contained --pattern zipf --theta 1.2 --rate 20000 --out DIR
  overbank-bench mixed --authd 10.0.0.1 --lease LEASE --seed 7";

/// What `mixed` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Mixed {
    /// Reads of a hundred operations, 0 to 100; the others are writes
    #[arg(long, default_value_t = 95, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Which places are popular
    #[arg(long, value_enum, default_value_t = Pattern::Zipf)]
    pattern: Pattern,
    /// How much more popular the first places are than the others, 0 to 10; for --pattern zipf
    #[arg(long, default_value_t = 0.99)]
    theta: f64,
    /// Bytes of the lease that operations go to
    #[arg(long, default_value = "16MiB")]
    span: Size,
    /// Bytes of one operation, 16 to 1 MiB
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// What the order of the operations follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Start an auth daemon and a provider for this measurement, from the programs beside this one
    #[arg(long, conflicts_with_all = ["authd", "home", "lease"])]
    self_contained: bool,
    #[command(flatten)]
    existing: Existing,
    /// A lease to measure on; what is in it is OVERWRITTEN [default: one that is made for this, and given back]
    #[arg(long, value_name = "LEASE")]
    lease: Option<LeaseId>,
    /// The RDMA device of every end that is started here: auto, soft, or a name
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    measuring: Measuring,
}

impl Mixed {
    /// The operations, if they make a figure.
    fn shape(&self) -> Result<Shape, BenchError> {
        let usage = |message: String| Err(BenchError::Usage(message));
        let (size, span) = (self.size, self.span);
        if !(MARK..=1 << 20).contains(&size) {
            return usage(format!("--size is {MARK} to 1048576 bytes, not {size}"));
        }
        if !(size as u64..=MAX_SPAN).contains(&span.0) {
            return usage(format!("--span is at least --size, and at most 1TiB, not {span}"));
        }
        if !(0.0..=10.0).contains(&self.theta) {
            return usage(format!("--theta is 0 to 10, not {}", self.theta));
        }
        let Ok(places) = u32::try_from(span.0 / size as u64) else {
            return usage(format!("{span} have more than {} places of {size} bytes: raise --size", u32::MAX));
        };
        Ok(Shape { places, reads: self.reads, pattern: self.pattern, theta: self.theta, seed: self.seed })
    }
}

/// Measures and reports.
pub(crate) fn run(mixed: &Mixed) -> Result<(), BenchError> {
    let shape = mixed.shape()?;
    let plan = mixed.measuring.plan()?;
    let cpus = mixed.measuring.cpus()?;
    let (config, _stack) = if mixed.self_contained {
        let places = Places { home: cpus.asker, authd: cpus.asker, provider: cpus.answerer };
        // Room for the headers of the blocks too.
        let pool = Size((mixed.span.0 + mixed.span.0 / 8).next_multiple_of(2 << 20).max(POOL.0));
        let mut setup = Setup::new(&mixed.device, pool);
        setup.places = Some(places);
        let stack = Stack::set_up(&setup)?;
        (stack.config.clone(), Some(stack))
    } else {
        (mixed.existing.config()?, None)
    };
    let sealed = Sealed::empty(&config, mixed.lease, &mixed.device, mixed.size, mixed.span.0)?;
    if sealed.places() < u64::from(shape.places) {
        let message = format!("the lease is smaller than --span {}: lower that", mixed.span);
        return Err(BenchError::Usage(message));
    }
    let wire = sealed.wire_bytes();
    let mut mixture = Mixture::new(sealed, shape, mixed.size)?;
    let names = ["mixed_read", "mixed_write", "mixed"].map(str::to_owned).to_vec();
    let measured = measure(&plan, &mut [Several { names, turn: Box::new(|plan| mixture.turn(plan)) }]);
    let Mixture { sealed, accesses, .. } = mixture;
    // The lease is given back whatever came of it.
    let finished = sealed.finish();
    let measured = measured?;
    finished?;

    let mut report = Report::new("mixed", cpus, &plan)?;
    report.times(measured)?;
    report.setting("reads_percent", shape.reads);
    report.setting("pattern", shape.pattern.name());
    if shape.pattern == Pattern::Zipf {
        report.setting("theta", shape.theta);
    }
    report.setting("seed", shape.seed);
    report.setting("sequence_sha256", accesses.digest());
    report.setting("span", mixed.span.0);
    report.setting("places", shape.places);
    report.setting("size", mixed.size);
    report.setting("wire_bytes", wire);
    report.device("device", &mixed.device);
    report.setting("self_contained", mixed.self_contained);
    report.ratio("mixed_write / mixed_read", "mixed_write", "mixed_read");
    mixed.measuring.finish(report)
}

/// The operations on the lease, and what they left there.
struct Mixture {
    sealed: Sealed,
    accesses: Accesses,
    stamps: Stamps,
    /// What is written, and what is read.
    out: Vec<u8>,
    back: Vec<u8>,
}

impl Mixture {
    /// Writes every place once: one that was never written would cost a read too little.
    fn new(mut sealed: Sealed, shape: Shape, size: usize) -> Result<Self, BenchError> {
        let (mut stamps, mut out) = (Stamps::new(shape.places), vec![0xA5; size]);
        for place in 0..shape.places {
            stamps.stamp(place, &mut out);
            sealed.write_at(place, &out)?;
        }
        Ok(Self { sealed, accesses: Accesses::new(shape)?, stamps, out, back: vec![0; size] })
    }

    /// The next operations of the sequence. Marking what is written and checking what was read lies between the
    /// operations, and counts for none.
    fn turn(&mut self, plan: &Plan) -> Result<Vec<Times>, BenchError> {
        let mut times = [Both::new()?, Both::new()?, Both::new()?];
        let sequence = self.accesses.draw(plan.warmup + plan.count);
        let start = Instant::now();
        for (number, access) in (0..).zip(sequence) {
            let due = plan.due(number).map(|after| start + after);
            if access.write {
                self.stamps.stamp(access.place, &mut self.out);
            }
            let mut begin = Instant::now();
            while due.is_some_and(|due| begin < due) {
                std::hint::spin_loop();
                begin = Instant::now();
            }
            if access.write {
                self.sealed.write_at(access.place, &self.out)?;
            } else {
                self.sealed.read_at(access.place, &mut self.back)?;
            }
            let end = Instant::now();
            if !access.write {
                self.stamps.check(access.place, &self.back)?;
            }
            if number >= plan.warmup {
                times[usize::from(access.write)].record(begin, due, end);
                times[2].record(begin, due, end);
            }
        }
        Ok(times.into_iter().map(|both| both.times(plan)).collect())
    }
}

/// From the beginning of an operation, and from when it was due.
struct Both {
    taken: hdrhistogram::Histogram<u64>,
    since_due: hdrhistogram::Histogram<u64>,
}

impl Both {
    fn new() -> Result<Self, BenchError> {
        Ok(Self { taken: histogram()?, since_due: histogram()? })
    }

    fn record(&mut self, begin: Instant, due: Option<Instant>, end: Instant) {
        self.taken.saturating_record(end.duration_since(begin).as_nanos() as u64);
        if let Some(due) = due {
            self.since_due.saturating_record(end.duration_since(due).as_nanos() as u64);
        }
    }

    fn times(self, plan: &Plan) -> Times {
        Times { taken: self.taken, since_due: plan.per_second.map(|_| self.since_due) }
    }
}
