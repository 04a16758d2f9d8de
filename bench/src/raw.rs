//! `overbank-bench raw`: plain READs and WRITEs between two devices, one at a time, without sealing and without a lease.

use std::cell::RefCell;
use std::collections::BTreeSet;

use overbank_verbs::Op;

use crate::answer;
use crate::cpus::Cpus;
use crate::ends::{Ends, MAX_SIZE, Reach};
use crate::error::BenchError;
use crate::figures::{Subject, Times, measure};
use crate::one_sided::OneSided;
use crate::options::Measuring;
use crate::peer::Peer;
use crate::ping_pong::PingPong;
use crate::report::Report;
use crate::udp::UdpPing;

/// Operations go round in as many bytes of the answering end (perftest's do too).
const SPAN: usize = 4096;

const EXAMPLES: &str = "\
Two processes, each on a processor of its own; both poll. On a real device the answering end sleeps, but in a ping-pong.

Examples
  overbank-bench raw --device rxe0 --size 64,4096 --json
  overbank-bench raw --device rxe0 --peer-device rxe1 --op read --rounds 7
  overbank-bench raw --device soft --op write,ping-pong --count 5000
  overbank-bench raw --device soft --op read --with-floor --json
  scripts/rxe-vm -- target/release/overbank-bench raw --device rxe0";

/// What `raw` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Raw {
    #[command(flatten)]
    ends: Ends,
    /// What is timed
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Read, Kind::Write, Kind::PingPong])]
    op: Vec<Kind>,
    /// Bytes of one operation, 1 to 8388608; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 4096])]
    size: Vec<usize>,
    /// Also measure, in the same rounds, UDP ping-pong of as many bytes as the packets of a READ or WRITE have; only
    /// for sizes of one packet
    #[arg(long)]
    with_floor: bool,
    #[command(flatten)]
    measuring: Measuring,
}

/// What is timed of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A READ, from posting it to its completion
    Read,
    /// A WRITE, from posting it to its completion
    Write,
    /// WRITEs that each end answers with a WRITE when it sees them in its memory: half of each round trip
    PingPong,
}

impl Kind {
    /// As it appears in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::PingPong => "ping_pong",
        }
    }

    /// Bytes of the UDP datagrams of one operation that fits a packet: out, and back. BTH and ICRC are in all, RETH in
    /// requests, AETH in answers, and data is padded. None where one operation is no question and answer.
    fn datagrams(self, size: usize) -> Option<(usize, usize)> {
        const BTH: usize = 12;
        const RETH: usize = 16;
        const AETH: usize = 4;
        const ICRC: usize = 4;
        let (data, request, answer) = (size.next_multiple_of(4), BTH + RETH + ICRC, BTH + AETH + ICRC);
        match self {
            Self::Read => Some((request, answer + data)),
            Self::Write => Some((request + data, answer)),
            Self::PingPong => None,
        }
    }
}

/// Measures and reports.
pub(crate) fn run(raw: &Raw) -> Result<(), BenchError> {
    let plan = raw.measuring.plan()?;
    let cpus = raw.measuring.cpus()?;
    let mut ours = Ours::start(&raw.ends, &raw.op, &raw.size, cpus)?;
    let floor = if raw.with_floor { Some(Floor::start(&ours, cpus)?) } else { None };
    let (mut subjects, mut pairs) = (Vec::new(), Vec::new());
    for (kind, size, subject) in ours.subjects("") {
        let own = subject.name.clone();
        subjects.push(subject);
        if let (Some(floor), Some((out, back))) = (&floor, kind.datagrams(size)) {
            let name = format!("udp_{own}");
            pairs.push((own, name.clone()));
            subjects.push(Subject::timed(name, move || floor.udp.borrow_mut().exchange(out, back)));
        }
    }
    let measured = measure(&plan, &mut subjects)?;
    drop(subjects);
    let mut report = Report::new("raw", cpus, &plan)?;
    report.times(measured)?;
    ours.describe(&raw.ends, &mut report);
    for (own, floor) in &pairs {
        report.ratio(&format!("{own} / {floor}"), own, floor);
    }
    raw.measuring.finish(report)
}

/// What the same datagrams take without us.
struct Floor {
    udp: RefCell<UdpPing>,
    /// Ends the answering process when dropped.
    _peer: Peer,
}

impl Floor {
    fn start(ours: &Ours, cpus: Cpus) -> Result<Self, BenchError> {
        for one in &ours.sizes {
            let mtu = one.reach().map_or(0, |(own, other)| own.path_mtu(&other));
            if one.size > mtu {
                let message = format!(
                    "--with-floor compares with one datagram each way, and {} bytes are more than a packet's {mtu}",
                    one.size
                );
                return Err(BenchError::Usage(message));
            }
        }
        let (peer, address) = answer::start(answer::Kind::Udp, cpus)?;
        Ok(Self { udp: RefCell::new(UdpPing::connect(address)?), _peer: peer })
    }
}

/// Our ends, connected: for each size what is needed of the operations.
pub(crate) struct Ours {
    sizes: Vec<Connections>,
}

struct Connections {
    size: usize,
    ops: BTreeSet<Kind>,
    one_sided: Option<RefCell<OneSided>>,
    ping_pong: Option<PingPong>,
}

impl Connections {
    /// Where the two ends are.
    fn reach(&self) -> Option<(Reach, Reach)> {
        let one_sided = self.one_sided.as_ref().map(|one_sided| one_sided.borrow().reach());
        one_sided.or_else(|| self.ping_pong.as_ref().map(PingPong::reach))
    }
}

impl Ours {
    /// Starts them.
    pub(crate) fn start(ends: &Ends, ops: &[Kind], sizes: &[usize], cpus: Cpus) -> Result<Self, BenchError> {
        if let Some(size) = sizes.iter().find(|size| !(1..=MAX_SIZE).contains(*size)) {
            return Err(BenchError::Usage(format!("--size is 1 to {MAX_SIZE} bytes, not {size}")));
        }
        let mut ours = Self { sizes: Vec::new() };
        let distinct: BTreeSet<_> = sizes.iter().copied().collect();
        for size in distinct {
            let one_sided = match ops.contains(&Kind::Read) || ops.contains(&Kind::Write) {
                true => Some(RefCell::new(OneSided::start(ends, size, SPAN, cpus)?)),
                false => None,
            };
            let ping_pong = match ops.contains(&Kind::PingPong) {
                true => Some(PingPong::start(ends, size, cpus)?),
                false => None,
            };
            ours.sizes.push(Connections { size, ops: ops.iter().copied().collect(), one_sided, ping_pong });
        }
        Ok(ours)
    }

    /// What is timed, size by size, each with its name behind `prefix`.
    pub(crate) fn subjects(&mut self, prefix: &str) -> Vec<(Kind, usize, Subject<'_>)> {
        let mut subjects = Vec::new();
        for Connections { size, ops, one_sided, ping_pong } in &mut self.sizes {
            let mut ping_pong = ping_pong.as_mut();
            for &kind in &*ops {
                let name = format!("{prefix}{}_{size}", kind.name());
                let op = if kind == Kind::Read { Op::Read } else { Op::Write };
                let subject = match (kind, &*one_sided) {
                    (Kind::PingPong, _) => ping_pong
                        .take()
                        .map(|ends| Subject::at_its_own_pace(name, move |plan| ends.turn(plan).map(Times::from))),
                    (_, Some(one_sided)) => Some(Subject::timed(name, move || one_sided.borrow_mut().once(op))),
                    (_, None) => None,
                };
                subjects.extend(subject.map(|subject| (kind, *size, subject)));
            }
        }
        subjects
    }

    /// Notes in the report where the ends are.
    pub(crate) fn describe(&self, ends: &Ends, report: &mut Report) {
        report.ends(ends);
        if let Some((own, other)) = self.sizes.first().and_then(Connections::reach) {
            report.setting("mtu", own.path_mtu(&other));
            report.setting("gid", own.endpoint.socket_addr().ip().to_string());
            report.setting("peer_gid", other.endpoint.socket_addr().ip().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_has_the_bytes_of_the_packets() {
        // READ request; READ response only.
        assert_eq!(Kind::Read.datagrams(64), Some((32, 84)));
        assert_eq!(Kind::Read.datagrams(4096), Some((32, 4116)));
        // WRITE only; acknowledgement.
        assert_eq!(Kind::Write.datagrams(4096), Some((4128, 20)));
        assert_eq!(Kind::Write.datagrams(1), Some((36, 20)));
        assert_eq!(Kind::PingPong.datagrams(1), None);
    }
}
