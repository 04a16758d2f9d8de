//! Messages over any stream: an authenticated, encrypted session between two parties.
//!
//! Generic over tokio's `AsyncRead` and `AsyncWrite`. There is no clock here: callers wrap calls in a timeout, and drop
//! the channel when it elapses. An error ends the session for good, but for [`ChannelError::TooLong`].

mod frame;
mod multiplex;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::handshake::{self, HandshakeError, Keys, MESSAGE_1_LEN, MESSAGE_2_LEN, MESSAGE_3_LEN, Party, Peer};
use crate::identity::{Identity, PublicKey};
use crate::ids::CorrelationId;
use crate::message::{Call, Message, Refusal, Reply, Request, VERSION};
use crate::signed::{from_cbor, to_cbor};

pub use multiplex::{Answer, Bounds, Caller, Incoming};

/// Why there is no session, or no more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelError {
    /// The other side did not prove who it is.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The other side proved who it is, and `check` refused it. The text is the one that `check` gave.
    #[error("{0}")]
    PeerRefused(String),
    /// The other side closed the connection in mid-handshake. It does not say why before it knows who asks.
    #[error(
        "the other side closed the connection instead of sending handshake message {message}: it speaks another version of the protocol (this is version {VERSION}), or takes no more connections now"
    )]
    HandshakeClosed {
        /// The message that was awaited, 1 to 3.
        message: u8,
    },
    /// The other side closed the connection, between two messages.
    #[error("the other side closed the session")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[source] Arc<std::io::Error>),
    /// A record that does not open: changed, repeated, lost or exchanged on its way.
    #[error("a record of the session does not open: somebody changed, repeated or dropped one on its way")]
    Unreadable,
    /// Not what the protocol allows. It is proven to come from the other side, but for a frame's length.
    #[error("the other side sent {0}, which its version of the protocol should not do")]
    Malformed(String),
    /// An answer to what was not asked, or a request id used twice: the other side's defect.
    #[error("the other side broke the protocol: {0}")]
    Protocol(&'static str),
    /// Our own message. Nothing was sent, and the session goes on.
    #[error("a message of {bytes} bytes does not fit: the longest is 1 MiB")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// As many records as one session may have.
    #[error("the session has sent as much as its keys may: connect again")]
    Exhausted,
    /// Something failed earlier, or a call, or the driver, was dropped before its end.
    #[error("the session was given up on this side, where a call failed or was cut off: connect again")]
    Unusable,
}

impl ChannelError {
    fn io(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a call was not answered as hoped.
#[derive(Debug, Clone, thiserror::Error)]
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
    sender: frame::Sender,
    receiver: frame::Receiver,
    next_id: u64,
    calling: bool,
}

/// Opens a session as `party`, which is a provider or a client. `check` sees who answered, proven, before anything is said
/// about who asks: there a pinned key is compared. Its error comes back as [`ChannelError::PeerRefused`].
///
/// That the other side accepts *this* end shows only in its first answer.
///
/// # Errors
/// [`ChannelError`]. The stream is dropped with it, as it is when this is not awaited to its end.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    me: &Identity,
    party: Party,
    check: impl FnOnce(&PublicKey) -> Result<(), String>,
) -> Result<(Channel<S>, Peer), ChannelError> {
    let (message, started) = handshake::start(party)?;
    frame::write_handshake(&mut stream, &message).await?;
    let message = frame::read_handshake(&mut stream, 2, MESSAGE_2_LEN).await?;
    let (peer, answered) = started.read(&message)?;
    check(&peer.key).map_err(ChannelError::PeerRefused)?;
    let (message, keys) = answered.finish(me)?;
    frame::write_handshake(&mut stream, &message).await?;
    Ok((Channel::new(stream, keys), peer))
}

/// Where the arithmetic of a handshake is done. It takes half a millisecond or more: somewhere where nobody waits for it
/// who is not a stranger too.
pub trait Workplace {
    /// Does `work` there. None: nothing is done there any more.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send;
}

/// Answers a session as the auth daemon. Whether the peer is trusted is the caller's to decide.
///
/// # Errors
/// [`ChannelError`]. The stream is dropped with it, as it is when this is not awaited to its end.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    me: &Identity,
) -> Result<(Channel<S>, Peer), ChannelError> {
    let message = frame::read_handshake(&mut stream, 1, MESSAGE_1_LEN).await?;
    let (message, responding) = handshake::respond(me, &message)?;
    frame::write_handshake(&mut stream, &message).await?;
    let message = frame::read_handshake(&mut stream, 3, MESSAGE_3_LEN).await?;
    let (peer, keys) = responding.read(&message)?;
    Ok((Channel::new(stream, keys), peer))
}

/// Does what [`accept`] does, its arithmetic at `place`.
///
/// # Errors
/// As there; [`ChannelError::Unusable`] where nothing is done at that place any more.
pub async fn accept_at<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    me: &Arc<Identity>,
    place: &impl Workplace,
) -> Result<(Channel<S>, Peer), ChannelError> {
    let message = frame::read_handshake(&mut stream, 1, MESSAGE_1_LEN).await?;
    let me = Arc::clone(me);
    let responded = place.run(move || handshake::respond(&me, &message)).await;
    let (message, responding) = responded.ok_or(ChannelError::Unusable)??;
    frame::write_handshake(&mut stream, &message).await?;
    let message = frame::read_handshake(&mut stream, 3, MESSAGE_3_LEN).await?;
    let read = place.run(move || responding.read(&message)).await;
    let (peer, keys) = read.ok_or(ChannelError::Unusable)??;
    Ok((Channel::new(stream, keys), peer))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    fn new(stream: S, keys: Keys) -> Self {
        let (sender, receiver) = (frame::Sender::new(keys.send), frame::Receiver::new(keys.receive));
        Self { stream, sender, receiver, next_id: 0, calling: false }
    }

    /// Sends one message. Not cancel-safe: when the future is dropped before its end, the channel sends no more.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn send(&mut self, message: &Message) -> Result<(), ChannelError> {
        self.sender.send(&mut self.stream, &to_cbor(message)).await
    }

    /// The next message. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn receive(&mut self) -> Result<Message, ChannelError> {
        decode(&self.receiver.receive(&mut self.stream).await?)
    }

    /// One question and its answer, on a session that nothing else uses. Not cancel-safe: when the future is dropped
    /// before its end, the channel answers no more calls.
    ///
    /// # Errors
    /// [`CallError`]. After a refusal the session goes on.
    pub async fn call(&mut self, correlation: CorrelationId, deadline_ms: u32, call: Call) -> Result<Reply, CallError> {
        if std::mem::replace(&mut self.calling, true) {
            return Err(ChannelError::Unusable.into());
        }
        let id = self.next_id;
        self.next_id += 1;
        let sent = self.send(&Message::Request(Request { id, correlation, deadline_ms, call })).await;
        if let Err(ChannelError::TooLong { .. }) = sent {
            self.calling = false;
        }
        sent?;
        match self.receive().await? {
            Message::Response(response) if response.id == id => {
                self.calling = false;
                Ok(response.outcome?)
            }
            Message::Response(_) => Err(ChannelError::Protocol("it answered a request that nobody made").into()),
            Message::Request(_) => Err(ChannelError::Protocol("it asked where it should answer").into()),
        }
    }

    /// For sessions in which both ends ask and many requests are open at once. The future is the session's driver: it
    /// must be polled (spawned) for anything to happen, and ends when the session does, with the reason. The session ends
    /// when the connection or the other side fails, or when the caller with its clones, the incoming and all answers
    /// have been dropped. Dropping the driver ends it too.
    ///
    /// At most `in_flight` requests (1 to 65,536) are open in each direction. Of the other side's, which may also have no
    /// more than 4 MiB together, each one beyond is answered [`Busy`](crate::message::RefusalCode::Busy); one's own calls
    /// wait their turn.
    pub fn multiplex(self, in_flight: usize) -> (Caller, Incoming, impl Future<Output = ChannelError> + use<S>) {
        multiplex::multiplex(self, in_flight, Bounds::default())
    }

    /// The same, within narrower bounds, until [`Incoming::widen`]. A longer message ends the session.
    pub fn multiplex_within(
        self,
        in_flight: usize,
        bounds: Bounds,
    ) -> (Caller, Incoming, impl Future<Output = ChannelError> + use<S>) {
        multiplex::multiplex(self, in_flight, bounds)
    }
}

fn decode(message: &[u8]) -> Result<Message, ChannelError> {
    from_cbor(message).map_err(|error| ChannelError::Malformed(error.to_string()))
}
