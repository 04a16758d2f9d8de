//! `overbank-bench latency`: sealed reads and writes, one at a time, and what they are to be compared with.

use std::cell::RefCell;

use overbank::LeaseId;
use overbank_verbs::Op;

use crate::answer::{self, Kind};
use crate::cpus::Cpus;
use crate::ends::Ends;
use crate::error::BenchError;
use crate::existing::Existing;
use crate::figures::{Subject, measure};
use crate::one_sided::OneSided;
use crate::options::Measuring;
use crate::report::Report;
use crate::sealed::Sealed;
use crate::stack::Stack;
use crate::udp::{HEAD, MAX_DATAGRAM, UdpPing};

/// What `latency` takes.
#[derive(clap::Args)]
pub(crate) struct Latency {
    /// Bytes of one operation, 1 to 1 MiB
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// Also measure, in the same rounds, as many bytes as a sealed operation moves: without sealing by the same queue pair, as
    /// a plain READ from another process, and as UDP ping-pong
    #[arg(long)]
    with_floor: bool,
    /// Start an auth daemon and a provider for this measurement, from the programs beside this one
    #[arg(long, conflicts_with_all = ["authd", "home", "lease"])]
    self_contained: bool,
    #[command(flatten)]
    existing: Existing,
    /// A lease to measure on; what is in it is OVERWRITTEN [default: one that is made for this, and given back]
    #[arg(long, value_name = "LEASE")]
    lease: Option<LeaseId>,
    /// The RDMA device of every end that is started here: auto, soft, or a name
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    measuring: Measuring,
}

/// Measures and reports.
pub(crate) fn run(latency: &Latency) -> Result<(), BenchError> {
    if !(1..=1 << 20).contains(&latency.size) {
        return Err(BenchError::Usage(format!("--size is 1 to 1048576 bytes, not {}", latency.size)));
    }
    let plan = latency.measuring.plan()?;
    let cpus = latency.measuring.cpus()?;
    let (config, _stack) = if latency.self_contained {
        let stack = Stack::start(&latency.device, cpus)?;
        (stack.config.clone(), Some(stack))
    } else {
        (latency.existing.config()?, None)
    };
    let sealed = Sealed::attach(&config, latency.lease, &latency.device, latency.size)?;
    let wire = sealed.wire_bytes();
    let floor = if latency.with_floor {
        Some(Floor::start(&latency.device, wire, sealed.places() as usize, cpus)?)
    } else {
        None
    };

    let sealed = RefCell::new(sealed);
    let mut subjects = vec![
        Subject::timed("sealed_read", || sealed.borrow_mut().read()),
        Subject::timed("sealed_write", || sealed.borrow_mut().write()),
    ];
    if let Some(floor) = &floor {
        subjects.extend([
            Subject::timed("unsealed_read", || sealed.borrow_mut().unsealed(Op::Read)),
            Subject::timed("unsealed_write", || sealed.borrow_mut().unsealed(Op::Write)),
            Subject::timed("raw_read", || floor.raw.borrow_mut().once(Op::Read)),
            Subject::timed("udp_read", || floor.udp.borrow_mut().exchange(HEAD, wire)),
            Subject::timed("udp_write", || floor.udp.borrow_mut().exchange(wire, HEAD)),
        ]);
    }
    let measured = measure(&plan, &mut subjects)?;
    drop(subjects);
    sealed.into_inner().finish()?;

    let mut report = Report::new("latency", cpus, &plan)?;
    report.times(measured)?;
    report.setting("size", latency.size);
    report.setting("wire_bytes", wire);
    report.device("device", &latency.device);
    report.setting("self_contained", latency.self_contained);
    report.ratio("sealed_read / udp_read", "sealed_read", "udp_read");
    report.ratio("sealed_read / unsealed_read", "sealed_read", "unsealed_read");
    report.ratio("sealed_write / unsealed_write", "sealed_write", "unsealed_write");
    report.ratio("sealed_read / raw_read", "sealed_read", "raw_read");
    report.ratio("sealed_write / udp_write", "sealed_write", "udp_write");
    latency.measuring.finish(report)
}

/// What the sealed operations are compared with.
struct Floor {
    raw: RefCell<OneSided>,
    udp: RefCell<UdpPing>,
    _udp_peer: crate::peer::Peer,
}

impl Floor {
    fn start(device: &str, wire: usize, places: usize, cpus: Cpus) -> Result<Self, BenchError> {
        if wire > MAX_DATAGRAM {
            let message =
                format!("--with-floor compares with one datagram, and {wire} bytes are more than its {MAX_DATAGRAM}");
            return Err(BenchError::Usage(message));
        }
        let (udp_peer, udp) = answer::start(Kind::Udp, cpus)?;
        let raw = RefCell::new(OneSided::start(&Ends::on(device), wire, wire * places, cpus)?);
        Ok(Self { raw, udp: RefCell::new(UdpPing::connect(udp)?), _udp_peer: udp_peer })
    }
}
