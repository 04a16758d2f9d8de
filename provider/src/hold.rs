//! What a lease holds of the device while it is active: a protection domain and a region over its blocks, and who is
//! attached to them.

use std::collections::BTreeSet;

use overbank_fabric::identity::PublicKey;
use overbank_fabric::message::{Refusal, RefusalCode};
use overbank_fabric::time::Tick;
use overbank_fabric::token::{Rights, Scope};
use overbank_verbs::Endpoint;

use crate::attach::Admission;
use crate::backend::{Backend, Fault, RemoteKey};
use crate::pool::Extent;

/// Most attachments (holders, or ranges) of one lease at a time.
pub const MAX_ATTACHMENTS: usize = 64;

/// The shape of a lease's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks, at least 1.
    pub blocks: u64,
    /// Remote bytes from one block to the next. Blocks × stride is known not to overflow.
    pub stride: u32,
}

impl Shape {
    /// Bytes that the blocks take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.stride)
    }
}

/// The device side of an active lease. It owns the lease's extent: memory goes back to the pool only through the
/// sequence in [`crate::ending`].
pub struct Hold<B: Backend> {
    extent: Extent,
    shape: Shape,
    domain: B::Domain,
    /// Over all its blocks.
    region: B::Region,
    attachments: Vec<Attachment<B>>,
    /// Most queue pairs of all attachments together.
    room: usize,
    /// What could not be taken down. With one of these the lease takes no more attaches, and its end fails.
    faults: Vec<Fault>,
}

/// One holder's queue pairs.
struct Attachment<B: Backend> {
    scope: Scope,
    /// All through whose hands the token went.
    hands: Vec<PublicKey>,
    /// Ends before the lease does; None: with it, also when that is extended.
    until: Option<Tick>,
    /// Unless the token is the auth daemon's own grant of the whole lease: a domain and a region over just what it grants.
    own: Option<(B::Domain, B::Region)>,
    queues: Vec<B::Queue>,
}

impl<B: Backend> Attachment<B> {
    fn is_for(&self, scope: &Scope) -> bool {
        let key = |scope: &Scope| (scope.holder, scope.first_block, scope.blocks, scope.rights);
        key(&self.scope) == key(scope)
    }
}

/// What an attach comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Where the first granted block is.
    pub key: RemoteKey,
    /// The provider's endpoints, in the request's order.
    pub lanes: Vec<Endpoint>,
}

impl<B: Backend> Hold<B> {
    /// Registers a lease's blocks in a domain of its own.
    ///
    /// # Errors
    /// The extent comes back where the device does not: no peer has ever reached it.
    pub fn open(backend: &B, extent: Extent, shape: Shape) -> Result<Self, (Extent, Fault)> {
        let start = extent.bytes().start;
        let opened = backend.open_domain().and_then(|domain| {
            let region = backend.register(&domain, start..start + shape.bytes(), Rights::READ_WRITE)?;
            Ok((domain, region))
        });
        match opened {
            Ok((domain, region)) => {
                let (attachments, faults) = (Vec::new(), Vec::new());
                Ok(Self { extent, shape, domain, region, attachments, room: usize::MAX, faults })
            }
            Err(fault) => Err((extent, fault)),
        }
    }

    /// Queue pairs of all attachments.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.attachments.iter().map(|attachment| attachment.queues.len()).sum()
    }

    /// From the next attach on there are no more queue pairs than this.
    pub fn set_room(&mut self, queue_pairs: usize) {
        self.room = queue_pairs;
    }

    /// The next tick at which an attachment ends before its lease.
    #[must_use]
    pub fn next_detach(&self) -> Option<Tick> {
        self.attachments.iter().filter_map(|attachment| attachment.until).min()
    }

    /// Binds queue pairs to the endpoints of a request whose range lies inside the lease. An earlier attachment of the
    /// same holder to the same blocks with the same rights is destroyed first, and its key with it. On failure nothing half-made stays. Before
    /// each queue pair it asks `go_on`, with the tick of the next attachment that ends, and gives up if that refuses.
    ///
    /// # Errors
    /// A refusal. Where something could not be destroyed, this and every later attach is refused.
    pub fn bind(
        &mut self,
        backend: &B,
        admission: &Admission,
        go_on: impl Fn(Option<Tick>) -> Result<(), Refusal>,
    ) -> Result<Binding, Refusal> {
        if let Some(at) = self.attachments.iter().position(|attachment| attachment.is_for(&admission.scope)) {
            let old = self.attachments.swap_remove(at);
            let whole = old.own.is_none();
            self.take_apart(backend, old);
            if whole && self.attachments.iter().all(|other| other.own.is_some()) {
                self.renew_key(backend);
            }
        }
        if !self.faults.is_empty() {
            let why = "something of an earlier attach could not be destroyed: this lease takes no more; make a new one";
            return Err(Refusal::new(RefusalCode::Internal, why));
        }
        if self.queue_pairs() + admission.remotes.len() > self.room {
            let why = "the tenant has its share of the provider's queue pairs: end an attach, or ask for fewer lanes";
            return Err(Refusal::new(RefusalCode::Busy, why));
        }
        if self.attachments.len() >= MAX_ATTACHMENTS && cfg!(not(feature = "danger-hoard")) {
            let why = format!("{MAX_ATTACHMENTS} holders are attached to this lease, which is the most there can be");
            return Err(Refusal::new(RefusalCode::Busy, why));
        }
        let mut attachment = Attachment {
            scope: admission.scope,
            hands: admission.hands.clone(),
            until: (!admission.root).then_some(admission.scope.deadline.tick),
            own: None,
            queues: Vec::with_capacity(admission.remotes.len()),
        };
        match self.build(backend, &mut attachment, &admission.remotes, go_on) {
            Ok(binding) => {
                self.attachments.push(attachment);
                Ok(binding)
            }
            Err(refusal) => {
                self.take_apart(backend, attachment);
                Err(refusal)
            }
        }
    }

    fn build(
        &self,
        backend: &B,
        attachment: &mut Attachment<B>,
        remotes: &[Endpoint],
        go_on: impl Fn(Option<Tick>) -> Result<(), Refusal>,
    ) -> Result<Binding, Refusal> {
        let scope = attachment.scope;
        let whole = scope.rights == Rights::READ_WRITE && scope.first_block == 0 && scope.blocks == self.shape.blocks;
        let root = attachment.until.is_none();
        if !(whole && root) && cfg!(not(feature = "danger-shared-region")) {
            let stride = u64::from(self.shape.stride);
            let start = self.extent.bytes().start + scope.first_block * stride;
            let domain = backend.open_domain()?;
            let region = backend.register(&domain, start..start + scope.blocks * stride, scope.rights)?;
            attachment.own = Some((domain, region));
        }
        let (domain, region) = match &attachment.own {
            Some((domain, region)) => (domain, region),
            None => (&self.domain, &self.region),
        };
        let mut lanes = Vec::with_capacity(remotes.len());
        for remote in remotes {
            // Each may take a second where its address has died since it was reached.
            go_on(self.next_detach())?;
            attachment.queues.push(backend.create_queue(domain)?);
            let queue = attachment.queues.last().expect("just pushed");
            lanes.push(backend.connect(queue, remote, scope.rights)?);
        }
        Ok(Binding { key: backend.remote_key(region), lanes })
    }

    /// Registers the lease's blocks anew: whoever has heard the old key on the wire gets nothing by it any more. Nobody is
    /// attached through the old one.
    fn renew_key(&mut self, backend: &B) {
        let start = self.extent.bytes().start;
        let fresh = backend.open_domain().and_then(|domain| {
            let region = backend.register(&domain, start..start + self.shape.bytes(), Rights::READ_WRITE)?;
            Ok((domain, region))
        });
        match fresh {
            Ok((domain, region)) => {
                let old = std::mem::replace(&mut self.region, region);
                self.faults.extend(backend.deregister(old).err());
                self.domain = domain;
            }
            // No key is a secret; the new queue pairs have numbers of their own.
            Err(fault) => tracing::warn!(%fault, "a lease is attached again under the key that it had"),
        }
    }

    /// Whether somebody is attached by a token that went through one of these hands.
    #[must_use]
    pub fn serves(&self, barred: &BTreeSet<PublicKey>) -> bool {
        self.attachments.iter().any(|attachment| attachment.hands.iter().any(|hand| barred.contains(hand)))
    }

    /// Whether something of an attachment could not be destroyed, and may still be within reach.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Ends the attachments whose tokens have run out, or went through the hands of somebody who is barred.
    pub fn detach_due(&mut self, backend: &B, now: Tick, barred: &BTreeSet<PublicKey>) {
        let due = |attachment: &Attachment<B>| {
            attachment.until.is_some_and(|until| until <= now)
                || attachment.hands.iter().any(|hand| barred.contains(hand))
        };
        while let Some(at) = self.attachments.iter().position(due) {
            let attachment = self.attachments.swap_remove(at);
            self.take_apart(backend, attachment);
        }
    }

    fn take_apart(&mut self, backend: &B, attachment: Attachment<B>) {
        self.faults.extend(destroy_all(backend, attachment.queues));
        if let Some((_domain, region)) = attachment.own {
            self.faults.extend(backend.deregister(region).err());
        }
    }

    /// Destroys every queue pair, whatever happens to one of them. The regions are left.
    pub(crate) fn destroy_queues(mut self, backend: &B) -> (Regions<B>, Vec<Fault>) {
        let mut regions = vec![(self.domain, self.region)];
        for attachment in self.attachments {
            self.faults.extend(destroy_all(backend, attachment.queues));
            regions.extend(attachment.own);
        }
        (Regions { extent: self.extent, regions }, self.faults)
    }
}

fn destroy_all<B: Backend>(backend: &B, queues: Vec<B::Queue>) -> impl Iterator<Item = Fault> {
    queues.into_iter().filter_map(|queue| backend.destroy(queue).err())
}

/// A lease without queue pairs: every region that covers any of its bytes.
pub(crate) struct Regions<B: Backend> {
    extent: Extent,
    regions: Vec<(B::Domain, B::Region)>,
}

impl<B: Backend> Regions<B> {
    /// Deregisters every region, whatever happens to one of them.
    pub(crate) fn deregister(self, backend: &B) -> (Extent, Vec<Fault>) {
        let faults =
            self.regions.into_iter().filter_map(|(_domain, region)| backend.deregister(region).err()).collect();
        (self.extent, faults)
    }
}

#[cfg(test)]
#[path = "hold_tests.rs"]
mod tests;
