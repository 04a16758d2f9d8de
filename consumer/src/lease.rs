//! A lease in use: reads and writes at any offset, as long as it lasts.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_fabric::block::LeaseKey;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{LeaseId, Tenant};
use overbank_fabric::message::RefusalCode;
use overbank_fabric::token::{Rights, Scope};
use overbank_verbs::{Device, DeviceOptions, Health, Op, VerbsError};

use crate::attach::{self, AttachOptions, MAX_LANES};
use crate::client::Client;
use crate::clock::{self, Until};
use crate::data::{Contents, DataError, OnUnknown, Reads, SealedLane, bounce_lane};
use crate::error::{Error, ErrorKind};
use crate::freshness::Freshness;
use crate::grant;
use crate::lease_file::{Facts, LeaseFile, LeaseFileError, Sharing};
use crate::leasing::Released;
use crate::sharing::{self, SharingError};

/// How often one read or write attaches anew before it gives up.
const ATTACHES: u32 = 3;
/// How long one look at the clock that goes on while the machine sleeps is good for: it costs as much as the rest of what
/// is checked here. So who was asleep in the middle of its work notices that much later; the provider does at once.
const GLANCE: Duration = Duration::from_millis(10);

/// A lease that this process uses. Reads and writes go to its provider and to nobody else.
///
/// What is not said at the end by [`Lease::close`] is said, as far as it goes, when this is dropped. After a process that
/// wrote was killed, nobody knows what it wrote last: see [`Lease::freshness_is_known`].
pub struct Lease {
    client: Client,
    file: LeaseFile,
    contents: Contents,
    until: Until,
    /// When to look again whether that has come.
    glance: Instant,
    /// Its bytes that we may reach, and whether we may write them.
    reach: Range<u64>,
    rights: Rights,
    options: AttachOptions,
    /// None where nothing is attached; the first is this handle's own.
    lanes: Vec<SealedLane>,
    /// What the lanes go over.
    device: Option<Device>,
    /// Given back, or not ours any more: nothing is to be written down.
    over: bool,
}

impl Lease {
    /// `scope`: what the token in the file comes down to.
    pub(crate) fn new(client: Client, file: LeaseFile, freshness: Freshness, scope: &Scope) -> Self {
        let facts = file.facts();
        let options = AttachOptions::default();
        let (reach, rights) = (sharing::reach(scope, facts), scope.rights);
        let contents = Contents {
            context: facts.context(),
            key: file.key().clone(),
            bytes: facts.bytes,
            freshness: Arc::new(freshness),
            on_unknown: OnUnknown::Refuse,
        };
        let until = facts.until;
        let (lanes, device) = (Vec::new(), None);
        let glance = Instant::now();
        let mut lease =
            Self { client, until, glance, reach, rights, contents, file, options, lanes, device, over: false };
        lease.contents.on_unknown = lease.on_unknown();
        lease
    }

    fn on_unknown(&self) -> OnUnknown {
        let usual = if self.is_shared() { OnUnknown::Accept } else { OnUnknown::Refuse };
        self.options.on_unknown.unwrap_or(usual)
    }

    /// Which.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.file.facts().lease
    }

    /// Usable bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.contents.bytes
    }

    /// Its bytes that we may reach: all of them, unless it is one that was shared with us.
    #[must_use]
    pub fn reach(&self) -> Range<u64> {
        self.reach.clone()
    }

    /// Whether it was shared with us for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !self.rights.contains(Rights::WRITE)
    }

    /// Whether others may write to it too, or it was shared with us. Its freshness is unknown then.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.contents.freshness.is_shared()
    }

    /// Payload bytes of a block.
    #[must_use]
    pub fn block(&self) -> u32 {
        self.contents.context.block
    }

    /// For whom it was made.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.contents.context.tenant
    }

    /// Where its key is kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// How long it can be used: until a little before its deadline. Zero once that is over, or where it was counted on
    /// another start of this machine and nothing was attached since.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        self.until.left().unwrap_or_default()
    }

    /// Whether it is known of every block what was written to it last, so that no older content can pass for it.
    #[must_use]
    pub fn freshness_is_known(&self) -> bool {
        self.contents.freshness.is_known()
    }

    /// The device that this lease is attached through, once it is: one line on which, where, and why that one.
    #[must_use]
    pub fn device(&self) -> Option<String> {
        self.device.as_ref().map(Device::describe)
    }

    /// Connects to the provider. A read or a write does this by itself, with the default options, where nobody did
    /// before; it also does it again, with the same options, where the connection broke.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::LeaseOver`], [`Error::LeaseLost`], [`Error::MisbehavingProvider`], [`Error::NotTrusted`],
    /// and what [`Client::who_am_i`] says.
    pub fn attach(&mut self, options: &AttachOptions) -> Result<(), Error> {
        if !(1..=MAX_LANES).contains(&options.lanes) {
            return Err(Error::Lanes { asked: options.lanes });
        }
        self.lanes.clear();
        self.options = options.clone();
        self.contents.on_unknown = self.on_unknown();
        self.ready(Instant::now() + options.deadline)
    }

    /// Reads bytes from `offset` on. Those that were never written are zeros. On an error `buffer` holds zeros.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`]; [`Error::Data`] where the contents are not what was written, or the provider does not answer;
    /// [`Error::Device`] where this machine's device is down; [`Error::LeaseOver`], [`Error::LeaseLost`], and what
    /// [`Lease::attach`] says.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let result = self.admit(Rights::READ, offset, buffer.len());
        let result = result.and_then(|()| self.transfer(|lane, deadline| lane.read(offset, buffer, deadline)));
        if result.is_err() {
            buffer.fill(0);
        }
        result
    }

    /// Writes bytes from `offset` on. When this returns they are in the provider's memory. On an error some may be.
    ///
    /// # Errors
    /// [`Error::LeaseFile`], and what [`Lease::read`] says.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.admit(Rights::WRITE, offset, bytes.len())?;
        self.soil()?;
        self.transfer(|lane, deadline| lane.write(offset, bytes, deadline))
    }

    /// The first lane without the sealing, where it is attached: for who measures what sealing adds.
    #[cfg(feature = "measuring")]
    #[doc(hidden)]
    pub fn wire(&mut self) -> Option<(&mut overbank_verbs::Lane, &crate::data::Window)> {
        self.lanes.first_mut().map(SealedLane::wire)
    }

    /// A handle for each of the lanes that [`AttachOptions::lanes`] asked for, each for a thread of its own. What is
    /// written through one is read through any. Unlike this handle they do not attach anew: where the connection broke,
    /// drop them all and split again.
    ///
    /// # Errors
    /// [`Error::LeaseFile`], and what [`Lease::attach`] says.
    pub fn split(&mut self) -> Result<Vec<LeaseLane<'_>>, Error> {
        if !self.is_read_only() {
            self.soil()?;
        }
        self.in_time(Instant::now())?;
        self.ready(Instant::now() + self.options.deadline)?;
        let (lease, bytes, deadline) = (self.file.facts().lease, self.contents.bytes, self.options.deadline);
        let device = self.device.as_ref();
        Ok(self.lanes.iter_mut().map(|lane| LeaseLane { lane, device, lease, bytes, deadline }).collect())
    }

    /// Moves the deadline to `ttl` from now; never sooner. Returns how long the lease can be used from now on.
    ///
    /// # Errors
    /// [`Error::LeaseOver`], [`Error::LeaseLost`], [`Error::LeaseFile`], and what [`Client::who_am_i`] says.
    pub fn renew(&mut self, ttl: Duration) -> Result<Duration, Error> {
        self.client.holds(self.file.facts(), "renew")?;
        let asked_ms = clock::now_ms();
        let granted = self.client.renew_lease(self.id(), ttl)?;
        grant::check(&granted, &self.client.authd_key(), &self.client.identity().public())?;
        grant::check_same(&granted, self.file.facts())?;
        self.until = Until::new(asked_ms, granted.left_ms);
        let until = self.until.instant();
        self.lanes.iter_mut().for_each(|lane| lane.set_until(until));
        self.save(Facts {
            authd_key: self.client.authd_key(),
            holder: self.client.identity().public(),
            token: granted.token,
            until: self.until,
            ..self.file.facts().clone()
        })?;
        Ok(self.until.left_here())
    }

    /// Ends the use of the lease, not the lease: what was written last is saved, for who opens it next.
    ///
    /// # Errors
    /// [`Error::LeaseFile`] where it cannot be saved, [`Error::LeaseOver`] where the lease was released meanwhile.
    pub fn close(mut self) -> Result<(), Error> {
        self.finish()
    }

    /// Ends the lease now: see [`Client::release`].
    ///
    /// # Errors
    /// As [`Client::release`]; the lease is then closed, and can be opened again if it is not over.
    pub fn release(mut self, patience: Duration) -> Result<Released, Error> {
        self.lanes.clear();
        let released = self.client.release(self.id(), patience);
        self.over = matches!(released, Ok(_) | Err(Error::LeaseOver { .. } | Error::LeaseLost { .. }));
        released
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.file.facts()
    }

    pub(crate) fn key(&self) -> &LeaseKey {
        self.file.key()
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.client.identity()
    }

    /// From here on others may write too.
    pub(crate) fn shared_with_writers(&mut self) -> Result<(), Error> {
        if self.file.facts().sharing == Sharing::No {
            self.save(Facts { sharing: Sharing::WithWriters, ..self.file.facts().clone() })?;
            self.contents.freshness.share();
            // Lanes that are open judge by what held before.
            self.lanes.clear();
            self.contents.on_unknown = self.on_unknown();
        }
        Ok(())
    }

    /// The lanes of an attach, for who uses them without this handle. It then attaches them anew by [`Lease::mend_lanes`].
    pub(crate) fn take_lanes(&mut self) -> Vec<SealedLane> {
        std::mem::take(&mut self.lanes)
    }

    /// Attaches lanes anew that were taken, where one of them broke, by the usual deadline. Lanes that cannot be had back
    /// are gone.
    pub(crate) fn mend_lanes(&mut self, lanes: Vec<SealedLane>) -> (Vec<SealedLane>, Result<(), Error>) {
        self.lanes = lanes;
        let result = self.ready(Instant::now() + self.options.deadline);
        let result = result.map_err(|error| blame(self.device.as_ref(), error));
        (self.take_lanes(), result)
    }

    /// Asks how long the lease lasts, whoever renewed it.
    pub(crate) fn look_at_deadline(&mut self) -> Result<Duration, Error> {
        self.refresh()
    }

    /// Whether the auth daemon says that it has ended or that its provider lost it.
    pub(crate) fn is_over(&self) -> bool {
        self.client.show_lease(self.id()).is_ok_and(|info| crate::leasing::over(&info).is_some())
    }

    /// Whether a read or a write is allowed here; the provider's device says the same, more curtly.
    fn admit(&self, right: Rights, offset: u64, len: usize) -> Result<(), Error> {
        if !self.rights.contains(right) {
            let op = if right == Rights::WRITE { Op::Write } else { Op::Read };
            return Err(DataError::NotGranted { op }.into());
        }
        fits(offset, len, self.bytes())?;
        let (Range { start: first, end }, len) = (self.reach.clone(), len as u64);
        if offset < first || offset.checked_add(len).is_none_or(|last| last > end) {
            return Err(DataError::Range { offset, len, first, end }.into());
        }
        Ok(())
    }

    /// From here on, a process that dies leaves behind that it wrote.
    pub(crate) fn soil(&mut self) -> Result<(), Error> {
        if self.file.facts().dirty {
            return Ok(());
        }
        self.save(Facts { dirty: true, ..self.file.facts().clone() })
    }

    /// Does `step`, attaching anew where the connection breaks under it.
    fn transfer(&mut self, step: impl FnMut(&mut SealedLane, Instant) -> Result<(), DataError>) -> Result<(), Error> {
        self.try_transfer(step).map_err(|error| blame(self.device.as_ref(), error))
    }

    fn try_transfer(
        &mut self,
        mut step: impl FnMut(&mut SealedLane, Instant) -> Result<(), DataError>,
    ) -> Result<(), Error> {
        let now = Instant::now();
        let deadline = now + self.options.deadline;
        let (id, mut failed) = (self.id(), None);
        for _ in 0..=ATTACHES {
            if failed.is_some() {
                // Seconds may have passed.
                self.glance = now;
            }
            self.in_time(now)?;
            match (self.ready(deadline), failed.take()) {
                (Ok(()), _) => {}
                // It broke again, while writing what was open.
                (Err(Error::Data(error)), _) if Instant::now() < deadline => {
                    failed = Some(error);
                    continue;
                }
                // That the auth daemon is away as well does not say what happened.
                (Err(Error::AuthdUnreachable { .. } | Error::Deadline { .. }), Some(cause)) => {
                    return Err(of(id, cause));
                }
                (Err(error), _) => return Err(error),
            }
            let Some(lane) = self.lanes.first_mut() else { continue };
            match step(lane, deadline) {
                Ok(()) => return Ok(()),
                Err(error) if lane.is_broken() && Instant::now() < deadline => {
                    tracing::debug!(%error, "the connection broke");
                    failed = Some(error);
                }
                // The deadline may have been moved by somebody else.
                Err(error @ DataError::LeaseOver) => failed = Some(error),
                Err(error) => return Err(of(id, error)),
            }
        }
        Err(match failed {
            Some(cause) => of(id, cause),
            None => Error::Deadline { what: "attaching", deadline: self.options.deadline },
        })
    }

    /// Connects where nothing is connected. What was in flight when the connection broke is written again.
    fn ready(&mut self, deadline: Instant) -> Result<(), Error> {
        if !self.lanes.is_empty() && !self.lanes.iter().any(SealedLane::is_broken) {
            return Ok(());
        }
        match self.connect(deadline) {
            // The token may have run out, and the lease been renewed elsewhere.
            Err(Error::Refused { refusal, .. }) if refusal.code == RefusalCode::BadToken => {
                if let Some(over) = self.share_over(&refusal.message) {
                    return Err(over);
                }
                if self.refresh()?.is_zero() {
                    return Err(self.too_short());
                }
                self.connect(deadline)
            }
            connected => connected,
        }
    }

    /// Attaches. That takes the place of an attach before, with all its queue pairs.
    fn connect(&mut self, deadline: Instant) -> Result<(), Error> {
        if self.lanes.is_empty() {
            let address = self.options.address.unwrap_or_else(|| self.client.local_address());
            let options = DeviceOptions { spin: self.options.spin, ..DeviceOptions::new(address) };
            let device = Device::open(&self.options.device, &options)?;
            let lanes = (0..self.options.lanes).map(|_| bounce_lane(&device, self.block()));
            let mut raw = lanes.collect::<Result<Vec<_>, _>>()?;
            let attached = attach::attach(&self.client, self.file.facts(), &mut raw.iter_mut().collect::<Vec<_>>())?;
            let until = attached.until.instant();
            let sealed = |lane| SealedLane::new(lane, &self.contents, attached.window, until);
            self.lanes = raw.into_iter().map(sealed).collect::<Result<_, _>>()?;
            self.device = Some(device);
            self.until = attached.until;
            if self.file.facts().until.left().is_none() && matches!(self.file.facts().sharing, Sharing::By(_)) {
                // So that it can be shared on for a time.
                self.save(Facts { until: self.until, ..self.file.facts().clone() })?;
            }
        } else {
            let mut raw = self.lanes.iter_mut().map(SealedLane::renew).collect::<Result<Vec<_>, _>>()?;
            let attached = attach::attach(&self.client, self.file.facts(), &mut raw)?;
            self.until = attached.until;
            for lane in &mut self.lanes {
                lane.resume(attached.window, attached.until.instant(), deadline)?;
            }
        }
        Ok(())
    }

    /// Fails once the lease's time is over, unless it was renewed elsewhere.
    fn in_time(&mut self, now: Instant) -> Result<(), Error> {
        if self.lanes.is_empty() || now < self.glance {
            return Ok(());
        }
        let left = self.until.left_here();
        if !left.is_zero() {
            self.glance = now + left.min(GLANCE);
            return Ok(());
        }
        match self.refresh() {
            Ok(left) if left.is_zero() => Err(self.too_short()),
            Ok(_) => Ok(()),
            Err(Error::AuthdUnreachable { .. } | Error::Deadline { .. }) => Err(of(self.id(), DataError::LeaseOver)),
            Err(error) => Err(error),
        }
    }

    fn too_short(&self) -> Error {
        let why = "it ends within a second or so, too soon to use it: renew it earlier".to_owned();
        Error::LeaseOver { lease: Some(self.id()), why }
    }

    /// The error that the end of a share is, where this lease is one.
    fn share_over(&self, why: &str) -> Option<Error> {
        let Sharing::By(from) = self.file.facts().sharing else { return None };
        Some(SharingError::Over { lease: self.id(), from: from.fingerprint(), why: why.to_owned() }.into())
    }

    /// Asks how long the lease lasts, and for a token up to then. A renewal by what is left anyway moves nothing.
    fn refresh(&mut self) -> Result<Duration, Error> {
        if let Some(over) = self.share_over("its time has come") {
            return Err(over);
        }
        let asked_ms = clock::now_ms();
        let info = self.client.show_lease(self.id())?;
        if let Some(over) = crate::leasing::over(&info) {
            return Err(over);
        }
        match Until::new(asked_ms, info.left_ms).left_here() {
            Duration::ZERO => Ok(Duration::ZERO),
            _ => self.renew(Duration::from_millis(info.left_ms)),
        }
    }

    /// Replaces the lease's file. While somebody writes it holds no table: nobody may believe one of before.
    fn save(&mut self, facts: Facts) -> Result<(), Error> {
        let table = match facts.dirty {
            true => Vec::new(),
            false if facts.sharing != Sharing::No => Vec::new(),
            false => self.contents.freshness.to_bytes(&self.contents.key, &self.contents.context),
        };
        match self.file.save(facts, &table) {
            Err(LeaseFileError::Removed { .. }) => {
                self.over = true;
                Err(Error::LeaseOver { lease: Some(self.id()), why: "it was released while it was in use".to_owned() })
            }
            saved => Ok(saved?),
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        // What is still open is unknown from here on.
        self.lanes.clear();
        if self.over || !self.file.facts().dirty {
            return Ok(());
        }
        self.save(Facts { dirty: false, ..self.file.facts().clone() })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(lease = %self.id(), "what was written last is not saved: {error}");
        }
    }
}

/// One of the lanes of a [`Lease`] that was split: for one thread.
pub struct LeaseLane<'a> {
    lane: &'a mut SealedLane,
    device: Option<&'a Device>,
    lease: LeaseId,
    bytes: u64,
    deadline: Duration,
}

impl LeaseLane<'_> {
    /// Reads bytes from `offset` on. Those that were never written are zeros. On an error `buffer` holds zeros.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], [`Error::LeaseOver`], [`Error::Device`] and [`Error::Data`].
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        if let Err(error) = fits(offset, buffer.len(), self.bytes) {
            buffer.fill(0);
            return Err(error);
        }
        let deadline = Instant::now() + self.deadline;
        self.lane.read(offset, buffer, deadline).map_err(|error| blame(self.device, of(self.lease, error)))
    }

    /// Writes bytes from `offset` on. When this returns they are in the provider's memory. On an error some may be.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], [`Error::LeaseOver`], [`Error::Device`] and [`Error::Data`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        fits(offset, bytes.len(), self.bytes)?;
        let deadline = Instant::now() + self.deadline;
        self.lane.write(offset, bytes, deadline).map_err(|error| blame(self.device, of(self.lease, error)))
    }

    /// Begins to read many at once: while one is opened, others travel. For who knows what comes next; bytes that lie
    /// side by side are read as well by one [`LeaseLane::read`].
    ///
    /// ```no_run
    /// # fn example(lease: &mut overbank::Lease) -> Result<(), overbank::Error> {
    /// let mut buffers = vec![vec![0; 4096]; 64];
    /// let mut free: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut buffer[..]).collect();
    /// let mut lanes = lease.split()?;
    /// let mut reads = lanes[0].reads();
    /// let mut sum = 0_u64;
    /// for block in (0..1_000_000).step_by(7) {
    ///     let Some(buffer) = free.pop() else { break };
    ///     // As soon as no more can travel, the buffers of the first come back.
    ///     if let Some(done) = reads.push(block * 4096, buffer)? {
    ///         sum += u64::from(done[0]);
    ///         free.push(done);
    ///     }
    /// }
    /// while let Some(done) = reads.wait()? {
    ///     sum += u64::from(done[0]);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn reads<'buffer>(&mut self) -> LeaseReads<'_, 'buffer> {
        let LeaseLane { device, lease, bytes, deadline, .. } = *self;
        LeaseReads { reads: self.lane.reads(), device, lease, bytes, deadline }
    }
}

/// Reads of a [`LeaseLane`] under way, answered in the order in which they were asked for.
///
/// After an error nothing is under way any more, and every buffer that was not given back holds zeros. So it is when this
/// is dropped.
pub struct LeaseReads<'lane, 'buffer> {
    reads: Reads<'lane, 'buffer>,
    device: Option<&'lane Device>,
    lease: LeaseId,
    bytes: u64,
    deadline: Duration,
}

impl<'buffer> LeaseReads<'_, 'buffer> {
    /// Asks for the bytes from `offset` on; they are in `buffer` when it is given back. Gives back the buffer of the oldest
    /// read that is done, if one is; where no more can travel (16 requests of up to 64 KiB), after waiting for it.
    ///
    /// # Errors
    /// As [`LeaseLane::read`], of this read or of any that is under way.
    pub fn push(&mut self, offset: u64, buffer: &'buffer mut [u8]) -> Result<Option<&'buffer mut [u8]>, Error> {
        if let Err(error) = fits(offset, buffer.len(), self.bytes) {
            buffer.fill(0);
            return Err(error);
        }
        let deadline = Instant::now() + self.deadline;
        let pushed = self.reads.push(offset, buffer, deadline);
        pushed.map_err(|error| blame(self.device, of(self.lease, error)))
    }

    /// Waits for the oldest read and gives its buffer back; None where nothing is under way.
    ///
    /// # Errors
    /// As [`LeaseLane::read`], of any read that is under way.
    pub fn wait(&mut self) -> Result<Option<&'buffer mut [u8]>, Error> {
        self.reads.wait().map_err(|error| blame(self.device, of(self.lease, error)))
    }
}

fn fits(offset: u64, len: usize, bytes: u64) -> Result<(), Error> {
    let len = len as u64;
    match offset.checked_add(len) {
        Some(end) if end <= bytes => Ok(()),
        _ => Err(Error::DoesNotFit { offset, len, bytes }),
    }
}

/// What the data path said, of a lease.
fn of(lease: LeaseId, error: DataError) -> Error {
    match error {
        DataError::LeaseOver => {
            Error::LeaseOver { lease: Some(lease), why: "its time is over: renew it earlier".to_owned() }
        }
        error => Error::Data(error),
    }
}

/// The device's own word, where it explains the failure.
fn blame(device: Option<&Device>, error: Error) -> Error {
    let explained = [ErrorKind::Device, ErrorKind::LeaseLost, ErrorKind::Deadline].contains(&error.kind());
    // The provider may say that it cannot reach us.
    let refused = matches!(error, Error::Refused { .. });
    let Some(device) = device.filter(|_| explained || refused) else { return error };
    let name = device.name().to_owned();
    match device.health() {
        Health::Good => error,
        Health::PortDown => {
            let reason = "its port is down; bring its network interface up (`rdma link` names it), and try again";
            Error::Device(VerbsError::DeviceUnusable { name, reason: reason.to_owned() })
        }
        Health::Fatal => Error::Device(VerbsError::DeviceFatal { name }),
    }
}
