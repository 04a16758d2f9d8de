//! A region: addresses like any others, of which only so many pages are here at a time.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use crate::error::PagingError;
use crate::evict::Evictor;
use crate::handler;
use crate::keep;
use crate::kernel::{Access, Faults, Kernel};
use crate::map::{Map, kernel_page};
use crate::pager::{Pager, Parts, TOGETHER};
use crate::pause::Pause;
use crate::pool::Pool;
use crate::room::Room;
use crate::signal::{Hooked, Resolve};
use crate::stats::RegionStats;
use crate::store::{Keeper, Lane};
use crate::threads::Threads;
use crate::word::{Place, Word};

/// The largest page.
pub const MAX_PAGE: usize = 2 << 20;
/// Pages of local memory that a region needs at least.
const LEAST_LOCAL: usize = 32;
const MOST_PAGES: usize = 1 << 31;
/// Bytes that go together, at most, where that is a page or more.
const TOGETHER_BYTES: usize = 4 << 20;

/// How a region behaves.
#[derive(Debug, Clone)]
pub struct RegionOptions {
    /// Bytes that may be in this machine's memory, rounded down to whole pages; 32 pages at least.
    pub local_bytes: usize,
    /// Bytes that come and go together: a power of two from the kernel's page to 2 MiB.
    pub page: usize,
    /// Who resolves faults.
    pub faults: Faults,
    /// Bytes that are fetched ahead of a stream of faults, at most; 0 for none.
    pub ahead_bytes: usize,
    /// How long a thread that handles faults ([`Faults::Thread`]) looks for the next one before it sleeps.
    pub spin: Duration,
    /// Threads that handle faults ([`Faults::Thread`]).
    pub handlers: usize,
    /// How long a fault may take, mending of connections included, before its page is lost.
    pub patience: Duration,
}

impl RegionOptions {
    /// With so much local memory, and everything else as it usually is best.
    #[must_use]
    pub fn new(local_bytes: usize) -> Self {
        Self {
            local_bytes,
            page: kernel_page(),
            faults: Faults::default(),
            ahead_bytes: 256 << 10,
            spin: Duration::from_micros(50),
            handlers: 1,
            patience: Duration::from_secs(30),
        }
    }
}

/// Memory of this process whose pages come when they are touched and go when room is needed. It begins as zeros.
///
/// Threads use it like any other memory. What is forked from this process does not have it: touching it there ends in
/// `SIGSEGV`. A page that cannot be brought any more ends in `SIGBUS`, after a line on standard error that says why.
///
/// Memory that a device or the kernel itself keeps writing to after a call returned (direct I/O, `io_uring` with registered
/// buffers, RDMA) must be held ([`Region::hold`]) for that long.
pub struct Region<L: Lane> {
    // Dropped in this order: what the evictor touches may be for the others to bring, and from the end of all of them on a
    // touch is an ordinary SIGBUS, or nobody's.
    evictor: Threads,
    others: Threads,
    hooked: Option<Hooked>,
    pager: Arc<Pager<L>>,
    process: u32,
}

impl<L: Lane> Region<L> {
    /// Of `bytes` bytes, kept in a store that these lanes lead to; the first lane is for what goes, the others for what
    /// comes, so there must be two at least.
    ///
    /// # Errors
    /// [`PagingError`].
    ///
    /// # Panics
    /// With fewer than two lanes.
    pub fn new(
        bytes: usize,
        lanes: Vec<L>,
        keeper: impl Keeper<L>,
        options: &RegionOptions,
    ) -> Result<Self, PagingError> {
        assert!(lanes.len() >= 2, "a region needs a lane for what goes and one for what comes");
        let least = kernel_page();
        let RegionOptions { page, faults, .. } = *options;
        if !page.is_power_of_two() || !(least..=MAX_PAGE).contains(&page) {
            return Err(PagingError::Page { page, least });
        }
        if bytes == 0 || !bytes.is_multiple_of(page) || bytes / page > MOST_PAGES {
            return Err(PagingError::Length { bytes, page });
        }
        let most = options.local_bytes / page;
        if most < LEAST_LOCAL {
            return Err(PagingError::TooLittle { pages: most, least: LEAST_LOCAL });
        }
        let together = TOGETHER.min(most / 8).min((TOGETHER_BYTES / page).max(1));
        let ahead = (options.ahead_bytes / page).clamp(1, together);
        let map = Map::new(bytes, page).map_err(|source| PagingError::Kernel { what: "mapping the region", source })?;
        let kernel = Kernel::new(&map, faults)?;
        let pager = Arc::new(Pager::new(Parts {
            map,
            kernel,
            faults,
            room: Room::new(most, together),
            pool: Pool::new(lanes, together * page, ahead * page),
            page,
            ahead,
            patience: options.patience,
        }));
        let mut region = Self {
            evictor: Threads::default(),
            others: Threads::default(),
            hooked: None,
            pager: Arc::clone(&pager),
            process: std::process::id(),
        };
        let evictor = Evictor::new(Arc::clone(&pager), together)?;
        pager.room.set_evictor(region.evictor.spawn("overbank-evict", move |stop| evictor.run(stop))?);
        let keeping = Arc::clone(&pager);
        pager.pool.set_keeper(region.others.spawn("overbank-keep", move |stop| keep::run(&keeping, keeper, stop))?);
        match faults {
            Faults::Signal => {
                let resolve: Arc<dyn Resolve> = Arc::clone(&pager) as _;
                region.hooked = Some(Hooked::new(pager.map.at(0), bytes, resolve)?);
            }
            Faults::Thread => {
                for _ in 0..options.handlers.max(1) {
                    let (pager, waiter, spin) = (Arc::clone(&pager), pager.kernel.waiter()?, options.spin);
                    region.others.spawn("overbank-fault", move |stop| handler::run(&pager, &waiter, spin, stop))?;
                }
            }
        }
        Ok(region)
    }

    /// Where it begins: a multiple of its page. Good until the region is dropped.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.pager.map.start()
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.pager.map.len()
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page(&self) -> usize {
        self.pager.page
    }

    /// Who resolves faults.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.pager.faults
    }

    /// All of it, for who does not use pointers into it besides.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range is mapped, readable and writable for as long as the region lives, which this borrows alone: its
        // other users hold raw pointers, and answer for them. What this crate does to a page leaves its bytes as they are.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.len()) }
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> RegionStats {
        let (page, room) = (self.pager.page as u64, &self.pager.room);
        RegionStats {
            page_bytes: page,
            bytes: self.len() as u64,
            local_bytes: room.most() as u64 * page,
            resident_bytes: room.used() as u64 * page,
            peak_resident_bytes: room.peak() as u64 * page,
            ..RegionStats::new(&self.pager.counters)
        }
    }

    /// Why no page comes or goes any more, if that is so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.pager.lost().map(ToString::to_string)
    }

    /// Brings all pages that have a byte in the range.
    ///
    /// # Errors
    /// [`PagingError::Range`] and [`PagingError::Lost`].
    pub fn fetch(&self, range: Range<usize>) -> Result<(), PagingError> {
        self.touching(&range)?.try_for_each(|page| self.bring(page, Access::Read))
    }

    /// Makes whole pages zeros again, as they were at first; what they held is forgotten here and not asked for again.
    /// Returns the bytes that were made zeros: those of the pages that lie in the range with all of theirs.
    ///
    /// # Errors
    /// [`PagingError::Range`]; [`PagingError::Lost`] where a page is coming or going and does not come to rest.
    pub fn discard(&self, range: Range<usize>) -> Result<Range<usize>, PagingError> {
        self.check(&range)?;
        let page = self.pager.page;
        let pages = range.start.div_ceil(page)..range.end / page;
        if pages.is_empty() {
            return Ok(range.start..range.start);
        }
        let mut next = pages.start;
        while next < pages.end {
            next = self.discard_some(next..pages.end)?;
        }
        Ok(self.pager.bytes_of(pages))
    }

    /// Discards pages from the first on, those that are here together; returns where to go on.
    fn discard_some(&self, pages: Range<usize>) -> Result<usize, PagingError> {
        let pager = &self.pager;
        let (first, mut end) = (pages.start, pages.start);
        let mut pause = self.pause();
        while end < pages.end {
            let word = pager.table.load(end);
            match word.place() {
                Place::Nowhere if end == first => return Ok(end + 1),
                Place::Away if end == first => {
                    if pager.table.change(end, word, Word::NOTHING) {
                        return Ok(end + 1);
                    }
                }
                Place::Here | Place::Leaving if pager.table.take(end, word) => {
                    if word.is_held() {
                        pager.room.unhold(1);
                    }
                    end += 1;
                }
                _ if end > first => break,
                _ => {
                    if !pause.wait() {
                        return Err(self.stuck());
                    }
                }
            }
        }
        let dropped = pager.map.drop_pages(pager.bytes_of(first..end));
        for page in first..end {
            let word = if dropped.is_ok() {
                Word::NOTHING
            } else {
                pager.table.load(page).at(Place::Here).dirty(true).held(false)
            };
            if dropped.is_ok() {
                pager.clock.leave(page);
            }
            pager.table.put(page, word);
        }
        dropped.map_err(|source| PagingError::Kernel { what: "dropping pages", source })?;
        pager.room.release(end - first);
        Ok(end)
    }

    /// Brings all pages that have a byte in the range, and keeps them here until [`Region::unhold`], as far as that leaves
    /// enough local memory for the others.
    ///
    /// # Errors
    /// [`PagingError::Held`], [`PagingError::Range`] and [`PagingError::Lost`]; then nothing more is held than before.
    pub fn hold(&self, range: Range<usize>) -> Result<(), PagingError> {
        let mut held = Vec::new();
        for page in self.touching(&range)? {
            match self.hold_page(page) {
                Ok(true) => held.push(page),
                Ok(false) => {}
                Err(error) => {
                    held.into_iter().for_each(|page| self.unhold_page(page));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lets pages go again that were held.
    ///
    /// # Errors
    /// [`PagingError::Range`].
    pub fn unhold(&self, range: Range<usize>) -> Result<(), PagingError> {
        self.touching(&range)?.for_each(|page| self.unhold_page(page));
        Ok(())
    }

    /// Which of the kernel's pages of a range, which begins with a page, are here.
    ///
    /// # Errors
    /// [`PagingError::Range`] and [`PagingError::Kernel`].
    pub fn resident(&self, range: Range<usize>) -> Result<Vec<bool>, PagingError> {
        self.check(&range)?;
        let asked = self.pager.map.resident(range);
        asked.map_err(|source| PagingError::Kernel { what: "asking which pages are here", source })
    }

    /// Whether it is newly held.
    fn hold_page(&self, page: usize) -> Result<bool, PagingError> {
        let mut pause = self.pause();
        loop {
            let word = self.pager.table.load(page);
            if word.is_held() {
                return Ok(false);
            }
            if word.place() == Place::Here && word.is_dirty() {
                if !self.pager.room.hold(1) {
                    return Err(PagingError::Held { pages: 1, most: self.pager.room.most() });
                }
                if self.pager.table.take(page, word) {
                    // One that was to leave is protected still.
                    let done = self.pager.unprotect(page);
                    self.pager.table.put(page, word.held(done));
                    if !done {
                        self.pager.room.unhold(1);
                        return Err(self.stuck());
                    }
                    return Ok(true);
                }
                self.pager.room.unhold(1);
            } else {
                // Writable, so that the kernel can write to it too.
                self.bring(page, Access::Write)?;
            }
            if !pause.wait() {
                return Err(self.stuck());
            }
        }
    }

    fn unhold_page(&self, page: usize) {
        let mut pause = self.pause();
        loop {
            let word = self.pager.table.load(page);
            if !word.is_held() {
                return;
            }
            if word.place() != Place::Busy && self.pager.table.change(page, word, word.held(false)) {
                self.pager.room.unhold(1);
                return;
            }
            if !pause.wait() {
                return;
            }
        }
    }

    /// Brings a page for reading or for writing.
    fn bring(&self, page: usize, access: Access) -> Result<(), PagingError> {
        let word = self.pager.table.load(page);
        if word.place() == Place::Here && (access == Access::Read || word.is_dirty()) {
            return Ok(());
        }
        let touched = self.pager.touch(self.pager.map.at(page * self.pager.page), Some(access));
        touched.map_err(|cause| PagingError::Lost { cause: cause.to_string() })
    }

    fn pause(&self) -> Pause {
        Pause::until(std::time::Instant::now() + self.pager.patience())
    }

    fn stuck(&self) -> PagingError {
        PagingError::Lost { cause: self.lost().unwrap_or_else(|| "a page does not come to rest".to_owned()) }
    }

    fn check(&self, range: &Range<usize>) -> Result<(), PagingError> {
        let (Range { start, end }, len) = (range.clone(), self.len());
        if start > end || end > len { Err(PagingError::Range { start, end, len }) } else { Ok(()) }
    }

    /// Pages that have a byte in the range.
    fn touching(&self, range: &Range<usize>) -> Result<Range<usize>, PagingError> {
        self.check(range)?;
        let page = self.pager.page;
        Ok(if range.is_empty() { 0..0 } else { range.start / page..range.end.div_ceil(page) })
    }
}

impl<L: Lane> Drop for Region<L> {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A forked child has neither the threads nor the addresses; others may be mapped there by now.
            let _ = ManuallyDrop::new(Arc::clone(&self.pager));
            std::mem::forget(self.hooked.take());
            self.evictor.forget();
            self.others.forget();
        }
    }
}
