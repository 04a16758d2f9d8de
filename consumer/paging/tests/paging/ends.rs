//! A page that cannot be had ends the program with a signal and a line that says why; never with other bytes. Each case
//! runs in a process of its own: this program, started again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::Duration;

use overbank_paging::{Faults, Region, RegionOptions};

use crate::vault::{PAGE, VaultLane, region};

/// In a process that [`again`] started: which case it is to run.
fn case() -> Option<String> {
    std::env::var("OVERBANK_CASE").ok()
}

/// Runs one test once more, in a process of its own that is told to be this case.
fn again(test: &str, case: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("ends::{test}"), "--nocapture", "--test-threads", "1"])
        .env("OVERBANK_CASE", case)
        .output()
        .unwrap()
}

#[test]
fn a_lost_page_ends_in_sigbus_and_says_why() {
    if let Some(case) = case() {
        let faults = if case == "signal" { Faults::Signal } else { Faults::Thread };
        let options = RegionOptions { faults, patience: Duration::from_secs(2), ..RegionOptions::new(64 * PAGE) };
        let (mut region, vault) = region(512, &options);
        region.as_mut_slice().fill(5);
        vault.lost.store(true, Ordering::SeqCst);
        // Away by now, since the last ones are here.
        println!("it was {}", region.as_mut_slice()[3 * PAGE]);
        return;
    }
    for case in ["signal", "thread"] {
        let output = again("a_lost_page_ends_in_sigbus_and_says_why", case);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(7), "{case}: {:?} {said}", output.status);
        assert!(said.contains("of a paged region of 2097152, is lost: the vault is gone"), "{case}: {said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("it was "), "{case}");
    }
}

#[test]
fn a_program_that_locks_all_its_memory_has_the_bound_and_every_byte() {
    if let Some(case) = case() {
        let lock = |flags| {
            // SAFETY: says where pages are, and changes no byte.
            if unsafe { libc::mlockall(flags) } != 0 {
                println!("SKIPPED: locking all memory is not permitted here");
                std::process::exit(0);
            }
        };
        let (faults, when) = case.split_once(' ').unwrap();
        let faults = if faults == "signal" { Faults::Signal } else { Faults::Thread };
        if when == "before" {
            lock(libc::MCL_CURRENT | libc::MCL_FUTURE);
        }
        let (mut region, _) = region(512, &RegionOptions { faults, ..RegionOptions::new(64 * PAGE) });
        assert_eq!(resident(&region), 0);
        region.as_mut_slice()[..256 * PAGE].fill(7);
        if when == "after" {
            lock(libc::MCL_CURRENT);
        }
        for round in 0..3 {
            assert!(region.as_mut_slice()[..256 * PAGE].iter().all(|&byte| byte == 7), "round {round}");
            region.as_mut_slice()[256 * PAGE..].fill(round);
            assert!(resident(&region) <= 64, "{}", resident(&region));
        }
        println!("whole");
        return;
    }
    for case in ["signal before", "signal after", "thread before", "thread after"] {
        let output = again("a_program_that_locks_all_its_memory_has_the_bound_and_every_byte", case);
        let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if out.contains("SKIPPED") {
            println!("SKIPPED ends::a_program_that_locks_all_its_memory_has_the_bound_and_every_byte: the right to");
            return;
        }
        assert!(output.status.success() && out.contains("whole"), "{case}: {:?} {said}", output.status);
    }
}

/// Pages of a region that are in this machine's memory.
fn resident(region: &Region<VaultLane>) -> usize {
    let mut pages = vec![0_u8; region.len() / PAGE];
    // SAFETY: a byte for each page of the region.
    let asked = unsafe { libc::mincore(region.start().as_ptr().cast(), region.len(), pages.as_mut_ptr()) };
    assert_eq!(asked, 0);
    pages.iter().filter(|&&page| page & 1 != 0).count()
}

#[test]
fn what_is_never_mended_is_given_up_after_the_patience() {
    if case().is_some() {
        let options = RegionOptions { patience: Duration::from_millis(300), ..RegionOptions::new(64 * PAGE) };
        let (mut region, vault) = region(512, &options);
        region.as_mut_slice().fill(5);
        vault.stubborn.store(usize::MAX, Ordering::SeqCst);
        vault.broken.store(true, Ordering::SeqCst);
        println!("it was {}", region.as_mut_slice()[3 * PAGE]);
        return;
    }
    let begun = std::time::Instant::now();
    let output = again("what_is_never_mended_is_given_up_after_the_patience", "the only one");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(7), "{said}");
    assert!(said.contains("is lost: it did not come within 300ms: not yet"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_sigbus_that_is_not_ours_is_what_it_was() {
    if case().is_some() {
        let (mut region, _) = region(64, &RegionOptions::new(64 * PAGE));
        region.as_mut_slice().fill(5);
        // Nobody's page: a file that is shorter than its mapping.
        let file = tempfile();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping of a file, where the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: a byte of that mapping; the kernel answers with a signal, which is what is tested.
        println!("it was {}", unsafe { at.cast::<u8>().read_volatile() });
        return;
    }
    let output = again("a_sigbus_that_is_not_ours_is_what_it_was", "the only one");
    assert_eq!(output.status.signal(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("paged region"));
}

fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("overbank-empty-{}", std::process::id()));
    let file = std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn broken_lanes_are_mended_and_the_program_goes_on() {
    for faults in [Faults::Signal, Faults::Thread] {
        let (mut region, vault) = region(512, &RegionOptions { faults, ..RegionOptions::new(64 * PAGE) });
        region.as_mut_slice().fill(5);
        vault.stubborn.store(2, Ordering::SeqCst);
        vault.broken.store(true, Ordering::SeqCst);
        assert!(region.as_mut_slice().iter().all(|&byte| byte == 5));
        assert_eq!(vault.mends.load(Ordering::SeqCst), 3);
        assert!(region.lost().is_none());
    }
}

#[test]
fn a_forked_child_does_not_have_the_region_and_may_drop_it() {
    let (mut first, _) = region(128, &RegionOptions::new(64 * PAGE));
    first.as_mut_slice().fill(5);
    // The child touches the region in one case and drops it in the other; both end without unwinding into the test.
    for touch in [true, false] {
        // SAFETY: the child only does what follows, and ends by `_exit` or a signal.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            if touch {
                // SAFETY: the address was mapped in the parent; here the kernel answers with a signal, which is what is tested.
                let byte = unsafe { first.start().as_ptr().read_volatile() };
                // SAFETY: ends this process.
                unsafe { libc::_exit(if byte == 5 { 2 } else { 3 }) };
            }
            drop(first);
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for a child of this process, and writes to a variable of ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        if touch {
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
        } else {
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
        }
    }
    assert!(first.as_mut_slice().iter().all(|&byte| byte == 5));
}
