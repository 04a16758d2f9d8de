//! One way between two hosts of the simulated network: how fast it is, how much it holds, and what befalls datagrams on
//! it. Everything that happens follows from its seed.

use std::ops::Range;

use super::port_sim::{Datagram, Random};

/// What befalls single datagrams: shares in millionths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Overtaken by others.
    pub(super) late: u64,
    pub(super) damaged: u64,
}

/// Nanoseconds from one host to another, where a test asks for nothing else.
pub(super) const FLIGHT: u64 = 10_000;

/// Nanoseconds under way, the wait for others left out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Latency {
    Constant(u64),
    /// Evenly from the first to the second.
    Jitter(u64, u64),
    /// At least this; twice as much is half as likely, up to a thousand times as much.
    HeavyTail(u64),
}

/// Loss in bursts: with so many millionths of all datagrams one begins, and everything is lost for at most that many
/// nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bursts {
    pub(super) begin: u64,
    pub(super) longest: u64,
}

/// A bottleneck. What finds its queue full is lost, as in a switch or in a socket's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bottleneck {
    pub(super) bytes_per_second: u64,
    pub(super) queue: u64,
}

/// Of UDP and IPv4: they take room as well.
const HEADERS: u64 = 28;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) faults: Faults,
    pub(super) latency: Latency,
    pub(super) bursts: Option<Bursts>,
    pub(super) bottleneck: Option<Bottleneck>,
    /// Nothing gets across at these times.
    pub(super) dark: Range<u64>,
    random: Random,
    /// The end of the last burst.
    burst_end: u64,
    /// When the bottleneck has passed on all that it has.
    idle_at: u64,
    /// Lost at the full queue.
    pub(super) overflowed: u64,
    /// Passed on by the bottleneck.
    pub(super) carried: u64,
}

/// A datagram's end on the link.
pub(super) enum Fate {
    Lost(&'static str),
    /// One or two copies, each at its time.
    Arrives(Vec<(u64, Datagram)>),
}

impl Link {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            faults,
            latency: Latency::Constant(FLIGHT),
            bursts: None,
            bottleneck: None,
            dark: 0..0,
            random: Random(seed),
            burst_end: 0,
            idle_at: 0,
            overflowed: 0,
            carried: 0,
        }
    }

    /// Sends a datagram off at `now`.
    pub(super) fn carry(&mut self, now: u64, mut datagram: Datagram) -> Fate {
        if self.dark.contains(&now) {
            return Fate::Lost("dark");
        }
        let mut leaves = now;
        if let Some(Bottleneck { bytes_per_second, queue }) = self.bottleneck {
            let time = |bytes: u64| bytes * 1_000_000_000 / bytes_per_second;
            let len = datagram.bytes.len() as u64 + HEADERS;
            let begins = self.idle_at.max(now);
            if begins - now + time(len) > time(queue) {
                self.overflowed += 1;
                return Fate::Lost("queue full");
            }
            self.idle_at = begins + time(len);
            leaves = self.idle_at;
        }
        self.carried += 1;
        if let Some(Bursts { begin, longest }) = self.bursts
            && self.random.millionths(begin)
        {
            self.burst_end = self.burst_end.max(leaves + self.random.below(longest) + 1);
        }
        if leaves < self.burst_end {
            return Fate::Lost("burst");
        }
        if self.random.millionths(self.faults.lost) {
            return Fate::Lost("lost");
        }
        let mut copies = Vec::with_capacity(1);
        if self.random.millionths(self.faults.doubled) {
            copies.push((leaves + self.latency() + self.random.below(30 * FLIGHT), datagram.clone()));
        }
        if self.random.millionths(self.faults.damaged) {
            self.damage(&mut datagram);
        }
        let late = if self.random.millionths(self.faults.late) { self.random.below(40 * FLIGHT) } else { 0 };
        copies.push((leaves + self.latency() + late, datagram));
        Fate::Arrives(copies)
    }

    fn latency(&mut self) -> u64 {
        match self.latency {
            Latency::Constant(time) => time,
            Latency::Jitter(least, most) => least + self.random.below(most - least + 1),
            Latency::HeavyTail(least) => least * 1000 / (1 + self.random.below(1000)),
        }
    }

    /// One to three bits, four bytes in a row, or the end: nothing that its CRC could overlook.
    fn damage(&mut self, datagram: &mut Datagram) {
        let bytes = &mut datagram.bytes;
        let (len, original) = (bytes.len() as u64, bytes.clone());
        match self.random.below(8) {
            0 => bytes.truncate(self.random.below(len) as usize),
            1 => {
                let start = self.random.below(len) as usize;
                let noise = self.random.next().to_le_bytes();
                bytes[start..].iter_mut().zip(&noise[..4]).for_each(|(byte, noise)| *byte ^= noise);
            }
            _ => {
                for _ in 0..1 + self.random.below(3) {
                    let bit = self.random.below(len * 8) as usize;
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
        // The fifth byte is reserved: no one reads it, and no CRC covers it.
        let covered =
            |bytes: &[u8]| bytes.iter().enumerate().filter(|(at, _)| *at != 4).map(|(_, byte)| *byte).collect();
        let (before, after): (Vec<u8>, Vec<u8>) = (covered(&original), covered(bytes));
        datagram.damaged = before != after;
    }
}
