//! Which two processors a measurement runs on: one for who asks, one for who answers.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use crate::error::BenchError;

/// Where the two ends run. The same number twice where there is one processor only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Cpus {
    /// Who asks, and measures.
    pub(crate) asker: usize,
    /// Who answers.
    pub(crate) answerer: usize,
}

impl Cpus {
    /// The two that were asked for (`A,B`), else the first two that this process may use.
    pub(crate) fn choose(wanted: Option<&str>) -> Result<Self, BenchError> {
        let allowed = allowed()?;
        let Some(wanted) = wanted else {
            let asker = *allowed.first().ok_or_else(|| BenchError::Usage("no processor to run on".to_owned()))?;
            return Ok(Self { asker, answerer: allowed.get(1).copied().unwrap_or(asker) });
        };
        let pair = wanted.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let (asker, answerer) = pair.ok_or_else(|| {
            BenchError::Usage(format!("--cpus takes two processor numbers such as 0,1, not '{wanted}'"))
        })?;
        match [asker, answerer].iter().find(|cpu| !allowed.contains(cpu)) {
            Some(cpu) => {
                Err(BenchError::Usage(format!("this process may not use processor {cpu}; it may use {allowed:?}")))
            }
            None => Ok(Self { asker, answerer }),
        }
    }

    /// Whether both ends would take turns on one processor: busy polling then measures the scheduler.
    pub(crate) fn shared(self) -> bool {
        self.asker == self.answerer
    }
}

/// Runs the calling thread on `cpu` alone, and whatever it starts from now on.
pub(crate) fn pin(cpu: usize) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(failed("run on one processor"))
}

/// Does `start` on `cpu`, so that the process it starts stays there, and comes back to `home`.
pub(crate) fn started_on<T>(
    cpu: usize,
    home: usize,
    start: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    pin(cpu)?;
    let started = start();
    pin(home)?;
    started
}

fn allowed() -> Result<Vec<usize>, BenchError> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(failed("read which processors may be used"))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> BenchError {
    move |errno| BenchError::Io { what: what.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_checked_before_anything_runs() {
        let first = allowed().expect("this process may run")[0];
        assert_eq!(Cpus::choose(None).expect("a choice").asker, first);
        let same = format!("{first},{first}");
        assert!(Cpus::choose(Some(&same)).expect("allowed").shared());
        for bad in ["", "0", "0,", "a,b", "0,1,2", "0,99999", "-1,0"] {
            assert!(matches!(Cpus::choose(Some(bad)), Err(BenchError::Usage(_))), "{bad}");
        }
    }
}
