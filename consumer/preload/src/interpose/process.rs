//! The beginning and the end of the process.

use std::ffi::c_int;

use crate::inside::Inside;
use crate::pool;
use crate::real;
use crate::say::say;
use crate::settings::Settings;
use crate::{fork, inside};

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;

/// Before any code of the program.
extern "C" fn start() {
    if !real::known() {
        return;
    }
    let settings = match Settings::read(|name| std::env::var_os(name)) {
        Ok(Some(settings)) => settings,
        Ok(None) => return,
        Err(why) => return say(&why),
    };
    if !inside::start() || !fork::watch() {
        return say("another preloaded library leaves no room for this one, so all memory is local; preload it alone");
    }
    pool::allow(settings);
    // Such an allocator asks for memory with its locks held, when it is too late to begin: what begins needs them.
    if real::allocator_is_foreign() {
        let _inside = Inside::enter();
        pool::wanted();
    }
}

/// After all code of the program. The memory stays until the process is gone: the C library still flushes its buffers.
extern "C" fn end() {
    // A signal handler may end the process in the middle of our own code, whose locks nobody lets go then.
    let Some(_inside) = Inside::enter() else { return };
    if let Some(pool) = pool::alive() {
        pool.report();
    }
}

/// The C library's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _exit(status: c_int) -> ! {
    end();
    // SAFETY: ends the process.
    unsafe { real::_exit(status) };
    std::process::abort()
}

/// C's.
///
/// # Safety
/// What C asks.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _Exit(status: c_int) -> ! {
    // SAFETY: the same function.
    unsafe { _exit(status) }
}
