//! One lease, from carved to over.
//!
//! ```text
//!              +-- Busy <-+  a job has the hold: attach, detach
//!              v          |
//! Opening --> Open -------+
//!    |          |
//!    |          v  the end: expired, released, revoked, stopped, drained, unknown
//!    |       Fencing --> Wiping --> Over, memory back in the pool
//!    |          |           |
//!    |          +-----------+-----> Over, memory quarantined
//!    +-- nothing was registered: forgotten
//! ```
//!
//! An end that comes while a job has the hold closes the lease at once and fences it as soon as the hold is back.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;

use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{BootId, LeaseId, Nonce, Tenant};
use overbank_fabric::message::{Refusal, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Receipt};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::Tick;

use crate::attach::Admission;
use crate::backend::Backend;
use crate::clock::BootTime;
use crate::ending::{Closed, Steps};
use crate::hold::{Hold, Shape, Usage};
use crate::job::{Job, Task};
use crate::waiting::Ending;

/// Most nonces of unexpired tokens that are remembered for one lease.
pub const MAX_NONCES: u64 = 16_384;

/// Most identities that are barred from one lease.
pub const MAX_BARRED: usize = 4096;

/// An answer to an order, and whom it is for.
pub type Answer<T> = (T, Result<Reply, Refusal>);

/// A lease of this provider. `T` is whom to answer.
pub struct Lease<B: Backend, T> {
    /// In whose name.
    pub tenant: Tenant,
    /// Who lends it: the key by which its holder knows this provider, whatever key it takes later.
    pub signer: Arc<Identity>,
    /// Its blocks.
    pub shape: Shape,
    /// Bytes of its extent.
    pub pinned: u64,
    /// The first tick at which it is over.
    pub deadline: Tick,
    /// Where it stands.
    pub phase: Phase<B>,
    /// Set once its end has begun.
    pub end: Option<End>,
    /// Says so to others.
    pub ending: Ending,
    /// Who waits for it to be carved.
    pub carving: Vec<T>,
    /// Who waits for it to be fenced.
    pub fencing: Vec<T>,
    /// Who waits for somebody to be detached.
    pub detaching: Vec<T>,
    /// Through whose hands no token is good any more.
    barred: BTreeSet<PublicKey>,
    /// Used nonces, by the deadline of the token that each came with.
    nonces: BTreeSet<(Tick, Nonce)>,
    /// What its hold took of the device when a job got it.
    given: Usage,
}

/// How a lease's end began.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// When it should have.
    pub due: BootTime,
    /// When it did: no attach since.
    pub closed: BootTime,
}

/// Where a lease stands.
pub enum Phase<B: Backend> {
    /// Its region is being registered.
    Opening,
    /// Nobody works on it.
    Open(Hold<B>),
    /// A job has its hold.
    Busy,
    /// Being made unreachable.
    Fencing,
    /// Unreachable, being overwritten.
    Wiping,
    /// Its receipt waits to be acknowledged.
    Over {
        /// The provider's word.
        receipt: Signed<Receipt>,
        /// Whether its memory is out of reach.
        fenced: bool,
    },
}

/// A phase without what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "as in Phase")]
pub enum Name {
    Opening,
    Open,
    Busy,
    Fencing,
    Wiping,
    Over,
}

/// Every move from phase to phase that there is.
pub const MOVES: [(Name, Name); 7] = [
    (Name::Opening, Name::Open),
    (Name::Open, Name::Busy),
    (Name::Busy, Name::Open),
    (Name::Busy, Name::Fencing),
    (Name::Fencing, Name::Wiping),
    (Name::Fencing, Name::Over),
    (Name::Wiping, Name::Over),
];

impl<B: Backend> Phase<B> {
    /// Which it is.
    #[must_use]
    pub fn name(&self) -> Name {
        match self {
            Self::Opening => Name::Opening,
            Self::Open(_) => Name::Open,
            Self::Busy => Name::Busy,
            Self::Fencing => Name::Fencing,
            Self::Wiping => Name::Wiping,
            Self::Over { .. } => Name::Over,
        }
    }
}

impl<B: Backend, T> Lease<B, T> {
    /// A lease whose region is about to be registered; `carver` is told when it is.
    #[must_use]
    pub fn new(tenant: Tenant, signer: Arc<Identity>, shape: Shape, pinned: u64, deadline: Tick, carver: T) -> Self {
        Self {
            tenant,
            signer,
            shape,
            pinned,
            deadline,
            phase: Phase::Opening,
            end: None,
            carving: vec![carver],
            fencing: Vec::new(),
            ending: Ending::default(),
            detaching: Vec::new(),
            barred: BTreeSet::new(),
            nonces: BTreeSet::new(),
            given: Usage::default(),
        }
    }

    /// Moves on to another phase, as [`MOVES`] has it.
    pub fn enter(&mut self, phase: Phase<B>) -> Phase<B> {
        debug_assert!(MOVES.contains(&(self.phase.name(), phase.name())), "no such move");
        mem::replace(&mut self.phase, phase)
    }

    /// When something is due by itself: the lease's deadline, or an attachment's.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        if self.end.is_some() || cfg!(feature = "danger-no-expiry") {
            return None;
        }
        let detach = match &self.phase {
            Phase::Open(hold) => hold.next_detach(),
            _ => None,
        };
        Some(detach.map_or(self.deadline, |detach| detach.min(self.deadline)))
    }

    /// Allows an attach request whose contents are allowed, once. `room`: how many nonces its tenant leaves to this lease.
    ///
    /// # Errors
    /// A refusal.
    pub fn admit(&mut self, now: BootTime, admission: &Admission, room: u64) -> Result<(), Refusal> {
        self.ending.check()?;
        self.check_hands(admission)?;
        let scope = &admission.scope;
        if scope.deadline.tick <= now.tick() {
            return Err(Refusal::new(
                RefusalCode::BadToken,
                "the token has expired; attach with the token of a renewal",
            ));
        }
        if scope.first_block.checked_add(scope.blocks).is_none_or(|end| end > self.shape.blocks) {
            let why = format!("the token's blocks reach beyond the lease's {}", self.shape.blocks);
            return Err(Refusal::new(RefusalCode::BadToken, why));
        }
        let nonce = (scope.deadline.tick, admission.nonce);
        if self.nonces.contains(&nonce) {
            return Err(Refusal::new(RefusalCode::Invalid, "this attach request was used before; make a fresh one"));
        }
        let has = self.nonces.len() as u64;
        if has >= room.min(MAX_NONCES) {
            let why = format!(
                "this lease was attached {has} times with tokens that are still good, and others of its tenant, as often as \
                 is remembered: wait until older tokens expire, or make a new lease"
            );
            return Err(Refusal::new(RefusalCode::Busy, why));
        }
        self.nonces.insert(nonce);
        Ok(())
    }

    /// Forgets the nonces of expired tokens: their requests are refused for that.
    pub fn forget_nonces(&mut self, now: BootTime) {
        while self.nonces.first().is_some_and(|(deadline, _)| *deadline <= now.tick()) {
            self.nonces.pop_first();
        }
    }

    /// As if it had been attached so often.
    #[cfg(test)]
    pub(crate) fn remember(&mut self, nonces: u64, deadline: Tick) {
        self.nonces.extend((0..nonces).map(|nonce| (deadline, Nonce(u128::from(nonce).to_be_bytes()))));
    }

    /// Remembered nonces.
    #[must_use]
    pub fn nonces(&self) -> u64 {
        self.nonces.len() as u64
    }

    /// Whether a token's hands are all allowed still.
    ///
    /// # Errors
    /// A refusal.
    pub fn check_hands(&self, admission: &Admission) -> Result<(), Refusal> {
        if !admission.hands.iter().any(|hand| self.barred.contains(hand)) {
            return Ok(());
        }
        Err(barred())
    }

    /// From here on nobody attaches by a token that was in these hands. `waiter` is told when nobody is attached so.
    ///
    /// # Errors
    /// Whom to refuse, and how.
    pub fn bar(&mut self, holder: PublicKey, waiter: T) -> Result<(), (T, Refusal)> {
        if self.barred.len() >= MAX_BARRED && !self.barred.contains(&holder) {
            let why = format!("{MAX_BARRED} identities are barred from this lease, which is the most: end the lease");
            return Err((waiter, Refusal::new(RefusalCode::Busy, why)));
        }
        self.barred.insert(holder);
        self.detaching.push(waiter);
        Ok(())
    }

    /// Those who waited for a detach that is done, and what to tell them.
    pub fn detached(&mut self) -> Vec<Answer<T>> {
        let outcome = match &self.phase {
            Phase::Open(hold) if hold.serves(&self.barred) => return Vec::new(),
            Phase::Open(hold) if hold.is_stuck() => Err(not_detached()),
            Phase::Open(_) => Ok(Reply::Done),
            _ => return Vec::new(),
        };
        self.detaching.drain(..).map(|waiter| (waiter, outcome.clone())).collect()
    }

    /// Begins the end, if it has not begun: from here on there is no new attach.
    pub fn close(&mut self, now: BootTime, reason: EndReason, due: BootTime) {
        self.ending.begin();
        self.end.get_or_insert(End { reason, due, closed: now });
    }

    /// What it takes of the device beside its own region; while a job has its hold, what that took before.
    #[must_use]
    pub fn usage(&self) -> Usage {
        match &self.phase {
            Phase::Open(hold) => hold.usage(),
            Phase::Busy | Phase::Fencing => self.given,
            Phase::Opening | Phase::Wiping | Phase::Over { .. } => Usage::default(),
        }
    }

    /// Its hold, for a job, if nobody works on it.
    pub fn take_hold(&mut self) -> Option<Hold<B>> {
        if !matches!(self.phase, Phase::Open(_)) {
            return None;
        }
        self.given = self.usage();
        match self.enter(Phase::Busy) {
            Phase::Open(hold) => Some(hold),
            _ => None,
        }
    }

    /// What to do next, if nobody works on the lease: its end before all, then attachments that are over.
    pub fn next_job(&mut self, id: LeaseId, now: BootTime) -> Option<Job<B, T>> {
        let hold = self.take_hold()?;
        if let Some(end) = self.end {
            self.enter(Phase::Fencing);
            return Some(Job { lease: id, task: Task::Fence(Closed::new(hold, end.closed)) });
        }
        if hold.next_detach().is_some_and(|tick| tick <= now.tick()) || hold.serves(&self.barred) {
            return Some(Job { lease: id, task: Task::Detach(hold, now.tick(), self.barred.clone()) });
        }
        self.enter(Phase::Open(hold));
        None
    }

    /// The end of the end: signs what was done.
    pub fn finish(&mut self, id: LeaseId, boot: BootId, steps: Steps) {
        let fenced = steps.is_fenced();
        let (reason, due) = self.end.map_or((EndReason::Unknown, BootTime(0)), |end| (end.reason, end.due));
        let receipt = Receipt {
            lease: id,
            tenant: self.tenant.clone(),
            provider: self.signer.public(),
            boot,
            bytes: self.pinned,
            reason,
            due_us: due.0,
            steps: steps.into_vec(),
        };
        self.enter(Phase::Over { receipt: Signed::new(&receipt, &self.signer), fenced });
        self.nonces = BTreeSet::new();
    }
}

/// The refusal for a token that was in the hands of somebody who was revoked.
#[must_use]
pub fn barred() -> Refusal {
    let why = "the token came from, or through, somebody who was revoked: have the lease shared anew";
    Refusal::new(RefusalCode::BadToken, why)
}

fn not_detached() -> Refusal {
    let why = "something of an attach could not be destroyed: its memory may be within reach until the lease is ended";
    Refusal::new(RefusalCode::Internal, why)
}
