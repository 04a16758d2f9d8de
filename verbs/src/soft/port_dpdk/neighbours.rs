//! Which Ethernet address, behind which link, an IPv4 address of the network has; and what waits to learn it. No clock, no
//! socket: the time and what was heard go in.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use smoltcp::wire::EthernetAddress;

use super::super::timers::Now;

/// Addresses that are known or asked for, at most: who has been quiet for longest makes room.
const MAX: usize = 1024;
/// Nanoseconds after the first question for an address until the next; each time twice as many.
const ASK: u64 = 1_000_000;
/// So often are they doubled at most.
const DOUBLINGS: u32 = 10;
/// Questions without an answer, after which nothing waits for one any more.
const PATIENCE: u32 = 8;
/// Nanoseconds after which what was heard is asked again: a machine may have got another card. Where nobody answers then,
/// nothing more is sent there.
const STALE: u64 = 30_000_000_000;

/// Where frames to an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) link: usize,
    pub(crate) mac: EthernetAddress,
}

/// What is to be done for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Send it there; and ask again whether that is still right.
    To { hop: Hop, ask: bool },
    /// It cannot go yet; ask on all links, unless that was just done. Where it was done often enough, it need not wait.
    Unknown { ask: bool, wait: bool },
}

struct Entry {
    hop: Option<Hop>,
    heard: Now,
    /// When it was last asked for, and how often in a row.
    asked: Option<Now>,
    questions: u32,
    used: Now,
    /// Somebody has said that it is elsewhere.
    doubted: bool,
}

impl Entry {
    fn new(now: Now, hop: Option<Hop>) -> Self {
        Self { hop, heard: now, asked: None, questions: 0, used: now, doubted: false }
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Neighbours {
    entries: HashMap<Ipv4Addr, Entry>,
}

impl Neighbours {
    /// The way to an address that a packet goes to.
    pub(crate) fn route(&mut self, now: Now, to: Ipv4Addr) -> Route {
        if !self.entries.contains_key(&to) {
            self.make_room();
        }
        let entry = self.entries.entry(to).or_insert_with(|| Entry::new(now, None));
        entry.used = now;
        let old = entry.hop.is_none() || entry.doubted || now.since(entry.heard) > STALE;
        let pause = ASK << entry.questions.saturating_sub(1).min(DOUBLINGS);
        let ask = old && entry.asked.is_none_or(|asked| now.since(asked) >= pause);
        if ask {
            (entry.asked, entry.questions) = (Some(now), entry.questions.saturating_add(1));
            if entry.questions > PATIENCE {
                entry.hop = None;
            }
        }
        match entry.hop {
            Some(hop) => Route::To { hop, ask },
            None => Route::Unknown { ask, wait: entry.questions < PATIENCE },
        }
    }

    /// An answer, or a question to us, says where this address is. Answers that nobody asked for are not believed, and a
    /// question only where nothing else is known: else it makes us ask.
    pub(crate) fn heard(&mut self, now: Now, from: Ipv4Addr, hop: Hop, answer: bool) {
        if mac_is_odd(hop.mac) {
            return;
        }
        match self.entries.get_mut(&from) {
            // An answer to no question of ours.
            Some(entry) if answer && entry.asked.is_none() => {}
            Some(entry) if !answer && entry.hop.is_some_and(|known| known != hop) => entry.doubted = true,
            Some(entry) => *entry = Entry { used: entry.used, ..Entry::new(now, Some(hop)) },
            None if answer => {}
            None => {
                self.make_room();
                self.entries.insert(from, Entry::new(now, Some(hop)));
            }
        }
    }

    fn make_room(&mut self) {
        if self.entries.len() >= MAX
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(address, _)| *address)
        {
            self.entries.remove(&oldest);
        }
    }
}

/// No machine's own: broadcast, multicast and zero.
fn mac_is_odd(mac: EthernetAddress) -> bool {
    !mac.is_unicast() || mac.0 == [0; 6]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
    const HOP: Hop = Hop { link: 2, mac: EthernetAddress([2, 0, 0, 0, 0, 7]) };
    const OTHER: Hop = Hop { link: 0, mac: EthernetAddress([2, 0, 0, 0, 0, 9]) };

    #[test]
    fn a_question_is_asked_until_it_is_answered_and_again_when_the_answer_is_old() {
        let mut table = Neighbours::default();
        assert_eq!(table.route(Now(0), HERE), Route::Unknown { ask: true, wait: true });
        assert_eq!(table.route(Now(ASK - 1), HERE), Route::Unknown { ask: false, wait: true });
        assert_eq!(table.route(Now(ASK), HERE), Route::Unknown { ask: true, wait: true });
        table.heard(Now(ASK + 1), HERE, HOP, true);
        assert_eq!(table.route(Now(ASK + 2), HERE), Route::To { hop: HOP, ask: false });
        let later = ASK + 2 + STALE;
        assert_eq!(table.route(Now(later), HERE), Route::To { hop: HOP, ask: true });
        assert_eq!(table.route(Now(later + 1), HERE), Route::To { hop: HOP, ask: false });
        table.heard(Now(later + 2), HERE, OTHER, true);
        assert_eq!(table.route(Now(later + 3), HERE), Route::To { hop: OTHER, ask: false });
    }

    #[test]
    fn who_does_not_answer_is_asked_ever_more_seldom() {
        let mut table = Neighbours::default();
        let asks = |table: &mut Neighbours, at| matches!(table.route(Now(at), HERE), Route::Unknown { ask: true, .. });
        let count =
            |table: &mut Neighbours, range: std::ops::Range<u64>| range.filter(|at| asks(table, at * ASK)).count();
        assert_eq!(count(&mut table, 0..1000), 10);
        assert_eq!(table.route(Now(1000 * ASK), HERE), Route::Unknown { ask: false, wait: false });
        assert_eq!(count(&mut table, 1001..11_001), 10);
        table.heard(Now(11_001 * ASK), HERE, HOP, true);
        assert_eq!(table.route(Now(11_001 * ASK), HERE), Route::To { hop: HOP, ask: false });
    }

    #[test]
    fn an_answer_without_a_question_changes_nothing() {
        let mut table = Neighbours::default();
        table.heard(Now(1), HERE, HOP, true);
        assert_eq!(table.route(Now(2), HERE), Route::Unknown { ask: true, wait: true });
        table.heard(Now(3), HERE, HOP, true);
        table.heard(Now(4), HERE, OTHER, true);
        assert_eq!(table.route(Now(5), HERE), Route::To { hop: HOP, ask: false });
        for odd in [[0xff; 6], [0; 6], [1, 0, 0x5e, 0, 0, 1]] {
            table.heard(Now(6), HERE, Hop { link: 0, mac: EthernetAddress(odd) }, false);
        }
        assert_eq!(table.route(Now(7), HERE), Route::To { hop: HOP, ask: false });
    }

    #[test]
    fn a_question_from_elsewhere_makes_us_ask_and_moves_nothing() {
        let mut table = Neighbours::default();
        table.heard(Now(1), HERE, HOP, false);
        assert_eq!(table.route(Now(2), HERE), Route::To { hop: HOP, ask: false });
        table.heard(Now(3), HERE, OTHER, false);
        assert_eq!(table.route(Now(4), HERE), Route::To { hop: HOP, ask: true });
        // Who is there answers, whichever it is.
        table.heard(Now(5), HERE, HOP, true);
        assert_eq!(table.route(Now(6), HERE), Route::To { hop: HOP, ask: false });
        table.heard(Now(7), HERE, OTHER, false);
        assert_eq!(table.route(Now(8), HERE), Route::To { hop: HOP, ask: true });
        table.heard(Now(9), HERE, OTHER, true);
        assert_eq!(table.route(Now(10), HERE), Route::To { hop: OTHER, ask: false });
    }

    #[test]
    fn nothing_more_goes_to_who_does_not_answer_any_more() {
        let mut table = Neighbours::default();
        table.heard(Now(0), HERE, HOP, false);
        let gone = (0..1000).find(|at| {
            let now = Now(STALE + 1 + at * ASK);
            matches!(table.route(now, HERE), Route::Unknown { .. })
        });
        assert_eq!(gone, Some(255), "after as many questions as are asked of anybody");
        table.heard(Now(2 * STALE), HERE, OTHER, false);
        assert_eq!(table.route(Now(2 * STALE), HERE), Route::To { hop: OTHER, ask: false });
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_is_used() {
        let mut table = Neighbours::default();
        table.heard(Now(0), HERE, HOP, false);
        for other in 0..3 * MAX as u32 {
            let now = Now(1 + u64::from(other));
            assert_eq!(table.route(now, HERE), Route::To { hop: HOP, ask: false });
            table.heard(now, Ipv4Addr::from(0x0a01_0000 + other), OTHER, false);
        }
        assert_eq!(table.entries.len(), MAX);
    }
}
