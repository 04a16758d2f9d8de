//! Lanes of a lease: for several threads that read and write it at the same time.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, TryLockError};

use overbank_lib::{Lease, LeaseLane, MAX_LANES};
use self_cell::{MutBorrow, self_cell};

use crate::arguments::{self, Out};
use crate::guard::{Failure, guard};
use crate::handles::Table;
use crate::lease::{self, Held, overbank_lease};
use crate::status::overbank_status;

/// One of the lanes of a lease that was split: a connection of its own, for one thread at a time, while other threads use other
/// lanes. A call that meets another with the same handle returns OVERBANK_BUSY and does nothing. Ends with
/// `overbank_lane_close`.
pub struct overbank_lane {
    _nothing: [u8; 0],
}

static LANES: Table<HeldLane> = Table::new("lane");

struct HeldLane {
    lease: Arc<Held>,
    at: usize,
    /// None once it was closed.
    split: Mutex<Option<Arc<Split>>>,
}

type Lanes<'lease> = Vec<Mutex<LeaseLane<'lease>>>;

self_cell! {
    /// A lease and the lanes that borrow it, until it is taken back whole.
    pub(crate) struct Split {
        owner: MutBorrow<Box<Lease>>,
        #[not_covariant]
        dependent: Lanes,
    }
}

impl Split {
    /// Where it cannot be split the lease comes back.
    pub(crate) fn of(lease: Box<Lease>) -> Result<Self, (Box<Lease>, Failure)> {
        let split = Self::try_new_or_recover(MutBorrow::new(lease), |lease| {
            let lanes = lease.borrow_mut().split().map_err(Failure::from)?;
            Ok(lanes.into_iter().map(Mutex::new).collect())
        });
        split.map_err(|(lease, failure)| (lease.into_inner(), failure))
    }

    pub(crate) fn whole(self) -> Box<Lease> {
        self.into_owner().into_inner()
    }

    fn lanes(&self) -> usize {
        self.with_dependent(|_, lanes| lanes.len())
    }
}

/// Splits a lease into the lanes that `overbank_lease_attach` was told of (one where it was not), and puts their handles into
/// `lanes[0]` to `lanes[count - 1]`; nulls where it fails. What is written through one is read through any. Each is closed with
/// `overbank_lane_close`; until all are, calls with the lease return OVERBANK_BUSY, but for those that any thread may make at
/// any time. Lanes do not attach anew: where the connection broke, close them all and split again.
///
/// # Safety
/// `lanes` points to places for `count` handles.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_split(
    lease: *mut overbank_lease,
    lanes: *mut *mut overbank_lane,
    count: usize,
) -> overbank_status {
    guard(|| {
        if !(1..=MAX_LANES).contains(&count) {
            return Err(Failure::usage(format!("count is {count}: a lease has 1 to {MAX_LANES} lanes")));
        }
        // SAFETY: the caller promises `count` places, so that each is one, and the pointer stays among them.
        let places = (0..count).map(|at| unsafe { Out::handle("lanes", lanes.wrapping_add(at)) });
        let places = places.collect::<Result<Vec<_>, _>>()?;
        let lease = lease::find(lease)?;
        let split = lease.split(|split| match split.lanes() {
            lanes if lanes == count => Ok(()),
            lanes => Err(Failure::usage(format!(
                "count is {count}, and the lease is attached with {lanes}: say the same to overbank_lease_attach"
            ))),
        })?;
        for (at, place) in places.into_iter().enumerate() {
            let split = Mutex::new(Some(Arc::clone(&split)));
            place.put(LANES.add(HeldLane { lease: Arc::clone(&lease), at, split }));
        }
        // The lease is whole again when the last lane is closed, so that none may be left here.
        lease.forget(split);
        Ok(())
    })
}

/// As `overbank_lease_read`, through this lane.
///
/// # Safety
/// `buffer` has `len` bytes that no other thread uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lane_read(
    lane: *mut overbank_lane,
    offset: u64,
    buffer: *mut c_void,
    len: usize,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let buffer = unsafe { arguments::buffer("buffer", buffer, len) }?;
        let read = with(lane, |lane| Ok(lane.read(offset, buffer)?));
        if read.is_err() {
            buffer.fill(0);
        }
        read
    })
}

/// As `overbank_lease_write`, through this lane.
///
/// # Safety
/// `bytes` has `len` bytes that no other thread writes meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lane_write(
    lane: *mut overbank_lane,
    offset: u64,
    bytes: *const c_void,
    len: usize,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let bytes = unsafe { arguments::bytes("bytes", bytes, len) }?;
        with(lane, |lane| Ok(lane.write(offset, bytes)?))
    })
}

/// Gives a lane back; with the last one the lease is whole again. Null is nothing to close. Any thread, but not while another
/// is in a call with it.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_lane_close(lane: *mut overbank_lane) -> overbank_status {
    guard(|| {
        if lane.is_null() {
            return Ok(());
        }
        let held = LANES.find(lane)?;
        let mut split = match held.split.try_lock() {
            Ok(split) => split,
            // Where a call panicked, the end is what is left to do.
            Err(TryLockError::Poisoned(split)) => split.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(held.busy()),
        };
        LANES.remove(lane);
        held.lease.forget(split.take().ok_or_else(|| LANES.closed())?);
        Ok(())
    })
}

impl HeldLane {
    fn busy(&self) -> Failure {
        let (at, id) = (self.at, self.lease.id);
        Failure::busy(format!(
            "another thread is in a call with lane {at} of lease {id}: a lane is for one thread at a time"
        ))
    }
}

/// Does something with the lane that a handle stands for, as the only one.
fn with<R>(
    lane: *const overbank_lane,
    step: impl FnOnce(&mut LeaseLane<'_>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let held = LANES.find(lane)?;
    let split = held.split.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => held.busy(),
        TryLockError::Poisoned(_) => lease::failed_before(held.lease.id),
    })?;
    let split = split.as_ref().ok_or_else(|| LANES.closed())?;
    split.with_dependent(|_, lanes| {
        // Nobody else asks for it: the handle's own lock is held.
        let mut lane = lanes[held.at].try_lock().map_err(|_| held.busy())?;
        step(&mut lane)
    })
}
