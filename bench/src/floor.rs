//! `overbank-bench floor`: what the machine itself costs, before anything of ours.

use std::cell::RefCell;

use crate::answer::{self, Kind};
use crate::error::BenchError;
use crate::figures::{Subject, measure};
use crate::memcpy::Copier;
use crate::options::Measuring;
use crate::report::Report;
use crate::tcp::TcpPing;
use crate::udp::{HEAD, MAX_DATAGRAM, UdpPing};

/// Memory that random copies jump through: beyond any cache.
const SPAN: usize = 256 << 20;

/// What `floor` takes.
#[derive(clap::Args)]
pub(crate) struct Floor {
    /// Bytes of the large direction; a sealed block of 4096 is 4128 on the wire
    #[arg(long, default_value_t = 4128)]
    size: usize,
    #[command(flatten)]
    measuring: Measuring,
}

/// Measures and reports.
pub(crate) fn run(floor: &Floor) -> Result<(), BenchError> {
    let size = floor.size;
    if !(HEAD..=MAX_DATAGRAM).contains(&size) {
        let message = format!("--size is {HEAD} to {MAX_DATAGRAM} bytes (one datagram), not {size}");
        return Err(BenchError::Usage(message));
    }
    let plan = floor.measuring.plan()?;
    let cpus = floor.measuring.cpus()?;
    let (_udp_peer, udp) = answer::start(Kind::Udp, cpus)?;
    let (_tcp_peer, tcp) = answer::start(Kind::Tcp, cpus)?;
    let (udp, tcp) = (RefCell::new(UdpPing::connect(udp)?), RefCell::new(TcpPing::connect(tcp)?));
    let (mut hot, mut random) = (Copier::hot(size), Copier::random(size, SPAN));
    let mut subjects = [
        Subject::timed("udp_read", || udp.borrow_mut().exchange(HEAD, size)),
        Subject::timed("udp_write", || udp.borrow_mut().exchange(size, HEAD)),
        Subject::timed("tcp_read", || tcp.borrow_mut().exchange(HEAD, size)),
        Subject::timed("tcp_write", || tcp.borrow_mut().exchange(size, HEAD)),
        Subject::sampled("memcpy_hot", || Ok(hot.sample())),
        Subject::sampled("memcpy_random", || Ok(random.sample())),
    ];
    let mut report = Report::new("floor", cpus, &plan)?;
    report.times(measure(&plan, &mut subjects)?)?;
    report.setting("size", size);
    floor.measuring.finish(report)
}
