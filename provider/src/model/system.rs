//! The system as data: what each party knows, what is under way, and every step that any of them can take.

use stateright::{Model, Property};

use crate::lease::{MOVES, Name};

/// Leases that there can ever be.
pub(super) const LEASES: usize = 3;
/// The last tick, and how many a lease has.
const END: u8 = 4;
const TTL: u8 = 2;

#[path = "steps.rs"]
mod steps;

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
        gives_up: true,
    };

    /// Each guard taken away, and the property that it holds up.
    pub(super) fn each_missing() -> [(Self, &'static str); 7] {
        let all = Self::ALL;
        [
            (Self { expires_alone: false, ..all }, IN_TIME),
            (Self { fences: false, ..all }, OUT_OF_REACH),
            (Self { wipes: false, ..all }, OUT_OF_REACH),
            (Self { quarantines: false, ..all }, ONCE),
            (Self { remembers_requests: false, ..all }, ONCE),
            (Self { fresh_salt: false, ..all }, NONCE),
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
