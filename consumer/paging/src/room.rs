//! How many pages may be here, and how many are.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;

/// Pages of local memory.
pub(crate) struct Room {
    most: usize,
    /// What may be used by pages that nobody waits for.
    ahead: usize,
    high: usize,
    low: usize,
    used: AtomicUsize,
    peak: AtomicUsize,
    /// Of those, pages that stay.
    held: AtomicUsize,
    evictor: OnceLock<Thread>,
}

impl Room {
    /// For `most` pages, of which `batch` go at a time: somebody is told to make room before it is needed.
    pub(crate) fn new(most: usize, batch: usize) -> Self {
        let slack = (most / 16).max(3 * batch).min(most / 2);
        let high = most - slack;
        Self {
            most,
            ahead: most - slack / 3,
            high,
            low: high.saturating_sub(batch),
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            evictor: OnceLock::new(),
        }
    }

    pub(crate) fn set_evictor(&self, evictor: Thread) {
        let _ = self.evictor.set(evictor);
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Takes room for one page, if there is some; has more made where little is left.
    pub(crate) fn reserve(&self) -> bool {
        self.reserve_below(self.most)
    }

    /// The same for a page that nobody waits for yet: some room is kept for others.
    pub(crate) fn reserve_ahead(&self) -> bool {
        self.reserve_below(self.ahead)
    }

    fn reserve_below(&self, most: usize) -> bool {
        let taken =
            self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < most).then_some(used + 1));
        let used = taken.map_or_else(|used| used, |before| before + 1);
        self.peak.fetch_max(used, Ordering::Relaxed);
        if used > self.high {
            self.call_evictor();
        }
        taken.is_ok()
    }

    pub(crate) fn release(&self, pages: usize) {
        let before = self.used.fetch_sub(pages, Ordering::AcqRel);
        debug_assert!(before >= pages);
    }

    /// Whether the evictor, once called, has something to do.
    pub(crate) fn is_above_low(&self) -> bool {
        self.used() > self.low
    }

    pub(crate) fn is_above_high(&self) -> bool {
        self.used() > self.high
    }

    pub(crate) fn call_evictor(&self) {
        if let Some(evictor) = self.evictor.get() {
            evictor.unpark();
        }
    }

    /// Takes the right to hold pages here, if enough is left for the others.
    pub(crate) fn hold(&self, pages: usize) -> bool {
        let most = self.low;
        let fits = |held: usize| held.checked_add(pages).filter(|&held| held <= most);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    pub(crate) fn unhold(&self, pages: usize) {
        self.held.fetch_sub(pages, Ordering::AcqRel);
    }
}
