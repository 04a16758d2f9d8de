//! Reports that `--out` left in a directory, read back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::BenchError;
use crate::report::FORMAT;

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Most results of a report, and most rounds of all of them together: what is done with each takes its time.
const MAX_RESULTS: usize = 4096;
const MAX_ROUNDS: usize = 100_000;

/// What a report says, as far as it is used again.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Kept {
    #[serde(default)]
    pub(crate) arguments: Vec<String>,
    #[serde(default)]
    pub(crate) machine: Map<String, Value>,
    #[serde(default)]
    pub(crate) cpus: Value,
    /// How many there should be.
    pub(crate) rounds: Option<u64>,
    #[serde(default)]
    pub(crate) settings: Map<String, Value>,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    pub(crate) results: BTreeMap<String, Figures>,
    #[serde(default)]
    pub(crate) ratios: BTreeMap<String, Value>,
}

/// Of one subject.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Figures {
    p50_ns_by_round: Option<Vec<u64>>,
    per_second_by_round: Option<Vec<u64>>,
    since_due: Option<Box<Figures>>,
}

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Nanoseconds: less is better.
    Time,
    /// Operations a second: more is better.
    Rate,
}

impl Figures {
    /// Round by round, where anything was measured.
    pub(crate) fn by_round(&self) -> Option<(Measure, &[u64])> {
        let times = self.p50_ns_by_round.as_deref().map(|rounds| (Measure::Time, rounds));
        let rates = self.per_second_by_round.as_deref().map(|rounds| (Measure::Rate, rounds));
        times.or(rates).filter(|(_, rounds)| !rounds.is_empty())
    }
}

impl Kept {
    /// Every subject with its figures; those counted from when they were due have a name of their own.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = (String, &Figures)> {
        self.results.iter().flat_map(|(name, figures)| {
            let since_due = figures.since_due.as_deref().map(|figures| (format!("{name}_since_due"), figures));
            std::iter::once((name.clone(), figures)).chain(since_due)
        })
    }

    /// One subject.
    pub(crate) fn subject(&self, name: &str) -> Option<(Measure, &[u64])> {
        self.results.get(name)?.by_round()
    }
}

/// What the command `command` left in `dir`, if it did.
pub(crate) fn read(dir: &Path, command: &str) -> Result<Option<Kept>, BenchError> {
    let path = file(dir, command);
    let Some(bytes) = bytes(&path)? else { return Ok(None) };
    #[derive(Deserialize)]
    struct Head {
        /// Reports had none before there was a number.
        format: Option<u64>,
        command: Option<String>,
        machine: Option<Map<String, Value>>,
        /// Where the results are a list.
        subjects: Option<Value>,
    }
    let head: Head = parse(&path, &bytes)?;
    let refuse = |why: String| Err(BenchError::Usage(format!("{} {why}", path.display())));
    let format = head.format.unwrap_or(FORMAT);
    if format != FORMAT {
        let version = head.machine.as_ref().and_then(|machine| machine.get("version")?.as_str()).unwrap_or("unknown");
        return refuse(format!(
            "is a report of format {format}, and this program reads format {FORMAT}: read it with the overbank-bench \
             that wrote it (version {version})"
        ));
    }
    match head.command {
        Some(found) if found == command => {}
        Some(found) => {
            return refuse(format!("is a report of '{found}', not of '{command}': give it its own name back"));
        }
        None => return refuse("is no report: it names no command".to_owned()),
    }
    let kept: Kept = match head.subjects {
        None => parse(&path, &bytes)?,
        Some(subjects) => {
            let mut whole: Value = parse(&path, &bytes)?;
            whole["results"] = subjects;
            parse(&path, whole.to_string().as_bytes())?
        }
    };
    let rounds = kept.subjects().filter_map(|(_, figures)| figures.by_round()).map(|(_, rounds)| rounds.len());
    let rounds: usize = rounds.sum();
    if kept.results.len() > MAX_RESULTS || rounds > MAX_ROUNDS {
        return refuse(format!(
            "has {} results with {rounds} rounds together; at most {MAX_RESULTS} and {MAX_ROUNDS} are read",
            kept.results.len()
        ));
    }
    Ok(Some(kept))
}

/// The same as it is, without a look at what it says.
pub(crate) fn value(dir: &Path, command: &str) -> Result<Option<Value>, BenchError> {
    let path = file(dir, command);
    bytes(&path)?.map(|bytes| parse(&path, &bytes)).transpose()
}

fn file(dir: &Path, command: &str) -> PathBuf {
    dir.join(format!("{command}.json"))
}

/// The whole file, if it is there.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>, BenchError> {
    let failed = || BenchError::io(format!("read {}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed()(error)),
    };
    // What is no file may never end, and may never begin.
    if !file.metadata().map_err(failed())?.is_file() {
        return Err(BenchError::Usage(format!("{} is no file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed())?;
    if bytes.len() as u64 > MAX_BYTES {
        let message = format!("{} is no report: it has more than {} MiB", path.display(), MAX_BYTES >> 20);
        return Err(BenchError::Usage(message));
    }
    Ok(Some(bytes))
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T, BenchError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let cut = if error.is_eof() { "it is cut off, measure or copy again: " } else { "" };
        BenchError::Usage(format!("{} is no report: {cut}{error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("raw.json"), text).expect("written");
        read(dir.path(), "raw").expect_err("refused").to_string()
    }

    #[test]
    fn every_fault_has_its_own_words() {
        for (text, words) in [
            ("", "raw.json is no report: it is cut off"),
            (r#"{ "command": "raw", "results": { "read_64": { "p50_ns"#, "raw.json is no report: it is cut off"),
            ("not JSON", "raw.json is no report: expected"),
            ("[]", "raw.json is no report"),
            ("{}", "it names no command"),
            (r#"{ "command": "floor", "results": {} }"#, "is a report of 'floor', not of 'raw'"),
            (r#"{ "command": "raw" }"#, "missing field `results`"),
            (r#"{ "command": "raw", "results": { "read_64": 5 } }"#, "is no report: invalid type"),
            (r#"{ "command": "raw", "results": { "a": { "p50_ns_by_round": [1, null] } } }"#, "invalid type: null"),
            (r#"{ "command": "raw", "results": { "a": { "p50_ns_by_round": [-1] } } }"#, "invalid value"),
            (r#"{ "format": 9, "machine": { "version": "7.0" }, "command": 5 }"#, "is no report: invalid type"),
            (
                r#"{ "format": 9, "machine": { "version": "7.0" }, "results": "elsewhere" }"#,
                "of format 9, and this program reads format 1: read it with the overbank-bench that wrote it (version 7.0)",
            ),
        ] {
            assert!(said(text).contains(words), "{text}: {}", said(text));
        }
        let deep = format!(r#"{{ "command": "raw", "settings": {} }}"#, "[".repeat(100_000));
        assert!(said(&deep).contains("is no report"), "{}", said(&deep));
    }

    #[test]
    fn where_results_are_a_list_they_are_read_by_subject() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = r#"{ "command": "compare", "results": [{ "system": "a" }], "subjects": { "a": { "p50_ns_by_round": [7] } } }"#;
        std::fs::write(dir.path().join("compare.json"), text).expect("written");
        let kept = read(dir.path(), "compare").expect("a report").expect("one");
        assert_eq!(kept.results["a"].by_round(), Some((Measure::Time, &[7][..])));
    }

    #[test]
    fn sizes_are_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("raw.json");
        // Holes take no room.
        File::create(&path).and_then(|file| file.set_len(MAX_BYTES + 1)).expect("made");
        let error = read(dir.path(), "raw").expect_err("refused").to_string();
        assert!(error.contains("more than 64 MiB"), "{error}");
        let rounds = format!(
            r#"{{ "command": "raw", "results": {{ "a": {{ "p50_ns_by_round": [0{}] }} }} }}"#,
            ",0".repeat(MAX_ROUNDS)
        );
        assert!(said(&rounds).contains("at most 4096 and 100000 are read"), "{}", said(&rounds));
        std::fs::remove_file(&path).expect("removed");
        assert!(read(dir.path(), "raw").expect("nothing there").is_none());
        std::fs::create_dir(&path).expect("made");
        assert!(read(dir.path(), "raw").is_err());
    }

    #[test]
    fn subjects_have_their_rounds() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = r#"{ "command": "raw", "results": {
            "read_64": { "p50_ns_by_round": [5, 4], "since_due": { "p50_ns_by_round": [9, 8] } },
            "read_64_x32": { "per_second_by_round": [7] }, "odd": { "said": "something else" } } }"#;
        std::fs::write(dir.path().join("raw.json"), text).expect("written");
        let kept = read(dir.path(), "raw").expect("read").expect("there");
        let found: Vec<_> = kept.subjects().filter_map(|(name, figures)| Some((name, figures.by_round()?))).collect();
        assert_eq!(
            found,
            [
                ("read_64".to_owned(), (Measure::Time, &[5, 4][..])),
                ("read_64_since_due".to_owned(), (Measure::Time, &[9, 8][..])),
                ("read_64_x32".to_owned(), (Measure::Rate, &[7][..])),
            ]
        );
    }
}
