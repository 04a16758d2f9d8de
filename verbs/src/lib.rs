//! Safe RDMA verbs.
#![deny(unsafe_code)]

mod access;
mod cq;
mod device;
mod endpoint;
mod error;
mod lane;
mod memory;
mod mr;
mod pd;
mod qp;
mod soft;
mod wc;

pub use access::Access;
pub use cq::CompletionQueue;
pub use device::{Counters, Device, DeviceOptions};
pub use endpoint::{Endpoint, Mtu};
pub use error::VerbsError;
pub use lane::{Done, Lane, SlotId, Transfer};
pub use memory::{Backing, Memory};
pub use mr::MemoryRegion;
pub use pd::ProtectionDomain;
pub use qp::{QpCaps, QpState, QueuePair, Retry};
pub use wc::{Completion, Op, WcStatus, WorkRequest};
