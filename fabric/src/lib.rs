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
//! | [`block`] | sealing and opening of one block of a lease |
//! | [`labels`] | every domain-separation label, in one place |
#![forbid(unsafe_code)]

#[cfg(all(not(debug_assertions), feature = "danger-widened-token"))]
compile_error!("danger-widened-token takes a defence away: never in a release build");

pub mod attach;
pub mod block;
pub mod channel;
pub mod handshake;
pub mod identity;
pub mod ids;
pub mod keyfile;
pub mod labels;
pub mod message;
pub mod receipt;
pub mod share;
pub mod signed;
pub mod time;
pub mod token;
pub mod units;
