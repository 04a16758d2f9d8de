//! How much may be under way to a peer, and how long to wait for its answer: both learnt from the answers.

/// Packets under way: at the start, at least, and at most.
const WINDOW_START: u64 = 32;
const WINDOW_MIN: u64 = 4;
pub(super) const WINDOW_MAX: u64 = 256;
/// Near the window at which packets were lost last, it grows by one in so many windows.
const CREEP: u64 = 32;

/// Nanoseconds until a round trip was timed.
const FIRST_WAIT: u64 = 20_000_000;
/// Nanoseconds beyond the round trip, before a probe and before everything counts as lost: a peer may share its processor.
const PROBE_SLACK: u64 = 100_000;
const SLACK: u64 = 2_000_000;
/// Doublings of the wait, at most: a burst of loss may end only with the packets that it takes.
const MAX_BACKOFF: u32 = 3;

/// A connection's window and timer.
///
/// The window is TCP's (RFC 5681): doubled each round trip at first, then one more each, and smaller by a loss, once a
/// round trip. As TCP Veno does, it takes a loss for a full queue only where packets have been waiting in one, and else
/// for an accident; and it does not run into the same full queue again and again. The wait is RFC 6298's.
pub(super) struct Pace {
    window: u64,
    /// Where the doubling ends.
    threshold: u64,
    /// The window at which a queue was full.
    ceiling: u64,
    /// Packets answered since the window last grew.
    progress: u64,
    /// Sendings up to here were before it last shrank: their loss is no news.
    shrunk_at: u64,
    round_trip: Option<RoundTrip>,
    backoff: u32,
}

/// In nanoseconds.
#[derive(Clone, Copy)]
struct RoundTrip {
    mean: u64,
    variation: u64,
    least: u64,
    last: u64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            window: WINDOW_START,
            threshold: WINDOW_MAX,
            ceiling: WINDOW_MAX,
            progress: 0,
            shrunk_at: 0,
            round_trip: None,
            backoff: 0,
        }
    }

    /// Packets that may be under way.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Whether packets have been waiting on the way.
    fn is_queueing(&self) -> bool {
        self.round_trip.is_some_and(|round_trip| round_trip.last / 3 > round_trip.least / 2)
    }

    /// So many packets were answered.
    pub(super) fn grow(&mut self, packets: u64) {
        if self.window < self.threshold {
            if self.window >= WINDOW_START && self.is_queueing() {
                self.threshold = self.window;
            } else {
                self.window = (self.window + packets).min(self.threshold);
            }
            return;
        }
        self.progress += packets;
        let is_near = self.window * 8 >= self.ceiling * 7 && self.is_queueing();
        if self.progress >= self.window * if is_near { CREEP } else { 1 } {
            self.progress = 0;
            self.window = (self.window + 1).min(WINDOW_MAX);
            self.ceiling = self.ceiling.max(self.window);
        }
    }

    /// A packet was lost that went with the sending `lost`, of `sendings` so far. The window gets no smaller than `least`.
    pub(super) fn shrink(&mut self, lost: u64, sendings: u64, least: u64) {
        if lost > self.shrunk_at {
            self.shrunk_at = sendings;
            self.progress = 0;
            let tenths = if self.is_queueing() {
                self.ceiling = self.window;
                7
            } else {
                9
            };
            self.window = (self.window * tenths / 10).max(self.window.min(least)).max(WINDOW_MIN);
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

    /// A packet that was sent once was answered after so many nanoseconds.
    pub(super) fn time(&mut self, sample: u64) {
        self.backoff = 0;
        let Some(known) = self.round_trip else {
            let variation = sample / 2;
            self.round_trip = Some(RoundTrip { mean: sample, variation, least: sample, last: sample });
            return;
        };
        self.round_trip = Some(RoundTrip {
            mean: known.mean - known.mean / 8 + sample / 8,
            variation: known.variation - known.variation / 4 + known.mean.abs_diff(sample) / 4,
            least: known.least.min(sample),
            last: sample,
        });
    }

    /// Nanoseconds that an answer usually takes; none where none is known.
    pub(super) fn round_trip(&self) -> u64 {
        self.round_trip.map_or(0, |round_trip| round_trip.mean)
    }

    /// Nanoseconds to wait for an answer before asking whether anything arrived.
    pub(super) fn probe_wait(&self) -> u64 {
        let probe = |RoundTrip { mean, variation, .. }: RoundTrip| {
            mean.saturating_mul(2).saturating_add(variation.saturating_mul(4)).saturating_add(PROBE_SLACK)
        };
        self.round_trip.map_or(FIRST_WAIT, probe)
    }

    /// Nanoseconds to wait after that before everything counts as lost.
    pub(super) fn wait(&self) -> u64 {
        let slack =
            |RoundTrip { mean, variation, .. }: RoundTrip| mean.saturating_add(variation.saturating_mul(4).max(SLACK));
        self.round_trip.map_or(FIRST_WAIT, slack).saturating_mul(1 << self.backoff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_losses_of_one_round_trip_shrink_the_window_once() {
        let mut pace = Pace::new();
        pace.time(10_000);
        pace.shrink(5, 10, 0);
        assert_eq!(pace.window(), 28);
        pace.shrink(7, 12, 0);
        pace.shrink(10, 12, 0);
        assert_eq!(pace.window(), 28, "sent before it shrank");
        pace.time(21_000);
        pace.shrink(11, 12, 0);
        assert_eq!(pace.window(), 19, "more, where packets wait in a queue");
        (13..100).for_each(|sending| pace.shrink(sending, sending, 0));
        assert_eq!(pace.window(), WINDOW_MIN);
        let mut pace = Pace::new();
        (1..100).for_each(|sending| pace.shrink(sending, sending, 16));
        assert_eq!(pace.window(), 16);
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

    #[test]
    fn the_window_does_not_run_into_the_same_queue_again() {
        let mut pace = Pace::new();
        pace.time(10_000);
        pace.grow(32);
        assert_eq!(pace.window(), 64);
        pace.time(25_000);
        pace.grow(64);
        assert_eq!(pace.window(), 64, "the doubling ends where a queue begins");
        pace.shrink(1, 1, 0);
        assert_eq!(pace.window(), 44);
        (0..12).for_each(|_| pace.grow(pace.window()));
        assert_eq!(pace.window(), 56);
        (0..CREEP - 1).for_each(|_| pace.grow(pace.window()));
        assert_eq!(pace.window(), 56, "near");
        pace.grow(pace.window());
        assert_eq!(pace.window(), 57);
        pace.time(12_000);
        (0..100).for_each(|_| pace.grow(pace.window()));
        assert_eq!(pace.window(), 157, "the queue is gone");
    }

    // RFC 6298, 2.2 and 2.3.
    #[test]
    fn the_wait_is_learnt() {
        let (us, ms) = (|us: u64| us * 1000, |ms: u64| ms * 1_000_000);
        let mut pace = Pace::new();
        assert_eq!((pace.wait(), pace.round_trip()), (FIRST_WAIT, 0));
        pace.time(ms(8));
        assert_eq!(pace.wait(), ms(8) + ms(4) * 4);
        pace.time(ms(16));
        assert_eq!((pace.round_trip(), pace.wait()), (ms(9), ms(9) + ms(5) * 4));
        (0..100).for_each(|_| pace.time(us(10)));
        assert!(pace.wait() < SLACK + us(20), "{:?}", pace.wait());
        pace.collapse(0);
        pace.collapse(0);
        assert!(pace.wait() > SLACK * 4 && pace.probe_wait() < SLACK);
        pace.time(us(10));
        assert!(pace.wait() < SLACK + us(20));
        (0..100).for_each(|_| pace.collapse(0));
        assert!(pace.wait() < SLACK * 9 && pace.window() == WINDOW_MIN);
    }
}
