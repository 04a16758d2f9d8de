//! What is done for every block and every attach, to be counted: `scripts/instructions` runs this under a tool that counts
//! instructions, with OVERBANK_COUNT="WHAT BYTES TIMES", once with few and once with many.

use crate::block::{BlockContext, HEADER_LEN, LeaseKey, Opener, Sealer};
use crate::identity::Identity;
use crate::ids::{BootId, LeaseId};
use crate::time::{Deadline, Tick};
use crate::token::{Rights, Scope, Token};

#[test]
fn operations() {
    let told = std::env::var("OVERBANK_COUNT").unwrap_or_else(|_| "open 4096 10".to_owned());
    let words: Vec<&str> = told.split(' ').collect();
    let (what, block, times): (_, u32, u64) = (words[0], words[1].parse().unwrap(), words[2].parse().unwrap());
    let holder = Identity::generate();
    let token = Token::grant(
        &Scope {
            lease: LeaseId([1; 16]),
            deadline: Deadline { boot: BootId([2; 16]), tick: Tick(1000) },
            first_block: 10,
            blocks: 100,
            rights: Rights::READ_WRITE,
            holder: holder.public(),
        },
        &holder,
    );
    let context = BlockContext { tenant: "team-7".parse().unwrap(), lease: LeaseId([1; 16]), generation: 1, block };
    let key = LeaseKey::generate();
    let (mut sealer, mut opener) = (Sealer::new(&key, &context), Opener::new(&key, &context));
    let mut payload = vec![7; block as usize];
    let mut stride = vec![0; HEADER_LEN + payload.len()];
    sealer.seal(0, &payload, &mut stride).unwrap();
    for _ in 0..times {
        match what {
            "seal" => drop(sealer.seal(0, &payload, &mut stride).unwrap()),
            "open" => drop(opener.open(0, &stride, &mut payload).unwrap()),
            "token" => drop(token.verify(&holder.public()).unwrap()),
            _ => panic!("nothing is called {what}"),
        }
    }
    opener.open(0, &stride, &mut payload).unwrap();
    assert!(payload.iter().all(|&byte| byte == 7));
}
