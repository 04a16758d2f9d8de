//! What every measuring command takes.

use std::path::PathBuf;

use crate::cpus::{self, Cpus};
use crate::error::BenchError;
use crate::figures::Plan;
use crate::rates::Pace;
use crate::report::Report;

/// Most operations of one turn: when each of them ended is kept until its end.
const MOST: u64 = 10_000_000;

/// How often, where, and what is kept.
#[derive(clap::Args)]
pub(crate) struct Measuring {
    /// Rounds; in each, everything measured takes its turn, and the figures are medians over the rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Operations timed in each turn
    #[arg(long, default_value_t = 20_000)]
    count: u64,
    /// Operations before each turn, untimed
    #[arg(long, default_value_t = 2_000)]
    warmup: u64,
    /// Operations due each second, whether or not the one before has ended; then times are also counted from when each was
    /// due [default: each begins when the one before has ended]
    #[arg(long, value_name = "PER-SECOND")]
    rate: Option<f64>,
    #[command(flatten)]
    output: Output,
}

/// How long, where operations are counted by the second.
#[derive(clap::Args)]
pub(crate) struct Period {
    /// Seconds of each turn
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds before each turn that do not count
    #[arg(long, default_value_t = 0.2)]
    warmup_seconds: f64,
}

impl Period {
    /// With so many rounds, and operations in place of the time; if that makes a figure.
    pub(crate) fn pace(&self, rounds: usize, count: Option<u64>) -> Result<Pace, BenchError> {
        let Self { seconds, warmup_seconds } = *self;
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

/// Where it runs, and what becomes of the figures.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Processors of the asking and the answering end [default: the first two allowed]
    #[arg(long, value_name = "A,B")]
    cpus: Option<String>,
    /// Print JSON: figures in nanoseconds and the machine's record
    #[arg(long)]
    json: bool,
    /// Keep the raw data there: JSON, and every round's histogram in HdrHistogram's log format
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Output {
    /// The two processors; this thread, and what it starts from now on, runs on the first.
    pub(crate) fn cpus(&self) -> Result<Cpus, BenchError> {
        let cpus = Cpus::choose(self.cpus.as_deref())?;
        cpus::pin(cpus.asker)?;
        Ok(cpus)
    }

    /// Prints the report and keeps what is to be kept.
    pub(crate) fn finish(&self, report: Report) -> Result<(), BenchError> {
        report.finish(self.json, self.out.as_deref())
    }
}

impl Measuring {
    /// How often, if that makes a figure.
    pub(crate) fn plan(&self) -> Result<Plan, BenchError> {
        if self.rounds == 0 || !(1..=MOST).contains(&self.count) || self.warmup > MOST {
            let message = format!("--rounds is at least 1, --count 1 to {MOST}, --warmup at most that");
            return Err(BenchError::Usage(message));
        }
        if self.rate.is_some_and(|rate| !(0.01..=1e8).contains(&rate)) {
            return Err(BenchError::Usage("--rate is 0.01 to 100000000 operations a second".to_owned()));
        }
        Ok(Plan { rounds: self.rounds, count: self.count, warmup: self.warmup, per_second: self.rate })
    }

    /// The two processors; this thread, and what it starts from now on, runs on the first.
    pub(crate) fn cpus(&self) -> Result<Cpus, BenchError> {
        self.output.cpus()
    }

    /// Prints the report and keeps what is to be kept.
    pub(crate) fn finish(&self, report: Report) -> Result<(), BenchError> {
        self.output.finish(report)
    }
}
