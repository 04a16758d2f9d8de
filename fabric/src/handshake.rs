//! Sans-IO handshake.
#![allow(missing_docs, clippy::unimplemented, unused_variables)]
use crate::identity::{Identity, PublicKey};

/// What kind of program is at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    Authd,
    Provider,
    Client,
}

/// Who is at the other end, proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub key: PublicKey,
    pub party: Party,
}

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("stub")]
    Stub,
}
