//! A network of engines on a virtual clock that jumps to the next thing that happens. Everything in it follows from its
//! seed: which datagrams are lost, doubled, late or damaged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};

use super::engine::{Engine, Now};
use crate::Mtu;

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Less than `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn per_mille(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }
}

/// What befalls datagrams: shares in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Overtaken by others.
    pub(super) late: u64,
    pub(super) damaged: u64,
}

/// Nanoseconds from one host to another.
pub(super) const FLIGHT: u64 = 10_000;

pub(super) struct Net {
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) hosts: Vec<Engine>,
    now: u64,
    wire: BinaryHeap<Reverse<(u64, u64, Datagram)>>,
    order: u64,
    /// Every datagram that was sent, where a test wants to see them.
    pub(super) log: Option<Vec<Datagram>>,
    out: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

impl Net {
    pub(super) fn new(seed: u64, faults: Faults, mtus: &[Mtu]) -> Self {
        let hosts = mtus.iter().enumerate().map(|(host, mtu)| Engine::new(address(host), *mtu)).collect();
        Self {
            random: Random(seed),
            faults,
            hosts,
            now: 0,
            wire: BinaryHeap::new(),
            order: 0,
            log: None,
            out: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Now {
        Now(self.now)
    }

    /// Sends a datagram as if one of the hosts had.
    pub(super) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.fly(Datagram { from, to, bytes: bytes.to_vec() });
    }

    /// Lets one thing happen. False: nothing is left to happen.
    pub(super) fn step(&mut self) -> bool {
        for host in 0..self.hosts.len() {
            self.transmit(host);
        }
        let timeout = self.hosts.iter().filter_map(Engine::next_timeout).min().map(|at| at.0);
        let arrival = self.wire.peek().map(|Reverse((at, ..))| *at);
        let Some(at) = timeout.into_iter().chain(arrival).min() else { return false };
        self.now = self.now.max(at);
        if arrival.is_some_and(|arrival| arrival <= at) {
            if let Some(Reverse((_, _, datagram))) = self.wire.pop() {
                let now = self.now();
                if let Some(host) = (0..self.hosts.len()).find(|host| address(*host) == datagram.to) {
                    self.hosts[host].receive(now, datagram.from, &datagram.bytes);
                }
            }
        } else {
            let now = self.now();
            self.hosts.iter_mut().for_each(|host| host.on_timeout(now));
        }
        true
    }

    /// Until nothing is left to happen.
    pub(super) fn settle(&mut self) {
        let mut steps = 0_u64;
        while self.step() {
            steps += 1;
            assert!(steps < 5_000_000, "the network does not come to rest");
        }
    }

    fn transmit(&mut self, host: usize) {
        let now = self.now();
        loop {
            self.out.clear();
            self.out.resize(7, 0xa5);
            let Some(transmit) = self.hosts[host].poll_transmit(now, &mut self.out) else { break };
            assert_eq!(self.out.len(), 7 + transmit.len, "appends, and says how much");
            let bytes = self.out[7..].to_vec();
            self.fly(Datagram { from: address(host), to: transmit.to, bytes });
        }
        assert_eq!(self.out.len(), 7, "appends nothing where it has nothing");
    }

    fn fly(&mut self, mut datagram: Datagram) {
        if let Some(log) = &mut self.log {
            log.push(datagram.clone());
        }
        let faults = self.faults;
        if self.random.per_mille(faults.lost) {
            return;
        }
        if self.random.per_mille(faults.doubled) {
            let delay = FLIGHT + self.random.below(30 * FLIGHT);
            self.schedule(delay, datagram.clone());
        }
        if self.random.per_mille(faults.damaged) {
            let bit = self.random.below(datagram.bytes.len() as u64 * 8) as usize;
            datagram.bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let late = if self.random.per_mille(faults.late) { self.random.below(40 * FLIGHT) } else { 0 };
        self.schedule(FLIGHT + late, datagram);
    }

    fn schedule(&mut self, delay: u64, datagram: Datagram) {
        self.order += 1;
        self.wire.push(Reverse((self.now + delay, self.order, datagram)));
    }
}

pub(super) fn address(host: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, host as u8 + 1).into(), 4791)
}
