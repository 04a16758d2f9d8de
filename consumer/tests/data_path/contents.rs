//! Sizes and bounds of what lanes are made of.

use overbank::data::{DataError, OnUnknown, SealedLane, bounce_lane};

use crate::lender::*;

#[test]
fn lanes_can_move_between_threads() {
    fn sent<T: Send>() {}
    sent::<SealedLane>();
    fn shared<T: Send + Sync>() {}
    shared::<overbank::freshness::Freshness>();
    shared::<overbank::data::Contents>();
}

#[test]
fn bounce_memory_is_bounded_and_holds_a_block_of_any_size() {
    for bits in 9..=20 {
        let lane = bounce_lane(&device(), 1 << bits).unwrap();
        let stride = 32 + (1 << bits);
        assert!(lane.slot_len() >= stride && lane.slot_len().is_multiple_of(stride), "2^{bits}");
        assert!(lane.slot_len() * lane.slots() <= (1 << 20) + 32 * 16 || lane.slot_len() == stride, "2^{bits}");
    }
}

#[test]
fn a_block_size_that_no_lease_has_makes_no_lane() {
    let mut bad = contents(10, 512);
    let window = Lender::new(&bad).window();
    bad.context.block = 500;
    let window = overbank::data::Window { stride: 532, ..window };
    let made = SealedLane::new(bounce_lane(&device(), 512).unwrap(), &bad, window, long_hence());
    assert!(matches!(made.err(), Some(DataError::Window(_))));
}

#[test]
fn a_lane_with_slots_too_small_is_refused() {
    let contents = contents(10, 1024);
    let window = Lender::new(&contents).window();
    let lane = overbank_verbs::Lane::new(&device(), 2, 1000).unwrap();
    assert!(matches!(SealedLane::new(lane, &contents, window, long_hence()).err(), Some(DataError::Window(_))));
}

#[test]
fn without_an_answer_of_the_caller_an_empty_block_of_unknown_freshness_is_refused() {
    assert_eq!(OnUnknown::default(), OnUnknown::AcceptSealed);
}
