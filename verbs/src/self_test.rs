//! Whether a device does what it says: through itself, with real packets where it sends any.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{
    Access, Backing, CompletionQueue, Device, Memory, MemoryRegion, Op, QpCaps, QueuePair, Retry, VerbsError, WcStatus,
    WorkRequest,
};

/// Several packets of any MTU, and a rest that fills no word.
const LEN: usize = 64 * 1024 + 5;
/// Of the memory that nothing was written to.
const EMPTY: u8 = 0x5a;
const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 7 };

/// What [`Device::self_test`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfTest {
    /// Bytes that were written and read back.
    pub bytes: usize,
    /// How long the WRITE took.
    pub write: Duration,
    /// How long the READ took.
    pub read: Duration,
}

/// Why a device failed its test.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// A call failed.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    /// A request ended as it should not.
    #[error("{step} ended with: {status}")]
    Status {
        /// Which.
        step: &'static str,
        /// How.
        status: WcStatus,
    },
    /// A request did not end.
    #[error("{step} did not end within {limit:?}; do the device's packets reach it? (UDP port 4791, firewall)")]
    Timeout {
        /// Which.
        step: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// Bytes are not what was written.
    #[error("{step}: the bytes are not those that were sent")]
    Bytes {
        /// Which.
        step: &'static str,
    },
}

impl Device {
    /// Connects two queue pairs of this device with each other, WRITEs, READs back and compares, and sees that memory
    /// which was taken back is out of reach. Each request has `limit`.
    ///
    /// # Errors
    /// [`SelfTestError`] names the step.
    pub fn self_test(&self, limit: Duration) -> Result<SelfTest, SelfTestError> {
        let memory = |byte| -> Result<Arc<Memory>, VerbsError> {
            let memory = Memory::map(LEN, Backing::Ordinary)?;
            memory.copy_in(0, &vec![byte; LEN])?;
            Ok(Arc::new(memory))
        };
        let (near, far) = (memory(EMPTY)?, memory(EMPTY)?);
        let (asking, answering) = (self.alloc_pd()?, self.alloc_pd()?);
        let local = asking.register(&near, 0..LEN, Access::LOCAL_WRITE)?;
        let remote = answering.register(&far, 0..LEN, Access::LOCAL_WRITE | RIGHTS)?;
        let (queue, other) = (self.create_cq(1)?, self.create_cq(1)?);
        let caps = QpCaps { send_queue: 1, outstanding_reads: 1 };
        let (qp, peer) = (asking.create_qp(&queue, caps)?, answering.create_qp(&other, caps)?);
        peer.connect(&qp.endpoint(), RIGHTS, RETRY)?;
        qp.connect(&peer.endpoint(), Access::empty(), RETRY)?;
        let end = End { qp: &qp, queue: &queue, local: &local, remote: (remote.address(), remote.rkey()), limit };

        let sent: Vec<u8> = (0..LEN).map(|at| (at as u8).wrapping_mul(29) ^ (at >> 8) as u8).collect();
        near.copy_in(0, &sent)?;
        let write = end.expect("a WRITE", Op::Write, WcStatus::SUCCESS)?;
        same("after a WRITE", &far, &sent)?;
        near.copy_in(0, &vec![EMPTY; LEN])?;
        let read = end.expect("a READ", Op::Read, WcStatus::SUCCESS)?;
        same("after a READ", &near, &sent)?;

        remote.deregister()?;
        near.copy_in(0, &vec![EMPTY; LEN])?;
        end.expect("a READ of memory that was taken back", Op::Read, WcStatus::REM_ACCESS_ERR)?;
        same("a READ of memory that was taken back", &near, &vec![EMPTY; LEN])?;
        qp.destroy()?;
        peer.destroy()?;
        local.deregister()?;
        Ok(SelfTest { bytes: LEN, write, read })
    }
}

/// The side that asks.
struct End<'a> {
    qp: &'a QueuePair,
    queue: &'a CompletionQueue,
    local: &'a MemoryRegion,
    remote: (u64, u32),
    limit: Duration,
}

impl End<'_> {
    /// Does one request over all of the memory, and returns how long it took.
    fn expect(&self, step: &'static str, op: Op, expected: WcStatus) -> Result<Duration, SelfTestError> {
        let (remote_address, rkey) = self.remote;
        let begun = Instant::now();
        self.qp.post(&[WorkRequest { id: 1, op, region: self.local, offset: 0, len: LEN, remote_address, rkey }])?;
        if !self.queue.wait(begun + self.limit)? {
            return Err(SelfTestError::Timeout { step, limit: self.limit });
        }
        let took = begun.elapsed();
        let mut done = Vec::new();
        self.queue.poll(1, &mut done)?;
        match done.first() {
            Some(done) if done.status == expected => Ok(took),
            Some(done) => Err(SelfTestError::Status { step, status: done.status }),
            None => Err(SelfTestError::Timeout { step, limit: self.limit }),
        }
    }
}

fn same(step: &'static str, memory: &Memory, expected: &[u8]) -> Result<(), SelfTestError> {
    let mut bytes = vec![0; expected.len()];
    memory.copy_out(0, &mut bytes)?;
    if bytes == expected { Ok(()) } else { Err(SelfTestError::Bytes { step }) }
}
