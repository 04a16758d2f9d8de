//! `overbank-bench compare`: our reads and writes beside other programs', taking turns.

use std::collections::BTreeSet;

use crate::contest::{self, Contest, Outcome};
use crate::ends::{Ends, MAX_SIZE};
use crate::error::BenchError;
use crate::options::{Measuring, Period};
use crate::own::{Own, Task};
use crate::peers::Peers;
use crate::pipeline::Shape;
use crate::raw::Kind;
use crate::report::Report;
use crate::systems::{PEERS, System};

const EXAMPLES: &str = "\
Ours are sealed reads and writes through the library, on a lease of an auth daemon and a provider that are started for
this (overbank-sealed), plain READs and WRITEs of as many bytes (overbank-raw), and plain ones of the bytes that the
sealed ones move (overbank-raw-stride): what sealing costs is the first through the last.

Everybody takes turns, on the same two processors, with the same number of operations. In the JSON `results` is a list:
system, op, size, depth, p50_us, p99_us, p999_us (what a caller waits; of a ping-pong the whole round trip), gib_per_s
(of --depth), the medians by round, the command, and what is not alike with ours. What was not measured is null.

perftest's ib_read_lat times a READ to its completion, as we do. Its ib_write_lat times half of a round trip of WRITEs that
both ends look for in their memory: that is ping-pong; of a WRITE to its completion it has only the bandwidth.
UCX and libfabric have small clients of their own here, compiled when they are needed (cc, libucx-dev, libfabric-dev);
both ends poll. Their WRITEs at --depth may count as soon as their bytes may be changed (UCX).
redis-server is started for this, listens on loopback alone, keeps nothing, and ends with this; redis-tls needs openssl.
The bytes are checked after every turn, but perftest's.
--out draws compare-percentiles-OP_SIZE.svg for each operation and size, one at a time, and compare-sizes.svg and
compare-rates.svg.

Examples
  overbank-bench compare --device soft --json
  overbank-bench compare --device soft --peers redis-tcp,redis-tls --size 4096 --depth 16 --json
  overbank-bench compare --device soft --ours raw --peers ucx-tcp,libfabric-tcp --size 64,4096,65536 --depth 16,32
  overbank-bench compare --device mlx5_0 --rounds 7 --out results
  scripts/rxe-vm -- target/release/overbank-bench compare --device rxe0 --ours raw --peers perftest --size 64,4096";

/// What `compare` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Compare {
    #[command(flatten)]
    ends: Ends,
    /// What is compared with; what is not installed is named, and left out [default: all that are installed and fit the
    /// device]
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<System>,
    /// Which of ours
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Side::Sealed, Side::Raw])]
    ours: Vec<Side>,
    /// What is compared; each system takes part in what it has
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Read, Kind::Write, Kind::PingPong])]
    op: Vec<Kind>,
    /// Bytes of one operation, 1 to 8388608; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [64, 4096])]
    size: Vec<usize>,
    /// Also operations a second with so many outstanding, 2 to 4096; several with commas
    #[arg(long, value_delimiter = ',')]
    depth: Vec<u32>,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    measuring: Measuring,
}

/// One of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    /// Through the library, on a lease
    Sealed,
    /// Plain READs and WRITEs
    Raw,
}

/// Measures and reports.
pub(crate) fn run(compare: &Compare) -> Result<(), BenchError> {
    let plan = compare.measuring.plan()?;
    let pace = compare.period.pace(plan.rounds, None)?;
    if plan.per_second.is_some() {
        return Err(BenchError::Usage("--rate is not for compare: the other programs know none".to_owned()));
    }
    // One outstanding is what is timed anyway.
    let depths: Vec<u32> = compare.depth.iter().copied().filter(|depth| *depth != 1).collect();
    let shapes = Shape::all(&compare.size, &depths, 1, &[0])?;
    let sizes: BTreeSet<_> = compare.size.iter().copied().collect();
    if let Some(size) = sizes.iter().find(|size| !(1..=MAX_SIZE).contains(*size)) {
        return Err(BenchError::Usage(format!("--size is 1 to {MAX_SIZE} bytes, not {size}")));
    }
    let cpus = compare.measuring.cpus()?;
    let peers = Peers::find(&compare.peers, &compare.ends, cpus)?;
    let [sealed, raw] = [Side::Sealed, Side::Raw].map(|side| compare.ours.contains(&side));

    // What only one has is not compared.
    let several = |kind: &Kind| {
        let ours = usize::from(raw) + usize::from(sealed && System::Sealed.has(*kind));
        ours + peers.systems().iter().filter(|peer| peer.has(*kind)).count() > 1
    };
    let kinds: BTreeSet<_> = compare.op.iter().copied().filter(several).collect();
    if kinds.is_empty() {
        let missing = peers.lacking().join("; ");
        return Err(BenchError::Usage(format!("nothing to compare with: nobody else has that operation; {missing}")));
    }
    let task = Task { kinds: kinds.into_iter().collect(), sizes, shapes };
    let mut own = Own::start(&task, &compare.ends, sealed, raw, cpus)?;
    let mut contest = Contest::default();
    own.enter(&task, &mut contest);
    for &kind in &task.kinds {
        task.sizes.iter().for_each(|size| peers.singles(kind, *size, &plan, &mut contest));
        task.shapes.iter().for_each(|shape| peers.many(kind, *shape, plan, &pace, &mut contest));
    }
    let Outcome { entries, measured, rated } = contest.measure(&plan, &pace)?;

    let mut report = Report::new("compare", cpus, &plan)?;
    report.times(measured)?;
    report.rates(rated)?;
    own.describe(&compare.ends, &mut report);
    own.finish()?;
    peers.describe(&mut report);
    if !task.shapes.is_empty() {
        report.setting("seconds", pace.seconds);
        report.setting("warmup_seconds", pace.warmup_seconds);
    }
    let mut commands: Vec<&str> = Vec::new();
    for entry in entries.iter().filter(|entry| PEERS.contains(&entry.system)) {
        if !commands.contains(&&*entry.command) {
            commands.push(&entry.command);
        }
    }
    report.setting("peer_commands", commands);
    for (own, other) in &contest::pairs(&entries) {
        report.ratio(&format!("{own} / {other}"), own, other);
    }
    for ((kind, size), names) in contest::singles(&entries) {
        let part = if kind == Kind::PingPong { ", half of the round trip" } else { "" };
        let what = format!("{} of {size} bytes, one at a time{part}", kind.name());
        report.draw_percentiles_of(&format!("-{}_{size}", kind.name()), &what, names);
    }
    report.list = Some(contest::rows(&entries, &report.results));
    compare.measuring.finish(report)
}
