//! Engines against each other over the simulated network.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{CqHandle, EngineRequest, MrHandle, PdHandle, Qpn};
use super::port_sim::{Faults, Net, Random, address};
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
        let mut net = Net::new(seed, faults, &[Mtu::Mtu4096, mtu]);
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

impl Side {
    pub(super) fn new(net: &mut Net, host: usize, bytes: usize) -> Self {
        let memory = Arc::new(Memory::map(bytes, Backing::Ordinary).unwrap());
        let engine = &mut net.hosts[host];
        let pd = engine.alloc_pd();
        let cq = engine.create_cq(256).unwrap();
        let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
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
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

const MTUS: [Mtu; 5] = Mtu::ALL;

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

/// Bytes that a side keeps to itself, and as many behind them that it lends.
const HALF: usize = 96 << 10;
const SLOT: usize = 6 << 10;

/// One direction of a connection: requests of `us`, and what they must have done to the bytes of both.
struct Flow {
    us: Side,
    them: Side,
    /// Our own half, and their lent half, as if each request were done when it is posted.
    ours: Vec<u8>,
    theirs: Vec<u8>,
    posted: u64,
    /// Posted and not polled: id, operation, our slot, their slots, and what a READ must have brought.
    under_way: std::collections::VecDeque<(u64, Op, usize, usize, usize, Vec<u8>)>,
}

impl Flow {
    fn new(us: Side, them: Side) -> Self {
        let (ours, theirs) = (us.bytes()[..HALF].to_vec(), them.bytes()[HALF..].to_vec());
        Self { us, them, ours, theirs, posted: 0, under_way: std::collections::VecDeque::new() }
    }

    /// A random request that no other under way makes ambiguous: nothing is read into bytes that are in use, or
    /// written over bytes that are being read.
    fn draw(&mut self, net: &mut Net) -> Option<EngineRequest> {
        let random = &mut net.random;
        let op = if random.per_mille(500) { Op::Read } else { Op::Write };
        let span = if random.per_mille(100) { HALF / 2 } else { SLOT };
        let len = match random.below(4) {
            0 => 1 + random.below(16) as usize,
            1 => span,
            _ => 1 + random.below(span as u64) as usize,
        };
        let local = random.below((HALF - len) as u64 + 1) as usize;
        let remote = random.below((HALF - len) as u64 + 1) as usize;
        let overlap = |a: usize, b: usize, other: usize| a < b + other && b < a + len;
        let free = self.under_way.iter().all(|(_, other, their_local, their_remote, their_len, _)| {
            let (here, there) = (overlap(local, *their_local, *their_len), overlap(remote, *their_remote, *their_len));
            match (op, other) {
                (Op::Read, _) => !here,
                (Op::Write, Op::Read) => !here && !there,
                (Op::Write, Op::Write) => true,
            }
        });
        if !free {
            return None;
        }
        let id = self.posted;
        self.posted += 1;
        let mut brought = Vec::new();
        if op == Op::Write {
            self.theirs[remote..remote + len].copy_from_slice(&self.ours[local..local + len]);
        } else {
            brought = self.theirs[remote..remote + len].to_vec();
            self.ours[local..local + len].copy_from_slice(&brought);
        }
        self.under_way.push_back((id, op, local, remote, len, brought));
        let remote_address = self.them.memory.address() + (HALF + remote) as u64;
        let rkey = self.them.mr.rkey;
        Some(EngineRequest { id, op, mr: self.us.mr, offset: local, len, remote_address, rkey })
    }

    fn post(&mut self, net: &mut Net, most: u64) {
        let count = net.random.below(most + 1);
        let batch: Vec<_> = (0..count).filter_map(|_| self.draw(net)).collect();
        let now = net.now();
        net.hosts[self.us.host].post(now, self.us.qpn, &batch).unwrap();
    }

    /// Completions come in order, once, with success, and with the bytes.
    fn poll(&mut self, net: &mut Net) {
        for completion in self.us.poll(net) {
            let (id, op, local, _, len, brought) = self.under_way.pop_front().expect("something was under way");
            assert_eq!((completion.id, completion.op, completion.qpn), (id, op, self.us.qpn.0));
            assert_eq!(completion.status, WcStatus::SUCCESS);
            if op == Op::Read {
                let mut bytes = vec![0; len];
                self.us.memory.copy_out(local, &mut bytes).unwrap();
                assert!(bytes == brought, "READ {id} of {len} brought other bytes");
            }
        }
    }

    fn finish(mut self, net: &mut Net) {
        self.poll(net);
        assert!(self.under_way.is_empty());
        assert!(self.us.bytes()[..HALF] == self.ours);
        assert!(self.them.bytes()[HALF..] == self.theirs);
    }
}

impl Clone for Side {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), ..*self }
    }
}

/// Connections between two hosts, busy in both directions, over a network as bad as `faults`.
fn exchange(seed: u64, faults: Faults, lanes: usize, rounds: usize) -> Net {
    let mut random = Random(seed);
    let mtus = [MTUS[random.below(5) as usize], MTUS[random.below(5) as usize]];
    let mut net = Net::new(seed, faults, &mtus);
    let patient = Retry { timeout: Duration::from_millis(1), count: 100 };
    let mut flows = Vec::new();
    for lane in 0..lanes as u64 {
        let (a, b) = (Side::new(&mut net, 0, 2 * HALF), Side::new(&mut net, 1, 2 * HALF));
        a.fill(seed ^ lane);
        b.fill(seed ^ lane ^ 0xb);
        connect(&mut net, (&a, ALL), (&b, ALL), patient);
        flows.push(Flow::new(a.clone(), b.clone()));
        flows.push(Flow::new(b, a));
    }
    for _ in 0..rounds {
        for flow in &mut flows {
            flow.post(&mut net, 6);
        }
        for _ in 0..net.random.below(60) {
            net.step();
        }
        for flow in &mut flows {
            flow.poll(&mut net);
            if flow.under_way.len() > 40 {
                while flow.under_way.len() > 10 {
                    assert!(net.step());
                    flow.poll(&mut net);
                }
            }
        }
    }
    net.settle();
    flows.into_iter().for_each(|flow| flow.finish(&mut net));
    net
}

#[test]
fn bytes_are_the_oracles_over_any_network() {
    for seed in 0..400 {
        let mut random = Random(seed ^ 0x5eed);
        let mut share = |most: u64| if random.per_mille(500) { random.below(most + 1) } else { 0 };
        let faults = Faults { lost: share(150), doubled: share(200), late: share(300), damaged: share(100) };
        let lanes = 1 + seed as usize % 3;
        let outcome = std::panic::catch_unwind(|| exchange(seed, faults, lanes, 12));
        assert!(outcome.is_ok(), "seed {seed}, {faults:?}, {lanes} lanes");
    }
}

#[test]
fn a_quiet_network_needs_nothing_twice() {
    let net = exchange(7, Faults::default(), 2, 30);
    for host in &net.hosts {
        let counters = host.counters();
        assert_eq!((counters.retransmitted, counters.dropped.len()), (0, 0), "{counters:?}");
    }
}

/// A flood of WRITEs, which something ends in its middle. Returns how they ended, and the packets from then on.
fn flood(seed: u64, faults: Faults, op: Op, end: impl Fn(&mut Net, &Side)) -> (Pair, Vec<WcStatus>) {
    let len = 3000;
    let mut pair = Pair::new(seed, faults, Mtu::Mtu1024, 64 * len);
    let mut posted = 0;
    pair.a.fill(seed);
    let mut statuses = Vec::new();
    for _ in 0..20 + seed % 13 {
        while posted - statuses.len() < 32 {
            let at = posted % 64;
            let request = pair.request(posted as u64, op, at * len, at * len, len);
            pair.post(&[request]);
            posted += 1;
        }
        for _ in 0..1 + seed % 40 {
            pair.net.step();
        }
        statuses.extend(pair.a.poll(&mut pair.net).iter().map(|completion| completion.status));
    }
    end(&mut pair.net, &pair.b);
    let frozen = pair.b.bytes();
    pair.net.log = Some(Vec::new());
    pair.net.settle();
    assert!(pair.b.bytes() == frozen, "seed {seed}: not a byte after the fence");
    let rest = pair.a.poll(&mut pair.net);
    assert_eq!(rest.last().map(|completion| completion.id), Some(posted as u64 - 1));
    statuses.extend(rest.iter().map(|completion| completion.status));
    assert_eq!(statuses.len(), posted, "each once");
    (pair, statuses)
}

/// Successes, then one failure, then what it flushed.
fn assert_ends_once(statuses: &[WcStatus], allowed: &[WcStatus]) {
    let failed = statuses.iter().position(|status| *status != WcStatus::SUCCESS).unwrap();
    assert!(allowed.contains(&statuses[failed]), "{:?}", statuses[failed]);
    assert!(statuses[failed + 1..].iter().all(|status| *status == WcStatus::WR_FLUSH_ERR));
}

#[test]
fn no_byte_moves_after_a_deregistration() {
    for seed in 0..150 {
        let bad = Faults { lost: 30, doubled: 50, late: 100, damaged: 10 };
        let faults = if seed % 3 == 0 { Faults::default() } else { bad };
        for op in [Op::Write, Op::Read] {
            let (pair, statuses) = flood(seed, faults, op, |net, side| {
                net.hosts[side.host].deregister(side.mr).unwrap();
            });
            // Without faults the peer learns why. The one NAK may be lost, and an ACK with READs before it be flushed.
            let told = [WcStatus::REM_ACCESS_ERR];
            let maybe = [WcStatus::REM_ACCESS_ERR, WcStatus::RETRY_EXC_ERR, WcStatus::WR_FLUSH_ERR];
            if seed % 3 == 0 {
                assert_ends_once(&statuses, &told);
            } else {
                let failed = statuses.iter().position(|status| *status != WcStatus::SUCCESS).unwrap();
                assert!(statuses[failed..].iter().all(|status| maybe.contains(status)), "seed {seed}: {statuses:?}");
                let errors = statuses.iter().filter(|status| status.0 >= 9).count();
                assert_eq!(errors, 1, "seed {seed}: {statuses:?}");
            }
            let lent = pair.net.log.iter().flatten().filter(|datagram| datagram.from == address(1));
            assert_eq!(lent.filter(|datagram| (0x0d..=0x10).contains(&datagram.bytes[0])).count(), 0);
            assert_eq!(pair.states().0, QpState::Error);
        }
    }
}

#[test]
fn no_byte_moves_after_the_queue_pair_ends() {
    for seed in 0..60 {
        let (pair, statuses) = flood(seed, Faults::default(), Op::Write, |net, side| {
            let engine = &mut net.hosts[side.host];
            if seed % 2 == 0 { engine.set_error(side.qpn).unwrap() } else { engine.destroy_qp(side.qpn).unwrap() }
        });
        assert_ends_once(&statuses, &[WcStatus::RETRY_EXC_ERR]);
        let log = pair.net.log.unwrap();
        assert!(log.iter().all(|datagram| datagram.from == address(0)), "the ended side is silent");
    }
}

#[test]
fn a_network_that_loses_everything_ends_in_retries_exceeded() {
    let mut pair = Pair::new(1, Faults { lost: 1000, ..Faults::default() }, Mtu::Mtu1024, 8192);
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
    pair.net.faults.lost = 1000;
    pair.net.step();
    let seen = pair.net.log.clone().unwrap().remove(0);
    pair.net.faults.lost = 0;
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
