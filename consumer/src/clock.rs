//! The clock that a lease is counted on: it goes on while the machine sleeps, and nobody can set it.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use overbank_fabric::ids::unhex;
use overbank_fabric::time::early_stop_ms;
use serde::{Deserialize, Serialize};

/// Milliseconds of this machine's CLOCK_BOOTTIME.
pub(crate) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux since 2.6.39 has CLOCK_BOOTTIME");
    let ms = now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000;
    u64::try_from(ms).expect("the clock counts up from the machine's start")
}

/// Milliseconds since 1970 by this machine's wall clock.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// This start of this machine. The clock of one start says nothing in another.
fn machine() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    unhex("a machine's boot id", &text.trim().replace('-', "")).ok()
}

/// Further than anybody looks, and near enough to add to any time.
const FAR: Duration = Duration::from_secs(365 * 86_400);

/// When a borrower stops using a lease: a little before its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Until {
    machine: Option<[u8; 16]>,
    ms: u64,
    /// How much sooner than the deadline that is.
    #[serde(default)]
    early_ms: u64,
}

impl Until {
    /// Of a lease of which somebody, asked at `asked_ms`, said that `left_ms` are left.
    pub(crate) fn new(asked_ms: u64, left_ms: u64) -> Self {
        let early_ms = early_stop_ms(left_ms).min(left_ms);
        Self { machine: machine(), ms: asked_ms.saturating_add(left_ms - early_ms), early_ms }
    }

    /// Of a lease of which nobody has said yet how long it lasts.
    pub(crate) fn unknown() -> Self {
        Self { machine: None, ms: 0, early_ms: 0 }
    }

    /// How long it is to the deadline itself; `None` as for [`Until::left`], and where it has come.
    pub(crate) fn left_to_deadline(self) -> Option<Duration> {
        let left = self.left()?;
        (!left.is_zero() && self.early_ms > 0).then(|| left + Duration::from_millis(self.early_ms))
    }

    /// How long is left; `None` where this was counted on another start of the machine, or on another machine.
    pub(crate) fn left(&self) -> Option<Duration> {
        (self.machine.is_some() && self.machine == machine()).then(|| self.left_here())
    }

    /// The same, on the clock of deadlines: sooner by however long the machine sleeps from now on.
    pub(crate) fn instant(&self) -> Instant {
        Instant::now() + self.left_here().min(FAR)
    }

    /// How long is left, of what was counted in this process.
    pub(crate) fn left_here(&self) -> Duration {
        Duration::from_millis(self.ms.saturating_sub(now_ms()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_borrower_stops_early_and_counts_from_before_it_asked() {
        let now = now_ms();
        let left = Until::new(now.saturating_sub(5_000), 60_000).left_here();
        assert!(left <= Duration::from_millis(54_000), "{left:?}");
        assert!(left > Duration::from_millis(50_000), "{left:?}");
        assert_eq!(Until::new(now, 999).left_here(), Duration::ZERO);
        assert_eq!(Until::new(u64::MAX, u64::MAX).ms, u64::MAX);
    }

    #[test]
    fn another_start_of_the_machine_says_nothing() {
        let here = Until::new(now_ms(), 60_000);
        assert!(here.left().is_some());
        assert_eq!(Until { machine: Some([0; 16]), ..here }.left(), None);
        assert_eq!(Until { machine: None, ..here }.left(), None);
    }
}
