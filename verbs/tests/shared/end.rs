//! An end of a connection and the memory behind it, for the test programs that drive devices through the public API.
#![allow(dead_code, reason = "each program uses its part of it")]

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_verbs::{
    Access, Backing, Completion, CompletionQueue, Device, Memory, MemoryRegion, Op, ProtectionDomain, QpCaps,
    QueuePair, Retry, WcStatus, WorkRequest,
};

// How long this program waits for completions.
use crate::ends::LIMIT;

/// Beside the bytes that a test moves, so that a stray one shows.
pub(crate) const GUARD: u8 = 0xa5;
pub(crate) const ALL: Access = Access::all();
pub(crate) const REMOTE: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
pub(crate) const PATIENT: Retry = Retry { timeout: Duration::from_millis(100), count: 7 };
pub(crate) const SEND_QUEUE: usize = 64;
const CAPS: QpCaps = QpCaps { send_queue: SEND_QUEUE, outstanding_reads: 8 };

/// One side of a connection.
pub(crate) struct End {
    pub(crate) device: Device,
    pub(crate) pd: ProtectionDomain,
    pub(crate) cq: CompletionQueue,
    pub(crate) qp: QueuePair,
}

impl End {
    pub(crate) fn on(device: &Device) -> Self {
        let pd = device.alloc_pd().unwrap();
        let cq = device.create_cq(2 * SEND_QUEUE).unwrap();
        let qp = pd.create_qp(&cq, CAPS).unwrap();
        Self { device: device.clone(), pd, cq, qp }
    }

    /// A fresh queue pair in place of this one.
    pub(crate) fn replace_qp(&mut self) {
        self.qp = self.pd.create_qp(&self.cq, CAPS).unwrap();
    }

    pub(crate) fn register(&self, memory: &Arc<Memory>, access: Access) -> MemoryRegion {
        self.pd.register(memory, 0..memory.len(), access).unwrap()
    }

    /// Completions until there are `count`, with a limit of time.
    pub(crate) fn completions(&self, count: usize) -> Vec<Completion> {
        let mut all = Vec::new();
        let deadline = Instant::now() + LIMIT;
        while all.len() < count {
            assert!(self.cq.wait(deadline).unwrap(), "only {} of {count} completions in time: {all:?}", all.len());
            self.cq.poll(count - all.len(), &mut all).unwrap();
        }
        all
    }

    /// Posts one request and returns how it ended.
    pub(crate) fn run(&self, request: WorkRequest<'_>) -> WcStatus {
        self.qp.post(&[request]).unwrap();
        let completion = self.completions(1)[0];
        assert_eq!((completion.id, completion.op), (request.id, request.op));
        assert_eq!(completion.qpn, self.qp.endpoint().qpn);
        completion.status
    }

    /// Posts all and waits for all: in order, and each a success.
    pub(crate) fn run_all(&self, batch: &[WorkRequest<'_>]) {
        self.qp.post(batch).unwrap();
        for (completion, request) in self.completions(batch.len()).iter().zip(batch) {
            assert_eq!((completion.id, completion.status), (request.id, WcStatus::SUCCESS), "{request:?}");
        }
    }
}

/// Connects two ends; each says what the other may do.
pub(crate) fn connect(a: &End, a_allows: Access, b: &End, b_allows: Access, retry: Retry) {
    a.qp.connect(&b.qp.endpoint(), a_allows, retry).unwrap();
    b.qp.connect(&a.qp.endpoint(), b_allows, retry).unwrap();
}

pub(crate) fn memory(len: usize, fill: u8) -> Arc<Memory> {
    let memory = Memory::map(len, Backing::Ordinary).unwrap();
    memory.copy_in(0, &vec![fill; len]).unwrap();
    Arc::new(memory)
}

/// Bytes without a period, different for each seed: packets in each other's place show.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let base = |at: usize| ((at as u32 >> 8).wrapping_mul(0x9e37_79b1) >> 24) as u8;
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(base(at)).wrapping_add(seed)).collect()
}

pub(crate) fn bytes(memory: &Memory, range: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    memory.copy_out(range.start, &mut bytes).unwrap();
    bytes
}

pub(crate) fn request<'a>(
    (id, op): (u64, Op),
    region: &'a MemoryRegion,
    local: Range<usize>,
    remote: &MemoryRegion,
    offset: usize,
) -> WorkRequest<'a> {
    WorkRequest {
        id,
        op,
        region,
        offset: local.start,
        len: local.len(),
        remote_address: remote.address() + offset as u64,
        rkey: remote.rkey(),
    }
}
