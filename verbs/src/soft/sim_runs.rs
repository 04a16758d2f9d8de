//! Random runs over random networks, each of which follows from its seed.
//!
//! `OVERBANK_SIM_SEED` runs that seed alone and tells what happens; `OVERBANK_SIM_SECONDS` is for how long each test tries
//! one seed after the other.

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use super::engine::EngineRequest;
use super::port_sim::{Datagram, Net, Random, address};
use super::sim_link::{Bottleneck, Bursts, FLIGHT, Faults, Latency};
use super::sim_tests::{ALL, Side, connect};
use super::wire::{Bth, Opcode, Packet};
use crate::{Mtu, Op, QpState, Retry, WcStatus};

/// However slow the machine.
const LEAST_RUNS: u64 = 200;

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, and must be a number")))
}

/// Runs `run` with one seed after the other; the flag asks it to tell what happens.
fn seeds(test: &str, run: impl Fn(u64, bool)) {
    if let Some(seed) = from_environment("OVERBANK_SIM_SEED") {
        println!("seed {seed}");
        return run(seed, true);
    }
    let limit = Duration::from_secs(from_environment("OVERBANK_SIM_SECONDS").unwrap_or(2));
    let begin = Instant::now();
    let mut seed = 0;
    while seed < LEAST_RUNS || begin.elapsed() < limit {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, false))) {
            let module = module_path!().split_once("::").map_or("", |(_, module)| module);
            println!("seed {seed} failed. What happens in it:");
            println!(
                "OVERBANK_SIM_SEED={seed} cargo test -p overbank-verbs --lib {module}::{test} -- --exact --nocapture"
            );
            resume_unwind(panic);
        }
        seed += 1;
    }
    println!("{seed} runs in {:.1?}", begin.elapsed());
}

/// Makes each link as bad as the seed wants it, and unlike the one back.
fn spoil(net: &mut Net) {
    let (mut random, tells) = (Random(net.random.next()), net.tells);
    net.pace = [0, 200, 1000, 5000][random.below(4) as usize];
    for link in net.links() {
        if random.one_in(5) {
            continue;
        }
        let mut share = |most: u64| if random.one_in(2) { random.below(most + 1) } else { 0 };
        link.faults =
            Faults { lost: share(150_000), doubled: share(200_000), late: share(300_000), damaged: share(100_000) };
        link.latency = match random.below(4) {
            0 => Latency::Jitter(1000, 1000 + random.below(20 * FLIGHT)),
            1 => Latency::HeavyTail(1000 + random.below(FLIGHT)),
            _ => Latency::Constant(1000 + random.below(5 * FLIGHT)),
        };
        if random.one_in(4) {
            link.bursts = Some(Bursts { begin: 1 + random.below(20_000), longest: 1 + random.below(2_000_000) });
        }
        if random.one_in(3) {
            let bytes_per_second = 20_000_000 << random.below(7);
            link.bottleneck = Some(Bottleneck { bytes_per_second, queue: 9000 + random.below(200_000) });
        }
        if random.one_in(4) {
            let begin = random.below(5_000_000);
            link.dark = begin..begin + random.below(20_000_000);
        }
        if tells {
            println!("{link:?}");
        }
    }
}

fn any_mtu(random: &mut Random) -> Mtu {
    Mtu::ALL[random.below(Mtu::ALL.len() as u64) as usize]
}

/// What an engine keeps is bounded by the queue pairs that it has had, whatever the network does.
fn assert_bounded(net: &Net, queue_pairs: usize) {
    for engine in &net.hosts {
        let (alarms, turns) = (engine.alarms(), engine.turns());
        assert!(
            alarms <= 2 * queue_pairs && turns <= queue_pairs,
            "{alarms} alarms and {turns} turns of {queue_pairs}"
        );
    }
}

/// As its ends see it, a datagram follows from the seed but for where the system put the memory.
fn without_places(datagram: &Datagram, places: &HashMap<u32, u64>) -> Datagram {
    let mut datagram = datagram.clone();
    let reth = Packet::new(&datagram.bytes).ok().and_then(|packet| packet.body().ok()?.reth);
    if let Some(reth) = reth {
        let place = places.get(&reth.rkey).copied().unwrap_or(0);
        datagram.bytes[Bth::LEN..Bth::LEN + 8].copy_from_slice(&reth.address.wrapping_sub(place).to_be_bytes());
        let end = datagram.bytes.len() - 4;
        datagram.bytes.truncate(end);
    }
    datagram
}

// -- bytes ------------------------------------------------------------------------------------------------------------

/// Bytes that a side keeps to itself, and as many behind them that it lends.
const HALF: usize = 96 << 10;
const SPAN: usize = 6 << 10;

/// One direction of a connection: requests of `us`, and what they must have done to the bytes of both.
struct Flow {
    us: Side,
    them: Side,
    /// Our own half, and their lent half, as if each request were done when it is posted.
    ours: Vec<u8>,
    theirs: Vec<u8>,
    posted: u64,
    under_way: VecDeque<UnderWay>,
}

/// Posted and not polled.
struct UnderWay {
    id: u64,
    op: Op,
    local: usize,
    remote: usize,
    len: usize,
    /// What a READ must bring.
    brings: Vec<u8>,
}

impl Flow {
    fn new(us: Side, them: Side) -> Self {
        let (ours, theirs) = (us.bytes()[..HALF].to_vec(), them.bytes()[HALF..].to_vec());
        Self { us, them, ours, theirs, posted: 0, under_way: VecDeque::new() }
    }

    /// A random request that no other under way makes ambiguous: nothing is read into bytes that are in use, or
    /// written over bytes that are being read.
    fn draw(&mut self, net: &mut Net) -> Option<EngineRequest> {
        let random = &mut net.random;
        let op = if random.one_in(2) { Op::Read } else { Op::Write };
        let span = if random.one_in(10) { HALF / 2 } else { SPAN };
        let len = match random.below(4) {
            0 => 1 + random.below(16) as usize,
            1 => span,
            _ => 1 + random.below(span as u64) as usize,
        };
        let local = random.below((HALF - len) as u64 + 1) as usize;
        let remote = random.below((HALF - len) as u64 + 1) as usize;
        let overlap = |a: usize, b: usize, other: usize| a < b + other && b < a + len;
        let free = self.under_way.iter().all(|other| {
            let (here, there) = (overlap(local, other.local, other.len), overlap(remote, other.remote, other.len));
            match (op, other.op) {
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
        let mut brings = Vec::new();
        if op == Op::Write {
            self.theirs[remote..remote + len].copy_from_slice(&self.ours[local..local + len]);
        } else {
            brings = self.theirs[remote..remote + len].to_vec();
            self.ours[local..local + len].copy_from_slice(&brings);
        }
        self.under_way.push_back(UnderWay { id, op, local, remote, len, brings });
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
            let done = self.under_way.pop_front().expect("something was under way");
            assert_eq!((completion.id, completion.op, completion.qpn), (done.id, done.op, self.us.qpn.0));
            assert_eq!(completion.status, WcStatus::SUCCESS);
            if done.op == Op::Read {
                let mut bytes = vec![0; done.len];
                self.us.memory.copy_out(done.local, &mut bytes).unwrap();
                assert!(bytes == done.brings, "READ {} of {} brought other bytes", done.id, done.len);
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

/// Connections between two or three hosts, busy in both directions. Where the network logs what was sent, `ghosts` of it
/// come back in each round.
fn exchange(mut net: Net, lanes: u64, rounds: usize, ghosts: usize) -> (Net, HashMap<u32, u64>) {
    let timeout = Duration::from_millis([1, 4, 20][net.random.below(3) as usize]);
    let patient = Retry { timeout, count: 100 };
    let (mut flows, mut places) = (Vec::new(), HashMap::new());
    for lane in 0..lanes {
        let from = net.random.below(net.hosts.len() as u64) as usize;
        let to = (from + 1) % net.hosts.len();
        let (a, b) = (Side::new(&mut net, from, 2 * HALF), Side::new(&mut net, to, 2 * HALF));
        a.fill(lane);
        b.fill(lane ^ 0xb);
        connect(&mut net, (&a, ALL), (&b, ALL), patient);
        places.extend([&a, &b].map(|side| (side.mr.rkey, side.memory.address())));
        flows.push(Flow::new(a.clone(), b.clone()));
        flows.push(Flow::new(b, a));
    }
    for _ in 0..rounds {
        for flow in &mut flows {
            flow.post(&mut net, 6);
        }
        for _ in 0..ghosts {
            let log = net.log.as_deref().unwrap_or_default();
            let number = Random(net.now().0).below(log.len() as u64 + 1) as usize;
            if let Some(ghost) = log.get(number).cloned() {
                net.inject(ghost.from, ghost.to, &ghost.bytes);
            }
            net.step();
        }
        for _ in 0..net.random.below(60) {
            net.step();
        }
        assert_bounded(&net, lanes as usize);
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
    assert_bounded(&net, lanes as usize);
    assert!(net.hosts.iter().all(|host| (host.alarms(), host.askers().0) == (0, 0)), "something is waited for");
    flows.into_iter().for_each(|flow| flow.finish(&mut net));
    (net, places)
}

fn any_exchange(seed: u64, tells: bool, logs: bool, ghosts: usize) -> (Net, HashMap<u32, u64>) {
    let mut random = Random(seed);
    let mtus: Vec<_> = (0..2 + random.below(2)).map(|_| any_mtu(&mut random)).collect();
    let mut net = Net::new(seed, Faults::default(), &mtus);
    (net.tells, net.log) = (tells, logs.then(Vec::new));
    spoil(&mut net);
    let lanes = 1 + random.below(3);
    exchange(net, lanes, 12, ghosts)
}

#[test]
fn bytes_are_the_oracles_over_any_network() {
    seeds("bytes_are_the_oracles_over_any_network", |seed, tells| {
        any_exchange(seed, tells, false, 0);
    });
}

#[test]
fn what_comes_back_much_later_changes_nothing() {
    seeds("what_comes_back_much_later_changes_nothing", |seed, tells| {
        any_exchange(seed, tells, true, 5);
    });
}

#[test]
fn a_seed_is_one_run() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| {
            let (net, places) = any_exchange(seed, false, true, 0);
            let log: Vec<_> = net.log.iter().flatten().map(|sent| without_places(sent, &places)).collect();
            (log, net.now())
        });
        assert!(!first.0.is_empty());
        let differs = first.0.iter().zip(&second.0).position(|(first, second)| first != second);
        assert_eq!((differs, first.0.len(), first.1), (None, second.0.len(), second.1), "seed {seed}");
    }
}

#[test]
fn a_quiet_network_needs_nothing_twice() {
    let net = Net::new(7, Faults::default(), &[Mtu::Mtu256, Mtu::Mtu4096]);
    let (net, _) = exchange(net, 2, 30, 0);
    for host in &net.hosts {
        let counters = host.counters();
        assert_eq!((counters.retransmitted, counters.dropped.len()), (0, 0), "{counters:?}");
    }
}

// -- ends -------------------------------------------------------------------------------------------------------------

/// Requests use one slot after the other, so that no two under way use the same. A side has four rows of them: what is
/// read from it, what is written to it, what it writes, and what it has read.
const SLOT: usize = 3000;
const SLOTS: usize = 24;
const ROW: usize = SLOT * SLOTS;

/// One direction of a connection that something ends.
struct Stream {
    us: Side,
    them: Side,
    source: Vec<u8>,
    posted: Vec<(Op, usize)>,
    outcomes: Vec<WcStatus>,
}

impl Stream {
    fn new(us: Side, them: Side) -> Self {
        let source = us.bytes();
        Self { us, them, source, posted: Vec::new(), outcomes: Vec::new() }
    }

    /// Posts up to this many; with `spoiled` the last has a key that opens nothing.
    fn post(&mut self, net: &mut Net, most: usize, spoiled: bool) {
        let room = (SLOTS - 1).saturating_sub(self.posted.len() - self.outcomes.len());
        let count = most.min(room);
        for number in 0..count {
            let slot = self.posted.len() % SLOTS * SLOT;
            let op = if net.random.one_in(2) { Op::Read } else { Op::Write };
            let len = 1 + net.random.below(SLOT as u64) as usize;
            let (local, remote) = if op == Op::Read { (3, 0) } else { (2, 1) };
            let rkey = self.them.mr.rkey ^ u32::from(spoiled && number + 1 == count);
            let request = EngineRequest {
                id: self.posted.len() as u64,
                op,
                mr: self.us.mr,
                offset: local * ROW + slot,
                len,
                remote_address: self.them.memory.address() + (remote * ROW + slot) as u64,
                rkey,
            };
            let now = net.now();
            // Its own region or queue pair may be no more.
            if net.hosts[self.us.host].post(now, self.us.qpn, &[request]).is_err() {
                return;
            }
            self.posted.push((op, len));
        }
    }

    /// Completions come in the order posted, each once, and what succeeded has moved its bytes.
    fn poll(&mut self, net: &mut Net) {
        for completion in self.us.poll(net) {
            let number = self.outcomes.len();
            let (op, len) = self.posted[number];
            assert_eq!((completion.id, completion.op, completion.qpn), (number as u64, op, self.us.qpn.0));
            self.outcomes.push(completion.status);
            if completion.status != WcStatus::SUCCESS {
                continue;
            }
            let slot = number % SLOTS * SLOT;
            let (from, to) = if op == Op::Read { (&self.them, &self.us) } else { (&self.us, &self.them) };
            let (source, target) = if op == Op::Read { (0, 3) } else { (2, 1) };
            let mut bytes = [vec![0; len], vec![0; len]];
            from.memory.copy_out(source * ROW + slot, &mut bytes[0]).unwrap();
            to.memory.copy_out(target * ROW + slot, &mut bytes[1]).unwrap();
            assert!(bytes[0] == bytes[1], "{op:?} {number} of {len} moved other bytes");
        }
    }

    /// Successes, and where it failed one error among what it flushed. Returns the error.
    fn finish(&mut self, net: &mut Net) -> Option<WcStatus> {
        self.poll(net);
        assert_eq!(self.outcomes.len(), self.posted.len(), "each once");
        let bytes = self.us.bytes();
        assert!(bytes[2 * ROW..3 * ROW] == self.source[2 * ROW..3 * ROW], "nobody writes there");
        let failed = self.outcomes.iter().position(|status| *status != WcStatus::SUCCESS)?;
        let mut errors = self.outcomes[failed..].iter().filter(|status| **status != WcStatus::WR_FLUSH_ERR);
        let error = errors.next();
        assert_eq!((error == Some(&WcStatus::SUCCESS), errors.next()), (false, None), "{:?}", &self.outcomes[failed..]);
        error.copied().or(Some(WcStatus::WR_FLUSH_ERR))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    LenderDeregisters,
    LenderErrs,
    LenderDestroys,
    AskerDeregisters,
    AskerErrs,
    AskerDestroys,
    BadKey,
    Darkness,
}

const ENDS: [End; 8] = [
    End::LenderDeregisters,
    End::LenderErrs,
    End::LenderDestroys,
    End::AskerDeregisters,
    End::AskerErrs,
    End::AskerDestroys,
    End::BadKey,
    End::Darkness,
];

/// Whether the last READ response that went to this queue pair had been sent before.
fn is_repeating(log: &[Datagram], from: usize, peer: u32) -> bool {
    let mut seen = HashSet::new();
    responses(log, from, peer).map(|psn| !seen.insert(psn)).last().unwrap_or(false)
}

/// PSNs of READ responses from one host to a queue pair.
fn responses(log: &[Datagram], from: usize, peer: u32) -> impl Iterator<Item = u32> {
    let sent =
        log.iter().filter(move |sent| sent.from == address(from)).filter_map(|sent| Packet::new(&sent.bytes).ok());
    let range = Opcode::READ_RESPONSE_FIRST.0..=Opcode::READ_RESPONSE_ONLY.0;
    sent.filter(move |packet| packet.bth.qpn == peer && range.contains(&packet.bth.opcode.0))
        .map(|packet| packet.bth.psn.get())
}

/// Two connections between the same hosts, one of which something ends in the middle of a flood both ways. Returns whether
/// READ responses were being sent again at that moment.
fn end_one(seed: u64, tells: bool, end: End) -> bool {
    let mut random = Random(seed);
    let (is_clean, is_one_way) = (random.one_in(4), random.one_in(3));
    let mtus = [any_mtu(&mut random), any_mtu(&mut random)];
    let mut net = Net::new(seed, Faults::default(), &mtus);
    (net.tells, net.log) = (tells, Some(Vec::new()));
    if !is_clean {
        spoil(&mut net);
    }
    let hasty = Retry { timeout: Duration::from_millis(1 + random.below(4)), count: 7 };
    let patient = Retry { count: 100, ..hasty };
    let mut ends = [hasty, patient].map(|retry| {
        let (a, b) = (Side::new(&mut net, 0, 4 * ROW), Side::new(&mut net, 1, 4 * ROW));
        a.fill(1);
        b.fill(2);
        connect(&mut net, (&a, ALL), (&b, ALL), retry);
        [Stream::new(a.clone(), b.clone()), Stream::new(b, a)]
    });
    let round = |net: &mut Net, ends: &mut [[Stream; 2]; 2], spoiled| {
        for [theirs, back] in ends.iter_mut() {
            theirs.post(net, 3, false);
            back.post(net, if is_one_way { 0 } else { 3 }, false);
        }
        if spoiled {
            ends[0][0].post(net, 1, true);
        }
        for _ in 0..net.random.below(40) {
            net.step();
        }
        ends.iter_mut().flatten().for_each(|stream| stream.poll(net));
        assert_bounded(net, 2);
    };
    for _ in 0..3 + random.below(12) {
        round(&mut net, &mut ends, false);
    }
    // Often in the middle of what was lost.
    for _ in 0..random.below(30) {
        net.step();
    }
    ends.iter_mut().flatten().for_each(|stream| stream.poll(&mut net));
    let (asker, lender) = (ends[0][0].us.clone(), ends[0][0].them.clone());
    let log = net.log.replace(Vec::new()).unwrap_or_default();
    let was_repeating = is_repeating(&log, 1, asker.qpn.0);
    if tells {
        println!("{:>12} ns {end:?}", net.now().0);
    }
    match end {
        End::LenderDeregisters => net.hosts[1].deregister(lender.mr).unwrap(),
        End::LenderErrs => net.hosts[1].set_error(lender.qpn).unwrap(),
        End::LenderDestroys => net.hosts[1].destroy_qp(lender.qpn).unwrap(),
        End::AskerDeregisters => net.hosts[0].deregister(asker.mr).unwrap(),
        End::AskerErrs => net.hosts[0].set_error(asker.qpn).unwrap(),
        End::AskerDestroys => net.hosts[0].destroy_qp(asker.qpn).unwrap(),
        End::BadKey => {}
        End::Darkness => {
            net.link(0, 1).dark = net.now().0..net.now().0 + 10_000_000_000;
        }
    }
    if end == End::LenderDeregisters && random.one_in(2) {
        // The memory is lent to another: the old key opens nothing of it.
        net.hosts[1].register(lender.pd, lender.memory.clone(), 0..4 * ROW, ALL).unwrap();
    }
    let frozen = lender.bytes();
    for number in 0..4 {
        round(&mut net, &mut ends, end == End::BadKey && number == 1);
    }
    net.settle();
    assert_bounded(&net, 2);
    assert!(net.hosts.iter().all(|host| (host.alarms(), host.askers().0) == (0, 0)), "something is waited for");
    if matches!(end, End::LenderDeregisters | End::LenderErrs | End::LenderDestroys) {
        let bytes = lender.bytes();
        assert!(bytes[ROW..2 * ROW] == frozen[ROW..2 * ROW], "a byte was written after the end");
        let log = net.log.as_deref().unwrap_or_default();
        assert_eq!(responses(log, 1, asker.qpn.0).count(), 0, "bytes were read after the end");
    }
    let [[theirs, back], others] = &mut ends;
    // The other connection has lost nothing by it.
    for stream in others {
        let failed = stream.finish(&mut net);
        assert!(failed.is_none() || end == End::Darkness, "{end:?} of another connection: {failed:?}");
    }
    let (failed, failed_back) = (theirs.finish(&mut net), back.finish(&mut net));
    let flushed = WcStatus::WR_FLUSH_ERR;
    let away = WcStatus::RETRY_EXC_ERR;
    // A refusal may be lost, on its way or with a lender that its own requests have ended.
    let told = [WcStatus::REM_ACCESS_ERR];
    let (allowed, allowed_back): (&[_], &[_]) = match end {
        End::LenderDeregisters | End::BadKey if is_clean && is_one_way => (&told, &[]),
        End::LenderDeregisters => (&[told[0], flushed, away], &[WcStatus::LOC_PROT_ERR, flushed, away]),
        End::AskerDeregisters => (&[WcStatus::LOC_PROT_ERR, flushed, away], &[told[0], flushed, away]),
        End::BadKey => (&[told[0], flushed, away], &[flushed, away]),
        End::LenderErrs | End::LenderDestroys => (&[away], &[flushed]),
        End::AskerErrs | End::AskerDestroys => (&[flushed], &[away]),
        End::Darkness => (&[away, flushed], &[away, flushed]),
    };
    for (failed, allowed) in [(failed, allowed), (failed_back, allowed_back)] {
        // A bad network may have ended it before.
        let allowed =
            failed.is_none_or(|failed| allowed.contains(&failed) || !is_clean && [flushed, away].contains(&failed));
        assert!(allowed, "{end:?}: {failed:?}");
    }
    if failed.is_some() {
        assert_eq!(net.hosts[0].state(asker.qpn), QpState::Error);
    }
    was_repeating
}

#[test]
fn an_end_is_one_over_any_network() {
    let repeating = Cell::new(0);
    let runs = Cell::new(0);
    seeds("an_end_is_one_over_any_network", |seed, tells| {
        let was_repeating = end_one(seed, tells, ENDS[seed as usize % ENDS.len()]);
        runs.set(runs.get() + 1);
        repeating.set(repeating.get() + u64::from(was_repeating));
    });
    println!("READ responses were being sent again in {} of {}", repeating.get(), runs.get());
    assert!(runs.get() < LEAST_RUNS || repeating.get() * 50 > runs.get(), "hardly any was being sent again");
}
