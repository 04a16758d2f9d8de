use overbank_fabric::ids::LeaseId;
use overbank_fabric::token::Rights;
use overbank_verbs::Mtu;

use super::*;
use crate::lease_file::tests::facts;

fn endpoint() -> EndpointBytes {
    let gid = Endpoint::gid_of("127.0.0.1".parse().expect("an address"));
    EndpointBytes(Endpoint { flags: 1, mtu: Mtu::Mtu4096, qpn: 17, psn: 5, port: 4791, lid: 0, gid }.to_bytes())
}

#[test]
fn only_an_answer_that_gives_all_of_what_was_granted_is_taken() {
    let facts = facts();
    let scope = facts.token.verify(&facts.authd_key).expect("granted");
    let hash = [7; 32];
    let good = AttachAnswer {
        request: hash,
        lease: facts.lease,
        lanes: vec![endpoint()],
        address: 0x7000_0000,
        rkey: 9,
        first_block: 0,
        blocks: scope.blocks,
        stride: facts.block + HEADER_LEN as u32,
        rights: Rights::READ_WRITE,
        left_ms: 1000,
    };
    let judge = |answer: &AttachAnswer| check(answer, &hash, &scope, &facts, 1);
    let (window, remotes) = judge(&good).expect("all of it");
    assert_eq!((window.address, window.rkey, window.blocks, remotes[0].qpn), (0x7000_0000, 9, scope.blocks, 17));
    let end = u64::from(good.stride) * good.blocks;
    assert!(judge(&AttachAnswer { address: u64::MAX - end, ..good.clone() }).is_ok());
    let no_qp = EndpointBytes([0; 32]);
    for bad in [
        AttachAnswer { request: [8; 32], ..good.clone() },
        AttachAnswer { lease: LeaseId::random(), ..good.clone() },
        AttachAnswer { lanes: vec![], ..good.clone() },
        AttachAnswer { lanes: vec![endpoint(), endpoint()], ..good.clone() },
        AttachAnswer { lanes: vec![no_qp], ..good.clone() },
        AttachAnswer { stride: facts.block, ..good.clone() },
        AttachAnswer { stride: good.stride + 1, ..good.clone() },
        AttachAnswer { stride: u32::MAX, ..good.clone() },
        AttachAnswer { first_block: 1, ..good.clone() },
        AttachAnswer { blocks: scope.blocks - 1, ..good.clone() },
        AttachAnswer { blocks: 0, ..good.clone() },
        AttachAnswer { first_block: u64::MAX, blocks: 1, ..good.clone() },
        AttachAnswer { blocks: u64::MAX, ..good.clone() },
        AttachAnswer { rights: Rights::READ, ..good.clone() },
        AttachAnswer { rights: Rights::WRITE, ..good.clone() },
        AttachAnswer { address: u64::MAX - end + 1, ..good.clone() },
        AttachAnswer { address: u64::MAX, ..good.clone() },
    ] {
        assert!(judge(&bad).is_err(), "{bad:?}");
    }
}
