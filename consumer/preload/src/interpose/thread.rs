//! Threads that our own code starts. The linker leads every call of `pthread_create` in this library here; those of the
//! program are its own.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use libc::{pthread_attr_t, pthread_t, sigset_t};

use crate::inside;

type Start = extern "C" fn(*mut c_void) -> *mut c_void;

// SAFETY: the C library's own, of the type that its header has; the linker gives it this name.
unsafe extern "C" {
    fn __real_pthread_create(
        thread: *mut pthread_t,
        attributes: *const pthread_attr_t,
        start: Start,
        argument: *mut c_void,
    ) -> c_int;
}

struct Begin {
    start: Start,
    argument: *mut c_void,
}

extern "C" fn begin(begin: *mut c_void) -> *mut c_void {
    inside::stay();
    // SAFETY: the box that was made for this thread, which alone gets it.
    let begin = unsafe { Box::from_raw(begin.cast::<Begin>()) };
    let Begin { start, argument } = *begin;
    start(argument)
}

/// The C library's, for a thread that stays inside, and that gets none of the program's signals.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __wrap_pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    let begins = Box::into_raw(Box::new(Begin { start, argument }));
    let (mut all, mut before) = (MaybeUninit::<sigset_t>::uninit(), MaybeUninit::<sigset_t>::uninit());
    // SAFETY: the sets are written before they are read; the box goes to the thread, or back where there is none.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let status = __real_pthread_create(thread, attributes, begin, begins.cast());
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        if status != 0 {
            drop(Box::from_raw(begins));
        }
        status
    }
}
