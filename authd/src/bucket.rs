//! Token buckets, without a clock of their own: so many a second, and a burst of as many as a full bucket holds.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// From one token to the next.
    every: Duration,
    /// Tokens that a full bucket holds.
    burst: u32,
}

impl Rate {
    /// `per_second` and `burst` are at least 1.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second.max(1), burst: burst.max(1) }
    }

    /// One token in each `every`.
    pub(crate) const fn every(every: Duration, burst: u32) -> Self {
        Self { every, burst }
    }

    fn whole(self) -> Duration {
        self.every * self.burst
    }
}

/// One bucket: when it is full again, if nothing more is taken (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token, one that is still to come where there is none. How long it takes to come.
    pub(crate) fn reserve(&mut self, rate: Rate, now: Instant) -> Duration {
        self.full_at = self.full_at.max(now) + rate.every;
        self.full_at.saturating_duration_since(now).saturating_sub(rate.whole())
    }

    /// How long until there is a token.
    pub(crate) fn wait(&self, rate: Rate, now: Instant) -> Duration {
        (self.full_at.saturating_duration_since(now) + rate.every).saturating_sub(rate.whole())
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let there = self.wait(rate, now).is_zero();
        if there {
            self.reserve(rate, now);
        }
        there
    }

    /// Whether at least half of its tokens are there.
    pub(crate) fn is_half_full(&self, rate: Rate, now: Instant) -> bool {
        self.full_at.saturating_duration_since(now) <= rate.whole() / 2
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

/// A bucket for each of many: at most `most` are told apart, and all beyond share one.
pub(crate) struct Buckets<K> {
    rate: Rate,
    most: usize,
    each: HashMap<K, Bucket>,
    rest: Bucket,
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    pub(crate) fn new(rate: Rate, most: usize, now: Instant) -> Self {
        Self { rate, most, each: HashMap::new(), rest: Bucket::full(now) }
    }

    fn of(&mut self, key: &K, now: Instant) -> &mut Bucket {
        if !self.each.contains_key(key) {
            if self.each.len() >= self.most {
                self.each.retain(|_, bucket| !bucket.is_full(now));
            }
            if self.each.len() >= self.most {
                return &mut self.rest;
            }
        }
        self.each.entry(key.clone()).or_insert(Bucket::full(now))
    }

    /// See [`Bucket::reserve`].
    pub(crate) fn reserve(&mut self, key: &K, now: Instant) -> Duration {
        let rate = self.rate;
        self.of(key, now).reserve(rate, now)
    }

    /// See [`Bucket::wait`].
    pub(crate) fn wait(&mut self, key: &K, now: Instant) -> Duration {
        let rate = self.rate;
        self.of(key, now).wait(rate, now)
    }

    /// See [`Bucket::take`].
    pub(crate) fn take(&mut self, key: &K, now: Instant) -> bool {
        let rate = self.rate;
        self.of(key, now).take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_so_many_a_second() {
        let (start, rate) = (Instant::now(), Rate::new(100, 20));
        let mut bucket = Bucket::full(start);
        assert_eq!((0..50).filter(|_| bucket.take(rate, start)).count(), 20);
        assert_eq!(bucket.wait(rate, start), Duration::from_millis(10));
        let taken = (0..1000).filter(|&ms| bucket.take(rate, start + Duration::from_millis(ms))).count();
        assert_eq!(taken, 99);
        assert!(bucket.is_full(start + Duration::from_secs(2)));
    }

    #[test]
    fn what_is_reserved_comes_in_its_time() {
        let (start, rate) = (Instant::now(), Rate::new(10, 2));
        let mut bucket = Bucket::full(start);
        let waits: Vec<_> = (0..4).map(|_| bucket.reserve(rate, start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 100, 200]);
        assert!(!bucket.is_half_full(rate, start));
        assert!(bucket.is_half_full(rate, start + Duration::from_millis(300)));
    }

    #[test]
    fn very_many_keys_take_no_more_memory_and_no_more_tokens() {
        let start = Instant::now();
        let mut buckets = Buckets::new(Rate::new(1, 3), 100, start);
        let taken = (0..10_000).filter(|key| buckets.take(key, start)).count();
        assert_eq!((taken, buckets.each.len()), (103, 100));
        // Those that are full again make room.
        assert!(buckets.take(&5000, start + Duration::from_secs(5)));
        assert_eq!(buckets.each.len(), 1);
    }
}
