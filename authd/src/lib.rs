//! The auth daemon of Overbank: who is trusted, who may lease what, and the word to the lenders.
//!
//! It listens on TCP, and is the only party that does. It never sees a byte of a lease's contents, and cannot forge what
//! consumers and providers sign for each other.
//!
//! | module | what it knows |
//! |---|---|
//! | [`cli`], [`state`] | the command line; the directory with key, database and lock |
//! | [`server`], `session`, `hub`, `gate` | sockets, sessions, deadlines, bounds: how requests come in and orders go out |
//! | `desk` | the one thread on which decisions are made and written down |
//! | `core`, `trust`, `leases`, `providers`, `reports`, `clock` | the decisions, without sockets, threads or clocks |
//! | `store` | what outlives the process, in SQLite |
#![forbid(unsafe_code)]

pub mod cli;
pub mod server;
pub mod state;

mod clock;
mod core;
mod desk;
mod gate;
mod hub;
mod leases;
mod providers;
mod reports;
mod session;
mod sharing;
mod store;
mod trust;

pub use crate::core::Limits;
pub use crate::store::StoreError;
