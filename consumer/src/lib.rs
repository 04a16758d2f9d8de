//! Borrowed memory on other machines: leased through an auth daemon, reached by one-sided RDMA, sealed before it leaves.
//!
//! ```no_run
//! use std::time::Duration;
//! use overbank::{Client, Config, LeaseRequest};
//!
//! # fn main() -> Result<(), overbank::Error> {
//! let client = Client::connect(&Config::from_env()?)?;
//! let mut lease = client.lease(&LeaseRequest::new(64 << 20, Duration::from_secs(600)))?;
//! lease.write(1_000_000, b"what does not fit here")?;
//! let mut back = [0; 22];
//! lease.read(1_000_000, &mut back)?;
//! assert_eq!(&back, b"what does not fit here");
//! lease.release(Duration::from_secs(2))?;
//! # Ok(())
//! # }
//! ```
//! All of it blocks, each call with a deadline: [`Config::deadline`] for what the auth daemon is asked,
//! [`AttachOptions::deadline`] for reads and writes. A [`Client`] is shared freely between threads; a [`Lease`] is for one
//! thread at a time, and for one process at a time: its file is locked while it is open.
//!
//! A lease outlives the process that made it. [`Client::open_lease`] takes it up again from its file, which holds its key
//! and what was written last; whoever ends with [`Lease::close`], or just drops it, leaves both behind in good order. After
//! a process that wrote was killed, reads refuse what may have been played back, unless [`AttachOptions::on_unknown`]
//! says otherwise.
//!
//! What comes back is what was written last, or an [`Error`] of a kind ([`Error::kind`]) for each thing that can go wrong.
//!
//! | module | what it knows |
//! |---|---|
//! | `config`, `pins` | where the auth daemon is, and whose key it has |
//! | `client` | the session with it, one method for each question |
//! | `operating` | what operators ask of it |
//! | `rotation` | a new key for this borrower |
//! | `leasing`, `lease` | leases: making, opening, ending them; reading and writing |
//! | `region` | a lease as memory whose pages come when they are touched |
//! | `sharing` | a part of a lease for somebody else, and from somebody else |
//! | `lease_file`, `local`, `clock` | what lies on this machine, and until when it is good |
//! | `attach`, `grant` | believing what the provider and the auth daemon answer |
//! | [`data`], [`freshness`] | sealed blocks through a lane, and what was written last |
#![forbid(unsafe_code)]

mod attach;
mod client;
mod clock;
mod config;
pub mod data;
mod error;
pub mod freshness;
mod grant;
mod lease;
mod lease_file;
mod leasing;
mod local;
mod operating;
mod pins;
mod region;
mod rotation;
mod sharing;

pub use attach::{AttachOptions, MAX_LANES};
pub use client::{Client, identity, pinned_authd, public_key};
pub use config::{Config, ConfigError, DEFAULT_AUTHD, DEFAULT_DEADLINE, DEFAULT_PORT};
pub use data::{DataError, OnUnknown};
pub use error::{Error, ErrorKind, ExpectedBy};
pub use freshness::FreshnessError;
pub use lease::{Lease, LeaseLane, LeaseReads};
pub use lease_file::LeaseFileError;
pub use leasing::{LeaseRequest, Released, local_leases, verify_receipt};
pub use local::LocalError;
pub use pins::PinsError;
pub use region::{Region, RegionOptions};
pub use rotation::rotate;

pub use sharing::{ShareRequest, SharedLease, SharingError, read_bundle, share, write_bundle};

#[cfg(feature = "measuring")]
#[doc(hidden)]
pub use overbank_paging::floor;

pub use overbank_fabric::approval::Proposal;
pub use overbank_fabric::audit;
pub use overbank_fabric::block::{DEFAULT_BLOCK, MAX_BLOCK, MIN_BLOCK};
pub use overbank_fabric::identity::PublicKey;
pub use overbank_fabric::ids::{CorrelationId, Fingerprint, LeaseId, Name, Nonce, Tenant};
pub use overbank_fabric::message::{
    Allowance, Call, Import, Imported, Invitation, LeaseInfo, LeaseState, ProviderStatus, Refusal, RefusalCode, Reply,
    Role, Status, TenantInfo, TrustEntry, TrustState,
};
pub use overbank_fabric::receipt::{EndReason, Receipt, ReceiptError, Step};
pub use overbank_fabric::units::{Size, UnitError, parse_duration, show_duration};
pub use overbank_paging::{Faults, PagingError, RegionStats};

#[cfg(all(not(debug_assertions), any(feature = "danger-no-deadline", feature = "danger-no-freshness")))]
compile_error!("a feature danger-… takes a defence of overbank away: never in a release build");
