//! The thread that owns the lease table, and the threads that do its jobs. It wakes up by itself when a lease is due,
//! whether or not anybody talks to it, and never does anything that takes long.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{Carve, Detach, Extend, Fence, Heartbeat, HeldLease, Refusal, RefusalCode, Reply};
use overbank_fabric::receipt::Receipt;
use overbank_fabric::signed::Signed;
use tokio::sync::{Notify, oneshot};

use crate::attach::Admission;
use crate::backend::{Backend, Verbs};
use crate::clock::{BootTime, Clock};
use crate::job::{Done, Job, Lane};
use crate::table::Table;

use super::threads::{Mutex, Receiver, RecvTimeoutError, Sender, channel, spawn};

/// Longest sleep while a lease is held. Sleeps are counted on a clock that stands still while the machine is suspended;
/// leases are not.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// Whom to answer.
pub type Ticket = oneshot::Sender<Result<Reply, Refusal>>;

enum Event<B: Backend> {
    Carve(Carve, Ticket),
    Bind(Box<Admission>, BootTime, Ticket),
    Extend(Extend, Ticket),
    Fence(Fence, Ticket),
    Detach(Detach, Ticket),
    Drain(oneshot::Sender<()>),
    Acknowledge(LeaseId),
    TakeKey(Arc<Identity>),
    Look(oneshot::Sender<(Heartbeat, Vec<HeldLease>)>),
    Receipts(Option<LeaseId>, usize, oneshot::Sender<Vec<(LeaseId, Signed<Receipt>)>>),
    Done(Done<B, Ticket>),
    Stop,
}

/// How others reach the thread. When the last clone is dropped the thread ends, and with it everything it holds.
pub struct Keeper<B: Backend = Verbs>(Arc<Inner<B>>);

struct Inner<B: Backend> {
    events: Sender<Event<B>>,
    receipts: Arc<Notify>,
}

impl<B: Backend> Drop for Inner<B> {
    fn drop(&mut self) {
        // It has ended already where this fails.
        let _ = self.events.send(Event::Stop);
    }
}

impl<B: Backend> Clone for Keeper<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Backend> Keeper<B> {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(mut table: Table<B, Ticket>, backend: Arc<B>, clock: impl Clock + Clone) -> io::Result<Self> {
        let (events, inbox) = channel();
        let lanes = Lanes::start(&backend, &clock, &events)?;
        let receipts = Arc::new(Notify::new());
        let notify = Arc::clone(&receipts);
        spawn("leases", move || keep(&mut table, &inbox, &lanes, &clock, &notify))?;
        Ok(Self(Arc::new(Inner { events, receipts })))
    }

    /// Sets memory aside.
    ///
    /// # Errors
    /// A refusal.
    pub async fn carve(&self, carve: Carve) -> Result<Reply, Refusal> {
        self.order(|ticket| Event::Carve(carve, ticket)).await
    }

    /// Attaches a holder, unless its turn comes after `until`.
    ///
    /// # Errors
    /// A refusal.
    pub async fn bind(&self, admission: Admission, until: BootTime) -> Result<Reply, Refusal> {
        self.order(|ticket| Event::Bind(Box::new(admission), until, ticket)).await
    }

    /// Moves a deadline.
    ///
    /// # Errors
    /// A refusal.
    pub async fn extend(&self, extend: Extend) -> Result<Reply, Refusal> {
        self.order(|ticket| Event::Extend(extend, ticket)).await
    }

    /// Ends a lease; returns when it is fenced.
    ///
    /// # Errors
    /// A refusal.
    pub async fn fence(&self, fence: Fence) -> Result<Reply, Refusal> {
        self.order(|ticket| Event::Fence(fence, ticket)).await
    }

    /// Ends what somebody was given of a lease; returns when nothing of it is left.
    ///
    /// # Errors
    /// A refusal.
    pub async fn detach(&self, detach: Detach) -> Result<Reply, Refusal> {
        self.order(|ticket| Event::Detach(detach, ticket)).await
    }

    /// Ends every lease and takes no more; returns when no memory is left to clean.
    pub async fn drain(&self) {
        self.ask(Event::Drain).await;
    }

    /// Forgets a lease whose receipt has arrived.
    pub fn acknowledge(&self, lease: LeaseId) {
        // Where the thread has ended there is nothing to forget.
        let _ = self.0.events.send(Event::Acknowledge(lease));
    }

    /// What is carved from now on is lent by this key.
    pub fn take_key(&self, identity: Arc<Identity>) {
        // Where the thread has ended nothing is lent any more.
        let _ = self.0.events.send(Event::TakeKey(identity));
    }

    /// How full the pool is, and what leases are in it. None where the thread has ended.
    pub async fn look(&self) -> Option<(Heartbeat, Vec<HeldLease>)> {
        self.ask(Event::Look).await
    }

    /// At most `max` receipts not yet acknowledged, of leases whose ids follow `after`.
    pub async fn receipts(&self, after: Option<LeaseId>, max: usize) -> Vec<(LeaseId, Signed<Receipt>)> {
        self.ask(|reply| Event::Receipts(after, max, reply)).await.unwrap_or_default()
    }

    /// Returns when there may be new receipts.
    pub async fn receipt_made(&self) {
        self.0.receipts.notified().await;
    }

    async fn order(&self, event: impl FnOnce(Ticket) -> Event<B>) -> Result<Reply, Refusal> {
        let gone = || Refusal::new(RefusalCode::Internal, "the provider is shutting down");
        self.ask(event).await.unwrap_or_else(|| Err(gone()))
    }

    async fn ask<R>(&self, event: impl FnOnce(oneshot::Sender<R>) -> Event<B>) -> Option<R> {
        let (reply, answer) = oneshot::channel();
        self.0.events.send(event(reply)).ok()?;
        answer.await.ok()
    }
}

fn keep<B: Backend>(
    table: &mut Table<B, Ticket>,
    inbox: &Receiver<Event<B>>,
    lanes: &Lanes<B>,
    clock: &impl Clock,
    receipts: &Notify,
) {
    let mut drained: Vec<oneshot::Sender<()>> = Vec::new();
    loop {
        let now = clock.now();
        table.tick(now);
        carry_out(table, lanes, receipts);
        if !drained.is_empty() && table.is_idle() {
            for waiter in drained.drain(..) {
                // Who no longer waits need not be told.
                let _ = waiter.send(());
            }
        }
        let event = match table.next_due() {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => inbox.recv_timeout(Duration::from_micros(due.us_since(now)).min(LONGEST_SLEEP)),
        };
        // Time has passed while it slept.
        let now = clock.now();
        match event {
            Ok(Event::Carve(carve, ticket)) => table.carve(now, ticket, carve),
            Ok(Event::Bind(admission, until, ticket)) => table.bind(now, ticket, admission, until),
            Ok(Event::Extend(extend, ticket)) => table.extend(now, ticket, &extend),
            Ok(Event::Fence(fence, ticket)) => table.fence(now, ticket, &fence),
            Ok(Event::Detach(detach, ticket)) => table.detach(now, ticket, &detach),
            Ok(Event::Drain(waiter)) => {
                table.drain(now);
                drained.push(waiter);
            }
            Ok(Event::Acknowledge(lease)) => table.acknowledge(lease),
            Ok(Event::TakeKey(identity)) => table.take_key(identity),
            Ok(Event::Look(reply)) => drop(reply.send((table.heartbeat(now), table.held()))),
            Ok(Event::Receipts(after, max, reply)) => drop(reply.send(table.receipts(after, max))),
            Ok(Event::Done(done)) => table.done(now, done),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn carry_out<B: Backend>(table: &mut Table<B, Ticket>, lanes: &Lanes<B>, receipts: &Notify) {
    let effects = table.take_effects();
    for job in effects.jobs {
        lanes.give(job);
    }
    for (ticket, outcome) in effects.answers {
        // Who no longer waits need not be told.
        let _ = ticket.send(outcome);
    }
    if effects.receipts {
        receipts.notify_one();
    }
}

/// The threads that do jobs.
struct Lanes<B: Backend>(Vec<(Lane, Sender<Job<B, Ticket>>)>);

impl<B: Backend> Lanes<B> {
    fn start(backend: &Arc<B>, clock: &(impl Clock + Clone), events: &Sender<Event<B>>) -> io::Result<Self> {
        let mut lanes = Vec::new();
        for lane in Lane::ALL {
            let (jobs, inbox) = channel::<Job<B, Ticket>>();
            let inbox = Arc::new(Mutex::new(inbox));
            let name = match lane {
                Lane::Opener => "opener",
                Lane::Reachers => "reacher",
                Lane::Binder => "binder",
                Lane::Detacher => "detacher",
                Lane::Fencer => "fencer",
                Lane::Wiper => "wiper",
            };
            for _ in 0..lane.threads() {
                let (backend, clock, events) = (Arc::clone(backend), clock.clone(), events.clone());
                let inbox = Arc::clone(&inbox);
                let next = move || inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
                spawn(name, move || {
                    while let Some(job) = next() {
                        if events.send(Event::Done(job.run(&*backend, &clock))).is_err() {
                            return;
                        }
                    }
                })?;
            }
            lanes.push((lane, jobs));
        }
        Ok(Self(lanes))
    }

    fn give(&self, job: Job<B, Ticket>) {
        let lane = job.lane();
        let (_, jobs) = self.0.iter().find(|(kind, _)| *kind == lane).expect("there is a thread for each lane");
        jobs.send(job).unwrap_or_else(|_| panic!("the thread of lane {lane:?} has ended"));
    }
}
