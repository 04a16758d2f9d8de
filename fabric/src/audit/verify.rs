//! Checking a log: its chain, the signatures in it, and what witnesses saw.

use std::collections::BTreeMap;

use crate::ids::Fingerprint;

use super::{Checkpoint, Hash, Hashed, Line, MAX_DETAIL, MAX_FROM, MAX_WORD};

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// A record is not what was hashed.
    #[error("record {seq} was changed, or the one before it was: its hash is not that of the chain")]
    Edited {
        /// Which.
        seq: u64,
    },
    /// Records are missing, doubled or out of order.
    #[error("record {expected} is missing: record {found} stands in its place")]
    Gap {
        /// The one that should follow.
        expected: u64,
        /// The one that does.
        found: u64,
    },
    /// The log begins in the middle, with nothing that stands for what came before.
    #[error("the log begins with record {first}, and no checkpoint stands for the {} before it: verify the archive first, in one file with this", .first - 1)]
    NoBeginning {
        /// The first record.
        first: u64,
    },
    /// A checkpoint that nobody, or somebody else, signed.
    #[error("the checkpoint at record {seq} is not signed by the auth daemon {authd}")]
    Signature {
        /// Where.
        seq: u64,
        /// Who should have signed.
        authd: Fingerprint,
    },
    /// A checkpoint that was signed for other records than these.
    #[error("record {seq} is not the one that the auth daemon signed: the log was rewritten or forked at or before it")]
    Forked {
        /// Where.
        seq: u64,
    },
    /// The log ends too soon.
    #[error("the log ends with record {last}, and record {seen} was seen by a witness or signed: its end was cut off")]
    Truncated {
        /// The last record.
        last: u64,
        /// What there was.
        seen: u64,
    },
    /// A field is longer than any auth daemon writes.
    #[error("record {seq} has a field that no auth daemon writes")]
    Malformed {
        /// Which.
        seq: u64,
    },
}

/// What a log that holds has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The first record that was checked; 0 where there is none.
    pub first: u64,
    /// The last one; 0 where there is none.
    pub last: u64,
    /// Its hash.
    pub hash: Hash,
    /// How far signatures reach: records after this one rest on the chain alone.
    pub signed: u64,
    /// Signatures that were checked.
    pub checkpoints: u64,
    /// Heads that witnesses saw and that were found in the log.
    pub witnessed: u64,
    /// Heads that witnesses saw and that lie before the first record.
    pub earlier: u64,
}

/// Checks a log line by line, in constant memory but for the witness's heads.
#[derive(Debug)]
pub struct Verifier {
    authd: Fingerprint,
    /// Keys that the auth daemon had before.
    former: Vec<Fingerprint>,
    /// Where the chain is; none before the first line.
    at: Option<(u64, Hash)>,
    first: u64,
    signed: u64,
    checkpoints: u64,
    witnessed: u64,
    earlier: u64,
    /// What witnesses saw and was not met yet.
    heads: BTreeMap<u64, Hash>,
}

impl Verifier {
    /// For the log of the auth daemon with this fingerprint.
    #[must_use]
    pub fn new(authd: Fingerprint) -> Self {
        let heads = BTreeMap::new();
        Self {
            authd,
            former: Vec::new(),
            at: None,
            first: 0,
            signed: 0,
            checkpoints: 0,
            witnessed: 0,
            earlier: 0,
            heads,
        }
    }

    /// A key that the auth daemon had before, whose signatures count as well.
    pub fn accept(&mut self, former: Fingerprint) {
        self.former.push(former);
    }

    /// A head that a witness saw. To be told before the log is read.
    ///
    /// # Errors
    /// [`AuditError::Signature`]; [`AuditError::Forked`] where witnesses saw two heads at one record, both signed.
    pub fn witness(&mut self, head: &Checkpoint) -> Result<(), AuditError> {
        self.signature(head)?;
        match self.heads.insert(head.seq, head.hash) {
            Some(before) if before != head.hash => Err(AuditError::Forked { seq: head.seq }),
            _ => Ok(()),
        }
    }

    /// The next line of the log.
    ///
    /// # Errors
    /// [`AuditError`]: the log does not hold, and what follows proves nothing.
    pub fn line(&mut self, line: &Line) -> Result<(), AuditError> {
        match line {
            Line::Record(hashed) => self.record(hashed),
            Line::Checkpoint(checkpoint) => self.checkpoint(checkpoint),
        }
    }

    fn signature(&self, checkpoint: &Checkpoint) -> Result<(), AuditError> {
        let (seq, authd) = (checkpoint.seq, self.authd);
        match checkpoint.verify() {
            Ok(()) if [authd].iter().chain(&self.former).any(|it| *it == checkpoint.authd().fingerprint()) => Ok(()),
            _ => Err(AuditError::Signature { seq, authd }),
        }
    }

    fn record(&mut self, Hashed { record, hash }: &Hashed) -> Result<(), AuditError> {
        let seq = record.seq;
        let from = record.from.as_ref().map_or(0, String::len);
        let words = record.event.len().max(record.outcome.len());
        if words > MAX_WORD || record.detail.len() > MAX_DETAIL || from > MAX_FROM {
            return Err(AuditError::Malformed { seq });
        }
        let (last, before) = match self.at {
            Some(at) => at,
            None if seq == 1 => (0, Hash::genesis()),
            None => return Err(AuditError::NoBeginning { first: seq }),
        };
        if last.checked_add(1) != Some(seq) {
            return Err(AuditError::Gap { expected: last.saturating_add(1), found: seq });
        }
        if before.next(record) != *hash && !cfg!(feature = "danger-unchained-log") {
            return Err(AuditError::Edited { seq });
        }
        if self.first == 0 {
            self.first = seq;
        }
        self.reach(seq, *hash)
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), AuditError> {
        self.signature(checkpoint)?;
        let (last, hash) = match self.at {
            Some(at) => at,
            None if checkpoint.seq == 0 => (0, Hash::genesis()),
            None => (checkpoint.seq, checkpoint.hash),
        };
        if checkpoint.seq > last {
            return Err(AuditError::Truncated { last, seen: checkpoint.seq });
        }
        if checkpoint.seq < last {
            return Err(AuditError::Gap { expected: last.saturating_add(1), found: checkpoint.seq });
        }
        if checkpoint.hash != hash {
            return Err(AuditError::Forked { seq: last });
        }
        self.checkpoints += 1;
        self.signed = last;
        if self.at.is_none() {
            // Stands for all before it.
            let earlier = self.heads.split_off(&(last + u64::from(last < u64::MAX)));
            let before = std::mem::replace(&mut self.heads, earlier);
            if before.get(&last).is_some_and(|seen| *seen != hash) {
                return Err(AuditError::Forked { seq: last });
            }
            self.earlier += before.len() as u64;
        }
        self.at = Some((last, hash));
        Ok(())
    }

    /// The chain has come to this record.
    fn reach(&mut self, seq: u64, hash: Hash) -> Result<(), AuditError> {
        self.at = Some((seq, hash));
        match self.heads.remove(&seq) {
            Some(seen) if seen != hash => Err(AuditError::Forked { seq }),
            Some(_) => {
                self.witnessed += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The log is at its end: is that where it should be? `head` is what the auth daemon itself says, where it was asked.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn finish(mut self, head: Option<&Checkpoint>) -> Result<Verified, AuditError> {
        if let Some(head) = head {
            self.checkpoint(head)?;
        }
        let (last, hash) = self.at.unwrap_or((0, Hash::genesis()));
        // A head at 0 covers nothing.
        self.heads.remove(&0);
        if let Some(&seen) = self.heads.keys().next_back() {
            return Err(AuditError::Truncated { last, seen });
        }
        let Self { first, signed, checkpoints, witnessed, earlier, .. } = self;
        Ok(Verified { first, last, hash, signed, checkpoints, witnessed, earlier })
    }
}
