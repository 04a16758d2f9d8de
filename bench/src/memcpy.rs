//! What copying the bytes alone costs: hot, and from random places of a memory larger than any cache.

use std::hint::black_box;
use std::time::Instant;

/// Copies timed together: one alone is shorter than two looks at the clock.
const BATCH: usize = 64;

/// Copies `len` bytes out of `from`, again and again.
pub(crate) struct Copier {
    from: Vec<u8>,
    to: Vec<u8>,
    step: usize,
    at: usize,
}

impl Copier {
    /// Always the same bytes.
    pub(crate) fn hot(len: usize) -> Self {
        Self::over(len, len, 0)
    }

    /// Jumps through `span` bytes so that neither cache nor prefetcher helps.
    pub(crate) fn random(len: usize, span: usize) -> Self {
        // An odd number of places' golden section: visits them all, each far from the last.
        Self::over(len, span.max(len * 2), (span as f64 * 0.618_033_988) as usize | 1)
    }

    fn over(len: usize, span: usize, step: usize) -> Self {
        Self { from: vec![0xA5; span], to: vec![0; len], step, at: 0 }
    }

    /// Nanoseconds of one copy, the mean of a batch.
    pub(crate) fn sample(&mut self) -> u64 {
        let len = self.to.len();
        let places = self.from.len() - len + 1;
        let start = Instant::now();
        for _ in 0..BATCH {
            self.to.copy_from_slice(&self.from[self.at..self.at + len]);
            black_box(&mut self.to);
            self.at = (self.at + self.step) % places;
        }
        start.elapsed().as_nanos() as u64 / BATCH as u64
    }
}
