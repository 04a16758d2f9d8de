//! The audit log over real sockets: what it has, what happens where it is full, and what is found where it was changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use overbank_authd::{Bounds, Consent, Limits};
use overbank_fabric::audit::{AuditError, Checkpoint, Line, Query, Record, Verified, Verifier};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::message::{
    Allowance, Call, Invite, Join, LeaseState, RefusalCode, RenewLease, Reply, Role, TenantQuota,
};
use overbank_fabric::receipt::EndReason;
use overbank_fabric::signed::Signed;
use rusqlite::Connection;

use crate::daemon::{Client, Daemon, MIB, refused, wish};
use crate::lender::Lender;

/// All lines of the log, as an operator gets them, and what the auth daemon says its end is.
async fn all(operator: &mut Client) -> Vec<Line> {
    let mut query = Query { all: true, ..Query::default() };
    let mut lines = Vec::new();
    loop {
        let Ok(Reply::Audit(page)) = operator.call(Call::Audit(query.clone())).await else { panic!("no page") };
        lines.extend(page.lines.iter().cloned());
        if page.is_last() {
            lines.push(Line::Checkpoint(page.head));
            return lines;
        }
        query.from_seq = page.next_seq;
    }
}

fn records(lines: &[Line]) -> Vec<&Record> {
    fn record(line: &Line) -> Option<&Record> {
        let Line::Record(hashed) = line else { return None };
        Some(&hashed.record)
    }
    lines.iter().filter_map(record).collect()
}

fn verify(authd: Fingerprint, lines: &[Line], witness: &[Line]) -> Result<Verified, AuditError> {
    let mut verifier = Verifier::new(authd);
    for line in witness {
        let Line::Checkpoint(head) = line else { panic!("heads alone") };
        verifier.witness(head)?;
    }
    lines.iter().try_for_each(|line| verifier.line(line))?;
    verifier.finish(None)
}

fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of a log")).collect()
}

async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..400 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn key(daemon: &Daemon) -> Fingerprint {
    let path = daemon.directory.path().join("state/authd.key");
    overbank_fabric::keyfile::load(&path).expect("the key").public().fingerprint()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_is_on_record_with_who_and_from_where() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (alice, mut client) = daemon.consumer("red").await;
    let lease = client.create(wish(MIB)).await.lease;
    refused(client.call(Call::TrustList).await);
    client.call(Call::ReleaseLease(lease)).await.expect("released");
    daemon.until(lease, |info| info.state == LeaseState::Ended).await;
    let mut mallory = daemon.client(&Identity::generate()).await;
    refused(mallory.call(Call::Join(Join { secret: [1; 16] })).await);
    tokio::net::TcpStream::connect(daemon.address).await.expect("it listens").try_write(&[0; 600]).ok();

    let mut operator = daemon.client(&daemon.operator).await;
    let mut lines = Vec::new();
    for _ in 0..100 {
        lines = all(&mut operator).await;
        let has = |event| records(&lines).iter().any(|record| record.event == event);
        if has("handshake-failed") && records(&lines).iter().any(|record| record.outcome == "bad-invitation") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    verify(key(&daemon), &lines, &[]).expect("it holds");
    let records = records(&lines);
    let me = alice.public().fingerprint();
    for (event, outcome, who, on) in [
        ("started", "done", None, None),
        ("joined", "done", Some(daemon.operator.public().fingerprint()), None),
        ("approved", "done", Some(daemon.operator.public().fingerprint()), None),
        ("offered", "done", Some(lender.identity.public().fingerprint()), None),
        ("granted", "done", Some(me), Some(lease)),
        ("refused", "forbidden", Some(me), None),
        ("ending", "done", Some(me), Some(lease)),
        ("ended", "done", Some(lender.identity.public().fingerprint()), Some(lease)),
    ] {
        let matches = |it: &&&Record| it.event == event && it.outcome == outcome && it.who == who && it.lease == on;
        let found = records.iter().find(matches).unwrap_or_else(|| panic!("no {event} {outcome}: {records:#?}"));
        if who.is_some() {
            assert!(found.from.as_ref().is_some_and(|from| from.starts_with("127.0.0.1:")), "{found:?}");
            assert!(found.correlation.is_some(), "{found:?}");
        }
    }
    // Operators alone read it; a query is as narrow as it says.
    assert_eq!(refused(client.call(Call::Audit(Query::default())).await), RefusalCode::Forbidden);
    let narrow = Query { lease: Some(lease), event: Some("granted".to_owned()), ..Query::default() };
    let Ok(Reply::Audit(page)) = operator.call(Call::Audit(narrow)).await else { panic!() };
    assert!(matches!(&page.lines[..], [Line::Record(it)] if it.record.lease == Some(lease)), "{page:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_refusals_neither_fills_the_log_nor_hides_those_of_others() {
    let daemon = Daemon::start().await;
    let (alice, mut client) = daemon.consumer("red").await;
    for _ in 0..300 {
        refused(client.call(Call::TrustList).await);
    }
    // Strangers have a part of their own.
    let mut mallory = daemon.client(&Identity::generate()).await;
    for _ in 0..100 {
        refused(mallory.call(Call::TrustList).await);
    }
    let (bob, mut other) = daemon.consumer("blue").await;
    refused(other.call(Call::TrustList).await);
    let mut lines = Vec::new();
    for _ in 0..100 {
        lines = all(&mut daemon.client(&daemon.operator).await).await;
        if of(&lines, &bob) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((of(&lines, &alice), of(&lines, &bob)), (16, 1));
    let strangers = records(&lines).iter().filter(|record| record.outcome == "pending").count();
    assert!((64..80).contains(&strangers), "{strangers}");
    let told = records(&lines)
        .into_iter()
        .find(|record| record.who == Some(bob.public().fingerprint()) && record.event == "refused");
    assert!(told.is_some_and(|it| it.detail.contains("284 like it before, not recorded")), "{told:?}");
}

/// How often somebody was refused.
fn of(lines: &[Line], who: &Identity) -> usize {
    let who = Some(who.public().fingerprint());
    records(lines).iter().filter(|record| record.event == "refused" && record.who == who).count()
}

/// Grants stop, and what ends things goes on; then there is room again.
async fn full(daemon: &Daemon, lender: &Lender, fill: impl AsyncFnOnce()) {
    let (alice, mut client) = daemon.consumer("red").await;
    let (bob, mut other) = daemon.consumer("blue").await;
    let (hers, his) = (client.create(wish(MIB)).await.lease, other.create(wish(MIB)).await.lease);
    fill().await;

    let grants = [Call::CreateLease(wish(MIB)), Call::RenewLease(RenewLease { lease: hers, ttl_ms: 3_600_000 })];
    for grant in grants {
        assert_eq!(refused(client.call(grant.clone()).await), RefusalCode::AuditFull, "{grant:?}");
    }
    let mut operator = daemon.client(&daemon.operator).await;
    let invite = Invite { role: Role::Operator, tenant: None, ttl_ms: 60_000 };
    assert_eq!(refused(operator.call(Call::TrustInvite(invite)).await), RefusalCode::AuditFull);
    assert_eq!(lender.lock().held.len(), 2, "nothing more was carved");

    client.call(Call::ReleaseLease(hers)).await.expect("given back");
    operator.call(Call::TrustRevoke(bob.public().fingerprint())).await.expect("revoked");
    eventually("both are fenced", || lender.lock().fenced.len() == 2).await;
    assert_eq!(lender.lock().fenced, [(hers, EndReason::Released), (his, EndReason::Revoked)]);
    let (alices, bobs) = (daemon.client(&alice).await.who_am_i().await, daemon.client(&bob).await.who_am_i().await);
    assert_eq!((alices.state.to_string(), bobs.state.to_string()), ("trusted".to_owned(), "revoked".to_owned()));
}

/// One whose log is so small that what is done here fills it, its reserve for what ends things included.
async fn small() -> Daemon {
    let audit = Bounds { records: 64, ..Bounds::default() };
    Daemon::with(Limits { audit, ..Limits::default() }).await
}

/// An operator fills the log of such a one, and goes on a little.
async fn fill(daemon: &Daemon) {
    let mut operator = daemon.client(&daemon.operator).await;
    let Ok(Reply::Audit(page)) = operator.call(Call::Audit(Query::default())).await else { panic!("no page") };
    for most in page.head.seq..140 {
        let quota = TenantQuota {
            tenant: "none".parse().expect("a tenant"),
            bytes: Allowance::AsItIs,
            leases: Allowance::Most(most),
        };
        operator.call(Call::TenantQuota(quota)).await.expect("set");
    }
}

/// Has the daemon forget, once its file has all of it on its disk.
async fn forget(operator: &mut Client, head: Checkpoint) {
    for _ in 0..200 {
        match operator.call(Call::AuditForget(head.clone())).await {
            Ok(_) => return,
            busy => assert_eq!(refused(busy), RefusalCode::Busy),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never on the disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_log_lacks_is_on_record_after_a_restart_and_a_crash_too() {
    let mut daemon = small().await;
    let file = daemon.directory.path().join("export.jsonl");
    daemon.restart_with_files(Some(&file), None).await;
    let (alice, _) = daemon.consumer("red").await;
    fill(&daemon).await;
    daemon.operate(Call::TrustRevoke(alice.public().fingerprint())).await;
    daemon.restart().await;
    // The log ends with it, in the auth daemon and in the file.
    let mut operator = daemon.client(&daemon.operator).await;
    let lines = all(&mut operator).await;
    verify(key(&daemon), &lines, &[]).expect("it holds");
    assert_eq!(records(&lines).last().expect("one").event, "audit-full");
    assert!(!records(&lines).iter().any(|record| record.event == "revoked"), "it had no room");
    eventually("the file has it", || records(&read(&file)).last().is_some_and(|it| it.event == "audit-full")).await;

    let Some(Line::Checkpoint(head)) = lines.last().cloned() else { panic!() };
    forget(&mut operator, head).await;
    let lines = all(&mut operator).await;
    verify(key(&daemon), &lines, &[]).expect("it holds");
    let records = records(&lines);
    let resumed = records.iter().position(|record| record.event == "audit-resumed").expect("it has room again");
    // The operator's switches among them: what this process kept is there, what the one before kept is counted.
    let lost: u64 =
        records[resumed].detail.split_whitespace().rev().nth(1).expect("how many").parse().expect("a number");
    assert!((10..100).contains(&lost), "{:?}", records[resumed]);
    assert_eq!(records.iter().filter(|record| record.event == "started").count(), 1, "{records:?}");
    assert_eq!(records[resumed + 1].event, "archived");
    daemon.consumer("green").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_16_an_operator_has_the_log_forgotten() {
    let mut daemon = Daemon::start().await;
    daemon.consumer("red").await;
    let head = async |daemon: &Daemon| match daemon.operate(Call::Audit(Query::default())).await {
        Reply::Audit(page) => page.head,
        other => panic!("{other:?}"),
    };
    let ask = async |daemon: &Daemon| {
        let head = head(daemon).await;
        daemon.client(&daemon.operator).await.call(Call::AuditForget(head)).await
    };
    // Where no file of the daemon's own keeps it: none, a pipe.
    assert_eq!(refused(ask(&daemon).await), RefusalCode::Invalid);
    let pipe = daemon.directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    daemon.restart_with_files(Some(&pipe), None).await;
    assert_eq!(refused(ask(&daemon).await), RefusalCode::Invalid);
    let before = all(&mut daemon.client(&daemon.operator).await).await;
    assert_eq!(records(&before)[0].seq, 1, "nothing is forgotten");
    // Where one does, it takes as many operators as there must be, and what the file has must be on its disk.
    daemon.limits.consent = Consent::new(2, &[]);
    let file = daemon.directory.path().join("export.jsonl");
    daemon.restart_with_files(Some(&file), None).await;
    let second = daemon.approved(Role::Operator, None).await;
    let head = head(&daemon).await;
    let mut one = daemon.client(&daemon.operator).await;
    let Ok(Reply::Proposed(proposal)) = one.call(Call::AuditForget(head.clone())).await else { panic!("alone") };
    let approval = proposal.approval(daemon.key().await);
    eventually("it is on the disk", || records(&read(&file)).iter().any(|it| it.seq > head.seq)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for signer in [&daemon.operator, &second] {
        let signed = Call::ProposalApprove(Signed::new(&approval, signer));
        daemon.client(signer).await.call(signed).await.expect("approved");
    }
    let lines = all(&mut daemon.client(&daemon.operator).await).await;
    assert!(records(&lines)[0].seq > head.seq, "{:?}", records(&lines)[0]);
    verify(key(&daemon), &lines, &[]).expect("it holds");
    let kept = verify(key(&daemon), &read(&file), &[]).expect("the file has all of it");
    assert_eq!(kept.first, 1);
    println!(
        "attack 16 -: seen records forgotten by two operators, once they are on the disk of the daemon's own file"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_16_the_log_is_full() {
    let mut daemon = small().await;
    let file = daemon.directory.path().join("export.jsonl");
    daemon.restart_with_files(Some(&file), None).await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let session = lender.connect(daemon.address).await;
    full(&daemon, &lender, async || {
        // A provider cannot: of more offers than are on record at once, those are.
        let mut heard = 0;
        while heard < 20 {
            let offer = Call::Offer(lender.offer());
            match session.caller.call(overbank_fabric::ids::CorrelationId::random(), 5000, offer).await {
                Ok(_) => heard += 1,
                busy => {
                    assert_eq!(refused(busy), RefusalCode::Busy);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let lines = all(&mut daemon.client(&daemon.operator).await).await;
        assert_eq!(records(&lines).iter().filter(|record| record.event == "offered").count(), 16);
        fill(&daemon).await;
    })
    .await;
    let lines = all(&mut daemon.client(&daemon.operator).await).await;
    assert!(records(&lines).len() <= 64 + 64 + 1, "{}", records(&lines).len());
    assert!(!records(&lines).iter().any(|record| record.event == "revoked"), "memory keeps it");

    // With room, what memory kept is written, and that there was none.
    let mut operator = daemon.client(&daemon.operator).await;
    let Some(Line::Checkpoint(head)) = lines.last().cloned() else { panic!() };
    forget(&mut operator, head).await;
    let mut lines = Vec::new();
    for _ in 0..200 {
        lines = all(&mut operator).await;
        if records(&lines).iter().any(|record| record.event == "audit-resumed") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let events: Vec<&str> = records(&lines).iter().map(|record| record.event.as_str()).collect();
    assert_eq!(events.iter().filter(|event| **event == "revoked").count(), 1, "{events:?}");
    daemon.consumer("green").await.1.create(wish(MIB)).await;
    verify(key(&daemon), &lines, &[]).expect("it holds");
    daemon.stop().await;
    println!(
        "attack 16 -: seen a full log: nothing granted, a revocation and a release fenced, both on record with the gap"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_16_the_audit_file_cannot_be_written() {
    let mut daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let place = daemon.directory.path().join("export");
    // A name that leads to a device which is always full, later to a file.
    std::os::unix::fs::symlink("/dev/full", &place).expect("a link");
    let good = daemon.directory.path().join("good.jsonl");
    daemon.restart_with_files(Some(&good), None).await;
    let session = lender.connect(daemon.address).await;
    let (alice, mut client) = daemon.consumer("red").await;
    let lease = client.create(wish(MIB)).await.lease;
    drop((client, session));
    daemon.restart_with_files(Some(&place), None).await;
    let _session = lender.connect(daemon.address).await;
    let mut client = daemon.client(&alice).await;
    let mut outcome = None;
    for _ in 0..100 {
        // The first write that fails is one of before.
        outcome = client.call(Call::CreateLease(wish(MIB))).await.err();
        if outcome.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let Some(overbank_fabric::channel::CallError::Refused(refusal)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.code, RefusalCode::AuditFull);
    assert!(refusal.message.contains("audit file"), "{refusal}");
    daemon.operate(Call::TrustRevoke(alice.public().fingerprint())).await;
    eventually("it is fenced", || lender.lock().fenced.contains(&(lease, EndReason::Revoked))).await;

    // The file that has only the beginning gets all that it missed.
    daemon.restart_with_files(Some(&good), None).await;
    eventually("the file has it", || records(&read(&good)).iter().any(|record| record.event == "revoked")).await;
    daemon.stop().await;
    let verified = verify(key(&daemon), &read(&good), &[]).expect("nothing is missing in it");
    assert_eq!(verified.first, 1);
    println!("attack 16 -: seen a full audit file: nothing granted, a revocation fenced, and the file complete later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_16_the_log_is_edited_cut_forked() {
    let mut daemon = Daemon::start().await;
    let witness = daemon.directory.path().join("heads");
    let export = daemon.directory.path().join("export.jsonl");
    daemon.restart_with_files(Some(&export), Some(&witness)).await;
    daemon.consumer("red").await;
    daemon.consumer("blue").await;
    daemon.stop().await;
    let authd = key(&daemon);
    let database = daemon.directory.path().join("state/authd.db");
    let heads = read(&witness);
    let good = std::fs::read(&database).expect("a database");
    let count = verify(authd, &read(&export), &heads).expect("it holds").last;
    assert!(heads.len() >= 2 && count > 8, "{} {count}", heads.len());

    type Edit<'a> = (&'a str, &'a dyn Fn(&Connection));
    let tampered: [Edit<'_>; 5] = [
        ("edited", &|db| {
            db.execute_batch("DROP TRIGGER audit_is_never_changed").expect("dropped");
            let sql = "UPDATE audit SET record = CAST(replace(record, CAST('approved' AS BLOB), CAST('approvEd' AS BLOB)) AS BLOB)";
            assert!(db.execute(sql, []).expect("changed") > 0);
        }),
        ("cut at its end", &|db| {
            db.execute("DELETE FROM audit WHERE seq > ?1", [count - 3]).expect("deleted");
            db.execute("DELETE FROM checkpoints WHERE seq > ?1", [count - 3]).expect("deleted");
        }),
        ("cut in the middle", &|db| {
            db.execute("DELETE FROM audit WHERE seq = 4", []).expect("deleted");
        }),
        ("cut at its beginning", &|db| {
            db.execute("DELETE FROM audit WHERE seq < 3", []).expect("deleted");
        }),
        ("rewritten", &|db| rewrite(db, count)),
    ];
    for (how, tamper) in tampered {
        std::fs::write(&database, &good).expect("put back");
        tamper(&Connection::open(&database).expect("the database"));
        // The auth daemon that goes on with it serves the log as it is now.
        daemon.restart_with_files(None, None).await;
        let lines = all(&mut daemon.client(&daemon.operator).await).await;
        let found = verify(authd, &lines, &heads);
        assert!(found.is_err(), "{how}: {found:?}");
        daemon.stop().await;
    }

    // A copy of the state goes on beside the original: each is whole by itself, and the witness saw the other.
    std::fs::write(&database, &good).expect("put back");
    daemon.restart_with_files(None, Some(&witness)).await;
    daemon.consumer("green").await;
    daemon.stop().await;
    std::fs::write(&database, &good).expect("the copy");
    daemon.restart_with_files(None, None).await;
    daemon.consumer("red").await;
    let lines = all(&mut daemon.client(&daemon.operator).await).await;
    verify(authd, &lines, &[]).expect("whole by itself");
    let found = verify(authd, &lines, &read(&witness));
    assert!(matches!(found, Err(AuditError::Forked { .. })), "{found:?}");
    daemon.stop().await;
    println!("attack 16 -: seen a log edited, cut at each place, rewritten and forked: each found");
}

/// Hashes the whole chain anew over changed records, as who has the database and not the key can.
fn rewrite(db: &Connection, count: u64) {
    use overbank_fabric::audit::Hash;
    use overbank_fabric::signed::{from_cbor, to_cbor};
    db.execute_batch("DROP TRIGGER audit_is_never_changed").expect("dropped");
    let mut hash = Hash::genesis();
    for seq in 1..=count {
        let bytes: Vec<u8> =
            db.query_row("SELECT record FROM audit WHERE seq = ?1", [seq], |row| row.get(0)).expect("a record");
        let mut record: Record = from_cbor(&bytes).expect("a record");
        if record.event == "approved" {
            record.detail = "as nothing".to_owned();
        }
        hash = hash.next(&record);
        db.execute(
            "UPDATE audit SET record = ?2, hash = ?3 WHERE seq = ?1",
            rusqlite::params![seq, to_cbor(&record), hash.0],
        )
        .expect("changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_gone_on_with_where_they_were_left() {
    let mut daemon = Daemon::start().await;
    let (export, witness): (PathBuf, PathBuf) =
        (daemon.directory.path().join("export.jsonl"), daemon.directory.path().join("heads"));
    for round in 0..3 {
        daemon.restart_with_files(Some(&export), Some(&witness)).await;
        daemon.connect(&Identity::generate(), Party::Client).await.who_am_i().await;
        if round == 1 {
            // As a crash in the middle of a line leaves it.
            daemon.stop().await;
            let text = std::fs::read_to_string(&export).expect("it");
            std::fs::write(&export, &text[..text.len() - 7]).expect("cut");
            daemon.restart_with_files(Some(&export), Some(&witness)).await;
        }
    }
    daemon.stop().await;
    let verified = verify(key(&daemon), &read(&export), &read(&witness)).expect("whole, and once");
    assert_eq!((verified.first, verified.signed), (1, verified.last));
    assert!(verified.witnessed > 5, "{verified:?}");

    // Another log's file is not gone on with.
    let mut other = Daemon::start().await;
    other.stop().await;
    let refused = other.try_files(Some(&export), None).await.expect_err("another's");
    assert!(refused.contains("audit log"), "{refused}");
    let text = std::fs::read(&export).expect("it");
    std::fs::write(other.directory.path().join("text"), b"hello\n").expect("written");
    let text_file = other.directory.path().join("text");
    assert!(other.try_files(Some(&text_file), None).await.is_err());
    assert_eq!(std::fs::read(&export).expect("it"), text, "and is as it was");
}
