//! A look into the provider's memory, as somebody with root on its machine would take.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::stack::{POOL, Stack};

/// Bytes from one block of 4 KiB to the next.
pub(crate) const STRIDE: usize = 4096 + 32;
const PAGE: usize = 4096;

/// The provider's pool.
pub(crate) struct Memory {
    file: File,
    base: u64,
}

impl Memory {
    /// Finds it; `None`, said on stderr with the test's name, where this process may not look.
    pub(crate) fn of(stack: &Stack, test: &str) -> Option<Self> {
        let pid = stack.provider_pid();
        let opened = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
        let (file, maps) = match (opened, maps) {
            (Ok(file), Ok(maps)) => (file, maps),
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("SKIPPED {test}: no right to look into another process's memory ({error})");
                return None;
            }
            (opened, maps) => panic!("{:?} {:?}", opened.err(), maps.err()),
        };
        let pools: Vec<u64> = maps
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (from, to) = words.next()?.split_once('-')?;
                let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
                (words.next()?.starts_with("rw") && to - from == POOL as u64).then_some(from)
            })
            .collect();
        assert_eq!(pools.len(), 1, "one mapping of the pool's size:\n{maps}");
        Some(Self { file, base: pools[0] })
    }

    /// All of it.
    pub(crate) fn all(&self) -> Vec<u8> {
        self.read(0, POOL)
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.all().iter().all(|&byte| byte == 0)
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, self.base + offset as u64).expect("mapped");
        bytes
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.base + offset as u64).expect("mapped");
    }

    /// Where the only lease begins.
    pub(crate) fn lease(&self) -> usize {
        let leases = self.leases();
        assert_eq!(leases.len(), 1, "one lease alone");
        leases[0]
    }

    /// Where leases begin whose first two blocks of 4 KiB were written in one go: two headers with one salt, a stride
    /// apart, on a page's beginning.
    pub(crate) fn leases(&self) -> Vec<usize> {
        let all = self.all();
        let header = |at: usize| &all[at..at + 10];
        let begins = |at: &usize| header(*at) != [0; 10] && header(*at) == header(*at + STRIDE);
        (0..POOL - 2 * STRIDE).step_by(PAGE).filter(begins).collect()
    }
}
