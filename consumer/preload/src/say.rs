//! What is said to the person who runs the program: on standard error, in one write.

/// Says it. Where standard error is closed there is nobody to tell.
pub(crate) fn say(text: &str) {
    let line = format!("overbank run: {text}\n");
    // SAFETY: the bytes outlive the call, and are as many as it says.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

/// Says what makes no sense to go on after, and ends the process.
pub(crate) fn die(text: &str) -> ! {
    say(text);
    std::process::abort()
}

/// A line from parts, without an allocation: for a signal handler.
pub(crate) struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 512], length: 0 }
    }

    /// More text; what does not fit is left out.
    pub(crate) fn text(mut self, text: &str) -> Self {
        for &byte in text.as_bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
        self
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.digits(number, 10)
    }

    pub(crate) fn address(self, address: usize) -> Self {
        self.text("0x").digits(address as u64, 16)
    }

    fn digits(self, mut number: u64, base: u64) -> Self {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            if number == 0 {
                break;
            }
        }
        self.text(std::str::from_utf8(&digits[at..]).unwrap_or_default())
    }

    /// Says it.
    pub(crate) fn say(self) {
        let line = self.text("\n");
        // SAFETY: the bytes outlive the call, and are as many as it says.
        unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.length) };
    }

    #[cfg(test)]
    fn so_far(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_and_cut_where_they_are_full() {
        let line = Line::new().text("at ").address(0xdead_beef).text(" of ").number(0).text("/").number(u64::MAX);
        assert_eq!(line.so_far(), "at 0xdeadbeef of 0/18446744073709551615");
        assert_eq!(Line::new().text(&"x".repeat(600)).so_far().len(), 512);
    }
}
