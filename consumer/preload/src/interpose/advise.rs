//! `madvise`, `mlock` and its kin, and `mincore`.

use std::ffi::{c_int, c_uchar, c_uint, c_void};
use std::ops::Range;

use libc::size_t;

use super::{Errno, answer, concerned, kernel, pages};
use crate::heap::{Kind, Piece};
use crate::inside::Inside;
use crate::pool::{self, Pool};
use crate::real;

/// Of Linux 6.13 on: pages that end the process that touches them.
const GUARDS: [c_int; 2] = [102, 103];
/// MLOCK_ONFAULT: lock what is there, and the rest when it is touched.
const ON_FAULT: c_int = 1;

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn madvise(at: *mut c_void, length: size_t, advice: c_int) -> c_int {
    let Some((inside, pool)) = concerned(at as usize, length) else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::madvise(at, length, advice) };
    };
    let done = match pages(pool, at as usize, length) {
        Some(range) => each(
            pool,
            &range,
            |part| advise(pool, part, advice),
            // SAFETY: the caller's promise, passed on.
            |part| kernel(unsafe { real::madvise(part.start as *mut c_void, part.len(), advice) }),
        ),
        None => Err(libc::EINVAL),
    };
    drop(inside);
    answer(done)
}

fn advise(pool: &Pool, part: &Range<usize>, advice: c_int) -> Result<(), Errno> {
    match advice {
        libc::MADV_DONTNEED | libc::MADV_DONTNEED_LOCKED | libc::MADV_FREE | libc::MADV_REMOVE => {
            if pool.zero(part) {
                Ok(())
            } else {
                Err(libc::EAGAIN)
            }
        }
        // No child gets this memory, with contents or without.
        libc::MADV_DOFORK | libc::MADV_WIPEONFORK | libc::MADV_KEEPONFORK => Err(libc::EINVAL),
        libc::MADV_HWPOISON | libc::MADV_SOFT_OFFLINE | libc::MADV_COLLAPSE => Err(libc::EINVAL),
        guard if GUARDS.contains(&guard) => Err(libc::EINVAL),
        5..=7 => Err(libc::EINVAL),
        // What is meant to make it faster, or leaves it out where there is no memory of the pool anyway.
        0..=libc::MADV_POPULATE_WRITE => Ok(()),
        _ => Err(libc::EINVAL),
    }
}

/// Does it for each part in use: the pool's in one way, others in the other. All are done; a hole is an error.
fn each(
    pool: &Pool,
    range: &Range<usize>,
    mut ours: impl FnMut(&Range<usize>) -> Result<(), Errno>,
    theirs: impl Fn(&Range<usize>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut holes = Ok(());
    for part in pool.outside(range) {
        theirs(&part)?;
    }
    for (part, piece) in pool.pieces(&pool.part(range)) {
        match piece {
            Piece::Hole => holes = Err(libc::ENOMEM),
            Piece::Used(Kind::Retired) => theirs(&part)?,
            Piece::Used(Kind::Mapping | Kind::Allocation) => ours(&part)?,
        }
    }
    holes
}

/// Whole pages that hold these bytes.
fn around(pool: &Pool, address: usize, length: usize) -> Option<Range<usize>> {
    let start = address / pool.page() * pool.page();
    let end = address.checked_add(length)?.checked_next_multiple_of(pool.page())?;
    Some(start..end)
}

/// The kernel's. In the pool it keeps pages in local memory, as far as that may hold them.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlock(at: *const c_void, length: size_t) -> c_int {
    // SAFETY: the caller's promise, passed on.
    unsafe { lock(at, length, |at, length| real::mlock(at, length)) }
}

/// The kernel's; as [`mlock`].
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlock2(at: *const c_void, length: size_t, flags: c_uint) -> c_int {
    // SAFETY: the caller's promise, passed on.
    unsafe { lock(at, length, |at, length| real::mlock2(at, length, flags as c_int)) }
}

/// # Safety
/// What `next` asks.
unsafe fn lock(at: *const c_void, length: usize, next: impl Fn(*const c_void, usize) -> c_int) -> c_int {
    let Some((inside, pool)) = concerned(at as usize, length) else { return next(at, length) };
    let done = match around(pool, at as usize, length) {
        Some(range) => each(
            pool,
            &range,
            |part| if pool.pin(part) { Ok(()) } else { Err(libc::ENOMEM) },
            |part| kernel(next(part.start as *const c_void, part.len())),
        ),
        None => Err(libc::EINVAL),
    };
    drop(inside);
    answer(done)
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munlock(at: *const c_void, length: size_t) -> c_int {
    let Some((inside, pool)) = concerned(at as usize, length) else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::munlock(at, length) };
    };
    let done = match around(pool, at as usize, length) {
        Some(range) => each(
            pool,
            &range,
            |part| {
                pool.unpin(part);
                Ok(())
            },
            // SAFETY: the caller's promise, passed on.
            |part| kernel(unsafe { real::munlock(part.start as *const c_void, part.len()) }),
        ),
        None => Err(libc::EINVAL),
    };
    drop(inside);
    answer(done)
}

/// The kernel's. What is in the pool counts too, as with [`mlock`]. Who locks all future memory has it elsewhere.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    let inside = Inside::enter();
    if inside.is_some() && flags & libc::MCL_FUTURE != 0 {
        pool::stop();
    }
    let current = inside.is_some() && flags & libc::MCL_CURRENT != 0;
    let Some(pool) = pool::alive().filter(|_| current) else {
        drop(inside);
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::mlockall(flags) };
    };
    let done = lock_all(pool, flags);
    if done.is_err() {
        unlock_all(pool);
    }
    drop(inside);
    answer(done)
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munlockall() -> c_int {
    let inside = Inside::enter();
    if inside.is_some()
        && let Some(pool) = pool::alive()
    {
        unlock_all(pool);
    }
    drop(inside);
    // SAFETY: the caller's promise, passed on.
    unsafe { real::munlockall() }
}

/// Locks what is in the pool, then each other mapping: the kernel's own function would fetch all of the pool.
fn lock_all(pool: &Pool, flags: c_int) -> Result<(), Errno> {
    let all = pool.addresses();
    for (part, piece) in pool.pieces(&all) {
        if matches!(piece, Piece::Used(Kind::Mapping | Kind::Allocation)) && !pool.pin(&part) {
            return Err(libc::ENOMEM);
        }
    }
    let lock = |range: &Range<usize>, flags: c_int| {
        // SAFETY: changes nothing but where the memory is kept.
        kernel(unsafe { real::mlock2(range.start as *const c_void, range.len(), flags) })
    };
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|_| libc::ENOMEM)?;
    for mapping in maps.lines().filter_map(lockable) {
        for part in pool.outside(&mapping) {
            // A part of a file that is not there any more cannot be fetched; the kernel's own function goes on too.
            let asked = if flags & libc::MCL_ONFAULT == 0 { 0 } else { ON_FAULT };
            lock(&part, asked).or_else(|_| lock(&part, ON_FAULT))?;
        }
    }
    match flags & !libc::MCL_CURRENT {
        future if future & libc::MCL_FUTURE == 0 => Ok(()),
        // SAFETY: what is mapped from now on is locked; nothing that is there changes.
        future => kernel(unsafe { real::mlockall(future) }),
    }
}

fn unlock_all(pool: &Pool) {
    for (part, piece) in pool.pieces(&pool.addresses()) {
        if matches!(piece, Piece::Used(_)) {
            pool.unpin(&part);
        }
    }
}

/// The addresses of a line of /proc/self/maps, where there is memory to lock.
fn lockable(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let readable = words.next()?.starts_with('r');
    let of_kernel = words.nth(3).is_some_and(|name| name.starts_with("[v"));
    let address = |text| usize::from_str_radix(text, 16).ok();
    (readable && !of_kernel).then_some(address(start)?..address(end)?)
}

/// The kernel's.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mincore(at: *mut c_void, length: size_t, to: *mut c_uchar) -> c_int {
    let Some((inside, pool)) = concerned(at as usize, length) else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::mincore(at, length, to) };
    };
    let done = match pages(pool, at as usize, length) {
        Some(range) => {
            let place = |part: &Range<usize>| to.wrapping_add((part.start - range.start) / pool.page());
            each(
                pool,
                &range,
                |part| {
                    for (index, resident) in pool.resident(part).into_iter().enumerate() {
                        // SAFETY: the caller's promise of a byte for each page.
                        unsafe { place(part).add(index).write(u8::from(resident)) };
                    }
                    Ok(())
                },
                // SAFETY: the caller's promise, passed on.
                |part| kernel(unsafe { real::mincore(part.start as *mut c_void, part.len(), place(part)) }),
            )
        }
        None => Err(libc::EINVAL),
    };
    drop(inside);
    answer(done)
}
