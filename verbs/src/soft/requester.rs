//! The requester of a reliable connection: sends READs and WRITEs, takes the answers, and sends again what got none.

use std::collections::VecDeque;

use super::connection::{Connection, Data, Extension};
use super::counters::Dropped;
use super::handles::MrHandle;
use super::psn::{Psn, Seq};
use super::regions::Regions;
use super::timers::Now;
use super::wire::{Body, Bth, Opcode, Reth, Syndrome};
use crate::{Completion, Op, WcStatus};

/// Packets of one READ request. A longer READ is asked for in pieces, so that its answer does not drown our socket.
/// Pieces are counted from the READ's first packet, so that one that is asked for again ends where it ended before.
const READ_PACKETS: u64 = 16;
/// Packets sent, or asked for, and not answered: at the start, at least and at most. Default socket buffers hold some
/// forty packets of 4 KiB.
const WINDOW_START: u64 = 32;
const WINDOW_MIN: u64 = READ_PACKETS;
const WINDOW_MAX: u64 = 64;

/// Asks one peer.
pub(super) struct Requester {
    /// Posted and not completed, in order.
    queue: VecDeque<Work>,
    /// Index of the work that `next` belongs to.
    cursor: usize,
    /// Everything before is answered.
    answered: Seq,
    /// The next packet to send.
    next: Seq,
    /// Everything before was sent at least once.
    sent: Seq,
    /// The first packet of what is posted next.
    posted: Seq,
    /// Ends of the READ requests under way, in order.
    reads: VecDeque<Seq>,
    window: Window,
    /// Packets since one that asked for an acknowledgement.
    unasked: u64,
    /// The answer that was missing when we last went back because of it: once is enough.
    went_back_to: Option<Seq>,
    retries: u8,
    deadline: Option<Now>,
}

/// One request.
pub(super) struct Work {
    pub(super) id: u64,
    pub(super) op: Op,
    pub(super) region: MrHandle,
    /// In the region's memory.
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) remote_address: u64,
    pub(super) rkey: u32,
    first: Seq,
    end: Seq,
}

/// Which request failed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    at: Seq,
    status: WcStatus,
}

/// Why an answer did not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Dropped(Dropped),
    Failed(Failure),
}

/// A packet was appended.
pub(super) struct Sent {
    pub(super) again: bool,
}

impl Requester {
    pub(super) fn new(psn: Psn, send_queue: usize) -> Self {
        let start = Seq::start(psn);
        Self {
            queue: VecDeque::with_capacity(send_queue.min(1024)),
            cursor: 0,
            answered: start,
            next: start,
            sent: start,
            posted: start,
            reads: VecDeque::new(),
            window: Window { size: WINDOW_START, progress: 0 },
            unasked: 0,
            went_back_to: None,
            retries: 0,
            deadline: None,
        }
    }

    /// Requests posted and not completed.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// When [`Self::on_deadline`] is due, if nothing comes before.
    pub(super) fn deadline(&self) -> Option<Now> {
        self.deadline
    }

    pub(super) fn post(&mut self, connection: Option<&Connection>, mut work: Work) {
        work.first = self.posted;
        work.end = self.posted.plus(connection.map_or(1, |connection| connection.packets(work.len)));
        self.posted = work.end;
        self.queue.push_back(work);
    }

    /// The next request that is done.
    pub(super) fn next_done(&mut self, qpn: u32) -> Option<Completion> {
        if self.queue.front()?.end > self.answered {
            return None;
        }
        let work = self.queue.pop_front()?;
        self.cursor = self.cursor.saturating_sub(1);
        Some(work.completion(WcStatus::SUCCESS, qpn))
    }

    /// The next request of a queue pair in ERROR: `failure` is of the one that brought it there.
    pub(super) fn next_flushed(&mut self, failure: Option<Failure>, qpn: u32) -> Option<Completion> {
        self.deadline = None;
        self.cursor = 0;
        let work = self.queue.pop_front()?;
        let status = match failure {
            Some(failure) if work.first <= failure.at && failure.at < work.end => failure.status,
            _ => WcStatus::WR_FLUSH_ERR,
        };
        Some(work.completion(status, qpn))
    }

    /// Takes an answer. [`Self::next_done`] says what is done by it, even where it brings a failure.
    pub(super) fn on_response(
        &mut self,
        now: Now,
        connection: &Connection,
        regions: &Regions,
        bth: &Bth,
        body: &Body<'_>,
    ) -> Result<(), Stop> {
        let at = self.answered.nearest(bth.psn);
        // A NAK of a gap names a packet that need not have been sent again yet, but was sent once.
        if at >= self.sent {
            return Err(Stop::Dropped(Dropped::UnexpectedResponse));
        }
        let before = self.answered;
        let outcome = match (bth.opcode, body.aeth) {
            (Opcode::ACKNOWLEDGE, Some(aeth)) => self.on_acknowledge(at, aeth.syndrome),
            (Opcode::ATOMIC_ACKNOWLEDGE | Opcode::ACKNOWLEDGE, _) => Err(Stop::Dropped(Dropped::UnexpectedResponse)),
            _ => self.on_read_response(connection, regions, at, bth.opcode, body.data),
        };
        if self.answered > before {
            self.progress(now, connection, self.answered.since(before));
        }
        outcome
    }

    fn on_acknowledge(&mut self, at: Seq, syndrome: Syndrome) -> Result<(), Stop> {
        if syndrome.is_ack() {
            if at < self.answered {
                return Err(Stop::Dropped(Dropped::StaleResponse));
            }
            if !self.acknowledge(at.plus(1)) {
                self.go_back_once();
            }
            return Ok(());
        }
        let status = match syndrome {
            Syndrome::SEQUENCE => None,
            Syndrome::INVALID_REQUEST => Some(WcStatus::REM_INV_REQ_ERR),
            Syndrome::REMOTE_ACCESS => Some(WcStatus::REM_ACCESS_ERR),
            Syndrome::REMOTE_OPERATION => Some(WcStatus::REM_OP_ERR),
            // Receiver-not-ready is no answer to READ or WRITE, and the others are no codes.
            _ => return Err(Stop::Dropped(Dropped::UnexpectedResponse)),
        };
        if at < self.answered {
            return Err(Stop::Dropped(Dropped::StaleResponse));
        }
        self.acknowledge(at);
        match status {
            // The responder answers no more: what it left out before stays unanswered, and is flushed.
            Some(status) => Err(Stop::Failed(Failure { at, status })),
            None => {
                self.go_back_once();
                Ok(())
            }
        }
    }

    fn on_read_response(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        at: Seq,
        opcode: Opcode,
        data: &[u8],
    ) -> Result<(), Stop> {
        if at < self.answered {
            return Err(Stop::Dropped(Dropped::StaleResponse));
        }
        let unexpected = Err(Stop::Dropped(Dropped::UnexpectedResponse));
        // It must answer a READ before it may acknowledge anything.
        let Some(index) = self.queue.iter().position(|work| at < work.end) else { return unexpected };
        let work = &self.queue[index];
        if work.op != Op::Read {
            return unexpected;
        }
        let done = at.since(work.first) as usize * connection.mtu;
        let expected = connection.mtu.min(work.len.saturating_sub(done));
        let is_last = matches!(opcode, Opcode::READ_RESPONSE_LAST | Opcode::READ_RESPONSE_ONLY);
        if data.len() != expected || is_last != (at.plus(1) == work.piece_end(at)) {
            return unexpected;
        }
        if !self.acknowledge(at) {
            self.go_back_once();
            return Err(Stop::Dropped(Dropped::OutOfSequence));
        }
        let work = &self.queue[index];
        let place = regions.get(work.region).map(|region| region.memory().copy_in(work.offset + done, data));
        if !matches!(place, Some(Ok(()))) {
            return Err(Stop::Failed(Failure { at, status: WcStatus::LOC_PROT_ERR }));
        }
        self.answered = at.plus(1);
        Ok(())
    }

    /// Everything before `end` was received. False: an answer to a READ is missing on the way there.
    fn acknowledge(&mut self, end: Seq) -> bool {
        for work in &self.queue {
            if work.end <= self.answered {
                continue;
            }
            if end <= self.answered {
                break;
            }
            if work.op == Op::Read {
                return false;
            }
            self.answered = work.end.min(end);
        }
        true
    }

    fn progress(&mut self, now: Now, connection: &Connection, packets: u64) {
        self.retries = 0;
        self.window.grow(packets);
        while self.reads.front().is_some_and(|end| *end <= self.answered) {
            self.reads.pop_front();
        }
        // Late answers overtake what was to be sent again.
        self.next = self.next.max(self.answered);
        self.deadline = (self.answered < self.sent).then(|| now.after(connection.retry.timeout));
    }

    fn go_back_once(&mut self) {
        if self.went_back_to != Some(self.answered) {
            self.went_back_to = Some(self.answered);
            self.go_back();
        }
    }

    /// Sends again from the first packet that has no answer.
    fn go_back(&mut self) {
        self.next = self.answered;
        self.cursor = 0;
        self.reads.clear();
        self.unasked = 0;
        self.window.shrink();
    }

    /// No answer came in time.
    pub(super) fn on_deadline(&mut self, now: Now, connection: &Connection) -> Result<(), Failure> {
        if self.retries >= connection.retry.count {
            return Err(Failure { at: self.answered, status: WcStatus::RETRY_EXC_ERR });
        }
        self.retries += 1;
        self.went_back_to = None;
        self.go_back();
        self.deadline = Some(now.after(connection.retry.timeout));
        Ok(())
    }

    /// Appends the next packet to `out`, if there is one and the window allows it.
    pub(super) fn next_packet(
        &mut self,
        now: Now,
        connection: &Connection,
        regions: &Regions,
        out: &mut Vec<u8>,
    ) -> Option<Result<Sent, Failure>> {
        while self.queue.get(self.cursor)?.end <= self.next {
            self.cursor += 1;
        }
        let work = self.queue.get(self.cursor)?;
        let at = self.next;
        let under_way = at.since(self.answered);
        let end = match work.op {
            Op::Read => {
                let end = work.piece_end(at);
                let fits = under_way == 0 || under_way + end.since(at) <= self.window.size;
                if self.reads.len() >= connection.reads || !fits {
                    return None;
                }
                end
            }
            Op::Write if under_way >= self.window.size => return None,
            Op::Write => at.plus(1),
        };
        // An acknowledgement is asked for at each message's end, and four times in a window: so none closes unasked.
        let asks = work.op == Op::Read || end == work.end || self.unasked + 1 >= self.window.size / 4;
        if !work.send(connection, regions, at, end, asks, out) {
            return Some(Err(Failure { at, status: WcStatus::LOC_PROT_ERR }));
        }
        if work.op == Op::Read {
            self.reads.push_back(end);
        }
        self.unasked = if asks { 0 } else { self.unasked + 1 };
        let again = at < self.sent;
        self.next = end;
        self.sent = self.sent.max(end);
        if self.deadline.is_none() {
            self.deadline = Some(now.after(connection.retry.timeout));
        }
        Some(Ok(Sent { again }))
    }
}

impl Work {
    /// A request, before it has its place in the queue.
    pub(super) fn new(id: u64, op: Op, region: MrHandle, (offset, len): (usize, usize), remote: (u64, u32)) -> Self {
        let nowhere = Seq::start(Psn::new(0));
        let (remote_address, rkey) = remote;
        Self { id, op, region, offset, len, remote_address, rkey, first: nowhere, end: nowhere }
    }

    fn completion(&self, status: WcStatus, qpn: u32) -> Completion {
        Completion { id: self.id, status, op: self.op, qpn }
    }

    /// The end of the READ request that asks for the packet.
    fn piece_end(&self, at: Seq) -> Seq {
        let piece = at.since(self.first) / READ_PACKETS + 1;
        self.end.min(self.first.plus(piece * READ_PACKETS))
    }

    /// Appends the packet: one of a WRITE, or the request for the packets from `at` to `end` of a READ.
    fn send(
        &self,
        connection: &Connection,
        regions: &Regions,
        at: Seq,
        end: Seq,
        asks: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(region) = regions.get(self.region) else { return false };
        let done = at.since(self.first) as usize * connection.mtu;
        let left = self.len - done;
        let address = self.remote_address.wrapping_add(done as u64);
        let (opcode, len) = match (self.op, at == self.first, end == self.end) {
            (Op::Read, ..) => (Opcode::READ_REQUEST, left.min(end.since(at) as usize * connection.mtu)),
            (Op::Write, true, true) => (Opcode::WRITE_ONLY, left),
            (Op::Write, true, false) => (Opcode::WRITE_FIRST, connection.mtu),
            (Op::Write, false, false) => (Opcode::WRITE_MIDDLE, connection.mtu),
            (Op::Write, false, true) => (Opcode::WRITE_LAST, left),
        };
        let extension = match opcode {
            Opcode::READ_REQUEST => Extension::Reth(Reth { address, rkey: self.rkey, len: len as u32 }),
            Opcode::WRITE_ONLY | Opcode::WRITE_FIRST => {
                Extension::Reth(Reth { address, rkey: self.rkey, len: left as u32 })
            }
            _ => Extension::None,
        };
        let data = Data { memory: region.memory(), offset: self.offset + done, len };
        let data = (self.op == Op::Write).then_some(&data);
        connection.emit(out, (opcode, at.psn(), asks), &extension, data).is_ok()
    }
}

/// How many packets may be under way: halved by a loss, one more for each window that was answered.
struct Window {
    size: u64,
    progress: u64,
}

impl Window {
    fn grow(&mut self, packets: u64) {
        self.progress += packets;
        if self.progress >= self.size {
            self.progress = 0;
            self.size = (self.size + 1).min(WINDOW_MAX);
        }
    }

    fn shrink(&mut self) {
        self.progress = 0;
        self.size = (self.size / 2).max(WINDOW_MIN);
    }
}
