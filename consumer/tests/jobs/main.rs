//! Programs that nobody here wrote, with a quarter of their working set in local memory, beside themselves without Overbank: the
//! answer must be the same. `scripts/test --jobs` installs them; one that is not there is skipped, by name.

mod programs;

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/stack.rs"]
mod stack;
