//! `malloc` and its kin.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use libc::size_t;

use crate::arena;
use crate::heap::Kind;
use crate::inside::{Inside, is_inside, set_errno};
use crate::pool::{self, Owner, Placed, Pool, Wish};
use crate::real;
use crate::say::die;

/// What C promises of every block.
const ALIGN: usize = 16;
/// Longer than any block can be: whoever is asked for it fails.
const MOST: usize = 1 << 47;

/// Where this library's `malloc` is.
pub(crate) fn own_malloc() -> *mut c_void {
    malloc as *mut c_void
}

/// Where a block goes, and its address.
enum Place {
    Pool(*mut c_void),
    Arena,
    Next,
    Nowhere,
}

fn place(size: usize, align: usize, roomy: bool) -> Place {
    if is_inside() {
        return Place::Arena;
    }
    if !pool::is_large(size) || size >= MOST {
        return Place::Next;
    }
    let Some(_inside) = Inside::enter() else { return Place::Arena };
    match pool::place(Wish { bytes: size, align, kind: Kind::Allocation, roomy, hint: 0 }) {
        Placed::At(address) => Place::Pool(address as *mut c_void),
        Placed::Next => Place::Next,
        Placed::Nowhere => Place::Nowhere,
    }
}

fn no_memory() -> *mut c_void {
    set_errno(libc::ENOMEM);
    null_mut()
}

/// A block of the pool, and our own code to deal with it.
struct Held {
    pool: &'static Pool,
    length: usize,
    _inside: Option<Inside>,
}

/// Where a block of the pool begins there. Another allocator's memory may be a mapping of the pool, and its blocks lie there
/// too; but what belongs to nobody ends the process.
fn of_pool(block: *const c_void, what: &str) -> Option<Held> {
    let address = block as usize;
    if !pool::touches(address, 1) || !address.is_multiple_of(real::page()) {
        return None;
    }
    let inside = Inside::enter();
    let pool = pool::any()?;
    match pool.owner(address) {
        Owner::Block(length) => Some(Held { pool, length, _inside: inside }),
        Owner::Mapping => None,
        Owner::Nobody => die(&format!("{what}({block:p}): no block begins there, or it was freed before")),
    }
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn malloc(size: size_t) -> *mut c_void {
    match place(size, ALIGN, false) {
        Place::Pool(block) => block,
        Place::Arena => arena::allocate(size, ALIGN),
        // SAFETY: the caller's promise, passed on.
        Place::Next => unsafe { real::malloc(size) },
        Place::Nowhere => no_memory(),
    }
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn calloc(count: size_t, size: size_t) -> *mut c_void {
    let Some(total) = count.checked_mul(size) else { return no_memory() };
    match place(total, ALIGN, false) {
        // What the pool hands out holds zeros.
        Place::Pool(block) => block,
        Place::Arena => arena::allocate_zeros(total),
        // SAFETY: the caller's promise, passed on.
        Place::Next => unsafe { real::calloc(count, size) },
        Place::Nowhere => no_memory(),
    }
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free(block: *mut c_void) {
    if block.is_null() {
        return;
    }
    if let Some(held) = of_pool(block, "free") {
        // In a forked child its memory is not there, and needs no freeing.
        if held.pool.is_alive() {
            held.pool.free(block as usize);
        }
    } else if arena::holds(block) {
        // SAFETY: a block of the arena; the caller's promise that it was not freed.
        unsafe { arena::free(block) };
    } else {
        // SAFETY: the caller's promise, passed on.
        unsafe { real::free(block) };
    }
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn realloc(block: *mut c_void, size: size_t) -> *mut c_void {
    if block.is_null() {
        // SAFETY: as in C.
        return unsafe { malloc(size) };
    }
    if let Some(held) = of_pool(block, "realloc") {
        let (pool, length) = (held.pool, held.length);
        if size == 0 {
            drop(held);
            // SAFETY: as in C.
            unsafe { free(block) };
            return null_mut();
        }
        if size >= MOST {
            drop(held);
            return no_memory();
        }
        if pool.is_alive() && pool::is_large(size) && pool.resize(block as usize, size) {
            return block;
        }
        drop(held);
        // SAFETY: the block has that many bytes.
        return unsafe { moved(block, length, size) };
    }
    if arena::holds(block) {
        // SAFETY: a block of the arena, which was not freed.
        return unsafe { moved(block, arena::length(block), size) };
    }
    if !pool::is_large(size) || is_inside() {
        // SAFETY: the caller's promise, passed on.
        return unsafe { real::realloc(block, size) };
    }
    match place(size, ALIGN, true) {
        Place::Pool(new) => {
            // SAFETY: a block of the next library, of that length; the new one has `size` bytes, and is apart from it.
            unsafe {
                let length = real::malloc_usable_size(block);
                new.cast::<u8>().copy_from_nonoverlapping(block.cast(), length.min(size));
                real::free(block);
            }
            pool::count(|counts| &counts.moved);
            new
        }
        // SAFETY: the caller's promise, passed on.
        Place::Arena | Place::Next => unsafe { real::realloc(block, size) },
        Place::Nowhere => no_memory(),
    }
}

/// The same contents in another block; the old one is freed.
///
/// # Safety
/// The block is not the next library's, and has `length` bytes.
unsafe fn moved(block: *mut c_void, length: usize, size: usize) -> *mut c_void {
    let new = match place(size, ALIGN, true) {
        Place::Pool(new) => {
            pool::count(|counts| &counts.moved);
            new
        }
        Place::Arena => arena::allocate(size, ALIGN),
        // SAFETY: any size may be asked for.
        Place::Next => unsafe { real::malloc(size) },
        Place::Nowhere => null_mut(),
    };
    if new.is_null() {
        return no_memory();
    }
    // SAFETY: both have that many bytes, and are apart.
    unsafe {
        new.cast::<u8>().copy_from_nonoverlapping(block.cast(), length.min(size));
        free(block);
    }
    new
}

/// C's, of the C library.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn reallocarray(block: *mut c_void, count: size_t, size: size_t) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: as in C.
        Some(total) => unsafe { realloc(block, total) },
        None => no_memory(),
    }
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn posix_memalign(to: *mut *mut c_void, align: size_t, size: size_t) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<usize>()) {
        return libc::EINVAL;
    }
    let block = match place(size, align, false) {
        Place::Pool(block) => block,
        Place::Arena => arena::allocate(size, align),
        // SAFETY: the caller's promise, passed on.
        Place::Next => return unsafe { real::posix_memalign(to, align, size) },
        Place::Nowhere => null_mut(),
    };
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise that a pointer can be written there.
    unsafe { to.write(block) };
    0
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    // SAFETY: the caller's promise, passed on.
    unsafe { aligned(align, size, real::aligned_alloc) }
}

/// The C library's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memalign(align: size_t, size: size_t) -> *mut c_void {
    // SAFETY: the caller's promise, passed on.
    unsafe { aligned(align, size, real::memalign) }
}

/// The C library's: from the beginning of a page on.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn valloc(size: size_t) -> *mut c_void {
    // SAFETY: the caller's promise, passed on.
    unsafe { memalign(real::page(), size) }
}

/// The C library's: whole pages.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pvalloc(size: size_t) -> *mut c_void {
    match size.checked_next_multiple_of(real::page()) {
        // SAFETY: the caller's promise, passed on.
        Some(size) => unsafe { memalign(real::page(), size) },
        None => no_memory(),
    }
}

/// # Safety
/// What `next` asks.
unsafe fn aligned(align: usize, size: usize, next: unsafe fn(usize, usize) -> *mut c_void) -> *mut c_void {
    let Some(power) = align.checked_next_power_of_two().filter(|&power| power < MOST) else {
        set_errno(libc::EINVAL);
        return null_mut();
    };
    match place(size, power.max(ALIGN), false) {
        Place::Pool(block) => block,
        Place::Arena => arena::allocate(size, power),
        // SAFETY: the caller's promise, passed on.
        Place::Next => unsafe { next(align, size) },
        Place::Nowhere => no_memory(),
    }
}

/// The C library's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> size_t {
    if block.is_null() {
        return 0;
    }
    if let Some(held) = of_pool(block, "malloc_usable_size") {
        return held.length;
    }
    if arena::holds(block) {
        // SAFETY: a block of the arena, which was not freed.
        return unsafe { arena::length(block) };
    }
    // SAFETY: the caller's promise, passed on.
    unsafe { real::malloc_usable_size(block) }
}
