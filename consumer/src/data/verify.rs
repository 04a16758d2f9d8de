//! What a block that was fetched is worth.

use std::sync::Arc;
use std::time::Instant;

use overbank_fabric::block::{OpenError, Opener};

use super::{Contents, DataError, OnUnknown};
use crate::freshness::{Entry, Freshness, SaltView};

/// What was found.
pub(super) enum Verdict {
    /// The output holds what is in the block.
    Good,
    /// Somebody in this process was writing it meanwhile: fetch it again.
    Racing,
    /// It does not open: fetch it a few more times, for it may have been caught in the middle of a write.
    Unopened(DataError),
    /// Nothing to hope for.
    Bad(DataError),
}

/// Opens blocks and compares them with the freshness table.
pub(super) struct Verifier {
    opener: Opener,
    freshness: Arc<Freshness>,
    salts: SaltView,
    on_unknown: OnUnknown,
}

impl Verifier {
    pub(super) fn new(contents: &Contents) -> Self {
        Self {
            opener: Opener::new(&contents.key, &contents.context),
            freshness: Arc::clone(&contents.freshness),
            salts: SaltView::default(),
            on_unknown: contents.on_unknown,
        }
    }

    pub(super) fn know_salts(&mut self) {
        self.salts.know(&self.freshness);
    }

    /// Opens `stride` into `out`. `before` is the block's entry before the READ was posted; `mine` says that the caller
    /// has the right to write the block. Where the verdict is not `Good`, `out` holds zeros.
    pub(super) fn check(&mut self, block: u64, before: Entry, mine: bool, stride: &[u8], out: &mut [u8]) -> Verdict {
        let opened = self.opener.open(block, stride, out);
        // In this order: see `Freshness::is_writing`.
        let writing = !mine && self.freshness.is_writing(block);
        let entry = self.freshness.entry(block);
        let bad = match opened {
            Ok(stamp) => {
                // What was last when the READ began is as good as what is last now.
                let matches = cfg!(feature = "danger-no-freshness")
                    || self.salts.matches(&self.freshness, entry, stamp)
                    || (before != entry && self.salts.matches(&self.freshness, before, stamp));
                if matches {
                    return Verdict::Good;
                }
                if entry == Entry::UNKNOWN && self.on_unknown != OnUnknown::Refuse {
                    if let Some(found) = self.salts.entry_of(&self.freshness, stamp) {
                        self.freshness.learn(block, found);
                    }
                    return Verdict::Good;
                }
                out.fill(0);
                match entry {
                    Entry::UNKNOWN => DataError::FreshnessUnknown { block },
                    _ => DataError::Stale { block },
                }
            }
            Err(OpenError::Empty) => match entry {
                _ if cfg!(feature = "danger-no-freshness") => return Verdict::Good,
                _ if entry == Entry::NEVER || before == Entry::NEVER => return Verdict::Good,
                Entry::UNKNOWN if self.on_unknown == OnUnknown::Accept => return Verdict::Good,
                Entry::UNKNOWN => DataError::FreshnessUnknown { block },
                _ => DataError::Erased { block },
            },
            Err(OpenError::Tag) => match entry {
                Entry::UNKNOWN => DataError::Torn { block },
                _ => DataError::Tampered { block },
            },
            Err(OpenError::Length | OpenError::Engine) => return Verdict::Bad(DataError::Engine),
        };
        if entry == Entry::UNSETTLED {
            Verdict::Bad(DataError::Unsettled { block })
        } else if writing || entry != before {
            Verdict::Racing
        } else if opened == Err(OpenError::Tag) {
            Verdict::Unopened(bad)
        } else {
            Verdict::Bad(bad)
        }
    }

    /// The block whose last content this is, if it is any other's. `scratch` is one block.
    pub(super) fn home_of(&mut self, block: u64, stride: &[u8], scratch: &mut [u8], deadline: Instant) -> Option<u64> {
        let entry = self.salts.known_entry_of(&self.freshness, Opener::stamp(stride)?)?;
        let from = self.freshness.find(entry, || Instant::now() < deadline)?;
        let opens = from != block && self.opener.open(from, stride, scratch).is_ok();
        scratch.fill(0);
        opens.then_some(from)
    }
}
