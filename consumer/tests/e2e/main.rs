//! End to end: the auth daemon, the provider and the command as separate processes on this machine. OVERBANK_TEST_DEVICE
//! names the device that provider and consumers use, the soft one by default.
//!
//! Needs the three programs: run `cargo build --workspace` first. What looks into the provider's memory needs the right
//! to trace other processes; without it those steps are skipped, by name.

mod amnesia;
mod audit;
mod ends;
mod faults;
mod library;
mod memory;
mod paged;
mod process;
mod receipts;
mod rotation;
mod run;
mod secrets;
mod sharing;
mod stack;
mod tampering;
#[path = "../../paging/tests/paging/threads.rs"]
mod threads;
mod transfer;
mod trust;
mod windows;
