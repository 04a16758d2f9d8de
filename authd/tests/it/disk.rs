//! A state directory on a disk that is full.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use overbank_fabric::channel::{CallError, Channel};
use overbank_fabric::handshake::Party;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Allowance, Call, Invitation, RefusalCode, RenewLease, Reply, Role, TenantQuota};
use overbank_fabric::receipt::EndReason;
use tokio::net::TcpStream;

use crate::daemon::{MIB, wish};
use crate::lender::Lender;
use crate::process::{self, Process};

/// Makes a small disk that the process alone sees: with room for what is kept back twice, and some more.
const DISK: &str = r#"mount -t tmpfs -o size=48m,mode=700 none "$1""#;
/// Makes a state there, and serves it.
const SERVE: &str =
    r#""$0" init --state "$1/state" --json > "$2" && exec "$0" serve --state "$1/state" --listen 127.0.0.1:0"#;

/// Whether this test may mount something.
fn may_mount(top: &Path) -> bool {
    let tried = Command::new("unshare").args(["-m", "sh", "-c", DISK, "sh"]).arg(top).output();
    tried.is_ok_and(|output| output.status.success())
}

async fn ask(session: &mut Channel<TcpStream>, call: Call) -> Result<Reply, CallError> {
    session.call(CorrelationId::random(), 5000, call).await
}

fn is_refused(outcome: Result<Reply, CallError>) -> String {
    match outcome {
        Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::AuditFull => refusal.message,
        other => panic!("not refused for want of room: {other:?}"),
    }
}

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes all that is free of a disk.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file");
    for chunk in [1 << 20, 4096, 1] {
        while file.write_all(&vec![7; chunk]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_what_grants_and_nothing_that_ends() {
    let top = tempfile::tempdir().expect("a directory");
    if !may_mount(top.path()) {
        return eprintln!(
            "SKIPPED a_full_disk_stops_what_grants_and_nothing_that_ends: needs the right to mount a small disk"
        );
    }
    let (place, made) = (top.path().join("disk"), top.path().join("made"));
    fs::create_dir(&place).expect("made");
    let mut command = Command::new("unshare");
    process::clean(&mut command);
    let script = format!("{DISK} && {SERVE}");
    command.args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_overbank-authd")]).args([&place, &made]);
    let process = Process::start(&mut command, top.path().join("log"));
    let seen: PathBuf = format!("/proc/{}/root{}", process.child.id(), place.display()).into();
    let made: serde_json::Value = serde_json::from_slice(&fs::read(&made).expect("it")).expect("JSON");
    let invitation: Invitation = made["operator_invitation"].as_str().expect("a code").parse().expect("a code");
    let operator = process::first_operator(&process, &invitation).await;
    let lender = Lender::new(process::approved(&process, &operator, Role::Provider, None).await);
    let _lending = lender.connect(process.address).await;
    let alice = process::approved(&process, &operator, Role::Consumer, Some("red")).await;
    let bob = process::approved(&process, &operator, Role::Consumer, Some("blue")).await;
    let mut hers = process.connect(&alice, Party::Client).await;
    let mut his = process.connect(&bob, Party::Client).await;
    let Ok(Reply::Granted(lost)) = ask(&mut hers, Call::CreateLease(wish(MIB))).await else { panic!("a lease") };
    let Ok(Reply::Granted(kept)) = ask(&mut his, Call::CreateLease(wish(MIB))).await else { panic!("a lease") };
    let ballast = seen.join("state/authd.ballast");
    assert!(fs::metadata(&ballast).expect("it is kept back").len() >= 16 << 20);

    fill(&seen.join("full"));
    let mut session = process.connect(&operator, Party::Client).await;
    // So much that it goes far beyond what the database had for itself.
    for most in 0..2000 {
        let tenant = "green".parse().expect("a tenant");
        let quota = TenantQuota { tenant, bytes: Allowance::AsItIs, leases: Allowance::Most(most) };
        ask(&mut session, Call::TenantQuota(quota)).await.unwrap_or_else(|error| panic!("decision {most}: {error}"));
    }
    assert!(!ballast.exists(), "it has made way");
    for grant in [Call::CreateLease(wish(MIB)), Call::RenewLease(RenewLease { lease: kept.lease, ttl_ms: 3_600_000 })] {
        let said = is_refused(ask(&mut his, grant).await);
        assert!(said.contains("disk") && said.contains("32 MiB"), "{said}");
    }
    ask(&mut session, Call::TrustRevoke(alice.public().fingerprint())).await.expect("revoked");
    eventually("it is fenced", async || lender.lock().fenced.contains(&(lost.lease, EndReason::Revoked))).await;
    ask(&mut his, Call::ReleaseLease(kept.lease)).await.expect("given back");

    fs::remove_file(seen.join("full")).expect("removed");
    eventually("things are granted again", async || ask(&mut his, Call::CreateLease(wish(MIB))).await.is_ok()).await;
    assert!(fs::metadata(&ballast).expect("kept back again").len() >= 16 << 20);
}
