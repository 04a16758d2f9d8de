//! A lease used as memory, with a real auth daemon and provider around it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use overbank::{AttachOptions, Client, Config, ErrorKind, Faults, LeaseId, LeaseRequest, Region, RegionOptions};

use crate::library::{client, options};
use crate::stack::{Stack, User, noise, seconds};
use crate::threads;

const LONG: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(10);

/// A region of a new lease, with so much of it here.
fn region(client: &Client, bytes: u64, local: u64, more: impl FnOnce(&mut RegionOptions)) -> Region {
    let lease = client.lease(&LeaseRequest::new(bytes, LONG)).expect("room");
    let mut options = RegionOptions { attach: options(), ..RegionOptions::new(local) };
    more(&mut options);
    lease.into_region(&options).expect("a region")
}

#[test]
fn memory_eight_times_what_is_here_keeps_every_byte_and_gives_all_back() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    for (faults, page) in [(Faults::Signal, 4096), (Faults::Thread, 4096), (Faults::Signal, 16_384)] {
        let mut region = region(&client, 4 << 20, 32 * 16_384, |options| {
            options.faults = faults;
            options.page = Some(page);
        });
        let bytes = noise(region.len(), 3);
        region.as_mut_slice().copy_from_slice(&bytes);
        assert!(region.as_mut_slice() == bytes, "{faults:?} {page}");
        // In strides, backwards, with writes in between.
        for at in (0..bytes.len()).step_by(12_289).rev() {
            assert_eq!(region.as_mut_slice()[at], bytes[at]);
            region.as_mut_slice()[at] ^= 0xFF;
        }
        for (at, byte) in region.as_mut_slice().iter().enumerate().filter(|(at, _)| at % 12_289 == 0) {
            assert_eq!(*byte, bytes[at] ^ 0xFF);
        }
        let stats = region.stats();
        assert!(stats.stored > 0 && stats.fetched > 0 && stats.peak_resident_bytes <= 32 * 16_384, "{stats:?}");
        let lease = region.lease_id().to_string();
        assert!(region.release(PATIENCE).expect("released").receipt.is_some());
        stack.wait_ended(&user, &lease);
    }
}

#[test]
fn a_queue_pair_that_is_taken_away_is_made_anew_while_the_program_goes_on() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut region = region(&client, 2 << 20, 32 * 4096, |_| {});
    let bytes = noise(region.len(), 4);
    region.as_mut_slice().copy_from_slice(&bytes);
    for round in 0..3_u8 {
        take_queue_pairs(&stack, &user, region.lease_id(), &format!("copy-{round}"));
        assert!(region.as_mut_slice() == bytes, "round {round}");
    }
    assert!(region.stats().mended >= 1 && region.lost().is_none(), "{:?}", region.stats());
}

#[test]
fn a_region_renews_its_lease_though_the_auth_daemon_was_away() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    // After half of it the region renews it.
    let ttl = seconds(18.0);
    let begun = Instant::now();
    let lease = client.lease(&LeaseRequest::new(1 << 20, ttl)).expect("room");
    let options = RegionOptions { attach: options(), ..RegionOptions::new(32 * 4096) };
    let mut region = lease.into_region(&options).expect("a region");
    let bytes = noise(region.len(), 5);
    region.as_mut_slice().copy_from_slice(&bytes);
    let mut reads_until = |end: Duration| {
        while begun.elapsed() < end {
            assert!(region.as_mut_slice() == bytes);
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    reads_until(ttl / 2 - seconds(0.5));
    // Not for long: a provider that was without it for longer takes longer to come back to it.
    stack.authd.take().expect("it runs").kill();
    reads_until(ttl / 2 + seconds(1.0));
    stack.restart_authd();
    reads_until(ttl + seconds(4.0));
    assert!(region.lost().is_none());
}

#[test]
fn what_cannot_be_memory_is_refused() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let lease = |block| client.lease(&LeaseRequest { block, ..LeaseRequest::new(1 << 20, LONG) }).expect("room");
    let options = |page, local| RegionOptions { attach: options(), page, ..RegionOptions::new(local) };
    let refused = |block, options: RegionOptions| {
        let lease = lease(block);
        let id = lease.id();
        let error = lease.into_region(&options).err().expect("refused");
        client.release(id, PATIENCE).expect("released");
        error
    };
    let error = refused(65_536, options(Some(4096), 1 << 20));
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("its blocks are of 65536 bytes"), "{error}");
    assert_eq!(refused(4096, options(Some(12_288), 1 << 20)).kind(), ErrorKind::Usage);
    assert_eq!(refused(4096, options(None, 4096)).kind(), ErrorKind::Usage);
    // Small blocks make pages of the kernel's size.
    let small = lease(512).into_region(&options(None, 32 * 4096)).expect("a region");
    assert_eq!(small.page(), 4096);
}

/// In a process that [`lose`] started.
fn is_loser() -> bool {
    std::env::var_os("OVERBANK_LOSER").is_some()
}

/// A region whose pages are mostly away, and one of them touched once that is said.
fn be_the_loser() {
    let client = Client::connect(&Config::from_env().expect("a configuration")).expect("connected");
    let mut region = region(&client, 1 << 20, 32 * 4096, |options| {
        options.patience = seconds(6.0);
        options.attach = AttachOptions { deadline: seconds(3.0), ..options.attach.clone() };
    });
    let bytes = noise(region.len(), 6);
    region.as_mut_slice().copy_from_slice(&bytes);
    println!("\nlease {}", region.lease_id());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("told");
    // Not at an end, which a copy may touch last.
    println!("it was {}", region.as_mut_slice()[100 * 4096]);
}

/// Runs this test in a process that uses a region, does something to it, and sees how the process ends.
fn lose(test: &str, doing: impl FnOnce(&mut Stack, &str)) {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("paged::{test}"), "--nocapture", "--test-threads", "1"])
        .env("OVERBANK_LOSER", "1")
        .env("OVERBANK_HOME", &user.home)
        .env("OVERBANK_AUTHD", &stack.address)
        .env("XDG_RUNTIME_DIR", &user.runtime)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let lease = lines
        .find_map(|line| line.expect("text").strip_prefix("lease ").map(str::to_owned))
        .expect("it says which lease");
    doing(&mut stack, &lease);
    let begun = Instant::now();
    child.stdin.take().expect("piped").write_all(b"go on\n").expect("told");
    let rest: Vec<String> = lines.map(|line| line.expect("text")).collect();
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(7), "{:?} {rest:?} {said}", output.status);
    assert!(said.contains("of a paged region of 1048576, is lost: "), "{said}");
    assert!(!rest.iter().any(|line| line.contains("it was")), "{rest:?}");
    assert!(begun.elapsed() < seconds(30.0), "{:?}", begun.elapsed());
}

#[test]
fn a_dead_provider_ends_the_program_with_sigbus_and_a_reason() {
    if is_loser() {
        return be_the_loser();
    }
    lose("a_dead_provider_ends_the_program_with_sigbus_and_a_reason", |stack, _| {
        stack.provider.take().expect("it runs").kill();
    });
}

#[test]
fn a_lease_that_was_stopped_ends_the_program_with_sigbus_and_a_reason() {
    if is_loser() {
        return be_the_loser();
    }
    lose("a_lease_that_was_stopped_ends_the_program_with_sigbus_and_a_reason", |stack, lease| {
        stack.operator.run(&["lease", "stop", lease]).expect(0);
    });
}

#[test]
fn threads_lose_no_word_while_pages_come_and_go_and_queue_pairs_are_taken_away() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    for (faults, seed) in [(Faults::Signal, 1), (Faults::Thread, 2)] {
        let region = region(&client, 3 << 20, 64 * 4096, |options| options.faults = faults);
        let (mut turns, local) = (0, 64 * 4096);
        let done = threads::run(region.start().as_ptr(), region.len(), seed, threads::seconds(3), || {
            assert!(region.stats().resident_bytes <= local);
            turns += 1;
            if turns % 60 == 0 {
                take_queue_pairs(&stack, &user, region.lease_id(), &format!("{faults:?}-{turns}"));
            }
        });
        let stats = region.stats();
        println!("{faults:?}: {done} accesses, {stats:?}");
        assert!(stats.evicted > 200 && stats.fetched > 200 && stats.mended > 0, "{stats:?}");
        region.release(PATIENCE).expect("released");
    }
}

/// A copy of the lease's file, attached, takes the place of the region's queue pairs at the provider.
fn take_queue_pairs(stack: &Stack, user: &User, lease: LeaseId, name: &str) {
    let file = user.runtime.join(format!("overbank/{lease}.lease"));
    let copies = stack.path().join(name);
    crate::process::private(&copies);
    std::fs::copy(&file, copies.join(file.file_name().expect("one"))).expect("copied");
    let config = Config::new(&stack.address, &user.home).expect("an address").with_leases(&copies);
    let copy = Client::connect(&config).and_then(|client| client.open_lease(lease));
    copy.expect("a copy").attach(&options()).expect("attached");
}
