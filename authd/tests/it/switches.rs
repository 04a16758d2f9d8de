//! Kill switches while everything else is stuck.

use std::time::{Duration, Instant};

use overbank_authd::{Limits, Load};
use overbank_fabric::attach::{AttachRequest, EndpointBytes, MAX_LANES};
use overbank_fabric::channel;
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{CorrelationId, Nonce};
use overbank_fabric::message::{Attach, Call, LeaseState, RefusalCode, Reply, Role};
use overbank_fabric::receipt::EndReason;
use overbank_fabric::signed::Signed;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::daemon::{Daemon, MIB, refused, wish};
use crate::lender::Lender;

/// Requests in flight, of so many consumers, each of a tenant of its own.
const CONSUMERS: usize = 24;

/// Waits for it, for 20 s.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

fn carves(lender: &Lender) -> usize {
    lender.lock().orders.iter().filter(|order| matches!(order, Call::Carve(_))).count()
}

/// What the crowd asks hangs for 30 s, and more of it waits. How much less than a second a switch takes is what
/// `overbank-bench revoke` measures.
const AHEAD: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_35_an_order_to_fence_while_512_requests_hang() {
    let load = Load { requests_per_second: 100_000, requests_per_second_each: 100_000, ..Load::default() };
    let daemon = Daemon::with(Limits { load, ..Limits::default() }).await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    lender.lock().pool = 4096 * MIB;
    let _lending = lender.connect(daemon.address).await;
    let (alice, mut hers) = daemon.consumer("red").await;
    let (bob, mut his) = daemon.consumer("blue").await;
    let (lease, other) = (hers.create(wish(MIB)).await.lease, his.create(wish(MIB)).await.lease);
    let mut late = daemon.client(&daemon.approved(Role::Consumer, Some("late")).await).await;
    let (idle, hers) = (daemon.client(&alice).await, hers);
    let mut people: Vec<Identity> = Vec::new();
    for number in 0..CONSUMERS {
        people.push(daemon.approved(Role::Consumer, Some(&format!("crowd-{number}"))).await);
    }

    // From here on the lender answers nothing, and the crowd takes every place there is.
    lender.lock().hangs = true;
    let mut crowd = JoinSet::new();
    for person in &people {
        for _ in 0..4 {
            let stream = TcpStream::connect(daemon.address).await.expect("the daemon listens");
            let (channel, _) = channel::connect(stream, person, Party::Client, |_| Ok(())).await.expect("a session");
            let (caller, _incoming, driver) = channel.multiplex(64);
            crowd.spawn(async move {
                driver.await;
            });
            for _ in 0..64 {
                let caller = caller.clone();
                crowd.spawn(async move {
                    // Refused where there is no place, and then it asks again.
                    loop {
                        let asked = caller.call(CorrelationId::random(), 30_000, Call::CreateLease(wish(4096))).await;
                        match asked {
                            Err(channel::CallError::Refused(refusal)) if refusal.code == RefusalCode::Busy => {
                                sleep(Duration::from_millis(50)).await;
                            }
                            _ => return,
                        }
                    }
                });
            }
        }
    }
    until("the crowd fills it up", || carves(&lender) >= 2 + 512).await;
    assert_eq!(refused(late.call(Call::Status).await), RefusalCode::Busy, "there is no place left");
    let mut operator = daemon.client(&daemon.operator).await;
    let Ok(Reply::Trust(_)) = operator.call(Call::TrustList).await else { panic!("an operator sees what to stop") };

    let begun = Instant::now();
    let revoked = operator.call(Call::TrustRevoke(alice.public().fingerprint())).await;
    let answered = begun.elapsed();
    revoked.expect("a kill switch is never refused because of load");
    let fence_of = |lease, why| {
        let ordered = |order: &Call| matches!(order, Call::Fence(fence) if fence.lease == lease && fence.reason == why);
        lender.lock().orders.iter().any(ordered)
    };
    until("the order to fence", || fence_of(lease, EndReason::Revoked)).await;
    let ordered = begun.elapsed();
    assert!(hers.ends().await && idle.ends().await, "her sessions end");
    let ended = begun.elapsed();
    for (what, took) in [("answered", answered), ("ordered", ordered), ("her sessions ended", ended)] {
        assert!(took < AHEAD, "{what} after {took:?}");
    }

    // The other switches, in the same crowd.
    let begun = Instant::now();
    let mut second = daemon.client(&daemon.operator).await;
    let stopping = tokio::spawn(async move { second.call_for(2000, Call::LeaseStop(other)).await });
    until("the order to fence", || fence_of(other, EndReason::Stopped)).await;
    assert!(begun.elapsed() < AHEAD, "{:?}", begun.elapsed());
    let provider = lender.identity.public().fingerprint();
    operator.call(Call::ProviderStop(provider)).await.expect("stopped");
    operator.call(Call::TenantStop("blue".parse().expect("a tenant"))).await.expect("stopped");
    assert_eq!(refused(stopping.await.expect("no panic")), RefusalCode::Deadline, "the lender says nothing");
    operator.call(Call::Shutdown).await.expect("the last one");
    drop((bob, crowd));
    println!(
        "attack 35 -: seen 512 requests hang and no place is free: switches of an operator who comes then answered, orders out and sessions closed ahead of them"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lender_full_of_attaches_is_told_at_once_what_to_fence() {
    // More requests in flight than a session with a lender has places.
    let load =
        Load { requests: 8192, requests_per_second: 100_000, requests_per_second_each: 100_000, ..Load::default() };
    let daemon = Daemon::with(Limits { load, ..Limits::default() }).await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _lending = lender.connect(daemon.address).await;
    let (alice, mut hers) = daemon.consumer("red").await;
    let lease = hers.create(wish(MIB)).await.lease;
    let mut people = Vec::new();
    for number in 0..20 {
        let (bob, mut his) = daemon.consumer(&format!("crowd-{number}")).await;
        let granted = his.create(wish(4096)).await;
        people.push((bob, his, granted));
    }
    lender.lock().keeps_attaches = true;
    let mut crowd = JoinSet::new();
    for (bob, his, granted) in people {
        let (caller, _incoming, driver) = his.into_channel().multiplex(64);
        crowd.spawn(async move {
            let _incoming = _incoming;
            driver.await;
        });
        for _ in 0..64 {
            let request = AttachRequest {
                token: granted.token.hash(),
                lanes: vec![EndpointBytes([1; 32]); MAX_LANES],
                provider: granted.provider,
                boot: granted.boot,
                nonce: Nonce::random(),
            };
            let request = Signed::new(&request, &bob);
            let attach = Call::Attach(Attach { lease: granted.lease, token: granted.token.clone(), request });
            let caller = caller.clone();
            crowd.spawn(async move { drop(caller.call(CorrelationId::random(), 30_000, attach).await) });
        }
    }
    let binds = || lender.lock().orders.iter().filter(|order| matches!(order, Call::Bind(_))).count();
    until("the lender is full of attaches", || binds() >= 512).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(binds(), 512, "half of what its session takes");
    let begun = Instant::now();
    daemon.operate(Call::TrustRevoke(alice.public().fingerprint())).await;
    until("it is told", || lender.lock().fenced == [(lease, EndReason::Revoked)]).await;
    assert!(begun.elapsed() < AHEAD, "{:?}", begun.elapsed());
    daemon.until(lease, |info| info.state == LeaseState::Ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_lender_gets_nothing_new_also_after_a_restart() {
    let mut daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let lending = lender.connect(daemon.address).await;
    let (alice, mut session) = daemon.consumer("red").await;
    let lease = session.create(wish(MIB)).await.lease;
    let provider = lender.identity.public().fingerprint();
    daemon.operate(Call::ProviderDrain(provider)).await;
    assert_eq!(refused(session.call(Call::CreateLease(wish(MIB))).await), RefusalCode::PoolFull);
    assert_eq!(daemon.show(lease).await.state, LeaseState::Active, "it goes on");
    drop((lending, session));
    daemon.restart().await;
    let _lending = lender.connect(daemon.address).await;
    let mut session = daemon.client(&alice).await;
    assert_eq!(refused(session.call(Call::CreateLease(wish(MIB))).await), RefusalCode::PoolFull);
    let Reply::Status(status) = daemon.operate(Call::Status).await else { panic!() };
    assert!(status.providers[0].drained);
    daemon.operate(Call::ProviderUndrain(provider)).await;
    session.create(wish(MIB)).await;

    assert_eq!(daemon.operate(Call::ProviderStop(provider)).await, Reply::Stopped(2));
    daemon.until(lease, |info| info.state == LeaseState::Ended && info.reason == Some(EndReason::Stopped)).await;
    assert_eq!(refused(session.call(Call::CreateLease(wish(MIB))).await), RefusalCode::PoolFull, "stopped is drained");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_and_a_tenant_are_stopped_and_the_daemon_too() {
    let mut daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _lending = lender.connect(daemon.address).await;
    let ((_a, mut red), (_b, mut blue)) = (daemon.consumer("red").await, daemon.consumer("blue").await);
    let leases = [red.create(wish(MIB)).await.lease, red.create(wish(MIB)).await.lease];
    let other = blue.create(wish(MIB)).await.lease;
    let Reply::Leases(stopped) = daemon.operate(Call::LeaseStop(leases[0])).await else { panic!() };
    assert_ne!(stopped[0].state, LeaseState::Active);
    assert_eq!(lender.lock().fenced, [(leases[0], EndReason::Stopped)], "fenced when it is answered");
    assert_eq!(daemon.operate(Call::TenantStop("red".parse().expect("a tenant"))).await, Reply::Stopped(1));
    daemon.until(leases[1], |info| info.state == LeaseState::Ended).await;
    assert_eq!(daemon.show(other).await.state, LeaseState::Active);
    red.create(wish(MIB)).await;
    daemon.operate(Call::Shutdown).await;
    daemon.stopped().await;
}
