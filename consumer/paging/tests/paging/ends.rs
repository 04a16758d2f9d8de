//! A page that cannot be had ends the program with a signal and a line that says why; never with other bytes. Each case
//! runs in a process of its own: this program, started again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::Duration;

use overbank_paging::{Faults, RegionOptions};

use crate::vault::{PAGE, region};

/// Runs a test that is a part of another.
fn again(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("ends::{name}"), "--ignored", "--nocapture", "--test-threads", "1"])
        .env("OVERBANK_PART", "1")
        .output()
        .unwrap()
}

fn is_part() -> bool {
    std::env::var_os("OVERBANK_PART").is_some()
}

fn lose(faults: Faults) {
    if !is_part() {
        return;
    }
    let options = RegionOptions { faults, patience: Duration::from_secs(2), ..RegionOptions::new(64 * PAGE) };
    let (mut region, vault) = region(512, &options);
    region.as_mut_slice().fill(5);
    vault.lost.store(true, Ordering::SeqCst);
    // Away by now, since the last ones are here.
    let byte = region.as_mut_slice()[3 * PAGE];
    println!("it was {byte}");
}

#[test]
#[ignore = "a part of the test below"]
fn part_lose_by_signal() {
    lose(Faults::Signal);
}

#[test]
#[ignore = "a part of the test below"]
fn part_lose_by_thread() {
    lose(Faults::Thread);
}

#[test]
fn a_lost_page_ends_in_sigbus_and_says_why() {
    for part in ["part_lose_by_signal", "part_lose_by_thread"] {
        let output = again(part);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(7), "{part}: {:?} {said}", output.status);
        assert!(said.contains("of a paged region of 2097152, is lost: the vault is gone"), "{part}: {said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("it was "), "{part}");
    }
}

#[test]
#[ignore = "a part of the test below"]
fn part_never_mended() {
    if !is_part() {
        return;
    }
    let options = RegionOptions { patience: Duration::from_millis(300), ..RegionOptions::new(64 * PAGE) };
    let (mut region, vault) = region(512, &options);
    region.as_mut_slice().fill(5);
    vault.stubborn.store(usize::MAX, Ordering::SeqCst);
    vault.broken.store(true, Ordering::SeqCst);
    println!("it was {}", region.as_mut_slice()[3 * PAGE]);
}

#[test]
fn what_is_never_mended_is_given_up_after_the_patience() {
    let begun = std::time::Instant::now();
    let output = again("part_never_mended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(7), "{said}");
    assert!(said.contains("is lost: "), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
#[ignore = "a part of the test below"]
fn part_of_another_kind() {
    if !is_part() {
        return;
    }
    let (mut region, _) = region(64, &RegionOptions::new(64 * PAGE));
    region.as_mut_slice().fill(5);
    // Nobody's page: a file that is shorter than its mapping.
    let file = tempfile();
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    println!("it was {}", unsafe { at.cast::<u8>().read_volatile() });
}

fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("overbank-empty-{}", std::process::id()));
    let file = std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn a_sigbus_that_is_not_ours_is_what_it_was() {
    let output = again("part_of_another_kind");
    assert_eq!(output.status.signal(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("paged region"));
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
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            if touch {
                let byte = unsafe { first.start().as_ptr().read_volatile() };
                unsafe { libc::_exit(if byte == 5 { 2 } else { 3 }) };
            }
            drop(first);
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        if touch {
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
        } else {
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
        }
    }
    assert!(first.as_mut_slice().iter().all(|&byte| byte == 5));
}
