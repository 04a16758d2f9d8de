//! Memory that outgrows the machine: a range of addresses of which only so many pages are here at a time. The others are
//! in a store, wherever that is, and come when they are touched.
//!
//! | module | what it knows |
//! |---|---|
//! | `region` | the region as its user sees it |
//! | `store` | what is asked of whoever keeps the pages: lanes, and a keeper for them |
//! | `pager` | what happens when a page is touched |
//! | `evict`, `clock`, `room` | which pages go, when, and how |
//! | `ahead` | what will be touched next |
//! | `word` | where a page is, in a word that threads share without a lock |
//! | `pool`, `keep` | lanes in turns, and a thread that mends them |
//! | `signal`, `handler` | who resolves a fault: the thread that met it, or one of ours |
//! | `threads`, `pause` | threads that end together, and waiting without a lock |
//! | `kernel`, `map` | userfaultfd, and the addresses |
//! | `aside` | pages that have left and are not dropped yet |
//!
//! With `kernel`, `map`, `aside` and `signal` the unsafe code ends; nothing above a lane or below the region knows of leases.

mod ahead;
mod aside;
mod clock;
mod error;
mod evict;
#[cfg(feature = "measuring")]
#[doc(hidden)]
pub mod floor;
mod handler;
mod keep;
mod kernel;
mod map;
mod pager;
mod pause;
mod pool;
mod region;
mod room;
mod signal;
mod stats;
mod store;
mod threads;
mod word;

pub use error::PagingError;
pub use kernel::Faults;
pub use region::{MAX_PAGE, Region, RegionOptions};
pub use stats::RegionStats;
pub use store::{Cause, Keeper, Lane, Trouble};
