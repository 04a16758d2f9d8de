//! A lender's process: its table of leases and what it does with them are the real ones; threads and its session with the
//! auth daemon are as its own keeper and link have them, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use overbank_fabric::block::HEADER_LEN;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId};
use overbank_fabric::message::{Call, Offer, Refusal, RefusalCode, Reply};
use overbank_fabric::token::Rights;
use overbank_provider::attach::Gate;
use overbank_provider::clock::{BootTime, Clock};
use overbank_provider::job::{Job, Lane, Outcome, Task};
use overbank_provider::pool::Pool;
use overbank_provider::table::{Table, Terms};

use crate::borrower::BLOCK;
use crate::device::{Device, Key, Scope};
use crate::history::{Event, History, MS, Packet, S, Truth, Who, note};
use crate::office::seeded;
use crate::rng::Rng;

const PAGE: u64 = 4096;
/// For an answer to a call.
const CALL: u64 = 5 * S;

/// Session and request: whom to answer.
pub(crate) type Ticket = (u64, u64);

pub(crate) struct Lender {
    number: usize,
    pub(crate) identity: Arc<Identity>,
    pages: u64,
    /// Its machine's clock: where it stood at the history's beginning, and how it drifts.
    base_us: u64,
    ppm: u64,
    lives: u64,
    pub(crate) life: Option<Life>,
}

pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) device: Arc<Device>,
    /// Version of the device at the last look.
    pub(crate) looked: u64,
    /// Leases of which something could not be taken down.
    pub(crate) faulty: BTreeSet<usize>,
    table: Table<Device, Ticket>,
    boot: BootId,
    clock: SimClock,
    queues: Vec<(Lane, VecDeque<Job<Device, Ticket>>)>,
    running: BTreeMap<u64, Job<Device, Ticket>>,
    next: u64,
    wakes: Option<u64>,
    link: Link,
}

#[derive(Default)]
struct Link {
    session: Option<u64>,
    offered: bool,
    calls: BTreeMap<u64, Asked>,
    /// Receipts that were tried in this round.
    tried: BTreeSet<LeaseId>,
    backoff: u64,
}

#[derive(Clone, Copy)]
enum Asked {
    Offer,
    Beat,
    Receipt(LeaseId),
}

#[derive(Clone)]
struct SimClock(Arc<AtomicU64>);

impl Clock for SimClock {
    fn now(&self) -> BootTime {
        BootTime(self.0.load(Ordering::Relaxed))
    }
}

impl Lender {
    pub(crate) fn new(number: usize, seed: u64, rng: &mut Rng) -> Self {
        let identity = Arc::new(seeded(seed, 3, number));
        let (pages, base_us, ppm) = (rng.between(4, 24), rng.between(S, 1_000_000 * S), rng.below(200));
        Self { number, identity, pages, base_us, ppm, lives: 0, life: None }
    }

    /// Its clock: up to 100 ppm slow or fast.
    fn clock_at(&self, now: u64) -> u64 {
        self.base_us + now + now * self.ppm / 1_000_000 - now / 10_000
    }

    /// Nothing is held but what is withheld, all is clean, and every receipt has arrived.
    pub(crate) fn at_rest(&mut self, truth: &[Truth], revoked: bool) -> Result<(), String> {
        let Some(life) = &self.life else { return Err("is down at the end".to_owned()) };
        if !life.table.held().is_empty() {
            return Err(format!("still holds {} leases", life.table.held().len()));
        }
        let receipts = life.table.receipts(None, 100).len();
        if receipts > 0 && !revoked {
            return Err(format!("{receipts} receipts never arrived"));
        }
        let beat = life.table.heartbeat(life.clock.now());
        let withheld = truth.iter().filter(|it| (it.lender, it.life) == (self.number, life.number) && it.quarantined);
        let ranges: Vec<_> = withheld.filter_map(|it| it.bytes.clone()).collect();
        let quarantined: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if (beat.quarantined_bytes, beat.free_bytes) != (quarantined, self.pages * PAGE - quarantined) {
            return Err(format!("{beat:?}, where {quarantined} bytes should be quarantined and the rest free"));
        }
        let world = life.device.world();
        let dirty = (0..self.pages * PAGE)
            .find(|at| world.memory[*at as usize] != 0 && !ranges.iter().any(|range| range.contains(at)));
        match (dirty, world.regions_left()) {
            (Some(at), _) => Err(format!("byte {at} of the free memory is not zero")),
            (_, left) if left > 0 => Err(format!("{left} regions are left")),
            _ => Ok(()),
        }
    }
}

impl History {
    /// Lets the lender's clock show the time.
    fn boot_time(&mut self, lender: usize) -> BootTime {
        let at = self.lenders[lender].clock_at(self.now);
        if let Some(life) = &self.lenders[lender].life {
            life.clock.0.store(at, Ordering::Relaxed);
        }
        BootTime(at)
    }

    /// Something with the table, at this time; then what follows from it.
    fn with_table<R>(
        &mut self,
        lender: usize,
        act: impl FnOnce(&mut Table<Device, Ticket>, BootTime) -> R,
    ) -> Option<R> {
        let now = self.boot_time(lender);
        let life = self.lenders[lender].life.as_mut()?;
        let result = act(&mut life.table, now);
        self.lender_effects(lender);
        Some(result)
    }

    pub(crate) fn lender_starts(&mut self, number: usize) {
        if self.lenders[number].life.is_some() {
            return;
        }
        let (seed, now) = (self.rng.next(), self.now);
        let lender = &mut self.lenders[number];
        lender.lives += 1;
        if lender.lives > 1 && seed.is_multiple_of(3) {
            // The whole machine started again: its clock began anew.
            lender.base_us = seed % (5 * S) + now / 10_000;
        }
        let boot = BootId::random();
        let terms = Terms { identity: Arc::clone(&lender.identity), boot, max_lease_ms: 3_600_000 };
        lender.life = Some(Life {
            number: lender.lives,
            device: Arc::new(Device::new(lender.pages * PAGE, seed)),
            looked: 0,
            faulty: BTreeSet::new(),
            table: Table::new(terms, Pool::new(lender.pages * PAGE, PAGE)),
            boot,
            clock: SimClock(Arc::default()),
            queues: Lane::ALL.into_iter().map(|lane| (lane, VecDeque::new())).collect(),
            running: BTreeMap::new(),
            next: 0,
            wakes: None,
            link: Link::default(),
        });
        let life = lender.lives;
        note!(self, "P{number} starts, life {life}");
        self.at(MS, Event::Connect(number, life));
    }

    pub(crate) fn lender_crashes(&mut self, number: usize) {
        let Some(life) = self.lenders[number].life.take() else { return };
        note!(self, "P{number} crashes");
        self.seen.crashes += 1;
        for truth in self.truth.iter_mut().filter(|it| it.lender == number && it.life == life.number) {
            truth.may_end = true;
        }
        if let Some(session) = life.link.session {
            self.peer_leaves(session);
        }
        let down = self.rng.between(200 * MS, 6 * S);
        self.at(down, Event::LenderStarts(number));
    }

    pub(crate) fn lender_wakes(&mut self, lender: usize, life: u64) {
        match &mut self.lenders[lender].life {
            Some(it) if it.number == life && it.wakes == Some(self.now) => it.wakes = None,
            _ => return,
        }
        self.with_table(lender, |table, now| table.tick(now));
    }

    /// Answers go out, jobs go to their threads, the clock is set.
    fn lender_effects(&mut self, number: usize) {
        let Some(life) = &mut self.lenders[number].life else { return };
        let mut effects = life.table.take_effects();
        let current = life.link.session;
        // Where several leases are due at once their order comes from random ids: here, from their numbers.
        effects.jobs.sort_by_key(|job| self.names.get(&job.lease).copied());
        effects.answers.sort_by_key(|(ticket, _)| *ticket);
        for job in effects.jobs {
            let lane = job.lane();
            let queue = life.queues.iter_mut().find(|(kind, _)| *kind == lane);
            queue.expect("each lane has one").1.push_back(job);
        }
        for ((session, id), outcome) in effects.answers {
            if Some(session) == current && self.sessions.get(&session).is_some_and(|it| it.at_peer) {
                self.lender_sends(session, Packet::Response { id, outcome });
            }
        }
        self.lender_works(number);
        if effects.receipts
            && let Some(session) = current
        {
            self.lender_delivers(number, session, true);
        }
        self.set_alarm(number);
    }

    fn lender_sends(&mut self, session: u64, packet: Packet) {
        self.send_authd(session, packet);
    }

    fn set_alarm(&mut self, number: usize) {
        let late = self.rng.below(15 * MS);
        let at = self.lenders[number].clock_at(self.now);
        let Some(life) = &mut self.lenders[number].life else { return };
        let Some(due) = life.table.next_due() else { return };
        // The drift on the way is less than the slowness of the thread.
        let wake = self.now + due.us_since(BootTime(at)) + due.us_since(BootTime(at)) / 9_000 + late;
        if life.wakes.is_none_or(|set| set <= self.now || set > wake) {
            life.wakes = Some(wake);
            let (life, delay) = (life.number, wake - self.now);
            self.at(delay, Event::LenderWakes(number, life));
        }
    }

    /// Gives threads that have nothing to do their next job.
    fn lender_works(&mut self, number: usize) {
        for at in 0..Lane::ALL.len() {
            loop {
                let Some(life) = &mut self.lenders[number].life else { return };
                let lane = life.queues[at].0;
                if life.running.values().filter(|job| job.lane() == lane).count() >= lane.threads() {
                    break;
                }
                let Some(job) = life.queues[at].1.pop_front() else { break };
                let id = life.next;
                life.next += 1;
                self.job_begins(number, &job);
                let most = match job.task {
                    Task::Open(..) => 20 * MS,
                    Task::Reach(..) => 30 * MS,
                    Task::Bind(..) => 15 * MS,
                    Task::Detach(..) | Task::Fence(..) => 8 * MS,
                    Task::Wipe(..) => 300 * MS,
                };
                let takes = self.rng.between(10, most);
                let life = self.lenders[number].life.as_mut().expect("it is there");
                life.running.insert(id, job);
                let life = life.number;
                self.at(takes, Event::JobEnds(number, life, id));
            }
        }
    }

    fn job_begins(&mut self, number: usize, job: &Job<Device, Ticket>) {
        let lease = self.name(job.lease);
        let life = self.lenders[number].life.as_ref().expect("it works");
        let life_number = life.number;
        match &job.task {
            Task::Open(extent, _) => {
                let bytes = extent.bytes();
                note!(self, "P{number} carves L{lease}: {bytes:?}");
                let life = self.lenders[number].life.as_ref().expect("it works");
                let world = life.device.world();
                let covered = world.covered(&bytes);
                let dirty = world.memory[bytes.start as usize..bytes.end as usize].iter().any(|byte| *byte != 0);
                drop(world);
                let here = |it: &&Truth| (it.lender, it.life) == (number, life_number) && !it.free;
                let overlaps =
                    |it: &Truth| it.bytes.as_ref().is_some_and(|b| b.start < bytes.end && bytes.start < b.end);
                if let Some(other) = self.truth.iter().filter(here).position(overlaps) {
                    self.wrong(format!("L{lease} is carved over another lease's bytes ({other}. of this life)"));
                }
                if dirty {
                    self.wrong(format!("L{lease} is carved from memory that is not zero"));
                }
                match covered {
                    Some(true) => self.wrong(format!("L{lease} is carved where a region could not be deregistered")),
                    Some(false) => self.wrong(format!("L{lease} is carved where a region still is")),
                    None => {}
                }
                let truth = &mut self.truth[lease];
                if truth.bytes.is_some() {
                    self.wrong(format!("L{lease} is carved twice"));
                } else {
                    (truth.lender, truth.life, truth.bytes) = (number, life_number, Some(bytes));
                }
                self.seen.leases += 1;
            }
            Task::Fence(_) => {
                note!(self, "P{number} begins to fence L{lease}");
                let now = self.now;
                let truth = &mut self.truth[lease];
                truth.begun = Some(now);
                let (latest, may_end) = (truth.latest, truth.may_end);
                self.seen.latest_us = self.seen.latest_us.max(now.saturating_sub(latest));
                if !may_end && now + 1500 * MS < self.truth[lease].promised {
                    self.wrong(format!("L{lease} ends {} ms before its time", (self.truth[lease].promised - now) / MS));
                }
                let life = self.lenders[number].life.as_ref().expect("it works");
                life.device.world().keys.iter_mut().filter(|key| key.lease == lease).for_each(|key| key.hostile = true);
            }
            _ => {}
        }
    }

    pub(crate) fn job_ends(&mut self, number: usize, life: u64, id: u64) {
        let now = self.boot_time(number);
        let Some(it) = self.lenders[number].life.as_mut().filter(|it| it.number == life) else { return };
        let Some(job) = it.running.remove(&id) else { return };
        let (device, clock) = (Arc::clone(&it.device), it.clock.clone());
        let lease = self.name(job.lease);
        let scope = match &job.task {
            Task::Bind(_, waiting) => Some(self.scope_of(number, id, &waiting.admission)),
            _ => None,
        };
        let failing = device.world().failing;
        device.world().at_work = Some((lease, scope));
        let done = job.run(&*device, &clock);
        device.world().at_work = None;
        let failed = failing.is_some() && device.world().failing.is_none();
        match &done.outcome {
            Outcome::Opened(Err(_)) => {
                note!(self, "P{number}: L{lease} could not be registered");
                // No peer has ever reached it.
                self.truth[lease].free = true;
            }
            Outcome::Bound(_, _, binding) => {
                let scope = scope.expect("of a bind");
                note!(self, "P{number} attaches {scope:?} to L{lease}: {}", binding.is_ok());
                self.attached(number, lease, scope, binding.is_ok(), failed);
            }
            Outcome::Detached(_) => {
                note!(self, "P{number} detaches from L{lease}");
                if failed {
                    self.lenders[number].life.as_mut().expect("it works").faulty.insert(lease);
                }
            }
            Outcome::Fenced(Ok(_)) => {
                note!(self, "P{number} has fenced L{lease}");
                self.truth[lease].fenced = true;
                let mut world = device.world();
                world.keys.iter_mut().filter(|key| key.lease == lease).for_each(|key| key.dead = true);
                world.version += 1;
            }
            Outcome::Fenced(Err(_)) | Outcome::Wiped(Err(_)) => {
                note!(self, "P{number}: the end of L{lease} failed");
                self.truth[lease].quarantined = true;
                self.seen.quarantined += 1;
            }
            Outcome::Wiped(Ok(_)) => {
                note!(self, "P{number} has wiped L{lease}");
                self.truth[lease].free = true;
                self.look_at_end(number, lease);
            }
            _ => {}
        }
        if let Some(life) = self.lenders[number].life.as_mut() {
            life.table.done(now, done);
        }
        self.lender_effects(number);
    }

    fn scope_of(&self, number: usize, attach: u64, admission: &overbank_provider::attach::Admission) -> Scope {
        let scope = &admission.scope;
        let key = scope.holder;
        let borrower = self.borrowers.iter().position(|it| it.identity.public() == key).unwrap_or(usize::MAX);
        let lender = &self.lenders[number];
        let left = (scope.deadline.tick.0 * MS).saturating_sub(lender.clock_at(self.now));
        let until = (!admission.root).then_some(self.now + left + left / 9_000 + MS);
        let write = scope.rights.contains(Rights::WRITE);
        Scope { attach, borrower, first: scope.first_block, blocks: scope.blocks, write, until }
    }

    /// The same holder's earlier way to the same blocks is gone, and one with less time ends by itself. One that was refused led
    /// nowhere; what it was to replace may be there still.
    fn attached(&mut self, number: usize, lease: usize, scope: Scope, done: bool, failed: bool) {
        let life = self.lenders[number].life.as_mut().expect("it works");
        if failed {
            life.faulty.insert(lease);
        }
        let (life_number, faulty) = (life.number, life.faulty.contains(&lease));
        let mut world = life.device.world();
        for key in world.keys.iter_mut().filter(|key| key.lease == lease && !faulty) {
            if key.scope.is_replaced_by(&scope) && done == (key.scope.attach != scope.attach) {
                key.dead = true;
            }
        }
        world.version += 1;
        let stride = u64::from(BLOCK) + HEADER_LEN as u64;
        let ways = world.keys.iter().filter(|key| key.scope.attach == scope.attach && key.lease == lease);
        let ways: Vec<Key> = ways.cloned().collect();
        let mut too_much = false;
        for key in ways {
            let way = (&key.peer, key.qpn, key.rkey);
            let first = world.access(way, key.address, None, 1);
            let wrote = first.is_some_and(|byte| world.access(way, key.address, Some(&byte), 0).is_some());
            too_much |= key.len != scope.blocks * stride || (wrote && !scope.write);
        }
        drop(world);
        if too_much {
            self.wrong(format!("an attach to L{lease} reaches more than its token grants: {scope:?}"));
        }
        if done {
            self.seen.attaches += 1;
            if let Some(until) = scope.until {
                let delay = until.saturating_sub(self.now) + 201 * MS;
                self.at(delay, Event::KeyOver(lease, number, life_number));
            }
        }
    }

    /// Every byte of a lease that is clean is zero, and nothing covers it.
    fn look_at_end(&mut self, number: usize, lease: usize) {
        let life = self.lenders[number].life.as_ref().expect("it works");
        let bytes = self.truth[lease].bytes.clone().expect("carved");
        let world = life.device.world();
        let dirty = world.memory[bytes.start as usize..bytes.end as usize].iter().any(|byte| *byte != 0);
        let covered = world.covered(&bytes).is_some();
        drop(world);
        if dirty || covered {
            self.wrong(format!("L{lease} is said to be clean: dirty {dirty}, covered {covered}"));
        }
    }

    // -- the session with the auth daemon --------------------------------------------------------------------------

    pub(crate) fn lender_connects(&mut self, number: usize, life: u64) {
        let up = self.office.running.is_some();
        match &self.lenders[number].life {
            Some(it) if it.number == life && it.link.session.is_none() => {}
            _ => return,
        }
        if !up {
            return self.lender_retries(number);
        }
        let session = self.open_session(Who::Lender(number));
        if !self.office_admits(session) {
            self.sessions.remove(&session);
            return self.lender_retries(number);
        }
        let now = self.boot_time(number);
        let lender = &mut self.lenders[number];
        let pool_bytes = lender.pages * PAGE;
        let life = lender.life.as_mut().expect("it connects");
        life.link = Link { session: Some(session), backoff: life.link.backoff, ..Link::default() };
        let offer = Offer {
            boot: life.boot,
            heartbeat: life.table.heartbeat(now),
            pool_bytes,
            page_bytes: PAGE,
            device: "simulated".to_owned(),
            leases: life.table.held(),
        };
        note!(self, "P{number} offers, holding {}", offer.leases.len());
        self.lender_asks(number, Asked::Offer, Call::Offer(offer));
    }

    fn lender_retries(&mut self, number: usize) {
        let jitter = self.rng.between(500, 1500);
        let life = self.lenders[number].life.as_mut().expect("it lives");
        let backoff = life.link.backoff.clamp(200 * MS, 5 * S);
        life.link.backoff = backoff * 2;
        let life = life.number;
        self.at(backoff * jitter / 1000, Event::Connect(number, life));
    }

    fn lender_asks(&mut self, number: usize, asked: Asked, call: Call) {
        let life = self.lenders[number].life.as_mut().expect("it lives");
        let Some(session) = life.link.session else { return };
        life.next += 1;
        let id = life.next;
        life.link.calls.insert(id, asked);
        self.at(CALL, Event::CallLate(number, session, id));
        self.lender_sends(session, Packet::Request { id, deadline_ms: 5000, call });
    }

    pub(crate) fn lender_beats(&mut self, number: usize, session: u64) {
        let Some(heartbeat) = self.with_table(number, |table, now| table.heartbeat(now)) else { return };
        if self.lenders[number].life.as_ref().is_some_and(|life| life.link.session == Some(session)) {
            self.lender_asks(number, Asked::Beat, Call::Heartbeat(heartbeat));
        }
    }

    /// Sends the next receipt, if none is under way.
    pub(crate) fn lender_delivers(&mut self, number: usize, session: u64, again: bool) {
        let Some(life) = self.lenders[number].life.as_mut() else { return };
        if life.link.session != Some(session) || !life.link.offered {
            return;
        }
        if again {
            life.link.tried.clear();
        }
        if life.link.calls.values().any(|asked| matches!(asked, Asked::Receipt(_))) {
            return;
        }
        let mut receipts = life.table.receipts(None, 64);
        receipts.sort_by_key(|(lease, _)| self.names.get(lease).copied());
        let next = receipts.into_iter().find(|(lease, _)| !life.link.tried.contains(lease));
        if let Some((lease, receipt)) = next {
            life.link.tried.insert(lease);
            self.lender_asks(number, Asked::Receipt(lease), Call::Ended(receipt));
        }
    }

    pub(crate) fn lender_call_late(&mut self, number: usize, session: u64, call: u64) {
        let Some(life) = &self.lenders[number].life else { return };
        if life.link.session == Some(session) && life.link.calls.contains_key(&call) {
            note!(self, "P{number}: the auth daemon is silent");
            self.peer_leaves(session);
            self.lender_loses(number, session);
        }
    }

    pub(crate) fn lender_loses(&mut self, number: usize, session: u64) {
        let Some(life) = &mut self.lenders[number].life else { return };
        if life.link.session != Some(session) {
            return;
        }
        let backoff = if life.link.offered { 0 } else { life.link.backoff };
        life.link = Link { backoff, ..Link::default() };
        self.lender_retries(number);
    }

    pub(crate) fn lender_hears(&mut self, number: usize, session: u64, packet: Packet) {
        let now = self.boot_time(number);
        let provider = self.lenders[number].identity.public();
        let Some(life) = &mut self.lenders[number].life else { return };
        if life.link.session != Some(session) {
            return;
        }
        match packet {
            Packet::Request { id, deadline_ms, call } => {
                let ticket = (session, id);
                let gate =
                    Gate { authd: self.office.key, former: Vec::new(), provider: vec![provider], boot: life.boot };
                let refused = |refusal: Refusal| Packet::Response { id, outcome: Err(refusal) };
                match call {
                    Call::Carve(carve) => {
                        self.name(carve.lease);
                        self.with_table(number, |table, now| table.carve(now, ticket, carve));
                    }
                    Call::Extend(extend) => {
                        self.with_table(number, |table, now| table.extend(now, ticket, &extend));
                    }
                    Call::Fence(fence) => {
                        self.with_table(number, |table, now| table.fence(now, ticket, &fence));
                    }
                    Call::Bind(attach) => match gate.admit(&attach, now.tick()) {
                        Ok(admission) => {
                            let until = now.after_ms(u64::from(deadline_ms));
                            self.with_table(number, |table, now| {
                                table.bind(now, ticket, Box::new(admission), until);
                            });
                        }
                        Err(refusal) => self.lender_sends(session, refused(refusal)),
                    },
                    _ => {
                        let refusal = Refusal::new(RefusalCode::Invalid, "no order");
                        self.lender_sends(session, refused(refusal));
                    }
                }
            }
            Packet::Response { id, outcome } => {
                let Some(asked) = life.link.calls.remove(&id) else { return };
                self.lender_is_answered(number, session, asked, outcome);
            }
        }
    }

    fn lender_is_answered(&mut self, number: usize, session: u64, asked: Asked, outcome: Result<Reply, Refusal>) {
        let life = self.lenders[number].life.as_mut().expect("it heard");
        match (asked, outcome) {
            (Asked::Offer, Ok(_)) => {
                life.link.offered = true;
                note!(self, "P{number}: its offer is accepted");
                self.lender_beats(number, session);
                self.lender_delivers(number, session, true);
            }
            (Asked::Beat, Ok(_)) => self.at(S, Event::Beat(number, session)),
            (Asked::Receipt(lease), outcome) => {
                let revoked = self.revoked.contains(&Who::Lender(number));
                let name = self.name(lease);
                match outcome {
                    Ok(_) => {
                        note!(self, "P{number}: the receipt of L{name} is in");
                        self.seen.receipts += 1;
                        self.with_table(number, |table, _| table.acknowledge(lease));
                    }
                    Err(refusal) => match refusal.code {
                        RefusalCode::NoSuchLease | RefusalCode::Invalid | RefusalCode::BadSignature if !revoked => {
                            self.wrong(format!("the receipt of L{name} is refused: {refusal}"));
                        }
                        _ => self.at(5 * S, Event::DeliverAgain(number, session)),
                    },
                }
                self.lender_delivers(number, session, false);
            }
            (_, Err(refusal)) => {
                note!(self, "P{number} is refused: {:?}", refusal.code);
                self.peer_leaves(session);
                self.lender_loses(number, session);
            }
        }
    }
}
