//! What must not hang or harm a process: other ends that stop, ends that go, and devices that cannot be.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use overbank_verbs::{Access, Device, Op, Retry, WcStatus};

use crate::end::{End, PATIENT, bytes, memory, pattern};
use crate::ends::LIMIT;
use crate::lender::{LEN, Lender, SEED, options};
use crate::next;

/// Set in a process that runs one of these tests, and nothing else.
const ALONE: &str = "OVERBANK_TEST_ALONE";

/// Whether this is such a process; otherwise this test has been run in one.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let ended = alone.args(["--exact", &format!("trouble::{test}")]).env(ALONE, "1").output().unwrap();
    assert!(ended.status.success() && String::from_utf8_lossy(&ended.stdout).contains("1 passed"), "{ended:?}");
    false
}

/// Runs this on a thread, and waits for it as long as a hang must not last.
fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, over) = mpsc::channel();
    std::thread::spawn(move || done.send(what()));
    over.recv_timeout(LIMIT).expect("it hangs")
}

#[test]
fn a_server_that_is_stopped_keeps_nobody_waiting() {
    // With room in DPDK's memory for many devices.
    if !is_alone("a_server_that_is_stopped_keeps_nobody_waiting") {
        return;
    }
    let (_directory, socket) = crate::socket();
    let (_other, elsewhere) = crate::socket();
    let mut lender = Lender::start(&socket, "10.9.5.1");
    lender.signal(Signal::SIGSTOP);
    let (device, other) = in_time(move || {
        let other = format!("dpdk:net_memif{},role=server,socket={elsewhere},address=10.9.5.9", next());
        let other = Device::open(&other, &options()).unwrap();
        // More of them than its socket has room for.
        let [device, second, third] = [0, 1, 2].map(|id| {
            let name = format!("dpdk:net_memif{},role=client,socket={socket},address=10.9.5.2,id={id}", next());
            Device::open(&name, &options()).unwrap()
        });
        let user = End::on(&device);
        let retry = Retry { timeout: Duration::from_millis(20), count: 3 };
        user.qp.connect(&End::on(&other).qp.endpoint(), Access::empty(), retry).unwrap();
        let near = memory(4096, 0);
        let region = user.register(&near, Access::LOCAL_WRITE);
        let peer = crate::lender::Theirs::nowhere(&other);
        assert_eq!(user.run(peer.request((1, Op::Read), &region, 4096)), WcStatus::RETRY_EXC_ERR);
        // Longer than it takes to call several times.
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            for device in [&device, &second, &third, &other] {
                device.self_test(Duration::from_secs(5)).unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop((second, third));
        (device, other)
    });
    lender.signal(Signal::SIGCONT);
    let user = End::on(&device);
    let theirs = lender.connect(&user.qp.endpoint());
    user.qp.connect(&theirs.endpoint, Access::empty(), PATIENT).unwrap();
    let near = memory(LEN, 0);
    let region = user.register(&near, Access::LOCAL_WRITE);
    assert_eq!(user.run(theirs.request((1, Op::Read), &region, LEN)), WcStatus::SUCCESS);
    assert!(bytes(&near, 0..LEN) == pattern(LEN, SEED));
    drop((user, region));
    in_time(move || drop((device, other)));
}

/// Sockets of this machine's at this path, whoever has them.
fn sockets(path: &str) -> usize {
    std::fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.ends_with(path)).count()
}

#[test]
fn a_server_that_is_closed_leaves_nothing_at_its_socket() {
    let (_directory, path) = crate::socket();
    let name = format!("dpdk:net_memif{},role=server,socket={path},address=10.9.6.1", next());
    for _ in 0..3 {
        let device = Device::open(&name, &options()).unwrap();
        let caller = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&caller, sockopt::ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
        connect(caller.as_raw_fd(), &UnixAddr::new(Path::new(&path)).unwrap()).unwrap();
        let hear = || recv(caller.as_raw_fd(), &mut [0; 256], MsgFlags::empty());
        assert_eq!(hear(), Ok(128));
        device.self_test(Duration::from_secs(5)).unwrap();
        drop(device);
        assert_eq!(hear(), Ok(0));
        let until = Instant::now() + LIMIT;
        // It is closed by whoever drops the device last: its own thread, perhaps.
        while sockets(&path) > 0 {
            assert!(Instant::now() < until, "the listener is left");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_port_has_one_name() {
    let (_directory, path) = crate::socket();
    let (port, name) =
        (next(), |port, last| format!("dpdk:net_memif{port},role=server,socket={path},address=10.9.7.{last}"));
    let device = Device::open(&name(port, 1), &options()).unwrap();
    let refused = Device::open(&name(port, 2), &options()).unwrap_err().to_string();
    assert!(refused.contains(&name(port, 1)) && refused.contains("use it by that name"), "{refused}");
    device.self_test(Duration::from_secs(5)).unwrap();
    drop(device);
    Device::open(&name(port, 2), &options()).unwrap();
}

#[test]
fn programs_that_this_one_runs_get_nothing_of_its_memifs() {
    let (_directory, path) = crate::socket();
    let _lender = Lender::start(&path, "10.9.8.1");
    let device = crate::client(&path, "10.9.8.2");
    device.self_test(Duration::from_secs(5)).unwrap();
    let has_memory = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|file| file.to_string_lossy().contains("memif"))
    };
    let until = Instant::now() + LIMIT;
    loop {
        let listed = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
        let inherited = String::from_utf8(listed.stdout).unwrap();
        if has_memory() && !inherited.contains("/memfd:") && !inherited.contains("socket:[") {
            return;
        }
        assert!(Instant::now() < until, "{inherited}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_keeps_dpdk_from_starting_does_not_last() {
    if !is_alone("what_keeps_dpdk_from_starting_does_not_last") {
        return;
    }
    let refused = Device::open("dpdk:net_null0,address=10.9.9.1,hugepages=yes,memory=65536", &options()).unwrap_err();
    assert!(refused.to_string().contains("MiB of hugepages are needed"), "{refused}");
    let device = Device::open("dpdk:net_null0,address=10.9.9.1", &options()).unwrap();
    device.self_test(Duration::from_secs(5)).unwrap();
}

#[test]
fn devices_come_and_go_while_others_do() {
    if !is_alone("devices_come_and_go_while_others_do") {
        return;
    }
    let threads = [10, 20].map(|number| {
        std::thread::spawn(move || {
            let (_directory, path) = crate::socket();
            for _ in 0..20 {
                let [_server, client] = ["server", "client"].map(|role| {
                    let name = format!("dpdk:net_memif{},role={role},socket={path},address=10.9.{number}.1", next());
                    Device::open(&name, &options()).unwrap()
                });
                client.self_test(Duration::from_secs(5)).unwrap();
            }
        })
    });
    in_time(|| threads.into_iter().for_each(|thread| thread.join().unwrap()));
}

#[test]
fn who_leaves_at_once_does_a_server_no_harm() {
    let (_directory, path) = crate::socket();
    let mut lender = Lender::start(&path, "10.9.12.1");
    for _ in 0..30 {
        drop(crate::client(&path, "10.9.12.2"));
    }
    let device = crate::client(&path, "10.9.12.2");
    let user = End::on(&device);
    let theirs = lender.connect(&user.qp.endpoint());
    user.qp.connect(&theirs.endpoint, Access::empty(), PATIENT).unwrap();
    let near = memory(LEN, 0);
    let region = user.register(&near, Access::LOCAL_WRITE);
    assert_eq!(user.run(theirs.request((1, Op::Read), &region, LEN)), WcStatus::SUCCESS);
}
