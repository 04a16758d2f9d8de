use overbank_authd::{Limits, Load};
use overbank_fabric::channel::CallError;
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Approve, Call, Invite, Join, RefusalCode, Reply, Role, TrustState};

use tokio::task::JoinSet;

use crate::daemon::{Daemon, invitation, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_waits_is_approved_and_revoked() {
    let daemon = Daemon::start().await;
    let alice = Identity::generate();
    let mut session = daemon.client(&alice).await;
    assert_eq!(session.who_am_i().await.state, TrustState::Pending);
    assert_eq!(refused(session.call(Call::ListLeases).await), RefusalCode::Pending);

    let fingerprint = alice.public().fingerprint();
    let tenant = Some("red".parse().expect("a tenant"));
    daemon.operate(Call::TrustApprove(Approve { fingerprint, role: Role::Consumer, tenant })).await;
    let me = session.who_am_i().await;
    assert_eq!((me.state, me.role), (TrustState::Trusted, Some(Role::Consumer)), "in the open session");
    assert!(session.leases().await.is_empty());

    let idle = daemon.client(&alice).await;
    daemon.operate(Call::TrustRevoke(fingerprint)).await;
    // Refused or cut off, whatever comes first.
    match session.call(Call::ListLeases).await {
        Err(CallError::Channel(_)) => {}
        other => assert_eq!(refused(other), RefusalCode::Revoked),
    }
    assert!(session.ends().await && idle.ends().await);
    let mut back = daemon.client(&alice).await;
    assert_eq!(back.who_am_i().await.state, TrustState::Revoked);
    assert_eq!(refused(back.call(Call::ListLeases).await), RefusalCode::Revoked);
}

/// Who asks much at the moment of its revocation is told that it is revoked, or nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_revoked_session_asked_last_is_not_answered_otherwise() {
    let load = Load { requests_per_second: 100_000, requests_per_second_each: 100_000, ..Load::default() };
    let daemon = Daemon::with(Limits { load, ..Limits::default() }).await;
    for _ in 0..10 {
        let (alice, session) = daemon.consumer("red").await;
        let (caller, _incoming, driver) = session.into_channel().multiplex(64);
        let mut asking = JoinSet::new();
        asking.spawn(async {
            driver.await;
            None
        });
        for _ in 0..64 {
            let caller = caller.clone();
            asking.spawn(async move {
                loop {
                    match caller.call(CorrelationId::random(), 5000, Call::ListLeases).await {
                        Ok(_) => {}
                        Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Revoked => {}
                        Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Busy => {}
                        Err(CallError::Refused(refusal)) => return Some(refusal),
                        Err(CallError::Channel(_)) => return None,
                    }
                }
            });
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        daemon.operate(Call::TrustRevoke(alice.public().fingerprint())).await;
        let others: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_redeem_one_invitation_at_once_are_one_who_does() {
    let daemon = Daemon::start().await;
    let invite = Invite { role: Role::Consumer, tenant: Some("red".parse().expect("a tenant")), ttl_ms: 60_000 };
    for _ in 0..5 {
        let code = invitation(daemon.operate(Call::TrustInvite(invite.clone())).await);
        let join = || Call::Join(Join { secret: code.secret });
        let (alice, bob) = (Identity::generate(), Identity::generate());
        let (mut alice, mut bob) = (daemon.client(&alice).await, daemon.client(&bob).await);
        let outcomes = tokio::join!(alice.call(join()), bob.call(join()));
        let states = [alice.who_am_i().await.state, bob.who_am_i().await.state];
        match outcomes {
            (Ok(Reply::You(_)), lost) => {
                assert_eq!(refused(lost), RefusalCode::BadInvitation);
                assert_eq!(states, [TrustState::Trusted, TrustState::Pending]);
            }
            (lost, Ok(Reply::You(_))) => {
                assert_eq!(refused(lost), RefusalCode::BadInvitation);
                assert_eq!(states, [TrustState::Pending, TrustState::Trusted]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_invitations_ends_the_session() {
    let daemon = Daemon::start().await;
    let mallory = Identity::generate();
    let mut session = daemon.client(&mallory).await;
    let begun = std::time::Instant::now();
    for guess in 0..3 {
        assert_eq!(refused(session.call(Call::Join(Join { secret: [guess; 16] })).await), RefusalCode::BadInvitation);
    }
    assert!(begun.elapsed() >= std::time::Duration::from_millis(600), "each guess takes a while");
    assert!(matches!(session.call(Call::WhoAmI).await, Err(CallError::Channel(_))));
    assert_eq!(daemon.client(&mallory).await.who_am_i().await.state, TrustState::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_survives_a_restart() {
    let mut daemon = Daemon::start().await;
    let (alice, _) = daemon.consumer("red").await;
    let bob = Identity::generate();
    daemon.connect(&bob, Party::Provider).await.who_am_i().await;
    let code = invitation(
        daemon.operate(Call::TrustInvite(Invite { role: Role::Operator, tenant: None, ttl_ms: 60_000 })).await,
    );
    daemon.restart().await;
    let me = daemon.client(&alice).await.who_am_i().await;
    assert_eq!((me.state, me.tenant.as_ref().map(|it| it.as_str())), (TrustState::Trusted, Some("red")));
    let Reply::Trust(entries) = daemon.operate(Call::TrustList).await else { panic!() };
    assert_eq!(entries.len(), 3);
    assert_eq!((entries[0].key, entries[0].state), (bob.public(), TrustState::Pending), "those that wait come first");
    let mut carol = daemon.client(&Identity::generate()).await;
    carol.call(Call::Join(Join { secret: code.secret })).await.expect("the invitation is still good");
}
