//! Memory that devices may touch. It is never lent out as a slice: a peer's WRITE may change any byte at any time, which
//! a Rust reference forbids. Bytes are copied in and out here, and nowhere else.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::arch::asm;
use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::VerbsError;

const HUGE_2M: usize = 2 << 20;
const HUGE_1G: usize = 1 << 30;

/// Where a [`Memory`]'s pages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backing {
    /// Reserved hugepages of 2 MiB.
    Huge2M,
    /// Reserved hugepages of 1 GiB.
    Huge1G,
    /// Ordinary pages that the kernel is asked to make huge; it may not.
    Transparent,
    /// Ordinary pages.
    Ordinary,
}

/// Anonymous memory of this process, populated when it is made, left out of core dumps and of children, and locked
/// where the system allows it.
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
    mapped: usize,
    backing: Backing,
    page_bytes: usize,
    by_crate: bool,
    locked: bool,
}

// SAFETY: the mapping belongs to this value alone until it is dropped, and no method hands out a reference to its
// bytes; each access is a copy made of atomic or opaque machine accesses, which threads may do at the same time.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes at {:#x}, {:?})", self.len, self.address(), self.backing)
    }
}

impl Memory {
    /// Maps `len` bytes and populates them. All are zero.
    ///
    /// # Errors
    /// `len` zero, or no multiple of the hugepage; too few hugepages; no memory. A system that does not lock it is
    /// no error: see [`locked`](Self::locked).
    pub fn map(len: usize, backing: Backing) -> Result<Self, VerbsError> {
        if len == 0 {
            return Err(VerbsError::ZeroLength { what: "memory" });
        }
        if len > isize::MAX as usize - HUGE_1G {
            return Err(VerbsError::NoMemory { bytes: len, source: io::Error::from_raw_os_error(libc::ENOMEM) });
        }
        let mut memory = match backing {
            Backing::Huge2M => map_hugetlb(len, HUGE_2M, libc::MAP_HUGE_2MB)?,
            Backing::Huge1G => map_hugetlb(len, HUGE_1G, libc::MAP_HUGE_1GB)?,
            Backing::Transparent => map_ordinary(len, HUGE_2M)?,
            Backing::Ordinary => map_ordinary(len, system_page())?,
        };
        memory.backing = backing;
        memory.advise(libc::MADV_DONTDUMP, "madvise(MADV_DONTDUMP)")?;
        memory.advise(libc::MADV_DONTFORK, "madvise(MADV_DONTFORK)")?;
        if backing == Backing::Transparent && memory.advise(libc::MADV_HUGEPAGE, "").is_err() {
            tracing::warn!("this kernel has no transparent hugepages: the memory has ordinary pages");
        }
        memory.populate()?;
        memory.lock();
        Ok(memory)
    }

    /// Address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is no memory of zero bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the pages come from.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Bytes of a page: what the kernel gave, or for [`Backing::Transparent`] what it was asked for.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Whether the pages can never be swapped out. Hugepages never are.
    #[must_use]
    pub fn locked(&self) -> bool {
        self.locked
    }

    /// Copies `bytes` here. A peer that writes the same bytes at the same time may leave any mixture.
    ///
    /// # Errors
    /// [`VerbsError::OutOfRange`]; nothing was copied.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), VerbsError> {
        let target = self.at(offset, bytes.len())?;
        // SAFETY: `at` checked that the target lies in the mapping; `bytes` is a live reference to private memory,
        // which cannot overlap a mapping that nobody has a reference to.
        unsafe { copy(bytes.as_ptr(), target, bytes.len()) };
        Ok(())
    }

    /// Copies bytes from here. What a peer writes at the same time arrives in part or not at all.
    ///
    /// # Errors
    /// [`VerbsError::OutOfRange`]; nothing was copied.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), VerbsError> {
        let source = self.at(offset, bytes.len())?;
        // SAFETY: as in `copy_in`, the other way.
        unsafe { copy(source, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Appends `len` bytes from `offset` to `out`.
    pub(crate) fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>) -> Result<(), VerbsError> {
        let source = self.at(offset, len)?;
        out.reserve(len);
        // SAFETY: `at` checked the source; `reserve` made room for `len` bytes after the vector's end, which the copy
        // fills before they become part of it.
        unsafe {
            copy(source, out.as_mut_ptr().add(out.len()), len);
            out.set_len(out.len() + len);
        }
        Ok(())
    }

    /// Overwrites with zeros, in a way that the compiler may not leave out.
    ///
    /// # Errors
    /// [`VerbsError::OutOfRange`]; nothing was written.
    pub fn wipe(&self, range: Range<usize>) -> Result<(), VerbsError> {
        let (offset, len) = extent(&range, self.len)?;
        let target = self.at(offset, len)?;
        // SAFETY: `at` checked that the bytes lie in the mapping.
        unsafe { zero(target, len) };
        Ok(())
    }

    /// Offset (in the memory) of the first byte of `range` that is not zero.
    ///
    /// # Errors
    /// [`VerbsError::OutOfRange`].
    pub fn first_nonzero(&self, range: Range<usize>) -> Result<Option<usize>, VerbsError> {
        let (offset, len) = extent(&range, self.len)?;
        let start = self.at(offset, len)?.cast_const();
        // SAFETY: `at` checked that `len` bytes from `start` lie in the mapping, which lives as long as `self`; atomic
        // loads may race with any writer.
        let byte = |at: usize| unsafe { AtomicU8::from_ptr(start.add(at).cast_mut()) }.load(Ordering::Relaxed);
        let head = start.align_offset(64).min(len);
        let lines = (len - head) / 64;
        if let Some(at) = (0..head).find(|at| byte(*at) != 0) {
            return Ok(Some(offset + at));
        }
        for line in 0..lines {
            let at = head + line * 64;
            // SAFETY: 64 bytes from `at` lie in the range, and `start + at` is aligned to 64.
            let words = unsafe { &*start.add(at).cast::<[AtomicU64; 8]>() };
            if words.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) != 0 {
                return Ok((at..at + 64).find(|at| byte(*at) != 0).map(|at| offset + at));
            }
        }
        Ok((head + lines * 64..len).find(|at| byte(*at) != 0).map(|at| offset + at))
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    /// While the slice lives, nothing may write these bytes: no device, no peer and no `copy_in` or `wipe`.
    pub(crate) unsafe fn slice(&self, offset: usize, len: usize) -> Option<&[u8]> {
        let start = self.at(offset, len).ok()?;
        // SAFETY: `at` checked the range, which is initialised; the caller keeps writers away.
        Some(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// The bytes as a slice to write to.
    ///
    /// # Safety
    /// While the slice lives, nothing else may read or write these bytes.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice_mut(&self, offset: usize, len: usize) -> Option<&mut [u8]> {
        let start = self.at(offset, len).ok()?;
        // SAFETY: `at` checked the range, which is initialised; the caller keeps everybody else away.
        Some(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }

    fn at(&self, offset: usize, len: usize) -> Result<*mut u8, VerbsError> {
        match offset.checked_add(len) {
            // SAFETY: offset is at most the mapping's length.
            Some(end) if end <= self.len => Ok(unsafe { self.start.as_ptr().add(offset) }),
            _ => Err(VerbsError::OutOfRange { what: "the memory", offset, len, size: self.len }),
        }
    }

    fn advise(&self, advice: i32, call: &'static str) -> Result<(), VerbsError> {
        // SAFETY: the range is this value's own mapping; none of the advices used here changes its bytes.
        match unsafe { libc::madvise(self.start.as_ptr().cast(), self.mapped, advice) } {
            0 => Ok(()),
            _ => Err(VerbsError::system(call)),
        }
    }

    /// Gives every page its memory now: later, a missing hugepage would be a SIGBUS.
    fn populate(&self) -> Result<(), VerbsError> {
        let Err(VerbsError::System { source, .. }) = self.advise(libc::MADV_POPULATE_WRITE, "") else { return Ok(()) };
        if source.raw_os_error() != Some(libc::EINVAL) {
            return Err(VerbsError::NoMemory { bytes: self.len, source });
        }
        // Linux before 5.14.
        for offset in (0..self.mapped).step_by(system_page()) {
            // SAFETY: the byte lies in the mapping and nobody else knows of it yet.
            unsafe { self.start.as_ptr().add(offset).write_volatile(0) };
        }
        Ok(())
    }

    fn lock(&mut self) {
        // SAFETY: the range is this value's own mapping.
        let done = unsafe { libc::mlock(self.start.as_ptr().cast(), self.mapped) } == 0;
        let huge = matches!(self.backing, Backing::Huge2M | Backing::Huge1G);
        if !done && !huge {
            let error = io::Error::last_os_error();
            tracing::warn!(
                bytes = self.mapped,
                %error,
                "memory is not locked and may be swapped out; raise RLIMIT_MEMLOCK (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in a systemd unit)"
            );
        }
        self.locked = done || huge;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Before it is unmapped: whatever has pinned the pages would still read them, and the kernel clears them only for
        // who gets them next.
        // SAFETY: the bytes are this value's own.
        unsafe { zero(self.start.as_ptr(), self.len) };
        if self.by_crate {
            if let Ok(layout) = Layout::from_size_align(self.mapped, HUGE_2M) {
                // SAFETY: `map_hugetlb` had it from this allocator with this layout.
                unsafe { hugepage_rs::dealloc(self.start.as_ptr(), layout) };
            }
        } else {
            // SAFETY: the mapping is this value's own, and nothing refers to it: whoever registers it holds an Arc.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
        }
    }
}

fn extent(range: &Range<usize>, size: usize) -> Result<(usize, usize), VerbsError> {
    match range.end.checked_sub(range.start) {
        Some(len) => Ok((range.start, len)),
        None => Err(VerbsError::OutOfRange { what: "the memory", offset: range.start, len: 0, size }),
    }
}

fn system_page() -> usize {
    // SAFETY: sysconf only reads.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// hugepage-rs maps hugepages of the system's default size only, and panics where there is none.
fn default_hugepage() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

fn map_hugetlb(len: usize, page_bytes: usize, size_flag: i32) -> Result<Memory, VerbsError> {
    if !len.is_multiple_of(page_bytes) {
        return Err(VerbsError::NotWholePages { len, page_bytes });
    }
    let by_crate = page_bytes == HUGE_2M && default_hugepage() == Some(HUGE_2M);
    let start = match Layout::from_size_align(len, HUGE_2M) {
        // SAFETY: the size is not zero.
        Ok(layout) if by_crate => unsafe { hugepage_rs::alloc(layout) },
        _ => map_raw(len, libc::MAP_HUGETLB | size_flag),
    };
    match NonNull::new(start) {
        Some(start) => {
            Ok(Memory { start, len, mapped: len, backing: Backing::Huge2M, page_bytes, by_crate, locked: false })
        }
        None => Err(no_hugepages(len, page_bytes, io::Error::last_os_error())),
    }
}

fn no_hugepages(bytes: usize, page_bytes: usize, source: io::Error) -> VerbsError {
    if source.raw_os_error() == Some(libc::EPERM) || source.raw_os_error() == Some(libc::EACCES) {
        let remedy = "run as root, or in the group of vm.hugetlb_shm_group";
        return VerbsError::Permission { what: "map hugepages", remedy, source };
    }
    let folder = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_bytes >> 10);
    let number = |file: &str| {
        std::fs::read_to_string(format!("{folder}/{file}")).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let (free, total) = (number("free_hugepages").unwrap_or(0), number("nr_hugepages").unwrap_or(0));
    let reserved = number("resv_hugepages").unwrap_or(0);
    let free = free.saturating_sub(reserved);
    let wanted = (total + (bytes / page_bytes) as u64).saturating_sub(free);
    let remedy = if default_hugepage() == Some(page_bytes) {
        format!("sysctl vm.nr_hugepages={wanted}")
    } else {
        format!("echo {wanted} > {folder}/nr_hugepages")
    };
    VerbsError::Hugepages { bytes, page_bytes, free, remedy, source }
}

fn map_ordinary(len: usize, align: usize) -> Result<Memory, VerbsError> {
    let page = system_page();
    let mapped = len.next_multiple_of(page);
    let slack = if align > page { align } else { 0 };
    let raw = map_raw(mapped + slack, 0);
    let no_memory = || VerbsError::NoMemory { bytes: len, source: io::Error::last_os_error() };
    let raw = NonNull::new(raw).ok_or_else(no_memory)?;
    let head = (raw.as_ptr() as usize).next_multiple_of(align) - raw.as_ptr() as usize;
    // SAFETY: `head` is at most `slack`, so both pieces and the middle lie in the fresh mapping, on page boundaries;
    // nothing refers to the pieces that are unmapped.
    let start = unsafe {
        let start = raw.add(head);
        if head > 0 {
            libc::munmap(raw.as_ptr().cast(), head);
        }
        if slack > head {
            libc::munmap(start.add(mapped).as_ptr().cast(), slack - head);
        }
        start
    };
    let backing = Backing::Ordinary;
    Ok(Memory { start, len, mapped, backing, page_bytes: align, by_crate: false, locked: false })
}

/// Private anonymous memory, or null with the reason in errno.
fn map_raw(len: usize, flags: i32) -> *mut u8 {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at an address that the kernel chooses, disturbs no other.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED { ptr::null_mut() } else { start.cast() }
}

/// Copies bytes that another thread or a device may read or write meanwhile. Rust's own copies may not be used for
/// that: a race on them is undefined. Machine code does what single-byte relaxed atomics would.
///
/// # Safety
/// `source` must be readable and `target` writable for `len` bytes; they must not overlap.
unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    let done = {
        let (lines, words) = (len & !63, len & !7);
        if lines > 0 {
            // SAFETY: SSE2 is part of x86-64. The loop moves 64 bytes at a time while fewer than `lines` are moved, and
            // `lines` is a multiple of 64 not above `len`.
            unsafe {
                asm!(
                    "2:",
                    "movups {a}, [{source} + {at}]",
                    "movups {b}, [{source} + {at} + 16]",
                    "movups {c}, [{source} + {at} + 32]",
                    "movups {d}, [{source} + {at} + 48]",
                    "movups [{target} + {at}], {a}",
                    "movups [{target} + {at} + 16], {b}",
                    "movups [{target} + {at} + 32], {c}",
                    "movups [{target} + {at} + 48], {d}",
                    "add {at}, 64",
                    "cmp {at}, {lines}",
                    "jb 2b",
                    a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                    at = inout(reg) 0_usize => _,
                    source = in(reg) source, target = in(reg) target, lines = in(reg) lines,
                    options(nostack),
                );
            }
        }
        for at in (lines..words).step_by(8) {
            // SAFETY: eight bytes from `at` lie within both sides; x86-64 moves them at any alignment.
            unsafe {
                asm!(
                    "mov {word}, [{source}]", "mov [{target}], {word}",
                    word = out(reg) _, source = in(reg) source.add(at), target = in(reg) target.add(at),
                    options(nostack, preserves_flags),
                );
            }
        }
        words
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = {
        let mut done = 0;
        // Words where both sides are aligned alike.
        if source.align_offset(8) == 0 && target.align_offset(8) == 0 {
            while done + 8 <= len {
                // SAFETY: eight aligned bytes within both sides.
                unsafe {
                    let word = AtomicU64::from_ptr(source.add(done).cast_mut().cast()).load(Ordering::Relaxed);
                    AtomicU64::from_ptr(target.add(done).cast()).store(word, Ordering::Relaxed);
                }
                done += 8;
            }
        }
        done
    };
    for at in done..len {
        // SAFETY: the byte lies within both sides.
        unsafe {
            let byte = AtomicU8::from_ptr(source.add(at).cast_mut()).load(Ordering::Relaxed);
            AtomicU8::from_ptr(target.add(at)).store(byte, Ordering::Relaxed);
        }
    }
}

/// Zeros that no optimiser can leave out, and that may race like [`copy`].
///
/// # Safety
/// `target` must be writable for `len` bytes.
unsafe fn zero(target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: stores `len` bytes from `target` up; the ABI keeps the direction flag clear.
    unsafe {
        asm!("rep stosb", inout("rdi") target => _, inout("rcx") len => _, in("al") 0_u8, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        for at in 0..len {
            // SAFETY: the byte lies within the range.
            unsafe { AtomicU8::from_ptr(target.add(at)) }.store(0, Ordering::Relaxed);
        }
        // SAFETY: does nothing, but may read what `target` points to for all the compiler knows.
        unsafe { asm!("/* {0} */", in(reg) target, options(nostack, preserves_flags)) };
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
