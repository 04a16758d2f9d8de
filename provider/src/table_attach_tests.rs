//! Attaches wait for their addresses without their leases.

use super::*;

#[test]
fn a_lease_whose_holder_s_addresses_are_being_reached_ends_in_time() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let until = rig.in_ms(1000);
    let attach = rig.bind(admission(1, 1, 0..10, until, 1));
    assert!(matches!(&rig.jobs[..], [Job { task: Task::Reach(_), .. }]));
    rig.advance(1000);
    rig.run_lane(Lane::Fencer);
    rig.run_lane(Lane::Wiper);
    let receipt = rig.receipt(1).expect("over");
    assert!(receipt.is_complete() && receipt.steps[0].at_us == receipt.due_us);
    rig.table.acknowledge(lease(1));
    rig.settle();
    assert_eq!(rig.answer(attach), Err(RefusalCode::LeaseEnded));
    assert!(rig.backend.world().reached.is_empty(), "given up before the first address");
}

#[test]
fn an_attach_that_was_under_way_at_the_end_is_not_made_at_the_next_lease_of_that_id() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let tick = rig.in_ms(5000);
    let attach = rig.bind(admission(1, 1, 0..10, tick, 1));
    let Job { lease: id, task: Task::Reach(waiting) } = rig.jobs.remove(0) else { panic!("something else") };
    let reached = waiting.reach(&rig.backend, &rig.clock);
    rig.advance(1000);
    rig.settle();
    rig.table.acknowledge(id);
    rig.order(|table, now, ticket| table.carve(now, ticket, carve(1, 10, tick)));
    rig.settle();
    let now = rig.now();
    rig.table.done(now, Done { lease: id, outcome: Outcome::Reached(waiting, reached) });
    rig.collect();
    assert_eq!(rig.answer(attach), Err(RefusalCode::LeaseEnded));
}

#[test]
fn an_attach_that_waits_for_its_turn_keeps_no_lease_from_its_end() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let (soon, late) = (rig.in_ms(1000), rig.in_ms(5000));
    rig.order(|table, now, ticket| table.carve(now, ticket, Carve { tenant: tenant("u"), ..carve(2, 1, soon) }));
    rig.settle();
    let slow = rig.bind(admission(1, 1, 0..10, late, 1));
    let waiting = rig.bind(admission(2, 2, 0..1, soon, 2));
    for _ in 0..2 {
        rig.run_lane(Lane::Reachers);
    }
    assert!(matches!(&rig.jobs[..], [Job { lease, task: Task::Bind(..) }] if *lease == self::lease(1)));
    rig.advance(1000);
    assert_eq!(rig.answer(waiting), Err(RefusalCode::LeaseEnded), "at once");
    rig.run_lane(Lane::Fencer);
    rig.run_lane(Lane::Wiper);
    let receipt = rig.receipt(2).expect("over");
    assert!(receipt.is_complete() && receipt.steps[0].at_us == receipt.due_us);
    rig.settle();
    assert!(rig.answer(slow).is_ok());
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_refused_and_the_lease_does_not_notice() {
    let (mut rig, _) = Rig::carved(1, 10, 1000);
    let until = rig.in_ms(1000);
    rig.bind(admission(1, 1, 0..10, until, 1));
    rig.settle();
    rig.backend.world().fail = Some(Call::Reach);
    let dead = rig.bind(admission(1, 1, 0..10, until, 2));
    rig.settle();
    let refusal = rig.answers[&dead].as_ref().expect_err("refused");
    assert!(refusal.code == RefusalCode::Invalid && refusal.message.contains("Reach was told to fail"), "{refusal}");
    let served: Vec<_> = rig.backend.world().connected.iter().map(|remote| remote.qpn).collect();
    assert_eq!((served, rig.backend.world().queues.len()), (vec![1], 1), "the holder's earlier attachment stays");
    let good = rig.bind(admission(1, 1, 0..10, until, 3));
    rig.settle();
    assert!(rig.answer(good).is_ok());
    rig.advance(1000);
    rig.settle();
    assert!(rig.receipt(1).expect("over").is_complete());
}

#[test]
fn each_address_is_reached_once_and_the_rest_not_after_the_asker_has_gone() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let until = rig.in_ms(5000);
    let at = |qpn, last, port| overbank_verbs::Endpoint { gid: [last; 16], port, ..endpoint(qpn) };
    let remotes = vec![at(1, 1, 4791), at(2, 1, 4791), at(3, 2, 4791), at(4, 2, 4792), at(5, 1, 4791)];
    let ticket = rig.bind(Box::new(Admission { remotes, ..*admission(1, 1, 0..10, until, 1) }));
    let Some(Job { task: Task::Reach(mut waiting), .. }) = rig.jobs.pop() else { panic!("something else") };
    let reached = || -> Vec<_> { rig.backend.world().reached.drain(..).map(|remote| remote.qpn).collect() };
    assert_eq!(waiting.reach(&rig.backend, &rig.clock), Ok(()));
    assert_eq!(reached(), [1, 3, 4]);
    // Each look at this clock moves it by 1 µs.
    waiting.until = BootTime(2);
    let refusal = waiting.reach(&rig.backend, &TestClock::stepping()).expect_err("too late");
    assert_eq!((refusal.code, reached()), (RefusalCode::Deadline, vec![1, 3]));
    assert_eq!(waiting.ticket, ticket);
}

#[test]
fn attaches_that_wait_are_bounded_and_no_tenant_has_all_the_threads() {
    let (mut rig, _) = Rig::carved(1, 1, 5000);
    let tick = rig.in_ms(5000);
    let tenants = u8::try_from(MAX_WAITING / MAX_WAITING_EACH + 1).expect("few");
    for number in 2..=tenants {
        let tenant = tenant(&format!("t{number}"));
        rig.order(|table, now, ticket| table.carve(now, ticket, Carve { tenant, ..carve(number, 1, tick) }));
    }
    rig.settle();
    let given = |rig: &Rig, number| rig.jobs.iter().filter(|job| job.lease == lease(number)).count();
    let (mut nonce, mut tickets) = (0, Vec::new());
    for number in 1..tenants {
        for _ in 0..MAX_WAITING_EACH {
            nonce += 1;
            tickets.push(rig.bind(admission(number, 1, 0..1, tick, nonce)));
        }
        let over = rig.bind(admission(number, 1, 0..1, tick, nonce + 1));
        assert_eq!(rig.answer(over), Err(RefusalCode::Busy), "tenant {number} has its share");
        assert_eq!(given(&rig, number), REACHERS_EACH, "tenant {number}");
    }
    let over = rig.bind(admission(tenants, 1, 0..1, tick, nonce + 1));
    assert_eq!(rig.answer(over), Err(RefusalCode::Busy), "all together");
    rig.settle();
    // What was refused was not used up.
    tickets.push(rig.bind(admission(tenants, 1, 0..1, tick, nonce + 1)));
    rig.settle();
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).is_ok()));
}

#[test]
fn an_attach_whose_addresses_were_reached_too_late_is_not_made() {
    let (mut rig, _) = Rig::carved(1, 10, 9000);
    let tick = rig.in_ms(9000);
    let attach = rig.bind(admission(1, 1, 0..10, tick, 1));
    let Job { lease: id, task: Task::Reach(waiting) } = rig.jobs.remove(0) else { panic!("something else") };
    let reached = waiting.reach(&rig.backend, &rig.clock);
    rig.advance(5000);
    let now = rig.now();
    rig.table.done(now, Done { lease: id, outcome: Outcome::Reached(waiting, reached) });
    rig.collect();
    assert_eq!(rig.answer(attach), Err(RefusalCode::Deadline));
    assert!(rig.jobs.is_empty(), "bound for an asker who has gone");
}

#[test]
fn an_attachment_that_is_over_goes_before_one_that_is_being_made() {
    let (mut rig, _) = Rig::carved(1, 10, 9000);
    let tick = rig.in_ms(9000);
    rig.bind(admission(1, 1, 0..10, tick, 1));
    let Job { task: Task::Reach(waiting), .. } = rig.jobs.remove(0) else { panic!("something else") };
    let now = rig.now();
    assert_eq!(waiting.go_on(now, None), Ok(()));
    assert_eq!(waiting.go_on(now, Some(now.tick().after_ms(1))), Ok(()));
    assert_eq!(waiting.go_on(now, Some(now.tick())).map_err(|refusal| refusal.code), Err(RefusalCode::Deadline));
}

fn holder(number: u8) -> overbank_fabric::identity::PublicKey {
    Identity::from_seed(&[number; 32]).public()
}

fn through(mut admission: Box<Admission>, hands: &[u8]) -> Box<Admission> {
    admission.root = false;
    admission.hands = hands.iter().map(|&number| holder(number)).collect();
    admission
}

#[test]
fn a_barred_hand_is_detached_with_whom_it_passed_the_lease_on_to_and_stays_out() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let until = rig.in_ms(5000);
    let (alice, bob, carol, dave) = (1, 2, 3, 4);
    rig.bind(admission(1, alice, 0..10, until, 1));
    rig.bind(through(admission(1, bob, 0..10, until, 2), &[alice, bob]));
    rig.bind(through(admission(1, carol, 2..4, until, 3), &[alice, bob, carol]));
    rig.bind(through(admission(1, dave, 2..4, until, 4), &[alice, dave]));
    rig.settle();
    assert_eq!(rig.backend.world().regions.len(), 4, "each token's own, and the lease's");
    // One more of carol's is on its way, and one of bob's is being reached.
    let late = rig.bind(through(admission(1, carol, 4..5, until, 5), &[alice, bob, carol]));
    let detach = Detach { lease: lease(1), holder: holder(bob) };
    let detached = rig.order(|table, now, ticket| table.detach(now, ticket, &detach));
    rig.settle();
    assert_eq!(rig.answer(detached), Ok(&Reply::Done));
    assert_eq!(rig.answer(late), Err(RefusalCode::BadToken));
    let mut served: Vec<_> = rig.backend.world().queues.values().filter_map(|queue| queue.remote).collect();
    served.sort_by_key(|(remote, _)| remote.qpn);
    assert_eq!(served.iter().map(|(remote, _)| remote.qpn).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(rig.backend.world().regions.len(), 2);
    for hands in [&[alice, bob][..], &[alice, bob, carol]] {
        let last = hands[hands.len() - 1];
        let again = rig.bind(through(admission(1, last, 0..10, until, 100 + u128::from(last)), hands));
        rig.settle();
        assert_eq!(rig.answer(again), Err(RefusalCode::BadToken));
    }
    // What dave has came from alice alone, and so may carol's next.
    let anew = rig.bind(through(admission(1, carol, 2..4, until, 200), &[alice, carol]));
    rig.settle();
    assert!(rig.answer(anew).is_ok());
    rig.advance(5000);
    rig.settle();
    assert!(rig.receipt(1).expect("over").is_complete());
}

#[test]
fn a_detach_waits_for_the_attach_that_is_being_made() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let until = rig.in_ms(5000);
    let attach = rig.bind(through(admission(1, 2, 0..10, until, 2), &[1, 2]));
    rig.run_lane(Lane::Reachers);
    assert!(matches!(&rig.jobs[..], [Job { task: Task::Bind(..), .. }]));
    let detach = Detach { lease: lease(1), holder: holder(2) };
    let detached = rig.order(|table, now, ticket| table.detach(now, ticket, &detach));
    assert!(!rig.answers.contains_key(&detached), "not before it is so");
    rig.settle();
    assert_eq!((rig.answer(attach), rig.answer(detached)), (Err(RefusalCode::BadToken), Ok(&Reply::Done)));
    assert!(rig.backend.world().queues.is_empty());
    // And at a lease that ends, it is answered by the end.
    let fence = Fence { lease: lease(1), reason: EndReason::Released };
    rig.order(|table, now, ticket| table.fence(now, ticket, &fence));
    let over = rig.order(|table, now, ticket| table.detach(now, ticket, &detach));
    rig.settle();
    assert_eq!(rig.answer(over), Err(RefusalCode::LeaseEnded));
}

#[test]
fn what_cannot_be_detached_is_said() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let until = rig.in_ms(5000);
    rig.bind(through(admission(1, 2, 0..10, until, 2), &[1, 2]));
    rig.settle();
    rig.backend.world().fail = Some(Call::Deregister);
    let detach = Detach { lease: lease(1), holder: holder(2) };
    let detached = rig.order(|table, now, ticket| table.detach(now, ticket, &detach));
    rig.settle();
    assert_eq!(rig.answer(detached), Err(RefusalCode::Internal));
}

#[test]
fn a_fence_waits_for_nobody_s_detach() {
    let (mut rig, _) = Rig::carved(1, 10, 5000);
    let until = rig.in_ms(5000);
    let other = Carve { tenant: tenant("u"), ..carve(2, 1, until) };
    rig.order(|table, now, ticket| table.carve(now, ticket, other));
    rig.bind(through(admission(1, 2, 0..10, until, 2), &[1, 2]));
    rig.settle();
    let detach = Detach { lease: lease(1), holder: holder(2) };
    let detached = rig.order(|table, now, ticket| table.detach(now, ticket, &detach));
    let fence = Fence { lease: lease(2), reason: EndReason::Revoked };
    let fenced = rig.order(|table, now, ticket| table.fence(now, ticket, &fence));
    rig.run_lane(Lane::Fencer);
    assert_eq!(rig.answer(fenced), Ok(&Reply::Done));
    assert!(!rig.answers.contains_key(&detached));
    rig.settle();
    assert_eq!(rig.answer(detached), Ok(&Reply::Done));
}

#[test]
fn a_tenant_registers_no_more_for_narrowed_attaches_than_others_leave_it() {
    let (mut rig, _) = Rig::carved(1, 40, 5000);
    let (soon, until) = (rig.in_ms(2000), rig.in_ms(5000));
    for (number, tenant) in [(2, "t"), (3, "u")] {
        let carve = Carve { tenant: self::tenant(tenant), ..carve(number, 20, until) };
        rig.order(|table, now, ticket| table.carve(now, ticket, carve));
    }
    rig.settle();
    let mut nonce = 0;
    let mut share = |rig: &mut Rig, number, holder, blocks, until| {
        nonce += 1;
        let ticket = rig.bind(through(admission(number, holder, 0..blocks, until, nonce), &[1, holder]));
        while rig.jobs.iter().any(|job| matches!(job.lane(), Lane::Reachers | Lane::Binder)) {
            let at = rig.jobs.iter().position(|job| matches!(job.lane(), Lane::Reachers | Lane::Binder));
            rig.run(at.expect("there is one"));
        }
        rig.answer(ticket).map(drop)
    };
    // All of the pool's share, which is twice the pool: 9 times 40 blocks, and not two more.
    assert_eq!(PAGES * PAGE * MAX_NARROWED_POOLS / 2 / STRIDE, 361);
    for holder in 2..11 {
        assert_eq!(share(&mut rig, 1, holder, 40, soon), Ok(()));
    }
    assert_eq!(share(&mut rig, 2, 2, 2, until), Err(RefusalCode::Busy), "a lease of the same tenant");
    assert_eq!(share(&mut rig, 2, 2, 1, until), Ok(()));
    // While they are being ended, they count.
    rig.advance(2000);
    assert!(matches!(&rig.jobs[..], [Job { task: Task::Detach(..), .. }]));
    assert_eq!(share(&mut rig, 2, 3, 2, until), Err(RefusalCode::Busy));
    // Another tenant has a share of its own: what is left, but for half.
    for holder in 2..11 {
        assert_eq!(share(&mut rig, 3, holder, 20, until), Ok(()));
    }
    assert_eq!(share(&mut rig, 3, 11, 20, until), Err(RefusalCode::Busy));
    rig.settle();
    assert_eq!(share(&mut rig, 2, 3, 2, until), Ok(()));
}

#[test]
fn a_tenant_s_nonces_are_as_many_as_others_leave_it() {
    let (mut rig, _) = Rig::carved(1, 1, 5000);
    let (soon, until) = (rig.in_ms(1000), rig.in_ms(5000));
    for (number, tenant) in [(2, "t"), (3, "u")] {
        let carve = Carve { tenant: self::tenant(tenant), ..carve(number, 1, until) };
        rig.order(|table, now, ticket| table.carve(now, ticket, carve));
    }
    rig.settle();
    // As if many leases had been attached very often.
    rig.table.remember(lease(1), MAX_NONCES_ALL / 2 - 1, soon);
    let last = rig.bind(admission(2, 1, 0..1, until, 1 << 64));
    let over = rig.bind(admission(2, 1, 0..1, until, 2 << 64));
    let other = rig.bind(admission(3, 1, 0..1, until, 3 << 64));
    rig.settle();
    assert!(rig.answer(last).is_ok() && rig.answer(other).is_ok());
    assert_eq!(rig.answer(over), Err(RefusalCode::Busy));
    rig.advance(1000);
    let later = rig.bind(admission(2, 1, 0..1, until, 4 << 64));
    rig.settle();
    assert!(rig.answer(later).is_ok(), "those whose tokens have expired are forgotten");
}
