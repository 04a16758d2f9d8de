//! Safe RDMA verbs: devices, protection domains, memory regions, queue pairs and completion queues; reliable
//! connections, READ and WRITE.
//!
//! One API for every device. Real ones, RoCE and InfiniBand adapters and the kernel's soft-RoCE, are used through
//! libibverbs (feature `ibv`), which is opened at run time. The soft device speaks RoCEv2 over a UDP socket of this
//! process, so it needs no hardware, no kernel module and no rights.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//! use overbank_verbs::*;
//!
//! // One side lends memory, and says who may do what with it: the queue pair and the region must both allow it.
//! let options = DeviceOptions::new("127.0.0.1".parse()?);
//! let lender = Device::open("soft", &options)?;
//! let domain = lender.alloc_pd()?;
//! let memory = Arc::new(Memory::map(1 << 20, Backing::Ordinary)?);
//! let rights = Access::REMOTE_READ | Access::REMOTE_WRITE;
//! let region = domain.register(&memory, 0..memory.len(), Access::LOCAL_WRITE | rights)?;
//! let queue = lender.create_cq(1)?;
//! let lent = domain.create_qp(&queue, QpCaps { send_queue: 1, outstanding_reads: 16 })?;
//!
//! // The other side uses it. Endpoints, address and key travel by a channel that the parties trust.
//! let user = Device::open("soft", &options)?;
//! let mut lane = Lane::new(&user, 2, 4096)?;
//! let retry = Retry { timeout: Duration::from_millis(100), count: 7 };
//! lent.connect(&lane.endpoint(), rights, retry)?;
//! lane.connect(&lent.endpoint(), retry)?;
//!
//! let (slot, other) = (lane.take().unwrap(), lane.take().unwrap());
//! lane.bytes_mut(slot).unwrap().fill(7);
//! let write = Transfer { slot, op: Op::Write, len: 4096, remote_address: region.address(), rkey: region.rkey() };
//! let read = Transfer { slot: other, op: Op::Read, ..write };
//! lane.post(&[write, read])?;
//!
//! let (mut done, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(5));
//! while lane.in_flight() > 0 {
//!     assert!(lane.wait(deadline)?, "no answer in five seconds");
//!     lane.poll(&mut done)?;
//! }
//! assert!(done.iter().all(|done| done.status == WcStatus::SUCCESS));
//! assert_eq!(lane.bytes(other).unwrap(), [7; 4096]);
//!
//! // After this, nobody reaches the memory any more.
//! region.deregister()?;
//! memory.wipe(0..memory.len())?;
//! assert_eq!(memory.first_nonzero(0..memory.len())?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Threads
//! Everything may be sent to another thread and shared with it; a [`Lane`] changes only through `&mut`, so it is one
//! thread's at a time. A soft device has one thread of its own, which answers peers while nobody polls or waits; while
//! somebody does, that thread sleeps and the caller does its work.
//!
//! # Memory
//! A peer may change registered memory at any time, so [`Memory`] is never lent out as a slice: bytes are copied in and
//! out. [`Lane`] can lend the bytes of a slot, since its region gives no peer any right and a slot in flight is out of
//! reach. A region, registered or not yet taken back, keeps its memory mapped.
#![deny(unsafe_code)]

#[cfg(all(not(debug_assertions), feature = "danger-any-request"))]
compile_error!("danger-any-request takes a defence of overbank-verbs away: never in a release build");

mod access;
mod cq;
mod device;
mod endpoint;
mod error;
mod found;
#[cfg(feature = "ibv")]
mod ibv;
mod lane;
mod memory;
mod mr;
mod pd;
mod qp;
mod self_test;
mod soft;
mod wc;

pub use access::Access;
pub use cq::CompletionQueue;
pub use device::{Counters, Device, DeviceOptions, Health};
pub use endpoint::{Endpoint, Mtu};
pub use error::VerbsError;
pub use found::{FoundDevice, FoundDevices, Gid, GidKind, Limits};
pub use lane::{Done, Lane, SlotId, Transfer};
pub use memory::{Backing, Memory};
pub use mr::MemoryRegion;
pub use pd::ProtectionDomain;
pub use qp::{QpCaps, QpState, QueuePair, Retry};
pub use self_test::{SelfTest, SelfTestError};
pub use wc::{Completion, Op, WcStatus, WorkRequest};
