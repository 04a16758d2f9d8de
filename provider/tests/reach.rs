//! Attach requests that name endpoints that cannot be served, or addresses where nobody answers.

mod scene;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use overbank_fabric::attach::{AttachRequest, EndpointBytes};
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Attach, Call, Refusal, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Step};
use overbank_fabric::signed::Signed;
use overbank_fabric::token::Token;
use overbank_provider::attach::Admission;
use overbank_provider::backend::{Backend, Verbs};
use overbank_provider::clock::{BootTime, SystemClock};
use overbank_provider::ending::Closed;
use overbank_provider::hold::{Hold, Shape};
use overbank_provider::pool::Pool;
use overbank_verbs::{Backing, Endpoint, Memory, WcStatus};
use scene::*;
use tokio::time::{Duration, sleep};

/// An endpoint that this device cannot connect to, and what it says of it.
fn no_peer(good: Endpoint) -> (Endpoint, &'static str) {
    if device_name() == "soft" {
        (Endpoint { gid: Endpoint::gid_of(IpAddr::V6(Ipv6Addr::LOCALHOST)), ..good }, "IPv6")
    } else {
        (Endpoint { port: 4792, ..good }, "4791")
    }
}

/// Asks for an attach of endpoints that need not be the borrower's.
async fn attach_at<B: Backend>(
    authd: &Authd,
    provider: &Provider<B>,
    borrower: &Borrower,
    number: u8,
    blocks: u64,
    endpoints: &[Endpoint],
) -> Result<Reply, Refusal> {
    let token = Token::grant(&borrower.scope(provider.boot, lease(number), blocks, 60_000), &authd.identity);
    let request = AttachRequest {
        token: token.hash(),
        lanes: endpoints.iter().map(|endpoint| EndpointBytes(endpoint.to_bytes())).collect(),
        provider: provider.key,
        boot: provider.boot,
        nonce: Nonce::random(),
    };
    let request = Signed::new(&request, &borrower.identity);
    authd.order(Call::Bind(Attach { lease: lease(number), token, request })).await
}

#[test]
fn a_queue_pair_that_was_never_connected_is_destroyed_without_a_trace() {
    const BYTES: usize = 1 << 16;
    let verbs = Verbs::new(device(), Memory::map(BYTES, Backing::Ordinary).expect("64 KiB")).expect("a queue");
    let mut borrower = Borrower::new(&device());
    let good = borrower.lane.endpoint();
    let (bad, reason) = no_peer(good);
    let mut pool = Pool::new(BYTES as u64, 4096);
    let shape = Shape { blocks: 4, stride: STRIDE as u32 };
    let extent = pool.take(shape.bytes()).expect("room");
    let mut hold = Hold::open(&verbs, extent, shape).map_err(|(_, fault)| fault).expect("opens");
    let scope = borrower.scope(overbank_fabric::ids::BootId([1; 16]), lease(1), 4, 60_000);
    let attach = |remotes| Admission {
        scope,
        root: true,
        hands: vec![scope.holder],
        remotes,
        request: [0; 32],
        nonce: Nonce([3; 16]),
    };
    for remotes in [vec![bad], vec![good, bad]] {
        let refusal = hold.bind(&verbs, &attach(remotes), |_| Ok(())).expect_err("no such peer");
        assert!(refusal.message.contains(reason), "{refusal}");
    }
    let binding = hold.bind(&verbs, &attach(vec![good]), |_| Ok(())).expect("takes the next one");
    borrower.connect(&binding.lanes[0]);
    assert_eq!(borrower.write_to(binding.key.address, binding.key.rkey, 0x77, STRIDE), WcStatus::SUCCESS);
    let fenced = Closed::new(hold, BootTime::now()).fence(&verbs, &SystemClock).map_err(|failed| failed.step);
    let clean = fenced.and_then(|fenced| fenced.wipe(&verbs, &SystemClock).map_err(|failed| failed.step));
    let steps = clean.expect("every step is done").free(&mut pool, BootTime::now());
    assert!(steps.into_vec().iter().map(|done| done.step).eq(Step::ALL));
    assert_eq!((pool.free_bytes(), pool.quarantined_bytes()), (BYTES as u64, 0));
}

#[test]
fn a_device_reaches_its_peers_and_says_which_it_cannot() {
    let verbs = Verbs::new(device(), Memory::map(4096, Backing::Ordinary).expect("4 KiB")).expect("a queue");
    let borrower = Borrower::new(&device());
    let (bad, reason) = no_peer(borrower.lane.endpoint());
    for _ in 0..3 {
        verbs.reach(&borrower.lane.endpoint()).expect("it is here");
        let fault = verbs.reach(&bad).expect_err("no such peer");
        assert!(fault.to_string().contains(reason), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_attach_costs_the_lease_nothing() {
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 4, 60_000)).await.expect("carves");
    let mut borrower = Borrower::new(&device());
    let good = borrower.lane.endpoint();
    let (bad, reason) = no_peer(good);
    for endpoints in [vec![bad], vec![good, bad], vec![bad; 16]] {
        let answer = attach_at(&authd, &provider, &borrower, 1, 4, &endpoints).await;
        let refusal = answer.expect_err("no such peer");
        assert!(refusal.code == RefusalCode::Invalid && refusal.message.contains(reason), "{refusal}");
    }
    borrower.attach(&authd, &provider, lease(1), 4, 60_000).await.expect("attaches");
    assert_eq!(borrower.write(0, 0x77), WcStatus::SUCCESS);
    let refused = attach_at(&authd, &provider, &borrower, 1, 4, &[bad]).await;
    assert!(refused.is_err());
    assert!(borrower.read(0) == Ok(vec![0x77; STRIDE]), "the attachment that stands does not notice");
    authd.order(fence(lease(1))).await.expect("fences");
    let receipt = authd.receipt(&provider.key, lease(1)).await;
    assert!(receipt.is_complete() && receipt.reason == EndReason::Released, "{receipt:?}");
    let (heartbeat, _) = provider.keeper.look().await.expect("alive");
    assert_eq!((heartbeat.free_bytes, heartbeat.quarantined_bytes), (POOL as u64, 0));
    assert!(is_clean(&provider.backend));
}

/// Where nobody answers: OVERBANK_TEST_DEAD_ADDRESS, an address on the network of OVERBANK_TEST_DEVICE.
fn dead_address() -> Option<IpAddr> {
    std::env::var("OVERBANK_TEST_DEAD_ADDRESS").ok().map(|address| address.parse().expect("an address"))
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_in_time_while_a_holder_makes_the_provider_look_for_the_dead() {
    let Some(dead) = dead_address() else {
        return println!(
            "SKIPPED: needs a network with nobody at OVERBANK_TEST_DEAD_ADDRESS (scripts/rxe-vm --net far: 10.9.0.77) \
             and a real device on it as OVERBANK_TEST_DEVICE"
        );
    };
    const DUE_MS: u64 = 2500;
    const AT_ONCE: u8 = 4;
    let (authd, provider) = connected().await;
    let mut borrower = Borrower::new(&device());
    for number in 1..=AT_ONCE {
        authd.order(carve(provider.boot, lease(number), "mallory", 4, DUE_MS)).await.expect("carves");
    }
    authd.order(carve(provider.boot, lease(10), "alice", 4, 60_000)).await.expect("carves");

    // One dead address: the reason, after as long as the kernel takes, and the lease does not notice.
    let at = |last: u8, good: Endpoint| {
        let IpAddr::V4(v4) = dead else { panic!("an IPv4 address") };
        let [a, b, c, first] = v4.octets();
        Endpoint { gid: Endpoint::gid_of(IpAddr::from([a, b, c, first + last])), ..good }
    };
    let good = borrower.lane.endpoint();
    let start = Instant::now();
    let refusal = attach_at(&authd, &provider, &borrower, 10, 4, &[good, at(0, good)]).await.expect_err("it is dead");
    assert!(refusal.code == RefusalCode::Invalid && refusal.message.contains(&dead.to_string()), "{refusal}");
    println!("refused after {:?}: {refusal}", start.elapsed());

    // Four attaches with sixteen of them each, until the deadline and over it; meanwhile another tenant attaches.
    let endpoints: Vec<_> = (0..16).map(|last| at(last, good)).collect();
    let looking = async {
        let attach = async |number| {
            let strangers = Borrower::new(&device());
            let mut refused = 0;
            loop {
                let answer = attach_at(&authd, &provider, &strangers, number, 4, &endpoints).await;
                let refusal = answer.expect_err("they are dead");
                refused += 1;
                if matches!(refusal.code, RefusalCode::LeaseEnded | RefusalCode::NoSuchLease) {
                    return refused;
                }
            }
        };
        tokio::join!(attach(1), attach(2), attach(3), attach(4))
    };
    let other = async {
        sleep(Duration::from_millis(200)).await;
        let start = Instant::now();
        borrower.attach(&authd, &provider, lease(10), 4, 60_000).await.expect("attaches");
        start.elapsed()
    };
    let (refused, other) = tokio::join!(looking, other);
    println!("refused {refused:?} attaches; another tenant's took {other:?}");
    assert_eq!(borrower.write(0, 0x77), WcStatus::SUCCESS);
    for number in 1..=AT_ONCE {
        let receipt = authd.receipt(&provider.key, lease(number)).await;
        assert!(receipt.is_complete() && receipt.reason == EndReason::Expired, "{receipt:?}");
        let after = |step: Step| receipt.steps[step as usize].at_us - receipt.due_us;
        let (closed, fenced) = (after(Step::Closed), after(Step::Deregistered));
        println!("lease {number}: closed {closed} us after its deadline, fenced {fenced} us after it");
        assert!(fenced < LATE_US, "{receipt:?}");
    }
    authd.order(fence(lease(10))).await.expect("fences");
    assert!(authd.receipt(&provider.key, lease(10)).await.is_complete());
    let (heartbeat, _) = provider.keeper.look().await.expect("alive");
    assert_eq!(heartbeat.quarantined_bytes, 0);
}
