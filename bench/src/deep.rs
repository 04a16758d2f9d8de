//! Many sealed reads at once, on a real lease; and what opening alone comes to.

use std::hint::black_box;
use std::time::{Duration, Instant};

use overbank::{AttachOptions, Client, Config, Lease, LeaseLane, LeaseRequest};
use overbank_fabric::block::{HEADER_LEN, LeaseKey, MAX_BLOCK, MIN_BLOCK, Opener, Sealer};

use crate::ends::SPIN;
use crate::error::BenchError;
use crate::rates::{Clock, Pace, Rate};
use crate::seal;

/// A lease lasts as long, unless it is given back before: nobody measures for longer.
const TTL: Duration = Duration::from_secs(3600);
/// For the receipt of a lease that is given back; it is not needed.
const PATIENCE: Duration = Duration::from_secs(1);

/// An attached lease whose every place is written.
pub(crate) struct Deep {
    client: Client,
    lease: Lease,
    size: usize,
    depth: usize,
    lanes: usize,
    /// A buffer for each read that may be under way.
    buffers: Vec<Vec<u8>>,
}

/// Where a lane's reads go: round and round, its own places.
struct Places {
    first: u64,
    count: u64,
    size: u64,
    next: u64,
}

impl Places {
    fn next(&mut self) -> u64 {
        let at = self.first + self.next % self.count;
        self.next += 1;
        at * self.size
    }
}

impl Deep {
    /// Leases as much as is read, in blocks of `size` bytes where there are such, and writes every place.
    pub(crate) fn start(config: &Config, device: &str, size: usize, depth: u32, lanes: u8) -> Result<Self, BenchError> {
        let (depth, lanes) = (depth as usize, usize::from(lanes));
        let bytes = (size * depth * lanes) as u64;
        let mut request = LeaseRequest::new(bytes, TTL);
        if let Some(block) = block(size) {
            request.block = block;
        }
        let client = Client::connect(config)?;
        let mut lease = client.lease(&request)?;
        let options = AttachOptions { device: device.to_owned(), lanes, spin: SPIN, ..AttachOptions::default() };
        lease.attach(&options)?;
        let mut place = vec![0xA5; size];
        for offset in (0..bytes).step_by(size) {
            mark(&mut place, offset);
            lease.write(offset, &place)?;
        }
        Ok(Self { client, lease, size, depth, lanes, buffers: vec![vec![0; size]; depth * lanes] })
    }

    /// Bytes that one read moves, where its blocks are as large as it.
    pub(crate) fn stride(size: usize) -> Option<usize> {
        block(size).map(|_| size + HEADER_LEN)
    }

    /// One turn: each lane on a thread of its own, where there are several. What comes is what was written there.
    pub(crate) fn turn(&mut self, pace: &Pace) -> Result<Rate, BenchError> {
        let (size, depth) = (self.size as u64, self.depth as u64);
        let mut turns = Vec::new();
        let chunks = self.buffers.chunks_mut(self.depth);
        for ((number, lane), buffers) in (0..).zip(self.lease.split()?).zip(chunks) {
            let places = Places { first: number * depth, count: depth, size, next: 0 };
            turns.push(move || flow(lane, places, buffers, pace));
        }
        let rates: Vec<Rate> = match turns.pop() {
            Some(only) if turns.is_empty() => vec![only()?],
            last => std::thread::scope(|scope| {
                let threads: Vec<_> = turns.into_iter().chain(last).map(|turn| scope.spawn(turn)).collect();
                let joined = threads.into_iter().map(|thread| thread.join());
                joined
                    .map(|rate| rate.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect::<Result<_, BenchError>>()
            })?,
        };
        // All lanes count for the same time, but for a few operations.
        let nanoseconds = rates.iter().map(|rate| rate.nanoseconds).max().unwrap_or(0);
        let operations = rates.iter().map(|rate| rate.operations).sum();
        debug_assert_eq!(rates.len(), self.lanes);
        Ok(Rate { operations, nanoseconds, packets: None })
    }

    /// Gives the lease back.
    pub(crate) fn finish(self) -> Result<(), BenchError> {
        let id = self.lease.id();
        self.lease.close()?;
        self.client.release(id, PATIENCE)?;
        Ok(())
    }
}

/// The size of a block that holds just so much.
fn block(size: usize) -> Option<u32> {
    let block = u32::try_from(size).ok()?;
    ((MIN_BLOCK..=MAX_BLOCK).contains(&block) && block.is_power_of_two()).then_some(block)
}

/// A place begins with its offset.
fn mark(place: &mut [u8], offset: u64) {
    place.iter_mut().zip(offset.to_le_bytes()).for_each(|(to, byte)| *to = byte);
}

fn is_marked(place: &[u8], offset: u64) -> bool {
    place.iter().zip(offset.to_le_bytes()).all(|(found, byte)| *found == byte)
}

/// Keeps as many reads under way as there are buffers.
fn flow(mut lane: LeaseLane<'_>, mut ask: Places, buffers: &mut [Vec<u8>], pace: &Pace) -> Result<Rate, BenchError> {
    let mut expected = Places { next: 0, ..ask };
    let mut free: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut buffer[..]).collect();
    let mut reads = lane.reads();
    let (mut clock, mut all) = (Clock::start(pace), 0);
    loop {
        let done = match free.pop() {
            Some(buffer) => reads.push(ask.next(), buffer)?,
            None => reads.wait()?,
        };
        let Some(done) = done else { continue };
        if !is_marked(done, expected.next()) {
            return Err(BenchError::Wrong { op: overbank_verbs::Op::Read });
        }
        free.push(done);
        all += 1;
        if let Some(rate) = clock.look(all) {
            return Ok(rate);
        }
    }
}

/// Opens one block of this size again and again, and does nothing else.
pub(crate) struct Opening {
    opener: Opener,
    sealed: Vec<u8>,
    opened: Vec<u8>,
}

impl Opening {
    /// None where no block has this size.
    pub(crate) fn new(size: usize) -> Result<Option<Self>, BenchError> {
        let Some(block) = block(size) else { return Ok(None) };
        let (context, key) = (seal::context(block), LeaseKey::generate());
        let mut sealed = vec![0; HEADER_LEN + size];
        let sealing = Sealer::new(&key, &context).seal(0, &vec![0xA5; size], &mut sealed);
        sealing.map_err(|error| BenchError::Sealing(error.to_string()))?;
        Ok(Some(Self { opener: Opener::new(&key, &context), sealed, opened: vec![0; size] }))
    }

    /// One turn.
    pub(crate) fn turn(&mut self, pace: &Pace) -> Result<Rate, BenchError> {
        let (start, mut operations) = (Instant::now(), 0);
        loop {
            let opened = self.opener.open(0, black_box(&self.sealed), &mut self.opened);
            opened.map_err(|error| BenchError::Sealing(error.to_string()))?;
            black_box(&mut self.opened);
            operations += 1;
            if let Some(rate) = pace.over(start.elapsed(), operations) {
                return Ok(rate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_known_by_its_offset() {
        let mut place = vec![0xA5; 20];
        mark(&mut place, 0x1234);
        assert!(is_marked(&place, 0x1234) && !is_marked(&place, 0x1235));
        let mut places = Places { first: 2, count: 2, size: 10, next: 0 };
        assert_eq!([places.next(), places.next(), places.next()], [20, 30, 20]);
    }

    #[test]
    fn only_a_block_of_its_own_size_has_a_stride() {
        let strides = [256, 512, 4096, 5000, 1 << 20, 2 << 20].map(Deep::stride);
        assert_eq!(strides, [None, Some(544), Some(4128), None, Some((1 << 20) + 32), None]);
    }
}
