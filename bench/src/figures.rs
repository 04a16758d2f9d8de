//! Timing one thing many times, and what is said of it afterwards.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::BenchError;

/// Longest time that a histogram tells apart from longer ones: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;
/// Significant decimal digits that a histogram keeps.
const DIGITS: u8 = 3;

/// How often something is done.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Plan {
    /// Rounds: in each, every subject takes its turn.
    pub(crate) rounds: usize,
    /// Operations timed in each turn.
    pub(crate) count: u64,
    /// Operations before those, untimed.
    pub(crate) warmup: u64,
    /// Operations due each second; none: each begins when the one before has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_second: Option<f64>,
}

impl Plan {
    /// How long after the first operation of a turn this one is due.
    pub(crate) fn due(&self, number: u64) -> Option<Duration> {
        self.per_second.map(|rate| Duration::from_secs_f64(number as f64 / rate))
    }
}

/// What one turn took.
pub(crate) struct Times {
    /// Nanoseconds from the beginning of each operation to its end.
    pub(crate) taken: Histogram<u64>,
    /// Where operations are due at a rate: from then to its end. One that waits because the one before took long counts
    /// its waiting, which `taken` leaves out (coordinated omission).
    pub(crate) since_due: Option<Histogram<u64>>,
}

impl From<Histogram<u64>> for Times {
    fn from(taken: Histogram<u64>) -> Self {
        Self { taken, since_due: None }
    }
}

/// Something whose time is taken.
pub(crate) struct Subject<'a> {
    /// As it appears in the result.
    pub(crate) name: String,
    /// Takes one turn: how many nanoseconds each operation took that counts.
    pub(crate) turn: Box<Turn<'a>>,
    /// Whether operations begin when they are due, where there is a rate.
    pub(crate) keeps_rate: bool,
}

type Turn<'a> = dyn FnMut(&Plan) -> Result<Times, BenchError> + 'a;

impl<'a> Subject<'a> {
    /// Timed from outside, from one look at the clock to the next (about 25 ns, in every figure alike).
    pub(crate) fn timed(name: impl Into<String>, mut once: impl FnMut() -> Result<(), BenchError> + 'a) -> Self {
        let turn = Box::new(move |plan: &Plan| {
            if plan.per_second.is_some() {
                return at_rate(plan, &mut once);
            }
            let mut looks = Looks::new(plan);
            for _ in 0..plan.warmup {
                once()?;
            }
            looks.look();
            for _ in 0..plan.count {
                once()?;
                looks.look();
            }
            looks.times(1).map(Times::from)
        });
        Self { name: name.into(), turn, keeps_rate: true }
    }

    /// Whose turns are made elsewhere, and know of no rate.
    pub(crate) fn at_its_own_pace(
        name: impl Into<String>,
        turn: impl FnMut(&Plan) -> Result<Times, BenchError> + 'a,
    ) -> Self {
        Self { name: name.into(), turn: Box::new(turn), keeps_rate: false }
    }

    /// One operation at a time, which says by itself how many nanoseconds it took.
    pub(crate) fn sampled(name: impl Into<String>, mut once: impl FnMut() -> Result<u64, BenchError> + 'a) -> Self {
        Self::at_its_own_pace(name, move |plan: &Plan| {
            let mut times = histogram()?;
            for _ in 0..plan.warmup {
                once()?;
            }
            for _ in 0..plan.count {
                times.saturating_record(once()?);
            }
            Ok(times.into())
        })
    }
}

/// One turn in which operations are due at a rate, whether or not the one before has ended.
fn at_rate(plan: &Plan, mut once: impl FnMut() -> Result<(), BenchError>) -> Result<Times, BenchError> {
    let (mut taken, mut since_due) = (histogram()?, histogram()?);
    let start = Instant::now();
    for number in 0..plan.warmup + plan.count {
        let due = start + plan.due(number).unwrap_or_default();
        let mut begin = Instant::now();
        while begin < due {
            std::hint::spin_loop();
            begin = Instant::now();
        }
        once()?;
        let end = Instant::now();
        if number >= plan.warmup {
            taken.saturating_record(end.duration_since(begin).as_nanos() as u64);
            since_due.saturating_record(end.duration_since(due).as_nanos() as u64);
        }
    }
    Ok(Times { taken, since_due: Some(since_due) })
}

/// When each operation of a turn ended and the next began. Sorted into a histogram only afterwards: between two looks
/// nothing happens but the operation.
pub(crate) struct Looks(Vec<Instant>);

impl Looks {
    /// For one turn.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self(Vec::with_capacity(plan.count as usize + 1))
    }

    /// Now.
    pub(crate) fn look(&mut self) {
        self.0.push(Instant::now());
    }

    /// Nanoseconds from each look to the next, of operations that are `parts` of what is timed.
    pub(crate) fn times(&self, parts: u64) -> Result<Histogram<u64>, BenchError> {
        let mut times = histogram()?;
        for (start, end) in self.0.iter().zip(self.0.iter().skip(1)) {
            times.saturating_record(end.duration_since(*start).as_nanos() as u64 / parts);
        }
        Ok(times)
    }
}

/// All that was measured of one subject: a histogram of nanoseconds for each round.
pub(crate) struct Measured {
    /// The subject's name.
    pub(crate) name: String,
    /// Round by round.
    pub(crate) rounds: Vec<Histogram<u64>>,
    /// Of operations that were due at a rate: since then.
    pub(crate) since_due: Vec<Histogram<u64>>,
}

/// Nanoseconds: of each percentile and the mean the median over the rounds, and the extremes of all of them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// Operations timed, in all rounds.
    pub(crate) count: u64,
    /// Median.
    pub(crate) p50_ns: u64,
    /// 99 of 100 took at most this long.
    pub(crate) p99_ns: u64,
    /// 999 of 1000 took at most this long.
    pub(crate) p999_ns: u64,
    /// Mean.
    pub(crate) mean_ns: u64,
    /// Shortest.
    pub(crate) min_ns: u64,
    /// Longest.
    pub(crate) max_ns: u64,
    /// The median of each round: how steady the machine was.
    pub(crate) p50_ns_by_round: Vec<u64>,
    /// The same counted from when each operation was due, where there was a rate: what a caller waits who cannot wait with
    /// its asking. The others are uncorrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since_due: Option<Box<Figures>>,
}

/// Lets every subject take its turn in every round, so that what disturbs the machine disturbs them all.
pub(crate) fn measure(plan: &Plan, subjects: &mut [Subject<'_>]) -> Result<Vec<Measured>, BenchError> {
    if plan.per_second.is_some() {
        let own_pace: Vec<_> = subjects.iter().filter(|one| !one.keeps_rate).map(|one| one.name.as_str()).collect();
        if !own_pace.is_empty() {
            let message = format!("--rate cannot be kept by {}: leave it out, or them", own_pace.join(", "));
            return Err(BenchError::Usage(message));
        }
    }
    let none = |subject: &Subject<'_>| Measured::new(subject.name.clone(), Vec::new());
    let mut all: Vec<_> = subjects.iter().map(none).collect();
    for round in 1..=plan.rounds {
        for (subject, measured) in subjects.iter_mut().zip(&mut all) {
            let start = Instant::now();
            let times = (subject.turn)(plan)?;
            let (p50, took) = (times.taken.value_at_quantile(0.5) as f64 / 1000.0, start.elapsed().as_secs_f64());
            eprintln!("round {round} of {}: {}: p50 {p50:.2} µs, in {took:.1} s", plan.rounds, subject.name);
            measured.rounds.push(times.taken);
            measured.since_due.extend(times.since_due);
        }
    }
    Ok(all)
}

/// An empty one.
pub(crate) fn histogram() -> Result<Histogram<u64>, BenchError> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS).map_err(|error| BenchError::Histogram(error.to_string()))
}

impl Measured {
    /// Of operations that were not due at a rate.
    pub(crate) fn new(name: impl Into<String>, rounds: Vec<Histogram<u64>>) -> Self {
        Self { name: name.into(), rounds, since_due: Vec::new() }
    }

    /// Its histograms, each with a name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (String, &[Histogram<u64>])> {
        let since_due = (!self.since_due.is_empty()).then(|| (format!("{}_since_due", self.name), &*self.since_due));
        std::iter::once((self.name.clone(), &*self.rounds)).chain(since_due)
    }

    /// The median, in microseconds.
    pub(crate) fn median_us(&self) -> f64 {
        self.figures().p50_ns as f64 / 1000.0
    }

    /// What is said of it.
    pub(crate) fn figures(&self) -> Figures {
        let mut figures = Figures::of(&self.rounds);
        figures.since_due = (!self.since_due.is_empty()).then(|| Box::new(Figures::of(&self.since_due)));
        figures
    }
}

impl Figures {
    fn of(rounds: &[Histogram<u64>]) -> Self {
        let percentile = |quantile: f64| median(rounds.iter().map(|round| round.value_at_quantile(quantile)).collect());
        Self {
            count: rounds.iter().map(Histogram::len).sum(),
            p50_ns: percentile(0.5),
            p99_ns: percentile(0.99),
            p999_ns: percentile(0.999),
            mean_ns: median(rounds.iter().map(|round| round.mean().round() as u64).collect()),
            min_ns: rounds.iter().map(Histogram::min).min().unwrap_or(0),
            max_ns: rounds.iter().map(Histogram::max).max().unwrap_or(0),
            p50_ns_by_round: rounds.iter().map(|round| round.value_at_quantile(0.5)).collect(),
            since_due: None,
        }
    }
}

/// The middle one; of an even number the lower middle, so that it is one that was measured.
pub(crate) fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(median(vec![]), 0);
        assert_eq!(median(vec![7]), 7);
        assert_eq!(median(vec![9, 1]), 1);
        assert_eq!(median(vec![9, 1, 5]), 5);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut next = 0;
        let counting = Subject::sampled("counting", || {
            next += 1;
            Ok(next)
        });
        let plan = Plan { rounds: 1, count: 1000, warmup: 0, per_second: None };
        let measured = measure(&plan, &mut [counting]).expect("nothing fails");
        let figures = measured[0].figures();
        assert_eq!((figures.p50_ns, figures.p99_ns, figures.p999_ns), (500, 990, 999));
        assert_eq!((figures.count, figures.min_ns, figures.max_ns, figures.mean_ns), (1000, 1, 1000, 501));
    }

    #[test]
    fn warm_up_is_not_counted_and_rounds_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let subject = |name: &'static str| {
            let order = &order;
            Subject::timed(name, move || {
                order.borrow_mut().push_str(name);
                Ok(())
            })
        };
        let plan = Plan { rounds: 2, count: 2, warmup: 1, per_second: None };
        let measured = measure(&plan, &mut [subject("a"), subject("b")]).expect("nothing fails");
        assert_eq!(measured[0].figures().count, 4);
        assert_eq!(*order.borrow(), "aaabbbaaabbb");
    }

    #[test]
    fn a_rate_that_somebody_cannot_keep_is_refused_before_anything_runs() {
        let ran = std::cell::Cell::new(0);
        let count = || {
            ran.set(ran.get() + 1);
            Ok(())
        };
        let elsewhere = |_: &Plan| histogram().map(Times::from);
        let plan = Plan { rounds: 1, count: 1, warmup: 0, per_second: Some(1e6) };
        let mut subjects = [
            Subject::timed("timed", count),
            Subject::sampled("sampled", || Ok(1)),
            Subject::at_its_own_pace("elsewhere", elsewhere),
        ];
        match measure(&plan, &mut subjects) {
            Err(BenchError::Usage(message)) => assert!(message.contains("by sampled, elsewhere: "), "{message}"),
            _ => panic!("it was not refused"),
        }
        assert_eq!(ran.get(), 0);
        assert!(measure(&plan, &mut subjects[..1]).is_ok());
        assert!(measure(&Plan { per_second: None, ..plan }, &mut subjects).is_ok());
    }

    #[test]
    fn who_waits_for_one_that_takes_long_counts_it() {
        // Due each millisecond; the second takes 20.
        let mut number = 0;
        let subject = Subject::timed("slow", move || {
            number += 1;
            std::thread::sleep(Duration::from_millis(if number == 2 { 20 } else { 0 }));
            Ok(())
        });
        let plan = Plan { rounds: 1, count: 10, warmup: 0, per_second: Some(1000.0) };
        let figures = measure(&plan, &mut [subject]).expect("nothing fails")[0].figures();
        let since_due = figures.since_due.clone().expect("there is a rate");
        assert_eq!((figures.count, since_due.count), (10, 10));
        // Of nine that were due meanwhile or later, the last was due eight milliseconds after the slow one.
        assert!(since_due.p50_ns >= 10_000_000, "{since_due:?}");
        assert!(figures.min_ns < 10_000_000, "{figures:?}");
        assert!(figures.p50_ns <= since_due.p50_ns, "{figures:?}");
    }
}
