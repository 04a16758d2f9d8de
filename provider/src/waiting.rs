//! Attach requests on their way to a lease. First the addresses in them are reached, without the lease: that may take a
//! second for each, and nobody's end waits for it. Then they are bound, one at a time, as soon as a thread is free for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use overbank_fabric::ids::{LeaseId, Tenant};
use overbank_fabric::message::{Refusal, RefusalCode};
use overbank_fabric::time::Tick;

use crate::attach::Admission;
use crate::backend::Backend;
use crate::clock::{BootTime, Clock};

/// Most attach requests that wait: half of what a session takes, so that it always has room for the order to fence.
pub const MAX_WAITING: usize = 256;
/// Most of them in one tenant's name.
pub const MAX_WAITING_EACH: usize = 64;
/// Threads that reach addresses; they mostly sleep.
pub const REACHERS: usize = 16;
/// Most of these that work for one tenant.
pub const REACHERS_EACH: usize = 4;

/// Says that a lease's end has begun to those who work for it on other threads.
#[derive(Debug, Clone, Default)]
pub struct Ending(Arc<AtomicBool>);

impl Ending {
    /// It has.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// The refusal of whatever is asked after it.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.0.load(Ordering::Acquire) { Err(ended()) } else { Ok(()) }
    }
}

/// The refusal for a lease whose end has begun.
#[must_use]
pub fn ended() -> Refusal {
    Refusal::new(RefusalCode::LeaseEnded, "the lease has ended; make a new one")
}

/// The refusal for whoever has waited too long.
#[must_use]
pub fn too_late() -> Refusal {
    Refusal::new(RefusalCode::Deadline, "the provider was too busy for this attach; try again")
}

/// An attach request whose contents are allowed. `T` is whom to answer.
pub struct Waiting<T> {
    /// Whom.
    pub ticket: T,
    /// What is asked for.
    pub admission: Box<Admission>,
    /// After this the asker is gone.
    pub until: BootTime,
    /// Whose lease it is about.
    pub tenant: Tenant,
    /// Whether that has begun to end.
    pub ending: Ending,
}

impl<T> Waiting<T> {
    /// The lease that it is about.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.admission.scope.lease
    }

    /// Whether there is still somebody to do it for, and nothing more urgent to do with its lease: an attachment whose
    /// time is over at `detach`.
    ///
    /// # Errors
    /// The lease's end; no time left.
    pub fn go_on(&self, now: BootTime, detach: Option<Tick>) -> Result<(), Refusal> {
        self.ending.check()?;
        let over = now >= self.until || detach.is_some_and(|tick| tick <= now.tick());
        if over { Err(too_late()) } else { Ok(()) }
    }

    /// Makes the device find the way to each of the holder's addresses, so that connecting to them takes no time.
    ///
    /// # Errors
    /// The first that cannot be reached; the lease's end; no time left.
    pub fn reach<B: Backend>(&self, backend: &B, clock: &impl Clock) -> Result<(), Refusal> {
        let mut reached = Vec::new();
        for remote in &self.admission.remotes {
            let address = (remote.gid, remote.lid, remote.port);
            if reached.contains(&address) {
                continue;
            }
            self.go_on(clock.now(), None)?;
            backend.reach(remote).map_err(|fault| {
                Refusal::new(RefusalCode::Invalid, format!("the provider cannot serve this endpoint: {fault}"))
            })?;
            reached.push(address);
        }
        Ok(())
    }
}

/// All that wait, and how many are being worked on.
pub struct Queue<T> {
    to_reach: Vec<Waiting<T>>,
    /// A tenant for each thread that reaches addresses now.
    reaching: Vec<Tenant>,
    to_bind: Vec<Waiting<T>>,
    /// Whether the thread that binds is at it.
    binding: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { to_reach: Vec::new(), reaching: Vec::new(), to_bind: Vec::new(), binding: false }
    }
}

impl<T> Queue<T> {
    /// Whether one more may wait in this name.
    ///
    /// # Errors
    /// A refusal.
    pub fn check_room(&self, tenant: &Tenant) -> Result<(), Refusal> {
        let waiting = || self.to_reach.iter().chain(&self.to_bind).map(|waiting| &waiting.tenant).chain(&self.reaching);
        if waiting().filter(|other| *other == tenant).count() >= MAX_WAITING_EACH || waiting().count() >= MAX_WAITING {
            return Err(Refusal::new(RefusalCode::Busy, "too many attaches at once; try again"));
        }
        Ok(())
    }

    /// A new one.
    pub fn push(&mut self, waiting: Waiting<T>) {
        self.to_reach.push(waiting);
    }

    /// The next whose addresses are to be reached, if a thread is free for it.
    pub fn next_to_reach(&mut self) -> Option<Waiting<T>> {
        if self.reaching.len() >= REACHERS {
            return None;
        }
        let busy = |tenant| self.reaching.iter().filter(|other| *other == tenant).count();
        let at = self.to_reach.iter().position(|waiting| busy(&waiting.tenant) < REACHERS_EACH)?;
        let waiting = self.to_reach.remove(at);
        self.reaching.push(waiting.tenant.clone());
        Some(waiting)
    }

    /// One from [`next_to_reach`](Self::next_to_reach) is back.
    ///
    /// # Errors
    /// Whom to refuse, and how.
    pub fn reached(
        &mut self,
        now: BootTime,
        waiting: Waiting<T>,
        reached: Result<(), Refusal>,
    ) -> Result<(), (T, Refusal)> {
        if let Some(at) = self.reaching.iter().position(|tenant| *tenant == waiting.tenant) {
            self.reaching.swap_remove(at);
        }
        if let Err(refusal) = waiting.go_on(now, None).and(reached) {
            return Err((waiting.ticket, refusal));
        }
        self.to_bind.push(waiting);
        Ok(())
    }

    /// The next to be bound at a lease that nobody works on, if the thread is free for it.
    pub fn next_to_bind(&mut self, is_open: impl Fn(LeaseId) -> bool) -> Option<Waiting<T>> {
        if self.binding {
            return None;
        }
        let at = self.to_bind.iter().position(|waiting| is_open(waiting.lease()))?;
        self.binding = true;
        Some(self.to_bind.remove(at))
    }

    /// The one from [`next_to_bind`](Self::next_to_bind) is back.
    pub fn bound(&mut self) {
        self.binding = false;
    }

    /// Takes those out that wait in vain.
    pub fn remove(&mut self, in_vain: impl Fn(&Waiting<T>) -> bool) -> impl Iterator<Item = T> {
        let in_vain = &in_vain;
        let mut removed: Vec<_> = self.to_reach.extract_if(.., |waiting| in_vain(waiting)).collect();
        removed.extend(self.to_bind.extract_if(.., |waiting| in_vain(waiting)));
        removed.into_iter().map(|waiting| waiting.ticket)
    }
}
