//! A device as a lender's process has it: memory, regions, keys and queue pairs, so that a peer can try any access at any
//! time. It hands out the numbers of keys and queue pairs again as soon as they are free, as real devices do, and while a
//! call on it runs, everybody whose lease is over writes wherever a key of theirs still lets them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use overbank_fabric::token::Rights;
use overbank_provider::backend::{Backend, Fault, RemoteKey};
use overbank_verbs::{Endpoint, Mtu};

use crate::rng::Rng;

/// Of the keys that are over, the newest are tried again and again.
const OLD_KEYS: usize = 64;
/// Address of the pool's first byte.
const BASE: u64 = 0x7000_0000;

/// What can fail once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    OpenDomain,
    Register,
    Reach,
    CreateQueue,
    Connect,
    Destroy,
    Deregister,
    Wipe,
    Check,
}

struct Region {
    domain: u64,
    bytes: Range<u64>,
    rights: Rights,
    stuck: bool,
}

struct Queue {
    domain: u64,
    remote: Option<(Endpoint, Rights)>,
}

/// One way into a lease's memory that there is, or was.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) lease: usize,
    /// Who attached, to which blocks, with which rights: the same again takes its place.
    pub(crate) scope: Scope,
    pub(crate) qpn: u32,
    pub(crate) peer: Endpoint,
    pub(crate) rkey: u32,
    pub(crate) address: u64,
    pub(crate) len: u64,
    /// It must lead nowhere from now on.
    pub(crate) dead: bool,
    /// It is tried all the time.
    pub(crate) hostile: bool,
}

/// What one attach is for; `until`, where it ends before the lease, in true time, µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Which attach.
    pub(crate) attach: u64,
    pub(crate) borrower: usize,
    pub(crate) first: u64,
    pub(crate) blocks: u64,
    pub(crate) write: bool,
    pub(crate) until: Option<u64>,
}

impl Scope {
    pub(crate) fn is_replaced_by(&self, other: &Self) -> bool {
        let key = |scope: &Self| (scope.borrower, scope.first, scope.blocks, scope.write);
        key(self) == key(other)
    }
}

pub(crate) struct World {
    pub(crate) memory: Vec<u8>,
    regions: BTreeMap<u32, Region>,
    queues: BTreeMap<u32, Queue>,
    pub(crate) keys: Vec<Key>,
    pub(crate) failing: Option<Failing>,
    /// For whom the job that runs now works.
    pub(crate) at_work: Option<(usize, Option<Scope>)>,
    /// Changes with everything that could open or close a way in.
    pub(crate) version: u64,
    /// What must not have happened.
    pub(crate) wrong: Vec<String>,
    free_keys: Vec<u32>,
    free_queues: Vec<u32>,
    domains: u64,
    rng: Rng,
}

impl World {
    /// One WRITE (of these bytes) or READ (of that many) by a peer through a queue pair.
    pub(crate) fn access(
        &mut self,
        (peer, qpn, rkey): (&Endpoint, u32, u32),
        address: u64,
        write: Option<&[u8]>,
        read: usize,
    ) -> Option<Vec<u8>> {
        let queue = self.queues.get(&qpn)?;
        let (remote, queue_rights) = queue.remote.as_ref().filter(|(remote, _)| remote == peer)?;
        debug_assert_eq!(remote, peer);
        let region = self.regions.get(&rkey).filter(|region| region.domain == queue.domain)?;
        let need = if write.is_some() { Rights::WRITE } else { Rights::READ };
        if !region.rights.contains(need) || !queue_rights.contains(need) {
            return None;
        }
        let len = write.map_or(read, <[u8]>::len) as u64;
        let start = address.checked_sub(BASE)?;
        let end = start.checked_add(len)?;
        if start < region.bytes.start || end > region.bytes.end {
            return None;
        }
        let bytes = &mut self.memory[start as usize..end as usize];
        match write {
            Some(new) => {
                bytes.copy_from_slice(new);
                Some(Vec::new())
            }
            None => Some(bytes.to_vec()),
        }
    }

    /// Everybody whose lease is over writes whatever a key still reaches.
    pub(crate) fn storm(&mut self) {
        for at in 0..self.keys.len() {
            let key = &self.keys[at];
            if !key.hostile || !self.queues.contains_key(&key.qpn) {
                continue;
            }
            let key = key.clone();
            let way = (&key.peer, key.qpn, key.rkey);
            let wrote = self.access(way, key.address, Some(&vec![0xEE; key.len as usize]), 0).is_some();
            let read = !wrote && self.access(way, key.address, None, 1).is_some();
            if key.dead && (wrote || read) {
                let what = if wrote { "written" } else { "read" };
                self.wrong.push(format!("L{} was {what} through a key that is over: {:?}", key.lease, key.scope));
            }
        }
    }

    /// Tries every way that must lead nowhere, and a few across leases.
    pub(crate) fn try_old_keys(&mut self) {
        self.storm();
        let old = self.keys.iter().filter(|key| key.dead).count();
        if old > OLD_KEYS {
            let mut seen = 0;
            self.keys.retain(|key| {
                seen += usize::from(key.dead);
                !key.dead || seen > old - OLD_KEYS
            });
        }
        for at in 0..self.keys.len() {
            if !self.keys[at].dead {
                continue;
            }
            let key = self.keys[at].clone();
            let way = (&key.peer, key.qpn, key.rkey);
            let last = key.address + key.len - 1;
            if self.access(way, key.address, None, 1).is_some() || self.access(way, last, Some(&[0xEE]), 0).is_some() {
                self.wrong.push(format!("a key of L{} that is over still leads in: {:?}", key.lease, key.scope));
            }
            // Through a queue pair of one's own with another's key and address.
            let other = self.rng.below(self.keys.len() as u64) as usize;
            let (mine, theirs) = (&self.keys[at], self.keys[other].clone());
            let (peer, qpn) = (mine.peer, mine.qpn);
            if mine.lease != theirs.lease && self.access((&peer, qpn, theirs.rkey), theirs.address, None, 1).is_some() {
                self.wrong.push(format!("L{}'s key works over a queue pair of L{}", theirs.lease, key.lease));
            }
        }
    }

    /// Live ways: a peer's own queue pair with another lease's key and address.
    pub(crate) fn try_across(&mut self) {
        let live: Vec<usize> = (0..self.keys.len()).filter(|at| !self.keys[*at].dead).collect();
        for &one in &live {
            for &other in &live {
                let (mine, theirs) = (&self.keys[one], &self.keys[other]);
                if mine.lease == theirs.lease {
                    continue;
                }
                let (peer, qpn, rkey, address) = (mine.peer, mine.qpn, theirs.rkey, theirs.address);
                let (mine, theirs) = (mine.lease, theirs.lease);
                if self.access((&peer, qpn, rkey), address, None, 1).is_some() {
                    self.wrong.push(format!("a queue pair of L{mine} reads L{theirs}"));
                }
            }
        }
    }

    /// Whether a region covers any of these bytes, and whether one of those could not be deregistered.
    pub(crate) fn covered(&self, bytes: &Range<u64>) -> Option<bool> {
        let over = |region: &&Region| region.bytes.start < bytes.end && bytes.start < region.bytes.end;
        let mut covering = self.regions.values().filter(over).peekable();
        covering.peek()?;
        Some(covering.any(|region| region.stuck))
    }

    /// Regions that live though nothing went wrong with them.
    pub(crate) fn regions_left(&self) -> usize {
        self.regions.values().filter(|region| !region.stuck).count()
    }

    fn fails(&mut self, call: Failing) -> Result<(), Fault> {
        self.version += 1;
        self.storm();
        if self.failing == Some(call) {
            self.failing = None;
            return Err(Fault::new("a call of the simulation", format!("{call:?} was told to fail")));
        }
        Ok(())
    }
}

/// The device of one life of a lender.
pub(crate) struct Device(Mutex<World>);

impl Device {
    pub(crate) fn new(bytes: u64, seed: u64) -> Self {
        Self(Mutex::new(World {
            memory: vec![0; bytes as usize],
            regions: BTreeMap::new(),
            queues: BTreeMap::new(),
            keys: Vec::new(),
            failing: None,
            at_work: None,
            version: 0,
            wrong: Vec::new(),
            free_keys: (1..200).rev().collect(),
            free_queues: (2..400).rev().collect(),
            domains: 0,
            rng: Rng::new(seed),
        }))
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("one thread")
    }
}

fn endpoint(qpn: u32, psn: u32) -> Endpoint {
    Endpoint { flags: 0, mtu: Mtu::Mtu1024, qpn, psn, port: 4791, lid: 0, gid: [0xfd; 16] }
}

impl Backend for Device {
    type Domain = u64;
    type Region = u32;
    type Queue = u32;

    fn open_domain(&self) -> Result<u64, Fault> {
        let mut world = self.world();
        world.fails(Failing::OpenDomain)?;
        world.domains += 1;
        Ok(world.domains)
    }

    fn register(&self, domain: &u64, bytes: Range<u64>, rights: Rights) -> Result<u32, Fault> {
        let mut world = self.world();
        world.fails(Failing::Register)?;
        let index = world.free_keys.pop().ok_or_else(|| Fault::new("registering", "no more keys"))?;
        // A few random bits over a number that is used again: rxe's way.
        let rkey = index << 8 | world.rng.below(4) as u32;
        world.regions.insert(rkey, Region { domain: *domain, bytes, rights, stuck: false });
        Ok(rkey)
    }

    fn remote_key(&self, region: &u32) -> RemoteKey {
        RemoteKey { address: BASE + self.world().regions[region].bytes.start, rkey: *region }
    }

    fn reach(&self, _remote: &Endpoint) -> Result<(), Fault> {
        self.world().fails(Failing::Reach)
    }

    fn create_queue(&self, domain: &u64) -> Result<u32, Fault> {
        let mut world = self.world();
        world.fails(Failing::CreateQueue)?;
        let qpn = world.free_queues.pop().ok_or_else(|| Fault::new("creating", "no more queue pairs"))?;
        world.queues.insert(qpn, Queue { domain: *domain, remote: None });
        Ok(qpn)
    }

    fn connect(&self, queue: &u32, remote: &Endpoint, rights: Rights) -> Result<Endpoint, Fault> {
        let mut world = self.world();
        world.fails(Failing::Connect)?;
        let psn = world.rng.below(1 << 24) as u32;
        let queue_state = world.queues.get_mut(queue).expect("made");
        queue_state.remote = Some((*remote, rights));
        let domain = queue_state.domain;
        let of_domain = world.regions.iter().find(|(_, region)| region.domain == domain);
        let (rkey, bytes) = of_domain.map(|(rkey, region)| (*rkey, region.bytes.clone())).expect("registered before");
        let (lease, scope) = world.at_work.expect("a job works for a lease");
        let scope = scope.expect("only an attach connects");
        world.keys.push(Key {
            lease,
            scope,
            qpn: *queue,
            peer: *remote,
            rkey,
            address: BASE + bytes.start,
            len: bytes.end - bytes.start,
            dead: false,
            hostile: false,
        });
        Ok(endpoint(*queue, psn))
    }

    fn destroy(&self, queue: u32) -> Result<(), Fault> {
        let mut world = self.world();
        world.fails(Failing::Destroy)?;
        world.queues.remove(&queue);
        world.free_queues.push(queue);
        world.storm();
        Ok(())
    }

    fn deregister(&self, region: u32) -> Result<(), Fault> {
        let mut world = self.world();
        if let Err(fault) = world.fails(Failing::Deregister) {
            world.regions.get_mut(&region).expect("made").stuck = true;
            return Err(fault);
        }
        world.regions.remove(&region);
        world.free_keys.push(region >> 8);
        world.storm();
        Ok(())
    }

    fn wipe(&self, bytes: Range<u64>) -> Result<(), Fault> {
        let mut world = self.world();
        world.fails(Failing::Wipe)?;
        if world.covered(&bytes).is_some() {
            world.wrong.push("memory is overwritten while a region covers it".to_owned());
        }
        world.memory[bytes.start as usize..bytes.end as usize].fill(0);
        world.storm();
        Ok(())
    }

    fn first_nonzero(&self, bytes: Range<u64>) -> Result<Option<u64>, Fault> {
        let mut world = self.world();
        world.fails(Failing::Check)?;
        let found = world.memory[bytes.start as usize..bytes.end as usize].iter().position(|byte| *byte != 0);
        let found = found.map(|at| bytes.start + at as u64);
        world.storm();
        Ok(found)
    }
}
