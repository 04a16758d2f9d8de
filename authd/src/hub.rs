//! What the sessions share: who is connected, how an order reaches a provider, and what is waited for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use overbank_fabric::attach::MAX_REQUEST;
use overbank_fabric::channel::{CallError, Caller, ChannelError};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Call, Refusal, RefusalCode, Reply, Role};
use overbank_fabric::token::MAX_TOKEN;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::audit::notes::{self, Notes};
use crate::audit::{Cause, Entry};
use crate::clock::{Now, millis};
use crate::core::Load;
use crate::core::{Asker, Core, Effect, Next, Order, OrderError, SessionId};
use crate::desk::{Desk, Turn};
use crate::door::Host;
use crate::gate::Gate;
use crate::rates::Rates;
use crate::shares::{Lane, Shares};

/// Sessions of one identity; of a provider, which needs one, and whose requests may be long and many.
const MAX_SESSIONS_EACH: usize = 256;
const MAX_SESSIONS_PROVIDER: usize = 16;
/// Requests of operators in flight, switches not counted: what consumers ask for takes none of their places.
const OPERATORS_REQUESTS: usize = 64;
/// Orders that end nothing, open at one provider: half of what a session takes, and with at most 4 KiB each half of
/// the bytes. So there is always room for orders to fence and to detach.
const OTHER_ORDERS: usize = 512;
const _: () = assert!(MAX_REQUEST + MAX_TOKEN + 512 <= 4096, "an attach is the longest of them");
/// How long a provider has for an order that nobody waits for.
const ORDER_TIME: Duration = Duration::from_secs(5);
/// How long a revoked provider has to fence.
const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// Shared by all sessions.
pub(crate) struct Hub {
    pub(crate) desk: Desk,
    /// Counts what was refused, and bounds what of it is logged.
    pub(crate) rejections: Gate,
    /// Bounds what is logged of requests that were answered.
    pub(crate) answers: Gate,
    /// Requests in flight of all but operators.
    pub(crate) requests: Shares<Lane>,
    /// Requests in flight of operators.
    pub(crate) operators: Shares<Lane>,
    /// Sessions of consumers.
    pub(crate) sessions: Shares<Lane>,
    /// Sessions of identities that are not trusted.
    pub(crate) strangers: Shares<Host>,
    pub(crate) rates: Rates,
    /// Bounds what of it is recorded in the audit log: of strangers, and of those who are trusted.
    notes: Mutex<(Notes<()>, Notes<PublicKey>)>,
    links: Mutex<HashMap<SessionId, Link>>,
    next_session: AtomicU64,
    changed: Notify,
}

/// How a session is reached from outside of it.
struct Link {
    key: PublicKey,
    caller: Caller,
    close: watch::Sender<bool>,
    orders: Arc<Notify>,
    standing: Arc<Notify>,
    /// See [`OTHER_ORDERS`].
    others: Arc<Semaphore>,
}

/// What a session hears from outside of it.
pub(crate) struct Signals {
    /// Turns true when the session must close.
    pub(crate) close: watch::Receiver<bool>,
    /// Orders are due.
    pub(crate) orders: Arc<Notify>,
    /// What the peer is trusted as has changed.
    pub(crate) standing: Arc<Notify>,
}

impl Hub {
    pub(crate) fn new(desk: Desk, load: Load) -> Self {
        let now = std::time::Instant::now();
        Self {
            desk,
            rejections: Gate::default(),
            answers: Gate::default(),
            requests: Shares::new(load.requests),
            operators: Shares::new(OPERATORS_REQUESTS),
            sessions: Shares::new(load.sessions),
            strangers: Shares::new(load.strangers),
            rates: Rates::new(&load, now),
            notes: Mutex::new((Notes::new(notes::STRANGERS, now), Notes::new(notes::TRUSTED, now))),
            links: Mutex::default(),
            next_session: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<SessionId, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a refusal, and logs it at a bounded rate.
    pub(crate) fn rejected(&self, reason: &'static str, detail: &dyn std::fmt::Display) {
        if let Some(pass) = self.rejections.count(reason, std::time::Instant::now()) {
            tracing::warn!(reason, rejected_total = pass.total, unlogged = pass.unlogged, detail = %detail, "rejected");
        }
    }

    /// Records what was refused, to a stranger or to somebody trusted, at a bounded rate, without waiting for it.
    pub(crate) fn note(self: &Arc<Self>, trusted: Option<PublicKey>, cause: Cause, entry: Entry) {
        let now = std::time::Instant::now();
        let pass = {
            let (strangers, members) = &mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            match trusted {
                None => strangers.pass(&(), now),
                Some(key) => members.pass(&key, now),
            }
        };
        let Some(unrecorded) = pass else { return };
        let entry = entry.unrecorded(unrecorded);
        let desk = self.desk.clone();
        // Where it fails, the desk has logged why.
        tokio::spawn(async move { desk.run(move |core| core.note(cause, entry)).await });
    }

    /// Has the desk do what is due between decisions, where none comes by.
    pub(crate) fn keep_in_order(&self) {
        let desk = self.desk.clone();
        tokio::spawn(async move { desk.run(|_| Ok::<_, Refusal>(())).await });
    }

    /// A new session of this identity; the error is the reason why there is none.
    pub(crate) fn enter(
        &self,
        key: PublicKey,
        party: Party,
        caller: Caller,
    ) -> Result<(SessionId, Signals), &'static str> {
        let most = if party == Party::Provider { MAX_SESSIONS_PROVIDER } else { MAX_SESSIONS_EACH };
        let mut links = self.links();
        if links.values().filter(|link| link.key == key).count() >= most {
            return Err("sessions-of-identity");
        }
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (close, closed) = watch::channel(false);
        let orders = Arc::new(Notify::new());
        let standing = Arc::new(Notify::new());
        let others = Arc::new(Semaphore::new(OTHER_ORDERS));
        let link = Link { key, caller, close, orders: Arc::clone(&orders), standing: Arc::clone(&standing), others };
        links.insert(id, link);
        Ok((id, Signals { close: closed, orders, standing }))
    }

    /// A session is over.
    pub(crate) fn leave(&self, session: SessionId) {
        self.links().remove(&session);
    }

    fn close(&self, which: impl Fn(&SessionId, &Link) -> bool) {
        for (_, link) in self.links().iter().filter(|(id, link)| which(id, link)) {
            link.close.send_replace(true);
        }
    }

    /// Makes happen what a decision entails.
    pub(crate) fn apply(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Changed => self.changed.notify_waiters(),
            // The server's own.
            Effect::Shutdown => {}
            Effect::Close(key) => self.close(|_, link| link.key == key),
            Effect::Standing(key) => {
                for link in self.links().values().filter(|link| link.key == key) {
                    link.standing.notify_one();
                }
            }
            Effect::CloseSession(session) => self.close(|id, _| *id == session),
            Effect::Orders(session) => {
                if let Some(link) = self.links().get(&session) {
                    link.orders.notify_one();
                }
            }
            Effect::Farewell(key, session, calls) => {
                let hub = Arc::clone(self);
                tokio::spawn(async move {
                    let until = Instant::now() + FAREWELL_TIME;
                    let mut fences = JoinSet::new();
                    for call in calls {
                        let hub = Arc::clone(&hub);
                        fences.spawn(async move { hub.send(session, CorrelationId::random(), call, until).await });
                    }
                    while fences.join_next().await.is_some() {}
                    hub.close(|_, link| link.key == key);
                });
            }
        }
    }

    /// Works on a request until it is answered, ordering providers about where that takes it. The future must be driven
    /// to its end: what was begun is then settled, whatever the outcome. It ends soon after `until`.
    pub(crate) async fn work(
        self: Arc<Self>,
        asker: Asker,
        turn: Turn,
        correlation: CorrelationId,
        call: Call,
        received: Now,
        until: Instant,
    ) -> Result<Reply, Refusal> {
        let late = || Refusal::new(RefusalCode::Deadline, "not done in the time that the request gave: try again");
        let mut next = {
            let call = call.clone();
            self.desk
                .turn(turn.clone(), Some(until.into_std()), move |core| core.request(&asker, call, received))
                .await?
        };
        loop {
            next = match next {
                Next::Answer(reply) => return Ok(self.with_totals(reply)),
                Next::Order(order) => self.order(*order, Some(asker), Turn::First, correlation, until).await?,
                Next::Wait => {
                    let changed = self.changed.notified();
                    tokio::pin!(changed);
                    changed.as_mut().enable();
                    let again = call.clone();
                    let asked = move |core: &mut Core| core.request(&asker, again, Now::read());
                    match self.desk.turn(turn.clone(), Some(until.into_std()), asked).await? {
                        Next::Wait => {
                            timeout_at(until, changed).await.map_err(|_| late())?;
                            Next::Wait
                        }
                        other => other,
                    }
                }
            };
        }
    }

    /// Adds to a status for operators what was refused.
    fn with_totals(&self, reply: Reply) -> Reply {
        match reply {
            Reply::Status(mut status) if status.you.role == Some(Role::Operator) => {
                status.rejected = self.rejections.totals();
                Reply::Status(status)
            }
            other => other,
        }
    }

    /// Gives one order, and hands its outcome to the decisions in that turn.
    async fn order(
        &self,
        order: Order,
        asker: Option<Asker>,
        turn: Turn,
        correlation: CorrelationId,
        until: Instant,
    ) -> Result<Next, Refusal> {
        let Order { session, call, then } = order;
        let outcome = self.send(session, correlation, call, until).await;
        let goes_on = move |core: &mut Core| {
            let now = Now::read();
            let own = Cause { correlation: Some(correlation), ..Cause::own(now) };
            core.on_behalf(asker.map_or(own, |asker| Cause::of(&asker, now)));
            core.answered(then, outcome, now)
        };
        self.desk.turn(turn, None, goes_on).await
    }

    /// Sends one order over a provider's session.
    async fn send(
        &self,
        session: SessionId,
        correlation: CorrelationId,
        call: Call,
        until: Instant,
    ) -> Result<Reply, OrderError> {
        let link = self.links().get(&session).map(|link| (link.caller.clone(), Arc::clone(&link.others)));
        let (caller, others) = link.ok_or(OrderError::Gone)?;
        let asking = async {
            let left = || u32::try_from(millis(until.saturating_duration_since(Instant::now()))).unwrap_or(u32::MAX);
            if matches!(call, Call::Fence(_) | Call::Detach(_)) && !cfg!(feature = "danger-no-switches") {
                return caller.call_ahead(correlation, left(), call).await;
            }
            // Never closed; whoever waits here when the session ends is told so next.
            let _room = others.acquire().await;
            caller.call(correlation, left(), call).await
        };
        match timeout_at(until, asking).await {
            Err(_) => Err(OrderError::Late),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(CallError::Refused(refusal))) => Err(OrderError::Refused(refusal)),
            Ok(Err(CallError::Channel(ChannelError::TooLong { .. }))) => {
                let refusal = Refusal::new(RefusalCode::Invalid, "the request is too long to be passed on");
                Err(OrderError::Refused(refusal))
            }
            Ok(Err(CallError::Channel(_))) => Err(OrderError::Gone),
        }
    }

    /// Gives a provider the orders that are due and that nobody waits for, all at once.
    pub(crate) async fn give_due_orders(
        self: &Arc<Self>,
        provider: PublicKey,
        session: SessionId,
        orders: &mut JoinSet<()>,
    ) {
        let Ok(due) = self.desk.run(move |core| core.due_orders(session, Now::read())).await else { return };
        for order in due {
            let hub = Arc::clone(self);
            let correlation = CorrelationId::random();
            let span = tracing::error_span!("order", %correlation);
            let given = async move {
                // Nobody waits for the outcome: it is one more word of that provider's.
                let (turn, until) = (Turn::Word(provider), Instant::now() + ORDER_TIME);
                if let Err(refusal) = hub.order(order, None, turn, correlation, until).await {
                    hub.rejected("order", &refusal);
                }
            };
            orders.spawn(given.instrument(span));
        }
    }
}
