//! What the device of one end counted, and how it crosses from one process to the other.

use std::collections::BTreeMap;

use overbank_verbs::Counters;
use serde::{Deserialize, Serialize};

/// Packets of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Sent, those sent again included.
    pub(crate) sent: u64,
    /// Received and taken.
    pub(crate) received: u64,
    /// Sent again.
    pub(crate) retransmitted: u64,
    /// Not taken, or not sent, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
}

impl From<Counters> for Counted {
    fn from(counters: Counters) -> Self {
        let Counters { sent, received, retransmitted, dropped } = counters;
        let dropped = dropped.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        Self { sent, received, retransmitted, dropped }
    }
}

impl Counted {
    /// What came since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let dropped = self.dropped.iter().filter_map(|(reason, &count)| {
            let count = count.saturating_sub(before.dropped.get(reason).copied().unwrap_or(0));
            (count > 0).then(|| (reason.clone(), count))
        });
        Self {
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
            retransmitted: self.retransmitted.saturating_sub(before.retransmitted),
            dropped: dropped.collect(),
        }
    }

    /// Adds those of another time.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.retransmitted += other.retransmitted;
        for (reason, count) in &other.dropped {
            *self.dropped.entry(reason.clone()).or_default() += count;
        }
    }

    /// One line, in JSON.
    pub(crate) fn to_line(&self) -> String {
        // Strings and numbers only: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the line.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// Datagrams that the kernel threw away since it started, since a socket's receive buffer was full; of all programs in
/// this network namespace. None where it does not say.
pub(crate) fn receive_buffer_errors() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split(' ').position(|name| name == "RcvbufErrors")?;
    values.split(' ').nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_cross_as_a_line_and_differ_by_what_came_since() {
        let dropped = [("ICRC".to_owned(), 2), ("stale response".to_owned(), 1)].into();
        let before = Counted { sent: 10, received: 9, retransmitted: 1, dropped };
        let mut after = before.clone();
        let more = Counted { sent: 5, received: 4, retransmitted: 3, dropped: [("ICRC".to_owned(), 7)].into() };
        after.add(&more);
        assert_eq!(after.dropped["ICRC"], 9);
        assert_eq!(after.since(&before), more);
        assert_eq!(Counted::from_line(&after.to_line()), Some(after));
        for bad in ["", "connected", "{}", "{\"sent\":-1}"] {
            assert_eq!(Counted::from_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_kernel_says_what_it_threw_away() {
        assert!(receive_buffer_errors().is_some());
    }
}
