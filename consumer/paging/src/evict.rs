//! Making room: pages that the clock points at go, in batches, before they are needed.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::aside::Aside;
use crate::error::PagingError;
use crate::map::kernel_page;
use crate::pager::{Pager, TOGETHER, runs};
use crate::pool::Slot;
use crate::signal;
use crate::stats::count;
use crate::store::{Cause, Lane, Trouble};
use crate::word::{MOST_CREDIT, Place};

/// How long the evictor sleeps where nobody calls it.
const IDLE: Duration = Duration::from_millis(100);
/// How long it waits before it tries anew what failed.
const AGAIN: Duration = Duration::from_millis(5);

/// The thread that makes room. There is one a region: a page that leaves is its, and nobody else's.
pub(crate) struct Evictor<L> {
    pager: Arc<Pager<L>>,
    hand: usize,
    batch: usize,
    aside: Aside,
}

/// What a batch came to.
#[derive(Debug, PartialEq, Eq)]
enum Batch {
    Went,
    /// Nothing may go: all is held, or nothing is here.
    Nothing,
    /// The store did not take it.
    Failed,
}

impl<L: Lane> Evictor<L> {
    pub(crate) fn new(pager: Arc<Pager<L>>, batch: usize) -> Result<Self, PagingError> {
        let batch = batch.clamp(1, TOGETHER);
        let aside = Aside::new(batch * pager.page)?;
        Ok(Self { pager, hand: 0, batch, aside })
    }

    /// Until it is told to stop.
    pub(crate) fn run(mut self, stop: &AtomicBool) {
        signal::block_all();
        while !stop.load(Ordering::Acquire) {
            if !self.pager.room.is_above_high() {
                std::thread::park_timeout(IDLE);
                continue;
            }
            while self.pager.room.is_above_low() && !stop.load(Ordering::Acquire) {
                match self.evict() {
                    Batch::Went => {}
                    Batch::Nothing | Batch::Failed => std::thread::park_timeout(AGAIN),
                }
            }
        }
    }

    /// Lets one batch go.
    fn evict(&mut self) -> Batch {
        let pager = Arc::clone(&self.pager);
        if pager.lost().is_some() {
            return Batch::Failed;
        }
        // Before any page is taken: it may be with the keeper for long.
        let mut slot = pager.pool.first();
        let (mut clean, mut dirty) = (Vec::with_capacity(self.batch), Vec::with_capacity(self.batch));
        self.choose(&mut clean, &mut dirty);
        if clean.is_empty() && dirty.is_empty() {
            return Batch::Nothing;
        }
        clean.sort_unstable();
        if pager.page > kernel_page() {
            // A page of which a part is not the region's any more stays: the rest would go with it.
            clean = self.protect(&clean);
        }
        let went = pager.let_go(&clean);
        dirty.sort_unstable();
        match self.send(&dirty, &mut slot) {
            Ok(gone) if pager.let_go(&gone) || went => Batch::Went,
            Ok(_) => Batch::Nothing,
            Err(trouble) => {
                dirty.iter().for_each(|&page| pager.stay(page));
                match trouble {
                    Trouble::Lost(cause) => {
                        tracing::warn!(%cause, "pages cannot be stored any more");
                        pager.lose(&cause);
                    }
                    Trouble::Broken(cause) => {
                        tracing::debug!(%cause, "the evictor's lane broke");
                        pager.pool.ask_to_mend(pager.pool.mended());
                    }
                }
                Batch::Failed
            }
        }
    }

    /// Takes pages that can be dropped as they are, and others that must be stored first.
    fn choose(&mut self, clean: &mut Vec<usize>, dirty: &mut Vec<usize>) {
        let (pager, pages) = (&self.pager, self.pager.table.pages());
        // Once more than a page can have credit.
        let mut laps = MOST_CREDIT + 2;
        while clean.len() + dirty.len() < self.batch {
            let Some(page) = pager.clock.next(self.hand, pages) else {
                (self.hand, laps) = (0, laps - 1);
                if laps == 0 {
                    return;
                }
                continue;
            };
            self.hand = page + 1;
            let word = pager.table.load(page);
            if word.place() != Place::Here || word.is_held() {
                continue;
            }
            if word.credit() > 0 {
                pager.table.change(page, word, word.with_credit(word.credit() - 1));
            } else if pager.table.take(page, word) {
                if word.is_dirty() { dirty.push(page) } else { clean.push(page) }
            }
        }
    }

    /// Stores what pages hold that are taken, and lets others have them meanwhile. Those that nobody wanted back are taken
    /// when this returns; on an error all of them are leaving or were taken back.
    fn send(&mut self, taken: &[usize], slot: &mut Slot<L>) -> Result<Vec<usize>, Trouble> {
        let pager = Arc::clone(&self.pager);
        let Slot { lane, bytes, .. } = slot;
        let (mut full, mut empty) = (Vec::with_capacity(taken.len()), Vec::new());
        for (at, page) in self.copy(taken, bytes).into_iter().enumerate() {
            let from = at * pager.page..(at + 1) * pager.page;
            if is_zero(&bytes[from.clone()]) {
                empty.push(page);
            } else {
                bytes.copy_within(from, full.len() * pager.page);
                full.push(page);
            }
        }
        if !full.is_empty() {
            lane.store(&full, &bytes[..full.len() * pager.page])?;
            count(&pager.counters.stored, full.len());
        }
        let mut gone = Vec::with_capacity(taken.len());
        // Which of them nobody wants back, and where what was stored of each is.
        let leave = |pages: &[usize], stored| -> (Vec<usize>, Vec<usize>) {
            (0..pages.len()).filter(|&at| pager.take_leaving(pages[at], stored)).map(|at| (pages[at], at)).unzip()
        };
        let (full, at) = leave(&full, true);
        self.part(&full, |n, now| now == &bytes[at[n] * pager.page..][..pager.page], &mut gone);
        let (empty, _) = leave(&empty, false);
        self.part(&empty, |_, now| is_zero(now), &mut gone);
        self.aside.clear();
        gone.sort_unstable();
        Ok(gone)
    }

    /// Moves pages out of the region that are taken, and adds those that may go to `gone`. One that somebody has asked the kernel
    /// for stays, and so does one that holds something else by now than was copied of it, as `holds` says of the pages by
    /// number: it was written to without a fault. A kernel that moves no pages cannot tell.
    fn part(&mut self, taken: &[usize], holds: impl Fn(usize, &[u8]) -> bool, gone: &mut Vec<usize>) {
        if !self.aside.moves() {
            gone.extend_from_slice(taken);
            return;
        }
        let pager = Arc::clone(&self.pager);
        for run in runs(taken) {
            let (mut at, mut together, mut unlocked) = (run.start, true, false);
            while at < run.end {
                let from = taken[at] * pager.page;
                let asked = if together { run.end - at } else { 1 };
                let size = (pager.page, asked);
                let out = self.aside.take(&pager.kernel, pager.map.at(from), size, |n, now| holds(at + n, now));
                for n in 0..out.looked {
                    if out.is_back(n) {
                        pager.come_back(taken[at + n], out.homeless(n))
                    } else {
                        gone.push(taken[at + n])
                    }
                }
                at += out.looked;
                if out.error.is_none() {
                    (together, unlocked) = (true, false);
                } else if out.is_back(out.looked) {
                    // A part of it had been moved, and is back.
                    pager.come_back(taken[at], out.homeless(out.looked));
                    (at, unlocked) = (at + 1, false);
                } else {
                    match out.error {
                        // Not for good: pinned, in somebody's hands at this moment, or no memory to do it.
                        Some(Errno::EBUSY | Errno::EAGAIN | Errno::ENOMEM | Errno::EEXIST) => {
                            pager.come_back(taken[at], None);
                            (at, unlocked) = (at + 1, false);
                        }
                        // Some of those that were asked for together are not like the others: locked, or with other rights.
                        Some(Errno::EINVAL) if together && asked > 1 => together = false,
                        Some(Errno::EINVAL) if !unlocked => {
                            self.aside.unlock(&pager.map, from, pager.page);
                            unlocked = true;
                        }
                        // The program may not write to it, or has made something else of it: nothing is lost with it.
                        _ => {
                            gone.push(taken[at]);
                            (at, unlocked) = (at + 1, false);
                        }
                    }
                }
            }
        }
    }

    /// Protects pages that are taken from writing, and returns which; the others stay.
    fn protect(&self, taken: &[usize]) -> Vec<usize> {
        let pager = &self.pager;
        let mut protected = Vec::with_capacity(taken.len());
        for run in runs(taken) {
            let pages = &taken[run];
            if pager.protect(pages[0]..pages[0] + pages.len()) {
                protected.extend_from_slice(pages);
            } else {
                // The program has given some of them other rights, or put other memory into their place.
                protected.extend(pages.iter().filter(|&&page| pager.protect(page..page + 1) || pager.keep(page)));
            }
        }
        protected
    }

    /// Protects pages that are taken from writing, copies them side by side, has them leave, and returns which. One that
    /// cannot be protected or read stays, and is passed by for as long as can be.
    fn copy(&self, taken: &[usize], bytes: &mut [u8]) -> Vec<usize> {
        let (pager, rest) = (&self.pager, self.protect(taken));
        let mut copied = Vec::with_capacity(rest.len());
        let mut rest = &rest[..];
        while !rest.is_empty() {
            let ranges: Vec<_> = rest.iter().map(|&page| pager.bytes_of(page..page + 1)).collect();
            let done = pager.map.copy_out(&ranges, &mut bytes[copied.len() * pager.page..]).unwrap_or(0) / pager.page;
            copied.extend_from_slice(&rest[..done]);
            if let Some(&unreadable) = rest.get(done) {
                pager.keep(unreadable);
            }
            rest = rest.get(done + 1..).unwrap_or_default();
        }
        copied.iter().for_each(|&page| pager.table.put(page, pager.table.load(page).at(Place::Leaving)));
        copied
    }
}

impl<L: Lane> Pager<L> {
    /// Takes a page that was copied out, unless it was taken back since; says what the store has of it.
    fn take_leaving(&self, page: usize, stored: bool) -> bool {
        let word = self.table.load(page);
        word.place() == Place::Leaving
            && self.table.change(page, word, word.at(Place::Busy).dirty(false).stored(stored))
    }

    /// Has a page stay that is taken, and counts as written to. One that is nowhere any more stays taken for good: nobody gets
    /// other bytes for it, and who waits is told why.
    fn come_back(&self, page: usize, homeless: Option<Errno>) {
        if let Some(error) = homeless {
            self.lose(&Cause::new(&format_args!("a page could not be mapped again: {error}")));
            return;
        }
        count(&self.counters.kept, 1);
        self.table.put(page, self.table.load(page).at(Place::Here).dirty(true).with_credit(MOST_CREDIT));
    }

    /// Protects neighbours from writing.
    fn protect(&self, pages: Range<usize>) -> bool {
        let bytes = self.bytes_of(pages);
        self.kernel.protect(self.map.at(bytes.start), bytes.len()).is_ok()
    }

    /// Ends the taking of a page that cannot leave. False, for who asks whether it goes on.
    fn keep(&self, page: usize) -> bool {
        self.table.put(page, self.table.load(page).at(Place::Here).with_credit(MOST_CREDIT));
        false
    }

    /// Lets a page stay that was leaving. It is protected now and counts as written to all the same.
    fn stay(&self, page: usize) {
        let word = self.table.load(page);
        if word.place() == Place::Leaving {
            self.table.change(page, word, word.at(Place::Here).with_credit(MOST_CREDIT));
        }
    }

    /// Unmaps pages that are taken and in order; they are in the store, or hold zeros. Whether any went.
    fn let_go(&self, pages: &[usize]) -> bool {
        let mut went = 0;
        for run in runs(pages) {
            let bytes = self.bytes_of(pages[run.start]..pages[run.end - 1] + 1);
            let dropped = self.map.drop_pages(bytes).is_ok();
            for &page in &pages[run] {
                let word = self.table.load(page);
                // Of a run that was not dropped as a whole some may be gone.
                let is_here =
                    || self.map.resident(self.bytes_of(page..page + 1)).is_ok_and(|here| !here.contains(&false));
                if !dropped && is_here() {
                    // What it holds may be more than was stored: not every page could be looked at.
                    self.come_back(page, None);
                    continue;
                }
                let place = if word.is_stored() { Place::Away } else { Place::Nowhere };
                count(&self.counters.emptied, usize::from(place == Place::Nowhere));
                self.clock.leave(page);
                self.table.put(page, word.at(place).dirty(false).gone(self.quarters()));
                went += 1;
            }
        }
        self.gone.fetch_add(went as u64, Ordering::Relaxed);
        count(&self.counters.evicted, went);
        self.room.release(went);
        went > 0
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut page = vec![0; 4096];
        assert!(is_zero(&page));
        for at in [0, 31, 32, 1000, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
        assert!(!is_zero(&[0, 1]));
    }
}
