//! The soft device where it differs from others: its socket, its thread, and a peer in another process.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_verbs::{
    Access, Backing, Device, DeviceOptions, Endpoint, Lane, Memory, Mtu, Op, QpCaps, Retry, Transfer, VerbsError,
    WcStatus,
};

const LEN: usize = 100_000;
const RETRY: Retry = Retry { timeout: Duration::from_millis(50), count: 5 };
const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);

fn options() -> DeviceOptions {
    DeviceOptions { port: Some(0), ..DeviceOptions::new("127.0.0.1".parse().unwrap()) }
}

fn open() -> Device {
    Device::open("soft", &options()).unwrap()
}

/// Where a device's socket is.
fn address(device: &Device) -> SocketAddr {
    let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(1).unwrap());
    pd.create_qp(&cq, QpCaps { send_queue: 1, outstanding_reads: 1 }).unwrap().endpoint().socket_addr()
}

fn run(lane: &mut Lane, transfer: Transfer) -> WcStatus {
    lane.post(&[transfer]).unwrap();
    assert!(lane.wait(Instant::now() + Duration::from_secs(20)).unwrap());
    let mut done = Vec::new();
    lane.poll(&mut done).unwrap();
    assert_eq!((done.len(), done[0].slot), (1, transfer.slot));
    done[0].status
}

#[test]
fn it_says_where_it_is_and_refuses_where_it_cannot_be() {
    let device = open();
    assert_eq!(device.name(), "soft");
    let text = device.describe();
    assert!(text.contains(&address(&device).to_string()) && text.contains("path MTU 8192"), "{text}");
    let smaller = Device::open("auto", &DeviceOptions { mtu: Mtu::Mtu1024, ..options() }).unwrap();
    assert!(smaller.describe().contains("path MTU 1024"));
    // One of two that ask for no port cannot have 4791, and says so.
    let both = [(); 2].map(|()| Device::open("auto", &DeviceOptions { port: None, ..options() }).unwrap());
    assert!(both.iter().any(|device| device.describe().contains("port 4791 is taken")), "{both:?}");
    let port = Some(address(&device).port());
    let error = Device::open("soft", &DeviceOptions { port, ..options() }).unwrap_err();
    assert!(matches!(error, VerbsError::PortInUse { .. }), "{error}");
    for address in ["0.0.0.0", "::", "224.0.0.1", "192.0.2.1"] {
        let error =
            Device::open("soft", &DeviceOptions { address: address.parse().unwrap(), ..options() }).unwrap_err();
        assert!(matches!(error, VerbsError::Address { .. }), "{address}: {error}");
    }
}

#[test]
fn junk_is_counted_and_harms_nothing() {
    let (lender, user) = (open(), open());
    let (mut lane, region, _memory, _qp) = lend(&lender, &user);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (number, to) in [address(&lender), address(&user)].into_iter().cycle().take(4000).enumerate() {
        let junk: Vec<u8> = (0..number % 300).map(|at| (at * number) as u8).collect();
        stranger.send_to(&junk, to).unwrap();
        if number % 500 == 0 {
            let slot = lane.take().unwrap();
            let transfer =
                Transfer { slot, op: Op::Write, len: 4096, remote_address: region.address(), rkey: region.rkey() };
            assert_eq!(run(&mut lane, transfer), WcStatus::SUCCESS);
            lane.give(slot);
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    let dropped = || lender.counters().dropped.values().sum::<u64>();
    while dropped() < 1990 {
        assert!(Instant::now() < deadline, "{:?}", lender.counters());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_it_loses_on_purpose_is_counted_and_sent_again() {
    let lossy = |lose_per_million| Device::open("soft", &DeviceOptions { lose_per_million, ..options() });
    let (lender, user) = (lossy(50_000).unwrap(), lossy(50_000).unwrap());
    assert!(user.describe().contains("losing 50000 of a million"), "{user:?}");
    let (mut lane, region, memory, _qp) = lend(&lender, &user);
    let slot = lane.take().unwrap();
    let write = Transfer { slot, op: Op::Write, len: LEN, remote_address: region.address(), rkey: region.rkey() };
    for round in 0..20 {
        lane.bytes_mut(slot).unwrap().fill(round);
        assert_eq!(run(&mut lane, write), WcStatus::SUCCESS);
        let mut got = vec![0; LEN];
        memory.copy_out(0, &mut got).unwrap();
        assert!(got.iter().all(|byte| *byte == round), "round {round}");
        lane.bytes_mut(slot).unwrap().fill(99);
        assert_eq!(run(&mut lane, Transfer { op: Op::Read, ..write }), WcStatus::SUCCESS);
        assert!(lane.bytes(slot).unwrap() == got, "round {round}");
    }
    for device in [&lender, &user] {
        let counters = device.counters();
        let lost = counters.dropped.get("lost on purpose").copied().unwrap_or(0);
        assert!(lost > 0 && lost < counters.sent / 10, "{counters:?}");
    }
    assert!(user.counters().retransmitted > 0);
    // None by default, and no more than all.
    assert_eq!(open().counters().dropped.get("lost on purpose"), None);
    lossy(1_000_000).unwrap();
    let error = lossy(1_000_001).unwrap_err();
    assert!(matches!(error, VerbsError::Limit { value: 1_000_001, max: 1_000_000, .. }), "{error}");
    // A real device cannot: said before it is looked for.
    let error = Device::open("rxe0", &DeviceOptions { lose_per_million: 1, ..options() }).unwrap_err();
    assert!(error.to_string().contains("only the soft device"), "{error}");
}

type Lent = (Lane, overbank_verbs::MemoryRegion, Arc<Memory>, overbank_verbs::QueuePair);

fn lend(lender: &Device, user: &Device) -> Lent {
    let memory = Arc::new(Memory::map(LEN, Backing::Ordinary).unwrap());
    let (pd, cq) = (lender.alloc_pd().unwrap(), lender.create_cq(1).unwrap());
    let region = pd.register(&memory, 0..LEN, Access::LOCAL_WRITE | RIGHTS).unwrap();
    let qp = pd.create_qp(&cq, QpCaps { send_queue: 1, outstanding_reads: 16 }).unwrap();
    let mut lane = Lane::new(user, 4, LEN).unwrap();
    qp.connect(&lane.endpoint(), RIGHTS, RETRY).unwrap();
    lane.connect(&qp.endpoint(), RETRY).unwrap();
    (lane, region, memory, qp)
}

#[test]
fn a_device_s_thread_ends_with_the_device() {
    let threads = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok().map(|name| name.trim().to_owned())
        });
        names.filter(|name| name == "overbank-soft").count()
    };
    // Other tests of this process have devices too: hold enough that theirs do not matter.
    let devices: Vec<_> = (0..200).map(|_| open()).collect();
    let pd = devices[0].alloc_pd().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(threads() >= 200);
    let begun = Instant::now();
    drop(devices);
    let (left, took) = (threads(), begun.elapsed());
    assert!(left < 50 && took < Duration::from_secs(5), "{left} threads are left after {took:?}");
    drop(pd);
}

#[test]
fn ipv6() {
    let options = DeviceOptions { address: "::1".parse().unwrap(), ..options() };
    let (lender, user) = match (Device::open("soft", &options), Device::open("soft", &options)) {
        (Ok(lender), Ok(user)) => (lender, user),
        (Err(VerbsError::Address { .. }), _) => return eprintln!("SKIPPED: no IPv6 here"),
        (other, _) => panic!("{other:?}"),
    };
    let (mut lane, region, memory, _qp) = lend(&lender, &user);
    let slot = lane.take().unwrap();
    lane.bytes_mut(slot).unwrap().fill(9);
    let transfer = Transfer { slot, op: Op::Write, len: LEN, remote_address: region.address(), rkey: region.rkey() };
    assert_eq!(run(&mut lane, transfer), WcStatus::SUCCESS);
    let mut got = vec![0; LEN];
    memory.copy_out(0, &mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == 9));
    // The two families do not reach each other.
    let (other, _region, _memory, _qp) = lend(&open(), &open());
    let mut lane = Lane::new(&user, 1, 64).unwrap();
    let error = lane.connect(&other.endpoint(), RETRY).unwrap_err();
    assert!(matches!(error, VerbsError::Unreachable { .. }), "{error}");
}

const LENDER: &str = "OVERBANK_TEST_LENDER";
/// How long that process polls, in milliseconds.
const SPIN: &str = "OVERBANK_TEST_SPIN";

/// Not a test by itself: the process that the next test starts.
#[test]
fn lender_process() {
    if std::env::var_os(LENDER).is_none() {
        return;
    }
    let mut options = options();
    if let Ok(spin) = std::env::var(SPIN) {
        options.spin = Duration::from_millis(spin.parse().unwrap());
    }
    let lender = Device::open("soft", &options).unwrap();
    let memory = Arc::new(Memory::map(LEN, Backing::Ordinary).unwrap());
    let (pd, cq) = (lender.alloc_pd().unwrap(), lender.create_cq(1).unwrap());
    let region = pd.register(&memory, 0..LEN, Access::LOCAL_WRITE | RIGHTS).unwrap();
    let qp = pd.create_qp(&cq, QpCaps { send_queue: 1, outstanding_reads: 16 }).unwrap();
    println!("\nLENT {} {} {}", hex(&qp.endpoint().to_bytes()), region.address(), region.rkey());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    qp.connect(&endpoint(line.trim()), RIGHTS, RETRY).unwrap();
    println!("\nCONNECTED");
    // Until it is killed.
    let _ = std::io::stdin().read_line(&mut line);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn endpoint(text: &str) -> Endpoint {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    Endpoint::from_bytes(&std::array::from_fn(byte)).unwrap()
}

/// Starts that process, and connects a lane to it: its region's address and key.
fn lender_elsewhere(spin: Option<&str>) -> (Child, Lane, u64, u32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lender_process", "--nocapture"])
        .env(LENDER, "1")
        .envs(spin.map(|spin| (SPIN, spin)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let lent = lines.find_map(|line| line.strip_prefix("LENT ").map(str::to_owned)).unwrap();
    let [peer, address, rkey] = lent.split(' ').collect::<Vec<_>>()[..] else { panic!("{lent}") };
    let mut lane = Lane::new(&open(), 2, LEN).unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{}", hex(&lane.endpoint().to_bytes())).unwrap();
    assert!(lines.any(|line| line == "CONNECTED"));
    lane.connect(&endpoint(peer), RETRY).unwrap();
    (child, lane, address.parse().unwrap(), rkey.parse().unwrap())
}

/// Processor time of all threads of a process.
fn processor_time(child: &Child) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let nanoseconds = threads.map(|thread| {
        let times = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        times.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[test]
fn a_device_polls_as_long_as_it_was_told_to_and_then_costs_no_processor_time() {
    let spent = ["0", "1000"].map(|spin| {
        let (mut child, mut lane, remote_address, rkey) = lender_elsewhere(Some(spin));
        let slot = lane.take().unwrap();
        let read = Transfer { slot, op: Op::Read, len: 4096, remote_address, rkey };
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            // It wakes for each.
            assert_eq!(run(&mut lane, read), WcStatus::SUCCESS);
            let before = processor_time(&child);
            std::thread::sleep(Duration::from_millis(300));
            longest = longest.max(processor_time(&child) - before);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        longest
    });
    assert!(spent[0] < Duration::from_millis(5), "{spent:?}");
    // Other processes may want the processors too.
    assert!(spent[1] > Duration::from_millis(20), "{spent:?}");
}

#[test]
fn a_peer_in_another_process_and_its_death() {
    let (mut child, mut lane, remote_address, rkey) = lender_elsewhere(None);
    let (out, back) = (lane.take().unwrap(), lane.take().unwrap());
    for round in 0..50_u8 {
        let pattern: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8 ^ round).collect();
        lane.bytes_mut(out).unwrap().copy_from_slice(&pattern);
        let write = Transfer { slot: out, op: Op::Write, len: LEN, remote_address, rkey };
        assert_eq!(run(&mut lane, write), WcStatus::SUCCESS);
        assert_eq!(run(&mut lane, Transfer { slot: back, op: Op::Read, ..write }), WcStatus::SUCCESS);
        assert!(lane.bytes(back).unwrap() == pattern, "round {round}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    let read = Transfer { slot: back, op: Op::Read, len: 4096, remote_address, rkey };
    assert_eq!(run(&mut lane, read), WcStatus::RETRY_EXC_ERR);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[cfg(not(feature = "dpdk"))]
#[test]
fn a_build_without_dpdk_says_how_to_have_it() {
    let error = Device::open("dpdk:net_memif0,role=server,socket=/run/memif", &options()).unwrap_err().to_string();
    assert!(error.contains("--features dpdk") && error.contains("libdpdk-dev"), "{error}");
    let found = Device::find(&options());
    let listed = found.devices.iter().find(|device| device.name.starts_with("dpdk:")).unwrap();
    assert!(listed.usable.as_ref().unwrap_err().contains("--features dpdk"));
    assert_eq!(found.devices.last().map(|device| device.name.as_str()), Some("soft"));
}
