//! The system as data: what each party knows, what is under way, and every step that any of them can take.

use stateright::{Model, Property};

use crate::lease::{MOVES, Name};

/// Leases that there can ever be.
pub(super) const LEASES: usize = 3;
/// The last tick, and how many a lease has.
const END: u8 = 4;
const TTL: u8 = 2;

type Set = u8;

fn has(set: Set, at: usize) -> bool {
    set & (1 << at) != 0
}

/// What defends each property. In the real system all of them do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Guards {
    /// A provider ends leases by its own clock.
    pub(super) expires_alone: bool,
    /// Queue pairs are gone and the region is deregistered before a lease is called fenced.
    pub(super) fences: bool,
    /// Memory is overwritten before it goes back.
    pub(super) wipes: bool,
    /// Memory whose region is left goes into quarantine.
    pub(super) quarantines: bool,
    /// The same request is the same lease.
    pub(super) remembers_requests: bool,
    /// Each life of a consumer's process seals under a salt of its own.
    pub(super) fresh_salt: bool,
    /// What a provider holds and the auth daemon does not know is fenced.
    pub(super) fences_unknown: bool,
    /// What the auth daemon believes in and a provider does not hold is given up.
    pub(super) gives_up: bool,
}

impl Guards {
    pub(super) const ALL: Self = Self {
        expires_alone: true,
        fences: true,
        wipes: true,
        quarantines: true,
        remembers_requests: true,
        fresh_salt: true,
        fences_unknown: true,
        gives_up: true,
    };

    /// Each guard taken away, and the property that it holds up.
    pub(super) fn each_missing() -> [(Self, &'static str); 8] {
        let all = Self::ALL;
        [
            (Self { expires_alone: false, ..all }, IN_TIME),
            (Self { fences: false, ..all }, OUT_OF_REACH),
            (Self { wipes: false, ..all }, OUT_OF_REACH),
            (Self { quarantines: false, ..all }, ONCE),
            (Self { remembers_requests: false, ..all }, ONCE),
            (Self { fresh_salt: false, ..all }, NONCE),
            (Self { fences_unknown: false, ..all }, AGREE),
            (Self { gives_up: false, ..all }, AGREE),
        ]
    }

    pub(super) fn missing(&self) -> &'static str {
        match self {
            Self { expires_alone: false, .. } => "expiry by the provider's own clock",
            Self { fences: false, .. } => "deregistration",
            Self { wipes: false, .. } => "the wipe",
            Self { quarantines: false, .. } => "quarantine",
            Self { remembers_requests: false, .. } => "the nonce of a request",
            Self { fresh_salt: false, .. } => "a fresh salt",
            Self { fences_unknown: false, .. } => "fencing of unknown leases",
            Self { gives_up: false, .. } => "giving up of missing leases",
            _ => "nothing",
        }
    }
}

pub(super) const IN_TIME: &str = "fencing starts in time";
pub(super) const OUT_OF_REACH: &str = "no byte is readable or writable after a fence";
pub(super) const NONCE: &str = "no nonce is used twice";
pub(super) const ONCE: &str = "nothing is allocated twice";
pub(super) const AGREE: &str = "at rest both sides believe in the same leases";
pub(super) const PROPERTIES: [&str; 5] = [IN_TIME, OUT_OF_REACH, NONCE, ONCE, AGREE];
const ENDS_CLEAN: &str = "a lease ends and its memory is lent again";
const QUARANTINE: &str = "memory is withheld";
const LATE: &str = "a WRITE comes too late and changes nothing";
/// What must be found where nothing is broken.
pub(super) const CAN_HAPPEN: [&str; 3] = [LATE, ENDS_CLEAN, QUARANTINE];

/// What the auth daemon has written down of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stage {
    Making,
    Active,
    Ending,
    Abandoned,
    /// Ended, lost or forgotten.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    consumer: usize,
    provider: usize,
    boot: u8,
    stage: Stage,
    deadline: u8,
    fenced: bool,
}

/// What is kept over a crash, and, below, what is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Authd {
    rows: Vec<Row>,
    making: Set,
    unknown: [Set; 2],
}

/// A provider's session with the auth daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Session {
    Down,
    /// The offer is on its way: what it says was true when it was sent.
    Offering {
        held: [Option<u8>; LEASES],
        tick: u8,
    },
    Up,
}

/// A lease as its provider has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) phase: Name,
    pub(super) ending: bool,
    pub(super) deadline: u8,
    /// Whose queue pair is connected, and whose is being.
    pub(super) bound: Option<usize>,
    binding: Option<usize>,
    pub(super) fenced: bool,
    complete: bool,
    /// An order to fence waits for it.
    asked: bool,
}

impl Lease {
    fn enter(&mut self, phase: Name) {
        assert!(MOVES.contains(&(self.phase, phase)), "{:?} -> {phase:?}", self.phase);
        self.phase = phase;
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Provider {
    pub(super) boot: u8,
    session: Session,
    pub(super) leases: [Option<Lease>; LEASES],
    /// Its one page: may be lent; regions that cover it; whose bytes are in it.
    pub(super) free: bool,
    pub(super) withheld: bool,
    pub(super) regions: Set,
    content: Option<usize>,
}

impl Provider {
    fn new(boot: u8) -> Self {
        Self {
            boot,
            session: Session::Down,
            leases: [None; LEASES],
            free: true,
            withheld: false,
            regions: 0,
            content: None,
        }
    }

    /// The clock does its part.
    fn tick(&mut self, now: u8, guards: &Guards) {
        if guards.expires_alone {
            for lease in self.leases.iter_mut().flatten().filter(|lease| lease.deadline <= now) {
                end(lease);
            }
        }
    }

    fn is_due(&self, now: u8) -> bool {
        self.leases.iter().flatten().any(|lease| !lease.ending && lease.deadline <= now)
    }

    fn held(&self) -> [Option<u8>; LEASES] {
        self.leases.map(|lease| lease.filter(|lease| lease.phase != Name::Over).map(|lease| lease.deadline))
    }
}

/// The end of a lease begins, if it has not.
fn end(lease: &mut Lease) {
    lease.ending = true;
    if lease.phase == Name::Open {
        lease.enter(Name::Busy);
        lease.enter(Name::Fencing);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Consumer {
    life: u8,
    /// WRITEs sealed in this life.
    sealed: u8,
    /// Salt and counter of every WRITE ever sealed.
    used: u16,
    lease: Option<usize>,
    /// Provider, its boot, lease.
    attached: Option<(usize, u8, usize)>,
    requests: u8,
    attaches: u8,
    extras: u8,
}

/// What is under way. Orders and answers belong to a provider's session and are gone with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Packet {
    Carve {
        to: usize,
        lease: usize,
        deadline: u8,
    },
    Bind {
        to: usize,
        lease: usize,
        consumer: usize,
    },
    Extend {
        to: usize,
        lease: usize,
        deadline: u8,
    },
    Fence {
        to: usize,
        lease: usize,
    },
    Carved {
        from: usize,
        lease: usize,
        good: bool,
    },
    Bound {
        from: usize,
        lease: usize,
        consumer: usize,
    },
    Extended {
        from: usize,
        lease: usize,
        deadline: u8,
    },
    Fenced {
        from: usize,
        lease: usize,
        known: bool,
    },
    Receipt {
        from: usize,
        lease: usize,
        complete: bool,
    },
    Acknowledged {
        to: usize,
        lease: usize,
    },
    /// A consumer's RDMA WRITE, and READ of what was there before. Sessions have nothing to do with it.
    Write {
        to: usize,
        boot: u8,
        lease: usize,
        consumer: usize,
    },
}

impl Packet {
    /// The provider whose session it belongs to.
    fn session(&self) -> Option<usize> {
        match *self {
            Self::Carve { to, .. }
            | Self::Bind { to, .. }
            | Self::Extend { to, .. }
            | Self::Fence { to, .. }
            | Self::Acknowledged { to, .. } => Some(to),
            Self::Carved { from, .. }
            | Self::Bound { from, .. }
            | Self::Extended { from, .. }
            | Self::Fenced { from, .. }
            | Self::Receipt { from, .. } => Some(from),
            Self::Write { .. } => None,
        }
    }
}

/// What must never be, and what should be seen some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct History {
    late: bool,
    reached: bool,
    nonce: bool,
    lent_again: bool,
    came_too_late: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) now: u8,
    authd: Authd,
    pub(super) providers: [Provider; 2],
    consumers: [Consumer; 2],
    pub(super) net: Vec<Packet>,
    crashes: u8,
    deaths: u8,
    breaks: u8,
    /// Deregistrations that may fail.
    faults: u8,
    history: History,
}

/// Every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Advance,
    /// A provider's clock wakes it up.
    Tick(usize),
    Deliver(Packet),
    Lose(Packet),
    /// A provider's thread does the next job of a lease; the other: its device fails at it.
    Job(usize, usize),
    JobFails(usize, usize),
    SendReceipt(usize, usize),
    Connect(usize),
    HearOffer(usize),
    DueOrder(usize, usize),
    Create(usize, usize),
    Attach(usize),
    Write(usize),
    Renew(usize),
    Release(usize),
    CrashAuthd,
    CrashProvider(usize),
    CrashConsumer(usize),
    Break(usize),
}

/// How much happens at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Providers that connect.
    providers: usize,
    /// Who want something.
    consumers: usize,
    /// Of daemons, and of consumers.
    crashes: u8,
    deaths: u8,
    breaks: u8,
    faults: u8,
    /// Of each consumer: requests, attaches, renewals and releases, WRITEs of a life.
    requests: u8,
    attaches: u8,
    extras: u8,
    writes: u8,
}

impl Budget {
    /// As much as can be looked at.
    pub(super) const LARGE: Self = Self {
        providers: 2,
        consumers: 2,
        crashes: 2,
        deaths: 1,
        breaks: 1,
        faults: 1,
        requests: 2,
        attaches: 2,
        extras: 1,
        writes: 2,
    };
    /// Two worlds that are small enough for every state that there is. One provider after whom both consumers want, and
    /// nothing fails.
    pub(super) const QUIET: Self = Self {
        providers: 1,
        crashes: 0,
        deaths: 0,
        breaks: 0,
        faults: 0,
        requests: 1,
        attaches: 1,
        extras: 0,
        writes: 1,
        ..Self::LARGE
    };
    /// One consumer, and everybody may die once.
    pub(super) const LONE: Self =
        Self { consumers: 1, crashes: 1, deaths: 1, faults: 0, attaches: 2, requests: 2, ..Self::QUIET };
}

/// The model.
#[derive(Debug, Clone)]
pub(super) struct System {
    guards: Guards,
    budget: Budget,
}

impl System {
    pub(super) fn new(guards: Guards, budget: Budget) -> Self {
        Self { guards, budget }
    }

    pub(super) fn start(&self) -> State {
        let Budget { requests, attaches, extras, crashes, deaths, breaks, faults, .. } = self.budget;
        let (lease, attached) = (None, None);
        let consumer = Consumer { life: 0, sealed: 0, used: 0, lease, attached, requests, attaches, extras };
        State {
            now: 0,
            authd: Authd::default(),
            providers: [Provider { session: Session::Up, ..Provider::new(0) }, Provider::new(0)],
            consumers: [consumer.clone(), consumer],
            net: Vec::new(),
            crashes,
            deaths,
            breaks,
            faults,
            history: History::default(),
        }
    }
}

impl State {
    fn send(&mut self, packet: Packet) {
        if let Err(at) = self.net.binary_search(&packet) {
            self.net.insert(at, packet);
        }
    }

    fn take(&mut self, packet: Packet) {
        self.net.retain(|other| *other != packet);
    }

    fn is_up(&self, provider: usize) -> bool {
        self.providers[provider].session == Session::Up
    }

    /// A session ends: what was under way on it is gone, and the auth daemon sees that its orders are.
    fn cut(&mut self, provider: usize) {
        self.providers[provider].session = Session::Down;
        self.net.retain(|packet| packet.session() != Some(provider));
        self.authd.unknown[provider] = 0;
        self.providers[provider].leases.iter_mut().flatten().for_each(|lease| lease.asked = false);
        for (at, row) in self.authd.rows.iter_mut().enumerate().filter(|(_, row)| row.provider == provider) {
            if has(self.authd.making, at) {
                self.authd.making &= !(1 << at);
                row.stage = if row.stage == Stage::Making { Stage::Abandoned } else { row.stage };
            }
        }
    }

    /// What the auth daemon orders of its own accord.
    fn due(&self, provider: usize, lease: usize) -> bool {
        let unknown = has(self.authd.unknown[provider], lease);
        let row = self.authd.rows.get(lease);
        let row = row.filter(|row| row.provider == provider && row.boot == self.providers[provider].boot);
        let ends = row.is_some_and(|row| match row.stage {
            Stage::Making => !has(self.authd.making, lease),
            Stage::Abandoned => true,
            Stage::Ending => !row.fenced,
            Stage::Active => row.deadline + 1 < self.now,
            Stage::Closed => false,
        });
        let under_way = |packet: &Packet| matches!(packet, Packet::Fence { to: p, lease: l } | Packet::Fenced { from: p, lease: l, .. } if (*p, *l) == (provider, lease));
        let waited_for = self.providers[provider].leases[lease].is_some_and(|lease| lease.asked);
        self.is_up(provider) && (unknown || ends) && !waited_for && !self.net.iter().any(under_way)
    }

    /// Nothing is under way or due.
    fn is_at_rest(&self) -> bool {
        let still = |phase| matches!(phase, Name::Open | Name::Over);
        self.net.iter().all(|packet| packet.session().is_none())
            && self.authd.making == 0
            && (0..2).all(|p| {
                let provider = &self.providers[p];
                let never_asked = self.authd.rows.iter().all(|row| row.provider != p);
                (self.is_up(p) || never_asked)
                    && !provider.is_due(self.now)
                    && provider.leases.iter().flatten().all(|lease| still(lease.phase))
                    && (0..LEASES).all(|lease| !self.due(p, lease) && !self.has_receipt(p, lease))
            })
    }

    fn has_receipt(&self, provider: usize, lease: usize) -> bool {
        self.providers[provider].leases[lease].is_some_and(|lease| lease.phase == Name::Over)
    }

    fn agree(&self) -> bool {
        (0..2).all(|p| {
            let provider = &self.providers[p];
            (0..LEASES).all(|at| {
                let held = provider.leases[at].is_some_and(|lease| lease.phase != Name::Over);
                let believed = self.authd.rows.get(at).is_some_and(|row| {
                    row.provider == p && matches!(row.stage, Stage::Making | Stage::Active | Stage::Abandoned)
                });
                held == believed
            })
        })
    }

    /// No page under two leases, no two leases for one request.
    fn once(&self) -> bool {
        let pages = self.providers.iter().all(|provider| {
            let lent = provider.leases.iter().flatten().filter(|lease| lease.phase != Name::Over).count();
            lent + usize::from(provider.free) + usize::from(provider.withheld) == 1
                && provider.regions.count_ones() <= 1
                && (provider.regions == 0 || !provider.free)
        });
        let live = |consumer| {
            let rows = self.authd.rows.iter().filter(|row| row.consumer == consumer);
            rows.filter(|row| matches!(row.stage, Stage::Making | Stage::Active)).count()
        };
        pages && live(0) <= 1 && live(1) <= 1
    }
}

impl Model for System {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, acts: &mut Vec<Act>) {
        // A fence that is due begins before time goes on: that is the bound of 100 ms.
        let due = |provider: &Provider| self.guards.expires_alone && provider.is_due(state.now);
        if state.now < END && !state.providers.iter().any(due) {
            acts.push(Act::Advance);
        }
        for packet in &state.net {
            acts.push(Act::Deliver(*packet));
            if packet.session().is_none() {
                acts.push(Act::Lose(*packet));
            }
        }
        for (p, provider) in state.providers.iter().enumerate() {
            if due(provider) {
                acts.push(Act::Tick(p));
            }
            match provider.session {
                Session::Down if p < self.budget.providers => acts.push(Act::Connect(p)),
                Session::Offering { .. } => acts.push(Act::HearOffer(p)),
                Session::Down | Session::Up => {}
            }
            if provider.session != Session::Down && state.breaks > 0 {
                acts.push(Act::Break(p));
            }
            for (l, lease) in provider.leases.iter().enumerate() {
                acts.extend(state.due(p, l).then_some(Act::DueOrder(p, l)));
                let Some(lease) = lease else { continue };
                match lease.phase {
                    Name::Opening | Name::Busy | Name::Fencing | Name::Wiping => acts.push(Act::Job(p, l)),
                    Name::Over if state.is_up(p) => acts.push(Act::SendReceipt(p, l)),
                    Name::Over | Name::Open => {}
                }
                if lease.phase == Name::Fencing && state.faults > 0 {
                    acts.push(Act::JobFails(p, l));
                }
            }
            if state.crashes > 0 && provider.boot < 2 {
                acts.push(Act::CrashProvider(p));
            }
        }
        if state.crashes > 0 {
            acts.push(Act::CrashAuthd);
        }
        for (c, consumer) in state.consumers.iter().enumerate().take(self.budget.consumers) {
            if consumer.requests > 0 && state.authd.rows.len() < LEASES {
                acts.extend((0..2).filter(|p| state.is_up(*p)).map(|p| Act::Create(c, p)));
            }
            if consumer.lease.is_some() {
                if consumer.attaches > 0 {
                    acts.push(Act::Attach(c));
                }
                if consumer.extras > 0 {
                    acts.extend([Act::Renew(c), Act::Release(c)]);
                }
            }
            if consumer.attached.is_some() && consumer.sealed < self.budget.writes {
                acts.push(Act::Write(c));
            }
            if state.deaths > 0 && consumer.life < 2 {
                acts.push(Act::CrashConsumer(c));
            }
        }
    }

    fn next_state(&self, last: &State, act: Act) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, act)?;
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(IN_TIME, |_, state: &State| !state.history.late),
            Property::always(OUT_OF_REACH, |_, state: &State| !state.history.reached),
            Property::always(NONCE, |_, state: &State| !state.history.nonce),
            Property::always(ONCE, |_, state: &State| state.once()),
            Property::always(AGREE, |_, state: &State| !state.is_at_rest() || state.agree()),
            Property::sometimes(ENDS_CLEAN, |_, state: &State| state.history.lent_again),
            Property::sometimes(QUARANTINE, |_, state: &State| {
                state.providers.iter().any(|provider| provider.withheld)
            }),
            Property::sometimes(LATE, |_, state: &State| state.history.came_too_late),
        ]
    }
}

impl System {
    /// One step; None where it changes nothing.
    fn step(&self, state: &mut State, act: Act) -> Option<()> {
        match act {
            Act::Advance => {
                state.now += 1;
                let overdue = |lease: &Lease| !lease.ending && lease.deadline < state.now;
                state.history.late |= state.providers.iter().flat_map(|p| p.leases.iter().flatten()).any(overdue);
            }
            Act::Tick(p) => state.providers[p].tick(state.now, &self.guards),
            Act::Deliver(packet) => {
                state.take(packet);
                self.deliver(state, packet)?;
            }
            Act::Lose(packet) => state.take(packet),
            Act::Job(p, l) => self.job(state, p, l, true),
            Act::JobFails(p, l) => {
                state.faults -= 1;
                self.job(state, p, l, false);
            }
            Act::SendReceipt(p, l) => {
                let lease = state.providers[p].leases[l].filter(|lease| lease.phase == Name::Over)?;
                state.send(Packet::Receipt { from: p, lease: l, complete: lease.complete });
            }
            Act::Connect(p) => {
                let (now, provider) = (state.now, &mut state.providers[p]);
                provider.tick(now, &self.guards);
                provider.session = Session::Offering { held: provider.held(), tick: now };
            }
            Act::HearOffer(p) => self.hear_offer(state, p),
            Act::DueOrder(p, l) => {
                if let Some(row) = state.authd.rows.get_mut(l).filter(|row| row.provider == p) {
                    row.stage = match row.stage {
                        Stage::Making => Stage::Abandoned,
                        Stage::Active => Stage::Ending,
                        other => other,
                    };
                }
                state.send(Packet::Fence { to: p, lease: l });
            }
            Act::Create(c, p) => self.create(state, c, p),
            Act::Attach(c) => {
                let lease = state.consumers[c].lease?;
                let row = state.authd.rows[lease];
                let good = row.stage == Stage::Active && row.deadline > state.now && state.is_up(row.provider);
                if !good || row.boot != state.providers[row.provider].boot {
                    return None;
                }
                state.consumers[c].attaches -= 1;
                state.send(Packet::Bind { to: row.provider, lease, consumer: c });
            }
            Act::Write(c) => {
                let consumer = &mut state.consumers[c];
                let (to, boot, lease) = consumer.attached?;
                let salt = if self.guards.fresh_salt { consumer.life } else { 0 };
                let nonce = 1 << (salt * 2 + consumer.sealed);
                consumer.sealed += 1;
                state.history.nonce |= consumer.used & nonce != 0;
                consumer.used |= nonce;
                state.send(Packet::Write { to, boot, lease, consumer: c });
            }
            Act::Renew(c) | Act::Release(c) => {
                let lease = state.consumers[c].lease?;
                let row = state.authd.rows[lease];
                if row.stage != Stage::Active || row.deadline <= state.now || !state.is_up(row.provider) {
                    return None;
                }
                state.consumers[c].extras -= 1;
                if matches!(act, Act::Release(_)) {
                    state.authd.rows[lease].stage = Stage::Ending;
                    state.send(Packet::Fence { to: row.provider, lease });
                } else {
                    state.send(Packet::Extend { to: row.provider, lease, deadline: state.now + TTL });
                }
            }
            Act::CrashAuthd => {
                state.crashes -= 1;
                // Nobody is left who makes what was being made.
                state.authd.making = 0;
                (0..2).for_each(|p| state.cut(p));
            }
            Act::CrashProvider(p) => {
                state.crashes -= 1;
                state.cut(p);
                state.providers[p] = Provider::new(state.providers[p].boot + 1);
            }
            Act::CrashConsumer(c) => {
                state.deaths -= 1;
                let consumer = &mut state.consumers[c];
                (consumer.life, consumer.sealed, consumer.attached) = (consumer.life + 1, 0, None);
            }
            Act::Break(p) => {
                state.breaks -= 1;
                state.cut(p);
            }
        }
        Some(())
    }

    fn create(&self, state: &mut State, consumer: usize, provider: usize) {
        state.consumers[consumer].requests -= 1;
        let same = state.authd.rows.iter().position(|row| {
            // A request that was given up is forgotten.
            row.consumer == consumer && row.stage != Stage::Abandoned
        });
        if let Some(at) = same.filter(|_| self.guards.remembers_requests) {
            let being_made = has(state.authd.making, at);
            let row = &mut state.authd.rows[at];
            match row.stage {
                Stage::Making if being_made => return,
                Stage::Making => row.stage = Stage::Abandoned,
                Stage::Active => return state.consumers[consumer].lease = Some(at),
                _ => return,
            }
        }
        let lease = state.authd.rows.len();
        let (deadline, boot) = (state.now + TTL, state.providers[provider].boot);
        state.authd.rows.push(Row { consumer, provider, boot, stage: Stage::Making, deadline, fenced: false });
        state.authd.making |= 1 << lease;
        state.send(Packet::Carve { to: provider, lease, deadline });
    }

    fn hear_offer(&self, state: &mut State, p: usize) {
        let Session::Offering { held, tick } = state.providers[p].session else { return };
        state.providers[p].session = Session::Up;
        let boot = state.providers[p].boot;
        let open = |row: &Row| row.provider == p && row.stage != Stage::Closed;
        for (at, held) in held.iter().enumerate() {
            let known = state.authd.rows.get(at).is_some_and(open);
            if held.is_some() && !known && self.guards.fences_unknown {
                state.authd.unknown[p] |= 1 << at;
            }
        }
        if !self.guards.gives_up {
            return;
        }
        for (at, row) in state.authd.rows.iter_mut().enumerate().filter(|(_, row)| open(row)) {
            let same_life = row.boot == boot;
            if held[at].is_some() && same_life
                || (row.stage == Stage::Making && same_life && has(state.authd.making, at))
            {
                continue;
            }
            match row.stage {
                Stage::Active if same_life && row.deadline <= tick => (row.stage, row.fenced) = (Stage::Ending, true),
                Stage::Ending if same_life => row.fenced = true,
                _ => row.stage = Stage::Closed,
            }
        }
    }

    /// A job of a provider's lease is done; `good`: its device did as it was told.
    fn job(&self, state: &mut State, p: usize, l: usize, good: bool) {
        let guards = &self.guards;
        let (now, provider) = (state.now, &mut state.providers[p]);
        // The job went by what was so when it began; the clock is looked at before its result is.
        let was_ending = provider.leases[l].is_some_and(|lease| lease.ending);
        provider.tick(now, guards);
        let Some(mut lease) = provider.leases[l] else { return };
        let mut answer = None;
        match lease.phase {
            Name::Opening => {
                provider.regions |= 1 << l;
                lease.enter(Name::Open);
                answer = Some(Packet::Carved { from: p, lease: l, good: !lease.ending });
                if lease.ending {
                    end(&mut lease);
                }
            }
            Name::Busy => {
                lease.enter(Name::Open);
                let consumer = lease.binding.take();
                // What its holder had before is destroyed first.
                lease.bound = consumer.filter(|_| !was_ending);
                if lease.ending {
                    end(&mut lease);
                } else if let Some(consumer) = consumer {
                    answer = Some(Packet::Bound { from: p, lease: l, consumer });
                }
            }
            Name::Fencing => {
                if guards.fences {
                    lease.bound = None;
                }
                if good {
                    if guards.fences {
                        provider.regions &= !(1 << l);
                    }
                    lease.fenced = true;
                    lease.enter(Name::Wiping);
                } else {
                    provider.withheld = guards.quarantines;
                    provider.free = !guards.quarantines;
                    lease.enter(Name::Over);
                }
                let asked = std::mem::take(&mut lease.asked);
                answer = (asked && good).then_some(Packet::Fenced { from: p, lease: l, known: true });
            }
            Name::Wiping => {
                if guards.wipes {
                    provider.content = None;
                }
                provider.free = true;
                lease.complete = true;
                lease.enter(Name::Over);
            }
            Name::Open | Name::Over => return,
        }
        provider.leases[l] = Some(lease);
        // Where the session is down there is nobody to answer.
        if let Some(answer) = answer.filter(|_| state.is_up(p)) {
            state.send(answer);
        }
    }

    fn deliver(&self, state: &mut State, packet: Packet) -> Option<()> {
        match packet {
            Packet::Carve { to, lease, deadline } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                if !provider.free || deadline <= now || provider.leases[lease].is_some() {
                    state.send(Packet::Carved { from: to, lease, good: false });
                    return Some(());
                }
                state.history.lent_again |= provider.leases.iter().flatten().any(|other| other.complete);
                provider.free = false;
                provider.leases[lease] = Some(Lease {
                    phase: Name::Opening,
                    ending: false,
                    deadline,
                    bound: None,
                    binding: None,
                    fenced: false,
                    complete: false,
                    asked: false,
                });
            }
            Packet::Bind { to, lease, consumer } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                // Refused, which needs no answer here.
                let Some(lease) = provider.leases[lease].as_mut().filter(|lease| !lease.ending) else {
                    return Some(());
                };
                match lease.phase {
                    Name::Open => {
                        lease.binding = Some(consumer);
                        lease.enter(Name::Busy);
                    }
                    // It waits.
                    _ => return None,
                }
            }
            Packet::Extend { to, lease, deadline } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                // Refused, which needs no answer here.
                let Some(held) = provider.leases[lease].as_mut().filter(|lease| !lease.ending) else { return Some(()) };
                held.deadline = held.deadline.max(deadline);
                state.send(Packet::Extended { from: to, lease, deadline });
            }
            Packet::Fence { to, lease } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                match &mut provider.leases[lease] {
                    None => state.send(Packet::Fenced { from: to, lease, known: false }),
                    Some(held) => {
                        end(held);
                        match (held.fenced, held.phase) {
                            (true, _) => state.send(Packet::Fenced { from: to, lease, known: true }),
                            // Refused: it could not be.
                            (false, Name::Over) => {}
                            (false, _) => held.asked = true,
                        }
                    }
                }
            }
            Packet::Carved { lease, good, .. } => {
                state.authd.making &= !(1 << lease);
                let row = &mut state.authd.rows[lease];
                if row.stage == Stage::Making {
                    row.stage = if good { Stage::Active } else { Stage::Abandoned };
                    if good {
                        state.consumers[row.consumer].lease = Some(lease);
                    }
                }
            }
            Packet::Bound { from, lease, consumer } => {
                let boot = state.providers[from].boot;
                state.consumers[consumer].attached = Some((from, boot, lease));
            }
            Packet::Extended { lease, deadline, .. } => {
                let row = &mut state.authd.rows[lease];
                if row.stage == Stage::Active {
                    row.deadline = row.deadline.max(deadline);
                }
            }
            Packet::Fenced { from, lease, known } => {
                state.authd.unknown[from] &= !(1 << lease);
                if let Some(row) = state.authd.rows.get_mut(lease).filter(|row| row.provider == from) {
                    match row.stage {
                        Stage::Abandoned => row.stage = Stage::Closed,
                        Stage::Ending if known => row.fenced = true,
                        Stage::Ending => row.stage = Stage::Closed,
                        _ => {}
                    }
                }
            }
            Packet::Receipt { from, lease, complete } => {
                if let Some(row) = state.authd.rows.get_mut(lease).filter(|row| row.provider == from) {
                    row.fenced = true;
                    let abandoned = matches!(row.stage, Stage::Making | Stage::Abandoned);
                    row.stage = if complete || abandoned { Stage::Closed } else { Stage::Ending };
                }
                state.send(Packet::Acknowledged { to: from, lease });
            }
            Packet::Acknowledged { to, lease } => state.providers[to].leases[lease] = None,
            Packet::Write { to, boot, lease, consumer } => {
                let provider = &mut state.providers[to];
                let held = provider.leases[lease].filter(|_| provider.boot == boot);
                let reached = held.filter(|held| held.bound == Some(consumer) && has(provider.regions, lease));
                match reached {
                    // READ first: what it finds there is nobody's, or its own.
                    Some(held) => {
                        state.history.reached |= held.fenced || provider.content.is_some_and(|other| other != consumer);
                        provider.content = Some(consumer);
                    }
                    None => state.history.came_too_late |= held.is_none_or(|held| held.ending),
                }
            }
        }
        Some(())
    }
}
