use std::ffi::CString;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
struct Two {
    size: usize,
    first: u64,
    second: u64,
}

// SAFETY: it is repr(C), begins with a usize, and numbers are made of any bytes.
unsafe impl Options for Two {}

/// What a caller with a struct of these words has set: the first word is the size that it gives.
fn given(words: &[u64]) -> Result<Two, Failure> {
    // SAFETY: no test gives a size beyond its words, but those that are refused before more than the first is read.
    unsafe { options("it", words.as_ptr().cast()) }
}

#[test]
fn options_of_another_version_are_read_as_far_as_both_know_them() {
    // SAFETY: null is allowed.
    let none = unsafe { options::<Two>("it", std::ptr::null()) }.expect("all by default");
    assert_eq!(none, Two { size: 0, first: 0, second: 0 });
    assert_eq!(given(&[24, 1, 2]).expect("this version's"), Two { size: 24, first: 1, second: 2 });
    assert_eq!(given(&[16, 1, 2]).expect("an older one's"), Two { size: 16, first: 1, second: 0 });
    assert_eq!(given(&[8, 1, 2]).expect("the oldest"), Two { size: 8, first: 0, second: 0 });
    assert_eq!(given(&[32, 1, 2, 0]).expect("a newer one's, unused"), Two { size: 32, first: 1, second: 2 });
    given(&[32, 1, 2, 1]).expect_err("a newer one's, used");
    given(&[40, 1, 2, 0, 1 << 63]).expect_err("its last byte");
    for size in [0, 1, 7, 4097, u64::MAX] {
        given(&[size, 1, 2]).expect_err("no size");
    }
    // SAFETY: refused before it is looked at.
    unsafe { options::<Two>("it", std::ptr::without_provenance(12)) }.expect_err("not aligned");
}

#[test]
fn texts_end_where_they_should() {
    let longest = CString::new(vec![b'x'; MAX_TEXT]).expect("no zero");
    let longer = CString::new(vec![b'x'; MAX_TEXT + 1]).expect("no zero");
    // SAFETY: both end in a zero, and live until the end.
    unsafe {
        assert_eq!(text("it", longest.as_ptr()).expect("short enough").map(str::len), Some(MAX_TEXT));
        text("it", longer.as_ptr()).expect_err("too long");
        assert_eq!(text("it", std::ptr::null()).expect("left out"), None);
        text("it", c"\xff".as_ptr()).expect_err("not UTF-8");
        assert_eq!(path("it", c"\xff".as_ptr()).expect("a path").map(|path| path.into_os_string().len()), Some(1));
    }
}

#[test]
fn bytes_are_there_and_no_more_than_there_can_be() {
    let mut bytes = [7_u8; 4];
    let place: *mut c_void = bytes.as_mut_ptr().cast();
    // SAFETY: the array has four bytes; what is longer is refused before it is looked at.
    unsafe {
        assert_eq!(super::bytes("it", place, 4).expect("there"), [7; 4]);
        assert_eq!(buffer("it", place, 4).expect("there"), [7; 4]);
        for len in [isize::MAX as usize + 1, usize::MAX] {
            super::bytes("it", place, len).expect_err("too many");
            buffer("it", place, len).expect_err("too many");
        }
        let null = std::ptr::null_mut();
        assert!(
            super::bytes("it", null, 0).expect("none").is_empty() && buffer("it", null, 0).expect("none").is_empty()
        );
        super::bytes("it", null, 1).expect_err("null");
        buffer("it", null, 1).expect_err("null");
    }
}

#[test]
fn a_text_is_put_only_where_all_of_it_fits() {
    let mut place = [b'?'; 6];
    let at: *mut c_char = place.as_mut_ptr().cast();
    // SAFETY: the array has six bytes.
    unsafe {
        put_text("it", at, 3, "abc").expect_err("no room for the zero");
        put_text("it", at, 0, "").expect_err("no room for the zero");
        put_text("it", std::ptr::null_mut(), 6, "abc").expect_err("null");
        put_text("it", at, 4, "abc").expect("it fits");
    }
    assert_eq!(&place, b"abc\0??");
}

#[test]
fn results_go_to_places_that_are_there() {
    let mut number = 5_u64;
    let mut handle: *mut u8 = std::ptr::without_provenance_mut(9);
    // SAFETY: null and what is not aligned are refused; the others are there.
    unsafe {
        assert!(Out::<u64>::new("it", std::ptr::null_mut()).is_err());
        assert!(Out::<u64>::new("it", std::ptr::without_provenance_mut(12)).is_err());
        assert!(Out::<u64>::maybe("it", std::ptr::null_mut()).expect("left out").is_none());
        Out::new("it", &raw mut number).expect("there").put(6);
        Out::handle("it", &raw mut handle).expect("there");
    }
    assert_eq!(number, 6);
    assert!(handle.is_null(), "no handle until there is one");
}

/// Such a struct as this version has it, and with a field more.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counts<const FIELDS: usize> {
    size: usize,
    counts: [u64; FIELDS],
}

// SAFETY: repr(C), and begins with a usize.
unsafe impl<const FIELDS: usize> Options for Counts<FIELDS> {}

#[test]
fn a_report_of_any_version_is_filled_in_as_far_as_both_know_it() {
    let value = Counts { size: 0, counts: [1, 2] };
    // SAFETY: each has as many bytes as it says, or is refused.
    unsafe {
        for (size, counts) in [(8, [7, 7, 7]), (16, [1, 7, 7]), (24, [1, 2, 7]), (32, [1, 2, 0])] {
            let mut place = Counts { size, counts: [7; 3] };
            Report::<Counts<2>>::new("it", (&raw mut place).cast()).expect("of a size").put(&value);
            assert_eq!(place, Counts { size, counts });
        }
        for size in [0, 7, MAX_OPTIONS + 1] {
            let mut place = Counts { size, counts: [7; 2] };
            assert!(Report::new("it", &raw mut place).is_err(), "{size}");
        }
        assert!(Report::<Counts<2>>::new("it", std::ptr::null_mut()).is_err());
        assert!(Report::<Counts<2>>::new("it", std::ptr::without_provenance_mut(12)).is_err());
    }
}
