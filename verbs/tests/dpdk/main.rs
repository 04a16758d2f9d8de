//! The soft device on DPDK: two processes, with a memif between them.

#[path = "../shared/end.rs"]
mod end;
mod lender;
mod ends {
    pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
}

use std::time::Duration;

use overbank_verbs::{Access, Device, DeviceOptions, Op, QpState, VerbsError, WcStatus};

use crate::end::{End, PATIENT, bytes, memory, pattern, request};
use crate::lender::{LEN, Lender, SEED, options};

/// Where a test's memif has its socket.
fn socket() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memif").to_str().unwrap().to_owned();
    (directory, path)
}

fn client(socket: &str, address: &str) -> Device {
    let name = format!("dpdk:net_memif{},role=client,socket={socket},address={address}/24", next());
    Device::open(&name, &options()).unwrap()
}

/// Ports of one process have different names.
fn next() -> u32 {
    static LAST: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(100);
    LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn two_processes_read_and_write_through_a_memif() {
    let (_directory, socket) = socket();
    let mut lender = Lender::start(&socket, "10.9.0.1");
    let device = client(&socket, "10.9.0.2");
    let user = End::on(&device);
    let theirs = lender.connect(&user.qp.endpoint());
    user.qp.connect(&theirs.endpoint, Access::empty(), PATIENT).unwrap();
    let near = memory(LEN, 0);
    let region = user.register(&near, Access::LOCAL_WRITE);
    // One byte, one on each side of a packet boundary, and many packets.
    let mut want = pattern(LEN, SEED);
    for (id, len) in [1, 8191, 8192, 8193, 100_001, LEN].into_iter().enumerate() {
        let id = 10 * id as u64;
        near.copy_in(0, &vec![0; LEN]).unwrap();
        assert_eq!(user.run(theirs.request((id, Op::Read), &region, len)), WcStatus::SUCCESS);
        assert!(bytes(&near, 0..len) == want[..len] && bytes(&near, len..LEN).iter().all(|byte| *byte == 0), "{len}");
        want[..len].copy_from_slice(&pattern(len, id as u8 + 1));
        near.copy_in(0, &want[..len]).unwrap();
        assert_eq!(user.run(theirs.request((id + 1, Op::Write), &region, len)), WcStatus::SUCCESS);
    }
    // The lender sees them in its own memory.
    assert_eq!(lender.sum(), lender::sum(&want));
    let counters = device.counters();
    assert!(counters.sent > 100 && counters.received > 100, "{counters:?}");
    assert!(device.describe().contains("net_memif") && device.describe().contains("path MTU 8192"), "{device:?}");
}
