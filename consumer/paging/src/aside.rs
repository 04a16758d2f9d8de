//! Where a page is when it has left the region and is not dropped yet.
//!
//! Whoever has asked the kernel for a page (another process by `process_vm_writev`, as MPI does between ranks; direct I/O; a
//! device) writes to it without a fault, protected or not, until it lets go of it. The kernel moves no such page. One that it
//! does move is nobody's any more: what it holds now is what it held last.
#![allow(unsafe_code)]

use std::ops::Range;

use nix::errno::Errno;

use crate::error::PagingError;
use crate::kernel::{Faults, Kernel};
use crate::map::{Map, kernel_page};
use crate::pager::TOGETHER;

/// Room for a batch of pages.
#[derive(Debug)]
pub(crate) struct Aside {
    map: Map,
    /// Faults of its own: who touches what is not there ends by SIGBUS, and a system call by an error; nobody waits.
    kernel: Kernel,
    /// Whether this kernel moves pages: from Linux 6.8 on.
    moves: bool,
}

/// What has become of pages that were to go.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Pages from the first on that were moved out and looked at.
    pub(crate) looked: usize,
    /// Of those, the ones that do not hold what they should, and are back in their place; a bit each.
    back: u64,
    /// Of those, the ones that could be put nowhere; a bit each, and why the last of them could not.
    homeless: u64,
    why: Option<Errno>,
    /// Why the page behind them was not moved.
    pub(crate) error: Option<Errno>,
}

impl Aside {
    pub(crate) fn new(len: usize) -> Result<Self, PagingError> {
        let failed = |source| PagingError::Kernel { what: "mapping room for pages that go", source };
        let map = Map::new(len, kernel_page()).map_err(failed)?;
        let kernel = Kernel::new(&map, Faults::Signal)?;
        let probe = Map::new(kernel_page(), kernel_page()).map_err(failed)?;
        // SAFETY: the first byte of a mapping that nobody else knows of.
        unsafe { probe.start().as_ptr().write_volatile(1) };
        // An older kernel knows no such call.
        let moves = kernel.move_pages(map.at(0), probe.at(0), kernel_page()).error != Some(Errno::EINVAL);
        let mut aside = Self { map, kernel, moves };
        aside.clear();
        Ok(aside)
    }

    /// Whether pages can be looked at before they go.
    pub(crate) fn moves(&self) -> bool {
        self.moves
    }

    /// Moves `count` pages of `page` bytes here, from an address of the region on, in the place of those before, and has each
    /// looked at by number. Where that says false, or where there is only a part of a page, it is put back.
    pub(crate) fn take(
        &mut self,
        region: &Kernel,
        from: usize,
        (page, count): (usize, usize),
        holds: impl Fn(usize, &[u8]) -> bool,
    ) -> Out {
        self.clear();
        debug_assert!(count <= TOGETHER);
        let asked = (page * count).min(self.map.len());
        let moved = self.kernel.move_pages(self.map.at(0), from, asked);
        let bytes = moved.error.map_or(asked, |_| self.here(0..asked).unwrap_or(moved.bytes));
        let mut out = Out { error: moved.error.filter(|_| bytes < asked), ..Out::default() };
        while (out.looked + 1) * page <= bytes {
            let at = out.looked * page;
            // SAFETY: this page is mapped, since it was moved here and no other was put back yet; the map is this value's
            // alone, so that nobody writes to it or takes it away before the borrow ends.
            let now = unsafe { std::slice::from_raw_parts(self.map.at(at) as *const u8, page) };
            if !holds(out.looked, now) {
                self.give_back(region, at..at + page, from, &mut out);
            }
            out.looked += 1;
        }
        let at = out.looked * page;
        if at < bytes {
            self.give_back(region, at..bytes, from, &mut out);
        }
        out
    }

    /// Bytes from the start of a range on that are here. After an error the kernel may have moved more than it says: from Linux
    /// 6.18 on it does not count what it moved when it tried a second time.
    fn here(&self, range: Range<usize>) -> Option<usize> {
        let seen = self.map.resident(range).ok()?;
        Some(seen.iter().take_while(|seen| **seen).count() * kernel_page())
    }

    /// Puts the page that is looked at, or what is here of it, back where it was. That takes no memory, but where the program
    /// has given the place, or a part of it, other rights.
    fn give_back(&self, region: &Kernel, range: Range<usize>, from: usize, out: &mut Out) {
        let bit = 1 << out.looked;
        if region.move_pages(from + range.start, self.map.at(range.start), range.len()).error.is_none() {
            out.back |= bit;
            return;
        }
        for at in range.step_by(kernel_page()) {
            if self.here(at..at + kernel_page()) == Some(0) {
                out.back |= bit;
                continue;
            }
            // SAFETY: this page was moved here, and has not left; the map is this value's alone, as above.
            let bytes = unsafe { std::slice::from_raw_parts(self.map.at(at) as *const u8, kernel_page()) };
            match region.copy_in(from + at, bytes, false).error {
                None | Some(Errno::EEXIST) => out.back |= bit,
                // The program has put something else there, and wants these bytes no more.
                Some(Errno::ENOENT | Errno::EINVAL) => {}
                Some(error) => {
                    (out.back, out.homeless, out.why) = (out.back | bit, out.homeless | bit, Some(error));
                }
            }
        }
    }

    /// Makes what the program has locked movable: locks only say where pages are, and a page that is to be kept is held.
    pub(crate) fn unlock(&self, region: &Map, from: usize, len: usize) {
        self.map.unlock(0..self.map.len());
        region.unlock(from..from + len);
    }

    /// Drops what is here.
    pub(crate) fn clear(&mut self) {
        if let Err(error) = self.map.drop_pages(0..self.map.len()) {
            // The next ones find no room, and stay.
            tracing::warn!(%error, "pages that have gone were not dropped");
        }
    }
}

impl Out {
    /// Whether the page of this number is back in its place.
    pub(crate) fn is_back(&self, number: usize) -> bool {
        self.back >> number & 1 == 1
    }

    /// Why the page of this number could be put nowhere, where it could not.
    pub(crate) fn homeless(&self, number: usize) -> Option<Errno> {
        self.why.filter(|_| self.homeless >> number & 1 == 1)
    }
}
