//! Leases that expire while their borrowers write as fast as they can, without a look at the clock.

mod scene;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use overbank_fabric::identity::Identity;
use overbank_fabric::receipt::{EndReason, Step};
use overbank_provider::clock::BootTime;
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
