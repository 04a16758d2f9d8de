//! System calls on a region's memory.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use overbank_paging::{Faults, PagingError, RegionOptions};

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
fn an_ordinary_user_handles_his_own_faults_and_the_kernel_s_where_that_is_allowed() {
    const NOBODY: u32 = 65_534;
    if nix::unistd::geteuid().is_root() {
        // Once more as somebody else, who must be able to read the program.
        let path = std::env::temp_dir().join(format!("overbank-nobody-{}", std::process::id()));
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let test = "system::an_ordinary_user_handles_his_own_faults_and_the_kernel_s_where_that_is_allowed";
        let mut command = Command::new(&path);
        command.args(["--exact", test, "--nocapture"]).uid(NOBODY).gid(NOBODY).current_dir("/");
        // What another test forks at this moment has the copy open for writing until it ends.
        let until = Instant::now() + Duration::from_secs(10);
        let output = loop {
            match command.output() {
                Err(busy) if busy.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                ended => break ended,
            }
        };
        std::fs::remove_file(&path).unwrap();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
        return;
    }
    let (mut region, _) = region(512, &RegionOptions::new(64 * PAGE));
    region.as_mut_slice().copy_from_slice(&pattern(512 * PAGE));
    assert!(region.as_mut_slice() == pattern(512 * PAGE) && region.stats().fetched > 100, "{:?}", region.stats());
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let allowed =
        std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|value| value.trim() == "1");
    match Faults::Thread.check() {
        Ok(()) => assert!(device || allowed),
        Err(PagingError::KernelFaultsForbidden) => assert!(!device && !allowed),
        Err(other) => panic!("{other}"),
    }
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

const BOTH: [Faults; 2] = [Faults::Signal, Faults::Thread];

#[test]
fn a_scan_goes_on_over_parts_with_other_rights_and_parts_that_are_not_the_regions_any_more() {
    for (faults, page) in BOTH.into_iter().flat_map(|faults| [(faults, PAGE), (faults, 4 * PAGE)]) {
        let (mut region, _) = region(600, &RegionOptions { faults, page, ..RegionOptions::new(64 * page) });
        let bytes = region.as_mut_slice();
        let start = bytes.as_mut_ptr();
        // In the middle of a page, where that is larger than the kernel's.
        let (other, read_only) = (300 * page + 3 * PAGE, 100 * page + 5 * PAGE);
        // SAFETY: whole pages of the kernel's in the region, which nobody else uses.
        unsafe {
            assert_eq!(libc::mprotect(start.add(read_only).cast(), 7 * PAGE, libc::PROT_READ), 0);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let at = start.add(other).cast();
            assert_eq!(libc::mmap(at, 6 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0), at);
        }
        let writable = |at: usize| !(read_only..read_only + 7 * PAGE).contains(&at);
        for lap in 1..=3_u8 {
            for at in (0..bytes.len()).step_by(PAGE).filter(|&at| writable(at)) {
                bytes[at] = lap;
            }
            for at in (0..bytes.len()).step_by(PAGE) {
                assert_eq!(bytes[at], if writable(at) { lap } else { 0 }, "{faults:?} {page} {at}");
            }
        }
        assert!(region.stats().evicted > 1000, "{:?}", region.stats());
    }
}

#[test]
fn what_the_program_locks_by_itself_loses_nothing() {
    for faults in BOTH {
        let (mut region, _) = region(512, &RegionOptions { faults, ..RegionOptions::new(64 * PAGE) });
        let bytes = region.as_mut_slice();
        bytes.fill(7);
        // There, and written to: locking a page asks for that.
        (100..110).for_each(|page| bytes[page * PAGE] = std::hint::black_box(7));
        // SAFETY: a page of the region; a lock changes no byte.
        if unsafe { libc::mlock(bytes.as_ptr().add(105 * PAGE).cast(), PAGE) } != 0 {
            panic!("{}", std::io::Error::last_os_error());
        }
        for _ in 0..3 {
            assert!(bytes.iter().all(|&byte| byte == 7), "{faults:?}");
        }
    }
}

#[test]
fn what_is_held_can_be_written_by_the_kernel_though_it_was_about_to_leave() {
    let options = RegionOptions { patience: Duration::from_secs(2), ..RegionOptions::new(64 * PAGE) };
    let (mut region, vault) = region(512, &options);
    vault.stubborn.store(usize::MAX, Ordering::SeqCst);
    vault.broken.store(true, Ordering::SeqCst);
    // As many as make the evictor begin, which cannot store them.
    region.as_mut_slice()[..60 * PAGE].fill(5);
    std::thread::sleep(Duration::from_millis(300));
    let mut zero = std::fs::File::open("/dev/zero").unwrap();
    for page in 0..20 {
        let range = page * PAGE..(page + 1) * PAGE;
        region.hold(range.clone()).expect("held");
        assert_eq!(zero.read(&mut region.as_mut_slice()[range.clone()]).expect("written by the kernel"), PAGE);
        assert!(region.as_mut_slice()[range].iter().all(|&byte| byte == 0));
    }
}

/// Whether this kernel is as new as its call that moves no page that somebody has.
fn moves_pages() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

/// Has a child write to all pages, after a test did something to each sixteenth, and counts those that do not hold it then:
/// of those sixteenth, and of the others.
fn lost_pages(page: usize, to: impl Fn(*mut libc::c_void, usize)) -> (usize, usize) {
    // The kernel takes 4 MiB of the other's pages at once before it writes to the first: so much must have room.
    let options = RegionOptions { faults: Faults::Thread, page, ..RegionOptions::new(5 << 20) };
    let (mut region, _) = region((16 << 20) / page, &options);
    let (start, len) = (region.start().as_ptr(), region.len());
    let all = pattern(len);
    let mut wrong = [0; 16];
    for round in 0..3_u8 {
        region.as_mut_slice().fill(round + 1);
        (15..len / page).step_by(16).for_each(|n| to(start.wrapping_add(n * page).cast(), page));
        let local = libc::iovec { iov_base: all.as_ptr().cast_mut().cast(), iov_len: len };
        let remote = libc::iovec { iov_base: start.cast(), iov_len: len };
        // SAFETY: the child makes a system call, which reads memory that it has as well, and ends.
        let child = unsafe {
            let parent = libc::getpid();
            match libc::fork() {
                0 => {
                    let written = libc::process_vm_writev(parent, &raw const local, 1, &raw const remote, 1, 0);
                    libc::_exit(i32::from(written != len as isize));
                }
                child => child,
            }
        };
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: waits for that child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "it could write");
        let pages = region.as_mut_slice().chunks(page).zip(all.chunks(page)).enumerate();
        pages.filter(|(_, (got, sent))| got != sent).for_each(|(at, _)| wrong[at % 16] += 1);
    }
    assert!(region.stats().evicted > 1000, "{:?}", region.stats());
    (wrong[15], wrong[..15].iter().sum())
}

#[test]
fn what_another_process_writes_is_not_lost_with_a_page_that_goes() {
    if !moves_pages() {
        println!("SKIPPED system::what_another_process_writes_is_not_lost_with_a_page_that_goes: Linux 6.8");
        return;
    }
    let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: both change nothing but the rights to whole pages of the region, and where they are.
    let execute = |at: *mut libc::c_void, len| assert_eq!(unsafe { libc::mprotect(at, len, rights) }, 0);
    // SAFETY: as above.
    let lock = |at: *mut libc::c_void, len| assert_eq!(unsafe { libc::mlock2(at, len, libc::MLOCK_ONFAULT as _) }, 0);
    for page in [PAGE, 4 * PAGE] {
        assert_eq!(lost_pages(page, |_, _| {}), (0, 0), "pages of {page}");
        // What the program does to some pages does not keep their neighbours from being looked at.
        assert_eq!(lost_pages(page, execute).1, 0, "pages of {page}, some with other rights");
        assert_eq!(lost_pages(page, lock), (0, 0), "pages of {page}, some of them locked");
    }
}
