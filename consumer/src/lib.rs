//! Borrowed memory on other machines.
#![forbid(unsafe_code)]

mod attach;
mod client;
mod clock;
mod config;
mod error;
mod lease_file;
mod local;
mod pins;

pub use attach::{AttachOptions, UnknownFreshness};
pub use client::Client;
pub use config::{Config, ConfigError, DEFAULT_AUTHD, DEFAULT_DEADLINE, DEFAULT_PORT};
pub use error::{Error, ErrorKind, ExpectedBy};
pub use lease_file::LeaseFileError;
pub use local::LocalError;
pub use pins::PinsError;
