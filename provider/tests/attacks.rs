//! Attacks on the data path by clients that ask nobody's leave: they know everything that goes over the wire, sign what they
//! like, and send what they like. The device and the provider's checks are all that stands in their way.

mod forge;
mod scene;

use forge::{Peer, forged_token, token_bytes, with_block};
use overbank_fabric::identity::Identity;
use overbank_fabric::message::{Call, Detach, RefusalCode, Reply};
use overbank_fabric::time::Deadline;
use overbank_fabric::token::{Rights, Scope, Token};
use overbank_verbs::{Endpoint, Op, WcStatus};
use scene::*;

fn seen(number: u32, what: &str) {
    println!("attack {number} {}: seen {what}", device_kind());
}

/// One request to wherever; how it ended. Its buffer is untouched where that is not a success.
fn access(borrower: &mut Borrower, op: Op, (address, rkey): (u64, u32), len: usize) -> WcStatus {
    borrower.lane.bytes_mut(borrower.slots[0]).expect("held").fill(0x66);
    let transfer = borrower.transfer(0, op, len, address, rkey);
    borrower.lane.post(&[transfer]).expect("posts");
    let status = borrower.finish();
    let untouched = borrower.lane.bytes(borrower.slots[0]).expect("held").iter().all(|byte| *byte == 0x66);
    assert!(status == WcStatus::SUCCESS || untouched, "{op:?} at {address:x} brought bytes");
    status
}

fn refused(status: WcStatus) -> bool {
    matches!(status, WcStatus::REM_ACCESS_ERR | WcStatus::REM_INV_REQ_ERR)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_13_a_token_that_is_widened_stripped_expired_or_barred_binds_nothing() {
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 8, 60_000)).await.expect("carves");
    let (alice, mut bob) = (Identity::generate(), Borrower::new(&device()));
    let authority = authd.identity.public();
    let whole = Scope { holder: alice.public(), ..bob.scope(provider.boot, lease(1), 8, 30_000) };
    let part = Scope { first_block: 2, blocks: 3, rights: Rights::READ, holder: bob.identity.public(), ..whole };
    let grant = Token::grant(&whole, &authd.identity);
    let share = grant.narrow(&authority, &part, &alice).expect("narrower");
    bob.attach_with(&authd, &provider, lease(1), share.clone()).await.expect("as it is, it is good");

    let later = Deadline { tick: tick_in(60_000), ..whole.deadline };
    let widened = [
        Scope { rights: Rights::READ_WRITE, ..part },
        Scope { rights: Rights::WRITE, ..part },
        Scope { first_block: 1, ..part },
        Scope { blocks: 4, ..part },
        Scope { first_block: 0, blocks: 8, ..part },
        Scope { deadline: later, ..part },
        Scope { lease: lease(2), ..part },
    ];
    // Bob signs himself more than he has; and says so in alice's and in the daemon's place.
    let mut tokens: Vec<_> = widened.iter().map(|scope| with_block(&share, scope, &bob.identity)).collect();
    tokens.extend(widened.iter().map(|scope| with_block(&grant, scope, &bob.identity)));
    tokens.extend(widened.iter().map(|scope| Token::grant(scope, &bob.identity)));
    // Without the block that narrows; with only that one; with a field of it changed.
    let bytes = token_bytes(&share);
    tokens.push(grant.clone());
    tokens.push(forged_token(&[&[1, 1], &bytes[2 + forge::BLOCK..]].concat()));
    tokens.push(forged_token(&[&[1, 1], &bytes[2..]].concat()));
    tokens.push(forged_token(&[&[1, 3], &bytes[2..]].concat()));
    for at in (0..bytes.len()).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x40;
        tokens.push(forged_token(&flipped));
    }
    let before = provider.keeper.look().await.expect("alive").1;
    for (number, token) in tokens.into_iter().enumerate() {
        let refusal = bob.attach_with(&authd, &provider, lease(1), token).await.expect_err("refused");
        let code = refusal.code;
        assert!(matches!(code, RefusalCode::BadToken | RefusalCode::BadSignature), "{number}: {refusal}");
    }
    assert_eq!(provider.keeper.look().await.expect("alive").1, before);

    let soon = Scope { deadline: Deadline { tick: tick_in(300), ..part.deadline }, ..part };
    let short = grant.narrow(&authority, &soon, &alice).expect("sooner");
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let refusal = bob.attach_with(&authd, &provider, lease(1), short).await.expect_err("expired");
    assert_eq!(refusal.code, RefusalCode::BadToken);

    // Attached, and then barred: cut off before the order is answered, and out for good.
    bob.attach_with(&authd, &provider, lease(1), share.clone()).await.expect("still good");
    assert!(bob.read(0).is_ok());
    let detach = Call::Detach(Detach { lease: lease(1), holder: bob.identity.public() });
    assert_eq!(authd.order(detach).await, Ok(Reply::Done));
    assert!(bob.read(0).is_err(), "its queue pair is gone");
    let refusal = bob.attach_with(&authd, &provider, lease(1), share).await.expect_err("barred");
    assert_eq!(refusal.code, RefusalCode::BadToken);
    println!("attack 13 -: seen a token widened, stripped, expired or barred binds nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_old_key_is_of_no_use_when_the_memory_is_somebody_elses() {
    let (authd, provider) = connected().await;
    let (mut alice, mut bob) = (Borrower::new(&device()), Borrower::new(&device()));
    let mut same_key = 0;
    for round in 0..6 {
        let [first, theirs, hers] = [1, 2, 3].map(|number| lease(10 * round + number));
        authd.order(carve(provider.boot, first, "alice", 4, 60_000)).await.expect("carves");
        alice.attach(&authd, &provider, first, 4, 60_000).await.expect("attaches");
        assert_eq!(alice.write(0, 0xaa), WcStatus::SUCCESS);
        let stale = alice.block(0);
        assert_eq!(authd.order(fence(first)).await, Ok(Reply::Done));
        assert!(authd.receipt(&provider.key, first).await.is_complete());

        authd.order(carve(provider.boot, theirs, "bob", 4, 60_000)).await.expect("carves");
        bob.attach(&authd, &provider, theirs, 4, 60_000).await.expect("attaches");
        assert_eq!(bob.block(0).0, stale.0, "it is the same memory");
        same_key += u32::from(bob.block(0).1 == stale.1);
        assert_eq!(bob.write(0, 0xbb), WcStatus::SUCCESS);
        let before = snapshot(&provider.backend);
        authd.order(carve(provider.boot, hers, "alice", 4, 60_000)).await.expect("carves");
        for op in [Op::Read, Op::Write] {
            alice.attach(&authd, &provider, hers, 4, 60_000).await.expect("attaches");
            assert_eq!(access(&mut alice, op, stale, STRIDE), WcStatus::REM_ACCESS_ERR, "{op:?}");
            assert!(snapshot(&provider.backend) == before, "a byte moved");
        }
        assert_eq!(bob.read(0), Ok(vec![0xbb; STRIDE]));
        for over in [theirs, hers] {
            authd.order(fence(over)).await.expect("fences");
            authd.receipt(&provider.key, over).await;
        }
    }
    println!("device {}: the number of the old key came back {same_key} times", device_name());
    seen(18, "the old key is refused with REM_ACCESS_ERR, no byte moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_19_a_scan_of_keys_and_addresses_finds_nothing() {
    let (authd, provider) = connected().await;
    let (mut alice, mut mallory) = (Borrower::new(&device()), Borrower::new(&device()));
    for (id, tenant, borrower) in [(1, "alice", &mut alice), (2, "mallory", &mut mallory)] {
        authd.order(carve(provider.boot, lease(id), tenant, 4, 600_000)).await.expect("carves");
        borrower.attach(&authd, &provider, lease(id), 4, 600_000).await.expect("attaches");
    }
    assert_eq!(alice.write(0, 0xaa), WcStatus::SUCCESS);
    let hers = alice.block(0);
    // Every key that differs from hers in its low byte, hers among them; neighbours of its upper bytes; then all over the
    // pool, with the keys that work somewhere.
    let mut targets: Vec<_> = (0..=255).map(|low| (hers.0, hers.1 & !0xff | low)).collect();
    targets.extend(
        (1..16).flat_map(|up| [(hers.0, hers.1.wrapping_add(up << 8)), (hers.0, hers.1.wrapping_sub(up << 8))]),
    );
    let pool = provider.backend.memory().address();
    targets.extend((0..POOL as u64).step_by(64 << 10).map(|offset| (pool + offset, hers.1)));
    targets.extend([0, 1, 4096, u64::MAX - 4096].map(|address| (address, hers.1)));
    if device_kind() != "soft" {
        // Half a second each.
        let mut number = 0;
        targets.retain(|target| {
            number += 1;
            *target == hers || number % 8 == 0
        });
    }
    let before = snapshot(&provider.backend);
    let began = std::time::Instant::now();
    for (number, &target) in targets.iter().enumerate() {
        let op = if number % 2 == 0 { Op::Read } else { Op::Write };
        let status = access(&mut mallory, op, target, 64);
        assert_eq!(status, WcStatus::REM_ACCESS_ERR, "probe {number}, {op:?} at {target:x?}");
        // Each costs a queue pair, and with it an attach.
        mallory.attach(&authd, &provider, lease(2), 4, 600_000).await.expect("attaches again");
    }
    assert!(snapshot(&provider.backend) == before, "a byte moved");
    assert_eq!(alice.read(0), Ok(vec![0xaa; STRIDE]), "who is in the right does not notice");
    println!("device {}: {} probes in {:?}", device_name(), targets.len(), began.elapsed());
    seen(19, "every probe is refused and costs its queue pair, no byte moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_20_nothing_outside_of_a_grant_is_read_or_written() {
    let (authd, provider) = connected().await;
    let (mut owner, mut bob) = (Borrower::new(&device()), Borrower::new(&device()));
    authd.order(carve(provider.boot, lease(1), "a", 8, 600_000)).await.expect("carves");
    owner.attach(&authd, &provider, lease(1), 8, 600_000).await.expect("attaches");
    for block in 0..8 {
        assert_eq!(owner.write(block, 0x10 + block as u8), WcStatus::SUCCESS);
    }
    let before = snapshot(&provider.backend);
    let whole = owner.scope(provider.boot, lease(1), 8, 600_000);
    let grant = Token::grant(&whole, &authd.identity);
    let stride = STRIDE as u64;
    let mut tried = 0;
    for (rights, allowed) in
        [(Rights::READ, &[Op::Read][..]), (Rights::WRITE, &[Op::Write]), (Rights::READ_WRITE, &[Op::Read, Op::Write])]
    {
        let part = Scope { first_block: 2, blocks: 3, rights, holder: bob.identity.public(), ..whole };
        let share = grant.narrow(&authd.identity.public(), &part, &owner.identity).expect("narrower");
        bob.attach_with(&authd, &provider, lease(1), share.clone()).await.expect("attaches");
        let end = 3 * stride;
        for op in [Op::Read, Op::Write] {
            let mut cases = vec![
                ("before", 0_u64.wrapping_sub(64), 64),
                ("one byte before", u64::MAX, 1),
                ("across the start", u64::MAX, 64),
                ("across the end", end - 32, 64),
                ("one byte across the end", end - 1, 2),
                ("behind", end, 64),
                ("another block of the lease", 0_u64.wrapping_sub(2 * stride), 64),
                ("the last byte of the lease", 6 * stride - 1, 1),
                ("around the end of all addresses", 0_u64.wrapping_sub(bob.block(0).0).wrapping_sub(32), 64),
            ];
            if !allowed.contains(&op) {
                cases.push(("against the rights", 0, 64));
            }
            for (what, offset, len) in cases {
                let (address, rkey) = bob.block(0);
                let status = access(&mut bob, op, (address.wrapping_add(offset), rkey), len);
                assert!(refused(status), "{rights:?}, {op:?} {what}: {status:?}");
                assert!(snapshot(&provider.backend) == before, "{rights:?}, {op:?} {what}: a byte moved");
                bob.attach_with(&authd, &provider, lease(1), share.clone()).await.expect("attaches again");
                tried += 1;
            }
        }
    }
    assert_eq!(owner.read(7), Ok(vec![0x17; STRIDE]));
    println!("device {}: {tried} accesses", device_name());
    seen(20, "out of range, straddling, wrapping or against the rights: refused, no byte moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_queue_pair_that_a_packet_has_ended_is_replaced_with_fresh_numbers_and_a_fresh_key() {
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 4, 600_000)).await.expect("carves");
    let mut alice = Borrower::new(&device());
    alice.attach(&authd, &provider, lease(1), 4, 600_000).await.expect("attaches");
    let (rounds, mut forged) = (if device_kind() == "soft" { 8 } else { 2 }, 0);
    for round in 0..rounds {
        assert_eq!(alice.write(0, 0x40 + round), WcStatus::SUCCESS);
        let (old_key, old) = (alice.block(0), alice.answer.clone().expect("attached").lanes[0]);
        let (ours, theirs) = (alice.lane.endpoint(), Endpoint::from_bytes(&old.0).expect("an endpoint"));
        if device_kind() == "soft" && forge::malformed(&ours, &theirs, 64) {
            forged += 1;
        } else {
            // A request that no honest client makes ends it as well.
            assert!(refused(access(&mut alice, Op::Read, (old_key.0, old_key.1 ^ 0x5a5a_0000), 64)));
        }
        assert_ne!(alice.read(0).map(|_| ()), Ok(()), "its queue pair is dead");
        alice.attach(&authd, &provider, lease(1), 4, 600_000).await.expect("attaches again");
        let fresh = Endpoint::from_bytes(&alice.answer.as_ref().expect("attached").lanes[0].0).expect("an endpoint");
        assert_ne!((fresh.qpn, fresh.psn), (theirs.qpn, theirs.psn));
        assert_ne!(alice.lane.endpoint().psn, ours.psn, "nobody who listened knows the next number");
        assert_ne!(alice.block(0).1, old_key.1, "nor the key");
        assert_eq!(alice.read(0), Ok(vec![0x40 + round; STRIDE]), "contents outlive queue pairs");
        assert_eq!(access(&mut alice, Op::Write, old_key, 64), WcStatus::REM_ACCESS_ERR, "the old key is gone");
        alice.attach(&authd, &provider, lease(1), 4, 600_000).await.expect("attaches again");
    }
    println!("device {}: {forged} of {rounds} queue pairs were ended by a forged packet", device_name());
    seen(22, "attached again with fresh numbers and a fresh key, all contents in place");
}

/// On a real device another library asks for these: see the test of that number beside it.
#[tokio::test(flavor = "multi_thread")]
async fn attack_23_atomics_and_sends_by_hand_made_packets_move_no_byte() {
    if device_kind() != "soft" {
        return println!("the soft device's packets are made by hand; on this device another library asks");
    }
    let (authd, provider) = connected().await;
    authd.order(carve(provider.boot, lease(1), "a", 4, 600_000)).await.expect("carves");
    let mut peer = Peer::new();
    let whole =
        Scope { holder: peer.identity.public(), ..Borrower::new(&device()).scope(provider.boot, lease(1), 4, 600_000) };
    let grant = Token::grant(&whole, &authd.identity);
    let reading = grant
        .narrow(&authd.identity.public(), &Scope { rights: Rights::READ, ..whole }, &peer.identity)
        .expect("narrower");
    peer.attach(&authd, &provider.key, provider.boot, lease(1), &grant).await;
    assert_eq!(peer.write(b"in its own right"), forge::ACK, "a granted WRITE by hand arrives");
    let before = snapshot(&provider.backend);
    assert!(before.windows(16).any(|bytes| bytes == b"in its own right"));
    for token in [&grant, &reading] {
        for (what, opcode, rest) in peer.atomics_and_sends() {
            peer.attach(&authd, &provider.key, provider.boot, lease(1), token).await;
            let (address, rkey) = peer.target();
            let answer = peer.ask(opcode, &rest(address, rkey));
            assert!(matches!(answer, None | Some(forge::Answer::Nak(_))), "{what}: {answer:?}");
            assert!(snapshot(&provider.backend) == before, "{what} moved a byte");
        }
    }
    peer.attach(&authd, &provider.key, provider.boot, lease(1), &reading).await;
    assert!(matches!(peer.write(b"never"), Some(forge::Answer::Nak(_))), "a WRITE on a read lease");
    assert!(snapshot(&provider.backend) == before);
    seen(23, "atomics and SENDs are not carried out, no byte moved");
}
