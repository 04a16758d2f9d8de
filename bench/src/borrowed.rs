//! A lease that sealed reads and writes of several sizes are measured on, one after the other and many at once.

use std::time::{Duration, Instant};

use overbank::{AttachOptions, Client, Lease, LeaseRequest};
use overbank_fabric::block::HEADER_LEN;
use overbank_fabric::units::Size;
use overbank_verbs::Op;

use crate::cpus::Cpus;
use crate::ends::{Ends, SPIN};
use crate::error::BenchError;
use crate::figures::{Plan, Subject, Times};
use crate::rates::{Clock, Pace, Rate};
use crate::stack::{POOL, Places, Setup, Stack};

/// Least bytes that operations go round in.
const SPAN: usize = 16 << 20;
/// Bytes written at a time before anything is measured.
const PIECE: usize = 1 << 20;
/// Nobody measures for longer.
const TTL: Duration = Duration::from_secs(6 * 3600);
/// For the receipt; it is not needed.
const PATIENCE: Duration = Duration::from_secs(1);

/// An attached lease of an Overbank that was started for it.
pub(crate) struct Borrowed {
    lease: Lease,
    client: Client,
    /// What has been written.
    contents: Vec<u8>,
    /// Each turn of writes has its own bytes.
    turns: u8,
    // After the session: it ends the daemons.
    _stack: Stack,
}

impl Borrowed {
    /// Starts an auth daemon, and a provider on the answering end's device and processor, and leases room for operations
    /// of `most` bytes.
    pub(crate) fn start(ends: &Ends, most: usize, cpus: Cpus) -> Result<Self, BenchError> {
        let span = most.max(SPAN).next_multiple_of(PIECE);
        // A lease is longer than its contents by the heads of its blocks.
        let pool = Size((span as u64 / 32 * 33 + (16 << 20)).max(POOL.0));
        let mut setup = Setup::new(ends.peer_device(), pool);
        setup.places = Some(Places { home: cpus.asker, authd: cpus.asker, provider: cpus.answerer });
        let stack = Stack::set_up(&setup)?;
        let client = Client::connect(&stack.config)?;
        let mut lease = client.lease(&LeaseRequest::new(span as u64, TTL))?;
        lease.attach(&AttachOptions { device: ends.device.clone(), spin: SPIN, ..AttachOptions::default() })?;
        let mut borrowed = Self { lease, client, contents: pattern(0, span), turns: 0, _stack: stack };
        // A block that was never written is not opened: reading it would cost too little.
        for (piece, at) in borrowed.contents.chunks(PIECE).zip((0..).step_by(PIECE)) {
            borrowed.lease.write(at, piece)?;
        }
        Ok(borrowed)
    }

    /// Bytes in the lender's memory that an operation of `size` bytes moves.
    pub(crate) fn wire_bytes(&self, size: usize) -> usize {
        let block = self.lease.block() as usize;
        size.div_ceil(block) * (block + HEADER_LEN)
    }

    /// One turn of single operations.
    pub(crate) fn times(&mut self, op: Op, size: usize, plan: &Plan) -> Result<Times, BenchError> {
        self.turn(op, size, |once| {
            let mut turn = Subject::timed("", once).turn;
            turn(plan)
        })
    }

    /// One turn of many at once. Writes the library does one call after the other, pipelining the blocks of each, so there
    /// it is one call of all of them.
    pub(crate) fn rate(&mut self, op: Op, size: usize, depth: u32, pace: &Pace) -> Result<Rate, BenchError> {
        match op {
            Op::Read => self.reads(size, depth as usize, pace),
            Op::Write => self.turn(op, size * depth as usize, |once| paced(u64::from(depth), pace, once)),
        }
    }

    /// Bytes in the lender's memory that each of so many operations at once moves.
    pub(crate) fn wire_bytes_of(&self, op: Op, size: usize, depth: u32) -> usize {
        match op {
            Op::Read => self.wire_bytes(size),
            Op::Write => self.wire_bytes(size * depth as usize) / depth as usize,
        }
    }

    /// As many reads under way as there are buffers; each is looked at, and the last of them all over.
    fn reads(&mut self, size: usize, depth: usize, pace: &Pace) -> Result<Rate, BenchError> {
        const LOOKED_AT: usize = 8;
        let Self { lease, contents, .. } = self;
        let step = size.next_multiple_of(lease.block() as usize);
        let place = |number: usize| number % (contents.len() / step) * step;
        let holds = |done: &[u8], number: usize, most: usize| {
            let len = done.len().min(most);
            done[..len] == contents[place(number)..place(number) + len]
        };
        let mut buffers = vec![vec![0; size]; depth];
        let mut free: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut buffer[..]).collect();
        let mut lanes = lease.split()?;
        let lane = lanes.first_mut().ok_or_else(|| BenchError::Usage("a lease has no lane".to_owned()))?;
        let mut reads = lane.reads();
        let (mut asked, mut done) = (0, 0);
        let (mut clock, mut timed) = (Clock::start(pace), None);
        loop {
            let read = match free.pop().filter(|_| timed.is_none()) {
                Some(buffer) => {
                    asked += 1;
                    reads.push(place(asked - 1) as u64, buffer)?
                }
                None => reads.wait()?,
            };
            let Some(read) = read else {
                match timed {
                    Some(rate) => return Ok(rate),
                    None => continue,
                }
            };
            if !holds(read, done, if timed.is_none() { LOOKED_AT } else { size }) {
                return Err(wrong(Op::Read));
            }
            done += 1;
            if timed.is_some() {
                continue;
            }
            free.push(read);
            timed = clock.look(done as u64);
        }
    }

    /// One turn, round and round, and a check of what was written or read last.
    fn turn<T>(
        &mut self,
        op: Op,
        size: usize,
        take: impl FnOnce(&mut dyn FnMut() -> Result<(), BenchError>) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let Self { lease, contents, turns, .. } = self;
        // Each begins with a block.
        let step = size.next_multiple_of(lease.block() as usize);
        let places = contents.len() / step;
        *turns = turns.wrapping_add(1);
        let mut buffer = match op {
            Op::Read => vec![0; size],
            Op::Write => pattern(*turns, size),
        };
        let (mut at, mut done) = (0, 0_usize);
        let taken = take(&mut || {
            at = done % places * step;
            done += 1;
            match op {
                Op::Read => Ok(lease.read(at as u64, &mut buffer)?),
                Op::Write => Ok(lease.write(at as u64, &buffer)?),
            }
        })?;
        if op == Op::Write {
            contents.chunks_exact_mut(step).take(done).for_each(|place| place[..size].copy_from_slice(&buffer));
            buffer.fill(0);
            lease.read(at as u64, &mut buffer)?;
        }
        if buffer == contents[at..at + size] {
            return Ok(taken);
        }
        Err(wrong(op))
    }

    /// Gives it back.
    pub(crate) fn finish(self) -> Result<(), BenchError> {
        let id = self.lease.id();
        self.lease.close()?;
        self.client.release(id, PATIENCE)?;
        Ok(())
    }
}

fn wrong(op: Op) -> BenchError {
    BenchError::Child { program: "the library".to_owned(), what: format!("has other bytes than its {op:?}s had") }
}

/// Bytes that differ from block to block and from turn to turn.
fn pattern(turn: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8 ^ at >> 12 ^ at >> 20) as u8 ^ turn).collect()
}

/// Goes on and on, `each` operations at a time: untimed, then timed.
fn paced(each: u64, pace: &Pace, once: &mut dyn FnMut() -> Result<(), BenchError>) -> Result<Rate, BenchError> {
    let begin = Instant::now();
    while begin.elapsed() < pace.warmup() {
        once()?;
    }
    let (from, mut operations) = (Instant::now(), 0);
    loop {
        once()?;
        operations += each;
        if let Some(rate) = pace.over(from.elapsed(), operations) {
            return Ok(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_many_counts_as_many() {
        let pace = Pace { rounds: 1, seconds: 1.0, count: Some(10), warmup_seconds: 0.0 };
        let mut calls = 0;
        let rate = paced(4, &pace, &mut || {
            calls += 1;
            Ok(())
        });
        assert_eq!((rate.expect("nothing fails").operations, calls), (12, 3));
    }
}
