//! Less than 64 MiB beyond the pool.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use overbank::{AttachOptions, Client, Config, Lease, LeaseRequest, LeaseState};

use crate::resident;
use crate::stack::{POOL, Stack, noise};

const LEASES: usize = 1000;
/// What a lease in this process keeps open: its file and what its device has.
const FILES_EACH: u64 = 8;
/// Blocks of the smallest size, one each: on pages of 4 KiB a lease takes one of them.
const BLOCK: usize = 512;
const MOST: u64 = 64 << 20;
/// One borrower asks for all of them, faster than the auth daemon lets one.
const AUTHD: [&str; 2] = ["--requests-per-second=100000", "--requests-per-second-each=100000"];

/// Resident bytes of the provider without its pool, and which of the two ways they were found in. The pool is plain
/// memory here, so it is part of what is resident: its mapping is the one of just its size. Who may not look at another
/// process's mappings takes off the whole pool, all of which is resident from the start, since it is touched when it is
/// made.
fn beyond_pool(stack: &Stack) -> (u64, &'static str) {
    let pid = stack.provider_pid();
    let all = resident::of(pid);
    match resident::of_mapping(pid, POOL as u64) {
        Some(pool) => (all - pool, "its mapping's resident bytes taken off"),
        None => (all.checked_sub(POOL as u64).expect("the pool is resident"), "its size taken off"),
    }
}

/// A thousand devices in one process are more open files than a session usually allows.
fn more_files(count: u64) -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if soft >= count {
        return Ok(());
    }
    let needs = |limit| format!("needs {count} open files, and the limit is {limit} (`ulimit -Hn`)");
    if hard < count {
        return Err(needs(hard));
    }
    setrlimit(Resource::RLIMIT_NOFILE, count, hard).map_err(|_| needs(soft))
}

fn each(leases: &mut [Lease], what: &str, mut step: impl FnMut(usize, &mut Lease)) {
    let started = Instant::now();
    leases.iter_mut().enumerate().for_each(|(number, lease)| step(number, lease));
    println!("{what}: {:.1?}", started.elapsed());
}

#[test]
fn a_thousand_leases_at_once_take_less_than_64_mib_beyond_the_pool() {
    if let Err(why) = more_files(LEASES as u64 * FILES_EACH + 256) {
        return println!("SKIPPED: {why}");
    }
    let mut stack = Stack::with(&AUTHD);
    stack.provider = None;
    stack.provider = Some(stack.start_provider(&["--device", "soft"]));
    let user = stack.consumer("ann", "blue");
    // A thousand lease files, each written three times, need not wait for a disk.
    let files = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let config = Config::new(&stack.address, &user.home).expect("an address").with_leases(files.path().join("leases"));
    let client = Client::connect(&config).expect("connected");
    let room = |at: &str| {
        let (bytes, how) = beyond_pool(&stack);
        println!(
            "the provider, {at}: {:.1} MiB beyond the pool of {} MiB ({how})",
            bytes as f64 / 1048576.0,
            POOL >> 20
        );
        assert!(bytes < MOST, "{at}: {bytes} bytes beyond the pool, {MOST} allowed");
    };
    room("without a lease");

    let request = LeaseRequest { block: BLOCK as u32, ..LeaseRequest::new(1, Duration::from_secs(600)) };
    let mut leases: Vec<Lease> = (0..LEASES).map(|_| client.lease(&request).expect("room")).collect();
    room("1,000 leases granted");

    // Each with a queue pair of its own, through a device of its own.
    let options = AttachOptions { device: "soft".to_owned(), ..AttachOptions::default() };
    each(&mut leases, "attaching", |_, lease| lease.attach(&options).expect("attached"));
    room("1,000 leases attached");
    let bytes = noise(LEASES, 1);
    each(&mut leases, "writing", |number, lease| lease.write(0, &bytes[number..=number]).expect("written"));
    let mut back = [0];
    each(&mut leases, "reading", |number, lease| {
        lease.read(0, &mut back).expect("read");
        assert_eq!(back[0], bytes[number]);
    });
    room("1,000 leases attached, written and read");
    let open = client.leases().expect("listed").into_iter().filter(|lease| lease.state == LeaseState::Active).count();
    assert_eq!(open, LEASES, "all at once");
}
