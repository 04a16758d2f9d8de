//! Messages as frames on a stream.
//!
//! ```text
//! frame   = length (u16, big-endian) ‖ sealed
//! sealed  = Noise transport message over: more (1 byte: 1, or 0 in the last frame of a message) ‖ 1 to 65,518 bytes
//! message = 1 to 17 frames; all but the last are full; at most 1 MiB together
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ChannelError;
use crate::handshake::{ReceiveKey, SendKey, TransportError};

/// Bytes of the longest message.
pub(super) const MESSAGE_MAX: usize = 1 << 20;
/// Bytes of a frame's length.
const HEADER_LEN: usize = 2;
const TAG_LEN: usize = 16;
/// Bytes of a message in a full frame.
const CHUNK_MAX: usize = u16::MAX as usize - TAG_LEN - 1;
/// Bytes after the length in the shortest frame.
const SEALED_MIN: usize = 1 + 1 + TAG_LEN;
/// Room is made for this many bytes at a time, as they arrive, whatever length a frame claims.
const READ_STEP: usize = 4096;

/// The sending half.
pub(super) struct Sender {
    key: SendKey,
    frame: Vec<u8>,
    dead: bool,
}

impl Sender {
    pub(super) fn new(key: SendKey) -> Self {
        Self { key, frame: Vec::new(), dead: false }
    }

    /// Sends one message of 1 byte to 1 MiB. After an error, or when this was not awaited to its end, the sender is dead:
    /// part of the message may be on its way.
    pub(super) async fn send<W: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut W,
        message: &[u8],
    ) -> Result<(), ChannelError> {
        if message.is_empty() || message.len() > MESSAGE_MAX {
            return Err(ChannelError::TooLong { bytes: message.len() });
        }
        if std::mem::replace(&mut self.dead, true) {
            return Err(ChannelError::Unusable);
        }
        let mut chunks = message.chunks(CHUNK_MAX).peekable();
        let mut plaintext = Vec::with_capacity(1 + message.len().min(CHUNK_MAX));
        while let Some(chunk) = chunks.next() {
            plaintext.clear();
            plaintext.push(u8::from(chunks.peek().is_some()));
            plaintext.extend_from_slice(chunk);
            self.frame.clear();
            self.frame.extend_from_slice(&((plaintext.len() + TAG_LEN) as u16).to_be_bytes());
            self.key.seal(&plaintext, &mut self.frame).map_err(transport)?;
            stream.write_all(&self.frame).await.map_err(ChannelError::io)?;
        }
        stream.flush().await.map_err(ChannelError::io)?;
        self.dead = false;
        Ok(())
    }
}

/// The receiving half.
pub(super) struct Receiver {
    key: ReceiveKey,
    /// The frame that is coming in, its length included, as far as it is here.
    frame: Vec<u8>,
    /// The message that is coming in, as far as it is here.
    message: Vec<u8>,
    plaintext: Vec<u8>,
    /// Bytes of the longest message that is taken, at most [`MESSAGE_MAX`].
    pub(super) longest: Arc<AtomicUsize>,
    dead: bool,
}

impl Receiver {
    pub(super) fn new(key: ReceiveKey) -> Self {
        let longest = Arc::new(AtomicUsize::new(MESSAGE_MAX));
        Self { key, frame: Vec::new(), message: Vec::new(), plaintext: Vec::new(), longest, dead: false }
    }

    /// The next message. Dropping the future loses nothing; after an error the receiver is dead.
    pub(super) async fn receive<R: AsyncRead + Unpin>(&mut self, stream: &mut R) -> Result<Vec<u8>, ChannelError> {
        if self.dead {
            return Err(ChannelError::Unusable);
        }
        let result = self.try_receive(stream).await;
        self.dead = result.is_err();
        result
    }

    async fn try_receive<R: AsyncRead + Unpin>(&mut self, stream: &mut R) -> Result<Vec<u8>, ChannelError> {
        loop {
            self.fill(stream).await?;
            self.key.open(&self.frame[HEADER_LEN..], &mut self.plaintext).map_err(transport)?;
            self.frame.clear();
            let (more, chunk) = match self.plaintext.split_first() {
                Some((0, chunk)) => (false, chunk),
                Some((1, chunk)) if chunk.len() == CHUNK_MAX => (true, chunk),
                _ => return Err(ChannelError::Malformed("a frame with a wrong beginning".into())),
            };
            let longest = self.longest.load(Ordering::Relaxed).min(MESSAGE_MAX);
            if self.message.len() + chunk.len() > longest {
                return Err(ChannelError::Malformed(format!(
                    "a message longer than the {longest} bytes that it may have"
                )));
            }
            self.message.extend_from_slice(chunk);
            if !more {
                return Ok(std::mem::take(&mut self.message));
            }
        }
    }

    /// Reads until the frame is whole, and not a byte more.
    async fn fill<R: AsyncRead + Unpin>(&mut self, stream: &mut R) -> Result<(), ChannelError> {
        loop {
            let wanted = match self.frame.first_chunk::<HEADER_LEN>() {
                None => HEADER_LEN,
                Some(length) => match usize::from(u16::from_be_bytes(*length)) {
                    length @ SEALED_MIN.. => HEADER_LEN + length,
                    _ => return Err(ChannelError::Malformed("a frame too short to hold anything".into())),
                },
            };
            let missing = wanted - self.frame.len();
            if missing == 0 {
                return Ok(());
            }
            self.frame.reserve(missing.min(READ_STEP));
            let read = stream.take(missing as u64).read_buf(&mut self.frame).await.map_err(ChannelError::io)?;
            if read == 0 {
                let between = self.frame.is_empty() && self.message.is_empty();
                return Err(if between { ChannelError::Closed } else { cut_off() });
            }
        }
    }
}

/// Writes one handshake message.
pub(super) async fn write_handshake<W: AsyncWrite + Unpin>(stream: &mut W, message: &[u8]) -> Result<(), ChannelError> {
    let mut frame = Vec::with_capacity(HEADER_LEN + message.len());
    frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
    frame.extend_from_slice(message);
    stream.write_all(&frame).await.map_err(ChannelError::io)?;
    stream.flush().await.map_err(ChannelError::io)
}

/// Reads handshake message `number`, which has one length only: any other is refused before it is read.
pub(super) async fn read_handshake<R: AsyncRead + Unpin>(
    stream: &mut R,
    number: u8,
    expected: usize,
) -> Result<Vec<u8>, ChannelError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ChannelError::HandshakeClosed { message: number },
        _ => ChannelError::io(error),
    };
    let got = usize::from(stream.read_u16().await.map_err(failed)?);
    if got != expected {
        return Err(crate::handshake::HandshakeError::Length { message: number, expected, got }.into());
    }
    let mut message = vec![0; expected];
    stream.read_exact(&mut message).await.map_err(failed)?;
    Ok(message)
}

fn transport(error: TransportError) -> ChannelError {
    match error {
        TransportError::Unreadable => ChannelError::Unreadable,
        TransportError::Exhausted => ChannelError::Exhausted,
    }
}

fn cut_off() -> ChannelError {
    ChannelError::io(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended in the middle of a message"))
}

#[cfg(test)]
mod tests;
