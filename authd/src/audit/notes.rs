//! How much of what others can cause at will is recorded: of each of them so much in a while, and the rest counted.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::bucket::{Buckets, Rate};

/// Those that are told apart; all beyond share one's part.
const MOST: usize = 4096;
/// Of all strangers together.
pub(crate) const STRANGERS: Rate = Rate::every(Duration::from_secs(1), 64);
/// Of each that is trusted: what one does hides nothing of the others.
pub(crate) const TRUSTED: Rate = Rate::every(Duration::from_secs(60), 16);

/// Bounds what is recorded of one kind of thing.
pub(crate) struct Notes<K> {
    each: Buckets<K>,
    unrecorded: u64,
}

impl<K: Clone + Eq + Hash> Notes<K> {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { each: Buckets::new(rate, MOST, now), unrecorded: 0 }
    }

    /// Whether one more of this one's is recorded now, and how many of anybody's were not since the last that was.
    pub(crate) fn pass(&mut self, of: &K, now: Instant) -> Option<u64> {
        if !self.each.take(of, now) {
            self.unrecorded += 1;
            return None;
        }
        Some(std::mem::take(&mut self.unrecorded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_causes_very_many_hides_nothing_of_another() {
        let start = Instant::now();
        let mut notes = Notes::new(TRUSTED, start);
        let recorded = (0..1000).filter(|_| notes.pass(&1, start).is_some()).count();
        assert_eq!(recorded, 16);
        assert_eq!(notes.pass(&2, start), Some(984), "and how many there were is in the next record");
        assert_eq!(notes.pass(&1, start + Duration::from_secs(61)), Some(0));
        assert_eq!(notes.pass(&1, start + Duration::from_secs(61)), None);
    }
}
