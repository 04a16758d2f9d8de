//! The soft device on DPDK: two processes, with a memif between them.

#[path = "../shared/end.rs"]
mod end;
mod lender;
mod trouble;
mod ends {
    pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
}

use std::time::{Duration, Instant};

use overbank_verbs::{Access, Device, Op, QpState, Retry, VerbsError, WcStatus};

use crate::end::{End, PATIENT, SEND_QUEUE, bytes, memory, pattern};
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

#[test]
fn processes_of_a_mesh_reach_each_other_and_who_comes_back_is_found_again() {
    let (_directory, socket) = socket();
    let name = |port: &str| format!("dpdk:{port},role=mesh,socket={socket},address=10.9.1.1/24,links=3");
    let mut first = Lender::on(&name("net_memif0"));
    let device = Device::open(&name(&format!("net_memif{}", next())), &options()).unwrap();
    let mut last = Lender::on(&name("net_memif0"));
    let near = memory(LEN, 0);
    let read = |lender: &mut Lender| {
        let user = End::on(&device);
        let theirs = lender.connect(&user.qp.endpoint());
        user.qp.connect(&theirs.endpoint, Access::empty(), PATIENT).unwrap();
        let region = user.register(&near, Access::LOCAL_WRITE);
        near.copy_in(0, &[0; LEN]).unwrap();
        let ended = user.run(theirs.request((1, Op::Read), &region, LEN));
        (ended, bytes(&near, 0..LEN) == pattern(LEN, SEED))
    };
    assert_eq!(read(&mut first), (WcStatus::SUCCESS, true));
    assert_eq!(read(&mut last), (WcStatus::SUCCESS, true));
    for lender in [&mut first, &mut last] {
        lender.kill();
        *lender = Lender::on(&name("net_memif0"));
        assert_eq!(read(lender), (WcStatus::SUCCESS, true));
    }
}

/// A lender of a mesh is killed while READs run: that is noticed in time, and the lender that comes next is reached. Of two
/// only: DPDK's server does not survive each client that is killed while it connects.
fn killed_while_reads_run(address: &str, we_are_first: bool) {
    let (_directory, socket) = socket();
    let name = |port: &str| format!("dpdk:{port},role=mesh,socket={socket},address={address}/24,links=2");
    let device = || Device::open(&name(&format!("net_memif{}", next())), &options()).unwrap();
    let start = || Lender::on(&name("net_memif0"));
    let (device, mut lender) = if we_are_first {
        let device = device();
        (device, start())
    } else {
        let lender = start();
        (device(), lender)
    };
    let near = memory(LEN, 0);
    let retry = Retry { timeout: Duration::from_millis(100), count: 7 };
    let mut in_time = 0;
    for round in 0..3 {
        let user = End::on(&device);
        let theirs = lender.connect(&user.qp.endpoint());
        user.qp.connect(&theirs.endpoint, Access::empty(), retry).unwrap();
        let region = user.register(&near, Access::LOCAL_WRITE);
        near.copy_in(0, &[0; LEN]).unwrap();
        let all: Vec<_> = (0..SEND_QUEUE).map(|id| theirs.request((id as u64, Op::Read), &region, LEN)).collect();
        user.qp.post(&all).unwrap();
        let mut ended = user.completions(1);
        let killed = Instant::now();
        lender.kill();
        ended.extend(user.completions(SEND_QUEUE - 1));
        let took = killed.elapsed();
        assert!(ended.iter().map(|done| done.id).eq(0..SEND_QUEUE as u64), "out of order: {ended:?}");
        let done = ended.iter().take_while(|done| done.status == WcStatus::SUCCESS).count();
        println!("round {round}: {done} READs were done, the end was noticed after {took:?}");
        assert!(done > 0 && bytes(&near, 0..LEN) == pattern(LEN, SEED), "round {round}: {:?}", ended[0]);
        // Where the kill came late there is nothing to notice.
        if let Some((failed, rest)) = ended[done..].split_first() {
            assert_eq!(failed.status, WcStatus::RETRY_EXC_ERR, "round {round}");
            assert!(rest.iter().all(|done| done.status == WcStatus::WR_FLUSH_ERR), "round {round}: {rest:?}");
            assert!(took < Duration::from_secs(3), "round {round}: {took:?}");
            in_time += 1;
        }
        lender = start();
    }
    assert!(in_time > 0, "the end never came in the middle");
}

#[test]
fn a_server_killed_while_reads_run_is_noticed_in_time_and_the_next_is_reached() {
    killed_while_reads_run("10.9.5.1", false);
}

#[test]
fn a_client_killed_while_reads_run_is_noticed_in_time_and_the_next_is_reached() {
    killed_while_reads_run("10.9.6.1", true);
}

#[test]
fn who_dies_is_noticed_and_what_cannot_be_is_said() {
    let (_directory, socket) = socket();
    let mut lender = Lender::start(&socket, "10.9.2.1");
    let device = client(&socket, "10.9.2.2");
    let user = End::on(&device);
    let theirs = lender.connect(&user.qp.endpoint());
    let retry = Retry { timeout: Duration::from_millis(20), count: 3 };
    user.qp.connect(&theirs.endpoint, Access::empty(), retry).unwrap();
    let near = memory(4096, 0);
    let region = user.register(&near, Access::LOCAL_WRITE);
    assert_eq!(user.run(theirs.request((1, Op::Read), &region, 4096)), WcStatus::SUCCESS);
    lender.kill();
    assert_eq!(user.run(theirs.request((2, Op::Read), &region, 4096)), WcStatus::RETRY_EXC_ERR);
    assert_eq!(user.qp.state(), QpState::Error);

    let (_other, busy) = self::socket();
    let _server = Lender::start(&busy, "10.9.3.1");
    for (name, says) in [
        (format!("dpdk:net_memif99,role=server,socket={busy},address=10.9.3.2"), "another process is the server"),
        ("dpdk:eth0".to_owned(), "the form is"),
        ("dpdk:net_nonsense0,address=10.9.3.3".to_owned(), "DPDK"),
        ("dpdk:net_af_packet7,iface=nothing0,address=10.9.3.4".to_owned(), "DPDK says"),
        ("dpdk:0000:ff:1f.7,address=10.9.3.5".to_owned(), "there is no PCI device"),
    ] {
        let error = Device::open(&name, &options()).unwrap_err();
        assert!(matches!(&error, VerbsError::DeviceUnusable { name: of, .. } if *of == name));
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
}

#[test]
fn one_name_is_one_device_and_it_reaches_itself() {
    let (_directory, socket) = socket();
    let name = format!("dpdk:net_memif{},role=server,socket={socket},address=10.9.4.1", next());
    let device = Device::open(&name, &options()).unwrap();
    assert_eq!(device.name(), name);
    let same = Device::open(&name, &options()).unwrap();
    let (a, b) = (End::on(&device), End::on(&same));
    assert_eq!(a.qp.endpoint().gid, b.qp.endpoint().gid);
    device.self_test(Duration::from_secs(5)).unwrap();
}
