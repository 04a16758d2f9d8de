//! The thread that resolves faults where the touching thread does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::kernel::{Fault, Waiter};
use crate::pager::Pager;
use crate::signal;
use crate::store::{Cause, Lane};

/// How long it sleeps at most, so that it sees that it is to stop.
const IDLE: Duration = Duration::from_millis(50);

pub(crate) fn run<L: Lane>(pager: &Pager<L>, waiter: &Waiter, spin: Duration, stop: &AtomicBool) {
    signal::block_all();
    let mut last = Instant::now();
    while !stop.load(Ordering::Acquire) {
        match pager.kernel.next() {
            Ok(Some(fault)) => {
                resolve(pager, fault);
                last = Instant::now();
            }
            // Who was woken may need this processor.
            Ok(None) if last.elapsed() < spin => std::thread::yield_now(),
            Ok(None) => {
                // A failure is seen by the next look.
                let _ = waiter.wait(IDLE);
            }
            Err(error) => {
                pager.report(pager.map.at(0), &Cause::new(&format_args!("faults are not told any more: {error}")));
                signal::die();
            }
        }
    }
}

fn resolve<L: Lane>(pager: &Pager<L>, fault: Fault) {
    let Err(cause) = pager.touch(fault.address, Some(fault.access)) else { return };
    pager.report(fault.address, &cause);
    let address = fault.address - (fault.address - pager.map.at(0)) % pager.page;
    if pager.kernel.poison(address, pager.page).is_err() {
        signal::die();
    }
}
