//! Lanes: slots that cannot be touched while they are in flight.

use std::time::{Duration, Instant};

use overbank_verbs::{Access, Done, Lane, MemoryRegion, Op, SlotId, Transfer, VerbsError, WcStatus};
use proptest::prelude::*;

use crate::ends::*;

const SLOT: usize = 5000;

fn lane_and_peer(slots: u32) -> (Lane, End) {
    let mut lane = Lane::new(&open(), slots, SLOT).unwrap();
    let b = End::on(&open_peer());
    lane.connect(&b.qp.endpoint(), PATIENT).unwrap();
    b.qp.connect(&lane.endpoint(), REMOTE, PATIENT).unwrap();
    (lane, b)
}

fn finish(lane: &mut Lane) -> Vec<Done> {
    let mut all = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while lane.in_flight() > 0 {
        assert!(lane.poll_within(deadline, &mut all).unwrap() > 0, "{} still in flight", lane.in_flight());
    }
    all
}

fn transfer(slot: SlotId, op: Op, len: usize, remote: &MemoryRegion, offset: usize) -> Transfer {
    Transfer { slot, op, len, remote_address: remote.address() + offset as u64, rkey: remote.rkey() }
}

#[test]
fn slots_go_out_and_come_back() {
    let (mut lane, b) = lane_and_peer(8);
    let far = memory(8 * SLOT, 0);
    let remote = b.register(&far, ALL);
    let slots: Vec<_> = std::iter::from_fn(|| lane.take()).collect();
    assert_eq!((slots.len(), lane.slots(), lane.slot_len()), (8, 8, SLOT));
    for (at, slot) in slots.iter().enumerate() {
        lane.bytes_mut(*slot).unwrap().copy_from_slice(&pattern(SLOT, at as u8));
    }
    let batch = |op| -> Vec<_> {
        slots.iter().enumerate().map(|(at, slot)| transfer(*slot, op, SLOT, &remote, at * SLOT)).collect()
    };
    lane.post(&batch(Op::Write)).unwrap();
    let done = finish(&mut lane);
    assert_eq!(done, slots.iter().map(|slot| Done { slot: *slot, status: WcStatus::SUCCESS }).collect::<Vec<_>>());
    for (at, slot) in slots.iter().enumerate() {
        assert_eq!(bytes(&far, at * SLOT..(at + 1) * SLOT), pattern(SLOT, at as u8));
        lane.bytes_mut(*slot).unwrap().fill(0);
    }
    lane.post(&batch(Op::Read)).unwrap();
    finish(&mut lane);
    for (at, slot) in slots.iter().enumerate() {
        assert_eq!(lane.bytes(*slot).unwrap(), pattern(SLOT, at as u8));
    }
}

#[test]
fn a_slot_is_touched_only_while_it_is_held() {
    let (mut lane, b) = lane_and_peer(2);
    let far = memory(SLOT, 0);
    let remote = b.register(&far, ALL);
    for free in [SlotId(0), SlotId(1), SlotId(2), SlotId(u32::MAX)] {
        assert!(lane.bytes(free).is_none() && lane.bytes_mut(free).is_none());
        lane.give(free);
        let result = lane.post(&[transfer(free, Op::Read, 10, &remote, 0)]);
        assert!(matches!(result, Err(VerbsError::Slot { .. })), "{result:?}");
    }
    let (one, two) = (lane.take().unwrap(), lane.take().unwrap());
    assert!(one != two && lane.take().is_none());
    lane.post(&[transfer(one, Op::Read, 10, &remote, 0)]).unwrap();
    // In flight until it is polled, whatever has arrived.
    assert!(lane.wait(Instant::now() + Duration::from_secs(10)).unwrap());
    assert!(lane.bytes(one).is_none() && lane.bytes_mut(one).is_none() && lane.bytes(two).is_some());
    lane.give(one);
    assert!(lane.take().is_none(), "a slot in flight was given back");
    // A bad batch leaves the good slot held, and the one in flight in flight.
    for bad in [transfer(one, Op::Read, 10, &remote, 0), transfer(two, Op::Read, 10, &remote, 0)] {
        let result = lane.post(&[transfer(two, Op::Write, 10, &remote, 0), bad]);
        assert!(matches!(result, Err(VerbsError::Slot { .. })), "{result:?}");
        assert!(lane.bytes(one).is_none() && lane.bytes(two).is_some());
    }
    for len in [0, SLOT + 1, usize::MAX] {
        let result = lane.post(&[transfer(two, Op::Write, len, &remote, 0)]);
        assert!(matches!(result, Err(VerbsError::OutOfRange { .. } | VerbsError::ZeroLength { .. })), "{result:?}");
        assert!(lane.bytes(two).is_some());
    }
    assert_eq!((lane.in_flight(), finish(&mut lane).len()), (1, 1));
    assert!(lane.bytes(one).is_some());
    lane.give(one);
    lane.give(one);
    assert!(lane.bytes(one).is_none());
    assert_eq!((lane.take(), lane.take()), (Some(one), None), "given back twice");
}

#[test]
fn who_waits_and_polls_at_once_gets_what_both_give() {
    let (mut lane, b) = lane_and_peer(2);
    let far = memory(SLOT, 0);
    let remote = b.register(&far, ALL);
    let (one, two) = (lane.take().unwrap(), lane.take().unwrap());
    let (mut done, soon) = (Vec::new(), || Instant::now() + Duration::from_secs(10));
    // Nothing comes: until the deadline, and no longer than that.
    let begun = Instant::now();
    assert_eq!(lane.poll_within(begun + Duration::from_millis(50), &mut done).unwrap(), 0);
    assert!(begun.elapsed() >= Duration::from_millis(50) && begun.elapsed() < Duration::from_secs(10));
    assert_eq!(lane.poll_within(begun, &mut done).unwrap(), 0);
    // What was waited for is there for whoever polls next, once.
    lane.post(&[transfer(one, Op::Read, 10, &remote, 0)]).unwrap();
    assert!(lane.wait(soon()).unwrap());
    assert_eq!(lane.poll(&mut done).unwrap(), 1);
    lane.post(&[transfer(one, Op::Read, 10, &remote, 0)]).unwrap();
    assert!(lane.wait(soon()).unwrap());
    assert_eq!(lane.poll_within(soon(), &mut done).unwrap(), 1);
    assert_eq!((lane.poll(&mut done).unwrap(), lane.in_flight()), (0, 0));
    // What a renewal flushed needs no waiting, though the device has nothing.
    lane.post(&[transfer(one, Op::Read, 10, &remote, 0), transfer(two, Op::Read, 10, &remote, 0)]).unwrap();
    lane.renew().unwrap();
    done.clear();
    assert_eq!(lane.poll_within(Instant::now(), &mut done).unwrap(), 2);
    assert_eq!((done.len(), lane.in_flight()), (2, 0));
}

#[test]
fn a_lane_gives_its_peer_nothing() {
    let (mut lane, b) = lane_and_peer(1);
    let slot = lane.take().unwrap();
    lane.bytes_mut(slot).unwrap().fill(GUARD);
    let far = memory(SLOT, 7);
    let mr = b.register(&far, ALL);
    let address = lane.bytes(slot).unwrap().as_ptr() as u64;
    let request = overbank_verbs::WorkRequest {
        id: 1,
        op: Op::Write,
        region: &mr,
        offset: 0,
        len: 10,
        remote_address: address,
        rkey: mr.rkey(),
    };
    assert_eq!(b.run(request), WcStatus::REM_INV_REQ_ERR);
    assert_eq!(lane.bytes(slot).unwrap(), [GUARD; SLOT]);
}

#[test]
fn renew_flushes_what_was_in_flight_and_keeps_the_bytes() {
    let (mut lane, b) = lane_and_peer(4);
    let far = memory(4 * SLOT, 0);
    let remote = b.register(&far, ALL);
    let slots: Vec<_> = std::iter::from_fn(|| lane.take()).collect();
    for (at, slot) in slots.iter().enumerate() {
        lane.bytes_mut(*slot).unwrap().copy_from_slice(&pattern(SLOT, at as u8));
    }
    let old = lane.endpoint();
    b.qp.set_error().unwrap();
    lane.post(&slots[..3].iter().map(|slot| transfer(*slot, Op::Write, SLOT, &remote, 0)).collect::<Vec<_>>()).unwrap();
    lane.renew().unwrap();
    lane.renew().unwrap();
    assert_ne!(lane.endpoint(), old);
    assert!(lane.bytes(slots[0]).is_none(), "not yet polled");
    assert_eq!(lane.in_flight(), 3);
    let mut done = finish(&mut lane);
    done.sort_by_key(|done| done.slot);
    assert_eq!(done.len(), 3);
    assert!(done.iter().all(|done| done.status == WcStatus::WR_FLUSH_ERR), "{done:?}");
    for (at, slot) in slots.iter().enumerate() {
        assert_eq!(lane.bytes(*slot).unwrap(), pattern(SLOT, at as u8));
    }
    // The fresh queue pair works.
    let mut b = b;
    b.replace_qp();
    b.qp.connect(&lane.endpoint(), REMOTE, PATIENT).unwrap();
    lane.connect(&b.qp.endpoint(), PATIENT).unwrap();
    lane.post(&[transfer(slots[3], Op::Write, SLOT, &remote, SLOT)]).unwrap();
    assert_eq!(finish(&mut lane), [Done { slot: slots[3], status: WcStatus::SUCCESS }]);
    assert_eq!(bytes(&far, SLOT..2 * SLOT), pattern(SLOT, 3));
}

#[test]
fn a_failed_transfer_gives_its_slot_back() {
    let (mut lane, b) = lane_and_peer(2);
    let far = memory(SLOT, 0);
    let remote = b.register(&far, Access::LOCAL_WRITE | Access::REMOTE_READ);
    let (one, two) = (lane.take().unwrap(), lane.take().unwrap());
    lane.post(&[transfer(one, Op::Write, 10, &remote, 0), transfer(two, Op::Read, 10, &remote, 0)]).unwrap();
    let expected = [(one, WcStatus::REM_ACCESS_ERR), (two, WcStatus::WR_FLUSH_ERR)];
    assert_eq!(finish(&mut lane), expected.map(|(slot, status)| Done { slot, status }));
    assert!(lane.bytes(one).is_some() && lane.bytes(two).is_some());
}

#[test]
fn a_lane_that_is_not_connected_takes_nothing() {
    let mut lane = Lane::new(&open(), 1, 100).unwrap();
    let slot = lane.take().unwrap();
    let transfer = Transfer { slot, op: Op::Read, len: 1, remote_address: 0, rkey: 0 };
    assert!(matches!(lane.post(&[transfer]), Err(VerbsError::State { .. })));
    assert!(lane.bytes(slot).is_some());
    assert!(Lane::new(&open(), 0, 100).is_err() && Lane::new(&open(), 1, 0).is_err());
    assert!(Lane::new(&open(), u32::MAX, usize::MAX).is_err());
}

/// What the test knows of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Free,
    Held,
    InFlight,
}

#[derive(Debug, Clone)]
enum Step {
    Take,
    Give(u32),
    Post(Vec<(u32, bool, usize)>),
    Poll,
    Drain,
    Renew,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = 0..6_u32;
    let transfer = (slot.clone(), any::<bool>(), prop_oneof![8 => 1..=SLOT, 1 => Just(0), 1 => Just(SLOT + 1)]);
    prop::collection::vec(
        prop_oneof![
            4 => Just(Step::Take),
            2 => slot.prop_map(Step::Give),
            6 => prop::collection::vec(transfer, 1..4).prop_map(Step::Post),
            3 => Just(Step::Poll),
            1 => Just(Step::Drain),
            1 => Just(Step::Renew),
        ],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Slots 4 and 5 do not exist. Each slot writes and reads its own part of the peer's memory.
    #[test]
    fn any_order_of_calls_keeps_slots_and_bytes_apart(steps in steps()) {
        let (mut lane, mut b) = lane_and_peer(4);
        let far = memory(4 * SLOT, 0);
        let remote = b.register(&far, ALL);
        let (mut known, mut bytes_of) = ([Known::Free; 4], vec![vec![0; SLOT]; 4]);
        // What lies at the peer, as far as every WRITE to it has ended well.
        let mut stored = vec![Some(vec![0; SLOT]); 4];
        let mut under_way: Vec<Option<(bool, usize)>> = vec![None; 4];
        let mut done = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Take => match lane.take() {
                    Some(SlotId(slot)) => {
                        prop_assert_eq!(known[slot as usize], Known::Free);
                        known[slot as usize] = Known::Held;
                        bytes_of[slot as usize] = pattern(SLOT, number as u8);
                        lane.bytes_mut(SlotId(slot)).unwrap().copy_from_slice(&bytes_of[slot as usize]);
                    }
                    None => prop_assert!(!known.contains(&Known::Free)),
                },
                Step::Give(slot) => {
                    lane.give(SlotId(slot));
                    if let Some(state @ Known::Held) = known.get_mut(slot as usize) {
                        *state = Known::Free;
                    }
                }
                Step::Post(batch) => {
                    let transfers: Vec<_> = batch
                        .iter()
                        .map(|(slot, read, len)| {
                            let op = if *read { Op::Read } else { Op::Write };
                            transfer(SlotId(*slot), op, *len, &remote, *slot as usize % 4 * SLOT)
                        })
                        .collect();
                    let mut after = known;
                    let good = batch.iter().all(|(slot, _, len)| {
                        let held = after.get(*slot as usize) == Some(&Known::Held);
                        if held {
                            after[*slot as usize] = Known::InFlight;
                        }
                        held && (1..=SLOT).contains(len)
                    });
                    prop_assert_eq!(lane.post(&transfers).is_ok(), good);
                    if good {
                        known = after;
                        for (slot, read, len) in batch {
                            under_way[slot as usize] = Some((read, len));
                            if !read {
                                stored[slot as usize] = None;
                            }
                        }
                    }
                }
                Step::Poll => { lane.poll(&mut done).unwrap(); }
                Step::Drain => done.extend(finish(&mut lane)),
                Step::Renew => {
                    lane.renew().unwrap();
                    b.replace_qp();
                    b.qp.connect(&lane.endpoint(), REMOTE, PATIENT).unwrap();
                    lane.connect(&b.qp.endpoint(), PATIENT).unwrap();
                }
            }
            for Done { slot: SlotId(slot), status } in done.drain(..) {
                let slot = slot as usize;
                prop_assert_eq!(known[slot], Known::InFlight);
                known[slot] = Known::Held;
                let (read, len) = under_way[slot].take().unwrap();
                let mut got = lane.bytes(SlotId(slot as u32)).unwrap().to_vec();
                match (status, read) {
                    (WcStatus::SUCCESS, false) => {
                        far.copy_out(slot * SLOT, &mut got).unwrap();
                        prop_assert!(got[..len] == bytes_of[slot][..len], "a WRITE left other bytes");
                        stored[slot] = Some(got);
                    }
                    (WcStatus::SUCCESS, true) => {
                        if let Some(stored) = &stored[slot] {
                            prop_assert!(got[..len] == stored[..len], "a READ brought other bytes");
                        }
                        prop_assert!(got[len..] == bytes_of[slot][len..], "a READ went beyond its length");
                        bytes_of[slot] = got;
                    }
                    (WcStatus::WR_FLUSH_ERR, true) => bytes_of[slot] = got,
                    (WcStatus::WR_FLUSH_ERR, false) => {}
                    (status, _) => prop_assert!(false, "{status:?}"),
                }
            }
            prop_assert_eq!(lane.in_flight(), known.iter().filter(|state| **state == Known::InFlight).count());
            for (slot, state) in known.iter().enumerate() {
                match lane.bytes(SlotId(slot as u32)) {
                    Some(bytes) => {
                        prop_assert_eq!(*state, Known::Held);
                        prop_assert!(bytes == bytes_of[slot], "a held slot changed");
                    }
                    None => prop_assert_ne!(*state, Known::Held),
                }
            }
        }
    }
}
