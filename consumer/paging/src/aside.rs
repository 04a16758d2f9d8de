//! Where a page is when it has left the region and is not dropped yet.
//!
//! Whoever has asked the kernel for a page (another process by `process_vm_writev`, as MPI does between ranks; direct I/O; a
//! device) writes to it without a fault, protected or not, until it lets go of it. The kernel moves no such page. One that it
//! does move is nobody's any more: what it holds now is what it held last.
#![allow(unsafe_code)]

use nix::errno::Errno;

use crate::error::PagingError;
use crate::kernel::Kernel;
use crate::map::{Map, kernel_page};

/// Room for a batch of pages.
#[derive(Debug)]
pub(crate) struct Aside {
    map: Map,
    /// Bytes from the start that are mapped.
    used: usize,
}

impl Aside {
    pub(crate) fn new(kernel: &Kernel, len: usize) -> Result<Self, PagingError> {
        let failed = |source| PagingError::Kernel { what: "mapping room for pages that go", source };
        let map = Map::new(len, kernel_page()).map_err(failed)?;
        // Nothing is ever touched in it that is not there.
        kernel.watch(&map)?;
        Ok(Self { map, used: 0 })
    }

    /// Moves pages here, `len` bytes from an address of the region on, in the place of those before. What could be moved, and
    /// why what follows could not: `EBUSY` where somebody has it.
    pub(crate) fn take(&mut self, kernel: &Kernel, from: usize, len: usize) -> (&[u8], Option<Errno>) {
        self.clear();
        let moved = kernel.move_pages(self.map.at(0), from, len.min(self.map.len()));
        self.used = moved.bytes;
        // SAFETY: these pages are mapped, since they were moved here; the map is this value's alone, so that nobody writes to
        // them or takes them away before the borrow ends.
        (unsafe { std::slice::from_raw_parts(self.map.start().as_ptr(), self.used) }, moved.error)
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
