//! What can go wrong on this side. How a request ended is no error here: see [`WcStatus`](crate::WcStatus).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::{Access, Memory, QpState};

/// Why a call on a device, or on what was made from it, did nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// No device has this name.
    #[error("no RDMA device is named '{name}'; there are: {available}")]
    DeviceNotFound {
        /// As it was asked for.
        name: String,
        /// The names that would do.
        available: String,
    },
    /// The device is there and cannot be used.
    #[error("the RDMA device '{name}' cannot be used: {reason}")]
    DeviceUnusable {
        /// Which.
        name: String,
        /// Why, and what mends it.
        reason: String,
    },
    /// The device reported a state that nothing but opening it again mends.
    #[error("the RDMA device '{name}' has failed; start the program again")]
    DeviceFatal {
        /// Which.
        name: String,
    },
    /// The device did not make what was asked for.
    #[error("{call} failed: {source}; most likely {likely}")]
    Refused {
        /// What was called.
        call: &'static str,
        /// What most often stands behind it.
        likely: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A queue pair did not go from one state to the next.
    #[error("the queue pair did not go from {from:?} to {to:?} ({attributes}): {source}; most likely {likely}")]
    Transition {
        /// The state it is in.
        from: QpState,
        /// The state it was to be in.
        to: QpState,
        /// What it was given.
        attributes: String,
        /// What most often stands behind it.
        likely: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The device could not take its local address.
    #[error("the soft device cannot use {address}: {source}; give an address of this machine")]
    Address {
        /// Asked for.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has the UDP port.
    #[error("UDP port {} of {} is in use by another process; choose another port, or none to let the system choose", address.port(), address.ip())]
    PortInUse {
        /// Asked for.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The system does not let this process do it.
    #[error("no permission to {what}: {source}; {remedy}")]
    Permission {
        /// What was tried.
        what: &'static str,
        /// What would allow it.
        remedy: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Fewer hugepages are free than asked for.
    #[error("{bytes} bytes need {} hugepages of {} MiB and {free} are free: {source}; run `{remedy}`", bytes / page_bytes, page_bytes >> 20)]
    Hugepages {
        /// Asked for.
        bytes: usize,
        /// Of one page.
        page_bytes: usize,
        /// Free pages of that size.
        free: u64,
        /// The command that mends it.
        remedy: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The system has not that much memory to give.
    #[error("the system gave no {bytes} bytes of memory: {source}")]
    NoMemory {
        /// Asked for.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// Hugepages come whole.
    #[error("{len} bytes are not a whole number of pages of {page_bytes} bytes")]
    NotWholePages {
        /// Asked for.
        len: usize,
        /// Of one page.
        page_bytes: usize,
    },
    /// Bytes outside of what they were to be part of.
    #[error("bytes {offset}..{offset}+{len} are not inside of {what}, which has {size} bytes")]
    OutOfRange {
        /// The memory, region or slot.
        what: &'static str,
        /// First byte.
        offset: usize,
        /// Bytes.
        len: usize,
        /// Bytes there are.
        size: usize,
    },
    /// Nothing to do: most often a mistake of the caller, and devices disagree on its meaning.
    #[error("{what} of zero bytes")]
    ZeroLength {
        /// What it was to be.
        what: &'static str,
    },
    /// More work than the queue holds; nothing of the batch was posted.
    #[error("the {what} has room for {free} of its {capacity} requests, not for {asked} more; poll first")]
    QueueFull {
        /// The send queue or the completion queue.
        what: &'static str,
        /// Requests in the batch.
        asked: usize,
        /// Room left.
        free: usize,
        /// Requests that it holds at most.
        capacity: usize,
    },
    /// The queue pair's state does not allow it.
    #[error("cannot {what} while the queue pair is in state {state:?}")]
    State {
        /// What was tried.
        what: &'static str,
        /// The state it is in.
        state: QpState,
    },
    /// A number that the device does not take.
    #[error("{what} is {value}, and must be {min} to {max}")]
    Limit {
        /// The number's name.
        what: &'static str,
        /// As given.
        value: usize,
        /// At least.
        min: usize,
        /// At most.
        max: usize,
    },
    /// The region lacks a right that the request needs.
    #[error("the region allows {has:?}; this request needs {needs:?}")]
    Rights {
        /// Of the region.
        has: Access,
        /// Of the request.
        needs: Access,
    },
    /// Objects of different devices or protection domains.
    #[error("the {what} belongs to another {owner}")]
    Foreign {
        /// The wrong object.
        what: &'static str,
        /// What they should share.
        owner: &'static str,
    },
    /// The object was destroyed, or the device it belongs to has lost it.
    #[error("there is no such {what} (any more)")]
    Gone {
        /// What is missing.
        what: &'static str,
    },
    /// Still used by another object.
    #[error("the {what} is still in use")]
    Busy {
        /// What is in use.
        what: &'static str,
    },
    /// The region is still registered: a peer may still reach the memory, which lives as long as this error does.
    #[error("the region of {} bytes could not be deregistered, so its memory must not be used again: {source}", memory.len())]
    Deregister {
        /// What a peer may still write to.
        memory: Arc<Memory>,
        /// Why.
        source: Box<VerbsError>,
    },
    /// Not an endpoint that a device could have sent.
    #[error("the peer's queue pair endpoint is no endpoint of this protocol: {field}")]
    Endpoint {
        /// What is wrong in it.
        field: &'static str,
    },
    /// An endpoint that this device cannot reach.
    #[error("the peer's queue pair at {peer} cannot be reached from the device at {local}: {reason}")]
    Unreachable {
        /// The peer.
        peer: SocketAddr,
        /// This device.
        local: SocketAddr,
        /// Why.
        reason: &'static str,
    },
    /// A slot that is in flight, free or does not exist.
    #[error("slot {slot} of the lane is not held by the caller: it is {state}")]
    Slot {
        /// Its number.
        slot: u32,
        /// What it is instead.
        state: &'static str,
    },
    /// Another system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// What was called.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl VerbsError {
    /// The last error of the C library, for a call that just failed.
    pub(crate) fn system(call: &'static str) -> Self {
        Self::System { call, source: io::Error::last_os_error() }
    }
}
