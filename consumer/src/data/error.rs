//! Why bytes were not read or written.

use overbank_fabric::block::SealError;
use overbank_verbs::{Op, VerbsError, WcStatus};

use crate::freshness::TooManySalts;

/// Why bytes were not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Bytes outside of the lease, or of the part of it that was attached. Nothing was sent.
    #[error("bytes {offset} to {offset}+{len} are not within bytes {first} to {end} of the lease")]
    Range {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// First byte that this lane reaches.
        first: u64,
        /// The byte after the last that it reaches.
        end: u64,
    },
    /// The grant lacks the right. Nothing was sent.
    #[error("this lease was not granted for {}", match op { Op::Read => "reading (and a write of less than a block reads)", Op::Write => "writing" })]
    NotGranted {
        /// What it lacks.
        op: Op,
    },
    /// The lease's deadline has come, or comes before the answer can.
    #[error("the lease is over: renew it earlier, or make a new one")]
    LeaseOver,
    /// Not done by the caller's deadline. What of a write was sent may have arrived.
    #[error("the provider did not answer before the deadline")]
    Timeout,
    /// The provider's device did not let us: the lease has ended there, or another attach has taken our place.
    #[error("the provider refused access ({status}): the lease has ended, or it was attached anew elsewhere")]
    Refused {
        /// Its answer.
        status: WcStatus,
    },
    /// The provider's device did not answer, however often it was asked.
    #[error("the provider does not answer: it died, restarted, or cannot be reached")]
    ProviderSilent,
    /// The connection was taken down and not yet made anew.
    #[error("the connection to the provider is down: attach again")]
    Detached,
    /// An answer to an attach that no honest provider gives.
    #[error("the provider's answer to the attach makes no sense: {0}")]
    Window(&'static str),

    /// An earlier write of this block is not known to have arrived; it is written again after the next attach.
    #[error("an earlier write of block {block} is not settled: attach again, and it is written again")]
    Unsettled {
        /// Which.
        block: u64,
    },
    /// Not what was sealed for this block.
    #[error("block {block} was changed by somebody who does not have the lease's key")]
    Tampered {
        /// Which.
        block: u64,
    },
    /// Sealed for this block, but not what was written last.
    #[error("block {block} holds an older content than was written last: somebody played it back")]
    Stale {
        /// Which.
        block: u64,
    },
    /// What was written to another block.
    #[error("block {block} holds what was written to block {from}: somebody moved it")]
    Moved {
        /// Which.
        block: u64,
        /// Where its content belongs.
        from: u64,
    },
    /// Empty, though something was written.
    #[error("block {block} is empty, but it was written: somebody erased it")]
    Erased {
        /// Which.
        block: u64,
    },
    /// Does not open, and who wrote it last may have died while writing.
    #[error("block {block} does not open: its last write was cut short, or somebody changed it")]
    Torn {
        /// Which.
        block: u64,
    },
    /// It cannot be told whether this is what was written last, and the caller did not ask for it all the same.
    #[error("block {block} may not be what was written last: a process that wrote this lease did not end well")]
    FreshnessUnknown {
        /// Which.
        block: u64,
    },

    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No room for another lane's salt.
    #[error(transparent)]
    Salts(#[from] TooManySalts),
    /// The engine could not open anything, for lack of memory.
    #[error("the AES-GCM engine failed")]
    Engine,
    /// This machine's device.
    #[error("the device: {0}")]
    Device(#[from] VerbsError),
    /// A status that this machine's device should not give.
    #[error("the device failed: {0}")]
    Status(WcStatus),
}

impl DataError {
    /// Whether what was in the lease did not come back as it was written.
    #[must_use]
    pub fn is_contents(&self) -> bool {
        matches!(
            self,
            Self::Unsettled { .. }
                | Self::Tampered { .. }
                | Self::Stale { .. }
                | Self::Moved { .. }
                | Self::Erased { .. }
                | Self::Torn { .. }
                | Self::FreshnessUnknown { .. }
        )
    }

    /// What a request's end other than success means.
    pub(super) fn of(status: WcStatus) -> Self {
        match status {
            WcStatus::REM_ACCESS_ERR | WcStatus::REM_INV_REQ_ERR | WcStatus::REM_OP_ERR => Self::Refused { status },
            // These, too, a peer can bring about: an answer too long, a bad answer, not ready, and older kinds of refusal.
            WcStatus::LOC_LEN_ERR | WcStatus(7 | 13 | 15 | 16) => Self::Refused { status },
            WcStatus::RETRY_EXC_ERR => Self::ProviderSilent,
            WcStatus::WR_FLUSH_ERR => Self::Detached,
            status => Self::Status(status),
        }
    }
}
