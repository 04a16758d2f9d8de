//! Threads that write, change and read words of a region at random, each beside an oracle of its own: every thread owns every
//! fourth word, so that pages are shared between threads and words are not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const THREADS: usize = 4;

/// For how long such a test goes on: OVERBANK_PAGING_SECONDS, or so many.
pub(crate) fn seconds(usual: u64) -> Duration {
    let asked = std::env::var("OVERBANK_PAGING_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(usual))
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// For so long, in `bytes` bytes from `start` on, which hold zeros and which nobody else uses; `meanwhile` is called all the
/// time. Returns how often a word was touched.
pub(crate) fn run(start: *mut u8, bytes: usize, seed: u64, time: Duration, mut meanwhile: impl FnMut()) -> u64 {
    let (start, words) = (start as usize, bytes / 8);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                // Of this thread's words, as they must be.
                let mut oracle = vec![0_u64; words / THREADS];
                let mut random = Random(seed * 31 + thread as u64);
                let word = |n: usize| {
                    let at = (start + (n * THREADS + thread) * 8) as *const AtomicU64;
                    // SAFETY: an aligned word within the range, which lives for as long as this runs.
                    unsafe { &*at }
                };
                while !stop.load(Ordering::Relaxed) {
                    let (from, run) = (random.next(oracle.len()), 1 + random.next(3000));
                    let (step, kind) = (1 + random.next(200), random.next(4));
                    for n in (from..oracle.len().min(from + run)).step_by(step) {
                        let value = match kind {
                            0 => {
                                let value = if random.next(3) == 0 { 0 } else { random.0 };
                                word(n).store(value, Ordering::Relaxed);
                                oracle[n] = value;
                                value
                            }
                            1 => word(n).fetch_add(1, Ordering::Relaxed),
                            _ => word(n).load(Ordering::Relaxed),
                        };
                        assert_eq!(value, oracle[n], "seed {seed} word {n} of thread {thread}");
                        oracle[n] = oracle[n].wrapping_add(u64::from(kind == 1));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                for (n, &value) in oracle.iter().enumerate() {
                    assert_eq!(word(n).load(Ordering::Relaxed), value, "seed {seed} word {n} of thread {thread}");
                }
            });
        }
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            meanwhile();
        }
        stop.store(true, Ordering::Relaxed);
    });
    done.into_inner()
}
