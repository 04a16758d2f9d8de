//! How two parties prove who they are and agree on keys. Messages go in and come out; the stream is the caller's.
//!
//! Noise XXpsk3 over X25519, AES-256-GCM and SHA-256. The initiator is a provider or a client, the responder is the
//! auth daemon:
//!
//! ```text
//! start(party)            -> message 1: e, [ML-KEM-768 encapsulation key]
//! respond(message 1)      -> message 2: e, ee, s, es, [ML-KEM-768 ciphertext, the responder's proof]
//! Started::read(message 2)   -> who the responder is; the caller may refuse it here (pinning)
//! Answered::finish        -> message 3: s, se, psk, [the initiator's proof]
//! Responding::read(message 3) -> who the initiator is
//! ```
//! A proof is an Ed25519 signature over party ‖ suite ‖ version ‖ transcript so far ‖ the signer's Noise static key.
//! Noise static keys are made for one session and forgotten: who somebody is rests on Ed25519 alone. The psk is the
//! ML-KEM shared secret. It is mixed in last, so secrecy against quantum computers begins with the payload of message 3.
//!
//! ```
//! use overbank_fabric::handshake::{Party, respond, start};
//! use overbank_fabric::identity::Identity;
//!
//! let (client, authd) = (Identity::generate(), Identity::generate());
//! let (message_1, started) = start(Party::Client)?;
//! let (message_2, responding) = respond(&authd, &message_1)?;
//! let (server, answered) = started.read(&message_2)?;
//! assert_eq!(server.key, authd.public());
//! let (message_3, mut near) = answered.finish(&client)?;
//! let (peer, mut far) = responding.read(&message_3)?;
//! assert_eq!(peer.key, client.public());
//!
//! let (mut sealed, mut opened) = (Vec::new(), Vec::new());
//! near.send.seal(b"hello", &mut sealed)?;
//! far.receive.open(&sealed, &mut opened)?;
//! assert_eq!(opened, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every state is consumed by its step: a step out of order does not compile, and a failed handshake is over.
//!
//! ```compile_fail,E0382
//! use overbank_fabric::handshake::{Party, start};
//!
//! let (_, started) = start(Party::Client).unwrap();
//! assert!(started.read(b"a bad message").is_err());
//! assert!(started.read(b"a good one").is_ok());
//! ```

mod kem;
mod noise;
mod resolver;
#[cfg(test)]
mod tests;
mod transport;

use crate::identity::{Identity, IdentityError, PublicKey, Signature};
use crate::labels;
use crate::message::VERSION;
use crate::wipe::wiped;
use noise::{KEY_LEN as NOISE_KEY_LEN, Noise, TAG_LEN};

pub use transport::{Keys, ReceiveKey, SendKey, TransportError};

/// What Noise calls the suite.
const SUITE: &str = "Noise_XXpsk3_25519_AESGCM_SHA256";
/// What is added to it, for the proofs.
const SUITE_KEM: &str = "+ML-KEM-768";

/// Party, public key, signature.
const PROOF_LEN: usize = 1 + 32 + 64;

/// Bytes of message 1.
pub const MESSAGE_1_LEN: usize = NOISE_KEY_LEN + kem::KEY_LEN + TAG_LEN;
/// Bytes of message 2.
pub const MESSAGE_2_LEN: usize = 2 * NOISE_KEY_LEN + TAG_LEN + kem::CIPHERTEXT_LEN + PROOF_LEN + TAG_LEN;
/// Bytes of message 3.
pub const MESSAGE_3_LEN: usize = NOISE_KEY_LEN + TAG_LEN + PROOF_LEN + TAG_LEN;

/// What kind of program is at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// The auth daemon. Always the responder.
    Authd,
    /// A provider.
    Provider,
    /// A consumer or an operator: the trust store knows which.
    Client,
}

impl Party {
    fn code(self) -> u8 {
        match self {
            Self::Authd => 1,
            Self::Provider => 2,
            Self::Client => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Authd),
            2 => Some(Self::Provider),
            3 => Some(Self::Client),
            _ => None,
        }
    }
}

/// Who is at the other end, proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its identity.
    pub key: PublicKey,
    /// What it is.
    pub party: Party,
}

/// Why there is no session. All but `Random` and `OwnParty` are the peer's doing, or that of somebody between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A message of another length than it always has.
    #[error(
        "the peer's handshake message {message} has {got} bytes instead of {expected}: it does not speak Overbank's protocol"
    )]
    Length {
        /// Which message, 1 to 3.
        message: u8,
        /// Bytes it always has.
        expected: usize,
        /// Bytes it had.
        got: usize,
    },
    /// A message that does not open.
    #[error(
        "the peer's handshake message {message} does not open: it speaks another version of the protocol (this is version {VERSION}), or somebody changed the message on its way"
    )]
    Unreadable {
        /// Which message, 1 to 3.
        message: u8,
    },
    /// An X25519 key that makes a secret that everybody knows, or one that has another encoding too.
    #[error("the peer sent an X25519 key of small order, or one that is not reduced, which no honest peer does")]
    X25519Key,
    /// Not an ML-KEM-768 encapsulation key.
    #[error("the peer sent an invalid ML-KEM-768 key")]
    EncapsulationKey,
    /// The identity is not proven for this session.
    #[error("the peer's identity is not proven: {0}")]
    Proof(#[source] IdentityError),
    /// A kind of program that has no business at that end.
    #[error("the peer says that it is {}, which is not what answers or asks here", party_name(*.0))]
    WrongParty(u8),
    /// The auth daemon answers and never asks.
    #[error("an auth daemon cannot start a session; a provider or a client does")]
    OwnParty,
    /// The operating system has no random numbers to give.
    #[error("the operating system gave no random numbers")]
    Random,
}

fn party_name(code: u8) -> &'static str {
    match Party::from_code(code) {
        Some(Party::Authd) => "an auth daemon",
        Some(Party::Provider) => "a provider",
        Some(Party::Client) => "a client",
        None => "of an unknown kind",
    }
}

/// Begins as the initiator: message 1, and what reads message 2.
///
/// # Errors
/// [`HandshakeError::OwnParty`] where `party` is the auth daemon, [`HandshakeError::Random`].
pub fn start(party: Party) -> Result<(Vec<u8>, Started), HandshakeError> {
    if party == Party::Authd {
        return Err(HandshakeError::OwnParty);
    }
    wiped(|| {
        let decapsulation_key = kem::DecapsulationKey::generate()?;
        let mut noise = Noise::new(true, &prologue(VERSION))?;
        let message = noise.write(&decapsulation_key.encapsulation_key(), MESSAGE_1_LEN)?;
        Ok((message, Started { noise, party, decapsulation_key }))
    })
}

/// The initiator once message 1 is on its way.
pub struct Started {
    noise: Noise,
    party: Party,
    decapsulation_key: kem::DecapsulationKey,
}

impl Started {
    /// Reads message 2: who the responder is, proven. Nothing about the initiator has been said so far.
    ///
    /// # Errors
    /// [`HandshakeError`]: the handshake is over.
    pub fn read(self, message: &[u8]) -> Result<(Peer, Answered), HandshakeError> {
        let Self { mut noise, party, decapsulation_key } = self;
        wiped(|| {
            let transcript = noise.transcript();
            let payload: [u8; kem::CIPHERTEXT_LEN + PROOF_LEN] = noise.read(2, message, MESSAGE_2_LEN)?;
            let (ciphertext, proof) = payload.split_first_chunk().expect("longer than a ciphertext");
            let peer = verify(proof, &transcript, &noise.remote_key())?;
            if peer.party != Party::Authd {
                return Err(HandshakeError::WrongParty(peer.party.code()));
            }
            noise.set_psk(&decapsulation_key.decapsulate(ciphertext));
            Ok((peer, Answered { noise, party }))
        })
    }
}

/// The initiator that knows who the responder is, and has not yet said who it is itself.
pub struct Answered {
    noise: Noise,
    party: Party,
}

impl Answered {
    /// Message 3, and the keys of the session.
    ///
    /// # Errors
    /// [`HandshakeError::X25519Key`].
    pub fn finish(self, me: &Identity) -> Result<(Vec<u8>, Keys), HandshakeError> {
        let Self { mut noise, party } = self;
        wiped(|| {
            let proof = prove(me, party, &noise.transcript(), &noise.own_key);
            let message = noise.write(&proof, MESSAGE_3_LEN)?;
            Ok((message, Keys::new(noise)))
        })
    }
}

/// Reads message 1 as the responder: message 2, and what reads message 3. The responder is always the auth daemon.
///
/// # Errors
/// [`HandshakeError`]: the handshake is over.
pub fn respond(me: &Identity, message: &[u8]) -> Result<(Vec<u8>, Responding), HandshakeError> {
    wiped(|| {
        let mut noise = Noise::new(false, &prologue(VERSION))?;
        let key: [u8; kem::KEY_LEN] = noise.read(1, message, MESSAGE_1_LEN)?;
        let (ciphertext, secret) = kem::encapsulate(&key)?;
        let proof = prove(me, Party::Authd, &noise.transcript(), &noise.own_key);
        let message = noise.write(&[&ciphertext[..], &proof].concat(), MESSAGE_2_LEN)?;
        noise.set_psk(&secret);
        Ok((message, Responding { noise }))
    })
}

/// The responder once message 2 is on its way.
pub struct Responding {
    noise: Noise,
}

impl Responding {
    /// Reads message 3: who the initiator is, proven, and the keys of the session.
    ///
    /// # Errors
    /// [`HandshakeError`]: the handshake is over.
    pub fn read(self, message: &[u8]) -> Result<(Peer, Keys), HandshakeError> {
        let Self { mut noise } = self;
        wiped(|| {
            let transcript = noise.transcript();
            let proof: [u8; PROOF_LEN] = noise.read(3, message, MESSAGE_3_LEN)?;
            let peer = verify(&proof, &transcript, &noise.remote_key())?;
            if peer.party == Party::Authd {
                return Err(HandshakeError::WrongParty(peer.party.code()));
            }
            Ok((peer, Keys::new(noise)))
        })
    }
}

fn prologue(version: u16) -> Vec<u8> {
    if cfg!(feature = "danger-any-version") {
        return labels::HANDSHAKE_PROLOGUE.to_vec();
    }
    [labels::HANDSHAKE_PROLOGUE, &version.to_be_bytes()].concat()
}

/// Party, public key, signature: what is sent to prove an identity in one session.
fn prove(me: &Identity, party: Party, transcript: &[u8; 32], noise_key: &[u8; 32]) -> [u8; PROOF_LEN] {
    let mut proof = [0; PROOF_LEN];
    proof[0] = party.code();
    proof[1..33].copy_from_slice(&me.public().0);
    proof[33..].copy_from_slice(&me.sign(labels::HANDSHAKE_PROOF, &proven(&[party.code()], transcript, noise_key)).0);
    proof
}

fn verify(proof: &[u8], transcript: &[u8; 32], noise_key: &[u8; 32]) -> Result<Peer, HandshakeError> {
    let proof: &[u8; PROOF_LEN] = proof.try_into().expect("of that length");
    let (code, rest) = proof.split_first_chunk::<1>().expect("long enough");
    let (key, signature) = rest.split_first_chunk().expect("long enough");
    let signature = Signature(signature.try_into().expect("the rest"));
    let key = PublicKey(*key);
    if !cfg!(feature = "danger-no-proof") {
        key.verify(labels::HANDSHAKE_PROOF, &proven(code, transcript, noise_key), &signature)
            .map_err(HandshakeError::Proof)?;
    }
    let party = Party::from_code(code[0]).ok_or(HandshakeError::WrongParty(code[0]))?;
    Ok(Peer { key, party })
}

/// What a proof is a signature over. Every part has one length only.
fn proven<'a>(code: &'a [u8; 1], transcript: &'a [u8; 32], noise_key: &'a [u8; 32]) -> [&'a [u8]; 6] {
    const VERSION_BYTES: [u8; 2] = VERSION.to_be_bytes();
    [code, SUITE.as_bytes(), SUITE_KEM.as_bytes(), &VERSION_BYTES, transcript, noise_key]
}
