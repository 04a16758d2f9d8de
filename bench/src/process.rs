//! What a running process uses, as the kernel tells.

use std::time::Duration;

use crate::error::BenchError;

/// Of one process, so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Processor time, in user and kernel mode.
    pub(crate) cpu: Duration,
    /// Memory in use.
    pub(crate) rss_bytes: u64,
    /// The most it ever was.
    pub(crate) rss_peak_bytes: u64,
}

impl Usage {
    /// Of this process.
    pub(crate) fn of(pid: u32) -> Result<Self, BenchError> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).map_err(BenchError::io(format!("read {path}")))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        // The name, in parentheses, may hold anything.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        let ticks = fields.get(11).zip(fields.get(12)).map_or(0, |(user, kernel)| user + kernel);
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        // Linux counts it in hundredths of a second, whatever its own tick is.
        let cpu = Duration::from_millis(ticks * 10);
        Ok(Self { cpu, rss_bytes: kib("VmRSS:"), rss_peak_bytes: kib("VmHWM:") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_to_work_and_to_use_memory() {
        let before = Usage::of(std::process::id()).expect("it runs");
        let memory = vec![1_u8; 64 << 20];
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(&memory);
        }
        let after = Usage::of(std::process::id()).expect("it runs");
        assert!(after.rss_peak_bytes >= before.rss_bytes + (60 << 20), "{before:?} {after:?}");
        assert!(after.cpu > before.cpu && after.cpu < before.cpu + Duration::from_secs(20), "{before:?} {after:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }
}
