//! WRITE ping-pong: each end writes into the other's memory as soon as the last byte of the other's WRITE lies in its
//! own. Half of a round trip is how long a WRITE takes to be seen by who polls for it: what perftest calls the latency
//! of a WRITE.

use std::sync::Arc;

use hdrhistogram::Histogram;
use overbank_verbs::{
    Access, Backing, Completion, CompletionQueue, Memory, MemoryRegion, Op, QpCaps, QueuePair, WcStatus, WorkRequest,
};

use crate::answer::{self, Kind};
use crate::cpus::Cpus;
use crate::ends::{self, Ends, RETRY, Reach};
use crate::error::BenchError;
use crate::figures::{Looks, Plan};
use crate::patience::Patience;
use crate::peer::Peer;

/// What is sent and what is received begin on pages of their own.
const PAGE: usize = 4096;
/// Looks at the memory between two at the device: a soft device that nobody polls would have to wake its own thread.
const LOOKS: u32 = 16;

/// The end that begins.
pub(crate) struct PingPong {
    side: Side,
    peer: Peer,
}

impl PingPong {
    /// Starts the answering end and connects to it. WRITEs of `len` bytes.
    pub(crate) fn start(ends: &Ends, len: usize, cpus: Cpus) -> Result<Self, BenchError> {
        let arguments = ["--device", ends.peer_device(), "--size", &len.to_string()];
        let mut side = Side::new(&ends.device, len)?;
        let mut peer = answer::spawn(Kind::PingPong, &arguments, cpus)?;
        let other = Reach::of(&peer)?;
        peer.say(&side.own.to_line())?;
        peer.line()?;
        side.connect(other)?;
        Ok(Self { side, peer })
    }

    /// Where the two ends are.
    pub(crate) fn reach(&self) -> (Reach, Reach) {
        (self.side.own, self.side.other)
    }

    /// One turn: half of each round trip.
    pub(crate) fn turn(&mut self, plan: &Plan) -> Result<Histogram<u64>, BenchError> {
        let mut looks = Looks::new(plan);
        self.peer.say(&(plan.warmup + plan.count).to_string())?;
        self.peer.line()?;
        for _ in 0..plan.warmup {
            self.side.send()?;
            self.side.receive()?;
        }
        looks.look();
        for _ in 0..plan.count {
            self.side.send()?;
            self.side.receive()?;
            looks.look();
        }
        looks.times(2)
    }
}

/// The answering end: says where it is through `say`, learns by `hear` where the other is and then, turn by turn, how
/// many round trips come.
pub(crate) fn answer(
    device: &str,
    len: usize,
    mut say: impl FnMut(&str),
    mut hear: impl FnMut() -> Result<String, BenchError>,
) -> Result<(), BenchError> {
    let mut side = Side::new(device, len)?;
    say(&side.own.to_line());
    let line = hear()?;
    let other = Reach::from_line(&line).ok_or_else(|| BenchError::Usage(format!("'{line}' is no end")))?;
    side.connect(other)?;
    say("connected");
    loop {
        let line = hear()?;
        if line.is_empty() {
            return Ok(());
        }
        let trips: u64 = line.trim().parse().map_err(|_| BenchError::Usage(format!("'{line}' is no number")))?;
        say("ready");
        for _ in 0..trips {
            side.receive()?;
            side.send()?;
        }
    }
}

/// Either end. The last byte of each WRITE is its number, so it differs from the one before.
struct Side {
    // Dropped in this order: the queue pair before what it uses.
    qp: QueuePair,
    region: MemoryRegion,
    queue: CompletionQueue,
    /// What is sent, then from `stride` what is received.
    memory: Arc<Memory>,
    len: usize,
    stride: usize,
    own: Reach,
    other: Reach,
    sent: u8,
    received: u8,
    completions: Vec<Completion>,
}

impl Side {
    fn new(device: &str, len: usize) -> Result<Self, BenchError> {
        let device = ends::open(device)?;
        let pd = device.alloc_pd()?;
        let stride = len.next_multiple_of(PAGE);
        let memory = Arc::new(Memory::map(2 * stride, Backing::Ordinary)?);
        let region = pd.register(&memory, 0..2 * stride, Access::LOCAL_WRITE | Access::REMOTE_WRITE)?;
        let queue = device.create_cq(1)?;
        let qp = pd.create_qp(&queue, QpCaps { send_queue: 1, outstanding_reads: 1 })?;
        let own = Reach { endpoint: qp.endpoint(), address: region.address() + stride as u64, rkey: region.rkey() };
        let (other, completions) = (own, Vec::with_capacity(1));
        Ok(Self { qp, region, queue, memory, len, stride, own, other, sent: 0, received: 0, completions })
    }

    fn connect(&mut self, other: Reach) -> Result<(), BenchError> {
        self.other = other;
        Ok(self.qp.connect(&other.endpoint, Access::REMOTE_WRITE, RETRY)?)
    }

    /// Writes to the other end, and polls until that has completed.
    fn send(&mut self) -> Result<(), BenchError> {
        self.sent = self.sent.wrapping_add(1);
        self.memory.copy_in(self.len - 1, &[self.sent])?;
        self.qp.post(&[WorkRequest {
            id: u64::from(self.sent),
            op: Op::Write,
            region: &self.region,
            offset: 0,
            len: self.len,
            remote_address: self.other.address,
            rkey: self.other.rkey,
        }])?;
        self.completions.clear();
        let mut patience = Patience::with("the RDMA device");
        while self.queue.poll(1, &mut self.completions)? == 0 {
            patience.spin()?;
        }
        match self.completions.first() {
            Some(completion) if completion.status != WcStatus::SUCCESS => {
                Err(BenchError::Operation { op: Op::Write, status: completion.status })
            }
            _ => Ok(()),
        }
    }

    /// Polls the memory until the other end's next WRITE is there.
    fn receive(&mut self) -> Result<(), BenchError> {
        self.received = self.received.wrapping_add(1);
        let mut last = [0];
        let mut patience = Patience::with("the RDMA peer");
        let mut looks = 0_u32;
        loop {
            self.memory.copy_out(self.stride + self.len - 1, &mut last)?;
            if last[0] == self.received {
                return Ok(());
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) {
                self.queue.poll(1, &mut self.completions)?;
            }
            patience.spin()?;
        }
    }
}
