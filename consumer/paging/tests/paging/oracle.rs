//! Threads at random beside an oracle, with pages coming and going all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overbank_paging::{Faults, RegionOptions};

use crate::vault::{PAGE, region};

/// For how long each of these tests goes on.
fn seconds() -> u64 {
    std::env::var("OVERBANK_PAGING_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// Each thread owns every fourth word, so that pages are shared between threads and words are not.
fn run(faults: Faults, seed: u64) {
    const PAGES: usize = 700;
    const THREADS: usize = 4;
    let options = RegionOptions { faults, handlers: 2, ..RegionOptions::new(64 * PAGE) };
    let (region, vault) = region(PAGES, &options);
    let words = PAGES * PAGE / 8;
    let start = region.start().as_ptr() as usize;
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                // Of this thread's words, as they must be.
                let mut oracle = vec![0_u64; words / THREADS];
                let mut random = Random(seed * 31 + thread as u64);
                let word = |n: usize| {
                    let at = (start + (n * THREADS + thread) * 8) as *const AtomicU64;
                    // A word of the region, aligned, that no other thread touches.
                    unsafe { &*at }
                };
                while !stop.load(Ordering::Relaxed) {
                    let (from, run) = (random.next(oracle.len()), 1 + random.next(3000));
                    let (step, kind) = (1 + random.next(200), random.next(4));
                    for n in (from..oracle.len().min(from + run)).step_by(step) {
                        match kind {
                            0 => {
                                let value = if random.next(3) == 0 { 0 } else { random.0 };
                                word(n).store(value, Ordering::Relaxed);
                                oracle[n] = value;
                            }
                            1 => {
                                let value = word(n).fetch_add(1, Ordering::Relaxed);
                                assert_eq!(value, oracle[n], "{faults:?} seed {seed} word {n} of thread {thread}");
                                oracle[n] = value.wrapping_add(1);
                            }
                            _ => {
                                let value = word(n).load(Ordering::Relaxed);
                                assert_eq!(value, oracle[n], "{faults:?} seed {seed} word {n} of thread {thread}");
                            }
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                for (n, &value) in oracle.iter().enumerate() {
                    assert_eq!(
                        word(n).load(Ordering::Relaxed),
                        value,
                        "{faults:?} seed {seed} word {n} of thread {thread}"
                    );
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds());
        let mut breaks = 0;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            assert!(region.stats().resident_bytes <= 64 * PAGE as u64);
            breaks += 1;
            if breaks % 10 == 0 {
                vault.stubborn.store(breaks % 3, Ordering::SeqCst);
                vault.broken.store(true, Ordering::SeqCst);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = region.stats();
    println!("{faults:?}: {} accesses, {stats:?}", done.load(Ordering::Relaxed));
    assert!(stats.evicted > 1000 && stats.fetched > 1000 && stats.mended > 0, "{stats:?}");
}

#[test]
fn threads_lose_no_word_with_faults_by_signal() {
    run(Faults::Signal, 1);
}

#[test]
fn threads_lose_no_word_with_faults_by_thread() {
    run(Faults::Thread, 2);
}
