//! What a running process uses, as the kernel tells.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::error::BenchError;

/// Where in `/proc/PID/stat`, counted from behind the name.
const PARENT: usize = 1;
/// User and system time, and the same of the children that were waited for.
const USED: usize = 11;

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
        let ticks = fields(&stat).iter().skip(USED).take(2).sum();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        Ok(Self { cpu: time(ticks), rss_bytes: kib("VmRSS:"), rss_peak_bytes: kib("VmHWM:") })
    }
}

/// Processor time of this process and of all beneath it; of those that ended, where somebody waited for them.
pub(crate) fn family(pid: u32) -> Option<Duration> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let pid: u64 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        Some((pid, fields(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)))
    });
    let processes: BTreeMap<_, _> = processes.collect();
    let (mut members, mut ticks) = (vec![u64::from(pid)], 0);
    while let Some(member) = members.pop() {
        ticks += processes.get(&member)?.iter().skip(USED).take(4).sum::<u64>();
        let children = processes.iter().filter(|(_, fields)| fields.get(PARENT) == Some(&member));
        members.extend(children.map(|(pid, _)| pid));
    }
    Some(time(ticks))
}

/// The kernel's count: hundredths of a second, whatever its own tick is.
pub(crate) fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 10)
}

/// What stands behind the name, which is in parentheses and may hold anything. What is no number is zero.
fn fields(stat: &str) -> Vec<u64> {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_family_has_what_its_members_use_while_they_run_and_afterwards() {
        // Two do the same work; the first has ended when the second says who it is.
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done";
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("({work}); sh -c '{work}; echo $$; read answer'; exit 0")]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("a pipe")).read_line(&mut line).expect("said");
        let of_shell = family(shell.id()).expect("it runs");
        let of_second = Usage::of(line.trim().parse().expect("a number")).expect("it runs").cpu;
        assert!(of_shell > of_second * 3 / 2 && of_second > Duration::ZERO, "{of_shell:?}, {of_second:?}");
        assert!(family(std::process::id()).expect("it runs") >= of_shell);
        drop(shell.stdin.take());
        shell.wait().expect("ended");
        assert!(family(shell.id()).is_none() && family(std::process::id()).expect("it runs") >= of_shell);
    }

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
