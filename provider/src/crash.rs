//! Where a test may kill the process: at each step of a lease's end. In release builds there is no such place.

use nix::sys::signal::{Signal, raise};

/// Names the step, in debug builds alone.
pub const CRASH_AT: &str = "OVERBANK_PROVIDER_CRASH_AT";

/// All steps, in their order. At `wiping` half of the memory is overwritten.
pub const STEPS: [&str; 7] =
    ["closed", "queue-pairs-destroyed", "deregistered", "wiping", "wiped", "verified", "freed"];

/// Whether the process is to be killed at this step.
#[must_use]
pub fn is_wanted(step: &str) -> bool {
    debug_assert!(STEPS.contains(&step), "{step}");
    cfg!(debug_assertions) && std::env::var_os(CRASH_AT).is_some_and(|wanted| wanted == step)
}

/// Kills the process, as `kill -9` does, if that is wanted here.
pub fn point(step: &str) {
    if is_wanted(step) {
        // It does not return.
        let _ = raise(Signal::SIGKILL);
    }
}
