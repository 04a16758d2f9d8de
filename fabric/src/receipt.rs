//! Erasure receipts: the provider's signed word on how a lease ended, step by step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;
use crate::ids::{BootId, Fingerprint, LeaseId, Tenant};
use crate::labels;
use crate::signed::{Signed, Statement, StatementError, from_cbor, to_cbor};

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
        self.fault().is_none()
    }

    /// What keeps it from being complete.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        if !Step::ALL.iter().all(|step| self.steps.iter().any(|done| done.step == *step)) {
            Some("a step is missing")
        } else if !self.steps.iter().map(|done| done.step).eq(Step::ALL) {
            Some("its steps are in another order than they must be done")
        } else if !self.steps.is_sorted_by_key(|done| done.at_us) {
            Some("its times run backwards")
        } else {
            None
        }
    }
}

const MAGIC: [u8; 8] = *b"OVBRECPT";
const VERSION: u16 = 1;
/// Longest receipt file that is read. A real one has some 700 bytes.
pub const MAX_FILE: usize = 4096;

/// Why a receipt file says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// It never was one, or it was cut.
    #[error("this is no receipt: {0}")]
    Malformed(&'static str),
    /// Made by a newer version.
    #[error("the receipt has version {0}, and this program reads {VERSION}: use a newer one")]
    Newer(u16),
    /// Changed since it was signed.
    #[error("the receipt was changed, or is not signed by the provider that it names")]
    Signature,
    /// Another provider's.
    #[error("the receipt is of the provider {signed_by}, not of {expected}")]
    OtherProvider {
        /// Who signed it.
        signed_by: Fingerprint,
        /// Who should have.
        expected: Fingerprint,
    },
    /// Not all of the end was done.
    #[error("the receipt is incomplete ({0}): it says that the memory was kept apart, not that it is clean")]
    Incomplete(&'static str),
}

/// A receipt as a file that can be checked anywhere: magic 8 (`OVBRECPT`) ‖ version u16 (1) ‖ CBOR of the signed receipt,
/// which names the provider's whole key.
#[must_use]
pub fn to_file(signed: &Signed<Receipt>) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_be_bytes(), &to_cbor(signed)].concat()
}

/// Reads what [`to_file`] made. Asks nobody; `provider` is who should have signed it, none: whoever it names.
///
/// # Errors
/// [`ReceiptError`]; also where the receipt holds but does not say that the memory is clean.
pub fn verify_file(bytes: &[u8], provider: Option<Fingerprint>) -> Result<Receipt, ReceiptError> {
    if bytes.len() > MAX_FILE {
        return Err(ReceiptError::Malformed("it is too long"));
    }
    let (head, body) = bytes.split_first_chunk::<10>().ok_or(ReceiptError::Malformed("it is cut short"))?;
    if head[..8] != MAGIC {
        return Err(ReceiptError::Malformed("it does not begin like one"));
    }
    match u16::from_be_bytes([head[8], head[9]]) {
        VERSION => {}
        newer if newer > VERSION => return Err(ReceiptError::Newer(newer)),
        _ => return Err(ReceiptError::Malformed("version 0")),
    }
    let signed: Signed<Receipt> =
        from_cbor(body).map_err(|_| ReceiptError::Malformed("it is cut short, or its contents make no sense"))?;
    let receipt = signed.open_by(|receipt| receipt.provider).map_err(|error| match error {
        StatementError::Identity(_) => ReceiptError::Signature,
        StatementError::Cbor(_) => ReceiptError::Malformed("its contents make no sense"),
    })?;
    let signed_by = receipt.provider.fingerprint();
    if let Some(expected) = provider.filter(|&expected| expected != signed_by) {
        return Err(ReceiptError::OtherProvider { signed_by, expected });
    }
    match receipt.fault() {
        Some(fault) => Err(ReceiptError::Incomplete(fault)),
        None => Ok(receipt),
    }
}

impl Statement for Receipt {
    const LABEL: &'static [u8] = labels::RECEIPT;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn signed(provider: &Identity, steps: &[Step]) -> Signed<Receipt> {
        let steps = steps.iter().zip(1..).map(|(&step, at_us)| StepDone { step, at_us }).collect();
        let receipt = Receipt {
            lease: LeaseId([1; 16]),
            tenant: "t".parse().expect("a name"),
            provider: provider.public(),
            boot: BootId([2; 16]),
            bytes: 1,
            reason: EndReason::Released,
            due_us: 0,
            steps,
        };
        Signed::new(&receipt, provider)
    }

    #[test]
    fn a_receipt_file_is_believed_whole_and_of_its_provider_alone() {
        let (provider, other) = (Identity::generate(), Identity::generate());
        let file = to_file(&signed(&provider, &Step::ALL));
        let fingerprint = provider.public().fingerprint();
        for named in [None, Some(fingerprint)] {
            assert_eq!(verify_file(&file, named).expect("good").reason, EndReason::Released);
        }
        let expected = other.public().fingerprint();
        let refused = Err(ReceiptError::OtherProvider { signed_by: fingerprint, expected });
        assert_eq!(verify_file(&file, Some(expected)), refused);
        for cut in 0..file.len() {
            assert!(matches!(verify_file(&file[..cut], None), Err(ReceiptError::Malformed(_))), "cut at {cut}");
        }
        for at in 0..file.len() {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(verify_file(&flipped, None).is_err(), "flipped at {at}");
        }
        assert!(verify_file(&[&file[..], &[0]].concat(), None).is_err());
        assert!(verify_file(&vec![0; MAX_FILE + 1], None).is_err());
        // In the name of a provider that did not sign it.
        let mut named: Receipt = signed(&other, &Step::ALL).open(&other.public()).expect("good");
        named.provider = provider.public();
        assert_eq!(verify_file(&to_file(&Signed::new(&named, &other)), None), Err(ReceiptError::Signature));
    }

    #[test]
    fn a_receipt_file_that_lacks_a_step_says_so() {
        let provider = Identity::generate();
        for gone in 0..Step::ALL.len() {
            let mut steps = Step::ALL.to_vec();
            steps.remove(gone);
            let file = to_file(&signed(&provider, &steps));
            assert_eq!(verify_file(&file, None), Err(ReceiptError::Incomplete("a step is missing")), "{gone}");
        }
        let mut swapped = Step::ALL;
        swapped.swap(2, 3);
        let file = to_file(&signed(&provider, &swapped));
        assert!(matches!(verify_file(&file, None), Err(ReceiptError::Incomplete(why)) if why.contains("order")));
    }

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
