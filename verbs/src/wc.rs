//! Work: what is asked of a queue pair, and how it ended.

use std::fmt;

use crate::MemoryRegion;

/// What a request does to the peer's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Copies the peer's bytes here.
    Read,
    /// Copies bytes from here to the peer.
    Write,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct WorkRequest<'a> {
    /// The caller's name for it; comes back in its completion.
    pub id: u64,
    /// READ or WRITE.
    pub op: Op,
    /// The memory on this side; a READ needs LOCAL_WRITE of it.
    pub region: &'a MemoryRegion,
    /// First byte, counted from the start of the region.
    pub offset: usize,
    /// Bytes to move: 1 to 2^31.
    pub len: usize,
    /// First byte on the other side.
    pub remote_address: u64,
    /// Key of the peer's region.
    pub rkey: u32,
}

/// How a request ended: a code of `ibv_wc_status`; an unknown one is data.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WcStatus(pub u32);

impl WcStatus {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// The request does not fit what the queue pair or the region takes.
    pub const LOC_LEN_ERR: Self = Self(1);
    /// This side's region does not allow the operation.
    pub const LOC_PROT_ERR: Self = Self(4);
    /// The queue pair was in the error state, or destroyed, before the request was done.
    pub const WR_FLUSH_ERR: Self = Self(5);
    /// The peer's queue pair does not take such requests.
    pub const REM_INV_REQ_ERR: Self = Self(9);
    /// The peer's memory does not allow it: key, protection domain, range or right.
    pub const REM_ACCESS_ERR: Self = Self(10);
    /// The peer could not carry it out.
    pub const REM_OP_ERR: Self = Self(11);
    /// No answer in the time that [`Retry`](crate::Retry) gives.
    pub const RETRY_EXC_ERR: Self = Self(12);

    /// The text of a known code.
    #[must_use]
    pub fn text(self) -> Option<&'static str> {
        Some(match self {
            Self::SUCCESS => "success",
            Self::LOC_LEN_ERR => "local length error",
            Self::LOC_PROT_ERR => "local protection error",
            Self::WR_FLUSH_ERR => "flushed: the queue pair is in the error state",
            Self::REM_INV_REQ_ERR => "remote invalid request",
            Self::REM_ACCESS_ERR => "remote access error",
            Self::REM_OP_ERR => "remote operation error",
            Self::RETRY_EXC_ERR => "no answer: retries exceeded",
            _ => return None,
        })
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "work completion status {}", self.0),
        }
    }
}

impl fmt::Debug for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

/// The end of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The request's id.
    pub id: u64,
    /// How it ended.
    pub status: WcStatus,
    /// What it was.
    pub op: Op,
    /// The queue pair it was posted to.
    pub qpn: u32,
}
