//! The decisions for a test that simulates all parties in one process: what [`crate::core`] takes and gives, with time and
//! crashes in the test's hand. Not part of the program.

use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::message::{Call, Invitation, Refusal, Reply};

use crate::Limits;
use crate::clock::Now;
use crate::core::{self, Asker, Core, Fault, SessionId, Then};
use crate::store::Store;

/// One moment of the simulated time.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since the simulation's beginning; never runs backwards.
    pub monotonic: Duration,
    /// The wall clock, which may be set.
    pub unix_ms: u64,
}

/// What outlives a crash: the store, and who the daemon is.
pub struct Disk {
    store: Store,
    identity: Arc<Identity>,
    beginning: Instant,
}

impl Disk {
    /// A new state, and the first operator's invitation.
    ///
    /// # Errors
    /// What the store says.
    pub fn init(identity: Identity, expires_unix_ms: u64) -> Result<(Self, Invitation), Refusal> {
        let key = identity.public();
        let mut store = Store::in_memory(&key);
        let invitation = crate::trust::first_invitation(&mut store, key.fingerprint(), expires_unix_ms);
        let disk = Self { store, identity: Arc::new(identity), beginning: Instant::now() };
        Ok((disk, invitation.map_err(|error| refusal(error.into()))?))
    }
}

/// A running daemon without sockets, threads and clocks.
pub struct Authd {
    core: Core,
    beginning: Instant,
}

/// An order to a provider.
#[derive(Debug)]
pub struct Order {
    /// Over which session.
    pub session: u64,
    /// Carve, Bind, Extend or Fence.
    pub call: Call,
    /// Goes back into [`Authd::answered`].
    pub then: Purpose,
}

/// What an order was for.
#[derive(Debug)]
pub struct Purpose(Then);

/// What comes next for a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and it lives shortly")]
pub enum Next {
    /// It is answered.
    Answer(Reply),
    /// A provider must do something first.
    Order(Box<Order>),
    /// Ask again after the next [`Effect::Changed`].
    Wait,
}

/// Why an order has no reply.
#[derive(Debug, Clone)]
pub enum NoReply {
    /// The provider refused.
    Refused(Refusal),
    /// The session ended first.
    Gone,
    /// The provider did not answer in time.
    Late,
}

/// What must happen outside.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Close every session of this identity.
    Close(PublicKey),
    /// Close this session.
    CloseSession(u64),
    /// [`Authd::due_orders`] has something for this session.
    Orders(u64),
    /// Last orders to a provider that was revoked; then its sessions close.
    Farewell(PublicKey, u64, Vec<Call>),
    /// Who was told to wait asks again.
    Changed,
}

fn refusal(fault: Fault) -> Refusal {
    crate::desk::refusal(fault)
}

fn next(next: Result<core::Next, Fault>) -> Result<Next, Refusal> {
    Ok(match next.map_err(refusal)? {
        core::Next::Answer(reply) => Next::Answer(reply),
        core::Next::Order(order) => Next::Order(Box::new(Order::from(*order))),
        core::Next::Wait => Next::Wait,
    })
}

impl From<core::Order> for Order {
    fn from(order: core::Order) -> Self {
        Self { session: order.session.0, call: order.call, then: Purpose(order.then) }
    }
}

impl Authd {
    /// Takes up where the disk left off.
    #[must_use]
    pub fn start(disk: Disk, limits: Limits, moment: Moment) -> Self {
        let now = Now { instant: disk.beginning + moment.monotonic, unix_ms: moment.unix_ms };
        Self { core: Core::new(disk.store, disk.identity, limits, now), beginning: disk.beginning }
    }

    /// All that was not written down is gone.
    #[must_use]
    pub fn crash(self) -> Disk {
        Disk { store: self.core.store, identity: self.core.identity, beginning: self.beginning }
    }

    fn now(&self, moment: Moment) -> Now {
        Now { instant: self.beginning + moment.monotonic, unix_ms: moment.unix_ms }
    }

    /// A session has begun.
    ///
    /// # Errors
    /// What the store says.
    pub fn admit(&mut self, key: &PublicKey, from: &str, moment: Moment) -> Result<(), Refusal> {
        let now = self.now(moment);
        self.core.admit(key, from, now).map(drop).map_err(|error| refusal(error.into()))
    }

    /// A session is over.
    pub fn session_closed(&mut self, session: u64) {
        self.core.session_closed(SessionId(session));
    }

    /// Decides on one request.
    ///
    /// # Errors
    /// What the asker is told.
    pub fn request(
        &mut self,
        key: PublicKey,
        party: Party,
        session: u64,
        call: Call,
        moment: Moment,
    ) -> Result<Next, Refusal> {
        let now = self.now(moment);
        let asker = Asker { key, party, session: SessionId(session), from: None, correlation: None };
        next(self.core.request(&asker, call, now))
    }

    /// Goes on with what an order was for.
    ///
    /// # Errors
    /// What the asker is told.
    pub fn answered(
        &mut self,
        then: Purpose,
        outcome: Result<Reply, NoReply>,
        moment: Moment,
    ) -> Result<Next, Refusal> {
        let now = self.now(moment);
        let outcome = outcome.map_err(|none| match none {
            NoReply::Refused(refusal) => core::OrderError::Refused(refusal),
            NoReply::Gone => core::OrderError::Gone,
            NoReply::Late => core::OrderError::Late,
        });
        next(self.core.answered(then.0, outcome, now))
    }

    /// What a provider must be told of the daemon's own accord.
    ///
    /// # Errors
    /// What the store says.
    pub fn due_orders(&mut self, session: u64, moment: Moment) -> Result<Vec<Order>, Refusal> {
        let now = self.now(moment);
        let due = self.core.due_orders(SessionId(session), now).map_err(refusal)?;
        Ok(due.into_iter().map(Order::from).collect())
    }

    /// What must happen outside since the last time.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let effects = self.core.take_effects().into_iter();
        effects
            .filter_map(|effect| match effect {
                // Matters of sockets and of the process.
                core::Effect::Standing(_) | core::Effect::Shutdown => None,
                core::Effect::Close(key) => Some(Effect::Close(key)),
                core::Effect::CloseSession(session) => Some(Effect::CloseSession(session.0)),
                core::Effect::Orders(session) => Some(Effect::Orders(session.0)),
                core::Effect::Farewell(key, session, calls) => Some(Effect::Farewell(key, session.0, calls)),
                core::Effect::Changed => Some(Effect::Changed),
            })
            .collect()
    }
}
