//! Messages over any stream: generic over tokio's AsyncRead + AsyncWrite. No clock: callers wrap calls in a timeout
//! and drop the channel when it elapses.
#![allow(missing_docs, clippy::unimplemented, unused_variables)]
use crate::handshake::{HandshakeError, Party, Peer};
use crate::identity::{Identity, PublicKey};
use crate::ids::CorrelationId;
use crate::message::{Call, Message, Refusal, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite};

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("stub")]
    Stub,
}
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The other side answered with a refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The session is over; the message says why.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// An authenticated, encrypted session of messages.
pub struct Channel<S> {
    stream: S,
}

/// `check` sees the proven peer before anything secret is sent (pinning); its error comes back boxed inside ChannelError.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    me: &Identity,
    party: Party,
    check: impl FnOnce(&PublicKey) -> Result<(), String>,
) -> Result<(Channel<S>, Peer), ChannelError> {
    unimplemented!()
}
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    me: &Identity,
) -> Result<(Channel<S>, Peer), ChannelError> {
    unimplemented!()
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    pub async fn send(&mut self, message: &Message) -> Result<(), ChannelError> {
        unimplemented!()
    }
    pub async fn receive(&mut self) -> Result<Message, ChannelError> {
        unimplemented!()
    }
    /// One question and its answer on a session that nothing else uses.
    pub async fn call(&mut self, correlation: CorrelationId, deadline_ms: u32, call: Call) -> Result<Reply, CallError> {
        unimplemented!()
    }
    /// For sessions in which both ends ask and many requests are open at once: `driver` must be polled (spawned) for
    /// anything to happen; it ends when the session does. At most `in_flight` requests are open in each direction.
    pub fn multiplex(self, in_flight: usize) -> (Caller, Incoming, impl Future<Output = ChannelError> + use<S>) {
        (unimplemented!(), unimplemented!(), async { ChannelError::Stub })
    }
}
/// Asks.
#[derive(Clone)]
pub struct Caller;
impl Caller {
    pub async fn call(&self, correlation: CorrelationId, deadline_ms: u32, call: Call) -> Result<Reply, CallError> {
        unimplemented!()
    }
}
/// Requests of the other side, in order of arrival.
pub struct Incoming;
impl Incoming {
    /// None when the session is over.
    pub async fn next(&mut self) -> Option<(Request, Answer)> {
        unimplemented!()
    }
}
/// Answers one request; dropping it answers `Internal`.
pub struct Answer;
impl Answer {
    pub async fn send(self, outcome: Result<Reply, Refusal>) {
        unimplemented!()
    }
}
