//! `mmap`, `munmap` and `mprotect`.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use libc::{MAP_FAILED, off_t, size_t};

use super::{Errno, answer, concerned, kernel, pages};
use crate::heap::{Kind, Piece};
use crate::inside::{Inside, errno, set_errno};
use crate::pool::{self, Placed, Pool, Wish};
use crate::real;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
/// With one of these a mapping is more than memory: a stack, pages of another size, memory that must be local, or an address
/// below 4 GiB.
const SPECIAL: c_int = libc::MAP_STACK
    | libc::MAP_GROWSDOWN
    | libc::MAP_HUGETLB
    | libc::MAP_LOCKED
    | libc::MAP_32BIT
    | libc::MAP_FIXED
    | libc::MAP_FIXED_NOREPLACE;

fn is_plain_memory(flags: c_int) -> bool {
    flags & libc::MAP_TYPE == libc::MAP_PRIVATE && flags & libc::MAP_ANONYMOUS != 0
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap(
    at: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> *mut c_void {
    let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) == libc::MAP_FIXED;
    if fixed && let Some((inside, pool)) = concerned(at as usize, length) {
        let mapped = match pages(pool, at as usize, length).filter(|range| !range.is_empty()) {
            Some(range) if is_plain_memory(flags) && flags & (libc::MAP_GROWSDOWN | libc::MAP_HUGETLB) == 0 => {
                fixed_memory(pool, &range, protection, flags)
            }
            // SAFETY: the caller's promise, passed on.
            Some(range) => unsafe { fixed_other(pool, &range, protection, flags, file, offset) },
            None => Err(libc::EINVAL),
        };
        drop(inside);
        return mapped.map_or_else(failed, |()| at);
    }
    let fit = is_plain_memory(flags) && protection == READ_WRITE && flags & SPECIAL == 0 && pool::is_large(length);
    // Our own mappings are the kernel's.
    if fit
        && length <= isize::MAX as usize
        && let Some(inside) = Inside::enter()
    {
        let hint = at as usize;
        let placed = pool::place(Wish { bytes: length, align: 1, kind: Kind::Mapping, roomy: false, hint });
        drop(inside);
        match placed {
            Placed::At(address) => return address as *mut c_void,
            Placed::Nowhere => return failed(libc::ENOMEM),
            Placed::Next => {}
        }
    }
    // SAFETY: the caller's promise, passed on.
    unsafe { real::mmap(at, length, protection, flags, file, offset) }
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap64(
    at: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the same function.
    unsafe { mmap(at, length, protection, flags, file, offset) }
}

fn failed(errno: Errno) -> *mut c_void {
    set_errno(errno);
    MAP_FAILED
}

/// New memory in the place of what is there: what of it is the pool's stays the pool's, and holds zeros.
pub(super) fn fixed_memory(pool: &Pool, range: &Range<usize>, protection: c_int, flags: c_int) -> Result<(), Errno> {
    let by_kernel = |part: &Range<usize>| {
        // SAFETY: the program asked for new memory there, and nothing of the pool is there.
        let mapped = unsafe { real::mmap(part.start as *mut c_void, part.len(), protection, flags, -1, 0) };
        if mapped == MAP_FAILED { Err(errno()) } else { Ok(()) }
    };
    pool.outside(range).try_for_each(|part| by_kernel(&part))?;
    let ours = pool.part(range);
    let before = pool.pieces(&ours);
    pool.heap().claim(pool.pages(&ours));
    for (part, piece) in before {
        match piece {
            Piece::Used(Kind::Retired) => by_kernel(&part)?,
            Piece::Used(_) => {
                if pool.heap().is_protected(&pool.pages(&part)) {
                    pool.protect(&part, READ_WRITE);
                }
                if !pool.zero(&part) {
                    return Err(libc::ENOMEM);
                }
                protected(pool, &part, protection)?;
            }
            Piece::Hole => protected(pool, &part, protection)?,
        }
    }
    Ok(())
}

fn protected(pool: &Pool, part: &Range<usize>, protection: c_int) -> Result<(), Errno> {
    if protection == READ_WRITE {
        return Ok(());
    }
    pool.heap().protect(pool.pages(part));
    if pool.protect(part, protection) { Ok(()) } else { Err(errno()) }
}

/// A file, or what else is no private memory, in the place of what is there: from then on the kernel's, for ever.
///
/// # Safety
/// What `mmap` asks.
unsafe fn fixed_other(
    pool: &Pool,
    range: &Range<usize>,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> Result<(), Errno> {
    // First somewhere else: where it cannot be mapped, what is there stays.
    // SAFETY: the caller's promise, but for the place.
    let elsewhere =
        unsafe { real::mmap(std::ptr::null_mut(), range.len(), protection, flags & !libc::MAP_FIXED, file, offset) };
    if elsewhere == MAP_FAILED {
        return Err(errno());
    }
    retire(pool, range);
    let moving = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (length, to) = (range.len(), range.start as *mut c_void);
    // SAFETY: the mapping was made just now; the caller's promise of what it replaces.
    let mapped = unsafe {
        match real::mremap(elsewhere, length, length, moving, to) {
            MAP_FAILED => {
                real::munmap(elsewhere, length);
                real::mmap(to, length, protection, flags, file, offset)
            }
            mapped => mapped,
        }
    };
    if mapped == MAP_FAILED { Err(errno()) } else { Ok(()) }
}

/// Leaves what of these addresses is the pool's to the kernel.
pub(super) fn retire(pool: &Pool, range: &Range<usize>) {
    let ours = pool.part(range);
    for (part, piece) in pool.pieces(&ours) {
        if matches!(piece, Piece::Used(Kind::Mapping | Kind::Allocation)) {
            pool.unpin(&part);
            // So that there is nothing of it to keep.
            pool.protect(&part, READ_WRITE);
            pool.zero(&part);
        }
    }
    pool.heap().retire(pool.pages(&ours));
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munmap(at: *mut c_void, length: size_t) -> c_int {
    let Some((inside, pool)) = concerned(at as usize, length) else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::munmap(at, length) };
    };
    let unmapped = match pages(pool, at as usize, length).filter(|range| !range.is_empty()) {
        Some(range) => unmap(pool, &range),
        None => Err(libc::EINVAL),
    };
    drop(inside);
    answer(unmapped)
}

pub(super) fn unmap(pool: &Pool, range: &Range<usize>) -> Result<(), Errno> {
    // SAFETY: the program unmaps it, and nothing of the pool is there.
    let by_kernel = |part: Range<usize>| kernel(unsafe { real::munmap(part.start as *mut c_void, part.len()) });
    pool.outside(range).try_for_each(by_kernel)?;
    let ours = pool.part(range);
    for (part, piece) in pool.pieces(&ours) {
        match piece {
            Piece::Used(Kind::Retired) => by_kernel(part)?,
            Piece::Used(Kind::Mapping) => pool.cut(&part),
            // A block of `malloc` is freed, not unmapped.
            Piece::Used(Kind::Allocation) | Piece::Hole => {}
        }
    }
    Ok(())
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mprotect(at: *mut c_void, length: size_t, protection: c_int) -> c_int {
    let Some((inside, pool)) = concerned(at as usize, length) else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::mprotect(at, length, protection) };
    };
    let done = match pages(pool, at as usize, length) {
        Some(range) => protect(pool, &range, protection),
        None => Err(libc::EINVAL),
    };
    drop(inside);
    answer(done)
}

fn protect(pool: &Pool, range: &Range<usize>, protection: c_int) -> Result<(), Errno> {
    let ours = pool.part(range);
    let outside = pool.outside(range).map(|part| (part, Piece::Used(Kind::Retired)));
    let pieces: Vec<_> = outside.chain(pool.pieces(&ours)).collect();
    for (part, piece) in pieces {
        match piece {
            Piece::Hole => return Err(libc::ENOMEM),
            Piece::Used(Kind::Mapping | Kind::Allocation) if protection != READ_WRITE => {
                pool.heap().protect(pool.pages(&part));
            }
            Piece::Used(_) => {}
        }
        if !pool.protect(&part, protection) {
            return Err(errno());
        }
    }
    Ok(())
}
