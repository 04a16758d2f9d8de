//! The machine's record: what a reader needs to judge a figure.

use std::fs;

use serde::Serialize;

/// What the figures were taken on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// The processor, as it names itself.
    pub(crate) cpu: String,
    /// Logical processors online.
    pub(crate) cpus: usize,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Distribution.
    pub(crate) system: String,
    /// Governor of the first processor's frequency; none in most virtual machines.
    pub(crate) governor: Option<String>,
    /// Whether the processor says that it is a virtual machine's.
    pub(crate) virtual_machine: bool,
    /// Load average over the last minute, before the run: others' work shows in the tail.
    pub(crate) load: String,
    /// `release`, or `debug`: figures of a debug build mean nothing.
    pub(crate) build: &'static str,
    /// Which commit this program is built from.
    pub(crate) commit: &'static str,
    /// Version of this program.
    pub(crate) version: &'static str,
}

impl Machine {
    /// This one, now. What cannot be read says so.
    pub(crate) fn record() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Self {
            cpu: field("model name").or_else(|| field("CPU part")).unwrap_or_else(unknown),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: first_line("/proc/sys/kernel/osrelease").unwrap_or_else(unknown),
            system: read("/etc/os-release")
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))
                .map_or_else(unknown, |name| name.trim_matches('"').to_owned()),
            governor: first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load: first_line("/proc/loadavg")
                .and_then(|line| line.split(' ').next().map(str::to_owned))
                .unwrap_or_else(unknown),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            commit: env!("OVERBANK_COMMIT"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn first_line(path: &str) -> Option<String> {
    read(path).lines().next().map(str::to_owned)
}

fn unknown() -> String {
    "unknown".to_owned()
}
