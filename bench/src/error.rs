//! Why there is no figure.

use std::io;
use std::time::Duration;

/// What a measurement or a look into memory can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// An operation of the operating system failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The other end of a measurement did not answer in time.
    #[error("{what} did not answer within {after:?}; is the machine overloaded?")]
    Silent {
        /// Which end.
        what: &'static str,
        /// After how long it was given up.
        after: Duration,
    },
    /// A process that the measurement started did not do its part.
    #[error("{program} {what}")]
    Child {
        /// Which program.
        program: String,
        /// What it did instead.
        what: String,
    },
    /// A figure could not be recorded or written.
    #[error("cannot record a figure: {0}")]
    Histogram(String),
    /// An argument that fits no measurement.
    #[error("{0}")]
    Usage(String),
    /// The library under test failed.
    #[error("the sealed path failed: {0}")]
    Overbank(#[from] overbank::Error),
    /// A block was not sealed or not opened, where nobody changed it.
    #[error("cannot seal or open a block: {0}")]
    Sealing(String),
    /// The device under test failed.
    #[error("the device failed: {0}")]
    Verbs(#[from] overbank_verbs::VerbsError),
    /// An operation under measurement did not succeed.
    #[error("a plain {op:?} ended as {status:?}")]
    Operation {
        /// Which.
        op: overbank_verbs::Op,
        /// How.
        status: overbank_verbs::WcStatus,
    },
    /// Memory does not hold what an operation under measurement should have brought there.
    #[error("a plain {op:?} succeeded, and its bytes are wrong")]
    Wrong {
        /// Which.
        op: overbank_verbs::Op,
    },
    /// A sealed read brought something else than what was written there last.
    #[error(
        "place {place} was read, and its part {part} is not what was written there last (write {times}): \
         it is {found}"
    )]
    Contents {
        /// Which place.
        place: u32,
        /// Which part of it.
        part: u32,
        /// How many times it was written.
        times: u64,
        /// What came.
        found: String,
    },
    /// The process may not be looked into.
    #[error("may not look into process {pid}: {source}; run as root, or as the process's user with ptrace rights")]
    NotAllowed {
        /// Which process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BenchError {
    /// 2 for a command line that fits nothing, 77 for a look that is not allowed (as test harnesses mark a skip), else 1.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NotAllowed { .. } => 77,
            _ => 1,
        }
    }

    /// For `map_err`: an I/O error and what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
