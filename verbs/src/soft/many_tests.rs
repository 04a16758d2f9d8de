//! A thousand queue pairs on one engine: each gets its turn, and idle ones cost only memory.

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::engine::{CqHandle, EngineRequest, MrHandle, Now, Qpn};
use super::port_sim::{Net, address};
use super::sim_link::{Bottleneck, Faults};
use crate::{Access, Backing, Completion, Memory, Mtu, Op, QpCaps, QpState, Retry, WcStatus};

const ALL: Access = Access::all();
const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 15 };
const LEN: usize = 16 << 10;

/// Queue pairs of host 0, each connected to one of host 1. All use one region of each host.
struct Crowd {
    net: Net,
    asking: Vec<Qpn>,
    lending: Vec<Qpn>,
    cq: CqHandle,
    ours: MrHandle,
    theirs: MrHandle,
    address: u64,
}

impl Crowd {
    fn new(count: usize, depth: usize, bytes: usize, retry: Retry) -> Self {
        let mut net = Net::new(1, Faults::default(), &[Mtu::Mtu4096; 2]);
        let caps = QpCaps { send_queue: depth, outstanding_reads: 16 };
        let [mine, other] = [0, 1].map(|host: usize| {
            let engine = &mut net.hosts[host];
            let memory = Arc::new(Memory::map(bytes, Backing::Ordinary).unwrap());
            let address = memory.address();
            let (pd, cq) = (engine.alloc_pd(), engine.create_cq(count * depth).unwrap());
            let mr = engine.register(pd, memory, 0..bytes, ALL).unwrap();
            let qpns: Vec<_> = (0..count).map(|_| engine.create_qp(pd, cq, caps).unwrap()).collect();
            (qpns, cq, mr, address)
        });
        for (a, b) in mine.0.iter().zip(&other.0) {
            let ends = [net.hosts[0].endpoint(*a).unwrap(), net.hosts[1].endpoint(*b).unwrap()];
            net.hosts[0].connect(Now(0), *a, &ends[1], ALL, retry).unwrap();
            net.hosts[1].connect(Now(0), *b, &ends[0], ALL, retry).unwrap();
        }
        Self { net, asking: mine.0, lending: other.0, cq: mine.1, ours: mine.2, theirs: other.2, address: other.3 }
    }

    /// As queue pair `number`, whose number is the request's.
    fn post(&mut self, number: usize, op: Op, len: usize) {
        let request = EngineRequest {
            id: number as u64,
            op,
            mr: self.ours,
            offset: 0,
            len,
            remote_address: self.address,
            rkey: self.theirs.rkey,
        };
        let now = self.net.now();
        self.net.hosts[0].post(now, self.asking[number], &[request]).unwrap();
    }

    fn poll(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        self.net.hosts[0].poll_cq(self.cq, usize::MAX, &mut done).unwrap();
        done
    }

    /// Runs, with whatever is done posted again, until this many more are done. Returns how many each queue pair has.
    fn run(&mut self, op: Op, len: usize, total: usize) -> Vec<usize> {
        let mut counts = vec![0; self.asking.len()];
        let mut done = 0;
        while done < total {
            assert!(self.net.step());
            for completion in self.poll() {
                assert_eq!(completion.status, WcStatus::SUCCESS);
                counts[completion.id as usize] += 1;
                done += 1;
                self.post(completion.id as usize, op, len);
            }
        }
        counts
    }
}

/// Of this thread, so that others on the machine do not count.
fn processor_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

#[test]
fn each_of_a_thousand_gets_its_share() {
    for op in [Op::Read, Op::Write] {
        let mut crowd = Crowd::new(1000, 2, LEN, RETRY);
        // More is always ready than the host can send.
        crowd.net.pace = 1000;
        (0..1000).for_each(|number| (0..2).for_each(|_| crowd.post(number, op, LEN)));
        crowd.run(op, LEN, 2000);
        for window in 0..4 {
            let counts = crowd.run(op, LEN, 10_000);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            println!("{op:?}, window {window}: {least} to {most} of 10,000 for each of 1,000");
            assert!(*least >= 5 && *most <= 20, "{op:?}, window {window}: {least} to {most}");
        }
    }
}

#[test]
fn a_thousand_share_a_link_that_holds_few_of_their_packets() {
    let mut wrong = Vec::new();
    for op in [Op::Read, Op::Write] {
        let mut crowd = Crowd::new(1000, 2, LEN, RETRY);
        let bytes_per_second = 2_000_000_000;
        for link in crowd.net.links() {
            link.bottleneck = Some(Bottleneck { bytes_per_second, queue: 8 << 20 });
        }
        (0..1000).for_each(|number| (0..2).for_each(|_| crowd.post(number, op, LEN)));
        crowd.run(op, LEN, 2000);
        let begin = crowd.net.now().0;
        let again = |crowd: &Crowd| crowd.net.hosts.iter().map(|host| host.counters().retransmitted).sum::<u64>();
        let before = again(&crowd);
        let counts = crowd.run(op, LEN, 20_000);
        let time = (crowd.net.now().0 - begin) as f64 / 1e9;
        let share = 20_000.0 * LEN as f64 / time / bytes_per_second as f64;
        let (least, most) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        let again = again(&crowd) - before;
        let said =
            format!("{op:?}: {:.1} % of the link, {least} to {most} of 20,000 each, {again} sent again", 100.0 * share);
        println!("{said}");
        if share < 0.5 || least < 2 || most > 80 {
            wrong.push(said);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn those_who_wait_in_vain_starve_no_other() {
    for op in [Op::Read, Op::Write] {
        let mut crowd = Crowd::new(1000, 1, LEN, RETRY);
        let bytes_per_second = 2_000_000_000;
        for link in crowd.net.links() {
            link.bottleneck = Some(Bottleneck { bytes_per_second, queue: 8 << 20 });
        }
        // Nine of ten ask one who is gone.
        for number in 100..1000 {
            crowd.net.hosts[1].set_error(crowd.lending[number]).unwrap();
        }
        (0..1000).for_each(|number| crowd.post(number, op, LEN));
        let total = 10_000;
        let counts = crowd.run(op, LEN, total);
        let share = (total * LEN) as f64 / (crowd.net.now().0 as f64 / 1e9) / bytes_per_second as f64;
        let (least, most) = (counts[..100].iter().min().unwrap(), counts[..100].iter().max().unwrap());
        println!("{op:?}: {:.1} % of the link, {least} to {most} of {total} for each of 100", 100.0 * share);
        assert!(share > 0.5 && *least >= 50 && *most <= 200, "{op:?}: {share}, {least} to {most}");
    }
}

#[test]
fn an_elephant_does_not_hold_up_a_mouse() {
    const GIB: usize = 1 << 30;
    let mut alone = Duration::ZERO;
    for elephants in [0, 1, 8] {
        let mut crowd = Crowd::new(9, 1, GIB, RETRY);
        for link in crowd.net.links() {
            link.bottleneck = Some(Bottleneck { bytes_per_second: 2_000_000_000, queue: 400_000 });
        }
        (1..=elephants).for_each(|number| crowd.post(number, Op::Read, GIB));
        let mut times = Vec::new();
        for _ in 0..50 {
            let begin = crowd.net.now().0;
            crowd.post(0, Op::Read, 64);
            while crowd.poll().is_empty() {
                assert!(crowd.net.step());
            }
            times.push(crowd.net.now().0 - begin);
        }
        times.sort_unstable();
        println!("beside {elephants} READs of a GiB: {} ns, at most {} ns", times[25], times[49]);
        if elephants == 0 {
            alone = Duration::from_nanos(times[49]);
        }
        // The queue of the link lies before it, and no more: the window of an elephant is no queue of ours.
        let queue = Duration::from_nanos(if elephants == 0 { 0 } else { 2 * 200_000 });
        assert!(Duration::from_nanos(times[25]) <= alone + queue, "beside {elephants}: {times:?}");
        for number in 1..=elephants {
            assert_eq!(crowd.net.hosts[0].state(crowd.asking[number]), QpState::ReadyToSend);
            crowd.net.hosts[0].set_error(crowd.asking[number]).unwrap();
            crowd.net.hosts[1].set_error(crowd.lending[number]).unwrap();
        }
        crowd.net.settle();
        assert_eq!(crowd.poll().len(), elephants);
    }
}

#[test]
fn idle_queue_pairs_cost_only_memory() {
    let mut costs = Vec::new();
    for count in [1, 20_000] {
        let mut crowd = Crowd::new(count, 1, LEN, RETRY);
        assert!(!crowd.net.step(), "nothing to do");
        let mut steps = 0;
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let (begin, mut most) = (processor_time(), 0);
            for number in 0..400 {
                crowd.post(0, [Op::Read, Op::Write][number % 2], 64);
                while crowd.poll().is_empty() {
                    assert!(crowd.net.step());
                    steps += 1;
                    most = most.max(crowd.net.hosts.iter().map(|host| host.alarms() + host.turns()).max().unwrap_or(0));
                }
            }
            assert!(most <= 4, "{most} alarms and turns of one busy queue pair");
            best = best.min(processor_time() - begin);
        }
        println!("{steps} steps, {best:?} for 400 requests beside {} idle queue pairs", count - 1);
        costs.push((steps, best));
    }
    assert_eq!(costs[0].0, costs[1].0);
    // A look at each of them would take a hundred times as long.
    assert!(costs[1].1 < 4 * costs[0].1, "{costs:?}");
}

#[test]
fn timeouts_do_not_look_at_all_queue_pairs() {
    let retry = Retry { timeout: Duration::from_millis(1), count: 3 };
    let mut costs = Vec::new();
    for count in [100, 10_000] {
        let mut crowd = Crowd::new(count, 1, LEN, retry);
        crowd.net.link(0, 1).faults.lost = 1_000_000;
        // Each at a time of its own, a tenth of a microsecond apart.
        for number in 0..count {
            crowd.post(number, Op::Write, 64);
            crowd.net.pass(100);
        }
        assert!(crowd.net.hosts[0].alarms() <= count);
        let (begin, mut steps) = (processor_time(), 0_u32);
        while crowd.net.step() {
            steps += 1;
            assert!(crowd.net.hosts[0].alarms() <= count);
        }
        let took = processor_time() - begin;
        let done = crowd.poll();
        assert_eq!(done.len(), count);
        assert!(done.iter().all(|completion| completion.status == WcStatus::RETRY_EXC_ERR));
        assert!(done.is_sorted_by_key(|completion| completion.id), "the first to ask is the first to give up");
        println!("{count} queue pairs: {steps} steps, {:?} each", took / steps);
        costs.push((f64::from(steps) / count as f64, took / steps));
    }
    assert!(costs[1].0 <= 1.1 * costs[0].0 + 1.0, "steps of each queue pair: {costs:?}");
    // The tree of alarms is deeper, and falls out of the cache; a look at each would take a hundred times as long.
    assert!(costs[1].1 < 12 * costs[0].1, "{costs:?}");
}

#[test]
fn a_stranger_among_a_thousand_is_no_one_s_burden() {
    let mut crowd = Crowd::new(1000, 1, LEN, RETRY);
    (0..1000).for_each(|number| crowd.post(number, Op::Read, LEN));
    // Packets for queue pairs that are not there, with every packet that is.
    let mut junk = vec![0; 64];
    while crowd.net.step() {
        let qpn = crowd.net.random.next() as u32;
        junk[5..8].copy_from_slice(&qpn.to_be_bytes()[1..]);
        junk[0] = 0x0a;
        let now = crowd.net.now();
        crowd.net.hosts[1].receive(now, address(7), &junk);
    }
    assert_eq!(crowd.poll().iter().filter(|completion| completion.status == WcStatus::SUCCESS).count(), 1000);
}
