//! A lender that changes what it holds. Each way has its own error, and no byte of it reaches the caller.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overbank::data::{Contents, DataError, OnUnknown, SealedLane};
use overbank_fabric::block::{BlockContext, Sealer};
use overbank_fabric::ids::LeaseId;

use crate::lender::*;

const BLOCKS: u64 = 50;
const SIZE: usize = 512;

/// A lease whose blocks but the last ten are written, and its reader.
fn written() -> (Contents, Lender, SealedLane) {
    let contents = contents(BLOCKS, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = lender.attach(&contents);
    lane.write(0, &pattern(40 * SIZE, 1), soon()).unwrap();
    (contents, lender, lane)
}

/// Reads the block in every way: alone, in part, among others. All must give an error, and zeros.
fn refused(lane: &mut SealedLane, block: u64) -> DataError {
    let start = block * SIZE as u64;
    let from = start.saturating_sub(3 * SIZE as u64 + 5);
    let len = (20 * SIZE).min(BLOCKS as usize * SIZE - from as usize);
    let mut errors = [(start, SIZE), (start + 10, 20), (from, len), (start, 2 * SIZE)].map(|(offset, len)| {
        let mut out = vec![0xa5; len];
        let error = lane.read(offset, &mut out, soon()).expect_err("it was accepted");
        assert!(out.iter().all(|&byte| byte == 0), "bytes were left: {error}");
        error
    });
    assert!(errors.iter().all(|error| error.is_contents()), "{errors:?}");
    for error in &errors {
        assert_eq!(error.to_string(), errors[0].to_string());
    }
    // A write of a part would have to believe what is there.
    let part = lane.write(start + 1, &[1], soon()).expect_err("it was accepted");
    assert_eq!(part.to_string(), errors[0].to_string());
    std::mem::replace(&mut errors[0], DataError::Timeout)
}

/// All but the given blocks are as they were, and a whole write mends each of those.
fn mended(lane: &mut SealedLane, blocks: &[u64]) {
    for block in 0..40 {
        let start = block * SIZE;
        let mut out = vec![0; SIZE];
        if blocks.contains(&(block as u64)) {
            lane.write(start as u64, &pattern(40 * SIZE, 1)[start..start + SIZE], soon()).unwrap();
        }
        lane.read(start as u64, &mut out, soon()).unwrap();
        assert!(out == pattern(40 * SIZE, 1)[start..start + SIZE]);
    }
}

#[test]
fn attack_24_a_flipped_bit() {
    let (_, lender, mut lane) = written();
    for bit in some_bits(lender.stride) {
        lender.flip(7, bit);
        assert!(matches!(refused(&mut lane, 7), DataError::Tampered { block: 7 }), "bit {bit}");
        lender.flip(7, bit);
    }
    lender.flip(7, 1);
    mended(&mut lane, &[7]);
    println!("attack 24 {}: seen a flipped bit: refused as changed, no byte of it returned", device_name());
}

/// Half of an old content and half of a new one, in every proportion.
#[test]
fn attack_24_a_torn_block() {
    let (_, lender, mut lane) = written();
    let old = lender.stride_of(7);
    lane.write(7 * SIZE as u64, &pattern(SIZE, 2), soon()).unwrap();
    let new = lender.stride_of(7);
    for cut in (16..lender.stride).step_by(32) {
        lender.put(7, &[&new[..cut], &old[cut..]].concat());
        assert!(matches!(refused(&mut lane, 7), DataError::Tampered { block: 7 }), "new up to byte {cut}");
        lender.put(7, &[&old[..cut], &new[cut..]].concat());
        assert!(matches!(refused(&mut lane, 7), DataError::Tampered { block: 7 }), "old up to byte {cut}");
    }
    mended(&mut lane, &[7]);
    println!("attack 24 {}: seen a torn block: refused as changed, no byte of it returned", device_name());
}

#[test]
fn attack_25_an_old_content() {
    let (contents, mut lender, mut lane) = written();
    let old = lender.stride_of(9);
    lane.write(9 * SIZE as u64, &pattern(SIZE, 2), soon()).unwrap();
    lane.write(9 * SIZE as u64, &pattern(40 * SIZE, 1)[9 * SIZE..10 * SIZE], soon()).unwrap();
    lender.put(9, &old);
    assert!(matches!(refused(&mut lane, 9), DataError::Stale { block: 9 }));
    mended(&mut lane, &[9]);

    // Of another lane, too.
    lender.put(9, &old);
    assert!(matches!(refused(&mut lender.attach(&contents), 9), DataError::Stale { block: 9 }));

    // Something that was sealed for a block that was never written: a lane that nobody recorded.
    let mut never = vec![0; lender.stride];
    Sealer::new(&contents.key, &contents.context).seal(45, &pattern(SIZE, 3), &mut never).unwrap();
    lender.put(45, &never);
    assert!(matches!(refused(&mut lane, 45), DataError::Stale { block: 45 }));
    println!("attack 25 {}: seen refused as played back, no byte of it returned", device_name());
}

#[test]
fn attack_26_a_swapped_block() {
    let (_, lender, mut lane) = written();
    lender.swap(3, 30);
    assert!(matches!(refused(&mut lane, 3), DataError::Moved { block: 3, from: 30 }));
    assert!(matches!(refused(&mut lane, 30), DataError::Moved { block: 30, from: 3 }));
    lender.swap(3, 30);
    mended(&mut lane, &[]);

    // To where nothing was written, and with a changed bit on the way.
    lender.put(44, &lender.stride_of(5));
    assert!(matches!(refused(&mut lane, 44), DataError::Moved { block: 44, from: 5 }));
    lender.flip(44, lender.stride * 8 - 1);
    assert!(matches!(refused(&mut lane, 44), DataError::Tampered { block: 44 }));
    println!("attack 26 {}: seen another offset: refused, and said from where it was moved", device_name());
}

#[test]
fn attack_26_a_block_of_another_lease() {
    let (contents, lender, mut lane) = written();
    let home = &contents.context;
    let others = [
        BlockContext { generation: home.generation + 1, ..home.clone() },
        BlockContext { tenant: "team-8".parse().unwrap(), ..home.clone() },
        BlockContext { lease: LeaseId::random(), ..home.clone() },
    ];
    for other in others {
        let mut stride = vec![0; lender.stride];
        // Even under the same key.
        Sealer::new(&contents.key, &other).seal(3, &pattern(SIZE, 3), &mut stride).unwrap();
        lender.put(3, &stride);
        assert!(matches!(refused(&mut lane, 3), DataError::Tampered { block: 3 }), "{other:?}");
    }
    mended(&mut lane, &[3]);
    println!("attack 26 {}: seen another tenant, lease or generation: refused as changed", device_name());
}

#[test]
fn attack_27_zeros_for_a_written_block() {
    let (_, lender, mut lane) = written();
    let good = lender.stride_of(20);
    lender.erase(20);
    assert!(matches!(refused(&mut lane, 20), DataError::Erased { block: 20 }));
    // The header is what counts.
    lender.put(20, &[&[0; 32], &good[32..]].concat());
    assert!(matches!(refused(&mut lane, 20), DataError::Erased { block: 20 }));
    mended(&mut lane, &[20]);
    println!("attack 27 {}: seen refused as erased, no byte of it returned", device_name());
}

#[test]
fn anything_in_a_block_never_written_is_tampering() {
    let (_, lender, mut lane) = written();
    lender.put(45, &pattern(lender.stride, 9));
    assert!(matches!(refused(&mut lane, 45), DataError::Tampered { block: 45 }));
}

#[test]
fn after_a_crash_each_policy_keeps_its_word() {
    let (contents, mut lender, lane) = written();
    drop(lane);
    lender.flip(7, 300);
    lender.erase(30);
    let old = lender.stride_of(9);
    let read = |lane: &mut SealedLane, block: u64| {
        let mut out = vec![0xa5; SIZE];
        lane.read(block * SIZE as u64, &mut out, soon()).map(|()| out)
    };
    let good = |block: usize| pattern(40 * SIZE, 1)[block * SIZE..(block + 1) * SIZE].to_vec();

    let mut refuse = lender.attach(&after_a_crash(&contents, OnUnknown::Refuse));
    for block in [0, 30, 45] {
        let error = read(&mut refuse, block).unwrap_err();
        assert!(matches!(error, DataError::FreshnessUnknown { block: b } if b == block), "{error}");
    }
    assert!(matches!(read(&mut refuse, 7), Err(DataError::Torn { block: 7 })));
    // What this process wrote it knows.
    refuse.write(0, &good(0), soon()).unwrap();
    assert_eq!(read(&mut refuse, 0).unwrap(), good(0));

    let unknown = after_a_crash(&contents, OnUnknown::AcceptSealed);
    let mut sealed = lender.attach(&unknown);
    assert!(!unknown.freshness.is_known());
    assert_eq!(read(&mut sealed, 9).unwrap(), good(9));
    assert!(matches!(refused(&mut sealed, 30), DataError::FreshnessUnknown { block: 30 }));
    assert!(matches!(refused(&mut sealed, 7), DataError::Torn { block: 7 }));
    // What was found counts from then on.
    refuse.write(9 * SIZE as u64, &good(9), soon()).unwrap();
    let newer = lender.stride_of(9);
    assert!(matches!(refused(&mut sealed, 9), DataError::Stale { block: 9 }));
    lender.put(9, &old);
    assert_eq!(read(&mut sealed, 9).unwrap(), good(9));
    lender.put(9, &newer);

    let mut accept = lender.attach(&after_a_crash(&contents, OnUnknown::Accept));
    assert_eq!(read(&mut accept, 9).unwrap(), good(9));
    assert_eq!(read(&mut accept, 30).unwrap(), [0; SIZE]);
    assert!(matches!(refused(&mut accept, 7), DataError::Torn { block: 7 }));
}

/// A block that does not open may have been caught in the middle of somebody's write.
#[test]
fn a_block_that_does_not_open_is_fetched_a_few_times() {
    let (_, lender, mut lane) = written();
    lender.flip(7, 400);
    let counted = || {
        // A kernel looks at what it counts now and then only.
        std::thread::sleep(Duration::from_millis(30));
        lender.device.counters().received
    };
    let before = counted();
    assert!(lane.read(7 * SIZE as u64, &mut [0; SIZE], soon()).is_err());
    let packets = counted() - before;
    // A request each time. A real device counts whatever goes through its port.
    let most = if device_name() == "soft" { 12 } else { u64::MAX };
    assert!((4..=most).contains(&packets), "{packets} packets");

    // One that is good for most of the time is found so.
    let bad = lender.stride_of(7);
    lender.flip(7, 400);
    let good = lender.stride_of(7);
    let stop = AtomicBool::new(false);
    let mut right = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lender.put(7, &bad);
                lender.put(7, &good);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        for _ in 0..500 {
            let mut out = [0xa5; SIZE];
            match lane.read(7 * SIZE as u64, &mut out, soon()) {
                Ok(()) => {
                    assert_eq!(out, pattern(40 * SIZE, 1)[7 * SIZE..8 * SIZE]);
                    right += 1;
                }
                Err(error) => assert!(matches!(error, DataError::Tampered { block: 7 }), "{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(right > 0);
}
