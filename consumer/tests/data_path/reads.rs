//! Many reads at once.

use std::time::{Duration, Instant};

use overbank::data::{DataError, SealedLane};
use proptest::prelude::*;

use crate::lender::*;

const BLOCKS: u64 = 400;
const SIZE: usize = 512;
const BYTES: usize = BLOCKS as usize * SIZE;

fn written() -> (Lender, SealedLane, Vec<u8>) {
    let contents = contents(BLOCKS, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    let bytes = pattern(BYTES, 1);
    lane.write(0, &bytes, soon()).unwrap();
    (lender, lane, bytes)
}

/// Reads all of them at once; what comes back, in the order in which it comes.
fn all(lane: &mut SealedLane, wishes: &[(usize, usize)]) -> Result<Vec<Vec<u8>>, DataError> {
    let mut buffers: Vec<Vec<u8>> = wishes.iter().map(|(_, len)| vec![0xa5; *len]).collect();
    let (mut reads, mut came) = (lane.reads(), Vec::new());
    for ((offset, _), buffer) in wishes.iter().zip(&mut buffers) {
        came.extend(reads.push(*offset as u64, buffer, soon())?.map(|done| done.to_vec()));
    }
    while let Some(done) = reads.wait()? {
        came.push(done.to_vec());
    }
    Ok(came)
}

fn wishes() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let lengths = prop_oneof![0..3 * SIZE, Just(SIZE), 0..BYTES];
    let wish = (0..BYTES, lengths).prop_map(|(offset, len)| (offset, len.min(BYTES - offset)));
    proptest::collection::vec(wish, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn they_come_back_in_order_with_what_was_written(wishes in wishes()) {
        let (_lender, mut lane, bytes) = written();
        let came = all(&mut lane, &wishes).unwrap();
        prop_assert_eq!(came.len(), wishes.len());
        for ((offset, len), came) in wishes.into_iter().zip(came) {
            prop_assert!(came == bytes[offset..offset + len], "{} from {}", len, offset);
        }
    }
}

#[test]
fn one_bad_block_wipes_all_that_is_under_way() {
    let (lender, mut lane, bytes) = written();
    lender.flip(200, 9);
    let mut buffers = vec![vec![0xa5; SIZE]; BLOCKS as usize];
    let (mut good, mut reads) = (0, lane.reads());
    let mut error = None;
    for (block, buffer) in buffers.iter_mut().enumerate() {
        match reads.push((block * SIZE) as u64, buffer, soon()) {
            Ok(done) => good += usize::from(done.is_some()),
            Err(refused) => {
                error = Some(refused);
                break;
            }
        }
    }
    assert!(matches!(error, Some(DataError::Tampered { block: 200 })), "{error:?}");
    assert!(reads.wait().unwrap().is_none(), "nothing is under way any more");
    drop(reads);
    for (block, buffer) in buffers.iter().enumerate() {
        let expected = &bytes[block * SIZE..(block + 1) * SIZE];
        match block {
            _ if block < good => assert!(buffer == expected, "{block} had been given back"),
            // The last ones were never asked for.
            _ if buffer[0] == 0xa5 && block > 200 => assert!(buffer.iter().all(|&byte| byte == 0xa5)),
            _ => assert!(buffer.iter().all(|&byte| byte == 0), "{block} was left with something"),
        }
    }
    assert!(good >= 150, "{good}");
    // The lane goes on.
    assert!(all(&mut lane, &[(0, 200 * SIZE)]).unwrap()[0] == bytes[..200 * SIZE]);
    assert!(matches!(all(&mut lane, &[(0, 10), (199 * SIZE, 2 * SIZE)]), Err(DataError::Tampered { block: 200 })));
}

#[test]
fn what_does_not_fit_is_refused_and_wiped() {
    let (_lender, mut lane, bytes) = written();
    let mut out = vec![0xa5; SIZE];
    for (offset, len) in [(BYTES - 1, 2), (usize::MAX, 1), (usize::MAX - 1, 0)] {
        let mut reads = lane.reads();
        let error = reads.push(offset as u64, &mut out[..len], soon()).unwrap_err();
        assert!(matches!(error, DataError::Range { .. }), "{error}");
        drop(reads);
        assert!(out[..len].iter().all(|&byte| byte == 0));
    }
    assert!(all(&mut lane, &[(5, 1000)]).unwrap()[0] == bytes[5..1005]);
}

#[test]
fn who_loses_interest_leaves_a_lane_that_goes_on() {
    let (_lender, mut lane, bytes) = written();
    for (round, forget) in [false, true, false, true].into_iter().enumerate() {
        let mut buffers = vec![vec![0xa5; SIZE]; 40];
        let mut reads = lane.reads();
        for (at, buffer) in buffers.iter_mut().enumerate().take(if forget { 3 } else { 40 }) {
            reads.push((at * SIZE) as u64, buffer, soon()).unwrap();
        }
        if forget {
            std::mem::forget(reads);
        } else {
            drop(reads);
        }
        // Bytes that lie elsewhere: what was asked for before has no place in them.
        let from = 100 * SIZE;
        let mut out = vec![0; BYTES - from];
        match forget {
            true if round == 1 => lane.read(from as u64, &mut out, soon()).unwrap(),
            true => assert!(all(&mut lane, &[(from, 1000)]).unwrap()[0] == bytes[from..from + 1000]),
            false => lane.write(from as u64 + 7, &bytes[from + 7..from + 2000], soon()).unwrap(),
        }
        lane.read(from as u64, &mut out, soon()).unwrap();
        assert!(out == bytes[from..]);
        assert!(all(&mut lane, &[(0, BYTES), (3, 5)]).unwrap()[1] == bytes[3..8]);
    }
}

#[test]
fn a_lender_that_stalls_is_late() {
    let contents = contents(BLOCKS, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach_with(&contents, STUBBORN);
    lane.write(0, &pattern(BYTES, 1), soon()).unwrap();
    lender.hang_up();
    let begun = Instant::now();
    let mut out = vec![0xa5; SIZE];
    let mut reads = lane.reads();
    assert!(reads.push(0, &mut out, Instant::now() + Duration::from_millis(100)).unwrap().is_none());
    assert!(matches!(reads.wait(), Err(DataError::Timeout)));
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(reads);
    assert!(out.iter().all(|&byte| byte == 0));
}
