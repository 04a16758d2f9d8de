//! The writable memory of a running process, as /proc tells it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use crate::error::BenchError;

/// One mapping: where it lies, and what the kernel calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// First address.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// `/anon_hugepage (deleted)`, `[heap]`, a file; empty for plain anonymous memory.
    pub(crate) name: String,
}

/// A process that may be looked into.
pub(crate) struct Process {
    pid: u32,
    memory: File,
}

impl Process {
    /// Opens its memory for reading.
    pub(crate) fn open(pid: u32) -> Result<Self, BenchError> {
        let memory = File::open(format!("/proc/{pid}/mem")).map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => BenchError::NotAllowed { pid, source },
            _ => BenchError::io(format!("look into process {pid}"))(source),
        })?;
        Ok(Self { pid, memory })
    }

    /// Its readable and writable mappings of at least `least` bytes.
    pub(crate) fn mappings(&self, least: u64) -> Result<Vec<Mapping>, BenchError> {
        let text = fs::read_to_string(format!("/proc/{}/maps", self.pid)).map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => BenchError::NotAllowed { pid: self.pid, source },
            _ => BenchError::io(format!("read the mappings of process {}", self.pid))(source),
        })?;
        Ok(text.lines().filter_map(writable).filter(|mapping| mapping.len >= least).collect())
    }

    /// Fills `bytes` from its address `at`; false where there is nothing to be read.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
        self.memory.read_exact_at(bytes, at).is_ok()
    }
}

/// A line such as `7f0000000000-7f0080000000 rw-p 00000000 00:0f 1057  /anon_hugepage (deleted)`.
fn writable(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let name = fields.nth(3).unwrap_or("").trim().to_owned();
    let start = u64::from_str_radix(start, 16).ok()?;
    let len = u64::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    rights.starts_with("rw").then_some(Mapping { start, len, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_mappings_are_told_from_others() {
        let pool = "7f0000000000-7f0080000000 rw-p 00000000 00:0f 1057                     /anon_hugepage (deleted)";
        let mapping = Mapping { start: 0x7f00_0000_0000, len: 1 << 31, name: "/anon_hugepage (deleted)".to_owned() };
        assert_eq!(writable(pool), Some(mapping));
        assert_eq!(writable("1000-2000 rw-p 00000000 00:00 0 ").map(|mapping| mapping.name), Some(String::new()));
        for other in ["", "x", "1000-2000 r--p 0 0 0", "2000-1000 rw-p 0 0 0", "1000-2000", "zz-2000 rw-p 0 0 0 x"] {
            assert_eq!(writable(other), None, "{other}");
        }
    }
}
