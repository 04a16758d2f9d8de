//! The provider's device calls: each half of a fence holds by itself, and rights are what was asked for.

mod scene;

use overbank_fabric::attach::AttachAnswer;
use overbank_fabric::token::Rights;
use overbank_provider::backend::{Backend, Verbs};
use overbank_verbs::{Backing, Memory, MemoryRegion, ProtectionDomain, QueuePair, WcStatus};
use scene::*;

/// A region over two blocks, and a borrower whose lane is connected to a queue pair in its domain.
struct Pair {
    verbs: Verbs,
    domain: ProtectionDomain,
    region: MemoryRegion,
    queue: QueuePair,
    borrower: Borrower,
}

fn pair(region: Rights, queue: Rights) -> Pair {
    let memory = Memory::map(1 << 16, Backing::Ordinary).expect("64 KiB");
    let verbs = Verbs::new(device(), memory).expect("a completion queue");
    let domain = verbs.open_domain().expect("a domain");
    let region = verbs.register(&domain, 0..2 * STRIDE as u64, region).expect("a region");
    let mut borrower = Borrower::new(&device());
    let rights = queue;
    let queue = verbs.create_queue(&domain).expect("a queue pair");
    let remote = verbs.connect(&queue, &borrower.lane.endpoint(), rights).expect("connects");
    borrower.connect(&remote);
    let key = verbs.remote_key(&region);
    borrower.answer = Some(AttachAnswer {
        request: [0; 32],
        lease: lease(1),
        lanes: Vec::new(),
        address: key.address,
        rkey: key.rkey,
        first_block: 0,
        blocks: 2,
        stride: STRIDE as u32,
        rights,
        left_ms: 0,
    });
    Pair { verbs, domain, region, queue, borrower }
}

#[test]
fn a_deregistered_region_is_out_of_reach_of_a_live_queue_pair() {
    let Pair { verbs, region, queue, mut borrower, .. } = pair(Rights::READ_WRITE, Rights::READ_WRITE);
    assert_eq!(borrower.write(1, 0x11), WcStatus::SUCCESS);
    verbs.deregister(region).expect("deregisters");
    let before = snapshot(&verbs);
    assert_eq!(borrower.write(1, 0x22), WcStatus::REM_ACCESS_ERR);
    assert!(snapshot(&verbs) == before);
    verbs.destroy(queue).expect("destroys");
}

#[test]
fn a_destroyed_queue_pair_reaches_no_live_region() {
    let Pair { verbs, region, queue, mut borrower, .. } = pair(Rights::READ_WRITE, Rights::READ_WRITE);
    assert_eq!(borrower.write(1, 0x11), WcStatus::SUCCESS);
    verbs.destroy(queue).expect("destroys");
    let before = snapshot(&verbs);
    assert_eq!(borrower.write(1, 0x22), WcStatus::RETRY_EXC_ERR);
    assert!(snapshot(&verbs) == before);
    verbs.deregister(region).expect("deregisters");
}

#[test]
fn a_right_counts_only_where_region_and_queue_pair_have_it() {
    let (read, write, both) = (Rights::READ, Rights::WRITE, Rights::READ_WRITE);
    for (region, queue, reads, writes) in [
        (both, both, true, true),
        (read, both, true, false),
        (both, read, true, false),
        (write, both, false, true),
        (both, write, false, true),
    ] {
        let mut reader = pair(region, queue);
        assert_eq!(reader.borrower.read(0).is_ok(), reads, "{region:?} {queue:?}");
        let mut writer = pair(region, queue);
        let status = writer.borrower.write(0, 0x33);
        assert_eq!(status == WcStatus::SUCCESS, writes, "{region:?} {queue:?}: {status:?}");
        assert_eq!(is_clean(&writer.verbs), !writes, "{region:?} {queue:?}");
        assert!(writes || matches!(status, WcStatus::REM_ACCESS_ERR | WcStatus::REM_INV_REQ_ERR));
        drop((reader.domain, writer.domain));
    }
}
