//! Tokens that a stranger wrote: whatever is in them, refusing them is no more work than taking an honest one.

use std::time::{Duration, Instant};

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId};
use overbank_fabric::labels;
use overbank_fabric::share;
use overbank_fabric::signed::{from_cbor, to_cbor};
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{MAX_BLOCKS, Rights, Scope, Token};

const BLOCK: usize = 153;

/// A token as a message brings it.
fn token(bytes: &[u8]) -> Token {
    let len = u32::try_from(bytes.len()).expect("short");
    from_cbor(&[&[0x5a][..], &len.to_be_bytes(), bytes].concat()).expect("any bytes travel as a token")
}

/// So many blocks, each good, as an attacker can sign them who holds the first. Begins with version and number.
fn chain(authd: &Identity, holder: &Identity, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    for block in 0..blocks {
        bytes.extend([7; 16]);
        bytes.extend([8; 16]);
        bytes.extend(1_000_000_u64.to_be_bytes());
        bytes.extend(0_u64.to_be_bytes());
        bytes.extend(16_u64.to_be_bytes());
        bytes.push(3);
        bytes.extend(holder.public().0);
        let signer = if block == 0 { authd } else { holder };
        let signature = signer.sign(labels::TOKEN, &[&bytes[..1], &bytes[2..]]);
        bytes.extend(signature.0);
    }
    bytes[1] = blocks as u8;
    bytes
}

/// The quickest of some tries.
fn cost(work: impl Fn() -> bool) -> Duration {
    let once = || {
        let began = Instant::now();
        std::hint::black_box(work());
        began.elapsed()
    };
    (0..9).map(|_| once()).min().expect("nine")
}

/// Most memory that this process ever had, KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it is told");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn attack_14_hostile_tokens_cost_no_more_than_an_honest_one() {
    let (authd, mallory) = (Identity::generate(), Identity::generate());
    let key = authd.public();
    let honest = token(&chain(&authd, &mallory, MAX_BLOCKS));
    assert!(honest.verify(&key).is_ok(), "it is laid out as it should be");
    let usual = cost(|| honest.verify(&key).is_ok());

    let long = chain(&authd, &mallory, 300);
    let eight = chain(&authd, &mallory, MAX_BLOCKS);
    let nine = chain(&authd, &mallory, MAX_BLOCKS + 1);
    let mut hostile = vec![("nine blocks", nine.clone())];
    for claimed in [0, 1, 8, 9, 255] {
        let head = [1, claimed];
        hostile.push(("10,000 blocks of nothing", [&head[..], &vec![0; 10_000 * BLOCK]].concat()));
        hostile.push(("300 good blocks", [&head[..], &long[2..]].concat()));
        hostile
            .push(("300 good blocks and 9,700 of nothing", [&head[..], &long[2..], &vec![0; 9_700 * BLOCK]].concat()));
        if claimed != 8 {
            hostile.push(("eight good blocks that are said to be others", [&head[..], &eight[2..]].concat()));
        }
        hostile.push(("nine blocks, cut to eight at the front", [&head[..], &nine[2 + BLOCK..]].concat()));
    }
    for cut in [0, 1, 2, 3, BLOCK, 2 + BLOCK - 1, eight.len() - BLOCK, eight.len() - 1] {
        hostile.push(("cut short", eight[..cut].to_vec()));
    }
    hostile.push(("one byte more", [&eight[..], &[0]].concat()));
    let mut wraps = chain(&authd, &mallory, 1);
    wraps[2 + 40..2 + 56].fill(0xff);
    let signature = authd.sign(labels::TOKEN, &[&wraps[..1], &wraps[2..2 + 89]]);
    wraps[2 + 89..].copy_from_slice(&signature.0);
    hostile.push(("a range that wraps", wraps));

    let before = peak();
    let mut worst = (Duration::ZERO, "");
    for (what, bytes) in &hostile {
        let token = token(bytes);
        assert!(token.verify(&key).is_err(), "{what}");
        worst = worst.max((cost(|| token.verify(&key).is_ok()), *what));
    }
    // Lengths that lie in what carries a token.
    for head in [[0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], [0x5b, 0, 0, 0, 0x40, 0, 0, 0, 0]] {
        let lying = [&head[..], &eight].concat();
        assert!(from_cbor::<Token>(&lying).is_err());
        worst = worst.max((cost(|| from_cbor::<Token>(&lying).is_ok()), "a length that lies"));
    }
    // And in a share: what is longer than one can be is not looked at.
    let many = vec![0xff; share::MAX_LEN + 1];
    worst = worst.max((cost(|| share::open(&many, &mallory).is_ok()), "a long share"));
    let grown = peak() - before;
    println!("eight signatures cost {usual:?}; the worst of {} refusals {:?}: {}", hostile.len() + 3, worst.0, worst.1);
    println!("they took {grown} KiB at most");
    assert!(
        worst.0 < usual * 3 + Duration::from_micros(200),
        "{}: {:?}, and {usual:?} for an honest one",
        worst.1,
        worst.0
    );
    assert!(grown < 64 << 10, "{grown} KiB");
    println!("attack 14 -: seen refused with no more work than an honest token of eight blocks");
}

#[test]
fn a_token_that_was_narrowed_by_hand_is_the_one_that_the_library_makes() {
    let (authd, holder) = (Identity::generate(), Identity::generate());
    let scope = Scope {
        lease: LeaseId([7; 16]),
        deadline: Deadline { boot: BootId([8; 16]), tick: Tick(1_000_000) },
        first_block: 0,
        blocks: 16,
        rights: Rights::READ_WRITE,
        holder: holder.public(),
    };
    let made = Token::grant(&scope, &authd).narrow(&authd.public(), &scope, &holder).expect("as wide");
    assert_eq!(to_cbor(&made), to_cbor(&token(&chain(&authd, &holder, 2))));
}
