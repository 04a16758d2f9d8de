//! What was written last to each block: how a lender that plays back an old block, or an empty one, is caught.
//!
//! An entry is one word: the number of a salt and a counter (the block's [`Stamp`]), *never written*, *unknown* (a crash
//! lost what it was) or *unsettled* (a write whose outcome is open). Beside it, one bit says that a write is under way:
//! at most one for each block in a process. All of it is read and written by any number of lanes without a lock.
//!
//! Memory: 8 bytes and a bit for each block, taken 4,096 blocks at a time when the first of them is written; 0.2 % of
//! what is leased at 4 KiB, 1.6 % at the smallest blocks of 512 bytes.

mod saved;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use overbank_fabric::block::{MAX_COUNTER, Salt, Stamp};

pub use saved::FreshnessError;

/// Most salts that a table can tell apart; each lane of each process life that wrote something has one.
pub const MAX_SALTS: usize = u16::MAX as usize;

const CHUNK: u64 = 4096;
const COUNTER_BITS: u32 = 48;

/// What is known of a block, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    /// Nothing was ever sent to this block.
    pub(crate) const NEVER: Self = Self(0);
    /// Something may have been sent; what was last is not known.
    pub(crate) const UNKNOWN: Self = Self(u64::MAX);
    /// Somebody in this process still has to find out whether what was sent last has arrived.
    pub(crate) const UNSETTLED: Self = Self(u64::MAX - 1);

    /// The `counter`-th sealing (1 to 2^48 - 1) under the salt of that number (below [`MAX_SALTS`]).
    pub(crate) fn new(salt: SaltNumber, counter: u64) -> Self {
        debug_assert!((1..=MAX_COUNTER).contains(&counter));
        Self(u64::from(salt.0) << COUNTER_BITS | counter)
    }

    /// Of the `more`-th next block that was sealed with the one that this entry, which has a counter, stands for.
    pub(crate) fn after(self, more: u64) -> Self {
        Self(self.0 + more)
    }

    /// Salt and counter, of an entry that has them.
    pub(crate) fn sealing(self) -> Option<(SaltNumber, u64)> {
        match self {
            Self::NEVER | Self::UNKNOWN | Self::UNSETTLED => None,
            Self(word) => Some((SaltNumber((word >> COUNTER_BITS) as u16), word & MAX_COUNTER)),
        }
    }
}

/// Place of a salt in a table's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SaltNumber(u16);

/// More salts than a table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{MAX_SALTS} lanes have written to this lease since its table was saved last: end this process and go on in another"
)]
pub struct TooManySalts;

/// What was written last to each block of one lease.
pub struct Freshness {
    blocks: u64,
    /// What holds for the blocks of a chunk that is not there: never written, or unknown.
    elsewhere: Entry,
    chunks: Box<[OnceLock<Chunk>]>,
    salts: RwLock<Salts>,
    /// Others write to the lease too: nothing is known of any block for longer than a moment.
    shared: AtomicBool,
}

struct Chunk {
    entries: Box<[AtomicU64]>,
    /// A bit for each block: a write is under way or unsettled.
    writing: Box<[AtomicU64]>,
}

#[derive(Default)]
struct Salts {
    list: Vec<Salt>,
    numbers: HashMap<Salt, SaltNumber>,
}

impl Salts {
    fn number(&mut self, salt: Salt) -> Result<SaltNumber, TooManySalts> {
        if let Some(&number) = self.numbers.get(&salt) {
            return Ok(number);
        }
        if self.list.len() >= MAX_SALTS {
            return Err(TooManySalts);
        }
        let number = SaltNumber(self.list.len() as u16);
        self.list.push(salt);
        self.numbers.insert(salt, number);
        Ok(number)
    }
}

impl Freshness {
    /// Of a new lease: no block was ever written.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self::filled(blocks, Entry::NEVER)
    }

    /// Of a lease that somebody may have written who left no table behind.
    #[must_use]
    pub fn unknown(blocks: u64) -> Self {
        Self::filled(blocks, Entry::UNKNOWN)
    }

    fn filled(blocks: u64, elsewhere: Entry) -> Self {
        let chunks = (0..blocks.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { blocks, elsewhere, chunks, salts: RwLock::default(), shared: AtomicBool::new(false) }
    }

    /// From here on others write to the lease too, so that nothing is known of any block.
    pub fn share(&self) {
        self.shared.store(true, Ordering::SeqCst);
    }

    /// Whether others write to the lease too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared.load(Ordering::SeqCst)
    }

    /// Blocks of the lease.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether it is known of every block what was written to it last.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.is_shared()
            && (self.elsewhere == Entry::NEVER || self.chunks.iter().all(|chunk| chunk.get().is_some()))
            && self.chunks.iter().filter_map(OnceLock::get).all(|chunk| {
                chunk.entries.iter().all(|entry| !matches!(load(entry), Entry::UNKNOWN | Entry::UNSETTLED))
            })
    }

    /// What is known of a block; nothing of one outside of the lease.
    pub(crate) fn entry(&self, block: u64) -> Entry {
        match self.own_entry(block) {
            Entry::UNSETTLED => Entry::UNSETTLED,
            _ if self.is_shared() => Entry::UNKNOWN,
            entry => entry,
        }
    }

    fn own_entry(&self, block: u64) -> Entry {
        match self.chunks.get((block / CHUNK) as usize).map(OnceLock::get) {
            Some(Some(chunk)) => chunk.entries.get((block % CHUNK) as usize).map_or(Entry::UNKNOWN, load),
            Some(None) if block < self.blocks => self.elsewhere,
            _ => Entry::UNKNOWN,
        }
    }

    /// Whether a write of the block is under way or unsettled. Asked before [`Freshness::entry`], a `false` means that
    /// the entry says how every write that was begun before has ended.
    pub(crate) fn is_writing(&self, block: u64) -> bool {
        let chunk = self.chunks.get((block / CHUNK) as usize).and_then(OnceLock::get);
        chunk.is_some_and(|chunk| {
            let (word, bit) = chunk.writing(block);
            word.load(Ordering::SeqCst) & bit != 0
        })
    }

    /// Takes the right to write a block; false where somebody else has it. To be ended by [`Freshness::commit`],
    /// [`Freshness::release`] or [`Freshness::abandon`].
    ///
    /// # Panics
    /// Where there is no such block.
    pub(crate) fn begin(&self, block: u64) -> bool {
        let (word, bit) = self.chunk(block).writing(block);
        word.fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Ends a write that has arrived.
    pub(crate) fn commit(&self, block: u64, entry: Entry) {
        self.end(block, Some(entry));
    }

    /// Ends a write of which nothing was sent.
    pub(crate) fn release(&self, block: u64) {
        self.end(block, None);
    }

    /// Ends a write that nobody will bring to an end: the block is old, new or torn.
    pub(crate) fn abandon(&self, block: u64) {
        self.end(block, Some(Entry::UNKNOWN));
    }

    /// Says that it is open whether a write has arrived. The right to write the block stays taken.
    pub(crate) fn unsettle(&self, block: u64) {
        self.chunk(block).entry(block).store(Entry::UNSETTLED.0, Ordering::SeqCst);
    }

    /// Fills in what was found in a block of which nothing was known.
    pub(crate) fn learn(&self, block: u64, entry: Entry) {
        let word = self.chunk(block).entry(block);
        // Where this fails somebody has written the block since, and knows better.
        let _ = word.compare_exchange(Entry::UNKNOWN.0, entry.0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The block whose last content bears this entry. Looks at all of them, until `go_on` says no.
    pub(crate) fn find(&self, entry: Entry, mut go_on: impl FnMut() -> bool) -> Option<u64> {
        for (number, chunk) in self.chunks.iter().enumerate() {
            let Some(chunk) = chunk.get() else { continue };
            if let Some(at) = chunk.entries.iter().position(|word| load(word) == entry) {
                return Some(number as u64 * CHUNK + at as u64);
            }
            if !go_on() {
                return None;
            }
        }
        None
    }

    /// The number of a salt, a new one for a salt that is new.
    pub(crate) fn salt_number(&self, salt: Salt) -> Result<SaltNumber, TooManySalts> {
        self.salts.write().unwrap_or_else(PoisonError::into_inner).number(salt)
    }

    /// Appends to `known` the salts whose numbers it does not reach.
    fn more_salts(&self, known: &mut Vec<Salt>) {
        let salts = self.salts.read().unwrap_or_else(PoisonError::into_inner);
        known.extend_from_slice(salts.list.get(known.len()..).unwrap_or_default());
    }

    fn end(&self, block: u64, entry: Option<Entry>) {
        let chunk = self.chunk(block);
        if let Some(entry) = entry {
            chunk.entry(block).store(entry.0, Ordering::SeqCst);
        }
        let (word, bit) = chunk.writing(block);
        word.fetch_and(!bit, Ordering::SeqCst);
    }

    fn chunk(&self, block: u64) -> &Chunk {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let number = block / CHUNK;
        self.chunks[number as usize].get_or_init(|| {
            let blocks = CHUNK.min(self.blocks - number * CHUNK);
            Chunk {
                entries: (0..blocks).map(|_| AtomicU64::new(self.elsewhere.0)).collect(),
                writing: (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            }
        })
    }
}

impl Chunk {
    fn entry(&self, block: u64) -> &AtomicU64 {
        &self.entries[(block % CHUNK) as usize]
    }

    fn writing(&self, block: u64) -> (&AtomicU64, u64) {
        let at = block % CHUNK;
        (&self.writing[(at / 64) as usize], 1 << (at % 64))
    }
}

fn load(word: &AtomicU64) -> Entry {
    Entry(word.load(Ordering::SeqCst))
}

/// One lane's own copy of a table's salts: it tells an entry's stamp without a lock.
#[derive(Default)]
pub(crate) struct SaltView {
    salts: Vec<Salt>,
    /// The last one that was looked up.
    last: Option<(Salt, SaltNumber)>,
}

impl SaltView {
    /// Copies what the table has by now.
    pub(crate) fn know(&mut self, table: &Freshness) {
        table.more_salts(&mut self.salts);
    }

    /// Whether the entry stands for this stamp.
    pub(crate) fn matches(&mut self, table: &Freshness, entry: Entry, stamp: Stamp) -> bool {
        let Some((number, counter)) = entry.sealing() else { return false };
        if usize::from(number.0) >= self.salts.len() {
            table.more_salts(&mut self.salts);
        }
        counter == stamp.counter && self.salts.get(usize::from(number.0)) == Some(&stamp.salt)
    }

    /// The entry that stands for a stamp, where the table has room for its salt.
    pub(crate) fn entry_of(&mut self, table: &Freshness, stamp: Stamp) -> Option<Entry> {
        let number = match self.last {
            Some((salt, number)) if salt == stamp.salt => number,
            _ => {
                let number = table.salt_number(stamp.salt).ok()?;
                self.last = Some((stamp.salt, number));
                number
            }
        };
        Some(Entry::new(number, stamp.counter))
    }

    /// The same, of a salt that the table knows already.
    pub(crate) fn known_entry_of(&mut self, table: &Freshness, stamp: Stamp) -> Option<Entry> {
        table.more_salts(&mut self.salts);
        let number = self.salts.iter().position(|&salt| salt == stamp.salt)?;
        (1..=MAX_COUNTER).contains(&stamp.counter).then(|| Entry::new(SaltNumber(number as u16), stamp.counter))
    }
}
