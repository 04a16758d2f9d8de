//! What a lease holds of the device while it is active: a protection domain and a region over its blocks, and who is
//! attached to them.

use std::collections::BTreeSet;
use std::ops::Range;

use overbank_fabric::identity::PublicKey;
use overbank_fabric::message::{Refusal, RefusalCode};
use overbank_fabric::time::Tick;
use overbank_fabric::token::{Rights, Scope};
use overbank_verbs::Endpoint;

use crate::attach::Admission;
use crate::backend::{Backend, Fault, RemoteKey};
use crate::pool::Extent;

/// Most attachments (holders, or ranges) of one lease at a time. One place is for the lease's own grant alone.
pub const MAX_ATTACHMENTS: usize = 64;
/// Most attachments of one holder to one lease by narrowed tokens; one more takes the place of its oldest.
pub const MAX_NARROWED_EACH: usize = 4;
/// Most bytes that the narrowed attachments of one lease register, each its own blocks, as multiples of the lease's: the
/// lease's end deregisters them all. One holder's may be half of it; its oldest make way.
pub const MAX_NARROWED: u64 = 4;
/// Of a small lease they may be as many bytes as this.
pub const MAX_NARROWED_SMALL: u64 = 64 << 30;

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

    /// Bytes that a grant's blocks take, which are some of these.
    fn of(&self, scope: &Scope) -> u64 {
        scope.blocks * u64::from(self.stride)
    }
}

/// What a lease takes of the device beside its own region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Queue pairs.
    pub queue_pairs: u64,
    /// Bytes that are registered for narrowed attachments.
    pub narrowed: u64,
}

/// The device side of an active lease. It owns the lease's extent: memory goes back to the pool only through the
/// sequence in [`crate::ending`].
pub struct Hold<B: Backend> {
    extent: Extent,
    shape: Shape,
    /// Over all its blocks: from the beginning, and as long as somebody is attached through it. Who comes after that gets
    /// another one: whoever heard the old key on the wire gets nothing by it.
    whole: Option<(B::Domain, B::Region)>,
    /// The oldest first.
    attachments: Vec<Attachment<B>>,
    /// What all attachments together may take.
    room: Usage,
    /// Most bytes of narrowed attachments, whatever room there is.
    most_narrowed: u64,
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
    /// Whether the token grants less than the whole lease, or for another time than the auth daemon's own grant.
    narrowed: bool,
    /// A narrowed one's: a domain and a region over just what it grants.
    own: Option<(B::Domain, B::Region)>,
    queues: Vec<B::Queue>,
}

impl<B: Backend> Attachment<B> {
    fn usage(&self, shape: Shape) -> Usage {
        Usage { queue_pairs: self.queues.len() as u64, narrowed: if self.narrowed { shape.of(&self.scope) } else { 0 } }
    }

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
        match register(backend, start..start + shape.bytes(), Rights::READ_WRITE) {
            Ok(whole) => {
                let room = Usage { queue_pairs: u64::MAX, narrowed: u64::MAX };
                let most_narrowed = shape.bytes().saturating_mul(MAX_NARROWED).max(MAX_NARROWED_SMALL);
                let (attachments, faults) = (Vec::new(), Vec::new());
                Ok(Self { extent, shape, whole: Some(whole), attachments, room, most_narrowed, faults })
            }
            Err(fault) => Err((extent, fault)),
        }
    }

    /// What all attachments take.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage_of(|_| true)
    }

    fn usage_of(&self, which: impl Fn(&Attachment<B>) -> bool) -> Usage {
        sum(self.attachments.iter().filter(|it| which(it)).map(|it| it.usage(self.shape)))
    }

    /// From the next attach on they take no more than this, unless they take as much already.
    pub fn set_room(&mut self, room: Usage) {
        self.room = room;
    }

    /// The next tick at which an attachment ends before its lease.
    #[must_use]
    pub fn next_detach(&self) -> Option<Tick> {
        self.attachments.iter().filter_map(|attachment| attachment.until).min()
    }

    /// Binds queue pairs to the endpoints of a request whose range lies inside the lease. An earlier attachment of the
    /// same holder to the same blocks with the same rights is destroyed first, and its key with it. On failure nothing
    /// half-made stays. Before each thing that may take long it asks `go_on`, with the tick of the next attachment that
    /// ends, and gives up if that refuses.
    ///
    /// # Errors
    /// A refusal; where there is no room, nothing was destroyed for it. Where something could not be destroyed, this and
    /// every later attach is refused.
    pub fn bind(
        &mut self,
        backend: &B,
        admission: &Admission,
        go_on: impl Fn(Option<Tick>) -> Result<(), Refusal>,
    ) -> Result<Binding, Refusal> {
        self.check_faults()?;
        let narrowed = self.is_narrowed(admission);
        let gone = self.in_place_of(&admission.scope, narrowed);
        self.check_room(admission, narrowed, &gone)?;
        for old in gone.into_iter().rev() {
            go_on(self.next_detach())?;
            self.end(backend, old);
            self.check_faults()?;
        }
        let mut attachment = Attachment {
            scope: admission.scope,
            hands: admission.hands.clone(),
            until: (!admission.root).then_some(admission.scope.deadline.tick),
            narrowed,
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

    fn is_narrowed(&self, admission: &Admission) -> bool {
        let scope = &admission.scope;
        let whole = scope.rights == Rights::READ_WRITE && scope.first_block == 0 && scope.blocks == self.shape.blocks;
        !(whole && admission.root) && cfg!(not(feature = "danger-shared-region"))
    }

    fn check_faults(&self) -> Result<(), Refusal> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let why = "something of an earlier attach could not be destroyed: this lease takes no more; make a new one";
        Err(Refusal::new(RefusalCode::Internal, why))
    }

    /// The attachments, in their order, that such a one takes the place of: that of the same holder to the same blocks with
    /// the same rights, and the oldest of the holder's narrowed ones where they would be too many, or too large.
    fn in_place_of(&self, scope: &Scope, narrowed: bool) -> Vec<usize> {
        let same = self.attachments.iter().position(|it| it.is_for(scope));
        if !narrowed || cfg!(feature = "danger-hoard") {
            return same.into_iter().collect();
        }
        let own = |it: &Attachment<B>| it.narrowed && it.scope.holder == scope.holder && !it.is_for(scope);
        let mut count = self.attachments.iter().filter(|it| own(it)).count();
        let mut bytes = self.usage_of(own).narrowed + self.shape.of(scope);
        let oldest_first = self.attachments.iter().enumerate().filter(|(_, it)| own(it));
        let too_many = oldest_first.take_while(|(_, it)| {
            let one_more = count >= MAX_NARROWED_EACH || bytes > self.most_narrowed / 2;
            (count, bytes) = (count - 1, bytes - self.shape.of(&it.scope));
            one_more
        });
        let mut gone: Vec<_> = too_many.map(|(at, _)| at).chain(same).collect();
        gone.sort_unstable();
        gone
    }

    /// Whether there is room when these are gone. Who takes no more than they did is never refused.
    fn check_room(&self, admission: &Admission, narrowed: bool, gone: &[usize]) -> Result<(), Refusal> {
        if cfg!(feature = "danger-hoard") {
            return Ok(());
        }
        let busy = |why: String| Err(Refusal::new(RefusalCode::Busy, why));
        let (all, parts) = (self.attachments.len(), self.attachments.iter().filter(|it| it.narrowed).count());
        if gone.is_empty() && (all >= MAX_ATTACHMENTS || narrowed && parts >= MAX_ATTACHMENTS - 1) {
            return busy(format!(
                "this lease has {all} attachments, of {MAX_ATTACHMENTS} at most, one of which is for its own grant: end one"
            ));
        }
        let bytes = if narrowed { self.shape.of(&admission.scope) } else { 0 };
        let (has, lanes) = (self.usage(), admission.remotes.len() as u64);
        let freed = sum(gone.iter().map(|at| self.attachments[*at].usage(self.shape)));
        if lanes > freed.queue_pairs && has.queue_pairs - freed.queue_pairs + lanes > self.room.queue_pairs {
            return busy(
                "the tenant has its share of the provider's queue pairs: end an attach, or ask for fewer lanes"
                    .to_owned(),
            );
        }
        let most = self.room.narrowed.min(self.most_narrowed);
        if bytes > freed.narrowed && has.narrowed - freed.narrowed + bytes > most {
            return busy(
                "as much of this lease, or of its tenant's, is registered for whom it was shared with as can be: end an \
                 attach, or share less"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn build(
        &mut self,
        backend: &B,
        attachment: &mut Attachment<B>,
        remotes: &[Endpoint],
        go_on: impl Fn(Option<Tick>) -> Result<(), Refusal>,
    ) -> Result<Binding, Refusal> {
        let scope = attachment.scope;
        if attachment.narrowed || self.whole.is_none() {
            // All memory of a range may have to be pinned for it.
            go_on(self.next_detach())?;
            let start = self.extent.bytes().start;
            if attachment.narrowed {
                let start = start + scope.first_block * u64::from(self.shape.stride);
                attachment.own = Some(register(backend, start..start + self.shape.of(&scope), scope.rights)?);
            } else {
                self.whole = Some(register(backend, start..start + self.shape.bytes(), Rights::READ_WRITE)?);
            }
        }
        let (domain, region) = attachment.own.as_ref().or(self.whole.as_ref()).expect("just registered");
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
            self.end(backend, at);
        }
    }

    /// Ends an attachment, and the region over all blocks with its last user.
    fn end(&mut self, backend: &B, at: usize) {
        let attachment = self.attachments.remove(at);
        let last = !attachment.narrowed && self.attachments.iter().all(|other| other.narrowed);
        self.take_apart(backend, attachment);
        if last && let Some((_domain, region)) = self.whole.take() {
            self.faults.extend(backend.deregister(region).err());
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
        let mut regions: Vec<_> = self.whole.into_iter().collect();
        for attachment in self.attachments {
            self.faults.extend(destroy_all(backend, attachment.queues));
            regions.extend(attachment.own);
        }
        (Regions { extent: self.extent, regions }, self.faults)
    }
}

/// In a domain of its own.
fn register<B: Backend>(backend: &B, bytes: Range<u64>, rights: Rights) -> Result<(B::Domain, B::Region), Fault> {
    let domain = backend.open_domain()?;
    let region = backend.register(&domain, bytes, rights)?;
    Ok((domain, region))
}

fn sum(usages: impl Iterator<Item = Usage>) -> Usage {
    usages.fold(Usage::default(), |all, one| Usage {
        queue_pairs: all.queue_pairs + one.queue_pairs,
        narrowed: all.narrowed + one.narrowed,
    })
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
