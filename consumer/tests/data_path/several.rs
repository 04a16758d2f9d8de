//! Lanes of several threads on one lease.

use std::sync::atomic::{AtomicBool, Ordering};

use overbank_fabric::block::HEADER_LEN;

use crate::lender::*;

const SIZE: usize = 512;

/// A block of one byte's copies: a mixture of two writes would show.
fn uniform(out: &[u8]) -> u8 {
    assert!(out.iter().all(|&byte| byte == out[0]), "parts of two writes");
    out[0]
}

#[test]
fn threads_write_and_read_their_own_blocks() {
    let contents = contents(64, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let lanes: Vec<_> = (0..3).map(|_| lender.attach(&contents)).collect();
    std::thread::scope(|scope| {
        for (number, mut lane) in (0..).zip(lanes) {
            scope.spawn(move || {
                // Neighbours of other threads lie in the same chunk and word of the table.
                for round in 0..200_u64 {
                    let block = (round * 3) % 60 + number;
                    let bytes = pattern(SIZE, round << 8 | number);
                    lane.write(block * SIZE as u64, &bytes, soon()).unwrap();
                    let mut out = [0; SIZE];
                    lane.read(block * SIZE as u64, &mut out, soon()).unwrap();
                    assert!(out[..] == bytes);
                }
            });
        }
    });
    assert!(contents.freshness.is_known());
}

#[test]
fn threads_write_and_read_the_same_blocks() {
    const BLOCKS: usize = 3;
    let contents = contents(BLOCKS as u64, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let writers: Vec<_> = (1..=2).map(|_| lender.attach(&contents)).collect();
    let mut reader = lender.attach(&contents);
    let done = AtomicBool::new(false);
    let mut seen = 0;
    std::thread::scope(|scope| {
        let writing: Vec<_> = (1_u8..)
            .zip(writers)
            .map(|(number, mut lane)| {
                scope.spawn(move || {
                    for round in 0..400_usize {
                        let byte = number | (round as u8) << 2;
                        match round % 3 {
                            // Several blocks at once, in part the other's.
                            0 => lane.write(0, &[byte; BLOCKS * SIZE], soon()).unwrap(),
                            1 => lane.write(SIZE as u64, &[byte; SIZE], soon()).unwrap(),
                            _ => {
                                let mut out = [0; SIZE];
                                lane.read(SIZE as u64, &mut out, soon()).unwrap();
                                uniform(&out);
                            }
                        }
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut out = [0; BLOCKS * SIZE];
            while !done.load(Ordering::Relaxed) {
                reader.read(0, &mut out, soon()).unwrap();
                out.chunks_exact(SIZE).for_each(|block| assert!(uniform(block) < 0xff));
                seen += 1;
            }
        });
        writing.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert!(seen > 10, "{seen} reads");
    assert!(contents.freshness.is_known());
}

/// Each adds to its own bytes of one block: a lost update would show.
#[test]
fn threads_write_parts_of_one_block() {
    let contents = contents(1, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let lanes: Vec<_> = (0..2).map(|_| lender.attach(&contents)).collect();
    std::thread::scope(|scope| {
        for (number, mut lane) in (0..).zip(lanes) {
            scope.spawn(move || {
                for round in 1..=200_u64 {
                    let at = number * 100 + round % 10 * 8;
                    lane.write(at, &round.to_be_bytes(), soon()).unwrap();
                    let mut out = [0; 8];
                    lane.read(at, &mut out, soon()).unwrap();
                    assert_eq!(u64::from_be_bytes(out), round);
                }
            });
        }
    });
    let mut out = [0; SIZE];
    lender.attach(&contents).read(0, &mut out, soon()).unwrap();
    for number in 0..2 {
        for (digit, last) in [(0, 200), (1, 191), (9, 199)] {
            let at = number * 100 + digit * 8;
            assert_eq!(u64::from_be_bytes(out[at..at + 8].try_into().unwrap()), last);
        }
    }
}

#[test]
fn lanes_never_seal_with_the_same_salt() {
    let contents = contents(8, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut salts = std::collections::HashSet::new();
    for block in 0..8 {
        lender.attach(&contents).write(block * SIZE as u64, &[1; SIZE], soon()).unwrap();
        let stride = lender.stride_of(block);
        assert!(salts.insert(stride[..10].to_vec()));
        assert_eq!(stride[10..16], [0, 0, 0, 0, 0, 1]);
        assert_ne!(stride[HEADER_LEN..], [1; SIZE]);
    }
}
