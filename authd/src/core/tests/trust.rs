use overbank_fabric::message::{Invite, Join, TrustState};

use super::*;

#[path = "../../../tests/it/calls.rs"]
mod calls;
use calls::{allowed, every_call, is_free, is_order};

/// What a call is refused with before anybody looks at what it asks.
fn barred(desk: &mut Desk, asker: &Asker, call: Call) -> Option<RefusalCode> {
    match desk.ask(asker, call) {
        Err(Fault::Refused(refusal)) => {
            let at_the_door =
                matches!(refusal.code, RefusalCode::Pending | RefusalCode::Revoked | RefusalCode::Forbidden);
            at_the_door.then_some(refusal.code)
        }
        _ => None,
    }
}

#[test]
fn every_role_may_call_what_it_must_and_nothing_else() {
    let mut desk = Desk::new();
    let people = [
        ("consumer", desk.consumer("red")),
        ("provider", desk.approved(Role::Provider, None)),
        ("operator", desk.approved(Role::Operator, None)),
    ];
    for (role, person) in &people {
        for call in every_call() {
            let wanted = (!allowed(role, &call)).then_some(RefusalCode::Forbidden);
            assert_eq!(barred(&mut desk, &person.asker, call.clone()), wanted, "{role}: {call:?}");
            // The same key in the mouth of another kind of program.
            let party = if *role == "provider" { Party::Client } else { Party::Provider };
            let free = is_free(&call);
            let wanted = (!free).then_some(RefusalCode::Forbidden);
            let asker = Asker { party, ..person.asker };
            assert_eq!(barred(&mut desk, &asker, call.clone()), wanted, "{role} as another party: {call:?}");
        }
    }
    let (pending, revoked) = (desk.stranger(Party::Client), desk.consumer("red"));
    desk.revoke(&revoked);
    for call in every_call() {
        // Asking how the daemon came by its key makes it forget who asked.
        desk.core.admit(&pending.key(), "127.0.0.1:1", desk.now).expect("admitted");
        let closed = |code| if is_order(&call) { RefusalCode::Forbidden } else { code };
        let free = is_free(&call);
        let wanted = (!free).then_some(closed(RefusalCode::Pending));
        assert_eq!(barred(&mut desk, &pending.asker, call.clone()), wanted, "pending: {call:?}");
        let wanted = (!is_free(&call) || matches!(call, Call::Join(_))).then_some(closed(RefusalCode::Revoked));
        assert_eq!(barred(&mut desk, &revoked.asker, call.clone()), wanted, "revoked: {call:?}");
    }
}

#[test]
fn a_stranger_is_pending_until_an_operator_approves_it() {
    let mut desk = Desk::new();
    let alice = desk.stranger(Party::Client);
    let Reply::You(me) = reply(desk.ask(&alice.asker, Call::WhoAmI)) else { panic!() };
    assert_eq!((me.state, me.role, me.key), (TrustState::Pending, None, alice.key()));
    assert_eq!(me.last_seen_from.as_deref(), Some("127.0.0.1:1"));

    let fingerprint = alice.key().fingerprint();
    let approve = |role, of: Option<&str>| Call::TrustApprove(Approve { fingerprint, role, tenant: of.map(tenant) });
    let operator = desk.operator.asker;
    assert_eq!(code(desk.ask(&operator, approve(Role::Consumer, None))), RefusalCode::Invalid);
    assert_eq!(code(desk.ask(&operator, approve(Role::Operator, Some("red")))), RefusalCode::Invalid);
    let nobody =
        Approve { fingerprint: overbank_fabric::ids::Fingerprint([0; 20]), role: Role::Operator, tenant: None };
    assert_eq!(code(desk.ask(&operator, Call::TrustApprove(nobody))), RefusalCode::NoSuchIdentity);

    let Reply::Trust(entries) = desk.operate(approve(Role::Consumer, Some("red"))) else { panic!() };
    assert_eq!((entries[0].state, entries[0].role, entries.len()), (TrustState::Trusted, Some(Role::Consumer), 1));
    desk.operate(approve(Role::Consumer, Some("red")));
    assert_eq!(code(desk.ask(&operator, approve(Role::Consumer, Some("blue")))), RefusalCode::Invalid);
    assert_eq!(code(desk.ask(&operator, approve(Role::Operator, None))), RefusalCode::Invalid);
    reply(desk.ask(&alice.asker, Call::ListLeases));
    desk.revoke(&alice);
    assert_eq!(code(desk.ask(&operator, approve(Role::Consumer, Some("red")))), RefusalCode::Invalid, "for good");
    let Reply::Trust(entries) = desk.operate(Call::TrustList) else { panic!() };
    assert_eq!(entries.iter().map(|entry| entry.state).collect::<Vec<_>>(), [TrustState::Trusted, TrustState::Revoked]);
}

fn secret(reply: Reply) -> [u8; 16] {
    match reply {
        Reply::Invitation(invitation) => invitation.secret,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_invitation_makes_one_identity_trusted_once() {
    let mut desk = Desk::new();
    let invite = Invite { role: Role::Consumer, tenant: Some(tenant("red")), ttl_ms: 60_000 };
    let invitation = desk.operate(Call::TrustInvite(invite.clone()));
    assert!(matches!(&invitation, Reply::Invitation(it) if it.authd == desk.core.identity.public().fingerprint()));
    let join = Call::Join(Join { secret: secret(invitation) });
    let (alice, bob, provider) =
        (desk.stranger(Party::Client), desk.stranger(Party::Client), desk.stranger(Party::Provider));

    assert_eq!(code(desk.ask(&provider.asker, join.clone())), RefusalCode::Invalid, "another kind of program");
    let operator = desk.operator.asker;
    assert_eq!(code(desk.ask(&operator, join.clone())), RefusalCode::Invalid, "trusted already");
    let Reply::You(me) = reply(desk.ask(&alice.asker, join.clone())) else { panic!() };
    assert_eq!((me.state, me.role, me.tenant), (TrustState::Trusted, Some(Role::Consumer), Some(tenant("red"))));
    reply(desk.ask(&alice.asker, join.clone()));
    assert_eq!(code(desk.ask(&bob.asker, join)), RefusalCode::BadInvitation, "used up");
    assert_eq!(code(desk.ask(&bob.asker, Call::Join(Join { secret: [7; 16] }))), RefusalCode::BadInvitation);

    let late = Call::Join(Join { secret: secret(desk.operate(Call::TrustInvite(invite.clone()))) });
    desk.pass(Duration::from_secs(60));
    assert_eq!(code(desk.ask(&bob.asker, late)), RefusalCode::BadInvitation, "out of date");
    let revoked = Call::Join(Join { secret: secret(desk.operate(Call::TrustInvite(invite.clone()))) });
    desk.revoke(&bob);
    assert_eq!(code(desk.ask(&bob.asker, revoked)), RefusalCode::Revoked);

    for bad in [
        Invite { ttl_ms: 0, ..invite.clone() },
        Invite { ttl_ms: u64::MAX, ..invite.clone() },
        Invite { tenant: None, ..invite.clone() },
        Invite { role: Role::Provider, ..invite },
    ] {
        assert_eq!(code(desk.ask(&operator, Call::TrustInvite(bad))), RefusalCode::Invalid);
    }
}

#[test]
fn invitations_of_a_revoked_operator_are_worth_nothing() {
    let mut desk = Desk::new();
    let mallory = desk.approved(Role::Operator, None);
    let invite = Invite { role: Role::Operator, tenant: None, ttl_ms: 60_000 };
    let invitation = secret(reply(desk.ask(&mallory.asker, Call::TrustInvite(invite))));
    desk.revoke(&mallory);
    let friend = desk.stranger(Party::Client);
    let join = Call::Join(Join { secret: invitation });
    assert_eq!(code(desk.ask(&friend.asker, join)), RefusalCode::BadInvitation);
}

#[test]
fn the_last_operator_stays() {
    let mut desk = Desk::new();
    let operator = desk.operator.asker;
    let last = Call::TrustRevoke(operator.key.fingerprint());
    assert_eq!(code(desk.ask(&operator, last.clone())), RefusalCode::Invalid);
    let other = desk.approved(Role::Operator, None);
    reply(desk.ask(&other.asker, last));
    assert_eq!(code(desk.ask(&operator, Call::TrustList)), RefusalCode::Revoked);
}

#[test]
fn strangers_cannot_fill_the_store() {
    let mut desk = Desk::with(Limits { max_pending: 5, ..Limits::default() });
    let trusted = desk.consumer("red");
    let mut strangers = Vec::new();
    for _ in 0..8 {
        desk.pass(Duration::from_millis(1));
        strangers.push(desk.stranger(Party::Client));
    }
    let Reply::Trust(entries) = desk.operate(Call::TrustList) else { panic!() };
    assert_eq!(entries.iter().filter(|entry| entry.state == TrustState::Pending).count(), 5);
    assert_eq!(code(desk.ask(&strangers[2].asker, Call::WhoAmI)), RefusalCode::Pending, "forgotten, and told so");
    reply(desk.ask(&strangers[3].asker, Call::WhoAmI));
    reply(desk.ask(&trusted.asker, Call::WhoAmI));
}

#[test]
fn revoking_a_consumer_ends_its_leases() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("red"));
    let (lease, other) = (desk.create(&alice, wish(MIB)), desk.create(&bob, wish(MIB)));
    let half = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    let half_lease = carve_of(&half).lease;
    desk.core.take_effects();
    desk.revoke(&alice);
    let effects = desk.core.take_effects();
    assert!(effects.contains(&Effect::Close(alice.key())), "{effects:?}");
    assert!(effects.contains(&Effect::Orders(lender.person.asker.session)), "{effects:?}");
    let info = desk.show(lease.lease);
    assert_eq!((info.state, info.reason), (LeaseState::Ending, Some(EndReason::Revoked)));
    assert_eq!(desk.state(other.lease), LeaseState::Active);
    assert_eq!(code(desk.done(half)), RefusalCode::Revoked, "what was being made is not granted any more");
    let mut fences: Vec<_> = desk.due(&lender).iter().map(fence_of).collect();
    fences.sort_unstable_by_key(|(_, reason)| reason.to_string());
    assert_eq!(fences, [(lease.lease, EndReason::Revoked), (half_lease, EndReason::Unknown)]);
}

#[test]
fn revoking_a_lender_loses_what_it_lent() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    desk.core.take_effects();
    desk.revoke(&lender.person);
    let fence = Call::Fence(Fence { lease: lease.lease, reason: EndReason::Revoked });
    let farewell = Effect::Farewell(lender.person.key(), lender.person.asker.session, vec![fence]);
    assert!(desk.core.take_effects().contains(&farewell));
    let info = desk.show(lease.lease);
    assert_eq!((info.state, info.reason), (LeaseState::Lost, Some(EndReason::Revoked)));
    let beat = desk.beat(&lender, 0);
    assert_eq!(code(desk.ask(&lender.person.asker, Call::Heartbeat(beat))), RefusalCode::Revoked);
    assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish(MIB)))), RefusalCode::PoolFull);
}

#[test]
fn where_operators_are_too_few_all_of_them_decide_about_operators() {
    let consent = crate::proposals::Consent::new(3, &[]);
    let mut desk = Desk::with(Limits { consent, ..Limits::default() });
    let invite = || Call::TrustInvite(Invite { role: Role::Operator, tenant: None, ttl_ms: 1000 });
    // The first has nobody to ask.
    let second = desk.approved(Role::Operator, None);
    assert!(matches!(desk.operate(invite()), Reply::Proposed(_)));
    assert!(matches!(desk.operate(Call::TrustRevoke(second.key().fingerprint())), Reply::Proposed(_)));
    let by_two = match desk.operate(Call::TrustRevoke(second.key().fingerprint())) {
        Reply::Proposed(proposal) => proposal.needed,
        other => panic!("{other:?}"),
    };
    assert_eq!(by_two, 2);
    // Others are approved as ever: that was not marked.
    desk.consumer("red");
    // And nobody fills the list of what waits.
    let mut last = desk.ask(&second.asker, invite());
    for _ in 0..8 {
        assert!(last.is_ok());
        last = desk.ask(&second.asker, invite());
    }
    assert_eq!(code(last), RefusalCode::Busy);
}
