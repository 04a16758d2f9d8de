//! Sealed reads and writes through the library, on a real lease.

use std::time::Duration;

use overbank::{AttachOptions, Client, Config, Lease, LeaseId, LeaseRequest};
use overbank_verbs::{Done, Op, Transfer};

use crate::ends::SPIN;
use crate::error::BenchError;
use crate::one_sided;

/// Bytes that operations go round in.
const SPAN: u64 = 16 << 20;
/// A lease of our own lasts as long, unless it is released before: nobody measures for longer.
const TTL: Duration = Duration::from_secs(3600);
/// For the receipt of a lease that is given back; it is not needed.
const PATIENCE: Duration = Duration::from_secs(1);

/// An attached lease.
pub(crate) struct Sealed {
    lease: Lease,
    buffer: Vec<u8>,
    /// Bytes that operations go round in.
    span: u64,
    next: u64,
    done: Vec<Done>,
    /// Given back at the end, where the lease was made here.
    own: Option<Client>,
}

impl Sealed {
    /// Attaches to `lease`, or to one that is made for this; operations of `size` bytes. What was in it is overwritten.
    pub(crate) fn attach(
        config: &Config,
        lease: Option<LeaseId>,
        device: &str,
        size: usize,
    ) -> Result<Self, BenchError> {
        let mut sealed = Self::empty(config, lease, device, size, 2 * SPAN.max(size as u64))?;
        // The other half is for operations without sealing, after which nothing there opens.
        sealed.span /= 2;
        if sealed.places() == 0 {
            let (twice, bytes) = (2 * size, sealed.lease.bytes());
            return Err(BenchError::Usage(format!("--size {size} takes {twice} bytes of a lease, and it has {bytes}")));
        }
        // A block that was never written is not opened: reading it would cost too little.
        for _ in 0..sealed.places() {
            sealed.write()?;
        }
        Ok(sealed)
    }

    /// The same, with places in `span` bytes that are still to be written.
    pub(crate) fn empty(
        config: &Config,
        lease: Option<LeaseId>,
        device: &str,
        size: usize,
        span: u64,
    ) -> Result<Self, BenchError> {
        let (client, span) = (Client::connect(config)?, span.max(size as u64));
        let (mut lease, own) = match lease {
            Some(lease) => (client.open_lease(lease)?, None),
            None => (client.lease(&LeaseRequest::new(span, TTL))?, Some(client)),
        };
        let span = lease.bytes().min(span);
        if span < size as u64 {
            return Err(BenchError::Usage(format!("--size {size} is more than the lease's {} bytes", lease.bytes())));
        }
        lease.attach(&AttachOptions { device: device.to_owned(), spin: SPIN, ..AttachOptions::default() })?;
        Ok(Self { lease, buffer: vec![0xA5; size], span, next: 0, done: Vec::with_capacity(1), own })
    }

    /// How many places of one operation's bytes there are.
    pub(crate) fn places(&self) -> u64 {
        self.span / self.buffer.len().max(1) as u64
    }

    /// Reads that place.
    pub(crate) fn read_at(&mut self, place: u32, bytes: &mut [u8]) -> Result<(), BenchError> {
        Ok(self.lease.read(u64::from(place) * bytes.len() as u64, bytes)?)
    }

    /// Writes that place.
    pub(crate) fn write_at(&mut self, place: u32, bytes: &[u8]) -> Result<(), BenchError> {
        Ok(self.lease.write(u64::from(place) * bytes.len() as u64, bytes)?)
    }

    /// Bytes in the lender's memory that one operation moves.
    pub(crate) fn wire_bytes(&self) -> usize {
        let block = self.lease.block() as usize;
        self.buffer.len().div_ceil(block) * (block + overbank_fabric::block::HEADER_LEN)
    }

    /// Operations of `size` bytes from now on: no more than it was attached with.
    pub(crate) fn resize(&mut self, size: usize) {
        self.buffer.resize(size, 0xA5);
    }

    /// Reads the next place.
    pub(crate) fn read(&mut self) -> Result<(), BenchError> {
        let at = self.place();
        Ok(self.lease.read(at, &mut self.buffer)?)
    }

    /// Writes the next place.
    pub(crate) fn write(&mut self) -> Result<(), BenchError> {
        let at = self.place();
        Ok(self.lease.write(at, &self.buffer)?)
    }

    /// Reads or writes as many bytes as a sealed operation moves, in the same lender's memory and by the same queue pair:
    /// the next place of the half that holds nothing sealed. Polls until that has completed.
    pub(crate) fn unsealed(&mut self, op: Op) -> Result<(), BenchError> {
        let (len, most) = (self.wire_bytes(), self.places());
        let unready = || BenchError::Usage("a lease is not attached".to_owned());
        let (lane, window) = self.lease.wire().ok_or_else(unready)?;
        // Sealed operations stay below the middle, and a block that lies across it is theirs.
        let first = window.blocks.div_ceil(2);
        let places = ((window.blocks - first) * u64::from(window.stride) / len as u64).min(most);
        if places == 0 || len > lane.slot_len() {
            let message = format!("the lease or its blocks are too small for {len} bytes at once without sealing");
            return Err(BenchError::Usage(message));
        }
        self.next += 1;
        let remote_address = window.address + first * u64::from(window.stride) + self.next % places * len as u64;
        let slot = lane.take().ok_or_else(unready)?;
        let transfer = Transfer { slot, op, len, remote_address, rkey: window.rkey };
        let transferred = one_sided::transfer(lane, transfer, &mut self.done, "the provider");
        lane.give(slot);
        transferred
    }

    /// Leaves the lease as it should be left.
    pub(crate) fn finish(self) -> Result<(), BenchError> {
        let id = self.lease.id();
        self.lease.close()?;
        if let Some(client) = self.own {
            client.release(id, PATIENCE)?;
        }
        Ok(())
    }

    fn place(&mut self) -> u64 {
        self.next += 1;
        self.next % self.places().max(1) * self.buffer.len() as u64
    }
}
