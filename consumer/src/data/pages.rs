//! Many blocks, side by side or not, as a region's pages come and go: as few requests as they make, all under way at once.

use std::collections::VecDeque;
use std::time::Instant;

use overbank_verbs::Op;

use super::read::Asked;
use super::{DataError, SealedLane, in_time};

/// Calls for other pages that READs ahead outlive.
const PASSED: u32 = 4;

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

/// READs of pages that were posted for a call that is likely to come.
#[derive(Default)]
pub(super) struct Ahead {
    asked: VecDeque<Asked>,
    /// Calls since, for other pages.
    passed: u32,
}

impl Ahead {
    /// For as many READs as there are slots.
    pub(super) fn new(slots: usize) -> Self {
        Self { asked: VecDeque::with_capacity(slots), passed: 0 }
    }
}

impl SealedLane {
    /// Reads pages of `out.len() / pages.len()` bytes, a multiple of the block, into `out`, in this order, by `deadline`.
    /// On an error `out` holds zeros. Those of `ahead` are asked for besides, as far as there is room, and nobody waits for
    /// them: a later call that begins with them finds them under way or here, unless they were written meanwhile.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn read_pages(
        &mut self,
        pages: &[usize],
        ahead: &[usize],
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), DataError> {
        let result = self.admit_pages(Op::Read, pages, out.len(), deadline).and_then(|(blocks, until)| {
            let ahead = match self.admit_pages(Op::Read, ahead, ahead.len() * blocks.each * self.block, deadline) {
                Ok((ahead, _)) => ahead,
                Err(_) => Blocks { pages: &[], each: blocks.each },
            };
            self.read_listed(blocks, ahead, out, until)
        });
        result.map_err(|error| {
            self.forget_reads();
            out.fill(0);
            self.late(error)
        })
    }

    fn read_listed(
        &mut self,
        blocks: Blocks<'_>,
        ahead: Blocks<'_>,
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), DataError> {
        let (size, all) = (self.block, blocks.count());
        let mut asked = self.come_ahead(blocks);
        // One list ahead at a time.
        let end = all + if self.ahead.asked.is_empty() { ahead.count() } else { 0 };
        let most = [self.pieces(all), self.pieces(ahead.count())];
        let mut opened = 0;
        while opened < all {
            let begun = asked;
            while asked < end
                && let Some(slot) = self.slots.take()
            {
                let is_ahead = asked >= all;
                let (first, count) =
                    if is_ahead { ahead.piece(asked - all, most[1]) } else { blocks.piece(asked, most[0]) };
                self.ask(Asked { slot, first, count });
                if is_ahead {
                    self.ahead.asked.extend(self.asked.pop_back());
                }
                asked += count;
            }
            if asked > begun {
                self.slots.post_reads()?;
            }
            let Some(next) = self.asked.front().copied() else {
                // All slots are held by WRITEs, or by READs that nobody waits for.
                self.forget_ahead();
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

    /// Takes over the READs ahead that these blocks begin with, and returns how many blocks those are of. What was written
    /// since a READ was posted is not in it for certain: that and what follows is forgotten.
    fn come_ahead(&mut self, blocks: Blocks<'_>) -> usize {
        let (all, each) = (blocks.count(), self.slot_blocks());
        let mut at = 0;
        while at < all
            && let Some(&next) = self.ahead.asked.front()
        {
            let Asked { slot, first, count } = next;
            let mut before = self.before[slot.0 as usize * each..].iter().zip(first..first + count as u64);
            if blocks.piece(at, count) != (first, count)
                || !before.all(|(before, block)| *before == self.freshness.entry(block))
            {
                break;
            }
            self.asked.extend(self.ahead.asked.pop_front());
            at += count;
        }
        self.ahead.passed = if at > 0 { 0 } else { self.ahead.passed + 1 };
        if (1..all).contains(&at) || self.ahead.passed > PASSED {
            self.forget_ahead();
        }
        at
    }

    /// Gives up the READs ahead.
    pub(super) fn forget_ahead(&mut self) {
        self.ahead.passed = 0;
        while let Some(asked) = self.ahead.asked.pop_front() {
            self.slots.give(asked.slot);
        }
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
        if pages.is_empty() && len == 0 {
            return Ok((Blocks { pages, each: 1 }, deadline));
        }
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
