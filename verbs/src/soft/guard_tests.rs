//! Strangers: whoever sends packets to a queue pair and is not its peer. What they send is dropped, counted by name, cheap,
//! and without any effect: no state, timer, sequence number or memory moves, and nothing is sent because of it.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Engine, Now};
use super::icrc::Icrc;
use super::port_sim::address;
use super::sim_tests::{ALL, CAPS, RETRY, statuses};
use super::test_peer::{Draft, Peer, acknowledgement, reth};
use super::wire::{MAX_DATAGRAM, Opcode};
use crate::{Backing, Completion, Endpoint, Memory, Mtu, Op, QpState, WcStatus};

/// A datagram that is to be dropped, and by what name.
struct Forgery {
    reason: &'static str,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// With the ICRC that is right for this source.
fn sealed(from: SocketAddr, mut bytes: Vec<u8>) -> Vec<u8> {
    let icrc = Icrc::new(from, address(0)).of(&bytes);
    bytes.extend(icrc.to_le_bytes());
    bytes
}

/// Each kind of packet that only a stranger sends to a queue pair whose peer has these flags. But for what is wrong with it,
/// each would be served.
fn forgeries(flags: u8, good: &Draft) -> Vec<Forgery> {
    let mut near = address(1);
    near.set_port(50_123);
    let forgery = |reason, from, bytes| Forgery { reason, from, bytes };
    let broken = |reason, change: &dyn Fn(&mut Draft)| {
        let mut draft = good.clone();
        change(&mut draft);
        // A real device sends from any port.
        let from = if flags == Endpoint::SOFT { address(1) } else { near };
        forgery(reason, from, sealed(from, draft.bytes()))
    };
    let whole = sealed(address(1), good.bytes());
    let mut all = vec![
        forgery("wrong source address", address(5), sealed(address(5), good.bytes())),
        // What the peer sent, heard on the way and sent again from elsewhere.
        forgery("wrong source address", address(5), whole.clone()),
        forgery("wrong source address", "[2001:db8::2]:4791".parse().unwrap(), whole.clone()),
        broken("unknown queue pair", &|draft| draft.qpn ^= 0x10),
        broken("unknown queue pair", &|draft| draft.qpn = 0),
        broken("unknown queue pair", &|draft| draft.qpn = 0x00ff_ffff),
        broken("partition key", &|draft| draft.pkey = 0x7ffe),
        broken("transport header version", &|draft| draft.flags |= 1),
        broken("unknown opcode", &|draft| draft.opcode |= 0xe0),
        broken("unknown opcode", &|draft| draft.opcode = 0x1f),
        broken("truncated", &|draft| {
            draft.opcode = Opcode::FETCH_ADD.0;
            draft.extension.truncate(8);
            draft.data.clear();
        }),
        broken("impossible length", &|draft| draft.data.resize(MAX_DATAGRAM, 0)),
        forgery("impossible length", address(1), vec![0xff; 65_507]),
        forgery("impossible length", address(1), whole[..whole.len() - 1].to_vec()),
        forgery("truncated", address(1), vec![]),
        forgery("truncated", address(1), whole[..12].to_vec()),
    ];
    // Another program of the peer's machine: what it heard, and what it made.
    if flags == Endpoint::SOFT {
        all.push(forgery("wrong source address", near, whole.clone()));
        all.push(forgery("wrong source address", near, sealed(near, good.bytes())));
        all.push(forgery("ICRC", address(1), [&good.bytes()[..], &[0; 4]].concat()));
    } else {
        all.push(forgery("ICRC", near, whole.clone()));
    }
    for bit in 0..whole.len() * 8 {
        // The reserved byte of the BTH is not covered; in another place than the QPN the ICRC, or a check before it, tells.
        if bit % 13 == 0 && !(16..64).contains(&bit) && bit / 8 != 1 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            all.push(forgery("ICRC", address(1), bytes));
        }
    }
    all
}

/// Everything about a connection that its owner, or its peer, could notice.
fn facts(peer: &mut Peer) -> (QpState, Option<Now>, Vec<u8>, [u64; 3], Vec<Completion>) {
    let counters = peer.engine.counters();
    let counts = [counters.sent, counters.received, counters.retransmitted];
    (peer.state(), peer.engine.next_timeout(), peer.bytes(), counts, peer.poll())
}

/// A connection in the middle of something, and how that goes on where nobody disturbs it.
type Situation = (&'static str, fn(&mut Peer), fn(&mut Peer));

const SITUATIONS: [Situation; 6] = [
    ("idle", |_| {}, |_| {}),
    (
        "waits for the answers to a WRITE and a READ",
        |peer| {
            let batch = [peer.request(1, Op::Write, 0, 3000), peer.request(2, Op::Read, 4096, 8)];
            assert_eq!(peer.post(&batch).unwrap().len(), 4);
        },
        |peer| {
            assert_eq!(peer.acknowledge(2, 0x1f), []);
            peer.respond(3, Opcode::READ_RESPONSE_ONLY, b"answered");
            assert_eq!(statuses(&peer.poll()), [(1, WcStatus::SUCCESS), (2, WcStatus::SUCCESS)]);
            assert_eq!(&peer.bytes()[4096..4104], b"answered");
        },
    ),
    (
        "is about to send again",
        |peer| {
            let request = peer.request(1, Op::Write, 0, 8);
            assert_eq!(peer.post(&[request]).unwrap().len(), 1);
        },
        |peer| {
            let Some(due) = peer.engine.next_timeout() else { panic!("it waits for nothing") };
            assert!(due.0 > peer.now, "nothing was due");
            peer.now = due.0;
            peer.engine.on_timeout(due);
            assert_eq!(peer.answers().len(), 1, "in time, whatever came meanwhile");
        },
    ),
    (
        "in the middle of a WRITE",
        |peer| {
            let extension = reth(peer.va() + 32_768, peer.mr.rkey, 2048);
            let first = peer.draft(Opcode::WRITE_FIRST, extension, &[7; 1024]);
            assert_eq!(peer.ask(&first).len(), 1);
        },
        |peer| {
            let psn = peer.psn;
            let last = peer.draft(Opcode::WRITE_LAST, vec![], &[8; 1024]);
            assert_eq!(peer.ask(&last), [acknowledgement(psn, 0x1f, 1)]);
            assert_eq!(peer.bytes()[32_768..34_816], [[7; 1024], [8; 1024]].concat());
        },
    ),
    (
        "behind a gap that it reported",
        |peer| {
            let (psn, extension) = (peer.psn, reth(peer.va(), peer.mr.rkey, 4));
            let later = peer.draft_at(psn + 3, Opcode::WRITE_ONLY, extension, b"late");
            assert_eq!(peer.ask(&later), [acknowledgement(psn, 0x60, 0)]);
        },
        |peer| {
            let (psn, extension) = (peer.psn, reth(peer.va(), peer.mr.rkey, 4));
            let later = peer.draft_at(psn + 2, Opcode::WRITE_ONLY, extension, b"late");
            assert_eq!(peer.ask(&later), [], "once is enough");
        },
    ),
    (
        "in ERROR",
        |peer| {
            let bad = peer.draft(Opcode::SEND_ONLY, vec![], b"");
            assert_eq!(peer.ask(&bad).len(), 1);
        },
        |_| {},
    ),
];

#[test]
fn a_stranger_moves_nothing() {
    for (what, begin, go_on) in SITUATIONS {
        molest(Endpoint::SOFT, what, begin, go_on);
        // Whose gap is reported in two packets.
        if what != "behind a gap that it reported" {
            molest(0, what, begin, go_on);
        }
    }
}

fn molest(flags: u8, what: &str, begin: fn(&mut Peer), go_on: fn(&mut Peer)) {
    let mut peer = Peer::of_kind(flags, Mtu::Mtu1024, ALL, RETRY);
    begin(&mut peer);
    let psn = peer.psn;
    let extension = reth(peer.va() + 60_000, peer.mr.rkey, 8);
    let requests = [
        peer.draft_at(psn, Opcode::WRITE_ONLY, extension.clone(), b"stranger"),
        peer.draft_at(psn, Opcode::READ_REQUEST, extension.clone(), b""),
        peer.draft_at(psn - 1, Opcode::READ_REQUEST, extension, b""),
        peer.draft_at(psn, Opcode::SEND_ONLY, vec![0x55; 28], b""),
        peer.draft_at(peer.engine_psn, Opcode::ACKNOWLEDGE, vec![0x62, 0, 0, 0], b""),
        peer.draft_at(peer.engine_psn, Opcode::ACKNOWLEDGE, vec![0x1f, 0, 0, 0], b""),
        peer.draft_at(peer.engine_psn + 3, Opcode::READ_RESPONSE_ONLY, vec![0x1f, 0, 0, 0], b"stranger"),
    ];
    let dead = peer.state() == QpState::Error;
    let before = facts(&mut peer);
    let mut expected: BTreeMap<&str, u64> = peer.engine.counters().dropped;
    // Later than what was sent, so that a timer which is set anew is seen.
    peer.now = 300_000;
    for good in &requests {
        for Forgery { reason, from, bytes } in forgeries(flags, good) {
            peer.engine.receive(Now(peer.now), from, &bytes);
            assert_eq!(peer.answers(), [], "{what}: {reason}");
            // A queue pair in ERROR looks at no more than where a packet is from.
            let early = ["truncated", "impossible length", "unknown queue pair", "wrong source address"];
            let sent_whole = bytes.len() >= 16 && bytes.len().is_multiple_of(4) && bytes.len() <= MAX_DATAGRAM;
            let looked_at = !dead || early.contains(&reason) && !(reason == "truncated" && sent_whole);
            *expected.entry(if looked_at { reason } else { "queue pair not ready" }).or_default() += 1;
        }
    }
    assert_eq!(peer.engine.counters().dropped, expected, "{what}");
    assert_eq!(facts(&mut peer), before, "{what}");
    go_on(&mut peer);
    if !dead {
        let psn = peer.psn;
        let answers = peer.write(60_000, b"the peer");
        assert!(answers.iter().any(|answer| (answer.psn, answer.aeth.unwrap().0) == (psn & 0x00ff_ffff, 0x1f)));
        assert_eq!(&peer.bytes()[60_000..60_008], b"the peer", "{what}");
    }
}

// Who knows the number of a queue pair and its peer's address, but not where the sequence is, gets at no memory and no
// state: at most the peer, not he, hears one acknowledgement for each of his packets.
#[test]
fn a_forger_without_the_sequence_number_gets_nowhere() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    peer.write(0, b"1111");
    let (psn, before) = (peer.psn, peer.bytes());
    let extension = reth(peer.va(), peer.mr.rkey, 4);
    let mut answers = Vec::new();
    let distances = [1, 2, 77, 1 << 20, (1 << 23) - 1, 1 << 23, (1 << 23) + 1, (1 << 24) - 2];
    for distance in distances {
        let guesses =
            [Opcode::WRITE_ONLY, Opcode::READ_REQUEST, Opcode::SEND_ONLY, Opcode::FETCH_ADD, Opcode::WRITE_LAST];
        for opcode in guesses {
            let extension = match opcode {
                Opcode::WRITE_ONLY => extension.clone(),
                // With the right key, or a wrong one.
                Opcode::READ_REQUEST if distance % 2 == 0 => extension.clone(),
                Opcode::READ_REQUEST => reth(peer.va(), 77, 4),
                Opcode::FETCH_ADD => vec![0; 28],
                _ => vec![],
            };
            let has_data = ![Opcode::FETCH_ADD, Opcode::READ_REQUEST].contains(&opcode);
            let data: &[u8] = if has_data { b"evil" } else { b"" };
            let draft = peer.draft_at(psn + distance, opcode, extension, data);
            answers.extend(peer.ask(&draft));
        }
    }
    assert!(peer.bytes() == before);
    assert_eq!(peer.state(), QpState::ReadyToSend);
    assert!(answers.len() <= distances.len() * 4, "none to a READ that was never asked for");
    let naks = answers.iter().filter(|answer| answer.aeth.unwrap().0 == 0x60).count();
    assert_eq!(naks, 1, "the gap that does not exist is reported once");
    assert!(answers.iter().all(|answer| [0x1f, 0x60].contains(&answer.aeth.unwrap().0)));
    assert_eq!(peer.write(0, b"2222"), [acknowledgement(psn, 0x1f, 2)]);
}

/// 256 equal classes: far above this, with that many degrees of freedom, is no chance (about one in 10^9).
const CHI_SQUARE: f64 = 420.0;

/// How unevenly the bytes are spread over their 256 values.
fn chi_square(bytes: impl Iterator<Item = u8>) -> f64 {
    let mut counts = [0_u32; 256];
    bytes.for_each(|byte| counts[usize::from(byte)] += 1);
    let expected = f64::from(counts.iter().sum::<u32>()) / 256.0;
    counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
}

/// Keys, queue pair numbers and first sequence numbers that a new device gives out.
fn numbers(count: usize) -> [Vec<u32>; 3] {
    let mut engine = Engine::new(address(0), Mtu::Mtu4096);
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    let memory = Arc::new(Memory::map(4096, Backing::Ordinary).unwrap());
    let keys = (0..count).map(|_| engine.register(pd, Arc::clone(&memory), 0..64, ALL).unwrap().rkey).collect();
    let ends: Vec<_> = (0..count)
        .map(|_| {
            let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
            engine.endpoint(qpn).unwrap()
        })
        .collect();
    [keys, ends.iter().map(|end| end.qpn).collect(), ends.iter().map(|end| end.psn).collect()]
}

#[test]
fn numbers_tell_nothing_of_those_before_nor_of_another_device_s() {
    const COUNT: usize = 5000;
    let devices = [numbers(COUNT), numbers(COUNT)];
    for (what, (one, other)) in ["rkey", "QPN", "PSN"].iter().zip(devices[0].iter().zip(&devices[1])) {
        let low_bytes = |values: &mut dyn Iterator<Item = u32>| -> Vec<u8> {
            let bytes = if *what == "rkey" { 4 } else { 3 };
            values.flat_map(|value| value.to_le_bytes()[..bytes].to_vec()).collect()
        };
        // Neither the numbers nor the steps between them, nor what two devices gave out at the same place, have a form.
        let steps = one.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]));
        let changes = one.windows(2).map(|pair| pair[1] ^ pair[0]);
        let apart = one.iter().zip(other).map(|(one, other)| one.wrapping_sub(*other));
        for (view, bytes) in [
            ("values", low_bytes(&mut one.iter().copied())),
            ("steps", low_bytes(&mut steps.clone())),
            ("changes", low_bytes(&mut changes.clone())),
            ("two devices", low_bytes(&mut apart.clone())),
        ] {
            let measure = chi_square(bytes.into_iter());
            assert!(measure < CHI_SQUARE, "{what}: {view}: {measure}");
        }
        let small = steps.filter(|step| (*step as i32).unsigned_abs() < 1000).count();
        assert!(small < 10, "{what}: {small} follow closely on the one before");
        let ours: HashSet<_> = one.iter().collect();
        let shared = other.iter().filter(|value| ours.contains(value)).count();
        // Of 2^24 values, 5,000 times 5,000 meet 1.5 times.
        assert!(shared < 20, "{what}: {shared} are given out by both");
    }
}

#[test]
fn the_chi_square_tells_order_from_chance() {
    assert!(chi_square((0..5000_u32).flat_map(|value| value.to_le_bytes())) > CHI_SQUARE);
    assert!(chi_square((0..20_000_u32).map(|value| (value % 250) as u8)) > CHI_SQUARE);
}

/// Nanoseconds of each of `packets`, in the best of many turns: what disturbs a measurement only adds.
fn best_of(turns: usize, packets: &[(SocketAddr, Vec<u8>)], peer: &mut Peer) -> f64 {
    let (mut best, mut out) = (f64::MAX, Vec::new());
    for _ in 0..turns {
        let begun = Instant::now();
        for (from, bytes) in packets {
            peer.engine.receive(Now(0), *from, bytes);
            out.clear();
            while peer.engine.poll_transmit(Now(0), &mut out).is_some() {}
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / packets.len() as f64);
    }
    best
}

#[test]
#[ignore = "compares times"]
fn a_stranger_costs_less_than_the_peer() {
    for len in [64, 4096] {
        let data = vec![0x5a; len];
        // The same packets are served again and again: as duplicates, which cost no more than the first time.
        let mut peer = Peer::new(Mtu::Mtu4096);
        let extension = reth(peer.va(), peer.mr.rkey, len as u32);
        let served: Vec<_> = (0..100)
            .map(|_| {
                let draft = peer.draft(Opcode::WRITE_ONLY, extension.clone(), &data);
                (address(1), sealed(address(1), draft.bytes()))
            })
            .collect();
        let first = best_of(1, &served, &mut peer);
        assert_eq!(peer.engine.counters().received, 100);
        // New ones each time, as many as there are sequence numbers to be had cheaply.
        let mut served_best = first;
        for _ in 0..30 {
            let fresh: Vec<_> = (0..100)
                .map(|_| {
                    let draft = peer.draft(Opcode::WRITE_ONLY, extension.clone(), &data);
                    (address(1), sealed(address(1), draft.bytes()))
                })
                .collect();
            served_best = served_best.min(best_of(1, &fresh, &mut peer));
        }
        assert_eq!(peer.engine.counters().received, 3100);
        println!("{len} B: a WRITE that is served {served_best:.0} ns");
        let good = peer.draft(Opcode::WRITE_ONLY, extension, &data);
        let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
        for Forgery { reason, from, bytes } in forgeries(Endpoint::SOFT, &good).into_iter().take(20) {
            let cost = best_of(30, &vec![(from, bytes); 100], &mut peer);
            let worst = worst.entry(reason).or_default();
            *worst = worst.max(cost);
        }
        assert_eq!(worst.len(), 8, "every name");
        for (reason, cost) in worst {
            println!("{len} B: {reason} {cost:.0} ns");
            assert!(cost < served_best, "{len} B: {reason} {cost:.0} ns, served {served_best:.0} ns");
        }
    }
}
