//! `mremap`.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use libc::{MAP_FAILED, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, size_t};

use super::map::{fixed_memory, retire, unmap};
use super::{Errno, concerned, pages};
use crate::heap::{Kind, Piece};
use crate::inside::{errno, set_errno};
use crate::pool::{self, Placed, Pool, Wish};
use crate::real;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const MEMORY: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// The kernel's. `to` is there where the flags say so: a further argument is passed as this one is.
///
/// # Safety
/// What the kernel asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mremap(
    at: *mut c_void,
    length: size_t,
    new: size_t,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    let target = if flags & MREMAP_FIXED == 0 { None } else { Some(to as usize) };
    let touched = concerned(at as usize, length).or_else(|| concerned(target?, new));
    let Some((inside, pool)) = touched else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::mremap(at, length, new, flags, to) };
    };
    let moved = match (pages(pool, at as usize, length), pages(pool, at as usize, new)) {
        (Some(old), Some(new)) if !old.is_empty() && !new.is_empty() => {
            let asked = Asked { old, new: new.len(), flags, target };
            // SAFETY: the caller's promise, passed on.
            if asked.is_sound(pool) { unsafe { remap(pool, &asked) } } else { Err(libc::EINVAL) }
        }
        _ => Err(libc::EINVAL),
    };
    drop(inside);
    match moved {
        Ok(address) => address as *mut c_void,
        Err(errno) => {
            set_errno(errno);
            MAP_FAILED
        }
    }
}

/// What is asked for, in whole pages.
struct Asked {
    old: Range<usize>,
    /// The new length.
    new: usize,
    flags: c_int,
    /// Where it shall be.
    target: Option<usize>,
}

impl Asked {
    fn is_sound(&self, pool: &Pool) -> bool {
        let may_move = self.flags & MREMAP_MAYMOVE != 0;
        let keeps = self.flags & MREMAP_DONTUNMAP != 0;
        let apart = self.target.is_none_or(|to| {
            let end = to.checked_add(self.new);
            to.is_multiple_of(pool.page()) && end.is_some_and(|end| end <= self.old.start || to >= self.old.end)
        });
        self.flags & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) == 0
            && (may_move || !(keeps || self.target.is_some()))
            && (!keeps || self.old.len() == self.new)
            && apart
    }

    fn keeps_old(&self) -> bool {
        self.flags & MREMAP_DONTUNMAP != 0
    }
}

/// # Safety
/// What `mremap` asks.
unsafe fn remap(pool: &Pool, asked: &Asked) -> Result<usize, Errno> {
    let (old, new) = (&asked.old, asked.new);
    let ours = pool.part(old);
    let pieces = if ours.is_empty() { Vec::new() } else { pool.pieces(&ours) };
    match pieces[..] {
        // Something of the kernel's, to a place in the pool or from one that the pool gave up.
        [] | [(_, Piece::Used(Kind::Retired))] => {
            let to = asked.target.unwrap_or_default();
            if asked.target.is_some() {
                retire(pool, &(to..to + new));
            }
            let (at, to) = (old.start as *mut c_void, to as *mut c_void);
            // SAFETY: the caller's promise; nothing of the pool is at either place any more.
            return match unsafe { real::mremap(at, old.len(), new, asked.flags, to) } {
                MAP_FAILED => Err(errno()),
                moved => Ok(moved as usize),
            };
        }
        [(_, Piece::Used(Kind::Mapping))] if ours == *old => {}
        _ => return Err(libc::EFAULT),
    }
    if asked.target.is_none() && !asked.keeps_old() {
        if new <= old.len() {
            if new < old.len() {
                pool.cut(&(old.start + new..old.end));
            }
            return Ok(old.start);
        }
        let more = (new - old.len()) / pool.page();
        if pool.heap().extend_mapping(old.end / pool.page(), more) {
            pool::count(|counts| &counts.grown);
            return Ok(old.start);
        }
        if asked.flags & MREMAP_MAYMOVE == 0 {
            return Err(libc::ENOMEM);
        }
    }
    let to = match asked.target {
        Some(to) => {
            let place = to..to + new;
            fixed_memory(pool, &place, READ_WRITE, MEMORY | libc::MAP_FIXED).map(|()| to)?
        }
        None => {
            let wish = Wish { bytes: new, align: 1, kind: Kind::Mapping, roomy: true, hint: 0 };
            match pool::place(wish) {
                Placed::At(address) => address,
                Placed::Nowhere => return Err(libc::ENOMEM),
                Placed::Next => {
                    // SAFETY: a new mapping where the kernel likes.
                    match unsafe { real::mmap(std::ptr::null_mut(), new, READ_WRITE, MEMORY, -1, 0) } {
                        MAP_FAILED => return Err(errno()),
                        mapped => mapped as usize,
                    }
                }
            }
        }
    };
    if pool.heap().is_protected(&pool.pages(old)) {
        pool.protect(old, READ_WRITE);
    }
    // SAFETY: both have that many bytes; the new ones are not in use yet, and apart.
    unsafe { (to as *mut u8).copy_from_nonoverlapping(old.start as *const u8, old.len().min(new)) };
    pool::count(|counts| &counts.moved);
    if asked.keeps_old() {
        pool.zero(old);
    } else {
        unmap(pool, old)?;
    }
    Ok(to)
}
