//! What a responder refuses, section by section of the InfiniBand specification (volume 1, chapter 9), at each path MTU.
//! Broken packets and the most common refusals are in `responder_tests`; here is the order of the rules, and their edges.

use std::sync::Arc;
use std::time::Duration;

use super::sim_tests::pattern;
use super::test_peer::{Answer, Draft, MEMORY, Peer, acknowledgement, reth};
use super::wire::Opcode;
use crate::{Access, Endpoint, Mtu, QpCaps, QpState, Retry};

const INVALID_REQUEST: u8 = 0x61;
const REMOTE_ACCESS: u8 = 0x62;

fn at(peer: &Peer, len: u32) -> Vec<u8> {
    reth(peer.va(), peer.mr.rkey, len)
}

fn immediate(mut extension: Vec<u8>) -> Vec<u8> {
    extension.extend([0x11, 0x22, 0x33, 0x44]);
    extension
}

fn atomic(address: u64, rkey: u32) -> Vec<u8> {
    let mut extension = address.to_be_bytes().to_vec();
    extension.extend(rkey.to_be_bytes());
    extension.extend([1; 16]);
    extension
}

/// The request gets this NAK and nothing else, no byte changes, and the connection is over.
fn assert_refused(peer: &mut Peer, what: &str, draft: &Draft, syndrome: u8) {
    let (before, psn) = (peer.bytes(), draft.psn);
    let answers = peer.ask(draft);
    assert_eq!(answers.len(), 1, "{what}: {answers:?}");
    let aeth = answers[0].aeth.unwrap_or_default();
    assert_eq!((answers[0].opcode, answers[0].psn, aeth.0), (Opcode::ACKNOWLEDGE, psn, syndrome), "{what}");
    assert!(peer.bytes() == before, "{what}: bytes changed");
    assert_eq!(peer.state(), QpState::Error, "{what}");
    let extension = at(peer, 4);
    for opcode in [Opcode::WRITE_ONLY, Opcode::READ_REQUEST] {
        let data: &[u8] = if opcode == Opcode::WRITE_ONLY { b"late" } else { b"" };
        let late = peer.draft(opcode, extension.clone(), data);
        assert_eq!(peer.ask(&late), [], "{what}: still answers");
    }
    assert!(peer.bytes() == before, "{what}: bytes changed later");
}

fn assert_alive(peer: &mut Peer) {
    let psn = peer.psn;
    let answers = peer.write(60_000, b"live");
    assert_eq!((answers[0].psn, answers[0].aeth.unwrap().0), (psn & 0x00ff_ffff, 0x1f));
    assert_eq!(&peer.bytes()[60_000..60_004], b"live");
}

// 9.7.4.1.1, PSN verification, comes before every other check: behind a gap nothing is looked at but the gap, and what was
// there before ends nothing.
#[test]
fn sec_9_7_4_1_1_the_sequence_number_is_looked_at_first() {
    let invalid = |peer: &Peer| {
        [
            (Opcode::SEND_ONLY, vec![], b"data".to_vec()),
            (Opcode::WRITE_LAST, vec![], b"data".to_vec()),
            (Opcode::WRITE_ONLY, reth(peer.va(), peer.mr.rkey ^ 1, 4), b"data".to_vec()),
            (Opcode::WRITE_ONLY, at(peer, 400), b"data".to_vec()),
            (Opcode::FETCH_ADD, atomic(peer.va(), peer.mr.rkey), vec![]),
        ]
    };
    let mut peer = Peer::new(Mtu::Mtu1024);
    peer.write(0, b"1111");
    let (psn, before) = (peer.psn, peer.bytes());
    let mut reported = 0;
    for (opcode, extension, data) in invalid(&peer) {
        let early = peer.draft_at(psn + 3, opcode, extension, &data);
        for answer in peer.ask(&early) {
            assert_eq!(answer, acknowledgement(psn, 0x60, 1));
            reported += 1;
        }
    }
    assert_eq!(reported, 1);
    for (opcode, extension, data) in invalid(&peer) {
        let late = peer.draft_at(psn.wrapping_sub(1), opcode, extension, &data);
        assert!(peer.ask(&late).iter().all(|answer| answer.aeth == Some((0x1f, 1))), "{opcode:?}");
    }
    assert!(peer.bytes() == before);
    assert_alive(&mut peer);
}

// 9.7.4.1.2: which opcode may follow which. After FIRST or MIDDLE of a WRITE only MIDDLE or LAST of a WRITE; else no
// MIDDLE or LAST.
#[test]
fn sec_9_7_4_1_2_the_order_of_opcodes() {
    let all: [(Opcode, usize); 23] = [
        (Opcode::SEND_FIRST, 256),
        (Opcode::SEND_MIDDLE, 256),
        (Opcode::SEND_LAST, 8),
        (Opcode::SEND_LAST_IMMEDIATE, 8),
        (Opcode::SEND_ONLY, 8),
        (Opcode::SEND_ONLY_IMMEDIATE, 8),
        (Opcode::SEND_LAST_INVALIDATE, 8),
        (Opcode::SEND_ONLY_INVALIDATE, 8),
        (Opcode::WRITE_FIRST, 256),
        (Opcode::WRITE_MIDDLE, 256),
        (Opcode::WRITE_LAST, 256),
        (Opcode::WRITE_LAST_IMMEDIATE, 256),
        (Opcode::WRITE_ONLY, 8),
        (Opcode::WRITE_ONLY_IMMEDIATE, 8),
        (Opcode::READ_REQUEST, 0),
        (Opcode::COMPARE_SWAP, 0),
        (Opcode::FETCH_ADD, 0),
        // No requests at all: they are the other direction's, and change nothing here.
        (Opcode::READ_RESPONSE_FIRST, 256),
        (Opcode::READ_RESPONSE_MIDDLE, 256),
        (Opcode::READ_RESPONSE_LAST, 8),
        (Opcode::READ_RESPONSE_ONLY, 8),
        (Opcode::ACKNOWLEDGE, 0),
        (Opcode::ATOMIC_ACKNOWLEDGE, 0),
    ];
    for begun in [0, 1, 2] {
        for (opcode, len) in all {
            let mut peer = Peer::new(Mtu::Mtu256);
            let what = format!("{opcode:?} behind {begun} packets of a WRITE");
            for packet in 0..begun {
                let (opcode, extension) = if packet == 0 {
                    (Opcode::WRITE_FIRST, at(&peer, 256 * (begun + 1)))
                } else {
                    (Opcode::WRITE_MIDDLE, vec![])
                };
                let draft = peer.draft(opcode, extension, &pattern(9, 256));
                assert_eq!(peer.ask(&draft), [acknowledgement(draft.psn, 0x1f, 0)], "{what}");
            }
            let extension = match opcode {
                Opcode::WRITE_FIRST => at(&peer, 512),
                Opcode::WRITE_ONLY => at(&peer, 8),
                Opcode::WRITE_ONLY_IMMEDIATE => immediate(at(&peer, 8)),
                Opcode::READ_REQUEST => at(&peer, 8),
                Opcode::COMPARE_SWAP | Opcode::FETCH_ADD => atomic(peer.va(), peer.mr.rkey),
                Opcode::SEND_LAST_IMMEDIATE | Opcode::SEND_ONLY_IMMEDIATE | Opcode::WRITE_LAST_IMMEDIATE => {
                    immediate(vec![])
                }
                Opcode::SEND_LAST_INVALIDATE | Opcode::SEND_ONLY_INVALIDATE => peer.mr.rkey.to_be_bytes().to_vec(),
                Opcode::ATOMIC_ACKNOWLEDGE => vec![0; 12],
                opcode if opcode.is_response() && opcode != Opcode::READ_RESPONSE_MIDDLE => vec![0x1f, 0, 0, 0],
                _ => vec![],
            };
            let served = match opcode {
                Opcode::WRITE_FIRST | Opcode::WRITE_ONLY | Opcode::READ_REQUEST => begun == 0,
                Opcode::WRITE_LAST => begun > 0,
                _ => false,
            };
            let draft = peer.draft(opcode, extension, &pattern(8, len));
            if served {
                let answers = peer.ask(&draft);
                assert!(answers.len() == 1 && answers[0].psn == draft.psn, "{what}: {answers:?}");
                assert_eq!(peer.state(), QpState::ReadyToSend, "{what}");
            } else if opcode.is_response() {
                let before = peer.bytes();
                assert_eq!(peer.ask(&draft), [], "{what}");
                assert!(peer.bytes() == before && peer.state() == QpState::ReadyToSend, "{what}");
            } else {
                assert_refused(&mut peer, &what, &draft, INVALID_REQUEST);
            }
        }
    }
}

// 9.7.4.1.3: an operation that the responder does not support is an invalid request. SENDs and immediate data need a
// receive queue, and these queue pairs have none: not one that is empty for now. "Receiver not ready" would
// tell the requester to try again, for ever where its count of retries is 7, and nothing would ever be there. The data of
// such a WRITE is not written either.
#[test]
fn sec_9_7_4_1_3_nothing_is_received_here() {
    for mtu in Mtu::ALL {
        for (opcode, extension) in [
            (Opcode::SEND_FIRST, vec![]),
            (Opcode::SEND_ONLY, vec![]),
            (Opcode::SEND_ONLY_IMMEDIATE, vec![0; 4]),
            (Opcode::SEND_ONLY_INVALIDATE, vec![0; 4]),
        ] {
            for len in [0, 1, 200] {
                let mut peer = Peer::new(mtu);
                let draft = peer.draft(opcode, extension.clone(), &pattern(9, len));
                assert_refused(&mut peer, &format!("{opcode:?} of {len}"), &draft, INVALID_REQUEST);
            }
        }
        // With a key, address and length that are right, and wrong: the operation is looked at before them.
        for (key, len) in [(0, 8), (1, 8), (0, 0), (0, u32::MAX)] {
            let mut peer = Peer::new(mtu);
            let extension = immediate(reth(peer.va(), peer.mr.rkey ^ key, len));
            let draft = peer.draft(Opcode::WRITE_ONLY_IMMEDIATE, extension, &pattern(9, 8));
            assert_refused(&mut peer, "WRITE ONLY with immediate data", &draft, INVALID_REQUEST);
        }
        let mut peer = Peer::new(mtu);
        let unit = mtu.bytes();
        let first = peer.draft(Opcode::WRITE_FIRST, at(&peer, unit as u32 + 8), &pattern(9, unit));
        assert_eq!(peer.ask(&first), [acknowledgement(first.psn, 0x1f, 0)]);
        let last = peer.draft(Opcode::WRITE_LAST_IMMEDIATE, vec![0; 4], &pattern(9, 8));
        assert_refused(&mut peer, "WRITE LAST with immediate data", &last, INVALID_REQUEST);
    }
}

#[test]
fn sec_9_7_4_1_3_no_atomics_were_granted() {
    for opcode in [Opcode::COMPARE_SWAP, Opcode::FETCH_ADD] {
        for (offset, key) in [(0, 0), (4, 0), (1, 0), (MEMORY as u64, 0), (0, 1)] {
            for rights in [Access::all(), Access::empty()] {
                let mut peer = Peer::with(Mtu::Mtu1024, rights, Retry { timeout: Duration::from_millis(1), count: 3 });
                let extension = atomic(peer.va() + offset, peer.mr.rkey ^ key);
                let draft = peer.draft(opcode, extension, &[]);
                assert_refused(&mut peer, &format!("{opcode:?} at {offset}"), &draft, INVALID_REQUEST);
            }
        }
    }
}

// 9.7.4.1.5: a WRITE is let in as a whole, by its first packet; where it does not fit, none of it is written.
#[test]
fn sec_9_7_4_1_5_a_write_that_ends_outside_writes_nothing() {
    for mtu in Mtu::ALL {
        let unit = mtu.bytes() as u32;
        for len in [unit + 1, 2 * unit, 3 * unit + 5] {
            for beyond in [1, len - unit, len - 1] {
                let mut peer = Peer::new(mtu);
                let address = peer.va() + MEMORY as u64 - u64::from(len) + u64::from(beyond);
                let first = reth(address, peer.mr.rkey, len);
                let draft = peer.draft(Opcode::WRITE_FIRST, first, &pattern(9, unit as usize));
                assert_refused(&mut peer, &format!("{len} bytes, {beyond} too far"), &draft, REMOTE_ACCESS);
            }
        }
    }
}

#[test]
fn sec_9_7_4_1_5_the_key_that_counts_is_that_of_the_first_packet() {
    // What the region allows is looked at for the operation, not for the queue pair alone.
    for (access, opcode) in [
        (Access::REMOTE_READ, Opcode::WRITE_FIRST),
        (Access::LOCAL_WRITE, Opcode::WRITE_ONLY),
        (Access::REMOTE_WRITE, Opcode::READ_REQUEST),
        (Access::empty(), Opcode::READ_REQUEST),
    ] {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let mr = peer.engine.register(peer.pd, Arc::clone(&peer.memory), 0..MEMORY, access).unwrap();
        let (len, data) = match opcode {
            Opcode::WRITE_FIRST => (2000, pattern(9, 1024)),
            Opcode::WRITE_ONLY => (100, pattern(9, 100)),
            _ => (100, vec![]),
        };
        let draft = peer.draft(opcode, reth(peer.va(), mr.rkey, len), &data);
        assert_refused(&mut peer, &format!("{opcode:?} with {access:?}"), &draft, REMOTE_ACCESS);
    }
    // A region of another domain that covers the same bytes does not help, nor does one of our own that ended.
    for end in [false, true] {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let pd = if end { peer.pd } else { peer.engine.alloc_pd() };
        let mr = peer.engine.register(pd, Arc::clone(&peer.memory), 0..MEMORY, Access::all()).unwrap();
        if end {
            peer.engine.deregister(mr).unwrap();
        }
        let draft = peer.draft(Opcode::READ_REQUEST, reth(peer.va(), mr.rkey, 8), &[]);
        assert_refused(&mut peer, "a key of nobody's here", &draft, REMOTE_ACCESS);
    }
}

// 9.7.4.1.6: FIRST and MIDDLE carry just the path MTU, LAST and ONLY at least a byte and at most that, all together what
// the RETH says. ONLY may be empty.
#[test]
fn sec_9_7_4_1_6_lengths_at_every_mtu() {
    for mtu in Mtu::ALL {
        let unit = mtu.bytes();
        let first = |len: usize, data: usize| (Opcode::WRITE_FIRST, Some(len), data);
        let middle = |data: usize| (Opcode::WRITE_MIDDLE, None, data);
        let last = |data: usize| (Opcode::WRITE_LAST, None, data);
        let only = |len: usize, data: usize| (Opcode::WRITE_ONLY, Some(len), data);
        type Story = Vec<(Opcode, Option<usize>, usize)>;
        let good: [Story; 7] = [
            vec![only(0, 0)],
            vec![only(1, 1)],
            vec![only(unit, unit)],
            vec![first(unit + 1, unit), last(1)],
            vec![first(2 * unit, unit), last(unit)],
            vec![first(2 * unit + 1, unit), middle(unit), last(1)],
            vec![first(3 * unit, unit), middle(unit), last(unit)],
        ];
        for story in good {
            let mut peer = Peer::new(mtu);
            let mut written = Vec::new();
            for (number, (opcode, len, data)) in story.iter().enumerate() {
                let data = pattern(number as u64, *data);
                let extension = len.map_or(vec![], |len| at(&peer, len as u32));
                let draft = peer.draft(*opcode, extension, &data);
                let messages = u32::from(number + 1 == story.len());
                assert_eq!(peer.ask(&draft), [acknowledgement(draft.psn, 0x1f, messages)], "MTU {unit}: {story:?}");
                written.extend(data);
            }
            assert!(peer.bytes().starts_with(&written), "MTU {unit}: {story:?}");
            assert_alive(&mut peer);
        }
        let bad: [Story; 16] = [
            vec![first(2 * unit, unit - 1)],
            vec![first(2 * unit, unit - 4)],
            vec![first(2 * unit, 0)],
            vec![first(unit, unit)],
            vec![first(unit - 1, unit)],
            vec![first(0, unit)],
            vec![only(unit - 1, unit)],
            vec![only(unit, unit - 1)],
            vec![only(0, 1)],
            vec![only(1, 0)],
            vec![first(2 * unit, unit), last(unit - 1)],
            vec![first(2 * unit, unit), last(0)],
            vec![first(2 * unit, unit), middle(unit)],
            vec![first(2 * unit + 1, unit), last(unit)],
            vec![first(2 * unit + 1, unit), middle(unit), middle(unit)],
            vec![first(2 * unit + 1, unit), middle(unit), last(2)],
        ];
        for story in bad {
            let mut peer = Peer::new(mtu);
            let what = format!("MTU {unit}: {story:?}");
            for (number, (opcode, len, data)) in story.iter().enumerate() {
                let extension = len.map_or(vec![], |len| at(&peer, len as u32));
                let draft = peer.draft(*opcode, extension, &pattern(9, *data));
                if number + 1 < story.len() {
                    assert_eq!(peer.ask(&draft), [acknowledgement(draft.psn, 0x1f, 0)], "{what}");
                } else {
                    assert_refused(&mut peer, &what, &draft, INVALID_REQUEST);
                }
            }
        }
        // Beyond the path MTU, where a datagram can carry it.
        if unit < 4096 {
            for (opcode, len, data) in [only(unit + 1, unit + 1), only(2 * unit, 2 * unit), first(3 * unit, unit + 1)] {
                let mut peer = Peer::new(mtu);
                let draft = peer.draft(opcode, at(&peer, len.unwrap_or(0) as u32), &pattern(9, data));
                assert_refused(&mut peer, &format!("{data} bytes at MTU {unit}"), &draft, INVALID_REQUEST);
            }
        }
    }
}

// 9.7.4.1.6: no message is longer than 2^31 bytes; one of just that is looked at like any other.
#[test]
fn sec_9_7_4_1_6_the_longest_message() {
    for mtu in Mtu::ALL {
        let unit = mtu.bytes();
        for (opcode, data) in [(Opcode::READ_REQUEST, 0), (Opcode::WRITE_FIRST, unit)] {
            for (len, syndrome) in
                [(1 << 31, REMOTE_ACCESS), ((1 << 31) + 1, INVALID_REQUEST), (u32::MAX, INVALID_REQUEST)]
            {
                let mut peer = Peer::new(mtu);
                let draft = peer.draft(opcode, at(&peer, len), &pattern(9, data));
                assert_refused(&mut peer, &format!("{opcode:?} of {len}"), &draft, syndrome);
            }
        }
    }
}

// 9.7.4.1.4, resources: no more READs at once than were agreed on, and none where none were.
#[test]
fn sec_9_7_4_1_4_reads_beyond_the_limit() {
    for limit in [0, 1, 7] {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let caps = QpCaps { send_queue: 1, outstanding_reads: limit };
        let other = peer.engine.create_qp(peer.pd, peer.cq, caps).unwrap();
        let endpoint = Endpoint {
            lid: 0,
            flags: Endpoint::SOFT,
            mtu: Mtu::Mtu1024,
            qpn: 0x0077_0077,
            psn: 5,
            port: 4791,
            gid: Endpoint::gid_of(super::port_sim::address(1).ip()),
        };
        let retry = Retry { timeout: Duration::from_millis(1), count: 3 };
        peer.engine.connect(super::engine::Now(0), other, &endpoint, Access::all(), retry).unwrap();
        let read = |peer: &Peer, psn: u32| Draft {
            qpn: other.0,
            ..peer.draft_at(psn, Opcode::READ_REQUEST, at(peer, 16), &[])
        };
        // Answered in between, any number.
        let mut psn = 5;
        for _ in 0..if limit == 0 { 0 } else { 20 } {
            let draft = read(&peer, psn);
            assert_eq!(peer.ask(&draft).len(), 1);
            psn += 1;
        }
        for _ in 0..=limit {
            let draft = read(&peer, psn);
            assert_eq!(peer.engine.state(other), QpState::ReadyToSend, "limit {limit}");
            peer.say(&draft);
            psn += 1;
        }
        assert_eq!(peer.engine.state(other), QpState::Error, "limit {limit}");
        let answers = peer.answers();
        assert_eq!(answers.len(), usize::from(limit) + 1, "those before it are answered");
        let last: &Answer = &answers[usize::from(limit)];
        assert_eq!((last.psn, last.aeth.unwrap().0), (psn - 1, INVALID_REQUEST), "limit {limit}");
        assert_alive(&mut peer);
    }
}

// 9.7.4.1: of several faults the first in this order is named: sequence of opcodes, operation, rights and length, key.
#[test]
fn sec_9_7_4_1_the_order_of_the_checks() {
    let wrong_key = |peer: &Peer, len| reth(peer.va(), peer.mr.rkey ^ 0x100, len);
    type Tell<'a> = &'a dyn Fn(&Peer) -> (Opcode, Vec<u8>, Vec<u8>);
    let cases: [(&str, Tell<'_>, u8); 5] = [
        ("length before key", &|p| (Opcode::WRITE_ONLY, wrong_key(p, 8), pattern(9, 4)), INVALID_REQUEST),
        ("operation before key", &|p| (Opcode::FETCH_ADD, atomic(p.va(), 0), vec![]), INVALID_REQUEST),
        ("too long before key", &|p| (Opcode::READ_REQUEST, wrong_key(p, u32::MAX), vec![]), INVALID_REQUEST),
        ("key alone", &|p| (Opcode::WRITE_ONLY, wrong_key(p, 4), pattern(9, 4)), REMOTE_ACCESS),
        ("key alone, of a READ", &|p| (Opcode::READ_REQUEST, wrong_key(p, 4), vec![]), REMOTE_ACCESS),
    ];
    for (what, tell, syndrome) in cases {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let (opcode, extension, data) = tell(&peer);
        let draft = peer.draft(opcode, extension, &data);
        assert_refused(&mut peer, what, &draft, syndrome);
    }
}

// 9.9.3: a refusal ends the connection for both; what came before it is answered first, and what comes after never.
#[test]
fn sec_9_9_3_what_came_before_a_refusal_is_answered() {
    let mut peer = Peer::new(Mtu::Mtu256);
    let start = peer.psn;
    let write = peer.draft(Opcode::WRITE_ONLY, at(&peer, 4), b"1111");
    let read = peer.read_draft(0, 700, 3);
    let bad = peer.draft(Opcode::WRITE_ONLY, reth(peer.va(), 0, 4), b"evil");
    let late = peer.draft(Opcode::WRITE_ONLY, at(&peer, 4), b"late");
    [&write, &read, &bad, &late].iter().for_each(|draft| peer.say(draft));
    assert_eq!(&peer.bytes()[..4], b"1111");
    let answers = peer.answers();
    let heard: Vec<_> = answers.iter().map(|answer| (answer.opcode, answer.psn)).collect();
    let psn = |by: u32| (start + by) & 0x00ff_ffff;
    let expected = [
        (Opcode::READ_RESPONSE_FIRST, psn(1)),
        (Opcode::READ_RESPONSE_MIDDLE, psn(2)),
        (Opcode::READ_RESPONSE_LAST, psn(3)),
        (Opcode::ACKNOWLEDGE, psn(4)),
    ];
    assert_eq!(heard, expected);
    assert_eq!(answers[3].aeth, Some((REMOTE_ACCESS, 2)));
    assert_eq!(&answers[0].data[..4], b"1111");
    assert_eq!((peer.state(), peer.engine.next_timeout()), (QpState::Error, None));
}
