use overbank_fabric::message::{RenewLease, Status};

use super::*;

#[test]
fn deadlines_come_from_the_last_heartbeat_and_never_lengthen() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    // A heartbeat that was under way for 300 ms.
    let beat = desk.beat(&lender, 64 * MIB);
    desk.pass(Duration::from_millis(300));
    reply(desk.ask(&lender.person.asker, Call::Heartbeat(beat)));
    desk.pass(Duration::from_millis(1000));
    let order = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    let wanted = desk.tick(&lender).after_ms(60_000);
    assert_eq!(carve_of(&order).deadline.tick, Tick(wanted.0 - 300), "sooner by what the heartbeat took, never later");
}

#[test]
fn a_wall_clock_that_jumps_moves_no_lease() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    for step in [3_600_000_i64, -7_200_000] {
        desk.now.unix_ms = desk.now.unix_ms.checked_add_signed(step).expect("a time");
        let info = desk.show(lease.lease);
        assert_eq!((info.state, info.left_ms), (LeaseState::Active, 60_000), "{step}");
        let carve = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
        assert_eq!(carve_of(&carve).deadline.tick, desk.tick(&lender).after_ms(60_000));
        granted(desk.done(carve));
    }
}

#[test]
fn a_silent_lender_is_away() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    desk.pass(Duration::from_millis(4999));
    order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    desk.pass(Duration::from_millis(1));
    assert_eq!(code(desk.ask(&alice.asker, Call::CreateLease(wish(MIB)))), RefusalCode::PoolFull);
    let renew = Call::RenewLease(RenewLease { lease: lease.lease, ttl_ms: 90_000 });
    assert_eq!(code(desk.ask(&alice.asker, renew.clone())), RefusalCode::ProviderAway);
    desk.heartbeat(&lender, 64 * MIB);
    order(desk.ask(&alice.asker, renew));
}

#[test]
fn numbers_beyond_reason_are_refused() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    for beat in [
        Heartbeat { tick: Tick(u64::MAX), ..desk.beat(&lender, 0) },
        Heartbeat { free_bytes: u64::MAX, ..desk.beat(&lender, 0) },
        Heartbeat { quarantined_bytes: u64::MAX, ..desk.beat(&lender, 0) },
    ] {
        assert_eq!(code(desk.ask(&lender.person.asker, Call::Heartbeat(beat))), RefusalCode::Invalid);
    }
    assert_eq!(code(desk.try_offer(&lender, u64::MAX, &[])), RefusalCode::Invalid);
    let offer = |page_bytes, leases| Offer {
        boot: lender.boot,
        heartbeat: Heartbeat { tick: Tick(1), free_bytes: 0, quarantined_bytes: 0 },
        pool_bytes: MIB,
        page_bytes,
        device: String::new(),
        leases,
    };
    for page in [0, 1, 4095, 4097, u64::MAX, 1 << 63] {
        let asker = lender.person.asker;
        assert_eq!(code(desk.ask(&asker, Call::Offer(offer(page, Vec::new())))), RefusalCode::Invalid, "{page}");
    }
    let of_another_life =
        HeldLease { lease: LeaseId::random(), deadline: Deadline { boot: BootId([9; 16]), tick: Tick(5) } };
    let offer = offer(4096, vec![of_another_life]);
    assert_eq!(code(desk.ask(&lender.person.asker, Call::Offer(offer))), RefusalCode::Invalid);
}

#[test]
fn a_heartbeat_needs_an_offer_of_the_same_session() {
    let mut desk = Desk::new();
    let mut lender = desk.lender(64 * MIB);
    let old = lender.person.asker;
    desk.reconnect(&mut lender);
    let beat = desk.beat(&lender, 0);
    assert_eq!(code(desk.ask(&lender.person.asker, Call::Heartbeat(beat))), RefusalCode::Invalid);
    desk.offer(&lender, 64 * MIB, &[]);
    desk.heartbeat(&lender, 0);
    assert_eq!(code(desk.ask(&old, Call::Heartbeat(beat))), RefusalCode::Invalid);
}

#[test]
fn a_newer_session_of_the_same_lender_replaces_the_older() {
    let mut desk = Desk::new();
    let mut lender = desk.lender(64 * MIB);
    let old = lender.person.asker.session;
    desk.sessions += 1;
    lender.person.asker.session = SessionId(desk.sessions);
    desk.core.take_effects();
    desk.offer(&lender, 64 * MIB, &[]);
    assert!(desk.core.take_effects().contains(&Effect::CloseSession(old)));
    desk.core.session_closed(old);
    desk.heartbeat(&lender, MIB);
}

#[test]
fn after_a_broken_session_both_sides_agree() {
    let mut desk = Desk::new();
    let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let short = CreateLease { ttl_ms: 10_000, ..wish(MIB) };
    let [kept, vanished, extended, expired] =
        [wish(MIB), wish(MIB), wish(MIB), short].map(|wish| desk.create(&alice, wish));
    let released = desk.create(&alice, wish(MIB));
    let never_told = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    let abandoned = carve_of(&never_told).lease;
    assert_eq!(code(desk.answered(never_told, Err(OrderError::Gone))), RefusalCode::ProviderAway);
    let fence = order(desk.ask(&alice.asker, Call::ReleaseLease(released.lease)));
    assert!(desk.answered(fence, Err(OrderError::Gone)).is_err());
    desk.reconnect(&mut lender);
    desk.pass(Duration::from_secs(20));

    let stranger = LeaseId::random();
    let deadline = desk.stored_deadline(kept.lease);
    let held = [
        (kept.lease, deadline),
        (extended.lease, Tick(deadline.0 - 5000)),
        (released.lease, deadline),
        (abandoned, deadline),
        (stranger, deadline),
    ];
    desk.offer(&lender, 32 * MIB, &held);
    assert_eq!(desk.state(kept.lease), LeaseState::Active);
    assert_eq!(desk.state(vanished.lease), LeaseState::Lost);
    let info = desk.show(expired.lease);
    assert_eq!((info.state, info.reason), (LeaseState::Ending, Some(EndReason::Expired)), "its receipt follows");
    assert_eq!(desk.state(extended.lease), LeaseState::Active);

    let due = desk.due(&lender);
    let (mut fences, mut extends) = (Vec::new(), 0);
    for order in due {
        match &order.call {
            Call::Extend(extend) => {
                assert_eq!((extend.lease, extend.deadline.tick), (extended.lease, deadline));
                extends += 1;
                reply(desk.done(order));
            }
            _ => {
                fences.push(fence_of(&order));
                reply(desk.done(order));
            }
        }
    }
    fences.sort_unstable_by_key(|(lease, _)| *lease);
    // That of the expired one may have failed: its lender says, by its answer or by the receipt.
    let mut wanted = [
        (expired.lease, EndReason::Expired),
        (released.lease, EndReason::Released),
        (abandoned, EndReason::Unknown),
        (stranger, EndReason::Unknown),
    ];
    wanted.sort_unstable_by_key(|(lease, _)| *lease);
    assert_eq!((fences, extends), (wanted.to_vec(), 1));
    assert!(desk.due(&lender).is_empty(), "each of it is done");
    reply(desk.ended(&lender, &desk.receipt(&lender, &expired, 6)));
    assert_eq!(desk.state(expired.lease), LeaseState::Ended);
    // Thought lost, and then the receipt comes after all.
    reply(desk.ended(&lender, &desk.receipt(&lender, &vanished, 6)));
    assert_eq!(desk.state(vanished.lease), LeaseState::Ended);
}

#[test]
fn nobody_is_told_that_a_lease_is_fenced_whose_fence_failed() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    reply(desk.ended(&lender, &desk.receipt(&lender, &lease, 2)));
    assert_eq!(code(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease))), RefusalCode::Internal);
    assert_eq!(desk.state(lease.lease), LeaseState::Ending);
    assert!(desk.due(&lender).is_empty(), "to order it again changes nothing");
    // One that was fenced and not wiped is out of reach.
    let lease = desk.create(&alice, wish(MIB));
    reply(desk.ended(&lender, &desk.receipt(&lender, &lease, 3)));
    reply(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease)));
}

#[test]
fn who_claims_to_hold_anothers_lease_neither_ends_it_nor_keeps_it_from_ending() {
    for answer in [Ok(Reply::Done), refused(RefusalCode::NoSuchLease)] {
        let mut desk = Desk::new();
        let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
        let lease = desk.create(&alice, wish(MIB));
        let hostile = desk.lender(64 * MIB);
        let deadline = desk.stored_deadline(lease.lease);
        desk.offer(&hostile, 64 * MIB, &[(lease.lease, deadline)]);
        let mut claimed = desk.due(&hostile);
        assert_eq!(claimed.iter().map(fence_of).collect::<Vec<_>>(), [(lease.lease, EndReason::Unknown)]);
        assert_eq!(desk.state(lease.lease), LeaseState::Active);
        // It does not answer; meanwhile the lease ends.
        desk.revoke(&alice);
        let due = desk.due(&lender);
        assert_eq!(due.iter().map(fence_of).collect::<Vec<_>>(), [(lease.lease, EndReason::Revoked)]);
        reply(desk.answered(claimed.remove(0), answer));
        assert_eq!(desk.state(lease.lease), LeaseState::Ending);
        let failed = due.into_iter().next().expect("the order to its lender");
        assert!(desk.answered(failed, Err(OrderError::Late)).is_err());
        assert_eq!(desk.due(&lender).len(), 1, "it is told again until it has done so itself");
    }
}

#[test]
fn what_is_carved_while_the_session_is_replaced_is_fenced() {
    let mut desk = Desk::new();
    let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let carving = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    let lease = carve_of(&carving).lease;
    desk.reconnect(&mut lender);
    // The lender looked before it carved, and its answer was lost with the old session.
    desk.offer(&lender, 64 * MIB, &[]);
    assert!(desk.due(&lender).is_empty(), "whether it is a lease is not settled");
    assert_eq!(code(desk.answered(carving, Err(OrderError::Gone))), RefusalCode::ProviderAway);
    assert_eq!(desk.due(&lender).iter().map(fence_of).collect::<Vec<_>>(), [(lease, EndReason::Unknown)]);
}

#[test]
fn a_lender_that_restarts_has_lost_its_leases() {
    let mut desk = Desk::new();
    let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let (active, released) = (desk.create(&alice, wish(MIB)), desk.create(&alice, wish(MIB)));
    let fence = order(desk.ask(&alice.asker, Call::ReleaseLease(released.lease)));
    let carving = order(desk.ask(&alice.asker, Call::CreateLease(wish(MIB))));
    desk.reconnect(&mut lender);
    lender.boot = BootId::random();
    desk.offer(&lender, 64 * MIB, &[]);
    assert_eq!(desk.state(active.lease), LeaseState::Lost);
    let info = desk.show(released.lease);
    assert_eq!((info.state, info.reason), (LeaseState::Lost, Some(EndReason::Released)));
    for call in [Call::RenewLease(RenewLease { lease: active.lease, ttl_ms: 90_000 }), Call::ReleaseLease(active.lease)]
    {
        assert_eq!(code(desk.ask(&alice.asker, call)), RefusalCode::LeaseLost);
    }
    // Answers of its former life that arrive late bring nothing back.
    assert_eq!(code(desk.done(carving)), RefusalCode::ProviderAway);
    let _ = desk.done(fence);
    assert_eq!(desk.state(released.lease), LeaseState::Lost);
    assert!(desk.due(&lender).is_empty());
    desk.create(&alice, wish(MIB));
}

#[test]
fn a_receipt_counts_if_it_is_the_lenders_own_on_its_own_lease() {
    let mut desk = Desk::new();
    let (lender, other) = (desk.lender(64 * MIB), desk.lender(32 * MIB));
    let alice = desk.consumer("red");
    let lease = desk.create(&alice, wish(MIB));
    assert_eq!(lease.provider, lender.person.key());
    let good = desk.receipt(&lender, &lease, 6);

    assert_eq!(code(desk.ended(&other, &good)), RefusalCode::BadSignature, "another's name in it");
    let theirs = Receipt { provider: other.person.key(), boot: other.boot, ..good.clone() };
    assert_eq!(code(desk.ended(&other, &theirs)), RefusalCode::BadSignature, "not lent by it");
    let former_life = Receipt { boot: BootId([7; 16]), ..good.clone() };
    assert_eq!(code(desk.ended(&lender, &former_life)), RefusalCode::BadSignature);
    let other_tenant = Receipt { tenant: tenant("blue"), ..good.clone() };
    assert_eq!(code(desk.ended(&lender, &other_tenant)), RefusalCode::BadSignature);
    let forged = Call::Ended(Signed::new(&good, &other.person.identity));
    assert_eq!(code(desk.ask(&lender.person.asker, forged)), RefusalCode::BadSignature);
    let steps = vec![StepDone { step: Step::Closed, at_us: u64::MAX }; 500];
    assert_eq!(
        code(desk.ended(&lender, &Receipt { steps, ..good.clone() })),
        RefusalCode::Invalid,
        "too large to keep"
    );
    assert_eq!(desk.state(lease.lease), LeaseState::Active);
    let unknown = Receipt { lease: LeaseId::random(), ..good.clone() };
    assert_eq!(reply(desk.ended(&lender, &unknown)), Reply::Done, "or it would be repeated for ever");

    let quarantined = desk.receipt(&lender, &lease, 3);
    reply(desk.ended(&lender, &quarantined));
    assert_eq!(desk.state(lease.lease), LeaseState::Ending, "that memory is not known to be clean");
    reply(desk.ended(&lender, &good));
    reply(desk.ended(&lender, &good));
    reply(desk.ended(&lender, &quarantined));
    let info = desk.show(lease.lease);
    assert_eq!((info.state, info.reason), (LeaseState::Ended, Some(EndReason::Expired)));
    assert_eq!(info.receipt.expect("a receipt").open(&lender.person.key()), Ok(good));
}

#[test]
fn a_lease_that_outstays_its_deadline_is_ordered_to_be_fenced() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, CreateLease { ttl_ms: 1000, ..wish(MIB) });
    desk.pass(Duration::from_millis(3000));
    assert!(desk.due(&lender).is_empty(), "the lender's own clock has the first word");
    desk.pass(Duration::from_millis(1));
    let due = desk.due(&lender).remove(0);
    assert_eq!(fence_of(&due), (lease.lease, EndReason::Expired));
    assert_eq!(reply(desk.answered(due, refused(RefusalCode::LeaseEnded))), Reply::Done);
    assert!(desk.due(&lender).is_empty());
    assert_eq!(desk.state(lease.lease), LeaseState::Ending);
}

#[test]
fn a_restart_of_the_daemon_keeps_leases_and_abandons_what_was_being_made() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("authd.db");
    let identity = Arc::new(Identity::generate());
    let mut desk = Desk::new();
    let store = Store::create(&path, &identity.public()).expect("a store");
    desk.core = Core::new(store, Arc::clone(&identity), Limits::default(), desk.now);
    // The operator of the new store.
    desk.core.admit(&desk.operator.key(), "127.0.0.1:1", desk.now).expect("admitted");
    let invitation =
        crate::trust::first_invitation(&mut desk.core.store, identity.public().fingerprint(), desk.now.unix_ms + 1000);
    let join = overbank_fabric::message::Join { secret: invitation.expect("an invitation").secret };
    desk.operate(Call::Join(join));

    let (mut lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let half = wish(MIB);
    let carving = carve_of(&order(desk.ask(&alice.asker, Call::CreateLease(half.clone())))).lease;
    let started = desk.core.started;
    desk.core = {
        let Desk { core, now, .. } = &mut desk;
        let scratch = Store::in_memory(&identity.public());
        drop(std::mem::replace(&mut core.store, scratch));
        let store = Store::open(&path, &identity.public()).expect("the store");
        Core::new(store, Arc::clone(&identity), Limits::default(), *now)
    };
    desk.core.started = started;

    let info = desk.show(lease.lease);
    assert_eq!((info.state, info.left_ms), (LeaseState::Active, 60_000), "by the wall clock, until the lender is back");
    assert_eq!(code(desk.ask(&alice.asker, Call::ReleaseLease(lease.lease))), RefusalCode::ProviderAway);
    let deadline = desk.stored_deadline(lease.lease);
    desk.reconnect(&mut lender);
    desk.offer(&lender, 60 * MIB, &[(lease.lease, deadline), (carving, deadline)]);
    assert_eq!(desk.state(lease.lease), LeaseState::Active);
    let due = desk.due(&lender);
    assert_eq!(due.iter().map(fence_of).collect::<Vec<_>>(), [(carving, EndReason::Unknown)]);
    assert_ne!(desk.create(&alice, half).lease, carving);
}

#[test]
fn a_status_shows_a_consumer_its_own_share() {
    let mut desk = Desk::new();
    let (lender, alice, bob) = (desk.lender(64 * MIB), desk.consumer("red"), desk.consumer("blue"));
    desk.create(&alice, wish(5 * MIB));
    desk.create(&bob, wish(MIB));
    desk.heartbeat(&lender, 54 * MIB);
    let status = |desk: &mut Desk, asker: Asker| -> Status {
        match reply(desk.ask(&asker, Call::Status)) {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    };
    let hers = status(&mut desk, alice.asker);
    assert_eq!((hers.leases, hers.leased_bytes, hers.you.fingerprint), (1, 5 * MIB, alice.key().fingerprint()));
    let provider = &hers.providers[0];
    assert_eq!((provider.connected, provider.free_bytes, provider.pool_bytes), (true, 54 * MIB, 0));
    assert_eq!(provider.device, "");
    let operator = desk.operator.asker;
    let all = status(&mut desk, operator);
    assert_eq!((all.leases, all.leased_bytes), (2, 6 * MIB));
    let provider = &all.providers[0];
    assert_eq!((provider.pool_bytes, provider.device.as_str()), (64 * MIB, "soft[31m"), "fit for a terminal");
    desk.core.session_closed(lender.person.asker.session);
    assert!(!status(&mut desk, operator).providers[0].connected);
}

#[test]
fn leases_that_a_lender_claims_to_hold_are_fenced_few_at_a_time_and_after_its_own() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(64 * MIB), desk.consumer("red"));
    let lease = desk.create(&alice, wish(MIB));
    let deadline = desk.stored_deadline(lease.lease);
    let claims =
        || (0..5000).map(|_| (LeaseId::random(), deadline)).chain([(lease.lease, deadline)]).collect::<Vec<_>>();
    desk.offer(&lender, 64 * MIB, &claims());
    let claimed = desk.due(&lender);
    assert_eq!(claimed.len(), 256);
    for _ in 0..5 {
        desk.offer(&lender, 64 * MIB, &claims());
        assert!(desk.due(&lender).is_empty(), "as long as those are under way");
    }
    desk.revoke(&alice);
    let due = desk.due(&lender);
    assert_eq!(due.iter().map(fence_of).collect::<Vec<_>>(), [(lease.lease, EndReason::Revoked)]);
    for order in claimed.into_iter().chain(due) {
        reply(desk.done(order));
    }
    assert_eq!(desk.due(&lender).len(), 256);
}

#[test]
fn more_leases_than_are_ordered_at_once_are_fenced_without_a_pause() {
    let mut desk = Desk::new();
    let (lender, alice) = (desk.lender(1024 * MIB), desk.consumer("red"));
    for _ in 0..300 {
        desk.create(&alice, wish(MIB));
    }
    desk.revoke(&alice);
    let due = desk.due(&lender);
    assert_eq!(due.len(), 256);
    desk.core.take_effects();
    for order in due {
        assert!(!desk.core.take_effects().contains(&Effect::Orders(lender.person.asker.session)), "once");
        reply(desk.done(order));
    }
    assert!(
        desk.core.take_effects().contains(&Effect::Orders(lender.person.asker.session)),
        "at once, not in a second"
    );
    assert_eq!(desk.due(&lender).len(), 44);
}
