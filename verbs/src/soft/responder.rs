//! The responder of a reliable connection: carries out a peer's READs and WRITEs, in order, and answers.

use std::collections::VecDeque;

use super::connection::{Connection, Data, Extension};
use super::counters::Dropped;
use super::handles::MrHandle;
use super::out::Out;
use super::psn::{Psn, Seq};
use super::regions::Regions;
use super::wire::{Aeth, Body, Bth, Opcode, Reth, Syndrome};
use crate::Access;

/// The longest message of the InfiniBand specification.
const MAX_MESSAGE: u32 = 1 << 31;

/// Answers one peer.
pub(super) struct Responder {
    /// The next request.
    expected: Seq,
    /// Messages completed.
    msn: u32,
    /// A WRITE whose last packet has not come.
    write: Option<Inbound>,
    /// READs to answer, in the order of their packets, which do not overlap.
    reads: VecDeque<Outbound>,
    /// The last READs that were taken: the only ones that may be asked for again.
    served: VecDeque<Served>,
    /// Behind the last READ: everything from here on is WRITEs.
    read_end: Option<Seq>,
    /// To acknowledge, once the READs before it are answered.
    ack: Option<Answer>,
    /// To refuse, once the READs before it are answered.
    nak: Option<Answer>,
    /// The gap before `expected` was reported.
    gap_reported: bool,
}

/// The rest of a WRITE.
struct Inbound {
    region: MrHandle,
    offset: usize,
    left: usize,
}

/// The rest of a READ.
struct Outbound {
    first: Seq,
    /// The next packet to send.
    next: Seq,
    end: Seq,
    msn: u32,
    region: MrHandle,
    offset: usize,
    len: usize,
    /// Asked for again.
    repeated: bool,
}

/// What a READ asked for.
struct Served {
    first: Seq,
    end: Seq,
    region: MrHandle,
    address: u64,
    len: u32,
}

struct Answer {
    at: Seq,
    syndrome: Syndrome,
    msn: u32,
}

/// What came of a responder's turn to send.
pub(super) enum Turn {
    /// Nothing is to be sent.
    Idle,
    /// A packet was appended; it may have been sent before.
    Sent { again: bool },
    /// The peer's last packet was appended: a READ has lost its region.
    Refused,
    /// The same, but the peer must not be told.
    Silenced,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Served,
    /// Refused for good: the queue pair goes to ERROR, and the refusal is the last that the peer hears.
    Refused,
}

impl Responder {
    pub(super) fn new(psn: Psn) -> Self {
        Self {
            expected: Seq::start(psn),
            msn: 0,
            write: None,
            reads: VecDeque::new(),
            served: VecDeque::new(),
            read_end: None,
            ack: None,
            nak: None,
            gap_reported: false,
        }
    }

    /// Takes a request.
    pub(super) fn on_request(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        bth: &Bth,
        body: &Body<'_>,
    ) -> Result<Verdict, Dropped> {
        let at = self.expected.nearest(bth.psn);
        if at > self.expected {
            if !self.gap_reported {
                self.gap_reported = true;
                self.nak = Some(Answer { at: self.expected, syndrome: Syndrome::SEQUENCE, msn: self.msn });
                // rxe gives up after a few reports, unless an acknowledgement comes in between.
                let before = self.expected.previous();
                if !connection.is_soft() && self.read_end.is_none_or(|end| end <= before) {
                    self.acknowledge(before);
                }
            }
            return Err(Dropped::OutOfSequence);
        }
        let before = self.expected;
        let outcome = if at < before {
            self.repeat(connection, regions, at, bth, body)?
        } else {
            self.gap_reported = false;
            self.nak = None;
            self.carry_out(connection, regions, bth, body)
        };
        Ok(match outcome {
            Ok(()) => Verdict::Served,
            // As in `next_packet`: what is asked for again may be the rest of a READ.
            Err(_) if at < before && !connection.is_soft() => {
                self.silence();
                Verdict::Refused
            }
            Err(syndrome) => {
                self.refuse(at, syndrome);
                Verdict::Refused
            }
        })
    }

    /// A request that was taken before. A WRITE is only acknowledged: what it wrote may have been overwritten since. And
    /// no READ behind it is: its answer may be lost, and rxe takes an acknowledgement in its place, without the data.
    fn repeat(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        at: Seq,
        bth: &Bth,
        body: &Body<'_>,
    ) -> Result<Result<(), Syndrome>, Dropped> {
        let Some(reth) = body.reth.filter(|_| bth.opcode == Opcode::READ_REQUEST) else {
            if self.served.iter().any(|read| read.first <= at && at < read.end) {
                return Err(Dropped::DuplicateRead);
            }
            let is_before_read = self.read_end.is_some_and(|end| at < end);
            self.acknowledge(if is_before_read { at } else { self.expected.previous() });
            return Ok(Ok(()));
        };
        // A stranger's guess would be refused otherwise, and end the connection.
        if !self.served.iter().any(|read| read.holds(connection, at, reth)) {
            return Err(Dropped::DuplicateRead);
        }
        let end = at.plus(connection.packets(reth.len as usize));
        // What is still to be sent comes anyway. What was sent in part is sent again from here, in place of the rest.
        if self.reads.iter().any(|read| read.next < at && at < read.end || read.next < end && end < read.end) {
            return Err(Dropped::DuplicateRead);
        }
        let read = match self.outbound(connection, regions, at, reth, true) {
            Ok(read) => read,
            Err(syndrome) => return Ok(Err(syndrome)),
        };
        let apart = |read: &Outbound| read.end <= at || end <= read.next;
        if self.reads.iter().filter(|read| read.repeated && apart(read)).count() >= connection.reads {
            return Err(Dropped::DuplicateRead);
        }
        self.reads.retain(apart);
        let place = self.reads.partition_point(|read| read.next < at);
        self.reads.insert(place, read);
        Ok(Ok(()))
    }

    /// The next request.
    fn carry_out(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        bth: &Bth,
        body: &Body<'_>,
    ) -> Result<(), Syndrome> {
        let begins = match bth.opcode {
            Opcode::WRITE_FIRST | Opcode::WRITE_ONLY | Opcode::READ_REQUEST => true,
            Opcode::WRITE_MIDDLE | Opcode::WRITE_LAST => false,
            Opcode::WRITE_ONLY_IMMEDIATE if cfg!(feature = "danger-any-request") => true,
            // SENDs, atomics and immediate data: nobody was granted them.
            _ => return Err(Syndrome::INVALID_REQUEST),
        };
        if begins && self.write.is_some() {
            return Err(Syndrome::INVALID_REQUEST);
        }
        match (bth.opcode, body.reth) {
            (Opcode::READ_REQUEST, Some(reth)) => self.begin_read(connection, regions, reth),
            (_, Some(reth)) => self.begin_write(connection, regions, bth, reth, body.data),
            _ => self.continue_write(connection, regions, bth, body.data),
        }
    }

    fn begin_read(&mut self, connection: &Connection, regions: &Regions, reth: Reth) -> Result<(), Syndrome> {
        let under_way = self.reads.iter().filter(|read| !read.repeated).count();
        if under_way >= connection.reads {
            return Err(Syndrome::INVALID_REQUEST);
        }
        let mut read = self.outbound(connection, regions, self.expected, reth, false)?;
        self.msn = self.msn.wrapping_add(1);
        read.msn = self.msn;
        self.expected = read.end;
        self.read_end = Some(read.end);
        if self.served.len() >= connection.reads {
            self.served.pop_front();
        }
        let Reth { address, len, .. } = reth;
        self.served.push_back(Served { first: read.first, end: read.end, region: read.region, address, len });
        self.reads.push_back(read);
        Ok(())
    }

    fn outbound(
        &self,
        connection: &Connection,
        regions: &Regions,
        first: Seq,
        reth: Reth,
        repeated: bool,
    ) -> Result<Outbound, Syndrome> {
        let (region, offset) = access(connection, regions, reth, Access::REMOTE_READ)?;
        let len = reth.len as usize;
        let end = first.plus(connection.packets(len));
        Ok(Outbound { first, next: first, end, msn: self.msn, region, offset, len, repeated })
    }

    fn begin_write(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        bth: &Bth,
        reth: Reth,
        data: &[u8],
    ) -> Result<(), Syndrome> {
        let len = reth.len as usize;
        let fits = match bth.opcode {
            Opcode::WRITE_FIRST => data.len() == connection.mtu && len > connection.mtu,
            _ => data.len() == len && len <= connection.mtu,
        };
        if !fits {
            return Err(Syndrome::INVALID_REQUEST);
        }
        let (region, offset) = access(connection, regions, reth, Access::REMOTE_WRITE)?;
        self.place(regions, Inbound { region, offset, left: len }, bth, data)
    }

    fn continue_write(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        bth: &Bth,
        data: &[u8],
    ) -> Result<(), Syndrome> {
        let write = self.write.take().ok_or(Syndrome::INVALID_REQUEST)?;
        let fits = match bth.opcode {
            Opcode::WRITE_MIDDLE => data.len() == connection.mtu && write.left > connection.mtu,
            _ => data.len() == write.left && write.left <= connection.mtu,
        };
        if !fits {
            return Err(Syndrome::INVALID_REQUEST);
        }
        self.place(regions, write, bth, data)
    }

    /// Writes one packet's data, if the region is still there.
    fn place(&mut self, regions: &Regions, write: Inbound, bth: &Bth, data: &[u8]) -> Result<(), Syndrome> {
        let region = regions.get(write.region).ok_or(Syndrome::REMOTE_ACCESS)?;
        if region.memory().copy_in(write.offset, data).is_err() {
            return Err(Syndrome::REMOTE_OPERATION);
        }
        let left = write.left - data.len();
        if left > 0 {
            self.write = Some(Inbound { offset: write.offset + data.len(), left, ..write });
        } else {
            self.msn = self.msn.wrapping_add(1);
        }
        let at = self.expected;
        self.expected = at.plus(1);
        if bth.ack_request {
            self.acknowledge(at);
        }
        Ok(())
    }

    /// Everything up to here: one acknowledgement answers for all that came before it is sent.
    fn acknowledge(&mut self, at: Seq) {
        if self.ack.as_ref().is_none_or(|ack| ack.at < at) {
            self.ack = Some(Answer { at, syndrome: Syndrome::ACK, msn: self.msn });
        }
    }

    /// READs before `at` are still answered, then the refusal is sent, then nothing.
    fn refuse(&mut self, at: Seq, syndrome: Syndrome) {
        self.write = None;
        self.ack = None;
        self.reads.retain(|read| read.end <= at);
        self.nak = Some(Answer { at, syndrome, msn: self.msn });
    }

    /// Forgets every answer that is still to be sent.
    pub(super) fn silence(&mut self) {
        self.write = None;
        self.reads.clear();
        self.ack = None;
        self.nak = None;
    }

    /// Appends the next packet to `out`.
    pub(super) fn next_packet(&mut self, connection: &Connection, regions: &Regions, out: &mut impl Out) -> Turn {
        let mut turn = Turn::Sent { again: false };
        if let Some(read) = self.reads.front_mut() {
            // A response acknowledges what came before it.
            if self.ack.as_ref().is_some_and(|ack| ack.at < read.next) {
                self.ack = None;
            }
            let again = read.repeated;
            match read.send(connection, regions, out) {
                Ok(()) => {
                    if read.next == read.end {
                        self.reads.pop_front();
                    }
                    return Turn::Sent { again };
                }
                // rxe takes a refusal in the middle of a READ for the rest of it, and the READ for a success.
                Err(_) if !connection.is_soft() && (again || read.next > read.first) => {
                    self.silence();
                    return Turn::Silenced;
                }
                Err(syndrome) => {
                    let at = read.next;
                    self.refuse(at, syndrome);
                    turn = Turn::Refused;
                }
            }
        }
        // A refusal is the last word. The report of a gap says what was received too, but not to rxe.
        let is_refused = |nak: &Answer| nak.syndrome != Syndrome::SEQUENCE;
        if self.nak.as_ref().is_some_and(|nak| connection.is_soft() || is_refused(nak)) {
            self.ack = None;
        }
        let Some(answer) = self.ack.take().or_else(|| self.nak.take()) else { return Turn::Idle };
        let aeth = Extension::Aeth(Aeth { syndrome: answer.syndrome, msn: answer.msn });
        match connection.emit(out, (Opcode::ACKNOWLEDGE, answer.at.psn(), false), &aeth, None) {
            Ok(()) => turn,
            Err(_) => Turn::Idle,
        }
    }
}

impl Served {
    /// Whether a READ from `at` on is this one or a part of it.
    fn holds(&self, connection: &Connection, at: Seq, reth: Reth) -> bool {
        let before = at.since(self.first) * connection.mtu as u64;
        self.first <= at
            && at < self.end
            && reth.rkey == self.region.rkey
            && reth.address == self.address.wrapping_add(before)
            && before + u64::from(reth.len) <= u64::from(self.len)
    }
}

impl Outbound {
    fn send(&mut self, connection: &Connection, regions: &Regions, out: &mut impl Out) -> Result<(), Syndrome> {
        let memory = regions.get(self.region).ok_or(Syndrome::REMOTE_ACCESS)?.memory();
        let done = self.next.since(self.first) as usize * connection.mtu;
        let len = connection.mtu.min(self.len - done);
        let data = Data { memory, offset: self.offset + done, len };
        let opcode = match (self.next == self.first, self.next.plus(1) == self.end) {
            (true, true) => Opcode::READ_RESPONSE_ONLY,
            (true, false) => Opcode::READ_RESPONSE_FIRST,
            (false, true) => Opcode::READ_RESPONSE_LAST,
            (false, false) => Opcode::READ_RESPONSE_MIDDLE,
        };
        let extension = match opcode {
            Opcode::READ_RESPONSE_MIDDLE => Extension::None,
            _ => Extension::Aeth(Aeth { syndrome: Syndrome::ACK, msn: self.msn }),
        };
        let header = (opcode, self.next.psn(), false);
        connection.emit(out, header, &extension, Some(&data)).map_err(|_| Syndrome::REMOTE_OPERATION)?;
        self.next = self.next.plus(1);
        Ok(())
    }
}

/// The queue pair's rights first, as the kernel's rxe has it, then the region's.
fn access(
    connection: &Connection,
    regions: &Regions,
    reth: Reth,
    needs: Access,
) -> Result<(MrHandle, usize), Syndrome> {
    if !connection.rights.contains(needs) || reth.len > MAX_MESSAGE {
        return Err(Syndrome::INVALID_REQUEST);
    }
    regions.remote(connection.pd, reth.rkey, reth.address, reth.len, needs).ok_or(Syndrome::REMOTE_ACCESS)
}
