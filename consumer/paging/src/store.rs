//! Where pages are that are not in memory, as this crate sees it.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::fmt::{self, Display, Write};
use std::time::Duration;

/// A way to the store, for one thread at a time.
///
/// Its methods run in signal handlers too: once they have run, and while all goes well, they must not allocate, and they must
/// never take a lock that other code can hold while it touches the region.
pub trait Lane: Send + 'static {
    /// Reads whole pages into `out`, in this order; on an error `out` is of no use. The pages of `ahead` are likely to be asked
    /// for next: they may be on their way when this returns. Any of them may be written before it is asked for.
    ///
    /// # Errors
    /// [`Trouble`].
    fn fetch(&mut self, pages: &[usize], ahead: &[usize], out: &mut [u8]) -> Result<(), Trouble>;

    /// Writes whole pages. They have arrived when this returns; on an error each holds what it held before, what it was
    /// to hold, or can be written again.
    ///
    /// # Errors
    /// [`Trouble`].
    fn store(&mut self, pages: &[usize], bytes: &[u8]) -> Result<(), Trouble>;
}

/// Sees to lanes, on a thread of its own where everything is allowed.
pub trait Keeper<L>: Send + 'static {
    /// Does what has to be done from time to time; returns when to be called again.
    ///
    /// # Errors
    /// Where the store is lost.
    fn tend(&mut self) -> Result<Duration, Cause>;

    /// Mends lanes that are broken, all that there are; nobody else uses them meanwhile.
    ///
    /// # Errors
    /// [`Trouble::Broken`] where it is worth another try.
    fn mend(&mut self, lanes: &mut [&mut L]) -> Result<(), Trouble>;
}

/// Why a lane did not do what it was asked for.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// It may, once its keeper has mended it.
    Broken(Cause),
    /// What was stored cannot be had any more.
    Lost(Cause),
}

/// A reason in words, cut after 400 bytes; made without allocating.
#[derive(Clone)]
pub struct Cause {
    text: [u8; Self::MOST],
    len: usize,
}

impl Cause {
    const MOST: usize = 400;

    /// From what can be shown.
    pub fn new(reason: &dyn Display) -> Self {
        let mut cause = Self { text: [0; Self::MOST], len: 0 };
        // Longer ones are cut: writing never fails.
        let _ = write!(cause, "{reason}");
        cause
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

impl Write for Cause {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut end = text.len().min(Self::MOST - self.len);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.text[self.len..self.len + end].copy_from_slice(&text.as_bytes()[..end]);
        self.len += end;
        Ok(())
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text[..self.len]).unwrap_or("(unreadable)"))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cause({self})")
    }
}

impl std::error::Error for Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let cause = Cause::new(&format_args!("{}{}", "a".repeat(399), "ü".repeat(9)));
        assert_eq!(cause.to_string(), "a".repeat(399));
        assert_eq!(Cause::new(&"short").to_string(), "short");
    }
}
