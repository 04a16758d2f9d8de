use std::time::{Duration, Instant};

use overbank_fabric::attach::{AttachRequest, EndpointBytes};
use overbank_fabric::ids::{CorrelationId, Nonce};
use overbank_fabric::message::{Attach, Call, LeaseState, RefusalCode, RenewLease, Reply, Role};
use overbank_fabric::receipt::EndReason;
use overbank_fabric::signed::Signed;

use crate::daemon::{Daemon, MIB, refused, wish};
use crate::lender::Lender;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_made_attached_renewed_and_released() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (alice, mut client) = daemon.consumer("red").await;

    let lease = client.create(wish(MIB)).await;
    assert_eq!((lease.provider, lease.boot), (lender.identity.public(), lender.boot));
    let held = lender.lock().held[&lease.lease].clone();
    assert_eq!((held.tenant.as_str(), held.bytes), ("red", 256 * 4128));
    let true_left = held.deadline.tick.ms_since(lender.tick());
    assert!((59_000..=60_000).contains(&true_left), "{true_left}: never longer than asked");

    let request = AttachRequest {
        token: lease.token.hash(),
        lanes: vec![EndpointBytes([1; 32])],
        provider: lease.provider,
        boot: lease.boot,
        nonce: Nonce::random(),
    };
    let attach = Attach { lease: lease.lease, token: lease.token.clone(), request: Signed::new(&request, &alice) };
    let attached = client.call(Call::Attach(attach.clone())).await.expect("attached");
    assert_eq!(attached, Reply::Attached(lender.attached(&attach)), "as the lender signed it");

    let renew = Call::RenewLease(RenewLease { lease: lease.lease, ttl_ms: 600_000 });
    let Ok(Reply::Granted(renewed)) = client.call(renew).await else { panic!() };
    assert!(renewed.left_ms > 590_000);
    let scope = renewed.token.verify(&authd_key(&daemon)).expect("good");
    assert_eq!(scope.deadline, lender.lock().held[&lease.lease].deadline, "what the token says, the lender holds");

    let Ok(Reply::Leases(infos)) = client.call(Call::ReleaseLease(lease.lease)).await else { panic!() };
    assert_eq!(infos[0].reason, Some(EndReason::Released));
    assert_eq!(lender.lock().fenced, [(lease.lease, EndReason::Released)], "fenced before the answer");
    let info = daemon.until(lease.lease, |info| info.state == LeaseState::Ended).await;
    let receipt = info.receipt.expect("a receipt").open(&lender.identity.public()).expect("the lender's");
    assert!(receipt.is_complete());
    assert_eq!(refused(client.call(Call::Attach(attach)).await), RefusalCode::LeaseEnded);
}

fn authd_key(daemon: &Daemon) -> overbank_fabric::identity::PublicKey {
    let path = daemon.directory.path().join("state/authd.key");
    overbank_fabric::keyfile::load(&path).expect("the key").public()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_over_two_sessions_is_one_lease() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (alice, mut first) = daemon.consumer("red").await;
    let mut second = daemon.client(&alice).await;
    for _ in 0..10 {
        let wish = wish(MIB);
        let (one, two) = tokio::join!(first.create(wish.clone()), second.create(wish));
        assert_eq!(one.lease, two.lease);
    }
    assert_eq!(lender.lock().held.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lender_that_hangs_costs_no_more_than_the_deadline() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (alice, mut client) = daemon.consumer("red").await;
    let lease = client.create(wish(MIB)).await;
    lender.lock().hangs = true;
    let renew = Call::RenewLease(RenewLease { lease: lease.lease, ttl_ms: 600_000 });
    let lost = wish(MIB);
    for call in [Call::CreateLease(lost.clone()), renew, Call::ReleaseLease(lease.lease)] {
        let begun = Instant::now();
        assert_eq!(refused(client.call_for(700, call).await), RefusalCode::Deadline);
        let took = begun.elapsed();
        assert!((Duration::from_millis(600)..Duration::from_millis(4000)).contains(&took), "{took:?}");
    }
    assert_eq!(refused(client.call_for(0, Call::WhoAmI).await), RefusalCode::Deadline);
    // Others are served meanwhile, and once it works again what was begun is brought to its end.
    let mut other = daemon.client(&alice).await;
    assert_eq!(other.leases().await.len(), 1);
    lender.lock().hangs = false;
    let info = daemon.until(lease.lease, |info| info.state == LeaseState::Ended).await;
    assert_eq!(info.reason, Some(EndReason::Released));
    let again = client.create(lost).await;
    assert_eq!(daemon.show(again.lease).await.state, LeaseState::Active);
    assert_eq!(lender.lock().held.keys().collect::<Vec<_>>(), [&again.lease]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_the_holder_fences_at_once() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (alice, mut client) = daemon.consumer("red").await;
    let mut leases = Vec::new();
    for _ in 0..20 {
        leases.push(client.create(wish(4096)).await.lease);
    }
    let begun = Instant::now();
    daemon.operate(Call::TrustRevoke(alice.public().fingerprint())).await;
    while lender.lock().fenced.len() < leases.len() {
        assert!(begun.elapsed() < Duration::from_secs(4), "{} of 20 are fenced", lender.lock().fenced.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(lender.lock().fenced.iter().all(|(_, reason)| *reason == EndReason::Revoked));
    assert!(client.ends().await);
    daemon.until(leases[0], |info| info.state == LeaseState::Ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_bounded_and_answered() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (_, client) = daemon.consumer("red").await;
    let (caller, _incoming, driver) = client.into_channel().multiplex(300);
    let driver = tokio::spawn(driver);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let caller = caller.clone();
        calls.spawn(async move { caller.call(CorrelationId::random(), 10_000, Call::CreateLease(wish(1))).await });
    }
    let (mut granted, mut busy) = (0, 0);
    while let Some(outcome) = calls.join_next().await {
        match outcome.expect("no panic") {
            Ok(Reply::Granted(_)) => granted += 1,
            other => {
                assert_eq!(refused(other), RefusalCode::Busy);
                busy += 1;
            }
        }
    }
    assert_eq!(granted + busy, 300);
    assert!(granted >= 64, "{granted}");
    assert_eq!(lender.lock().held.len(), granted);
    driver.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_10_the_same_request_after_a_reconnect() {
    let mut daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    let (alice, _) = daemon.consumer("red").await;
    let wish = wish(MIB);
    // The session breaks when the request has reached the lender, so that nobody hears of what it made.
    let mut client = daemon.client(&alice).await;
    let asked = Call::CreateLease(wish.clone());
    let asking = tokio::spawn(async move { client.call(asked).await });
    while lender.lock().orders.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    asking.abort();
    let _ = asking.await;
    let first = daemon.client(&alice).await.create(wish.clone()).await;
    let (mut one, mut two) = (daemon.client(&alice).await, daemon.client(&alice).await);
    let (one, two) = tokio::join!(one.create(wish.clone()), two.create(wish.clone()));
    drop(session);
    daemon.restart().await;
    let _session = lender.connect(daemon.address).await;
    let last = daemon.client(&alice).await.create(wish).await;
    let told = [first.lease, one.lease, two.lease, last.lease];
    assert_eq!(told, [first.lease; 4]);
    let carved = lender.lock().orders.iter().filter(|order| matches!(order, Call::Carve(_))).count();
    assert_eq!((carved, lender.lock().held.len()), (1, 1));
    println!("attack 10 -: seen one allocation, over five sessions and a restart");
}
