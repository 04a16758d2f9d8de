//! Operations between two engines and nothing else, to be counted: `scripts/instructions` runs this under a tool that counts
//! instructions, with OVERBANK_COUNT="OP BYTES TIMES", once with few and once with many.

use super::sim_link::Faults;
use super::sim_tests::Pair;
use crate::{Mtu, Op, WcStatus};

#[test]
fn operations() {
    let told = std::env::var("OVERBANK_COUNT").unwrap_or_else(|_| "read 4096 10".to_owned());
    let words: Vec<&str> = told.split(' ').collect();
    let (op, len, times) = (words[0], words[1].parse().unwrap(), words[2].parse().unwrap());
    let op = if op == "read" { Op::Read } else { Op::Write };
    let mut pair = Pair::new(1, Faults::default(), Mtu::Mtu4096, 1 << 16);
    let theirs = pair.b.fill(5);
    for id in 0..times {
        assert_eq!(pair.run(&[pair.request(id, op, 0, 0, len)]), [(id, WcStatus::SUCCESS)]);
    }
    assert_eq!(op == Op::Read, pair.a.bytes()[..len] == theirs[..len]);
}
