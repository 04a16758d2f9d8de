//! What a peer may not do, it cannot: the right status, and not a byte moved.

use std::sync::Arc;

use overbank_verbs::{Access, MemoryRegion, Op, QpState, VerbsError, WcStatus, WorkRequest};

use crate::ends::*;

const LEN: usize = 100_000;

struct Case {
    a: End,
    b: End,
    near: Arc<overbank_verbs::Memory>,
    far: Arc<overbank_verbs::Memory>,
    mr: MemoryRegion,
}

impl Case {
    /// `far` is not yet registered; the peer's queue pair gives `rights`.
    fn new(rights: Access) -> Self {
        let (a, b) = (End::on(&open()), End::on(&open_peer()));
        connect(&a, Access::empty(), &b, rights, PATIENT);
        let (near, far) = (memory(LEN, 7), memory(LEN, GUARD));
        let mr = a.register(&near, ALL);
        Self { a, b, near, far, mr }
    }

    /// The request ends with the status, moves nothing and leaves the queue pair in ERROR.
    fn refused(&self, op: Op, (rkey, remote_address, len): (u32, u64, usize), status: WcStatus) {
        let request = WorkRequest { id: 1, op, region: &self.mr, offset: 0, len, remote_address, rkey };
        assert_eq!(self.a.run(request), status);
        assert!(bytes(&self.far, 0..LEN).iter().all(|byte| *byte == GUARD), "bytes changed at the peer");
        assert!(bytes(&self.near, 0..LEN).iter().all(|byte| *byte == 7), "bytes changed here");
        assert_eq!(self.a.qp.state(), QpState::Error);
        assert_eq!(self.a.run(request), WcStatus::WR_FLUSH_ERR, "the next request");
    }
}

/// Reads and writes with what `aim` makes of a live region.
fn refused_with(len: usize, aim: impl Fn(&MemoryRegion) -> (u32, u64)) {
    for op in [Op::Read, Op::Write] {
        let case = Case::new(REMOTE);
        // A region in the middle of the memory, with bytes of the same memory on both sides.
        let remote = case.b.pd.register(&case.far, 20_000..80_000, ALL).unwrap();
        let (rkey, address) = aim(&remote);
        case.refused(op, (rkey, address, len), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn rkey_zero() {
    refused_with(100, |remote| (0, remote.address()));
}

#[test]
fn rkey_with_any_bit_wrong() {
    for bit in [0, 1, 7, 8, 15, 16, 24, 31] {
        refused_with(1, |remote| (remote.rkey() ^ 1 << bit, remote.address()));
    }
}

#[test]
fn one_byte_beyond_the_end() {
    refused_with(1, |remote| (remote.rkey(), remote.address() + 60_000));
    refused_with(100, |remote| (remote.rkey(), remote.address() + 59_901));
}

#[test]
fn one_byte_before_the_start() {
    refused_with(1, |remote| (remote.rkey(), remote.address() - 1));
    refused_with(100, |remote| (remote.rkey(), remote.address() - 1));
}

#[test]
fn many_packets_of_which_the_last_is_beyond_the_end() {
    refused_with(60_001, |remote| (remote.rkey(), remote.address()));
    refused_with(50_000, |remote| (remote.rkey(), remote.address() + 10_001));
}

#[test]
fn addresses_that_wrap() {
    refused_with(100, |remote| (remote.rkey(), u64::MAX));
    refused_with(100, |remote| (remote.rkey(), u64::MAX - 99));
    refused_with(100, |remote| (remote.rkey(), 0));
    refused_with(60_000, |remote| (remote.rkey(), 0_u64.wrapping_sub(30_000)));
}

#[test]
fn a_region_of_another_protection_domain() {
    for op in [Op::Read, Op::Write] {
        let case = Case::new(REMOTE);
        let other = case.b.device.alloc_pd().unwrap();
        let remote = other.register(&case.far, 0..LEN, ALL).unwrap();
        case.refused(op, (remote.rkey(), remote.address(), 100), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn a_region_of_another_device() {
    for op in [Op::Read, Op::Write] {
        let case = Case::new(REMOTE);
        let other = open();
        let remote = other.alloc_pd().unwrap().register(&case.far, 0..LEN, ALL).unwrap();
        case.refused(op, (remote.rkey(), remote.address(), 100), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn a_stale_rkey() {
    for op in [Op::Read, Op::Write] {
        let case = Case::new(REMOTE);
        let remote = case.b.register(&case.far, ALL);
        let (rkey, address) = (remote.rkey(), remote.address());
        remote.deregister().unwrap();
        // A new region over the same bytes does not bring the old key back.
        let _again = case.b.register(&case.far, ALL);
        case.refused(op, (rkey, address, 100), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn a_dropped_region() {
    let case = Case::new(REMOTE);
    let remote = case.b.register(&case.far, ALL);
    let (rkey, address) = (remote.rkey(), remote.address());
    drop(remote);
    case.refused(Op::Write, (rkey, address, 100), WcStatus::REM_ACCESS_ERR);
}

#[test]
fn a_write_to_a_region_that_may_only_be_read() {
    for len in [1, 50_000] {
        let case = Case::new(REMOTE);
        let remote = case.b.register(&case.far, Access::LOCAL_WRITE | Access::REMOTE_READ);
        case.refused(Op::Write, (remote.rkey(), remote.address(), len), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn a_read_of_a_region_that_may_only_be_written() {
    for len in [1, 50_000] {
        let case = Case::new(REMOTE);
        let remote = case.b.register(&case.far, Access::LOCAL_WRITE | Access::REMOTE_WRITE);
        case.refused(Op::Read, (remote.rkey(), remote.address(), len), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn any_access_to_a_region_without_remote_rights() {
    for op in [Op::Read, Op::Write] {
        let case = Case::new(REMOTE);
        let remote = case.b.register(&case.far, Access::LOCAL_WRITE);
        case.refused(op, (remote.rkey(), remote.address(), 100), WcStatus::REM_ACCESS_ERR);
    }
}

#[test]
fn a_queue_pair_that_does_not_give_the_right() {
    for (op, rights) in [
        (Op::Write, Access::REMOTE_READ),
        (Op::Read, Access::REMOTE_WRITE),
        (Op::Write, Access::empty()),
        (Op::Read, Access::empty()),
    ] {
        let case = Case::new(rights);
        let remote = case.b.register(&case.far, ALL);
        case.refused(op, (remote.rkey(), remote.address(), 100), WcStatus::REM_INV_REQ_ERR);
    }
}

#[test]
fn the_peer_gets_no_rights_at_this_side() {
    let (a, b) = pair();
    let (near, far) = (memory(LEN, GUARD), memory(LEN, 7));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    assert_eq!(b.run(request((1, Op::Write), &remote, 0..10, &mr, 0)), WcStatus::REM_INV_REQ_ERR);
    assert!(bytes(&near, 0..LEN).iter().all(|byte| *byte == GUARD));
}

#[test]
fn a_read_into_a_region_that_may_not_be_written() {
    let (a, b) = pair();
    let (near, far) = (memory(100, GUARD), memory(100, 7));
    let (mr, remote) = (a.register(&near, Access::empty()), b.register(&far, ALL));
    // Some devices see it when it is posted, some when it is done.
    match a.qp.post(&[request((1, Op::Read), &mr, 0..100, &remote, 0)]) {
        Err(VerbsError::Rights { .. }) => {}
        Ok(()) => assert_eq!(a.completions(1)[0].status, WcStatus::LOC_PROT_ERR),
        Err(other) => panic!("{other}"),
    }
    assert!(bytes(&near, 0..100).iter().all(|byte| *byte == GUARD));
}

#[test]
fn a_local_region_of_another_protection_domain() {
    let (a, b) = pair();
    let (near, far) = (memory(100, GUARD), memory(100, 7));
    let remote = b.register(&far, ALL);
    let mr = a.device.alloc_pd().unwrap().register(&near, 0..100, ALL).unwrap();
    match a.qp.post(&[request((1, Op::Write), &mr, 0..100, &remote, 0)]) {
        Err(VerbsError::Foreign { .. }) => {}
        Ok(()) => assert_eq!(a.completions(1)[0].status, WcStatus::LOC_PROT_ERR),
        Err(other) => panic!("{other}"),
    }
    assert!(bytes(&far, 0..100).iter().all(|byte| *byte == 7));
}

#[test]
fn objects_of_another_device() {
    let (a, b) = pair();
    let (near, far) = (memory(100, GUARD), memory(100, 7));
    let remote = b.register(&far, ALL);
    let result = a.qp.post(&[request((1, Op::Write), &remote, 0..100, &remote, 0)]);
    assert!(matches!(result, Err(VerbsError::Foreign { .. })), "{result:?}");
    let caps = overbank_verbs::QpCaps { send_queue: 1, outstanding_reads: 1 };
    assert!(matches!(a.pd.create_qp(&b.cq, caps), Err(VerbsError::Foreign { .. })));
    drop(near);
}

#[test]
#[allow(clippy::reversed_empty_ranges)]
fn regions_that_cannot_be() {
    let device = open();
    let pd = device.alloc_pd().unwrap();
    let memory = memory(100, 0);
    assert!(matches!(pd.register(&memory, 5..5, ALL), Err(VerbsError::ZeroLength { .. })));
    for range in [0..101, 100..101, 6..5, usize::MAX..0, 0..usize::MAX] {
        assert!(matches!(pd.register(&memory, range.clone(), ALL), Err(VerbsError::OutOfRange { .. })), "{range:?}");
    }
}
