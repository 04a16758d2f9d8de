//! Erasure receipts: the provider's signed word on how a lease ended, step by step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;
use crate::ids::{BootId, LeaseId, Tenant};
use crate::labels;
use crate::signed::Statement;

/// Why a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// Its deadline came.
    Expired,
    /// Its holder gave it back.
    Released,
    /// Its holder's identity was revoked.
    Revoked,
    /// An operator stopped it.
    Stopped,
    /// The provider was drained or shut down.
    Drained,
    /// The auth daemon does not know it (any more).
    Unknown,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
            Self::Drained => "drained",
            Self::Unknown => "unknown to the auth daemon",
        })
    }
}

/// The steps of a lease's end, in the only order there is. The first three are the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// No new attach.
    Closed,
    /// All queue pairs in ERROR and destroyed.
    QueuePairsDestroyed,
    /// Every region that covers any byte of the lease deregistered.
    Deregistered,
    /// Memory overwritten.
    Wiped,
    /// The overwrite checked: every byte read back as zero.
    Verified,
    /// Back in the pool.
    Freed,
}

impl Step {
    /// All, in order.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::QueuePairsDestroyed, Self::Deregistered, Self::Wiped, Self::Verified, Self::Freed];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed to new attaches",
            Self::QueuePairsDestroyed => "queue pairs destroyed",
            Self::Deregistered => "regions deregistered",
            Self::Wiped => "memory overwritten",
            Self::Verified => "overwrite checked",
            Self::Freed => "back in the pool",
        })
    }
}

/// When a step was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepDone {
    /// Which.
    pub step: Step,
    /// Microseconds of the provider's CLOCK_BOOTTIME.
    pub at_us: u64,
}

/// The provider's word. A receipt that lacks a step says that the memory is quarantined, never that it is clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The lease.
    pub lease: LeaseId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Who signs.
    pub provider: PublicKey,
    /// The provider's life.
    pub boot: BootId,
    /// Bytes of memory that were pinned for it, and overwritten.
    pub bytes: u64,
    /// Why it ended.
    pub reason: EndReason,
    /// Microseconds of CLOCK_BOOTTIME at which the end was due: the deadline, or when the order came.
    pub due_us: u64,
    /// The steps that were done, in order.
    pub steps: Vec<StepDone>,
}

impl Receipt {
    /// Whether all steps were done, in order, at times that do not run backwards.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.steps.iter().map(|done| done.step).eq(Step::ALL) && self.steps.is_sorted_by_key(|done| done.at_us)
    }
}

impl Statement for Receipt {
    const LABEL: &'static [u8] = labels::RECEIPT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_complete_only_with_every_step_in_order() {
        let steps: Vec<_> = Step::ALL.iter().zip(1..).map(|(&step, at_us)| StepDone { step, at_us }).collect();
        let receipt = Receipt {
            lease: LeaseId([1; 16]),
            tenant: "t".parse().expect("a name"),
            provider: PublicKey([0; 32]),
            boot: BootId([2; 16]),
            bytes: 1,
            reason: EndReason::Expired,
            due_us: 0,
            steps,
        };
        assert!(receipt.is_complete());
        for gone in 0..Step::ALL.len() {
            let mut less = receipt.clone();
            less.steps.remove(gone);
            assert!(!less.is_complete(), "without {gone}");
        }
        let mut swapped = receipt.clone();
        swapped.steps.swap(2, 3);
        assert!(!swapped.is_complete());
        let mut backwards = receipt;
        backwards.steps[4].at_us = 0;
        assert!(!backwards.is_complete());
    }
}
