//! Honest handshakes, their frozen layout, and attackers: on the wire, in the place of either end, and afterwards.

mod memory;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use hkdf::Hkdf;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};

use super::*;
use crate::ids::unhex;

pub(super) use memory::primitives;

/// Points of small order on Curve25519 and its twist, in all encodings but for the high bit, which X25519 ignores.
pub(super) const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/// A whole honest handshake: what the initiator and the responder have in the end.
fn session(party: Party, client: &Identity, authd: &Identity) -> ((Peer, Keys), (Peer, Keys)) {
    let (message_1, started) = start(party).unwrap();
    let (message_2, responding) = respond(authd, &message_1).unwrap();
    let (server, answered) = started.read(&message_2).unwrap();
    let (message_3, keys) = answered.finish(client).unwrap();
    ((server, keys), responding.read(&message_3).unwrap())
}

fn open(from: &mut SendKey, to: &mut ReceiveKey, text: &[u8]) -> Result<Vec<u8>, TransportError> {
    let (mut sealed, mut opened) = (Vec::new(), Vec::new());
    from.seal(text, &mut sealed).unwrap();
    to.open(&sealed, &mut opened).map(|()| opened)
}

#[test]
fn both_ends_know_each_other_and_share_keys() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    for party in [Party::Provider, Party::Client] {
        let ((server, mut near), (peer, mut far)) = session(party, &client, &authd);
        assert_eq!(server, Peer { key: authd.public(), party: Party::Authd });
        assert_eq!(peer, Peer { key: client.public(), party });
        for text in [&b"one"[..], b"", &[7; 65_519]] {
            assert_eq!(open(&mut near.send, &mut far.receive, text).as_deref(), Ok(text));
            assert_eq!(open(&mut far.send, &mut near.receive, text).as_deref(), Ok(text));
        }
    }
    assert_eq!(start(Party::Authd).err(), Some(HandshakeError::OwnParty));
}

#[test]
fn the_layout_is_frozen() {
    assert_eq!([MESSAGE_1_LEN, MESSAGE_2_LEN, MESSAGE_3_LEN], [1232, 1281, 161]);
    assert_eq!(prologue(VERSION), b"overbank handshake v1\x00\x01");
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (message_1, started) = start(Party::Provider).unwrap();
    let (message_2, responding) = respond(&authd, &message_1).unwrap();
    let (message_3, _) = started.read(&message_2).unwrap().1.finish(&client).unwrap();
    assert_eq!([message_1.len(), message_2.len(), message_3.len()], [1232, 1281, 161]);
    assert!(responding.read(&message_3).is_ok());

    let identity = Identity::from_seed(&[1; 32]);
    let proof = prove(&identity, Party::Provider, &[2; 32], &[3; 32]);
    assert_eq!(proof[0], 2);
    assert_eq!(proof[1..33], identity.public().0);
    let signed = [
        b"\x1aoverbank identity proof v1\x02Noise_XXpsk3_25519_AESGCM_SHA256+ML-KEM-768\x00\x01".as_slice(),
        &[2; 32],
        &[3; 32],
    ]
    .concat();
    use ed25519_dalek::Signer;
    assert_eq!(proof[33..], ed25519_dalek::SigningKey::from_bytes(&[1; 32]).sign(&signed).to_bytes());
}

// ---- on the wire ------------------------------------------------------------------------------------------------

#[test]
fn attack_01_any_byte_of_any_message_changed() {
    any_changed_byte_of_message_1_is_refused();
    any_changed_byte_of_message_2_is_refused();
    any_changed_byte_of_message_3_is_refused();
    println!("attack 01 -: seen each byte of each message: that message is refused");
}

fn any_changed_byte_of_message_1_is_refused() {
    let authd = Identity::generate();
    let (message, _) = start(Party::Client).unwrap();
    for at in 0..message.len() {
        for bit in [1, 0x80] {
            let mut changed = message.clone();
            changed[at] ^= bit;
            assert_eq!(respond(&authd, &changed).err(), Some(HandshakeError::Unreadable { message: 1 }), "byte {at}");
        }
    }
}

fn any_changed_byte_of_message_2_is_refused() {
    let authd = Identity::generate();
    for at in 0..MESSAGE_2_LEN {
        let (message, started) = start(Party::Client).unwrap();
        let (mut changed, _) = respond(&authd, &message).unwrap();
        changed[at] ^= if at % 2 == 0 { 1 } else { 0x80 };
        // The highest bit of an ephemeral key is in its last byte: with it the key is not reduced.
        let expected = if at == 31 { HandshakeError::X25519Key } else { HandshakeError::Unreadable { message: 2 } };
        assert_eq!(started.read(&changed).err(), Some(expected), "byte {at}");
    }
}

fn any_changed_byte_of_message_3_is_refused() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    for at in 0..MESSAGE_3_LEN {
        let (message_1, started) = start(Party::Client).unwrap();
        let (message_2, responding) = respond(&authd, &message_1).unwrap();
        let (mut changed, _) = started.read(&message_2).unwrap().1.finish(&client).unwrap();
        changed[at] ^= if at % 2 == 0 { 1 } else { 0x80 };
        assert_eq!(responding.read(&changed).err(), Some(HandshakeError::Unreadable { message: 3 }), "byte {at}");
    }
}

#[test]
fn a_message_of_any_other_length_is_refused() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (message_1, _) = start(Party::Client).unwrap();
    let lengths = |message: &[u8]| -> Vec<Vec<u8>> {
        let mut longer = message.to_vec();
        longer.push(0);
        (0..message.len()).map(|cut| message[..cut].to_vec()).chain([longer]).collect()
    };
    for other in lengths(&message_1) {
        let expected = HandshakeError::Length { message: 1, expected: MESSAGE_1_LEN, got: other.len() };
        assert_eq!(respond(&authd, &other).err(), Some(expected));
    }
    for at in 0..=MESSAGE_2_LEN {
        let (message_1, started) = start(Party::Client).unwrap();
        let other = lengths(&respond(&authd, &message_1).unwrap().0).swap_remove(at);
        let expected = HandshakeError::Length { message: 2, expected: MESSAGE_2_LEN, got: other.len() };
        assert_eq!(started.read(&other).err(), Some(expected));
    }
    for at in 0..=MESSAGE_3_LEN {
        let (message_1, started) = start(Party::Client).unwrap();
        let (message_2, responding) = respond(&authd, &message_1).unwrap();
        let (message_3, _) = started.read(&message_2).unwrap().1.finish(&client).unwrap();
        let other = lengths(&message_3).swap_remove(at);
        let expected = HandshakeError::Length { message: 3, expected: MESSAGE_3_LEN, got: other.len() };
        assert_eq!(responding.read(&other).err(), Some(expected));
    }
}

/// Message 1's key follows from what everybody sees: its ephemeral key. So its payload can be exchanged and sealed again,
/// and the responder cannot tell. The initiator can.
#[test]
fn attack_01_another_mlkem_key_sealed_by_an_attacker() {
    let authd = Identity::generate();
    let (message_1, started) = start(Party::Client).unwrap();
    let attackers = kem::DecapsulationKey::generate().unwrap();

    let ephemeral = &message_1[..32];
    // The suite's name is 32 bytes long: Noise takes it as it is for its first hash.
    let mixed = Sha256::digest([SUITE.as_bytes(), &prologue(VERSION)].concat());
    let mixed = Sha256::digest([&mixed[..], ephemeral].concat());
    let mut keys = [0; 64];
    Hkdf::<Sha256>::new(Some(SUITE.as_bytes()), ephemeral).expand(&[], &mut keys).unwrap();
    let cipher = Aes256Gcm::new(keys[32..].try_into().unwrap());
    let nonce = Nonce::from([0; 12]);
    let opened = cipher.decrypt(&nonce, Payload { msg: &message_1[32..], aad: &mixed }).expect("anybody can");
    assert_eq!(opened, started.decapsulation_key.encapsulation_key());
    let resealed = cipher.encrypt(&nonce, Payload { msg: &attackers.encapsulation_key(), aad: &mixed }).unwrap();

    let (message_2, _) = respond(&authd, &[ephemeral, &resealed].concat()).expect("it looks like any other");
    assert_eq!(started.read(&message_2).err(), Some(HandshakeError::Unreadable { message: 2 }));
    println!("attack 01 -: seen another ML-KEM key, sealed anew: refused at message 2");
}

#[test]
fn noise_is_refused() {
    let authd = Identity::generate();
    proptest!(ProptestConfig::with_cases(64), |(message in proptest::collection::vec(any::<u8>(), MESSAGE_1_LEN))| {
        prop_assert!(respond(&authd, &message).is_err());
    });
}

// ---- in the place of an end ---------------------------------------------------------------------------------------

/// An initiator that makes its own proofs: message 1, and what makes message 3 out of message 2.
struct RogueInitiator {
    noise: Noise,
    decapsulation_key: kem::DecapsulationKey,
}

impl RogueInitiator {
    fn start(mut noise: Noise) -> (Vec<u8>, Self) {
        let decapsulation_key = kem::DecapsulationKey::generate().unwrap();
        let message = noise.write(&decapsulation_key.encapsulation_key(), MESSAGE_1_LEN).unwrap();
        (message, Self { noise, decapsulation_key })
    }

    fn finish(mut self, message: &[u8], proof: impl FnOnce(&Noise) -> [u8; PROOF_LEN]) -> Vec<u8> {
        let payload: [u8; kem::CIPHERTEXT_LEN + PROOF_LEN] = self.noise.read(2, message, MESSAGE_2_LEN).unwrap();
        let ciphertext = payload.first_chunk().unwrap();
        self.noise.set_psk(&self.decapsulation_key.decapsulate(ciphertext));
        let proof = proof(&self.noise);
        self.noise.write(&proof, MESSAGE_3_LEN).unwrap()
    }
}

/// A responder that makes its own proofs: message 2.
fn rogue_respond(
    mut noise: Noise,
    message: &[u8],
    proof: impl FnOnce(&Noise) -> [u8; PROOF_LEN],
) -> Result<Vec<u8>, HandshakeError> {
    let key: [u8; kem::KEY_LEN] = noise.read(1, message, MESSAGE_1_LEN)?;
    let (ciphertext, _) = kem::encapsulate(&key)?;
    let proof = proof(&noise);
    noise.write(&[&ciphertext[..], &proof].concat(), MESSAGE_2_LEN)
}

fn noise(initiator: bool) -> Noise {
    Noise::new(initiator, &prologue(VERSION)).unwrap()
}

/// What an initiator thinks of a responder with this proof.
fn read_2(proof: impl FnOnce(&Noise) -> [u8; PROOF_LEN]) -> Result<Peer, HandshakeError> {
    let (message, started) = start(Party::Client).unwrap();
    started.read(&rogue_respond(noise(false), &message, proof).unwrap()).map(|(peer, _)| peer)
}

/// What the responder thinks of an initiator with this proof.
fn read_3(proof: impl FnOnce(&Noise) -> [u8; PROOF_LEN]) -> Result<Peer, HandshakeError> {
    let (message, rogue) = RogueInitiator::start(noise(true));
    let (message, responding) = respond(&Identity::generate(), &message).unwrap();
    responding.read(&rogue.finish(&message, proof)).map(|(peer, _)| peer)
}

const NOT_PROVEN: Option<HandshakeError> = Some(HandshakeError::Proof(IdentityError::Signature));

#[test]
fn attack_06_each_party_in_its_own_place() {
    let me = Identity::generate();
    let proof = |party| {
        let me = &me;
        move |noise: &Noise| prove(me, party, &noise.transcript(), &noise.own_key)
    };
    assert_eq!(read_2(proof(Party::Authd)), Ok(Peer { key: me.public(), party: Party::Authd }));
    assert_eq!(read_2(proof(Party::Provider)), Err(HandshakeError::WrongParty(2)));
    assert_eq!(read_2(proof(Party::Client)), Err(HandshakeError::WrongParty(3)));
    assert_eq!(read_3(proof(Party::Provider)), Ok(Peer { key: me.public(), party: Party::Provider }));
    assert_eq!(read_3(proof(Party::Client)), Ok(Peer { key: me.public(), party: Party::Client }));
    assert_eq!(read_3(proof(Party::Authd)), Err(HandshakeError::WrongParty(1)));
    println!("attack 06 -: seen a party in the place of another: refused");
}

#[test]
fn every_other_party_code_is_refused() {
    let me = Identity::generate();
    for code in (0..=255).filter(|code| !(1..=3).contains(code)) {
        let proof = |noise: &Noise| {
            let mut proof = prove(&me, Party::Client, &noise.transcript(), &noise.own_key);
            proof[0] = code;
            let (transcript, key) = (noise.transcript(), noise.own_key);
            let signature = me.sign(labels::HANDSHAKE_PROOF, &proven(&[code], &transcript, &key));
            proof[33..].copy_from_slice(&signature.0);
            proof
        };
        assert_eq!(read_2(proof), Err(HandshakeError::WrongParty(code)));
        assert_eq!(read_3(proof), Err(HandshakeError::WrongParty(code)));
    }
}

#[test]
fn attack_06_a_proof_with_another_part() {
    let me = Identity::generate();
    let signed = |label: &[u8], parts: &[&[u8]]| {
        let mut proof = [0; PROOF_LEN];
        proof[0] = Party::Client.code();
        proof[1..33].copy_from_slice(&me.public().0);
        proof[33..].copy_from_slice(&me.sign(label, parts).0);
        proof
    };
    let version = VERSION.to_be_bytes();
    let (label, suite, kem) = (labels::HANDSHAKE_PROOF, SUITE.as_bytes(), SUITE_KEM.as_bytes());
    let case = |label: &'static [u8], code: u8, suite: &'static [u8], version: [u8; 2], transcript: bool, key: bool| {
        read_3(|noise: &Noise| {
            let transcript = if transcript { noise.transcript() } else { [9; 32] };
            let key = if key { noise.own_key } else { [9; 32] };
            signed(label, &[&[code], suite, kem, &version, &transcript, &key])
        })
        .err()
    };
    assert_eq!(case(label, 3, suite, version, true, true), None);
    assert_eq!(case(labels::TOKEN, 3, suite, version, true, true), NOT_PROVEN);
    assert_eq!(case(label, 2, suite, version, true, true), NOT_PROVEN, "role swapped");
    let other = b"Noise_XXpsk3_25519_AESGCM_SHA512";
    assert_eq!(case(label, 3, other, version, true, true), NOT_PROVEN);
    assert_eq!(case(label, 3, suite, [0, 0], true, true), NOT_PROVEN);
    assert_eq!(case(label, 3, suite, version, false, true), NOT_PROVEN);
    assert_eq!(case(label, 3, suite, version, true, false), NOT_PROVEN);
    let without_kem = |noise: &Noise| signed(label, &[&[3], suite, &version, &noise.transcript(), &noise.own_key]);
    assert_eq!(read_3(without_kem).err(), NOT_PROVEN);
    println!("attack 06 -: seen a proof for another role, suite, version, session or key: refused");
}

#[test]
fn attack_06_another_identity_claimed() {
    let (me, victim) = (Identity::generate(), Identity::generate());
    let claim = |party| {
        let (me, victim) = (&me, &victim);
        move |noise: &Noise| {
            let mut proof = prove(me, party, &noise.transcript(), &noise.own_key);
            proof[1..33].copy_from_slice(&victim.public().0);
            proof
        }
    };
    assert_eq!(read_2(claim(Party::Authd)).err(), NOT_PROVEN);
    assert_eq!(read_3(claim(Party::Client)).err(), NOT_PROVEN);
    // The key of order 1, under which a signature of zeros holds for any message where keys of small order are allowed.
    let weak = |_: &Noise| {
        let mut proof = [0; PROOF_LEN];
        (proof[0], proof[1], proof[33]) = (3, 1, 1);
        proof
    };
    assert_eq!(read_3(weak), Err(HandshakeError::Proof(IdentityError::Key)));
    println!("attack 06 -: seen the name of another: refused");
}

/// Somebody between two honest ends takes the proofs of one session into another.
#[test]
fn attack_06_a_proof_from_another_session() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    // The attacker asks the real auth daemon, learns its proof, and shows it to a victim.
    let (message_1, mut rogue) = RogueInitiator::start(noise(true));
    let (message_2, _) = respond(&authd, &message_1).unwrap();
    let payload: [u8; kem::CIPHERTEXT_LEN + PROOF_LEN] = rogue.noise.read(2, &message_2, MESSAGE_2_LEN).unwrap();
    let learned: [u8; PROOF_LEN] = *payload.last_chunk().unwrap();
    assert!(verify(&learned, &[0; 32], &[0; 32]).is_err());
    assert_eq!(read_2(|_| learned).err(), NOT_PROVEN);
    // And the other way: a victim proves itself to the attacker, who shows that to the real auth daemon.
    let mut rogue = noise(false);
    let (message_1, started) = start(Party::Client).unwrap();
    let key: [u8; kem::KEY_LEN] = rogue.read(1, &message_1, MESSAGE_1_LEN).unwrap();
    let (ciphertext, secret) = kem::encapsulate(&key).unwrap();
    let proof = prove(&authd, Party::Authd, &rogue.transcript(), &rogue.own_key);
    let message_2 = rogue.write(&[&ciphertext[..], &proof].concat(), MESSAGE_2_LEN).unwrap();
    rogue.set_psk(&secret);
    let (message_3, _) = started.read(&message_2).unwrap().1.finish(&client).unwrap();
    let learned: [u8; PROOF_LEN] = rogue.read(3, &message_3, MESSAGE_3_LEN).unwrap();
    assert_eq!(learned[1..33], client.public().0, "it is the victim's");
    assert_eq!(read_3(|_| learned).err(), NOT_PROVEN);
    println!("attack 06 -: seen a proof of another session: refused");
}

#[test]
fn attack_06_what_an_end_said_comes_back() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (message_1, started) = start(Party::Client).unwrap();
    let length = HandshakeError::Length { message: 2, expected: MESSAGE_2_LEN, got: MESSAGE_1_LEN };
    assert_eq!(started.read(&message_1).err(), Some(length));
    // The responder's own proof, back from an initiator.
    let (message_1, mut rogue) = RogueInitiator::start(noise(true));
    let (message_2, responding) = respond(&authd, &message_1).unwrap();
    let payload: [u8; kem::CIPHERTEXT_LEN + PROOF_LEN] = rogue.noise.read(2, &message_2, MESSAGE_2_LEN).unwrap();
    rogue.noise.set_psk(&rogue.decapsulation_key.decapsulate(payload.first_chunk().unwrap()));
    let message_3 = rogue.noise.write(payload.last_chunk::<PROOF_LEN>().unwrap(), MESSAGE_3_LEN).unwrap();
    assert_eq!(responding.read(&message_3).err(), NOT_PROVEN);
    // Records, back to who sealed them.
    let ((_, mut near), (_, mut far)) = session(Party::Client, &client, &authd);
    assert_eq!(open(&mut near.send, &mut near.receive, b"mine"), Err(TransportError::Unreadable));
    assert_eq!(open(&mut far.send, &mut far.receive, b"mine"), Err(TransportError::Unreadable));
    println!("attack 06 -: seen a reflected proof or record: refused");
}

#[test]
fn attack_06_messages_of_an_earlier_handshake() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (old_1, started) = start(Party::Client).unwrap();
    let (old_2, responding) = respond(&authd, &old_1).unwrap();
    let (old_3, _) = started.read(&old_2).unwrap().1.finish(&client).unwrap();
    assert!(responding.read(&old_3).is_ok());
    // An old message 1 is answered, since nothing in it is proven; its old message 3 does not fit the answer.
    let (_, responding) = respond(&authd, &old_1).unwrap();
    assert_eq!(responding.read(&old_3).err(), Some(HandshakeError::Unreadable { message: 3 }));
    let (_, started) = start(Party::Client).unwrap();
    assert_eq!(started.read(&old_2).err(), Some(HandshakeError::Unreadable { message: 2 }));
    println!("attack 06 -: seen messages of an earlier handshake: refused");
}

#[test]
fn attack_02_a_wrong_mlkem_ciphertext() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let (message_1, started) = start(Party::Client).unwrap();
    let mut rogue = noise(false);
    let key: [u8; kem::KEY_LEN] = rogue.read(1, &message_1, MESSAGE_1_LEN).unwrap();
    let (mut ciphertext, secret) = kem::encapsulate(&key).unwrap();
    ciphertext[500] ^= 1;
    let proof = prove(&authd, Party::Authd, &rogue.transcript(), &rogue.own_key);
    let message_2 = rogue.write(&[&ciphertext[..], &proof].concat(), MESSAGE_2_LEN).unwrap();
    rogue.set_psk(&secret);
    let (_, answered) = started.read(&message_2).expect("a ciphertext never fails to open");
    let (message_3, _) = answered.finish(&client).unwrap();
    assert_eq!(Responding { noise: rogue }.read(&message_3).err(), Some(HandshakeError::Unreadable { message: 3 }));
    println!("attack 02 -: seen refused at message 3");
}

#[test]
fn attack_03_an_mlkem_key_that_is_not_reduced() {
    let mut rogue = noise(true);
    // Coefficients of 4095 are not below the modulus (FIPS 203, section 7.2).
    let message = rogue.write(&[0xff; kem::KEY_LEN], MESSAGE_1_LEN).unwrap();
    assert_eq!(respond(&Identity::generate(), &message).err(), Some(HandshakeError::EncapsulationKey));
    println!("attack 03 -: seen an ML-KEM key that is not reduced: refused");
}

#[test]
fn attack_05_another_suite_or_version() {
    let authd = Identity::generate();
    let resolver = || Box::new(resolver::Resolver);
    for prologue in [prologue(VERSION + 1), prologue(0), labels::HANDSHAKE_PROOF.to_vec(), Vec::new()] {
        let rogue = Noise::with(SUITE, resolver(), true, &prologue).unwrap();
        let (message, _) = RogueInitiator::start(rogue);
        assert_eq!(respond(&authd, &message).err(), Some(HandshakeError::Unreadable { message: 1 }));
    }
    // Another pattern, and a suite without a psk, in which message 1 is in the clear.
    let key = kem::DecapsulationKey::generate().unwrap().encapsulation_key();
    for suite in ["Noise_IXpsk2_25519_AESGCM_SHA256", "Noise_XX_25519_AESGCM_SHA256"] {
        let mut rogue = Noise::with(suite, resolver(), true, &prologue(VERSION)).unwrap();
        // Made as long as it should be by what comes before or after the key.
        let payload = match suite {
            "Noise_XX_25519_AESGCM_SHA256" => [&key[..], &[0; TAG_LEN]].concat(),
            _ => key[..kem::KEY_LEN - 48].to_vec(),
        };
        let mut message = vec![0; 2048];
        let written = rogue.write_any(&payload, &mut message);
        assert_eq!(written, MESSAGE_1_LEN);
        let refused = respond(&authd, &message[..written]).err();
        assert_eq!(refused, Some(HandshakeError::Unreadable { message: 1 }), "{suite}");
    }
    // An old responder: the initiator is told in the same way.
    let (message, _) = start(Party::Client).unwrap();
    let rogue = Noise::with(SUITE, resolver(), false, &prologue(VERSION + 1)).unwrap();
    let refused = rogue_respond(rogue, &message, |_| [0; PROOF_LEN]);
    assert_eq!(refused.err(), Some(HandshakeError::Unreadable { message: 1 }));
    println!("attack 05 -: seen another version, prologue or suite: refused at the first message");
}

/// X25519 of who sends a point of his choice, and so knows every secret that comes of it, without a private key.
#[derive(Clone, Copy)]
struct Chosen {
    point: [u8; 32],
    /// What comes of it and of what the other end sent.
    secret: fn([u8; 32]) -> [u8; 32],
}

impl Dh for Chosen {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        32
    }
    fn priv_len(&self) -> usize {
        32
    }
    fn set(&mut self, _: &[u8]) {}
    fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
        Ok(())
    }
    fn pubkey(&self) -> &[u8] {
        &self.point
    }
    fn privkey(&self) -> &[u8] {
        &[0; 32]
    }
    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        out[..32].copy_from_slice(&(self.secret)(*theirs.first_chunk().unwrap()));
        Ok(())
    }
}

/// Which of its two keys is chosen.
struct ChosenResolver {
    key: Chosen,
    static_key: std::sync::atomic::AtomicBool,
    ephemeral_too: bool,
}

impl CryptoResolver for ChosenResolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        resolver::Resolver.resolve_rng()
    }
    /// snow asks for the static key's first, then for the ephemeral key's.
    fn resolve_dh(&self, choice: &snow::params::DHChoice) -> Option<Box<dyn Dh>> {
        let chosen = self.static_key.swap(self.ephemeral_too, std::sync::atomic::Ordering::Relaxed);
        if chosen { Some(Box::new(self.key)) } else { resolver::Resolver.resolve_dh(choice) }
    }
    fn resolve_hash(&self, choice: &snow::params::HashChoice) -> Option<Box<dyn Hash>> {
        resolver::Resolver.resolve_hash(choice)
    }
    fn resolve_cipher(&self, choice: &snow::params::CipherChoice) -> Option<Box<dyn Cipher>> {
        resolver::Resolver.resolve_cipher(choice)
    }
}

fn chosen(initiator: bool, key: Chosen, static_key: bool) -> Noise {
    let rogue = ChosenResolver { key, static_key: static_key.into(), ephemeral_too: !static_key };
    let mut noise = Noise::with(SUITE, Box::new(rogue), initiator, &prologue(VERSION)).unwrap();
    if static_key {
        noise.own_key = key.point;
    }
    noise
}

/// That key is refused as an ephemeral and as a static one, whoever sends it.
fn refused_wherever_it_comes(key: Chosen) {
    let (me, authd) = (Identity::generate(), Identity::generate());
    let (message, _) = RogueInitiator::start(chosen(true, key, false));
    assert_eq!(respond(&authd, &message).err(), Some(HandshakeError::X25519Key), "ephemeral key of message 1");

    for static_key in [false, true] {
        let (message, started) = start(Party::Client).unwrap();
        let rogue = chosen(false, key, static_key);
        let proof = |noise: &Noise| prove(&me, Party::Authd, &noise.transcript(), &noise.own_key);
        let message = rogue_respond(rogue, &message, proof).unwrap();
        assert_eq!(started.read(&message).err(), Some(HandshakeError::X25519Key), "message 2, {static_key}");
    }

    let (message, rogue) = RogueInitiator::start(chosen(true, key, true));
    let (message, responding) = respond(&authd, &message).unwrap();
    let proof = |noise: &Noise| prove(&me, Party::Client, &noise.transcript(), &noise.own_key);
    let message = rogue.finish(&message, proof);
    assert_eq!(responding.read(&message).err(), Some(HandshakeError::X25519Key), "static key of message 3");
}

#[test]
fn attack_03_points_of_small_order() {
    for point in SMALL_ORDER {
        refused_wherever_it_comes(Chosen { point: unhex::<32>("a point", point).unwrap(), secret: |_| [0; 32] });
    }
    println!("attack 03 -: seen points of small order: refused wherever they come");
}

/// The base point as 9 + 2^255 - 19, and as 9 with the bit that X25519 ignores: the secret is what the other end sent.
#[test]
fn attack_03_a_point_that_is_not_reduced() {
    let (mut above, mut high_bit) = ([0xff; 32], [0; 32]);
    (above[0], above[31]) = (0xf6, 0x7f);
    (high_bit[0], high_bit[31]) = (9, 0x80);
    for point in [above, high_bit] {
        refused_wherever_it_comes(Chosen { point, secret: |theirs| theirs });
    }
    println!("attack 03 -: seen a point that is not reduced: refused wherever it comes");
}

// ---- in the session --------------------------------------------------------------------------------------------

#[test]
fn records_open_once_in_order_and_unchanged() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let sealed = |keys: &mut Keys, count: u8| -> Vec<Vec<u8>> {
        let seal = |number| {
            let mut sealed = Vec::new();
            keys.send.seal(&[number; 20], &mut sealed).unwrap();
            sealed
        };
        (0..count).map(seal).collect()
    };
    // Which of three records come, in which order, and how many of them open.
    for (order, good) in
        [(&[0, 1, 2][..], 3), (&[0, 0, 1, 2], 1), (&[1, 0, 2], 0), (&[0, 2, 1], 1), (&[0, 2], 1), (&[0, 1, 1, 2], 2)]
    {
        let ((_, mut near), (_, mut far)) = session(Party::Client, &client, &authd);
        let records = sealed(&mut near, 3);
        let mut out = Vec::new();
        let opened: Vec<_> = order.iter().map(|at| far.receive.open(&records[*at], &mut out).is_ok()).collect();
        assert_eq!(opened.iter().take_while(|ok| **ok).count(), good, "{order:?}");
        assert!(opened[good..].iter().all(|ok| !ok), "after a bad record none opens, {order:?}");
    }
    // Changed, cut, longer: and then the good one does not open either.
    for change in 0..3 {
        let ((_, mut near), (_, mut far)) = session(Party::Client, &client, &authd);
        let good = sealed(&mut near, 1).remove(0);
        for at in 0..good.len() {
            let mut bad = good.clone();
            match change {
                0 => bad[at] ^= 1,
                1 => bad.truncate(at),
                _ => bad.push(at as u8),
            }
            let mut out = vec![1, 2, 3];
            assert_eq!(far.receive.open(&bad, &mut out), Err(TransportError::Unreadable));
            assert!(out.is_empty());
            far.receive.dead = false;
        }
        let mut out = Vec::new();
        assert_eq!(far.receive.open(&good, &mut out), Ok(()), "it was good");
    }
}

#[test]
fn attack_04_a_good_record_after_a_bad_one() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    for cut in [0, 1, 16] {
        let ((_, mut near), (_, mut far)) = session(Party::Client, &client, &authd);
        let (mut good, mut out) = (Vec::new(), Vec::new());
        near.send.seal(b"good", &mut good).unwrap();
        let mut bad = good.clone();
        bad[3] ^= 1;
        assert_eq!(far.receive.open(&bad[cut..], &mut out), Err(TransportError::Unreadable));
        assert_eq!(far.receive.open(&good, &mut out), Err(TransportError::Unreadable), "the session is over");
        assert!(out.is_empty());
    }
    println!("attack 04 -: seen a good record after a bad one: refused");
}

#[test]
fn records_of_another_session_do_not_open() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let ((_, mut one), _) = session(Party::Client, &client, &authd);
    let (_, (_, mut other)) = session(Party::Client, &client, &authd);
    assert_eq!(open(&mut one.send, &mut other.receive, b"text"), Err(TransportError::Unreadable));
}

#[test]
fn a_key_ends_before_its_limit() {
    let (client, authd) = (Identity::generate(), Identity::generate());
    let ((_, mut near), (_, mut far)) = session(Party::Client, &client, &authd);
    (near.send.counter, far.receive.counter) = ((1 << 32) - 1, (1 << 32) - 1);
    let (mut last, mut out) = (Vec::new(), Vec::new());
    near.send.seal(b"last", &mut last).unwrap();
    assert_eq!(near.send.seal(b"one more", &mut out), Err(TransportError::Exhausted));
    assert!(out.is_empty());
    assert_eq!(far.receive.open(&last, &mut out), Ok(()));
    assert_eq!(far.receive.open(&last, &mut out), Err(TransportError::Exhausted));
}
