//! What a device still sees of memory that a process has given back, and what it can still write: with io_uring's fixed
//! buffers, which are pinned as a registered region is, in place of an adapter. Needs no RDMA.
#![allow(unsafe_code, reason = "the ring takes raw addresses, as a device does")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::{IoUring, opcode, types};
use nix::sys::memfd::{MFdFlags, memfd_create};
use overbank_verbs::{Backing, Memory};

const LEN: usize = 1 << 20;
const SECRET: u8 = 0xa5;

/// Something that has pinned pages of this process and reads and writes them without asking its page table.
struct Dma {
    ring: IoUring,
    file: File,
    address: u64,
}

impl Dma {
    /// None, said by the test's name, where this machine does not let it.
    fn pin(address: u64, test: &str) -> Option<Self> {
        let ring = match IoUring::new(4) {
            Ok(ring) => ring,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                eprintln!("SKIPPED {test}: no io_uring here ({error})");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let pages = libc::iovec { iov_base: address as *mut _, iov_len: LEN };
        // SAFETY: the pages stay pinned as long as the ring lives, whatever becomes of the mapping.
        match unsafe { ring.submitter().register_buffers(&[pages]) } {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                eprintln!("SKIPPED {test}: RLIMIT_MEMLOCK lets nobody pin {LEN} bytes");
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        let file = File::from(memfd_create("dma", MFdFlags::empty()).expect("a file"));
        file.set_len(LEN as u64).expect("room");
        Some(Self { ring, file, address })
    }

    fn run(&mut self, entry: &io_uring::squeue::Entry) {
        // SAFETY: the entry names the registered buffer and a file that lives as long as `self`.
        unsafe { self.ring.submission().push(entry) }.expect("room for one");
        self.ring.submit_and_wait(1).expect("submitted");
        let done = self.ring.completion().next().expect("waited for");
        assert_eq!(done.result(), LEN as i32, "{}", io::Error::from_raw_os_error(-done.result()));
    }

    /// What it sees.
    fn read(&mut self) -> Vec<u8> {
        let file = types::Fd(self.file.as_raw_fd());
        self.run(&opcode::WriteFixed::new(file, self.address as *const u8, LEN as u32, 0).build());
        let mut seen = vec![0xee; LEN];
        self.file.read_exact_at(&mut seen, 0).expect("written");
        seen
    }

    /// Overwrites all of it.
    fn write(&mut self, value: u8) {
        self.file.write_all_at(&vec![value; LEN], 0).expect("written");
        let file = types::Fd(self.file.as_raw_fd());
        self.run(&opcode::ReadFixed::new(file, self.address as *mut u8, LEN as u32, 0).build());
    }
}

fn is(bytes: &[u8], value: u8) -> bool {
    bytes.iter().all(|byte| *byte == value)
}

fn secret(backing: Backing) -> Memory {
    let memory = Memory::map(LEN, backing).expect("a mebibyte");
    memory.copy_in(0, &[SECRET; LEN]).expect("in range");
    memory
}

/// Why zeros come first: what the kernel gives this process after it has given its pages back are others.
#[test]
fn after_pages_were_given_back_the_processor_sees_zeros_and_a_device_the_secret() {
    let memory = secret(Backing::Ordinary);
    let test = "after_pages_were_given_back_the_processor_sees_zeros_and_a_device_the_secret";
    let Some(mut dma) = Dma::pin(memory.address(), test) else { return };
    if memory.locked() {
        // SAFETY: the range is the memory's own; locked pages cannot be given back.
        unsafe { libc::munlock(memory.address() as *const _, LEN) };
    }
    // SAFETY: the range is the memory's own, and nothing relies on its bytes.
    let done = unsafe { libc::madvise(memory.address() as *mut _, LEN, libc::MADV_DONTNEED) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    assert_eq!(memory.first_nonzero(0..LEN).expect("in range"), None, "a check finds nothing");
    assert!(is(&dma.read(), SECRET), "and a device finds it all");
    // Wiping now wipes other pages.
    memory.wipe(0..LEN).expect("in range");
    assert!(is(&dma.read(), SECRET));
}

#[test]
fn memory_is_overwritten_before_it_is_unmapped() {
    for backing in [Backing::Ordinary, Backing::Transparent] {
        let memory = secret(backing);
        let Some(mut dma) = Dma::pin(memory.address(), "memory_is_overwritten_before_it_is_unmapped") else { return };
        assert!(is(&dma.read(), SECRET));
        drop(memory);
        assert!(is(&dma.read(), 0), "{backing:?}: a device still reads what was there");
    }
}

#[test]
fn a_wipe_reaches_the_pages_that_a_device_has() {
    let memory = secret(Backing::Ordinary);
    let Some(mut dma) = Dma::pin(memory.address(), "a_wipe_reaches_the_pages_that_a_device_has") else { return };
    memory.wipe(0..LEN).expect("in range");
    assert!(is(&dma.read(), 0));
}

/// Why regions are deregistered first, and memory is checked after it was overwritten.
#[test]
fn what_a_device_writes_after_the_wipe_is_found() {
    let memory = secret(Backing::Ordinary);
    let Some(mut dma) = Dma::pin(memory.address(), "what_a_device_writes_after_the_wipe_is_found") else { return };
    memory.wipe(0..LEN).expect("in range");
    assert_eq!(memory.first_nonzero(0..LEN).expect("in range"), None);
    dma.write(SECRET);
    assert_eq!(memory.first_nonzero(0..LEN).expect("in range"), Some(0));
}
