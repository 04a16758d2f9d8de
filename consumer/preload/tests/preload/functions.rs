//! Each function, as C and the kernel promise it: the cases of `functions.c`.

use std::path::PathBuf;

use crate::harness::{Bench, plainly};

const MIB: usize = 1 << 20;

pub(crate) fn cases(bench: &Bench) -> PathBuf {
    bench.compile("cc", "functions", include_str!("functions.c"), &["-O2", "-pthread", "-w"])
}

/// The case holds without the pool, and with it; and so many bytes of that were the pool's.
#[track_caller]
fn both_ways(case: &str, at_least: usize) {
    let bench = Bench::new(256);
    let program = cases(&bench);
    assert_eq!(plainly(&program, &[case]).expect(0).stdout, "ok\n");
    let outcome = bench.run(&program, &[case]).expect(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("ok\n", ""));
    let used = bench.used(at_least);
    assert!(used["refused"] == 0 && used["spilled"] == 0, "{used}");
}

#[test]
fn blocks_are_aligned_apart_and_zero_where_that_is_promised() {
    both_ways("blocks", 200 * MIB);
}

#[test]
fn blocks_grow_and_shrink_with_their_contents() {
    both_ways("growth", 200 * MIB);
}

#[test]
fn threads_do_all_of_it_at_once() {
    both_ways("threads", 300 * MIB);
}

#[test]
fn threads_go_on_while_one_forks() {
    both_ways("forking-threads", 100 * MIB);
}

#[test]
fn mappings_go_in_parts_and_leave_nothing_behind() {
    both_ways("maps", 20 * MIB);
}

#[test]
fn mappings_are_moved_and_made_longer_and_shorter() {
    both_ways("remaps", 60 * MIB);
}

#[test]
fn advice_empties_pages_or_does_no_harm() {
    both_ways("advice", 8 * MIB);
}

#[test]
fn something_else_can_be_mapped_over_a_part() {
    both_ways("fixed", 16 * MIB);
}

#[test]
fn protections_hold_and_do_not_outlive_their_pages() {
    both_ways("protection", 80 * MIB);
}

#[test]
fn locked_memory_is_bounded_by_what_may_be_local() {
    let bench = Bench::new(64);
    let program = cases(&bench);
    if plainly(&program, &["can-lock"]).status != 0 {
        return println!("SKIPPED functions::locked_memory_is_bounded_by_what_may_be_local: `ulimit -l` is too low");
    }
    assert_eq!(bench.run(&program, &["locks"]).expect(0).stdout, "ok\n");
}

#[test]
fn where_there_is_no_room_it_says_so_once_and_fails_or_goes_elsewhere() {
    let mut bench = Bench::new(60);
    let program = cases(&bench);
    let refused = bench.run(&program, &["full"]).expect(0);
    assert_eq!(refused.stdout, "0 0 12\nok\n");
    assert_eq!(refused.stderr.matches("no room for 67108864 bytes").count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("--remote"), "{}", refused.stderr);
    assert_eq!(bench.used(20 * MIB)["refused"], 3);
    bench.more.push(("OVERBANK_RUN_SPILL", "1"));
    let spilled = bench.run(&program, &["full"]).expect(0);
    assert_eq!(spilled.stdout, "1 1 0\nok\n");
    assert_eq!(bench.statistics()[1]["spilled"], 3);
}

#[test]
fn what_is_freed_twice_ends_the_program() {
    let bench = Bench::new(64);
    let outcome = bench.run(&cases(&bench), &["twice"]);
    assert!(outcome.status == -6 || outcome.status == 128 + 6, "{outcome:?}");
    assert!(outcome.stderr.contains("it was freed before"), "{}", outcome.stderr);
}
