//! The memory of our own code: apart from the program's heap, so that it waits for none of the program's locks, and in one
//! range of addresses, so that a block of it is known by where it is.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

use dlmalloc::Dlmalloc;

use crate::lock::Lock;

/// Addresses that are set aside, the most that can be had of these. Memory is taken as it is used.
const RESERVES: [usize; 4] = [64 << 30, 8 << 30, 1 << 30, 128 << 20];
/// So much more of it is made usable at a time.
const STEP: usize = 1 << 20;
/// Before each block that C code asked for: where it really begins, and how long it is.
const HEADER: usize = 16;

static BASE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);
static ARENA: Lock<Dlmalloc<Reserve>> = Lock::new(Dlmalloc::new_with_allocator(Reserve));

/// Where the arena's memory comes from. Used under its lock alone.
struct Reserve;

// SAFETY: each call returns bytes that no call before returned, readable and writable, which are never unmapped.
unsafe impl dlmalloc::Allocator for Reserve {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let nothing = (null_mut(), 0, 0);
        if BASE.load(Ordering::Relaxed) == 0 && !reserve() {
            return nothing;
        }
        let first = USED.load(Ordering::Relaxed);
        let Some(length) = size.checked_next_multiple_of(STEP) else { return nothing };
        if length > END.load(Ordering::Relaxed) - first {
            return nothing;
        }
        // By the system call: this happens before any function of the next library is known.
        // SAFETY: the range is reserved, and nothing uses it yet.
        let usable = unsafe { libc::syscall(libc::SYS_mprotect, first, length, libc::PROT_READ | libc::PROT_WRITE) };
        if usable != 0 {
            return nothing;
        }
        USED.store(first + length, Ordering::Relaxed);
        (first as *mut u8, length, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        STEP
    }
}

fn reserve() -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    for length in RESERVES {
        // SAFETY: a new mapping where the kernel likes; nothing that exists is touched.
        let base = unsafe { libc::syscall(libc::SYS_mmap, 0_usize, length, libc::PROT_NONE, flags, -1_isize, 0_usize) };
        if base > 0 {
            let base = base as usize;
            USED.store(base, Ordering::Relaxed);
            END.store(base + length, Ordering::Relaxed);
            BASE.store(base, Ordering::Release);
            return true;
        }
    }
    false
}

/// Whether it is an address of the arena.
pub(crate) fn holds(address: *const c_void) -> bool {
    let base = BASE.load(Ordering::Relaxed);
    base != 0 && (base..END.load(Ordering::Relaxed)).contains(&(address as usize))
}

/// A block for C code, aligned to a multiple of 16; null where there is no more.
pub(crate) fn allocate(size: usize, align: usize) -> *mut c_void {
    let align = align.max(HEADER);
    let Some(total) = size.checked_add(align).and_then(|sum| sum.checked_add(HEADER)) else { return null_mut() };
    // SAFETY: the arena is ours while it is locked; the header lies between where the block really begins and what is
    // returned, both within `total` bytes.
    unsafe {
        let raw = ARENA.lock().c_malloc(total);
        if raw.is_null() {
            return null_mut();
        }
        let block = raw.add((raw as usize + HEADER).next_multiple_of(align) - raw as usize);
        block.cast::<[usize; 2]>().sub(1).write([raw as usize, size]);
        block.cast()
    }
}

/// The same, holding zeros.
pub(crate) fn allocate_zeros(size: usize) -> *mut c_void {
    let block = allocate(size, HEADER);
    if !block.is_null() {
        // SAFETY: it has that many bytes, and is new.
        unsafe { block.cast::<u8>().write_bytes(0, size) };
    }
    block
}

/// How long a block from [`allocate`] is.
///
/// # Safety
/// It is one, and was not freed.
pub(crate) unsafe fn length(block: *const c_void) -> usize {
    // SAFETY: the header is there.
    unsafe { block.cast::<[usize; 2]>().sub(1).read()[1] }
}

/// Takes a block from [`allocate`] back.
///
/// # Safety
/// It is one, and was not freed.
pub(crate) unsafe fn free(block: *mut c_void) {
    // SAFETY: the header says where the block really begins; the arena is ours while it is locked.
    unsafe {
        let raw = block.cast::<[usize; 2]>().sub(1).read()[0];
        ARENA.lock().c_free(raw as *mut u8);
    }
}

/// Locks the arena, before a fork.
pub(crate) fn hold() {
    ARENA.hold();
}

/// After it, on both sides.
pub(crate) fn let_go() {
    ARENA.let_go();
}

/// What Rust code allocates from.
pub(crate) struct Arena;

// SAFETY: each call is handed, under the lock, to an allocator that keeps the same promises.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        unsafe { ARENA.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        unsafe { ARENA.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        unsafe { ARENA.lock().realloc(block, layout.size(), layout.align(), size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { ARENA.lock().free(block, layout.size(), layout.align()) }
    }
}

#[cfg(not(test))]
#[global_allocator]
static GLOBAL: Arena = Arena;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_apart_and_known_by_their_address() {
        let mut blocks: Vec<(*mut u8, usize)> = Vec::new();
        for turn in 0..2000_usize {
            let (size, align) = (turn * 37 % 5000, 16 << (turn % 9));
            let block = allocate(size, align);
            assert!(!block.is_null() && (block as usize).is_multiple_of(align) && holds(block));
            // SAFETY: it is a block of that size.
            unsafe {
                assert_eq!(length(block), size);
                block.cast::<u8>().write_bytes(turn as u8, size);
            }
            blocks.push((block.cast(), turn));
            if turn % 3 == 0 {
                let (block, turn) = blocks.swap_remove(turn % blocks.len());
                // SAFETY: it was not freed, and holds what was written.
                unsafe {
                    let held = std::slice::from_raw_parts(block, length(block.cast()));
                    assert!(held.iter().all(|&byte| byte == turn as u8));
                    free(block.cast());
                }
            }
        }
        let zeros = allocate_zeros(4000);
        // SAFETY: it is a block of that size.
        assert!(unsafe { std::slice::from_raw_parts(zeros.cast::<u8>(), 4000) }.iter().all(|&byte| byte == 0));
        assert!(!holds((&raw const blocks).cast()) && !holds(std::ptr::null()));
        assert!(allocate(usize::MAX - 8, 16).is_null());
    }

    #[test]
    fn rust_code_can_live_on_it() {
        let layout = Layout::from_size_align(100, 64).expect("sound");
        // SAFETY: the layouts are those that the blocks were made with.
        unsafe {
            let block = Arena.alloc_zeroed(layout);
            assert!((block as usize).is_multiple_of(64) && holds(block.cast()));
            block.write_bytes(7, 100);
            let block = Arena.realloc(block, layout, 3 << 20);
            assert!(std::slice::from_raw_parts(block, 100).iter().all(|&byte| byte == 7));
            Arena.dealloc(block, Layout::from_size_align(3 << 20, 64).expect("sound"));
        }
    }
}
