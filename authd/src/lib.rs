//! The auth daemon of Overbank: who is trusted, who may lease what, and the word to the lenders.
//!
//! It listens on TCP, and is the only party that does. It never sees a byte of a lease's contents, and cannot forge what
//! consumers and providers sign for each other.
//!
//! | module | what it knows |
//! |---|---|
//! | [`cli`], [`state`] | the command line; the directory with key, database and lock |
//! | [`server`], `session`, `hub`, `gate` | sockets, sessions, deadlines: how requests come in and orders go out |
//! | `door`, `shares`, `rates`, `turns`, `bucket` | who may come in, how much of it, how fast, and who is next |
//! | `prover`, `desk`, `line` | the thread on which handshakes are reckoned; the one on which decisions are made and written down |
//! | `core`, `trust`, `entries`, `rotation`, `proposals`, `switches`, `leases`, `providers`, `reports`, `clock` | the decisions, without sockets, threads or clocks |
//! | `audit` | the audit log: what is recorded, its bounds, its signatures, the files that get it |
//! | `store` | what outlives the process, in SQLite |
#![forbid(unsafe_code)]

pub mod cli;
pub mod sealed;
pub mod server;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
pub mod state;

mod audit;
mod bucket;
mod clock;
mod core;
mod desk;
mod door;
mod entries;
mod gate;
mod hub;
mod leases;
mod line;
mod proposals;
mod prover;
mod providers;
mod rates;
mod reports;
mod rotation;
mod session;
mod shares;
mod sharing;
mod store;
mod switches;
mod tenants;
mod trust;
mod turns;

#[cfg(all(
    not(debug_assertions),
    any(
        feature = "danger-foreign-code",
        feature = "danger-open-door",
        feature = "danger-no-shares",
        feature = "danger-no-rates",
        feature = "danger-no-turns",
        feature = "danger-grant-unrecorded",
        feature = "danger-no-nonce",
        feature = "danger-wall-clock",
        feature = "danger-revoked-stay",
        feature = "danger-any-role",
        feature = "danger-any-party",
        feature = "danger-one-approval",
        feature = "danger-no-switches"
    )
))]
compile_error!("danger-… takes a defence away: never in a release build");

pub use crate::audit::Bounds;
pub use crate::audit::outlet::OutletError;
pub use crate::core::{Limits, Load};
pub use crate::proposals::{Consent, Critical};
pub use crate::store::StoreError;
