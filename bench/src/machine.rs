//! The machine's record: what a reader needs to judge a figure.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::Serialize;

use crate::cpus::Cpus;
use crate::others;

/// Clocks that are read without a system call and do not go astray.
const GOOD_CLOCKS: [&str; 2] = ["tsc", "arch_sys_counter"];
/// What the processor has that AES-GCM is computed with.
const FOR_AES: [&str; 7] = ["aes", "pclmulqdq", "vaes", "vpclmulqdq", "avx512f", "avx512vl", "pmull"];
/// So much more than what is spare may others use: nothing runs all alone.
const TOLERANCE: f64 = 0.1;

/// Before anything was measured.
static LOAD_BEFORE: OnceLock<Option<String>> = OnceLock::new();

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
    /// Whether two threads share a core.
    pub(crate) smt: Option<bool>,
    /// Processors that the kernel puts nothing on by itself (isolcpus), as it lists them.
    pub(crate) isolated: String,
    /// Whether both ends ran on such.
    pub(crate) ends_isolated: bool,
    /// Whether the two ends ran on two threads of one core.
    pub(crate) ends_share_a_core: bool,
    /// What the kernel measures time with.
    pub(crate) clock_source: String,
    /// What the kernel does against faults of the processor, by fault: each costs time.
    pub(crate) mitigations: BTreeMap<String, String>,
    /// Of each size of hugepages, how many there are.
    pub(crate) hugepages: BTreeMap<String, u64>,
    /// Whether ordinary memory gets large pages by itself: always, madvise or never.
    pub(crate) transparent_hugepages: Option<String>,
    /// What the processor has that AES-GCM is computed with.
    pub(crate) aes: Vec<String>,
    /// Load average over the last minute when this program began: what ran before it shows too.
    pub(crate) load_before: String,
    /// The same when this record was made: when all was measured.
    pub(crate) load: String,
    /// How many processors others kept busy meanwhile, at least: their work shows in the tail.
    pub(crate) others_cpus: Option<f64>,
    /// Seconds since 1970.
    pub(crate) taken_at: u64,
    /// `release`, or `debug`: figures of a debug build mean nothing.
    pub(crate) build: &'static str,
    /// Which commit this program is built from.
    pub(crate) commit: &'static str,
    /// Version of this program.
    pub(crate) version: &'static str,
}

/// Looks at what is over as soon as something is measured, and begins to watch the others.
pub(crate) fn look_before() {
    let _ = LOAD_BEFORE.set(load());
    others::watch();
}

impl Machine {
    /// This one, now, with the two ends on these processors. What cannot be read says so.
    pub(crate) fn record(cpus: Cpus) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let flag = |wanted: &str| flags.split(' ').any(|flag| flag == wanted);
        let isolated = first_line("/sys/devices/system/cpu/isolated").unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let core = format!("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpus.asker);
        Self {
            cpu: field("model name").or_else(|| field("CPU part")).unwrap_or_else(unknown),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: first_line("/proc/sys/kernel/osrelease").unwrap_or_else(unknown),
            system: read("/etc/os-release")
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))
                .map_or_else(unknown, |name| name.trim_matches('"').to_owned()),
            governor: first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            virtual_machine: flag("hypervisor"),
            smt: first_line("/sys/devices/system/cpu/smt/active").map(|active| active == "1"),
            ends_isolated: lists(&isolated, cpus.asker) && lists(&isolated, cpus.answerer),
            isolated,
            ends_share_a_core: !cpus.shared() && lists(&first_line(&core).unwrap_or_default(), cpus.answerer),
            clock_source: first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .unwrap_or_else(unknown),
            mitigations: each_in("/sys/devices/system/cpu/vulnerabilities", |_, path| first_line(path)),
            hugepages: each_in("/sys/kernel/mm/hugepages", |_, path| {
                first_line(&format!("{path}/nr_hugepages"))?.parse().ok()
            }),
            transparent_hugepages: first_line("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|line| {
                // Of all the choices, the one in brackets.
                Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())
            }),
            aes: FOR_AES.into_iter().filter(|wanted| flag(wanted)).map(str::to_owned).collect(),
            load_before: LOAD_BEFORE.get().cloned().unwrap_or_else(load).unwrap_or_else(unknown),
            load: load().unwrap_or_else(unknown),
            others_cpus: others::busy(),
            taken_at: now.map_or(0, |since| since.as_secs()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            commit: env!("OVERBANK_COMMIT"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Why figures of it may not mean what they seem to, with the two ends on these processors.
    pub(crate) fn warnings(&self, cpus: Cpus) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.build != "release" {
            warnings.push("this is a debug build: its figures say nothing about a release build".to_owned());
        }
        if cpus.shared() {
            warnings.push(
                "TOO FEW PROCESSORS: both ends share one processor: busy polling measures the scheduler here"
                    .to_owned(),
            );
        }
        if self.ends_share_a_core {
            warnings.push(
                "ONE CORE: the two ends are two threads of one core, and each slows the other's polling down"
                    .to_owned(),
            );
        }
        let spare = self.cpus.saturating_sub(if cpus.shared() { 1 } else { 2 });
        if let Some(others) = self.others_cpus.filter(|others| *others > spare as f64 + TOLERANCE) {
            warnings.push(format!(
                "THE MACHINE WAS BUSY: what this program did not start kept at least {others} processors busy from its \
                 beginning to its end (the kernel's own threads included), and besides the two ends' there are {spare}: \
                 others' work may be in the figures"
            ));
        }
        if !GOOD_CLOCKS.contains(&&*self.clock_source) {
            warnings.push(format!(
                "A SLOW CLOCK: the clock source is {}, not {}: each look at the clock may cost a microsecond, and is in \
                 the figures",
                self.clock_source,
                GOOD_CLOCKS.join(" or ")
            ));
        }
        warnings
    }
}

/// Whether a list such as `0-3,8` has this number.
fn lists(list: &str, wanted: usize) -> bool {
    list.trim().split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&wanted),
            _ => false,
        }
    })
}

/// Every entry of a directory, with what is found there.
fn each_in<T>(dir: &str, find: impl Fn(&str, &str) -> Option<T>) -> BTreeMap<String, T> {
    let entries =
        fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    entries.filter_map(|name| find(&name, &format!("{dir}/{name}")).map(|found| (name, found))).collect()
}

/// Load average over the last minute.
pub(crate) fn load() -> Option<String> {
    first_line("/proc/loadavg").and_then(|line| line.split(' ').next().map(str::to_owned))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_has_its_numbers() {
        for (list, there, not) in [("0-3,8", 2, 4), ("8", 8, 0), ("0-3,8", 8, 9), ("1,3", 3, 2)] {
            assert!(lists(list, there) && !lists(list, not), "{list}");
        }
        assert!(!lists("", 0) && !lists("\n", 0) && !lists("a-b", 0));
    }

    #[test]
    fn what_spoils_figures_is_said() {
        let (two, one) = (Cpus { asker: 0, answerer: 1 }, Cpus { asker: 0, answerer: 0 });
        let good = Machine {
            cpus: 4,
            load_before: "20.10".to_owned(),
            others_cpus: Some(2.1),
            clock_source: "tsc".to_owned(),
            ends_share_a_core: false,
            build: "release",
            ..Machine::record(two)
        };
        assert_eq!(good.warnings(two), [""; 0]);
        let said = |machine: &Machine, cpus| machine.warnings(cpus).join("\n");
        assert!(said(&good, one).contains("TOO FEW PROCESSORS"));
        assert!(said(&Machine { build: "debug", ..good.clone() }, two).contains("debug build"));
        assert!(said(&Machine { ends_share_a_core: true, ..good.clone() }, two).contains("ONE CORE"));
        assert_eq!(said(&Machine { others_cpus: None, ..good.clone() }, two), "");
        let busy = said(&Machine { others_cpus: Some(2.11), ..good.clone() }, two);
        assert!(busy.contains("at least 2.11 processors") && busy.contains("the two ends' there are 2:"), "{busy}");
        assert!(said(&Machine { clock_source: "hpet".to_owned(), ..good.clone() }, two).contains("is hpet, not tsc"));
        assert!(said(&Machine { clock_source: "unknown".to_owned(), ..good }, two).contains("A SLOW CLOCK"));
    }

    #[test]
    fn this_machine_has_a_record() {
        let machine = Machine::record(Cpus { asker: 0, answerer: 0 });
        assert!(machine.cpus > 0 && machine.taken_at > 1_700_000_000 && !machine.ends_share_a_core, "{machine:?}");
        assert!(machine.load.parse::<f64>().is_ok() && machine.load_before.parse::<f64>().is_ok(), "{machine:?}");
    }
}
