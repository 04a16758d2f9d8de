//! Who lends: memory that lanes may read and write, and hands that may change it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank::data::{Contents, OnUnknown, SealedLane, Window, bounce_lane};
use overbank::freshness::Freshness;
use overbank_fabric::block::{BlockContext, HEADER_LEN, LeaseKey};
use overbank_fabric::ids::LeaseId;
use overbank_fabric::token::Rights;
use overbank_verbs::{
    Access, Backing, CompletionQueue, Device, DeviceOptions, Endpoint, Memory, MemoryRegion, ProtectionDomain, QpCaps,
    QueuePair, Retry,
};

pub(crate) const PATIENT: Retry = Retry { timeout: Duration::from_millis(500), count: 7 };
pub(crate) const HASTY: Retry = Retry { timeout: Duration::from_millis(10), count: 2 };
/// So long that a test's deadlines come first.
pub(crate) const STUBBORN: Retry = Retry { timeout: Duration::from_secs(60), count: 7 };

/// OVERBANK_TEST_DEVICE, or the soft one.
pub(crate) fn device() -> Device {
    let mut options = DeviceOptions::new("127.0.0.1".parse().unwrap());
    options.spin = Duration::from_micros(20);
    Device::open(&device_name(), &options).unwrap()
}

pub(crate) fn device_name() -> String {
    std::env::var("OVERBANK_TEST_DEVICE").unwrap_or_else(|_| "soft".to_owned())
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn long_hence() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

pub(crate) fn contents(blocks: u64, block: u32) -> Contents {
    let context = BlockContext { tenant: "team-7".parse().unwrap(), lease: LeaseId::random(), generation: 1, block };
    Contents {
        context,
        key: LeaseKey::generate(),
        bytes: blocks * u64::from(block),
        freshness: Arc::new(Freshness::new(blocks)),
        on_unknown: OnUnknown::default(),
    }
}

/// The same contents, of which another process may have written anything.
pub(crate) fn after_a_crash(contents: &Contents, on_unknown: OnUnknown) -> Contents {
    let freshness = Arc::new(Freshness::unknown(contents.freshness.blocks()));
    Contents { freshness, on_unknown, ..contents.clone() }
}

/// Bytes without a short period, different for each seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

pub(crate) struct Lender {
    pub(crate) memory: Arc<Memory>,
    pub(crate) stride: usize,
    blocks: u64,
    qps: Vec<QueuePair>,
    region: MemoryRegion,
    cq: CompletionQueue,
    pd: ProtectionDomain,
    pub(crate) device: Device,
}

impl Lender {
    pub(crate) fn new(contents: &Contents) -> Self {
        let (stride, blocks) = (contents.context.stride(), contents.freshness.blocks());
        let device = device();
        let memory = Arc::new(Memory::map(stride * blocks as usize, Backing::Ordinary).unwrap());
        let pd = device.alloc_pd().unwrap();
        let remote = Access::REMOTE_READ | Access::REMOTE_WRITE;
        let region = pd.register(&memory, 0..memory.len(), remote | Access::LOCAL_WRITE).unwrap();
        let cq = device.create_cq(64).unwrap();
        Self { memory, stride, blocks, qps: Vec::new(), region, cq, pd, device }
    }

    /// What an attach would answer.
    pub(crate) fn window(&self) -> Window {
        Window {
            address: self.region.address(),
            rkey: self.region.rkey(),
            first_block: 0,
            blocks: self.blocks,
            stride: self.stride as u32,
            rights: Rights::READ_WRITE,
        }
    }

    /// Binds a queue pair to a borrower's.
    pub(crate) fn accept(&mut self, borrower: &Endpoint) -> Endpoint {
        let qp = self.pd.create_qp(&self.cq, QpCaps { send_queue: 1, outstanding_reads: 16 }).unwrap();
        qp.connect(borrower, Access::REMOTE_READ | Access::REMOTE_WRITE, PATIENT).unwrap();
        let endpoint = qp.endpoint();
        self.qps.push(qp);
        endpoint
    }

    /// Is not to be reached any more.
    pub(crate) fn hang_up(&mut self) {
        self.qps.clear();
    }

    /// The queue pair of the `at`-th attach.
    pub(crate) fn take_qp(&mut self, at: usize) -> QueuePair {
        self.qps.remove(at)
    }

    /// An attached lane, on a device of its own.
    pub(crate) fn attach(&mut self, contents: &Contents) -> SealedLane {
        self.attach_with(contents, PATIENT)
    }

    pub(crate) fn attach_with(&mut self, contents: &Contents, retry: Retry) -> SealedLane {
        let mut lane = bounce_lane(&device(), contents.context.block).unwrap();
        let remote = self.accept(&lane.endpoint());
        lane.connect(&remote, retry).unwrap();
        SealedLane::new(lane, contents, self.window(), long_hence()).unwrap()
    }

    /// Attaches a lane anew.
    pub(crate) fn attach_anew(&mut self, sealed: &mut SealedLane) {
        self.attach_to(sealed, self.window());
    }

    /// Goes on with a renewed lane, as if an attach had answered this.
    pub(crate) fn attach_to(&mut self, sealed: &mut SealedLane, window: Window) {
        let lane = sealed.renew().unwrap();
        let remote = self.accept(&lane.endpoint());
        lane.connect(&remote, PATIENT).unwrap();
        sealed.resume(window, long_hence(), soon()).unwrap();
    }

    /// A block's stride, as it lies here.
    pub(crate) fn stride_of(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.stride];
        self.memory.copy_out(block as usize * self.stride, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn put(&self, block: u64, stride: &[u8]) {
        self.memory.copy_in(block as usize * self.stride, stride).unwrap();
    }

    /// Changes a bit, counted from the start of the block's stride.
    pub(crate) fn flip(&self, block: u64, bit: usize) {
        let mut stride = self.stride_of(block);
        stride[bit / 8] ^= 1 << (bit % 8);
        self.put(block, &stride);
    }

    pub(crate) fn erase(&self, block: u64) {
        self.put(block, &vec![0; self.stride]);
    }

    pub(crate) fn swap(&self, a: u64, b: u64) {
        let (of_a, of_b) = (self.stride_of(a), self.stride_of(b));
        self.put(a, &of_b);
        self.put(b, &of_a);
    }
}

/// Bits of a stride that a test flips: all of the header, and some of the payload.
pub(crate) fn some_bits(stride: usize) -> impl Iterator<Item = usize> {
    (0..HEADER_LEN * 8).step_by(7).chain([HEADER_LEN * 8, stride * 4, stride * 8 - 1])
}
