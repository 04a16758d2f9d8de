//! Pointers from the other side: checked for what can be checked, and turned into what Rust knows. What cannot be checked
//! is what each function's documentation makes the caller promise.

use std::ffi::{OsStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;

use crate::guard::Failure;

/// Longest text that is read, the zero at its end left out: as long as a path can be.
const MAX_TEXT: usize = 4095;
/// Longest struct of options that a later version may have.
const MAX_OPTIONS: usize = 4096;

/// A text that may be left out: None where it is null.
///
/// # Safety
/// `text` is null, or ends in a zero byte and is not changed as long as what is returned is used.
pub(crate) unsafe fn bytes_of_text<'a>(what: &str, text: *const c_char) -> Result<Option<&'a [u8]>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller promises a zero byte at its end; nothing behind it is read.
    let len = unsafe { libc::strnlen(text, MAX_TEXT + 1) };
    if len > MAX_TEXT {
        return Err(Failure::usage(format!("{what} has more than {MAX_TEXT} characters: is there a zero at its end?")));
    }
    // SAFETY: `strnlen` has just read these bytes.
    Ok(Some(unsafe { std::slice::from_raw_parts(text.cast(), len) }))
}

/// The same, as text.
///
/// # Safety
/// As [`bytes_of_text`].
pub(crate) unsafe fn text<'a>(what: &str, text: *const c_char) -> Result<Option<&'a str>, Failure> {
    // SAFETY: the caller's promise, passed on.
    let Some(bytes) = (unsafe { bytes_of_text(what, text) })? else { return Ok(None) };
    let text = std::str::from_utf8(bytes);
    text.map(Some).map_err(|_| Failure::usage(format!("{what} is not UTF-8: write it in ASCII")))
}

/// The same, as a path.
///
/// # Safety
/// As [`bytes_of_text`].
pub(crate) unsafe fn path(what: &str, text: *const c_char) -> Result<Option<PathBuf>, Failure> {
    // SAFETY: the caller's promise, passed on.
    let bytes = unsafe { bytes_of_text(what, text) }?;
    Ok(bytes.map(|bytes| OsStr::from_bytes(bytes).into()))
}

/// What must not be left out.
pub(crate) fn given<T>(what: &str, value: Option<T>) -> Result<T, Failure> {
    value.ok_or_else(|| null(what))
}

/// Bytes to be read; with `len` 0 the pointer may be null.
///
/// # Safety
/// `bytes` has `len` bytes that nobody changes as long as what is returned is used.
pub(crate) unsafe fn bytes<'a>(what: &str, bytes: *const c_void, len: usize) -> Result<&'a [u8], Failure> {
    match checked(what, bytes.cast_mut(), len)? {
        // SAFETY: the caller promises the bytes, and `checked` that they are no more than a slice may have.
        Some(bytes) => Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr(), len) }),
        None => Ok(&[]),
    }
}

/// Bytes to be written; with `len` 0 the pointer may be null.
///
/// # Safety
/// `buffer` has `len` bytes that nobody else reads or writes as long as what is returned is used.
pub(crate) unsafe fn buffer<'a>(what: &str, buffer: *mut c_void, len: usize) -> Result<&'a mut [u8], Failure> {
    match checked(what, buffer, len)? {
        // SAFETY: the caller promises the bytes, and `checked` that they are no more than a slice may have. Whatever they
        // hold was put there by code that this compiler does not see.
        Some(buffer) => Ok(unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), len) }),
        None => Ok(&mut []),
    }
}

fn checked(what: &str, bytes: *mut c_void, len: usize) -> Result<Option<NonNull<u8>>, Failure> {
    if len > isize::MAX as usize {
        return Err(Failure::usage(format!("{what} cannot have {len} bytes: is a negative number behind it?")));
    }
    match NonNull::new(bytes.cast()) {
        None if len > 0 => Err(null(what)),
        bytes => Ok(bytes),
    }
}

/// Where a result goes.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// A place that must be there.
    ///
    /// # Safety
    /// `place` is null, or may be written, and nobody else uses it, as long as this lives.
    pub(crate) unsafe fn new(what: &str, place: *mut T) -> Result<Self, Failure> {
        // SAFETY: the caller's promise, passed on.
        given(what, unsafe { Self::maybe(what, place) }?)
    }

    /// A place that may be left out.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub(crate) unsafe fn maybe(what: &str, place: *mut T) -> Result<Option<Self>, Failure> {
        if !place.is_aligned() {
            return Err(Failure::usage(format!("{what} does not point to a value of its type")));
        }
        Ok(NonNull::new(place).map(Self))
    }

    pub(crate) fn put(&self, value: T) {
        // SAFETY: `maybe` checked that it is aligned; the caller promised that it may be written.
        unsafe { self.0.write(value) }
    }
}

impl<H> Out<*mut H> {
    /// A place for a handle, which holds none until one is there.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub(crate) unsafe fn handle(what: &str, place: *mut *mut H) -> Result<Self, Failure> {
        // SAFETY: the caller's promise, passed on.
        let out = unsafe { Self::new(what, place) }?;
        out.put(std::ptr::null_mut());
        Ok(out)
    }
}

/// Copies a text and a zero into `len` bytes of the caller's.
///
/// # Safety
/// As [`buffer`].
pub(crate) unsafe fn put_text(what: &str, place: *mut c_char, len: usize, text: &str) -> Result<(), Failure> {
    // SAFETY: the caller's promise, passed on.
    let place = unsafe { buffer(what, place.cast(), len) }?;
    let needed = text.len() + 1;
    let Some((place, zero)) = place.get_mut(..needed).and_then(<[u8]>::split_last_mut).map(|(zero, text)| (text, zero))
    else {
        return Err(Failure::usage(format!("{what} has {len} bytes, and {needed} are needed")));
    };
    place.copy_from_slice(text.as_bytes());
    *zero = 0;
    Ok(())
}

/// A struct of options that may grow. Its first field is its size as the caller knows it; what is zero says nothing, so
/// that one of an older version is as good as one whose new fields are zero.
///
/// # Safety
/// The type is `repr(C)`, its first field is a `usize`, and any bytes make one.
pub(crate) unsafe trait Options: Copy {}

/// What a caller has set of options; all zero where the pointer is null.
///
/// # Safety
/// `options` is null, or begins with a size and has as many bytes, which nobody changes meanwhile.
pub(crate) unsafe fn options<T: Options>(what: &str, options: *const T) -> Result<T, Failure> {
    let known = size_of::<T>();
    let mut mine = MaybeUninit::<T>::zeroed();
    // SAFETY: the caller's promise, passed on.
    if let Some(size) = unsafe { size(what, options) }? {
        // SAFETY: the caller promises `size` bytes.
        let theirs = unsafe { std::slice::from_raw_parts(options.cast::<u8>(), size) };
        if theirs.get(known..).is_some_and(|more| more.iter().any(|&byte| byte != 0)) {
            let text =
                format!("{what} sets an option that this version of overbank does not know: use a newer library");
            return Err(Failure::usage(text));
        }
        // SAFETY: `mine` has `known` bytes, of which at most as many are written; no two overlap.
        unsafe { mine.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(theirs.as_ptr(), size.min(known)) };
    }
    // SAFETY: its bytes are zero or what the caller has set, and any bytes make one.
    Ok(unsafe { mine.assume_init() })
}

/// A struct that the library fills in, which may grow as [`Options`] do.
pub(crate) struct Report<T> {
    place: NonNull<T>,
    size: usize,
}

impl<T: Options> Report<T> {
    /// A place that must be there.
    ///
    /// # Safety
    /// `place` is null, or begins with a size and has as many bytes, which may be written and nobody else uses, as long as this
    /// lives.
    pub(crate) unsafe fn new(what: &str, place: *mut T) -> Result<Self, Failure> {
        // SAFETY: the caller's promise, passed on.
        let size = given(what, unsafe { size(what, place) }?)?;
        Ok(Self { place: given(what, NonNull::new(place))?, size })
    }

    /// Fills in the fields that the caller knows, but for its size, and makes zeros of those that only he knows.
    pub(crate) fn put(&self, value: &T) {
        let (place, first) = (self.place.cast::<u8>(), size_of::<usize>());
        let known = self.size.min(size_of::<T>());
        // SAFETY: the caller promised `size` bytes, of which `size` has seen that they are more than the first field has;
        // `value` has its type's. No two overlap.
        unsafe {
            place.add(first).copy_from_nonoverlapping(NonNull::from(value).cast::<u8>().add(first), known - first);
            place.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// What a struct that may grow says of its size; None where the pointer is null.
///
/// # Safety
/// `place` is null, or begins with a size.
unsafe fn size<T: Options>(what: &str, place: *const T) -> Result<Option<usize>, Failure> {
    if !place.is_aligned() {
        return Err(Failure::usage(format!("{what} does not point to such a struct")));
    }
    if place.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller promises that it begins with its size; that it is aligned has been seen.
    let size = unsafe { place.cast::<usize>().read() };
    if !(size_of::<usize>()..=MAX_OPTIONS).contains(&size) {
        return Err(Failure::usage(format!("{what} says that its size is {size}: set it to sizeof of the struct")));
    }
    Ok(Some(size))
}

fn null(what: &str) -> Failure {
    Failure::usage(format!("{what} is null: it must be given"))
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
