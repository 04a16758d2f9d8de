//! What `overbank run` asks for, by environment variables.

use std::ffi::OsString;
use std::path::PathBuf;

/// Allocations and mappings of this many bytes go to the pool: where the C library begins to map each by itself.
pub(crate) const DEFAULT_THRESHOLD: usize = 128 << 10;
/// The least that it can be: a page in the pool costs more than one elsewhere.
const LEAST_THRESHOLD: usize = 4 << 10;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// OVERBANK_RUN_REMOTE: bytes of the pool.
    pub(crate) remote: usize,
    /// OVERBANK_RUN_LOCAL: bytes of it that this machine's memory holds at a time.
    pub(crate) local: usize,
    /// OVERBANK_RUN_THRESHOLD.
    pub(crate) threshold: usize,
    /// The lease that the pool is kept in; without it all of it is this machine's own.
    pub(crate) lease: Option<LeaseSettings>,
    /// OVERBANK_RUN_LOCK: a file that the one process that has the pool keeps locked.
    pub(crate) lock: Option<PathBuf>,
    /// OVERBANK_RUN_STATISTICS: a file to which a process that had the pool adds a line of JSON when it ends.
    pub(crate) statistics: Option<PathBuf>,
    /// OVERBANK_RUN_SPILL: what finds no room in the pool goes elsewhere, instead of failing.
    pub(crate) spill: bool,
    /// OVERBANK_RUN_VERBOSE: say also what is no failure.
    pub(crate) verbose: bool,
}

/// Where the lease is, and how it is reached; what is not said is as for the command `overbank`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseSettings {
    /// OVERBANK_RUN_LEASE.
    pub(crate) id: String,
    /// OVERBANK_RUN_LEASES: the directory of its file.
    pub(crate) leases: Option<PathBuf>,
    /// OVERBANK_RUN_HOME: that of the identity and the pinned keys.
    pub(crate) home: Option<PathBuf>,
    /// OVERBANK_RUN_AUTHD.
    pub(crate) authd: Option<String>,
    /// OVERBANK_RUN_PAGE: bytes that come and go together.
    pub(crate) page: Option<u32>,
    /// OVERBANK_RUN_DEVICE.
    pub(crate) device: Option<String>,
    /// OVERBANK_RUN_ADDRESS: ours, as the provider is to see it.
    pub(crate) address: Option<String>,
}

impl Settings {
    /// None where nothing is asked for. An error is what to say of it.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, String> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let bytes = |name: &str| match variable(name) {
            None => Ok(None),
            Some(value) => value.to_str().and_then(|text| text.parse::<usize>().ok()).map(Some).ok_or_else(|| {
                let value = value.to_string_lossy();
                format!("{name}={value} is no number of bytes, so all memory is local; `overbank run` sets it")
            }),
        };
        let Some(remote) = bytes("OVERBANK_RUN_REMOTE")? else { return Ok(None) };
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let lease = match text("OVERBANK_RUN_LEASE") {
            None => None,
            Some(id) => Some(LeaseSettings {
                id,
                leases: variable("OVERBANK_RUN_LEASES").map(PathBuf::from),
                home: variable("OVERBANK_RUN_HOME").map(PathBuf::from),
                authd: text("OVERBANK_RUN_AUTHD"),
                page: bytes("OVERBANK_RUN_PAGE")?.and_then(|page| u32::try_from(page).ok()),
                device: text("OVERBANK_RUN_DEVICE"),
                address: text("OVERBANK_RUN_ADDRESS"),
            }),
        };
        Ok(Some(Self {
            remote,
            local: bytes("OVERBANK_RUN_LOCAL")?.unwrap_or(remote),
            threshold: bytes("OVERBANK_RUN_THRESHOLD")?.unwrap_or(DEFAULT_THRESHOLD).max(LEAST_THRESHOLD),
            lease,
            lock: variable("OVERBANK_RUN_LOCK").map(PathBuf::from),
            statistics: variable("OVERBANK_RUN_STATISTICS").map(PathBuf::from),
            spill: variable("OVERBANK_RUN_SPILL").is_some(),
            verbose: variable("OVERBANK_RUN_VERBOSE").is_some(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::read(|name| pairs.iter().find(|(given, _)| *given == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        assert_eq!(read(&[("OVERBANK_RUN_LOCAL", "5")]), Ok(None));
        let plain = read(&[("OVERBANK_RUN_REMOTE", "1000000")]).expect("sound").expect("asked for");
        assert_eq!((plain.remote, plain.local, plain.threshold), (1_000_000, 1_000_000, DEFAULT_THRESHOLD));
        assert!(plain.lock.is_none() && plain.statistics.is_none() && !plain.spill && !plain.verbose);
        let all = [("OVERBANK_RUN_REMOTE", "9"), ("OVERBANK_RUN_THRESHOLD", "1"), ("OVERBANK_RUN_SPILL", "1")];
        let all = read(&all).expect("sound").expect("asked for");
        assert!(all.threshold == LEAST_THRESHOLD && all.spill);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for value in ["-1", "1G", "x"] {
            let said = read(&[("OVERBANK_RUN_REMOTE", value)]).expect_err("no number");
            assert!(said.contains(&format!("OVERBANK_RUN_REMOTE={value}")), "{said}");
        }
    }
}
