use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::aead;
use super::*;
use crate::ids::hex;

fn key() -> LeaseKey {
    LeaseKey::from_bytes(std::array::from_fn(|i| i as u8))
}

fn context(block: u32) -> BlockContext {
    let lease = LeaseId(std::array::from_fn(|i| 0x40 + i as u8));
    BlockContext { tenant: "team-7".parse().unwrap(), lease, generation: 3, block }
}

fn salt() -> Salt {
    Salt(std::array::from_fn(|i| 0xa0 + i as u8))
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + 7) as u8).collect()
}

/// A stride of 0xa5, so that a byte that nobody wrote shows.
fn stride(block: u32) -> Vec<u8> {
    vec![0xa5; HEADER_LEN + block as usize]
}

fn sealed(context: &BlockContext, index: u64) -> Vec<u8> {
    let mut out = stride(context.block);
    Sealer::new(&key(), context).seal(index, &payload(context.block as usize), &mut out).unwrap();
    out
}

/// Made with another implementation (Python's `cryptography`, on OpenSSL): counter of the block, index, block size;
/// header, first 32 bytes of the payload, SHA-256 of the stride.
const FROZEN: [(u64, u64, u32, &str, &str, &str); 4] = [
    (
        1,
        0,
        512,
        "a0a1a2a3a4a5a6a7a8a9000000000001dfc1088bbabf5727c4cab49a6494603c",
        "46878988cdcb41476d95462cbfb6ec919418a263400a82cad89df8494e0f4d01",
        "d69c21ac4bec7bcbb955c1f0ef912c0ccb47c9ece25e1f46c91cd92e402b33b3",
    ),
    (
        (1 << 26) - 1,
        7,
        512,
        "a0a1a2a3a4a5a6a7a8a9000003ffffff00e8611672454e14c193c7f987d0a03d",
        "2b5afd7b9298de6524926b94d579cc524e63ffab2be820158470666b7715a538",
        "c9c9914cf68926d3179118cd2f5c6a3d167800a308d41234a792e880597d1f58",
    ),
    (
        1 << 26,
        7,
        512,
        "a0a1a2a3a4a5a6a7a8a9000004000000b01401fb9748cb9c1b7705f89b0c5728",
        "a56c96caf03dbe1abbd36ace6fc175c20daf9bf7c21d80ada2977dfc0ceee7b2",
        "a66c672cd2d3bf0eaad42bdd48e7b5937fc41ae7da7f86a9e6739895a4090e70",
    ),
    (
        (1 << 48) - 1,
        1 << 40,
        4096,
        "a0a1a2a3a4a5a6a7a8a9ffffffffffff83c8f2406f5b1ff40df3c0942bb004bf",
        "acb18b6a787bcaa170aae252ef564d0860115c9ebe74cb9461a97ee75c307829",
        "bc218d741cafe9287e7b720e3ed32b1459d6dba47ea4aa5abddba69990ac38e5",
    ),
];

#[test]
fn the_format_is_frozen() {
    for (counter, index, block, header, first, digest) in FROZEN {
        let mut out = stride(block);
        let mut sealer = Sealer::with_salt(&key(), &context(block), salt(), counter - 1);
        let stamp = sealer.seal(index, &payload(block as usize), &mut out).unwrap();
        assert_eq!(stamp, Stamp { salt: salt(), counter });
        assert_eq!(hex(&out[..32]), header);
        assert_eq!(hex(&out[32..64]), first);
        assert_eq!(hex(&Sha256::digest(&out)), digest);

        let mut plain = vec![0xa5; block as usize];
        assert_eq!(Opener::new(&key(), &context(block)).open(index, &out, &mut plain), Ok(stamp));
        assert_eq!(plain, payload(block as usize));
    }
}

#[test]
fn attack_26_a_block_in_another_place() {
    let home = context(512);
    let block = sealed(&home, 5);
    let mut plain = vec![0; 512];
    let mut fails = |key: &LeaseKey, context: &BlockContext, index| {
        plain.fill(0xa5);
        assert_eq!(Opener::new(key, context).open(index, &block, &mut plain), Err(OpenError::Tag));
        assert!(plain.iter().all(|&byte| byte == 0), "unverified bytes were left");
    };
    fails(&key(), &home, 4);
    fails(&key(), &home, 5 | 1 << 63);
    for tenant in ["team-8", "team-", "team-77"] {
        fails(&key(), &BlockContext { tenant: tenant.parse().unwrap(), ..home.clone() }, 5);
    }
    fails(&key(), &BlockContext { lease: LeaseId::random(), ..home.clone() }, 5);
    fails(&key(), &BlockContext { generation: 4, ..home.clone() }, 5);
    fails(&LeaseKey::generate(), &home, 5);

    // Another block size does not even fit; what fits by cutting or by growing does not open.
    for block_size in [1024, 2048] {
        let other = context(block_size);
        let mut grown = block.clone();
        grown.resize(other.stride(), 0);
        let mut plain = vec![0; block_size as usize];
        assert_eq!(Opener::new(&key(), &other).open(5, &block, &mut plain), Err(OpenError::Length));
        assert_eq!(Opener::new(&key(), &other).open(5, &grown, &mut plain), Err(OpenError::Tag));
    }
    println!("attack 26 -: seen another index, tenant, lease, generation or block size: it does not open");
}

/// The block size is bound by itself, not just by the length of what is sealed.
#[test]
fn the_block_size_is_in_the_associated_data() {
    for (size, end) in [(512, "000000000000000900000200"), (1024, "000000000000000900000400")] {
        assert!(hex(Aad::new(&context(size)).of(9)).ends_with(end));
    }
}

#[test]
fn attack_24_any_bit_of_a_sealed_block() {
    let good = sealed(&context(512), 0);
    let mut opener = Opener::new(&key(), &context(512));
    let mut plain = vec![0; 512];
    opener.open(0, &good, &mut plain).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        plain.fill(0xa5);
        assert_eq!(opener.open(0, &bad, &mut plain), Err(OpenError::Tag), "bit {bit}");
        assert!(plain.iter().all(|&byte| byte == 0), "unverified bytes were left at bit {bit}");
    }
    assert!(opener.open(0, &good, &mut plain).is_ok());
    println!("attack 24 -: seen any bit of a sealed block: it does not open, and no byte of it is left");
}

#[test]
fn an_empty_header_is_empty_whatever_follows() {
    let mut opener = Opener::new(&key(), &context(512));
    let mut block = vec![0; HEADER_LEN + 512];
    let mut plain = vec![0xa5; 512];
    assert_eq!(opener.open(0, &block, &mut plain), Err(OpenError::Empty));
    assert_eq!(Opener::stamp(&block), None);
    block[HEADER_LEN] = 1;
    assert_eq!(opener.open(0, &block, &mut plain), Err(OpenError::Empty));
    for at in [0, 15, 16, 31] {
        let mut block = vec![0; HEADER_LEN + 512];
        block[at] = 1;
        plain.fill(0xa5);
        assert_eq!(opener.open(0, &block, &mut plain), Err(OpenError::Tag), "byte {at}");
        assert_eq!(plain, [0; 512]);
        assert!(Opener::stamp(&block).is_some());
    }
    assert_eq!(Opener::stamp(&[1; 31]), None);
}

#[test]
fn lengths_are_checked() {
    let mut sealer = Sealer::new(&key(), &context(512));
    for (plain, out) in [(511, 544), (513, 544), (512, 543), (512, 545), (0, 32), (0, 0)] {
        let mut block = vec![0xa5; out];
        assert_eq!(sealer.seal(0, &vec![1; plain], &mut block), Err(SealError::Length));
        assert!(block.iter().all(|&byte| byte == 0xa5));
        let mut plain = vec![0xa5; plain];
        assert_eq!(Opener::new(&key(), &context(512)).open(0, &block, &mut plain), Err(OpenError::Length));
        assert!(plain.iter().all(|&byte| byte == 0));
    }
    for size in [0, 1, 256, 513, 1 << 21, u32::MAX] {
        let context = context(size);
        assert!(!context.is_valid());
        if size < 4096 {
            let mut block = stride(size);
            assert_eq!(
                Sealer::new(&key(), &context).seal(0, &vec![0; size as usize], &mut block),
                Err(SealError::Length)
            );
        }
    }
}

#[test]
fn counters_never_repeat_and_end() {
    let mut out = stride(512);
    let mut sealer = Sealer::new(&key(), &context(512));
    for counter in 1..100 {
        assert_eq!(sealer.seal(0, &[0; 512], &mut out).unwrap(), Stamp { salt: sealer.salt(), counter });
        // A refused call uses up no counter and none twice.
        assert_eq!(sealer.seal(0, &[0; 511], &mut out), Err(SealError::Length));
    }
    let mut last = Sealer::with_salt(&key(), &context(512), salt(), MAX_COUNTER - 1);
    assert_eq!(last.seal(0, &[0; 512], &mut out).unwrap().counter, MAX_COUNTER);
    out.fill(0xa5);
    for _ in 0..2 {
        assert_eq!(last.seal(0, &[0; 512], &mut out), Err(SealError::Exhausted));
        assert!(out.iter().all(|&byte| byte == 0xa5));
    }
}

#[test]
fn one_sealer_crosses_into_the_next_key_and_its_opener_follows() {
    let mut sealer = Sealer::with_salt(&key(), &context(512), salt(), (1 << EPOCH_BITS) - 3);
    let mut opener = Opener::new(&key(), &context(512));
    let mut plain = vec![0; 512];
    for index in 0..5 {
        let mut out = stride(512);
        let stamp = sealer.seal(index, &payload(512), &mut out).unwrap();
        assert_eq!(stamp.epoch(), u32::from(index >= 2));
        assert_eq!(opener.open(index, &out, &mut plain), Ok(stamp));
        assert_eq!(plain, payload(512));
    }
}

#[test]
fn sealers_differ_in_salt_and_refuse_none() {
    let (a, b) = (Sealer::new(&key(), &context(512)), Sealer::new(&key(), &context(512)));
    assert_ne!(a.salt(), b.salt());
    let mut out = stride(512);
    let mut unsalted = Sealer::with_salt(&key(), &context(512), Salt([0; 10]), 0);
    assert_eq!(unsalted.seal(0, &[0; 512], &mut out), Err(SealError::NoSalt));
    assert!(out.iter().all(|&byte| byte == 0xa5));
}

#[test]
fn an_opener_keeps_what_opened_and_bounds_it() {
    let context = context(512);
    let mut opener = Opener::new(&key(), &context);
    let mut plain = vec![0; 512];
    let hot = sealed(&context, 0);
    let hot_stamp = opener.open(0, &hot, &mut plain).unwrap();

    // Invented salts open nothing and push nothing out.
    for invented in 0..200_u8 {
        let mut block = hot.clone();
        block[..10].fill(invented | 1);
        assert_eq!(opener.open(0, &block, &mut plain), Err(OpenError::Tag));
        assert!(!opener.holds(Opener::stamp(&block).unwrap()));
    }
    assert!(opener.holds(hot_stamp));

    // Honest ones push out the one that was of no use for longest, never the one in use.
    let second = opener.open(1, &sealed(&context, 1), &mut plain).unwrap();
    for index in 0..Opener::KEYS as u64 {
        opener.open(index, &sealed(&context, index), &mut plain).unwrap();
        opener.open(0, &hot, &mut plain).unwrap();
    }
    assert!(opener.holds(hot_stamp));
    assert!(!opener.holds(second));
}

#[test]
fn a_code_is_of_one_key_one_label_one_context_and_one_text() {
    let code = key().authenticate(b"label", b"context", b"data");
    assert!(key().verify(b"label", b"context", b"data", &code));
    assert!(!LeaseKey::generate().verify(b"label", b"context", b"data", &code));
    assert!(!key().verify(b"labelc", b"ontext", b"data", &code));
    assert!(!key().verify(b"label", b"contextd", b"ata", &code));
    assert!(!key().verify(b"label", b"context", b"date", &code));
    assert!(!key().verify(b"label", b"context", b"data", &code[..31]));
    assert!(!key().verify(b"label", b"context", b"data", &[]));
}

/// Block sizes from the smallest to the largest, small ones more often.
fn block_size() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 9..=13_u32, 1 => 14..=20_u32].prop_map(|bits| 1 << bits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The engine of this build against the pure-Rust one.
    #[test]
    fn both_engines_produce_the_same_bytes(
        key: [u8; 32], nonce: [u8; 12], aad in prop::collection::vec(any::<u8>(), 0..100),
        size in block_size(), seed: u64,
    ) {
        let plain: Vec<u8> = (0..u64::from(size)).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let (engine, oracle) = (aead::Key::new(&key).unwrap(), aead::pure::Key::new(&key).unwrap());
        let (mut a, mut b) = (vec![0xa5; plain.len()], vec![0x5a; plain.len()]);
        let (mut tag_a, mut tag_b) = ([0xa5; TAG_LEN], [0x5a; TAG_LEN]);
        engine.seal(nonce, &aad, &plain, &mut a, &mut tag_a).unwrap();
        oracle.seal(nonce, &aad, &plain, &mut b, &mut tag_b).unwrap();
        prop_assert!(a == b && tag_a == tag_b);

        let mut opened = vec![0xa5; plain.len()];
        engine.open(nonce, &aad, &b, &tag_b, &mut opened).unwrap();
        prop_assert!(opened == plain);
        opened.fill(0xa5);
        oracle.open(nonce, &aad, &a, &tag_a, &mut opened).unwrap();
        prop_assert!(opened == plain);

        tag_a[0] ^= 1;
        prop_assert!(engine.open(nonce, &aad, &a, &tag_a, &mut opened).is_none());
        prop_assert!(oracle.open(nonce, &aad, &a, &tag_a, &mut opened).is_none());
    }

    #[test]
    fn what_is_sealed_opens(size in block_size(), index: u64, generation: u64, seed: u8) {
        let context = BlockContext { generation, ..context(size) };
        let plain: Vec<u8> = (0..size).map(|i| (i as u8).wrapping_mul(seed) ^ (i >> 8) as u8).collect();
        let mut out = stride(size);
        let stamp = Sealer::new(&key(), &context).seal(index, &plain, &mut out).unwrap();
        prop_assert_eq!(Opener::stamp(&out), Some(stamp));
        let mut opened = vec![0xa5; size as usize];
        prop_assert_eq!(Opener::new(&key(), &context).open(index, &out, &mut opened), Ok(stamp));
        prop_assert!(opened == plain);
    }

    #[test]
    fn stamps_survive_bytes(salt: [u8; 10], counter in 0..=MAX_COUNTER) {
        let stamp = Stamp { salt: Salt(salt), counter };
        prop_assert_eq!(Stamp::from_bytes(&stamp.to_bytes()), stamp);
    }
}
