//! What the engine counts.

use super::wire::Malformed;

/// Why a packet was not taken. The sender is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    Truncated,
    Length,
    UnknownQueuePair,
    /// The queue pair is not connected yet, or in ERROR.
    NotReady,
    WrongSource,
    PartitionKey,
    Version,
    Icrc,
    UnknownOpcode,
    /// A request behind a gap.
    OutOfSequence,
    /// A READ asked for again that never was asked for, or of which too many are waiting already.
    DuplicateRead,
    /// A response that was taken before.
    StaleResponse,
    /// A response to nothing that was asked.
    UnexpectedResponse,
}

impl Dropped {
    const ALL: [(Self, &'static str); 13] = [
        (Self::Truncated, "truncated"),
        (Self::Length, "impossible length"),
        (Self::UnknownQueuePair, "unknown queue pair"),
        (Self::NotReady, "queue pair not ready"),
        (Self::WrongSource, "wrong source address"),
        (Self::PartitionKey, "partition key"),
        (Self::Version, "transport header version"),
        (Self::Icrc, "ICRC"),
        (Self::UnknownOpcode, "unknown opcode"),
        (Self::OutOfSequence, "out of sequence"),
        (Self::DuplicateRead, "READ repeated"),
        (Self::StaleResponse, "stale response"),
        (Self::UnexpectedResponse, "unexpected response"),
    ];
}

impl From<Malformed> for Dropped {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Truncated => Self::Truncated,
            Malformed::Length => Self::Length,
            Malformed::Opcode => Self::UnknownOpcode,
        }
    }
}

/// Since the engine was made.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) retransmitted: u64,
    dropped: [u64; Dropped::ALL.len()],
}

impl Counts {
    pub(super) fn drop(&mut self, reason: Dropped) {
        self.dropped[reason as usize] += 1;
    }

    /// With the names of what was dropped, where something was.
    pub(super) fn report(&self) -> crate::Counters {
        let dropped = Dropped::ALL.iter().map(|(reason, name)| (*name, self.dropped[*reason as usize]));
        crate::Counters {
            sent: self.sent,
            received: self.received,
            retransmitted: self.retransmitted,
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
