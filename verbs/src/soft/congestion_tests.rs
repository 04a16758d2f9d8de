//! Deep pipelines through links that are full, bad or shared: how much of the link they use, and how much they send twice.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::engine::EngineRequest;
use super::port_sim::{Datagram, Net};
use super::psn::{Psn, Seq};
use super::sim_link::{Bottleneck, Bursts, Faults, Latency};
use super::sim_tests::{ALL, Side, connect};
use super::wire::{Opcode, Packet};
use crate::{Mtu, Op, QpCaps, Retry, WcStatus};

/// As the consumer's library asks for it: a timeout is far longer than a way there and back.
const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 15 };
const DEEP: QpCaps = QpCaps { send_queue: 128, outstanding_reads: 16 };

/// One way and back.
#[derive(Debug, Clone, Copy)]
struct Path {
    name: &'static str,
    latency: u64,
    bytes_per_second: u64,
    queue: u64,
}

/// As much as a socket's default receive buffer holds of 4 KiB, behind a processor that takes 2 GB a second.
const LOOPBACK: Path = Path { name: "loopback", latency: 15_000, bytes_per_second: 2_000_000_000, queue: 170_000 };
const ETHERNET: Path = Path { name: "10 GbE", latency: 20_000, bytes_per_second: 1_250_000_000, queue: 256 << 10 };
const SLOW: Path = Path { name: "1 GbE", latency: 150_000, bytes_per_second: 125_000_000, queue: 128 << 10 };

impl Path {
    fn net(self, seed: u64, lost: u64, hosts: usize) -> Net {
        let mut net = Net::new(seed, Faults { lost, ..Faults::default() }, &vec![Mtu::Mtu4096; hosts]);
        for link in net.links() {
            link.latency = Latency::Constant(self.latency);
            link.bottleneck = Some(Bottleneck { bytes_per_second: self.bytes_per_second, queue: self.queue });
        }
        net
    }
}

/// A connection that always has as much posted as it may.
struct Load {
    us: Side,
    them: Side,
    op: Op,
    len: usize,
    depth: usize,
    posted: usize,
    done: usize,
}

/// Bytes of memory that a load reads or writes.
const MEMORY: usize = 1 << 20;

impl Load {
    fn new(net: &mut Net, (from, to): (usize, usize), op: Op, len: usize) -> Self {
        let (us, them) = (Side::with(net, from, MEMORY, DEEP), Side::with(net, to, MEMORY, DEEP));
        connect(net, (&us, ALL), (&them, ALL), RETRY);
        Self { us, them, op, len, depth: DEEP.send_queue, posted: 0, done: 0 }
    }

    fn poll(&mut self, net: &mut Net) {
        for completion in self.us.poll(net) {
            assert_eq!((completion.status, completion.id), (WcStatus::SUCCESS, self.done as u64));
            self.done += 1;
        }
    }

    fn fill(&mut self, net: &mut Net) {
        self.poll(net);
        let now = net.now();
        while self.posted - self.done < self.depth {
            let offset = self.posted * self.len % MEMORY;
            let request = EngineRequest {
                id: self.posted as u64,
                op: self.op,
                mr: self.us.mr,
                offset,
                len: self.len,
                remote_address: self.them.memory.address() + offset as u64,
                rkey: self.them.mr.rkey,
            };
            net.hosts[self.us.host].post(now, self.us.qpn, &[request]).unwrap();
            self.posted += 1;
        }
    }

    fn bytes(&self) -> u64 {
        (self.done * self.len) as u64
    }
}

fn run(net: &mut Net, loads: &mut [Load], time: u64) {
    let end = net.now().0 + time;
    while net.now().0 < end {
        loads.iter_mut().for_each(|load| load.fill(net));
        assert!(net.step());
        for _ in 0..7 {
            net.step();
        }
    }
}

/// Datagrams with data, and those of them that had been sent before: counted apart from the engines.
#[derive(Default)]
struct Meter {
    newest: HashMap<(u32, bool), Seq>,
    sent: u64,
    again: u64,
}

impl Meter {
    fn see(&mut self, datagram: &Datagram) {
        let Ok(packet) = Packet::new(&datagram.bytes) else { return };
        let bth = packet.bth;
        if matches!(bth.opcode, Opcode::ACKNOWLEDGE | Opcode::READ_REQUEST) {
            return;
        }
        let newest = self.newest.entry((bth.qpn, bth.opcode.is_response()));
        let first = Seq::start(Psn::new(bth.psn.get().wrapping_sub(1)));
        let newest = newest.or_insert(first);
        let at = newest.nearest(bth.psn);
        self.sent += 1;
        self.again += u64::from(at <= *newest);
        *newest = at.max(*newest);
    }
}

fn meter(net: &mut Net) -> Rc<RefCell<Meter>> {
    let meter = Rc::new(RefCell::new(Meter::default()));
    let watching = Rc::clone(&meter);
    net.watch = Some(Box::new(move |datagram| watching.borrow_mut().see(datagram)));
    meter
}

struct Outcome {
    /// Of the link, in bytes of requests that completed.
    share: f64,
    /// Of all packets with data.
    again: f64,
    overflowed: u64,
}

fn measure(path: Path, seed: u64, lost: u64, op: Op, len: usize, time: u64) -> Outcome {
    let mut net = path.net(seed, lost, 2);
    let mut loads = [Load::new(&mut net, (0, 1), op, len)];
    let meter = meter(&mut net);
    run(&mut net, &mut loads, time / 4);
    let (bytes, sent, again) = (loads[0].bytes(), meter.borrow().sent, meter.borrow().again);
    let overflowed = |net: &mut Net| net.links().map(|link| link.overflowed).sum::<u64>();
    let (begin, before) = (net.now().0, overflowed(&mut net));
    run(&mut net, &mut loads, time);
    let took = (net.now().0 - begin) as f64 / 1e9;
    let meter = meter.borrow();
    Outcome {
        share: (loads[0].bytes() - bytes) as f64 / took / path.bytes_per_second as f64,
        again: (meter.again - again) as f64 / (meter.sent - sent).max(1) as f64,
        overflowed: overflowed(&mut net) - before,
    }
}

#[test]
fn a_deep_pipeline_fills_a_link_without_drowning_it() {
    let mut wrong = Vec::new();
    for path in [LOOPBACK, ETHERNET, SLOW] {
        for (op, len) in [(Op::Read, 64 << 10), (Op::Read, 4096), (Op::Write, 64 << 10), (Op::Write, 4096)] {
            let time = 40_000_000 * 1_000_000_000 / path.bytes_per_second;
            let Outcome { share, again, overflowed } = measure(path, 1, 0, op, len, time);
            let said = format!(
                "{}: {op:?} of {len}: {:.1} % of the link, {:.3} % sent again, {overflowed} overflowed",
                path.name,
                100.0 * share,
                100.0 * again
            );
            println!("{said}");
            if share < 0.8 || again >= 0.01 {
                wrong.push(said);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Millionths lost, and the least share of the goodput without loss.
const LOSSES: [(u64, f64); 4] = [(100, 0.95), (1000, 0.9), (10_000, 0.6), (50_000, 0.15)];

#[test]
fn loss_costs_little_more_than_what_is_lost() {
    let mut wrong = Vec::new();
    let long = [(Op::Read, 64 << 10), (Op::Write, 64 << 10)];
    let short = [(Op::Read, 4096), (Op::Write, 4096)];
    for (path, loads) in [(LOOPBACK, long), (LOOPBACK, short), (ETHERNET, long)] {
        for (op, len) in loads {
            let time = 50_000_000 * 1_000_000_000 / path.bytes_per_second;
            let whole = measure(path, 2, 0, op, len, time).share;
            for (lost, least) in LOSSES {
                let Outcome { share, again, overflowed } = measure(path, 2, lost, op, len, time);
                let said = format!(
                    "{}: {op:?} of {len}, {} % lost: {:.1} % of the goodput at none, {:.3} % sent again, {overflowed} overflowed",
                    path.name,
                    lost as f64 / 10_000.0,
                    100.0 * share / whole,
                    100.0 * again
                );
                println!("{said}");
                if share < least * whole {
                    wrong.push(said);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn loss_in_bursts_is_no_end() {
    for (op, len) in [(Op::Read, 64 << 10), (Op::Write, 64 << 10)] {
        let mut net = ETHERNET.net(4, 0, 2);
        // One datagram in four thousand begins a burst, which takes some ten with it.
        net.links().for_each(|link| link.bursts = Some(Bursts { begin: 250, longest: 66_000 }));
        let mut loads = [Load::new(&mut net, (0, 1), op, len)];
        run(&mut net, &mut loads, 100_000_000);
        let share = loads[0].bytes() as f64 / (net.now().0 as f64 / 1e9) / ETHERNET.bytes_per_second as f64;
        println!("{op:?} of {len}, a quarter of a percent lost in bursts: {:.1} % of the link", 100.0 * share);
        assert!(share > 0.9, "{op:?} of {len}: {:.1} % of the link", 100.0 * share);
    }
}

#[test]
fn a_link_that_comes_back_is_used_again() {
    for (op, len) in [(Op::Read, 64 << 10), (Op::Write, 64 << 10), (Op::Write, 4096)] {
        for ways in [&[(0, 1)][..], &[(1, 0)], &[(0, 1), (1, 0)]] {
            let mut net = ETHERNET.net(5, 0, 2);
            let mut loads = [Load::new(&mut net, (0, 1), op, len)];
            run(&mut net, &mut loads, 10_000_000);
            let begin = net.now().0;
            for (from, to) in ways {
                net.link(*from, *to).dark = begin..begin + 250_000_000;
            }
            // A timeout of the caller's, and then it is as it was.
            run(&mut net, &mut loads, 250_000_000 + 110_000_000);
            let before = loads[0].bytes();
            let begin = net.now().0;
            run(&mut net, &mut loads, 30_000_000);
            let took = (net.now().0 - begin) as f64 / 1e9;
            let share = (loads[0].bytes() - before) as f64 / took / ETHERNET.bytes_per_second as f64;
            println!("{op:?} of {len}, {ways:?} dark for a while: {:.1} % of the link", 100.0 * share);
            assert!(share > 0.8, "{op:?} of {len}, {ways:?}: {:.1} % of the link", 100.0 * share);
        }
    }
}

#[test]
fn connections_share_a_link() {
    let mut wrong = Vec::new();
    for path in [LOOPBACK, ETHERNET, SLOW] {
        for (op, len) in [(Op::Read, 64 << 10), (Op::Write, 64 << 10), (Op::Write, 4096)] {
            // Two hosts ask a third, whose link they share. The second begins when the first has the link to itself.
            let mut net = path.net(3, 0, 3);
            net.share(&[(0, 1), (2, 1)]);
            net.share(&[(1, 0), (1, 2)]);
            let mut loads = vec![Load::new(&mut net, (0, 1), op, len)];
            let unit = 40_000_000 * 1_000_000_000 / path.bytes_per_second;
            run(&mut net, &mut loads, unit / 4);
            loads.push(Load::new(&mut net, (2, 1), op, len));
            run(&mut net, &mut loads, unit / 2);
            let before: Vec<_> = loads.iter().map(Load::bytes).collect();
            let (begin, meter) = (net.now().0, meter(&mut net));
            run(&mut net, &mut loads, unit);
            let took = (net.now().0 - begin) as f64 / 1e9;
            let rates: Vec<_> =
                loads.iter().zip(before).map(|(load, before)| (load.bytes() - before) as f64 / took).collect();
            let all: f64 = rates.iter().sum();
            let least = rates.iter().copied().fold(f64::MAX, f64::min);
            let again = meter.borrow().again as f64 / meter.borrow().sent as f64;
            let said = format!(
                "{}: {op:?} of {len}: both {:.1} % of the link, the lesser {:.1} % of that, {:.3} % sent again",
                path.name,
                100.0 * all / path.bytes_per_second as f64,
                100.0 * least / all,
                100.0 * again
            );
            println!("{said}");
            // Of short messages every packet is acknowledged alone: the queue is found to be full late.
            let most = if len == 4096 { 0.15 } else { 0.1 };
            if all < 0.8 * path.bytes_per_second as f64 || least < 0.25 * all || again > most {
                wrong.push(said);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
