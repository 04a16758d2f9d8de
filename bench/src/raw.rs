//! A plain READ through the same device: what the sealed read adds is the difference.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use overbank_verbs::{
    Access, Backing, Device, DeviceOptions, Done, Endpoint, Lane, Memory, Mtu, Op, QpCaps, QueuePair, Retry, Transfer,
    WcStatus,
};

use crate::answer::{self, Kind};
use crate::cpus::Cpus;
use crate::error::BenchError;
use crate::patience::Patience;
use crate::peer::Peer;

/// Both ends poll as long as this after the last packet; in its turn an end never sleeps.
pub(crate) const SPIN: Duration = Duration::from_millis(10);
const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 7 };
/// Memory that reads go round in.
const MEMORY: usize = 4 << 20;

/// The asking end, connected.
pub(crate) struct RawRead {
    lane: Lane,
    done: Vec<Done>,
    transfer: Transfer,
    base: u64,
    strides: u64,
    next: u64,
    /// Ends the answering process when dropped.
    _peer: Peer,
}

impl RawRead {
    /// Starts an answering process and connects to it. Reads of `len` bytes, at most 1 MiB.
    pub(crate) fn start(device_name: &str, len: usize, cpus: Cpus) -> Result<Self, BenchError> {
        let mut peer = answer::spawn(Kind::Raw, &["--device", device_name], cpus)?;
        let hello = peer.line()?;
        let unreadable = |peer: &Peer| peer.failed(&format!("said '{hello}', not where it can be read"));
        let Some((endpoint, base, rkey)) = parse(&hello) else { return Err(unreadable(&peer)) };
        let mut lane = Lane::new(&open(device_name)?, 1, len)?;
        peer.say(&hex(&lane.endpoint().to_bytes()))?;
        peer.line()?;
        lane.connect(&endpoint, RETRY)?;
        let slot = lane.take().ok_or_else(|| BenchError::Usage("a lane has no slot".to_owned()))?;
        let transfer = Transfer { slot, op: Op::Read, len, remote_address: base, rkey };
        let strides = (MEMORY / len) as u64;
        Ok(Self { lane, done: Vec::with_capacity(1), transfer, base, strides, next: 0, _peer: peer })
    }

    /// Reads the next bytes, and polls until they are here.
    pub(crate) fn read(&mut self) -> Result<(), BenchError> {
        self.transfer.remote_address = self.base + self.next % self.strides * self.transfer.len as u64;
        self.next += 1;
        self.lane.post(&[self.transfer])?;
        self.done.clear();
        let mut patience = Patience::with("the RDMA peer");
        while self.lane.poll(&mut self.done)? == 0 {
            patience.spin()?;
        }
        match self.done.first() {
            Some(done) if done.status == WcStatus::SUCCESS => Ok(()),
            other => Err(BenchError::Usage(format!("a plain READ ended as {other:?}"))),
        }
    }
}

/// The answering end: says where it can be read through `say`, learns who reads by `hear`, then answers until it is ended.
pub(crate) fn answer(
    device_name: &str,
    mut say: impl FnMut(&str),
    mut hear: impl FnMut() -> Result<String, BenchError>,
) -> Result<(), BenchError> {
    let device = open(device_name)?;
    let pd = device.alloc_pd()?;
    let memory = Arc::new(Memory::map(MEMORY, Backing::Ordinary)?);
    let region = pd.register(&memory, 0..MEMORY, Access::REMOTE_READ)?;
    let queue = device.create_cq(16)?;
    let qp: QueuePair = pd.create_qp(&queue, QpCaps { send_queue: 1, outstanding_reads: 16 })?;
    say(&format!("{} {} {}", hex(&qp.endpoint().to_bytes()), region.address(), region.rkey()));
    let line = hear()?;
    let asker = endpoint(line.trim()).ok_or_else(|| BenchError::Usage(format!("'{line}' is no endpoint")))?;
    qp.connect(&asker, Access::REMOTE_READ, RETRY)?;
    say("connected");
    loop {
        // The device answers by itself; this process ends with its parent.
        std::thread::park();
    }
}

fn open(name: &str) -> Result<Device, BenchError> {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Ok(Device::open(name, &DeviceOptions { address, port: None, spin: SPIN, mtu: Mtu::Mtu4096 })?)
}

fn parse(hello: &str) -> Option<(Endpoint, u64, u32)> {
    let mut fields = hello.split(' ');
    Some((endpoint(fields.next()?)?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn endpoint(text: &str) -> Option<Endpoint> {
    let bytes = overbank_fabric::ids::unhex::<{ Endpoint::LEN }>("an endpoint", text).ok()?;
    Endpoint::from_bytes(&bytes).ok()
}

fn hex(bytes: &[u8]) -> String {
    overbank_fabric::ids::hex(bytes)
}
