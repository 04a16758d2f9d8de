use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::device::SoftDevice;
use crate::{Access, Backing, DeviceOptions, Memory, MemoryRegion, Op, QpCaps, Retry, WcStatus, WorkRequest};

const LEN: usize = 4096;
/// As many as this says, to look for what is lost seldom: a hundred million take minutes, built for release.
const OPERATIONS: &str = "OVERBANK_DPDK_OPERATIONS";

#[test]
fn no_buffer_of_a_frame_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let options = DeviceOptions { lose_per_million: 3000, ..DeviceOptions::new("127.0.0.1".parse().unwrap()) };
    let [user, lender] = ["net_memif40", "net_memif41"].map(|port| {
        let socket = directory.path().display();
        let name = format!("dpdk:{port},role=mesh,socket={socket},address=10.9.40.1,links=2");
        SoftDevice::open_dpdk(&name, &options, String::new()).unwrap()
    });
    let ends = [&user, &lender].map(|device| {
        let (pd, cq) = (Arc::new(device.alloc_pd().unwrap()), Arc::new(device.create_cq(64).unwrap()));
        let memory = Arc::new(Memory::map(LEN, Backing::Ordinary).unwrap());
        let mr = pd.register(&memory, 0..LEN, Access::all()).unwrap();
        let qp = pd.create_qp(&cq, QpCaps { send_queue: 64, outstanding_reads: 16 }).unwrap();
        (cq, mr, qp)
    });
    let [(cq, mr, qp), (_, lent, peer)] = ends;
    let retry = Retry { timeout: Duration::from_millis(20), count: 100 };
    qp.connect(&peer.endpoint(), Access::all(), retry).unwrap();
    peer.connect(&qp.endpoint(), Access::all(), retry).unwrap();
    let region = MemoryRegion(crate::mr::Backend::Soft(mr));
    let mr = match &region.0 {
        crate::mr::Backend::Soft(mr) => mr,
        #[cfg(feature = "ibv")]
        crate::mr::Backend::Ibv(_) => panic!("it was just made"),
    };
    let (remote_address, rkey) = (lent.address(), lent.rkey());
    let run = |count: u64| {
        let mut done = Vec::new();
        for id in 0..count / 64 {
            let op = if id % 2 == 0 { Op::Read } else { Op::Write };
            let len = if id % 4 < 2 { LEN } else { 64 };
            let one = WorkRequest { id, op, region: &region, offset: 0, len, remote_address, rkey };
            qp.post(std::iter::repeat_n((one, mr), 64)).unwrap();
            let until = Instant::now() + Duration::from_secs(20);
            while done.len() < 64 {
                assert!(cq.poll_within(until, 64, &mut done).unwrap() > 0, "no answer in time");
            }
            assert!(done.drain(..).all(|done| done.status == WcStatus::SUCCESS));
        }
    };
    // Each keeps one for the next packet, and none is under way when nothing has been for a while.
    let frames = || {
        std::thread::sleep(Duration::from_millis(300));
        [&user, &lender].map(|device| device.frames())
    };
    run(64);
    let before = frames();
    let operations = std::env::var(OPERATIONS).map_or(20_000, |number| number.parse().expect(OPERATIONS));
    run(operations);
    let after = frames();
    println!("frames free and in use, of each device: before {before:?}, after {operations} operations {after:?}");
    assert_eq!(after, before);
    assert!(before.iter().all(|(free, used)| *free > 0 && *used > 0), "{before:?}");
    let counted = user.counters();
    assert!(counted.retransmitted > 0 && counted.dropped.contains_key("lost on purpose"), "{counted:?}");
}
