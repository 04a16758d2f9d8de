//! Engines against each other over the simulated network.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{CqHandle, EngineRequest, MrHandle, PdHandle, Qpn};
use super::port_sim::{Net, Random, address};
use super::sim_link::Faults;
use crate::{Access, Backing, Completion, Memory, Mtu, Op, QpCaps, QpState, Retry, WcStatus};

pub(super) const RETRY: Retry = Retry { timeout: Duration::from_millis(1), count: 7 };
pub(super) const CAPS: QpCaps = QpCaps { send_queue: 64, outstanding_reads: 4 };
pub(super) const ALL: Access = Access::all();

/// One end of a connection, with a region over all of its memory.
pub(super) struct Side {
    pub(super) host: usize,
    pub(super) pd: PdHandle,
    pub(super) cq: CqHandle,
    pub(super) qpn: Qpn,
    pub(super) mr: MrHandle,
    pub(super) memory: Arc<Memory>,
}

/// Two ends: host 0 asks, host 1 lends.
pub(super) struct Pair {
    pub(super) net: Net,
    pub(super) a: Side,
    pub(super) b: Side,
}

impl Pair {
    pub(super) fn new(seed: u64, faults: Faults, mtu: Mtu, bytes: usize) -> Self {
        Self::with(seed, faults, mtu, bytes, ALL, RETRY)
    }

    /// Host 1 gives host 0 these rights.
    pub(super) fn with(seed: u64, faults: Faults, mtu: Mtu, bytes: usize, rights: Access, retry: Retry) -> Self {
        let mut net = Net::new(seed, faults, &[Mtu::Mtu8192, mtu]);
        let a = Side::new(&mut net, 0, bytes);
        let b = Side::new(&mut net, 1, bytes);
        connect(&mut net, (&a, Access::empty()), (&b, rights), retry);
        Self { net, a, b }
    }

    pub(super) fn request(&self, id: u64, op: Op, offset: usize, remote: usize, len: usize) -> EngineRequest {
        let remote_address = self.b.memory.address() + remote as u64;
        EngineRequest { id, op, mr: self.a.mr, offset, len, remote_address, rkey: self.b.mr.rkey }
    }

    pub(super) fn post(&mut self, batch: &[EngineRequest]) {
        let now = self.net.now();
        self.net.hosts[0].post(now, self.a.qpn, batch).unwrap();
    }

    /// Posts, lets everything happen, and returns how it ended.
    pub(super) fn run(&mut self, batch: &[EngineRequest]) -> Vec<(u64, WcStatus)> {
        self.post(batch);
        self.net.settle();
        statuses(&self.a.poll(&mut self.net))
    }

    pub(super) fn states(&self) -> (QpState, QpState) {
        (self.net.hosts[0].state(self.a.qpn), self.net.hosts[1].state(self.b.qpn))
    }
}

pub(super) fn statuses(completions: &[Completion]) -> Vec<(u64, WcStatus)> {
    completions.iter().map(|completion| (completion.id, completion.status)).collect()
}

pub(super) fn connect(net: &mut Net, a: (&Side, Access), b: (&Side, Access), retry: Retry) {
    let now = net.now();
    let ends = [(a.0.host, a.0.qpn), (b.0.host, b.0.qpn)].map(|(host, qpn)| net.hosts[host].endpoint(qpn).unwrap());
    net.hosts[a.0.host].connect(now, a.0.qpn, &ends[1], a.1, retry).unwrap();
    net.hosts[b.0.host].connect(now, b.0.qpn, &ends[0], b.1, retry).unwrap();
}

impl Clone for Side {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), ..*self }
    }
}

impl Side {
    pub(super) fn new(net: &mut Net, host: usize, bytes: usize) -> Self {
        Self::with(net, host, bytes, CAPS)
    }

    pub(super) fn with(net: &mut Net, host: usize, bytes: usize, caps: QpCaps) -> Self {
        let memory = Arc::new(Memory::map(bytes, Backing::Ordinary).unwrap());
        let engine = &mut net.hosts[host];
        let pd = engine.alloc_pd();
        let cq = engine.create_cq(256).unwrap();
        let qpn = engine.create_qp(pd, cq, caps).unwrap();
        let mr = engine.register(pd, Arc::clone(&memory), 0..bytes, ALL).unwrap();
        Self { host, pd, cq, qpn, mr, memory }
    }

    pub(super) fn fill(&self, seed: u64) -> Vec<u8> {
        let bytes = pattern(seed, self.memory.len());
        self.memory.copy_in(0, &bytes).unwrap();
        bytes
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.len()];
        self.memory.copy_out(0, &mut bytes).unwrap();
        bytes
    }

    pub(super) fn poll(&self, net: &mut Net) -> Vec<Completion> {
        let mut completions = Vec::new();
        net.hosts[self.host].poll_cq(self.cq, usize::MAX, &mut completions).unwrap();
        completions
    }
}

pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
    bytes
}

const MTUS: [Mtu; 6] = Mtu::ALL;

// InfiniBand 9.4.3, 9.4.4: RDMA WRITE and READ, cut into packets of the path MTU.
#[test]
fn sec_9_4_every_length_around_the_mtu_arrives() {
    for mtu in MTUS {
        let unit = mtu.bytes();
        for len in [1, 2, 3, 4, 5, unit - 1, unit, unit + 1, 2 * unit, 2 * unit + 1, 17 * unit + 3, 70 * unit] {
            let mut pair = Pair::new(len as u64, Faults::default(), mtu, 71 * unit);
            let (ours, theirs) = (pair.a.fill(1), pair.b.fill(2));
            let (local, remote) = (unit / 2, unit / 4);
            let write = pair.request(1, Op::Write, local, remote, len);
            assert_eq!(pair.run(&[write]), [(1, WcStatus::SUCCESS)], "WRITE of {len} at MTU {unit}");
            let mut expected = theirs.clone();
            expected[remote..remote + len].copy_from_slice(&ours[local..local + len]);
            assert!(pair.b.bytes() == expected, "WRITE of {len} at MTU {unit}");
            assert!(pair.a.bytes() == ours);

            pair.b.fill(2);
            let read = pair.request(2, Op::Read, local, remote, len);
            assert_eq!(pair.run(&[read]), [(2, WcStatus::SUCCESS)], "READ of {len} at MTU {unit}");
            let mut expected = ours.clone();
            expected[local..local + len].copy_from_slice(&theirs[remote..remote + len]);
            assert!(pair.a.bytes() == expected, "READ of {len} at MTU {unit}");
            assert!(pair.b.bytes() == theirs);
            assert_eq!(pair.states(), (QpState::ReadyToSend, QpState::ReadyToSend));
            assert_eq!(pair.net.hosts[0].counters().retransmitted, 0);
            assert!(pair.net.hosts[0].counters().dropped.is_empty());
        }
    }
}

#[test]
fn a_network_that_loses_everything_ends_in_retries_exceeded() {
    let mut pair = Pair::new(1, Faults { lost: 1_000_000, ..Faults::default() }, Mtu::Mtu1024, 8192);
    let batch: Vec<_> = (0..3).map(|id| pair.request(id, Op::Read, 0, 0, 5000)).collect();
    let flushed = WcStatus::WR_FLUSH_ERR;
    assert_eq!(pair.run(&batch), [(0, WcStatus::RETRY_EXC_ERR), (1, flushed), (2, flushed)]);
    assert_eq!(pair.net.now().0, 8 * 1_000_000, "the first time and seven more, a millisecond each");
}

#[test]
fn one_tenants_key_is_worth_nothing_in_anothers_domain() {
    let mut net = Net::new(1, Faults::default(), &[Mtu::Mtu4096; 3]);
    let lender = Side::new(&mut net, 0, 8192);
    let other_lender = Side::new(&mut net, 0, 8192);
    let (tenant, thief) = (Side::new(&mut net, 1, 8192), Side::new(&mut net, 2, 8192));
    connect(&mut net, (&tenant, Access::empty()), (&lender, ALL), RETRY);
    connect(&mut net, (&thief, Access::empty()), (&other_lender, ALL), RETRY);
    let before = lender.fill(5);
    thief.fill(6);
    let aim = |side: &Side, op| EngineRequest {
        id: 1,
        op,
        mr: side.mr,
        offset: 0,
        len: 64,
        remote_address: lender.memory.address(),
        rkey: lender.mr.rkey,
    };
    let now = net.now();
    net.hosts[2].post(now, thief.qpn, &[aim(&thief, Op::Write)]).unwrap();
    net.hosts[1].post(now, tenant.qpn, &[aim(&tenant, Op::Read)]).unwrap();
    net.settle();
    assert_eq!(statuses(&thief.poll(&mut net)), [(1, WcStatus::REM_ACCESS_ERR)]);
    assert_eq!(statuses(&tenant.poll(&mut net)), [(1, WcStatus::SUCCESS)]);
    assert!(lender.bytes() == before);
    assert!(tenant.bytes()[..64] == before[..64]);
}

#[test]
fn a_stranger_with_the_right_numbers_moves_nothing() {
    let mut pair = Pair::new(1, Faults::default(), Mtu::Mtu1024, 8192);
    pair.net.log = Some(Vec::new());
    let before = pair.b.fill(1);
    pair.a.fill(2);
    let request = pair.request(1, Op::Write, 0, 0, 64);
    pair.post(&[request]);
    pair.net.link(0, 1).faults.lost = 1_000_000;
    pair.net.step();
    let seen = pair.net.log.clone().unwrap().remove(0);
    pair.net.link(0, 1).faults.lost = 0;
    // The packet as it was, from another address of the network.
    pair.net.inject(address(5), seen.to, &seen.bytes);
    pair.net.step();
    assert!(pair.b.bytes() == before);
    pair.net.settle();
    assert_eq!(statuses(&pair.a.poll(&mut pair.net)), [(1, WcStatus::SUCCESS)]);
}

#[test]
fn a_long_read_leaves_room_for_others() {
    let len = 4 << 20;
    let mut net = Net::new(1, Faults::default(), &[Mtu::Mtu4096; 2]);
    let ends: Vec<_> = (0..2).map(|_| (Side::new(&mut net, 0, len), Side::new(&mut net, 1, len))).collect();
    for (a, b) in &ends {
        connect(&mut net, (a, Access::empty()), (b, ALL), RETRY);
    }
    for (number, (a, b)) in ends.iter().enumerate() {
        let len = if number == 0 { len } else { 64 };
        let (remote_address, rkey) = (b.memory.address(), b.mr.rkey);
        let request = EngineRequest { id: 1, op: Op::Read, mr: a.mr, offset: 0, len, remote_address, rkey };
        let now = net.now();
        net.hosts[0].post(now, a.qpn, &[request]).unwrap();
    }
    while !net.hosts[0].cq_ready(ends[1].0.cq) {
        assert!(net.step());
    }
    assert!(!net.hosts[0].cq_ready(ends[0].0.cq));
    net.settle();
    assert!(net.hosts[0].cq_ready(ends[0].0.cq));
}
