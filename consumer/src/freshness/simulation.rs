//! The table for a test that simulates all parties in one process, in place of a lane's own steps. Not part of the library.

use overbank_fabric::block::Stamp;

use super::{Entry, Freshness, SaltView};

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// What was written last.
    Latest,
    /// Something else than that.
    Stale,
    /// Nobody knows what was written last.
    Unknown,
}

/// Takes the right to write a block; false where somebody else has it.
pub fn begin(table: &Freshness, block: u64) -> bool {
    table.begin(block)
}

/// Ends a write that has arrived; false where the table has no room for its salt.
pub fn commit(table: &Freshness, block: u64, stamp: Stamp) -> bool {
    match SaltView::default().entry_of(table, stamp) {
        Some(entry) => {
            table.commit(block, entry);
            true
        }
        None => {
            table.abandon(block);
            false
        }
    }
}

/// Ends a write that nobody will bring to an end.
pub fn abandon(table: &Freshness, block: u64) {
    table.abandon(block);
}

/// Holds what was found in a block, or that nothing was, against the table.
pub fn judge(table: &Freshness, block: u64, found: Option<Stamp>) -> Verdict {
    match (table.entry(block), found) {
        (Entry::UNKNOWN | Entry::UNSETTLED, _) => Verdict::Unknown,
        (Entry::NEVER, None) => Verdict::Latest,
        (entry, Some(stamp)) if SaltView::default().matches(table, entry, stamp) => Verdict::Latest,
        _ => Verdict::Stale,
    }
}
