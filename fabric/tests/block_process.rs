//! Sealed blocks and what the process around them does: the allocator, and fork.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use overbank_fabric::block::{BlockContext, HEADER_LEN, LeaseKey, Opener, SealError, Sealer};
use overbank_fabric::ids::LeaseId;

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

fn context() -> BlockContext {
    BlockContext { tenant: "team-7".parse().unwrap(), lease: LeaseId::random(), generation: 1, block: 4096 }
}

#[test]
fn nothing_is_allocated_once_the_keys_are_there() {
    let (key, context) = (LeaseKey::generate(), context());
    let (mut sealer, mut opener) = (Sealer::new(&key, &context), Opener::new(&key, &context));
    let (payload, mut stride, mut out) = (vec![7; 4096], vec![0; HEADER_LEN + 4096], vec![0; 4096]);
    let mut both = |index| {
        sealer.seal(index, &payload, &mut stride).unwrap();
        opener.open(index, &stride, &mut out).unwrap();
    };
    both(0);
    let before = ALLOCATIONS.get();
    (1..100).for_each(both);
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!(out, payload.clone());
    assert_ne!(ALLOCATIONS.get(), before, "the counter counts");
}

#[test]
fn attack_37_a_forked_child_seals_nothing() {
    let mut sealer = Sealer::new(&LeaseKey::generate(), &context());
    let (payload, mut stride) = (vec![7; 4096], vec![0; HEADER_LEN + 4096]);
    sealer.seal(0, &payload, &mut stride).unwrap();
    // SAFETY: the child seals, allocates and calls _exit: the C library's allocator is whole after a fork, and nothing
    // else of that has a lock that another thread of the parent could hold.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let refused = sealer.seal(1, &payload, &mut stride) == Err(SealError::Forked);
            let mut own = Sealer::new(&LeaseKey::generate(), &context());
            let seals = own.seal(1, &payload, &mut stride).is_ok();
            // Its own child is another process once more, though it looks at the word first.
            // SAFETY: as above.
            let grandchild = match unsafe { fork() } {
                Ok(ForkResult::Child) => {
                    let both = [&mut sealer, &mut own].map(|one| one.seal(2, &payload, &mut stride));
                    let refused = both.iter().all(|sealed| *sealed == Err(SealError::Forked));
                    // SAFETY: _exit takes no pointers and does not return.
                    unsafe { nix::libc::_exit(if refused { 0 } else { 1 }) }
                }
                Ok(ForkResult::Parent { child }) => waitpid(child, None) == Ok(WaitStatus::Exited(child, 0)),
                Err(_) => false,
            };
            // SAFETY: _exit takes no pointers and does not return.
            unsafe { nix::libc::_exit(if refused && seals && grandchild { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            assert!(sealer.seal(1, &payload, &mut stride).is_ok());
        }
    }
    println!("attack 37 -: seen the forked process seals nothing");
}
