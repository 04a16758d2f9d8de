//! How much may be under way to a peer, and how long to wait for its answer: both learnt from the answers.

use std::time::Duration;

/// Packets under way: at the start, at least and at most.
const WINDOW_START: u64 = 32;
const WINDOW_MIN: u64 = 4;
pub(super) const WINDOW_MAX: u64 = 256;

/// Until a round trip was timed.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// Beyond the round trip, at least: a peer that shares its processor may be away for as long.
const SLACK: Duration = Duration::from_millis(2);
/// Doublings of the wait, at most.
const MAX_BACKOFF: u32 = 16;

/// A connection's window and timer. The window is TCP's: doubled each round trip until the first loss, then one more
/// each, and smaller by a loss, once a round trip (RFC 5681, with the gentler factor of RFC 9438). The wait is RFC 6298's.
pub(super) struct Pace {
    window: u64,
    /// Where the doubling ends.
    threshold: u64,
    /// Packets answered since the window last grew.
    progress: u64,
    /// Sendings up to here were before it last shrank: their loss is no news.
    shrunk_at: u64,
    /// Smoothed round trip, and its variation.
    round_trip: Option<(Duration, Duration)>,
    backoff: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { window: WINDOW_START, threshold: WINDOW_MAX, progress: 0, shrunk_at: 0, round_trip: None, backoff: 0 }
    }

    /// Packets that may be under way.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// So many packets were answered.
    pub(super) fn grow(&mut self, packets: u64) {
        if self.window < self.threshold {
            self.window = (self.window + packets).min(self.threshold);
            return;
        }
        self.progress += packets;
        if self.progress >= self.window {
            self.progress = 0;
            self.window = (self.window + 1).min(WINDOW_MAX);
        }
    }

    /// A packet was lost that went with the sending `lost`, of `sendings` so far.
    pub(super) fn shrink(&mut self, lost: u64, sendings: u64) {
        if lost > self.shrunk_at {
            self.shrunk_at = sendings;
            self.progress = 0;
            self.window = (self.window * 7 / 10).max(WINDOW_MIN);
            self.threshold = self.window;
        }
    }

    /// Nothing came back in time: it may be that nothing goes through.
    pub(super) fn collapse(&mut self, sendings: u64) {
        self.shrunk_at = sendings;
        self.progress = 0;
        if self.backoff == 0 {
            self.threshold = (self.window / 2).max(WINDOW_MIN);
        }
        self.window = WINDOW_MIN;
        self.backoff = (self.backoff + 1).min(MAX_BACKOFF);
    }

    /// A packet that was sent once was answered after this time.
    pub(super) fn time(&mut self, sample: Duration) {
        self.backoff = 0;
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((mean, variation)) => ((mean * 7 + sample) / 8, (variation * 3 + mean.abs_diff(sample)) / 4),
        });
    }

    /// The usual time to an answer; none where none is known.
    pub(super) fn round_trip(&self) -> Duration {
        self.round_trip.map_or(Duration::ZERO, |(mean, _)| mean)
    }

    /// How long to wait for an answer before sending again.
    pub(super) fn wait(&self) -> Duration {
        let once = self.round_trip.map_or(FIRST_WAIT, |(mean, variation)| mean + SLACK.max(variation * 4));
        once.saturating_mul(1 << self.backoff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_losses_of_one_round_trip_shrink_the_window_once() {
        let mut pace = Pace::new();
        pace.shrink(5, 10);
        assert_eq!(pace.window(), 22);
        pace.shrink(7, 12);
        pace.shrink(10, 12);
        assert_eq!(pace.window(), 22, "sent before it shrank");
        pace.shrink(11, 12);
        assert_eq!(pace.window(), 15);
        (13..100).for_each(|sending| pace.shrink(sending, sending));
        assert_eq!(pace.window(), WINDOW_MIN);
    }

    #[test]
    fn the_window_doubles_to_where_it_was_lost_and_then_creeps() {
        let mut pace = Pace::new();
        pace.collapse(1);
        pace.collapse(2);
        assert_eq!(pace.window(), WINDOW_MIN);
        let mut windows = Vec::new();
        for _ in 0..4 {
            pace.grow(pace.window());
            windows.push(pace.window());
        }
        assert_eq!(windows, [8, 16, 17, 18]);
        (0..1000).for_each(|_| pace.grow(pace.window()));
        assert_eq!(pace.window(), WINDOW_MAX);
    }

    // RFC 6298, 2.2 and 2.3.
    #[test]
    fn the_wait_is_learnt() {
        let (us, ms) = (Duration::from_micros, Duration::from_millis);
        let mut pace = Pace::new();
        assert_eq!((pace.wait(), pace.round_trip()), (FIRST_WAIT, Duration::ZERO));
        pace.time(ms(8));
        assert_eq!(pace.wait(), ms(8) + ms(4) * 4);
        pace.time(ms(16));
        assert_eq!((pace.round_trip(), pace.wait()), (ms(9), ms(9) + ms(5) * 4));
        (0..100).for_each(|_| pace.time(us(10)));
        assert!(pace.wait() < SLACK + us(20), "{:?}", pace.wait());
        pace.collapse(0);
        pace.collapse(0);
        assert!(pace.wait() > SLACK * 4);
        pace.time(us(10));
        assert!(pace.wait() < SLACK + us(20));
        (0..100).for_each(|_| pace.collapse(0));
        assert!(pace.wait() > Duration::from_secs(60) && pace.window() == WINDOW_MIN);
    }
}
