//! Names that travel: fixed-size random ids, and the names that people choose.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that does not name what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the right number of hexadecimal digits.
    #[error("{what} has {expected} hexadecimal digits, not {got}")]
    Length {
        /// What was parsed.
        what: &'static str,
        /// Digits wanted.
        expected: usize,
        /// Digits found.
        got: usize,
    },
    /// A character that is no hexadecimal digit.
    #[error("{what} is written in hexadecimal digits (0-9, a-f)")]
    Digit {
        /// What was parsed.
        what: &'static str,
    },
    /// Not a tenant's name.
    #[error("a tenant's name is 1 to 32 characters of a-z, 0-9 and '-', and begins with a letter or digit")]
    Tenant,
    /// Not a name for an identity.
    #[error("a name is 1 to 64 characters of a-z, A-Z, 0-9, '.', '_', '@', '-' and single blanks inside")]
    Name,
}

/// Hexadecimal digits of `bytes`, lower case.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// Exactly `N` bytes from hexadecimal digits; `what` is named in the error.
///
/// # Errors
/// [`IdError::Length`] or [`IdError::Digit`].
pub fn unhex<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], IdError> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(IdError::Length { what, expected: N * 2, got: digits.len() });
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16).ok_or(IdError::Digit { what })?;
        let low = (pair[1] as char).to_digit(16).ok_or(IdError::Digit { what })?;
        *byte = (high << 4 | low) as u8;
    }
    Ok(bytes)
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(#[serde(with = "serde_bytes")] pub [u8; $len]);

        impl $name {
            /// A fresh one from the operating system's random numbers.
            ///
            /// # Panics
            /// Where the system has no random numbers to give: nothing safe can be done then.
            #[must_use]
            pub fn random() -> Self {
                let mut bytes = [0; $len];
                getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                unhex($what, text).map(Self)
            }
        }
    };
}

byte_id!(
    /// A lease: 128 random bits, never used twice.
    LeaseId, 16, "a lease id"
);
byte_id!(
    /// One life of a provider process; a handle from another life is refused.
    BootId, 16, "a boot id"
);
byte_id!(
    /// Ties a request to every log line and audit record that it caused.
    CorrelationId, 8, "a correlation id"
);
byte_id!(
    /// Makes a request that is sent again after a broken connection the same request: it allocates once.
    Nonce, 16, "a nonce"
);
byte_id!(
    /// What people see and compare of a public key: 160 bits of a SHA-256 over it.
    Fingerprint, 20, "a fingerprint"
);

/// Who pays and who is kept apart from whom: memory of one tenant never shares a hugepage, a protection domain or
/// a region with another's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

impl Tenant {
    /// Longest name, in bytes.
    pub const MAX: usize = 32;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let well_formed = bytes.len() <= Self::MAX
            && bytes.first().is_some_and(|&first| plain(first))
            && bytes.iter().all(|&byte| plain(byte) || byte == b'-');
        if well_formed { Ok(Self(text.to_owned())) } else { Err(IdError::Tenant) }
    }
}

impl TryFrom<String> for Tenant {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({})", self.0)
    }
}

/// What operators call an identity, for people alone: nothing is decided by it. Plain characters, so that no name looks
/// like another or drives a terminal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Longest name, in bytes.
    pub const MAX: usize = 64;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        let words = text.split(' ').all(|word| !word.is_empty() && word.bytes().all(plain));
        if words && text.len() <= Self::MAX { Ok(Self(text.to_owned())) } else { Err(IdError::Name) }
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_refuse_everything_else() {
        let lease = LeaseId::random();
        assert_eq!(lease.to_string().parse::<LeaseId>(), Ok(lease));
        assert!(matches!("12".parse::<LeaseId>(), Err(IdError::Length { got: 2, .. })));
        assert!(matches!("zz".repeat(16).parse::<LeaseId>(), Err(IdError::Digit { .. })));
        assert!("é".repeat(16).parse::<LeaseId>().is_err());
    }

    #[test]
    fn tenants_are_short_plain_names() {
        for good in ["a", "team-7", "0x", &"a".repeat(32)] {
            assert!(good.parse::<Tenant>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a b", "a/b", "ä", &"a".repeat(33)] {
            assert_eq!(bad.parse::<Tenant>(), Err(IdError::Tenant), "{bad}");
        }
    }

    #[test]
    fn names_are_plain_words() {
        for good in ["a", "node 7", "alice@example.org", "R2-D2_x", &"a".repeat(64)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", " a", "a ", "a  b", "a\tb", "\u{202e}a", "ä", "a\u{1b}[31m", &"a".repeat(65)] {
            assert_eq!(bad.parse::<Name>(), Err(IdError::Name), "{bad}");
        }
    }
}
