//! Faults that the touching thread resolves itself: the kernel sends it `SIGBUS`, the handler brings the page, and the
//! touch is tried again.
//!
//! What runs here has interrupted its own thread anywhere, so it takes no lock that other code may hold, and allocates
//! nothing while all goes well, but for the key of the first page that each lane opens. A `SIGBUS` that is not about a page of a region goes to whoever handled it before.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::PagingError;
use crate::kernel::Access;

/// Regions in this mode at the same time, at most.
const MOST: usize = 64;

/// Who can resolve faults on a range of addresses.
pub(crate) trait Resolve: Send + Sync {
    /// Whether the page at that address can be touched now; what is known of the touch may be nothing.
    fn resolve(&self, address: usize, access: Option<Access>) -> bool;
}

struct Hook {
    start: usize,
    end: usize,
    resolve: Arc<dyn Resolve>,
}

/// A place for a hook, and how many handlers look at it.
struct Place {
    hook: AtomicPtr<Hook>,
    users: AtomicUsize,
}

static PLACES: [Place; MOST] =
    [const { Place { hook: AtomicPtr::new(ptr::null_mut()), users: AtomicUsize::new(0) } }; MOST];
/// What was there before our handler; null while ours is not installed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static INSTALLING: Mutex<()> = Mutex::new(());

/// As long as it lives, faults in the range go to it.
#[derive(Debug)]
pub(crate) struct Hooked {
    place: usize,
}

impl Hooked {
    pub(crate) fn new(start: usize, len: usize, resolve: Arc<dyn Resolve>) -> Result<Self, PagingError> {
        install().map_err(|source| PagingError::Kernel { what: "handling SIGBUS", source })?;
        let hook = Box::into_raw(Box::new(Hook { start, end: start + len, resolve }));
        let free = |place: &Place| {
            place.hook.compare_exchange(ptr::null_mut(), hook, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        match PLACES.iter().position(free) {
            Some(place) => Ok(Self { place }),
            None => {
                // SAFETY: made by `Box::into_raw` above, and put nowhere.
                drop(unsafe { Box::from_raw(hook) });
                Err(PagingError::TooMany { most: MOST })
            }
        }
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        let place = &PLACES[self.place];
        let hook = place.hook.swap(ptr::null_mut(), Ordering::SeqCst);
        // A handler that counted itself before the swap may still use the hook; one that comes later finds null.
        while place.users.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        if !hook.is_null() {
            // SAFETY: made by `Box::into_raw`, taken out above by this call alone, and no handler holds it any more.
            drop(unsafe { Box::from_raw(hook) });
        }
    }
}

/// Puts our handler in front of whatever handles `SIGBUS`, once.
fn install() -> io::Result<()> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if !BEFORE.load(Ordering::SeqCst).is_null() {
        return Ok(());
    }
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: an all-zero sigaction is a valid one; the handler has the signature that SA_SIGINFO asks for and lives as
    // long as the program. `before` is filled in by the first call, which changes nothing.
    unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Never given back: a handler may look at it at any time.
        BEFORE.store(Box::into_raw(Box::new(before.assume_init())), Ordering::SeqCst);
        let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        ours.sa_sigaction = handle as *const () as usize;
        // On the thread's own stack: one that was set aside for signals may have no more than 8 KiB. No other signal comes
        // meanwhile.
        ours.sa_flags = libc::SA_SIGINFO;
        libc::sigfillset(&raw mut ours.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) != 0 {
            let error = io::Error::last_os_error();
            drop(Box::from_raw(BEFORE.swap(ptr::null_mut(), Ordering::SeqCst)));
            return Err(error);
        }
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's pointers are good for as long as the handler runs; errno is this thread's own. `pass_on` is
    // handed what came.
    unsafe {
        let errno = libc::__errno_location();
        let kept = *errno;
        // One that somebody sent with `kill` has no address.
        let ours = (*info).si_code > 0 && resolved((*info).si_addr() as usize, access(context));
        if !ours {
            pass_on(signal, info, context);
        }
        *errno = kept;
    }
}

fn resolved(address: usize, access: Option<Access>) -> bool {
    PLACES.iter().any(|place| {
        if place.hook.load(Ordering::Relaxed).is_null() {
            return false;
        }
        place.users.fetch_add(1, Ordering::SeqCst);
        let hook = place.hook.load(Ordering::SeqCst);
        // SAFETY: a hook is taken back only after it was taken out and `users` was seen to be zero; it was still in after
        // we counted ourselves.
        let hook = unsafe { hook.as_ref() };
        let mine = hook.filter(|hook| (hook.start..hook.end).contains(&address));
        let done = mine.is_some_and(|hook| hook.resolve.resolve(address, access));
        place.users.fetch_sub(1, Ordering::SeqCst);
        done
    })
}

/// What the processor says of the touch.
#[cfg(target_arch = "x86_64")]
unsafe fn access(context: *mut libc::c_void) -> Option<Access> {
    /// Bit 1 of a page fault's error code: it was a write (Intel SDM volume 3, 4.7).
    const WRITE: i64 = 1 << 1;
    // SAFETY: the third argument of a handler with SA_SIGINFO is a ucontext_t.
    let error = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] };
    Some(if error & WRITE == 0 { Access::Read } else { Access::Write })
}

/// Nothing here: a write then faults twice, the second time on a page that is there and protected.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn access(_: *mut libc::c_void) -> Option<Access> {
    None
}

/// Does what would have been done without us.
unsafe fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what `install` found and put there; never given back. Its function is called with what its flags say it takes.
    unsafe {
        let before = &*BEFORE.load(Ordering::SeqCst);
        match before.sa_sigaction {
            libc::SIG_IGN if (*info).si_code <= 0 => {}
            // The touch is tried again, and then kills; a signal that was sent is sent again.
            libc::SIG_DFL | libc::SIG_IGN => {
                let mut default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// Writes to standard error without the buffers and locks of [`std::io`].
pub(crate) fn say(text: &[u8]) {
    // SAFETY: writes bytes of a slice.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// Ends the process with `SIGBUS`, where no thread of the program's can be made to get it.
pub(crate) fn die() {
    // SAFETY: sets a disposition and sends a signal to this process.
    unsafe {
        let mut default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &raw const default, ptr::null_mut());
        libc::kill(libc::getpid(), libc::SIGBUS);
    }
}

/// Blocks all signals in the calling thread: they are the program's, for the program's own threads.
pub(crate) fn block_all() {
    // SAFETY: sets this thread's mask from a set that was filled.
    unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
}
