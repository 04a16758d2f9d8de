//! Sizes and durations as people write them: `64MiB`, `10m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Text that is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No size.
    #[error("'{0}' is no size: write a whole number and B, KiB, MiB, GiB or TiB, such as 64MiB")]
    Size(String),
    /// No duration.
    #[error("'{0}' is no duration: write a whole number and ms, s, m, h or d, such as 10m")]
    Duration(String),
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub u64);

const SIZES: [(&str, u32); 9] =
    [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("T", 40), ("G", 30), ("M", 20), ("K", 10), ("B", 0)];

impl FromStr for Size {
    type Err = UnitError;
    /// A whole number with a unit of 1,024s; without a unit, bytes.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (digits, shift) = SIZES
            .iter()
            .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, *shift)))
            .unwrap_or((text, 0));
        whole(digits)
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) =
            SIZES[..4].iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift).unwrap_or(&("B", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// A duration as a command-line argument: `500ms`, `30s`, `10m`, `24h`, `7d`.
///
/// # Errors
/// [`UnitError::Duration`] where the text is anything else, or longer than a number of milliseconds can say.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    UNITS
        .iter()
        .find_map(|(unit, ms)| text.strip_suffix(unit).map(|digits| (digits, *ms)))
        .and_then(|(digits, ms)| whole(digits)?.checked_mul(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| UnitError::Duration(text.to_owned()))
}

/// A duration in the largest two units that say it: `9m59s`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86400 => format!("{}h{}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{}h", s / 86400, s / 3600 % 24),
    }
}

/// Digits alone; `parse` would also take a sign.
fn whole(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("2G", 2 << 30), ("1TiB", 1 << 40), ("17", 17), ("4096B", 4096), ("0", 0)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "+1", "1.5GiB", "64 MiB", "64MB", "99999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        assert_eq!(Size(4097).to_string(), "4097B");
        assert_eq!(Size(0).to_string(), "0B");
    }

    #[test]
    fn durations_are_read_as_they_are_written() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("10m", 600_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "m", "-1s", "1.5h", "999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(show_duration(Duration::from_secs(599)), "9m59s");
    }
}
