//! The C functions that this library replaces in the program. Thin: what is large goes to the pool, the rest on.

mod advise;
mod allocate;
mod map;
mod process;
mod remap;
mod thread;

pub(crate) use allocate::own_malloc;

use std::ffi::c_int;
use std::ops::Range;

use crate::inside::{Inside, set_errno};
use crate::pool::{self, Pool};

/// An `errno`.
type Errno = c_int;

/// The pool, where some of these bytes are its, and our own code to deal with them. Else the call is for the kernel: also
/// in a forked child, where the pool's addresses are none of memory.
fn concerned(address: usize, length: usize) -> Option<(Inside, &'static Pool)> {
    if !pool::touches(address, length) {
        return None;
    }
    let inside = Inside::enter()?;
    Some((inside, pool::alive()?))
}

/// Whole pages from `address` on, as the kernel takes them; None where they begin in the middle of one, or are too many.
fn pages(pool: &Pool, address: usize, length: usize) -> Option<Range<usize>> {
    let page = pool.page();
    let length = length.checked_next_multiple_of(page)?;
    address.is_multiple_of(page).then_some(address..address.checked_add(length)?)
}

/// Zero, or -1 with `errno` set.
fn answer(result: Result<(), Errno>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// What the kernel said.
fn kernel(status: c_int) -> Result<(), Errno> {
    if status == 0 { Ok(()) } else { Err(crate::inside::errno()) }
}
