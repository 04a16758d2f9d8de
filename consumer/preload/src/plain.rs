//! The memory of the pool where no lease is named: this machine's own, without a bound but for what is pinned. For who
//! wants to see whether a program goes along with having its memory placed.

use std::ops::Range;

use serde_json::{Value, json};

use crate::lock::Lock;
use crate::real;
use crate::settings::Settings;

/// A range of memory, for the rest of the process.
pub(crate) struct Plain {
    base: *mut u8,
    length: usize,
    page: usize,
    local: usize,
    pinned: Lock<Pinned>,
}

struct Pinned {
    pages: Vec<bool>,
    count: usize,
}

// SAFETY: the pointer is only where the range begins; all that changes is behind a lock or the kernel's.
unsafe impl Send for Plain {}
// SAFETY: the same.
unsafe impl Sync for Plain {}

impl Plain {
    /// A new one. The error is the cause and the way out.
    pub(crate) fn open(settings: &Settings) -> Result<Self, String> {
        let page = real::page();
        let length = settings.remote / page * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; nothing that exists is touched.
        let base = unsafe { real::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            return Err(format!(
                "{length} bytes of addresses cannot be had: {error}; ask for less with --remote, or raise `ulimit -v`"
            ));
        }
        // SAFETY: the mapping is ours. A child that forgot it gets a signal where it uses it.
        if unsafe { real::madvise(base, length, libc::MADV_DONTFORK) } != 0 {
            let error = std::io::Error::last_os_error();
            // SAFETY: nobody uses it yet.
            unsafe { real::munmap(base, length) };
            return Err(format!("the memory cannot be kept from forked children: {error}"));
        }
        let pinned = Lock::new(Pinned { pages: vec![false; length / page], count: 0 });
        Ok(Self { base: base.cast(), length, page, local: settings.local, pinned })
    }

    /// Where it begins: a multiple of [`Plain::page`].
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// How many bytes it has: a multiple of [`Plain::page`].
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Bytes of a page of it.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Makes whole pages zeros, and gives their memory back. False where it cannot.
    pub(crate) fn discard(&self, range: Range<usize>) -> bool {
        // SAFETY: pages of this range, whose contents their owner gave up.
        unsafe { real::madvise(self.at(range.start), range.len(), libc::MADV_DONTNEED) == 0 }
    }

    /// Keeps pages in this machine's memory. False, and nothing is done, where they are more than it may take.
    pub(crate) fn pin(&self, range: Range<usize>) -> bool {
        let mut pinned = self.pinned.lock();
        let pages = range.start / self.page..range.end.div_ceil(self.page);
        let more = pinned.pages[pages.clone()].iter().filter(|pinned| !**pinned).count();
        if (pinned.count + more).saturating_mul(self.page) > self.local {
            return false;
        }
        // SAFETY: pages of this range.
        if unsafe { real::mlock(self.at(range.start), range.len()) } != 0 {
            return false;
        }
        pinned.pages[pages].fill(true);
        pinned.count += more;
        true
    }

    /// The end of [`Plain::pin`].
    pub(crate) fn unpin(&self, range: Range<usize>) {
        let mut pinned = self.pinned.lock();
        if pinned.count == 0 {
            return;
        }
        let pages = range.start / self.page..range.end.div_ceil(self.page);
        let fewer = pinned.pages[pages.clone()].iter().filter(|pinned| **pinned).count();
        if fewer > 0 {
            // SAFETY: pages of this range.
            unsafe { real::munlock(self.at(range.start), range.len()) };
            pinned.pages[pages].fill(false);
            pinned.count -= fewer;
        }
    }

    /// Which pages are in this machine's memory.
    pub(crate) fn resident(&self, range: Range<usize>, pages: &mut [bool]) {
        let mut bytes = vec![0_u8; range.len().div_ceil(self.page)];
        // SAFETY: pages of this range, and a byte for each.
        unsafe { real::mincore(self.at(range.start).cast(), range.len(), bytes.as_mut_ptr()) };
        pages.iter_mut().zip(bytes).for_each(|(page, byte)| *page = byte & 1 != 0);
    }

    /// What happened in it.
    pub(crate) fn stats(&self) -> Value {
        json!({ "pages": self.length / self.page })
    }

    fn at(&self, offset: usize) -> *mut libc::c_void {
        self.base.wrapping_add(offset).cast()
    }
}
