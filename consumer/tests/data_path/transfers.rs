//! Any bytes, at any offset, come back as they were written.

use overbank::data::{DataError, Window};
use overbank_fabric::token::Rights;
use overbank_verbs::Op;
use proptest::prelude::*;

use crate::lender::*;

#[test]
fn bytes_never_written_are_zeros() {
    let contents = contents(40, 512);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    for (offset, len) in [(0, 1), (0, 512), (511, 2), (100, 10_000), (0, 40 * 512), (40 * 512 - 1, 1)] {
        let mut out = vec![0xa5; len];
        lane.read(offset, &mut out, soon()).unwrap();
        assert!(out.iter().all(|&byte| byte == 0), "{len} from {offset}");
    }
}

#[test]
fn what_is_written_comes_back_and_is_not_there_in_the_clear() {
    let contents = contents(300, 4096);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    let bytes = pattern(300 * 4096, 1);
    lane.write(0, &bytes, soon()).unwrap();
    let mut out = vec![0xa5; bytes.len()];
    lane.read(0, &mut out, soon()).unwrap();
    assert!(out == bytes);

    let mut there = vec![0; lender.memory.len()];
    lender.memory.copy_out(0, &mut there).unwrap();
    let known: std::collections::HashSet<&[u8]> = bytes.chunks_exact(16).collect();
    assert!(!there.windows(16).any(|window| known.contains(window)));
}

#[test]
fn the_last_block_may_be_usable_in_part() {
    let mut contents = contents(3, 512);
    contents.bytes = 1025;
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    assert_eq!(lane.reach(), 0..1025);
    lane.write(0, &pattern(1025, 1), soon()).unwrap();
    lane.write(1024, &[7], soon()).unwrap();
    let mut out = [0; 1025];
    lane.read(0, &mut out, soon()).unwrap();
    assert_eq!((&out[..1024], out[1024]), (&pattern(1025, 1)[..1024], 7));
    assert!(matches!(lane.read(1024, &mut [0; 2], soon()), Err(DataError::Range { end: 1025, .. })));
}

#[test]
fn what_is_outside_is_refused_before_anything_is_sent() {
    let contents = contents(10, 512);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    for (offset, len) in [(5120, 1), (5119, 2), (0, 5121), (u64::MAX, 1), (u64::MAX, 0), (u64::MAX - 5, 10)] {
        let mut out = vec![0xa5; len];
        assert!(matches!(lane.read(offset, &mut out, soon()), Err(DataError::Range { .. })), "{len} from {offset}");
        assert!(out.iter().all(|&byte| byte == 0));
        assert!(matches!(lane.write(offset, &out, soon()), Err(DataError::Range { .. })), "{len} from {offset}");
    }
    lane.read(5120, &mut [], soon()).unwrap();
    lane.write(5120, &[], soon()).unwrap();
    assert_eq!(lender.memory.first_nonzero(0..lender.memory.len()).unwrap(), None);
}

#[test]
fn a_lane_keeps_to_the_range_and_the_rights_of_its_attach() {
    let contents = contents(10, 512);
    let mut lender = Lender::new(&contents);
    lender.attach(&contents).write(0, &pattern(5120, 1), soon()).unwrap();
    let mut narrow = |rights| {
        let mut lane = overbank::data::bounce_lane(&device(), 512).unwrap();
        let remote = lender.accept(&lane.endpoint());
        lane.connect(&remote, PATIENT).unwrap();
        let whole = lender.window();
        let address = whole.address + 4 * u64::from(whole.stride);
        let window = Window { address, first_block: 4, blocks: 3, rights, ..whole };
        overbank::data::SealedLane::new(lane, &contents, window, long_hence()).unwrap()
    };

    let mut reader = narrow(Rights::READ);
    assert_eq!(reader.reach(), 2048..3584);
    let mut out = [0; 1536];
    reader.read(2048, &mut out, soon()).unwrap();
    assert_eq!(out, pattern(5120, 1)[2048..3584]);
    for offset in [2047, 3584] {
        assert!(matches!(reader.read(offset, &mut [0], soon()), Err(DataError::Range { first: 2048, end: 3584, .. })));
    }
    assert!(matches!(reader.write(2048, &[1; 512], soon()), Err(DataError::NotGranted { op: Op::Write })));

    let mut writer = narrow(Rights::WRITE);
    writer.write(2560, &[1; 512], soon()).unwrap();
    assert!(matches!(writer.write(2560, &[1; 511], soon()), Err(DataError::NotGranted { op: Op::Read })));
    assert!(matches!(writer.write(2561, &[1; 511], soon()), Err(DataError::NotGranted { op: Op::Read })));
    assert!(matches!(writer.read(2560, &mut [1; 512], soon()), Err(DataError::NotGranted { op: Op::Read })));
    reader.read(2048, &mut out, soon()).unwrap();
    assert_eq!((&out[..512], &out[512..1024]), (&pattern(5120, 1)[2048..2560], &[1; 512][..]));
}

#[test]
fn an_answer_that_makes_no_sense_is_refused() {
    let contents = contents(10, 512);
    let mut lender = Lender::new(&contents);
    let good = lender.window();
    let bad = [
        Window { stride: 543, ..good },
        Window { stride: 512, ..good },
        Window { stride: u32::MAX, ..good },
        Window { blocks: 11, ..good },
        Window { first_block: 1, ..good },
        Window { first_block: u64::MAX, ..good },
        Window { blocks: u64::MAX, ..good },
        Window { address: u64::MAX - 5000, ..good },
    ];
    for window in bad {
        let lane = overbank::data::bounce_lane(&device(), 512).unwrap();
        let made = overbank::data::SealedLane::new(lane, &contents, window, long_hence());
        assert!(matches!(made.err(), Some(DataError::Window(_))), "{window:?}");
        let mut lane = lender.attach(&contents);
        lane.renew().unwrap();
        assert!(matches!(lane.resume(window, long_hence(), soon()), Err(DataError::Window(_))), "{window:?}");
        assert!(lane.is_broken());
    }
}

#[test]
fn blocks_of_every_size_go() {
    for bits in 9..=20 {
        let contents = contents(5, 1 << bits);
        let mut lender = Lender::new(&contents);
        let mut lane = lender.attach(&contents);
        let bytes = pattern(5 << bits, bits);
        lane.write(0, &bytes, soon()).unwrap();
        let mut out = vec![0; bytes.len() - 2];
        lane.read(1, &mut out, soon()).unwrap();
        assert!(out == bytes[1..bytes.len() - 1], "2^{bits}");
    }
}

#[test]
fn a_deadline_that_has_passed_and_a_lease_that_is_over_are_told_apart() {
    let contents = contents(4000, 512);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    let past = std::time::Instant::now();
    let mut out = vec![0xa5; 4000 * 512];
    assert!(matches!(lane.read(0, &mut out, past), Err(DataError::Timeout)));
    assert!(out.iter().all(|&byte| byte == 0));
    assert!(matches!(lane.write(0, &out, past), Err(DataError::Timeout)));
    lane.set_until(past);
    assert!(matches!(lane.read(0, &mut out, soon()), Err(DataError::LeaseOver)));
    assert!(matches!(lane.write(0, &out, soon()), Err(DataError::LeaseOver)));
    lane.set_until(long_hence());
    // What timed out is waited for by whoever comes next.
    lane.write(0, &pattern(4000 * 512, 2), soon()).unwrap();
    lane.read(0, &mut out, soon()).unwrap();
    assert!(out == pattern(4000 * 512, 2));
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u64),
    Read(usize, usize),
    /// The process ends well, and another goes on.
    Restart,
}

fn steps(bytes: usize) -> impl Strategy<Value = Vec<Step>> {
    let len = move |short: usize| prop_oneof![6 => 1..=short, 1 => 1..=bytes];
    let range = (0..bytes, len(3000)).prop_map(move |(offset, len)| (offset, len.min(bytes - offset)));
    prop::collection::vec(
        prop_oneof![
            5 => (range.clone(), any::<u64>()).prop_map(|((offset, len), seed)| Step::Write(offset, len, seed)),
            5 => range.prop_map(|(offset, len)| Step::Read(offset, len)),
            1 => Just(Step::Restart),
        ],
        1..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Against plain memory.
    #[test]
    fn a_lease_is_memory(block in 9..=12_u32, steps in steps(200_003)) {
        const BYTES: usize = 200_003;
        let size = 1 << block;
        let mut contents = contents((BYTES as u64).div_ceil(u64::from(size)), size);
        contents.bytes = BYTES as u64;
        let mut lender = Lender::new(&contents);
        let mut lane = lender.attach(&contents);
        let mut oracle = vec![0; BYTES];
        for step in steps {
            match step {
                Step::Write(offset, len, seed) => {
                    let bytes = pattern(len, seed);
                    lane.write(offset as u64, &bytes, soon()).unwrap();
                    oracle[offset..offset + len].copy_from_slice(&bytes);
                }
                Step::Read(offset, len) => {
                    let mut out = vec![0xa5; len];
                    lane.read(offset as u64, &mut out, soon()).unwrap();
                    prop_assert!(out == oracle[offset..offset + len], "{} from {}", len, offset);
                }
                Step::Restart => {
                    drop(lane);
                    lender.hang_up();
                    let saved = contents.freshness.to_bytes(&contents.key, &contents.context);
                    let blocks = contents.freshness.blocks();
                    let table = overbank::freshness::Freshness::from_bytes(&saved, &contents.key, &contents.context, blocks);
                    contents.freshness = std::sync::Arc::new(table.unwrap());
                    prop_assert!(contents.freshness.is_known());
                    lane = lender.attach(&contents);
                }
            }
        }
        let mut out = vec![0xa5; BYTES];
        lane.read(0, &mut out, soon()).unwrap();
        prop_assert!(out == oracle);
    }
}
