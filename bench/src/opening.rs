//! Connections that are opened, used once, and closed: of plain queue pairs, between two processes.

use std::sync::Arc;
use std::time::Duration;

use overbank_verbs::{
    Access, Backing, Completion, CompletionQueue, Device, DeviceOptions, Memory, MemoryRegion, Op, ProtectionDomain,
    QpCaps, QueuePair, WcStatus, WorkRequest,
};

use crate::answer::{self, Kind};
use crate::cpus::Cpus;
use crate::ends::{self, Ends, RETRY, Reach};
use crate::error::BenchError;
use crate::patience::Patience;
use crate::peer::Peer;
use crate::several::Watch;

/// Most queue pairs of a connection.
pub(crate) const MAX_LANES: usize = 64;
/// What is timed on the asking end.
pub(crate) const STEPS: [&str; 4] = ["create", "connect", "first_read", "destroy"];
const CREATE: usize = 0;
const CONNECT: usize = 1;
const FIRST_READ: usize = 2;
const DESTROY: usize = 3;

/// What the answering end's memory holds.
const CONTENTS: u8 = 0x5A;
/// What it is told to destroy its queue pairs with.
const CLOSE: &str = "close";
const CAPS: QpCaps = QpCaps { send_queue: 1, outstanding_reads: 16 };
const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
/// The devices poll no longer than the library has them: a device that polls while nothing comes would share its
/// processor with who creates and destroys.
const SPIN: Duration = Duration::from_micros(50);

/// The asking end.
pub(crate) struct Opening {
    // Dropped in this order: what uses the device before it.
    region: MemoryRegion,
    pd: ProtectionDomain,
    memory: Arc<Memory>,
    device: Device,
    size: usize,
    /// Ends the answering process when dropped.
    peer: Peer,
}

fn open(device: &str) -> Result<Device, BenchError> {
    Ok(Device::open(device, &DeviceOptions { spin: SPIN, ..ends::options() })?)
}

impl Opening {
    /// Starts an answering process. The first READ of each queue pair is of `size` bytes, and there are `lanes` at most.
    pub(crate) fn start(ends: &Ends, size: usize, lanes: usize, cpus: Cpus) -> Result<Self, BenchError> {
        let peer = answer::spawn(Kind::Opening, &["--device", ends.peer_device(), "--size", &size.to_string()], cpus)?;
        let device = open(&ends.device)?;
        let pd = device.alloc_pd()?;
        let memory = Arc::new(Memory::map(size * lanes, Backing::Ordinary)?);
        let region = pd.register(&memory, 0..size * lanes, Access::LOCAL_WRITE)?;
        Ok(Self { region, pd, memory, device, size, peer })
    }

    /// Opens a connection of so many queue pairs, reads through each, and closes it.
    pub(crate) fn once(&mut self, lanes: usize, watch: &mut Watch) -> Result<(), BenchError> {
        let pairs = watch.time(CREATE, || self.create(lanes))?;
        let others = self.exchange(&pairs)?;
        watch.time(CONNECT, || {
            let mut ends = pairs.iter().zip(&others);
            ends.try_for_each(|((pair, _), other)| pair.connect(&other.endpoint, Access::empty(), RETRY))?;
            Ok(())
        })?;
        self.memory.copy_in(0, &vec![!CONTENTS; self.size * lanes])?;
        watch.time(FIRST_READ, || self.read(&pairs, &others))?;
        let mut read = vec![0; self.size * lanes];
        self.memory.copy_out(0, &mut read)?;
        if read.iter().any(|byte| *byte != CONTENTS) {
            return Err(BenchError::Wrong { op: Op::Read });
        }
        watch.time(DESTROY, || {
            for (pair, queue) in pairs {
                pair.destroy()?;
                drop(queue);
            }
            Ok(())
        })?;
        self.peer.say(CLOSE)?;
        self.peer.line()?;
        Ok(())
    }

    /// Each with a completion queue of its own, as the library has them.
    fn create(&self, lanes: usize) -> Result<Vec<(QueuePair, CompletionQueue)>, BenchError> {
        let mut pairs = Vec::with_capacity(lanes);
        for _ in 0..lanes {
            let queue = self.device.create_cq(1)?;
            pairs.push((self.pd.create_qp(&queue, CAPS)?, queue));
        }
        Ok(pairs)
    }

    /// The other end creates and connects as many meanwhile.
    fn exchange(&mut self, pairs: &[(QueuePair, CompletionQueue)]) -> Result<Vec<Reach>, BenchError> {
        self.peer.say(&pairs.len().to_string())?;
        for (pair, _) in pairs {
            self.peer.say(&Reach { endpoint: pair.endpoint(), address: 0, rkey: 0 }.to_line())?;
        }
        pairs.iter().map(|_| Reach::of(&self.peer)).collect()
    }

    /// Posts one READ on each, and polls until the last has completed.
    fn read(&self, pairs: &[(QueuePair, CompletionQueue)], others: &[Reach]) -> Result<(), BenchError> {
        for (number, ((pair, _), other)) in pairs.iter().zip(others).enumerate() {
            let Reach { address: remote_address, rkey, .. } = *other;
            let (offset, len) = (number * self.size, self.size);
            pair.post(&[WorkRequest { id: 0, op: Op::Read, region: &self.region, offset, len, remote_address, rkey }])?;
        }
        let mut completions: Vec<Completion> = Vec::with_capacity(1);
        for (_, queue) in pairs {
            let mut patience = Patience::with("the RDMA peer");
            while queue.poll(1, &mut completions)? == 0 {
                patience.spin()?;
            }
        }
        match completions.iter().find(|completion| completion.status != WcStatus::SUCCESS) {
            Some(failed) => Err(BenchError::Operation { op: Op::Read, status: failed.status }),
            None => Ok(()),
        }
    }
}

/// The answering end: for each connection it learns by `hear` of how many queue pairs, and then theirs; creates and
/// connects its own and says through `say` where they are; until it is told to close.
pub(crate) fn answer(
    device: &str,
    len: usize,
    mut say: impl FnMut(&str),
    mut hear: impl FnMut() -> Result<String, BenchError>,
) -> Result<(), BenchError> {
    let odd = |line: &str| BenchError::Usage(format!("'{}' is not what is said here", line.trim()));
    let device = open(device)?;
    let pd = device.alloc_pd()?;
    let memory = Arc::new(Memory::map(len, Backing::Ordinary)?);
    memory.copy_in(0, &vec![CONTENTS; len])?;
    let region = pd.register(&memory, 0..len, RIGHTS)?;
    let queue = device.create_cq(MAX_LANES)?;
    loop {
        let line = hear()?;
        if line.is_empty() {
            return Ok(());
        }
        let lanes: usize = line.trim().parse().map_err(|_| odd(&line))?;
        if !(1..=MAX_LANES).contains(&lanes) {
            return Err(odd(&line));
        }
        let mut pairs = Vec::with_capacity(lanes);
        for _ in 0..lanes {
            let line = hear()?;
            let asker = Reach::from_line(&line).ok_or_else(|| odd(&line))?;
            let pair = pd.create_qp(&queue, CAPS)?;
            pair.connect(&asker.endpoint, RIGHTS, RETRY)?;
            pairs.push(pair);
        }
        for pair in &pairs {
            say(&Reach { endpoint: pair.endpoint(), address: region.address(), rkey: region.rkey() }.to_line());
        }
        let line = hear()?;
        if line.trim() != CLOSE {
            return Err(odd(&line));
        }
        pairs.into_iter().try_for_each(QueuePair::destroy)?;
        say("closed");
    }
}
