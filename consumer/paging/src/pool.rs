//! The lanes of a region: one for whoever evicts, the others for whoever meets a fault.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;

use crate::store::{Cause, Lane};

/// The number of no page.
const NO_PAGE: usize = usize::MAX;

/// A lane, and room for the pages that it moves at a time.
pub(crate) struct Slot<L> {
    number: usize,
    pub(crate) lane: L,
    pub(crate) bytes: Box<[u8]>,
}

pub(crate) struct Pool<L> {
    slots: Box<[Mutex<Slot<L>>]>,
    /// The first of the pages that each slot's lane has asked for ahead.
    expected: Box<[AtomicUsize]>,
    /// Times that the lanes were mended, and that somebody found one broken, as of the same count.
    mended: AtomicU64,
    asked: AtomicU64,
    keeper: OnceLock<Thread>,
    /// Why they are not mended yet.
    trouble: Mutex<Option<Cause>>,
}

impl<L: Lane> Pool<L> {
    /// The first lane is the evictor's, and moves `first` bytes at a time; each other moves `others`.
    pub(crate) fn new(lanes: Vec<L>, first: usize, others: usize) -> Self {
        let slot = |(number, lane)| {
            let bytes = if number == 0 { first } else { others };
            Mutex::new(Slot { number, lane, bytes: vec![0; bytes].into_boxed_slice() })
        };
        Self {
            expected: lanes.iter().map(|_| AtomicUsize::new(NO_PAGE)).collect(),
            slots: lanes.into_iter().enumerate().map(slot).collect(),
            mended: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            keeper: OnceLock::new(),
            trouble: Mutex::new(None),
        }
    }

    pub(crate) fn set_keeper(&self, keeper: Thread) {
        let _ = self.keeper.set(keeper);
    }

    /// The evictor's.
    pub(crate) fn first(&self) -> MutexGuard<'_, Slot<L>> {
        self.slots[0].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One for a fault on a page, if one is free: rather the one whose lane expects that page, else one whose lane expects
    /// none. Never waits.
    pub(crate) fn take(&self, page: usize) -> Option<MutexGuard<'_, Slot<L>>> {
        let take = |at: usize| match self.slots[at].try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let expects =
            |page: usize| (1..self.slots.len()).filter(move |&at| self.expected[at].load(Ordering::Relaxed) == page);
        expects(page).chain(expects(NO_PAGE)).chain(1..self.slots.len()).find_map(take)
    }

    /// Says which page a slot's lane expects, if any, after it was used for another.
    pub(crate) fn expect(&self, slot: &Slot<L>, page: usize, next: Option<usize>) {
        let expected = &self.expected[slot.number];
        if next.is_some() || expected.load(Ordering::Relaxed) == page {
            expected.store(next.unwrap_or(NO_PAGE), Ordering::Relaxed);
        }
    }

    /// How often lanes were mended so far.
    pub(crate) fn mended(&self) -> u64 {
        self.mended.load(Ordering::Acquire)
    }

    /// Asks the keeper to mend the lanes, which were found broken when they had been mended so often.
    pub(crate) fn ask_to_mend(&self, mended: u64) {
        self.asked.fetch_max(mended + 1, Ordering::AcqRel);
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// Whether somebody asked for that since.
    pub(crate) fn is_broken(&self) -> bool {
        self.asked.load(Ordering::Acquire) > self.mended()
    }

    /// All lanes, once nobody uses them, for the keeper.
    pub(crate) fn with_all<T>(&self, act: impl FnOnce(&mut [&mut L]) -> T) -> T {
        let mut guards: Vec<_> =
            self.slots.iter().map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut lanes: Vec<&mut L> = guards.iter_mut().map(|guard| &mut guard.lane).collect();
        act(&mut lanes)
    }

    /// They could not be mended, for now.
    pub(crate) fn set_trouble(&self, cause: Cause) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
    }

    /// Why that is so, if they are broken. Never waits.
    pub(crate) fn trouble(&self) -> Option<Cause> {
        self.trouble.try_lock().ok().and_then(|trouble| trouble.clone()).filter(|_| self.is_broken())
    }

    /// All lanes are good again.
    pub(crate) fn set_mended(&self) {
        self.mended.fetch_add(1, Ordering::AcqRel);
    }
}
