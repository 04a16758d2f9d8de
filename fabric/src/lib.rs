//! What every party of Overbank shares: identities and ids, the handshake, the messages, grants and sealed blocks.
//!
//! Nothing here opens a socket, reads a clock or touches remote memory: bytes go in, bytes and decisions come
//! out. Those who talk (the auth daemon, the provider, the consumer) bring the stream and the deadline.
//!
//! | module | what it knows |
//! |---|---|
//! | [`ids`], [`time`], [`units`] | names and numbers that travel, and how people write them |
//! | [`identity`], [`keyfile`] | Ed25519 keys, fingerprints, and the 0600 file that holds one |
//! | [`handshake`], [`channel`] | how a TCP stream becomes an authenticated, encrypted session of messages |
//! | [`message`] | every request and reply, and how a refusal is said |
//! | [`signed`], [`token`], [`attach`], [`receipt`] | statements that outlive a session: grants, attaches, erasure receipts |
//! | [`share`] | a part of a lease for another identity, in a file |
//! | [`audit`] | the audit log: records in a chain, signed checkpoints, and checking them |
//! | [`succession`], [`approval`] | statements of identities about trust: who takes over from whom, what several operators agree on |
//! | [`block`] | sealing and opening of one block of a lease |
//! | `daemon` | what the daemons do to their own process (feature `daemon`) |
//! | [`labels`] | every domain-separation label, in one place |
//!
//! Each feature `danger-…` takes one defence away, for `scripts/attack-suite --without-defence`. None of them builds for release.
#![deny(unsafe_code)]

pub mod approval;
pub mod attach;
pub mod audit;
pub mod block;
pub mod channel;
#[cfg(test)]
mod count_tests;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod handshake;
pub mod identity;
pub mod ids;
pub mod keyfile;
pub mod labels;
pub mod message;
pub mod receipt;
pub mod share;
pub mod signed;
pub mod succession;
pub mod time;
pub mod token;
pub mod units;

mod fork;
mod wipe;

#[cfg(all(
    not(debug_assertions),
    any(
        feature = "danger-any-key",
        feature = "danger-any-record",
        feature = "danger-any-version",
        feature = "danger-go-on",
        feature = "danger-long-token",
        feature = "danger-no-block-tags",
        feature = "danger-no-fork-check",
        feature = "danger-no-handshake-tags",
        feature = "danger-no-kem",
        feature = "danger-no-position",
        feature = "danger-no-proof",
        feature = "danger-no-wipe",
        feature = "danger-unchained-log",
        feature = "danger-widened-token",
    )
))]
compile_error!("a feature danger-… takes a defence of overbank-fabric away: never in a release build");
