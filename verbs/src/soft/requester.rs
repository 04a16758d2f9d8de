//! The requester of a reliable connection: sends READs and WRITEs, takes the answers, and sends again what got none.

use std::collections::VecDeque;

use super::connection::{Connection, Data, Extension};
use super::counters::Dropped;
use super::flight::{Fit, Flight, Loss};
use super::handles::MrHandle;
use super::out::Out;
use super::pace::{Pace, WINDOW_MAX};
use super::psn::{Psn, Seq};
use super::regions::Regions;
use super::timers::Now;
use super::wire::{Body, Bth, Opcode, Reth, Syndrome};
use crate::{Completion, Op, WcStatus};

/// Packets of one READ request, at most. A longer READ is asked for in pieces, so that its answer does not drown our
/// socket. Losses leave as many under way, since a lost one costs only itself.
const READ_PACKETS: u64 = 16;
/// Packets that losses leave under way where a WRITE was lost, which costs all behind it.
const WRITE_PACKETS: u64 = 8;
/// From the first packet without an answer to the last that was sent, at most: how far others may run ahead of one that
/// is lost.
const SPAN: u64 = 2 * WINDOW_MAX;
/// A report of the same gap within so many nanoseconds is a doubled one, however quick the peer.
const DOUBLED: u64 = 20_000;

/// Asks one peer.
pub(super) struct Requester {
    /// Posted and not completed, in order.
    queue: VecDeque<Work>,
    flight: Flight,
    /// The first packet of what is posted next.
    posted: Seq,
    /// Ends of the READ requests that are not answered in full, in order. One that is sent again is the peer's old one.
    reads: VecDeque<Seq>,
    pace: Pace,
    /// Packets since one that asked for an acknowledgement.
    unasked: u64,
    /// The gap that was last reported, and when: the report may be doubled.
    gap: Option<(Seq, Now)>,
    /// A packet, sent once, whose answer is timed, and when it was sent.
    timed: Option<(Seq, Now)>,
    silence: Silence,
    /// When the peer last answered something, or something was sent while nothing was under way.
    heard: Now,
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

/// What was done about the peer's silence since it last answered something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    None,
    /// A probe was sent; so many of its requests are still to go, whatever else is under way.
    Probed {
        left: u8,
    },
    /// Everything counts as lost.
    Lost,
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
    pub(super) fn new(psn: Psn) -> Self {
        let start = Seq::start(psn);
        Self {
            queue: VecDeque::new(),
            flight: Flight::new(start),
            posted: start,
            reads: VecDeque::new(),
            pace: Pace::new(),
            unasked: 0,
            gap: None,
            timed: None,
            silence: Silence::None,
            heard: Now::default(),
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

    /// Has packets under way.
    pub(super) fn is_asking(&self) -> bool {
        !self.flight.is_empty()
    }

    pub(super) fn post(&mut self, connection: Option<&Connection>, mut work: Work) {
        work.first = self.posted;
        work.end = self.posted.plus(connection.map_or(1, |connection| connection.packets(work.len)));
        self.posted = work.end;
        self.queue.push_back(work);
    }

    /// The next request that is done.
    pub(super) fn next_done(&mut self, qpn: u32) -> Option<Completion> {
        if self.queue.front()?.end > self.flight.first() {
            return None;
        }
        Some(self.queue.pop_front()?.completion(WcStatus::SUCCESS, qpn))
    }

    /// The next request of a queue pair in ERROR: `failure` is of the one that brought it there.
    pub(super) fn next_flushed(&mut self, failure: Option<Failure>, qpn: u32) -> Option<Completion> {
        self.deadline = None;
        self.reads.clear();
        self.flight.clear();
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
        let at = self.flight.first().nearest(bth.psn);
        // A NAK of a gap names a packet that need not have been sent again yet, but was sent once.
        if at >= self.flight.end() {
            return Err(Stop::Dropped(Dropped::UnexpectedResponse));
        }
        let before = self.flight.answered();
        let outcome = match (bth.opcode, body.aeth) {
            (Opcode::ACKNOWLEDGE, Some(aeth)) => self.on_acknowledge(now, at, aeth.syndrome),
            (Opcode::ATOMIC_ACKNOWLEDGE | Opcode::ACKNOWLEDGE, _) => Err(Stop::Dropped(Dropped::UnexpectedResponse)),
            _ => self.on_read_response(connection, regions, at, bth.opcode, body.data),
        };
        if self.flight.answered() > before {
            self.progress(now, connection, self.flight.answered() - before);
        }
        outcome
    }

    fn on_acknowledge(&mut self, now: Now, at: Seq, syndrome: Syndrome) -> Result<(), Stop> {
        if at < self.flight.first() {
            let known = syndrome.is_ack() || refusal(syndrome).is_some() || syndrome == Syndrome::SEQUENCE;
            return Err(Stop::Dropped(if known { Dropped::StaleResponse } else { Dropped::UnexpectedResponse }));
        }
        if syndrome.is_ack() {
            let loss = self.flight.acknowledge(at);
            self.note(loss, READ_PACKETS);
        } else if syndrome == Syndrome::SEQUENCE {
            let loss = self.flight.carried_out(at);
            self.note(loss, READ_PACKETS);
            self.go_back(now, at);
        } else if let Some(status) = refusal(syndrome) {
            // The responder answers no more: what it left out before stays unanswered, and is flushed.
            self.flight.carried_out(at);
            return Err(Stop::Failed(Failure { at, status }));
        } else {
            // Receiver-not-ready is no answer to READ or WRITE, and the others are no codes.
            return Err(Stop::Dropped(Dropped::UnexpectedResponse));
        }
        Ok(())
    }

    fn on_read_response(
        &mut self,
        connection: &Connection,
        regions: &Regions,
        at: Seq,
        opcode: Opcode,
        data: &[u8],
    ) -> Result<(), Stop> {
        match self.flight.fit(at) {
            Fit::Awaited => {}
            Fit::Taken => return Err(Stop::Dropped(Dropped::StaleResponse)),
            Fit::Unasked => return Err(Stop::Dropped(Dropped::UnexpectedResponse)),
        }
        let Some(work) = self.work_at(at) else { return Err(Stop::Dropped(Dropped::UnexpectedResponse)) };
        let done = at.since(work.first) as usize * connection.mtu;
        let expected = connection.mtu.min(work.len.saturating_sub(done));
        let is_last = matches!(opcode, Opcode::READ_RESPONSE_LAST | Opcode::READ_RESPONSE_ONLY);
        // Any packet but a READ's last may end a request, if only one that was sent again.
        if data.len() != expected || at.plus(1) == work.end && !is_last {
            return Err(Stop::Dropped(Dropped::UnexpectedResponse));
        }
        let place = regions.get(work.region).map(|region| region.memory().copy_in(work.offset + done, data));
        if !matches!(place, Some(Ok(()))) {
            return Err(Stop::Failed(Failure { at, status: WcStatus::LOC_PROT_ERR }));
        }
        let loss = self.flight.answer(at);
        self.note(loss, READ_PACKETS);
        Ok(())
    }

    /// The request that the packet belongs to.
    fn work_at(&self, at: Seq) -> Option<&Work> {
        // Mostly the first.
        let index = match self.queue.front() {
            Some(first) if at < first.end => 0,
            _ => self.queue.partition_point(|work| work.end <= at),
        };
        self.queue.get(index)
    }

    fn note(&mut self, loss: Loss, least: u64) {
        if let Some(sending) = loss {
            self.pace.shrink(sending, self.flight.sendings(), least);
        }
    }

    fn progress(&mut self, now: Now, connection: &Connection, packets: u64) {
        (self.heard, self.silence) = (now, Silence::None);
        if let Some((at, since)) = self.timed
            && self.flight.is_answered(at)
        {
            self.timed = None;
            // Not where nobody looked for it in time.
            if self.deadline.is_some_and(|deadline| now < deadline) {
                self.pace.time(now.since(since));
            }
        }
        self.pace.grow(packets);
        self.flight.advance();
        let first = self.flight.first();
        while self.reads.front().is_some_and(|end| *end <= first) {
            self.reads.pop_front();
        }
        self.deadline = if self.flight.is_empty() { None } else { Some(self.alarm(now, connection)) };
    }

    /// When to send again, or to give up.
    fn alarm(&self, now: Now, connection: &Connection) -> Now {
        let wait = if self.silence == Silence::None { self.pace.probe_wait() } else { self.pace.wait() };
        now.after(wait.min(connection.timeout)).min(self.heard.after(connection.patience))
    }

    /// The peer misses the packet, and so whatever came behind it. A second report within a round trip is a doubled one.
    fn go_back(&mut self, now: Now, at: Seq) {
        if self.gap.is_some_and(|(last, when)| last == at && now < when.after(self.pace.round_trip().max(DOUBLED))) {
            return;
        }
        (self.gap, self.silence) = (Some((at, now)), Silence::None);
        let loss = self.flight.lose_from(at);
        self.note(loss, if self.flight.is_read(at) { READ_PACKETS } else { WRITE_PACKETS });
        self.unasked = 0;
    }

    /// No answer came in time.
    pub(super) fn on_deadline(&mut self, now: Now, connection: &Connection) -> Result<(), Failure> {
        // Time in which nobody looked, as when the process was stopped, is no silence of the peer.
        let unseen = self.deadline.map_or(0, |deadline| now.since(deadline));
        self.heard = self.heard.after(unseen);
        if now >= self.heard.after(connection.patience) {
            return Err(Failure { at: self.flight.first(), status: WcStatus::RETRY_EXC_ERR });
        }
        (self.gap, self.timed, self.unasked) = (None, None, 0);
        if self.silence == Silence::None {
            self.silence = Silence::Probed { left: 2 };
            self.flight.probe();
        } else {
            self.silence = Silence::Lost;
            self.flight.lose_from(self.flight.first());
            self.pace.collapse(self.flight.sendings());
        }
        self.deadline = Some(self.alarm(now, connection));
        Ok(())
    }

    /// Appends the next packet to `out`, if there is one and it may be under way beside the others: `most` of them, or as
    /// many as the window allows.
    pub(super) fn next_packet(
        &mut self,
        now: Now,
        connection: &Connection,
        regions: &Regions,
        most: u64,
        out: &mut impl Out,
    ) -> Option<Result<Sent, Failure>> {
        let room = self.pace.window().min(most.max(1));
        let (at, end, again) = match self.flight.next_lost() {
            Some((at, end)) => (at, end, true),
            None => self.next_new(connection, room)?,
        };
        let work = self.work_at(at)?;
        let (op, work_end) = (work.op, work.end);
        let (count, under_way) = (end.since(at), self.flight.under_way());
        // The room may have shrunk: one packet more may go where the last ones do not ask for an acknowledgement.
        let probes = match self.silence {
            Silence::Probed { left } if again => left,
            _ => 0,
        };
        if under_way > 0 && under_way + count > room && self.unasked == 0 && probes == 0 {
            return None;
        }
        // An acknowledgement is asked for at each message's end, and four times in a window: so none closes unasked.
        let asks = op == Op::Read || end == work_end || under_way + count >= room || self.unasked + 1 >= room / 4;
        if !work.send(connection, regions, at, end, asks, out) {
            return Some(Err(Failure { at, status: WcStatus::LOC_PROT_ERR }));
        }
        if self.flight.is_empty() {
            self.heard = now;
        }
        if probes > 0 {
            self.silence = Silence::Probed { left: probes - 1 };
        }
        if again {
            self.flight.send_again(at, end);
            // An answer would not tell which of the two it is to.
            self.timed = self.timed.filter(|(timed, _)| *timed < at || end <= *timed);
        } else {
            self.flight.send(count, op == Op::Read);
            if op == Op::Read {
                self.reads.push_back(end);
            }
            if self.timed.is_none() && asks {
                // To the first packet of a READ's answer: the rest is as long as the READ.
                self.timed = Some((at, now));
            }
        }
        self.unasked = if asks { 0 } else { self.unasked + 1 };
        if self.deadline.is_none() {
            self.deadline = Some(self.alarm(now, connection));
        }
        Some(Ok(Sent { again }))
    }

    /// The next packets that were never sent: one of a WRITE, or those of a READ that one request asks for.
    fn next_new(&self, connection: &Connection, room: u64) -> Option<(Seq, Seq, bool)> {
        let at = self.flight.end();
        let work = self.work_at(at)?;
        let end = match work.op {
            Op::Write => at.plus(1),
            Op::Read if self.reads.len() >= connection.reads => return None,
            // No less than half of the room, so that a long READ is not asked for packet by packet.
            Op::Read => work.end.min(at.plus(READ_PACKETS.min((room / 2).max(1)))),
        };
        (end.since(self.flight.first()) <= SPAN).then_some((at, end, false))
    }
}

/// What a NAK that ends the connection means for the request that it names.
fn refusal(syndrome: Syndrome) -> Option<WcStatus> {
    Some(match syndrome {
        Syndrome::INVALID_REQUEST => WcStatus::REM_INV_REQ_ERR,
        Syndrome::REMOTE_ACCESS => WcStatus::REM_ACCESS_ERR,
        Syndrome::REMOTE_OPERATION => WcStatus::REM_OP_ERR,
        _ => return None,
    })
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

    /// Appends the packet: one of a WRITE, or the request for the packets from `at` to `end` of a READ.
    fn send(
        &self,
        connection: &Connection,
        regions: &Regions,
        at: Seq,
        end: Seq,
        asks: bool,
        out: &mut impl Out,
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
