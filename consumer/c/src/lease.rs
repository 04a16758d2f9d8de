//! A lease: memory on another machine, read and written at any offset.

use std::ffi::{c_char, c_void};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use overbank_lib::{AttachOptions, Client, Lease, LeaseId, LeaseRequest, OnUnknown, Region, RegionOptions};

use crate::arguments::{self, Options, Out};
use crate::client::{self, overbank_client};
use crate::guard::{Failure, guard};
use crate::handles::Table;
use crate::lane::Split;
use crate::status::overbank_status;

/// Bytes of a lease's id as text, with the zero at its end.
pub const OVERBANK_LEASE_ID_LEN: usize = 33;

/// A lease in use. For one thread at a time: a call that meets another with the same handle returns OVERBANK_BUSY and does
/// nothing. For one process at a time too. Ends with `overbank_lease_close` or `overbank_lease_release`; a process that ends
/// without either leaves behind that nobody knows what it wrote last. Of no use in a process that was forked from this one.
pub struct overbank_lease {
    _nothing: [u8; 0],
}

static LEASES: Table<Held> = Table::new("lease");

/// What a handle stands for.
pub(crate) struct Held {
    pub(crate) client: Client,
    // What never changes is there for all threads.
    pub(crate) id: LeaseId,
    bytes: u64,
    block: u32,
    reach: Range<u64>,
    read_only: bool,
    state: Mutex<State>,
}

enum State {
    Open(Box<Lease>),
    /// Its lanes are in use. Each of them has this too.
    Split(Arc<Split>),
    Over,
}

impl Held {
    fn lock(&self) -> Result<MutexGuard<'_, State>, Failure> {
        self.state.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => self.busy(),
            TryLockError::Poisoned(_) => failed_before(self.id),
        })
    }

    fn busy(&self) -> Failure {
        let id = self.id;
        Failure::busy(format!("another thread is in a call with lease {id}: a lease is for one thread at a time"))
    }

    fn is_split(&self) -> Failure {
        Failure::busy(format!("the lanes of lease {} are in use: close them all first", self.id))
    }

    /// Takes the lease out of its place, unless it is split.
    fn whole(&self, state: &mut State) -> Result<Box<Lease>, Failure> {
        match std::mem::replace(state, State::Over) {
            State::Open(lease) => Ok(lease),
            State::Split(split) => {
                *state = State::Split(split);
                Err(self.is_split())
            }
            State::Over => Err(LEASES.closed()),
        }
    }

    /// Splits the lease, unless `check` has something against it.
    pub(crate) fn split(&self, check: impl FnOnce(&Split) -> Result<(), Failure>) -> Result<Arc<Split>, Failure> {
        let mut state = self.lock()?;
        let lease = self.whole(&mut state)?;
        match Split::of(lease).and_then(|split| match check(&split) {
            Ok(()) => Ok(split),
            Err(failure) => Err((split.whole(), failure)),
        }) {
            Ok(split) => {
                let split = Arc::new(split);
                *state = State::Split(Arc::clone(&split));
                Ok(split)
            }
            Err((lease, failure)) => {
                *state = State::Open(lease);
                Err(failure)
            }
        }
    }

    /// Gives back what a lane has of the lease, which is whole again after the last.
    pub(crate) fn forget(&self, split: Arc<Split>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that two who are the last do not both take the other for it.
        drop(split);
        *state = match std::mem::replace(&mut *state, State::Over) {
            State::Split(split) => Arc::try_unwrap(split).map_or_else(State::Split, |split| State::Open(split.whole())),
            other => other,
        };
    }
}

/// What is left to do after a panic.
pub(crate) fn failed_before(id: LeaseId) -> Failure {
    Failure::panic(format!(
        "a call with lease {id} failed by a fault of overbank: close all handles of it, and open it again"
    ))
}

/// A new handle for a lease.
pub(crate) fn add(client: &Client, lease: Lease) -> *mut overbank_lease {
    LEASES.add(Held {
        client: client.clone(),
        id: lease.id(),
        bytes: lease.bytes(),
        block: lease.block(),
        reach: lease.reach(),
        read_only: lease.is_read_only(),
        state: Mutex::new(State::Open(Box::new(lease))),
    })
}

/// Does something with the lease that a handle stands for, as the only one.
pub(crate) fn with<R>(
    lease: *const overbank_lease,
    step: impl FnOnce(&Held, &mut Lease) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let held = find(lease)?;
    let mut state = held.lock()?;
    match &mut *state {
        State::Open(lease) => step(&held, lease),
        State::Split(_) => Err(held.is_split()),
        State::Over => Err(LEASES.closed()),
    }
}

/// What a handle stands for.
pub(crate) fn find(lease: *const overbank_lease) -> Result<Arc<Held>, Failure> {
    LEASES.find(lease)
}

/// Takes the lease away from its handle, which is none from here on.
fn take(handle: *const overbank_lease) -> Result<Box<Lease>, Failure> {
    let held = find(handle)?;
    let mut state = match held.state.try_lock() {
        Ok(state) => state,
        // Where a call panicked, the end is what is left to do.
        Err(TryLockError::Poisoned(state)) => state.into_inner(),
        Err(TryLockError::WouldBlock) => return Err(held.busy()),
    };
    let lease = held.whole(&mut state);
    if matches!(*state, State::Over) {
        LEASES.remove(handle);
    }
    lease
}

/// Makes memory of the lease that a handle stands for, which is none from then on. Where it fails the handle stays, unless the
/// lease is over, and the lease is not attached.
pub(crate) fn into_region(handle: *const overbank_lease, options: &RegionOptions) -> Result<Region, Failure> {
    let held = find(handle)?;
    let mut state = held.lock()?;
    match held.whole(&mut state)?.into_region(options) {
        Ok(region) => {
            LEASES.remove(handle);
            Ok(region)
        }
        Err(error) => {
            // That closed the lease.
            match held.client.open_lease(held.id) {
                Ok(lease) => *state = State::Open(Box::new(lease)),
                Err(_) => drop(LEASES.remove(handle)),
            }
            Err(error.into())
        }
    }
}

/// Leases `bytes` bytes for `ttl_ms` milliseconds, in blocks of `block` bytes (a power of two from 512 to 1 MiB; 0: 4096), and
/// puts a new handle into `*lease`, which the caller closes or releases; null where it fails. The lease's key is written to a
/// file, by which `overbank_lease_open` finds it again. `client` may be closed before the lease is. Any thread.
///
/// # Safety
/// `lease` points to a place for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_create(
    client: *const overbank_client,
    bytes: u64,
    ttl_ms: u64,
    block: u32,
    lease: *mut *mut overbank_lease,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::handle("lease", lease) }?;
        let client = client::find(client)?;
        let mut request = LeaseRequest::new(bytes, Duration::from_millis(ttl_ms));
        if block != 0 {
            request.block = block;
        }
        out.put(add(&client, client.lease(&request)?));
        Ok(())
    })
}

/// Takes a lease into use that this identity made on this machine, or that `overbank_share_open` wrote down, by its id, and
/// puts a new handle into `*lease`, which the caller closes or releases; null where it fails. Any thread.
///
/// # Safety
/// `id` is a text that ends in a zero; `lease` points to a place for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_open(
    client: *const overbank_client,
    id: *const c_char,
    lease: *mut *mut overbank_lease,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::handle("lease", lease) }?;
        // SAFETY: the caller's promise.
        let id = arguments::given("id", unsafe { arguments::text("id", id) }?)?;
        let id: LeaseId = id.parse().map_err(|error| Failure::usage(format!("id names no lease: {error}")))?;
        let client = client::find(client)?;
        out.put(add(&client, client.open_lease(id)?));
        Ok(())
    })
}

/// What to do with a block of which nobody knows what was written to it last, because a process that wrote the lease was
/// killed, or because the lease is shared.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum overbank_on_unknown {
    /// Refuse it in the first case, and take it in the second.
    OVERBANK_ON_UNKNOWN_DEFAULT = 0,
    /// Refuse it, whatever is in it.
    OVERBANK_ON_UNKNOWN_REFUSE = 1,
    /// Take what was sealed for it, which may be older than what was written last; refuse an empty one.
    OVERBANK_ON_UNKNOWN_ACCEPT_SEALED = 2,
    /// The same, and take an empty one for one that was never written.
    OVERBANK_ON_UNKNOWN_ACCEPT = 3,
}

/// How a lease is reached. Set all of it to zero, then `size` to the size of this struct, then what is to be other than by
/// default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct overbank_attach_options {
    /// The size of this struct.
    pub size: usize,
    /// `auto`, `soft`, or the name of an RDMA device. Null: `auto`.
    pub device: *const c_char,
    /// Our address as the provider is to see it. Null: the one from which we reach the auth daemon.
    pub address: *const c_char,
    /// One of `overbank_on_unknown`.
    pub on_unknown: u32,
    /// For how many threads at once, each with a lane of its own: see `overbank_lease_split`. 0: 1.
    pub lanes: u32,
    /// How many nanoseconds to spin for a completion before sleeping for it. 0: 50000. Longer costs a core, shorter latency.
    pub spin_ns: u64,
    /// How many milliseconds a read or a write may take, with everything that it has to try again. 0: 10000.
    pub deadline_ms: u64,
}

// SAFETY: it is repr(C), begins with a usize, and numbers and pointers are made of any bytes.
unsafe impl Options for overbank_attach_options {}

/// Connects to the lease's provider. A read or a write does this by itself, with the default options, where nobody did
/// before; it also does it again, with the same options, where the connection broke. `options` may be null: all by default.
///
/// # Safety
/// `options` is null or points to such a struct, whose texts end in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_attach(
    lease: *mut overbank_lease,
    options: *const overbank_attach_options,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let options = unsafe { read_options("options", options) }?;
        with(lease, |_, lease| Ok(lease.attach(&options)?))
    })
}

/// # Safety
/// As [`overbank_lease_attach`].
pub(crate) unsafe fn read_options(
    what: &str,
    options: *const overbank_attach_options,
) -> Result<AttachOptions, Failure> {
    // SAFETY: the caller's promise.
    let (given, device, address) = unsafe {
        let given = arguments::options(what, options)?;
        let device = arguments::text(&format!("{what}.device"), given.device)?;
        (given, device, arguments::text(&format!("{what}.address"), given.address)?)
    };
    let mut options = AttachOptions::default();
    if let Some(device) = device {
        options.device = device.to_owned();
    }
    if let Some(address) = address {
        let wrong = |_| Failure::usage(format!("{what}.address is '{address}', and no IP address"));
        options.address = Some(address.parse().map_err(wrong)?);
    }
    options.on_unknown = match given.on_unknown {
        0 => None,
        1 => Some(OnUnknown::Refuse),
        2 => Some(OnUnknown::AcceptSealed),
        3 => Some(OnUnknown::Accept),
        other => {
            return Err(Failure::usage(format!("{what}.on_unknown is {other}: use a value of overbank_on_unknown")));
        }
    };
    if given.lanes != 0 {
        options.lanes = given.lanes as usize;
    }
    if given.spin_ns != 0 {
        options.spin = Duration::from_nanos(given.spin_ns);
    }
    if given.deadline_ms != 0 {
        options.deadline = Duration::from_millis(given.deadline_ms);
    }
    Ok(options)
}

/// Reads `len` bytes from `offset` on into `buffer`. Those that were never written are zeros. Where it fails, `buffer` holds
/// zeros, unless the buffer itself is what is wrong. `buffer` is the caller's, and of no interest once this returns.
///
/// # Safety
/// `buffer` has `len` bytes that no other thread uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_read(
    lease: *mut overbank_lease,
    offset: u64,
    buffer: *mut c_void,
    len: usize,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let buffer = unsafe { arguments::buffer("buffer", buffer, len) }?;
        let read = with(lease, |_, lease| Ok(lease.read(offset, buffer)?));
        if read.is_err() {
            buffer.fill(0);
        }
        read
    })
}

/// Writes `len` bytes from `offset` on. When this returns OVERBANK_OK they are in the provider's memory; where it fails, some
/// may be. `bytes` is the caller's, and of no interest once this returns.
///
/// # Safety
/// `bytes` has `len` bytes that no other thread writes meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_write(
    lease: *mut overbank_lease,
    offset: u64,
    bytes: *const c_void,
    len: usize,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let bytes = unsafe { arguments::bytes("bytes", bytes, len) }?;
        with(lease, |_, lease| Ok(lease.write(offset, bytes)?))
    })
}

/// Moves the lease's end to `ttl_ms` milliseconds from now; never sooner. Puts into `*left_ms`, which may be null, how long it
/// can be used from now on.
///
/// # Safety
/// `left_ms` is null or points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_renew(
    lease: *mut overbank_lease,
    ttl_ms: u64,
    left_ms: *mut u64,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::maybe("left_ms", left_ms) }?;
        let left = with(lease, |_, lease| Ok(lease.renew(Duration::from_millis(ttl_ms))?))?;
        if let Some(out) = out {
            out.put(ms(left));
        }
        Ok(())
    })
}

/// Puts the usable bytes of the lease into `*bytes`. Any thread, at any time.
///
/// # Safety
/// `bytes` points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_bytes(lease: *const overbank_lease, bytes: *mut u64) -> overbank_status {
    // SAFETY: the caller's promise.
    guard(|| put(unsafe { Out::new("bytes", bytes) }?, find(lease)?.bytes))
}

/// Puts the bytes of a block into `*block`: what a write makes anew and a read fetches, however little of it is asked for.
/// Any thread, at any time.
///
/// # Safety
/// `block` points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_block(lease: *const overbank_lease, block: *mut u32) -> overbank_status {
    // SAFETY: the caller's promise.
    guard(|| put(unsafe { Out::new("block", block) }?, find(lease)?.block))
}

/// Puts the bytes of the lease that can be reached with this handle into `*first` and, the one after the last, `*end`: all of
/// them, unless it was shared with us. Any thread, at any time.
///
/// # Safety
/// `first` and `end` point to numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_reach(
    lease: *const overbank_lease,
    first: *mut u64,
    end: *mut u64,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (first, end) = unsafe { (Out::new("first", first)?, Out::new("end", end)?) };
        let held = find(lease)?;
        first.put(held.reach.start);
        put(end, held.reach.end)
    })
}

/// Puts into `*read_only` whether the lease was shared with us for reading only. Any thread, at any time.
///
/// # Safety
/// `read_only` points to a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_read_only(
    lease: *const overbank_lease,
    read_only: *mut bool,
) -> overbank_status {
    // SAFETY: the caller's promise.
    guard(|| put(unsafe { Out::new("read_only", read_only) }?, find(lease)?.read_only))
}

/// Writes the lease's id into `text`, of `len` bytes, at least OVERBANK_LEASE_ID_LEN. Any thread, at any time.
///
/// # Safety
/// `text` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_id(
    lease: *const overbank_lease,
    text: *mut c_char,
    len: usize,
) -> overbank_status {
    guard(|| {
        let id = find(lease)?.id.to_string();
        // SAFETY: the caller's promise.
        unsafe { arguments::put_text("text", text, len, &id) }
    })
}

/// Puts into `*left_ms` how many milliseconds the lease can be used: until a little before its end. 0 once that is over.
///
/// # Safety
/// `left_ms` points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_time_left_ms(
    lease: *const overbank_lease,
    left_ms: *mut u64,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new("left_ms", left_ms) }?;
        put(out, ms(with(lease, |_, lease| Ok(lease.time_left()))?))
    })
}

/// Puts into `*known` whether it is known of every block what was written to it last, so that no older content can pass for
/// it. It is not where the lease is shared, or a process that wrote it was killed.
///
/// # Safety
/// `known` points to a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_freshness_is_known(
    lease: *const overbank_lease,
    known: *mut bool,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::new("known", known) }?;
        put(out, with(lease, |_, lease| Ok(lease.freshness_is_known()))?)
    })
}

/// Ends the use of the lease, not the lease: what was written last is saved, for who opens it next. Whatever is returned but
/// OVERBANK_BUSY, the handle is none from here on. Null is nothing to close. Any thread, but not while another is in a call
/// with it.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_lease_close(lease: *mut overbank_lease) -> overbank_status {
    guard(|| match lease.is_null() {
        true => Ok(()),
        false => Ok(take(lease)?.close()?),
    })
}

/// Ends the lease now. When this returns OVERBANK_OK nothing reaches its memory any more. Waits at most `patience_ms`
/// milliseconds longer for the provider's signed word that the memory is overwritten, and puts into `*wiped`, which may be
/// null, whether it came. Whatever is returned but OVERBANK_BUSY, the handle is none from here on; a lease that is not over
/// then can be opened again. Any thread, but not while another is in a call with it.
///
/// # Safety
/// `wiped` is null or points to a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_lease_release(
    lease: *mut overbank_lease,
    patience_ms: u64,
    wiped: *mut bool,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::maybe("wiped", wiped) }?;
        if let Some(out) = &out {
            out.put(false);
        }
        let released = take(lease)?.release(Duration::from_millis(patience_ms))?;
        if let Some(out) = out {
            out.put(released.receipt.is_some_and(|receipt| receipt.is_complete()));
        }
        Ok(())
    })
}

fn put<T>(out: Out<T>, value: T) -> Result<(), Failure> {
    out.put(value);
    Ok(())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
