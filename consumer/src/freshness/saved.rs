//! A freshness table as it lies in a lease's file.
//!
//! | what | bytes |
//! |---|---|
//! | version, 1 | u8 |
//! | blocks | u64 |
//! | what is not in any run of another kind: 0 never written, 1 unknown | u8 |
//! | number of salts | u16 |
//! | salts | 10 each |
//! | runs, until all blocks are told | see below |
//! | code over all before it, by the lease key, for this lease and generation | 32 |
//!
//! A run is LEB128 of its blocks × 4 + kind: 0 never written, 1 unknown, 2 written. One of kind 2 goes on with the
//! number of a salt u16 and the counter u48 of its first block; each next block has the next counter. Integers are
//! big-endian.

use overbank_fabric::block::{BlockContext, LeaseKey, MAX_COUNTER, Salt};
use overbank_fabric::labels;

use super::{CHUNK, Entry, Freshness, MAX_SALTS, SaltNumber, load};

const VERSION: u8 = 1;
const CODE: usize = 32;

/// Why a saved table is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreshnessError {
    /// Changed, cut short, or of another lease.
    #[error("the table of what was written last was not made by a holder of this lease's key, or was changed since")]
    Forged,
    /// Made by a newer version of this program.
    #[error(
        "the table of what was written last has format {0}, and this version reads 1: use the version that made it"
    )]
    Newer(u8),
    /// Its maker was at fault: it does not say of each block of the lease what was written.
    #[error("the table of what was written last is malformed: {0}")]
    Malformed(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Never,
    Unknown,
    Written,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Never, Self::Unknown, Self::Written];

    fn of(entry: Entry) -> Self {
        match entry {
            Entry::NEVER => Self::Never,
            Entry::UNKNOWN | Entry::UNSETTLED => Self::Unknown,
            _ => Self::Written,
        }
    }
}

impl Freshness {
    /// The table as bytes that only a holder of the lease key can make. A write that is under way or unsettled is saved
    /// as unknown.
    #[must_use]
    pub fn to_bytes(&self, key: &LeaseKey, context: &BlockContext) -> Vec<u8> {
        let (numbers, salts) = self.used_salts();
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.blocks.to_be_bytes());
        bytes.push(u8::from(self.elsewhere == Entry::UNKNOWN));
        bytes.extend_from_slice(&(salts.len() as u16).to_be_bytes());
        salts.iter().for_each(|salt| bytes.extend_from_slice(&salt.0));

        // Counted first: a buffer that grows holds the table up to three times over, old and new.
        let (mut length, mut one) = (0, Vec::new());
        self.for_each_run(&numbers, |run| {
            one.clear();
            write_run(run, &mut one);
            length += one.len();
        });
        bytes.reserve_exact(length + CODE);
        self.for_each_run(&numbers, |run| write_run(run, &mut bytes));
        let code = key.authenticate(labels::FRESHNESS, &bound_to(context), &bytes);
        bytes.extend_from_slice(&code);
        bytes
    }

    /// A saved table of a lease of `blocks` blocks.
    ///
    /// # Errors
    /// [`FreshnessError`].
    pub fn from_bytes(
        bytes: &[u8],
        key: &LeaseKey,
        context: &BlockContext,
        blocks: u64,
    ) -> Result<Self, FreshnessError> {
        let (bytes, code) = bytes.split_last_chunk::<CODE>().ok_or(FreshnessError::Forged)?;
        if !key.verify(labels::FRESHNESS, &bound_to(context), bytes, code) {
            return Err(FreshnessError::Forged);
        }
        let mut reader = Reader(bytes);
        let [version] = reader.take()?;
        if version != VERSION {
            return Err(FreshnessError::Newer(version));
        }
        if u64::from_be_bytes(reader.take()?) != blocks {
            return Err(FreshnessError::Malformed("it has another number of blocks than the lease"));
        }
        let elsewhere = match reader.take()? {
            [0] => Entry::NEVER,
            [1] => Entry::UNKNOWN,
            _ => return Err(FreshnessError::Malformed("it says neither never nor unknown of its other blocks")),
        };
        let table = Self::filled(blocks, elsewhere);
        let count = usize::from(u16::from_be_bytes(reader.take()?));
        for number in 0..count {
            let salt = Salt(reader.take()?);
            if table.salt_number(salt) != Ok(SaltNumber(number as u16)) {
                return Err(FreshnessError::Malformed("it names a salt twice"));
            }
        }
        let mut block = 0;
        while block < blocks {
            let (run, entry) = reader.run(count)?;
            let end = block.checked_add(run).filter(|&end| end <= blocks && run > 0);
            let end = end.ok_or(FreshnessError::Malformed("a run is empty or goes beyond the lease"))?;
            table.fill(block, end, entry);
            block = end;
        }
        if reader.0.is_empty() { Ok(table) } else { Err(FreshnessError::Malformed("bytes follow its end")) }
    }

    /// Sets a run, of a table that nobody else has yet.
    fn fill(&self, start: u64, end: u64, entry: Entry) {
        if entry == self.elsewhere {
            return;
        }
        for block in start..end {
            let written = entry.sealing().is_some();
            self.commit(block, if written { entry.after(block - start) } else { entry });
        }
    }

    /// The salts that some entry names, and for each number of now its number among them.
    fn used_salts(&self) -> (Vec<Option<SaltNumber>>, Vec<Salt>) {
        let mut all = Vec::new();
        self.more_salts(&mut all);
        let mut numbers = vec![None; all.len()];
        let mut used = Vec::new();
        self.for_each_piece(|_, entry| {
            let Some((SaltNumber(number), _)) = entry.sealing() else { return };
            let number = usize::from(number);
            if let Some(slot @ None) = numbers.get_mut(number) {
                *slot = Some(SaltNumber(used.len() as u16));
                used.push(all[number]);
            }
        });
        debug_assert!(used.len() <= MAX_SALTS);
        (numbers, used)
    }

    /// All blocks in order, as runs; the salts have these numbers.
    fn for_each_run(&self, numbers: &[Option<SaltNumber>], mut each: impl FnMut((u64, Entry))) {
        let mut run = (0, Entry::NEVER);
        self.for_each_piece(|count, entry| {
            let entry = match entry.sealing() {
                Some((number, counter)) => match numbers.get(usize::from(number.0)).copied().flatten() {
                    Some(number) => Entry::new(number, counter),
                    // A lane that was made since the salts were counted: its writes are going on.
                    None => Entry::UNKNOWN,
                },
                None => entry,
            };
            if goes_on(run, entry) {
                run.0 += count;
            } else {
                each(std::mem::replace(&mut run, (count, entry)));
            }
        });
        each(run);
    }

    /// All blocks in order, as numbers of blocks that have one entry; single ones where they are told one by one.
    fn for_each_piece(&self, mut piece: impl FnMut(u64, Entry)) {
        for (number, chunk) in self.chunks.iter().enumerate() {
            let first = number as u64 * CHUNK;
            match chunk.get() {
                None => piece(CHUNK.min(self.blocks - first), self.elsewhere),
                Some(chunk) => {
                    for (at, word) in chunk.entries.iter().enumerate() {
                        let writing = self.is_writing(first + at as u64);
                        piece(1, if writing { Entry::UNKNOWN } else { load(word) });
                    }
                }
            }
        }
    }
}

/// Whether a block with this entry continues a run of so many blocks that begins with `first`.
fn goes_on((count, first): (u64, Entry), entry: Entry) -> bool {
    count > 0
        && match (first.sealing(), entry.sealing()) {
            (Some((salt, counter)), Some((next_salt, next_counter))) => {
                salt == next_salt && counter + count == next_counter
            }
            (None, None) => Kind::of(first) == Kind::of(entry),
            _ => false,
        }
}

fn write_run((count, entry): (u64, Entry), bytes: &mut Vec<u8>) {
    if count == 0 {
        return;
    }
    let mut head = u128::from(count) << 2 | Kind::of(entry) as u128;
    while head >= 0x80 {
        bytes.push(head as u8 | 0x80);
        head >>= 7;
    }
    bytes.push(head as u8);
    if let Some((number, counter)) = entry.sealing() {
        bytes.extend_from_slice(&number.0.to_be_bytes());
        bytes.extend_from_slice(&counter.to_be_bytes()[2..]);
    }
}

fn bound_to(context: &BlockContext) -> [u8; 24] {
    let mut bound = [0; 24];
    bound[..16].copy_from_slice(&context.lease.0);
    bound[16..].copy_from_slice(&context.generation.to_be_bytes());
    bound
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FreshnessError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(FreshnessError::Malformed("it ends early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn run(&mut self, salts: usize) -> Result<(u64, Entry), FreshnessError> {
        let (mut head, mut shift) = (0_u128, 0);
        loop {
            let [byte] = self.take()?;
            head |= u128::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 63 {
                return Err(FreshnessError::Malformed("a run is too long"));
            }
        }
        let kind = Kind::ALL.get(head as usize & 3).ok_or(FreshnessError::Malformed("a run is of no known kind"))?;
        let count = u64::try_from(head >> 2).map_err(|_| FreshnessError::Malformed("a run is too long"))?;
        let entry = match kind {
            Kind::Never => Entry::NEVER,
            Kind::Unknown => Entry::UNKNOWN,
            Kind::Written => {
                let number = u16::from_be_bytes(self.take()?);
                let [a, b, c, d, e, f] = self.take()?;
                let counter = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
                if usize::from(number) >= salts {
                    return Err(FreshnessError::Malformed("a run names a salt that is not there"));
                }
                if counter == 0 || counter.checked_add(count).is_none_or(|end| end > MAX_COUNTER + 1) {
                    return Err(FreshnessError::Malformed("a run's counters are out of range"));
                }
                Entry::new(SaltNumber(number), counter)
            }
        };
        Ok((count, entry))
    }
}
