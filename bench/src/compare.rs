//! `overbank-bench compare`: our READs and WRITEs beside other programs', taking turns.

use std::cell::RefCell;

use overbank_verbs::Op;

use crate::cpus::Cpus;
use crate::ends::Ends;
use crate::error::BenchError;
use crate::figures::{self, Subject, Times};
use crate::library::{self, TcpLibrary, Wanted};
use crate::options::{Measuring, Period};
use crate::perftest::{Perftest, Test};
use crate::pipeline::{Pipeline, Shape};
use crate::rates;
use crate::raw::{Kind, Ours};
use crate::report::Report;

const EXAMPLES: &str = "\
perftest's ib_read_lat times a READ to its completion, as `raw --op read` does. Its ib_write_lat times half of a round
trip of WRITEs that both ends look for in their memory, as `raw --op ping-pong` does, not a WRITE to its completion.
UCX and libfabric have small clients of their own here, compiled when they are needed (cc, libucx-dev, libfabric-dev);
both ends poll, and the bytes are checked. Their WRITEs at --depth may count as soon as their bytes may be changed (UCX).
All programs run on the same two processors, with the same number of operations, in turn.

Examples
  overbank-bench compare --device mlx5_0 --rounds 7 --json
  overbank-bench compare --device soft --peers ucx-tcp,libfabric-tcp --size 64,4096,65536 --depth 16,32
  scripts/rxe-vm -- target/release/overbank-bench compare --device rxe0 --size 64,4096
  scripts/rxe-vm --net two -- target/release/overbank-bench compare --device rxe0 --peer-device rxe1";

/// What `compare` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Compare {
    #[command(flatten)]
    ends: Ends,
    /// What is compared with; of UCX and libfabric what is not installed is named, and left out
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [PeerProgram::Perftest])]
    peers: Vec<PeerProgram>,
    /// What is compared, where the other program has it
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Read, Kind::Write, Kind::PingPong])]
    op: Vec<Kind>,
    /// Bytes of one operation, 1 to 8388608; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 4096])]
    size: Vec<usize>,
    /// Also operations a second with so many outstanding, 1 to 4096; several with commas; not with perftest
    #[arg(long, value_delimiter = ',')]
    depth: Vec<u32>,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    measuring: Measuring,
}

/// Another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PeerProgram {
    /// ib_read_lat and ib_write_lat
    Perftest,
    /// UCX's get and put, UCX_TLS=tcp,self
    UcxTcp,
    /// libfabric's RMA, over tcp;ofi_rxm and over tcp itself
    LibfabricTcp,
}

/// The test of perftest that times the same.
fn test(kind: Kind) -> Option<Test> {
    match kind {
        Kind::Read => Some(Test::ReadLatency),
        Kind::Write => None,
        Kind::PingPong => Some(Test::WriteLatency),
    }
}

/// The operation of a library that is the same.
fn op(kind: Kind) -> Option<Op> {
    match kind {
        Kind::Read => Some(Op::Read),
        Kind::Write => Some(Op::Write),
        Kind::PingPong => None,
    }
}

/// The other programs, as far as they are here.
struct Peers {
    perftest: Option<(String, Perftest)>,
    libraries: Vec<TcpLibrary>,
    missing: Vec<String>,
}

impl Peers {
    fn find(compare: &Compare, cpus: Cpus) -> Result<Self, BenchError> {
        let wants = |peer| compare.peers.contains(&peer);
        let perftest = match wants(PeerProgram::Perftest) {
            true => Some((Perftest::version()?, Perftest::new(&compare.ends, cpus)?)),
            false => None,
        };
        let mut peers = Self { perftest, libraries: Vec::new(), missing: Vec::new() };
        for (peer, wanted) in [(PeerProgram::UcxTcp, Wanted::Ucx), (PeerProgram::LibfabricTcp, Wanted::Fabric)] {
            if wants(peer) {
                let (found, missing) = library::find(wanted, cpus)?;
                peers.libraries.extend(found);
                peers.missing.extend(missing);
            }
        }
        if peers.perftest.is_none() && peers.libraries.is_empty() {
            return Err(BenchError::Usage(format!("nothing to compare with: {}", peers.missing.join("; "))));
        }
        Ok(peers)
    }

    /// Of the operations those that somebody has.
    fn share(&self, kinds: &[Kind]) -> Vec<Kind> {
        let shared = |kind: &Kind| {
            self.perftest.is_some() && test(*kind).is_some() || !self.libraries.is_empty() && op(*kind).is_some()
        };
        kinds.iter().copied().filter(shared).collect()
    }
}

/// Which of our figures stands beside which other, and how the other was had.
#[derive(Default)]
struct Beside {
    pairs: Vec<(String, String)>,
    commands: Vec<String>,
}

impl Beside {
    fn put(&mut self, own: &str, name: &str, command: String) {
        self.pairs.push((own.to_owned(), name.to_owned()));
        self.commands.push(command);
    }
}

/// Measures and reports.
pub(crate) fn run(compare: &Compare) -> Result<(), BenchError> {
    let plan = compare.measuring.plan()?;
    let pace = compare.period.pace(plan.rounds, None)?;
    let shapes = Shape::all(&compare.size, &compare.depth, 1, &[0])?;
    let cpus = compare.measuring.cpus()?;
    let peers = Peers::find(compare, cpus)?;
    if peers.libraries.is_empty() && !shapes.is_empty() {
        return Err(BenchError::Usage("--depth is for UCX and libfabric, which are not compared with here".to_owned()));
    }
    let kinds = peers.share(&compare.op);
    let mut ours = Ours::start(&compare.ends, &kinds, &compare.size, cpus)?;
    let pipelines = shapes.iter().map(|shape| Ok(RefCell::new(Pipeline::start(&compare.ends, *shape, cpus)?)));
    let pipelines: Vec<_> = pipelines.collect::<Result<_, BenchError>>()?;

    let (mut singles, mut beside) = (Vec::new(), Beside::default());
    for (kind, size, subject) in ours.subjects("overbank_") {
        let own = subject.name.clone();
        singles.push(subject);
        if let (Some((_, perftest)), Some(test)) = (&peers.perftest, test(kind)) {
            let name = format!("perftest_{}_{size}", kind.name());
            beside.put(&own, &name, perftest.command(test, size, &plan));
            let turn = move |plan: &figures::Plan| perftest.turn(test, size, plan).map(Times::from);
            singles.push(Subject::at_its_own_pace(name, turn));
        }
        for (library, op) in peers.libraries.iter().filter_map(|library| Some((library, op(kind)?))) {
            let name = format!("{}_{}_{size}", library.name, kind.name());
            beside.put(&own, &name, library.command(&library::timed(op, size, &plan)));
            let turn = move |plan: &figures::Plan| library.times(op, size, plan).map(Times::from);
            singles.push(Subject::at_its_own_pace(name, turn));
        }
    }
    let measured = figures::measure(&plan, &mut singles)?;
    drop(singles);

    let mut many = Vec::new();
    for (kind, op) in kinds.iter().filter_map(|kind| Some((kind, op(*kind)?))) {
        for (&Shape { size, depth, .. }, pipeline) in shapes.iter().zip(&pipelines) {
            let suffix = format!("{}_{size}_x{depth}", kind.name());
            let own = format!("overbank_{suffix}");
            let turn = Box::new(move |pace: &rates::Pace| pipeline.borrow_mut().turn(op, pace));
            many.push(rates::Subject { name: own.clone(), size, turn });
            for library in &peers.libraries {
                let name = format!("{}_{suffix}", library.name);
                beside.put(&own, &name, library.command(&library::rated(op, size, depth, &pace)));
                let turn = Box::new(move |pace: &rates::Pace| library.rate(op, size, depth, pace));
                many.push(rates::Subject { name, size, turn });
            }
        }
    }
    let rated = rates::measure(&pace, &mut many)?;
    drop(many);

    let mut report = Report::new("compare", cpus, &plan)?;
    report.times(measured)?;
    report.rates(rated)?;
    ours.describe(&compare.ends, &mut report);
    if let Some((version, _)) = &peers.perftest {
        report.setting("perftest", version.as_str());
    }
    for library in &peers.libraries {
        report.setting(library.name, library.version.as_str());
    }
    if !peers.missing.is_empty() {
        report.setting("missing", peers.missing.clone());
        report.warnings.extend(peers.missing.iter().map(|missing| format!("not compared with {missing}")));
    }
    if !shapes.is_empty() {
        report.setting("seconds", pace.seconds);
        report.setting("warmup_seconds", pace.warmup_seconds);
    }
    report.setting("peer_commands", beside.commands);
    for (own, other) in &beside.pairs {
        report.ratio(&format!("{own} / {other}"), own, other);
    }
    compare.measuring.finish(&report)
}
