//! `overbank-bench connect`: what opening a connection of plain queue pairs costs, and closing it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::cpus::Cpus;
use crate::ends::{Ends, MAX_SIZE};
use crate::error::BenchError;
use crate::opening::{MAX_LANES, Opening, STEPS};
use crate::options::Measuring;
use crate::report::Report;
use crate::several::{in_steps, measure};

const EXAMPLES: &str = "\
Between two processes, without a lease. Of a connection of N queue pairs, all N together:
  create_xN      each with a completion queue of its own; memory is registered before
  connect_xN     the asking end, to ready-to-send; it was told before where the other end is
  first_read_xN  one READ on each, until the last has completed
  destroy_xN     queue pairs and completion queues
  cycle_xN       all of it, and what the ends tell each other through pipes, which is in none of
                 the others
With --rate cycles are due at that rate, and cycle_xN is also counted from when each was due.

Examples
  overbank-bench connect --device soft
  overbank-bench connect --device rxe0 --lanes 1,16 --count 100 --json
  overbank-bench connect --device mlx5_0 --size 4096 --rounds 9 --out DIR";

/// What `connect` takes.
#[derive(clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("count", |arg| arg.default_value("500").help("Connections opened and closed in each turn")),
    mut_arg("warmup", |arg| arg.default_value("50").help("Connections before each turn, untimed")),
    mut_arg("rate", |arg| arg.help(
        "Connections due each second, whether or not the one before is closed [default: each begins when the one before is closed]"
    ))
)]
pub(crate) struct Connect {
    #[command(flatten)]
    ends: Ends,
    /// Queue pairs of a connection, 1 to 64; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    lanes: Vec<usize>,
    /// Bytes of the first READ, 1 to 8388608
    #[arg(long, default_value_t = 64)]
    size: usize,
    #[command(flatten)]
    measuring: Measuring,
}

/// Measures and reports.
pub(crate) fn run(connect: &Connect) -> Result<(), BenchError> {
    let lanes: BTreeSet<usize> = connect.lanes.iter().copied().collect();
    if let Some(bad) = lanes.iter().find(|lanes| !(1..=MAX_LANES).contains(*lanes)) {
        return Err(BenchError::Usage(format!("--lanes is 1 to {MAX_LANES}, not {bad}")));
    }
    if !(1..=MAX_SIZE).contains(&connect.size) {
        return Err(BenchError::Usage(format!("--size is 1 to {MAX_SIZE} bytes, not {}", connect.size)));
    }
    let plan = connect.measuring.plan()?;
    let cpus: Cpus = connect.measuring.cpus()?;
    let most = lanes.last().copied().unwrap_or(1);
    let opening = RefCell::new(Opening::start(&connect.ends, connect.size, most, cpus)?);
    let subject = |&lanes: &usize| {
        let opening = &opening;
        in_steps(&STEPS, "cycle", &format!("_x{lanes}"), move |watch| opening.borrow_mut().once(lanes, watch))
    };
    let mut subjects: Vec<_> = lanes.iter().map(subject).collect();
    let measured = measure(&plan, &mut subjects)?;
    drop(subjects);

    let mut report = Report::new("connect", cpus, &plan)?;
    report.times(measured)?;
    report.device("device", &connect.ends.device);
    report.setting("peer_device", connect.ends.peer_device());
    report.setting("lanes", lanes.iter().copied().collect::<Vec<_>>());
    report.setting("size", connect.size);
    if let Some(one) = lanes.first() {
        for (step, many) in STEPS.iter().flat_map(|step| lanes.iter().skip(1).map(move |many| (step, many))) {
            let (one, many) = (format!("{step}_x{one}"), format!("{step}_x{many}"));
            report.ratio(&format!("{many} / {one}"), &many, &one);
        }
    }
    connect.measuring.finish(report)
}
