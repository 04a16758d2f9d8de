//! Borrowed memory on other machines.
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
mod pins;

pub use attach::AttachOptions;
pub use client::{Client, identity};
pub use config::{Config, ConfigError, DEFAULT_AUTHD, DEFAULT_DEADLINE, DEFAULT_PORT};
pub use data::{DataError, OnUnknown};
pub use error::{Error, ErrorKind, ExpectedBy};
pub use freshness::FreshnessError;
pub use lease::Lease;
pub use lease_file::LeaseFileError;
pub use leasing::{LeaseRequest, Released};
pub use local::LocalError;
pub use pins::PinsError;

pub use overbank_fabric::block::{DEFAULT_BLOCK, MAX_BLOCK, MIN_BLOCK};
pub use overbank_fabric::ids::{CorrelationId, Fingerprint, LeaseId, Tenant};
pub use overbank_fabric::message::{
    Invitation, LeaseInfo, LeaseState, ProviderStatus, Refusal, RefusalCode, Role, Status, TrustEntry, TrustState,
};
pub use overbank_fabric::receipt::{EndReason, Receipt, Step};
pub use overbank_fabric::units::{Size, UnitError, parse_duration, show_duration};
