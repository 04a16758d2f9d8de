//! Which threads run our own code at the moment.
//!
//! The mark is a value of a POSIX thread key, and no thread-local variable: reaching one of those in a preloaded library
//! may allocate, and this is asked in `malloc`. The C library keeps the first 32 keys in the thread itself.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

/// Keys from here on are allocated when they are set.
const KEYS_IN_THREAD: u32 = 32;
/// No key yet.
const NONE: u32 = u32::MAX;

static KEY: AtomicU32 = AtomicU32::new(NONE);

/// Makes the key, once, before there is a second thread. False where there is none left that will do.
pub(crate) fn start() -> bool {
    let (mut first, mut key) = (0, 0);
    // A program that forgets to make its key uses key 0: that one is left aside.
    // SAFETY: the keys are written to variables of ours; values of these keys need no destructor.
    let made = unsafe {
        libc::pthread_key_create(&mut first, None) == 0 && (first != 0 || libc::pthread_key_create(&mut key, None) == 0)
    };
    let key = if first == 0 { key } else { first };
    let usable = made && key < KEYS_IN_THREAD;
    if usable {
        KEY.store(key, Ordering::Release);
    }
    usable
}

/// Whether this thread runs our own code.
pub(crate) fn is_inside() -> bool {
    let key = KEY.load(Ordering::Relaxed);
    // SAFETY: the key was made and is never deleted.
    key != NONE && !unsafe { libc::pthread_getspecific(key) }.is_null()
}

fn mark(value: *const c_void) {
    let key = KEY.load(Ordering::Relaxed);
    if key != NONE {
        // SAFETY: the key was made and is never deleted; nobody looks behind the value.
        unsafe { libc::pthread_setspecific(key, value) };
    }
}

/// This thread is one of ours, to its end.
pub(crate) fn stay() {
    mark((&raw const KEY).cast());
}

/// While this lives its thread runs our own code. `errno` is then what it was before.
pub(crate) struct Inside {
    errno: c_int,
    // The mark is this thread's.
    thread: PhantomData<*const ()>,
}

impl Inside {
    /// None where it does already.
    pub(crate) fn enter() -> Option<Self> {
        if is_inside() {
            return None;
        }
        let inside = Self { errno: errno(), thread: PhantomData };
        stay();
        Some(inside)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        mark(std::ptr::null());
        set_errno(self.errno);
    }
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the location is this thread's, and always there.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: the location is this thread's, and always there.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_inside_until_it_leaves_and_errno_stays() {
        assert!(start());
        assert!(!is_inside());
        set_errno(libc::EXDEV);
        let inside = Inside::enter().expect("outside");
        assert!(is_inside() && Inside::enter().is_none());
        assert!(!std::thread::spawn(is_inside).join().expect("no panic"));
        set_errno(libc::EPERM);
        drop(inside);
        assert!(!is_inside());
        assert_eq!(errno(), libc::EXDEV);
    }
}
