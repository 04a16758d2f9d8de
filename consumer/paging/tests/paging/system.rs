//! System calls on a region's memory.

use std::io::{Read, Write};

use overbank_paging::{Faults, RegionOptions};

use crate::vault::{PAGE, region};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8 | 1).collect()
}

#[test]
fn a_file_is_read_straight_into_a_region_and_written_out_of_it() {
    let options = RegionOptions { faults: Faults::Thread, ..RegionOptions::new(64 * PAGE) };
    let (mut region, _) = region(512, &options);
    let (path, all) = (std::env::temp_dir().join(format!("overbank-page-{}", std::process::id())), pattern(512 * PAGE));
    std::fs::write(&path, &all).unwrap();
    let mut file = std::fs::File::open(&path).unwrap();
    file.read_exact(region.as_mut_slice()).expect("the kernel's own faults are resolved");
    assert!(region.as_mut_slice() == all);
    std::fs::File::create(&path).unwrap().write_all(region.as_mut_slice()).expect("written out of it");
    assert!(std::fs::read(&path).unwrap() == all);
    std::fs::remove_file(path).unwrap();
    assert!(region.stats().evicted > 800, "{:?}", region.stats());
}

#[test]
fn by_signal_the_kernel_says_so_instead() {
    let (mut region, _) = region(512, &RegionOptions::new(64 * PAGE));
    let mut zero = std::fs::File::open("/dev/zero").unwrap();
    let refused = zero.read(&mut region.as_mut_slice()[5 * PAGE..6 * PAGE]).expect_err("the page is not there");
    assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
    // What is held can be used.
    region.hold(5 * PAGE..6 * PAGE).unwrap();
    assert_eq!(zero.read(&mut region.as_mut_slice()[5 * PAGE..6 * PAGE]).unwrap_or(0), PAGE);
}
