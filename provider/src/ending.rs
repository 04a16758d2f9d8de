//! The end of a lease, in the only order there is: closed, queue pairs destroyed, regions deregistered (from here on it
//! is fenced), overwritten, checked, back in the pool.
//!
//! Each state is a type that its step consumes, so a step can neither be left out nor come early; only the last one has
//! the extent to give back. A step that fails stops the sequence: what it leaves is a [`Failed`], whose memory can only
//! be quarantined.

use overbank_fabric::receipt::{Step, StepDone};

use crate::backend::{Backend, Fault};
use crate::clock::{BootTime, Clock};
use crate::crash;
use crate::hold::Hold;
use crate::pool::{Extent, Pool};

/// The steps that were done, with their times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps(Vec<StepDone>);

impl Steps {
    fn and(mut self, step: Step, at: BootTime) -> Self {
        self.0.push(StepDone { step, at_us: at.0 });
        self
    }

    /// As a receipt has them.
    #[must_use]
    pub fn into_vec(self) -> Vec<StepDone> {
        self.0
    }

    /// Whether nothing reaches the memory any more.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.0.iter().any(|done| done.step == Step::Deregistered)
    }
}

/// Takes no new attach.
pub struct Closed<B: Backend> {
    hold: Hold<B>,
    steps: Steps,
}

/// Nothing reaches the memory any more.
pub struct Fenced {
    extent: Extent,
    steps: Steps,
}

/// Overwritten, and read back as zeros.
pub struct Clean {
    extent: Extent,
    steps: Steps,
}

/// A sequence that stopped.
pub struct Failed {
    /// The step that was not done.
    pub step: Step,
    /// The steps before it.
    pub steps: Steps,
    /// What failed. These may keep alive what a device still uses.
    pub faults: Vec<Fault>,
    extent: Extent,
}

impl<B: Backend> Closed<B> {
    /// `at`: since when the lease took no new attach.
    #[must_use]
    pub fn new(hold: Hold<B>, at: BootTime) -> Self {
        Self { hold, steps: Steps(Vec::with_capacity(Step::ALL.len())).and(Step::Closed, at) }
    }

    /// Destroys the queue pairs, then deregisters the regions.
    ///
    /// # Errors
    /// [`Failed`]. The regions are deregistered even where a queue pair could not be destroyed: that reopens nothing,
    /// and leaves less behind. It is not claimed as done.
    pub fn fence(self, backend: &B, clock: &impl Clock) -> Result<Fenced, Box<Failed>> {
        crash::point("closed");
        let (regions, mut faults) = self.hold.destroy_queues(backend);
        let queues_gone = clock.now();
        crash::point("queue-pairs-destroyed");
        let (extent, unregistered) = regions.deregister(backend);
        if !faults.is_empty() {
            faults.extend(unregistered);
            return Err(Failed::at(Step::QueuePairsDestroyed, self.steps, faults, extent));
        }
        let steps = self.steps.and(Step::QueuePairsDestroyed, queues_gone);
        if !unregistered.is_empty() {
            return Err(Failed::at(Step::Deregistered, steps, unregistered, extent));
        }
        crash::point("deregistered");
        Ok(Fenced { extent, steps: steps.and(Step::Deregistered, clock.now()) })
    }
}

impl Fenced {
    /// Overwrites the whole extent, then checks it.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn wipe<B: Backend>(self, backend: &B, clock: &impl Clock) -> Result<Clean, Box<Failed>> {
        let Self { extent, steps } = self;
        if crash::is_wanted("wiping") {
            let bytes = extent.bytes();
            let _ = backend.wipe(bytes.start..bytes.start + extent.len() / 2);
            crash::point("wiping");
        }
        if let Err(fault) = backend.wipe(extent.bytes()) {
            return Err(Failed::at(Step::Wiped, steps, vec![fault], extent));
        }
        crash::point("wiped");
        let steps = steps.and(Step::Wiped, clock.now());
        match backend.first_nonzero(extent.bytes()) {
            Ok(None) => {
                crash::point("verified");
                Ok(Clean { extent, steps: steps.and(Step::Verified, clock.now()) })
            }
            Ok(Some(offset)) => {
                let fault =
                    Fault::new("checking memory", format!("byte {offset} of the pool is not zero after the wipe"));
                Err(Failed::at(Step::Verified, steps, vec![fault], extent))
            }
            Err(fault) => Err(Failed::at(Step::Verified, steps, vec![fault], extent)),
        }
    }
}

impl Clean {
    /// Gives the memory back.
    #[must_use]
    pub fn free(self, pool: &mut Pool, now: BootTime) -> Steps {
        pool.give_back(self.extent);
        crash::point("freed");
        self.steps.and(Step::Freed, now)
    }
}

impl Failed {
    fn at(step: Step, steps: Steps, faults: Vec<Fault>, extent: Extent) -> Box<Self> {
        Box::new(Self { step, steps, faults, extent })
    }

    /// Withholds the memory for good.
    #[must_use]
    pub fn quarantine(self, pool: &mut Pool) -> (Step, Steps, Vec<Fault>) {
        match cfg!(feature = "danger-reuse") {
            true => pool.give_back(self.extent),
            false => pool.quarantine(self.extent),
        }
        (self.step, self.steps, self.faults)
    }
}

#[cfg(test)]
#[path = "ending_tests.rs"]
mod tests;
