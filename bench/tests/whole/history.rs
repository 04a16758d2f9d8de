//! One history: the parties, the network between them, the virtual time, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use overbank_fabric::block::Stamp;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{Call, Refusal, Reply};

use crate::borrower::{Borrower, Landing};
use crate::device::Failing;
use crate::lender::Lender;
use crate::office::Office;
use crate::rng::Rng;

pub(crate) const MS: u64 = 1000;
pub(crate) const S: u64 = 1000 * MS;
/// Longest time that a message takes, but for those of a session that went silent.
pub(crate) const SLOWEST: u64 = 900 * MS;

/// From the last fault to the end: longer than a lease lasts, and a session that is dead goes unnoticed.
const QUIET: u64 = 28 * S;

/// How long histories are, and how many parties they have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Faults and work end here; then everybody has time to agree.
    pub(crate) busy_us: u64,
    pub(crate) lenders: usize,
    pub(crate) borrowers: usize,
}

/// Who is at the far end of a session with the auth daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Lender(usize),
    Borrower(usize),
}

#[derive(Debug, Clone)]
pub(crate) enum Packet {
    Request { id: u64, deadline_ms: u32, call: Call },
    Response { id: u64, outcome: Result<Reply, Refusal> },
}

/// A session as both ends see it.
pub(crate) struct Session {
    pub(crate) who: Who,
    pub(crate) at_peer: bool,
    pub(crate) at_authd: bool,
    /// Nothing gets through any more, and nobody is told.
    silent: bool,
    last: [u64; 2],
}

pub(crate) enum Event {
    ToAuthd(u64, Packet),
    ToPeer(u64, Packet),
    /// The far end learns that a session is over.
    ClosedForAuthd(u64),
    ClosedForPeer(u64),
    // The auth daemon.
    AuthdStarts,
    OrdersDue(u64, u64),
    OrderLate(u64),
    WorkLate(u64),
    FarewellOver(u64),
    // Lenders: who, in which life.
    LenderStarts(usize),
    LenderWakes(usize, u64),
    JobEnds(usize, u64, u64),
    Connect(usize, u64),
    Beat(usize, u64),
    CallLate(usize, u64, u64),
    DeliverAgain(usize, u64),
    // Borrowers.
    Act(usize),
    Lands(Box<Landing>),
    RpcLate(usize, u64),
    // The world.
    Trouble,
    Begun(usize, u64),
    KeyOver(usize, usize, u64),
}

struct At(u64, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What is true of a lease, whoever believes what.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) lender: usize,
    pub(crate) life: u64,
    pub(crate) bytes: Option<std::ops::Range<u64>>,
    /// Its end must have begun 100 ms after this (true time, µs).
    pub(crate) latest: u64,
    /// The holder was told that it lasts until then.
    pub(crate) promised: u64,
    /// Somebody other than the clock may end it.
    pub(crate) may_end: bool,
    pub(crate) begun: Option<u64>,
    pub(crate) fenced: bool,
    pub(crate) quarantined: bool,
    /// Its memory is another's to have.
    pub(crate) free: bool,
}

pub(crate) struct History {
    pub(crate) shape: Shape,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    events: BinaryHeap<Reverse<At>>,
    sequence: u64,
    pub(crate) sessions: BTreeMap<u64, Session>,
    next_session: u64,
    pub(crate) office: Office,
    pub(crate) lenders: Vec<Lender>,
    pub(crate) borrowers: Vec<Borrower>,
    /// Leases by number, in the order in which they were first heard of.
    pub(crate) names: HashMap<LeaseId, usize>,
    pub(crate) truth: Vec<Truth>,
    /// Every sealing: which lease key, and the stamp that decides key and nonce.
    pub(crate) sealed: HashSet<(usize, Stamp)>,
    /// Which lease a borrower's wish has become.
    pub(crate) wishes: BTreeMap<(usize, u64), usize>,
    pub(crate) revoked: BTreeSet<Who>,
    /// Milliseconds by which the wall clock is off.
    pub(crate) wall_ms: i64,
    pub(crate) calm: bool,
    wrong: Option<String>,
    pub(crate) trace: Option<Vec<String>>,
    digest: u64,
    pub(crate) seen: Seen,
}

/// How much of what a history is about has happened in it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) steps: u64,
    pub(crate) leases: u64,
    pub(crate) revoked: u64,
    pub(crate) quarantined: u64,
    pub(crate) lost: u64,
    pub(crate) attaches: u64,
    pub(crate) writes: u64,
    pub(crate) late_writes: u64,
    pub(crate) reads: u64,
    pub(crate) crashes: u64,
    pub(crate) receipts: u64,
    /// Latest begin of an end after its deadline, µs.
    pub(crate) latest_us: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.leases += other.leases;
        self.revoked += other.revoked;
        self.quarantined += other.quarantined;
        self.lost += other.lost;
        self.attaches += other.attaches;
        self.writes += other.writes;
        self.late_writes += other.late_writes;
        self.reads += other.reads;
        self.crashes += other.crashes;
        self.receipts += other.receipts;
        self.latest_us = self.latest_us.max(other.latest_us);
    }
}

/// A history that may be.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) seen: Seen,
    /// The same for the same history.
    pub(crate) digest: u64,
    pub(crate) trace: Vec<String>,
}

/// Why a history is none that may be.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) at_us: u64,
    pub(crate) trace: Vec<String>,
}

macro_rules! note {
    ($history:expr, $($text:tt)*) => {{
        let text = format!($($text)*);
        $history.tell(&text);
    }};
}
pub(crate) use note;

impl History {
    pub(crate) fn new(seed: u64, shape: Shape, tell: bool) -> Self {
        let mut rng = Rng::new(seed);
        let (office, operator) = Office::new(seed);
        let mut history = Self {
            shape,
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            sessions: BTreeMap::new(),
            next_session: 1,
            office,
            lenders: (0..shape.lenders).map(|number| Lender::new(number, seed, &mut rng)).collect(),
            borrowers: (0..shape.borrowers).map(|number| Borrower::new(number, seed)).collect(),
            rng,
            names: HashMap::new(),
            truth: Vec::new(),
            sealed: HashSet::new(),
            wishes: BTreeMap::new(),
            revoked: BTreeSet::new(),
            wall_ms: 0,
            calm: false,
            wrong: None,
            trace: tell.then(Vec::new),
            digest: 0xCBF2_9CE4_8422_2325,
            seen: Seen::default(),
        };
        history.join_all(operator);
        for lender in 0..shape.lenders {
            history.at(lender as u64 * MS, Event::LenderStarts(lender));
        }
        for borrower in 0..shape.borrowers {
            history.at(300 * MS + borrower as u64, Event::Act(borrower));
        }
        history.at(S, Event::Trouble);
        history
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Result<Ran, Wrong> {
        let end = self.shape.busy_us + QUIET;
        while let Some(Reverse(At(at, _, event))) = self.events.pop() {
            if at > end {
                break;
            }
            self.now = at;
            self.seen.steps += 1;
            if at >= self.shape.busy_us && !self.calm {
                self.calm_down();
            }
            self.step(event);
            self.look();
            if let Some(what) = self.wrong.take() {
                return Err(Wrong { what, at_us: self.now, trace: self.trace.unwrap_or_default() });
            }
        }
        self.now = end;
        self.check_books();
        match self.wrong.take() {
            Some(what) => Err(Wrong { what, at_us: self.now, trace: self.trace.unwrap_or_default() }),
            None => Ok(Ran { seen: self.seen, digest: self.digest, trace: self.trace.unwrap_or_default() }),
        }
    }

    pub(crate) fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(At(self.now + delay, self.sequence, event)));
    }

    /// Something that must never be.
    pub(crate) fn wrong(&mut self, what: impl Into<String>) {
        let what = what.into();
        note!(self, "WRONG: {what}");
        self.wrong.get_or_insert(what);
    }

    pub(crate) fn tell(&mut self, text: &str) {
        for byte in self.now.to_le_bytes().iter().chain(text.as_bytes()) {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>4}.{:06} {text}", now / S, now % S));
        }
    }

    /// A lease's number; a new one for a new lease.
    pub(crate) fn name(&mut self, lease: LeaseId) -> usize {
        let next = self.names.len();
        let name = *self.names.entry(lease).or_insert(next);
        if name == next {
            self.truth.push(Truth::default());
        }
        name
    }

    // -- the network --------------------------------------------------------------------------------------------------

    pub(crate) fn open_session(&mut self, who: Who) -> u64 {
        let id = self.next_session;
        self.next_session += 1;
        let session = Session { who, at_peer: true, at_authd: true, silent: false, last: [self.now; 2] };
        self.sessions.insert(id, session);
        id
    }

    fn delay(&mut self) -> u64 {
        match self.rng.below(100) {
            0..=1 if !self.calm => self.rng.between(50 * MS, SLOWEST),
            2..=9 => self.rng.between(5 * MS, 40 * MS),
            _ => self.rng.between(50, 2 * MS),
        }
    }

    /// In order, but for a little: tasks race for their turn at the far end.
    fn arrival(&mut self, session: u64, way: usize) -> Option<u64> {
        let (delay, race) = (self.delay(), if self.rng.chance(100) { self.rng.below(MS) } else { 0 });
        let session = self.sessions.get_mut(&session).filter(|session| !session.silent)?;
        let at = (self.now + delay).max(session.last[way]).min(self.now + SLOWEST);
        session.last[way] = at;
        Some(at + race - self.now)
    }

    pub(crate) fn send_authd(&mut self, session: u64, packet: Packet) {
        if let Some(delay) = self.arrival(session, 0) {
            self.at(delay, Event::ToAuthd(session, packet));
        }
    }

    pub(crate) fn send_peer(&mut self, session: u64, packet: Packet) {
        if self.sessions.get(&session).is_some_and(|session| session.at_authd)
            && let Some(delay) = self.arrival(session, 1)
        {
            self.at(delay, Event::ToPeer(session, packet));
        }
    }

    /// The peer gives its session up. What it sent may still arrive, and the auth daemon hears of it later.
    pub(crate) fn peer_leaves(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.at_peer) else { return };
        session.at_peer = false;
        let later = if session.silent { 8 * S } else { 0 };
        let delay = self.rng.below(1500 * MS) + later;
        self.at(delay, Event::ClosedForAuthd(id));
    }

    fn lender_session(&self, lender: usize) -> Option<u64> {
        self.sessions.iter().find(|(_, s)| s.who == Who::Lender(lender) && s.at_peer).map(|(id, _)| *id)
    }

    // -- what happens -----------------------------------------------------------------------------------------------

    fn step(&mut self, event: Event) {
        match event {
            Event::ToAuthd(session, packet) => self.office_hears(session, packet),
            Event::ToPeer(id, packet) => match self.sessions.get(&id).filter(|session| session.at_peer) {
                Some(Session { who: Who::Lender(lender), .. }) => self.lender_hears(*lender, id, packet),
                Some(Session { who: Who::Borrower(borrower), .. }) => self.borrower_hears(*borrower, id, packet),
                None => {}
            },
            Event::ClosedForAuthd(session) => self.office_loses(session),
            Event::ClosedForPeer(id) => {
                let Some(session) = self.sessions.get_mut(&id).filter(|session| session.at_peer) else { return };
                session.at_peer = false;
                match session.who {
                    Who::Lender(lender) => self.lender_loses(lender, id),
                    Who::Borrower(borrower) => self.borrower_loses(borrower, id),
                }
            }
            Event::AuthdStarts => self.office_starts(),
            Event::OrdersDue(session, life) => self.office_orders(session, life),
            Event::OrderLate(order) => self.order_late(order),
            Event::WorkLate(work) => self.work_late(work),
            Event::FarewellOver(session) => self.office_closes(session),
            Event::LenderStarts(lender) => self.lender_starts(lender),
            Event::LenderWakes(lender, life) => self.lender_wakes(lender, life),
            Event::JobEnds(lender, life, job) => self.job_ends(lender, life, job),
            Event::Connect(lender, life) => self.lender_connects(lender, life),
            Event::Beat(lender, session) => self.lender_beats(lender, session),
            Event::CallLate(lender, session, call) => self.lender_call_late(lender, session, call),
            Event::DeliverAgain(lender, session) => self.lender_delivers(lender, session, true),
            Event::Act(borrower) => self.borrower_acts(borrower),
            Event::Lands(landing) => self.lands(*landing),
            Event::RpcLate(borrower, rpc) => self.rpc_late(borrower, rpc),
            Event::Trouble => self.trouble(),
            Event::Begun(lease, due) => self.must_have_begun(lease, due),
            Event::KeyOver(lease, lender, life) => self.keys_over(lease, lender, life),
        }
    }

    fn trouble(&mut self) {
        if self.calm {
            return;
        }
        let again = self.rng.between(50 * MS, 3 * S);
        self.at(again, Event::Trouble);
        let lender = self.rng.below(self.lenders.len() as u64) as usize;
        let borrower = self.rng.below(self.borrowers.len() as u64) as usize;
        match self.rng.below(100) {
            0..=9 => self.break_session(Who::Lender(lender)),
            10..=16 => self.break_session(Who::Borrower(borrower)),
            17..=24 => {
                if let Some(id) = self.lender_session(lender) {
                    note!(self, "P{lender}: its session goes silent");
                    self.sessions.get_mut(&id).expect("there").silent = true;
                }
            }
            25..=34 => self.office_crashes(),
            35..=42 => self.lender_crashes(lender),
            43..=52 => self.borrower_restarts(borrower),
            53..=62 => {
                let stop = self.rng.between(S, 20 * S);
                note!(self, "B{borrower} is stopped for {} ms", stop / MS);
                self.borrowers[borrower].stopped_until = self.now + stop;
            }
            63..=70 => {
                let hours = self.rng.pick(&[-24, -1, 1, 24]);
                note!(self, "the wall clock is set by {hours} h");
                self.wall_ms += hours * 3_600_000;
            }
            71..=90 => {
                let failing = self.rng.pick(&[
                    Failing::OpenDomain,
                    Failing::Register,
                    Failing::Reach,
                    Failing::CreateQueue,
                    Failing::Connect,
                    Failing::Destroy,
                    Failing::Deregister,
                    Failing::Deregister,
                    Failing::Wipe,
                    Failing::Check,
                ]);
                if let Some(life) = &self.lenders[lender].life {
                    life.device.world().failing = Some(failing);
                    note!(self, "P{lender}: the next {failing:?} fails");
                }
            }
            91..=93 => self.revoke(Who::Borrower(borrower)),
            94 => self.revoke(Who::Lender(lender)),
            _ => {}
        }
    }

    fn break_session(&mut self, who: Who) {
        let found = self.sessions.iter().find(|(_, session)| session.who == who && session.at_peer);
        let Some((&id, _)) = found else { return };
        note!(self, "a session of {who:?} breaks");
        if self.rng.chance(500) {
            self.peer_leaves(id);
            match who {
                Who::Lender(lender) => self.lender_loses(lender, id),
                Who::Borrower(borrower) => self.borrower_loses(borrower, id),
            }
        } else {
            self.office_closes(id);
        }
    }

    /// No more faults: who is down comes back, who is silent is cut off.
    fn calm_down(&mut self) {
        self.calm = true;
        note!(self, "calm");
        for lender in &mut self.lenders {
            if let Some(life) = &lender.life {
                life.device.world().failing = None;
            }
        }
        let silent: Vec<u64> = self.sessions.iter().filter(|(_, s)| s.silent).map(|(id, _)| *id).collect();
        for id in silent {
            self.at(MS, Event::ClosedForPeer(id));
            self.at(MS, Event::ClosedForAuthd(id));
        }
    }

    // -- the oracle ---------------------------------------------------------------------------------------------------

    /// After every step: every old key is tried, and what the devices saw is heard.
    fn look(&mut self) {
        let mut found = None;
        for lender in &mut self.lenders {
            let Some(life) = &mut lender.life else { continue };
            let mut world = life.device.world();
            if world.version != life.looked {
                life.looked = world.version;
                world.try_old_keys();
                world.try_across();
            }
            if let Some(wrong) = world.wrong.pop() {
                found = Some(wrong);
            }
        }
        if let Some(wrong) = found {
            self.wrong(wrong);
        }
    }

    /// An end must begin within 100 ms of what its holder was granted, on the lender's clock.
    pub(crate) fn expect_end(&mut self, lease: usize, ttl_ms: u64) {
        let latest = self.now + ttl_ms * MS;
        if self.truth[lease].latest < latest {
            self.truth[lease].latest = latest;
            // The lender's clock may be slow by 100 ppm, and counts whole milliseconds.
            let after = ttl_ms * MS + ttl_ms / 10 + 2 * MS + 100 * MS;
            self.at(after, Event::Begun(lease, latest));
        }
    }

    fn must_have_begun(&mut self, lease: usize, due: u64) {
        let truth = &self.truth[lease];
        let lives = self.lenders[truth.lender].life.as_ref().is_some_and(|life| life.number == truth.life);
        if truth.latest == due && truth.bytes.is_some() && lives && truth.begun.is_none() && !truth.free {
            self.wrong(format!("L{lease}: no fencing 100 ms after the deadline"));
        }
    }

    /// An attachment with less time than its lease is over.
    fn keys_over(&mut self, lease: usize, lender: usize, life: u64) {
        let (now, truth) = (self.now, &self.truth[lease]);
        let Some(life) = self.lenders[lender].life.as_mut().filter(|it| it.number == life) else { return };
        let mut world = life.device.world();
        if truth.quarantined || life.faulty.contains(&lease) {
            return;
        }
        for key in world.keys.iter_mut().filter(|key| key.lease == lease) {
            if key.scope.until.is_some_and(|until| until + 200 * MS <= now) {
                key.dead = true;
            }
        }
        world.version += 1;
    }

    /// At rest, both sides believe the same, and it is true.
    fn check_books(&mut self) {
        let Some(infos) = self.operate(Call::ListLeases) else {
            return self.wrong("the auth daemon is not up at the end");
        };
        let Reply::Leases(infos) = infos else { return self.wrong("no list of leases") };
        let mut listed = BTreeMap::new();
        for info in infos {
            let name = self.name(info.lease);
            listed.insert(name, info);
        }
        for (name, info) in &listed {
            use overbank_fabric::message::LeaseState::{Active, Ended, Ending, Lost};
            let (lender, life) = (self.truth[*name].lender, self.truth[*name].life);
            let lives = self.lenders[lender].life.as_ref().is_some_and(|it| it.number == life);
            let revoked = self.revoked.contains(&Who::Lender(lender));
            let key = self.lenders[lender].identity.public();
            let receipt = info.receipt.as_ref().map(|signed| signed.open(&key));
            let quarantined = self.truth[*name].quarantined;
            let complaint = match (info.state, receipt) {
                (Active, _) => Some("is still active for the auth daemon"),
                (Lost, _) if lives && !revoked => Some("is lost, though its lender lives"),
                (Lost, _) => None,
                (_, Some(Err(_))) => Some("has a receipt that its lender did not sign"),
                (_, None) => Some("has ended without a receipt"),
                (Ended, Some(Ok(receipt))) if !receipt.is_complete() => Some("is over with half a receipt"),
                (Ended, _) if quarantined => Some("has a receipt though its memory is quarantined"),
                (Ending, Some(Ok(receipt))) if receipt.is_complete() => Some("is ending with a whole receipt"),
                (Ending, _) if !quarantined => Some("never ends"),
                _ => None,
            };
            if let Some(complaint) = complaint {
                return self.wrong(format!("L{name} {complaint}: {:?}, {:?}", info.state, info.reason));
            }
        }
        for number in 0..self.lenders.len() {
            if let Err(complaint) =
                self.lenders[number].at_rest(&self.truth, self.revoked.contains(&Who::Lender(number)))
            {
                return self.wrong(format!("P{number}: {complaint}"));
            }
        }
    }
}
