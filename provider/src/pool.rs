//! Which pages of the pool are whose. Only numbers: the memory itself is the backend's.
//!
//! An extent is a contiguous run of whole pages, so that no page is ever shared by two leases. Extents cannot be copied:
//! whoever holds one is the only one who can give it back, and one that gets lost is never handed out again.

use std::collections::BTreeMap;
use std::ops::Range;

/// A run of whole pages, taken out of the pool.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an extent that is dropped is lost to the pool"]
pub struct Extent {
    start: u64,
    len: u64,
}

impl Extent {
    /// Its bytes, as offsets in the pool's memory.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.start..self.start + self.len
    }

    /// How many bytes that is; never 0.
    #[expect(clippy::len_without_is_empty, reason = "an extent is never empty")]
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }
}

/// The pool: what is free, what is used, and what is withheld for good.
#[derive(Debug)]
pub struct Pool {
    page: u64,
    bytes: u64,
    /// Start -> length of each free run, in bytes; neighbours are always joined.
    free: BTreeMap<u64, u64>,
    quarantined: u64,
}

impl Pool {
    /// A pool of as many whole pages as `bytes` has; `page` is not 0.
    #[must_use]
    pub fn new(bytes: u64, page: u64) -> Self {
        let bytes = bytes - bytes % page;
        let free = if bytes == 0 { BTreeMap::new() } else { BTreeMap::from([(0, bytes)]) };
        Self { page, bytes, free, quarantined: 0 }
    }

    /// The smallest free run that `bytes`, rounded up to whole pages, fit into; the lowest of equals. None where there
    /// is none, or for 0 bytes.
    pub fn take(&mut self, bytes: u64) -> Option<Extent> {
        let len = bytes.checked_next_multiple_of(self.page).filter(|&len| len > 0)?;
        let (run, &start) = self.free.iter().filter(|(_, run)| **run >= len).map(|(start, run)| (*run, start)).min()?;
        self.free.remove(&start);
        if run > len {
            self.free.insert(start + len, run - len);
        }
        Some(Extent { start, len })
    }

    /// Takes clean pages back, and joins them with free neighbours.
    pub fn give_back(&mut self, extent: Extent) {
        let Extent { mut start, mut len } = extent;
        if let Some((&before, &run)) = self.free.range(..start).next_back()
            && before + run == start
        {
            self.free.remove(&before);
            start = before;
            len += run;
        }
        if let Some(run) = self.free.remove(&(start + len)) {
            len += run;
        }
        self.free.insert(start, len);
    }

    /// Withholds pages for good: nobody knows that they are clean and out of reach.
    pub fn quarantine(&mut self, extent: Extent) {
        self.quarantined += extent.len;
    }

    /// Bytes of a page: extents are multiples.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page
    }

    /// Bytes of the pool.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes free, not necessarily in one run.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }

    /// Bytes of the longest free run: the largest extent that can be taken.
    #[must_use]
    pub fn longest_run(&self) -> u64 {
        self.free.values().copied().max().unwrap_or(0)
    }

    /// Bytes withheld.
    #[must_use]
    pub fn quarantined_bytes(&self) -> u64 {
        self.quarantined
    }

    /// Bytes in extents that are out.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.bytes - self.free_bytes() - self.quarantined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    #[test]
    fn the_smallest_run_that_fits_is_taken_and_neighbours_join() {
        let mut pool = Pool::new(10 * PAGE, PAGE);
        let [a, b, c, d] = [3 * PAGE, PAGE, 2 * PAGE, PAGE].map(|bytes| pool.take(bytes).expect("room"));
        assert_eq!(d.bytes(), 6 * PAGE..7 * PAGE);
        pool.give_back(a);
        pool.give_back(c);
        // Free now: three pages, two pages, three pages.
        assert_eq!(pool.take(PAGE + 1).expect("room").bytes(), 4 * PAGE..6 * PAGE);
        assert_eq!(pool.take(3 * PAGE).expect("room").bytes(), 0..3 * PAGE);
        pool.give_back(b);
        pool.give_back(d);
        assert_eq!(pool.longest_run(), 4 * PAGE);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let mut pool = Pool::new(2 * PAGE + 17, PAGE);
        assert_eq!(pool.bytes(), 2 * PAGE);
        for bytes in [0, 2 * PAGE + 1, u64::MAX, u64::MAX - PAGE] {
            assert_eq!(pool.take(bytes), None, "{bytes}");
        }
        assert_eq!(Pool::new(PAGE - 1, PAGE).take(1), None);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Take(u64),
        GiveBack(prop::sample::Index),
        Quarantine(prop::sample::Index),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            5 => (0..6 * PAGE).prop_map(Act::Take),
            4 => any::<prop::sample::Index>().prop_map(Act::GiveBack),
            1 => any::<prop::sample::Index>().prop_map(Act::Quarantine),
        ];
        prop::collection::vec(act, 0..200)
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Page {
        Free,
        Used,
        Withheld,
    }

    /// Longest run of free pages.
    fn longest(map: &[Page]) -> u64 {
        map.split(|page| *page != Page::Free).map(|run| run.len() as u64).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map_of_pages(pages in 1..40u64, acts in acts()) {
            let mut pool = Pool::new(pages * PAGE, PAGE);
            let mut map = vec![Page::Free; usize::try_from(pages).expect("few")];
            let mut out: Vec<Extent> = Vec::new();
            let span = |extent: &Extent| {
                let bytes = extent.bytes();
                assert!(bytes.start.is_multiple_of(PAGE) && bytes.end.is_multiple_of(PAGE));
                usize::try_from(bytes.start / PAGE).unwrap()..usize::try_from(bytes.end / PAGE).unwrap()
            };
            for act in acts {
                match act {
                    Act::Take(bytes) => {
                        let wanted = bytes.div_ceil(PAGE);
                        match pool.take(bytes) {
                            Some(extent) => {
                                prop_assert_eq!(extent.len(), wanted * PAGE);
                                for page in &mut map[span(&extent)] {
                                    prop_assert!(*page == Page::Free, "handed out twice");
                                    *page = Page::Used;
                                }
                                out.push(extent);
                            }
                            // What fits is never refused: so free runs are always joined.
                            None => prop_assert!(wanted == 0 || longest(&map) < wanted),
                        }
                    }
                    Act::GiveBack(index) if !out.is_empty() => {
                        let extent = out.swap_remove(index.index(out.len()));
                        map[span(&extent)].fill(Page::Free);
                        pool.give_back(extent);
                    }
                    Act::Quarantine(index) if !out.is_empty() => {
                        let extent = out.swap_remove(index.index(out.len()));
                        map[span(&extent)].fill(Page::Withheld);
                        pool.quarantine(extent);
                    }
                    Act::GiveBack(_) | Act::Quarantine(_) => {}
                }
                let count = |kind: Page| map.iter().filter(|page| **page == kind).count() as u64 * PAGE;
                prop_assert_eq!(pool.free_bytes(), count(Page::Free));
                prop_assert_eq!(pool.used_bytes(), count(Page::Used));
                prop_assert_eq!(pool.quarantined_bytes(), count(Page::Withheld));
                prop_assert_eq!(pool.longest_run(), longest(&map) * PAGE);
            }
        }
    }
}
