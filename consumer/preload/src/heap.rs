//! Which blocks were handed out, and what each is. Page numbers alone; no memory is touched here.
//!
//! What is given up goes in two steps: first no block holds it any more, then, once its contents are gone, it can be
//! handed out again. So every page that is handed out holds zeros.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::space::Space;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From `malloc` and its kin: whole, until it is freed.
    Allocation,
    /// From `mmap`: any part of it may go.
    Mapping,
    /// The program mapped something else there. It is the kernel's, for ever.
    Retired,
}

/// Pages that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) pages: usize,
    pub(crate) kind: Kind,
    /// Whether some of them may have another protection than reading and writing.
    pub(crate) protected: bool,
}

/// What a range of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Handed out.
    Used(Kind),
    /// Not, as if nothing were mapped there.
    Hole,
}

/// What became of a block that should get another length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resized {
    /// It has it.
    Done,
    /// It has it; these pages are given up.
    Shrunk(GivenUp),
    /// There is no room behind it.
    Stuck,
}

/// Pages that no block holds any more, with contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenUp {
    pub(crate) pages: Range<usize>,
    pub(crate) protected: bool,
}

/// The blocks of a space.
#[derive(Debug)]
pub(crate) struct Heap {
    space: Space,
    blocks: BTreeMap<usize, Block>,
    used: usize,
    peak: usize,
}

impl Heap {
    /// Over these pages, all of them free.
    pub(crate) fn new(pages: Range<usize>) -> Self {
        Self { space: Space::new(pages), blocks: BTreeMap::new(), used: 0, peak: 0 }
    }

    /// Pages that are handed out, and the most that ever were.
    pub(crate) fn used(&self) -> (usize, usize) {
        (self.used, self.peak)
    }

    /// Pages that can be handed out.
    pub(crate) fn free_pages(&self) -> usize {
        self.space.free_pages()
    }

    /// A new block, from a multiple of `align` on. `roomy`: where it can grow.
    pub(crate) fn hand_out(&mut self, pages: usize, align: usize, kind: Kind, roomy: bool) -> Option<usize> {
        let taken = if roomy { self.space.take_roomy(pages, align) } else { self.space.take(pages, align) };
        let first = taken?;
        self.insert(first, pages, kind, false);
        Some(first)
    }

    /// A mapping at exactly these pages, if all of them are free.
    pub(crate) fn hand_out_at(&mut self, range: Range<usize>) -> bool {
        let taken = self.space.take_exactly(range.clone());
        if taken {
            self.insert(range.start, range.len(), Kind::Mapping, false);
        }
        taken
    }

    /// The allocation that begins there.
    pub(crate) fn allocation(&self, first: usize) -> Option<Block> {
        self.blocks.get(&first).copied().filter(|block| block.kind == Kind::Allocation)
    }

    /// Gives up the allocation that begins there.
    pub(crate) fn give_up(&mut self, first: usize) -> Option<GivenUp> {
        let block = self.allocation(first)?;
        self.forget(first, block);
        Some(GivenUp { pages: first..first + block.pages, protected: block.protected })
    }

    /// What was given up, and holds zeros by now, can be handed out again.
    pub(crate) fn give_back(&mut self, pages: Range<usize>) {
        let taken_back = self.space.give_back(pages);
        debug_assert!(taken_back, "pages that were not given up");
    }

    /// Gives the allocation that begins there another length, where it is. None where none begins there.
    pub(crate) fn resize(&mut self, first: usize, pages: usize) -> Option<Resized> {
        let block = self.allocation(first)?;
        let (end, new_end) = (first + block.pages, first.checked_add(pages)?);
        Some(if new_end > end {
            if !self.space.take_exactly(end..new_end) {
                return Some(Resized::Stuck);
            }
            self.forget(first, block);
            self.insert(first, pages, block.kind, block.protected);
            Resized::Done
        } else if new_end < end && pages > 0 {
            self.forget(first, block);
            self.insert(first, pages, block.kind, block.protected);
            Resized::Shrunk(GivenUp { pages: new_end..end, protected: block.protected })
        } else {
            Resized::Done
        })
    }

    /// Makes a mapping that ends at `end` longer by as many pages, if they are free.
    pub(crate) fn extend_mapping(&mut self, end: usize, more: usize) -> bool {
        let last = self.blocks.range(..end).next_back().map(|(&first, &block)| (first, block));
        match last {
            Some((first, block)) if block.kind == Kind::Mapping && first + block.pages == end => {
                let taken = end.checked_add(more).is_some_and(|new_end| self.space.take_exactly(end..new_end));
                if taken {
                    self.forget(first, block);
                    self.insert(first, block.pages + more, block.kind, block.protected);
                }
                taken
            }
            _ => false,
        }
    }

    /// Gives up what of these pages is mapped. Allocations stay, and what is retired.
    pub(crate) fn cut(&mut self, range: Range<usize>) -> Vec<GivenUp> {
        let parts = self.split(&range, |kind| kind == Kind::Mapping);
        let mut gone: Vec<GivenUp> = Vec::with_capacity(parts.len());
        for (first, block) in parts {
            self.forget(first, block);
            gone.push(GivenUp { pages: first..first + block.pages, protected: block.protected });
        }
        gone
    }

    /// Makes what is free of these pages a mapping, as a mapping at a fixed place does.
    pub(crate) fn claim(&mut self, range: Range<usize>) {
        let holes: Vec<_> = self.space.free_in(range).collect();
        for hole in holes {
            self.hand_out_at(hole);
        }
    }

    /// All of these pages are the kernel's from now on.
    pub(crate) fn retire(&mut self, range: Range<usize>) {
        self.claim(range.clone());
        for (first, block) in self.split(&range, |kind| kind != Kind::Retired) {
            self.forget(first, block);
            self.insert(first, block.pages, Kind::Retired, false);
        }
    }

    /// Remembers that the protection of some of these pages is another one.
    pub(crate) fn protect(&mut self, range: Range<usize>) {
        let touched: Vec<usize> = self.touching(&range).map(|(first, _)| first).collect();
        for first in touched {
            if let Some(block) = self.blocks.get_mut(&first) {
                block.protected = true;
            }
        }
    }

    /// Whether any of these pages may have another protection.
    pub(crate) fn is_protected(&self, range: &Range<usize>) -> bool {
        self.touching(range).any(|(_, block)| block.protected)
    }

    /// What these pages are, in their order.
    pub(crate) fn pieces(&self, range: Range<usize>) -> Vec<(Range<usize>, Piece)> {
        let mut pieces: Vec<(Range<usize>, Piece)> = Vec::new();
        let mut at = range.start;
        let mut push = |pages: Range<usize>, piece| match pieces.last_mut() {
            _ if pages.is_empty() => {}
            Some((before, same)) if *same == piece => before.end = pages.end,
            _ => pieces.push((pages, piece)),
        };
        for (first, block) in self.touching(&range) {
            let (start, end) = (first.max(range.start), (first + block.pages).min(range.end));
            push(at..start, Piece::Hole);
            push(start..end, Piece::Used(block.kind));
            at = end;
        }
        push(at..range.end, Piece::Hole);
        pieces
    }

    fn touching(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, Block)> + '_ {
        let (start, end) = (range.start, range.end.max(range.start));
        let reaching_in = self.blocks.range(..start).next_back();
        let inside = self.blocks.range(start..end);
        let all = reaching_in.into_iter().chain(inside).map(|(&first, &block)| (first, block));
        all.filter(move |(first, block)| *first < end && first + block.pages > start && start < end)
    }

    /// Cuts the blocks of some kinds at both ends of the range, and returns those within. Allocations are cut too.
    fn split(&mut self, range: &Range<usize>, which: impl Fn(Kind) -> bool) -> Vec<(usize, Block)> {
        let touched: Vec<_> = self.touching(range).filter(|(_, block)| which(block.kind)).collect();
        let mut within = Vec::with_capacity(touched.len());
        for (first, block) in touched {
            let end = first + block.pages;
            let (start, stop) = (first.max(range.start), end.min(range.end));
            self.forget(first, block);
            for (from, to) in [(first, start), (start, stop), (stop, end)] {
                if from < to {
                    self.insert(from, to - from, block.kind, block.protected);
                }
            }
            within.push((start, Block { pages: stop - start, ..block }));
        }
        within
    }

    fn insert(&mut self, first: usize, pages: usize, kind: Kind, protected: bool) {
        self.blocks.insert(first, Block { pages, kind, protected });
        self.used += pages;
        self.peak = self.peak.max(self.used);
    }

    fn forget(&mut self, first: usize, block: Block) {
        self.blocks.remove(&first);
        self.used -= block.pages;
    }
}

#[cfg(test)]
#[path = "heap_tests.rs"]
mod tests;
