//! Time as the engine has it, and which queue pair is waiting until when.

use std::collections::BTreeSet;
use std::time::Duration;

/// Nanoseconds of a monotonic clock that whoever calls the engine keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Now(pub(crate) u64);

impl Now {
    /// So many nanoseconds later; stays at the end of time rather than wrap.
    pub(crate) fn after(self, delay: u64) -> Self {
        Self(self.0.saturating_add(delay))
    }

    /// Nanoseconds from `earlier` to here; none where it lies ahead.
    pub(crate) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// As many nanoseconds, or as there can be.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Alarms, the earliest first. Moving a deadline back costs nothing: the alarm rings at its old time, its queue pair
/// says that it is not due, and sets it anew. So one queue pair has one alarm, however many packets push it back.
#[derive(Default)]
pub(super) struct Timers {
    alarms: BTreeSet<(Now, u32)>,
}

impl Timers {
    /// In place of `old`, if that is set.
    pub(super) fn set(&mut self, at: Now, old: Option<Now>, qpn: u32) {
        self.clear(old, qpn);
        self.alarms.insert((at, qpn));
    }

    pub(super) fn clear(&mut self, old: Option<Now>, qpn: u32) {
        if let Some(old) = old {
            self.alarms.remove(&(old, qpn));
        }
    }

    pub(super) fn next(&self) -> Option<Now> {
        self.alarms.first().map(|(at, _)| *at)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.alarms.len()
    }

    /// Takes an alarm whose time has come.
    pub(super) fn take_due(&mut self, now: Now) -> Option<(Now, u32)> {
        if self.next()? <= now { self.alarms.pop_first() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_ring_in_order_and_not_early() {
        let mut timers = Timers::default();
        for (at, qpn) in [(30, 3), (10, 1), (20, 2)] {
            timers.set(Now(at), None, qpn);
        }
        timers.set(Now(40), None, 4);
        timers.set(Now(5), Some(Now(40)), 4);
        timers.clear(Some(Now(5)), 4);
        assert_eq!(timers.take_due(Now(9)), None);
        assert_eq!(timers.take_due(Now(20)), Some((Now(10), 1)));
        assert_eq!(timers.take_due(Now(20)), Some((Now(20), 2)));
        assert_eq!(timers.take_due(Now(20)), None);
        assert_eq!(timers.next(), Some(Now(30)));
    }

    #[test]
    fn time_ends_rather_than_wraps() {
        assert_eq!(Now(u64::MAX - 1).after(2), Now(u64::MAX));
        assert_eq!(nanoseconds(Duration::MAX), u64::MAX);
        assert_eq!(nanoseconds(Duration::from_micros(3)), 3000);
    }
}
