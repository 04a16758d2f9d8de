//! What is to be measured of all systems, and each figure with whose it is, how it was had, and what is not alike.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::error::BenchError;
use crate::figures::{self, Measured, Plan, Times};
use crate::rates::{self, Pace, Rate, Rated};
use crate::raw::Kind;
use crate::systems::System;

/// Whose a figure is.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) system: System,
    pub(crate) kind: Kind,
    /// Bytes asked for.
    pub(crate) size: usize,
    /// Operations outstanding.
    pub(crate) depth: u32,
    /// Bytes that an operation moves, without what packets and requests have around them.
    pub(crate) moved: usize,
    /// The other program's command, or ours.
    pub(crate) command: String,
}

impl Entry {
    /// What is measured for it. Others may share it.
    pub(crate) fn subject(&self) -> String {
        let size = if self.system == System::RawStride { self.moved } else { self.size };
        let depth = if self.depth > 1 { format!("_x{}", self.depth) } else { String::new() };
        format!("{}_{}_{size}{depth}", self.system.stem(), self.kind.name())
    }

    /// Whether both are figures of the same work.
    fn stands_beside(&self, other: &Self) -> bool {
        (self.kind, self.size, self.depth) == (other.kind, other.size, other.depth)
    }

    /// With its figures, of those by subject; what was not measured is null.
    fn row(&self, figures: &Map<String, Value>) -> Value {
        let subject = self.subject();
        let found = figures.get(&subject).unwrap_or(&Value::Null);
        // Of a ping-pong half of the round trip is measured; who waits, waits for both halves.
        let halves = if self.kind == Kind::PingPong { 2.0 } else { 1.0 };
        let micros = |value: &Value| value.as_f64().map(|nanoseconds| nanoseconds * halves / 1000.0);
        let by_round = found["p50_ns_by_round"].as_array().map(|all| all.iter().map(micros).collect::<Vec<_>>());
        json!({
            "system": self.system.name(),
            "op": self.kind.name(),
            "size": self.size,
            "depth": self.depth,
            "moved_bytes": self.moved,
            "p50_us": micros(&found["p50_ns"]),
            "p99_us": micros(&found["p99_ns"]),
            "p999_us": micros(&found["p999_ns"]),
            "p50_us_by_round": by_round,
            "gib_per_s": found["gib_per_second"],
            "per_s": found["per_second"],
            "per_s_by_round": found["per_second_by_round"],
            "command": self.command,
            "not_alike": self.system.not_alike(self.kind, self.depth),
            "subject": subject,
        })
    }
}

/// All that is measured, in the order in which turns are taken.
#[derive(Default)]
pub(crate) struct Contest<'a> {
    entries: Vec<Entry>,
    singles: Vec<figures::Subject<'a>>,
    many: Vec<rates::Subject<'a>>,
}

impl<'a> Contest<'a> {
    /// Single operations.
    pub(crate) fn single(&mut self, entry: Entry, turn: impl FnMut(&Plan) -> Result<Times, BenchError> + 'a) {
        self.subject(figures::Subject::at_its_own_pace(entry.subject(), turn));
        self.shared(entry);
    }

    /// Single operations that entries share.
    pub(crate) fn subject(&mut self, subject: figures::Subject<'a>) {
        self.singles.push(subject);
    }

    /// An entry whose operations are measured by the name of its subject.
    pub(crate) fn shared(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Many operations at once.
    pub(crate) fn many(&mut self, entry: Entry, turn: impl FnMut(&Pace) -> Result<Rate, BenchError> + 'a) {
        self.many.push(rates::Subject { name: entry.subject(), size: entry.size, turn: Box::new(turn) });
        self.entries.push(entry);
    }

    /// Round by round.
    pub(crate) fn measure(mut self, plan: &Plan, pace: &Pace) -> Result<Outcome, BenchError> {
        let measured = figures::measure(plan, &mut self.singles)?;
        let rated = rates::measure(pace, &mut self.many)?;
        Ok(Outcome { entries: self.entries, measured, rated })
    }
}

/// What was measured, and whose it is.
pub(crate) struct Outcome {
    pub(crate) entries: Vec<Entry>,
    pub(crate) measured: Vec<Measured>,
    pub(crate) rated: Vec<Rated>,
}

/// A row for each, with the figures that were measured by subject.
pub(crate) fn rows(entries: &[Entry], figures: &Map<String, Value>) -> Vec<Value> {
    entries.iter().map(|entry| entry.row(figures)).collect()
}

/// Who is timed one at a time, by operation and size.
pub(crate) fn singles(entries: &[Entry]) -> BTreeMap<(Kind, usize), BTreeSet<String>> {
    let mut singles: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.depth == 1) {
        singles.entry((entry.kind, entry.size)).or_default().insert(entry.subject());
    }
    singles
}

/// Which figures are to be divided: of the same work ours by each other's, and sealed by plain.
pub(crate) fn pairs(entries: &[Entry]) -> BTreeSet<(String, String)> {
    let of = |wanted: System| entries.iter().filter(move |entry| entry.system == wanted);
    let mut pairs = BTreeSet::new();
    for own in of(System::Sealed).chain(of(System::Raw)) {
        let others = entries.iter().filter(|other| other.stands_beside(own) && other.system > own.system);
        // Two names of the same plain operation are no two figures.
        let others =
            others.map(Entry::subject).filter(|other| own.system == System::Sealed || !other.starts_with("overbank_"));
        pairs.extend(others.map(|other| (own.subject(), other)));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(system: System, kind: Kind, depth: u32) -> Entry {
        let moved = if matches!(system, System::Sealed | System::RawStride) { 4128 } else { 64 };
        Entry { system, kind, size: 64, depth, moved, command: format!("run {}", system.name()) }
    }

    #[test]
    fn a_row_has_the_time_that_a_caller_waits_and_null_for_what_was_not_measured() {
        let figures = json!({
            "overbank_sealed_read_64": { "p50_ns": 8200, "p99_ns": 9000, "p999_ns": 50_000, "p50_ns_by_round": [8100, 8200] },
            "perftest_ping_pong_64": { "p50_ns": 2500, "p99_ns": 3000, "p999_ns": 4000, "p50_ns_by_round": [2500] },
            "redis_tls_write_64_x16": { "per_second": 5, "gib_per_second": 0.5, "per_second_by_round": [4, 5] },
        });
        let figures = figures.as_object().expect("an object");
        let rows = rows(
            &[
                entry(System::Sealed, Kind::Read, 1),
                entry(System::Perftest, Kind::PingPong, 1),
                entry(System::RedisTls, Kind::Write, 16),
                entry(System::UcxTcp, Kind::Read, 1),
            ],
            figures,
        );
        let [sealed, perftest, redis, ucx] = &rows[..] else { panic!("four rows") };
        assert_eq!((&sealed["system"], &sealed["op"]), (&json!("overbank-sealed"), &json!("read")));
        assert_eq!((&sealed["p50_us"], &sealed["p50_us_by_round"]), (&json!(8.2), &json!([8.1, 8.2])));
        assert_eq!((&sealed["size"], &sealed["moved_bytes"], &sealed["depth"]), (&json!(64), &json!(4128), &json!(1)));
        assert!(sealed["gib_per_s"].is_null() && sealed["command"] == "run overbank-sealed");
        assert_eq!((&perftest["p50_us"], &perftest["p999_us"]), (&json!(5.0), &json!(8.0)), "the whole round trip");
        assert_eq!((&redis["gib_per_s"], &redis["depth"]), (&json!(0.5), &json!(16)));
        assert!(redis["p50_us"].is_null() && redis["per_s_by_round"] == json!([4, 5]));
        assert!(ucx["p50_us"].is_null() && ucx["p50_us_by_round"].is_null());
    }

    #[test]
    fn who_is_timed_one_at_a_time_stands_by_operation_and_size() {
        let entries = [
            entry(System::Sealed, Kind::Write, 1),
            entry(System::Sealed, Kind::Read, 1),
            entry(System::RawStride, Kind::Read, 1),
            entry(System::UcxTcp, Kind::Read, 16),
        ];
        let singles: Vec<_> = singles(&entries).into_iter().map(|(of, names)| (of, Vec::from_iter(names))).collect();
        let read = vec!["overbank_raw_read_4128".to_owned(), "overbank_sealed_read_64".to_owned()];
        let write = vec!["overbank_sealed_write_64".to_owned()];
        assert_eq!(singles, [((Kind::Read, 64), read), ((Kind::Write, 64), write)]);
    }

    #[test]
    fn only_the_same_work_is_divided() {
        let entries = [
            entry(System::Sealed, Kind::Read, 1),
            entry(System::Raw, Kind::Read, 1),
            entry(System::RawStride, Kind::Read, 1),
            entry(System::UcxTcp, Kind::Read, 1),
            entry(System::UcxTcp, Kind::Write, 1),
            entry(System::UcxTcp, Kind::Read, 16),
        ];
        let pairs: Vec<_> = pairs(&entries).into_iter().map(|(own, other)| format!("{own} / {other}")).collect();
        assert_eq!(
            pairs,
            [
                "overbank_raw_read_64 / ucx_tcp_read_64",
                "overbank_sealed_read_64 / overbank_raw_read_4128",
                "overbank_sealed_read_64 / overbank_raw_read_64",
                "overbank_sealed_read_64 / ucx_tcp_read_64",
            ]
        );
    }
}
