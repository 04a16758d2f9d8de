//! Jobs as they are run elsewhere: programs that nobody here wrote, with a quarter of their working set in local memory, beside
//! themselves without Overbank, the answer of which must be the same; ranks of MPI; jobs of a scheduler. `scripts/test --jobs`
//! installs what they take; one for which something is not there is skipped, by name.

mod mpi;
mod programs;
mod slurm;

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/stack.rs"]
mod stack;
