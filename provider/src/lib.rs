//! The lender's daemon: it sets memory of its pool aside for leases, lets those in whom the auth daemon and the lease's
//! holder have both signed for, and ends each lease at its deadline, whether or not anybody is there to tell it so.
//!
//! Data flows one way: [`session`] takes orders, [`keeper`] is the thread that decides on them with its [`table`] of
//! [`lease`]s, and hands out [`job`]s on what a lease [`hold`]s of the [`backend`].
//!
//! | module | what it knows |
//! |---|---|
//! | [`cli`], [`serve`], [`process`], [`pages`], [`watch`] | the command, its set-up and its shutdown |
//! | [`session`], [`orders`], [`known_authd`] | the link to the auth daemon |
//! | [`own_key`], [`rotate`] | who this provider is, and how it takes a new key |
//! | [`attach`], [`waiting`] | who may attach, and when |
//! | [`keeper`], [`job`], `threads` | the threads |
//! | [`table`], [`lease`], [`hold`], [`ending`] | the life of a lease, without threads, sockets or a clock |
//! | [`pool`], [`clock`], [`backend`] | pages, time, and the device |
//! | [`crash`] | where a test may kill it |
#![forbid(unsafe_code)]
#[cfg(all(
    not(debug_assertions),
    any(
        feature = "danger-foreign-code",
        feature = "danger-hoard",
        feature = "danger-no-expiry",
        feature = "danger-no-fence",
        feature = "danger-one-domain",
        feature = "danger-one-life",
        feature = "danger-regions-stay",
        feature = "danger-reuse",
        feature = "danger-shared-region",
    )
))]
compile_error!("danger-… takes a defence away: never in a release build");

pub mod attach;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod crash;
#[cfg(test)]
mod double;
pub mod ending;
pub mod hold;
#[cfg(test)]
mod interleavings;
pub mod job;
pub mod keeper;
#[cfg(test)]
mod keeper_tests;
pub mod known_authd;
pub mod lease;
#[cfg(test)]
mod model;
pub mod orders;
pub mod own_key;
pub mod pages;
pub mod pool;
pub mod process;
pub mod rotate;
pub mod serve;
pub mod session;
pub mod table;
mod threads;
pub mod waiting;
pub mod watch;
