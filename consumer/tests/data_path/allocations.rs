//! Nothing is allocated on the way of one block.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::lender::*;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's, counting what each thread asks for.
struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn reads_and_writes_allocate_nothing() {
    let contents = contents(100, 4096);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    let (bytes, mut out) = (pattern(32 * 4096, 1), vec![0; 32 * 4096]);
    let mut go = |block: u64| {
        let at = block * 4096;
        lane.write(at, &bytes[..4096], soon()).unwrap();
        lane.read(at, &mut out[..4096], soon()).unwrap();
        lane.write(at + 100, &bytes[..1000], soon()).unwrap();
        lane.read(at + 50, &mut out[..2000], soon()).unwrap();
        lane.write(at, &bytes, soon()).unwrap();
        lane.read(at, &mut out, soon()).unwrap();
    };
    // The first round makes a chunk of the table and what the device keeps for itself.
    (0..20).for_each(&mut go);
    let before = ALLOCATIONS.get();
    (20..60).for_each(&mut go);
    let allocated = ALLOCATIONS.get() - before;
    assert_eq!(allocated, 0);
    drop(std::hint::black_box(Box::new(1)));
    assert_ne!(ALLOCATIONS.get(), before, "the counter counts");
}

#[test]
fn many_reads_at_once_allocate_nothing() {
    let contents = contents(100, 4096);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    lane.write(0, &pattern(100 * 4096, 1), soon()).unwrap();
    let mut buffers = vec![vec![0; 8192]; 64];
    let mut free: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut buffer[..]).collect();
    let mut reads = lane.reads();
    let mut go = |times: std::ops::Range<u64>| {
        for time in times {
            let Some(buffer) = free.pop() else { return };
            if let Some(done) = reads.push(time * 3 % 97 * 4096 + time % 4096, buffer, soon()).unwrap() {
                free.push(done);
            }
        }
    };
    go(0..1000);
    let before = ALLOCATIONS.get();
    go(1000..3000);
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(free.len() > 16, "{} buffers are left", free.len());
}

#[test]
fn pages_side_by_side_and_apart_allocate_nothing() {
    let contents = contents(100, 4096);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    let lists: [&[usize]; 4] = [&[7], &[10, 11, 12, 13, 14, 15, 16, 17], &[40, 30, 20, 50], &[60, 63, 64, 65, 90]];
    let (bytes, mut out) = (pattern(8 * 4096, 1), vec![0; 8 * 4096]);
    let mut go = || {
        for pages in lists {
            let len = pages.len() * 4096;
            lane.write_pages(pages, &bytes[..len], soon()).unwrap();
            // The second time they are there.
            for _ in 0..2 {
                lane.read_pages(pages, pages, &mut out[..len], soon()).unwrap();
                assert!(out[..len] == bytes[..len], "{pages:?}");
            }
        }
    };
    (0..20).for_each(|_| go());
    let before = ALLOCATIONS.get();
    (0..40).for_each(|_| go());
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
