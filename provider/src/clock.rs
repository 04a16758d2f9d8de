//! The provider's clock: CLOCK_BOOTTIME, which no administrator sets and which goes on while the machine sleeps.

use nix::time::{ClockId, clock_gettime};
use overbank_fabric::time::Tick;

/// Microseconds of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Now.
    ///
    /// # Panics
    /// Where the kernel has no CLOCK_BOOTTIME (before Linux 2.6.39): no lease could be kept there.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
        let part = |value: i64| u64::try_from(value).unwrap_or(0);
        Self(part(time.tv_sec()) * 1_000_000 + part(time.tv_nsec()) / 1000)
    }

    /// The tick that this lies in.
    #[must_use]
    pub fn tick(self) -> Tick {
        Tick(self.0 / 1000)
    }

    /// The beginning of a tick; the end of time where it lies beyond.
    #[must_use]
    pub fn of_tick(tick: Tick) -> Self {
        Self(tick.0.saturating_mul(1000))
    }

    /// This time and `ms` more.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Microseconds from `earlier` to this time; 0 where it lies before.
    #[must_use]
    pub fn us_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where the life cycle reads the time; a test hands in one that it moves by itself.
pub trait Clock: Send + Sync + 'static {
    /// The time now; never runs backwards.
    fn now(&self) -> BootTime;
}

/// The kernel's.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> BootTime {
        BootTime::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_begins_where_its_first_microsecond_lies() {
        assert_eq!(BootTime(1999).tick(), Tick(1));
        assert_eq!(BootTime::of_tick(Tick(2)).tick(), Tick(2));
        assert_eq!(BootTime::of_tick(Tick(u64::MAX)), BootTime(u64::MAX));
        let (one, two) = (BootTime::now(), BootTime::now());
        assert!(one <= two && one > BootTime(0));
    }
}
