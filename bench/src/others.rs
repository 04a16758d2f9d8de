//! What everybody else does meanwhile: processor time that neither this process nor any that it started has used.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::process;

/// What the kernel's counts may differ by: each process's is cut off to hundredths of a second, four times.
const GRAIN: Duration = Duration::from_millis(200);

/// When this program began.
static BEGIN: OnceLock<(Instant, Option<Used>)> = OnceLock::new();

/// Processor time so far.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// Of all processes; without interrupts, which the kernel charges to whom they hit.
    all: Duration,
    /// Of this one and those that it started.
    own: Duration,
}

impl Used {
    fn now() -> Option<Self> {
        let own = process::family(std::process::id())?;
        Some(Self { all: of_all(&fs::read_to_string("/proc/stat").ok()?)?, own })
    }
}

/// Begins to watch.
pub(crate) fn watch() {
    let _ = BEGIN.set((Instant::now(), Used::now()));
}

/// How many processors others kept busy since then, at least; none where nobody watches or the kernel does not tell.
pub(crate) fn busy() -> Option<f64> {
    let (begin, before) = BEGIN.get()?;
    Some(share(before.as_ref()?, &Used::now()?, begin.elapsed()))
}

/// Of what is used between two looks.
fn share(before: &Used, after: &Used, time: Duration) -> f64 {
    let all = after.all.saturating_sub(before.all);
    let others = all.saturating_sub(after.own.saturating_sub(before.own)).saturating_sub(GRAIN);
    let share = others.as_secs_f64() / time.as_secs_f64().max(1e-3);
    (share * 100.0).floor() / 100.0
}

/// What `/proc/stat` says of all processors: user, nice and system.
fn of_all(stat: &str) -> Option<Duration> {
    let columns = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = columns.split_whitespace().take(3).map_while(|column| column.parse().ok()).collect();
    (ticks.len() == 3 && ticks[0] > 0).then(|| process::time(ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_use_what_we_do_not() {
        let used = |all, own| Used { all: Duration::from_secs(all), own: Duration::from_secs(own) };
        let time = Duration::from_secs(10);
        assert_eq!(share(&used(100, 7), &used(120, 22), time), 0.48);
        // Whatever the two counts differ by.
        assert_eq!(share(&used(100, 7), &used(120, 27), time), 0.0);
        assert_eq!(share(&used(100, 7), &used(120, 28), time), 0.0);
        let grain = Duration::from_secs(20) + GRAIN;
        let after = Used { all: Duration::from_secs(100) + grain, own: Duration::from_secs(27) };
        assert_eq!(share(&used(100, 7), &after, time), 0.0);
        assert_eq!(share(&used(0, 0), &used(0, 0), Duration::ZERO), 0.0);
    }

    #[test]
    fn the_kernel_tells_of_all_processors_together() {
        let stat = "cpu  100 20 3 4000 5 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(of_all(stat), Some(Duration::from_millis(1230)));
        for none in ["", "cpu0 1 2 3", "cpu  1 2", "cpu  0 0 0 0", "cpu  a b c"] {
            assert_eq!(of_all(none), None, "{none}");
        }
        let (before, after) = (Used::now().expect("it tells"), Used::now().expect("it tells"));
        assert!(before.all <= after.all && before.own <= after.own, "{before:?} {after:?}");
    }
}
