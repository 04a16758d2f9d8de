//! A connection with its own bounce memory, for one thread.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use crate::{
    Access, Backing, Completion, CompletionQueue, Device, Endpoint, Memory, MemoryRegion, Op, ProtectionDomain, QpCaps,
    QueuePair, Retry, VerbsError, WcStatus, WorkRequest,
};

/// Number of a slot of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// One request of a lane: the slot's first `len` bytes to or from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// A held slot.
    pub slot: SlotId,
    /// READ fills the slot, WRITE sends it.
    pub op: Op,
    /// Bytes, from the start of the slot.
    pub len: usize,
    /// First byte on the other side.
    pub remote_address: u64,
    /// Key of the peer's region.
    pub rkey: u32,
}

/// The end of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The slot, held again.
    pub slot: SlotId,
    /// How it ended.
    pub status: WcStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Held,
    InFlight,
    /// Ended by `renew`, not yet polled.
    Ended,
}

impl Slot {
    fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::InFlight => "in flight",
            Self::Ended => "flushed and not yet polled",
        }
    }
}

/// A queue pair, a completion queue and a ring of registered bounce slots: what a consumer reads and writes through.
/// A slot in flight cannot be touched. It has no lock of its own and allocates nothing after [`new`](Self::new).
pub struct Lane {
    // Dropped in this order: the queue pair before what it uses.
    qp: Option<QueuePair>,
    region: MemoryRegion,
    cq: CompletionQueue,
    pd: ProtectionDomain,
    memory: Arc<Memory>,
    slot_len: usize,
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    in_flight: usize,
    endpoint: Endpoint,
    /// What `renew` ended, until it is polled.
    flushed: Vec<Done>,
    completions: Vec<Completion>,
}

/// READs under way at once, each way.
pub(crate) const OUTSTANDING_READS: u8 = 16;

impl Lane {
    /// A lane with `slots` slots of `slot_len` bytes, which only this side's own requests may write.
    ///
    /// # Errors
    /// A number of zero; no memory; a limit of the device.
    pub fn new(device: &Device, slots: u32, slot_len: usize) -> Result<Self, VerbsError> {
        let count = slots as usize;
        if slots == 0 || slot_len == 0 {
            return Err(VerbsError::ZeroLength { what: "a lane" });
        }
        let stride = stride(slot_len);
        let len = stride.checked_mul(count).ok_or(VerbsError::Limit {
            what: "length of a lane's slot",
            value: slot_len,
            min: 1,
            max: isize::MAX as usize / count,
        })?;
        let memory = Arc::new(Memory::map(len, Backing::Ordinary)?);
        let pd = device.alloc_pd()?;
        let cq = device.create_cq(count)?;
        let region = pd.register(&memory, 0..len, Access::LOCAL_WRITE)?;
        let qp = pd.create_qp(&cq, caps(count))?;
        Ok(Self {
            endpoint: qp.endpoint(),
            qp: Some(qp),
            region,
            cq,
            pd,
            memory,
            slot_len,
            slots: vec![Slot::Free; count],
            free: (0..slots).rev().map(SlotId).collect(),
            in_flight: 0,
            flushed: Vec::with_capacity(count),
            completions: Vec::with_capacity(count),
        })
    }

    /// Bytes of each slot.
    #[must_use]
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Slots in all.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What the peer needs to connect; a new one after [`renew`](Self::renew).
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Connects to the peer, which gets no rights here.
    ///
    /// # Errors
    /// Already connected (see [`renew`](Self::renew)); a peer that the device cannot reach.
    pub fn connect(&mut self, remote: &Endpoint, retry: Retry) -> Result<(), VerbsError> {
        self.qp()?.connect(remote, Access::empty(), retry)
    }

    /// Destroys the queue pair and makes a fresh one on the same slots, which keep their bytes and holders. What was in
    /// flight comes back through [`poll`](Self::poll), as flushed.
    ///
    /// # Errors
    /// The device; where it fails to destroy, what is in flight stays in flight for good.
    pub fn renew(&mut self) -> Result<(), VerbsError> {
        if let Some(qp) = self.qp.take() {
            qp.destroy()?;
            self.settle()?;
        }
        let qp = self.pd.create_qp(&self.cq, caps(self.slots.len()))?;
        self.endpoint = qp.endpoint();
        self.qp = Some(qp);
        Ok(())
    }

    /// After the queue pair is gone: what it completed is done, and what it did not is flushed.
    fn settle(&mut self) -> Result<(), VerbsError> {
        loop {
            self.completions.clear();
            if self.cq.poll(self.slots.len(), &mut self.completions)? == 0 {
                break;
            }
            for completion in &self.completions {
                self.flushed.extend(end(&mut self.slots, completion, Slot::Ended));
            }
        }
        for (number, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| **slot == Slot::InFlight) {
            *slot = Slot::Ended;
            self.flushed.push(Done { slot: SlotId(number as u32), status: WcStatus::WR_FLUSH_ERR });
        }
        Ok(())
    }

    /// A free slot, now held by the caller.
    pub fn take(&mut self) -> Option<SlotId> {
        let slot = self.free.pop()?;
        self.slots[slot.0 as usize] = Slot::Held;
        Some(slot)
    }

    /// Gives a held slot back. One that is not held stays as it is.
    pub fn give(&mut self, slot: SlotId) {
        if let Some(state @ Slot::Held) = self.slots.get_mut(slot.0 as usize) {
            *state = Slot::Free;
            self.free.push(slot);
        }
    }

    /// The bytes of a held slot; None while it is in flight or free.
    #[must_use]
    pub fn bytes(&self, slot: SlotId) -> Option<&[u8]> {
        let offset = self.held(slot)?;
        // SAFETY: nothing writes a held slot while `self` is borrowed. The device writes this memory only through a
        // region without remote rights, so only for requests posted here; `post` needs `&mut self` and makes the slot
        // in flight, and it is held again only once the device has completed the request or the queue pair that had
        // it is destroyed. No one else has the memory.
        unsafe { self.memory.slice(offset, self.slot_len) }
    }

    /// The bytes of a held slot, to write to; None while it is in flight or free.
    #[must_use]
    pub fn bytes_mut(&mut self, slot: SlotId) -> Option<&mut [u8]> {
        let offset = self.held(slot)?;
        // SAFETY: as in `bytes`; neither does the device read a held slot, and `&mut self` excludes other slices.
        unsafe { self.memory.slice_mut(offset, self.slot_len) }
    }

    /// Posts held slots, all of them or, with an error, none. They are in flight until [`poll`](Self::poll) returns
    /// them, held again.
    ///
    /// # Errors
    /// A slot that is not held or named twice; a length of zero or beyond the slot; a lane that is not connected.
    pub fn post(&mut self, batch: &[Transfer]) -> Result<(), VerbsError> {
        for (marked, transfer) in batch.iter().enumerate() {
            if let Err(error) = self.mark(transfer) {
                self.unmark(&batch[..marked]);
                return Err(error);
            }
        }
        let stride = stride(self.slot_len);
        let posted = self.qp().and_then(|qp| {
            qp.post_each(batch.iter().map(|transfer| WorkRequest {
                id: u64::from(transfer.slot.0),
                op: transfer.op,
                region: &self.region,
                offset: transfer.slot.0 as usize * stride,
                len: transfer.len,
                remote_address: transfer.remote_address,
                rkey: transfer.rkey,
            }))
        });
        match posted {
            Ok(()) => self.in_flight += batch.len(),
            Err(_) => self.unmark(batch),
        }
        posted
    }

    /// Appends every transfer that has ended to `out`, and returns how many. Never waits.
    ///
    /// # Errors
    /// The device.
    pub fn poll(&mut self, out: &mut Vec<Done>) -> Result<usize, VerbsError> {
        self.completions.clear();
        self.cq.poll(self.slots.len(), &mut self.completions)?;
        Ok(self.take_done(out))
    }

    /// The same, after waiting for one to end; none where the deadline has come.
    ///
    /// # Errors
    /// The device.
    pub fn poll_within(&mut self, deadline: Instant, out: &mut Vec<Done>) -> Result<usize, VerbsError> {
        self.completions.clear();
        if self.flushed.is_empty() {
            self.cq.poll_within(deadline, self.slots.len(), &mut self.completions)?;
        }
        Ok(self.take_done(out))
    }

    fn take_done(&mut self, out: &mut Vec<Done>) -> usize {
        let before = out.len();
        for done in self.flushed.drain(..) {
            self.slots[done.slot.0 as usize] = Slot::Held;
            out.push(done);
        }
        for completion in &self.completions {
            out.extend(end(&mut self.slots, completion, Slot::Held));
        }
        self.in_flight -= out.len() - before;
        out.len() - before
    }

    /// Polls, then sleeps, until there is something to [`poll`](Self::poll) (true) or the deadline has come (false).
    ///
    /// # Errors
    /// The device.
    pub fn wait(&mut self, deadline: Instant) -> Result<bool, VerbsError> {
        if !self.flushed.is_empty() {
            return Ok(true);
        }
        self.cq.wait(deadline)
    }

    /// Transfers posted and not yet polled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn qp(&self) -> Result<&QueuePair, VerbsError> {
        self.qp.as_ref().ok_or_else(|| VerbsError::Gone { what: "queue pair" })
    }

    /// Offset of a held slot.
    fn held(&self, slot: SlotId) -> Option<usize> {
        let number = slot.0 as usize;
        (*self.slots.get(number)? == Slot::Held).then(|| number * stride(self.slot_len))
    }

    /// Makes a held slot one in flight.
    fn mark(&mut self, transfer: &Transfer) -> Result<(), VerbsError> {
        let (SlotId(slot), size) = (transfer.slot, self.slot_len);
        if transfer.len > size {
            return Err(VerbsError::OutOfRange { what: "the slot", offset: 0, len: transfer.len, size });
        }
        match self.slots.get_mut(slot as usize) {
            Some(state @ Slot::Held) => *state = Slot::InFlight,
            other => return Err(VerbsError::Slot { slot, state: other.map_or("not there", |state| state.name()) }),
        }
        Ok(())
    }

    fn unmark(&mut self, marked: &[Transfer]) {
        for transfer in marked {
            self.slots[transfer.slot.0 as usize] = Slot::Held;
        }
    }
}

/// Ends a transfer: its slot goes to `state`.
fn end(slots: &mut [Slot], completion: &Completion, state: Slot) -> Option<Done> {
    let slot = u32::try_from(completion.id).ok()?;
    let current = slots.get_mut(slot as usize)?;
    if *current != Slot::InFlight {
        return None;
    }
    *current = state;
    Some(Done { slot: SlotId(slot), status: completion.status })
}

/// Slots begin on cache lines of their own.
fn stride(slot_len: usize) -> usize {
    slot_len.checked_next_multiple_of(64).unwrap_or(usize::MAX)
}

fn caps(slots: usize) -> QpCaps {
    QpCaps { send_queue: slots, outstanding_reads: OUTSTANDING_READS }
}
