//! A region: a lease as memory, with addresses of its own.

use std::ffi::{c_char, c_void};
use std::ops::Range;
use std::sync::{RwLock, TryLockError};
use std::time::Duration;

use overbank_lib::{Faults, LeaseId, MAX_LANES, Region, RegionOptions, RegionStats};

use crate::arguments::{self, Options, Out, Report};
use crate::guard::{Failure, guard};
use crate::handles::Table;
use crate::lease::{self, overbank_attach_options, overbank_lease};
use crate::status::overbank_status;

/// A lease as memory: a range of addresses of which only so many bytes are on this machine at a time; the rest is in the lease,
/// sealed, and comes when it is touched. It begins as zeros, whatever was in the lease. Any number of threads may use the memory
/// and make calls with the handle at the same time. Ends with `overbank_region_release`; the lease is renewed until then.
///
/// What is read is what was written. A page that cannot be had any more, because the lease or its provider is gone, ends the
/// program with SIGBUS where it is touched, after a line on standard error that says why: see `overbank_region_check`. A process
/// that was forked from this one does not have the memory: touching it there ends in SIGSEGV, and calls with the handle return
/// OVERBANK_CLOSED.
pub struct overbank_region {
    _nothing: [u8; 0],
}

static REGIONS: Table<Held> = Table::new("region");

/// What a handle stands for.
struct Held {
    id: LeaseId,
    process: u32,
    /// None once it was released. Calls have it for reading, its end for writing.
    region: RwLock<Option<Region>>,
}

/// Who brings a page that is touched and not here.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum overbank_faults {
    /// The thread that touched it, in a handler of SIGBUS: the fastest way, and any user may. A system call that is given memory
    /// which is not here fails with EFAULT: hold it first. No thread that uses the memory may block SIGBUS; a handler of the
    /// program's own is set before the first region is opened, and gets what is not about a region.
    OVERBANK_FAULTS_SIGNAL = 0,
    /// A thread of the region's own. System calls work as on any memory. Needs `sysctl vm.unprivileged_userfaultfd=1`, or read and
    /// write access to /dev/userfaultfd, or CAP_SYS_PTRACE.
    OVERBANK_FAULTS_THREAD = 1,
}

/// How a lease is used as memory. Set all of it to zero, then `size` to the size of this struct, then `local_bytes`, then what is
/// to be other than by default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct overbank_region_options {
    /// The size of this struct.
    pub size: usize,
    /// Bytes that may be in this machine's memory, rounded down to whole pages; 32 pages at least. There is no default.
    pub local_bytes: u64,
    /// Bytes that come and go together: a power of two from the kernel's page to 2 MiB, and no less than the lease's block. 0: the
    /// larger of the kernel's page and the lease's block.
    pub page: u32,
    /// One of `overbank_faults`.
    pub faults: u32,
    /// Bytes that are fetched ahead of a stream of touches, at most. 0: 262144. Less than a page: none.
    pub ahead_bytes: u64,
    /// How many pages can be fetched at the same moment, each through a lane of its own, 1 to 15. 0: 2.
    pub fetchers: u32,
    /// Nothing: 0.
    pub reserved: u32,
    /// How many milliseconds a page may take, with all that is to be mended meanwhile, before it is given up. 0: 30000.
    pub patience_ms: u64,
    /// To how many milliseconds the lease is renewed, as long as the region lives. 0: what is left of it now.
    pub renew_to_ms: u64,
    /// How the lease is reached; `lanes` says nothing here. Null: all by default, however the lease was attached before.
    pub attach: *const overbank_attach_options,
}

// SAFETY: it is repr(C), begins with a usize, and numbers and pointers are made of any bytes.
unsafe impl Options for overbank_region_options {}

/// What a region has done so far, and how much of it is here. Set `size` to the size of this struct, and the library fills in the
/// rest. Pages are the region's own.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct overbank_stats {
    /// The size of this struct, which the caller sets.
    pub size: usize,
    /// Bytes of the region.
    pub bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes that may be here.
    pub local_bytes: u64,
    /// Bytes that are here.
    pub resident_bytes: u64,
    /// The most that were here.
    pub peak_resident_bytes: u64,
    /// Touches of what was not here, or not yet for writing.
    pub faults: u64,
    /// Of those, first writes to pages that were here for reading.
    pub write_faults: u64,
    /// Pages that came from the lease.
    pub fetched: u64,
    /// Of those, pages that nobody had asked for yet.
    pub ahead: u64,
    /// Pages of zeros that were mapped without asking anybody.
    pub zeroed: u64,
    /// Pages that went.
    pub evicted: u64,
    /// Of those, pages that were written to the lease.
    pub stored: u64,
    /// Of those that went, pages that held zeros, and so were just forgotten.
    pub emptied: u64,
    /// Pages that were written to while they were on their way out, and so stayed.
    pub kept: u64,
    /// Times that a touch had to wait for room.
    pub waits: u64,
    /// Times that connections were made anew.
    pub mended: u64,
    /// The time that half of all faults took no longer than, in nanoseconds.
    pub fault_p50_ns: u64,
    /// The same of 99 in 100.
    pub fault_p99_ns: u64,
}

// SAFETY: it is repr(C), begins with a usize, and numbers are made of any bytes.
unsafe impl Options for overbank_stats {}

/// Makes memory of a lease, and puts a new handle into `*region`, which the caller releases; null where it fails. The lease belongs
/// to the region then: its handle is none any more, and its id stays. Where it fails the lease's handle stays good, unless the
/// lease is over, and the lease is not attached. Bytes at its end that make no whole page are left out. A lease that is shared
/// makes no region; one whose lanes are open returns OVERBANK_BUSY. Any thread, but not while another is in a call with the lease.
///
/// # Safety
/// `options` points to such a struct, and its `attach` to null or another whose texts end in a zero; `region` points to a place for
/// a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_region_open(
    lease: *mut overbank_lease,
    options: *const overbank_region_options,
    region: *mut *mut overbank_region,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (out, options) = unsafe { (Out::handle("region", region)?, read(options)?) };
        let region = lease::into_region(lease, &options)?;
        let (id, process) = (region.lease_id(), std::process::id());
        out.put(REGIONS.add(Held { id, process, region: RwLock::new(Some(region)) }));
        Ok(())
    })
}

/// # Safety
/// As [`overbank_region_open`].
unsafe fn read(options: *const overbank_region_options) -> Result<RegionOptions, Failure> {
    if options.is_null() {
        return Err(Failure::usage("options is null: say at least what local_bytes may be"));
    }
    // SAFETY: the caller's promise.
    let (given, attach) = unsafe {
        let given = arguments::options("options", options)?;
        (given, lease::read_options("options.attach", given.attach)?)
    };
    let mut options = RegionOptions { attach, ..RegionOptions::new(given.local_bytes) };
    if given.reserved != 0 || given.fetchers as usize >= MAX_LANES {
        let text = format!(
            "options.fetchers is not 1 to {}, or options.reserved not 0: set the struct to zero before you fill it",
            MAX_LANES - 1
        );
        return Err(Failure::usage(text));
    }
    options.faults = match given.faults {
        0 => Faults::Signal,
        1 => Faults::Thread,
        other => return Err(Failure::usage(format!("options.faults is {other}: use a value of overbank_faults"))),
    };
    if given.page != 0 {
        options.page = Some(given.page);
    }
    if given.ahead_bytes != 0 {
        options.ahead_bytes = given.ahead_bytes;
    }
    if given.fetchers != 0 {
        options.fetchers = given.fetchers as usize;
    }
    if given.patience_ms != 0 {
        options.patience = Duration::from_millis(given.patience_ms);
    }
    if given.renew_to_ms != 0 {
        options.renew_to = Some(Duration::from_millis(given.renew_to_ms));
    }
    Ok(options)
}

/// Puts the address of the region's first byte into `*start`, a multiple of its page, and into `*len` how many bytes there are.
/// They are there until `overbank_region_release`. Any thread, at any time.
///
/// # Safety
/// `start` and `len` point to places for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_region_memory(
    region: *const overbank_region,
    start: *mut *mut c_void,
    len: *mut usize,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let (start, bytes) = unsafe { (Out::handle("start", start)?, Out::new("len", len)?) };
        with(region, |region| {
            start.put(region.start().as_ptr().cast());
            bytes.put(region.len());
            Ok(())
        })
    })
}

/// Writes the id of the lease that the region is kept in into `text`, of `len` bytes, at least OVERBANK_LEASE_ID_LEN. Any thread,
/// at any time.
///
/// # Safety
/// `text` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_region_lease_id(
    region: *const overbank_region,
    text: *mut c_char,
    len: usize,
) -> overbank_status {
    guard(|| {
        let id = find(region)?.id.to_string();
        // SAFETY: the caller's promise.
        unsafe { arguments::put_text("text", text, len, &id) }
    })
}

/// Fills in `*stats`, whose `size` the caller has set. Any thread, at any time.
///
/// # Safety
/// `stats` points to such a struct, of as many bytes as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_region_stats(
    region: *const overbank_region,
    stats: *mut overbank_stats,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Report::new("stats", stats) }?;
        out.put(&with(region, |region| Ok(region.stats()))?.into());
        Ok(())
    })
}

impl From<RegionStats> for overbank_stats {
    fn from(stats: RegionStats) -> Self {
        let ns = |us: f64| (us * 1000.0).round() as u64;
        Self {
            size: size_of::<Self>(),
            bytes: stats.bytes,
            page_bytes: stats.page_bytes,
            local_bytes: stats.local_bytes,
            resident_bytes: stats.resident_bytes,
            peak_resident_bytes: stats.peak_resident_bytes,
            faults: stats.faults,
            write_faults: stats.write_faults,
            fetched: stats.fetched,
            ahead: stats.ahead,
            zeroed: stats.zeroed,
            evicted: stats.evicted,
            stored: stats.stored,
            emptied: stats.emptied,
            kept: stats.kept,
            waits: stats.waits,
            mended: stats.mended,
            fault_p50_ns: ns(stats.fault_p50_us),
            fault_p99_ns: ns(stats.fault_p99_us),
        }
    }
}

/// Returns OVERBANK_OK where pages come and go as they should, and OVERBANK_LEASE_LOST, with words, where they cannot be had any
/// more: what is not here would then end the program. Asks nobody, so that a loss shows once somebody needed a page, or the lease
/// could not be renewed. Any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_region_check(region: *const overbank_region) -> overbank_status {
    guard(|| with(region, |region| region.lost().map_or(Ok(()), |cause| Err(Failure::lost(cause)))))
}

/// Brings all pages that have one of `len` bytes from `offset` on, as reading them would, but for a failure: it is returned. Pages
/// that came may have gone again when this returns, where there are more of them than may be here. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_region_fetch(region: *mut overbank_region, offset: u64, len: usize) -> overbank_status {
    guard(|| with(region, |region| Ok(region.fetch(range(offset, len))?)))
}

/// Brings all pages that have one of `len` bytes from `offset` on, and keeps them here until `overbank_region_unhold`: for system
/// calls where faults are handled by signal, and for memory that the kernel or a device goes on using after a call has returned
/// (direct I/O, registered buffers). A page is held or not, however often it was asked for. Where it fails, because too little of
/// `local_bytes` would be left for the others (OVERBANK_DOES_NOT_FIT) or pages cannot be had, none more is held than before. Any
/// thread.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_region_hold(region: *mut overbank_region, offset: u64, len: usize) -> overbank_status {
    guard(|| with(region, |region| Ok(region.hold(range(offset, len))?)))
}

/// Lets all pages go again that have one of `len` bytes from `offset` on. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn overbank_region_unhold(region: *mut overbank_region, offset: u64, len: usize) -> overbank_status {
    guard(|| with(region, |region| Ok(region.unhold(range(offset, len))?)))
}

/// Makes zeros of the pages that lie with all of their bytes in the `len` bytes from `offset` on, and forgets what they held, here
/// and in the lease, without asking for it. Puts into `*zeroed`, which may be null, how many bytes that were. A page that was held
/// is not any more. Any thread.
///
/// # Safety
/// `zeroed` is null or points to a number. No other thread uses those bytes meanwhile and counts on what it finds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_region_discard(
    region: *mut overbank_region,
    offset: u64,
    len: usize,
    zeroed: *mut u64,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::maybe("zeroed", zeroed) }?;
        let bytes = with(region, |region| Ok(region.discard(range(offset, len))?))?;
        if let Some(out) = out {
            out.put(bytes.len() as u64);
        }
        Ok(())
    })
}

/// Ends the region and its lease. Its memory is unmapped: whoever touches it from here on does so at his peril, and what was in it
/// is gone. Waits at most `patience_ms` milliseconds longer for the provider's signed word that what lay there, sealed, is
/// overwritten, and puts into `*wiped`, which may be null, whether it came. Whatever is returned but OVERBANK_BUSY, which says that
/// another thread is in a call with it, the handle is none from here on and the memory gone; a lease that could not be ended goes
/// when its time is over. Null is nothing to release. Any thread.
///
/// # Safety
/// No thread uses the region's memory any more. `wiped` is null or points to a bool, outside of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn overbank_region_release(
    region: *mut overbank_region,
    patience_ms: u64,
    wiped: *mut bool,
) -> overbank_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::maybe("wiped", wiped) }?;
        if let Some(out) = &out {
            out.put(false);
        }
        if region.is_null() {
            return Ok(());
        }
        let held = find(region)?;
        let taken = match held.region.try_write() {
            Ok(mut region) => region.take(),
            // Where a call panicked, the end is what is left to do.
            Err(TryLockError::Poisoned(region)) => region.into_inner().take(),
            Err(TryLockError::WouldBlock) => return Err(held.busy()),
        };
        REGIONS.remove(region);
        let released = taken.ok_or_else(|| REGIONS.closed())?.release(Duration::from_millis(patience_ms))?;
        if let Some(out) = out {
            out.put(released.receipt.is_some_and(|receipt| receipt.is_complete()));
        }
        Ok(())
    })
}

impl Held {
    fn busy(&self) -> Failure {
        let id = self.id;
        Failure::busy(format!(
            "another thread is in a call with the region of lease {id}: let it return before the region is released"
        ))
    }
}

/// What a handle stands for, in the process that opened it.
fn find(region: *const overbank_region) -> Result<std::sync::Arc<Held>, Failure> {
    let held = REGIONS.find(region)?;
    if held.process != std::process::id() {
        let (id, process) = (held.id, held.process);
        return Err(Failure::closed(format!(
            "the region of lease {id} is process {process}'s, from which this one was forked: open one here"
        )));
    }
    Ok(held)
}

/// Does something with the region that a handle stands for, whoever else does.
fn with<R>(region: *const overbank_region, step: impl FnOnce(&Region) -> Result<R, Failure>) -> Result<R, Failure> {
    let held = find(region)?;
    let region = held.region.try_read().map_err(|error| match error {
        TryLockError::WouldBlock => held.busy(),
        TryLockError::Poisoned(_) => lease::failed_before(held.id),
    })?;
    step(region.as_ref().ok_or_else(|| REGIONS.closed())?)
}

/// Bytes as a region counts them; what is behind its end it refuses itself.
fn range(offset: u64, len: usize) -> Range<usize> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    offset..offset.saturating_add(len)
}
