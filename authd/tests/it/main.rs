//! The auth daemon over real sockets, with consumers, operators and lenders that the tests play.
#![allow(missing_docs)]

mod audit;
mod daemon;
mod hoard;
mod hostile;
mod leases;
mod lender;
mod process;
mod providers;
mod records;
mod trust;
