//! Programs with the library preloaded: those of ours that look at every function, and unchanged ones from elsewhere.
//!
//! Needs the library and a C compiler: run `cargo build -p overbank-preload` first.

mod functions;
mod harness;
mod processes;
mod programs;
