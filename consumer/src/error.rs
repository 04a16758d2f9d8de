//! Everything that can go wrong for a borrower, by whose fault it is and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use overbank_fabric::approval::Proposal;
use overbank_fabric::ids::{CorrelationId, Fingerprint, LeaseId};
use overbank_fabric::keyfile::KeyFileError;
use overbank_fabric::message::{Refusal, RefusalCode};
use overbank_fabric::units::{Size, show_duration};
use overbank_paging::PagingError;
use overbank_verbs::VerbsError;

use crate::attach::MAX_LANES;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::lease_file::LeaseFileError;
use crate::pins::PinsError;
use crate::sharing::SharingError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The auth daemon does not answer, or the session with it broke and could not be made anew.
    #[error(
        "cannot reach the auth daemon at {authd}: {cause}. Is `overbank-authd serve` running there, and is the address right?"
    )]
    AuthdUnreachable {
        /// HOST:PORT.
        authd: String,
        /// What the system or the session said.
        cause: String,
    },
    /// Another key than the one that is pinned, or that an invitation names: nothing was sent to it.
    #[error(
        "the auth daemon at {authd} has the key {got}, but {} says {expected}. Somebody may be in between. If its operator \
         confirms the new key, {} and try again",
        expected_by.says(), expected_by.way_out()
    )]
    AuthdKeyChanged {
        /// HOST:PORT.
        authd: String,
        /// The key that it should have.
        expected: Fingerprint,
        /// The key that it has.
        got: Fingerprint,
        /// Where the expectation comes from.
        expected_by: ExpectedBy,
    },
    /// The auth daemon does not trust this identity, or not for this.
    #[error("{0}")]
    NotTrusted(Refusal),
    /// The pool is full, or the tenant's quota used up.
    #[error("{0}")]
    NoRoom(Refusal),
    /// The lease has expired, was released, revoked or stopped, or never was.
    #[error("{}{why}", of(lease))]
    LeaseOver {
        /// Which.
        lease: Option<LeaseId>,
        /// Which of these.
        why: String,
    },
    /// The lease's provider died, restarted or is away. What was in it is gone in the first two cases.
    #[error("{}{why}", of(lease))]
    LeaseLost {
        /// Which.
        lease: Option<LeaseId>,
        /// Which of these.
        why: String,
    },
    /// Refused for another reason.
    #[error("{refusal} ({}, correlation id {correlation})", code(.refusal.code))]
    Refused {
        /// Why.
        refusal: Refusal,
        /// The request, in every party's log.
        correlation: CorrelationId,
    },
    /// It takes more operators. This one has approved.
    #[error(
        "nothing is done yet: this takes {} operators, and {} approved. Others see proposal {} with `overbank proposal list`",
        .0.needed, .0.approved.len(), .0.id
    )]
    Proposed(Box<Proposal>),
    /// Not done in time. It may have been done all the same.
    #[error("{what} took longer than its deadline of {}; it may be done all the same", show_duration(*deadline))]
    Deadline {
        /// What was asked for.
        what: &'static str,
        /// How long that was given.
        deadline: Duration,
    },
    /// A range that is not inside the lease. Nothing was read or written.
    #[error("{} at offset {offset} do not fit into a lease of {}", Size(*len), Size(*bytes))]
    DoesNotFit {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the lease.
        bytes: u64,
    },
    /// The identity's key file.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The file of pinned keys.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A lease's file.
    #[error(transparent)]
    LeaseFile(#[from] LeaseFileError),
    /// A lease that is shared with others, or by others.
    #[error(transparent)]
    Sharing(#[from] SharingError),
    /// A number of lanes that nobody can have.
    #[error("a lease is attached with 1 to {MAX_LANES} lanes, not with {asked}")]
    Lanes {
        /// How many were asked for.
        asked: usize,
    },
    /// The data path: contents that are not what was written, or a provider that does not answer.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Memory kept in a lease: what the system, or the region itself, makes of it.
    #[error(transparent)]
    Paging(Box<PagingError>),
    /// A lease that cannot be used as memory.
    #[error("the lease {lease} cannot be used as memory: {why}")]
    RegionOf {
        /// Which.
        lease: LeaseId,
        /// Why not.
        why: String,
    },
    /// The RDMA device.
    #[error(transparent)]
    Device(#[from] VerbsError),
    /// The auth daemon proved who it is, and answered what it may not.
    #[error("the auth daemon answered wrongly: {0}. It may be of another version, or hostile")]
    MisbehavingAuthd(String),
    /// The provider's word does not hold, or contradicts what was granted.
    #[error("the provider {provider} answered wrongly: {what}. Nothing was sent to it")]
    MisbehavingProvider {
        /// Which.
        provider: Fingerprint,
        /// How.
        what: String,
    },
}

/// Who said which key the auth daemon has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedBy {
    /// An earlier contact, written down in this file.
    Pin(PathBuf),
    /// [`crate::Config::authd_fingerprint`]: an invitation, or the caller.
    Caller,
    /// The session that was open before.
    Session,
}

impl ExpectedBy {
    fn says(&self) -> String {
        match self {
            Self::Pin(path) => path.display().to_string(),
            Self::Caller => "the invitation or the configuration".to_owned(),
            Self::Session => "the session that was open before".to_owned(),
        }
    }

    fn way_out(&self) -> String {
        match self {
            Self::Pin(path) => format!("remove the line from {}", path.display()),
            Self::Caller => "get a new invitation from it".to_owned(),
            Self::Session => "connect again".to_owned(),
        }
    }
}

/// The kinds, each with its number.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal,)*) => {
        /// What an error comes down to. Kinds are only ever added, and the number of each never changes: it is the exit status
        /// of the command, and the code in C.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum ErrorKind {
            $($(#[$doc])* $kind = $number,)*
        }

        impl ErrorKind {
            /// Every kind that there is: so that who gives each a code of his own can see that none is left out.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];
        }
    };
}

kinds! {
    /// None of the others.
    Other = 1,
    /// The request itself makes no sense.
    Usage = 2,
    /// The auth daemon cannot be reached.
    AuthdUnreachable = 3,
    /// This identity is not trusted, or not for this.
    NotTrusted = 4,
    /// The auth daemon has another key than it had.
    AuthdKeyChanged = 5,
    /// The pool is full or the quota used up.
    NoRoom = 6,
    /// It waits for more operators' approval.
    Proposed = 14,
    /// The lease is over.
    LeaseOver = 7,
    /// The lease's provider died or is away.
    LeaseLost = 8,
    /// What was in the lease did not come back as it was written.
    Contents = 9,
    /// More than the lease holds.
    DoesNotFit = 10,
    /// Not done in time.
    Deadline = 11,
    /// A local file.
    Local = 12,
    /// This machine's RDMA device: it has failed, its port is down, or it cannot be used.
    Device = 13,
}

impl Error {
    /// What it comes down to.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Lanes { .. } | Self::RegionOf { .. } => ErrorKind::Usage,
            Self::Paging(error) => paging_kind(error),
            Self::Sharing(error) => sharing_kind(error),
            Self::AuthdUnreachable { .. } => ErrorKind::AuthdUnreachable,
            Self::AuthdKeyChanged { .. } => ErrorKind::AuthdKeyChanged,
            Self::NotTrusted(_) => ErrorKind::NotTrusted,
            Self::NoRoom(_) => ErrorKind::NoRoom,
            Self::Proposed(_) => ErrorKind::Proposed,
            Self::LeaseOver { .. } => ErrorKind::LeaseOver,
            Self::LeaseLost { .. } => ErrorKind::LeaseLost,
            Self::Refused { refusal, .. } if refusal.code == RefusalCode::Invalid => ErrorKind::Usage,
            Self::Refused { refusal, .. } if refusal.code == RefusalCode::Deadline => ErrorKind::Deadline,
            Self::Deadline { .. } => ErrorKind::Deadline,
            Self::Data(error) => data_kind(error),
            Self::DoesNotFit { .. } => ErrorKind::DoesNotFit,
            Self::KeyFile(_) | Self::Pins(_) | Self::LeaseFile(_) => ErrorKind::Local,
            Self::Device(_) => ErrorKind::Device,
            Self::Refused { .. } | Self::MisbehavingAuthd(_) | Self::MisbehavingProvider { .. } => ErrorKind::Other,
        }
    }

    /// What the auth daemon's refusal of a request about `lease` means.
    pub(crate) fn refused(refusal: Refusal, lease: Option<LeaseId>, correlation: CorrelationId) -> Self {
        let refusal = Refusal { message: printable(&refusal.message), ..refusal };
        match refusal.code {
            RefusalCode::Pending | RefusalCode::Revoked | RefusalCode::Forbidden | RefusalCode::BadInvitation => {
                Self::NotTrusted(refusal)
            }
            RefusalCode::PoolFull | RefusalCode::Quota | RefusalCode::AuditFull => Self::NoRoom(refusal),
            RefusalCode::NoSuchLease | RefusalCode::LeaseEnded => Self::LeaseOver { lease, why: refusal.message },
            RefusalCode::LeaseLost | RefusalCode::ProviderAway => Self::LeaseLost { lease, why: refusal.message },
            RefusalCode::Invalid
            | RefusalCode::BadToken
            | RefusalCode::BadSignature
            | RefusalCode::NoSuchIdentity
            | RefusalCode::NoSuchProposal
            | RefusalCode::Deadline
            | RefusalCode::Busy
            | RefusalCode::Internal => Self::Refused { refusal, correlation },
        }
    }
}

fn sharing_kind(error: &SharingError) -> ErrorKind {
    match error {
        SharingError::NotBlocks { .. } | SharingError::TimeUnknown | SharingError::Own(_) => ErrorKind::Usage,
        SharingError::OutOfRange { .. } => ErrorKind::DoesNotFit,
        SharingError::ReadOnly | SharingError::NotHolder { .. } | SharingError::OtherSender { .. } => {
            ErrorKind::NotTrusted
        }
        SharingError::Over { .. } => ErrorKind::LeaseOver,
        SharingError::Bundle(_) | SharingError::OtherAuthd { .. } => ErrorKind::Local,
    }
}

fn paging_kind(error: &PagingError) -> ErrorKind {
    match error {
        PagingError::Page { .. } | PagingError::TooLittle { .. } | PagingError::Length { .. } => ErrorKind::Usage,
        PagingError::Range { .. } | PagingError::Held { .. } => ErrorKind::DoesNotFit,
        PagingError::Lost { .. } => ErrorKind::LeaseLost,
        PagingError::TooMany { .. }
        | PagingError::KernelFaultsForbidden
        | PagingError::Forbidden { .. }
        | PagingError::Unsupported { .. }
        | PagingError::Kernel { .. } => ErrorKind::Local,
    }
}

fn data_kind(error: &DataError) -> ErrorKind {
    match error {
        DataError::Range { .. } => ErrorKind::DoesNotFit,
        DataError::NotGranted { .. } => ErrorKind::NotTrusted,
        DataError::LeaseOver => ErrorKind::LeaseOver,
        DataError::Timeout => ErrorKind::Deadline,
        DataError::Refused { .. } | DataError::ProviderSilent | DataError::Detached => ErrorKind::LeaseLost,
        DataError::Device(_) | DataError::Status(_) => ErrorKind::Device,
        error if error.is_contents() => ErrorKind::Contents,
        _ => ErrorKind::Other,
    }
}

/// What another party wrote, fit for a terminal: no control characters, and not endless.
pub(crate) fn printable(text: &str) -> String {
    const MOST: usize = 2000;
    text.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn of(lease: &Option<LeaseId>) -> String {
    lease.map(|lease| format!("lease {lease}: ")).unwrap_or_default()
}

/// A refusal's code as it travels.
fn code(code: RefusalCode) -> String {
    serde_json::to_value(code).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_drive_a_terminal() {
        assert_eq!(printable("a\x1b[31m\r\nb\u{9b}é"), "a\u{fffd}[31m\u{fffd}\u{fffd}b\u{fffd}é");
        assert_eq!(printable(&"x".repeat(1 << 20)).len(), 2000);
    }
}
