use std::ffi::CString;

use super::*;
use crate::guard::{Failure, guard};

/// Programs are built with these numbers: none may ever change.
const FROZEN: [(i32, &str); 18] = [
    (0, "OVERBANK_OK"),
    (1, "OVERBANK_OTHER"),
    (2, "OVERBANK_USAGE"),
    (3, "OVERBANK_AUTHD_UNREACHABLE"),
    (4, "OVERBANK_NOT_TRUSTED"),
    (5, "OVERBANK_AUTHD_KEY_CHANGED"),
    (6, "OVERBANK_NO_ROOM"),
    (7, "OVERBANK_LEASE_OVER"),
    (8, "OVERBANK_LEASE_LOST"),
    (9, "OVERBANK_CONTENTS"),
    (10, "OVERBANK_DOES_NOT_FIT"),
    (11, "OVERBANK_DEADLINE"),
    (12, "OVERBANK_LOCAL"),
    (13, "OVERBANK_DEVICE"),
    (14, "OVERBANK_PROPOSED"),
    (100, "OVERBANK_BUSY"),
    (101, "OVERBANK_CLOSED"),
    (102, "OVERBANK_PANIC"),
];

fn last() -> CString {
    // SAFETY: the text is there until the next failure of this thread, and is copied here.
    unsafe { CStr::from_ptr(overbank_last_error()) }.to_owned()
}

#[test]
fn the_numbers_are_those_that_programs_were_built_with() {
    let now = overbank_status::ALL.map(|(status, _)| (status as i32, format!("{status:?}")));
    assert_eq!(now.each_ref().map(|(number, name)| (*number, name.as_str())), FROZEN);
}

#[test]
fn every_number_has_words_and_no_two_the_same() {
    let mut texts: Vec<_> = overbank_status::ALL.iter().map(|(_, text)| *text).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), FROZEN.len());
    for (status, text) in overbank_status::ALL {
        // SAFETY: a text of the library.
        assert_eq!(unsafe { CStr::from_ptr(overbank_strerror(status as i32)) }, text);
    }
    for unknown in [-1, 15, 99, 103, i32::MAX, i32::MIN] {
        // SAFETY: a text of the library.
        let text = unsafe { CStr::from_ptr(overbank_strerror(unknown)) };
        assert_eq!(text, c"a status of another version of overbank");
    }
}

#[test]
fn a_panic_becomes_a_status_and_its_words_the_last_error() {
    assert_eq!(guard(|| panic!("number {}", 7)), OVERBANK_PANIC);
    assert!(last().to_str().expect("text").contains("number 7"), "{:?}", last());
    struct Nasty;
    impl Drop for Nasty {
        fn drop(&mut self) {
            panic!("once more");
        }
    }
    assert_eq!(guard(|| std::panic::panic_any(Nasty)), OVERBANK_PANIC);
    assert!(last().to_str().expect("text").contains("without words"), "{:?}", last());
}

#[test]
fn the_last_error_is_the_thread_s_own_and_outlives_what_succeeds() {
    assert_eq!(guard(|| Err(Failure::usage("first\0of all"))), OVERBANK_USAGE);
    assert_eq!(guard(|| Ok(())), OVERBANK_OK);
    assert_eq!(last().to_str(), Ok("first\u{fffd}of all"));
    std::thread::spawn(|| assert_eq!(last().as_c_str(), c"")).join().expect("no panic");
    // What an error of the library says arrives whole.
    let error = overbank_lib::Config::new("a b", "/nowhere").expect_err("no address");
    let words = error.to_string();
    assert_eq!(guard(|| Err(error.into())), OVERBANK_USAGE);
    assert_eq!(last().to_str(), Ok(words.as_str()));
}
