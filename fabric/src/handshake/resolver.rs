//! The primitives under the handshake: X25519, AES-256-GCM and SHA-256, for snow.
//!
//! snow's own set accepts X25519 keys of small order and wipes nothing. This one refuses every exchange whose result is
//! zero and every key that is not reduced, and wipes private keys, cipher keys and derived keys when it drops them.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

pub(super) struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SystemRandom))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519 { secret: StaticSecret::from([0; 32]), public: [0; 32] })),
            DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::SHA256 => Some(Box::new(HashSha256(Sha256::new()))),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::AESGCM => Some(Box::new(AesGcm(None))),
            _ => None,
        }
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        getrandom::fill(bytes).map_err(|_| Error::Rng)
    }
}

/// RFC 7748.
struct X25519 {
    secret: StaticSecret,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(secret);
        self.secret = StaticSecret::from(*bytes);
        self.public = PublicKey::from(&self.secret).to_bytes();
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        random.try_fill_bytes(&mut *bytes)?;
        self.set(&*bytes);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }

    /// `theirs` begins with the key and may be longer, as snow keeps it.
    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let theirs: [u8; 32] = *theirs.first_chunk().ok_or(Error::Input)?;
        let shared = self.secret.diffie_hellman(&PublicKey::from(theirs));
        if !(cfg!(feature = "danger-any-key") || is_reduced(&theirs) && shared.was_contributory()) {
            return Err(Error::Dh);
        }
        out.get_mut(..32).ok_or(Error::Input)?.copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

/// Whether a u-coordinate, little-endian, is below 2^255 - 19, as every honest peer's is: RFC 7748 would take it for the one
/// that it is congruent to, and so one key would have two encodings.
fn is_reduced(key: &[u8; 32]) -> bool {
    let above = key[31] == 0x7f && key[1..31].iter().all(|&byte| byte == 0xff) && key[0] >= 0xed;
    key[31] < 0x80 && !above
}

/// SP 800-38D with the nonce of the Noise specification: four zero bytes and a big-endian counter.
struct AesGcm(Option<Box<Aes256Gcm>>);

const TAG_LEN: usize = 16;

impl AesGcm {
    fn key(&self) -> &Aes256Gcm {
        self.0.as_deref().expect("snow sets a key first")
    }
}

fn nonce(counter: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = Some(Box::new(Aes256Gcm::new(key.into())));
    }

    fn encrypt(&self, counter: u64, data: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = self.key().encrypt_inout_detached(&nonce(counter), data, text.into()).expect("shorter than 64 GiB");
        rest[..TAG_LEN].copy_from_slice(&tag);
        plaintext.len() + TAG_LEN
    }

    fn decrypt(&self, counter: u64, data: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (text, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(text);
        if cfg!(feature = "danger-no-handshake-tags") {
            // In counter mode, deciphering is ciphering.
            let _ = self.key().encrypt_inout_detached(&nonce(counter), data, out.into());
            return Ok(text.len());
        }
        self.key().decrypt_inout_detached(&nonce(counter), data, out.into(), tag.into()).map_err(|_| Error::Decrypt)?;
        Ok(text.len())
    }
}

/// FIPS 180-4, and the key derivation of RFC 5869, which is the one that Noise describes.
struct HashSha256(Sha256);

impl Hash for HashSha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Sha256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }

    fn hkdf(
        &mut self,
        chaining_key: &[u8],
        input: &[u8],
        outputs: usize,
        out1: &mut [u8],
        out2: &mut [u8],
        out3: &mut [u8],
    ) {
        let mut derived = Zeroizing::new([0; 96]);
        let derived = &mut derived[..32 * outputs];
        Hkdf::<Sha256>::new(Some(chaining_key), input).expand(&[], derived).expect("96 bytes are not too many");
        for (part, out) in derived.chunks_exact(32).zip([out1, out2, out3]) {
            out[..32].copy_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::unhex;
    use snow::Builder;

    /// From the test vectors of cacophony, as snow 0.10 carries them in tests/vectors/cacophony.txt. Each message is
    /// its payload and what it becomes; the last three are of the transport.
    #[test]
    fn the_cacophony_vector_of_this_suite() {
        let key = |text: &str| unhex::<32>("a key", text).unwrap();
        let bytes = |text: &str| -> Vec<u8> {
            let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            text.as_bytes().chunks(2).map(pair).collect()
        };
        let build = |statics: &str, ephemeral: &str, initiator: bool| {
            let (statics, ephemeral) = (key(statics), key(ephemeral));
            let psk = key("54686973206973206d7920417573747269616e20706572737065637469766521");
            let builder = Builder::with_resolver(super::super::SUITE.parse().unwrap(), Box::new(Resolver))
                .prologue(b"John Galt")
                .and_then(|builder| builder.local_private_key(&statics))
                .and_then(|builder| builder.psk(3, &psk))
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(&ephemeral);
            if initiator { builder.build_initiator() } else { builder.build_responder() }.unwrap()
        };
        let mut initiator = build(
            "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
            "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
            true,
        );
        let mut responder = build(
            "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
            "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
            false,
        );
        let messages = [
            (
                "4c756477696720766f6e204d69736573",
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
                 ad6766e442bec99c94ff573cd5316da008cbcc1ebcf47fbe43991ed633bcbb75",
            ),
            (
                "4d757272617920526f746862617264",
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
                 36a2439b0bafb5e97fee2c19b6f9f741125f810ad98e7e9659c48ca3e19652d3\
                 16d1121073a281e0402b7bc1acb476caa1e7308faad7f75337b30f12435c9830\
                 3cac63cac1d69ac11f2e1971e138ac",
            ),
            (
                "462e20412e20486179656b",
                "2504a7905dbd6a56820581eb314085df196fda55aa5e77745d61c0b526355733\
                 d5ee67b9a4f345be7dc7c6583d3807626eb0f42c69388955ff0c9f35b0395112\
                 9db18848a76f6a4d270022",
            ),
            ("4361726c204d656e676572", "b20ca762013411bc55d65fc7137a2e719d432cd549cb037f5e9c84"),
            (
                "4a65616e2d426170746973746520536179",
                "6b10e774950e93bc7cc50f225a105e656eb418310c00c374a81c1452b48cb12000",
            ),
        ]
        .map(|(payload, sealed)| (bytes(payload), bytes(sealed)));
        let (mut wire, mut read) = ([0; 1024], [0; 1024]);
        for (at, (payload, sealed)) in messages[..3].iter().enumerate() {
            let (from, to) =
                if at % 2 == 0 { (&mut initiator, &mut responder) } else { (&mut responder, &mut initiator) };
            let length = from.write_message(payload, &mut wire).unwrap();
            assert_eq!(&wire[..length], sealed, "message {}", at + 1);
            let length = to.read_message(sealed, &mut read).unwrap();
            assert_eq!(&read[..length], payload, "message {}", at + 1);
        }
        assert_eq!(
            initiator.get_handshake_hash(),
            key("033c8317037cb66a83308d5ae57ebbbea254e7ef2267f296c40baa4beaae4fcc")
        );
        let initiator = initiator.into_stateless_transport_mode().unwrap();
        let responder = responder.into_stateless_transport_mode().unwrap();
        // The first transport message of the vectors is the responder's.
        for (from, to, (payload, sealed)) in
            [(&responder, &initiator, &messages[3]), (&initiator, &responder, &messages[4])]
        {
            let length = from.write_message(0, payload, &mut wire).unwrap();
            assert_eq!(&wire[..length], sealed);
            let length = to.read_message(0, sealed, &mut read).unwrap();
            assert_eq!(&read[..length], payload);
        }
    }

    /// The points of order 1, 2, 4 and 8 of Curve25519 and its twist, and those encodings of them that are not reduced.
    #[test]
    fn every_key_of_small_order_is_refused() {
        let mut ours = X25519 { secret: StaticSecret::from([0; 32]), public: [0; 32] };
        ours.generate(&mut SystemRandom).unwrap();
        let mut out = [0xA5; 32];
        for point in super::super::tests::SMALL_ORDER {
            for high_bit in [0, 0x80] {
                let mut point = unhex::<32>("a point", point).unwrap();
                point[31] |= high_bit;
                assert_eq!(ours.dh(&point, &mut out), Err(Error::Dh), "{point:02x?}");
            }
        }
        assert_eq!(out, [0xA5; 32]);
        assert_eq!(ours.dh(&[9; 31], &mut out), Err(Error::Input));
        // 2^255 - 20 is the largest that is reduced; it is of small order too. The one below is not.
        for (low, result) in [(0xeb, Ok(())), (0xec, Err(Error::Dh)), (0xf6, Err(Error::Dh)), (0xff, Err(Error::Dh))] {
            let mut point = [0xff; 32];
            (point[0], point[31]) = (low, 0x7f);
            assert_eq!(is_reduced(&point), low < 0xed);
            assert_eq!(ours.dh(&point, &mut out), result, "{low:x}");
        }
        let base = unhex::<32>("a point", &format!("09{}", "00".repeat(31))).unwrap();
        assert_eq!(ours.dh(&base, &mut out), Ok(()));
        assert_eq!(out, ours.public);
    }
}
