//! Turns that time several things at once: the steps of one thing, or operations of several kinds in one sequence.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::error::BenchError;
use crate::figures::{Measured, Plan, Times, histogram};

/// Until so shortly before something is due, who waits for it sleeps.
const AWAKE: Duration = Duration::from_millis(1);

/// What is timed together.
pub(crate) struct Several<'a> {
    /// As they appear in the result.
    pub(crate) names: Vec<String>,
    /// Takes one turn: what each of them took, in the order of the names.
    pub(crate) turn: Box<Turn<'a>>,
}

type Turn<'a> = dyn FnMut(&Plan) -> Result<Vec<Times>, BenchError> + 'a;

/// Lets each take its turn in every round. What did not happen in a round has no histogram of it.
pub(crate) fn measure(plan: &Plan, several: &mut [Several<'_>]) -> Result<Vec<Measured>, BenchError> {
    let none = |one: &Several<'_>| one.names.iter().map(|name| Measured::new(name.clone(), Vec::new())).collect();
    let mut all: Vec<Vec<Measured>> = several.iter().map(none).collect();
    for round in 1..=plan.rounds {
        for (one, measured) in several.iter_mut().zip(&mut all) {
            let start = Instant::now();
            let times = (one.turn)(plan)?;
            let took = start.elapsed().as_secs_f64();
            let mut said = Vec::new();
            for (measured, times) in measured.iter_mut().zip(times) {
                if times.taken.is_empty() {
                    continue;
                }
                said.push(format!("{} {:.2}", measured.name, times.taken.value_at_quantile(0.5) as f64 / 1000.0));
                measured.rounds.push(times.taken);
                measured.since_due.extend(times.since_due);
            }
            eprintln!("round {round} of {}: p50 in µs: {}; in {took:.1} s", plan.rounds, said.join(", "));
        }
    }
    Ok(all.into_iter().flatten().filter(|measured| !measured.rounds.is_empty()).collect())
}

/// What the steps of one go took.
pub(crate) struct Watch(Vec<Option<Duration>>);

impl Watch {
    /// Does a step, and notes what it took.
    pub(crate) fn time<T>(
        &mut self,
        step: usize,
        work: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let start = Instant::now();
        let done = work()?;
        self.note(step, start.elapsed());
        Ok(done)
    }

    /// Notes what a step took.
    pub(crate) fn note(&mut self, step: usize, took: Duration) {
        if let Some(noted) = self.0.get_mut(step) {
            *noted = Some(took);
        }
    }
}

/// Something that is done again and again, always in the same steps: a histogram for each, and one for `whole`, from the
/// beginning of the first to the end of the last, with their names and `suffix`. Goes can be due at a rate; then that is
/// counted for `whole`.
pub(crate) fn in_steps<'a>(
    steps: &[&str],
    whole: &str,
    suffix: &str,
    mut once: impl FnMut(&mut Watch) -> Result<(), BenchError> + 'a,
) -> Several<'a> {
    let names = steps.iter().copied().chain([whole]).map(|name| format!("{name}{suffix}")).collect();
    let steps = steps.len();
    let turn = Box::new(move |plan: &Plan| {
        let mut times = (0..steps).map(|_| histogram()).collect::<Result<Vec<_>, _>>()?;
        let (mut all, mut since_due) = (histogram()?, histogram()?);
        let mut watch = Watch(vec![None; steps]);
        let start = Instant::now();
        for number in 0..plan.warmup + plan.count {
            let due = plan.due(number).map(|after| start + after);
            let begin = due.map_or_else(Instant::now, wait_until);
            watch.0.fill(None);
            once(&mut watch)?;
            let end = Instant::now();
            if number < plan.warmup {
                continue;
            }
            let record = |to: &mut Histogram<u64>, took: Duration| to.saturating_record(took.as_nanos() as u64);
            record(&mut all, end.duration_since(begin));
            due.into_iter().for_each(|due| record(&mut since_due, end.duration_since(due)));
            for (to, took) in times.iter_mut().zip(&watch.0) {
                took.iter().for_each(|took| record(to, *took));
            }
        }
        let mut times: Vec<Times> = times.into_iter().map(Times::from).collect();
        times.push(Times { taken: all, since_due: plan.per_second.map(|_| since_due) });
        Ok(times)
    });
    Several { names, turn }
}

/// Sleeps, and at the end spins, until then. When that is over: later where it was over before.
fn wait_until(due: Instant) -> Instant {
    loop {
        let now = Instant::now();
        match due.checked_duration_since(now) {
            None | Some(Duration::ZERO) => return now,
            Some(left) if left > AWAKE => std::thread::sleep(left - AWAKE),
            Some(_) => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(count: u64, per_second: Option<f64>) -> Plan {
        Plan { rounds: 2, count, warmup: 1, per_second }
    }

    #[test]
    fn each_step_has_its_own_histogram_and_the_whole_is_no_less() {
        let mut goes = 0;
        let subject = in_steps(&["a", "b", "never"], "all", "_x", |watch| {
            goes += 1;
            watch.time(0, || {
                std::thread::sleep(Duration::from_millis(2));
                Ok(())
            })?;
            watch.note(1, Duration::from_micros(7));
            Ok(())
        });
        let measured = measure(&plan(3, None), &mut [subject]).expect("nothing fails");
        let names: Vec<_> = measured.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a_x", "b_x", "all_x"]);
        assert!(measured.iter().all(|one| one.figures().count == 6 && one.rounds.len() == 2));
        let at = |number: usize| measured[number].figures();
        assert!(at(0).min_ns >= 2_000_000 && at(2).min_ns >= at(0).min_ns, "{:?}", at(0));
        assert_eq!((at(1).min_ns, at(1).max_ns / 100), (7000, 70));
        assert!(measured.iter().all(|one| one.since_due.is_empty()));
        drop(measured);
        assert_eq!(goes, 8);
    }

    #[test]
    fn goes_that_are_due_at_a_rate_count_their_waiting_once_all_is_done() {
        let mut goes = 0;
        let subject = in_steps(&["step"], "all", "", |watch| {
            goes += 1;
            let pause = Duration::from_millis(if goes == 2 { 30 } else { 0 });
            watch.time(0, || {
                std::thread::sleep(pause);
                Ok(())
            })
        });
        let once = Plan { rounds: 1, ..plan(6, Some(200.0)) };
        let measured = measure(&once, &mut [subject]).expect("nothing fails");
        assert!(measured[0].since_due.is_empty());
        let (all, due) = (measured[1].figures(), measured[1].figures().since_due.expect("there is a rate"));
        assert_eq!((all.count, due.count), (6, 6));
        // The second of all is the slow one; the third was due five milliseconds after it, and waited for its end.
        assert!(due.p50_ns >= 10_000_000 && all.min_ns < 10_000_000, "{due:?} {all:?}");
    }
}
