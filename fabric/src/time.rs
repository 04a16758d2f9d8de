//! Time as the provider counts it: whole milliseconds of its own boot clock, tied to one life of its process.

use serde::{Deserialize, Serialize};

use crate::ids::BootId;

/// Milliseconds of the provider's CLOCK_BOOTTIME. Two ticks compare only under the same [`BootId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tick(pub u64);

impl Tick {
    /// This tick and `ms` more; stays at the end of time rather than wrap.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this tick; 0 where it lies before.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// When a lease ends, on the only clock that counts for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadline {
    /// The provider's life that this tick belongs to.
    pub boot: BootId,
    /// The first tick at which the lease is over.
    pub tick: Tick,
}

/// How long before the deadline a borrower stops by itself: 1 s or 500 ppm of what is left, the greater. Clocks of two
/// machines drift by less, and an answer in flight takes less.
#[must_use]
pub fn early_stop_ms(left_ms: u64) -> u64 {
    (left_ms / 2000).max(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowers_stop_a_second_or_500_ppm_early() {
        assert_eq!(early_stop_ms(600_000), 1000);
        assert_eq!(early_stop_ms(24 * 3_600_000), 43_200);
    }

    #[test]
    fn ticks_neither_wrap_nor_underflow() {
        assert_eq!(Tick(u64::MAX).after_ms(1), Tick(u64::MAX));
        assert_eq!(Tick(1).ms_since(Tick(2)), 0);
    }
}
