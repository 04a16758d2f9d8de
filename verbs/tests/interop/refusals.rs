//! What a peer may not do it cannot, whichever of the two it is: the right status, not a byte moved, both sides in ERROR.

use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_verbs::{Access, Memory, MemoryRegion, Op, QpState, Retry, WcStatus, WorkRequest};

use crate::ends::*;

const LEN: usize = 100_000;
const HASTY: Retry = Retry { timeout: Duration::from_millis(20), count: 3 };

struct Case {
    what: String,
    a: End,
    b: End,
    near: Arc<Memory>,
    far: Arc<Memory>,
    mr: MemoryRegion,
}

impl Case {
    /// `far` is not yet registered; the answering queue pair gives `rights`.
    fn new(scene: &Scene, (asker, op): (Asker, Op), rights: Access) -> Self {
        let (a, b) = scene.pair(asker, rights, PATIENT);
        let (near, far) = (memory(LEN, 7), memory(LEN, GUARD));
        let mr = a.register(&near, ALL);
        Self { what: format!("{asker:?} asks, {op:?}"), a, b, near, far, mr }
    }

    fn refused(&self, op: Op, (rkey, remote_address, len): (u32, u64, usize), status: WcStatus) {
        let what = format!("{}, {len} bytes at {remote_address:#x} with rkey {rkey:#x}", self.what);
        let request = WorkRequest { id: 1, op, region: &self.mr, offset: 0, len, remote_address, rkey };
        assert_eq!(self.a.run(request), status, "{what}");
        assert!(bytes(&self.far, 0..LEN).iter().all(|byte| *byte == GUARD), "{what}: bytes changed at the peer");
        assert!(bytes(&self.near, 0..LEN).iter().all(|byte| *byte == 7), "{what}: bytes changed here");
        assert_eq!(self.a.qp.state(), QpState::Error, "{what}");
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.b.qp.state() != QpState::Error {
            assert!(Instant::now() < deadline, "{what}: the answering side is in {:?}", self.b.qp.state());
            std::thread::yield_now();
        }
        assert_eq!(self.a.run(request), WcStatus::WR_FLUSH_ERR, "{what}: the next request");
    }
}

fn each(mut case: impl FnMut(&Scene, (Asker, Op))) {
    let Some(scene) = scene() else { return };
    for asker in BOTH {
        for op in [Op::Read, Op::Write] {
            case(&scene, (asker, op));
        }
    }
}

/// Reads and writes with what `aim` makes of a live region in the middle of a memory.
fn refused_with(len: usize, aim: impl Fn(&MemoryRegion) -> (u32, u64)) {
    each(|scene, (asker, op)| {
        let case = Case::new(scene, (asker, op), REMOTE);
        let remote = case.b.pd.register(&case.far, 20_000..80_000, ALL).unwrap();
        let (rkey, address) = aim(&remote);
        case.refused(op, (rkey, address, len), WcStatus::REM_ACCESS_ERR);
    });
}

#[test]
fn a_wrong_rkey() {
    refused_with(100, |remote| (0, remote.address()));
    for bit in [0, 7, 8, 31] {
        refused_with(1, |remote| (remote.rkey() ^ 1 << bit, remote.address()));
    }
    refused_with(50_000, |remote| (remote.rkey() ^ 1, remote.address()));
}

#[test]
fn a_wrong_range() {
    refused_with(1, |remote| (remote.rkey(), remote.address() + 60_000));
    refused_with(1, |remote| (remote.rkey(), remote.address() - 1));
    refused_with(100, |remote| (remote.rkey(), remote.address() + 59_901));
    // Many packets, of which only the last one's bytes lie outside. Fewer than the soft device asks for in one piece:
    // those before a refused piece arrive.
    refused_with(15_001, |remote| (remote.rkey(), remote.address() + 45_000));
    refused_with(100, |remote| (remote.rkey(), u64::MAX - 50));
    refused_with(100, |remote| (remote.rkey(), 0));
}

#[test]
fn a_region_of_another_protection_domain() {
    each(|scene, (asker, op)| {
        let case = Case::new(scene, (asker, op), REMOTE);
        let other = scene.device(asker.other()).alloc_pd().unwrap();
        let remote = other.register(&case.far, 0..LEN, ALL).unwrap();
        case.refused(op, (remote.rkey(), remote.address(), 100), WcStatus::REM_ACCESS_ERR);
    });
}

#[test]
fn a_region_that_lacks_the_right() {
    each(|scene, (asker, op)| {
        for len in [1, 50_000] {
            let case = Case::new(scene, (asker, op), REMOTE);
            let other = if op == Op::Read { Access::REMOTE_WRITE } else { Access::REMOTE_READ };
            let remote = case.b.register(&case.far, Access::LOCAL_WRITE | other);
            case.refused(op, (remote.rkey(), remote.address(), len), WcStatus::REM_ACCESS_ERR);
        }
    });
}

#[test]
fn a_region_that_is_gone() {
    each(|scene, (asker, op)| {
        let case = Case::new(scene, (asker, op), REMOTE);
        let remote = case.b.register(&case.far, ALL);
        let (rkey, address) = (remote.rkey(), remote.address());
        remote.deregister().unwrap();
        case.refused(op, (rkey, address, 100), WcStatus::REM_ACCESS_ERR);
    });
}

#[test]
fn a_queue_pair_that_lacks_the_right() {
    each(|scene, (asker, op)| {
        let other = if op == Op::Read { Access::REMOTE_WRITE } else { Access::REMOTE_READ };
        let case = Case::new(scene, (asker, op), other);
        let remote = case.b.register(&case.far, ALL);
        case.refused(op, (remote.rkey(), remote.address(), 100), WcStatus::REM_INV_REQ_ERR);
    });
}

/// What came before a refusal is done, what comes after it is flushed, and neither is confused by the other.
#[test]
fn a_refusal_in_the_middle_of_a_batch() {
    each(|scene, (asker, op)| {
        let case = Case::new(scene, (asker, op), REMOTE);
        let remote = case.b.register(&case.far, ALL);
        let good = |id, op, at: usize| request((id, op), &case.mr, at..at + 9000, &remote, at);
        let bad = WorkRequest { rkey: remote.rkey() ^ 1, ..good(3, op, 20_000) };
        let batch = [good(1, Op::Write, 0), good(2, Op::Read, 10_000), bad, good(4, Op::Write, 40_000)];
        case.a.qp.post(&batch).unwrap();
        let ends: Vec<_> = case.a.completions(4).iter().map(|done| (done.id, done.status)).collect();
        let (success, flushed) = (WcStatus::SUCCESS, WcStatus::WR_FLUSH_ERR);
        assert_eq!(ends, [(1, success), (2, success), (3, WcStatus::REM_ACCESS_ERR), (4, flushed)], "{}", case.what);
        let mut expected = vec![GUARD; LEN];
        expected[..9000].fill(7);
        assert!(bytes(&case.far, 0..LEN) == expected, "{}: wrong bytes at the peer", case.what);
        let mut expected = vec![7; LEN];
        expected[10_000..19_000].fill(GUARD);
        assert!(bytes(&case.near, 0..LEN) == expected, "{}: wrong bytes here", case.what);
    });
}

#[test]
fn a_peer_that_is_gone() {
    each(|scene, (asker, op)| {
        let (a, b) = scene.pair(asker, REMOTE, HASTY);
        let (near, far) = (memory(LEN, 7), memory(LEN, GUARD));
        let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
        b.qp.destroy().unwrap();
        let begun = Instant::now();
        let status = a.run(request((1, op), &mr, 0..50_000, &remote, 0));
        let took = begun.elapsed();
        println!("{asker:?} asks, {op:?}: the peer is gone, and that took {took:?} to find out");
        assert_eq!(status, WcStatus::RETRY_EXC_ERR, "{asker:?} asks, {op:?}");
        assert!(took < Duration::from_secs(3), "{asker:?} asks, {op:?}: {took:?}");
        assert_eq!(a.qp.state(), QpState::Error);
        assert!(bytes(&far, 0..LEN).iter().all(|byte| *byte == GUARD));
    });
}
