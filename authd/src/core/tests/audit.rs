use overbank_fabric::audit::{AuditError, Line, Query, Record, Verified, Verifier};

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
