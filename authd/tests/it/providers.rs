use std::time::Duration;

use overbank_fabric::handshake::Party;
use overbank_fabric::message::{Call, LeaseState, RefusalCode, RenewLease, Reply, Role};
use overbank_fabric::receipt::EndReason;
use overbank_fabric::time::Tick;

use crate::daemon::{Daemon, MIB, refused, wish};
use crate::lender::{Lender, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lender_that_comes_back_agrees_with_the_daemon() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (_, mut client) = daemon.consumer("red").await;
    let (kept, vanished) = (client.create(wish(MIB)).await, client.create(wish(MIB)).await);
    drop(session);
    let unknown = overbank_fabric::ids::LeaseId::random();
    let late = {
        let mut inside = lender.lock();
        let forgotten = inside.held.remove(&vanished.lease).expect("held");
        inside.held.insert(unknown, forgotten);
        let late = inside.held.get_mut(&kept.lease).expect("held");
        let wanted = late.deadline;
        late.deadline.tick = Tick(wanted.tick.0 - 10_000);
        wanted
    };
    let attempt = client.call(Call::RenewLease(RenewLease { lease: kept.lease, ttl_ms: 600_000 })).await;
    assert_eq!(refused(attempt), RefusalCode::ProviderAway);
    let _session = lender.connect(daemon.address).await;
    daemon.until(vanished.lease, |info| info.state == LeaseState::Lost).await;
    assert_eq!(daemon.show(kept.lease).await.state, LeaseState::Active);
    let settled = || {
        let inside = lender.lock();
        inside.fenced == [(unknown, EndReason::Unknown)] && inside.held[&kept.lease].deadline == late
    };
    for _ in 0..100 {
        if settled() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(settled(), "{:?}", lender.lock().orders);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lender_that_died_has_lost_its_leases() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (_, mut client) = daemon.consumer("red").await;
    let lease = client.create(wish(MIB)).await;
    drop(session);
    let reborn = lender.reborn();
    let _session = reborn.connect(daemon.address).await;
    assert_eq!(daemon.show(lease.lease).await.state, LeaseState::Lost);
    assert_eq!(refused(client.call(Call::ReleaseLease(lease.lease)).await), RefusalCode::LeaseLost);
    assert_eq!(client.create(wish(MIB)).await.boot, reborn.boot);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_session_of_a_lender_counts() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let old = lender.connect(daemon.address).await;
    let new = lender.connect(daemon.address).await;
    // The daemon closes the older one.
    let mut closed = false;
    for _ in 0..100 {
        closed = ask(&old.caller, Call::WhoAmI).await.is_err();
        if closed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(closed);
    ask(&new.caller, Call::Heartbeat(lender.heartbeat())).await.expect("the newer one lives");
    let (_, mut client) = daemon.consumer("red").await;
    client.create(wish(MIB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_lender_gets_nothing_new() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (_, mut client) = daemon.consumer("red").await;
    lender.lock().silent = true;
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert_eq!(refused(client.call(Call::CreateLease(wish(MIB))).await), RefusalCode::PoolFull);
    ask(&session.caller, Call::Heartbeat(lender.heartbeat())).await.expect("heard");
    client.create(wish(MIB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_a_lender_fences_what_it_lent_and_ends_its_session() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (_, mut client) = daemon.consumer("red").await;
    let lease = client.create(wish(MIB)).await;
    daemon.operate(Call::TrustRevoke(lender.identity.public().fingerprint())).await;
    assert_eq!(daemon.show(lease.lease).await.state, LeaseState::Lost);
    let mut ended = false;
    for _ in 0..150 {
        ended =
            matches!(ask(&session.caller, Call::WhoAmI).await, Err(overbank_fabric::channel::CallError::Channel(_)));
        if ended {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ended);
    assert_eq!(lender.lock().fenced, [(lease.lease, EndReason::Revoked)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_daemon_keeps_everything() {
    let mut daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (alice, mut client) = daemon.consumer("red").await;
    let (active, released) = (client.create(wish(MIB)).await, client.create(wish(MIB)).await);
    client.call(Call::ReleaseLease(released.lease)).await.expect("released");
    daemon.until(released.lease, |info| info.state == LeaseState::Ended).await;
    daemon.restart().await;
    drop(session);

    let mut client = daemon.client(&alice).await;
    let before = client.leases().await;
    assert_eq!((before.len(), before[0].lease, before[0].state), (2, active.lease, LeaseState::Active));
    assert!(before[1].receipt.is_some());
    assert_eq!(refused(client.call(Call::ReleaseLease(active.lease)).await), RefusalCode::ProviderAway);
    let _session = lender.connect(daemon.address).await;
    let Ok(Reply::Leases(infos)) = client.call(Call::ReleaseLease(active.lease)).await else { panic!() };
    assert_eq!(infos[0].reason, Some(EndReason::Released));
    daemon.until(active.lease, |info| info.state == LeaseState::Ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lender_that_offers_without_a_pause_is_held_to_a_rate() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let mut taken = 0;
    for _ in 0..100 {
        match ask(&session.caller, Call::Offer(lender.offer())).await {
            Ok(_) => taken += 1,
            refusal => assert_eq!(refused(refusal), RefusalCode::Busy),
        }
    }
    assert!((31..50).contains(&taken), "{taken}");
    assert_eq!(daemon.rejected().await["offer-rate"], 100 - taken);
    // It is heard as before.
    ask(&session.caller, Call::Heartbeat(lender.heartbeat())).await.expect("heard");
    daemon.consumer("red").await.1.create(wish(MIB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lender_has_few_sessions() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let lending = lender.connect(daemon.address).await;
    let (mut open, mut turned_away) = (Vec::new(), 0);
    for _ in 0..40 {
        let mut session = daemon.connect(&lender.identity, Party::Provider).await;
        match session.call(Call::WhoAmI).await {
            Ok(_) => open.push(session),
            Err(_) => turned_away += 1,
        }
    }
    assert_eq!((open.len(), turned_away), (15, 25));
    assert_eq!(daemon.rejected().await["sessions-of-identity"], 25);
    ask(&lending.caller, Call::Heartbeat(lender.heartbeat())).await.expect("heard");
}
