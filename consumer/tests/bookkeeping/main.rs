//! What a borrower's process keeps beside the bytes that it leased, measured in such a process, with the daemons as
//! processes of their own. A program by itself, since what other tests free would hide what this one takes. The other
//! programs must be built: run `cargo build --workspace` first.

mod heap;
#[allow(dead_code, reason = "the measurement of a provider uses the rest")]
mod resident;
mod share;

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/stack.rs"]
mod stack;
