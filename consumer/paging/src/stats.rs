//! What a region has done so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Buckets of each power of two: a time is told to 3 %.
const FINE: u64 = 32;
const BUCKETS: usize = 40 * FINE as usize;

/// Counts of times by length, in nanoseconds; anybody may add to it.
pub(crate) struct Times {
    buckets: Box<[AtomicU64]>,
}

impl Times {
    fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    fn bucket(nanos: u64) -> usize {
        if nanos < FINE {
            return nanos as usize;
        }
        let power = u64::from(nanos.ilog2() - FINE.ilog2());
        let at = (power + 1) * FINE + ((nanos >> power) - FINE);
        (at as usize).min(BUCKETS - 1)
    }

    /// The longest time that falls into a bucket.
    fn longest(bucket: usize) -> u64 {
        let (power, fine) = (bucket as u64 / FINE, bucket as u64 % FINE);
        if power == 0 { fine } else { ((FINE + fine + 1) << (power - 1)) - 1 }
    }

    /// The time that this share of all was no longer than, in µs; 0 of none.
    fn percentile(&self, share: f64) -> f64 {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let rank = (all as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(0.0, |bucket| Self::longest(bucket) as f64 / 1000.0)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters that threads add to as they go.
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            pub(crate) times: Times,
        }

        impl Counters {
            pub(crate) fn new() -> Self {
                Self { $($name: AtomicU64::new(0),)* times: Times::new() }
            }
        }

        /// What a region has done so far, and how much of it is here. Pages are the region's own.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[non_exhaustive]
        pub struct RegionStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Bytes of a page.
            pub page_bytes: u64,
            /// Bytes of the region.
            pub bytes: u64,
            /// Bytes that may be here.
            pub local_bytes: u64,
            /// Bytes that are here.
            pub resident_bytes: u64,
            /// The most that were here.
            pub peak_resident_bytes: u64,
            /// Of the pages that came from the store, the share for which nobody had to wait: they came ahead.
            pub ahead_share: f64,
            /// The time that half of all faults took no longer than, in microseconds.
            pub fault_p50_us: f64,
            /// The same of 99 in 100.
            pub fault_p99_us: f64,
        }

        impl RegionStats {
            pub(crate) fn new(counters: &Counters) -> Self {
                Self {
                    $($name: counters.$name.load(Ordering::Relaxed),)*
                    page_bytes: 0, bytes: 0, local_bytes: 0, resident_bytes: 0, peak_resident_bytes: 0,
                    ahead_share: {
                        let (all, ahead) = (counters.fetched.load(Ordering::Relaxed), counters.ahead.load(Ordering::Relaxed));
                        if all == 0 { 0.0 } else { ahead as f64 / all as f64 }
                    },
                    fault_p50_us: counters.times.percentile(0.5),
                    fault_p99_us: counters.times.percentile(0.99),
                }
            }
        }
    };
}

counters! {
    /// Faults resolved, of every kind.
    faults,
    /// Of those, first writes to pages that were here for reading.
    write_faults,
    /// Pages that came from the store.
    fetched,
    /// Of those, pages that nobody had asked for yet.
    ahead,
    /// Pages of zeros that were mapped without asking anybody.
    zeroed,
    /// Pages that went.
    evicted,
    /// Of those, pages that were written to the store.
    stored,
    /// Of those, pages that held zeros, and so were just forgotten.
    emptied,
    /// Pages that were written to while they were on their way out, and so stayed.
    kept,
    /// Times that a fault had to wait for room.
    waits,
    /// Times that lanes were mended.
    mended,
}

pub(crate) fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_to_three_percent() {
        for nanos in [0, 1, 31, 32, 33, 63, 64, 1000, 8110, 123_456, 5_000_000_000] {
            let longest = Times::longest(Times::bucket(nanos));
            assert!(longest >= nanos && longest as f64 <= nanos as f64 * 1.032 + 1.0, "{nanos} {longest}");
        }
        let times = Times::new();
        (1..=1000).for_each(|micros| times.add(Duration::from_micros(micros)));
        assert!((480.0..520.0).contains(&times.percentile(0.5)), "{}", times.percentile(0.5));
        assert!((960.0..1030.0).contains(&times.percentile(0.99)));
        assert_eq!(Times::new().percentile(0.5), 0.0);
    }
}
