//! Leaving nothing of a computation with secrets on the stack.

use std::hint::black_box;

/// Does something with secrets, and wipes what it left on the stack: derived keys, and places that values moved from.
pub(crate) fn wiped<T>(step: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn run<T>(step: impl FnOnce() -> T) -> T {
        step()
    }
    #[inline(never)]
    fn wipe() {
        // The deepest step, ML-KEM, uses less than 48 KiB.
        black_box(&mut [0u8; 64 << 10]);
    }
    let result = run(step);
    if !cfg!(feature = "danger-no-wipe") {
        wipe();
    }
    result
}
