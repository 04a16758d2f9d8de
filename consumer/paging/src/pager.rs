//! What happens when somebody touches a page: the one place where pages come.
//!
//! Each page's [`Word`] says where it is. Whoever changes that takes the page first ([`Place::Busy`]), and everybody else
//! waits; only the evictor lets others have a page back that it is about to take away ([`Place::Leaving`]).
//!
//! A page that came for reading is protected, so that the first write to it is seen. Before a page is copied out it is
//! protected again: a write that comes later takes the page back, and what was copied is not believed.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::ahead::Ahead;
use crate::clock::Clock;
use crate::kernel::{Access, Faults, Kernel};
use crate::map::{Map, kernel_page};
use crate::pause::Pause;
use crate::pool::{Pool, Slot};
use crate::room::Room;
use crate::signal::{self, Resolve};
use crate::stats::{Counters, count};
use crate::store::{Cause, Lane, Trouble};
use crate::word::{LAST_WHEN, MOST_CREDIT, Place, Table, Word};

/// Pages that come or go together, at most.
pub(crate) const TOGETHER: usize = 64;

/// A page that goes and is missed before this many quarters of the local memory have gone as well went too soon.
const SOON: u32 = 4;

pub(crate) struct Pager<L> {
    pub(crate) map: Map,
    pub(crate) kernel: Kernel,
    pub(crate) faults: Faults,
    pub(crate) table: Table,
    pub(crate) clock: Clock,
    pub(crate) room: Room,
    pub(crate) pool: Pool<L>,
    pub(crate) counters: Counters,
    ahead: Mutex<Ahead>,
    /// As many as come together.
    zeros: Box<[u8]>,
    /// Bytes of a page.
    pub(crate) page: usize,
    /// Pages that have gone so far.
    pub(crate) gone: AtomicU64,
    /// How long a fault may take before the page is given up.
    patience: Duration,
    /// Why nothing comes or goes any more.
    lost: OnceLock<Cause>,
}

/// What a pager is made of.
pub(crate) struct Parts<L> {
    pub(crate) map: Map,
    pub(crate) kernel: Kernel,
    pub(crate) faults: Faults,
    pub(crate) room: Room,
    pub(crate) pool: Pool<L>,
    pub(crate) page: usize,
    /// Pages that come together, at most.
    pub(crate) ahead: usize,
    pub(crate) patience: Duration,
}

/// Pages that are taken, in the order of a plan.
struct Taken {
    pages: [usize; TOGETHER],
    words: [Word; TOGETHER],
    count: usize,
    /// What will be wanted after them.
    next: [usize; TOGETHER],
    next_count: usize,
}

impl Taken {
    fn pages(&self) -> &[usize] {
        &self.pages[..self.count]
    }

    fn next(&self) -> &[usize] {
        &self.next[..self.next_count]
    }
}

impl<L: Lane> Pager<L> {
    pub(crate) fn new(parts: Parts<L>) -> Self {
        let Parts { map, kernel, faults, room, pool, page, ahead, patience } = parts;
        let pages = map.len() / page;
        Self {
            map,
            kernel,
            faults,
            table: Table::new(pages),
            clock: Clock::new(pages),
            room,
            pool,
            counters: Counters::new(),
            ahead: Mutex::new(Ahead::new(ahead)),
            zeros: vec![0; ahead * page].into_boxed_slice(),
            page,
            gone: AtomicU64::new(0),
            patience,
            lost: OnceLock::new(),
        }
    }

    /// Brings the page at an address, or lets it be written. When this returns, the touch can be tried again.
    pub(crate) fn touch(&self, address: usize, access: Option<Access>) -> Result<(), Cause> {
        let begun = Instant::now();
        let page = (address - self.map.at(0)) / self.page;
        let deadline = begun + self.patience;
        let mut pause = Pause::until(deadline);
        loop {
            let word = self.table.load(page);
            let resolved = match word.place() {
                Place::Here => self.here(page, word, access),
                Place::Leaving => self.take_back(page, word, access),
                Place::Nowhere | Place::Away => self.bring(page, word, access, deadline)?,
                Place::Busy => false,
            };
            if resolved {
                break;
            }
            if !pause.wait() {
                return Err(self.late());
            }
        }
        count(&self.counters.faults, 1);
        self.counters.times.add(begun.elapsed());
        Ok(())
    }

    fn late(&self) -> Cause {
        if let Some(cause) = self.lost.get() {
            return cause.clone();
        }
        if let Some(cause) = self.pool.trouble() {
            return Cause::new(&format_args!("it did not come within {:?}: {cause}", self.patience));
        }
        let (patience, used, most) = (self.patience, self.room.used(), self.room.most());
        let what = if used >= most { "no room was made" } else { "it did not come" };
        Cause::new(&format_args!("{what} within {patience:?}; {used} of {most} pages of local memory are in use"))
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn lose(&self, cause: &Cause) {
        let _ = self.lost.set(cause.clone());
    }

    pub(crate) fn lost(&self) -> Option<&Cause> {
        self.lost.get()
    }

    fn address(&self, page: usize) -> usize {
        self.map.at(page * self.page)
    }

    /// A fault on a page that is here: a first write, one that somebody else has seen to, or one on a page that the program
    /// has thrown away behind our back, which then holds zeros.
    fn here(&self, page: usize, word: Word, access: Option<Access>) -> bool {
        if !self.table.take(page, word) {
            return false;
        }
        let (address, zeros) = (self.address(page), self.zeros(1));
        let written = access != Some(Access::Read);
        if written && !word.is_dirty() {
            let done = self.unprotect(page);
            let credit = word.credit().max(1);
            self.table.put(page, if done { word.dirty(true).with_credit(credit) } else { word });
            count(&self.counters.write_faults, usize::from(done));
            return done;
        }
        let zeroed = self.kernel.copy_in(address, zeros, false);
        // Some of it holds other bytes than the store now, perhaps.
        let word = word.dirty(word.is_dirty() || zeroed.bytes > 0);
        let done = match word.is_dirty() {
            true => self.unprotect(page),
            false => zeroed.error == Some(Errno::EEXIST) && self.wake(page),
        };
        self.table.put(page, word);
        done
    }

    /// A fault on a page that is on its way out, and still mapped.
    fn take_back(&self, page: usize, word: Word, access: Option<Access>) -> bool {
        if access == Some(Access::Read) {
            return self.wake(page);
        }
        if !self.table.take(page, word) {
            return false;
        }
        let done = self.unprotect(page);
        self.table.put(page, word.at(Place::Here).dirty(true).with_credit(word.credit().max(1)));
        count(&self.counters.kept, 1);
        done
    }

    /// Brings a page that is not here, and those that are likely to be wanted next; false where it is to be tried again.
    fn bring(&self, page: usize, word: Word, access: Option<Access>, deadline: Instant) -> Result<bool, Cause> {
        if let (Some(cause), Place::Away) = (self.lost.get(), word.place()) {
            return Err(cause.clone());
        }
        if !self.room.reserve() {
            count(&self.counters.waits, 1);
            self.room.call_evictor();
            return match self.lost.get() {
                Some(cause) => Err(cause.clone()),
                None => Ok(false),
            };
        }
        if !self.table.take(page, word) {
            self.room.release(1);
            return Ok(false);
        }
        let taken = self.take_more(page, word);
        let written = access == Some(Access::Write);
        if word.place() == Place::Nowhere {
            let mapped = self.map_in(&taken, self.zeros(taken.count), written);
            count(&self.counters.zeroed, taken.count);
            return self.settle(&taken, mapped, written).map(|()| true);
        }
        let mut pause = Pause::until(deadline);
        loop {
            let mended = self.pool.mended();
            let fetched = match self.pool.take(page) {
                Some(mut slot) if !self.pool.is_broken() => {
                    let Slot { lane, bytes, .. } = &mut *slot;
                    let bytes = &mut bytes[..taken.count * self.page];
                    match lane.fetch(taken.pages(), taken.next(), bytes) {
                        Ok(()) => {
                            let mapped = self.map_in(&taken, bytes, written);
                            count(&self.counters.fetched, taken.count);
                            count(&self.counters.ahead, taken.count - 1);
                            self.pool.expect(&slot, page, taken.next().first().copied());
                            drop(slot);
                            return self.settle(&taken, mapped, written).map(|()| true);
                        }
                        Err(trouble) => Some(trouble),
                    }
                }
                _ => None,
            };
            let cause = match fetched {
                Some(Trouble::Lost(cause)) => Some(cause),
                Some(Trouble::Broken(cause)) => {
                    self.pool.ask_to_mend(mended);
                    (!pause.wait()).then_some(cause)
                }
                None => (!pause.wait()).then(|| self.late()),
            };
            if let Some(cause) = cause.or_else(|| self.lost.get().cloned()) {
                self.give_back(&taken);
                return Err(cause);
            }
        }
    }

    /// The page, which is taken, and what the streams say comes next, as far as it is of the same kind and there is room.
    fn take_more(&self, page: usize, word: Word) -> Taken {
        let none = [page; TOGETHER];
        let mut taken = Taken { pages: none, words: [word; TOGETHER], count: 1, next: none, next_count: 0 };
        // Where somebody else plans at this moment, this one comes alone.
        let Ok((plan, then)) = self.ahead.try_lock().map(|mut ahead| ahead.plan(page)) else { return taken };
        if plan.count > 1 && self.room.is_above_high() {
            // The evictor was called; it may need this processor.
            std::thread::yield_now();
        }
        let pages = self.table.pages();
        for n in 1..plan.count.min(TOGETHER) {
            let Some(next) = plan.page(n).filter(|&next| next < pages) else { break };
            let word = self.table.load(next);
            if word.place() != taken.words[0].place() || !self.room.reserve_ahead() {
                break;
            }
            if !self.table.take(next, word) {
                self.room.release(1);
                break;
            }
            (taken.pages[n], taken.words[n]) = (next, word);
            taken.count += 1;
        }
        if taken.count == plan.count {
            let away = |page: &usize| *page < pages && self.table.load(*page).place() == Place::Away;
            for (place, next) in taken.next.iter_mut().zip((0..then.count).map_while(|n| then.page(n).filter(away))) {
                *place = next;
                taken.next_count += 1;
            }
        }
        taken
    }

    /// Maps pages that are taken, neighbours together; which of them are mapped now, a bit each. Where the program has given
    /// parts of the region other rights, or put other memory into its place, neighbours do not go together.
    fn map_in(&self, taken: &Taken, bytes: &[u8], written: bool) -> u64 {
        let mut mapped = 0;
        for run in runs(taken.pages()) {
            let (mut at, mut together) = (run.start, true);
            while at < run.end {
                let end = if together { run.end } else { at + 1 };
                let bytes = &bytes[at * self.page..end * self.page];
                let copied = self.kernel.copy_in(self.address(taken.pages[at]), bytes, !written);
                let whole = copied.bytes / self.page;
                (at..at + whole).for_each(|page| mapped |= 1 << page);
                at += whole;
                if copied.error.is_some() && (!together || end == at + 1) {
                    let bytes = &bytes[whole * self.page..][..self.page];
                    mapped |= u64::from(self.map_in_parts(taken.pages[at], bytes, written)) << at;
                    at += 1;
                } else {
                    together = copied.error.is_none();
                }
            }
        }
        mapped
    }

    /// Maps a page of which the program may have changed parts: as much of it as is still the region's. Whether that is any.
    fn map_in_parts(&self, page: usize, bytes: &[u8], written: bool) -> bool {
        let least = kernel_page();
        if self.page == least {
            return false;
        }
        let copy = |at: usize| self.kernel.copy_in(self.address(page) + at, &bytes[at..at + least], !written);
        (0..self.page).step_by(least).filter(|&at| copy(at).bytes == least).count() > 0
    }

    /// Says of pages that were mapped that they are here, and of the others that they are not; an error where the first,
    /// for which somebody waits, is one of those.
    fn settle(&self, taken: &Taken, mapped: u64, written: bool) -> Result<(), Cause> {
        let now = self.quarters();
        for (at, (&page, &word)) in taken.pages().iter().zip(&taken.words).enumerate() {
            if mapped >> at & 1 == 0 {
                self.table.put(page, word);
                self.room.release(1);
                continue;
            }
            let away = word.place() == Place::Away;
            let missed = at == 0 && away && now.wrapping_sub(word.when()) & LAST_WHEN <= SOON;
            let credit = if missed { MOST_CREDIT } else { 0 };
            self.clock.enter(page);
            self.table.put(page, word.at(Place::Here).dirty(written).stored(away).with_credit(credit));
        }
        match mapped & 1 {
            0 => Err(Cause::new(&"the kernel does not map it: something else has taken its place")),
            _ => Ok(()),
        }
    }

    /// Lets a page be written: all of it that is still the region's. Whether that is any.
    pub(crate) fn unprotect(&self, page: usize) -> bool {
        let unprotect = |at: usize, len| self.kernel.unprotect(self.address(page) + at, len).is_ok();
        let least = kernel_page();
        unprotect(0, self.page)
            || (self.page > least && (0..self.page).step_by(least).filter(|&at| unprotect(at, least)).count() > 0)
    }

    fn give_back(&self, taken: &Taken) {
        taken.pages().iter().zip(&taken.words).for_each(|(&page, &word)| self.table.put(page, word));
        self.room.release(taken.count);
    }

    /// Quarters of the local memory that have gone so far.
    pub(crate) fn quarters(&self) -> u32 {
        let quarter = (self.room.most() as u64 / 4).max(1);
        (self.gone.load(Ordering::Relaxed) / quarter) as u32 & LAST_WHEN
    }

    /// Bytes of the map that pages take.
    pub(crate) fn bytes_of(&self, pages: Range<usize>) -> Range<usize> {
        pages.start * self.page..pages.end * self.page
    }

    fn wake(&self, page: usize) -> bool {
        self.faults == Faults::Signal || self.kernel.wake(self.address(page), self.page).is_ok()
    }

    fn zeros(&self, pages: usize) -> &[u8] {
        &self.zeros[..pages * self.page]
    }
}

impl<L: Lane> Resolve for Pager<L> {
    fn resolve(&self, address: usize, access: Option<Access>) -> bool {
        self.touch(address, access).map_err(|cause| self.report(address, &cause)).is_ok()
    }
}

impl<L: Lane> Pager<L> {
    /// Says on standard error why the program is about to get `SIGBUS`. Allocates nothing.
    pub(crate) fn report(&self, address: usize, cause: &Cause) {
        let text = Cause::new(&format_args!(
            "overbank: the page at {address:#x}, byte {} of a paged region of {}, is lost: {cause}\n",
            address.saturating_sub(self.map.at(0)),
            self.map.len()
        ));
        signal::say(text.bytes());
    }
}

/// Places in a list of pages that are neighbours one after the other.
pub(crate) fn runs(pages: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = pages.get(start..).filter(|rest| !rest.is_empty())?;
        let len = 1 + rest.windows(2).take_while(|pair| pair[1] == pair[0] + 1).count();
        let run = start..start + len;
        start += len;
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_together() {
        assert_eq!(runs(&[3, 4, 5, 9, 8, 7, 8]).collect::<Vec<_>>(), [0..3, 3..4, 4..5, 5..7]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
