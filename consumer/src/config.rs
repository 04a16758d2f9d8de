//! Where things are: the auth daemon, the identity, the pins, the lease files.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overbank_fabric::ids::Fingerprint;

/// Port of the auth daemon where an address names none.
pub const DEFAULT_PORT: u16 = 7471;
/// Address of the auth daemon where none is given.
pub const DEFAULT_AUTHD: &str = "127.0.0.1:7471";
/// How long a request may take.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not an address.
    #[error("'{0}' is no address of an auth daemon: write HOST or HOST:PORT, such as 127.0.0.1:7471 or [::1]:7471")]
    Address(String),
    /// Nowhere to keep an identity.
    #[error("neither --home, OVERBANK_HOME, XDG_CONFIG_HOME nor HOME says where your identity is kept")]
    NoHome,
}

/// Everything that [`crate::Client::connect`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    authd: String,
    home: PathBuf,
    leases: PathBuf,
    /// The auth daemon's fingerprint, where it came by a way that is trusted: its key is then not taken on trust.
    pub authd_fingerprint: Option<Fingerprint>,
    /// How long a request may take, from the call to its return. 5 s by default.
    pub deadline: Duration,
}

impl Config {
    /// `authd` is HOST or HOST:PORT; `home` holds the identity and the pins. Lease files go to
    /// `$XDG_RUNTIME_DIR/overbank`, which is in memory and goes away at log-out, else to `leases` in `home`.
    ///
    /// # Errors
    /// [`ConfigError::Address`].
    pub fn new(authd: &str, home: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let home = home.into();
        let leases = match absolute("XDG_RUNTIME_DIR") {
            Some(runtime) => runtime.join("overbank"),
            None => home.join("leases"),
        };
        let authd = address(authd).ok_or_else(|| ConfigError::Address(authd.to_owned()))?;
        Ok(Self { authd, home, leases, authd_fingerprint: None, deadline: DEFAULT_DEADLINE })
    }

    /// From OVERBANK_AUTHD and OVERBANK_HOME, with the defaults of the command.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_env() -> Result<Self, ConfigError> {
        let authd = match env::var("OVERBANK_AUTHD") {
            Ok(authd) => authd,
            Err(env::VarError::NotPresent) => DEFAULT_AUTHD.to_owned(),
            Err(env::VarError::NotUnicode(text)) => {
                return Err(ConfigError::Address(text.to_string_lossy().into_owned()));
            }
        };
        Self::new(&authd, Self::default_home()?)
    }

    /// OVERBANK_HOME, else `overbank` in XDG_CONFIG_HOME, else `~/.config/overbank`.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`].
    pub fn default_home() -> Result<PathBuf, ConfigError> {
        if let Some(home) = env::var_os("OVERBANK_HOME").filter(|home| !home.is_empty()) {
            return Ok(home.into());
        }
        absolute("XDG_CONFIG_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".config")))
            .map(|config| config.join("overbank"))
            .ok_or(ConfigError::NoHome)
    }

    /// The same, with its lease files in another directory.
    #[must_use]
    pub fn with_leases(mut self, leases: impl Into<PathBuf>) -> Self {
        self.leases = leases.into();
        self
    }

    /// HOST:PORT of the auth daemon.
    #[must_use]
    pub fn authd(&self) -> &str {
        &self.authd
    }

    /// Holds the identity and the pins.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Holds the lease files.
    #[must_use]
    pub fn leases(&self) -> &Path {
        &self.leases
    }

    /// Whether lease keys end up in the home, for want of XDG_RUNTIME_DIR: homes are often on a disk, or on another
    /// machine's.
    #[must_use]
    pub fn leases_are_in_home(&self) -> bool {
        self.leases.starts_with(&self.home)
    }

    /// The file of the identity.
    #[must_use]
    pub fn identity_path(&self) -> PathBuf {
        self.home.join("identity.key")
    }

    /// The file of the pins.
    #[must_use]
    pub fn pins_path(&self) -> PathBuf {
        self.home.join("known_authds")
    }
}

/// The value of a variable that names an absolute path (others are to be ignored, says the XDG specification).
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// HOST:PORT from `HOST`, `HOST:PORT`, `ADDRESS` or `[ADDRESS]:PORT`.
fn address(text: &str) -> Option<String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (format!("[{host}]"), rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some("?") }))
    } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
        (format!("[{text}]"), None)
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
            return None;
        }
        (host.to_ascii_lowercase(), port)
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok().filter(|&port| port != 0)?,
        Some(_) => return None,
    };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, read) in [
            ("127.0.0.1", "127.0.0.1:7471"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("Head-1.example", "head-1.example:7471"),
            ("::1", "[::1]:7471"),
            ("[::1]", "[::1]:7471"),
            ("[fe80::1]:65535", "[fe80::1]:65535"),
        ] {
            assert_eq!(address(text).as_deref(), Some(read), "{text}");
        }
        for text in ["", ":", ":80", "a:", "a:0", "a:65536", "a:+1", "a b", "a:1:2", "[::1", "[::1]80", "[x]:1", "a/b"]
        {
            assert_eq!(address(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_address_that_is_read_is_read_again_and_fits_a_line(text in ".{0,40}") {
            if let Some(read) = address(&text) {
                prop_assert!(!read.contains(char::is_whitespace));
                prop_assert_eq!(address(&read), Some(read.clone()));
            }
        }
    }
}
