//! API sketch: signatures are the contract, bodies and files are the verbs owner's.
#![allow(missing_docs, clippy::unimplemented, unused_variables, dead_code)]
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

bitflags::bitflags! {
    /// Exactly what is allowed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: u32 { const LOCAL_WRITE = 1; const REMOTE_READ = 2; const REMOTE_WRITE = 4; }
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    Mtu256 = 1,
    Mtu512,
    Mtu1024,
    Mtu2048,
    Mtu4096,
}
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// The local address peers reach us at; soft binds to it, ibv picks the GID that matches it.
    pub address: IpAddr,
    /// UDP port of soft; None: 4791 where free, else any (and `describe` says so).
    pub port: Option<u16>,
    /// How long the progress thread and `wait` spin before they sleep.
    pub spin: Duration,
    pub mtu: Mtu,
}
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    #[error("stub")]
    Stub,
}

#[derive(Clone)]
pub struct Device(Arc<()>);
impl Device {
    /// "auto", "soft" (the next issue: names of ibverbs devices).
    pub fn open(name: &str, options: &DeviceOptions) -> Result<Self, VerbsError> {
        unimplemented!()
    }
    pub fn name(&self) -> &str {
        unimplemented!()
    }
    /// One line for people: which device, where, and why this one.
    pub fn describe(&self) -> String {
        unimplemented!()
    }
    pub fn counters(&self) -> Counters {
        unimplemented!()
    }
    pub fn alloc_pd(&self) -> Result<ProtectionDomain, VerbsError> {
        unimplemented!()
    }
    pub fn create_cq(&self, entries: usize) -> Result<CompletionQueue, VerbsError> {
        unimplemented!()
    }
}
#[derive(Debug, Clone, Default)]
pub struct Counters {
    pub sent: u64,
    pub received: u64,
    pub retransmitted: u64,
    pub dropped: std::collections::BTreeMap<&'static str, u64>,
}

/// Where a Memory's pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    Huge2M,
    Huge1G,
    /** transparent hugepages, asked for */
    Transparent,
    Ordinary,
}
/// Anonymous memory of ours that a device may write: never lent out as a slice. Locked, MADV_DONTDUMP, MADV_DONTFORK.
pub struct Memory;
impl Memory {
    pub fn map(len: usize, backing: Backing) -> Result<Self, VerbsError> {
        unimplemented!()
    }
    pub fn address(&self) -> u64 {
        unimplemented!()
    }
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
    pub fn page_bytes(&self) -> usize {
        unimplemented!()
    }
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), VerbsError> {
        unimplemented!()
    }
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), VerbsError> {
        unimplemented!()
    }
    /// Overwrites with zeros, in a way the compiler may not leave out.
    pub fn wipe(&self, range: Range<usize>) -> Result<(), VerbsError> {
        unimplemented!()
    }
    /// Offset of the first byte that is not zero.
    pub fn first_nonzero(&self, range: Range<usize>) -> Result<Option<usize>, VerbsError> {
        unimplemented!()
    }
}

#[derive(Clone)]
pub struct ProtectionDomain(Arc<()>);
impl ProtectionDomain {
    /// The region keeps the memory alive.
    pub fn register(
        &self,
        memory: &Arc<Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<MemoryRegion, VerbsError> {
        unimplemented!()
    }
    pub fn create_qp(&self, cq: &CompletionQueue, caps: QpCaps) -> Result<QueuePair, VerbsError> {
        unimplemented!()
    }
}
pub struct MemoryRegion(Arc<Memory>);
impl MemoryRegion {
    pub fn address(&self) -> u64 {
        unimplemented!()
    }
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
    pub fn rkey(&self) -> u32 {
        unimplemented!()
    }
    /// After Ok no peer's packet touches the memory through this region any more. Err: quarantine the memory
    /// (the error keeps it alive). Drop deregisters too; a failure there is logged and counted.
    pub fn deregister(self) -> Result<(), VerbsError> {
        unimplemented!()
    }
}
#[derive(Debug, Clone, Copy)]
pub struct QpCaps {
    pub send_queue: usize,
    pub outstanding_reads: u8,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QpState {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
}
/// 32 bytes on the wire: version, flags, mtu, 0, qpn u32, psn u32, udp port u16, 0 u16, gid 16; big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    pub flags: u8,
    pub mtu: Mtu,
    pub qpn: u32,
    pub psn: u32,
    pub port: u16,
    pub gid: [u8; 16],
}
impl Endpoint {
    pub const LEN: usize = 32;
    pub fn to_bytes(&self) -> [u8; 32] {
        unimplemented!()
    }
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, VerbsError> {
        unimplemented!()
    }
    pub fn socket_addr(&self) -> SocketAddr {
        unimplemented!()
    }
}
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /** until the first retransmission */
    pub timeout: Duration,
    /** times, then RetryExceeded */
    pub count: u8,
}
pub struct QueuePair;
impl QueuePair {
    pub fn endpoint(&self) -> Endpoint {
        unimplemented!()
    }
    /// Reset -> Init -> RTR -> RTS. `remote_rights`: what the peer may do through this QP (REMOTE_READ / REMOTE_WRITE or empty).
    pub fn connect(&self, remote: &Endpoint, remote_rights: Access, retry: Retry) -> Result<(), VerbsError> {
        unimplemented!()
    }
    pub fn state(&self) -> QpState {
        unimplemented!()
    }
    /// All or none of the batch is posted. Zero lengths are refused.
    pub fn post(&self, batch: &[WorkRequest<'_>]) -> Result<(), VerbsError> {
        unimplemented!()
    }
    /// ERROR state; posted work is flushed in order.
    pub fn set_error(&self) -> Result<(), VerbsError> {
        unimplemented!()
    }
    pub fn destroy(self) -> Result<(), VerbsError> {
        unimplemented!()
    }
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
}
#[derive(Clone, Copy)]
pub struct WorkRequest<'a> {
    pub id: u64,
    pub op: Op,
    pub region: &'a MemoryRegion,
    pub offset: usize,
    pub len: usize,
    pub remote_address: u64,
    pub rkey: u32,
}
/// Codes of ibv_wc_status; an unknown one is data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WcStatus(pub u32);
impl WcStatus {
    pub const SUCCESS: Self = Self(0);
    pub const LOC_LEN_ERR: Self = Self(1);
    pub const LOC_PROT_ERR: Self = Self(4);
    pub const WR_FLUSH_ERR: Self = Self(5);
    pub const REM_INV_REQ_ERR: Self = Self(9);
    pub const REM_ACCESS_ERR: Self = Self(10);
    pub const REM_OP_ERR: Self = Self(11);
    pub const RETRY_EXC_ERR: Self = Self(12);
}
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    pub id: u64,
    pub status: WcStatus,
    pub op: Op,
    pub qpn: u32,
}
#[derive(Clone)]
pub struct CompletionQueue(Arc<()>);
impl CompletionQueue {
    /// Drives the device; appends at most `max`; returns how many.
    pub fn poll(&self, max: usize, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        unimplemented!()
    }
    /// Spins, then sleeps, until there is something to poll (true) or the deadline (false).
    pub fn wait(&self, deadline: Instant) -> Result<bool, VerbsError> {
        unimplemented!()
    }
}

/// A queue pair, a completion queue and a registered ring of bounce slots, for one thread: what a consumer reads and
/// writes through. A slot in flight cannot be touched; no lock, no allocation after `new`.
pub struct Lane;
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub slot: SlotId,
    pub op: Op,
    /** bytes of the slot from its start */
    pub len: usize,
    pub remote_address: u64,
    pub rkey: u32,
}
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub slot: SlotId,
    pub status: WcStatus,
}
impl Lane {
    /// `slots` × `slot_len` bytes of bounce memory, LOCAL_WRITE only.
    pub fn new(device: &Device, slots: u32, slot_len: usize) -> Result<Self, VerbsError> {
        unimplemented!()
    }
    pub fn slot_len(&self) -> usize {
        unimplemented!()
    }
    pub fn endpoint(&self) -> Endpoint {
        unimplemented!()
    }
    /// The peer gets no rights here.
    pub fn connect(&mut self, remote: &Endpoint, retry: Retry) -> Result<(), VerbsError> {
        unimplemented!()
    }
    /// Destroys the queue pair (everything in flight comes back as flushed through `poll`) and makes a fresh one; slots keep their bytes.
    pub fn renew(&mut self) -> Result<(), VerbsError> {
        unimplemented!()
    }
    /// A free slot, now held by the caller.
    pub fn take(&mut self) -> Option<SlotId> {
        unimplemented!()
    }
    /// Gives a held slot back.
    pub fn give(&mut self, slot: SlotId) {
        unimplemented!()
    }
    /// Bytes of a held slot; None while it is in flight or free.
    pub fn bytes(&self, slot: SlotId) -> Option<&[u8]> {
        unimplemented!()
    }
    pub fn bytes_mut(&mut self, slot: SlotId) -> Option<&mut [u8]> {
        unimplemented!()
    }
    /// Posts held slots, all or none: they are in flight until `poll` returns them (held again).
    pub fn post(&mut self, batch: &[Transfer]) -> Result<(), VerbsError> {
        unimplemented!()
    }
    pub fn poll(&mut self, out: &mut Vec<Done>) -> Result<usize, VerbsError> {
        unimplemented!()
    }
    pub fn wait(&mut self, deadline: Instant) -> Result<bool, VerbsError> {
        unimplemented!()
    }
    pub fn in_flight(&self) -> usize {
        unimplemented!()
    }
}
