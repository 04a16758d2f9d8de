//! Work on a lease that may take long, and therefore never runs where leases are decided on. A job carries what it works
//! on and gives it back in its result, so that nobody else can touch it meanwhile.

use std::collections::BTreeSet;

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::Refusal;
use overbank_fabric::time::Tick;

use crate::backend::{Backend, Fault};
use crate::clock::Clock;
use crate::ending::{Clean, Closed, Failed, Fenced};
use crate::hold::{Binding, Hold, Shape};
use crate::pool::Extent;
use crate::waiting::{REACHERS, Waiting};

/// Threads that fence: a large lease does not keep others waiting.
pub const FENCERS: usize = 4;

/// Something to be done about a lease. `T` is whom to answer.
pub struct Job<B: Backend, T> {
    /// Which lease.
    pub lease: LeaseId,
    /// What.
    pub task: Task<B, T>,
}

/// What is to be done.
pub enum Task<B: Backend, T> {
    /// Register a new lease's blocks.
    Open(Extent, Shape),
    /// Reach a holder's addresses.
    Reach(Waiting<T>),
    /// Attach a holder.
    Bind(Hold<B>, Waiting<T>),
    /// End the attachments whose tokens have run out by this tick, or went through these hands.
    Detach(Hold<B>, Tick, BTreeSet<PublicKey>),
    /// Make its memory unreachable.
    Fence(Closed<B>),
    /// Overwrite its memory and check it.
    Wipe(Fenced),
}

/// Who does which jobs: a long one never keeps a more urgent one waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Registers.
    Opener,
    /// Reach addresses, without a lease.
    Reachers,
    /// Attaches.
    Binder,
    /// Detach: whoever keeps them busy keeps nobody's fence waiting.
    Detacher,
    /// Fence, several at a time.
    Fencer,
    /// Overwrites.
    Wiper,
}

impl Lane {
    /// All.
    pub const ALL: [Self; 6] = [Self::Opener, Self::Reachers, Self::Binder, Self::Detacher, Self::Fencer, Self::Wiper];

    /// How many threads it has.
    #[must_use]
    pub fn threads(self) -> usize {
        match self {
            Self::Reachers => REACHERS,
            Self::Fencer => FENCERS,
            Self::Opener | Self::Binder | Self::Detacher | Self::Wiper => 1,
        }
    }
}

/// A job that is done, well or not.
pub struct Done<B: Backend, T> {
    /// Which lease.
    pub lease: LeaseId,
    /// What came of it.
    pub outcome: Outcome<B, T>,
}

/// What came of a job.
pub enum Outcome<B: Backend, T> {
    /// Of [`Task::Open`].
    Opened(Result<Hold<B>, (Extent, Fault)>),
    /// Of [`Task::Reach`].
    Reached(Waiting<T>, Result<(), Refusal>),
    /// Of [`Task::Bind`].
    Bound(Hold<B>, Waiting<T>, Result<Binding, Refusal>),
    /// Of [`Task::Detach`].
    Detached(Hold<B>),
    /// Of [`Task::Fence`].
    Fenced(Result<Fenced, Box<Failed>>),
    /// Of [`Task::Wipe`].
    Wiped(Result<Clean, Box<Failed>>),
}

impl<B: Backend, T> Job<B, T> {
    /// Whose work it is.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self.task {
            Task::Open(..) => Lane::Opener,
            Task::Reach(..) => Lane::Reachers,
            Task::Bind(..) => Lane::Binder,
            Task::Detach(..) => Lane::Detacher,
            Task::Fence(..) => Lane::Fencer,
            Task::Wipe(..) => Lane::Wiper,
        }
    }

    /// Does it.
    pub fn run(self, backend: &B, clock: &impl Clock) -> Done<B, T> {
        let outcome = match self.task {
            Task::Open(extent, shape) => Outcome::Opened(Hold::open(backend, extent, shape)),
            Task::Reach(waiting) => {
                let reached = waiting.reach(backend, clock);
                Outcome::Reached(waiting, reached)
            }
            Task::Bind(mut hold, waiting) => {
                let binding = hold.bind(backend, &waiting.admission, |detach| waiting.go_on(clock.now(), detach));
                Outcome::Bound(hold, waiting, binding)
            }
            Task::Detach(mut hold, now, barred) => {
                hold.detach_due(backend, now, &barred);
                Outcome::Detached(hold)
            }
            Task::Fence(closed) => Outcome::Fenced(closed.fence(backend, clock)),
            Task::Wipe(fenced) => Outcome::Wiped(fenced.wipe(backend, clock)),
        };
        Done { lease: self.lease, outcome }
    }
}
