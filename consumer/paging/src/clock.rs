//! Which page goes next: a hand that sweeps over the pages that are here, in the order of their addresses, and passes by
//! those with credit.
//!
//! The kernel tells an ordinary process nothing of reads, so credit is given for what can be seen: a page that was missed
//! soon after it went gets the most, one that is written to anew gets one. Sweeping in order lets neighbours go together,
//! in one request.

use std::sync::atomic::{AtomicU64, Ordering};

/// Which pages are here, a bit each.
#[derive(Debug)]
pub(crate) struct Clock {
    here: Box<[AtomicU64]>,
}

impl Clock {
    pub(crate) fn new(pages: usize) -> Self {
        Self { here: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn enter(&self, page: usize) {
        self.here[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
    }

    pub(crate) fn leave(&self, page: usize) {
        self.here[page / 64].fetch_and(!(1 << (page % 64)), Ordering::Relaxed);
    }

    /// The first page that is here, from `hand` on, before `end`.
    pub(crate) fn next(&self, hand: usize, end: usize) -> Option<usize> {
        let mut at = hand / 64;
        let mut mask = !0_u64 << (hand % 64);
        while at < self.here.len() && at * 64 < end {
            let word = self.here[at].load(Ordering::Relaxed) & mask;
            if word != 0 {
                let page = at * 64 + word.trailing_zeros() as usize;
                return (page < end).then_some(page);
            }
            (at, mask) = (at + 1, !0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_hand_finds_each_page_that_is_here_in_order(pages in proptest::collection::btree_set(0..1000_usize, 0..200), end in 0..1001_usize) {
            let clock = Clock::new(1000);
            pages.iter().for_each(|&page| clock.enter(page));
            let gone: Vec<_> = pages.iter().copied().filter(|page| page % 3 == 0).collect();
            gone.iter().for_each(|&page| clock.leave(page));
            let (mut found, mut hand) = (Vec::new(), 0);
            while let Some(page) = clock.next(hand, end) {
                found.push(page);
                hand = page + 1;
            }
            let expected: Vec<_> = pages.into_iter().filter(|page| page % 3 != 0 && *page < end).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
