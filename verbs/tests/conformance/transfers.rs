//! Bytes arrive, all of them, in the right place, and nothing beside them changes.

use std::time::{Duration, Instant};

use overbank_verbs::{Op, VerbsError, WcStatus, WorkRequest};

use crate::ends::*;

const MTU: usize = 4096;
const LENGTHS: [usize; 12] = [1, 2, 3, 4, 5, 64, MTU - 1, MTU, MTU + 1, MTU + 32, 64 << 10, (1 << 20) + 1];

/// Moves each length at odd offsets and compares both sides entirely.
fn every_length(op: Op) {
    let (a, b) = pair();
    let size = (1 << 20) + 100;
    let (near, far) = (memory(size, GUARD), memory(size, GUARD));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let (source, target) = if op == Op::Read { (&far, &near) } else { (&near, &far) };
    for (round, len) in LENGTHS.into_iter().enumerate() {
        for (at, to) in [(0, 0), (1, 3), (7, 2), (63, 65)] {
            let (from, into) = if op == Op::Read { (to, at) } else { (at, to) };
            target.copy_in(0, &vec![GUARD; size]).unwrap();
            source.copy_in(from, &pattern(len, round as u8)).unwrap();
            let before = bytes(source, 0..size);
            assert_eq!(a.run(request((round as u64, op), &mr, at..at + len, &remote, to)), WcStatus::SUCCESS);
            let mut expected = vec![GUARD; size];
            expected[into..into + len].copy_from_slice(&pattern(len, round as u8));
            assert!(
                bytes(target, 0..size) == expected,
                "{op:?} of {len} bytes, {at} to {to}: wrong bytes at the target"
            );
            assert!(bytes(source, 0..size) == before, "{op:?} of {len} bytes, {at} to {to}: the source changed");
        }
    }
}

#[test]
fn read_of_every_length_at_odd_offsets() {
    every_length(Op::Read);
}

#[test]
fn write_of_every_length_at_odd_offsets() {
    every_length(Op::Write);
}

#[test]
fn requests_complete_in_the_order_they_were_posted() {
    let (a, b) = pair();
    let (near, far) = (memory(1 << 20, 0), memory(1 << 20, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let mut next = 0;
    for _ in 0..20 {
        let batch: Vec<_> = (0..64)
            .map(|at| {
                let op = if at % 3 == 0 { Op::Read } else { Op::Write };
                let len = [1, 100, 4096, 5000, 9000][at % 5];
                request((next + at as u64, op), &mr, at * 10_000..at * 10_000 + len, &remote, at * 10_000)
            })
            .collect();
        a.qp.post(&batch).unwrap();
        for completion in a.completions(64) {
            assert_eq!((completion.id, completion.status), (next, WcStatus::SUCCESS));
            next += 1;
        }
    }
}

#[test]
fn a_read_sees_the_write_posted_before_it() {
    let (a, b) = pair();
    let (near, far) = (memory(40_000, 0), memory(20_000, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    for round in 0..50 {
        near.copy_in(0, &pattern(10_000, round)).unwrap();
        a.qp.post(&[
            request((1, Op::Write), &mr, 0..10_000, &remote, 11),
            request((2, Op::Read), &mr, 20_000..30_000, &remote, 11),
        ])
        .unwrap();
        assert!(a.completions(2).iter().all(|completion| completion.status == WcStatus::SUCCESS));
        assert_eq!(bytes(&near, 20_000..30_000), pattern(10_000, round));
    }
}

#[test]
fn both_sides_may_read_and_write_at_once() {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    connect(&a, REMOTE, &b, REMOTE, PATIENT);
    let (at_a, at_b) = (memory(100_000, 1), memory(100_000, 2));
    let (mr_a, mr_b) = (a.register(&at_a, ALL), b.register(&at_b, ALL));
    for round in 0..20 {
        at_a.copy_in(0, &pattern(20_000, round)).unwrap();
        at_b.copy_in(0, &pattern(20_000, round + 100)).unwrap();
        a.qp.post(&[request((1, Op::Write), &mr_a, 0..20_000, &mr_b, 30_000)]).unwrap();
        b.qp.post(&[request((2, Op::Write), &mr_b, 0..20_000, &mr_a, 30_000)]).unwrap();
        a.qp.post(&[request((3, Op::Read), &mr_a, 60_000..80_000, &mr_b, 0)]).unwrap();
        b.qp.post(&[request((4, Op::Read), &mr_b, 60_000..80_000, &mr_a, 0)]).unwrap();
        for end in [&a, &b] {
            assert!(end.completions(2).iter().all(|completion| completion.status == WcStatus::SUCCESS));
        }
        assert_eq!(bytes(&at_a, 30_000..50_000), pattern(20_000, round + 100));
        assert_eq!(bytes(&at_a, 60_000..80_000), pattern(20_000, round + 100));
        assert_eq!(bytes(&at_b, 30_000..50_000), pattern(20_000, round));
        assert_eq!(bytes(&at_b, 60_000..80_000), pattern(20_000, round));
    }
}

#[test]
fn a_batch_beyond_the_queue_is_refused_whole() {
    let (a, b) = pair();
    let (near, far) = (memory(4096, 7), memory(4096, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let one = |id| request((id, Op::Write), &mr, 0..1, &remote, 0);
    let batch: Vec<WorkRequest<'_>> = (0..65).map(one).collect();
    match a.qp.post(&batch) {
        Err(VerbsError::QueueFull { asked: 65, capacity: 64, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(!a.cq.wait(Instant::now() + Duration::from_millis(50)).unwrap(), "something of the batch was posted");
    assert_eq!(bytes(&far, 0..1), [0]);
    a.qp.post(&batch[..64]).unwrap();
    a.completions(64);
    // And there is room again.
    a.qp.post(&batch[..64]).unwrap();
    a.completions(64);
}

#[test]
fn a_batch_with_one_bad_request_is_refused_whole() {
    let (a, b) = pair();
    let (near, far) = (memory(4096, 7), memory(4096, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let good = request((1, Op::Write), &mr, 0..100, &remote, 0);
    for (offset, len) in [(0, 0), (4096, 1), (4000, 97), (usize::MAX, 2), (1, usize::MAX)] {
        let error = a.qp.post(&[good, WorkRequest { offset, len, ..good }, good]).unwrap_err();
        match error {
            VerbsError::ZeroLength { .. } if len == 0 => {}
            VerbsError::OutOfRange { .. } | VerbsError::Limit { .. } if len > 0 => {}
            other => panic!("{offset}+{len}: {other:?}"),
        }
    }
    assert!(!a.cq.wait(Instant::now() + Duration::from_millis(50)).unwrap(), "something of the batch was posted");
    assert_eq!(far.first_nonzero(0..4096).unwrap(), None);
    assert_eq!(a.run(good), WcStatus::SUCCESS);
}

#[test]
fn wait_ends_at_its_deadline_and_poll_takes_no_more_than_it_was_asked() {
    let (a, b) = pair();
    let (near, far) = (memory(4096, 7), memory(4096, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let begun = Instant::now();
    assert!(!a.cq.wait(begun + Duration::from_millis(30)).unwrap());
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(30) && took < Duration::from_secs(2), "{took:?}");
    assert!(!a.cq.wait(begun).unwrap(), "a deadline that has passed");
    let batch: Vec<_> = (0..5).map(|id| request((id, Op::Read), &mr, 0..8, &remote, 0)).collect();
    a.qp.post(&batch).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut all = Vec::new();
    while all.len() < 5 {
        assert!(a.cq.wait(deadline).unwrap());
        let before = all.len();
        let count = a.cq.poll(2, &mut all).unwrap();
        assert!(count <= 2 && all.len() == before + count);
    }
    assert_eq!(all.iter().map(|completion| completion.id).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn the_other_side_need_not_poll() {
    let (a, b) = pair();
    let (near, far) = (memory(4096, 7), memory(4096, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    for pause in [0, 1, 5, 30] {
        std::thread::sleep(Duration::from_millis(pause));
        assert_eq!(a.run(request((1, Op::Read), &mr, 0..100, &remote, 0)), WcStatus::SUCCESS);
    }
}
