use overbank_fabric::audit::{AuditError, Line, Query, Record, Verified, Verifier};
use overbank_fabric::message::RenewLease;

use super::*;

fn all(desk: &mut Desk) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut query = Query { all: true, ..Query::default() };
    loop {
        let Reply::Audit(page) = desk.operate(Call::Audit(query.clone())) else { panic!("no page") };
        lines.extend(page.lines.iter().cloned());
        if page.is_last() {
            lines.push(Line::Checkpoint(page.head));
            return lines;
        }
        query.from_seq = page.next_seq;
    }
}

fn records(desk: &mut Desk) -> Vec<Record> {
    let record = |line| match line {
        Line::Record(hashed) => Some(hashed.record),
        Line::Checkpoint(_) => None,
    };
    all(desk).into_iter().filter_map(record).collect()
}

fn events(desk: &mut Desk) -> Vec<String> {
    records(desk).into_iter().map(|record| record.event).collect()
}

fn verify(desk: &mut Desk) -> Result<Verified, AuditError> {
    let mut verifier = Verifier::new(desk.core.identity.public().fingerprint());
    let mut lines = all(desk);
    let Some(Line::Checkpoint(head)) = lines.pop() else { panic!("no head") };
    lines.iter().try_for_each(|line| verifier.line(line))?;
    verifier.finish(Some(&head))
}

#[test]
fn what_is_decided_is_on_record_and_what_is_not_is_not() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let alice = desk.consumer("red");
    let correlation = overbank_fabric::ids::CorrelationId::random();
    let asker =
        Asker { correlation: Some(correlation), from: Some("10.0.0.7:99".parse().expect("an address")), ..alice.asker };
    let first = order(desk.ask(&asker, Call::CreateLease(wish(MIB))));
    assert!(!events(&mut desk).contains(&"granted".to_owned()), "nobody was told of it yet");
    // Whoever brings an order's outcome says in whose name it was.
    desk.core.on_behalf(crate::audit::Cause::of(&asker, desk.now));
    let granted = granted(desk.done(first));
    desk.revoke(&alice);
    let records = records(&mut desk);
    let one = |event: &str| {
        let mut found = records.iter().filter(|record| record.event == event && record.lease == Some(granted.lease));
        let record = found.next().unwrap_or_else(|| panic!("no {event}")).clone();
        assert_eq!(found.next(), None, "{event}");
        record
    };
    let it = one("granted");
    assert_eq!((it.outcome.as_str(), it.tenant.as_ref().map(Tenant::as_str)), ("done", Some("red")));
    assert_eq!(it.target, Some(lender.person.key().fingerprint()));
    assert_eq!(it.who, Some(alice.key().fingerprint()));
    assert_eq!(
        (it.role, it.correlation, it.from.as_deref()),
        (Some(Role::Consumer), Some(correlation), Some("10.0.0.7:99"))
    );
    let ending = one("ending");
    assert_eq!((ending.who, ending.role), (Some(desk.operator.key().fingerprint()), Some(Role::Operator)));
    for event in ["joined", "seen", "approved", "offered", "revoked"] {
        assert!(records.iter().any(|record| record.event == event), "{event}");
    }
    assert!(records.is_sorted_by(|a, b| a.seq + 1 == b.seq));
    assert!(records.iter().all(|record| record.unix_ms > 0), "{records:?}");
    assert!(verify(&mut desk).is_ok());

    // A decision that fails leaves no record.
    let before = desk.core.store.trail.head;
    let failed: Result<(), StoreError> = desk.core.store.write(|tx| {
        tx.audit(crate::audit::Entry::new(crate::audit::Event::Invited))?;
        Err(StoreError::AuditStopped("for the test"))
    });
    assert!(failed.is_err());
    assert_eq!(desk.core.store.trail.head, before);
    desk.consumer("blue");
    assert!(verify(&mut desk).is_ok());
}

#[test]
fn a_providers_words_are_recorded_at_a_bounded_rate_and_once_each() {
    let mut desk = Desk::new();
    let mut lender = desk.lender(64 * MIB);
    let alice = desk.consumer("red");
    let lease = desk.create(&alice, wish(MIB)).lease;
    desk.operate(Call::TenantStop(tenant("red")));
    let before = desk.core.store.trail.head.seq;
    // It is ending, and the lender never holds it.
    for _ in 0..500 {
        desk.reconnect(&mut lender);
        desk.offer(&lender, 64 * MIB, &[]);
    }
    let grown = desk.core.store.trail.head.seq - before;
    assert!(grown <= 16, "{grown}");
    let lost = |desk: &mut Desk| records(desk).into_iter().filter(|it| it.event == "lost").count();
    assert_eq!(lost(&mut desk), 0, "{lease} is ending, not lost");
    // Another one's are not hidden by that, and say how many were.
    let other = desk.lender(64 * MIB);
    let last = |desk: &mut Desk| records(desk).into_iter().rfind(|it| it.event == "offered").expect("one");
    let it = last(&mut desk);
    assert_eq!(it.who, Some(other.person.key().fingerprint()));
    assert!(it.detail.ends_with("(and 485 like it before, not recorded)"), "{it:?}");
    desk.pass(Duration::from_secs(61));
    desk.offer(&lender, 64 * MIB, &[]);
    assert_eq!(last(&mut desk).who, Some(lender.person.key().fingerprint()));
    // In another life it has nothing of what it had: that is on record once.
    lender.boot = BootId::random();
    desk.offer(&lender, 64 * MIB, &[]);
    desk.offer(&lender, 64 * MIB, &[]);
    assert_eq!(lost(&mut desk), 1);
}

fn attach(asker: &Person, granted: &Granted) -> Call {
    let request = overbank_fabric::attach::AttachRequest {
        token: granted.token.hash(),
        lanes: vec![overbank_fabric::attach::EndpointBytes([1; 32])],
        provider: granted.provider,
        boot: granted.boot,
        nonce: Nonce::random(),
    };
    Call::Attach(overbank_fabric::message::Attach {
        lease: granted.lease,
        token: granted.token.clone(),
        request: Signed::new(&request, &asker.identity),
    })
}

#[test]
fn an_attach_is_on_record_once_its_provider_has_done_it() {
    let mut desk = Desk::new();
    let lender = desk.lender(64 * MIB);
    let alice = desk.consumer("red");
    let lease = desk.create(&alice, wish(MIB));
    let attached = |desk: &mut Desk| events(desk).iter().filter(|event| *event == "attached").count();
    for outcome in [refused(RefusalCode::BadSignature), Err(OrderError::Late), Err(OrderError::Gone)] {
        let order = order(desk.ask(&alice.asker, attach(&alice, &lease)));
        assert!(desk.answered(order, outcome).is_err());
    }
    assert_eq!(attached(&mut desk), 0);
    let order = order(desk.ask(&alice.asker, attach(&alice, &lease)));
    let answer = overbank_fabric::attach::AttachAnswer {
        request: [0; 32],
        lease: lease.lease,
        lanes: vec![overbank_fabric::attach::EndpointBytes([2; 32])],
        address: 0,
        rkey: 1,
        first_block: 0,
        blocks: 1,
        stride: 4096,
        rights: overbank_fabric::token::Rights::READ,
        left_ms: 1,
    };
    let answer = Reply::Attached(Signed::new(&answer, &lender.person.identity));
    desk.core.on_behalf(crate::audit::Cause::of(&alice.asker, desk.now));
    reply(desk.answered(order, Ok(answer)));
    assert_eq!(attached(&mut desk), 1);
    let record = records(&mut desk).into_iter().rfind(|it| it.event == "attached").expect("it");
    assert_eq!((record.lease, record.who), (Some(lease.lease), Some(alice.key().fingerprint())));
}

#[test]
fn a_tenant_fills_so_much_of_the_log_in_a_while_and_the_others_go_on() {
    let audit = crate::audit::Bounds { records: 10_000, ..crate::audit::Bounds::default() };
    let mut desk = Desk::with(Limits { audit, ..Limits::default() });
    let lender = desk.lender(64 * MIB);
    let (alice, ann, bob) = (desk.consumer("red"), desk.consumer("red"), desk.consumer("blue"));
    let leases = [&alice, &ann, &bob].map(|who| desk.create(who, wish(MIB)));
    let before = desk.core.store.trail.head.seq;
    // Each millisecond a little longer, as fast as may be.
    let mut renewed = |who: &Person, lease: &Granted| {
        let mut count = 0;
        for ms in 0..500 {
            let renew = RenewLease { lease: lease.lease, ttl_ms: 70_000 + ms };
            match desk.ask(&who.asker, Call::RenewLease(renew)) {
                Ok(next) => {
                    granted(desk.done(order(Ok(next))));
                    count += 1;
                }
                busy => assert_eq!(code(busy), RefusalCode::Busy),
            }
        }
        count
    };
    // What it took to make the lease counts.
    assert_eq!([renewed(&alice, &leases[0]), renewed(&ann, &leases[1]), renewed(&bob, &leases[2])], [99, 99, 99]);
    assert_eq!(desk.core.store.trail.head.seq - before, 297);
    for call in [Call::CreateLease(wish(MIB)), attach(&alice, &leases[0])] {
        assert_eq!(code(desk.ask(&alice.asker, call)), RefusalCode::Busy);
    }
    desk.pass(Duration::from_secs(40));
    desk.heartbeat(&lender, 32 * MIB);
    order(desk.ask(&alice.asker, attach(&alice, &leases[0])));
    // What ends things is nobody's to refuse.
    order(desk.ask(&ann.asker, Call::ReleaseLease(leases[1].lease)));
}

#[test]
fn records_are_forgotten_once_a_file_has_them_on_its_disk() {
    let mut desk = Desk::new();
    desk.consumer("red");
    let directory = tempfile::tempdir().expect("a directory");
    let files = crate::state::AuditFiles { export: Some(directory.path().join("export")), witness: None };
    let head = |desk: &mut Desk| match desk.operate(Call::Audit(Query::default())) {
        Reply::Audit(page) => page.head,
        other => panic!("{other:?}"),
    };
    let forget = |desk: &mut Desk, head: &overbank_fabric::audit::Checkpoint| {
        let asker = desk.operator.asker;
        desk.ask(&asker, Call::AuditForget(head.clone()))
    };
    let wanted = head(&mut desk);
    assert_eq!(code(forget(&mut desk, &wanted)), RefusalCode::Invalid, "there is no file");
    desk.core.let_out_to(&files).expect("a file");
    assert_eq!(code(forget(&mut desk, &wanted)), RefusalCode::Busy, "it has nothing yet");
    assert_eq!(records(&mut desk)[0].seq, 1);
    desk.core.settle(desk.now);
    let begun = Instant::now();
    while let Err(busy) = forget(&mut desk, &wanted) {
        assert_eq!(code::<()>(Err(busy)), RefusalCode::Busy);
        assert!(begun.elapsed() < Duration::from_secs(20), "it has them");
        std::thread::sleep(Duration::from_millis(20));
    }
    let records = records(&mut desk);
    assert_eq!((records[0].seq, records[0].event.as_str()), (wanted.seq + 1, "archived"));
    assert!(verify(&mut desk).is_ok());
}

#[test]
fn a_full_log_that_is_forgotten_whole_goes_on_where_it_was_at_once() {
    let audit = crate::audit::Bounds { records: 64, ..crate::audit::Bounds::default() };
    let mut desk = Desk::with(Limits { audit, ..Limits::default() });
    let directory = tempfile::tempdir().expect("a directory");
    let files = crate::state::AuditFiles { export: Some(directory.path().join("export")), witness: None };
    desk.core.let_out_to(&files).expect("a file");
    let full = |desk: &Desk| desk.core.store.trail.gap.is_some();
    let mut most = 0;
    while !full(&desk) {
        most += 1;
        desk.operate(Call::TenantQuota(overbank_fabric::message::TenantQuota {
            tenant: tenant("red"),
            bytes: overbank_fabric::message::Allowance::AsItIs,
            leases: overbank_fabric::message::Allowance::Most(most),
        }));
    }
    desk.core.settle(desk.now);
    let Reply::Audit(page) = desk.operate(Call::Audit(Query::default())) else { panic!("no page") };
    let asker = desk.operator.asker;
    let begun = Instant::now();
    while let Err(busy) = desk.ask(&asker, Call::AuditForget(page.head.clone())) {
        assert_eq!(code::<()>(Err(busy)), RefusalCode::Busy);
        assert!(begun.elapsed() < Duration::from_secs(20), "it has them");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What the disk has if the process dies here, before it keeps anything in order: no empty log that begins anew.
    assert!(!full(&desk));
    let kept = records(&mut desk);
    assert_eq!(kept[0].seq, page.head.seq + 1);
    let events: Vec<&str> = kept.iter().map(|record| record.event.as_str()).collect();
    assert_eq!(events, ["quota-set", "audit-resumed", "archived"]);
    assert!(verify(&mut desk).is_ok());
}

#[test]
fn a_page_begins_within_the_log_wherever_it_is_asked_for() {
    let mut desk = Desk::new();
    let last = desk.core.store.trail.head.seq;
    for from_seq in [last + 1, u64::MAX] {
        let query = Query { from_seq, ..Query::default() };
        let Reply::Audit(page) = desk.operate(Call::Audit(query)) else { panic!("no page") };
        assert_eq!((page.lines.len(), page.next_seq, page.head.seq), (0, last + 1, last));
        assert!(page.is_last());
    }
}
