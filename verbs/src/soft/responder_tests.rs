//! What a peer may ask, and what it is answered. Most rows were tried against the rxe of Linux 6.1 and are answered alike.

use std::sync::Arc;
use std::time::Duration;

use super::engine::Now;
use super::port_sim::address;
use super::sim_tests::pattern;
use super::test_peer::{Answer, Draft, MEMORY, Peer, acknowledgement, reth};
use super::wire::{MAX_DATAGRAM, Opcode};
use crate::{Access, Backing, Memory, Mtu, Op, QpState, Retry, WcStatus};

const RETRY: Retry = Retry { timeout: Duration::from_millis(1), count: 3 };

fn dropped(peer: &Peer, reason: &str) -> u64 {
    peer.engine.counters().dropped.get(reason).copied().unwrap_or(0)
}

/// The queue pair still lives: a good WRITE is carried out.
fn assert_alive(peer: &mut Peer) {
    let psn = peer.psn;
    let answers = peer.write(60_000, b"live");
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].psn, answers[0].aeth.unwrap().0), (psn & 0x00ff_ffff, 0x1f));
    assert_eq!(&peer.bytes()[60_000..60_004], b"live");
    assert_eq!(peer.state(), QpState::ReadyToSend);
}

/// The queue pair is in ERROR and silent, and what it had posted is flushed.
fn assert_dead(peer: &mut Peer) {
    assert_eq!(peer.state(), QpState::Error);
    let before = peer.bytes();
    assert_eq!(peer.write(60_000, b"dead"), []);
    assert!(peer.bytes() == before);
    assert_eq!(dropped(peer, "queue pair not ready"), 1);
}

// InfiniBand 9.7.5: a valid request is carried out and acknowledged where it asks for it; the MSN counts all.
#[test]
fn sec_9_7_5_writes_are_acknowledged_when_asked() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let psn = peer.psn;
    assert_eq!(peer.write(100, b"hello"), [acknowledgement(psn, 0x1f, 1)]);
    assert_eq!(&peer.bytes()[100..105], b"hello");
    let extension = reth(peer.va(), peer.mr.rkey, 4);
    let unasked = Draft { ack_request: false, ..peer.draft(Opcode::WRITE_ONLY, extension, b"abcd") };
    assert_eq!(peer.ask(&unasked), []);
    assert_eq!(&peer.bytes()[..4], b"abcd");
    assert_eq!(peer.write(0, b"abce"), [acknowledgement(psn + 2, 0x1f, 3)]);
    assert_eq!(peer.engine.counters().received, 3);
    assert_eq!(peer.engine.counters().sent, 2);
}

// InfiniBand 9.7.5: one acknowledgement answers for all requests before it.
#[test]
fn sec_9_7_5_acknowledgements_are_coalesced() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let first = peer.psn;
    for _ in 0..3 {
        let extension = reth(peer.va(), peer.mr.rkey, 4);
        let draft = peer.draft(Opcode::WRITE_ONLY, extension, b"abcd");
        peer.say(&draft);
    }
    assert_eq!(peer.answers(), [acknowledgement(first + 2, 0x1f, 3)]);
}

// InfiniBand 9.4.4: READ responses FIRST, MIDDLE and LAST, MIDDLE without AETH.
#[test]
fn sec_9_4_4_a_read_is_answered_in_packets_of_the_mtu() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let psn = peer.psn;
    let draft = peer.read_draft(100, 3000, 3);
    let bytes = peer.bytes();
    let answer = |at: u32, opcode, aeth, range: std::ops::Range<usize>| Answer {
        opcode,
        psn: (psn + at) & 0x00ff_ffff,
        ack_request: false,
        aeth,
        reth: None,
        data: bytes[range].to_vec(),
    };
    let aeth = Some((0x1f, 1));
    let expected = [
        answer(0, Opcode::READ_RESPONSE_FIRST, aeth, 100..1124),
        answer(1, Opcode::READ_RESPONSE_MIDDLE, None, 1124..2148),
        answer(2, Opcode::READ_RESPONSE_LAST, aeth, 2148..3100),
    ];
    assert_eq!(peer.ask(&draft), expected);
    let draft = peer.read_draft(0, 64, 1);
    assert_eq!(peer.ask(&draft), [answer(3, Opcode::READ_RESPONSE_ONLY, Some((0x1f, 2)), 0..64)]);
    assert_alive(&mut peer);
}

// InfiniBand 9.6: what a channel adapter drops without a word.
#[test]
fn sec_9_6_broken_packets_are_dropped_silently() {
    type Break = fn(&mut Draft);
    let breaks: [(&str, Break); 9] = [
        ("unknown queue pair", |draft| draft.qpn ^= 1),
        ("unknown queue pair", |draft| draft.qpn = 1),
        ("partition key", |draft| draft.pkey = 0x1234),
        ("partition key", |draft| draft.pkey = 0),
        ("transport header version", |draft| draft.flags |= 1),
        ("unknown opcode", |draft| draft.opcode = 0x1f),
        ("unknown opcode", |draft| draft.opcode = 0x64),
        ("truncated", |draft| draft.extension.truncate(12)),
        ("truncated", |draft| draft.flags |= 0x30),
    ];
    for (reason, breaks) in breaks {
        let mut peer = Peer::new(Mtu::Mtu4096);
        let before = peer.bytes();
        let psn = peer.psn;
        let extension = reth(peer.va(), peer.mr.rkey, 4);
        let mut draft = peer.draft(Opcode::WRITE_ONLY, extension, b"data");
        if reason == "truncated" {
            draft.data.clear();
        }
        breaks(&mut draft);
        assert_eq!(peer.ask(&draft), [], "{reason}");
        assert_eq!(dropped(&peer, reason), 1, "{reason}: {:?}", peer.engine.counters());
        assert_eq!(peer.engine.counters().received, 0);
        assert!(peer.bytes() == before, "{reason}");
        peer.psn = psn;
        assert_alive(&mut peer);
    }
}

#[test]
fn every_flipped_bit_is_dropped_silently() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let before = peer.bytes();
    let extension = reth(peer.va(), peer.mr.rkey, 4);
    let draft = peer.draft(Opcode::WRITE_ONLY, extension, b"data");
    let whole = peer.seal(&draft.bytes());
    // The reserved byte of the BTH, the fifth, is not covered.
    for bit in (0..whole.len() * 8).filter(|bit| bit / 8 != 4) {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        peer.engine.receive(Now(0), address(1), &damaged);
        assert_eq!(peer.answers(), [], "bit {bit}");
    }
    for len in 0..whole.len() {
        peer.engine.receive(Now(0), address(1), &whole[..len]);
        assert_eq!(peer.answers(), [], "cut to {len}");
    }
    let counters = peer.engine.counters();
    assert!(peer.bytes() == before);
    assert_eq!(counters.received, 0);
    assert_eq!(counters.dropped.values().sum::<u64>(), (whole.len() as u64 - 1) * 8 + whole.len() as u64);
    assert!(counters.dropped["ICRC"] > 200, "{counters:?}");
    assert_eq!(peer.ask(&draft).len(), 1, "and the whole one is taken");
}

#[test]
fn lengths_that_cannot_be_are_dropped_silently() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    for bytes in [vec![0; MAX_DATAGRAM + 4], vec![0; 65_507], vec![0; 17]] {
        peer.engine.receive(Now(0), address(1), &bytes);
    }
    let read = Draft { data: vec![0; 4], ..peer.read_draft(0, 8, 1) };
    assert_eq!(peer.ask(&read), []);
    assert_eq!(dropped(&peer, "impossible length"), 4);
    peer.psn -= 1;
    assert_alive(&mut peer);
}

#[test]
fn another_source_address_is_dropped_silently() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let draft = peer.read_draft(0, 8, 1);
    let bytes = peer.seal(&draft.bytes());
    peer.engine.receive(Now(0), address(2), &bytes);
    assert_eq!(peer.answers(), []);
    assert_eq!(dropped(&peer, "wrong source address"), 1);
    peer.psn -= 1;
    assert_alive(&mut peer);
}

// InfiniBand 9.6: what a receiver ignores.
#[test]
fn sec_9_6_what_does_not_matter_is_ignored() {
    type Change = fn(&mut Draft);
    let changes: [(&str, Change); 4] = [
        ("limited membership of the partition", |draft| draft.pkey = 0x7fff),
        ("migration state", |draft| draft.flags = 0),
        ("solicited event", |draft| draft.flags |= 0x80),
        ("reserved byte", |draft| draft.qpn |= 0xaa00_0000),
    ];
    for (what, change) in changes {
        let mut peer = Peer::new(Mtu::Mtu4096);
        let (psn, extension) = (peer.psn, reth(peer.va(), peer.mr.rkey, 4));
        let mut draft = peer.draft(Opcode::WRITE_ONLY, extension, b"data");
        change(&mut draft);
        assert_eq!(peer.ask(&draft), [acknowledgement(psn, 0x1f, 1)], "{what}");
        assert_eq!(&peer.bytes()[..4], b"data", "{what}");
    }
}

/// What a peer says, one packet after the other; the last is refused.
type Story = Vec<(Opcode, Vec<u8>, Vec<u8>)>;

// InfiniBand 9.7.4: NAK, invalid request.
#[test]
fn sec_9_7_4_invalid_requests_are_refused() {
    let at = |peer: &Peer, len: u32| reth(peer.va(), peer.mr.rkey, len);
    let data = |len: usize| pattern(9, len);
    let first = |peer: &Peer| (Opcode::WRITE_FIRST, at(peer, 3000), data(1024));
    type Tell<'a> = &'a dyn Fn(&Peer) -> Story;
    let stories: [(&str, Tell<'_>); 27] = [
        ("RETH longer than the data", &|p| vec![(Opcode::WRITE_ONLY, at(p, 8), data(4))]),
        ("RETH shorter than the data", &|p| vec![(Opcode::WRITE_ONLY, at(p, 4), data(8))]),
        ("RETH of no bytes, with data", &|p| vec![(Opcode::WRITE_ONLY, at(p, 0), data(4))]),
        ("ONLY beyond the MTU", &|p| vec![(Opcode::WRITE_ONLY, at(p, 2000), data(2000))]),
        ("FIRST below the MTU", &|p| vec![(Opcode::WRITE_FIRST, at(p, 3000), data(1000))]),
        ("FIRST beyond the MTU", &|p| vec![(Opcode::WRITE_FIRST, at(p, 3000), data(1500))]),
        ("FIRST that is all", &|p| vec![(Opcode::WRITE_FIRST, at(p, 1024), data(1024))]),
        ("FIRST of less", &|p| vec![(Opcode::WRITE_FIRST, at(p, 12), data(1024))]),
        ("MIDDLE without FIRST", &|_| vec![(Opcode::WRITE_MIDDLE, vec![], data(1024))]),
        ("LAST without FIRST", &|_| vec![(Opcode::WRITE_LAST, vec![], data(4))]),
        ("MIDDLE below the MTU", &|p| vec![first(p), (Opcode::WRITE_MIDDLE, vec![], data(1000))]),
        ("LAST too early", &|p| vec![first(p), (Opcode::WRITE_LAST, vec![], data(952))]),
        ("LAST below the rest", &|p| {
            vec![(Opcode::WRITE_FIRST, at(p, 2000), data(1024)), (Opcode::WRITE_LAST, vec![], data(972))]
        }),
        ("LAST beyond the MTU", &|p| vec![first(p), (Opcode::WRITE_LAST, vec![], data(1976))]),
        ("LAST of no bytes", &|p| vec![first(p), (Opcode::WRITE_LAST, vec![], vec![])]),
        ("MIDDLE beyond the RETH", &|p| {
            let middle = (Opcode::WRITE_MIDDLE, vec![], data(1024));
            vec![first(p), middle.clone(), middle]
        }),
        ("FIRST, then FIRST", &|p| vec![first(p), first(p)]),
        ("FIRST, then ONLY", &|p| vec![first(p), (Opcode::WRITE_ONLY, at(p, 4), data(4))]),
        ("FIRST, then READ", &|p| vec![first(p), (Opcode::READ_REQUEST, at(p, 4), vec![])]),
        ("FIRST, then SEND", &|p| vec![first(p), (Opcode::SEND_ONLY, vec![], data(4))]),
        ("SEND", &|_| vec![(Opcode::SEND_ONLY, vec![], data(50))]),
        ("SEND with invalidation", &|p| {
            vec![(Opcode::SEND_ONLY_INVALIDATE, p.mr.rkey.to_be_bytes().to_vec(), data(4))]
        }),
        ("WRITE with immediate data", &|p| {
            let mut extension = at(p, 4);
            extension.extend([0; 4]);
            vec![(Opcode::WRITE_ONLY_IMMEDIATE, extension, data(4))]
        }),
        ("FETCH AND ADD", &|p| {
            let mut extension = at(p, 0);
            extension.extend([0; 12]);
            vec![(Opcode::FETCH_ADD, extension, vec![])]
        }),
        ("COMPARE AND SWAP", &|p| {
            let mut extension = at(p, 0);
            extension.extend([0; 12]);
            vec![(Opcode::COMPARE_SWAP, extension, vec![])]
        }),
        ("READ of more than 2^31 bytes", &|p| vec![(Opcode::READ_REQUEST, at(p, (1 << 31) + 1), vec![])]),
        ("WRITE of more than 2^31 bytes", &|p| vec![(Opcode::WRITE_FIRST, at(p, (1 << 31) + 1), data(1024))]),
    ];
    for (what, tell) in stories {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let story = tell(&peer);
        let last = story.len() - 1;
        let mut before = peer.bytes();
        for (number, (opcode, extension, data)) in story.into_iter().enumerate() {
            let psn = peer.psn;
            let draft = peer.draft(opcode, extension, &data);
            let answers = peer.ask(&draft);
            if number < last {
                assert_eq!(answers, [acknowledgement(psn, 0x1f, 0)], "{what}");
                before = peer.bytes();
            } else {
                assert_eq!(answers, [acknowledgement(psn, 0x61, 0)], "{what}");
                assert!(peer.bytes() == before, "{what}");
            }
        }
        assert_dead(&mut peer);
    }
}

#[test]
fn a_queue_pair_without_the_right_refuses() {
    for (rights, opcode) in [
        (Access::REMOTE_READ, Opcode::WRITE_ONLY),
        (Access::LOCAL_WRITE, Opcode::WRITE_ONLY),
        (Access::REMOTE_WRITE, Opcode::READ_REQUEST),
        (Access::empty(), Opcode::READ_REQUEST),
    ] {
        // The right comes before the key: no key can be guessed through such a queue pair.
        for wrong in [0, 1] {
            let mut peer = Peer::with(Mtu::Mtu4096, rights, RETRY);
            let (psn, before) = (peer.psn, peer.bytes());
            let extension = reth(peer.va(), peer.mr.rkey ^ wrong, 4);
            let draft = peer.draft(opcode, extension, if opcode == Opcode::WRITE_ONLY { b"data" } else { b"" });
            assert_eq!(peer.ask(&draft), [acknowledgement(psn, 0x61, 0)]);
            assert!(peer.bytes() == before);
            assert_dead(&mut peer);
        }
    }
}

// InfiniBand 9.7.4: NAK, remote access error. Nothing moves.
#[test]
fn sec_9_7_4_access_is_checked() {
    /// Address and key of a request of so many bytes.
    type Aim<'a> = &'a dyn Fn(&mut Peer, u32) -> (u64, u32);
    const END: u64 = MEMORY as u64;
    let part = |peer: &mut Peer, access| {
        let memory = Arc::clone(&peer.memory);
        peer.engine.register(peer.pd, memory, 8192..12_288, access).unwrap()
    };
    let cases: [(&str, Aim<'_>); 15] = [
        ("a wrong bit in the key", &|p, _| (p.va(), p.mr.rkey ^ 1)),
        ("key 0", &|p, _| (p.va(), 0)),
        ("a region of another protection domain", &|p, _| {
            let pd = p.engine.alloc_pd();
            let memory = Arc::clone(&p.memory);
            (p.va(), p.engine.register(pd, memory, 0..MEMORY, Access::all()).unwrap().rkey)
        }),
        ("a stale key", &|p, _| {
            let mr = p.mr;
            p.engine.deregister(mr).unwrap();
            (p.va(), mr.rkey)
        }),
        ("a stale key, registered again", &|p, _| {
            let mr = p.mr;
            p.engine.deregister(mr).unwrap();
            p.engine.register(p.pd, Arc::clone(&p.memory), 0..MEMORY, Access::all()).unwrap();
            (p.va(), mr.rkey)
        }),
        ("one byte before", &|p, _| (p.va() - 1, p.mr.rkey)),
        ("one byte beyond", &|p, len| (p.va() + END + 1 - u64::from(len), p.mr.rkey)),
        ("the first byte beyond", &|p, _| (p.va() + END, p.mr.rkey)),
        ("address 0", &|p, _| (0, p.mr.rkey)),
        ("the end of all addresses", &|p, len| (u64::MAX - u64::from(len) + 1, p.mr.rkey)),
        ("around the end of all addresses", &|p, _| (u64::MAX - 1, p.mr.rkey)),
        ("memory, but not the region, before", &|p, _| (p.va() + 8191, part(p, Access::all()).rkey)),
        ("memory, but not the region, beyond", &|p, len| {
            (p.va() + 12_289 - u64::from(len), part(p, Access::all()).rkey)
        }),
        ("a region without remote rights", &|p, _| (p.va() + 8192, part(p, Access::LOCAL_WRITE).rkey)),
        ("a region for the other operation", &|p, _| (p.va() + 8192, part(p, Access::empty()).rkey)),
    ];
    for (what, aim) in cases {
        for (opcode, len) in [
            (Opcode::WRITE_ONLY, 4),
            (Opcode::WRITE_FIRST, 3000),
            (Opcode::READ_REQUEST, 4),
            (Opcode::READ_REQUEST, 3000),
        ] {
            let mut peer = Peer::new(Mtu::Mtu1024);
            let (psn, before) = (peer.psn, peer.bytes());
            let (va, mut rkey) = aim(&mut peer, len);
            if what == "a region for the other operation" {
                let read = opcode == Opcode::READ_REQUEST;
                rkey = part(&mut peer, if read { Access::REMOTE_WRITE } else { Access::REMOTE_READ }).rkey;
            }
            let data = if opcode == Opcode::READ_REQUEST { vec![] } else { pattern(9, 1024.min(len as usize)) };
            let draft = peer.draft(opcode, reth(va, rkey, len), &data);
            assert_eq!(peer.ask(&draft), [acknowledgement(psn, 0x62, 0)], "{what}: {opcode:?} of {len}");
            assert!(peer.bytes() == before, "{what}: {opcode:?} of {len}");
            assert_dead(&mut peer);
        }
    }
}

#[test]
fn the_edges_of_a_region_belong_to_it() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let memory = Arc::clone(&peer.memory);
    let part = peer.engine.register(peer.pd, memory, 8192..12_288, Access::all()).unwrap();
    for (offset, data) in [(8192, b"head"), (12_284, b"tail")] {
        let psn = peer.psn;
        let extension = reth(peer.va() + offset, part.rkey, 4);
        let draft = peer.draft(Opcode::WRITE_ONLY, extension, data);
        assert_eq!(peer.ask(&draft)[0].psn, psn);
        assert_eq!(&peer.bytes()[offset as usize..offset as usize + 4], data);
    }
    let extension = reth(peer.va() + 8192, part.rkey, 4096);
    let draft = peer.draft(Opcode::READ_REQUEST, extension, &[]);
    let read: Vec<u8> = peer.ask(&draft).into_iter().flat_map(|answer| answer.data).collect();
    assert!(read == peer.bytes()[8192..12_288]);
}

// InfiniBand 9.7.4 lets a zero-length request go unchecked, and rxe does. Here no key gets no answer but a NAK.
#[test]
fn a_request_of_no_bytes_is_checked_like_any() {
    for opcode in [Opcode::READ_REQUEST, Opcode::WRITE_ONLY] {
        let mut peer = Peer::new(Mtu::Mtu4096);
        let psn = peer.psn;
        let extension = reth(peer.va() + MEMORY as u64, peer.mr.rkey, 0);
        let draft = peer.draft(opcode, extension, &[]);
        let answers = peer.ask(&draft);
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].psn, answers[0].aeth), (psn, Some((0x1f, 1))));
        assert_alive(&mut peer);

        for (address, key) in [(0, 0), (peer.va(), peer.mr.rkey ^ 1), (peer.va() - 1, peer.mr.rkey)] {
            let mut peer = Peer::new(Mtu::Mtu4096);
            let (psn, key) = (peer.psn, if key == 0 { 0 } else { peer.mr.rkey ^ u32::from(address == peer.va()) });
            let address = if address == 0 { 0 } else { peer.va() - 1 };
            let draft = peer.draft(opcode, reth(address, key, 0), &[]);
            assert_eq!(peer.ask(&draft), [acknowledgement(psn, 0x62, 0)]);
            assert_dead(&mut peer);
        }
    }
}

#[test]
fn a_write_loses_its_region_on_the_way() {
    for again in [false, true] {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let psn = peer.psn;
        let extension = reth(peer.va(), peer.mr.rkey, 3000);
        let first = peer.draft(Opcode::WRITE_FIRST, extension, &pattern(9, 1024));
        assert_eq!(peer.ask(&first), [acknowledgement(psn, 0x1f, 0)]);
        let mr = peer.mr;
        peer.engine.deregister(mr).unwrap();
        if again {
            peer.engine.register(peer.pd, Arc::clone(&peer.memory), 0..MEMORY, Access::all()).unwrap();
        }
        let before = peer.bytes();
        let middle = peer.draft(Opcode::WRITE_MIDDLE, vec![], &pattern(8, 1024));
        assert_eq!(peer.ask(&middle), [acknowledgement(psn + 1, 0x62, 0)]);
        assert!(peer.bytes() == before, "not a byte after the deregistration");
        assert_dead(&mut peer);
    }
}

#[test]
fn a_read_loses_its_region_on_the_way() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let psn = peer.psn;
    let (long, short) = (peer.read_draft(0, 3000, 3), peer.read_draft(0, 4, 1));
    peer.say(&long);
    peer.say(&short);
    assert_eq!(peer.answer().unwrap().opcode, Opcode::READ_RESPONSE_FIRST);
    let mr = peer.mr;
    peer.engine.deregister(mr).unwrap();
    assert_eq!(peer.answers(), [acknowledgement(psn + 1, 0x62, 2)]);
    assert_dead(&mut peer);
}

// InfiniBand 9.7.5: one NAK for a gap, and duplicates.
#[test]
fn sec_9_7_5_a_gap_is_reported_once() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let n = peer.psn;
    assert_eq!(peer.write(0, b"1111"), [acknowledgement(n, 0x1f, 1)]);
    peer.psn = n + 5;
    assert_eq!(peer.write(0, b"2222"), [acknowledgement(n + 1, 0x60, 1)]);
    assert_eq!(peer.write(0, b"3333"), []);
    assert_eq!(dropped(&peer, "out of sequence"), 2);
    assert_eq!(&peer.bytes()[..4], b"1111");
    peer.psn = n + 1;
    assert_eq!(peer.write(0, b"4444"), [acknowledgement(n + 1, 0x1f, 2)]);
    peer.psn = n + 9;
    assert_eq!(peer.write(0, b"5555"), [acknowledgement(n + 2, 0x60, 2)], "another gap");
    peer.psn = n + 2;
    assert_alive(&mut peer);
}

#[test]
fn a_gap_that_closes_before_it_is_reported_is_not() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let extension = reth(peer.va(), peer.mr.rkey, 4);
    let drafts = [1, 2].map(|_| peer.draft(Opcode::WRITE_ONLY, extension.clone(), b"data"));
    peer.say(&drafts[1]);
    peer.say(&drafts[0]);
    assert_eq!(peer.answers(), [acknowledgement(drafts[0].psn, 0x1f, 1)]);
}

#[test]
fn sec_9_7_5_a_duplicate_write_is_acknowledged_and_not_repeated() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let n = peer.psn;
    peer.write(0, b"old.");
    peer.write(0, b"new.");
    peer.psn = n;
    assert_eq!(peer.write(0, b"old."), [acknowledgement(n + 1, 0x1f, 2)], "the newest PSN");
    assert_eq!(&peer.bytes()[..4], b"new.");
    for (psn, syndrome) in [(n.wrapping_sub(7_000_000), 0x1f), (n + 7_000_000, 0x60)] {
        peer.psn = psn;
        let newest = if syndrome == 0x60 { n + 2 } else { n + 1 };
        assert_eq!(peer.write(0, b"far."), [acknowledgement(newest, syndrome, 2)]);
    }
    assert_eq!(&peer.bytes()[..4], b"new.");
    peer.psn = n + 2;
    assert_alive(&mut peer);
}

// A requester that sends again from a WRITE may lack the answer to a READ behind it, and rxe ends a READ whose PSN it sees
// acknowledged: with the bytes that lay there before.
#[test]
fn a_duplicate_write_acknowledges_no_read() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let n = peer.psn;
    peer.write(0, b"1111");
    let read = peer.read_draft(0, 3000, 3);
    peer.ask(&read);
    let extension = reth(peer.va(), peer.mr.rkey, 4);
    let at = |peer: &Peer, psn| peer.draft_at(psn, Opcode::WRITE_ONLY, extension.clone(), b"1111");
    let draft = at(&peer, n);
    assert_eq!(peer.ask(&draft), [acknowledgement(n, 0x1f, 2)]);
    // Behind the READ, one acknowledges all; an earlier duplicate takes nothing of it back.
    peer.write(0, b"2222");
    peer.write(0, b"3333");
    let drafts = [at(&peer, n + 4), at(&peer, n)];
    drafts.iter().for_each(|draft| peer.say(draft));
    assert_eq!(peer.answers(), [acknowledgement(n + 5, 0x1f, 4)]);
    let draft = at(&peer, n);
    assert_eq!(peer.ask(&draft), [acknowledgement(n, 0x1f, 4)]);
    assert_alive(&mut peer);
}

#[test]
fn sec_9_7_5_a_duplicate_read_is_answered_again() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let draft = peer.read_draft(0, 3000, 3);
    let once = peer.ask(&draft);
    assert_eq!(once.len(), 3);
    assert_eq!(peer.ask(&draft), once);
    // From its second packet on, as a requester does that has the first.
    let rest = Draft { psn: draft.psn + 1, extension: reth(peer.va() + 1024, peer.mr.rkey, 1976), ..draft.clone() };
    let again = peer.ask(&rest);
    assert_eq!(again.iter().map(|answer| &answer.data).collect::<Vec<_>>(), [&once[1].data, &once[2].data]);
    assert_eq!((again[0].opcode, again[0].psn), (Opcode::READ_RESPONSE_FIRST, once[1].psn));
    // Longer than what was asked for: never asked for.
    let longer = Draft { extension: reth(peer.va(), peer.mr.rkey, 4000), ..draft.clone() };
    assert_eq!(peer.ask(&longer), []);
    // Nor was this: somebody guesses, who knows neither the key nor where in the sequence we are.
    let elsewhere =
        [reth(peer.va() + 4, peer.mr.rkey, 3000), reth(peer.va(), peer.mr.rkey ^ 1, 3000), reth(peer.va(), 0, 3000)];
    for extension in elsewhere {
        assert_eq!(peer.ask(&Draft { extension, ..draft.clone() }), []);
    }
    assert_eq!(peer.ask(&Draft { psn: draft.psn.wrapping_sub(1), ..draft.clone() }), []);
    assert_eq!(peer.ask(&Draft { psn: draft.psn.wrapping_sub(1 << 20), ..draft }), []);
    assert_eq!(dropped(&peer, "READ repeated"), 6);
    assert_alive(&mut peer);
}

#[test]
fn a_read_that_is_still_to_be_answered_is_answered_once() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let draft = peer.read_draft(0, 3000, 3);
    peer.say(&draft);
    peer.say(&draft);
    let first = peer.answer().unwrap();
    assert_eq!(first.opcode, Opcode::READ_RESPONSE_FIRST);
    let rest = Draft { psn: draft.psn + 1, extension: reth(peer.va() + 1024, peer.mr.rkey, 1976), ..draft.clone() };
    peer.say(&rest);
    assert_eq!(peer.answers().len(), 2, "the rest was still to come");
    // Asked for again in the middle of its answer: it starts again, and nothing comes twice after that.
    let psns = |answers: Vec<Answer>| answers.iter().map(|answer| answer.psn).collect::<Vec<_>>();
    let next = peer.read_draft(4096, 2048, 2);
    peer.say(&draft);
    peer.say(&next);
    peer.answer().unwrap();
    peer.say(&draft);
    let expected: Vec<u32> = (0..5).map(|at| (draft.psn + at) & 0x00ff_ffff).collect();
    assert_eq!(psns(peer.answers()), expected);
}

#[test]
fn sec_9_7_5_an_acknowledgement_waits_for_the_reads_before_it() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let read = peer.read_draft(0, 3000, 3);
    let extension = reth(peer.va(), peer.mr.rkey, 4);
    let write = peer.draft(Opcode::WRITE_ONLY, extension, b"data");
    let later = peer.read_draft(0, 4, 1);
    peer.say(&read);
    peer.say(&write);
    let opcodes = |answers: &[Answer]| answers.iter().map(|answer| answer.opcode.0).collect::<Vec<_>>();
    assert_eq!(opcodes(&peer.answers()), [0x0d, 0x0e, 0x0f, 0x11]);
    peer.say(&write);
    peer.say(&later);
    assert_eq!(opcodes(&peer.answers()), [0x10], "a response acknowledges what came before it");
    // A refusal waits too.
    let read = peer.read_draft(0, 3000, 3);
    let bad = peer.draft(Opcode::SEND_ONLY, vec![], b"");
    peer.say(&read);
    peer.say(&bad);
    let answers = peer.answers();
    assert_eq!(opcodes(&answers), [0x0d, 0x0e, 0x0f, 0x11]);
    assert_eq!((answers[3].psn, answers[3].aeth), (bad.psn, Some((0x61, 4))));
    assert_dead(&mut peer);
}

// InfiniBand 9.7.4: more READs than the responder keeps.
#[test]
fn sec_9_7_4_one_read_too_many_is_refused() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    for number in 0..5 {
        let draft = peer.read_draft(0, 8, 1);
        peer.say(&draft);
        assert_eq!(peer.state() == QpState::Error, number == 4, "READ {number}");
    }
    let answers = peer.answers();
    assert_eq!(answers.len(), 5);
    assert_eq!(answers[4].aeth, Some((0x61, 4)));
    assert_dead(&mut peer);
}

#[test]
fn repeated_reads_do_not_pile_up() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let drafts: Vec<Draft> = (0..40).map(|_| peer.read_draft(0, 4096, 4)).collect();
    for draft in &drafts {
        assert_eq!(peer.ask(draft).len(), 4);
    }
    for draft in drafts.iter().rev() {
        peer.say(draft);
    }
    assert_eq!(dropped(&peer, "READ repeated"), 36, "only the last are known, as many as the queue pair takes at once");
    assert_eq!(peer.answers().len(), 16);
    // In parts.
    for draft in &drafts[36..] {
        for part in 0..4 {
            let extension = reth(peer.va() + part * 1024, peer.mr.rkey, 1024);
            peer.say(&Draft { psn: draft.psn + part as u32, extension, ..draft.clone() });
        }
    }
    assert_eq!(dropped(&peer, "READ repeated"), 48);
    assert_eq!(peer.answers().len(), 4);
    assert_alive(&mut peer);
}

#[test]
fn the_owner_ends_it_at_once() {
    for destroy in [false, true] {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let read = peer.read_draft(0, 3000, 3);
        peer.say(&read);
        peer.answer().unwrap();
        let qpn = peer.qpn;
        if destroy {
            peer.engine.destroy_qp(qpn).unwrap();
        } else {
            peer.engine.set_error(qpn).unwrap();
        }
        assert_eq!(peer.answers(), [], "the rest of the READ is not sent");
        assert_eq!(peer.write(0, b"late"), []);
        let reason = if destroy { "unknown queue pair" } else { "queue pair not ready" };
        assert_eq!(dropped(&peer, reason), 1);
        assert_ne!(&peer.bytes()[..4], b"late");
    }
}

#[test]
fn a_refusal_flushes_our_own_requests() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Write, 0, 4), peer.request(2, Op::Read, 0, 4)];
    assert_eq!(peer.post(&batch).unwrap().len(), 2);
    let bad = peer.draft(Opcode::SEND_ONLY, vec![], b"");
    assert_eq!(peer.ask(&bad).len(), 1);
    let statuses: Vec<_> = peer.poll().iter().map(|completion| (completion.id, completion.status)).collect();
    assert_eq!(statuses, [(1, WcStatus::WR_FLUSH_ERR), (2, WcStatus::WR_FLUSH_ERR)]);
    assert_eq!(peer.engine.next_timeout().map(|at| at.0), Some(1_000_000), "rings once more, for nothing");
    peer.engine.on_timeout(Now(1_000_000));
    assert_eq!(peer.engine.next_timeout(), None);
}

#[test]
fn a_memory_larger_than_its_region_is_not_reached() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let memory = Arc::new(Memory::map(8192, Backing::Ordinary).unwrap());
    let mr = peer.engine.register(peer.pd, Arc::clone(&memory), 0..4096, Access::all()).unwrap();
    let extension = reth(memory.address() + 4000, mr.rkey, 200);
    let draft = peer.draft(Opcode::WRITE_ONLY, extension, &[7; 200]);
    assert_eq!(peer.ask(&draft)[0].aeth, Some((0x62, 0)));
    assert_eq!(memory.first_nonzero(0..8192).unwrap(), None);
}
