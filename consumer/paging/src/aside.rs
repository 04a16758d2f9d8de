//! Where a page is when it has left the region and is not dropped yet.
//!
//! Whoever has asked the kernel for a page (another process by `process_vm_writev`, as MPI does between ranks; direct I/O; a
//! device) writes to it without a fault, protected or not, until it lets go of it. The kernel moves no such page. One that it
//! does move is nobody's any more: what it holds now is what it held last.
#![allow(unsafe_code)]

use nix::errno::Errno;

use crate::error::PagingError;
use crate::kernel::{Copied, Faults, Kernel};
use crate::map::{Map, kernel_page};
use crate::pager::TOGETHER;

/// Room for a batch of pages.
#[derive(Debug)]
pub(crate) struct Aside {
    map: Map,
    /// Faults of its own: who touches what is not there ends by SIGBUS, and a system call by an error; nobody waits.
    kernel: Kernel,
    /// Bytes from the start that may be mapped.
    used: usize,
    /// Whether this kernel moves pages: from Linux 6.8 on.
    moves: bool,
}

/// What has become of pages that were to go.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Pages from the first on that were moved out and looked at.
    pub(crate) looked: usize,
    /// Of those, the ones that do not hold what they should, and are back in their place; a bit each.
    pub(crate) back: u64,
    /// A page that could be put nowhere.
    pub(crate) homeless: Option<Errno>,
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
        let mut aside = Self { map, kernel, used: kernel_page(), moves };
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
        let moved = self.kernel.move_pages(self.map.at(0), from, (page * count).min(self.map.len()));
        self.used = moved.bytes;
        let mut out = Out { error: moved.error, ..Out::default() };
        while (out.looked + 1) * page <= moved.bytes {
            let at = out.looked * page;
            // SAFETY: this page is mapped, since it was moved here and no other was put back yet; the map is this value's
            // alone, so that nobody writes to it or takes it away before the borrow ends.
            let bytes = unsafe { std::slice::from_raw_parts(self.map.at(at) as *const u8, page) };
            if !holds(out.looked, bytes) {
                out.put(self.give_back(region, at, from + at, page));
            }
            out.looked += 1;
        }
        let (at, rest) = (out.looked * page, moved.bytes % page);
        if rest > 0 {
            out.put(self.give_back(region, at, from + at, rest));
        }
        out
    }

    /// Puts bytes back where they were. That takes no memory, but where the program has given the place other rights.
    fn give_back(&self, region: &Kernel, at: usize, to: usize, len: usize) -> Copied {
        let moved = region.move_pages(to, self.map.at(at), len);
        if moved.error.is_none() {
            return moved;
        }
        let (at, len) = (self.map.at(at + moved.bytes), len - moved.bytes);
        // SAFETY: these pages were moved here, and those before them alone have left; see above.
        region.copy_in(to + moved.bytes, unsafe { std::slice::from_raw_parts(at as *const u8, len) }, false)
    }

    /// Makes what the program has locked movable: locks only say where pages are, and a page that is to be kept is held.
    pub(crate) fn unlock(&self, region: &Map, from: usize, len: usize) {
        self.map.unlock(0..self.map.len());
        region.unlock(from..from + len);
    }

    /// Drops what is here.
    pub(crate) fn clear(&mut self) {
        let used = std::mem::take(&mut self.used);
        if used > 0
            && let Err(error) = self.map.drop_pages(0..used)
        {
            // The next ones find no room, and stay.
            tracing::warn!(%error, "pages that have gone were not dropped");
        }
    }
}

impl Out {
    /// The page that is looked at was put back, if it could be.
    fn put(&mut self, copied: Copied) {
        match copied.error {
            None | Some(Errno::EEXIST) => self.back |= 1 << self.looked,
            // The program has put something else there, and wants these bytes no more.
            Some(Errno::ENOENT | Errno::EINVAL) => {}
            Some(error) => (self.back, self.homeless) = (self.back | 1 << self.looked, Some(error)),
        }
    }
}
