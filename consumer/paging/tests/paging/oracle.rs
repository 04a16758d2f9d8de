//! Threads at random beside an oracle, with pages coming and going all the time, and lanes that break.

use std::sync::atomic::Ordering;

use overbank_paging::{Faults, RegionOptions};

use crate::threads;
use crate::vault::{PAGE, region};

fn run(faults: Faults, seed: u64) {
    let options = RegionOptions { faults, handlers: 2, ..RegionOptions::new(64 * PAGE) };
    let (region, vault) = region(700, &options);
    let mut turns = 0;
    let done = threads::run(region.start().as_ptr(), region.len(), seed, threads::seconds(3), || {
        assert!(region.stats().resident_bytes <= 64 * PAGE as u64);
        turns += 1;
        if turns % 10 == 0 {
            vault.stubborn.store(turns % 3, Ordering::SeqCst);
            vault.broken.store(true, Ordering::SeqCst);
        }
    });
    let stats = region.stats();
    println!("{faults:?}: {done} accesses, {stats:?}");
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
