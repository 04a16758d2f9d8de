//! The auth daemon over real sockets, with consumers, operators and lenders that the tests play.
#![allow(missing_docs)]

mod audit;
mod calls;
mod consent;
mod daemon;
mod disk;
mod hoard;
mod hostile;
mod leases;
mod lender;
mod oversize;
mod process;
mod providers;
mod records;
mod roles;
mod sealed;
mod switches;
mod trust;
