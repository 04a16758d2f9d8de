//! The whole system in one process and in virtual time: the real decisions of the auth daemon, the real lease table of two
//! lenders, the real sealing of three borrowers, over a network and machines that fail. After every step an oracle that
//! believes none of them looks at what is true.
//!
//! `OVERBANK_WHOLE_SEED=N` runs one history and prints it; `OVERBANK_WHOLE_RUNS=N` runs that many in place of a thousand,
//! and `OVERBANK_WHOLE_FIRST=N` begins with another seed than 0.

mod borrower;
mod device;
mod history;
mod lender;
mod office;
mod rng;

use std::time::Instant;

use history::{History, S, Seen, Shape, Wrong};

const RUNS: u64 = 1000;
const SHAPE: Shape = Shape { busy_us: 16 * S, lenders: 2, borrowers: 3 };

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")))
}

/// Tells a history that went wrong, from its beginning.
fn fail(seed: u64, wrong: Wrong) -> ! {
    let wrong = if wrong.trace.is_empty() {
        History::new(seed, SHAPE, true).run().expect_err("a seed is the same history again")
    } else {
        wrong
    };
    for line in &wrong.trace {
        println!("{line}");
    }
    panic!("seed {seed}, at {} µs: {} (again: OVERBANK_WHOLE_SEED={seed})", wrong.at_us, wrong.what);
}

#[test]
fn a_thousand_histories() {
    if let Some(seed) = number("OVERBANK_WHOLE_SEED") {
        let ran = History::new(seed, SHAPE, true).run().unwrap_or_else(|wrong| fail(seed, wrong));
        ran.trace.iter().for_each(|line| println!("{line}"));
        return println!("{:?}", ran.seen);
    }
    let (first, runs) = (number("OVERBANK_WHOLE_FIRST").unwrap_or(0), number("OVERBANK_WHOLE_RUNS").unwrap_or(RUNS));
    let start = Instant::now();
    let mut all = Seen::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = move |thread: u64| {
        let mut all = Seen::default();
        for seed in (first + thread..first + runs).step_by(threads as usize) {
            let ran = History::new(seed, SHAPE, false).run().unwrap_or_else(|wrong| fail(seed, wrong));
            all.add(&ran.seen);
        }
        all
    };
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        for share in shares {
            all.add(&share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!("{runs} histories in {:.1} s: {all:?}", start.elapsed().as_secs_f64());
    // What the histories are about has happened in them, often.
    if runs >= 100 {
        let often = |what: &str, count: u64, least: u64| {
            assert!(count >= least * runs, "{what}: {count} times in {runs} histories");
        };
        often("leases", all.leases, 10);
        often("attaches", all.attaches, 10);
        often("writes", all.writes, 30);
        often("reads", all.reads, 10);
        often("late writes", all.late_writes, 3);
        often("receipts", all.receipts, 5);
        often("crashes", all.crashes, 1);
        assert!(all.quarantined > runs / 5 && all.revoked > runs / 10, "{all:?}");
    }
}

#[test]
fn a_seed_is_the_same_history_again() {
    for seed in 0..20 {
        let digest = || History::new(seed, SHAPE, false).run().unwrap_or_else(|wrong| fail(seed, wrong)).digest;
        assert_eq!(digest(), digest(), "seed {seed}");
    }
}
