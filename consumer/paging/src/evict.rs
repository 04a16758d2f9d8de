//! Making room: pages that the clock points at go, in batches, before they are needed.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    pub(crate) fn new(pager: Arc<Pager<L>>, batch: usize) -> Self {
        Self { pager, hand: 0, batch: batch.clamp(1, TOGETHER) }
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
        let (mut clean, mut dirty) = (Vec::with_capacity(self.batch), Vec::with_capacity(self.batch));
        self.choose(&mut clean, &mut dirty);
        if clean.is_empty() && dirty.is_empty() {
            return Batch::Nothing;
        }
        clean.sort_unstable();
        pager.let_go(&clean);
        if dirty.is_empty() {
            return Batch::Went;
        }
        dirty.sort_unstable();
        match self.send(&dirty) {
            Ok(gone) => {
                pager.let_go(&gone);
                Batch::Went
            }
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

    /// Takes pages that can be dropped as they are, and marks those that must be stored first.
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
            } else if word.is_dirty() {
                if pager.table.change(page, word, word.at(Place::Leaving)) {
                    dirty.push(page);
                }
            } else if pager.table.take(page, word) {
                clean.push(page);
            }
        }
    }

    /// Stores what pages hold that are leaving. Those of them that nobody took back are taken when this returns.
    fn send(&self, leaving: &[usize]) -> Result<Vec<usize>, Trouble> {
        let pager = &self.pager;
        let cause = |error: std::io::Error| {
            Trouble::Broken(Cause::new(&format_args!("the kernel did not protect it: {error}")))
        };
        for run in runs(leaving) {
            let bytes = pager.bytes_of(leaving[run.start]..leaving[run.end - 1] + 1);
            pager.kernel.protect(pager.map.at(bytes.start), bytes.len()).map_err(cause)?;
        }
        let mut gone = Vec::with_capacity(leaving.len());
        let mut slot = pager.pool.first();
        let Slot { lane, bytes } = &mut *slot;
        // As many as there is room for at a time.
        for part in leaving.chunks((bytes.len() / pager.page).max(1)) {
            let (mut full, mut empty) = (Vec::with_capacity(part.len()), Vec::new());
            let copied = self.copy(part, bytes);
            for (at, &page) in copied.iter().enumerate() {
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
            for (page, stored) in
                full.into_iter().map(|page| (page, true)).chain(empty.into_iter().map(|page| (page, false)))
            {
                if pager.take_leaving(page, stored) {
                    gone.push(page);
                }
            }
        }
        gone.sort_unstable();
        Ok(gone)
    }
}

impl<L: Lane> Evictor<L> {
    /// Copies pages that are leaving, side by side, and returns which. One that cannot be read stays, and is passed by for
    /// as long as can be; whoever wants to write to one has it back already.
    fn copy(&self, leaving: &[usize], bytes: &mut [u8]) -> Vec<usize> {
        let pager = &self.pager;
        let mut copied = Vec::with_capacity(leaving.len());
        let mut rest = leaving;
        while !rest.is_empty() {
            let ranges: Vec<_> = rest.iter().map(|&page| pager.bytes_of(page..page + 1)).collect();
            let done = pager.map.copy_out(&ranges, &mut bytes[copied.len() * pager.page..]).unwrap_or(0) / pager.page;
            copied.extend_from_slice(&rest[..done]);
            if let Some(&unreadable) = rest.get(done) {
                pager.stay(unreadable);
            }
            rest = rest.get(done + 1..).unwrap_or_default();
        }
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

    /// Lets a page stay that was leaving. It is protected now and counts as written to all the same.
    fn stay(&self, page: usize) {
        let word = self.table.load(page);
        if word.place() == Place::Leaving {
            self.table.change(page, word, word.at(Place::Here).with_credit(MOST_CREDIT));
        }
    }

    /// Unmaps pages that are taken and in order; they are in the store, or hold zeros.
    fn let_go(&self, pages: &[usize]) {
        for run in runs(pages) {
            let bytes = self.bytes_of(pages[run.start]..pages[run.end - 1] + 1);
            let dropped = self.map.drop_pages(bytes);
            for &page in &pages[run.clone()] {
                let word = self.table.load(page);
                match &dropped {
                    Ok(()) => {
                        let place = if word.is_stored() { Place::Away } else { Place::Nowhere };
                        count(&self.counters.emptied, usize::from(place == Place::Nowhere));
                        self.clock.leave(page);
                        self.table.put(page, word.at(place).dirty(false).gone(self.quarters()));
                    }
                    // Protected, and what it holds is what was stored: as a page that came for reading.
                    Err(_) => self.table.put(page, word.at(Place::Here)),
                }
            }
            if dropped.is_ok() {
                self.gone.fetch_add(run.len() as u64, Ordering::Relaxed);
                count(&self.counters.evicted, run.len());
                self.room.release(run.len());
            }
        }
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
