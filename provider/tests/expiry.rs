//! Leases that expire while their borrowers write as fast as they can, without a look at the clock.

mod scene;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Attach, Call, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Step};
use overbank_fabric::signed::Signed;
use overbank_fabric::token::Token;
use overbank_provider::clock::BootTime;
use overbank_verbs::{Endpoint, WcStatus};
use scene::*;
use tokio::time::sleep;

const ROUNDS: u8 = 4;
const AT_ONCE: u8 = 5;
const BLOCKS: u64 = 16;
/// How late a lease may be fenced here: more threads want a processor than there are.
const LATE_US: u64 = 5_000_000;
/// How long before the end a flood's last success may lie: so long it can wait for a processor.
const GAP_US: u64 = 500_000;

#[tokio::test(flavor = "multi_thread")]
async fn under_a_flood_every_lease_ends_in_time_clean_and_for_good() {
    let mut authd = Authd::start().await;
    let (full, torn) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let watch = {
        let (full, torn) = (Arc::clone(&full), Arc::clone(&torn));
        Hooked::before_wipe(move |verbs, bytes| {
            // Fenced, and not yet overwritten: from here on nobody else changes a byte.
            let look = || snapshot(verbs)[bytes.start as usize..bytes.end as usize].to_vec();
            let fenced = look();
            full.fetch_add(usize::from(fenced.iter().any(|byte| *byte != 0)), Ordering::Relaxed);
            let end = Instant::now() + Duration::from_millis(50);
            while Instant::now() < end {
                torn.fetch_add(usize::from(look() != fenced), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let provider = Provider::start_with(&authd, Arc::new(Identity::generate()), None, watch);
    authd.session().await;
    let pool = provider.backend.verbs.memory().address();
    // The slowest, in µs: from the deadline to the first step, then queue pairs, then regions.
    let (mut batches, mut slowest) = (0, [0; 3]);
    let ms = 2500 * pace();
    for round in 0..ROUNDS {
        let ids = (1..=AT_ONCE).map(|number| lease(round * AT_ONCE + number));
        let stop = Arc::new(AtomicBool::new(false));
        let mut floods = Vec::new();
        for id in ids {
            authd.order(carve(provider.boot, id, "a", BLOCKS, ms)).await.expect("carves");
            let mut borrower = Borrower::new(&device());
            borrower.attach(&authd, &provider, id, BLOCKS, ms).await.expect("attaches");
            let start = (borrower.block(0).0 - pool) as usize;
            let stop = Arc::clone(&stop);
            floods.push((id, start, thread::spawn(move || flood(borrower, &stop))));
        }
        let mut ended = Vec::new();
        for (id, start, flooding) in floods {
            let receipt = authd.receipt(&provider.key, id).await;
            assert!(receipt.is_complete() && receipt.reason == EndReason::Expired, "{receipt:?}");
            assert_eq!(receipt.tenant.to_string(), "a");
            let at = |step: Step| receipt.steps[step as usize].at_us;
            let fenced = at(Step::Deregistered);
            assert!(receipt.due_us <= at(Step::Closed) && fenced - receipt.due_us < LATE_US, "{receipt:?}");
            let times = [receipt.due_us, at(Step::Closed), at(Step::QueuePairsDestroyed), fenced];
            for (slowest, pair) in slowest.iter_mut().zip(times.windows(2)) {
                *slowest = (*slowest).max(pair[1] - pair[0]);
            }
            ended.push((receipt, start, flooding));
        }
        // The floods go on: they find nothing to reach.
        for _ in 0..10 {
            let all = snapshot(&provider.backend.verbs);
            for (receipt, start, _) in &ended {
                let bytes = &all[*start..start + receipt.bytes as usize];
                assert!(bytes.iter().all(|byte| *byte == 0), "a byte came back in {}", receipt.lease);
            }
            sleep(Duration::from_millis(30)).await;
        }
        stop.store(true, Ordering::Release);
        for (receipt, _, flooding) in ended {
            let flooded = flooding.join().expect("no panic");
            assert!(flooded.last.0 + GAP_US > receipt.due_us, "{} was quiet before its end", receipt.lease);
            let fenced = receipt.steps[Step::Deregistered as usize].at_us;
            assert!(flooded.last < BootTime(fenced + GAP_US), "{} was written after its end", receipt.lease);
            batches += flooded.batches;
        }
    }
    let leases = usize::from(ROUNDS * AT_ONCE);
    assert_eq!((full.load(Ordering::Relaxed), torn.load(Ordering::Relaxed)), (leases, 0), "full ones, torn ones");
    assert!(is_clean(&provider.backend.verbs));
    println!(
        "{leases} leases on {}: {} WRITEs of {STRIDE} bytes; slowest, in us: closed, queue pairs destroyed, deregistered {slowest:?}",
        device_name(),
        batches * BLOCKS,
    );
}

// -- a borrower that is stopped -----------------------------------------------------------------------------------------

/// Set where this program is that borrower.
const STOPPED: &str = "OVERBANK_TEST_STOPPED";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn endpoint(text: &str) -> Endpoint {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal");
    Endpoint::from_bytes(&std::array::from_fn(byte)).expect("an endpoint")
}

/// Not a test of its own: a borrower with no look at any clock. It writes and reads by turns, and says on each line how
/// often either has succeeded.
#[test]
fn stopped_borrower() {
    if std::env::var_os(STOPPED).is_none() {
        return;
    }
    let mut borrower = Borrower::new(&device());
    println!("ENDPOINT {}", hex(&borrower.lane.endpoint().to_bytes()));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    let [remote, address, rkey] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
    let (remote, address) = (endpoint(remote), address.parse().expect("a number"));
    let rkey = rkey.parse().expect("a number");
    borrower.connect(&remote);
    borrower.answer = Some(AttachAnswer {
        request: [0; 32],
        lease: lease(1),
        lanes: Vec::new(),
        address,
        rkey,
        first_block: 0,
        blocks: BLOCKS,
        stride: STRIDE as u32,
        rights: overbank_fabric::token::Rights::READ_WRITE,
        left_ms: 0,
    });
    let (mut written, mut read) = (0_u64, 0_u64);
    loop {
        let wrote = borrower.write(written % BLOCKS, 0x77) == WcStatus::SUCCESS;
        let got = wrote && borrower.read(written % BLOCKS).is_ok();
        (written, read) = (written + u64::from(wrote), read + u64::from(got));
        println!("DONE {written} {read}");
        if !wrote || !got {
            borrower.lane.renew().expect("renews");
            borrower.finish();
            borrower.connect(&remote);
        }
    }
}

struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_29_stopped_past_expiry_then_resumed() {
    let (authd, provider) = connected().await;
    let ms = 2000 * pace();
    authd.order(carve(provider.boot, lease(1), "a", BLOCKS, ms)).await.expect("carves");
    let mut child = Stopped(
        Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "stopped_borrower", "--nocapture"])
            .env(STOPPED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts"),
    );
    let (said, lines) = std::sync::mpsc::channel();
    let stdout = BufReader::new(child.0.stdout.take().expect("piped"));
    thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| said.send(line).is_ok()));
    let next = |prefix: &str| loop {
        let line = lines.recv_timeout(PATIENCE).expect("a line");
        // The test harness has begun a line of its own.
        if let Some(at) = line.find(prefix) {
            return line[at + prefix.len()..].to_owned();
        }
    };
    let theirs = endpoint(&next("ENDPOINT "));
    let borrower = Borrower::new(&device());
    let attach = || {
        let token = Token::grant(&borrower.scope(provider.boot, lease(1), BLOCKS, 60_000), &authd.identity);
        let request = AttachRequest {
            token: token.hash(),
            lanes: vec![EndpointBytes(theirs.to_bytes())],
            provider: provider.key,
            boot: provider.boot,
            nonce: Nonce::random(),
        };
        authd.order(Call::Bind(Attach { lease: lease(1), token, request: Signed::new(&request, &borrower.identity) }))
    };
    let Ok(Reply::Attached(answer)) = attach().await else { panic!("attaches") };
    let answer = answer.open(&provider.key).expect("signed by the provider");
    let stdin = child.0.stdin.as_mut().expect("piped");
    writeln!(stdin, "{} {} {}", hex(&answer.lanes[0].0), answer.address, answer.rkey).expect("it reads");
    let count = |line: String| -> (u64, u64) {
        let (written, read) = line.split_once(' ').expect("two numbers");
        (written.parse().expect("a number"), read.parse().expect("a number"))
    };
    while count(next("DONE ")) < (20, 20) {}
    let pid = Pid::from_raw(i32::try_from(child.0.id()).expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("it lives");
    assert!(!is_clean(&provider.backend));
    let receipt = authd.receipt(&provider.key, lease(1)).await;
    assert!(receipt.is_complete() && receipt.reason == EndReason::Expired, "{receipt:?}");
    assert!(is_clean(&provider.backend));
    // What it said before it was stopped.
    let before = lines.try_iter().filter_map(|line| Some(count(line.strip_prefix("DONE ")?.to_owned()))).last();
    kill(pid, Signal::SIGCONT).expect("it lives");
    // The attempt that was under way, whose completion it may only see now, and two that are all its own.
    let after: Vec<_> = (0..3).map(|_| count(next("DONE "))).collect();
    assert!(is_clean(&provider.backend), "it wrote after its lease's end");
    if let Some(before) = before {
        assert!(after[0].0 <= before.0 + 1 && after[0].1 <= before.1 + 1, "it went on: {before:?}, then {after:?}");
    }
    assert_eq!(after[1], after[2], "it went on: {before:?}, then {after:?}");
    let refusal = attach().await.expect_err("it is over");
    assert!(matches!(refusal.code, RefusalCode::LeaseEnded | RefusalCode::NoSuchLease), "{refusal:?}");
    println!("attack 29 {}: seen no byte read or written after its end, and an attach refused as over", device_kind());
}
