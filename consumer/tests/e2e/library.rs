//! The library where the command cannot go: a lease that stays attached while things happen around it.

use std::time::{Duration, Instant};

use overbank::{AttachOptions, Client, Config, DataError, Error, ErrorKind, Lease, LeaseRequest, MAX_LANES, OnUnknown};

use crate::stack::{Stack, User, device, noise, seconds, ttl};

pub(crate) fn client(stack: &Stack, user: &User) -> Client {
    let config =
        Config::new(&stack.address, &user.home).expect("an address").with_leases(user.runtime.join("overbank"));
    Client::connect(&config).expect("connected")
}

/// The usual ones, on the device that the provider uses.
pub(crate) fn options() -> AttachOptions {
    AttachOptions { device: device(), ..AttachOptions::default() }
}

/// A new lease, attached.
fn lease(client: &Client, bytes: u64, ttl: Duration) -> Lease {
    let mut lease = client.lease(&LeaseRequest::new(bytes, ttl)).expect("room");
    lease.attach(&options()).expect("attached");
    lease
}

/// A second handle of a lease that is in use, as a process that died in the middle would leave one behind.
fn copy(stack: &Stack, user: &User, lease: &Lease, name: &str) -> (Client, Lease) {
    let copies = stack.path().join(name);
    crate::process::private(&copies);
    std::fs::copy(lease.path(), copies.join(format!("{}.lease", lease.id()))).expect("copied");
    let config = Config::new(&stack.address, &user.home).expect("an address").with_leases(&copies);
    let client = Client::connect(&config).expect("connected");
    let copy = client.open_lease(lease.id()).expect("a copy");
    (client, copy)
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn the_first_read_or_write_attaches_with_the_device_that_both_sides_choose() {
    let mut stack = Stack::start();
    stack.provider = None;
    stack.provider = Some(stack.start_provider(&["--device", "auto"]));
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut lease = client.lease(&LeaseRequest::new(1 << 20, LONG)).expect("room");
    let mut buffer = [1; 3];
    lease.read(7, &mut buffer).expect("attached and read");
    assert_eq!(buffer, [0; 3]);
    drop(lease);
    let mut lease = client.lease(&LeaseRequest::new(1 << 20, LONG)).expect("room");
    lease.write(7, b"abc").expect("attached and written");
    lease.read(7, &mut buffer).expect("read");
    assert_eq!(&buffer, b"abc");
}

#[test]
fn an_attached_lease_needs_no_auth_daemon_to_be_read() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut lease = lease(&client, 1 << 20, LONG);
    lease.write(5, b"hello").expect("written");
    stack.authd.take().expect("it runs").kill();
    let mut buffer = [1; 10];
    lease.read(0, &mut buffer).expect("read");
    assert_eq!(&buffer, b"\0\0\0\0\0hello");
    let error = client.status().expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::AuthdUnreachable);
    // Back again, a client finds its way by itself.
    stack.restart_authd();
    client.status().expect("connected anew");
}

#[test]
fn a_dead_provider_is_noticed_within_the_deadline() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut lease = lease(&client, 1 << 20, LONG);
    let options = AttachOptions { deadline: Duration::from_secs(6), ..options() };
    lease.attach(&options).expect("attached");
    lease.write(0, &noise(10_000, 1)).expect("written");
    stack.provider.take().expect("it runs").kill();
    for _ in 0..2 {
        let (started, mut buffer) = (Instant::now(), [1; 100]);
        let error = lease.read(0, &mut buffer).expect_err("nobody is there");
        assert!(matches!(error.kind(), ErrorKind::LeaseLost | ErrorKind::Deadline), "{error}");
        assert!(started.elapsed() < seconds(12.0), "{:?}", started.elapsed());
        assert_eq!(buffer, [0; 100]);
        let error = lease.write(0, b"x").expect_err("nobody is there");
        assert!(matches!(error.kind(), ErrorKind::LeaseLost | ErrorKind::Deadline | ErrorKind::Contents), "{error}");
    }
}

#[test]
fn a_lease_is_attached_anew_where_its_queue_pair_is_taken_away() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut lease = lease(&client, 1 << 20, LONG);
    let bytes = noise(200_000, 2);
    lease.write(100, &bytes).expect("written");
    for round in 0u8..3 {
        // A copy of its file, attached, takes the queue pair's place at the provider.
        let (_other, mut copy) = copy(&stack, &user, &lease, &format!("copy-{round}"));
        copy.attach(&options()).expect("attached");
        drop(copy);

        lease.write(50, &[round; 10]).expect("written after attaching anew");
        let mut buffer = vec![0; bytes.len() + 50];
        lease.read(50, &mut buffer).expect("read");
        assert!(buffer[..10] == [round; 10] && buffer[50..] == bytes);
    }
    assert!(lease.freshness_is_known());
}

#[test]
fn what_a_dead_process_wrote_is_refused_unless_the_caller_accepts_it() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut lease = lease(&client, 64 << 10, LONG);
    lease.write(0, &noise(8192, 1)).expect("written");
    let (_client, mut copy) = copy(&stack, &user, &lease, "copy");
    assert!(lease.freshness_is_known() && !copy.freshness_is_known());
    copy.attach(&options()).expect("attached");
    let mut buffer = vec![1; 8192];
    let error = copy.read(0, &mut buffer).expect_err("nobody knows whether it is the last");
    assert!(matches!(error, Error::Data(DataError::FreshnessUnknown { block: 0 })), "{error}");
    assert!(buffer.iter().all(|&byte| byte == 0));
    let error = copy.write(5, b"part of a block").expect_err("what would the rest of it be?");
    assert_eq!(error.kind(), ErrorKind::Contents, "{error}");
    copy.attach(&AttachOptions { on_unknown: Some(OnUnknown::Accept), ..options() }).expect("attached");
    copy.read(0, &mut buffer).expect("accepted");
    assert!(buffer == noise(8192, 1));
    copy.read(60_000, &mut buffer[..10]).expect("empty, and accepted as never written");
    assert_eq!(buffer[..10], [0; 10]);
}

#[test]
fn threads_read_and_write_side_by_side_through_lanes_of_their_own() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut lease = lease(&client, 1 << 20, LONG);
    for lanes in [0, MAX_LANES + 1] {
        let error = lease.attach(&AttachOptions { lanes, ..options() }).expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
    lease.attach(&AttachOptions { lanes: 4, ..options() }).expect("attached");
    // Not on block boundaries: neighbours share a block.
    let (part, share) = (|index: usize| noise(200_001, index as u64), 200_001);
    std::thread::scope(|scope| {
        for (index, mut lane) in lease.split().expect("attached").into_iter().enumerate() {
            scope.spawn(move || {
                lane.write((index * share) as u64, &part(index)).expect("written");
                let mut buffer = vec![0; share];
                lane.read((index * share) as u64, &mut buffer).expect("read");
                assert!(buffer == part(index));
                assert!(matches!(lane.read(1 << 20, &mut buffer), Err(Error::DoesNotFit { .. })));
            });
        }
    });
    let mut all = vec![0; 4 * share];
    lease.read(0, &mut all).expect("read");
    assert!((0..4).all(|index| all[index * share..][..share] == part(index)));
    let (id, known) = (lease.id(), lease.freshness_is_known());
    lease.close().expect("saved");
    assert!(known && client.open_lease(id).expect("opened").freshness_is_known());
}

#[test]
fn a_lease_in_use_ends_when_it_is_released_or_expires() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let mut released = lease(&client, 1 << 20, LONG);
    released.write(0, b"x").expect("written");
    user.run(&["lease", "release", &released.id().to_string()]).expect(0);
    let error = released.read(0, &mut [0; 1]).expect_err("over");
    assert_eq!(error.kind(), ErrorKind::LeaseOver, "{error}");
    let path = released.path().to_owned();
    assert!(matches!(released.close(), Err(Error::LeaseOver { .. }) | Ok(())));
    assert!(!path.exists(), "a released lease is not written down again");

    let mut short = lease(&client, 1 << 20, seconds(4.0));
    short.write(0, b"x").expect("written");
    assert!(short.time_left() < seconds(4.0));
    // It was renewed by somebody else meanwhile, so it is not over when it was to be.
    user.run(&["lease", "renew", &short.id().to_string(), "--ttl", &ttl(8)]).expect(0);
    std::thread::sleep(seconds(4.2));
    short.read(0, &mut [0; 1]).expect("renewed elsewhere");
    std::thread::sleep(seconds(4.5));
    let error = short.read(0, &mut [0; 1]).expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::LeaseOver, "{error}");
}

#[test]
fn calls_from_inside_a_runtime_and_from_many_threads_work() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let client = client(&stack, &user);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        client.status().expect("asked from a runtime");
        drop(Client::connect(client.config()).expect("connected from a runtime"));
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| client.who_am_i().expect("asked"));
        }
    });
}
