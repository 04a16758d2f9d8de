//! The library that `overbank run` preloads into a program: it places large allocations and large anonymous mappings in a
//! paged region, whose contents may be on another machine.
//!
//! The program calls `malloc` or `mmap` as ever. What is large goes to the *pool*, everything else to the next library. Our
//! own code, and every thread of ours, is *inside*: what it allocates comes from a private *arena*, and what it maps from
//! the kernel, so that resolving a fault never waits for a lock that the faulting thread holds.
//!
//! | module | what it knows |
//! |---|---|
//! | `space` | which pages of a range are free |
//! | `heap` | which blocks were handed out, and what each is |
//! | `backing`, `plain` | the memory itself |
//! | `pool` | the three together, once in a process |
//! | `interpose` | the C functions that are replaced |
//! | `real` | those of the next library |
//! | `arena` | the memory of our own code |
//! | `inside` | which threads run our own code |
//! | `claim` | which process has the pool |
//! | `fork` | what a forked child may do: nothing, in a way that is noticed |
//! | `statistics` | what is written down at the end |
//!
//! Metadata never lies in the pool.
#![cfg_attr(test, allow(dead_code))] // The functions that are replaced are not, in a test of the rest.

mod arena;
mod backing;
mod claim;
mod fork;
mod heap;
mod inside;
#[cfg(not(test))]
mod interpose;
mod lock;
mod plain;
mod pool;
mod real;
mod say;
mod settings;
mod space;
mod statistics;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("made for Linux with 64 bits");
