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

#[test]
fn what_the_program_made_unreadable_stays_and_is_there_when_it_is_readable_again() {
    for faults in [Faults::Signal, Faults::Thread] {
        let (mut region, _) = region(512, &RegionOptions { faults, ..RegionOptions::new(64 * PAGE) });
        let bytes = region.as_mut_slice();
        bytes[..8 * PAGE].fill(7);
        let start = bytes.as_mut_ptr();
        // SAFETY: whole pages of the region, which nobody else uses.
        let protect = |protection| unsafe { libc::mprotect(start.cast(), 8 * PAGE, protection) };
        assert_eq!(protect(libc::PROT_NONE), 0);
        // Everything else comes and goes meanwhile.
        (0..3).for_each(|round| bytes[8 * PAGE..].fill(round + 1));
        assert!(bytes[8 * PAGE..].iter().all(|&byte| byte == 3));
        assert_eq!(protect(libc::PROT_READ | libc::PROT_WRITE), 0);
        assert!(bytes[..8 * PAGE].iter().all(|&byte| byte == 7), "{faults:?}");
    }
}
