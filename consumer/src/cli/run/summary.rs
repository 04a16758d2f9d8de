//! What a run tells at its end.

use std::path::Path;
use std::time::Duration;

use overbank::{LeaseId, Size};
use serde_json::{Value, json};

use super::Run;
use super::child::Ended;

/// Of one run.
pub(super) struct Summary<'a> {
    pub(super) run: &'a Run,
    pub(super) lease: LeaseId,
    pub(super) ended: &'a Ended,
    pub(super) took: Duration,
    /// What each process that had the lease left.
    pub(super) processes: Vec<Value>,
    pub(super) released: bool,
}

/// The lines that the processes left. One that was cut off in the middle is left out.
pub(super) fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Summary<'_> {
    pub(super) fn to_json(&self) -> Value {
        let (status, signal) = match self.ended {
            Ended::Status(status) => (Some(*status), None),
            Ended::Signal(signal) => (None, Some(*signal)),
            Ended::NotStarted(_) => (None, None),
        };
        json!({
            "lease": self.lease.to_string(),
            "command": self.run.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>(),
            "status": status,
            "signal": signal,
            "ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "local": self.run.local,
            "remote": self.run.remote,
            "page": self.run.page,
            "threshold": self.run.threshold,
            "processes": self.processes,
            "released": self.released,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let ended = match self.ended {
            Ended::Status(status) => format!("ended with status {status}"),
            Ended::Signal(signal) => format!("was ended by signal {signal}"),
            Ended::NotStarted(error) => format!("did not start: {error}"),
        };
        let name = self.run.command[0].to_string_lossy();
        let mut text = format!("{name} {ended} after {:.3} s", self.took.as_secs_f64());
        if self.processes.is_empty() {
            text += &match self.ended {
                Ended::Signal(_) => "; what it had in the lease it could not say before its end".to_owned(),
                _ => format!(
                    "; nothing was placed in the lease: no allocation of {} or more was made, or it is linked statically",
                    Size(self.run.threshold)
                ),
            };
        }
        for process in &self.processes {
            let number = |name: &str| process[name].as_u64().unwrap_or(0);
            text += &format!(
                "\n  process {}: {} allocations and {} mappings, {} in all, at most {} at a time",
                number("pid"),
                number("allocations"),
                number("mappings"),
                about(number("bytes")),
                about(number("peak"))
            );
            for (what, words) in [("spilled", "found no room and went to local memory"), ("refused", "were refused")] {
                if number(what) > 0 {
                    text += &format!("; {} {words}", number(what));
                }
            }
            // What the region itself counted, by its own names.
            let region = process["region"].as_object().into_iter().flatten();
            let words: Vec<String> =
                region.map(|(name, value)| format!("{} {value}", name.replace('_', " "))).collect();
            if !words.is_empty() {
                text += &format!("\n    {}", words.join(", "));
            }
        }
        text
    }
}

/// Bytes, as people say them.
fn about(bytes: u64) -> String {
    let units = ["GiB", "MiB", "KiB"];
    let found = units.iter().zip([30, 20, 10]).find(|(_, shift)| bytes >> shift != 0);
    found.map_or_else(
        || format!("{bytes} B"),
        |(unit, shift)| format!("{:.1} {unit}", bytes as f64 / f64::from(1 << shift)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_as_people_do() {
        let said = [0, 1023, 1024, 1 << 20, 3 << 29].map(about);
        assert_eq!(said, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 GiB"]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_left_out() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("statistics");
        assert!(read(&path).is_empty());
        std::fs::write(&path, "{\"pid\":1}\n{\"pid\":2}\n{\"pi").expect("written");
        assert_eq!(read(&path), [json!({ "pid": 1 }), json!({ "pid": 2 })]);
    }
}
