//! A device that a test can look into and make fail. It watches the rules while it runs: memory that becomes a lease's is
//! clean and nobody else's, and nothing is overwritten while a region still covers it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use overbank_fabric::token::Rights;
use overbank_verbs::{Endpoint, Mtu};

use crate::backend::{Backend, Fault, RemoteKey};
use crate::clock::{BootTime, Clock};
use crate::waiting::Ending;

/// Calls that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    OpenDomain,
    Register,
    Reach,
    CreateQueue,
    Connect,
    Destroy,
    Deregister,
    Wipe,
    /// The check fails.
    Check,
    /// The check finds something.
    FindDirt,
}

impl Call {
    pub(crate) const ALL: [Self; 10] = [
        Self::OpenDomain,
        Self::Register,
        Self::Reach,
        Self::CreateQueue,
        Self::Connect,
        Self::Destroy,
        Self::Deregister,
        Self::Wipe,
        Self::Check,
        Self::FindDirt,
    ];
}

#[derive(Debug, Clone)]
pub(crate) struct RegionState {
    pub(crate) domain: u64,
    pub(crate) bytes: Range<u64>,
    pub(crate) rights: Rights,
    /// Its deregistration failed: it lives for ever.
    pub(crate) stuck: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct QueueState {
    pub(crate) domain: u64,
    pub(crate) remote: Option<(Endpoint, Rights)>,
    pub(crate) stuck: bool,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) memory: Vec<u8>,
    pub(crate) regions: BTreeMap<u64, RegionState>,
    pub(crate) queues: BTreeMap<u64, QueueState>,
    /// Memory of leases: registered once, and not yet found clean again.
    lent: Vec<Range<u64>>,
    /// Fail the next call of this kind.
    pub(crate) fail: Option<Call>,
    /// Endpoints that were reached, or not.
    pub(crate) reached: Vec<Endpoint>,
    /// Endpoints that were connected to.
    pub(crate) connected: Vec<Endpoint>,
    /// Begins during the first connect.
    pub(crate) end_in_connect: Option<Ending>,
    /// Calls of this kind do not return until this is changed.
    hang: Option<Call>,
    /// How many do not.
    hanging: usize,
    next: u64,
}

impl World {
    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn try_call(&mut self, call: Call) -> Result<(), Fault> {
        if self.fail == Some(call) {
            self.fail = None;
            return Err(Fault::new("a call of the test double", format!("{call:?} was told to fail")));
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &Range<u64>) -> &mut [u8] {
        &mut self.memory[usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap()]
    }

    /// Whether a connected peer could write these bytes.
    pub(crate) fn reachable(&self, bytes: &Range<u64>) -> bool {
        self.regions.values().any(|region| overlap(&region.bytes, bytes))
    }

    /// What connected peers do: write wherever queue pair and region let them.
    pub(crate) fn peers_write(&mut self, value: u8) {
        let writes = |rights: Rights| rights.contains(Rights::WRITE);
        let reach = |region: &RegionState| {
            writes(region.rights)
                && self.queues.values().any(|queue| {
                    queue.domain == region.domain && queue.remote.as_ref().is_some_and(|(_, rights)| writes(*rights))
                })
        };
        let ranges: Vec<_> = self.regions.values().filter(|region| reach(region)).map(|r| r.bytes.clone()).collect();
        for bytes in ranges {
            self.bytes(&bytes).fill(value);
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The device.
#[derive(Default)]
pub(crate) struct Double(Mutex<World>, Condvar, Option<fn()>);

impl Double {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Mutex::new(World { memory: vec![0; bytes], ..World::default() }), Condvar::new(), None)
    }

    /// Does this before each call.
    pub(crate) fn pausing(self, pause: fn()) -> Self {
        Self(self.0, self.1, Some(pause))
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.2.inspect(|pause| pause());
        self.0.lock().expect("no test panicked in here")
    }

    /// From now on calls of this kind, and no others, do not return.
    pub(crate) fn hang(&self, call: Option<Call>) {
        self.world().hang = call;
        self.1.notify_all();
    }

    /// Returns when so many calls hang.
    pub(crate) fn until_hanging(&self, calls: usize) {
        let (world, patience) = (self.world(), Duration::from_secs(20));
        let waited = self.1.wait_timeout_while(world, patience, |world| world.hanging < calls);
        assert!(!waited.expect("no test panicked in here").1.timed_out(), "{calls} calls never came");
    }

    fn maybe_hang(&self, call: Call) -> MutexGuard<'_, World> {
        let mut world = self.world();
        let hangs = world.hang == Some(call);
        world.hanging += usize::from(hangs);
        self.1.notify_all();
        let mut world = self.1.wait_while(world, |world| world.hang == Some(call)).expect("no test panicked in here");
        world.hanging -= usize::from(hangs);
        world
    }
}

/// An endpoint that a test can tell from others.
pub(crate) fn endpoint(number: u32) -> Endpoint {
    Endpoint { flags: 0, mtu: Mtu::Mtu1024, qpn: number, psn: 0, port: 4791, lid: 0, gid: [1; 16] }
}

impl Backend for Double {
    type Domain = u64;
    type Region = u64;
    type Queue = u64;

    fn open_domain(&self) -> Result<u64, Fault> {
        let mut world = self.world();
        world.try_call(Call::OpenDomain)?;
        Ok(world.fresh())
    }

    fn register(&self, domain: &u64, bytes: Range<u64>, rights: Rights) -> Result<u64, Fault> {
        let mut world = self.world();
        world.try_call(Call::Register)?;
        let covering: Vec<_> =
            world.regions.values().filter(|region| overlap(&region.bytes, &bytes)).cloned().collect();
        assert!(covering.iter().all(|region| !region.stuck), "registered over memory that a stuck region still covers");
        assert!(covering.iter().all(|region| region.domain != *domain), "two regions in one domain");
        if !world.lent.iter().any(|lent| overlap(lent, &bytes)) {
            assert!(world.bytes(&bytes).iter().all(|byte| *byte == 0), "a new lease got dirty memory");
            world.lent.push(bytes.clone());
        }
        let inside = |outer: &Range<u64>| outer.start <= bytes.start && bytes.end <= outer.end;
        assert!(world.lent.iter().any(inside), "two leases overlap");
        let region = world.fresh();
        world.regions.insert(region, RegionState { domain: *domain, bytes, rights, stuck: false });
        Ok(region)
    }

    fn remote_key(&self, region: &u64) -> RemoteKey {
        RemoteKey { address: self.world().regions[region].bytes.start, rkey: u32::try_from(*region).unwrap() }
    }

    fn reach(&self, remote: &Endpoint) -> Result<(), Fault> {
        let mut world = self.maybe_hang(Call::Reach);
        world.reached.push(*remote);
        world.try_call(Call::Reach)
    }

    fn create_queue(&self, domain: &u64) -> Result<u64, Fault> {
        let mut world = self.world();
        world.try_call(Call::CreateQueue)?;
        let queue = world.fresh();
        world.queues.insert(queue, QueueState { domain: *domain, remote: None, stuck: false });
        Ok(queue)
    }

    fn connect(&self, queue: &u64, remote: &Endpoint, rights: Rights) -> Result<Endpoint, Fault> {
        let mut world = self.maybe_hang(Call::Connect);
        if let Some(ending) = &world.end_in_connect {
            ending.begin();
        }
        world.connected.push(*remote);
        world.try_call(Call::Connect)?;
        world.queues.get_mut(queue).expect("made").remote = Some((*remote, rights));
        Ok(endpoint(u32::try_from(*queue).unwrap()))
    }

    fn destroy(&self, queue: u64) -> Result<(), Fault> {
        let mut world = self.world();
        if let Err(fault) = world.try_call(Call::Destroy) {
            world.queues.get_mut(&queue).expect("made").stuck = true;
            return Err(fault);
        }
        world.queues.remove(&queue);
        Ok(())
    }

    fn deregister(&self, region: u64) -> Result<(), Fault> {
        let mut world = self.world();
        if let Err(fault) = world.try_call(Call::Deregister) {
            world.regions.get_mut(&region).expect("made").stuck = true;
            return Err(fault);
        }
        world.regions.remove(&region);
        Ok(())
    }

    fn wipe(&self, bytes: Range<u64>) -> Result<(), Fault> {
        let mut world = self.world();
        assert!(!world.reachable(&bytes), "overwritten while a region covers it");
        world.try_call(Call::Wipe)?;
        world.bytes(&bytes).fill(0);
        Ok(())
    }

    fn first_nonzero(&self, bytes: Range<u64>) -> Result<Option<u64>, Fault> {
        let mut world = self.world();
        assert!(!world.reachable(&bytes), "checked while a region covers it");
        world.try_call(Call::Check)?;
        if world.try_call(Call::FindDirt).is_err() {
            return Ok(Some(bytes.start));
        }
        let dirty = world.bytes(&bytes).iter().position(|byte| *byte != 0).map(|at| bytes.start + at as u64);
        if dirty.is_none() {
            world.lent.retain(|lent| !overlap(lent, &bytes));
        }
        Ok(dirty)
    }
}

/// A clock that a test moves.
#[derive(Clone)]
pub(crate) struct TestClock {
    us: Arc<AtomicU64>,
    step: u64,
}

impl TestClock {
    pub(crate) fn at(us: u64) -> Self {
        Self { us: Arc::new(AtomicU64::new(us)), step: 0 }
    }

    /// Each reading moves it by 1 µs.
    pub(crate) fn stepping() -> Self {
        Self { step: 1, ..Self::at(0) }
    }

    pub(crate) fn advance_ms(&self, ms: u64) {
        self.us.fetch_add(ms * 1000, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> BootTime {
        BootTime(self.us.fetch_add(self.step, Ordering::Relaxed))
    }
}
