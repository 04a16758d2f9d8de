//! What is known of a page, in one word that threads change without a lock.

use std::sync::atomic::{AtomicU32, Ordering};

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Place {
    /// Nowhere: it reads as zeros.
    Nowhere = 0,
    /// In the store.
    Away = 1,
    /// Mapped.
    Here = 2,
    /// Somebody changes that; everybody else waits.
    Busy = 3,
    /// Mapped, protected, and on its way to the store. Whoever wants to write to it takes it back.
    Leaving = 4,
}

/// A page's word: its place, and what matters there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u32);

const PLACE: u32 = 0b111;
const DIRTY: u32 = 1 << 3;
const STORED: u32 = 1 << 4;
const HELD: u32 = 1 << 5;
const CREDIT: u32 = 0b11 << 6;
const CREDIT_ONE: u32 = 1 << 6;
const WHEN_SHIFT: u32 = 8;
/// When a page went is told up to this, and from 0 again.
pub(crate) const LAST_WHEN: u32 = u32::MAX >> WHEN_SHIFT;

/// The credit of a page that was missed soon after it went.
pub(crate) const MOST_CREDIT: u32 = 3;

impl Word {
    /// A page never touched.
    pub(crate) const NOTHING: Self = Self(0);

    pub(crate) fn place(self) -> Place {
        match self.0 & PLACE {
            0 => Place::Nowhere,
            1 => Place::Away,
            2 => Place::Here,
            4 => Place::Leaving,
            _ => Place::Busy,
        }
    }

    pub(crate) fn at(self, place: Place) -> Self {
        Self(self.0 & !PLACE | place as u32)
    }

    /// Here and writable, so that the store does not have what it holds.
    pub(crate) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    pub(crate) fn dirty(self, dirty: bool) -> Self {
        Self(if dirty { self.0 | DIRTY } else { self.0 & !DIRTY })
    }

    /// While it is not dirty: whether the store has what it holds; else it holds zeros.
    pub(crate) fn is_stored(self) -> bool {
        self.0 & STORED != 0
    }

    pub(crate) fn stored(self, stored: bool) -> Self {
        Self(if stored { self.0 | STORED } else { self.0 & !STORED })
    }

    /// Not to be taken away.
    pub(crate) fn is_held(self) -> bool {
        self.0 & HELD != 0
    }

    pub(crate) fn held(self, held: bool) -> Self {
        Self(if held { self.0 | HELD } else { self.0 & !HELD })
    }

    /// How often the hand of the clock passes it by.
    pub(crate) fn credit(self) -> u32 {
        (self.0 & CREDIT) / CREDIT_ONE
    }

    pub(crate) fn with_credit(self, credit: u32) -> Self {
        Self(self.0 & !CREDIT | (credit.min(MOST_CREDIT) * CREDIT_ONE))
    }

    /// When it went, in quarters of the local memory that have gone since the start; it wraps.
    pub(crate) fn when(self) -> u32 {
        self.0 >> WHEN_SHIFT
    }

    pub(crate) fn gone(self, when: u32) -> Self {
        Self(self.0 & ((1 << WHEN_SHIFT) - 1) | when << WHEN_SHIFT)
    }
}

/// The words of all pages.
#[derive(Debug)]
pub(crate) struct Table {
    words: Box<[AtomicU32]>,
}

impl Table {
    pub(crate) fn new(pages: usize) -> Self {
        Self { words: (0..pages).map(|_| AtomicU32::new(Word::NOTHING.0)).collect() }
    }

    pub(crate) fn pages(&self) -> usize {
        self.words.len()
    }

    pub(crate) fn load(&self, page: usize) -> Word {
        Word(self.words[page].load(Ordering::Acquire))
    }

    /// Changes a page's word, if it is still `from`.
    pub(crate) fn change(&self, page: usize, from: Word, to: Word) -> bool {
        self.words[page].compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes a page that is `from`, so that nobody else changes it.
    pub(crate) fn take(&self, page: usize, from: Word) -> bool {
        self.change(page, from, from.at(Place::Busy))
    }

    /// Ends that.
    pub(crate) fn put(&self, page: usize, to: Word) {
        debug_assert_eq!(self.load(page).place(), Place::Busy);
        debug_assert_ne!(to.place(), Place::Busy);
        self.words[page].store(to.0, Ordering::Release);
    }
}
