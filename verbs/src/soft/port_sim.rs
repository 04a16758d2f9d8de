//! A network of engines on a virtual clock that jumps to the next thing that happens. Everything in it follows from its
//! seed: keys, numbers of queue pairs and first PSNs as well. In a build with ports of DPDK's, datagrams go in frames.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};

use super::engine::{Engine, Now};
use super::handles::Seeded;
use super::sim_link::{FLIGHT, Fate, Faults, Link};
use super::wire::Packet;
use crate::Mtu;

/// SplitMix64.
#[derive(Debug, Clone)]
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

    pub(super) fn millionths(&mut self, share: u64) -> bool {
        share > 0 && self.below(1_000_000) < share
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

type Watch = Box<dyn FnMut(&Datagram)>;

pub(super) struct Net {
    /// What tests draw.
    pub(super) random: Random,
    pub(super) hosts: Vec<Engine>,
    links: Vec<Link>,
    /// The link from each host to each other.
    ways: Vec<usize>,
    /// Nanoseconds that a host takes to send a datagram; others arrive meanwhile.
    pub(super) pace: u64,
    /// When each host can send again.
    free_at: Vec<u64>,
    now: u64,
    wire: BinaryHeap<Reverse<(u64, u64, Datagram)>>,
    order: u64,
    /// Every datagram that was sent, where a test wants to see them.
    pub(super) log: Option<Vec<Datagram>>,
    /// Sees every datagram that is sent.
    pub(super) watch: Option<Watch>,
    /// Prints what happens to each datagram.
    pub(super) tells: bool,
    out: Vec<u8>,
    _seeded: Seeded,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Datagram {
    /// When it was sent.
    pub(super) at: u64,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
    /// On its way, so that its ICRC is wrong.
    pub(super) damaged: bool,
}

impl Net {
    /// Hosts with these MTUs, and between any two a link each way with these faults.
    pub(super) fn new(seed: u64, faults: Faults, mtus: &[Mtu]) -> Self {
        let mut random = Random(seed);
        let seeded = Seeded::new(random.next());
        let ways = mtus.len() * mtus.len();
        Self {
            hosts: mtus.iter().enumerate().map(|(host, mtu)| Engine::new(address(host), *mtu)).collect(),
            links: (0..ways).map(|_| Link::new(random.next(), faults)).collect(),
            ways: (0..ways).collect(),
            random,
            pace: 0,
            free_at: vec![0; mtus.len()],
            now: 0,
            wire: BinaryHeap::new(),
            order: 0,
            log: None,
            watch: None,
            tells: false,
            out: Vec::new(),
            _seeded: seeded,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now(self.now)
    }

    /// The link from one host to another.
    pub(super) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let way = from * self.hosts.len() + to;
        &mut self.links[self.ways[way]]
    }

    /// What goes these ways, each from one host to another, goes through the first one's link.
    pub(super) fn share(&mut self, ways: &[(usize, usize)]) {
        let place = |(from, to): (usize, usize)| from * self.hosts.len() + to;
        let link = self.ways[place(ways[0])];
        for way in ways {
            let way = place(*way);
            self.ways[way] = link;
        }
    }

    pub(super) fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.iter_mut()
    }

    /// Hands over a datagram after a while, as if one of the hosts had sent it.
    pub(super) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let datagram = Datagram { at: self.now, from, to, bytes: bytes.to_vec(), damaged: false };
        self.schedule(self.now + FLIGHT, datagram);
    }

    /// Lets one thing happen. False: nothing is left to happen.
    pub(super) fn step(&mut self) -> bool {
        for host in 0..self.hosts.len() {
            self.transmit(host);
        }
        let arrival = self.wire.peek().map(|Reverse((at, ..))| *at);
        let Some(at) = self.next() else { return false };
        self.now = self.now.max(at);
        if arrival.is_some_and(|arrival| arrival <= at) {
            if let Some(Reverse((_, _, datagram))) = self.wire.pop() {
                self.deliver(&datagram);
            }
        } else {
            let now = self.now();
            self.hosts.iter_mut().for_each(|host| host.on_timeout(now));
        }
        true
    }

    /// When the next thing happens.
    fn next(&self) -> Option<u64> {
        // One that has something to send wants to be called at once.
        let free = |(host, at): (&Engine, &u64)| host.next_timeout().map(|due| if due.0 == 0 { *at } else { due.0 });
        let timeout = self.hosts.iter().zip(&self.free_at).filter_map(free).min();
        let arrival = self.wire.peek().map(|Reverse((at, ..))| *at);
        timeout.into_iter().chain(arrival).min()
    }

    /// Until nothing is left to happen.
    pub(super) fn settle(&mut self) {
        let mut steps = 0_u64;
        while self.step() {
            steps += 1;
            assert!(steps < 500_000, "the network does not come to rest");
        }
    }

    /// Lets this much time pass, and what is due in it happen.
    pub(super) fn pass(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            (0..self.hosts.len()).for_each(|host| self.transmit(host));
            // An engine looks up after a while, with more to send.
            let goes_on = self.pace == 0 && self.hosts.iter().any(|host| host.next_timeout() == Some(Now(0)));
            match self.next() {
                _ if goes_on => {}
                Some(at) if at <= end => _ = self.step(),
                _ => break,
            }
        }
        self.now = end;
    }

    fn transmit(&mut self, host: usize) {
        let now = self.now();
        while self.free_at[host] <= now.0 {
            self.out.clear();
            self.out.resize(7, 0xa5);
            let Some(transmit) = self.hosts[host].poll_transmit(now, &mut self.out) else {
                assert_eq!(self.out.len(), 7, "appends nothing where it has nothing");
                break;
            };
            assert_eq!(self.out.len(), 7 + transmit.len, "appends, and says how much");
            let bytes = self.out[7..].to_vec();
            self.free_at[host] = now.0 + self.pace;
            self.fly(host, Datagram { at: now.0, from: address(host), to: transmit.to, bytes, damaged: false });
        }
    }

    fn fly(&mut self, from: usize, datagram: Datagram) {
        if let Some(log) = &mut self.log {
            log.push(datagram.clone());
        }
        if let Some(watch) = &mut self.watch {
            watch(&datagram);
        }
        let Some(to) = host_of(datagram.to).filter(|to| *to < self.hosts.len()) else { return };
        let said = if self.tells {
            format!("{:>12} ns {from} to {to}: {}", self.now, describe(&datagram))
        } else {
            String::new()
        };
        let fate = self.links[self.ways[from * self.hosts.len() + to]].carry(self.now, datagram);
        if self.tells {
            match &fate {
                Fate::Lost(why) => println!("{said}: {why}"),
                Fate::Arrives(copies) => {
                    let each =
                        copies.iter().map(|(at, copy)| format!("{at}{}", if copy.damaged { " damaged" } else { "" }));
                    println!("{said}: arrives at {}", each.collect::<Vec<_>>().join(" and "));
                }
            }
        }
        if let Fate::Arrives(copies) = fate {
            copies.into_iter().for_each(|(at, copy)| self.schedule(at, copy));
        }
    }

    fn schedule(&mut self, at: u64, datagram: Datagram) {
        self.order += 1;
        self.wire.push(Reverse((at, self.order, datagram)));
    }

    fn deliver(&mut self, datagram: &Datagram) {
        let now = self.now();
        let Some(host) = host_of(datagram.to).and_then(|host| self.hosts.get_mut(host)) else { return };
        let before = if datagram.damaged { host.counters().received } else { 0 };
        #[cfg(not(feature = "dpdk"))]
        host.receive(now, datagram.from, &datagram.bytes);
        #[cfg(feature = "dpdk")]
        super::port_dpdk::through_a_frame((datagram.from, datagram.to), &datagram.bytes, |from, id, bytes| {
            host.receive_with(now, from, Some(id), bytes);
        });
        if datagram.damaged {
            assert_eq!(host.counters().received, before, "a damaged datagram was taken: {datagram:x?}");
        }
    }
}

/// For who reads what happened.
fn describe(datagram: &Datagram) -> String {
    let Ok(packet) = Packet::new(&datagram.bytes) else { return format!("{} bytes", datagram.bytes.len()) };
    let bth = packet.bth;
    let asks = if bth.ack_request { ", asks" } else { "" };
    let rest = packet.body().map_or_else(
        |malformed| format!("{malformed:?}"),
        |body| match (body.reth, body.aeth) {
            (Some(reth), _) => format!("{} bytes of {} at {:#x}", body.data.len(), reth.len, reth.address),
            (_, Some(aeth)) => format!("{} bytes, syndrome {:#x}, MSN {}", body.data.len(), aeth.syndrome.0, aeth.msn),
            _ => format!("{} bytes", body.data.len()),
        },
    );
    format!("QP {:#x} opcode {:#04x} PSN {:#x}{asks}: {rest}", bth.qpn, bth.opcode.0, bth.psn.get())
}

pub(super) fn address(host: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, host as u8 + 1).into(), 4791)
}

fn host_of(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) if v4.port() == 4791 => usize::from(v4.ip().octets()[3]).checked_sub(1),
        _ => None,
    }
}
