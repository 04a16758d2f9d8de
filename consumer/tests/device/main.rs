//! What shows best on a real device, and when nothing else uses it: run with `--test-threads=1`. OVERBANK_TEST_DEVICE names
//! it, the soft one by default. Three processes, as in the end-to-end tests; the programs must be built.

mod port;
mod thousand;

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/stack.rs"]
mod stack;
