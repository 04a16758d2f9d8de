//! Leases over real sessions and real packets, end to end in one process.

mod scene;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overbank_fabric::attach::{AttachRequest, EndpointBytes, MAX_LANES};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Attach, Call, Fence, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Step};
use overbank_fabric::signed::Signed;
use overbank_fabric::token::{Rights, Scope, Token};
use overbank_provider::backend::Verbs;
use overbank_provider::clock::BootTime;
use overbank_provider::hold::{MAX_ATTACHMENTS, MAX_NARROWED_EACH};
use overbank_provider::session::{News, SessionError};
use overbank_verbs::{Op, WcStatus};
use scene::*;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Milliseconds of a lease that ends by itself, and that somebody attaches to and uses before.
fn short() -> u64 {
    1500 * pace() * pace()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_out_come_back_and_are_zero_after_expiry() {
    let (authd, provider) = connected().await;
    assert_eq!(authd.order(carve(provider.boot, lease(1), "a", 10, short())).await, Ok(Reply::Done));
    let mut borrower = Borrower::new(&device());
    borrower.attach(&authd, &provider, lease(1), 10, short()).await.expect("attaches");
    for block in 0..10 {
        assert_eq!(borrower.write(block, 0x40 + block as u8), WcStatus::SUCCESS);
    }
    assert_eq!(borrower.read(7), Ok(vec![0x47; STRIDE]));
    assert!(!is_clean(&provider.backend));
    let receipt = authd.receipt(&provider.key, lease(1)).await;
    assert!(receipt.is_complete(), "{receipt:?}");
    assert_eq!(receipt.reason, EndReason::Expired);
    assert!(receipt.steps[0].at_us - receipt.due_us < LATE_US);
    assert!(is_clean(&provider.backend));
    // Too late: an error, and no byte moves.
    assert_eq!(borrower.write(3, 0x99), WcStatus::RETRY_EXC_ERR);
    assert!(is_clean(&provider.backend));
    let refusal = borrower.attach(&authd, &provider, lease(1), 10, 60_000).await.expect_err("over");
    assert!(matches!(refusal.code, RefusalCode::LeaseEnded | RefusalCode::NoSuchLease));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_another_tenant_with_the_live_key_and_address_moves_no_byte() {
    let (authd, provider) = connected().await;
    let (mut alice, mut mallory) = (Borrower::new(&device()), Borrower::new(&device()));
    for (id, tenant, borrower) in [(1, "alice", &mut alice), (2, "mallory", &mut mallory)] {
        authd.order(carve(provider.boot, lease(id), tenant, 4, 30_000)).await.expect("carves");
        borrower.attach(&authd, &provider, lease(id), 4, 30_000).await.expect("attaches");
    }
    assert_eq!(alice.write(0, 0xaa), WcStatus::SUCCESS);
    assert_eq!(mallory.write(0, 0xbb), WcStatus::SUCCESS);
    let before = snapshot(&provider.backend);
    let (address, rkey) = alice.block(0);
    // Her key and address; her address with the own key; one block beyond the own range.
    for target in 0..3 {
        for op in [Op::Write, Op::Read] {
            let (own, own_rkey) = mallory.block(0);
            let (address, rkey) = [(address, rkey), (address, own_rkey), (own + 4 * STRIDE as u64, own_rkey)][target];
            mallory.lane.bytes_mut(mallory.slots[0]).expect("held").fill(0x66);
            let transfer = mallory.transfer(0, op, STRIDE, address, rkey);
            mallory.lane.post(&[transfer]).expect("posts");
            assert_eq!(mallory.finish(), WcStatus::REM_ACCESS_ERR, "{op:?}");
            assert!(mallory.lane.bytes(mallory.slots[0]).expect("held").iter().all(|byte| *byte == 0x66));
            assert!(snapshot(&provider.backend) == before, "a byte moved");
            // The queue pair is dead now; the lease is not.
            mallory.attach(&authd, &provider, lease(2), 4, 30_000).await.expect("attaches again");
        }
    }
    assert_eq!(alice.read(0), Ok(vec![0xaa; STRIDE]));
    assert_eq!(mallory.read(0), Ok(vec![0xbb; STRIDE]));
    println!("attack 17 {}: seen refused with REM_ACCESS_ERR, no byte moved", device_kind());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_reaches_its_blocks_with_its_rights_until_its_deadline() {
    let (authd, provider) = connected().await;
    let (mut owner, mut reader) = (Borrower::new(&device()), Borrower::new(&device()));
    authd.order(carve(provider.boot, lease(1), "a", 8, 30_000)).await.expect("carves");
    owner.attach(&authd, &provider, lease(1), 8, 30_000).await.expect("attaches");
    for block in 0..8 {
        assert_eq!(owner.write(block, 0x10 + block as u8), WcStatus::SUCCESS);
    }
    let grant = Token::grant(&owner.scope(provider.boot, lease(1), 8, 30_000), &authd.identity);
    let narrow =
        Scope { first_block: 2, blocks: 3, rights: Rights::READ, ..reader.scope(provider.boot, lease(1), 8, short()) };
    let share = grant.narrow(&authd.identity.public(), &narrow, &owner.identity).expect("narrower");
    reader.attach_with(&authd, &provider, lease(1), share.clone()).await.expect("attaches");
    let answer = reader.answer.clone().expect("attached");
    assert_eq!((answer.first_block, answer.blocks, answer.rights), (2, 3, Rights::READ));
    assert!(answer.left_ms <= short());
    assert_eq!(reader.read(0), Ok(vec![0x12; STRIDE]));
    assert_eq!(reader.read(2), Ok(vec![0x14; STRIDE]));
    // One block further, one before, and a WRITE: each kills the queue pair, and the share attaches again.
    for (op, address) in
        [(Op::Read, answer.address + 3 * STRIDE as u64), (Op::Read, answer.address - 1), (Op::Write, answer.address)]
    {
        let rkey = reader.answer.as_ref().expect("attached").rkey;
        let transfer = reader.transfer(0, op, 64, address, rkey);
        reader.lane.post(&[transfer]).expect("posts");
        let status = reader.finish();
        assert!(matches!(status, WcStatus::REM_ACCESS_ERR | WcStatus::REM_INV_REQ_ERR), "{op:?}: {status:?}");
        reader.attach_with(&authd, &provider, lease(1), share.clone()).await.expect("attaches again");
    }
    assert_eq!(owner.read(2), Ok(vec![0x12; STRIDE]));
    sleep(Duration::from_millis(short() + 200)).await;
    assert_eq!(reader.read(0), Err(WcStatus::RETRY_EXC_ERR), "the share is over");
    assert_eq!(owner.read(2), Ok(vec![0x12; STRIDE]), "the lease is not");
    let refusal = reader.attach_with(&authd, &provider, lease(1), share).await.expect_err("over");
    assert_eq!(refusal.code, RefusalCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_again_cuts_the_old_queue_pair_off_before_it_is_answered() {
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 4, 30_000)).await.expect("carves");
    let (mut old, mut new) = (Borrower::new(&device()), Borrower::new(&device()));
    new.identity = Identity::from_seed(&[9; 32]);
    old.identity = Identity::from_seed(&[9; 32]);
    old.attach(&authd, &provider, lease(1), 4, 30_000).await.expect("attaches");
    assert_eq!(old.write(0, 0x11), WcStatus::SUCCESS);
    new.attach(&authd, &provider, lease(1), 4, 30_000).await.expect("attaches");
    let before = snapshot(&provider.backend);
    assert_eq!(old.write(0, 0x22), WcStatus::RETRY_EXC_ERR);
    assert!(snapshot(&provider.backend) == before);
    assert_eq!(new.read(0), Ok(vec![0x11; STRIDE]), "contents outlive queue pairs");
}

/// Holds every wipe back until the gate is opened.
fn gated(gate: &Arc<AtomicBool>) -> impl FnOnce(Verbs) -> Hooked + use<> {
    let gate = Arc::clone(gate);
    Hooked::before_wipe(move |_, _| {
        while !gate.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_30_hoarded_queue_pairs() {
    let (authd, provider) = connected().await;
    for (id, tenant) in [(1, "hoarder"), (2, "other")] {
        authd.order(carve(provider.boot, lease(id), tenant, 8, 60_000)).await.expect("carves");
    }
    let mut hoarder = Borrower::new(&device());
    let own = Token::grant(&hoarder.scope(provider.boot, lease(1), 8, 60_000), &authd.identity);
    // Too many lanes in one attach.
    let request = AttachRequest {
        token: own.hash(),
        lanes: vec![EndpointBytes(hoarder.lane.endpoint().to_bytes()); MAX_LANES + 1],
        provider: provider.key,
        boot: provider.boot,
        nonce: Nonce::random(),
    };
    let request = Signed::new(&request, &hoarder.identity);
    let refusal = authd.order(Call::Bind(Attach { lease: lease(1), token: own.clone(), request })).await;
    assert_eq!(refusal.expect_err("too many").code, RefusalCode::Invalid);
    // Its token narrowed for itself, and for very many others.
    let holder = Identity::from_seed(&hoarder.identity.seed());
    let narrow = |to: &Borrower, first_block| {
        let scope = Scope { first_block, blocks: 1, ..to.scope(provider.boot, lease(1), 1, 30_000) };
        own.narrow(&authd.identity.public(), &scope, &holder).expect("narrower")
    };
    let mut hoarded = Vec::new();
    for first_block in 0..8 {
        let mut one = Borrower { identity: Identity::from_seed(&holder.seed()), ..Borrower::new(&device()) };
        one.attach_with(&authd, &provider, lease(1), narrow(&one, first_block)).await.expect("attaches");
        hoarded.push(one);
    }
    let served: Vec<_> = hoarded.iter_mut().map(|one| one.read(0).is_ok()).collect();
    assert_eq!(served, [[false; 8 - MAX_NARROWED_EACH], [true; MAX_NARROWED_EACH]].concat());
    let mut puppet = Borrower::new(&device());
    for _ in MAX_NARROWED_EACH..MAX_ATTACHMENTS - 1 {
        puppet.identity = Identity::generate();
        let token = narrow(&puppet, 0);
        puppet.attach_with(&authd, &provider, lease(1), token).await.expect("one more holder");
    }
    puppet.identity = Identity::generate();
    let token = narrow(&puppet, 0);
    let refusal = puppet.attach_with(&authd, &provider, lease(1), token).await;
    assert_eq!(refusal.expect_err("too many").code, RefusalCode::Busy);
    // The lease's own grant has its place, again and again.
    for _ in 0..10 {
        hoarder.attach_with(&authd, &provider, lease(1), own.clone()).await.expect("replaces the one before");
    }
    assert_eq!(hoarder.write(0, 0x41), WcStatus::SUCCESS);
    let mut other = Borrower::new(&device());
    other.attach(&authd, &provider, lease(2), 8, 60_000).await.expect("attaches");
    assert_eq!(other.write(3, 0x42), WcStatus::SUCCESS);
    assert_eq!(other.read(3), Ok(vec![0x42; STRIDE]));
    println!(
        "attack 30 {}: seen attaches stop at 4 of a holder and 63 of a lease, its own grant and another tenant served",
        device_kind()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_32_flood_during_a_revocation() {
    let mut authd = Authd::start().await;
    let gate = Arc::new(AtomicBool::new(false));
    let provider = Provider::start_with(&authd, Arc::new(Identity::generate()), None, gated(&gate));
    authd.session().await;
    authd.order(carve(provider.boot, lease(1), "a", 16, 60_000)).await.expect("carves");
    let mut borrower = Borrower::new(&device());
    borrower.attach(&authd, &provider, lease(1), 16, 60_000).await.expect("attaches");
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || flood(borrower, &stop)
    });
    sleep(Duration::from_millis(300)).await;
    let before = snapshot(&provider.backend.verbs);
    until("bytes that change", || snapshot(&provider.backend.verbs) != before).await;
    let revoke = Fence { lease: lease(1), reason: EndReason::Revoked };
    assert_eq!(authd.order(Call::Fence(revoke)).await, Ok(Reply::Done));
    // The wipe waits; from here on nothing else may change a byte: one scan after the other says so.
    let fenced = snapshot(&provider.backend.verbs);
    assert!(fenced.iter().any(|byte| *byte != 0));
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        assert!(snapshot(&provider.backend.verbs) == fenced, "a byte changed after the fence");
        sleep(Duration::from_millis(5)).await;
    }
    gate.store(true, Ordering::Release);
    let receipt = authd.receipt(&provider.key, lease(1)).await;
    assert!(receipt.is_complete() && receipt.reason == EndReason::Revoked);
    assert!(is_clean(&provider.backend.verbs));
    sleep(Duration::from_millis(200)).await;
    assert!(is_clean(&provider.backend.verbs), "and stays clean");
    stop.store(true, Ordering::Release);
    assert!(flooding.join().expect("no panic").batches > 0, "the flood reached the memory before");
    println!("attack 32 {}: seen no byte changed after the fence, and none after the wipe", device_kind());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_wipe_keeps_no_other_lease_from_being_fenced() {
    let mut authd = Authd::start().await;
    let gate = Arc::new(AtomicBool::new(false));
    let provider = Provider::start_with(&authd, Arc::new(Identity::generate()), None, gated(&gate));
    authd.session().await;
    for id in 1..=3 {
        authd
            .order(carve(provider.boot, lease(id), "a", 4, if id == 3 { 1000 } else { 60_000 }))
            .await
            .expect("carves");
    }
    assert_eq!(authd.order(fence(lease(1))).await, Ok(Reply::Done));
    assert_eq!(authd.order(fence(lease(2))).await, Ok(Reply::Done));
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(authd.order(fence(lease(3))).await, Ok(Reply::Done), "expired meanwhile");
    let (heartbeat, held) = provider.keeper.look().await.expect("alive");
    assert_eq!((held.len(), heartbeat.free_bytes), (3, POOL as u64 - 3 * 5 * 4096), "fenced, and not free");
    gate.store(true, Ordering::Release);
    for id in 1..=3 {
        let receipt = authd.receipt(&provider.key, lease(id)).await;
        assert!(receipt.is_complete());
        if id == 3 {
            let fenced = receipt.steps.iter().find(|done| done.step == Step::Deregistered).expect("complete");
            assert!(fenced.at_us - receipt.due_us < LATE_US, "the wipes before it held it up");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_31_auth_daemon_dead_at_expiry() {
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 10, short())).await.expect("carves");
    authd.order(carve(provider.boot, lease(2), "a", 10, 60_000)).await.expect("carves");
    let mut borrower = Borrower::new(&device());
    borrower.attach(&authd, &provider, lease(1), 10, short()).await.expect("attaches");
    let (identity, address) = authd.die().await;
    assert_eq!(borrower.write(0, 0x77), WcStatus::SUCCESS, "the data path needs no auth daemon");
    until("clean memory", || is_clean(&provider.backend)).await;
    assert_eq!(borrower.read(0), Err(WcStatus::RETRY_EXC_ERR));
    assert_eq!(borrower.write(0, 0x77), WcStatus::WR_FLUSH_ERR);
    assert!(is_clean(&provider.backend));
    let mut authd = Authd::start_as(identity, address).await;
    authd.session().await;
    let offer = authd.heard.lock().expect("unpoisoned").offers[0].clone();
    assert_eq!(offer.boot, provider.boot);
    assert!(offer.leases.iter().map(|held| held.lease).eq([lease(2)]));
    let receipt = authd.receipt(&provider.key, lease(1)).await;
    assert!(receipt.is_complete() && receipt.reason == EndReason::Expired);
    assert!(receipt.steps[0].at_us - receipt.due_us < LATE_US);
    println!("attack 31 {}: seen ended in time by the provider alone, and reported later", device_kind());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_session_is_made_again_and_leases_do_not_notice() {
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 10, 60_000)).await.expect("carves");
    let mut borrower = Borrower::new(&device());
    borrower.attach(&authd, &provider, lease(1), 10, 60_000).await.expect("attaches");
    assert_eq!(borrower.write(0, 0x77), WcStatus::SUCCESS);
    let (identity, address) = authd.die().await;
    let mut authd = Authd::start_as(identity, address).await;
    authd.session().await;
    assert_eq!(borrower.read(0), Ok(vec![0x77; STRIDE]));
    // A carve that is sent again is the same lease.
    let free = provider.keeper.look().await.expect("alive").0.free_bytes;
    assert_eq!(authd.order(carve(provider.boot, lease(1), "a", 10, 60_000)).await, Ok(Reply::Done));
    assert_eq!(provider.keeper.look().await.expect("alive").0.free_bytes, free);
    assert_eq!(authd.order(extend(provider.boot, lease(1), 120_000)).await, Ok(Reply::Done));
    until("heartbeats", || authd.heard.lock().expect("unpoisoned").heartbeats >= 2).await;
    assert_eq!(*provider.news.lock().expect("unpoisoned"), [News::Ready], "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_old_tokens_are_refused_as_lost() {
    let mut authd = Authd::start().await;
    let identity = Arc::new(Identity::generate());
    let provider = Provider::start_with(&authd, Arc::clone(&identity), None, |verbs| verbs);
    authd.session().await;
    authd.order(carve(provider.boot, lease(1), "a", 10, 60_000)).await.expect("carves");
    let mut borrower = Borrower::new(&device());
    let token = Token::grant(&borrower.scope(provider.boot, lease(1), 10, 60_000), &authd.identity);
    let old_boot = provider.boot;
    provider.link.abort();
    let provider = Provider::start_with(&authd, identity, None, |verbs| verbs);
    authd.session().await;
    assert_ne!(provider.boot, old_boot);
    let refusal = borrower.attach_with(&authd, &provider, lease(1), token).await.expect_err("lost");
    assert_eq!(refusal.code, RefusalCode::LeaseLost);
    let refusal = authd.order(carve(old_boot, lease(1), "a", 10, 60_000)).await.expect_err("another life's");
    assert_eq!(refusal.code, RefusalCode::Invalid);
    let refusal = authd.order(fence(lease(1))).await.expect_err("unknown");
    assert_eq!(refusal.code, RefusalCode::NoSuchLease);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_order_and_what_does_not_fit_is_refused() {
    let (authd, provider) = connected().await;
    for call in [Call::ListLeases, Call::WhoAmI, Call::Status] {
        assert_eq!(authd.order(call).await.expect_err("no order").code, RefusalCode::Invalid);
    }
    let full = authd.order(carve(provider.boot, lease(1), "a", 2000, 60_000)).await.expect_err("too much");
    assert_eq!(full.code, RefusalCode::PoolFull);
    let long = authd.order(carve(provider.boot, lease(1), "a", 1, 3_700_000)).await.expect_err("too long");
    assert_eq!(long.code, RefusalCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unapproved_provider_waits_and_an_invited_one_joins() {
    let mut authd = Authd::start().await;
    *authd.mood.lock().expect("unpoisoned") = Mood::Pending;
    let waiting = Provider::start(&authd);
    until("that it waits", || !waiting.news.lock().expect("unpoisoned").is_empty()).await;
    sleep(Duration::from_millis(900)).await;
    assert_eq!(*waiting.news.lock().expect("unpoisoned"), [News::WaitingForApproval], "said once");
    waiting.link.abort();
    let invited = Provider::start_with(&authd, Arc::new(Identity::generate()), Some([5; 16]), |verbs| verbs);
    authd.session().await;
    assert_eq!(authd.heard.lock().expect("unpoisoned").joined, 1);
    until("that it is ready", || *invited.news.lock().expect("unpoisoned") == [News::Ready]).await;
    // It would join again, for the next one too.
    invited.link.abort();
    *authd.mood.lock().expect("unpoisoned") = Mood::Pending;
    let stranger = Provider::start_with(&authd, Arc::new(Identity::generate()), Some([6; 16]), |verbs| verbs);
    let error = timeout(PATIENCE, stranger.link).await.expect("gives up").expect("no panic");
    assert!(matches!(error, SessionError::Refused { refusal, .. } if refusal.code == RefusalCode::BadInvitation));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_provider_stops_once_its_leases_are_over() {
    let mut authd = Authd::start().await;
    let provider = Provider::start(&authd);
    authd.session().await;
    let begun = Instant::now();
    authd.order(carve(provider.boot, lease(1), "a", 10, 2500)).await.expect("carves");
    *authd.mood.lock().expect("unpoisoned") = Mood::Revoked;
    let error = timeout(PATIENCE, provider.link).await.expect("gives up").expect("no panic");
    assert!(matches!(error, SessionError::Refused { refusal, .. } if refusal.code == RefusalCode::Revoked));
    assert!(begun.elapsed() > Duration::from_millis(2400), "not before its lease was over");
    assert!(is_clean(&provider.backend));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_that_are_due_at_once_are_all_closed_in_time() {
    let (authd, provider) = connected().await;
    let due = tick_in(2000 * pace());
    for id in 1..=50 {
        let left = due.ms_since(BootTime::now().tick());
        authd.order(carve(provider.boot, lease(id), "a", 4, left)).await.expect("carves");
    }
    sleep_until(Instant::now() + Duration::from_millis(due.ms_since(BootTime::now().tick()))).await;
    for id in 1..=50 {
        let receipt = authd.receipt(&provider.key, lease(id)).await;
        assert!(receipt.is_complete());
        let fenced = receipt.steps.iter().find(|done| done.step == Step::Deregistered).expect("complete");
        assert!(fenced.at_us - receipt.due_us < LATE_US, "{} us late", fenced.at_us - receipt.due_us);
    }
}
