//! What is written is read, however far it was in between.

use std::sync::atomic::Ordering;

use overbank_paging::{Faults, RegionOptions};

use crate::vault::{PAGE, region};

const BOTH: [Faults; 2] = [Faults::Signal, Faults::Thread];

fn options(local_pages: usize, faults: Faults) -> RegionOptions {
    RegionOptions { faults, ..RegionOptions::new(local_pages * PAGE) }
}

/// A byte that tells its place.
fn byte_of(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 11) as u8 | 1
}

#[test]
fn a_region_eight_times_its_local_memory_keeps_every_byte() {
    for faults in BOTH {
        let (mut region, vault) = region(1024, &options(128, faults));
        let bytes = region.as_mut_slice();
        for at in (0..bytes.len()).step_by(64) {
            bytes[at] = byte_of(at);
        }
        for lap in 0..2 {
            for at in (0..bytes.len()).step_by(64) {
                assert_eq!(bytes[at], byte_of(at), "{faults:?} lap {lap} byte {at}");
            }
        }
        // Backwards, with holes.
        for at in (0..bytes.len()).step_by(64 * 129).rev() {
            assert_eq!(bytes[at], byte_of(at));
        }
        let stats = region.stats();
        assert!(stats.peak_resident_bytes <= 128 * PAGE as u64, "{stats:?}");
        assert!(stats.fetched >= 2 * (1024 - 128), "{stats:?}");
        assert!(stats.ahead > stats.fetched / 2, "{stats:?}");
        // Each page was written once; a scan that only reads stores nothing again.
        assert!(vault.stores.load(Ordering::SeqCst) > 0 && stats.stored <= 1024 + 64, "{stats:?}");
    }
}

#[test]
fn zeros_never_travel() {
    for faults in BOTH {
        let (mut region, vault) = region(512, &options(64, faults));
        let bytes = region.as_mut_slice();
        assert!(bytes.iter().all(|&byte| byte == 0));
        // Written, and zeros again.
        for at in (0..bytes.len()).step_by(PAGE) {
            bytes[at] = 0;
        }
        assert!(bytes.iter().all(|&byte| byte == 0));
        let stats = region.stats();
        assert_eq!((stats.stored, stats.fetched, vault.held()), (0, 0, 0), "{stats:?}");
        assert!(stats.emptied >= 3 * (512 - 64), "{stats:?}");
    }
}

#[test]
fn a_page_that_became_zeros_is_not_what_the_store_still_has() {
    let (mut region, _) = region(512, &options(64, Faults::Signal));
    let bytes = region.as_mut_slice();
    bytes.iter_mut().step_by(PAGE).for_each(|byte| *byte = 7);
    bytes.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0);
    assert!(bytes.iter().all(|&byte| byte == 0));
}

#[test]
fn larger_pages_and_odd_places_work() {
    for page in [8192, 65_536, 2 << 20] {
        let options = RegionOptions { page, ..RegionOptions::new(40 * page) };
        let (mut region, _) = region(100, &options);
        assert!((region.start().as_ptr() as usize).is_multiple_of(page));
        let bytes = region.as_mut_slice();
        let places: Vec<usize> = (0..bytes.len()).step_by(page / 2 + 13).collect();
        places.iter().for_each(|&at| bytes[at] = byte_of(at));
        assert!(places.iter().all(|&at| bytes[at] == byte_of(at)));
        assert!(region.stats().evicted >= 60, "{:?}", region.stats());
    }
}

#[test]
fn reads_do_not_make_pages_dirty_and_a_write_after_a_read_does() {
    for faults in BOTH {
        let (mut region, _) = region(512, &options(64, faults));
        let bytes = region.as_mut_slice();
        bytes.iter_mut().step_by(PAGE).enumerate().for_each(|(n, byte)| *byte = n as u8 | 1);
        let sum = |bytes: &[u8]| bytes.iter().step_by(PAGE).map(|&byte| u64::from(byte)).sum::<u64>();
        let first = sum(bytes);
        assert_eq!(sum(bytes), first);
        // Read, then written a little later, on the way over all pages.
        for at in (0..bytes.len()).step_by(PAGE) {
            let old = bytes[at];
            std::hint::black_box(old);
            bytes[at + 1] = old;
        }
        assert!((0..bytes.len()).step_by(PAGE).all(|at| bytes[at] == bytes[at + 1] && bytes[at] != 0));
        assert!(region.stats().write_faults > 0, "{:?}", region.stats());
    }
}

#[test]
fn what_is_discarded_is_zeros_and_the_rest_stays() {
    for faults in BOTH {
        let (mut region, _) = region(512, &options(64, faults));
        region.as_mut_slice().fill(9);
        let done = region.discard(PAGE / 2..PAGE * 300 + 5).expect("discarded");
        assert_eq!(done, PAGE..PAGE * 300);
        let bytes = region.as_mut_slice();
        assert!(bytes[..PAGE].iter().all(|&byte| byte == 9));
        assert!(bytes[PAGE..PAGE * 300].iter().all(|&byte| byte == 0));
        assert!(bytes[PAGE * 300..].iter().all(|&byte| byte == 9));
        assert!(region.discard(0..512 * PAGE + 1).is_err());
    }
}

#[test]
fn what_is_held_stays() {
    let (mut region, _) = region(512, &options(64, Faults::Signal));
    region.as_mut_slice().fill(3);
    region.hold(5 * PAGE..9 * PAGE).expect("held");
    let faults = |region: &mut overbank_paging::Region<_>, range: std::ops::Range<usize>| {
        let before = region.stats().faults;
        assert!(region.as_mut_slice()[range].iter().all(|&byte| byte == 3));
        region.stats().faults - before
    };
    faults(&mut region, 100 * PAGE..400 * PAGE);
    assert_eq!(faults(&mut region, 5 * PAGE..9 * PAGE), 0);
    assert_eq!(region.resident(5 * PAGE..9 * PAGE).expect("asked"), [true; 4]);
    region.unhold(5 * PAGE..9 * PAGE).expect("let go");
    faults(&mut region, 100 * PAGE..400 * PAGE);
    assert!(faults(&mut region, 5 * PAGE..9 * PAGE) > 0);
    assert!(region.hold(0..64 * PAGE).is_err(), "all of the local memory cannot be held");
    // And then nothing is.
    faults(&mut region, 100 * PAGE..400 * PAGE);
    assert!(faults(&mut region, 0..4 * PAGE) > 0);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    use overbank_paging::{PagingError, Region};
    let new = |bytes: usize, options: &RegionOptions| {
        let vault = std::sync::Arc::new(crate::vault::Vault::default());
        let lanes = (0..3).map(|_| crate::vault::VaultLane(std::sync::Arc::clone(&vault))).collect();
        Region::new(bytes, lanes, vault, options).map(drop)
    };
    let good = RegionOptions::new(64 * PAGE);
    assert!(matches!(new(PAGE + 1, &good), Err(PagingError::Length { .. })));
    assert!(matches!(new(0, &good), Err(PagingError::Length { .. })));
    assert!(matches!(new(PAGE, &RegionOptions { page: 2048, ..good.clone() }), Err(PagingError::Page { .. })));
    assert!(matches!(new(8 << 20, &RegionOptions { page: 4 << 20, ..good.clone() }), Err(PagingError::Page { .. })));
    assert!(matches!(new(PAGE, &RegionOptions::new(31 * PAGE)), Err(PagingError::TooLittle { .. })));
    assert!(new(PAGE, &good).is_ok());
}
