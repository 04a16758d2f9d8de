//! A thousand leases, one after the other and several at a time, of which nothing is left.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use overbank::{AttachOptions, Client, Config, LeaseRequest};
use serde_json::Value;

use crate::process::eventually;
use crate::stack::{Stack, User, device, noise};

const LEASES: usize = 1000;
const AT_ONCE: usize = 8;
/// Room for twice as many: on 2 MiB pages a lease takes at least one.
const POOL: [&str; 2] = ["--pool", "32MiB"];
const BYTES: u64 = 64 << 10;
const BLOCK: usize = 4096;

/// All that a lease takes.
#[derive(Debug, PartialEq)]
struct Held {
    /// What the kernel counts of every device: protection domains, regions, queue pairs, completion queues, contexts.
    /// Null where there is no such device, or nothing to ask with.
    rdma: Value,
    /// Total, free and reserved hugepages of 2 MiB.
    hugepages: Vec<String>,
    /// Free bytes of the pool.
    free: u64,
    /// Kilobytes that the provider has pinned for devices.
    pinned: u64,
}

impl Held {
    fn look(client: &Client, provider: u32) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").expect("Linux");
        let hugepages = ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd"];
        let line = |field: &str| meminfo.lines().find(|line| line.starts_with(field)).unwrap_or_default().to_owned();
        Self {
            rdma: resources(),
            hugepages: hugepages.into_iter().map(line).collect(),
            free: client.status().expect("answered").providers.iter().map(|provider| provider.free_bytes).sum(),
            pinned: status(provider, "VmPin:"),
        }
    }
}

fn resources() -> Value {
    if device() == "soft" {
        return Value::Null;
    }
    match Command::new("rdma").args(["-j", "resource", "show"]).output() {
        Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout).expect("JSON"),
        _ => Value::Null,
    }
}

/// A number of kilobytes in a process's status.
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Open files of a process that may not want to be looked at.
fn open_files(pid: u32) -> Option<usize> {
    fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count)
}

fn client(stack: &Stack, user: &User) -> Client {
    let config =
        Config::new(&stack.address, &user.home).expect("an address").with_leases(user.runtime.join("overbank"));
    Client::connect(&config).expect("connected")
}

/// Creates, attaches, uses and releases leases.
fn use_leases(stack: &Stack, user: &User, count: usize) {
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let client = client(stack, user);
                loop {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let mut lease = client.lease(&LeaseRequest::new(BYTES, Duration::from_secs(600))).expect("room");
                    lease.attach(&AttachOptions { device: device(), ..AttachOptions::default() }).expect("attached");
                    let (bytes, mut buffer) = (noise(BLOCK, number as u64), vec![0; BLOCK]);
                    let offset = (number * BLOCK) as u64 % BYTES;
                    lease.write(offset, &bytes).expect("written");
                    lease.read(offset, &mut buffer).expect("read");
                    assert!(buffer == bytes);
                    let receipt = lease.release(Duration::from_secs(20)).expect("released").receipt;
                    assert!(receipt.is_some_and(|receipt| receipt.is_complete()), "lease number {number}");
                }
            });
        }
    });
}

#[test]
fn a_thousand_leases_leave_nothing_behind() {
    let mut stack = Stack::start();
    let reserved = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let pages = if reserved.is_ok_and(|free| free.trim().parse().unwrap_or(0) >= 16) { "2M" } else { "plain" };
    stack.provider = None;
    stack.provider = Some(stack.start_provider(&[&POOL[..], &["--pages", pages]].concat()));
    let user = stack.consumer("ann", "blue");
    let (asker, provider) = (client(&stack, &user), stack.provider_pid());
    let before = Held::look(&asker, provider);
    if device() != "soft" && before.rdma.is_null() {
        println!("SKIPPED: needs rdma (Debian: apt-get install iproute2), to ask the kernel what is left");
    }

    // One of them while it is in use: what is compared does change.
    let mut lease = asker.lease(&LeaseRequest::new(BYTES, Duration::from_secs(600))).expect("room");
    lease.attach(&AttachOptions { device: device(), ..AttachOptions::default() }).expect("attached");
    eventually("its memory is taken", Duration::from_secs(10), || Held::look(&asker, provider).free < before.free);
    let during = Held::look(&asker, provider);
    if !before.rdma.is_null() {
        assert_ne!(during.rdma, before.rdma);
        assert!(during.pinned > before.pinned, "{during:?}");
    }
    lease.release(Duration::from_secs(20)).expect("released");

    // What is made once and kept is made by the first few.
    use_leases(&stack, &user, 20);
    let (files, resident) = (open_files(provider), status(provider, "VmRSS:"));
    let started = Instant::now();
    use_leases(&stack, &user, LEASES);
    let took = started.elapsed();
    let mut after = Held::look(&asker, provider);
    let until = Instant::now() + Duration::from_secs(10);
    while after != before && Instant::now() < until {
        thread::sleep(Duration::from_millis(100));
        after = Held::look(&asker, provider);
    }
    assert_eq!(after, before);
    let (files_after, resident_after) = (open_files(provider), status(provider, "VmRSS:"));
    assert_eq!(files_after, files, "open files of the provider");
    assert!(resident_after < resident + 4096, "the provider grew from {resident} to {resident_after} kB");
    assert_eq!(fs::read_dir(user.runtime.join("overbank")).expect("there").count(), 0, "lease files");
    println!(
        "{LEASES} leases on {}, {AT_ONCE} at a time, in {took:?}; the provider had {resident} kB, now {resident_after}; {}",
        device(),
        after.rdma
    );
}
