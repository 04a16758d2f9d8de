//! All leases of the provider, and what orders and the clock make of them.
//!
//! No device, thread or clock in here: the time is handed in, work goes out as [`Job`]s and comes back as [`Done`]s, and
//! answers are collected for whoever sends them. So a test can run any order of events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use overbank_fabric::attach::{AttachAnswer, EndpointBytes};
use overbank_fabric::block::{HEADER_LEN, MAX_BLOCK, MIN_BLOCK};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId};
use overbank_fabric::message::{Carve, Detach, Extend, Fence, Heartbeat, HeldLease, Refusal, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Receipt};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::units::show_duration;

use crate::attach::Admission;
use crate::backend::{Backend, Fault};
use crate::clock::BootTime;
use crate::ending::Failed;
use crate::hold::{Binding, Shape, Usage};
use crate::job::{Done, Job, Outcome, Task};
use crate::lease::{Answer, Lease, Phase, barred};
use crate::pool::Pool;
use crate::waiting::{Queue, Waiting, ended, too_late};

/// Most leases held, and receipts not yet acknowledged, together: as many as an offer can list in one message.
pub const MAX_LEASES: usize = 12_288;
/// Most queue pairs. A tenant gets at most as many as are left.
pub const MAX_QUEUE_PAIRS: u64 = 16_384;
/// Most bytes that narrowed attachments register, as multiples of the pool's. A tenant gets at most as many as are left.
pub const MAX_NARROWED_POOLS: u64 = 4;
/// Most nonces that are remembered. A tenant gets at most as many as are left.
pub const MAX_NONCES_ALL: u64 = 1 << 20;
/// How much later than the longest lease allows a deadline may be: it was computed on another machine.
const DEADLINE_SLACK_MS: u64 = 1000;

/// What all leases of one life have in common.
#[derive(Clone)]
pub struct Terms {
    /// Signs the answers and receipts of leases that are carved from now on.
    pub identity: Arc<Identity>,
    /// This life.
    pub boot: BootId,
    /// Longest time until a deadline, in milliseconds.
    pub max_lease_ms: u64,
}

/// What is to be done outside after something happened.
pub struct Effects<B: Backend, T> {
    /// Answers to give.
    pub answers: Vec<Answer<T>>,
    /// Jobs to run, each lane's in this order.
    pub jobs: Vec<Job<B, T>>,
    /// Whether there is a new receipt.
    pub receipts: bool,
}

impl<B: Backend, T> Default for Effects<B, T> {
    fn default() -> Self {
        Self { answers: Vec::new(), jobs: Vec::new(), receipts: false }
    }
}

/// The leases and the pool.
pub struct Table<B: Backend, T> {
    terms: Terms,
    pool: Pool,
    leases: BTreeMap<LeaseId, Lease<B, T>>,
    attaches: Queue<T>,
    effects: Effects<B, T>,
    /// Of quarantined memory; they may keep alive what a device still uses.
    faults: Vec<Fault>,
    draining: bool,
}

impl<B: Backend, T> Table<B, T> {
    /// No leases, and a pool.
    #[must_use]
    pub fn new(terms: Terms, pool: Pool) -> Self {
        let (leases, attaches, faults) = (BTreeMap::new(), Queue::default(), Vec::new());
        Self { terms, pool, leases, attaches, effects: Effects::default(), faults, draining: false }
    }

    /// What has come up since the last call.
    pub fn take_effects(&mut self) -> Effects<B, T> {
        std::mem::take(&mut self.effects)
    }

    /// What is carved from now on is lent by this key.
    pub fn take_key(&mut self, identity: Arc<Identity>) {
        self.terms.identity = identity;
    }

    /// Sets memory aside.
    pub fn carve(&mut self, now: BootTime, ticket: T, carve: Carve) {
        self.tick(now);
        match self.try_carve(now, &carve) {
            Ok(Carved::Already) => self.answer(ticket, Ok(Reply::Done)),
            Ok(Carved::SameOpening) => {
                self.leases.entry(carve.lease).and_modify(|lease| lease.carving.push(ticket));
            }
            Ok(Carved::New(shape)) => {
                let Some(extent) = self.pool.take(shape.bytes()) else {
                    let why = format!(
                        "the lease needs {} contiguous bytes; the longest free run of the pool has {}",
                        shape.bytes(),
                        self.pool.longest_run()
                    );
                    return self.answer(ticket, Err(Refusal::new(RefusalCode::PoolFull, why)));
                };
                let signer = Arc::clone(&self.terms.identity);
                let lease = Lease::new(carve.tenant, signer, shape, extent.len(), carve.deadline.tick, ticket);
                self.leases.insert(carve.lease, lease);
                self.effects.jobs.push(Job { lease: carve.lease, task: Task::Open(extent, shape) });
            }
            Err(refusal) => self.answer(ticket, Err(refusal)),
        }
    }

    fn try_carve(&mut self, now: BootTime, carve: &Carve) -> Result<Carved, Refusal> {
        let deadline = self.check_deadline(now, carve.deadline)?;
        let shape = shape(carve)?;
        if let Some(lease) = self.leases.get_mut(&carve.lease) {
            if (&lease.tenant, lease.shape) != (&carve.tenant, shape) {
                let why = "this lease is carved already, with another size or for another tenant";
                return Err(Refusal::new(RefusalCode::Invalid, why));
            }
            if lease.end.is_some() {
                return Err(ended());
            }
            lease.deadline = lease.deadline.max(deadline);
            return Ok(if matches!(lease.phase, Phase::Opening) { Carved::SameOpening } else { Carved::Already });
        }
        if self.draining {
            return Err(Refusal::new(RefusalCode::Busy, "the provider is shutting down"));
        }
        if deadline <= now.tick() {
            return Err(Refusal::new(RefusalCode::LeaseEnded, "the lease's deadline has passed"));
        }
        if self.leases.len() >= MAX_LEASES {
            let why = format!("the provider holds {MAX_LEASES} leases and unacknowledged receipts, which is its limit");
            return Err(Refusal::new(RefusalCode::Busy, why));
        }
        Ok(Carved::New(shape))
    }

    fn check_deadline(&self, now: BootTime, deadline: Deadline) -> Result<Tick, Refusal> {
        if deadline.boot != self.terms.boot {
            return Err(Refusal::new(RefusalCode::Invalid, "the deadline is of another life of this provider"));
        }
        let latest = now.tick().after_ms(self.terms.max_lease_ms).after_ms(DEADLINE_SLACK_MS);
        if deadline.tick > latest {
            let longest = show_duration(Duration::from_millis(self.terms.max_lease_ms));
            let why = format!("this provider lends for {longest} at most (its --max-lease)");
            return Err(Refusal::new(RefusalCode::Invalid, why));
        }
        Ok(deadline.tick)
    }

    /// Attaches a holder; `until` is when the asker gives up.
    pub fn bind(&mut self, now: BootTime, ticket: T, admission: Box<Admission>, until: BootTime) {
        self.tick(now);
        let id = admission.scope.lease;
        self.leases.values_mut().for_each(|lease| lease.forget_nonces(now));
        let room = self.share(id, MAX_NONCES_ALL, Lease::nonces);
        let Some(lease) = self.leases.get_mut(&id) else {
            return self.answer(ticket, Err(no_such_lease()));
        };
        let admitted = self.attaches.check_room(&lease.tenant).and_then(|()| lease.admit(now, &admission, room));
        if let Err(refusal) = admitted {
            return self.answer(ticket, Err(refusal));
        }
        let (tenant, ending) = (lease.tenant.clone(), lease.ending.clone());
        self.attaches.push(Waiting { ticket, admission, until, tenant, ending });
        self.attach_next();
    }

    /// Moves a deadline, later only.
    pub fn extend(&mut self, now: BootTime, ticket: T, extend: &Extend) {
        self.tick(now);
        let outcome = self.check_deadline(now, extend.deadline).and_then(|deadline| {
            let lease = self.leases.get_mut(&extend.lease).ok_or_else(no_such_lease)?;
            if lease.end.is_some() {
                return Err(ended());
            }
            lease.deadline = lease.deadline.max(deadline);
            Ok(Reply::Done)
        });
        self.answer(ticket, outcome);
    }

    /// Ends what somebody was given of a lease, and what was passed on; answered when that is destroyed.
    pub fn detach(&mut self, now: BootTime, ticket: T, detach: &Detach) {
        self.tick(now);
        let Some(lease) = self.leases.get_mut(&detach.lease) else {
            return self.answer(ticket, Err(no_such_lease()));
        };
        if lease.end.is_some() {
            return self.answer(ticket, Err(ended()));
        }
        if let Err((ticket, refusal)) = lease.bar(detach.holder, ticket) {
            return self.answer(ticket, Err(refusal));
        }
        let through =
            |waiting: &Waiting<T>| waiting.lease() == detach.lease && waiting.admission.hands.contains(&detach.holder);
        let gone = self.attaches.remove(through);
        self.effects.answers.extend(gone.map(|ticket| (ticket, Err(barred()))));
        self.settle(detach.lease, now);
    }

    /// Ends a lease; answered when it is fenced.
    pub fn fence(&mut self, now: BootTime, ticket: T, fence: &Fence) {
        self.tick(now);
        let Some(lease) = self.leases.get_mut(&fence.lease) else {
            return self.answer(ticket, Err(no_such_lease()));
        };
        match lease.phase {
            Phase::Wiping | Phase::Over { fenced: true, .. } => self.answer(ticket, Ok(Reply::Done)),
            Phase::Over { fenced: false, .. } => self.answer(ticket, Err(not_fenced())),
            Phase::Opening | Phase::Open(_) | Phase::Busy | Phase::Fencing => {
                lease.fencing.push(ticket);
                self.end(fence.lease, now, fence.reason, now);
            }
        }
    }

    /// Ends every lease, and takes no more.
    pub fn drain(&mut self, now: BootTime) {
        self.tick(now);
        self.draining = true;
        for id in self.leases.keys().copied().collect::<Vec<_>>() {
            self.end(id, now, EndReason::Drained, now);
        }
    }

    /// A receipt has arrived: the lease can be forgotten.
    pub fn acknowledge(&mut self, id: LeaseId) {
        if self.leases.get(&id).is_some_and(|lease| matches!(lease.phase, Phase::Over { .. })) {
            self.leases.remove(&id);
        }
    }

    /// Lets the clock do its part: ends what is due.
    pub fn tick(&mut self, now: BootTime) {
        let gone = self.attaches.remove(|waiting| waiting.until <= now);
        self.effects.answers.extend(gone.map(|ticket| (ticket, Err(too_late()))));
        let due = |lease: &Lease<B, T>| lease.next_due().is_some_and(|tick| tick <= now.tick());
        let ids: Vec<_> = self.leases.iter().filter(|(_, lease)| due(lease)).map(|(id, _)| *id).collect();
        for id in ids {
            if cfg!(feature = "danger-no-expiry") {
                continue;
            }
            match self.leases.get(&id).map(|lease| lease.deadline) {
                Some(deadline) if deadline <= now.tick() => {
                    self.end(id, now, EndReason::Expired, BootTime::of_tick(deadline));
                }
                _ => self.settle(id, now),
            }
        }
    }

    /// When [`Table::tick`] must be called at the latest.
    #[must_use]
    pub fn next_due(&self) -> Option<BootTime> {
        self.leases.values().filter_map(Lease::next_due).min().map(BootTime::of_tick)
    }

    /// A job is done.
    pub fn done(&mut self, now: BootTime, done: Done<B, T>) {
        self.tick(now);
        let id = done.lease;
        match (done.outcome, self.leases.get_mut(&id)) {
            (Outcome::Reached(waiting, reached), lease) => {
                let reached =
                    reached.and_then(|()| lease.map_or(Ok(()), |lease| lease.check_hands(&waiting.admission)));
                if let Err((ticket, refusal)) = self.attaches.reached(now, waiting, reached) {
                    self.answer(ticket, Err(refusal));
                }
            }
            (_, None) => {
                tracing::error!(lease = %id, "a job for a lease that nobody knows: a defect; its memory is withheld");
            }
            (Outcome::Opened(Ok(hold)), Some(lease)) => {
                lease.enter(Phase::Open(hold));
                let over = lease.end.is_some();
                let outcome = || if over { Err(ended()) } else { Ok(Reply::Done) };
                self.effects.answers.extend(lease.carving.drain(..).map(|ticket| (ticket, outcome())));
                self.settle(id, now);
            }
            (Outcome::Opened(Err((extent, fault))), Some(_)) => {
                self.pool.give_back(extent);
                // For the attaches that already wait.
                self.close(id, now, EndReason::Stopped, now);
                if let Some(mut lease) = self.leases.remove(&id) {
                    let failed = Refusal::from(fault);
                    self.effects.answers.extend(lease.carving.drain(..).map(|ticket| (ticket, Err(failed.clone()))));
                    self.effects.answers.extend(lease.fencing.drain(..).map(|ticket| (ticket, Err(no_such_lease()))));
                }
            }
            (Outcome::Bound(hold, Waiting { ticket, admission, .. }, binding), Some(lease)) => {
                self.attaches.bound();
                let until =
                    if admission.root { lease.deadline } else { lease.deadline.min(admission.scope.deadline.tick) };
                lease.enter(Phase::Open(hold));
                let outcome = match binding {
                    Ok(_) if lease.end.is_some() => Err(ended()),
                    Ok(_) if lease.check_hands(&admission).is_err() => Err(barred()),
                    Ok(binding) => {
                        let left_ms = until.ms_since(now.tick());
                        let answer = attach_answer(&admission, &binding, lease.shape.stride, left_ms);
                        Ok(Reply::Attached(Signed::new(&answer, &lease.signer)))
                    }
                    Err(refusal) => Err(refusal),
                };
                self.answer(ticket, outcome);
                self.settle(id, now);
            }
            (Outcome::Detached(hold), Some(lease)) => {
                lease.enter(Phase::Open(hold));
                self.settle(id, now);
            }
            (Outcome::Fenced(Ok(fenced)), Some(lease)) => {
                lease.enter(Phase::Wiping);
                self.effects.answers.extend(lease.fencing.drain(..).map(|ticket| (ticket, Ok(Reply::Done))));
                self.effects.jobs.push(Job { lease: id, task: Task::Wipe(fenced) });
            }
            (Outcome::Wiped(Ok(clean)), Some(lease)) => {
                let steps = clean.free(&mut self.pool, now);
                lease.finish(id, self.terms.boot, steps);
                self.effects.receipts = true;
                tracing::info!(lease = %id, reason = %lease.end.map_or(EndReason::Unknown, |end| end.reason), "ended, memory clean");
            }
            (Outcome::Fenced(Err(failed)) | Outcome::Wiped(Err(failed)), Some(_)) => self.quarantine(id, *failed),
        }
        self.attach_next();
    }

    fn quarantine(&mut self, id: LeaseId, failed: Failed) {
        let (step, steps, faults) = failed.quarantine(&mut self.pool);
        for fault in &faults {
            tracing::error!(lease = %id, %step, %fault, "a step of the lease's end failed: its memory is quarantined");
        }
        self.faults.extend(faults);
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.finish(id, self.terms.boot, steps);
            self.effects.answers.extend(lease.fencing.drain(..).map(|ticket| (ticket, Err(not_fenced()))));
        }
        self.effects.receipts = true;
    }

    fn end(&mut self, id: LeaseId, now: BootTime, reason: EndReason, due: BootTime) {
        self.close(id, now, reason, due);
        self.settle(id, now);
    }

    /// Takes no more attaches, and refuses those that wait.
    fn close(&mut self, id: LeaseId, now: BootTime, reason: EndReason, due: BootTime) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.close(now, reason, due);
            self.effects.answers.extend(lease.detaching.drain(..).map(|ticket| (ticket, Err(ended()))));
            let waiting = self.attaches.remove(|waiting| waiting.lease() == id);
            self.effects.answers.extend(waiting.map(|ticket| (ticket, Err(ended()))));
        }
    }

    /// Gives out the lease's next job, if it has one.
    fn settle(&mut self, id: LeaseId, now: BootTime) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.effects.jobs.extend(lease.next_job(id, now));
            self.effects.answers.extend(lease.detached());
        }
    }

    /// Gives out attaches, as far as threads are free for them. A lease's hold goes with one only when that runs at once.
    fn attach_next(&mut self) {
        while let Some(waiting) = self.attaches.next_to_reach() {
            self.effects.jobs.push(Job { lease: waiting.lease(), task: Task::Reach(waiting) });
        }
        let is_open = |id| self.leases.get(&id).is_some_and(|lease| matches!(lease.phase, Phase::Open(_)));
        if let Some(waiting) = self.attaches.next_to_bind(is_open) {
            let id = waiting.lease();
            let room = Usage {
                queue_pairs: self.share(id, MAX_QUEUE_PAIRS, |lease| lease.usage().queue_pairs),
                narrowed: self
                    .share(id, self.pool.bytes().saturating_mul(MAX_NARROWED_POOLS), |lease| lease.usage().narrowed),
            };
            if let Some(mut hold) = self.leases.get_mut(&id).and_then(Lease::take_hold) {
                hold.set_room(room);
                self.effects.jobs.push(Job { lease: id, task: Task::Bind(hold, waiting) });
            }
        }
    }

    /// How many of `most` a lease may have, beside those that its tenant `has` elsewhere: a tenant gets as many as all others
    /// leave and it leaves itself.
    fn share(&self, of: LeaseId, most: u64, has: impl Fn(&Lease<B, T>) -> u64) -> u64 {
        let tenant = self.leases.get(&of).map(|lease| &lease.tenant);
        let (mut own, mut others) = (0, 0);
        for (_, lease) in self.leases.iter().filter(|(id, _)| **id != of) {
            *(if Some(&lease.tenant) == tenant { &mut own } else { &mut others }) += has(lease);
        }
        (most.saturating_sub(others) / 2).saturating_sub(own)
    }

    fn answer(&mut self, ticket: T, outcome: Result<Reply, Refusal>) {
        self.effects.answers.push((ticket, outcome));
    }

    /// How full the pool is.
    #[must_use]
    pub fn heartbeat(&self, now: BootTime) -> Heartbeat {
        let (free_bytes, quarantined_bytes) = (self.pool.free_bytes(), self.pool.quarantined_bytes());
        Heartbeat { tick: now.tick(), free_bytes, quarantined_bytes }
    }

    /// Whether every lease is over.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.leases.values().all(|lease| matches!(lease.phase, Phase::Over { .. }))
    }

    /// Leases whose memory is not yet known to be clean.
    #[must_use]
    pub fn held(&self) -> Vec<HeldLease> {
        let held = self.leases.iter().filter(|(_, lease)| !matches!(lease.phase, Phase::Over { .. }));
        let deadline = |tick| Deadline { boot: self.terms.boot, tick };
        held.map(|(id, lease)| HeldLease { lease: *id, deadline: deadline(lease.deadline) }).collect()
    }

    /// At most `max` receipts that are not yet acknowledged, of lease ids greater than `after`.
    #[must_use]
    pub fn receipts(&self, after: Option<LeaseId>, max: usize) -> Vec<(LeaseId, Signed<Receipt>)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.leases
            .range((from, std::ops::Bound::Unbounded))
            .filter_map(|(id, lease)| match &lease.phase {
                Phase::Over { receipt, .. } => Some((*id, receipt.clone())),
                _ => None,
            })
            .take(max)
            .collect()
    }
}

#[cfg(test)]
impl<B: Backend, T> Table<B, T> {
    /// Where a lease stands, and whether its end has begun.
    pub(crate) fn stands(&self, id: LeaseId) -> Option<(crate::lease::Name, bool)> {
        self.leases.get(&id).map(|lease| (lease.phase.name(), lease.end.is_some()))
    }

    /// The lease was attached so often.
    pub(crate) fn remember(&mut self, id: LeaseId, nonces: u64, deadline: Tick) {
        let lease = self.leases.get_mut(&id).expect("a lease");
        lease.remember(nonces, deadline);
    }
}

enum Carved {
    New(Shape),
    SameOpening,
    Already,
}

fn shape(carve: &Carve) -> Result<Shape, Refusal> {
    if !carve.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&carve.block) {
        let why = format!("a block is a power of two from {MIN_BLOCK} to {MAX_BLOCK} bytes, not {}", carve.block);
        return Err(Refusal::new(RefusalCode::Invalid, why));
    }
    let stride = carve.block + u32::try_from(HEADER_LEN).expect("a header is short");
    match carve.blocks.checked_mul(u64::from(stride)) {
        Some(bytes) if bytes > 0 => Ok(Shape { blocks: carve.blocks, stride }),
        _ => Err(Refusal::new(RefusalCode::Invalid, format!("{} is no usable number of blocks", carve.blocks))),
    }
}

fn attach_answer(admission: &Admission, binding: &Binding, stride: u32, left_ms: u64) -> AttachAnswer {
    AttachAnswer {
        request: admission.request,
        lease: admission.scope.lease,
        lanes: binding.lanes.iter().map(|lane| EndpointBytes(lane.to_bytes())).collect(),
        address: binding.key.address,
        rkey: binding.key.rkey,
        first_block: admission.scope.first_block,
        blocks: admission.scope.blocks,
        stride,
        rights: admission.scope.rights,
        left_ms,
    }
}

fn no_such_lease() -> Refusal {
    Refusal::new(RefusalCode::NoSuchLease, "the provider holds no such lease")
}

fn not_fenced() -> Refusal {
    let why = "a step of the lease's end failed at the provider: its memory may be within reach, and is quarantined";
    Refusal::new(RefusalCode::Internal, why)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
