//! Plain READs and WRITEs through a device, each waited for until it has completed: what sealing adds is the difference.

use std::sync::Arc;

use overbank_verbs::{Access, Backing, Done, Lane, Memory, Op, QpCaps, Transfer, WcStatus};

use crate::answer::{self, Kind};
use crate::cpus::Cpus;
use crate::ends::{self, Ends, RETRY, Reach};
use crate::error::BenchError;
use crate::patience::Patience;
use crate::peer::Peer;

/// The asking end, connected.
pub(crate) struct OneSided {
    lane: Lane,
    done: Vec<Done>,
    transfer: Transfer,
    own: Reach,
    other: Reach,
    places: u64,
    next: u64,
    /// Ends the answering process when dropped.
    _peer: Peer,
}

impl OneSided {
    /// Starts an answering process and connects to it. Operations of `len` bytes go round in `span` bytes over there.
    pub(crate) fn start(ends: &Ends, len: usize, span: usize, cpus: Cpus) -> Result<Self, BenchError> {
        let span = span.max(len);
        let arguments = ["--device", ends.peer_device(), "--size", &span.to_string()];
        let mut lane = Lane::new(&ends::open(&ends.device)?, 1, len)?;
        let mut peer = answer::spawn(Kind::OneSided, &arguments, cpus)?;
        let other = Reach::of(&peer)?;
        let own = Reach { endpoint: lane.endpoint(), address: 0, rkey: 0 };
        peer.say(&own.to_line())?;
        peer.line()?;
        lane.connect(&other.endpoint, RETRY)?;
        let slot = lane.take().ok_or_else(|| BenchError::Usage("a lane has no slot".to_owned()))?;
        let transfer = Transfer { slot, op: Op::Read, len, remote_address: other.address, rkey: other.rkey };
        let places = (span / len) as u64;
        Ok(Self { lane, done: Vec::with_capacity(1), transfer, own, other, places, next: 0, _peer: peer })
    }

    /// Where the two ends are.
    pub(crate) fn reach(&self) -> (Reach, Reach) {
        (self.own, self.other)
    }

    /// Reads or writes the next bytes, and polls until that has completed.
    pub(crate) fn once(&mut self, op: Op) -> Result<(), BenchError> {
        self.transfer.op = op;
        self.transfer.remote_address = self.other.address + self.next % self.places * self.transfer.len as u64;
        self.next += 1;
        transfer(&mut self.lane, self.transfer, &mut self.done, "the RDMA peer")
    }
}

/// Posts one transfer of a lane on which nothing is under way, and polls until it has completed. `done` is room for that.
pub(crate) fn transfer(
    lane: &mut Lane,
    transfer: Transfer,
    done: &mut Vec<Done>,
    peer: &'static str,
) -> Result<(), BenchError> {
    lane.post(&[transfer])?;
    done.clear();
    let mut patience = Patience::with(peer);
    while lane.poll(done)? == 0 {
        patience.spin()?;
    }
    match done.first() {
        Some(done) if done.status != WcStatus::SUCCESS => {
            Err(BenchError::Operation { op: transfer.op, status: done.status })
        }
        _ => Ok(()),
    }
}

/// The answering end: says where its `len` bytes are through `say`, learns who asks by `hear`, then lets the device
/// answer until it is ended.
pub(crate) fn answer(
    device: &str,
    len: usize,
    mut say: impl FnMut(&str),
    mut hear: impl FnMut() -> Result<String, BenchError>,
) -> Result<(), BenchError> {
    const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
    let device = ends::open(device)?;
    let pd = device.alloc_pd()?;
    let memory = Arc::new(Memory::map(len, Backing::Ordinary)?);
    let region = pd.register(&memory, 0..len, RIGHTS)?;
    let queue = device.create_cq(16)?;
    let qp = pd.create_qp(&queue, QpCaps { send_queue: 1, outstanding_reads: 16 })?;
    say(&Reach { endpoint: qp.endpoint(), address: region.address(), rkey: region.rkey() }.to_line());
    let line = hear()?;
    let asker = Reach::from_line(&line).ok_or_else(|| BenchError::Usage(format!("'{line}' is no end")))?;
    qp.connect(&asker.endpoint, RIGHTS, RETRY)?;
    say("connected");
    loop {
        // The device answers by itself; this process ends with its parent.
        std::thread::park();
    }
}
