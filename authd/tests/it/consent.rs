//! What takes several operators, and who tries to be several.

use std::time::{SystemTime, UNIX_EPOCH};

use overbank_authd::{Consent, Critical, Limits};
use overbank_fabric::approval::{Approval, Proposal};
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Approve, Call, Invite, RefusalCode, Reply, Role, TrustState};
use overbank_fabric::signed::Signed;
use overbank_fabric::succession::Handover;

use crate::daemon::{Daemon, refused};

fn proposed(reply: Reply) -> Proposal {
    match reply {
        Reply::Proposed(proposal) => *proposal,
        other => panic!("not proposed: {other:?}"),
    }
}

/// A daemon that wants two operators for revocations and shutdown, and a second operator.
async fn two_operators() -> (Daemon, Identity, PublicKey) {
    let consent = Consent::new(2, &[Critical::Revoke, Critical::Shutdown]);
    let daemon = Daemon::with(Limits { consent, ..Limits::default() }).await;
    let second = daemon.approved(Role::Operator, None).await;
    let authd = daemon.key().await;
    (daemon, second, authd)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("a time")
}

fn approve(signer: &Identity, approval: &Approval) -> Call {
    Call::ProposalApprove(Signed::new(approval, signer))
}

async fn state(daemon: &Daemon, of: &Identity) -> TrustState {
    match daemon.operate(Call::TrustShow(of.public().fingerprint())).await {
        Reply::Trust(entries) => entries[0].state,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_15_an_operator_who_would_be_two() {
    let (daemon, second, authd) = two_operators().await;
    let alice = daemon.approved(Role::Consumer, Some("red")).await;
    let (mut one, mut two) = (daemon.client(&daemon.operator).await, daemon.client(&second).await);
    let revoke = Call::TrustRevoke(alice.public().fingerprint());
    let proposal = proposed(one.call(revoke.clone()).await.expect("proposed"));
    assert_eq!((&proposal.effect, proposal.needed, proposal.approved.len()), (&revoke, 2, 0));
    let approval = proposal.approval(authd);

    // The same operator twice, over the same session, over another one, and with a signature made again.
    for _ in 0..2 {
        let mut again = daemon.client(&daemon.operator).await;
        for session in [&mut one, &mut again] {
            let stands = proposed(session.call(approve(&daemon.operator, &approval)).await.expect("it counts once"));
            assert_eq!(stands.approved.len(), 1);
        }
    }
    // Somebody else's signature, and one of nobody who is an operator.
    assert_eq!(refused(one.call(approve(&second, &approval)).await), RefusalCode::BadSignature);
    assert_eq!(refused(two.call(approve(&daemon.operator, &approval)).await), RefusalCode::BadSignature);
    let mut consumer = daemon.client(&alice).await;
    assert_eq!(refused(consumer.call(approve(&alice, &approval)).await), RefusalCode::Forbidden);

    // An approval of something else, of another time, of another proposal, for another daemon.
    let bob = daemon.approved(Role::Consumer, Some("red")).await;
    let effect = Call::TrustRevoke(bob.public().fingerprint());
    for changed in [
        Approval { effect, ..approval.clone() },
        Approval { effect: Call::Shutdown, ..approval.clone() },
        Approval { expires_unix_ms: approval.expires_unix_ms + 1, ..approval.clone() },
        Approval { authd: second.public(), ..approval.clone() },
    ] {
        assert_eq!(refused(two.call(approve(&second, &changed)).await), RefusalCode::BadSignature);
    }
    let unknown = Approval { proposal: Nonce([9; 16]), ..approval.clone() };
    assert_eq!(refused(two.call(approve(&second, &unknown)).await), RefusalCode::NoSuchProposal);
    assert_eq!(state(&daemon, &alice).await, TrustState::Trusted, "nothing was done so far");

    // The second operator has it done, once.
    two.call(approve(&second, &approval)).await.expect("done");
    assert_eq!(state(&daemon, &alice).await, TrustState::Revoked);
    for (session, signer) in [(&mut two, &second), (&mut one, &daemon.operator)] {
        assert_eq!(refused(session.call(approve(signer, &approval)).await), RefusalCode::NoSuchProposal);
    }
    // What was signed for one proposal is nothing to the next of the same effect.
    let revoke = Call::TrustRevoke(bob.public().fingerprint());
    let first = proposed(one.call(revoke.clone()).await.expect("proposed")).approval(authd);
    two.call(approve(&second, &first)).await.expect("one of two");
    let next = proposed(one.call(revoke).await.expect("proposed")).approval(authd);
    let played_back = Approval { proposal: next.proposal, ..first };
    assert_eq!(refused(two.call(approve(&second, &played_back)).await), RefusalCode::BadSignature);
    let stands = proposed(one.call(approve(&daemon.operator, &next)).await.expect("one of two"));
    assert_eq!(stands.approved, [daemon.operator.public().fingerprint()]);
    assert_eq!(state(&daemon, &bob).await, TrustState::Trusted);
    println!(
        "attack 15 -: seen one operator counts once; another effect, time, proposal or signer: refused; nothing done"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_15_an_operator_who_makes_others_of_himself() {
    let (daemon, second, authd) = two_operators().await;
    let mut one = daemon.client(&daemon.operator).await;
    // By approval, by invitation, by getting rid of the others: each takes two.
    let puppet = Identity::generate();
    daemon.client(&puppet).await.who_am_i().await;
    let fingerprint = puppet.public().fingerprint();
    proposed(
        one.call(Call::TrustApprove(Approve { fingerprint, role: Role::Operator, tenant: None })).await.expect("it"),
    );
    proposed(
        one.call(Call::TrustInvite(Invite { role: Role::Operator, tenant: None, ttl_ms: 60_000 })).await.expect("it"),
    );
    let import =
        overbank_fabric::message::Import { key: puppet.public(), role: Some(Role::Operator), tenant: None, name: None };
    proposed(one.call(Call::TrustImport(vec![import])).await.expect("it"));
    proposed(one.call(Call::TrustRevoke(second.public().fingerprint())).await.expect("it"));

    // By taking a new key in between: what the old one approved counts no more.
    let shutdown = proposed(one.call(Call::Shutdown).await.expect("proposed")).approval(authd);
    one.call(approve(&daemon.operator, &shutdown)).await.expect("one of two");
    let heir = Identity::generate();
    let rotate = overbank_fabric::message::Rotate {
        old: daemon.operator.public(),
        handover: Signed::<Handover>::to(&authd, &daemon.operator, &heir.public(), unix_ms()),
    };
    let mut heirs = daemon.client(&heir).await;
    heirs.call(Call::Rotate(rotate)).await.expect("a successor");
    let stands = proposed(heirs.call(approve(&heir, &shutdown)).await.expect("one of two still"));
    assert_eq!(stands.approved, [heir.public().fingerprint()]);
    daemon.client(&heir).await.who_am_i().await;
    println!("attack 15 -: seen who makes, revokes or renames operators alone stays one of two");
}
