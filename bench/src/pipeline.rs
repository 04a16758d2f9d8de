//! Many READs or WRITEs at once: a number outstanding in each of a few queue pairs, a new one for each that completes.

use std::collections::BTreeSet;
use std::sync::Arc;

use overbank_verbs::{Access, Backing, Device, Done, Lane, Memory, Op, QpCaps, Transfer, WcStatus};

use crate::answer::{self, Kind};
use crate::counted::{self, Counted};
use crate::cpus::Cpus;
use crate::ends::{self, Ends, MAX_SIZE, RETRY, Reach};
use crate::error::BenchError;
use crate::patience::Patience;
use crate::peer::Peer;
use crate::rates::{Clock, Pace, Packets, Rate};

/// What the answering process is asked for its counters with.
const COUNTERS: &str = "counters";

/// How many, and how large.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of one operation.
    pub(crate) size: usize,
    /// Outstanding in each queue pair.
    pub(crate) depth: u32,
    /// Queue pairs.
    pub(crate) lanes: u8,
    /// Datagrams of a million that each end loses.
    pub(crate) lose_per_million: u32,
}

/// Most operations outstanding in one queue pair.
const MAX_DEPTH: u32 = 4096;
/// Most bytes of all operations outstanding.
const MAX_SPAN: usize = 1 << 30;

impl Shape {
    /// Every size at every depth with every loss, each once, if they can be had.
    pub(crate) fn all(
        sizes: &[usize],
        depths: &[u32],
        lanes: u8,
        lose_per_million: &[u32],
    ) -> Result<Vec<Self>, BenchError> {
        let usage = |message: String| Err(BenchError::Usage(message));
        let sizes: BTreeSet<_> = sizes.iter().copied().collect();
        let depths: BTreeSet<_> = depths.iter().copied().collect();
        let mut shapes = Vec::new();
        for &size in &sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return usage(format!("--size is 1 to {MAX_SIZE} bytes, not {size}"));
            }
            for &depth in &depths {
                if !(1..=MAX_DEPTH).contains(&depth) {
                    return usage(format!("--depth is 1 to {MAX_DEPTH}, not {depth}"));
                }
                let span = size * depth as usize * usize::from(lanes);
                if span > MAX_SPAN {
                    return usage(format!(
                        "{span} bytes outstanding are more than {MAX_SPAN}: lower --size or --depth"
                    ));
                }
                let shape = |&lose_per_million| Self { size, depth, lanes, lose_per_million };
                shapes.extend(lose_per_million.iter().map(shape));
            }
        }
        Ok(shapes)
    }
}

/// The asking end, connected. Each slot of each lane has a place of its own in the answering end's memory.
pub(crate) struct Pipeline {
    // Dropped in this order: what uses the device before it.
    lanes: Vec<Connected>,
    device: Device,
    /// What the answering end's memory holds; each turn of WRITEs writes the next.
    contents: u8,
    peer: Peer,
}

struct Connected {
    lane: Lane,
    /// By number of the slot.
    transfers: Vec<Transfer>,
    own: Reach,
    other: Reach,
}

/// The byte at this offset of memory that holds `contents`. Blocks of a page differ from each other.
fn byte(contents: u8, offset: usize) -> u8 {
    (offset ^ offset >> 8 ^ offset >> 12) as u8 ^ contents
}

fn fill(contents: u8, from: usize, bytes: &mut [u8]) {
    bytes.iter_mut().zip(from..).for_each(|(to, offset)| *to = byte(contents, offset));
}

impl Pipeline {
    /// Starts an answering process and connects to it.
    pub(crate) fn start(ends: &Ends, shape: Shape, cpus: Cpus) -> Result<Self, BenchError> {
        let Shape { size, depth, lanes, lose_per_million } = shape;
        let span = size * depth as usize * usize::from(lanes);
        let (span, number, lose) = (span.to_string(), lanes.to_string(), lose_per_million.to_string());
        let arguments = ["--device", ends.peer_device(), "--size", &span, "--lanes", &number, "--lose", &lose];
        let device = ends::open_losing(&ends.device, lose_per_million)?;
        let mut peer = answer::spawn(Kind::Pipeline, &arguments, cpus)?;
        let mut connected = Vec::new();
        for number in 0..usize::from(lanes) {
            let mut lane = Lane::new(&device, depth, size)?;
            let own = Reach { endpoint: lane.endpoint(), address: 0, rkey: 0 };
            peer.say(&own.to_line())?;
            let other = Reach::of(&peer)?;
            lane.connect(&other.endpoint, RETRY)?;
            let mut transfers = Vec::new();
            while let Some(slot) = lane.take() {
                let place = number * depth as usize + slot.0 as usize;
                let remote_address = other.address + (place * size) as u64;
                transfers.push(Transfer { slot, op: Op::Read, len: size, remote_address, rkey: other.rkey });
            }
            transfers.sort_by_key(|transfer| transfer.slot);
            connected.push(Connected { lane, transfers, own, other });
        }
        Ok(Self { lanes: connected, device, contents: 0, peer })
    }

    /// Where the two ends are.
    pub(crate) fn reach(&self) -> Option<(Reach, Reach)> {
        self.lanes.first().map(|connected| (connected.own, connected.other))
    }

    /// One turn, and a check that every byte came where it belongs.
    pub(crate) fn turn(&mut self, op: Op, pace: &Pace) -> Result<Rate, BenchError> {
        let before = self.count()?;
        if op == Op::Write {
            self.contents = self.contents.wrapping_add(1);
        }
        self.each_slot(|bytes, contents, offset| {
            match op {
                // What no READ brings is not there.
                Op::Read => bytes.fill(!byte(contents, offset)),
                Op::Write => fill(contents, offset, bytes),
            }
            true
        });
        let mut rate = self.flow(op, pace)?;
        let mut packets = self.count()?;
        packets.asker = packets.asker.since(&before.asker);
        packets.answerer = packets.answerer.since(&before.answerer);
        packets.udp_receive_buffer_errors -= before.udp_receive_buffer_errors.min(packets.udp_receive_buffer_errors);
        packets.operations = rate.packets.map_or(0, |packets| packets.operations);
        rate.packets = Some(packets);

        if op == Op::Write {
            self.each_slot(|bytes, _, _| {
                bytes.fill(0);
                true
            });
            self.once()?;
        }
        let right = self.each_slot(|bytes, contents, offset| {
            bytes.iter().zip(offset..).all(|(found, offset)| *found == byte(contents, offset))
        });
        if right { Ok(rate) } else { Err(BenchError::Wrong { op }) }
    }

    /// What both ends counted so far.
    fn count(&mut self) -> Result<Packets, BenchError> {
        self.peer.say(COUNTERS)?;
        let line = self.peer.line()?;
        let answerer =
            Counted::from_line(&line).ok_or_else(|| self.peer.failed(&format!("said '{line}', not its counters")))?;
        let asker = self.device.counters().into();
        let udp_receive_buffer_errors = counted::receive_buffer_errors().unwrap_or(0);
        Ok(Packets { operations: 0, asker, answerer, udp_receive_buffer_errors })
    }

    /// Shows each slot's bytes with what the other end's memory holds and where in it the slot's place begins; whether
    /// all say yes.
    fn each_slot(&mut self, mut look: impl FnMut(&mut [u8], u8, usize) -> bool) -> bool {
        let contents = self.contents;
        self.lanes.iter_mut().all(|Connected { lane, transfers, other, .. }| {
            transfers.iter().all(|transfer| {
                let offset = (transfer.remote_address - other.address) as usize;
                lane.bytes_mut(transfer.slot).is_some_and(|bytes| look(bytes, contents, offset))
            })
        })
    }

    /// Reads every place once.
    fn once(&mut self) -> Result<(), BenchError> {
        self.flow(Op::Read, &Pace { rounds: 1, seconds: 0.0, count: Some(0), warmup_seconds: 0.0 }).map(drop)
    }

    /// Keeps all slots in flight: untimed, then timed, then until the last has completed.
    fn flow(&mut self, op: Op, pace: &Pace) -> Result<Rate, BenchError> {
        for Connected { lane, transfers, .. } in &mut self.lanes {
            transfers.iter_mut().for_each(|transfer| transfer.op = op);
            lane.post(transfers)?;
        }
        let mut all = 0_u64;
        let (mut clock, mut timed) = (Clock::start(pace), None);
        let mut done: Vec<Done> = Vec::new();
        let mut batch: Vec<Transfer> = Vec::new();
        let mut patience = Patience::with("the RDMA peer");
        while self.lanes.iter().any(|connected| connected.lane.in_flight() > 0) {
            let mut found = false;
            for Connected { lane, transfers, .. } in &mut self.lanes {
                done.clear();
                if lane.poll(&mut done)? == 0 {
                    continue;
                }
                found = true;
                if let Some(failed) = done.iter().find(|done| done.status != WcStatus::SUCCESS) {
                    return Err(BenchError::Operation { op, status: failed.status });
                }
                all += done.len() as u64;
                if timed.is_none() {
                    batch.clear();
                    batch.extend(done.iter().filter_map(|done| transfers.get(done.slot.0 as usize)));
                    lane.post(&batch)?;
                }
            }
            if !found {
                patience.spin()?;
                continue;
            }
            patience = Patience::with("the RDMA peer");
            if timed.is_none() {
                timed = clock.look(all);
            }
        }
        let packets = Some(Packets { operations: all, ..Packets::default() });
        Ok(Rate { packets, ..timed.unwrap_or_default() })
    }
}

/// The answering end: learns by `hear` who asks and says through `say` where its memory is, for each queue pair; then
/// says its counters when it is asked, while the device answers.
pub(crate) fn answer(
    device: &str,
    len: usize,
    lanes: u8,
    lose: u32,
    mut say: impl FnMut(&str),
    mut hear: impl FnMut() -> Result<String, BenchError>,
) -> Result<(), BenchError> {
    const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
    let device = ends::open_losing(device, lose)?;
    let pd = device.alloc_pd()?;
    let memory = Arc::new(Memory::map(len, Backing::Ordinary)?);
    let mut bytes = vec![0; len];
    fill(0, 0, &mut bytes);
    memory.copy_in(0, &bytes)?;
    drop(bytes);
    let region = pd.register(&memory, 0..len, RIGHTS)?;
    let queue = device.create_cq(16)?;
    let mut pairs = Vec::new();
    for _ in 0..lanes {
        let line = hear()?;
        let asker = Reach::from_line(&line).ok_or_else(|| BenchError::Usage(format!("'{line}' is no end")))?;
        let qp = pd.create_qp(&queue, QpCaps { send_queue: 1, outstanding_reads: 16 })?;
        qp.connect(&asker.endpoint, RIGHTS, RETRY)?;
        say(&Reach { endpoint: qp.endpoint(), address: region.address(), rkey: region.rkey() }.to_line());
        pairs.push(qp);
    }
    loop {
        match hear()?.trim() {
            COUNTERS => say(&Counted::from(device.counters()).to_line()),
            "" => return Ok(()),
            line => return Err(BenchError::Usage(format!("'{line}' is no question"))),
        }
    }
}
