//! The pool: the heap, the memory behind it, and its accounts. A process has at most one, from its first large allocation
//! on.
//!
//! No lock is held while memory of the pool is touched: that may take a fetch from another machine.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::backing::Backing;
use crate::claim::Claim;
use crate::heap::{GivenUp, Heap, Kind, Piece, Resized};
use crate::lock::{Guard, Lock};
use crate::real;
use crate::say::say;
use crate::settings::Settings;
use crate::statistics::{self, Counts, add};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// How long after another process had the pool it is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// Sizes from here on go to the pool; none while there can be no pool.
static THRESHOLD: AtomicUsize = AtomicUsize::new(usize::MAX);
static BASE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());
static CREATION: Lock<Creation> = Lock::new(Creation { settings: None, after: None, said_busy: false });

/// What is needed to make it.
struct Creation {
    settings: Option<Settings>,
    /// Not before.
    after: Option<Instant>,
    said_busy: bool,
}

/// The one of this process.
pub(crate) struct Pool {
    addresses: Range<usize>,
    /// Bytes of a page of the kernel: what the heap counts in.
    page: usize,
    backing: Backing,
    heap: Lock<Heap>,
    claim: Option<Claim>,
    /// Not in a forked child.
    alive: AtomicBool,
    said_full: AtomicBool,
    reported: AtomicBool,
    pid: u32,
    settings: Settings,
    pub(crate) counts: Counts,
}

/// Where something large goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// Here.
    At(usize),
    /// To the next library.
    Next,
    /// Nowhere: there is no memory.
    Nowhere,
}

/// Whose a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// An allocation of so many bytes begins there.
    Block(usize),
    /// The program's, or another allocator's.
    Mapping,
    /// Nobody's, or it is in the middle of an allocation.
    Nobody,
}

/// How a block is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) bytes: usize,
    /// A power of two.
    pub(crate) align: usize,
    pub(crate) kind: Kind,
    /// Where it can grow.
    pub(crate) roomy: bool,
    /// Here, if that is free.
    pub(crate) hint: usize,
}

/// From now on a pool may be made.
pub(crate) fn allow(settings: Settings) {
    let threshold = settings.threshold;
    CREATION.lock().settings = Some(settings);
    THRESHOLD.store(threshold, Ordering::Release);
}

/// From now on nothing more goes to the pool.
pub(crate) fn stop() {
    THRESHOLD.store(usize::MAX, Ordering::Relaxed);
}

/// Whether so many bytes are for the pool.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes >= THRESHOLD.load(Ordering::Relaxed)
}

/// Whether any of these bytes are the pool's, of this process or of the one that forked it.
pub(crate) fn touches(address: usize, length: usize) -> bool {
    let (base, end) = (BASE.load(Ordering::Relaxed), END.load(Ordering::Relaxed));
    address < end && address.saturating_add(length.max(1)) > base
}

/// The pool of this process, or of the one that forked it.
pub(crate) fn any() -> Option<&'static Pool> {
    // SAFETY: null, or a pool that is never freed.
    unsafe { POOL.load(Ordering::Acquire).as_ref() }
}

/// The pool of this process.
pub(crate) fn alive() -> Option<&'static Pool> {
    any().filter(|pool| pool.alive.load(Ordering::Relaxed))
}

/// The pool of this process, which is made now if it can be. Only from inside.
pub(crate) fn wanted() -> Option<&'static Pool> {
    if any().is_some() {
        return alive();
    }
    let mut creation = CREATION.lock();
    if any().is_some() {
        return alive();
    }
    let settings = creation.settings.clone()?;
    if creation.after.is_some_and(|after| Instant::now() < after) {
        return None;
    }
    match Pool::make(settings.clone()) {
        Ok(Some(pool)) => {
            let pool = Box::leak(Box::new(pool));
            BASE.store(pool.addresses.start, Ordering::Relaxed);
            END.store(pool.addresses.end, Ordering::Relaxed);
            POOL.store(pool, Ordering::Release);
            Some(pool)
        }
        Ok(None) => {
            creation.after = Some(Instant::now() + AGAIN);
            if settings.verbose && !std::mem::replace(&mut creation.said_busy, true) {
                let pid = std::process::id();
                say(&format!("process {pid} has local memory alone: another process of this run has the remote one"));
            }
            None
        }
        Err(why) => {
            creation.settings = None;
            stop();
            say(&format!("process {} has local memory alone: {why}", std::process::id()));
            None
        }
    }
}

/// Where something large goes. Only from inside.
pub(crate) fn place(wish: Wish) -> Placed {
    let Some(pool) = wanted() else { return Placed::Next };
    match pool.hand_out(wish) {
        Some(address) => Placed::At(address),
        None => pool.full(wish.bytes),
    }
}

/// Takes the locks, before a fork.
pub(crate) fn hold() {
    CREATION.hold();
    if let Some(pool) = any() {
        pool.heap.hold();
    }
}

/// After it, on both sides.
pub(crate) fn let_go() {
    if let Some(pool) = any() {
        pool.heap.let_go();
    }
    CREATION.let_go();
}

impl Pool {
    /// None where another process has it. The error is the cause and the way out.
    fn make(settings: Settings) -> Result<Option<Self>, String> {
        let claim = match &settings.lock {
            None => None,
            Some(path) => match Claim::take(path) {
                Ok(Some(claim)) => Some(claim),
                Ok(None) => return Ok(None),
                Err(error) => return Err(format!("the lock {} cannot be taken: {error}", path.display())),
            },
        };
        let backing = Backing::open(&settings)?;
        let (base, page) = (backing.as_ptr() as usize, real::page());
        let sound =
            page.is_power_of_two() && backing.page().is_multiple_of(page) && base.is_multiple_of(backing.page());
        if !sound {
            return Err(format!("its pages have {} bytes, which the kernel's ({page}) do not fit", backing.page()));
        }
        let addresses = base..base + backing.len() / page * page;
        let heap = Lock::new(Heap::new(addresses.start / page..addresses.end / page));
        Ok(Some(Self {
            addresses,
            page,
            backing,
            heap,
            claim,
            alive: AtomicBool::new(true),
            said_full: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            pid: std::process::id(),
            settings,
            counts: Counts::default(),
        }))
    }

    pub(crate) fn addresses(&self) -> Range<usize> {
        self.addresses.clone()
    }

    pub(crate) fn page(&self) -> usize {
        self.page
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// In a forked child: its memory is not here.
    pub(crate) fn die(&self) {
        self.alive.store(false, Ordering::Relaxed);
        stop();
        if let Some(claim) = &self.claim {
            claim.leave_to_parent();
        }
    }

    pub(crate) fn heap(&self) -> Guard<'_, Heap> {
        self.heap.lock()
    }

    /// The part of these addresses that is the pool's.
    pub(crate) fn part(&self, range: &Range<usize>) -> Range<usize> {
        let start = range.start.clamp(self.addresses.start, self.addresses.end);
        start..range.end.clamp(start, self.addresses.end)
    }

    /// The parts before and behind the pool's.
    pub(crate) fn outside(&self, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let before = range.start..range.end.min(self.addresses.start);
        let behind = range.start.max(self.addresses.end)..range.end;
        [before, behind].into_iter().filter(|part| part.start < part.end)
    }

    /// As the heap counts, addresses of whole pages.
    pub(crate) fn pages(&self, range: &Range<usize>) -> Range<usize> {
        range.start / self.page..range.end.div_ceil(self.page)
    }

    /// The other way.
    pub(crate) fn bytes(&self, pages: &Range<usize>) -> Range<usize> {
        pages.start * self.page..pages.end * self.page
    }

    /// What these addresses are, whole pages of the pool.
    pub(crate) fn pieces(&self, range: &Range<usize>) -> Vec<(Range<usize>, Piece)> {
        let pieces = self.heap().pieces(self.pages(range));
        pieces.into_iter().map(|(pages, piece)| (self.bytes(&pages), piece)).collect()
    }

    /// A block that holds zeros.
    fn hand_out(&self, wish: Wish) -> Option<usize> {
        let pages = wish.bytes.div_ceil(self.page);
        // Blocks share no page of the backing at their beginning, so that little of one travels with another.
        let align = wish.align.max(self.backing.page()) / self.page;
        let hint = wish.hint / self.page;
        let mut heap = self.heap();
        let hinted = self.addresses.contains(&wish.hint) && heap.hand_out_at(hint..hint.saturating_add(pages));
        let first = if hinted { hint } else { heap.hand_out(pages, align, wish.kind, wish.roomy)? };
        drop(heap);
        add(if wish.kind == Kind::Mapping { &self.counts.mappings } else { &self.counts.allocations }, 1);
        add(&self.counts.bytes, wish.bytes as u64);
        Some(first * self.page)
    }

    /// There is no room.
    fn full(&self, bytes: usize) -> Placed {
        let (count, then) = match self.settings.spill {
            true => (&self.counts.spilled, Placed::Next),
            false => (&self.counts.refused, Placed::Nowhere),
        };
        add(count, 1);
        if !self.said_full.swap(true, Ordering::Relaxed) {
            let (free, all) = (self.heap().free_pages() * self.page, self.addresses.len());
            let then = if self.settings.spill { "it and what follows is local memory" } else { "it is refused" };
            say(&format!(
                "no room for {bytes} bytes in one piece: {free} of {all} bytes are free; {then}. Ask for more with --remote"
            ));
        }
        then
    }

    /// Whose the page is that begins there.
    pub(crate) fn owner(&self, address: usize) -> Owner {
        let (heap, page) = (self.heap(), address / self.page);
        if let Some(block) = heap.allocation(page) {
            return Owner::Block(block.pages * self.page);
        }
        match heap.pieces(page..page + 1)[..] {
            [(_, Piece::Used(Kind::Mapping | Kind::Retired))] => Owner::Mapping,
            _ => Owner::Nobody,
        }
    }

    /// Frees the allocation that begins there.
    pub(crate) fn free(&self, address: usize) {
        let gone = self.heap().give_up(address / self.page);
        if let Some(gone) = gone {
            self.take_back(&gone);
        }
    }

    /// Gives the allocation that begins there another length, where it is. False where it has to be moved for that.
    pub(crate) fn resize(&self, address: usize, bytes: usize) -> bool {
        let resized = self.heap().resize(address / self.page, bytes.div_ceil(self.page));
        match resized {
            Some(Resized::Done) => add(&self.counts.grown, 1),
            Some(Resized::Shrunk(gone)) => self.take_back(&gone),
            Some(Resized::Stuck) | None => return false,
        }
        true
    }

    /// Unmaps what is mapped of these addresses.
    pub(crate) fn cut(&self, range: &Range<usize>) {
        let gone = self.heap().cut(self.pages(range));
        gone.iter().for_each(|gone| self.take_back(gone));
    }

    /// What was given up becomes zeros, then free.
    fn take_back(&self, gone: &GivenUp) {
        let range = self.bytes(&gone.pages);
        if gone.protected {
            self.protect(&range, READ_WRITE);
        }
        self.unpin(&range);
        // What cannot be made zeros is never handed out again.
        if self.zero(&range) {
            self.heap().give_back(gone.pages.clone());
        }
    }

    /// The kernel's protection of these pages.
    pub(crate) fn protect(&self, range: &Range<usize>, protection: i32) -> bool {
        // SAFETY: pages of the pool, whose owner asks for it, or gave them up.
        unsafe { real::mprotect(range.start as *mut _, range.len(), protection) == 0 }
    }

    /// Makes bytes zeros: whole pages of the backing by giving their memory back, others by writing.
    pub(crate) fn zero(&self, range: &Range<usize>) -> bool {
        let page = self.backing.page();
        let (first, last) = (range.start.next_multiple_of(page), range.end / page * page);
        if first >= last {
            wipe(range.clone());
            return true;
        }
        wipe(range.start..first);
        wipe(last..range.end);
        self.backing.discard(self.offsets(&(first..last)))
    }

    /// Keeps pages in local memory; false where they are more than that may be.
    pub(crate) fn pin(&self, range: &Range<usize>) -> bool {
        self.backing.pin(self.offsets(range))
    }

    pub(crate) fn unpin(&self, range: &Range<usize>) {
        self.backing.unpin(self.offsets(range));
    }

    /// For each page of the kernel, whether it is in local memory.
    pub(crate) fn resident(&self, range: &Range<usize>) -> Vec<bool> {
        let page = self.backing.page();
        let whole = range.start / page * page..range.end.next_multiple_of(page);
        let mut pages = vec![false; whole.len() / page];
        self.backing.resident(self.offsets(&whole), &mut pages);
        (range.start..range.end).step_by(self.page).map(|address| pages[(address - whole.start) / page]).collect()
    }

    fn offsets(&self, range: &Range<usize>) -> Range<usize> {
        range.start - self.addresses.start..range.end - self.addresses.start
    }

    /// Writes down what happened, once, and only in the process that made it.
    pub(crate) fn report(&self) {
        let Some(path) = &self.settings.statistics else { return };
        if !self.is_alive() || self.pid != std::process::id() || self.reported.swap(true, Ordering::Relaxed) {
            return;
        }
        let line = self.counts.to_json(&self.heap(), self.page, self.backing.stats());
        if let Err(error) = statistics::append(path, &line) {
            say(&format!("what happened cannot be written to {}: {error}", path.display()));
        }
    }
}

fn wipe(range: Range<usize>) {
    // SAFETY: bytes of the pool that their owner gave up.
    unsafe { (range.start as *mut u8).write_bytes(0, range.len()) };
}

/// Counts one more.
pub(crate) fn count(which: impl Fn(&Counts) -> &AtomicU64) {
    if let Some(pool) = alive() {
        add(which(&pool.counts), 1);
    }
}
