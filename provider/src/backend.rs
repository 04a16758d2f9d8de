//! What the life cycle of a lease asks of a device and of the pool's memory, and the one that asks verbs for it.
//!
//! The trait is there so that a test can make each step of a lease's end fail.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use overbank_fabric::message::{Refusal, RefusalCode};
use overbank_fabric::token::Rights;
use overbank_verbs::{
    Access, CompletionQueue, Device, Endpoint, Memory, MemoryRegion, ProtectionDomain, QpCaps, QueuePair, Retry,
};

/// A device or memory call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct Fault {
    doing: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

impl Fault {
    /// `doing`: what was being done, as in "deregistering a region".
    pub fn new(doing: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { doing, source: source.into() }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::new(RefusalCode::Internal, format!("the provider's device failed at {fault}"))
    }
}

/// Where a region is, for who may reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteKey {
    /// Address of its first byte.
    pub address: u64,
    /// Its key.
    pub rkey: u32,
}

/// Device and memory. Offsets are bytes of the pool's memory.
pub trait Backend: Send + Sync + 'static {
    /// A protection domain.
    type Domain: Send + 'static;
    /// A registered region.
    type Region: Send + 'static;
    /// A queue pair.
    type Queue: Send + 'static;

    /// A new protection domain.
    ///
    /// # Errors
    /// What the device says.
    fn open_domain(&self) -> Result<Self::Domain, Fault>;

    /// A region over exactly these bytes with exactly these remote rights.
    ///
    /// # Errors
    /// What the device says; nothing is registered then.
    fn register(&self, domain: &Self::Domain, bytes: Range<u64>, rights: Rights) -> Result<Self::Region, Fault>;

    /// Where a region is.
    fn remote_key(&self, region: &Self::Region) -> RemoteKey;

    /// Finds the way to an address, so that [`connect`](Self::connect) need not. May take a second.
    ///
    /// # Errors
    /// Why no queue pair could be connected to it.
    fn reach(&self, remote: &Endpoint) -> Result<(), Fault>;

    /// A new queue pair that serves nobody yet.
    ///
    /// # Errors
    /// What the device says.
    fn create_queue(&self, domain: &Self::Domain) -> Result<Self::Queue, Fault>;

    /// From now on the queue pair serves `remote`, and nobody else, with these rights. Returns its own endpoint.
    ///
    /// # Errors
    /// What the device says.
    fn connect(&self, queue: &Self::Queue, remote: &Endpoint, rights: Rights) -> Result<Endpoint, Fault>;

    /// After Ok it is gone, and serves nobody.
    ///
    /// # Errors
    /// Where it may still live.
    fn destroy(&self, queue: Self::Queue) -> Result<(), Fault>;

    /// After Ok no peer reaches memory through this region.
    ///
    /// # Errors
    /// Where a peer might still.
    fn deregister(&self, region: Self::Region) -> Result<(), Fault>;

    /// Overwrites with zeros.
    ///
    /// # Errors
    /// Where it did not.
    fn wipe(&self, bytes: Range<u64>) -> Result<(), Fault>;

    /// Offset of the first byte that is not zero.
    ///
    /// # Errors
    /// Where that could not be found out.
    fn first_nonzero(&self, bytes: Range<u64>) -> Result<Option<u64>, Fault>;
}

/// The real one: a device of verbs and one mapping, the pool.
pub struct Verbs {
    device: Device,
    /// Provider queue pairs post nothing; they share one queue that stays empty.
    completions: CompletionQueue,
    /// Everybody's, where that defence is taken away.
    #[cfg(feature = "danger-one-domain")]
    one_domain: ProtectionDomain,
    memory: Arc<Memory>,
}

impl Verbs {
    /// Lends `memory` through `device`.
    ///
    /// # Errors
    /// Where the device has no completion queue to give.
    pub fn new(device: Device, memory: Memory) -> Result<Self, Fault> {
        #[cfg(feature = "danger-one-domain")]
        let one_domain = device.alloc_pd().map_err(|error| Fault::new("allocating a protection domain", error))?;
        let completions = device.create_cq(16).map_err(|error| Fault::new("creating a completion queue", error))?;
        Ok(Self {
            device,
            completions,
            #[cfg(feature = "danger-one-domain")]
            one_domain,
            memory: Arc::new(memory),
        })
    }

    /// The pool's memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

fn access(rights: Rights) -> Access {
    let mut access = Access::empty();
    access.set(Access::REMOTE_READ, rights.contains(Rights::READ));
    access.set(Access::REMOTE_WRITE, rights.contains(Rights::WRITE));
    access
}

fn offsets(bytes: Range<u64>) -> Result<Range<usize>, Fault> {
    let offset = |byte| usize::try_from(byte).map_err(|error| Fault::new("finding an offset in the pool", error));
    Ok(offset(bytes.start)?..offset(bytes.end)?)
}

impl Backend for Verbs {
    type Domain = ProtectionDomain;
    type Region = MemoryRegion;
    type Queue = QueuePair;

    fn open_domain(&self) -> Result<ProtectionDomain, Fault> {
        #[cfg(feature = "danger-one-domain")]
        return Ok(self.one_domain.clone());
        #[cfg(not(feature = "danger-one-domain"))]
        self.device.alloc_pd().map_err(|error| Fault::new("allocating a protection domain", error))
    }

    fn register(&self, domain: &ProtectionDomain, bytes: Range<u64>, rights: Rights) -> Result<MemoryRegion, Fault> {
        domain
            .register(&self.memory, offsets(bytes)?, access(rights))
            .map_err(|error| Fault::new("registering a region", error))
    }

    fn remote_key(&self, region: &MemoryRegion) -> RemoteKey {
        RemoteKey { address: region.address(), rkey: region.rkey() }
    }

    fn reach(&self, remote: &Endpoint) -> Result<(), Fault> {
        self.device.reach(remote).map_err(|error| Fault::new("finding the way to it", error))
    }

    fn create_queue(&self, domain: &ProtectionDomain) -> Result<QueuePair, Fault> {
        // It only answers: nothing is ever posted to it.
        let caps = QpCaps { send_queue: 1, outstanding_reads: 16 };
        domain.create_qp(&self.completions, caps).map_err(|error| Fault::new("creating a queue pair", error))
    }

    fn connect(&self, queue: &QueuePair, remote: &Endpoint, rights: Rights) -> Result<Endpoint, Fault> {
        let retry = Retry { timeout: Duration::from_millis(100), count: 7 };
        queue
            .connect(remote, access(rights), retry)
            .map(|()| queue.endpoint())
            .map_err(|error| Fault::new("connecting a queue pair", error))
    }

    fn destroy(&self, queue: QueuePair) -> Result<(), Fault> {
        if cfg!(feature = "danger-no-fence") {
            std::mem::forget(queue);
            return Ok(());
        }
        if let Err(error) = queue.set_error() {
            // It ends a moment later, then.
            tracing::debug!(%error, "a queue pair that is to be destroyed would not go to ERROR first");
        }
        queue.destroy().map_err(|error| Fault::new("destroying a queue pair", error))
    }

    fn deregister(&self, region: MemoryRegion) -> Result<(), Fault> {
        if cfg!(any(feature = "danger-regions-stay", feature = "danger-no-fence")) {
            std::mem::forget(region);
            return Ok(());
        }
        region.deregister().map_err(|error| Fault::new("deregistering a region", error))
    }

    fn wipe(&self, bytes: Range<u64>) -> Result<(), Fault> {
        self.memory.wipe(offsets(bytes)?).map_err(|error| Fault::new("overwriting memory", error))
    }

    fn first_nonzero(&self, bytes: Range<u64>) -> Result<Option<u64>, Fault> {
        let found = self.memory.first_nonzero(offsets(bytes)?);
        Ok(found.map_err(|error| Fault::new("checking memory", error))?.map(|offset| offset as u64))
    }
}
