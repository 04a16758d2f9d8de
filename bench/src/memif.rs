//! `overbank-bench memif`: READs through a memif of DPDK's, plain and sealed, beside those through the UDP port and beside
//! shared memory alone, all in turn in one run.

use std::cell::RefCell;
use std::path::Path;

use overbank_verbs::Op;

use crate::cpus::Cpus;
use crate::deep::{Deep, Opening};
use crate::ends::Ends;
use crate::error::BenchError;
use crate::figures::{self, Plan, Subject, Times};
use crate::library::{self, Client, Wanted};
use crate::one_sided::OneSided;
use crate::options::{Measuring, Period};
use crate::pipeline::{Pipeline, Shape};
use crate::rates::{self, Pace};
use crate::report::Report;
use crate::seal;
use crate::sealed::Sealed;
use crate::stack::Stack;

/// Bytes of an operation: of those that are timed one by one, and of those that are also opened at full rate.
const SMALL: usize = 4096;
const LARGE: usize = 65_536;
/// Memory that plain operations go round in, one at a time: as much as the sealed ones do.
const SPAN: usize = 16 << 20;
/// What one sealed read of `SMALL` may take beside 1.3 times opening it, in nanoseconds.
const ALLOWED: f64 = 4000.0;

const EXAMPLES: &str = "\
Needs the feature dpdk, in the programs beside this one too. Each subject has a process at its other end, and a memif of
its own between them; what is sealed goes to a provider that is started for this. Both ends poll: of the asking end the
thread that waits (the first processor), of the answering end the device's (the second). There are no other processors in
it; devices whose turn it is not look for frames once a millisecond.

  memif_read_4096          a READ through the memif, one at a time
  soft_read_4096           the same through the UDP port
  shared_memory_read_4096  a word set, 4 KiB copied in and out of memory that both processes have: the floor
  memif_sealed_read_4096   a block of a lease through the memif, opened
  open_4096, open_65536    opening alone
  memif_read_4096_x32      READs, 32 outstanding; soft_read_4096_x32 likewise
  memif_read_65568_x32     READs of the bytes that a sealed block of 64 KiB has
  memif_sealed_read_65536_x32

Examples
  overbank-bench memif --out DIR
  overbank-bench memif --rounds 7 --seconds 2 --hugepages --json";

/// What `memif` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Memif {
    /// Frames lie in reserved hugepages (128 MiB of them for each of four processes), not in ordinary memory
    #[arg(long)]
    hugepages: bool,
    /// READs outstanding, where there are many, 2 to 4096
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=4096))]
    depth: u32,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    measuring: Measuring,
}

/// Memifs with sockets in one directory.
struct Links<'a> {
    directory: &'a Path,
    hugepages: bool,
    made: u8,
}

impl Links<'_> {
    /// The two ends of a new one.
    fn next(&mut self) -> Ends {
        self.made += 1;
        let (number, directory) = (self.made, self.directory.display());
        let pages = if self.hugepages { ",hugepages=yes" } else { "" };
        let end = |role, host| {
            format!(
                "dpdk:net_memif{number},role={role},socket={directory}/{number},address=10.9.{number}.{host}/24{pages}"
            )
        };
        Ends::between(end("client", 2), end("server", 1))
    }
}

/// Measures and reports.
pub(crate) fn run(memif: &Memif) -> Result<(), BenchError> {
    let plan = memif.measuring.plan()?;
    let pace = memif.period.pace(plan.rounds, None)?;
    let cpus = memif.measuring.cpus()?;
    let directory = tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?;
    let mut links = Links { directory: directory.path(), hugepages: memif.hugepages, made: 0 };
    let lender = links.next();
    let stack = Stack::start(lender.peer_device(), cpus)?;
    let mut report = Report::new("memif", cpus, &plan)?;
    singles(&plan, (&mut links, &lender, &stack), cpus, &mut report)?;
    many(&pace, memif.depth, (&mut links, &lender, &stack), cpus, &mut report)?;
    for (name, value) in [("seconds", pace.seconds), ("warmup_seconds", pace.warmup_seconds)] {
        report.setting(name, value);
    }
    report.setting("depth", memif.depth);
    report.setting("hugepages", memif.hugepages);
    memif.measuring.finish(report)
}

type Ready<'a, 'b> = (&'a mut Links<'b>, &'a Ends, &'a Stack);

/// One at a time.
fn singles(
    plan: &Plan,
    (links, lender, stack): Ready<'_, '_>,
    cpus: Cpus,
    report: &mut Report,
) -> Result<(), BenchError> {
    let shared = shared_memory(plan, cpus, report)?;
    let start = |ends: &Ends| Ok::<_, BenchError>(RefCell::new(OneSided::start(ends, SMALL, SPAN, cpus)?));
    let (memif, soft) = (start(&links.next())?, start(&Ends::on("soft"))?);
    let sealed = RefCell::new(Sealed::attach(&stack.config, None, &lender.device, SMALL)?);
    let (own, other) = memif.borrow().reach();
    report.setting("mtu", own.path_mtu(&other));
    let names = ["memif_read_4096", "soft_read_4096", "shared_memory_read_4096", "memif_sealed_read_4096", "open_4096"];
    let [memif_read, soft_read, shared_read, sealed_read, open] = names;
    let mut subjects = vec![
        Subject::timed(memif_read, || memif.borrow_mut().once(Op::Read)),
        Subject::timed(soft_read, || soft.borrow_mut().once(Op::Read)),
        Subject::timed(sealed_read, || sealed.borrow_mut().read()),
        seal::opening(SMALL as u32)?,
    ];
    if let Some(shared) = &shared {
        let turn = |plan: &Plan| shared.times(Op::Read, SMALL, plan).map(Times::from);
        subjects.push(Subject::at_its_own_pace(shared_read, turn));
    }
    let measured = figures::measure(plan, &mut subjects)?;
    drop(subjects);
    sealed.into_inner().finish()?;
    report.times(measured)?;
    report.draw_percentiles_of("", "one at a time, 4 KiB", names.map(str::to_owned));
    for below in [soft_read, shared_read] {
        report.ratio(&format!("{memif_read} / {below}"), memif_read, below);
    }
    report.ratio_to_allowed(sealed_read, ALLOWED, 1.3, open);
    Ok(())
}

/// Where there is a C compiler, and operations are not due at a rate.
fn shared_memory(plan: &Plan, cpus: Cpus, report: &mut Report) -> Result<Option<Client>, BenchError> {
    if plan.per_second.is_some() {
        return Err(BenchError::Usage("--rate is not for memif: shared memory knows none".to_owned()));
    }
    let (mut found, missing) = library::find(Wanted::Shared, cpus)?;
    report.warnings.extend(missing.iter().map(|(_, reason)| format!("without shared memory: {reason}")));
    Ok(found.pop())
}

/// Many at a time.
fn many(
    pace: &Pace,
    depth: u32,
    (links, lender, stack): Ready<'_, '_>,
    cpus: Cpus,
    report: &mut Report,
) -> Result<(), BenchError> {
    let (Some(stride), Some(opening)) = (Deep::stride(LARGE), Opening::new(LARGE)?) else {
        return Err(BenchError::Usage(format!("no block has {LARGE} bytes")));
    };
    let start = |ends: &Ends, size| {
        let shape = Shape { size, depth, lanes: 1, lose_per_million: 0 };
        Ok::<_, BenchError>(RefCell::new(Pipeline::start(ends, shape, cpus)?))
    };
    let (memif, soft, plain) =
        (start(&links.next(), SMALL)?, start(&Ends::on("soft"), SMALL)?, start(&links.next(), stride)?);
    let deep = RefCell::new(Deep::start(&stack.config, &lender.device, LARGE, depth, 1)?);
    let opening = RefCell::new(opening);
    let name = |what: &str, size: usize| format!("{what}_read_{size}_x{depth}");
    let (memif_read, soft_read) = (name("memif", SMALL), name("soft", SMALL));
    let (plain_read, sealed_read, open) = (name("memif", stride), name("memif_sealed", LARGE), format!("open_{LARGE}"));
    let subject = |name: &str, size, turn| rates::Subject { name: name.to_owned(), size, turn };
    let pipeline = |pipeline: &RefCell<Pipeline>, pace: &Pace| pipeline.borrow_mut().turn(Op::Read, pace);
    let mut subjects = vec![
        subject(&memif_read, SMALL, Box::new(|pace: &Pace| pipeline(&memif, pace)) as Box<rates::Turn<'_>>),
        subject(&soft_read, SMALL, Box::new(|pace: &Pace| pipeline(&soft, pace))),
        subject(&plain_read, LARGE, Box::new(|pace: &Pace| pipeline(&plain, pace))),
        subject(&sealed_read, LARGE, Box::new(|pace: &Pace| deep.borrow_mut().turn(pace))),
        subject(&open, LARGE, Box::new(|pace: &Pace| opening.borrow_mut().turn(pace))),
    ];
    let rated = rates::measure(pace, &mut subjects)?;
    drop(subjects);
    deep.into_inner().finish()?;
    report.rates(rated)?;
    report.ratio(&format!("{memif_read} / {soft_read}"), &memif_read, &soft_read);
    report.ratio_to_one_after_the_other(&sealed_read, &plain_read, &open);
    Ok(())
}
