//! Time as the decisions see it: handed in, never read there.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use overbank_fabric::time::Tick;

/// One moment, on both clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// What durations are measured with.
    pub(crate) instant: Instant,
    /// Wall clock: for invitations, which outlive the process, and for people. No lease's end rests on it.
    pub(crate) unix_ms: u64,
}

impl Now {
    /// This moment.
    pub(crate) fn read() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), unix_ms: millis(since_epoch) }
    }
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A provider's clock, as its last heartbeat told it. It never runs ahead of the provider's own, since the heartbeat
/// took some time to get here: a deadline computed from it is never later than what was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProviderClock {
    tick: Tick,
    received: Instant,
}

impl ProviderClock {
    /// What a heartbeat said, and when it was received.
    pub(crate) fn new(tick: Tick, received: Instant) -> Self {
        Self { tick, received }
    }

    /// What the provider's clock shows by now, at least.
    pub(crate) fn tick_at(&self, now: Instant) -> Tick {
        self.tick.after_ms(millis(self.age_at(now)))
    }

    /// What the heartbeat said.
    pub(crate) fn heard(&self) -> Tick {
        self.tick
    }

    /// How long ago the heartbeat was received.
    pub(crate) fn age_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_providers_clock_runs_on_from_its_last_heartbeat() {
        let received = Instant::now();
        let clock = ProviderClock::new(Tick(5000), received);
        assert_eq!(clock.tick_at(received), Tick(5000));
        assert_eq!(clock.tick_at(received + Duration::from_micros(250_900)), Tick(5250));
        assert_eq!(clock.tick_at(received - Duration::from_secs(1)), Tick(5000), "never runs back");
        assert_eq!(ProviderClock::new(Tick(u64::MAX), received).tick_at(received + Duration::from_secs(1)).0, u64::MAX);
    }
}
