//! Which set-up a measurement goes to, where it does not start its own.

use std::path::PathBuf;

use overbank::{Config, DEFAULT_AUTHD};

use crate::error::BenchError;

/// An auth daemon that is there already.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Existing {
    /// The auth daemon of an existing set-up, HOST or HOST:PORT [default: as the command overbank]
    #[arg(long, value_name = "ADDR")]
    authd: Option<String>,
    /// Holds the identity and the pinned keys [default: as the command overbank]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
}

impl Existing {
    /// Where the command overbank would connect, but for what is said here.
    pub(crate) fn config(&self) -> Result<Config, BenchError> {
        let config = match (&self.authd, &self.home) {
            (None, None) => Config::from_env(),
            (authd, home) => {
                let authd = authd.clone().or_else(|| std::env::var("OVERBANK_AUTHD").ok());
                let home = home.clone().map_or_else(Config::default_home, Ok);
                home.and_then(|home| Config::new(authd.as_deref().unwrap_or(DEFAULT_AUTHD), home))
            }
        };
        Ok(config.map_err(overbank::Error::from)?)
    }
}
