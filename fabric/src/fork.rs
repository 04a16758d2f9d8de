//! Which process this is, told by a word of memory that a fork wipes: where nonces count up, a forked twin must not go on.
//!
//! `getpid` is a system call each time, 0.28 µs of the 0.7 that sealing 4 KiB took with it. The word costs a load. The
//! kernel empties its page in every child that has memory of its own, however it was forked (`madvise(2)`,
//! `MADV_WIPEONFORK`, Linux 4.14); whoever then looks first writes a number into it that no forebear had.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// One process; never equal to one that it was forked from.
///
/// Where the kernel cannot wipe on fork this is the process id, which a child can share with its forebears in a new pid
/// namespace, or once the parent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u64);

/// The number of the youngest process on the line from the first that asked to this one. A fork copies it.
static LAST: AtomicU64 = AtomicU64::new(0);
/// Where this process has its number; null before anybody asked, and [`NOWHERE`] where no page can be wiped.
static MARK: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
static NOWHERE: AtomicU64 = AtomicU64::new(0);

impl Process {
    /// The one that asks.
    pub(crate) fn current() -> Self {
        let Some(mark) = mark() else { return Self(std::process::id().into()) };
        Self(number(mark, &LAST))
    }
}

/// What `word` says; a new one, the next after `last`, where it was wiped.
fn number(word: &AtomicU64, last: &AtomicU64) -> u64 {
    match word.load(Ordering::Relaxed) {
        0 => {
            let next = last.fetch_add(1, Ordering::Relaxed) + 1;
            // Another thread of this process may have been first.
            word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|its| its, |_| next)
        }
        number => number,
    }
}

/// The word that a fork wipes, made at the first call. No lock: a fork in the middle of it would leave the child waiting.
fn mark() -> Option<&'static AtomicU64> {
    let mut mark = MARK.load(Ordering::Acquire);
    if mark.is_null() {
        let new = wiped_page().unwrap_or_else(|| ptr::from_ref(&NOWHERE).cast_mut());
        // Where another thread was faster its word is taken, and a page of ours stays unused.
        mark = match MARK.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(other) => other,
        };
    }
    // SAFETY: `MARK` is null or one of two: the address of a static, or of a page from `wiped_page`, which is readable,
    // writable, aligned, holds zeros or what was stored through this type, and is never unmapped.
    let mark: &'static AtomicU64 = unsafe { &*mark };
    (!ptr::eq(mark, &NOWHERE)).then_some(mark)
}

/// A page of zeros that is wiped on fork.
fn wiped_page() -> Option<*mut AtomicU64> {
    const LEN: usize = 4096;
    /// No kernel knows it. What accepts it (user-mode emulators have) accepts anything and does nothing.
    const NO_ADVICE: i32 = -1;
    // SAFETY: a new private mapping where the kernel likes; nothing that exists is touched.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping made above and nothing else; neither advice changes a byte of this process's memory.
    let wiped =
        unsafe { libc::madvise(page, LEN, NO_ADVICE) != 0 && libc::madvise(page, LEN, libc::MADV_WIPEONFORK) == 0 };
    wiped.then_some(page.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_see_one_number_and_a_wiped_word_gets_one_that_none_had() {
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| Process::current().0)).collect();
        let here = Process::current();
        assert!(threads.into_iter().all(|thread| thread.join().expect("it ends") == here.0));

        // Not the process's own word: other tests of this program hold sealers.
        let (word, last) = (AtomicU64::new(0), AtomicU64::new(7));
        assert_eq!(number(&word, &last), 8);
        assert_eq!((number(&word, &last), last.load(Ordering::Relaxed)), (8, 8));
        // What a fork does.
        word.store(0, Ordering::Relaxed);
        assert_eq!(number(&word, &last), 9);
    }

    #[test]
    fn this_kernel_wipes_on_fork() {
        assert!(mark().is_some());
    }
}
