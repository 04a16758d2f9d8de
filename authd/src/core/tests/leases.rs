use overbank_fabric::attach::{AttachRequest, EndpointBytes};
use overbank_fabric::message::{Attach, RenewLease};
use overbank_fabric::token::{Rights, Scope, Token};

use super::*;

#[test]
fn a_lease_is_carved_first_and_granted_then() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let order = order(desk.ask(&alice.asker, Call::CreateLease(wish(5 * MIB))));
    let carve = carve_of(&order);
    assert_eq!((carve.blocks, carve.block, carve.tenant.as_str()), (1280, 4096, "red"));
    assert_eq!(carve.deadline, Deadline { boot: lender.boot, tick: desk.tick(&lender).after_ms(60_000) });
    assert_eq!(code(desk.ask(&alice.asker, Call::ShowLease(carve.lease))), RefusalCode::NoSuchLease);

    let granted = granted(desk.done(order));
    assert_eq!((granted.lease, granted.bytes, granted.left_ms), (carve.lease, 5 * MIB, 60_000));
    assert_eq!((granted.provider, granted.boot), (lender.person.key(), lender.boot));
    let scope = granted.token.verify(&desk.core.identity.public()).expect("a good token");
    let wanted = Scope {
        lease: carve.lease,
        deadline: carve.deadline,
        first_block: 0,
        blocks: 1280,
        rights: Rights::READ_WRITE,
        holder: alice.key(),
    };
    assert_eq!(scope, wanted);
    let info = desk.show(carve.lease);
    assert_eq!((info.state, info.holder, info.bytes), (LeaseState::Active, alice.key().fingerprint(), 5 * MIB));
}

#[test]
fn senseless_sizes_blocks_and_times_are_refused() {
    let mut desk = Desk::new();
    desk.lender(64 * MIB);
    let alice = desk.consumer("red");
    let day = 24 * 3_600_000;
    let bad = [
        CreateLease { bytes: 0, ..wish(1) },
        CreateLease { block: 0, ..wish(1) },
        CreateLease { block: 256, ..wish(1) },
        CreateLease { block: 4097, ..wish(1) },
        CreateLease { block: 2 << 20, ..wish(1) },
        CreateLease { ttl_ms: 0, ..wish(1) },
        CreateLease { ttl_ms: 999, ..wish(1) },
        CreateLease { ttl_ms: day + 1, ..wish(1) },
        CreateLease { ttl_ms: u64::MAX, ..wish(1) },
    ];
    for wish in bad {
        assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish.clone()))), RefusalCode::Invalid, "{wish:?}");
    }
    for bytes in [1 << 40, u64::MAX - 1, u64::MAX] {
        assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish(bytes)))), RefusalCode::PoolFull, "{bytes}");
    }
    for good in [CreateLease { ttl_ms: 1000, ..wish(1) }, CreateLease { block: 512, ttl_ms: day, ..wish(1) }] {
        desk.create(&alice, good);
    }
}

#[test]
fn the_same_request_is_the_same_lease() {
    let mut desk = Desk::new();
    desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("red"));
    let wish = wish(MIB);
    let first = order(desk.ask(&alice.asker, Call::CreateLease(wish.clone())));
    assert!(matches!(desk.ask(&alice.asker, Call::CreateLease(wish.clone())), Ok(Next::Wait)), "it is in hand");
    let first = granted(desk.done(first));
    desk.pass(Duration::from_secs(1));
    let again = granted(desk.ask(&alice.asker, Call::CreateLease(wish.clone())));
    assert_eq!((again.lease, again.token.clone(), again.left_ms), (first.lease, first.token, 59_000));
    let other = CreateLease { bytes: 2 * MIB, ..wish.clone() };
    assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(other))), RefusalCode::Invalid);
    assert_ne!(desk.create(&bob, wish.clone()).lease, first.lease, "another's nonce is another request");
    desk.pass(Duration::from_secs(60));
    assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish))), RefusalCode::LeaseEnded);
}

#[test]
fn the_lender_with_the_most_free_gets_it_and_where_it_will_not_the_next() {
    let mut desk = Desk::new();
    let (small, large) = (desk.lender(16 * MIB), desk.lender(64 * MIB));
    let alice = desk.consumer("red");
    let first = order(desk.ask(&alice.asker, Call::CreateLease(wish(8 * MIB))));
    assert_eq!(first.session, large.person.asker.session);
    let refused_lease = carve_of(&first).lease;
    let second = order(desk.answered(first, refused(RefusalCode::PoolFull)));
    assert_eq!(second.session, small.person.asker.session);
    let lease = granted(desk.done(second)).lease;
    assert_eq!(desk.state(lease), LeaseState::Active);
    // It may hold it all the same: it is told to fence until it has.
    let due = desk.due(&large);
    assert_eq!(due.iter().map(fence_of).collect::<Vec<_>>(), [(refused_lease, EndReason::Unknown)]);
}

#[test]
fn a_full_pool_says_what_is_free_and_where() {
    let mut desk = Desk::new();
    let alice = desk.consumer("red");
    let Err(Fault::Refused(none)) = desk.ask(&alice.asker, Call::CreateLease(wish(MIB))) else { panic!() };
    assert_eq!(none.code, RefusalCode::PoolFull);
    assert!(none.message.contains("none is connected"), "{none}");

    let lender = desk.lender(16 * MIB);
    // 16 MiB of payload do not fit into 16 MiB of memory: each block has a header.
    let Err(Fault::Refused(full)) = desk.ask(&alice.asker, Call::CreateLease(wish(16 * MIB))) else { panic!() };
    assert_eq!(full.code, RefusalCode::PoolFull);
    let lender_name = lender.person.key().fingerprint().to_string();
    assert!(full.message.contains("16MiB free at") && full.message.contains(&lender_name), "{full}");
    assert!(full.message.contains("no provider has 18MiB free"), "{full}");

    // What is being carved is not free, what is refused or given back is.
    let order = order(desk.ask(&alice.asker, Call::CreateLease(wish(10 * MIB))));
    assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish(10 * MIB)))), RefusalCode::PoolFull);
    assert_eq!(code(desk.answered(order, refused(RefusalCode::PoolFull))), RefusalCode::PoolFull);
    desk.heartbeat(&lender, 16 * MIB);
    let lease = desk.create(&alice, wish(10 * MIB));
    assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish(10 * MIB)))), RefusalCode::PoolFull);
    let receipt = Receipt { bytes: 12 * MIB, ..desk.receipt(&lender, &lease, 6) };
    reply(desk.ended(&lender, &receipt));
    desk.create(&alice, wish(10 * MIB));
}

#[test]
fn a_failed_making_leaves_no_lease_and_no_used_nonce() {
    for (outcome, wanted) in [
        (refused(RefusalCode::Quota), RefusalCode::Internal),
        (refused(RefusalCode::PoolFull), RefusalCode::PoolFull),
        (Err(OrderError::Gone), RefusalCode::ProviderAway),
        (Err(OrderError::Late), RefusalCode::Deadline),
        (Ok(Reply::Leases(Vec::new())), RefusalCode::Internal),
    ] {
        let mut desk = Desk::new();
        let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
        let wish = wish(MIB);
        let failed = order(desk.ask(&alice.asker, Call::CreateLease(wish.clone())));
        let abandoned = carve_of(&failed).lease;
        assert_eq!(code(desk.answered(failed, outcome)), wanted);
        assert_eq!(reply(desk.ask(&alice.asker, Call::ListLeases)), Reply::Leases(Vec::new()));
        let mut due = desk.due(&lender);
        assert_eq!(due.iter().map(fence_of).collect::<Vec<_>>(), [(abandoned, EndReason::Unknown)]);
        assert!(desk.due(&lender).is_empty(), "it is under way");
        assert!(desk.answered(due.remove(0), Err(OrderError::Late)).is_err());
        let again = desk.due(&lender).remove(0);
        reply(desk.done(again));
        assert!(desk.due(&lender).is_empty(), "it was fenced");
        desk.heartbeat(&lender, 64 * MIB);
        assert_ne!(desk.create(&alice, wish).lease, abandoned);
    }
}

#[test]
fn what_the_store_does_not_take_did_not_happen() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let broken = |desk: &Desk, broken: bool| {
        desk.core.store.read().pragma_update(None, "query_only", broken).expect("set");
    };
    let failed = |outcome: Result<Next, Fault>| assert!(matches!(outcome, Err(Fault::Store(_))), "{outcome:?}");
    let lease = desk.create(&alice, wish(MIB));
    let made = wish(MIB);
    let carving = order(desk.ask(&alice.asker, Call::CreateLease(made.clone())));
    let cut_off = carve_of(&carving).lease;

    broken(&desk, true);
    failed(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    failed(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)));
    let operator = desk.operator.asker;
    failed(desk.ask(&operator, Call::TrustRevoke(alice.key().fingerprint())));
    failed(desk.done(carving));
    broken(&desk, false);

    reply(desk.ask(&alice.asker, Call::WhoAmI));
    assert_eq!(desk.state(lease.lease), LeaseState::Active);
    // Nobody goes on with what was cut off: it is fenced, and the same request makes another.
    let again = desk.create(&alice, made);
    assert_ne!(again.lease, cut_off);
    assert_eq!(desk.due(&lender).iter().map(fence_of).collect::<Vec<_>>(), [(cut_off, EndReason::Unknown)]);
    let release = order(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)));
    reply(desk.done(release));
}

#[test]
fn a_quota_counts_what_is_pinned_until_the_receipt_is_in() {
    let mut desk = Desk::with(Limits { quota: Some(8 * MIB), ..Limits::default() });
    let lender = desk.lender(64 * MIB);
    let (alice, bob, carol) = (desk.consumer("red"), desk.consumer("red"), desk.consumer("blue"));
    let lease = desk.create(&alice, wish(5 * MIB));
    assert_eq!(code(desk.ask(&bob.asker, Call::CreateLease(wish(2 * MIB)))), RefusalCode::Quota);
    desk.create(&carol, wish(5 * MIB));
    desk.create(&bob, wish(MIB));
    let fence = order(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)));
    reply(desk.done(fence));
    assert_eq!(code(desk.ask(&bob.asker, Call::CreateLease(wish(2 * MIB)))), RefusalCode::Quota);
    let receipt = desk.receipt(&lender, &lease, 6);
    reply(desk.ended(&lender, &receipt));
    desk.create(&bob, wish(2 * MIB));
}

#[test]
fn a_renewal_is_stored_when_the_lender_has_it_and_never_shortens() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let renew = |ttl_ms| Call::RenewLease(RenewLease { lease: lease.lease, ttl_ms });
    let first = desk.stored_deadline(lease.lease);

    let shorter = granted(desk.ask(&alice.asker, renew(30_000)));
    assert_eq!((shorter.left_ms, &shorter.token), (60_000, &lease.token), "no order, nothing moved");

    desk.pass(Duration::from_secs(4));
    let extend = order(desk.ask(&alice.asker, renew(60_000)));
    let wanted = Deadline { boot: lender.boot, tick: first.after_ms(4000) };
    assert!(matches!(&extend.call, Call::Extend(it) if it.deadline == wanted && it.lease == lease.lease));
    assert_eq!(desk.stored_deadline(lease.lease), first, "not before the lender has it");
    assert_eq!(code(desk.answered(extend, Err(OrderError::Late))), RefusalCode::Deadline);
    assert_eq!(desk.stored_deadline(lease.lease), first, "nor when it did not say so");

    let extend = order(desk.ask(&alice.asker, renew(60_000)));
    let renewed = granted(desk.done(extend));
    assert_eq!((renewed.left_ms, renewed.generation), (60_000, lease.generation));
    let scope = renewed.token.verify(&desk.core.identity.public()).expect("good");
    assert_eq!(scope.deadline, wanted);
    assert_eq!(desk.stored_deadline(lease.lease), wanted.tick);

    // Two renewals cross: the earlier deadline does not win by coming last.
    desk.heartbeat(&lender, 62 * MIB);
    let long = order(desk.ask(&alice.asker, renew(3_600_000)));
    let short = order(desk.ask(&alice.asker, renew(120_000)));
    let left = granted(desk.done(long)).left_ms;
    assert_eq!(granted(desk.done(short)).left_ms, left);

    let bob = desk.consumer("red");
    assert_eq!(code(desk.ask(&bob.asker, renew(60_000))), RefusalCode::NoSuchLease);
    assert_eq!(code(desk.ask(&alice.asker, renew(999))), RefusalCode::Invalid);
    assert_eq!(code(desk.ask(&alice.asker, renew(u64::MAX))), RefusalCode::Invalid);
}

#[test]
fn a_renewal_of_what_is_over_is_refused() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let renew = Call::RenewLease(RenewLease { lease: lease.lease, ttl_ms: 60_000 });
    let crossing = order(desk.ask(&alice.asker, Call::RenewLease(RenewLease { lease: lease.lease, ttl_ms: 90_000 })));
    let fence = order(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)));
    reply(desk.done(fence));
    assert_eq!(code(desk.done(crossing)), RefusalCode::LeaseEnded);
    assert_eq!(code(desk.ask(&alice.asker, renew)), RefusalCode::LeaseEnded);

    let second = desk.create(&alice, wish(MIB));
    desk.pass(Duration::from_secs(60));
    desk.heartbeat(&lender, 62 * MIB);
    let renew = Call::RenewLease(RenewLease { lease: second.lease, ttl_ms: 60_000 });
    assert_eq!(code(desk.ask(&alice.asker, renew)), RefusalCode::LeaseEnded);
}

#[test]
fn a_release_is_answered_when_fenced_and_over_when_the_receipt_is_in() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let release = Call::ReleaseLease(lease.lease);
    let bob = desk.consumer("red");
    assert_eq!(code(desk.ask(&bob.asker, release.clone())), RefusalCode::NoSuchLease);

    let fence = order(desk.ask(&alice.asker, release.clone()));
    assert_eq!(fence_of(&fence), (lease.lease, EndReason::Released));
    assert_eq!(desk.state(lease.lease), LeaseState::Ending);
    assert!(matches!(desk.ask(&alice.asker, release.clone()), Ok(Next::Wait)), "it is in hand");
    assert!(desk.due(&lender).is_empty(), "and not ordered twice");
    let Reply::Leases(infos) = reply(desk.done(fence)) else { panic!() };
    assert_eq!((infos[0].state, infos[0].reason), (LeaseState::Ending, Some(EndReason::Released)));
    assert!(matches!(reply(desk.ask(&alice.asker, release.clone())), Reply::Leases(_)), "said again, it is the same");

    let receipt = Receipt { reason: EndReason::Released, ..desk.receipt(&lender, &lease, 6) };
    reply(desk.ended(&lender, &receipt));
    let info = desk.show(lease.lease);
    assert_eq!((info.state, info.reason, info.left_ms), (LeaseState::Ended, Some(EndReason::Released), 0));
    assert_eq!(info.receipt.expect("a receipt").open(&lender.person.key()), Ok(receipt));
    assert!(
        matches!(reply(desk.ask(&alice.asker, release)), Reply::Leases(infos) if infos[0].state == LeaseState::Ended)
    );
}

#[test]
fn a_release_that_the_lender_did_not_hear_is_ordered_again() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let fence = order(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)));
    assert_eq!(code(desk.answered(fence, Err(OrderError::Late))), RefusalCode::Deadline);
    assert_eq!(desk.state(lease.lease), LeaseState::Ending, "a release is not taken back");
    let due = desk.due(&lender).remove(0);
    assert_eq!(fence_of(&due), (lease.lease, EndReason::Released));
    reply(desk.done(due));
    assert!(desk.due(&lender).is_empty());
}

#[test]
fn without_its_lender_a_lease_stays_and_ends_by_itself() {
    let mut desk = Desk::new();
    let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    desk.reconnect(&mut lender);
    let Err(Fault::Refused(away)) = desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)) else { panic!() };
    assert_eq!(away.code, RefusalCode::ProviderAway);
    assert!(away.message.contains("in 1m0s"), "{away}");
    assert_eq!(desk.state(lease.lease), LeaseState::Active);
    desk.pass(Duration::from_secs(60));
    let info = desk.show(lease.lease);
    assert_eq!((info.state, info.reason, info.left_ms), (LeaseState::Ending, Some(EndReason::Expired), 0));
}

fn attach(asker: &Person, token: &Token, granted: &Granted) -> Attach {
    let request = AttachRequest {
        token: token.hash(),
        lanes: vec![EndpointBytes([1; 32])],
        provider: granted.provider,
        boot: granted.boot,
        nonce: Nonce::random(),
    };
    Attach { lease: granted.lease, token: token.clone(), request: Signed::new(&request, &asker.identity) }
}

#[test]
fn an_attach_goes_through_for_the_tokens_holder_alone() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let (alice, bob) = (desk.consumer("red"), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let sent = attach(&alice, &lease.token, &lease);
    let bind = order(desk.ask(&alice.asker, Call::Attach(sent.clone())));
    assert_eq!(bind.session, lender.person.asker.session);
    assert_eq!(bind.call, Call::Bind(sent.clone()), "untouched");
    assert_eq!(code(desk.answered(bind, refused(RefusalCode::BadSignature))), RefusalCode::BadSignature);
    let bind = order(desk.ask(&alice.asker, Call::Attach(sent.clone())));
    assert_eq!(
        code(desk.answered(bind, refused(RefusalCode::Revoked))),
        RefusalCode::Internal,
        "not the asker's fault"
    );
    let bind = order(desk.ask(&alice.asker, Call::Attach(sent.clone())));
    assert_eq!(code(desk.answered(bind, Ok(Reply::Done))), RefusalCode::Internal);

    assert_eq!(code(desk.ask(&bob.asker, Call::Attach(sent.clone()))), RefusalCode::BadToken, "not bob's token");
    let scope = lease.token.verify(&desk.core.identity.public()).expect("good");
    let theirs = Scope { holder: bob.key(), rights: Rights::READ, ..scope };
    let shared = lease.token.narrow(&desk.core.identity.public(), &theirs, &alice.identity).expect("narrower");
    order(desk.ask(&bob.asker, Call::Attach(attach(&bob, &shared, &lease))));
    assert_eq!(code(desk.ask(&alice.asker, Call::Attach(attach(&alice, &shared, &lease)))), RefusalCode::BadToken);

    let forged = Token::grant(&theirs, &bob.identity);
    assert_eq!(code(desk.ask(&bob.asker, Call::Attach(attach(&bob, &forged, &lease)))), RefusalCode::BadToken);
    let other = desk.create(&alice, wish(MIB));
    let mixed = Attach { lease: other.lease, ..sent.clone() };
    assert_eq!(code(desk.ask(&alice.asker, Call::Attach(mixed))), RefusalCode::BadToken);

    desk.pass(Duration::from_secs(5));
    assert_eq!(code(desk.ask(&alice.asker, Call::Attach(sent.clone()))), RefusalCode::ProviderAway);
    desk.pass(Duration::from_secs(55));
    desk.heartbeat(&lender, 60 * MIB);
    assert_eq!(code(desk.ask(&alice.asker, Call::Attach(sent))), RefusalCode::LeaseEnded);
}

#[test]
fn what_is_kept_of_leases_that_are_over_is_bounded() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(1 << 40), desk.consumer("red"));
    let first = desk.create(&alice, wish(1));
    for _ in 0..1005 {
        let lease = desk.create(&alice, wish(1));
        reply(desk.ended(&lender, &desk.receipt(&lender, &lease, 6)));
        desk.pass(Duration::from_millis(1));
        desk.heartbeat(&lender, 1 << 40);
    }
    let Reply::Leases(infos) = reply(desk.ask(&alice.asker, Call::ListLeases)) else { panic!() };
    assert_eq!(infos[0].lease, first.lease, "those that are not over come first");
    assert!((900..=1002).contains(&infos.len()), "{}", infos.len());
    assert!(overbank_fabric::signed::to_cbor(&infos).len() < 1 << 20, "fits into a message");
}

#[test]
fn attack_11_the_wall_clock_steps() {
    const HOUR: u64 = 3_600_000;
    // A lease's life, the wall clock stepped before each thing that happens to it: what everybody is told of its time.
    let life = |step: fn(u64) -> u64| {
        let mut desk = Desk::new();
        let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
        let mut told = Vec::new();
        let step = |desk: &mut Desk| desk.now.unix_ms = step(desk.now.unix_ms);
        step(&mut desk);
        let first = desk.create(&alice, wish(MIB));
        let deadline = |token: &overbank_fabric::token::Token, desk: &Desk| {
            token.verify(&desk.core.identity.public()).expect("good").deadline.tick.0
        };
        told.push((first.left_ms, deadline(&first.token, &desk)));
        step(&mut desk);
        desk.pass(Duration::from_secs(10));
        desk.heartbeat(&lender, 62 * MIB);
        told.push((desk.show(first.lease).left_ms, desk.stored_deadline(first.lease).0));
        step(&mut desk);
        let renew = Call::RenewLease(RenewLease { lease: first.lease, ttl_ms: 120_000 });
        let extend = order(desk.ask(&alice.asker, renew));
        step(&mut desk);
        let longer = granted(desk.done(extend));
        told.push((longer.left_ms, deadline(&longer.token, &desk)));
        desk.reconnect(&mut lender);
        step(&mut desk);
        desk.offer(&lender, 64 * MIB, &[(first.lease, desk.stored_deadline(first.lease))]);
        desk.pass(Duration::from_secs(119));
        desk.heartbeat(&lender, 62 * MIB);
        step(&mut desk);
        told.push((desk.show(first.lease).left_ms, desk.stored_deadline(first.lease).0));
        assert!(desk.due(&lender).is_empty(), "not fenced a moment early");
        desk.pass(Duration::from_secs(1));
        told.push((desk.show(first.lease).left_ms, u64::from(desk.state(first.lease) == LeaseState::Ending)));
        step(&mut desk);
        desk.pass(Duration::from_secs(3));
        desk.heartbeat(&lender, 62 * MIB);
        told.push((0, desk.due(&lender).len() as u64));
        told
    };
    let straight = life(|unix_ms| unix_ms);
    assert_eq!(straight[4..], [(0, 1), (0, 1)], "it ends, and is fenced, in time");
    assert_eq!(life(|unix_ms| unix_ms + HOUR), straight, "an hour ahead, at each step");
    assert_eq!(life(|unix_ms| unix_ms - HOUR), straight, "an hour back, at each step");
    println!("attack 11 -: seen an hour either way, at each step of a life: the same deadlines, told and held");
}
