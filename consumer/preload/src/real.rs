//! The functions of the next library: those that the program would use without us.

use std::ffi::{CStr, c_int, c_uchar, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use libc::{off_t, size_t};

use crate::arena;

const UNKNOWN: u8 = 0;
const LOOKING: u8 = 1;
const KNOWN: u8 = 2;
/// RTLD_DL_SYMENT: `dladdr1` is to find the symbol too.
const WITH_SYMBOL: c_int = 1;
/// SHN_UNDEF.
const SECTION_NONE: u16 = 0;

/// Whether they are known yet. The first allocation of the process finds them, before there is a second thread.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
static FOREIGN: AtomicBool = AtomicBool::new(false);

/// Whether the program brings an allocator that its libraries use instead of ours.
pub(crate) fn allocator_is_foreign() -> bool {
    FOREIGN.load(Ordering::Relaxed)
}

/// Finds them, unless that is under way: what is allocated meanwhile comes from the arena.
pub(crate) fn known() -> bool {
    if STATE.load(Ordering::Acquire) == KNOWN {
        return true;
    }
    if STATE.compare_exchange(UNKNOWN, LOOKING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    let foreign = first_is_foreign();
    FOREIGN.store(foreign, Ordering::Relaxed);
    find_all(if foreign { libc::RTLD_DEFAULT } else { libc::RTLD_NEXT });
    STATE.store(KNOWN, Ordering::Release);
    true
}

/// Whether the first `malloc` that the dynamic linker finds is another one than ours.
fn first_is_foreign() -> bool {
    // SAFETY: a name that ends in a zero.
    let first = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr()) };
    let ours = own_malloc();
    if first.is_null() || ours.is_null() || first == ours {
        return false;
    }
    let mut of = MaybeUninit::<libc::Dl_info>::uninit();
    let mut symbol: *mut c_void = null_mut();
    // SAFETY: both places are written to; the symbol is one of an object that stays loaded. A program that takes the address
    // of `malloc` has a symbol without a section: that leads to us.
    unsafe {
        let found = libc::dladdr1(first, of.as_mut_ptr(), &mut symbol, WITH_SYMBOL);
        found == 0 || symbol.is_null() || (*symbol.cast::<libc::Elf64_Sym>()).st_shndx != SECTION_NONE
    }
}

#[cfg(not(test))]
fn own_malloc() -> *mut c_void {
    crate::interpose::own_malloc()
}

#[cfg(test)]
fn own_malloc() -> *mut c_void {
    null_mut()
}

fn find(place: *mut c_void, name: &CStr, slot: &AtomicPtr<c_void>) {
    // SAFETY: a name that ends in a zero.
    slot.store(unsafe { libc::dlsym(place, name.as_ptr()) }, Ordering::Relaxed);
}

/// `heap`: found with the allocator, wherever that is. `kernel`: of the next library. Each is a function of its own name that
/// calls what was found; where nothing was, the fallback.
macro_rules! functions {
    (
        heap { $(fn $heap:ident($($ha:ident: $ht:ty),*) -> $hr:ty, else $hf:expr;)* }
        kernel { $(fn $kernel:ident($($ka:ident: $kt:ty),*) -> $kr:ty, else $kf:expr;)* }
    ) => {
        #[allow(non_upper_case_globals)]
        mod slots {
            use super::{AtomicPtr, c_void, null_mut};
            $(pub(super) static $heap: AtomicPtr<c_void> = AtomicPtr::new(null_mut());)*
            $(pub(super) static $kernel: AtomicPtr<c_void> = AtomicPtr::new(null_mut());)*
        }

        fn find_all(allocator: *mut c_void) {
            $(find(allocator, name(concat!(stringify!($heap), "\0")), &slots::$heap);)*
            $(find(libc::RTLD_NEXT, name(concat!(stringify!($kernel), "\0")), &slots::$kernel);)*
        }

        $(functions!(@one $heap ($($ha: $ht),*) $hr, $hf);)*
        $(functions!(@one $kernel ($($ka: $kt),*) $kr, $kf);)*
    };
    (@one $name:ident ($($arg:ident: $type:ty),*) $result:ty, $fallback:expr) => {
        /// The next library's.
        ///
        /// # Safety
        /// What that function asks.
        pub(crate) unsafe fn $name($($arg: $type),*) -> $result {
            let found = if known() { slots::$name.load(Ordering::Relaxed) } else { null_mut() };
            if found.is_null() {
                return $fallback;
            }
            // SAFETY: the dynamic linker found it under this name, whose type this is; the caller's promise, passed on.
            unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> $result>(found)($($arg),*) }
        }
    };
}

fn name(text: &'static str) -> &'static CStr {
    CStr::from_bytes_until_nul(text.as_bytes()).unwrap_or_default()
}

/// A system call, as the C library makes it.
macro_rules! system_call {
    ($number:ident $(, $arg:expr)*) => {{
        // SAFETY: the caller's promise, passed on.
        unsafe { libc::syscall(libc::$number $(, $arg)*) }
    }};
}

functions! {
    heap {
        fn malloc(size: size_t) -> *mut c_void, else arena::allocate(size, 16);
        fn calloc(count: size_t, size: size_t) -> *mut c_void,
            else count.checked_mul(size).map_or(null_mut(), arena::allocate_zeros);
        fn realloc(block: *mut c_void, size: size_t) -> *mut c_void,
            else if block.is_null() { arena::allocate(size, 16) } else { null_mut() };
        fn free(block: *mut c_void) -> (), else { let _ = block; };
        fn memalign(align: size_t, size: size_t) -> *mut c_void, else arena::allocate(size, align);
        fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void, else arena::allocate(size, align);
        fn posix_memalign(to: *mut *mut c_void, align: size_t, size: size_t) -> c_int,
            else { let _ = (to, align, size); libc::ENOMEM };
        fn malloc_usable_size(block: *mut c_void) -> size_t, else { let _ = block; 0 };
    }
    kernel {
        fn mmap(at: *mut c_void, length: size_t, protection: c_int, flags: c_int, file: c_int, offset: off_t)
            -> *mut c_void, else system_call!(SYS_mmap, at, length, protection, flags, file, offset) as *mut c_void;
        fn munmap(at: *mut c_void, length: size_t) -> c_int, else system_call!(SYS_munmap, at, length) as c_int;
        fn mremap(at: *mut c_void, length: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void,
            else system_call!(SYS_mremap, at, length, new, flags, to) as *mut c_void;
        fn mprotect(at: *mut c_void, length: size_t, protection: c_int) -> c_int,
            else system_call!(SYS_mprotect, at, length, protection) as c_int;
        fn madvise(at: *mut c_void, length: size_t, advice: c_int) -> c_int,
            else system_call!(SYS_madvise, at, length, advice) as c_int;
        fn mlock(at: *const c_void, length: size_t) -> c_int, else system_call!(SYS_mlock, at, length) as c_int;
        fn mlock2(at: *const c_void, length: size_t, flags: c_int) -> c_int,
            else system_call!(SYS_mlock2, at, length, flags) as c_int;
        fn munlock(at: *const c_void, length: size_t) -> c_int, else system_call!(SYS_munlock, at, length) as c_int;
        fn mlockall(flags: c_int) -> c_int, else system_call!(SYS_mlockall, flags) as c_int;
        fn munlockall() -> c_int, else system_call!(SYS_munlockall) as c_int;
        fn mincore(at: *mut c_void, length: size_t, pages: *mut c_uchar) -> c_int,
            else system_call!(SYS_mincore, at, length, pages) as c_int;
        fn _exit(status: c_int) -> (), else { system_call!(SYS_exit_group, status); };
    }
}

/// Bytes of a page of the kernel.
pub(crate) fn page() -> usize {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let known = PAGE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    PAGE.store(page, Ordering::Relaxed);
    page
}
