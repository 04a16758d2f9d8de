//! Many blocks, side by side or not, as a region's pages come and go: as few requests as they make, all under way at once.

use std::time::Instant;

use overbank_verbs::Op;

use super::read::Asked;
use super::{DataError, SealedLane, in_time};

/// Blocks of a list of pages, each of as many blocks, in order.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    pages: &'a [usize],
    each: usize,
}

impl Blocks<'_> {
    fn count(&self) -> usize {
        self.pages.len() * self.each
    }

    /// The block at a place in the list, and how many from there on are neighbours, up to `most`.
    fn piece(&self, at: usize, most: usize) -> (u64, usize) {
        let (page, within) = (at / self.each, at % self.each);
        let first = self.pages[page] as u64 * self.each as u64 + within as u64;
        let mut count = self.each - within;
        for pair in self.pages[page..].windows(2) {
            if count >= most || pair[1] != pair[0] + 1 {
                break;
            }
            count += self.each;
        }
        (first, count.min(most))
    }
}

impl SealedLane {
    /// Reads pages of `out.len() / pages.len()` bytes, a multiple of the block, into `out`, in this order, by `deadline`.
    /// On an error `out` holds zeros.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn read_pages(&mut self, pages: &[usize], out: &mut [u8], deadline: Instant) -> Result<(), DataError> {
        self.forget_reads();
        let result = self.admit_pages(Op::Read, pages, out.len(), deadline).and_then(|(blocks, deadline)| {
            let result = self.read_listed(blocks, out, deadline);
            self.forget_reads();
            result
        });
        result.map_err(|error| {
            out.fill(0);
            self.late(error)
        })
    }

    fn read_listed(&mut self, blocks: Blocks<'_>, out: &mut [u8], deadline: Instant) -> Result<(), DataError> {
        let (size, all) = (self.block, blocks.count());
        let most = self.pieces(all);
        let (mut asked, mut opened) = (0, 0);
        while opened < all {
            let begun = asked;
            while asked < all
                && let Some(slot) = self.slots.take()
            {
                let (first, count) = blocks.piece(asked, most);
                self.ask(Asked { slot, first, count });
                asked += count;
            }
            if asked > begun {
                self.slots.post_reads()?;
            }
            let Some(next) = self.asked.front().copied() else {
                // All slots are held by WRITEs, or by READs that nobody waits for.
                let slot = self.slots.take_within(deadline)?;
                self.slots.give(slot);
                continue;
            };
            self.slots.wait(next.slot, deadline)?;
            let part = &mut out[opened * size..(opened + next.count) * size];
            self.open(next, next.first * size as u64, part, deadline)?;
            opened += next.count;
            self.asked.pop_front();
            self.slots.give(next.slot);
            in_time(deadline)?;
        }
        Ok(())
    }

    /// Writes pages of `bytes.len() / pages.len()` bytes, a multiple of the block, by `deadline`. They have arrived when
    /// this returns.
    ///
    /// # Errors
    /// As [`SealedLane::write`].
    pub fn write_pages(&mut self, pages: &[usize], bytes: &[u8], deadline: Instant) -> Result<(), DataError> {
        let (blocks, deadline) = self.admit_pages(Op::Write, pages, bytes.len(), deadline)?;
        self.forget_reads();
        let written = self.write_listed(blocks, bytes, deadline);
        self.settle(written, deadline)
    }

    fn write_listed(&mut self, blocks: Blocks<'_>, bytes: &[u8], deadline: Instant) -> Result<(), DataError> {
        let size = self.block;
        let most = self.pieces(blocks.count());
        let mut done = 0;
        while done < blocks.count() {
            if done > 0 {
                self.slots.poll()?;
                in_time(deadline)?;
            }
            let (first, count) = blocks.piece(done, most);
            let slot = self.slots.take_within(deadline)?;
            match self.write_whole(slot, first, &bytes[done * size..(done + count) * size], deadline) {
                Ok(sent) => done += sent / size,
                Err(error) => {
                    self.slots.give(slot);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Checks a list of pages, and returns it as blocks, with the deadline to keep.
    fn admit_pages<'a>(
        &self,
        op: Op,
        pages: &'a [usize],
        len: usize,
        deadline: Instant,
    ) -> Result<(Blocks<'a>, Instant), DataError> {
        let bytes = len / pages.len().max(1);
        if bytes == 0 || !len.is_multiple_of(pages.len()) || !bytes.is_multiple_of(self.block) {
            let (first, end) = (0, self.bytes);
            return Err(DataError::Range { offset: 0, len: len as u64, first, end });
        }
        let mut until = deadline;
        for &page in pages {
            let offset = (page as u64).saturating_mul(bytes as u64);
            until = self.admit(op, offset, bytes, deadline)?;
        }
        Ok((Blocks { pages, each: bytes / self.block }, until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_make_one_request_however_pages_and_requests_are_cut() {
        let blocks = Blocks { pages: &[4, 5, 6, 9, 2, 3], each: 2 };
        let list = |most: usize| {
            let (mut at, mut pieces) = (0, Vec::new());
            while at < blocks.count() {
                pieces.push(blocks.piece(at, most));
                at += pieces[pieces.len() - 1].1;
            }
            pieces
        };
        assert_eq!(list(64), [(8, 6), (18, 2), (4, 4)]);
        assert_eq!(list(4), [(8, 4), (12, 2), (18, 2), (4, 4)]);
        assert_eq!(list(3), [(8, 3), (11, 3), (18, 2), (4, 3), (7, 1)]);
        assert_eq!(list(1).len(), 12);
    }
}
