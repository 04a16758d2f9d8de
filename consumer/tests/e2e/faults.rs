//! Each party killed in turn: nobody hangs, nothing is returned wrong, and the memory ends up zero.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::memory::Memory;
use crate::process::eventually;
use crate::stack::{Stack, noise, seconds, text, ttl};

#[test]
fn a_borrower_killed_while_writing_leaves_unknown_freshness_and_then_nothing() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("6MiB", &ttl(8));
    let memory = Memory::of(&stack, "a_borrower_killed_while_writing_leaves_unknown_freshness_and_then_nothing");
    let first = noise(4 << 20, 1);
    let (mut running, _stdin) = user.half_way(&lease, &first);
    match &memory {
        // Until the last of its first blocks has arrived.
        Some(memory) => eventually("4 MiB arrive", seconds(10.0), || {
            let all = memory.all();
            all.chunks(4096).filter(|page| page.iter().any(|&byte| byte != 0)).count() >= 1032
        }),
        None => std::thread::sleep(seconds(1.0)),
    }
    running.child.kill().expect("kill -9");
    assert_eq!(running.end().status, -9);

    let refused = user.try_get(&lease).expect(9);
    assert!(refused.stderr.contains("last process that wrote"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--accept-unknown-freshness"), "{}", refused.stderr);
    let accepted = user
        .run(&["get", &lease, "-", "--len", "4MiB", "--accept-unknown-freshness"])
        .expect(0)
        .saying("ended without");
    assert!(accepted.stdout == first);
    // What is written anew is known again.
    user.put(&lease, &first[..8192]).expect(0);
    assert_eq!(user.get(&lease, 8192), first[..8192]);

    stack.wait_ended(&user, &lease);
    assert!(memory.is_none_or(|memory| memory.is_zero()));
    user.run(&["get", &lease, "-", "--len", "1"]).expect(7);
}

#[test]
fn a_lease_that_was_renewed_behind_its_dead_users_back_can_be_taken_up_again() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("6MiB", &ttl(8));
    let bytes = noise(4 << 20, 9);
    let (mut running, _stdin) = user.half_way(&lease, &bytes);
    user.run(&["lease", "renew", &lease, "--ttl", "10m"]).expect(0);
    std::thread::sleep(Duration::from_secs(1));
    running.child.kill().expect("kill -9");
    running.end();
    // The token in its file has run out by now; the lease has not.
    std::thread::sleep(seconds(8.0));
    let got = user.run(&["get", &lease, "-", "--len", "4MiB", "--accept-unknown-freshness"]).expect(0);
    assert!(got.stdout == bytes);
}

#[test]
fn a_borrower_that_is_stopped_past_its_deadline_reaches_nothing_when_it_goes_on() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("6MiB", &ttl(6));
    let memory = Memory::of(&stack, "a_borrower_that_is_stopped_past_its_deadline_reaches_nothing_when_it_goes_on");
    let (running, mut stdin) = user.half_way(&lease, &noise(4 << 20, 7));
    let pid = Pid::from_raw(running.child.id() as i32);
    kill(pid, Signal::SIGSTOP).expect("ours");
    stack.wait_ended(&user, &lease);
    kill(pid, Signal::SIGCONT).expect("ours");
    let _ = stdin.write_all(&noise(2 << 20, 8));
    drop(stdin);
    running.end().expect(7);
    assert!(memory.is_none_or(|memory| memory.is_zero()));
}

#[test]
fn an_interrupted_put_says_so_and_what_it_wrote_is_known() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("6MiB", "10m");
    let first = noise(4 << 20, 2);
    let (running, _stdin) = user.half_way(&lease, &first);
    let pid = Pid::from_raw(running.child.id() as i32);
    kill(pid, Signal::SIGINT).expect("ours");
    running.end().expect(130).saying("interrupted");
    let got = user.run(&["get", &lease, "-", "--len", "4MiB"]).expect(0);
    assert_eq!(got.stderr, "");
    assert!(got.stdout == first);
}

#[test]
fn without_the_auth_daemon_the_provider_ends_a_lease_alone_and_reports_it_later() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("1MiB", &ttl(5));
    user.put(&lease, &noise(1 << 20, 3)).expect(0);
    let memory = Memory::of(&stack, "without_the_auth_daemon_the_provider_ends_a_lease_alone_and_reports_it_later");
    stack.authd.take().expect("it runs").kill();
    user.run(&["status"]).expect(3).saying("cannot reach the auth daemon");
    user.run(&["get", &lease, "-", "--len", "1"]).expect(3);
    user.run(&["id"]).expect(0);
    match memory {
        Some(memory) => eventually("the memory is zero", seconds(15.0), || memory.is_zero()),
        None => std::thread::sleep(seconds(6.0)),
    }
    stack.restart_authd();
    eventually("the receipt is delivered", seconds(30.0), || stack.lease(&user, &lease)["receipt_in"] == true);
    let entry = stack.lease(&user, &lease);
    assert_eq!((text(&entry, "state"), text(&entry, "reason")), ("ended", "expired"));
    assert_eq!(entry["receipt"]["complete"].as_bool(), Some(true), "{entry}");
    user.run(&["get", &lease, "-", "--len", "1"]).expect(7);
}

#[test]
fn a_lease_survives_a_restart_of_the_auth_daemon() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("64KiB", "10m");
    user.put(&lease, b"before").expect(0);
    stack.restart_authd();
    eventually("the provider is back", seconds(30.0), || user.run(&["get", &lease, "-", "--len", "6"]).status == 0);
    assert_eq!(user.get(&lease, 6), b"before");
}

#[test]
fn an_auth_daemon_that_is_killed_over_and_over_loses_no_lease_and_lends_nothing_twice() {
    let mut stack = Stack::start();
    let users: Vec<_> = ["ann", "bob", "cid"].iter().map(|name| stack.consumer(name, "blue")).collect();
    let over = AtomicBool::new(false);
    // Nobody there, no provider there yet, no answer in time: try again.
    let cut_off = |status| matches!(status, 3 | 6 | 8 | 11);
    let work = |user: crate::stack::User| {
        let (mut kept, mut made, mut failed) = (Vec::new(), 0, 0);
        while !over.load(Ordering::Acquire) {
            let outcome = user.run(&["lease", "create", "--size", "64KiB", "--ttl", "10m", "--json"]);
            if outcome.status != 0 {
                assert!(cut_off(outcome.status), "{outcome:?}");
                failed += 1;
                continue;
            }
            made += 1;
            let lease = text(&outcome.json(), "lease").to_owned();
            let renewed = user.run(&["lease", "renew", &lease, "--ttl", "20m"]).status;
            assert!(renewed == 0 || cut_off(renewed), "{renewed}");
            if made % 2 == 1 && kept.len() < 8 {
                kept.push(lease);
            } else {
                let released = user.run(&["lease", "release", &lease]).status;
                assert!(released == 0 || cut_off(released), "{released}");
            }
        }
        (user, kept, made, failed)
    };
    let kept = thread::scope(|scope| {
        let work = &work;
        let working: Vec<_> = users.into_iter().map(|user| scope.spawn(move || work(user))).collect();
        for _ in 0..10 {
            thread::sleep(seconds(0.8));
            stack.restart_authd();
        }
        thread::sleep(seconds(1.0));
        over.store(true, Ordering::Release);
        working.into_iter().map(|user| user.join().expect("no panic")).collect::<Vec<_>>()
    });
    let pool = |field: &str| {
        let status = stack.operator.run(&["status", "--json"]).expect(0).json();
        let provider = status["providers"][0].clone();
        provider["connected"].as_bool().filter(|here| *here).and(provider[field].as_u64())
    };
    eventually("the provider is back", seconds(30.0), || pool("free_bytes").is_some());
    for (user, kept, made, failed) in &kept {
        println!("{made} leases made, {failed} attempts cut off, {} kept", kept.len());
        assert!(*made > 0);
        // What was granted and not given back is there, and nobody else's.
        for lease in kept {
            assert_eq!(text(&stack.lease(user, lease), "state"), "active");
        }
        for (seed, lease) in kept.iter().enumerate() {
            user.put(lease, &noise(64 << 10, seed as u64)).expect(0);
        }
        for (seed, lease) in kept.iter().enumerate() {
            assert!(user.get(lease, 64 << 10) == noise(64 << 10, seed as u64), "written over by another");
        }
        let list = user.run(&["lease", "list", "--json"]).expect(0).json();
        for entry in list["leases"].as_array().expect("a list") {
            if entry["state"] == "active" {
                // Those too that a request made whose answer was cut off.
                user.run(&["lease", "release", text(entry, "lease")]).expect(0);
            }
        }
    }
    // Both sides agree: with everything given back the provider holds nothing, and all of its pool is free.
    let all = pool("pool_bytes");
    eventually("all is free again", seconds(20.0), || pool("free_bytes") == all);
}

#[test]
fn a_dead_provider_is_a_clear_error_and_a_restarted_one_has_lost_the_lease() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("1MiB", "10m");
    user.put(&lease, &noise(1 << 20, 4)).expect(0);
    stack.provider.take().expect("it runs").kill();
    let outcome = user.try_get(&lease);
    assert!(matches!(outcome.status, 8 | 11), "{outcome:?}");
    assert!(outcome.took < seconds(15.0), "{outcome:?}");
    stack.provider = Some(stack.start_provider(&[]));
    user.try_get(&lease).expect(8);
    user.put(&lease, b"x").expect(8);
    user.run(&["lease", "renew", &lease, "--ttl", "1h"]).expect(8);
    assert_eq!(text(&stack.lease(&user, &lease), "state"), "lost");
    // Not that there was no room.
    let next = user.lease("1MiB", "10m");
    assert_eq!(user.get(&next, 10), [0; 10]);
}

#[test]
fn a_provider_that_dies_in_the_middle_of_a_put_is_a_clear_error() {
    let mut stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("6MiB", "10m");
    let (running, mut stdin) = user.half_way(&lease, &noise(4 << 20, 5));
    stack.provider.take().expect("it runs").kill();
    let _ = stdin.write_all(&noise(2 << 20, 6));
    drop(stdin);
    let outcome = running.end();
    assert!(matches!(outcome.status, 8 | 11), "{outcome:?}");
    assert!(outcome.took < seconds(30.0), "{outcome:?}");
}
