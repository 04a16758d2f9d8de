//! Fuzz targets on the stable toolchain: bytes for the decoder, and sequences of packets and calls for a queue pair, whose
//! answers are compared with those of small models of the rules.
//!
//! A plain `cargo test` runs each for a few seconds, always with the same cases. With `OVERBANK_FUZZ_SECONDS=N` each runs so
//! long, with cases that no run had before. A failure prints the smallest sequence that still fails and the seed of its
//! round; `OVERBANK_FUZZ_SEED=SEED` runs that round alone. What once failed is kept as a test of its own.

mod requester;
mod responder;
mod responder_model;
mod wire;

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Cases of one seed.
const CASES: u32 = 50;

/// What a target finds: nothing, or what is wrong.
type Outcome = Result<(), TestCaseError>;

/// Checks cases of the strategy: those of `rounds` seeds, or as long as the environment says.
fn fuzz<S: Strategy>(target: &str, rounds: u64, strategy: &S, check: impl Fn(&S::Value) -> Outcome) {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap_or_else(|_| panic!("{name}")));
    if let Some(seed) = number("OVERBANK_FUZZ_SEED") {
        return round(target, seed, strategy, &check);
    }
    let Some(seconds) = number("OVERBANK_FUZZ_SECONDS") else {
        return (0..rounds).for_each(|seed| round(target, seed, strategy, &check));
    };
    let (begun, mut done) = (Instant::now(), 0_u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        round(target, getrandom::u64().unwrap(), strategy, &check);
        done += 1;
    }
    println!("{target}: {} cases in {:.0} s", done * u64::from(CASES), begun.elapsed().as_secs_f64());
}

fn round<S: Strategy>(target: &str, seed: u64, strategy: &S, check: &impl Fn(&S::Value) -> Outcome) {
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 5000, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(strategy, |value| check(&value)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, smallest)) => {
            panic!("{target}: OVERBANK_FUZZ_SEED={seed}: {reason}\nthe smallest that fails: {smallest:#?}")
        }
        Err(error) => panic!("{target}: OVERBANK_FUZZ_SEED={seed}: {error}"),
    }
}
