//! What takes several operators: who counts, and what is on record of it.

use overbank_fabric::approval::Proposal;
use overbank_fabric::audit::{Line, Query, Record};
use overbank_fabric::message::{Invite, Join, TrustState};

use super::*;
use crate::proposals::{Consent, Critical};

fn desk(approvals: u32, critical: &[Critical]) -> Desk {
    Desk::with(Limits { consent: Consent::new(approvals, critical), ..Limits::default() })
}

fn invite(role: Role, of: Option<&str>) -> Call {
    Call::TrustInvite(Invite { role, tenant: of.map(tenant), ttl_ms: 60_000 })
}

fn proposed(reply: Reply) -> Proposal {
    match reply {
        Reply::Proposed(proposal) => *proposal,
        other => panic!("not proposed: {other:?}"),
    }
}

fn join(reply: Reply) -> Call {
    match reply {
        Reply::Invitation(invitation) => Call::Join(Join { secret: invitation.secret }),
        other => panic!("{other:?}"),
    }
}

fn approve(desk: &mut Desk, by: &Person, proposal: &Proposal) -> Result<Next, Fault> {
    let approval = Signed::new(&proposal.approval(desk.core.identity.public()), &by.identity);
    desk.ask(&by.asker, Call::ProposalApprove(approval))
}

fn of_proposals(desk: &mut Desk) -> Vec<Record> {
    let query = Query { all: true, ..Query::default() };
    let Reply::Audit(page) = desk.operate(Call::Audit(query)) else { panic!("no page") };
    let record = |line: &Line| match line {
        Line::Record(hashed) if ["proposed", "consented"].contains(&&*hashed.record.event) => {
            Some(hashed.record.clone())
        }
        _ => None,
    };
    page.lines.iter().filter_map(record).collect()
}

#[test]
fn what_one_operator_invited_alone_makes_nobody_where_it_takes_two() {
    let mut desk = desk(2, &[]);
    // As long as there is one, it takes one.
    let early: Vec<Call> = (0..3).map(|_| join(desk.operate(invite(Role::Operator, None)))).collect();
    let second = desk.stranger(Party::Client);
    reply(desk.ask(&second.asker, early[0].clone()));
    for code_of_one in &early[1..] {
        let puppet = desk.stranger(Party::Client);
        assert_eq!(code(desk.ask(&puppet.asker, code_of_one.clone())), RefusalCode::BadInvitation);
        let Reply::You(me) = reply(desk.ask(&puppet.asker, Call::WhoAmI)) else { panic!() };
        assert_eq!(me.state, TrustState::Pending);
    }
    // Who has joined may still repeat it, and what both agree on is good.
    reply(desk.ask(&second.asker, early[0].clone()));
    let proposal = proposed(desk.operate(invite(Role::Operator, None)));
    let first = std::mem::replace(&mut desk.operator, Person::new(Party::Client, SessionId(0)));
    reply(approve(&mut desk, &first, &proposal));
    let by_two = join(reply(approve(&mut desk, &second, &proposal)));
    let third = desk.stranger(Party::Client);
    reply(desk.ask(&third.asker, by_two));
    // Others are invited by one: that was not marked.
    let alice = desk.stranger(Party::Client);
    let code_of_one = join(reply(desk.ask(&first.asker, invite(Role::Consumer, Some("red")))));
    reply(desk.ask(&alice.asker, code_of_one));
}

#[test]
fn an_invitation_of_before_is_worth_nothing_where_trust_takes_more() {
    let mut desk = desk(1, &[]);
    let early = join(desk.operate(invite(Role::Consumer, Some("red"))));
    // As after a restart with other flags.
    desk.core.limits.consent = Consent::new(2, &[Critical::Trust]);
    let alice = desk.stranger(Party::Client);
    assert_eq!(code(desk.ask(&alice.asker, early)), RefusalCode::BadInvitation);
}

#[test]
fn the_record_names_effect_and_target_and_says_done_of_nothing_that_was_not() {
    let mut desk = desk(2, &[Critical::Revoke, Critical::StopLease]);
    let (second, alice) = (desk.approved(Role::Operator, None), desk.consumer("red"));
    let revoke = Call::TrustRevoke(alice.key().fingerprint());
    let proposal = proposed(desk.operate(revoke));
    let first = std::mem::replace(&mut desk.operator, Person::new(Party::Client, SessionId(0)));
    reply(approve(&mut desk, &first, &proposal));
    reply(approve(&mut desk, &second, &proposal));
    // One that cannot be done.
    let lease = LeaseId([7; 16]);
    let nothing = proposed(reply(desk.ask(&first.asker, Call::LeaseStop(lease))));
    reply(approve(&mut desk, &first, &nothing));
    assert_eq!(code(approve(&mut desk, &second, &nothing)), RefusalCode::NoSuchLease);

    desk.operator = first;
    let records = of_proposals(&mut desk);
    let says: Vec<_> = records.iter().map(|it| (it.event.as_str(), it.detail.split_once(": ").expect("two"))).collect();
    let (one, two) = (proposal.id.to_string(), nothing.id.to_string());
    let enough = |id: &str| format!("{id}, enough");
    assert_eq!(says[0], ("proposed", (one.as_str(), "trust-revoke")));
    assert_eq!(says[1], ("consented", (one.as_str(), "trust-revoke")));
    assert_eq!(says[2], ("consented", (enough(&one).as_str(), "trust-revoke")));
    assert_eq!(says[5], ("consented", (enough(&two).as_str(), "lease-stop")));
    assert_eq!(says.len(), 7);
    assert!(says[6].1.0.starts_with(&format!("{two}, and not done")), "{:?}", says[6]);
    assert!(records[..3].iter().all(|it| it.target == Some(alice.key().fingerprint())));
    assert!(records[3..].iter().all(|it| it.lease == Some(lease)));
}
