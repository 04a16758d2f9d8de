//! What a provider takes beyond its pool while a thousand leases are open at once. Three processes, as in the end-to-end
//! tests; the programs must be built. On the soft device whatever OVERBANK_TEST_DEVICE names: a thousand real queue pairs
//! are the adapter's memory, not the provider's.

mod beyond;

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "the measurement of a borrower uses the rest")]
#[path = "../bookkeeping/resident.rs"]
mod resident;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/stack.rs"]
mod stack;
