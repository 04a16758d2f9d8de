//! How much of what a peer can trigger is logged: a bounded number of lines a second for each kind, and the rest counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of one kind in one [`WINDOW`].
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// Counts what happened, by kind, and says what of it may be logged.
#[derive(Default)]
pub(crate) struct Gate {
    kinds: Mutex<HashMap<&'static str, Kind>>,
}

struct Kind {
    total: u64,
    logged_total: u64,
    window: Instant,
    lines: u32,
}

/// Leave to log one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    /// How often it has happened since the daemon started.
    pub(crate) total: u64,
    /// How often since the last line about it, this time not counted; none: never.
    pub(crate) unlogged: Option<u64>,
}

impl Gate {
    /// Counts one of a kind. `None`: enough was logged of it just now.
    pub(crate) fn count(&self, kind: &'static str, now: Instant) -> Option<Pass> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let it = kinds.entry(kind).or_insert(Kind { total: 0, logged_total: 0, window: now, lines: 0 });
        it.total += 1;
        if now.saturating_duration_since(it.window) >= WINDOW {
            (it.window, it.lines) = (now, 0);
        }
        if it.lines == LINES {
            return None;
        }
        it.lines += 1;
        let unlogged = it.total - it.logged_total - 1;
        let pass = Pass { total: it.total, unlogged: (unlogged > 0).then_some(unlogged) };
        it.logged_total = it.total;
        Some(pass)
    }

    /// How often each kind has happened since the daemon started.
    pub(crate) fn totals(&self) -> BTreeMap<String, u64> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().map(|(kind, it)| ((*kind).to_owned(), it.total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_hardly_logged() {
        let (gate, start) = (Gate::default(), Instant::now());
        let logged = (0..1000).filter(|_| gate.count("flood", start).is_some()).count();
        assert_eq!(logged, LINES as usize);
        assert_eq!(gate.count("other", start), Some(Pass { total: 1, unlogged: None }));
        assert_eq!(gate.totals(), [("flood".to_owned(), 1000), ("other".to_owned(), 1)].into());
        assert_eq!(gate.count("flood", start + WINDOW), Some(Pass { total: 1001, unlogged: Some(980) }));
    }
}
