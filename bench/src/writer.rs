//! Plain WRITEs into a lease without a pause: so many outstanding on so many queue pairs, until somebody says stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::time::{ClockId, clock_gettime};
use overbank_verbs::{Device, Done, Lane, Op, Transfer, VerbsError, WcStatus};

use crate::error::BenchError;

/// Microseconds of this machine's CLOCK_BOOTTIME, which receipts count in.
pub(crate) fn boottime_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux since 2.6.39 has CLOCK_BOOTTIME");
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec()) * 1_000_000 + part(now.tv_nsec()) / 1000
}

/// Where WRITEs go.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) address: u64,
    pub(crate) rkey: u32,
    /// Bytes there; WRITEs go round in them.
    pub(crate) len: u64,
}

/// Lanes of one attach, before they write.
pub(crate) fn lanes(device: &Device, lanes: usize, depth: u32, size: usize) -> Result<Vec<Lane>, VerbsError> {
    (0..lanes).map(|_| Lane::new(device, depth, size)).collect()
}

/// Writes from a thread of its own until it is stopped.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), VerbsError>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    arrived: AtomicU64,
    /// When the last of them was known to have arrived, µs.
    last_us: AtomicU64,
    outstanding: AtomicU64,
}

impl Writer {
    /// Lanes that are connected write `size` bytes at a time.
    pub(crate) fn start(lanes: Vec<Lane>, size: usize, target: Target) -> Result<Self, BenchError> {
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("writer".to_owned());
        let thread = thread.spawn(move || mine.write(lanes, size, target)).map_err(BenchError::io("start a thread"))?;
        Ok(Self { shared, thread })
    }

    /// WRITEs that have arrived.
    pub(crate) fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// WRITEs that are under way.
    pub(crate) fn outstanding(&self) -> u64 {
        self.shared.outstanding.load(Ordering::Relaxed)
    }

    /// Ends it. When the last WRITE was known to have arrived, µs of CLOCK_BOOTTIME.
    pub(crate) fn stop(self) -> Result<u64, BenchError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(done) => done?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(self.shared.last_us.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn write(&self, mut lanes: Vec<Lane>, size: usize, target: Target) -> Result<(), VerbsError> {
        let places = target.len / size as u64;
        let (mut next, mut done, mut batch) = (0, Vec::<Done>::new(), Vec::new());
        let mut transfer = |slot| {
            next = (next + 1) % places.max(1);
            let remote_address = target.address + next * size as u64;
            Transfer { slot, op: Op::Write, len: size, remote_address, rkey: target.rkey }
        };
        for lane in &mut lanes {
            while let Some(slot) = lane.take() {
                if let Some(bytes) = lane.bytes_mut(slot) {
                    bytes.fill(0xEE);
                }
                batch.push(transfer(slot));
            }
            lane.post(&batch)?;
            batch.clear();
        }
        while !self.stop.load(Ordering::Relaxed) {
            let mut outstanding = 0;
            for lane in &mut lanes {
                done.clear();
                lane.poll(&mut done)?;
                let good = |one: &&Done| one.status == WcStatus::SUCCESS;
                let arrived = done.iter().filter(good).count() as u64;
                if arrived > 0 {
                    self.last_us.store(boottime_us(), Ordering::Relaxed);
                    self.arrived.fetch_add(arrived, Ordering::Relaxed);
                    batch.extend(done.iter().filter(good).map(|one| transfer(one.slot)));
                    // A queue pair that broke meanwhile takes no more.
                    let _ = lane.post(&batch);
                    batch.clear();
                }
                outstanding += lane.in_flight() as u64;
            }
            self.outstanding.store(outstanding, Ordering::Relaxed);
            std::thread::yield_now();
        }
        Ok(())
    }
}
