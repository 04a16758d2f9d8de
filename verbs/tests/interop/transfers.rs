//! Bytes arrive, all of them, in the right place, and nothing beside them changes.

use std::collections::BTreeSet;

use overbank_verbs::{Op, WcStatus};

use crate::ends::*;

/// Above this a length is tried at one pair of offsets, another for each.
const SHORT: usize = 64 << 10;
/// The longest request.
const LONGEST: usize = (8 << 20) + 1;
/// Here and there: aligned, and as odd as can be.
const OFFSETS: [(usize, usize); 4] = [(0, 0), (1, 3), (7, 2), (63, 65)];

/// Every power of two up to 8 MiB with its neighbours, so every pad; and both sides of each boundary: one and two packets,
/// what the soft device asks for in one READ request (16 packets), 64 packets.
fn lengths(mtu: usize) -> BTreeSet<usize> {
    let powers = (0..=23).map(|power| 1 << power);
    let edges = powers.chain([1, 2, 16, 64].map(|packets| packets * mtu));
    let mut lengths: BTreeSet<usize> = edges.flat_map(|edge| [edge - 1, edge, edge + 1]).collect();
    lengths.extend([5 * mtu + 7, (1 << 20) + 4093]);
    lengths.remove(&0);
    lengths
}

/// Moves each length between odd offsets, and compares both sides with what surrounds them.
fn every_length((asker, op): (Asker, Op), offsets: impl Fn(usize, usize) -> Vec<(usize, usize)>) {
    const AROUND: usize = 5000;
    let Some(scene) = scene() else { return };
    let (a, b) = scene.pair(asker, REMOTE, PATIENT);
    let size = LONGEST + 2 * AROUND;
    let (near, far) = (memory(size, GUARD), memory(size, GUARD));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let (source, target) = if op == Op::Read { (&far, &near) } else { (&near, &far) };
    let lengths = lengths(scene.mtu());
    assert_eq!(lengths.last(), Some(&LONGEST));
    for (round, len) in lengths.into_iter().enumerate() {
        for (at, to) in offsets(round, len) {
            let (from, into) = if op == Op::Read { (to, at) } else { (at, to) };
            let whole = 0..len + AROUND;
            target.copy_in(0, &vec![GUARD; whole.end]).unwrap();
            source.copy_in(from, &pattern(len, round as u8)).unwrap();
            let before = bytes(source, whole.clone());
            let what = format!("{asker:?} asks: {op:?} of {len} bytes, {at} to {to}");
            assert_eq!(a.run(request((round as u64, op), &mr, at..at + len, &remote, to)), WcStatus::SUCCESS, "{what}");
            let mut expected = vec![GUARD; whole.end];
            expected[into..into + len].copy_from_slice(&before[from..from + len]);
            assert!(bytes(target, whole.clone()) == expected, "{what}: wrong bytes at the target");
            assert!(bytes(source, whole) == before, "{what}: the source changed");
        }
    }
    scene.report(&format!("every length, {asker:?} asks, {op:?}"));
}

/// All offsets for the short lengths, one pair for each of the long.
fn some_offsets(round: usize, len: usize) -> Vec<(usize, usize)> {
    if len <= SHORT { OFFSETS.to_vec() } else { vec![OFFSETS[round % OFFSETS.len()]] }
}

#[test]
fn soft_reads_every_length() {
    every_length((Asker::Soft, Op::Read), some_offsets);
}

#[test]
fn soft_writes_every_length() {
    every_length((Asker::Soft, Op::Write), some_offsets);
}

#[test]
fn real_reads_every_length() {
    every_length((Asker::Real, Op::Read), some_offsets);
}

#[test]
fn real_writes_every_length() {
    every_length((Asker::Real, Op::Write), some_offsets);
}

#[test]
#[ignore = "every length at every offset takes minutes"]
fn every_length_at_every_offset() {
    for asker in BOTH {
        for op in [Op::Read, Op::Write] {
            every_length((asker, op), |_, _| OFFSETS.to_vec());
        }
    }
}

/// Full queues of WRITEs and READs in turn, of all sizes: they complete in order, and a READ sees what was written
/// before it.
pub(crate) fn pipeline(scene: &Scene, asker: Asker, rounds: usize) {
    let (a, b) = scene.pair(asker, REMOTE, PATIENT);
    let (slot, mtu) = (20_000, scene.mtu());
    // Near: what is written, then what is read back. Far: one place for each request.
    let (near, far) = (memory(2 * SEND_QUEUE * slot, GUARD), memory(SEND_QUEUE * slot, GUARD));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let lengths = [1, 100, mtu - 1, mtu, mtu + 1, 3 * mtu + 5, 64, 19_000];
    for round in 0..rounds {
        near.copy_in(0, &vec![GUARD; near.len()]).unwrap();
        far.copy_in(0, &vec![GUARD; far.len()]).unwrap();
        let mut expected = vec![GUARD; near.len()];
        let mut batch = Vec::new();
        for pair in 0..SEND_QUEUE / 2 {
            let (len, odd) = (lengths[(pair + round) % lengths.len()], (pair * 13 + round) % 70);
            let (out, place) = (pair * slot + odd, pair * slot + odd / 2);
            let back = SEND_QUEUE * slot + out;
            let data = pattern(len, (pair + round) as u8);
            near.copy_in(out, &data).unwrap();
            expected[out..out + len].copy_from_slice(&data);
            expected[back..back + len].copy_from_slice(&data);
            let id = (round * SEND_QUEUE + 2 * pair) as u64;
            batch.push(request((id, Op::Write), &mr, out..out + len, &remote, place));
            batch.push(request((id + 1, Op::Read), &mr, back..back + len, &remote, place));
        }
        a.run_all(&batch);
        assert!(bytes(&near, 0..near.len()) == expected, "{asker:?} asks, round {round}: wrong bytes came back");
        for pair in 0..SEND_QUEUE / 2 {
            let (len, odd) = (lengths[(pair + round) % lengths.len()], (pair * 13 + round) % 70);
            let mut expected = vec![GUARD; slot];
            expected[odd / 2..odd / 2 + len].copy_from_slice(&pattern(len, (pair + round) as u8));
            assert!(bytes(&far, pair * slot..(pair + 1) * slot) == expected, "{asker:?} asks, round {round}: {pair}");
        }
    }
}

fn full_queues(asker: Asker) {
    let Some(scene) = scene() else { return };
    pipeline(&scene, asker, 10);
    scene.report(&format!("full queues, {asker:?} asks"));
}

#[test]
fn soft_asks_with_full_queues() {
    full_queues(Asker::Soft);
}

#[test]
fn real_asks_with_full_queues() {
    full_queues(Asker::Real);
}

/// Many long WRITEs, then many long READs, at once: more than any window or buffer on the way holds.
pub(crate) fn long_requests(scene: &Scene, asker: Asker, (count, len): (usize, usize)) {
    let (a, b) = scene.pair(asker, REMOTE, PATIENT);
    let (near, far) = (memory(2 * count * len, GUARD), memory(count * len, GUARD));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let data = pattern(count * len, 5);
    near.copy_in(0, &data).unwrap();
    let all = |op, base: usize| -> Vec<_> {
        let local = |at: usize| base + at * len..base + (at + 1) * len;
        (0..count).map(|at| request((at as u64, op), &mr, local(at), &remote, at * len)).collect()
    };
    a.run_all(&all(Op::Write, 0));
    assert!(bytes(&far, 0..count * len) == data, "{asker:?} asks: wrong bytes written");
    a.run_all(&all(Op::Read, count * len));
    assert!(bytes(&near, 0..2 * count * len) == [data.clone(), data].concat(), "{asker:?} asks: wrong bytes read");
}

fn long_requests_together(asker: Asker) {
    let Some(scene) = scene() else { return };
    long_requests(&scene, asker, (16, 200_001));
    scene.report(&format!("16 WRITEs, then 16 READs, of 200001 bytes, {asker:?} asks"));
}

#[test]
fn soft_asks_long_requests_together() {
    long_requests_together(Asker::Soft);
}

#[test]
fn real_asks_long_requests_together() {
    long_requests_together(Asker::Real);
}

#[test]
fn both_ask_each_other_at_once() {
    let Some(scene) = scene() else { return };
    let (a, b) = (End::on(&scene.real), End::on(&scene.soft));
    connect(&a, REMOTE, &b, REMOTE, PATIENT);
    let (at_a, at_b) = (memory(400_000, 1), memory(400_000, 2));
    let (mr_a, mr_b) = (a.register(&at_a, ALL), b.register(&at_b, ALL));
    for round in 0..20 {
        at_a.copy_in(0, &pattern(100_001, round)).unwrap();
        at_b.copy_in(0, &pattern(100_001, round + 100)).unwrap();
        a.qp.post(&[request((1, Op::Write), &mr_a, 0..100_001, &mr_b, 130_000)]).unwrap();
        b.qp.post(&[request((2, Op::Write), &mr_b, 0..100_001, &mr_a, 130_000)]).unwrap();
        a.qp.post(&[request((3, Op::Read), &mr_a, 260_000..360_001, &mr_b, 0)]).unwrap();
        b.qp.post(&[request((4, Op::Read), &mr_b, 260_000..360_001, &mr_a, 0)]).unwrap();
        for end in [&a, &b] {
            assert!(end.completions(2).iter().all(|completion| completion.status == WcStatus::SUCCESS));
        }
        for at in [130_000, 260_000] {
            assert!(bytes(&at_a, at..at + 100_001) == pattern(100_001, round + 100), "round {round}");
            assert!(bytes(&at_b, at..at + 100_001) == pattern(100_001, round), "round {round}");
        }
    }
    scene.report("both ask at once");
}

#[test]
fn many_queue_pairs_at_once() {
    let Some(scene) = scene() else { return };
    std::thread::scope(|threads| {
        for asker in [BOTH, BOTH].concat() {
            let scene = &*scene;
            threads.spawn(move || pipeline(scene, asker, 4));
        }
    });
    scene.report("four queue pairs at once, two each way");
}

/// A soft device serves soft peers, packets joined, and the real one, packets one by one, at the same time.
#[test]
fn a_soft_peer_beside_a_real_one() {
    let Some(scene) = scene() else { return };
    let (a, b) = (End::on(&scene.soft), End::on(&scene.soft));
    connect(&a, REMOTE, &b, REMOTE, PATIENT);
    let (near, far) = (memory(300_000, 7), memory(300_000, GUARD));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    std::thread::scope(|threads| {
        for asker in BOTH {
            let scene = &*scene;
            threads.spawn(move || pipeline(scene, asker, 3));
        }
        for round in 0..30_u8 {
            near.copy_in(0, &pattern(300_000, round)).unwrap();
            a.run_all(&[request((0, Op::Write), &mr, 0..300_000, &remote, 0)]);
            assert!(bytes(&far, 0..300_000) == pattern(300_000, round), "round {round}");
        }
    });
    scene.report("a soft peer beside a real one");
}
