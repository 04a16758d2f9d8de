//! snow's handshake with this suite, and what snow leaves undone: no state is used after a failure, every message has one
//! length, and secrets are wiped.

use snow::resolvers::BoxedCryptoResolver;
use snow::{Builder, HandshakeState, StatelessTransportState};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::kem::SharedSecret;
use super::resolver::Resolver;
use super::{HandshakeError, SUITE};

/// Bytes of an authentication tag.
pub(super) const TAG_LEN: usize = 16;
/// Bytes of an X25519 public key.
pub(super) const KEY_LEN: usize = 32;
/// Where the pattern mixes in the pre-shared key.
const PSK: usize = 3;

#[cfg(not(test))]
fn primitives() -> BoxedCryptoResolver {
    Box::new(Resolver)
}
#[cfg(test)]
use super::tests::primitives;

/// One end of one handshake, with a static key that is made for it.
pub(super) struct Noise {
    state: Box<HandshakeState>,
    /// The public half of its static key.
    pub(super) own_key: [u8; KEY_LEN],
}

impl Noise {
    pub(super) fn new(initiator: bool, prologue: &[u8]) -> Result<Self, HandshakeError> {
        Self::with(SUITE, primitives(), initiator, prologue)
    }

    /// With another suite or other primitives, as attackers have them.
    pub(super) fn with(
        suite: &str,
        resolver: BoxedCryptoResolver,
        initiator: bool,
        prologue: &[u8],
    ) -> Result<Self, HandshakeError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|_| HandshakeError::Random)?;
        let own_key = PublicKey::from(&StaticSecret::from(*secret)).to_bytes();
        let builder = Builder::with_resolver(suite.parse().expect("a suite"), resolver)
            .prologue(prologue)
            .and_then(|builder| builder.local_private_key(&*secret))
            .expect("each is set once");
        let state = if initiator { builder.build_initiator() } else { builder.build_responder() };
        Ok(Self { state: Box::new(state.expect("the suite's primitives are there")), own_key })
    }

    /// The next message, which is always `length` bytes.
    pub(super) fn write(&mut self, payload: &[u8], length: usize) -> Result<Vec<u8>, HandshakeError> {
        let mut message = vec![0; length];
        match self.state.write_message(payload, &mut message) {
            Ok(written) => {
                assert_eq!(written, length, "every message has one length");
                Ok(message)
            }
            Err(snow::Error::Dh) => Err(HandshakeError::X25519Key),
            Err(snow::Error::Rng) => Err(HandshakeError::Random),
            Err(error) => unreachable!("states are used in order: {error}"),
        }
    }

    /// The next message, as long as it turns out.
    #[cfg(test)]
    pub(super) fn write_any(&mut self, payload: &[u8], message: &mut [u8]) -> usize {
        self.state.write_message(payload, message).expect("there is room")
    }

    /// The payload of the next message, which is `number` and always `length` bytes.
    pub(super) fn read<const N: usize>(
        &mut self,
        number: u8,
        message: &[u8],
        length: usize,
    ) -> Result<[u8; N], HandshakeError> {
        if message.len() != length {
            return Err(HandshakeError::Length { message: number, expected: length, got: message.len() });
        }
        let mut payload = [0; N];
        match self.state.read_message(message, &mut payload) {
            Ok(read) => {
                assert_eq!(read, N, "every message has one length");
                Ok(payload)
            }
            Err(snow::Error::Dh) => Err(HandshakeError::X25519Key),
            Err(_) => Err(HandshakeError::Unreadable { message: number }),
        }
    }

    /// Hash over all that was said so far.
    pub(super) fn transcript(&self) -> [u8; 32] {
        self.state.get_handshake_hash().try_into().expect("SHA-256")
    }

    /// The peer's static key, once message 2 or 3 is read.
    pub(super) fn remote_key(&self) -> [u8; KEY_LEN] {
        self.state.get_remote_static().expect("messages 2 and 3 carry it").try_into().expect("X25519")
    }

    pub(super) fn set_psk(&mut self, secret: &SharedSecret) {
        let secret = if cfg!(feature = "danger-no-kem") { &[0; 32] } else { &**secret };
        self.state.set_psk(PSK, secret).expect("32 bytes at a place that the pattern has");
    }

    /// The keys that the finished handshake made.
    pub(super) fn into_transport(mut self) -> StatelessTransportState {
        let state = std::mem::replace(&mut *self.state, blank());
        state.into_stateless_transport_mode().expect("all three messages are done")
    }
}

impl Drop for Noise {
    /// snow wipes nothing, so other contents are put over its chaining key and its psk. The rest is the resolver's, and
    /// wipes itself.
    fn drop(&mut self) {
        let _ = self.state.set_psk(PSK, &[0; 32]);
        *self.state = blank();
    }
}

/// A handshake that knows no secret.
fn blank() -> HandshakeState {
    let suite = "Noise_NN_25519_AESGCM_SHA256".parse().expect("a suite");
    let mut state =
        Builder::with_resolver(suite, Box::new(Resolver)).build_initiator().expect("the primitives are there");
    // Written, so that no earlier contents of the stack are copied in its place.
    state.set_psk(PSK, &[0; 32]).expect("32 bytes");
    state
}
