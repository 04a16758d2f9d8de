//! A provider that is killed at each step of a lease's end, and what its next life is reached by: nothing.

mod scene;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::BootId;
use overbank_fabric::keyfile;
use overbank_fabric::message::RefusalCode;
use overbank_provider::crash::{CRASH_AT, STEPS};
use overbank_verbs::WcStatus;
use scene::daemon::{Daemon, command};
use scene::*;

const BLOCKS: u64 = 16;

/// What it offered last.
fn offered(authd: &Authd) -> overbank_fabric::message::Offer {
    authd.heard.lock().expect("unpoisoned").offers.last().expect("an offer").clone()
}

/// The lenders' lives follow each other on one port, so that packets to the one before reach the next.
fn port() -> String {
    let free = UdpSocket::bind((HERE, 0)).and_then(|socket| socket.local_addr()).expect("a free port");
    free.port().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_34_killed_at_each_step_of_the_wipe() {
    if !cfg!(debug_assertions) {
        return eprintln!("SKIPPED: a release build has no place to be killed at");
    }
    let mut authd = Authd::start().await;
    let (state, port, address) = (tempfile::tempdir().expect("a directory"), port(), authd.address.to_string());
    let more = ["--port", &port];
    let mut lives: Vec<BootId> = Vec::new();
    for step in STEPS {
        let ms = 1500 * pace();
        let first = Daemon::of(command(&address, state.path(), &more).env(CRASH_AT, step));
        authd.session().await;
        first.line();
        let boot = offered(&authd).boot;
        let provider: PublicKey =
            keyfile::load_or_create(&state.path().join("provider.key")).expect("a key").0.public();
        authd.order(carve(boot, lease(1), "a", BLOCKS, ms)).await.expect("carves");
        let mut borrower = Borrower::new(&device());
        let token =
            overbank_fabric::token::Token::grant(&borrower.scope(boot, lease(1), BLOCKS, 600_000), &authd.identity);
        borrower.attach_to(&authd, &provider, boot, lease(1), BLOCKS, ms).await.expect("attaches");
        assert_eq!(borrower.write(0, 0x77), WcStatus::SUCCESS);
        let stop = Arc::new(AtomicBool::new(false));
        let old = (borrower.block(0), Arc::clone(&stop));
        // It goes on through the death of its lender and into the next life.
        let flooding = thread::spawn(move || flood(borrower, &old.1));
        let (status, errors) = first.end();
        assert_eq!(status, -9, "{step}: {errors}");
        let died = overbank_provider::clock::BootTime::now();

        let second = Daemon::of(&mut command(&address, state.path(), &more));
        authd.session().await;
        second.line();
        let offer = offered(&authd);
        lives.extend([boot, offer.boot]);
        assert!(offer.leases.is_empty() && offer.heartbeat.free_bytes == offer.pool_bytes, "{step}: {offer:?}");
        // What was granted in the life before opens nothing in this one.
        let mut late = Borrower::new(&device());
        let request = late.request(&provider, boot, &token);
        let attach = overbank_fabric::message::Attach { lease: lease(1), token, request };
        let refusal = authd.order(overbank_fabric::message::Call::Bind(attach)).await.expect_err("lost");
        assert_eq!(refusal.code, RefusalCode::LeaseLost, "{step}: {refusal:?}");
        // All of the pool, before anybody has written to it.
        let all = POOL as u64 / STRIDE as u64;
        authd.order(carve(offer.boot, lease(2), "b", all, 600_000)).await.expect("carves");
        late.attach_to(&authd, &provider, offer.boot, lease(2), all, 600_000).await.expect("attaches");
        for _scan in 0..2 {
            for block in 0..all {
                let read = late.read(block).expect("its own");
                assert!(read.iter().all(|byte| *byte == 0), "{step}: block {block} holds what it never wrote");
            }
        }
        stop.store(true, Ordering::Release);
        let flooded = flooding.join().expect("no panic");
        assert!(
            flooded.batches > 0 && flooded.last < died.after_ms(500),
            "{step}: it was served after its lender's death"
        );
        drop(second);
        thread::sleep(Duration::from_millis(50));
    }
    let count = lives.len();
    lives.sort_unstable();
    lives.dedup();
    assert_eq!(lives.len(), count, "two lives with one boot id");
    println!(
        "attack 34 {}: seen a new life at each of {} steps, with zeros, that nothing of the old one reaches",
        device_kind(),
        STEPS.len()
    );
}
