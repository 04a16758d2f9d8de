//! Keys that took over from others: when they may, and what is theirs then.

use overbank_fabric::message::Rotate;
use overbank_fabric::succession::{HANDOVER_MS, Handover};

use super::*;

/// `old` hands over to somebody new.
pub(super) fn rotate(desk: &mut Desk, old: &Person) -> Result<Person, Fault> {
    let new = desk.stranger(old.asker.party);
    let handover = Signed::<Handover>::to(&desk.core.identity.public(), &old.identity, &new.key(), desk.now.unix_ms);
    desk.ask(&new.asker, Call::Rotate(Rotate { old: old.key(), handover })).map(|_| new)
}

#[test]
fn a_handover_is_good_at_one_auth_daemon_and_for_a_while() {
    let mut desk = Desk::new();
    let (alice, heir) = (desk.consumer("red"), desk.stranger(Party::Client));
    let (authd, elsewhere) = (desk.core.identity.public(), Identity::generate().public());
    let now = desk.now.unix_ms;
    let good = Handover { authd, old: alice.key(), new: heir.key(), expires_unix_ms: now + HANDOVER_MS };
    let ask = |desk: &mut Desk, handover: Signed<Handover>| {
        desk.ask(&heir.asker, Call::Rotate(Rotate { old: alice.key(), handover }))
    };
    for bad in [
        Handover { authd: elsewhere, ..good },
        Handover { new: elsewhere, ..good },
        Handover { expires_unix_ms: now, ..good },
        Handover { expires_unix_ms: u64::MAX, ..good },
    ] {
        assert_eq!(code(ask(&mut desk, Signed::new(&bad, &alice.identity))), RefusalCode::BadSignature, "{bad:?}");
    }
    assert_eq!(code(ask(&mut desk, Signed::new(&good, &heir.identity))), RefusalCode::BadSignature);
    let signed = Signed::new(&good, &alice.identity);
    desk.pass(Duration::from_millis(HANDOVER_MS));
    assert_eq!(code(ask(&mut desk, signed)), RefusalCode::BadSignature, "found later");
    let again = Signed::<Handover>::to(&authd, &alice.identity, &heir.key(), desk.now.unix_ms);
    reply(ask(&mut desk, again.clone()));
    desk.pass(Duration::from_millis(2 * HANDOVER_MS));
    reply(ask(&mut desk, again));
}

#[test]
fn an_identity_cannot_be_handed_over_without_end() {
    let mut desk = Desk::new();
    let mut bob = desk.consumer("red");
    for _ in 0..8 {
        bob = rotate(&mut desk, &bob).expect("now and then");
    }
    assert_eq!(code(rotate(&mut desk, &bob).map(drop)), RefusalCode::Busy);
    desk.pass(Duration::from_secs(86_401));
    rotate(&mut desk, &bob).expect("a day later");
}

#[test]
fn a_lease_that_is_made_while_its_holder_takes_a_new_key_is_the_new_ones() {
    let mut desk = Desk::new();
    let lenders = [desk.lender(64 * MIB), desk.lender(64 * MIB)];
    let alice = desk.consumer("red");
    let first = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    let heir = rotate(&mut desk, &alice).expect("trusted");
    // The lender is full after all: the other one is asked, in the name of who is there now.
    let second = order(desk.answered(first, refused(RefusalCode::PoolFull)));
    assert!(lenders.iter().any(|lender| lender.person.asker.session == second.session));
    let made = granted(desk.done(second));
    assert_eq!(desk.show(made.lease).holder, heir.key().fingerprint());
    assert_eq!(made.token.verify(&desk.core.identity.public()).expect("good").holder, heir.key());
    order(desk.ask(&heir.asker, Call::ReleaseLease(made.lease)));
}

#[test]
fn a_lender_with_a_new_key_still_answers_for_what_the_old_one_did_not_fence() {
    let mut desk = Desk::new();
    let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let (boot, born) = (lender.boot, lender.born);
    let old = lender.person;
    let person = rotate(&mut desk, &old).expect("trusted");
    lender = Lender { person, boot, born };
    let held = [(lease.lease, desk.stored_deadline(lease.lease))];
    desk.offer(&lender, 62 * MIB, &held);
    assert_eq!(desk.state(lease.lease), LeaseState::Active);
    // Only its queue pairs were destroyed, the old key says, by which the holder knows it.
    let receipt = Receipt { provider: old.key(), ..desk.receipt(&lender, &lease, 2) };
    let by = |desk: &mut Desk, key: &Identity| desk.ask(&lender.person.asker, Call::Ended(Signed::new(&receipt, key)));
    assert_eq!(code(by(&mut desk, &lender.person.identity)), RefusalCode::BadSignature);
    reply(by(&mut desk, &old.identity));
    assert_eq!(code(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease))), RefusalCode::Internal);
}

#[test]
fn who_asks_for_the_auth_daemons_keys_waits_for_no_disk() {
    let mut desk = Desk::new();
    let watch = "CREATE TEMP TABLE level (how);
        CREATE TEMP TRIGGER forgotten AFTER DELETE ON main.identities
        BEGIN INSERT INTO level SELECT synchronous FROM pragma_synchronous; END";
    desk.core.store.read().execute_batch(watch).expect("a trigger");
    let stranger = desk.stranger(Party::Client);
    assert_eq!(reply(desk.ask(&stranger.asker, Call::Successions)), Reply::Successions(Vec::new()));
    assert_eq!(code(desk.ask(&stranger.asker, Call::WhoAmI)), RefusalCode::Pending, "forgotten");
    let normal = 1;
    let levels = "SELECT count(*), sum(how) FROM level";
    let seen: (i64, i64) =
        desk.core.store.read().query_row(levels, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("readable");
    assert_eq!(seen, (1, normal));
}
