//! The thread that sees to lanes: from time to time, and when one broke.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::pager::Pager;
use crate::signal;
use crate::stats::count;
use crate::store::{Keeper, Lane, Trouble};

/// How long it sleeps at most, so that it sees that it is to stop.
const IDLE: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_millis(50);

pub(crate) fn run<L: Lane>(pager: &Pager<L>, mut keeper: impl Keeper<L>, stop: &AtomicBool) {
    signal::block_all();
    let mut next = Instant::now();
    while !stop.load(Ordering::Acquire) && pager.lost().is_none() {
        let now = Instant::now();
        if pager.pool.is_broken() {
            match pager.pool.with_all(|lanes| keeper.mend(lanes)) {
                Ok(()) => {
                    pager.pool.set_mended();
                    count(&pager.counters.mended, 1);
                }
                Err(Trouble::Broken(cause)) => {
                    tracing::debug!(%cause, "the lanes are not mended yet");
                    pager.pool.set_trouble(cause);
                    std::thread::park_timeout(AGAIN);
                }
                Err(Trouble::Lost(cause)) => {
                    tracing::warn!(%cause, "the region's memory is lost");
                    pager.lose(&cause);
                }
            }
        } else if now >= next {
            match keeper.tend() {
                Ok(again) => next = now + again,
                Err(cause) => {
                    tracing::warn!(%cause, "the region's memory is lost");
                    pager.lose(&cause);
                }
            }
        } else {
            std::thread::park_timeout(IDLE.min(next - now));
        }
    }
}
