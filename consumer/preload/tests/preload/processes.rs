//! Several processes: forked children, others of the same run, and how the end of one is written down.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::functions::cases;
use crate::harness::{Bench, bounded};

const MIB: usize = 1 << 20;

/// What the parent says of its child's end, and all that was said on stderr.
fn child(does: &str) -> (String, String) {
    let bench = Bench::new(64);
    let outcome = bench.run(&cases(&bench), &["child", does]).expect(0);
    // The parent alone had the pool.
    bench.used(8 * MIB);
    (outcome.stdout, outcome.stderr)
}

#[test]
fn a_forked_child_that_uses_the_pool_ends_by_a_signal_and_a_word() {
    for does in ["reads", "grows", "reads-later"] {
        let (ended, said) = child(does);
        assert_eq!(ended, "-11\n", "{does}: {said}");
        assert!(said.contains("a forked child does not get") && said.contains("exec"), "{does}: {said}");
    }
}

#[test]
fn a_forked_child_that_does_not_goes_on() {
    assert_eq!(child("goes on"), ("5\n".to_owned(), String::new()));
}

#[test]
fn an_end_without_the_c_library_is_written_down_too() {
    let bench = Bench::new(64);
    assert_eq!(bench.run(&cases(&bench), &["ends"]).expect(9).stdout, "ok\n");
    bench.used(4 * MIB);
}

#[test]
fn one_process_has_the_pool_at_a_time() {
    let mut bench = Bench::new(64);
    let program = cases(&bench);
    let mut command = bounded(&program, &["waits"]);
    bench.with_pool(&mut command);
    let mut first = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let mut said = BufReader::new(first.stdout.take().expect("piped"));
    said.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    // The second has none, and says so where it is asked to.
    assert_eq!(bench.run(&program, &["maps"]).expect(0).stderr, "");
    bench.more.push(("OVERBANK_RUN_VERBOSE", "1"));
    let warned = bench.run(&program, &["maps"]).expect(0).stderr;
    assert_eq!(warned.matches("another process of this run has the remote one").count(), 1, "{warned}");
    assert!(bench.statistics().is_empty());
    drop(first.stdin.take());
    assert!(first.wait().expect("it ends").success());
    bench.used(4 * MIB);
    // After it, the third.
    assert_eq!(bench.run(&program, &["maps"]).expect(0).stderr, "");
    assert_eq!(bench.statistics().len(), 2);
}

#[test]
fn settings_that_make_no_sense_are_named_and_the_program_runs() {
    let mut bench = Bench::new(64);
    bench.more.push(("OVERBANK_RUN_REMOTE", "lots"));
    let outcome = bench.run(&cases(&bench), &["maps"]).expect(0);
    assert_eq!(outcome.stdout, "ok\n");
    assert!(outcome.stderr.contains("OVERBANK_RUN_REMOTE=lots is no number of bytes"), "{}", outcome.stderr);
    assert!(bench.statistics().is_empty());
}

#[test]
fn a_lock_that_cannot_be_taken_is_named_and_the_program_runs() {
    let mut bench = Bench::new(64);
    bench.more.push(("OVERBANK_RUN_LOCK", "/proc/none/lock"));
    let outcome = bench.run(&cases(&bench), &["maps"]).expect(0);
    assert_eq!(outcome.stdout, "ok\n");
    assert!(outcome.stderr.contains("/proc/none/lock cannot be taken"), "{}", outcome.stderr);
}
