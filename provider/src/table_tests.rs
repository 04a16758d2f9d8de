//! Random lives against a simple oracle: orders, the clock, failing calls, and jobs that finish in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use overbank_fabric::ids::{Nonce, Tenant};
use overbank_fabric::receipt::Step;
use overbank_fabric::token::{Rights, Scope};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::clock::Clock;
use crate::double::{Call, Double, TestClock, endpoint};
use crate::job::Lane;
use crate::lease::MAX_NONCES;
use crate::waiting::{MAX_WAITING, MAX_WAITING_EACH, REACHERS, REACHERS_EACH};

#[path = "table_attach_tests.rs"]
mod attaches;

const PAGE: u64 = 4096;
const PAGES: u64 = 24;
const BOOT: BootId = BootId([7; 16]);
const MAX_LEASE_MS: u64 = 10_000;
const STRIDE: u64 = 544;

fn tenant(name: &str) -> Tenant {
    name.parse().expect("a name")
}

fn lease(number: u8) -> LeaseId {
    LeaseId([number; 16])
}

fn deadline(tick: Tick) -> Deadline {
    Deadline { boot: BOOT, tick }
}

fn carve(number: u8, blocks: u64, tick: Tick) -> Carve {
    Carve { lease: lease(number), tenant: tenant("t"), blocks, block: 512, deadline: deadline(tick) }
}

fn admission(number: u8, holder: u8, range: Range<u64>, until: Tick, nonce: u128) -> Box<Admission> {
    let scope = Scope {
        lease: lease(number),
        deadline: deadline(until),
        first_block: range.start,
        blocks: range.end - range.start,
        rights: Rights::READ_WRITE,
        holder: Identity::from_seed(&[holder; 32]).public(),
    };
    let qpn = u32::try_from(nonce & 0xff_ffff).expect("24 bits");
    let remotes = vec![endpoint(qpn)];
    Box::new(Admission {
        scope,
        root: true,
        hands: vec![scope.holder],
        remotes,
        request: [0; 32],
        nonce: Nonce(nonce.to_be_bytes()),
    })
}

/// A table, its device, and everything that has happened.
struct Rig {
    table: Table<Double, u64>,
    backend: Double,
    clock: TestClock,
    jobs: Vec<Job<Double, u64>>,
    next_ticket: u64,
    answers: BTreeMap<u64, Result<Reply, Refusal>>,
    identity: Arc<Identity>,
    /// Bytes of each lease, learnt when it is opened.
    extents: BTreeMap<LeaseId, Range<u64>>,
}

impl Rig {
    fn new() -> Self {
        let identity = Arc::new(Identity::from_seed(&[42; 32]));
        let terms = Terms { identity: Arc::clone(&identity), boot: BOOT, max_lease_ms: MAX_LEASE_MS };
        Self {
            table: Table::new(terms, Pool::new(PAGES * PAGE, PAGE)),
            backend: Double::new(usize::try_from(PAGES * PAGE).expect("small")),
            clock: TestClock::at(1_000_000),
            jobs: Vec::new(),
            next_ticket: 0,
            answers: BTreeMap::new(),
            identity,
            extents: BTreeMap::new(),
        }
    }

    fn now(&self) -> BootTime {
        self.clock.now()
    }

    fn in_ms(&self, ms: u64) -> Tick {
        self.now().tick().after_ms(ms)
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn order(&mut self, give: impl FnOnce(&mut Table<Double, u64>, BootTime, u64)) -> u64 {
        let (now, ticket) = (self.now(), self.ticket());
        give(&mut self.table, now, ticket);
        self.collect();
        ticket
    }

    fn collect(&mut self) {
        let effects = self.table.take_effects();
        for job in &effects.jobs {
            if let Task::Open(extent, _) = &job.task {
                self.extents.insert(job.lease, extent.bytes());
            }
        }
        self.jobs.extend(effects.jobs);
        let given = |lane| self.jobs.iter().filter(|job| job.lane() == lane).count();
        assert!(given(Lane::Binder) <= 1 && given(Lane::Reachers) <= REACHERS, "given, and no thread is free");
        for (ticket, answer) in effects.answers {
            assert!(self.answers.insert(ticket, answer).is_none(), "answered twice");
        }
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance_ms(ms);
        let now = self.now();
        self.table.tick(now);
        self.collect();
    }

    /// Runs a job that may be the next to end: the oldest ones of each lane, as many as it has threads.
    fn run_job(&mut self, choose: impl FnOnce(usize) -> usize) -> bool {
        let of = |lane| move |(_, job): &(usize, &Job<_, _>)| job.lane() == lane;
        let oldest = |lane: Lane| self.jobs.iter().enumerate().filter(of(lane)).take(lane.threads());
        let ready: Vec<_> = Lane::ALL.into_iter().flat_map(oldest).map(|(at, _)| at).collect();
        if ready.is_empty() {
            return false;
        }
        self.run(ready[choose(ready.len())]);
        true
    }

    /// Runs the oldest job of this lane.
    fn run_lane(&mut self, lane: Lane) {
        self.run(self.jobs.iter().position(|job| job.lane() == lane).expect("there is one"));
    }

    /// Runs a job. Peers write before and after.
    fn run(&mut self, at: usize) {
        let job = self.jobs.remove(at);
        self.backend.world().peers_write(0xa5);
        let done = job.run(&self.backend, &self.clock);
        self.backend.world().peers_write(0x5a);
        let now = self.now();
        self.table.done(now, done);
        self.collect();
    }

    fn settle(&mut self) {
        while self.run_job(|_| 0) {}
    }

    fn answer(&self, ticket: u64) -> Result<&Reply, RefusalCode> {
        self.answers[&ticket].as_ref().map_err(|refusal| refusal.code)
    }

    fn receipt(&self, number: u8) -> Option<Receipt> {
        let all = self.table.receipts(None, usize::MAX);
        let (_, receipt) = all.into_iter().find(|(id, _)| *id == lease(number))?;
        Some(receipt.open(&self.identity.public()).expect("signed by the provider"))
    }

    fn carved(number: u8, blocks: u64, ms: u64) -> (Self, u64) {
        let mut rig = Self::new();
        let tick = rig.in_ms(ms);
        let ticket = rig.order(|table, now, ticket| table.carve(now, ticket, carve(number, blocks, tick)));
        rig.settle();
        assert_eq!(rig.answer(ticket), Ok(&Reply::Done));
        (rig, ticket)
    }

    fn bind(&mut self, admission: Box<Admission>) -> u64 {
        self.order(|table, now, ticket| table.bind(now, ticket, admission, now.after_ms(5000)))
    }
}

#[test]
fn carving_twice_is_carving_once() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let (tick, later) = (rig.in_ms(1000), rig.in_ms(3000));
    let free = rig.table.heartbeat(rig.now()).free_bytes;
    let again = rig.order(|table, now, ticket| table.carve(now, ticket, carve(1, 10, later)));
    let other = rig.order(|table, now, ticket| table.carve(now, ticket, carve(1, 11, tick)));
    let first = rig.order(|table, now, ticket| table.carve(now, ticket, carve(2, 1, tick)));
    let same = rig.order(|table, now, ticket| table.carve(now, ticket, carve(2, 1, tick)));
    rig.settle();
    for ticket in [again, first, same] {
        assert_eq!(rig.answer(ticket), Ok(&Reply::Done));
    }
    assert_eq!(rig.answer(other), Err(RefusalCode::Invalid));
    assert_eq!(rig.table.heartbeat(rig.now()).free_bytes, free - PAGE);
    assert_eq!(rig.table.held()[0].deadline.tick, later);
}

#[test]
fn impossible_carves_are_refused() {
    let mut rig = Rig::new();
    let tick = rig.in_ms(1000);
    let good = carve(1, 1, tick);
    let with = |change: fn(&mut Carve)| {
        let mut carve = good.clone();
        change(&mut carve);
        carve
    };
    let cases = [
        (with(|carve| carve.blocks = 0), RefusalCode::Invalid),
        (with(|carve| carve.blocks = u64::MAX / STRIDE + 1), RefusalCode::Invalid),
        (with(|carve| carve.blocks = u64::MAX / STRIDE), RefusalCode::PoolFull),
        (with(|carve| carve.blocks = PAGES * PAGE / STRIDE + 1), RefusalCode::PoolFull),
        (with(|carve| carve.block = 513), RefusalCode::Invalid),
        (with(|carve| carve.block = 256), RefusalCode::Invalid),
        (with(|carve| carve.block = 1 << 21), RefusalCode::Invalid),
        (with(|carve| carve.block = 0), RefusalCode::Invalid),
        (with(|carve| carve.deadline.boot = BootId([0; 16])), RefusalCode::Invalid),
        (with(|carve| carve.deadline.tick = Tick(0)), RefusalCode::LeaseEnded),
        (with(|carve| carve.deadline.tick = Tick(u64::MAX)), RefusalCode::Invalid),
        (carve(1, 1, rig.in_ms(MAX_LEASE_MS + 2000)), RefusalCode::Invalid),
    ];
    for (carve, code) in cases {
        let named = format!("{carve:?}");
        let ticket = rig.order(|table, now, ticket| table.carve(now, ticket, carve));
        assert_eq!(rig.answer(ticket), Err(code), "{named}");
    }
    assert_eq!(rig.table.heartbeat(rig.now()).free_bytes, PAGES * PAGE);
}

#[test]
fn a_carve_that_the_device_fails_takes_nothing() {
    for call in [Call::OpenDomain, Call::Register] {
        let mut rig = Rig::new();
        rig.backend.world().fail = Some(call);
        let tick = rig.in_ms(1000);
        let first = rig.order(|table, now, ticket| table.carve(now, ticket, carve(1, 1, tick)));
        let attach = rig.bind(admission(1, 1, 0..1, tick, 1));
        rig.settle();
        assert_eq!(rig.answer(first), Err(RefusalCode::Internal));
        assert_eq!(rig.answer(attach), Err(RefusalCode::LeaseEnded));
        assert_eq!(rig.table.heartbeat(rig.now()).free_bytes, PAGES * PAGE);
        let again = rig.order(|table, now, ticket| table.carve(now, ticket, carve(1, 1, tick)));
        rig.settle();
        assert_eq!(rig.answer(again), Ok(&Reply::Done));
    }
}

#[test]
fn a_nonce_is_good_for_one_attach() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let until = rig.in_ms(1000);
    let (one, same, two) = (
        rig.bind(admission(1, 1, 0..10, until, 1)),
        rig.bind(admission(1, 1, 0..10, until, 1)),
        rig.bind(admission(1, 1, 0..10, until, 2)),
    );
    rig.settle();
    assert!(rig.answer(one).is_ok() && rig.answer(two).is_ok());
    assert_eq!(rig.answer(same), Err(RefusalCode::Invalid));
}

#[test]
fn remembered_nonces_are_bounded_and_go_with_their_tokens() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let (soon, late) = (rig.in_ms(500), rig.in_ms(5000));
    for nonce in 0..u128::from(MAX_NONCES) {
        let ticket = rig.bind(admission(1, 1, 0..10, soon, nonce));
        rig.settle();
        assert!(rig.answer(ticket).is_ok());
    }
    let over = rig.bind(admission(1, 1, 0..10, late, u128::MAX));
    assert_eq!(rig.answer(over), Err(RefusalCode::Busy));
    rig.advance(600);
    let later = rig.bind(admission(1, 1, 0..10, late, u128::MAX));
    let replay = rig.bind(admission(1, 1, 0..10, soon, 5));
    rig.settle();
    assert!(rig.answer(later).is_ok());
    assert_eq!(rig.answer(replay), Err(RefusalCode::BadToken));
}

#[test]
fn ranges_outside_unknown_leases_and_ended_ones_are_refused() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let until = rig.in_ms(2000);
    let outside = rig.bind(admission(1, 1, 9..11, until, 1));
    let unknown = rig.bind(admission(2, 1, 0..1, until, 2));
    assert_eq!(rig.answer(outside), Err(RefusalCode::BadToken));
    assert_eq!(rig.answer(unknown), Err(RefusalCode::NoSuchLease));
    rig.advance(1000);
    let late = rig.bind(admission(1, 1, 0..1, until, 3));
    let extend = Extend { lease: lease(1), deadline: deadline(until) };
    let extended = rig.order(|table, now, ticket| table.extend(now, ticket, &extend));
    assert_eq!(rig.answer(late), Err(RefusalCode::LeaseEnded));
    assert_eq!(rig.answer(extended), Err(RefusalCode::LeaseEnded));
}

#[test]
fn an_attach_whose_asker_has_given_up_is_not_made() {
    let (mut rig, _) = Rig::carved(1, 10, 9000);
    let until = rig.in_ms(9000);
    let first = rig.bind(admission(1, 1, 0..10, until, 1));
    rig.run_lane(Lane::Reachers);
    let second = rig.bind(admission(1, 2, 0..10, until, 2));
    rig.run_lane(Lane::Reachers);
    let third = rig.bind(admission(1, 3, 0..10, until, 3));
    rig.advance(6000);
    assert_eq!(rig.answer(second), Err(RefusalCode::Deadline), "at once");
    rig.settle();
    assert_eq!(rig.answer(first), Err(RefusalCode::Deadline), "before its first queue pair");
    assert_eq!(rig.answer(third), Err(RefusalCode::Deadline));
    let world = rig.backend.world();
    assert_eq!((world.queues.len(), world.reached.len()), (0, 2));
}

#[test]
fn an_attachment_with_the_own_grant_survives_a_renewal_and_one_with_a_narrowed_token_does_not() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let (first, renewed) = (rig.in_ms(1000), rig.in_ms(3000));
    rig.bind(admission(1, 1, 0..10, first, 1));
    rig.bind(Box::new(Admission { root: false, ..*admission(1, 2, 0..10, first, 2) }));
    rig.settle();
    let extend = Extend { lease: lease(1), deadline: deadline(renewed) };
    let ticket = rig.order(|table, now, ticket| table.extend(now, ticket, &extend));
    assert_eq!(rig.answer(ticket), Ok(&Reply::Done));
    rig.advance(1000);
    rig.settle();
    let left: Vec<_> =
        rig.backend.world().queues.values().map(|queue| queue.remote.expect("connected").0.qpn).collect();
    assert_eq!(left, [1]);
    let sooner = Extend { lease: lease(1), deadline: deadline(first) };
    rig.order(|table, now, ticket| table.extend(now, ticket, &sooner));
    assert_eq!(rig.table.held()[0].deadline.tick, renewed);
    rig.advance(2000);
    rig.settle();
    assert!(rig.receipt(1).expect("over").is_complete());
}

#[test]
fn an_end_that_comes_while_an_attach_is_made_wins() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let until = rig.in_ms(1000);
    let attach = rig.bind(admission(1, 1, 0..10, until, 1));
    let waiting = rig.bind(admission(1, 2, 0..10, until, 2));
    for _ in 0..2 {
        rig.run_lane(Lane::Reachers);
    }
    let order = Fence { lease: lease(1), reason: EndReason::Revoked };
    let fenced = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
    assert_eq!(rig.answer(waiting), Err(RefusalCode::LeaseEnded), "at once");
    rig.settle();
    assert_eq!(rig.answer(attach), Err(RefusalCode::LeaseEnded));
    assert_eq!(rig.answer(fenced), Ok(&Reply::Done));
    assert!(rig.backend.world().queues.is_empty());
    let receipt = rig.receipt(1).expect("over");
    assert!(receipt.is_complete());
    assert_eq!(receipt.reason, EndReason::Revoked);
}

#[test]
fn fencing_is_answered_before_the_wipe_and_again_for_whoever_asks_again() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let order = Fence { lease: lease(1), reason: EndReason::Released };
    let first = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
    let second = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
    assert!(!rig.answers.contains_key(&first) && !rig.answers.contains_key(&second), "answered before it was fenced");
    assert!(rig.run_job(|_| 0));
    assert!(matches!(rig.jobs[0].task, Task::Wipe(_)));
    let third = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
    for ticket in [first, second, third] {
        assert_eq!(rig.answer(ticket), Ok(&Reply::Done));
    }
    rig.settle();
    let fourth = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
    assert_eq!(rig.answer(fourth), Ok(&Reply::Done));
    rig.table.acknowledge(lease(1));
    let fifth = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
    assert_eq!(rig.answer(fifth), Err(RefusalCode::NoSuchLease));
}

#[test]
fn a_fence_that_fails_is_never_called_done() {
    for call in [Call::Destroy, Call::Deregister] {
        let (mut rig, _) = Rig::carved(1, 10, 1000);
        let until = rig.in_ms(1000);
        rig.bind(admission(1, 1, 0..10, until, 1));
        rig.settle();
        rig.backend.world().fail = Some(call);
        let order = Fence { lease: lease(1), reason: EndReason::Released };
        let first = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
        rig.settle();
        let again = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
        assert_eq!((rig.answer(first), rig.answer(again)), (Err(RefusalCode::Internal), Err(RefusalCode::Internal)));
        let receipt = rig.receipt(1).expect("over");
        assert!(!receipt.is_complete());
        assert_eq!(rig.table.heartbeat(rig.now()).quarantined_bytes, receipt.bytes);
    }
}

#[test]
fn draining_ends_everything_and_takes_nothing_new() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let tick = rig.in_ms(1000);
    rig.order(|table, now, ticket| table.carve(now, ticket, carve(2, 1, tick)));
    let now = rig.now();
    rig.table.drain(now);
    rig.collect();
    let refused = rig.order(|table, now, ticket| table.carve(now, ticket, carve(3, 1, tick)));
    assert_eq!(rig.answer(refused), Err(RefusalCode::Busy));
    assert!(!rig.table.is_idle());
    rig.settle();
    assert!(rig.table.is_idle());
    assert_eq!(rig.table.heartbeat(rig.now()).free_bytes, PAGES * PAGE);
    for number in [1, 2] {
        let receipt = rig.receipt(number).expect("over");
        assert!(receipt.is_complete() && receipt.reason == EndReason::Drained);
    }
}

#[test]
fn receipts_come_in_pages() {
    let mut rig = Rig::new();
    for number in 1..=5 {
        let tick = rig.in_ms(1000);
        rig.order(|table, now, ticket| table.carve(now, ticket, carve(number, 1, tick)));
    }
    rig.settle();
    rig.advance(1000);
    rig.settle();
    let first = rig.table.receipts(None, 2);
    let rest = rig.table.receipts(Some(first[1].0), 10);
    assert!(first.iter().chain(&rest).map(|(id, _)| *id).eq((1..=5).map(lease)));
}

// -- random lives -------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Carve { lease: u8, blocks: u64, ms: u64 },
    Bind { lease: u8, holder: u8, from: u64, blocks: u64, ms: u64, root: bool },
    Extend { lease: u8, ms: u64 },
    Fence { lease: u8 },
    Advance { ms: u64 },
    RunJob(Index),
    Acknowledge { lease: u8 },
    Fail(Call),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let lease = 1..6_u8;
    let act = prop_oneof![
        4 => (lease.clone(), 1..40_u64, 1..3000_u64).prop_map(|(lease, blocks, ms)| Act::Carve { lease, blocks, ms }),
        6 => (lease.clone(), 1..4_u8, 0..10_u64, 1..40_u64, 1..2000_u64, any::<bool>())
            .prop_map(|(lease, holder, from, blocks, ms, root)| Act::Bind { lease, holder, from, blocks, ms, root }),
        2 => (lease.clone(), 1..3000_u64).prop_map(|(lease, ms)| Act::Extend { lease, ms }),
        2 => lease.clone().prop_map(|lease| Act::Fence { lease }),
        3 => (0..800_u64).prop_map(|ms| Act::Advance { ms }),
        14 => any::<Index>().prop_map(Act::RunJob),
        2 => lease.prop_map(|lease| Act::Acknowledge { lease }),
        1 => prop::sample::select(&Call::ALL[..]).prop_map(Act::Fail),
    ];
    prop::collection::vec(act, 1..120)
}

/// What should have become of a lease.
#[derive(Debug, Clone)]
struct Expected {
    deadline: Tick,
    /// Reason and time, once its end is due.
    end: Option<(EndReason, Tick)>,
    carve: u64,
}

#[derive(Default)]
struct Oracle {
    leases: BTreeMap<u8, Expected>,
    /// Endpoint -> (lease, when its token ends, if before the lease).
    binds: BTreeMap<u64, (u8, u32, Option<Tick>)>,
    fences: BTreeMap<u64, u8>,
    next_nonce: u128,
}

impl Oracle {
    /// Ends what the clock ends.
    fn tick(&mut self, now: Tick) {
        for lease in self.leases.values_mut() {
            if lease.end.is_none() && lease.deadline <= now {
                lease.end = Some((EndReason::Expired, lease.deadline));
            }
        }
    }

    fn active(&self, number: u8) -> bool {
        self.leases.get(&number).is_some_and(|lease| lease.end.is_none())
    }
}

fn play(acts: Vec<Act>) {
    let (mut rig, mut oracle) = (Rig::new(), Oracle::default());
    for act in acts {
        step(&mut rig, &mut oracle, act);
        check_answers(&rig, &oracle);
        check_books(&rig, &oracle);
    }
    // All ends well: whatever is left expires, and every ticket was answered.
    rig.backend.world().fail = None;
    rig.settle();
    rig.advance(2 * MAX_LEASE_MS);
    rig.settle();
    oracle.tick(rig.now().tick());
    check_answers(&rig, &oracle);
    check_books(&rig, &oracle);
    assert!(rig.table.is_idle());
    assert_eq!(rig.answers.len() as u64, rig.next_ticket, "somebody was never answered");
    assert!(rig.backend.world().queues.values().all(|queue| queue.stuck));
    let world = rig.backend.world();
    assert!(world.regions.values().all(|region| region.stuck));
}

fn step(rig: &mut Rig, oracle: &mut Oracle, act: Act) {
    oracle.tick(rig.now().tick());
    match act {
        Act::Carve { lease: number, blocks, ms } => {
            let tick = rig.in_ms(ms);
            let ticket = rig.order(|table, now, ticket| table.carve(now, ticket, carve(number, blocks, tick)));
            let taken = rig.jobs.iter().any(|job| job.lease == lease(number) && matches!(job.task, Task::Open(..)));
            if !oracle.leases.contains_key(&number) && taken {
                oracle.leases.insert(number, Expected { deadline: tick, end: None, carve: ticket });
            } else if oracle.active(number) && !rig.answers.get(&ticket).is_some_and(Result::is_err) {
                let lease = oracle.leases.get_mut(&number).expect("active");
                lease.deadline = lease.deadline.max(tick);
            }
        }
        Act::Bind { lease: number, holder, from, blocks, ms, root } => {
            oracle.next_nonce += 1;
            let until = rig.in_ms(ms);
            let request = admission(number, holder, from..from + blocks, until, oracle.next_nonce);
            let ticket = rig.bind(Box::new(Admission { root, ..*request }));
            let qpn = u32::try_from(oracle.next_nonce).expect("few");
            oracle.binds.insert(ticket, (number, qpn, (!root).then_some(until)));
        }
        Act::Extend { lease: number, ms } => {
            let tick = rig.in_ms(ms);
            let extend = Extend { lease: lease(number), deadline: deadline(tick) };
            let ticket = rig.order(|table, now, ticket| table.extend(now, ticket, &extend));
            assert_eq!(rig.answer(ticket).is_ok(), oracle.active(number));
            if let Some(lease) = oracle.leases.get_mut(&number).filter(|lease| lease.end.is_none()) {
                lease.deadline = lease.deadline.max(tick);
            }
        }
        Act::Fence { lease: number } => {
            let order = Fence { lease: lease(number), reason: EndReason::Stopped };
            let now = rig.now().tick();
            let ticket = rig.order(|table, now, ticket| table.fence(now, ticket, &order));
            oracle.fences.insert(ticket, number);
            if let Some(lease) = oracle.leases.get_mut(&number) {
                lease.end.get_or_insert((EndReason::Stopped, now));
            }
        }
        Act::Advance { ms } => {
            rig.advance(ms);
            oracle.tick(rig.now().tick());
        }
        Act::RunJob(choice) => {
            rig.run_job(|ready| choice.index(ready));
            oracle.tick(rig.now().tick());
        }
        Act::Acknowledge { lease: number } => {
            let over = rig.receipt(number).is_some();
            rig.table.acknowledge(lease(number));
            if over {
                oracle.leases.remove(&number);
                oracle.fences.retain(|_, fenced| *fenced != number);
            }
        }
        Act::Fail(call) => rig.backend.world().fail = Some(call),
    }
    // A carve that the device failed never was.
    let failed = |lease: &Expected| matches!(rig.answers.get(&lease.carve), Some(Err(refusal)) if refusal.code == RefusalCode::Internal);
    oracle.leases.retain(|_, lease| !failed(lease));
}

fn check_answers(rig: &Rig, oracle: &Oracle) {
    for (ticket, number) in &oracle.fences {
        // Only while the memory is still that lease's can something be said about it.
        if matches!(rig.answers.get(ticket), Some(Ok(_))) && oracle.leases.contains_key(number) {
            let receipt = rig.receipt(*number);
            let freed = receipt.is_some_and(|receipt| receipt.is_complete());
            let world = rig.backend.world();
            assert!(freed || !world.reachable(&rig.extents[&lease(*number)]), "fenced, and within reach");
        }
    }
    for (ticket, (number, _, _)) in &oracle.binds {
        if let Some(Ok(reply)) = rig.answers.get(ticket) {
            let Reply::Attached(answer) = reply else { panic!("{reply:?}") };
            let answer = answer.open(&rig.identity.public()).expect("signed by the provider");
            assert_eq!((answer.lease, u64::from(answer.stride)), (lease(*number), STRIDE));
        }
    }
}

fn check_books(rig: &Rig, oracle: &Oracle) {
    let now = rig.now();
    let heartbeat = rig.table.heartbeat(now);
    let receipts: BTreeMap<_, _> = oracle.leases.keys().filter_map(|n| Some((*n, rig.receipt(*n)?))).collect();
    for (number, receipt) in &receipts {
        let (reason, due) = oracle.leases[number].end.expect("a receipt before the end");
        assert_eq!(receipt.reason, reason);
        assert_eq!(receipt.due_us / 1000, due.0);
        assert!(receipt.steps.iter().map(|done| done.step).eq(Step::ALL.into_iter().take(receipt.steps.len())));
        assert!(receipt.steps.is_sorted_by_key(|done| done.at_us));
        assert!(receipt.steps[0].at_us >= receipt.due_us);
    }
    // Every lease is held or has a receipt.
    let held: BTreeSet<_> = rig.table.held().into_iter().map(|held| held.lease).collect();
    let expected: BTreeSet<_> = oracle.leases.keys().filter(|n| !receipts.contains_key(n)).map(|n| lease(*n)).collect();
    assert_eq!(held, expected);
    // Every page is somebody's, free, or withheld.
    let used: u64 = held.iter().map(|id| rig.extents[id].end - rig.extents[id].start).sum();
    assert_eq!(heartbeat.free_bytes + heartbeat.quarantined_bytes + used, PAGES * PAGE);
    let active: Vec<_> = held.iter().map(|id| &rig.extents[id]).collect();
    for (index, one) in active.iter().enumerate() {
        assert!(active[index + 1..].iter().all(|other| one.end <= other.start || other.end <= one.start), "overlap");
    }
    // Nothing is due that was not begun.
    assert!(rig.table.next_due().is_none_or(|due| due.tick() > now.tick() || rig.clock.now() > now));
    if rig.jobs.is_empty() {
        check_queues(rig, oracle, now);
    }
}

/// With no job under way, every endpoint that is served has a live lease and a live token.
fn check_queues(rig: &Rig, oracle: &Oracle, now: BootTime) {
    for queue in rig.backend.world().queues.values().filter(|queue| !queue.stuck) {
        let qpn = queue.remote.expect("connected").0.qpn;
        let (ticket, (number, _, until)) = oracle.binds.iter().find(|(_, bind)| bind.1 == qpn).expect("asked for");
        assert!(matches!(rig.answers.get(ticket), Some(Ok(_))), "served and not told so");
        assert!(oracle.active(*number), "served after the lease's end");
        assert!(until.is_none_or(|until| until >= now.tick()), "served after the token's end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_life_keeps_the_rules(acts in acts()) {
        play(acts);
    }
}

#[test]
fn an_offer_of_as_many_leases_as_there_can_be_fits_into_a_message() {
    let deadline = Deadline { boot: BootId([0xff; 16]), tick: Tick(u64::MAX) };
    let held = HeldLease { lease: LeaseId([0xff; 16]), deadline };
    let heartbeat = Heartbeat { tick: Tick(u64::MAX), free_bytes: u64::MAX, quarantined_bytes: u64::MAX };
    let offer = overbank_fabric::message::Offer {
        boot: BootId([0xff; 16]),
        heartbeat,
        pool_bytes: u64::MAX,
        page_bytes: u64::MAX,
        device: "d".repeat(1000),
        leases: vec![held; MAX_LEASES],
    };
    let bytes = overbank_fabric::signed::to_cbor(&offer).len();
    assert!(bytes < 1_000_000, "{bytes}");
}
