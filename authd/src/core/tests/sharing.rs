//! Leases that were handed on: from whom to whom, and what a revocation of any of them means.

use overbank_fabric::attach::{AttachRequest, EndpointBytes};
use overbank_fabric::message::{Attach, Detach};
use overbank_fabric::token::{Rights, Scope, Token};

use super::rotation::rotate;
use super::*;

fn attach(asker: &Person, token: &Token, granted: &Granted) -> Call {
    let request = AttachRequest {
        token: token.hash(),
        lanes: vec![EndpointBytes([1; 32])],
        provider: granted.provider,
        boot: granted.boot,
        nonce: Nonce::random(),
    };
    Call::Attach(Attach { lease: granted.lease, token: token.clone(), request: Signed::new(&request, &asker.identity) })
}

/// Read-only, from one to the next.
fn hand_on(desk: &Desk, token: &Token, from: &Person, to: &Person) -> Token {
    let authd = desk.core.identity.public();
    let scope = token.verify(&authd).expect("good");
    token.narrow(&authd, &Scope { rights: Rights::READ, holder: to.key(), ..scope }, &from.identity).expect("narrower")
}

/// Whom the lender is told to detach.
fn detaches(desk: &mut Desk, lender: &Lender) -> Vec<(Detach, Order)> {
    let due = desk.due(lender).into_iter();
    due.filter_map(|order| match order.call {
        Call::Detach(detach) => Some((detach, order)),
        _ => None,
    })
    .collect()
}

#[test]
fn a_revoked_delegate_is_detached_with_all_whom_it_passed_the_lease_on_to() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let (alice, bob, carol, dave) =
        (desk.consumer("red"), desk.consumer("red"), desk.consumer("blue"), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let to_bob = hand_on(&desk, &lease.token, &alice, &bob);
    let to_carol = hand_on(&desk, &to_bob, &bob, &carol);
    let to_dave = hand_on(&desk, &lease.token, &alice, &dave);
    // Carol attaches first: bob may never have.
    order(desk.ask(&carol.asker, attach(&carol, &to_carol, &lease)));
    order(desk.ask(&dave.asker, attach(&dave, &to_dave, &lease)));
    assert!(detaches(&mut desk, &lender).is_empty());

    desk.revoke(&bob);
    let due = detaches(&mut desk, &lender);
    assert_eq!(
        due.iter().map(|(detach, _)| *detach).collect::<Vec<_>>(),
        [Detach { lease: lease.lease, holder: bob.key() }]
    );
    assert_eq!(desk.state(lease.lease), LeaseState::Active, "the lease is alice's");
    assert_eq!(code(desk.ask(&carol.asker, attach(&carol, &to_carol, &lease))), RefusalCode::BadToken);
    order(desk.ask(&dave.asker, attach(&dave, &to_dave, &lease)));
    order(desk.ask(&alice.asker, attach(&alice, &lease.token, &lease)));

    // Not twice at once; again where it failed; no more when it is done.
    assert!(detaches(&mut desk, &lender).is_empty());
    let (_, first) = due.into_iter().next().expect("one");
    assert!(desk.answered(first, Err(OrderError::Gone)).is_err());
    let (_, again) = detaches(&mut desk, &lender).pop().expect("told again");
    reply(desk.done(again));
    assert!(detaches(&mut desk, &lender).is_empty());
}

#[test]
fn a_lender_that_was_away_is_told_when_it_is_back() {
    let mut desk = Desk::new();
    let mut lender = desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let to_bob = hand_on(&desk, &lease.token, &alice, &bob);
    order(desk.ask(&bob.asker, attach(&bob, &to_bob, &lease)));
    let deadline = desk.stored_deadline(lease.lease);
    desk.reconnect(&mut lender);
    desk.revoke(&bob);
    desk.offer(&lender, 64 * MIB, &[(lease.lease, deadline)]);
    assert_eq!(detaches(&mut desk, &lender).len(), 1);
}

#[test]
fn the_holders_revocation_ends_all() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let to_bob = hand_on(&desk, &lease.token, &alice, &bob);
    order(desk.ask(&bob.asker, attach(&bob, &to_bob, &lease)));
    desk.revoke(&alice);
    assert_eq!(desk.due(&lender).iter().map(fence_of).collect::<Vec<_>>(), [(lease.lease, EndReason::Revoked)]);
    assert_eq!(code(desk.ask(&bob.asker, attach(&bob, &to_bob, &lease))), RefusalCode::LeaseEnded);
}

#[test]
fn who_took_over_from_a_delegate_ends_what_that_one_was_attached_to_when_revoked() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let to_bob = hand_on(&desk, &lease.token, &alice, &bob);
    order(desk.ask(&bob.asker, attach(&bob, &to_bob, &lease)));
    let second = rotate(&mut desk, &bob).expect("trusted");
    let third = rotate(&mut desk, &second).expect("trusted");
    assert!(detaches(&mut desk, &lender).is_empty(), "nothing stops for it");
    desk.revoke(&third);
    let told: Vec<_> = detaches(&mut desk, &lender).into_iter().map(|(detach, _)| detach).collect();
    assert_eq!(told, [Detach { lease: lease.lease, holder: bob.key() }]);
}

#[test]
fn only_trusted_consumers_can_be_shared_with() {
    let mut desk = Desk::new();
    desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("blue"));
    let lease = desk.create(&alice, wish(MIB));
    let (stranger, operator) = (desk.stranger(Party::Client), desk.approved(Role::Operator, None));
    for (person, wanted) in [(&stranger, RefusalCode::Pending), (&operator, RefusalCode::Forbidden)] {
        let token = hand_on(&desk, &lease.token, &alice, person);
        assert_eq!(code(desk.ask(&person.asker, attach(person, &token, &lease))), wanted);
        // Nor through the hands of one.
        let through = hand_on(&desk, &token, person, &bob);
        assert_eq!(code(desk.ask(&bob.asker, attach(&bob, &through, &lease))), RefusalCode::BadToken);
        let asked = Call::KeyOf(person.key().fingerprint());
        assert_eq!(code(desk.ask(&alice.asker, asked)), RefusalCode::NoSuchIdentity);
    }
    assert_eq!(reply(desk.ask(&alice.asker, Call::KeyOf(bob.key().fingerprint()))), Reply::Key(bob.key()));
    // A token that the daemon granted to somebody else than the lease's holder does not come from this daemon's store.
    let scope = lease.token.verify(&desk.core.identity.public()).expect("good");
    let odd = Token::grant(&Scope { holder: bob.key(), ..scope }, &desk.core.identity);
    assert_eq!(code(desk.ask(&bob.asker, attach(&bob, &odd, &lease))), RefusalCode::BadToken);
}

#[test]
fn an_attach_is_as_long_as_it_must_be_and_no_longer() {
    let mut desk = Desk::new();
    let (_lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let long = |lanes: usize| {
        let request = AttachRequest {
            token: lease.token.hash(),
            lanes: vec![EndpointBytes([1; 32]); lanes],
            provider: lease.provider,
            boot: lease.boot,
            nonce: Nonce::random(),
        };
        let request = Signed::new(&request, &alice.identity);
        Call::Attach(Attach { lease: lease.lease, token: lease.token.clone(), request })
    };
    order(desk.ask(&alice.asker, long(overbank_fabric::attach::MAX_LANES)));
    assert_eq!(code(desk.ask(&alice.asker, long(100))), RefusalCode::Invalid);
}
