//! What surrounds every function: no panic gets out of it, and a failure leaves its text behind for the thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use overbank_lib::Error;

use crate::status::overbank_status::{
    self, OVERBANK_BUSY, OVERBANK_CLOSED, OVERBANK_LEASE_LOST, OVERBANK_OK, OVERBANK_PANIC, OVERBANK_USAGE,
};

/// Why a function did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    status: overbank_status,
    text: String,
}

impl Failure {
    /// The call itself makes no sense.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { status: OVERBANK_USAGE, text: text.into() }
    }

    /// What is asked for is in use.
    pub(crate) fn busy(text: impl Into<String>) -> Self {
        Self { status: OVERBANK_BUSY, text: text.into() }
    }

    /// A handle that stands for nothing.
    pub(crate) fn closed(text: impl Into<String>) -> Self {
        Self { status: OVERBANK_CLOSED, text: text.into() }
    }

    /// What was in a lease cannot be had any more.
    pub(crate) fn lost(text: impl Into<String>) -> Self {
        Self { status: OVERBANK_LEASE_LOST, text: text.into() }
    }

    /// Something panicked, now or before.
    pub(crate) fn panic(text: impl Into<String>) -> Self {
        Self { status: OVERBANK_PANIC, text: text.into() }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self { status: overbank_status::of(error.kind()), text: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Does `step`, and says how it ended.
pub(crate) fn guard(step: impl FnOnce() -> Result<(), Failure>) -> overbank_status {
    // Whatever a panic leaves half done is behind a lock, which is poisoned then.
    let failure = match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(())) => return OVERBANK_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = format!("this is a fault of overbank itself, please report it: {}", said(&*panic));
            // What was thrown may itself throw when it is dropped.
            std::mem::forget(panic);
            Failure::panic(text)
        }
    };
    let text = CString::new(failure.text.replace('\0', "\u{fffd}")).unwrap_or_default();
    // A thread that is ending has no place for it any more.
    let _ = LAST.try_with(|last| last.replace(text));
    failure.status
}

/// The text of this thread's last failure, as long as there is no other.
pub(crate) fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}
