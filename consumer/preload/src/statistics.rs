//! What is written down when a process that had the pool ends: one line of JSON.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::heap::Heap;

/// What the program asked of the pool.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Blocks that were handed out, by `malloc` and its kin, and by `mmap`.
    pub(crate) allocations: AtomicU64,
    pub(crate) mappings: AtomicU64,
    /// All their bytes.
    pub(crate) bytes: AtomicU64,
    /// Blocks that grew where they were, and those that had to be copied.
    pub(crate) grown: AtomicU64,
    pub(crate) moved: AtomicU64,
    /// What found no room: placed elsewhere, or refused.
    pub(crate) spilled: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// One more, or so many.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl Counts {
    /// The line. `page` is bytes of a page of the heap.
    pub(crate) fn to_json(&self, heap: &Heap, page: usize, region: Value) -> Value {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (used, peak) = heap.used();
        json!({
            "pid": std::process::id(),
            "program": std::env::current_exe().ok().map(|path| path.display().to_string()),
            "allocations": count(&self.allocations),
            "mappings": count(&self.mappings),
            "bytes": count(&self.bytes),
            "used": used * page,
            "peak": peak * page,
            "free": heap.free_pages() * page,
            "grown": count(&self.grown),
            "moved": count(&self.moved),
            "spilled": count(&self.spilled),
            "refused": count(&self.refused),
            "region": region,
        })
    }
}

/// Adds the line to a file, in one write.
pub(crate) fn append(path: &Path, line: &Value) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
