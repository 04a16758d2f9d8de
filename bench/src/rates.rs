//! How many operations a second, round by round, and what is said of them afterwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::counted::Counted;
use crate::error::BenchError;
use crate::figures;
use crate::report;

/// How long something goes on.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Pace {
    /// Rounds: in each, every subject takes its turn.
    pub(crate) rounds: usize,
    /// Seconds of each turn that count.
    pub(crate) seconds: f64,
    /// Operations of each turn that count, in place of the time.
    pub(crate) count: Option<u64>,
    /// Seconds before those.
    pub(crate) warmup_seconds: f64,
}

impl Pace {
    /// The untimed part of a turn.
    pub(crate) fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup_seconds)
    }

    /// The longest that the timed part may last.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// What the timed part was, where it is over after so many operations.
    pub(crate) fn over(&self, time: Duration, operations: u64) -> Option<Rate> {
        let over = self.count.map_or(time >= self.time(), |count| operations >= count);
        if over { Some(Rate { operations, nanoseconds: time.as_nanos() as u64, packets: None }) } else { None }
    }
}

/// Keeps the time of a turn in which many operations are under way: untimed first, then timed.
pub(crate) struct Clock<'a> {
    pace: &'a Pace,
    begin: Instant,
    /// When the timed part began, and how many operations had completed before.
    from: Option<(Instant, u64)>,
}

impl<'a> Clock<'a> {
    /// From now on.
    pub(crate) fn start(pace: &'a Pace) -> Self {
        Self { pace, begin: Instant::now(), from: None }
    }

    /// Looks, when something has completed, `all` operations since the start; what the turn was, where it is over.
    pub(crate) fn look(&mut self, all: u64) -> Option<Rate> {
        let now = Instant::now();
        match self.from {
            None => {
                self.from = (now.duration_since(self.begin) >= self.pace.warmup()).then_some((now, all));
                None
            }
            Some((from, before)) => self.pace.over(now.duration_since(from), all - before),
        }
    }
}

/// One turn.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Rate {
    /// Operations completed in that time.
    pub(crate) operations: u64,
    /// Nanoseconds from the first moment that counts to the last.
    pub(crate) nanoseconds: u64,
    /// Of our own devices: what they counted in the whole turn, warm-up included.
    #[serde(flatten)]
    pub(crate) packets: Option<Packets>,
}

/// What both ends counted.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Packets {
    /// Operations in which they were counted: those before and after the timed part too.
    #[serde(rename = "operations_in_all")]
    pub(crate) operations: u64,
    /// The asking end's device.
    pub(crate) asker: Counted,
    /// The answering end's device.
    pub(crate) answerer: Counted,
    /// Datagrams of anybody that the kernel threw away for want of room in a socket.
    pub(crate) udp_receive_buffer_errors: u64,
}

impl Packets {
    fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.asker.add(&other.asker);
        self.answerer.add(&other.answerer);
        self.udp_receive_buffer_errors += other.udp_receive_buffer_errors;
    }
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.operations as f64 * 1e9 / self.nanoseconds.max(1) as f64
    }
}

/// Something whose rate is taken.
pub(crate) struct Subject<'a> {
    /// As it appears in the result.
    pub(crate) name: String,
    /// Bytes of one operation.
    pub(crate) size: usize,
    /// Takes one turn.
    pub(crate) turn: Box<Turn<'a>>,
}

/// One turn of a subject.
pub(crate) type Turn<'a> = dyn FnMut(&Pace) -> Result<Rate, BenchError> + 'a;

/// All that was measured of one subject.
pub(crate) struct Rated {
    /// The subject's name.
    pub(crate) name: String,
    size: usize,
    rounds: Vec<Rate>,
}

/// Of the operations a second the median over the rounds, of the packets the sum.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// Bytes of one operation.
    size: usize,
    /// Operations a second.
    per_second: u64,
    /// Of them the bytes that were asked for, in GiB.
    gib_per_second: f64,
    /// Round by round: how steady the machine was.
    per_second_by_round: Vec<u64>,
    /// Of our own devices.
    #[serde(flatten)]
    totals: Option<Totals>,
    /// All rounds, as they were.
    rounds: Vec<Rate>,
}

/// Both ends, all rounds.
#[derive(Debug, Clone, Serialize)]
struct Totals {
    /// Packets that both ends sent.
    packets: u64,
    /// Of them, sent again.
    retransmitted: u64,
    /// The second through the first, in percent.
    retransmitted_percent: f64,
    /// Of both ends, by reason.
    dropped: BTreeMap<String, u64>,
    /// Of anybody: the kernel had no room in a socket.
    udp_receive_buffer_errors: u64,
    /// Packets that an operation took, both ways, with all that was sent again.
    packets_per_operation: f64,
    /// Nanoseconds from a packet to the next, all packets of both ends taken together.
    nanoseconds_per_packet: f64,
}

/// Lets every subject take its turn in every round, so that what disturbs the machine disturbs them all.
pub(crate) fn measure(pace: &Pace, subjects: &mut [Subject<'_>]) -> Result<Vec<Rated>, BenchError> {
    let none = |subject: &Subject<'_>| Rated { name: subject.name.clone(), size: subject.size, rounds: Vec::new() };
    let mut all: Vec<_> = subjects.iter().map(none).collect();
    for round in 1..=pace.rounds {
        for (subject, rated) in subjects.iter_mut().zip(&mut all) {
            let rate = (subject.turn)(pace)?;
            let (each_second, took) = (rate.per_second(), rate.nanoseconds as f64 / 1e9);
            eprintln!("round {round} of {}: {}: {each_second:.0} a second, in {took:.1} s", pace.rounds, subject.name);
            rated.rounds.push(rate);
        }
    }
    Ok(all)
}

impl Rated {
    /// Bytes a second, in GiB.
    pub(crate) fn gib_per_second(&self) -> f64 {
        self.figures().gib_per_second
    }

    /// What is said of it.
    pub(crate) fn figures(&self) -> Figures {
        let by_round: Vec<_> = self.rounds.iter().map(|round| round.per_second().round() as u64).collect();
        let per_second = figures::median(by_round.clone());
        Figures {
            size: self.size,
            per_second,
            gib_per_second: rounded(per_second as f64 * self.size as f64 / (1_u64 << 30) as f64),
            per_second_by_round: by_round,
            totals: self.totals(),
            rounds: self.rounds.clone(),
        }
    }

    fn totals(&self) -> Option<Totals> {
        let mut sum = Packets::default();
        for round in &self.rounds {
            sum.add(round.packets.as_ref()?);
        }
        let Packets { operations, asker, answerer, udp_receive_buffer_errors } = sum;
        let mut both = asker;
        both.add(&answerer);
        let packets_per_operation = both.sent as f64 / operations.max(1) as f64;
        let per_second = figures::median(self.rounds.iter().map(|round| round.per_second().round() as u64).collect());
        let packets_per_second = per_second as f64 * packets_per_operation;
        Some(Totals {
            packets: both.sent,
            retransmitted: both.retransmitted,
            retransmitted_percent: rounded(both.retransmitted as f64 * 100.0 / both.sent.max(1) as f64),
            dropped: both.dropped,
            udp_receive_buffer_errors,
            packets_per_operation: rounded(packets_per_operation),
            nanoseconds_per_packet: (1e9 / packets_per_second.max(1.0)).round(),
        })
    }
}

impl Figures {
    /// Its lines in the table for people.
    pub(crate) fn lines(&self, name: &str) -> String {
        let unknown = || ["", "", ""].map(str::to_owned);
        let [packets, again, percent] = self.totals.as_ref().map_or_else(unknown, |totals| {
            let percent = format!("{:.4}", totals.retransmitted_percent);
            [totals.packets.to_string(), totals.retransmitted.to_string(), percent]
        });
        let (each, gib) = (self.per_second.to_string(), format!("{:.3}", self.gib_per_second));
        let mut text = report::row(name, [each, gib, packets, again, percent]);
        for totals in self.totals.iter() {
            for (reason, count) in &totals.dropped {
                text += &format!("    dropped, {reason}: {count}\n");
            }
            if totals.udp_receive_buffer_errors > 0 {
                text += &format!("    dropped, no room in a socket: {}\n", totals.udp_receive_buffer_errors);
            }
        }
        text
    }
}

/// To four decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(operations: u64, milliseconds: u64, packets: Option<Packets>) -> Rate {
        Rate { operations, nanoseconds: milliseconds * 1_000_000, packets }
    }

    fn packets(operations: u64, asker: u64, answerer: u64, again: u64) -> Packets {
        let asker = Counted { sent: asker, ..Counted::default() };
        let dropped = [("ICRC".to_owned(), 1)].into();
        let answerer = Counted { sent: answerer, retransmitted: again, dropped, ..Counted::default() };
        Packets { operations, asker, answerer, udp_receive_buffer_errors: 1 }
    }

    #[test]
    fn what_completes_in_the_warm_up_does_not_count() {
        let pace = Pace { rounds: 1, seconds: 0.02, count: None, warmup_seconds: 0.01 };
        let (begin, mut clock) = (Instant::now(), Clock::start(&pace));
        let (all, rate) = (1..).find_map(|all| Some((all, clock.look(all)?))).expect("it ends");
        let timed = Duration::from_nanos(rate.nanoseconds);
        assert!(timed >= pace.time() && begin.elapsed() >= timed + pace.warmup(), "{rate:?}");
        assert!(rate.operations < all, "{rate:?} of {all}");
        let pace = Pace { count: Some(10), warmup_seconds: 0.0, ..pace };
        let mut clock = Clock::start(&pace);
        let counted = [5, 14, 16].map(|all| clock.look(all).map(|rate| rate.operations));
        assert_eq!(counted, [None, None, Some(11)], "from the first look after the warm-up");
    }

    #[test]
    fn rates_are_medians_and_packets_are_sums() {
        let mut rates = [
            rate(1000, 100, Some(packets(2000, 2000, 6000, 10))),
            rate(1000, 400, Some(packets(2000, 2000, 6000, 0))),
            rate(1000, 200, Some(packets(1000, 1000, 3000, 0))),
        ]
        .into_iter();
        let turn = Box::new(move |_: &Pace| rates.next().ok_or_else(|| BenchError::Usage("over".to_owned())));
        let pace = Pace { rounds: 3, seconds: 1.0, count: None, warmup_seconds: 0.0 };
        let rated = measure(&pace, &mut [Subject { name: "a".to_owned(), size: 4096, turn }]).expect("three turns");
        let figures = rated[0].figures();
        assert_eq!((figures.per_second, figures.per_second_by_round.as_slice()), (5000, &[10_000, 2500, 5000][..]));
        assert!((figures.gib_per_second - 0.0191).abs() < 1e-9, "{}", figures.gib_per_second);
        let totals = figures.totals.clone().expect("packets");
        assert_eq!((totals.packets, totals.retransmitted, totals.dropped["ICRC"]), (20_000, 10, 3));
        assert_eq!((totals.retransmitted_percent, totals.packets_per_operation), (0.05, 4.0));
        assert_eq!((totals.nanoseconds_per_packet, totals.udp_receive_buffer_errors), (50_000.0, 3));
        assert!(figures.lines("a").contains("ICRC: 3"), "{}", figures.lines("a"));
    }

    #[test]
    fn who_counts_no_packets_has_a_rate() {
        let rated = Rated { name: "b".to_owned(), size: 64, rounds: vec![rate(5, 1, None)] };
        let figures = rated.figures();
        assert!(figures.per_second == 5000 && figures.totals.is_none());
        assert!(figures.lines("b").contains("5000"));
    }
}
