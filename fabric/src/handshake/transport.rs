//! The keys of a session, one for each direction, each with a counter of its own: what was lost, repeated or exchanged
//! on the way does not open.

use std::sync::Arc;

use snow::StatelessTransportState;

use super::{Noise, TAG_LEN};

/// Messages under one key. AES-GCM stays far from its limits (2^32 × 64 KiB is 2^44 blocks), and so does the counter.
const MESSAGES_MAX: u64 = 1 << 32;

/// Why a message was not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportError {
    /// Changed, cut, repeated, out of order, or not made with this key.
    Unreadable,
    /// The key has done its share.
    Exhausted,
}

/// Seals what goes out.
pub(crate) struct SendKey {
    state: Arc<StatelessTransportState>,
    counter: u64,
}

/// Opens what comes in. After the first failure it opens nothing more.
pub(crate) struct ReceiveKey {
    state: Arc<StatelessTransportState>,
    counter: u64,
    dead: bool,
}

/// Both keys of a finished handshake.
pub(super) fn keys(noise: Noise) -> (SendKey, ReceiveKey) {
    let state = Arc::new(noise.state.into_stateless_transport_mode().expect("all three messages are done"));
    (SendKey { state: Arc::clone(&state), counter: 0 }, ReceiveKey { state, counter: 0, dead: false })
}

impl SendKey {
    /// Appends the sealed message to `out`: 16 bytes longer than `plaintext`, which is at most 65,519 bytes.
    pub(crate) fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
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
    /// Opens the next message into `out`, which becomes 16 bytes shorter than `message`.
    pub(crate) fn open(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        let result = self.try_open(message, out);
        if result.is_err() {
            self.dead = true;
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
        self.state.read_message(self.counter, message, out).map_err(|_| TransportError::Unreadable)?;
        self.counter += 1;
        Ok(())
    }
}
