//! `overbank-bench compare`: our READs and WRITEs beside another program's, on the same devices, taking turns.

use crate::ends::Ends;
use crate::error::BenchError;
use crate::figures::{Subject, measure};
use crate::options::Measuring;
use crate::perftest::{Perftest, Test};
use crate::raw::{Kind, Ours};
use crate::report::Report;

const EXAMPLES: &str = "\
perftest's ib_read_lat times a READ to its completion, as `raw --op read` does. Its ib_write_lat times half of a round
trip of WRITEs that both ends look for in their memory, as `raw --op ping-pong` does, not a WRITE to its completion.
Both programs run on the same two processors, with the same number of operations, in turn.

Examples
  overbank-bench compare --device mlx5_0 --rounds 7 --json
  scripts/rxe-vm -- target/release/overbank-bench compare --device rxe0 --size 64,4096
  scripts/rxe-vm --net two -- target/release/overbank-bench compare --device rxe0 --peer-device rxe1";

/// What `compare` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Compare {
    #[command(flatten)]
    ends: Ends,
    /// What is compared with
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [PeerProgram::Perftest])]
    peers: Vec<PeerProgram>,
    /// Bytes of one operation, 1 to 8388608; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 4096])]
    size: Vec<usize>,
    #[command(flatten)]
    measuring: Measuring,
}

/// Another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PeerProgram {
    /// ib_read_lat and ib_write_lat
    Perftest,
}

/// Our operations, and the test that times the same.
const COUNTERPARTS: [(Kind, Test); 2] = [(Kind::Read, Test::ReadLatency), (Kind::PingPong, Test::WriteLatency)];

/// Measures and reports.
pub(crate) fn run(compare: &Compare) -> Result<(), BenchError> {
    let plan = compare.measuring.plan()?;
    let cpus = compare.measuring.cpus()?;
    let with_perftest = compare.peers.contains(&PeerProgram::Perftest);
    let perftest = if with_perftest { Some((Perftest::version()?, Perftest::new(&compare.ends, cpus)?)) } else { None };
    let mut ours = Ours::start(&compare.ends, &COUNTERPARTS.map(|(kind, _)| kind), &compare.size, cpus)?;

    let (mut subjects, mut pairs, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, size, subject) in ours.subjects("overbank_") {
        let own = subject.name.clone();
        subjects.push(subject);
        let test = COUNTERPARTS.iter().find(|(candidate, _)| *candidate == kind);
        if let (Some((_, perftest)), Some(&(_, test))) = (&perftest, test) {
            let name = format!("perftest_{}_{size}", kind.name());
            commands.push(perftest.command(test, size, &plan));
            pairs.push((own, name.clone()));
            subjects.push(Subject { name, turn: Box::new(move |plan| perftest.turn(test, size, plan)) });
        }
    }
    let measured = measure(&plan, &mut subjects)?;
    drop(subjects);

    let mut report = Report::new("compare", cpus, &plan)?;
    report.times(measured)?;
    ours.describe(&compare.ends, &mut report);
    if let Some((version, _)) = &perftest {
        report.setting("perftest", version.as_str());
        report.setting("perftest_commands", commands);
    }
    for (own, other) in &pairs {
        report.ratio(&format!("{own} / {other}"), own, other);
    }
    compare.measuring.finish(&report)
}
