//! The two engines of AES-256-GCM by themselves: a nonce and bytes, nothing of ours around them.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Tag};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

pub(crate) const TAG_LEN: usize = 16;
const KEY: [u8; 32] = [0x5A; 32];

/// Seals and opens out of place, as the library has it done. None where the engine refuses.
pub(crate) trait Engine {
    /// As it is called where the library is built with it.
    const NAME: &'static str;

    fn seal(&mut self, number: u64, plain: &[u8], sealed: &mut [u8], tag: &mut [u8; TAG_LEN]) -> Option<()>;
    fn open(&self, number: u64, sealed: &[u8], tag: &[u8; TAG_LEN], plain: &mut [u8]) -> Option<()>;
}

fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

/// The crate aws-lc-rs.
pub(crate) struct AwsLc(LessSafeKey);

impl AwsLc {
    pub(crate) fn new() -> Option<Self> {
        UnboundKey::new(&AES_256_GCM, &KEY).ok().map(|key| Self(LessSafeKey::new(key)))
    }
}

impl Engine for AwsLc {
    const NAME: &'static str = "aws-lc";

    fn seal(&mut self, number: u64, plain: &[u8], sealed: &mut [u8], tag: &mut [u8; TAG_LEN]) -> Option<()> {
        let nonce = Nonce::assume_unique_for_key(nonce(number));
        self.0.seal_out_of_place_scatter(nonce, Aad::empty(), plain, sealed, &[], tag).ok()
    }

    fn open(&self, number: u64, sealed: &[u8], tag: &[u8; TAG_LEN], plain: &mut [u8]) -> Option<()> {
        let nonce = Nonce::assume_unique_for_key(nonce(number));
        self.0.open_separate_gather(nonce, Aad::empty(), sealed, tag, plain).ok()
    }
}

/// The crate aes-gcm.
pub(crate) struct AesGcm(Box<Aes256Gcm>);

impl AesGcm {
    pub(crate) fn new() -> Option<Self> {
        Some(Self(Box::new(Aes256Gcm::new(&KEY.into()))))
    }
}

impl Engine for AesGcm {
    const NAME: &'static str = "aes-gcm";

    fn seal(&mut self, number: u64, plain: &[u8], sealed: &mut [u8], tag: &mut [u8; TAG_LEN]) -> Option<()> {
        let buffer = InOutBuf::new(plain, sealed).ok()?;
        *tag = self.0.encrypt_inout_detached(&nonce(number).into(), &[], buffer).ok()?.into();
        Some(())
    }

    fn open(&self, number: u64, sealed: &[u8], tag: &[u8; TAG_LEN], plain: &mut [u8]) -> Option<()> {
        let buffer = InOutBuf::new(sealed, plain).ok()?;
        self.0.decrypt_inout_detached(&nonce(number).into(), &[], buffer, &Tag::from(*tag)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_make_the_same_bytes_and_refuse_others() {
        let (mut one, mut other) = (AwsLc::new().expect("a key"), AesGcm::new().expect("a key"));
        let plain = [7; 100];
        let (mut sealed, mut tag) = ([0; 100], [0; TAG_LEN]);
        let (mut same, mut same_tag) = ([0; 100], [0; TAG_LEN]);
        one.seal(9, &plain, &mut sealed, &mut tag).expect("sealed");
        other.seal(9, &plain, &mut same, &mut same_tag).expect("sealed");
        assert_eq!((sealed, tag), (same, same_tag));
        let mut opened = [0; 100];
        other.open(9, &sealed, &tag, &mut opened).expect("opened");
        assert_eq!(opened, plain);
        assert!(one.open(8, &sealed, &tag, &mut opened).is_none());
        assert!(other.open(8, &sealed, &tag, &mut opened).is_none());
    }
}
