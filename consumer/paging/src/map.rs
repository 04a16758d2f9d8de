//! A range of this process's addresses whose pages this crate maps and takes away.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use crate::pager::TOGETHER;

/// Bytes of the kernel's own page.
pub(crate) fn kernel_page() -> usize {
    // SAFETY: asks for a constant of this system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Anonymous addresses without pages: private, no huge pages, left out of core dumps and of forked children.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is this value's until it is dropped, and its methods only ask the kernel for something or copy bytes
// with opaque machine instructions; any thread may do so at any time.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// `len` bytes, beginning at a multiple of `align`, a power of two. Nothing is touched.
    pub(crate) fn new(len: usize, align: usize) -> io::Result<Self> {
        let page = kernel_page();
        let align = align.max(page);
        let room = len.checked_add(align).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a new private mapping where the kernel likes; nothing that exists is touched. Where the program has all its
        // future memory locked, the kernel would fill it; what nobody may touch it leaves.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                room,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let (from, start) = (at as usize, (at as usize).next_multiple_of(align));
        let (before, after) = (start - from, from + room - (start + len));
        // SAFETY: both ranges are parts of the mapping made above that nobody knows of yet; without bytes they are left.
        unsafe {
            if before > 0 {
                libc::munmap(at, before);
            }
            if after > 0 {
                libc::munmap((start + len) as *mut libc::c_void, after);
            }
        }
        let start = NonNull::new(start as *mut u8).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let map = Self { start, len };
        map.unlock(0..len);
        // SAFETY: the mapping made above, which nobody else knows of yet.
        if unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        map.advise(0..len, libc::MADV_NOHUGEPAGE).or_else(|error| match error.raw_os_error() {
            // A kernel without huge pages has no such advice.
            Some(libc::EINVAL) => Ok(()),
            _ => Err(error),
        })?;
        map.advise(0..len, libc::MADV_DONTFORK)?;
        map.advise(0..len, libc::MADV_DONTDUMP)?;
        Ok(map)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Address of a byte.
    pub(crate) fn at(&self, offset: usize) -> usize {
        debug_assert!(offset <= self.len);
        self.start.as_ptr() as usize + offset
    }

    /// Takes the pages of a range away. What was in them is gone.
    pub(crate) fn drop_pages(&self, range: Range<usize>) -> io::Result<()> {
        let dropped = self.advise(range.clone(), libc::MADV_DONTNEED);
        match dropped.as_ref().err().and_then(io::Error::raw_os_error) {
            // Some of it the program has unmapped; the rest is gone.
            Some(libc::ENOMEM) => Ok(()),
            // Some of it the program has locked, and what lies before that is gone already: to be kept here a page is held.
            Some(libc::EINVAL) => {
                self.unlock(range.clone());
                self.advise(range, libc::MADV_DONTNEED)
            }
            _ => dropped,
        }
    }

    /// Takes the program's locks from a range.
    pub(crate) fn unlock(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies in the mapping; locks only say where pages are.
        unsafe { libc::munlock(self.at(range.start) as *mut libc::c_void, range.len()) };
    }

    /// Copies ranges out, one after the other, and returns how many bytes could be: a range that the program has made
    /// unreadable ends it. Others may write there meanwhile; what is then copied is of no use, and that is for the caller to
    /// find out.
    pub(crate) fn copy_out(&self, ranges: &[Range<usize>], out: &mut [u8]) -> io::Result<usize> {
        let mut remote = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; TOGETHER];
        assert!(ranges.len() <= TOGETHER);
        let mut len = 0;
        for (range, remote) in ranges.iter().zip(&mut remote) {
            assert!(range.start <= range.end && range.end <= self.len);
            *remote = libc::iovec { iov_base: self.at(range.start) as *mut libc::c_void, iov_len: range.len() };
            len += range.len();
        }
        assert!(len <= out.len());
        let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: len };
        // SAFETY: the kernel reads from ranges of the mapping, or stops where it cannot, and writes to `len` bytes of the
        // caller's. That the copy is the kernel's makes it no race of ours with a program that writes there.
        let copied = unsafe {
            libc::process_vm_readv(
                libc::getpid(),
                &raw const local,
                1,
                remote.as_ptr(),
                ranges.len() as libc::c_ulong,
                0,
            )
        };
        usize::try_from(copied).map_err(|_| io::Error::last_os_error())
    }

    /// Reads a byte.
    #[cfg(feature = "measuring")]
    pub(crate) fn peek(&self, offset: usize) -> u8 {
        assert!(offset < self.len);
        // SAFETY: the byte lies in the mapping, which is readable.
        unsafe { self.start.as_ptr().add(offset).read_volatile() }
    }

    /// Which of the kernel's pages of a range are mapped, one entry each.
    pub(crate) fn resident(&self, range: Range<usize>) -> io::Result<Vec<bool>> {
        assert!(range.start <= range.end && range.end <= self.len);
        let mut seen = vec![0_u8; range.len().div_ceil(kernel_page())];
        let at = self.at(range.start) as *mut libc::c_void;
        // SAFETY: the range lies in the mapping, and there is a byte for each of its pages.
        let done = unsafe { libc::mincore(at, range.len(), seen.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(seen.into_iter().map(|byte| byte & 1 != 0).collect())
    }

    fn advise(&self, range: Range<usize>, advice: i32) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies in the mapping; the advices used here change nothing else of this process.
        match unsafe { libc::madvise(self.at(range.start) as *mut libc::c_void, range.len(), advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nobody uses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
