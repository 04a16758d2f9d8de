//! Which pages of a range are free: best fit, neighbours joined. Numbers alone; no memory is touched here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The free pages of a range.
#[derive(Debug)]
pub(crate) struct Space {
    all: Range<usize>,
    /// Free ranges, each as long as can be: first page, and how many.
    free: BTreeMap<usize, usize>,
    /// The same by their length: how many, and the first page.
    by_length: BTreeSet<(usize, usize)>,
    free_pages: usize,
}

impl Space {
    /// All pages free.
    pub(crate) fn new(all: Range<usize>) -> Self {
        let mut space = Self { all: all.clone(), free: BTreeMap::new(), by_length: BTreeSet::new(), free_pages: 0 };
        if !all.is_empty() {
            space.insert(all.start, all.len());
        }
        space
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.free_pages
    }

    /// Takes `pages` from a multiple of `align` on, out of the shortest free range that is long enough. `align` is a power
    /// of two.
    pub(crate) fn take(&mut self, pages: usize, align: usize) -> Option<usize> {
        if pages == 0 {
            return None;
        }
        let fits = |&(length, start): &(usize, usize)| {
            let first = start.checked_next_multiple_of(align)?;
            (first.checked_add(pages)? <= start + length).then_some(first)
        };
        // The shortest that may do, then the shortest that must.
        let shortest = self.by_length.range((pages, 0)..).next().and_then(fits);
        let found = shortest.or_else(|| {
            let surely = pages.checked_add(align - 1)?;
            self.by_length.range((surely, 0)..).next().and_then(fits)
        });
        // What is left are ranges that happen to lie well; looked through only where all else is used up.
        let first = found.or_else(|| self.by_length.range((pages, 0)..).find_map(fits))?;
        self.remove(first..first + pages).then_some(first)
    }

    /// Takes `pages` at the beginning of the longest free range, so that there is room to grow behind them.
    pub(crate) fn take_roomy(&mut self, pages: usize, align: usize) -> Option<usize> {
        let &(length, start) = self.by_length.last()?;
        let first = start.checked_next_multiple_of(align)?;
        if pages == 0 || first.checked_add(pages)? > start + length {
            return self.take(pages, align);
        }
        self.remove(first..first + pages).then_some(first)
    }

    /// Takes exactly these pages, if all of them are free.
    pub(crate) fn take_exactly(&mut self, range: Range<usize>) -> bool {
        self.remove(range)
    }

    /// Gives pages back. False, and nothing is done, where one of them is free already or is none of ours.
    pub(crate) fn give_back(&mut self, range: Range<usize>) -> bool {
        if range.is_empty()
            || range.start < self.all.start
            || range.end > self.all.end
            || self.free_in(range.clone()).next().is_some()
        {
            return false;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.forget(before, length);
            start = before;
        }
        if let Some(&length) = self.free.get(&end) {
            self.forget(end, length);
            end += length;
        }
        self.insert(start, end - start);
        true
    }

    /// The free ranges within `range`.
    pub(crate) fn free_in(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let reaching_in = self.free.range(..range.start).next_back();
        let inside = self.free.range(range.start..range.end.max(range.start));
        reaching_in.into_iter().chain(inside).filter_map(move |(&start, &length)| {
            let part = start.max(range.start)..(start + length).min(range.end);
            (!part.is_empty()).then_some(part)
        })
    }

    /// Takes free pages out of the one range that holds all of them, if one does.
    fn remove(&mut self, range: Range<usize>) -> bool {
        if range.is_empty() {
            return false;
        }
        let Some((&start, &length)) = self.free.range(..=range.start).next_back() else { return false };
        if start + length < range.end {
            return false;
        }
        self.forget(start, length);
        if start < range.start {
            self.insert(start, range.start - start);
        }
        if range.end < start + length {
            self.insert(range.end, start + length - range.end);
        }
        true
    }

    fn insert(&mut self, start: usize, length: usize) {
        self.free.insert(start, length);
        self.by_length.insert((length, start));
        self.free_pages += length;
    }

    fn forget(&mut self, start: usize, length: usize) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
        self.free_pages -= length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: usize = 64;

    #[derive(Debug, Clone)]
    enum Step {
        Take { pages: usize, align: usize, roomy: bool },
        Exactly(usize, usize),
        Back(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let take = (0..PAGES + 2, 0..4_u32, any::<bool>());
        let take = take.prop_map(|(pages, align, roomy)| Step::Take { pages, align: 1 << align, roomy });
        let exactly = (0..PAGES, 0..12_usize).prop_map(|(start, pages)| Step::Exactly(start, pages));
        let back = (0..PAGES, 0..20_usize).prop_map(|(start, pages)| Step::Back(start, pages));
        prop::collection::vec(prop_oneof![take, exactly, back], 0..80)
    }

    /// The lengths of the runs of free pages.
    fn runs(used: &[bool]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for page in (0..used.len()).filter(|&page| !used[page]) {
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn it_does_as_a_list_of_pages_does(steps in steps()) {
            let mut space = Space::new(0..PAGES);
            let mut used = [false; PAGES];
            for step in steps {
                match step {
                    Step::Take { pages, align, roomy } => {
                        let room = |run: &Range<usize>| run.start.next_multiple_of(align) + pages <= run.end;
                        let could = pages > 0 && runs(&used).iter().any(room);
                        let longest = runs(&used).iter().map(Range::len).max();
                        let shortest = runs(&used).iter().map(Range::len).filter(|&length| length >= pages).min();
                        let taken = if roomy { space.take_roomy(pages, align) } else { space.take(pages, align) };
                        prop_assert_eq!(taken.is_some(), could);
                        if let Some(first) = taken {
                            prop_assert_eq!(first % align, 0);
                            let run = runs(&used).into_iter().find(|run| run.contains(&first)).expect("it was free");
                            if align == 1 {
                                prop_assert_eq!(Some(run.len()), if roomy { longest } else { shortest });
                            }
                            prop_assert!(first + pages <= run.end);
                            used[first..first + pages].fill(true);
                        }
                    }
                    Step::Exactly(start, pages) => {
                        let end = start + pages;
                        let could = pages > 0 && end <= PAGES && !used[start..end].contains(&true);
                        prop_assert_eq!(space.take_exactly(start..end), could);
                        if could {
                            used[start..end].fill(true);
                        }
                    }
                    Step::Back(start, pages) => {
                        let end = start + pages;
                        let could = pages > 0 && end <= PAGES && !used[start..end].contains(&false);
                        prop_assert_eq!(space.give_back(start..end), could);
                        if could {
                            used[start..end].fill(false);
                        }
                    }
                }
                prop_assert_eq!(space.free_in(0..PAGES).collect::<Vec<_>>(), runs(&used));
                prop_assert_eq!(space.free_pages(), used.iter().filter(|used| !**used).count());
                prop_assert_eq!(space.free.len(), space.by_length.len());
                let part = space.free_in(10..30).map(|part| part.len()).sum::<usize>();
                prop_assert_eq!(part, used[10..30].iter().filter(|used| !**used).count());
            }
        }
    }

    #[test]
    fn numbers_that_no_space_has_are_refused() {
        let mut space = Space::new(0..4);
        assert_eq!(space.take(usize::MAX, 1), None);
        assert_eq!(space.take(1, 1 << 63), Some(0));
        assert_eq!(space.take(1, 1 << 63), None);
        assert_eq!(space.take_roomy(usize::MAX, 1 << 63), None);
        assert!(!space.give_back(4..5));
        assert!(!Space::new(2..4).give_back(1..2));
        assert_eq!(Space::new(7..7).take(1, 1), None);
    }
}
