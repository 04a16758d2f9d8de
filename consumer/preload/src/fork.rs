//! Forked children: the pool's memory is not theirs. What uses it there ends by SIGSEGV, with a word on why, and never sees
//! other bytes in its place.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{sigaction, siginfo_t};

use crate::heap::{Kind, Piece};
use crate::inside::Inside;
use crate::lock::Lock;
use crate::pool::{self, Pool};
use crate::say::{Line, say};
use crate::{arena, real};

/// What was done at SIGSEGV before.
static BEFORE: Lock<Option<sigaction>> = Lock::new(None);
/// Who has the memory.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// From now on forks are looked after. False where they cannot be.
pub(crate) fn watch() -> bool {
    // SAFETY: functions that are there as long as the process.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) == 0 }
}

/// No other thread is in the middle of something: in the child there is none to end it.
extern "C" fn before() {
    pool::hold();
    arena::hold();
}

extern "C" fn in_parent() {
    arena::let_go();
    pool::let_go();
}

extern "C" fn in_child() {
    in_parent();
    let Some(pool) = pool::alive() else { return };
    let _inside = Inside::enter();
    OWNER.store(pool.pid(), Ordering::Relaxed);
    pool.die();
    fence(pool);
    explain();
}

/// Nothing else may come to lie where the pool was.
fn fence(pool: &Pool) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    for (part, piece) in pool.pieces(&pool.addresses()) {
        // What the program mapped there itself is inherited.
        if piece == Piece::Used(Kind::Retired) {
            continue;
        }
        // SAFETY: addresses of the pool, where this process has nothing.
        let fenced = unsafe { real::mmap(part.start as *mut c_void, part.len(), libc::PROT_NONE, flags, -1, 0) };
        if fenced == libc::MAP_FAILED {
            // Other memory could pass for the pool's.
            say("a forked child cannot be kept from using the memory of its parent, so it ends; fork earlier");
            std::process::abort();
        }
    }
}

/// Has [`on_fault`] called at SIGSEGV.
fn explain() {
    // SAFETY: both structures are whole before they are used; the handler is one for SA_SIGINFO.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigemptyset(&mut action.sa_mask);
        let mut before = MaybeUninit::<sigaction>::uninit();
        if libc::sigaction(libc::SIGSEGV, &action, before.as_mut_ptr()) == 0 {
            *BEFORE.lock() = Some(before.assume_init());
        }
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes what SA_SIGINFO promises.
    let (address, sent) = unsafe { ((*info).si_addr() as usize, (*info).si_code <= 0) };
    if !sent && pool::touches(address, 1) {
        Line::new()
            .text("overbank run: process ")
            .number(u64::from(std::process::id()))
            .text(" used ")
            .address(address)
            .text(", memory that process ")
            .number(u64::from(OWNER.load(Ordering::Relaxed)))
            .text(" has in the pool and that a forked child does not get. Let the child start a program (exec) or use ")
            .text("threads, fork before large memory is allocated, or run it without `overbank run`")
            .say();
        by_default(signal);
        return;
    }
    let before = *BEFORE.lock();
    let Some(before) = before else { return by_default(signal) };
    match before.sa_sigaction {
        libc::SIG_DFL => {
            by_default(signal);
            if sent {
                // SAFETY: to ourselves, the signal that came.
                unsafe { libc::raise(signal) };
            }
        }
        libc::SIG_IGN if sent => {}
        libc::SIG_IGN => by_default(signal),
        // SAFETY: the program's handler, called as it asked for.
        handler => unsafe {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = std::mem::transmute(handler);
                handler(signal, info, context);
            } else {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        },
    }
}

/// The instruction is tried again on return, and ends the process.
fn by_default(signal: c_int) {
    // SAFETY: a structure of zeros is the default action.
    unsafe {
        let action: sigaction = std::mem::zeroed();
        libc::sigaction(signal, &action, null_mut());
    }
}
