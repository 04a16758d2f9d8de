//! A lease as memory: a range of addresses whose pages are in the lease, sealed, and come when they are touched.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use overbank_fabric::ids::LeaseId;
use overbank_paging::{self as paging, Cause, Faults, Keeper, PagingError, RegionStats, Trouble};

use crate::attach::{AttachOptions, MAX_LANES};
use crate::data::{DataError, SealedLane};
use crate::error::{Error, ErrorKind};
use crate::lease::Lease;
use crate::leasing::Released;

/// How often a keeper looks after its lease, at most.
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(30);
/// How long it waits before it tries anew to renew one.
const AGAIN: Duration = Duration::from_secs(1);
/// What is left of a lease of which somebody should know better soon.
const SOON: Duration = Duration::from_secs(2);

/// How a lease is used as memory.
#[derive(Debug, Clone)]
pub struct RegionOptions {
    /// Bytes of it that may be in this machine's memory, rounded down to whole pages; 32 pages at least.
    pub local_bytes: u64,
    /// Bytes that come and go together: a power of two from the kernel's page to 2 MiB, and no less than the lease's block.
    /// The lease's block by default, if that is no smaller than the kernel's page.
    pub page: Option<u32>,
    /// Who resolves faults. By default the thread that meets one, which is fastest; system calls then cannot use pages that
    /// are not there.
    pub faults: Faults,
    /// Bytes that are fetched ahead of a stream of faults, at most; 256 KiB by default, 0 for none.
    pub ahead_bytes: u64,
    /// Threads that can fetch pages at the same moment, 1 to [`MAX_LANES`] − 1; 2 by default.
    pub fetchers: usize,
    /// How long a page may take before it is given up, with all that is to be mended meanwhile; 30 s by default.
    pub patience: Duration,
    /// To what length the lease is renewed for as long as the region lives. By default to what is left of it when the region is
    /// made.
    pub renew_to: Option<Duration>,
    /// How the lease is reached. Its `lanes` say nothing here.
    pub attach: AttachOptions,
}

impl RegionOptions {
    /// With so much local memory, and everything else as it usually is best.
    #[must_use]
    pub fn new(local_bytes: u64) -> Self {
        Self {
            local_bytes,
            page: None,
            faults: Faults::default(),
            ahead_bytes: 256 << 10,
            fetchers: 2,
            patience: Duration::from_secs(30),
            renew_to: None,
            attach: AttachOptions::default(),
        }
    }
}

/// Memory of this process that is kept in a lease: ordinary bytes to who uses it, of which only so many are on this machine
/// at a time. It begins as zeros, whatever was in the lease, and what is in the lease means nothing once it is gone.
///
/// Threads use it like any other memory. A page that cannot be had any more, because the lease or its provider is gone,
/// ends the program with `SIGBUS` after a line on standard error that says why; never are there other bytes than those that
/// were written. A forked child does not have the region: touching it there ends in `SIGSEGV`. Memory that the kernel or a
/// device goes on using after a call returned (direct I/O, registered buffers) must be held for as long ([`Region::hold`]).
///
/// ```no_run
/// use overbank::{Client, Config, LeaseRequest, RegionOptions};
/// # fn main() -> Result<(), overbank::Error> {
/// let client = Client::connect(&Config::from_env()?)?;
/// let lease = client.lease(&LeaseRequest::new(8 << 30, std::time::Duration::from_secs(600)))?;
/// // Eight gigabytes of addresses, one of them here.
/// let mut region = lease.into_region(&RegionOptions::new(1 << 30))?;
/// region.as_mut_slice()[5_000_000_000] = 7;
/// println!("{:?}", region.stats());
/// region.release(std::time::Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
pub struct Region {
    id: LeaseId,
    inner: paging::Region<PageLane>,
    lease: Arc<Mutex<Lease>>,
}

impl Lease {
    /// Makes memory of it. Whole pages count: bytes at the end that make no page are left out.
    ///
    /// # Errors
    /// [`Error::Paging`], also for a lease that is shared, which cannot be told from one that somebody else writes to; and
    /// what [`Lease::attach`] says.
    pub fn into_region(mut self, options: &RegionOptions) -> Result<Region, Error> {
        let (block, kernel) = (self.block(), paging::RegionOptions::new(0).page as u32);
        let page = options.page.unwrap_or(block.max(kernel));
        if self.is_shared() || self.is_read_only() || page < block {
            return Err(Error::RegionOf {
                lease: self.id(),
                why: match self.is_shared() || self.is_read_only() {
                    true => "it is shared with others, who could change what is in it".to_owned(),
                    false => {
                        format!("its blocks are of {block} bytes, its pages would be of {page}: they cannot be smaller")
                    }
                },
            });
        }
        let fetchers = options.fetchers.clamp(1, MAX_LANES - 1);
        let attach = AttachOptions { lanes: 1 + fetchers, ..options.attach.clone() };
        self.attach(&attach)?;
        self.soil()?;
        let left = self.time_left();
        let until = Arc::new(Deadline::new(Instant::now() + left));
        let deadline = attach.deadline.min(options.patience);
        let page_lane = |mut lane: SealedLane| {
            // What is left to allocate is done here rather than in the middle of a fault.
            lane.know_salts();
            PageLane { lane: Some(lane), until: Arc::clone(&until), deadline }
        };
        let lanes: Vec<_> = self.take_lanes().into_iter().map(page_lane).collect();
        let (id, bytes) = (self.id(), self.bytes() - self.bytes() % u64::from(page));
        let lease = Arc::new(Mutex::new(self));
        let keeper = LeaseKeeper { lease: Arc::clone(&lease), until, renew_to: options.renew_to.unwrap_or(left) };
        let usize_of = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let inner = paging::Region::new(
            usize_of(bytes),
            lanes,
            keeper,
            &paging::RegionOptions {
                page: page as usize,
                faults: options.faults,
                ahead_bytes: usize_of(options.ahead_bytes),
                spin: attach.spin,
                handlers: fetchers,
                patience: options.patience,
                ..paging::RegionOptions::new(usize_of(options.local_bytes))
            },
        )?;
        Ok(Region { id, inner, lease })
    }
}

impl Region {
    /// The lease that it is kept in.
    #[must_use]
    pub fn lease_id(&self) -> LeaseId {
        self.id
    }

    /// Where it begins: a multiple of its page. Good until the region is dropped.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.inner.start()
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page(&self) -> usize {
        self.inner.page()
    }

    /// All of it, for who does not use pointers into it besides.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.inner.as_mut_slice()
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> RegionStats {
        self.inner.stats()
    }

    /// Why pages cannot be had any more, if that is so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.inner.lost()
    }

    /// Brings all pages that have a byte in the range.
    ///
    /// # Errors
    /// [`Error::Paging`].
    pub fn fetch(&self, range: Range<usize>) -> Result<(), Error> {
        Ok(self.inner.fetch(range)?)
    }

    /// Makes the whole pages in the range zeros again, and forgets what they held. Returns their bytes.
    ///
    /// # Errors
    /// [`Error::Paging`].
    pub fn discard(&self, range: Range<usize>) -> Result<Range<usize>, Error> {
        Ok(self.inner.discard(range)?)
    }

    /// Brings all pages that have a byte in the range, and keeps them on this machine until [`Region::unhold`].
    ///
    /// # Errors
    /// [`Error::Paging`]: so many cannot be held; none more is then held than before.
    pub fn hold(&self, range: Range<usize>) -> Result<(), Error> {
        Ok(self.inner.hold(range)?)
    }

    /// Lets pages go again that were held.
    ///
    /// # Errors
    /// [`Error::Paging`].
    pub fn unhold(&self, range: Range<usize>) -> Result<(), Error> {
        Ok(self.inner.unhold(range)?)
    }

    /// Which of the kernel's pages of a range, which begins with a page, are on this machine.
    ///
    /// # Errors
    /// [`Error::Paging`].
    pub fn resident(&self, range: Range<usize>) -> Result<Vec<bool>, Error> {
        Ok(self.inner.resident(range)?)
    }

    /// Ends the region and its lease. What was in it is gone.
    ///
    /// # Errors
    /// As [`crate::Client::release`].
    pub fn release(self, patience: Duration) -> Result<Released, Error> {
        let Self { inner, lease, .. } = self;
        // Its threads and its lanes end here; the keeper had the lease besides.
        drop(inner);
        match Arc::try_unwrap(lease) {
            Ok(lease) => lease.into_inner().unwrap_or_else(PoisonError::into_inner).release(patience),
            // The threads are the other process's.
            Err(_) => {
                Err(PagingError::Lost { cause: "this process was forked from the one that has it".to_owned() }.into())
            }
        }
    }
}

/// When to stop using a lease, told to all lanes at once.
struct Deadline {
    base: Instant,
    nanos: AtomicU64,
}

impl Deadline {
    fn new(until: Instant) -> Self {
        let deadline = Self { base: Instant::now(), nanos: AtomicU64::new(0) };
        deadline.set(until);
        deadline
    }

    fn set(&self, until: Instant) {
        let nanos = until.saturating_duration_since(self.base).as_nanos();
        self.nanos.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Instant {
        self.base + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// A lane of a region's lease.
struct PageLane {
    /// None only while it is mended.
    lane: Option<SealedLane>,
    until: Arc<Deadline>,
    deadline: Duration,
}

impl PageLane {
    fn with(&mut self, act: impl FnOnce(&mut SealedLane, Instant) -> Result<(), DataError>) -> Result<(), Trouble> {
        let (until, deadline) = (self.until.get(), Instant::now() + self.deadline);
        let Some(lane) = &mut self.lane else { return Err(Trouble::Broken(Cause::new(&"it is not attached"))) };
        lane.set_until(until);
        act(lane, deadline).map_err(|error| {
            // A lease that is over may have been renewed; the keeper knows.
            if lane.is_broken()
                || matches!(error, DataError::LeaseOver | DataError::Timeout | DataError::Unsettled { .. })
            {
                Trouble::Broken(Cause::new(&error))
            } else {
                Trouble::Lost(Cause::new(&error))
            }
        })
    }
}

impl paging::Lane for PageLane {
    fn fetch(&mut self, pages: &[usize], ahead: &[usize], out: &mut [u8]) -> Result<(), Trouble> {
        self.with(|lane, deadline| lane.read_pages(pages, ahead, out, deadline))
    }

    fn store(&mut self, pages: &[usize], bytes: &[u8]) -> Result<(), Trouble> {
        self.with(|lane, deadline| lane.write_pages(pages, bytes, deadline))
    }
}

/// Renews the lease, and attaches anew where a lane broke.
struct LeaseKeeper {
    lease: Arc<Mutex<Lease>>,
    until: Arc<Deadline>,
    renew_to: Duration,
}

impl LeaseKeeper {
    fn lease(&self) -> std::sync::MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews what has less than half of its time left, and returns what it has then.
    fn renew(&self, lease: &mut Lease) -> Result<Duration, Error> {
        let left = lease.time_left();
        if left > self.renew_to / 2 {
            return Ok(left);
        }
        let renewed = match lease.renew(self.renew_to) {
            // Not for so long; perhaps somebody else has renewed it.
            Err(error) if error.kind() == ErrorKind::Usage && left < SOON => lease.look_at_deadline(),
            renewed => renewed,
        };
        self.until.set(Instant::now() + lease.time_left());
        renewed
    }

    /// What an error means for the region: while the lease lasts, most of them pass.
    fn trouble(lease: &Lease, error: &Error) -> Trouble {
        let over = match error.kind() {
            ErrorKind::LeaseOver | ErrorKind::NotTrusted | ErrorKind::AuthdKeyChanged | ErrorKind::Contents => true,
            // Its provider may just be away.
            ErrorKind::LeaseLost => lease.is_over(),
            _ => false,
        };
        if over { Trouble::Lost(Cause::new(error)) } else { Trouble::Broken(Cause::new(error)) }
    }
}

impl Keeper<PageLane> for LeaseKeeper {
    fn tend(&mut self) -> Result<Duration, Cause> {
        let mut lease = self.lease();
        match self.renew(&mut lease) {
            Ok(left) => Ok((left / 4).clamp(OFTEN, SELDOM)),
            Err(error) => match Self::trouble(&lease, &error) {
                Trouble::Lost(cause) => Err(cause),
                Trouble::Broken(cause) => {
                    tracing::debug!(%cause, "the lease is not renewed yet");
                    Ok(AGAIN)
                }
            },
        }
    }

    fn mend(&mut self, lanes: &mut [&mut PageLane]) -> Result<(), Trouble> {
        let mut lease = self.lease();
        if let Err(error) = self.renew(&mut lease)
            && let Trouble::Lost(cause) = Self::trouble(&lease, &error)
        {
            return Err(Trouble::Lost(cause));
        }
        let taken = lanes.iter_mut().filter_map(|lane| lane.lane.take()).collect();
        let (mended, result) = lease.mend_lanes(taken);
        self.until.set(Instant::now() + lease.time_left());
        for (place, lane) in lanes.iter_mut().zip(mended) {
            place.lane = Some(lane);
        }
        result.map_err(|error| Self::trouble(&lease, &error))
    }
}

impl From<PagingError> for Error {
    fn from(error: PagingError) -> Self {
        Self::Paging(Box::new(error))
    }
}
