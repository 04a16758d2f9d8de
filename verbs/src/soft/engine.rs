//! The soft device without its socket: protection domains, regions, queues, and the packets between them.
//!
//! Datagrams, requests and the time go in; datagrams, completions and the next deadline come out. After any call of
//! [`Engine::receive`], [`Engine::post`], [`Engine::on_timeout`] or one that ends a queue pair there may be something to
//! transmit, and the next deadline may have changed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use super::completions::{self, Completions};
use super::connection::Connection;
use super::counters::{Counts, Dropped};
pub(crate) use super::handles::{CqHandle, EngineError, MrHandle, PdHandle, Qpn};
use super::handles::{HandleMap, next_free, random};
use super::out::Out;
use super::psn::Psn;
use super::regions::Regions;
use super::requester::{Failure, Requester, Stop, Work};
use super::responder::{Responder, Turn, Verdict};
pub(crate) use super::timers::Now;
use super::timers::Timers;
use super::wire::{DEFAULT_PKEY, Packet};
use crate::{Access, Completion, Endpoint, Limits, Memory, Mtu, Op, QpCaps, QpState, Retry};

/// QPNs are drawn at random until one is free: so few that most are.
const MAX_QUEUE_PAIRS: usize = 1 << 20;
const MAX_SEND_QUEUE: usize = 1 << 16;
const MAX_READS: usize = 128;
/// The longest READ or WRITE of the InfiniBand specification.
const MAX_MESSAGE: usize = 1 << 31;
/// Until [`Engine::set_receive_buffer`] says otherwise: what many systems let a socket have.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Datagrams in a row, so that whoever sends them looks at what has arrived, and lets others at the engine: a peer may
/// have asked for gigabytes.
const BURST: usize = 256;

pub(crate) const LIMITS: Limits = Limits {
    queue_pairs: MAX_QUEUE_PAIRS,
    send_queue: MAX_SEND_QUEUE,
    completions: completions::MAX_ENTRIES,
    // What follows is bounded by memory alone; handles have 32 bits.
    regions: u32::MAX as usize,
    region_bytes: u64::MAX,
    domains: u32::MAX as usize,
    outstanding_reads: MAX_READS as u8,
};

/// A device's state.
pub(crate) struct Engine {
    local: SocketAddr,
    mtu: Mtu,
    /// Protection domains, with the number of regions and queue pairs in each.
    pds: HandleMap<usize>,
    last_pd: u32,
    regions: Regions,
    completions: Completions,
    qps: HandleMap<Box<QueuePair>>,
    /// Queue pairs that may have something to send: each takes its turn.
    ready: VecDeque<u32>,
    /// Datagrams since there was none.
    burst: usize,
    /// Bytes of datagrams that a socket holds until somebody takes them.
    receive_buffer: usize,
    /// Queue pairs that wait for answers: they share it.
    askers: usize,
    timers: Timers,
    counts: Counts,
}

struct QueuePair {
    qpn: u32,
    pd: PdHandle,
    cq: CqHandle,
    caps: QpCaps,
    /// Of the first request that it sends.
    psn: Psn,
    state: QpState,
    connection: Option<Connection>,
    requester: Requester,
    /// Made with the connection: it needs the peer's first PSN.
    responder: Option<Responder>,
    is_ready: bool,
    /// Counted among the engine's askers.
    is_asker: bool,
    /// The responder had the last turn.
    answered_last: bool,
    /// The alarm that is set.
    alarm: Option<Now>,
}

/// What a queue pair is asked to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineRequest {
    pub(crate) id: u64,
    pub(crate) op: Op,
    pub(crate) mr: MrHandle,
    /// From the start of the region.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) remote_address: u64,
    pub(crate) rkey: u32,
}

/// A datagram to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transmit {
    pub(crate) to: SocketAddr,
    pub(crate) len: usize,
    /// As a message of its own: those that the kernel cuts from one have IPv4 identifications that count up, and this
    /// receiver has them in its ICRC.
    pub(crate) alone: bool,
}

impl Engine {
    /// A device whose socket is bound to `local`, one address that peers reach it at.
    pub(crate) fn new(local: SocketAddr, mtu: Mtu) -> Self {
        Self {
            local,
            mtu,
            pds: HandleMap::default(),
            last_pd: 0,
            regions: Regions::default(),
            completions: Completions::default(),
            qps: HandleMap::default(),
            ready: VecDeque::new(),
            burst: 0,
            receive_buffer: RECEIVE_BUFFER,
            askers: 0,
            timers: Timers::default(),
            counts: Counts::default(),
        }
    }

    /// Bounds what is under way, together with each connection's window: READ responses by what our socket holds, and
    /// WRITEs alike, as if the peer's were no larger.
    pub(crate) fn set_receive_buffer(&mut self, bytes: usize) {
        self.receive_buffer = bytes;
    }

    pub(crate) fn alloc_pd(&mut self) -> PdHandle {
        let handle = PdHandle(next_free(&self.pds, &mut self.last_pd));
        self.pds.insert(handle.0, 0);
        handle
    }

    pub(crate) fn dealloc_pd(&mut self, pd: PdHandle) -> Result<(), EngineError> {
        if *self.pd(pd)? > 0 {
            return Err(EngineError::Busy("protection domain"));
        }
        self.pds.remove(&pd.0);
        Ok(())
    }

    /// Lets peers with a queue pair in `pd` do what `access` says to this part of the memory.
    pub(crate) fn register(
        &mut self,
        pd: PdHandle,
        memory: Arc<Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<MrHandle, EngineError> {
        self.pd(pd)?;
        let handle = self.regions.register(pd, memory, range, access)?;
        *self.pd(pd)? += 1;
        Ok(handle)
    }

    /// After Ok no packet touches the memory through this region.
    pub(crate) fn deregister(&mut self, mr: MrHandle) -> Result<(), EngineError> {
        let region = self.regions.deregister(mr).ok_or(EngineError::Gone("memory region"))?;
        *self.pd(region.pd())? -= 1;
        Ok(())
    }

    pub(crate) fn create_cq(&mut self, entries: usize) -> Result<CqHandle, EngineError> {
        self.completions.create(entries)
    }

    pub(crate) fn destroy_cq(&mut self, cq: CqHandle) -> Result<(), EngineError> {
        self.completions.destroy(cq)
    }

    /// Appends at most `max` completions to `out`; returns how many.
    pub(crate) fn poll_cq(
        &mut self,
        cq: CqHandle,
        max: usize,
        out: &mut Vec<Completion>,
    ) -> Result<usize, EngineError> {
        self.completions.poll(cq, max, out)
    }

    /// Whether there is something to poll.
    pub(crate) fn cq_ready(&self, cq: CqHandle) -> bool {
        self.completions.is_ready(cq)
    }

    pub(crate) fn create_qp(&mut self, pd: PdHandle, cq: CqHandle, caps: QpCaps) -> Result<Qpn, EngineError> {
        let limit = |what, value, min, max| match value {
            value if (min..=max).contains(&value) => Ok(()),
            value => Err(EngineError::Limit { what, value, min, max }),
        };
        limit("length of a send queue", caps.send_queue, 1, MAX_SEND_QUEUE)?;
        limit("outstanding READs", caps.outstanding_reads.into(), 0, MAX_READS)?;
        limit("number of queue pairs", self.qps.len() + 1, 0, MAX_QUEUE_PAIRS)?;
        self.pd(pd)?;
        let qpn = random(|value| is_ordinary(value >> 8) && !self.qps.contains_key(&(value >> 8)))? >> 8;
        let psn = Psn::new(random(|_| true)?);
        self.completions.add_user(cq)?;
        *self.pd(pd)? += 1;
        let qp = QueuePair {
            qpn,
            pd,
            cq,
            caps,
            psn,
            state: QpState::Reset,
            connection: None,
            requester: Requester::new(psn),
            responder: None,
            is_ready: false,
            is_asker: false,
            answered_last: false,
            alarm: None,
        };
        self.qps.insert(qpn, Box::new(qp));
        Ok(Qpn(qpn))
    }

    /// What a peer needs to connect.
    pub(crate) fn endpoint(&self, qpn: Qpn) -> Result<Endpoint, EngineError> {
        let qp = self.qps.get(&qpn.0).ok_or(EngineError::Gone("queue pair"))?;
        Ok(Endpoint {
            lid: 0,
            flags: Endpoint::SOFT,
            mtu: self.mtu,
            qpn: qpn.0,
            psn: qp.psn.get(),
            port: self.local.port(),
            gid: Endpoint::gid_of(self.local.ip()),
        })
    }

    /// From RESET to RTS, bound to this peer, who may do what `rights` says.
    pub(crate) fn connect(
        &mut self,
        _now: Now,
        qpn: Qpn,
        remote: &Endpoint,
        rights: Access,
        retry: Retry,
    ) -> Result<(), EngineError> {
        let (local, mtu) = (self.local, self.mtu);
        let qp = self.qp(qpn)?;
        if qp.state != QpState::Reset {
            return Err(EngineError::State(qp.state));
        }
        qp.connection = Some(Connection::new(local, mtu, remote, rights, retry, qp.pd, qp.caps)?);
        qp.responder = Some(Responder::new(Psn::new(remote.psn)));
        qp.state = QpState::ReadyToSend;
        Ok(())
    }

    /// ERROR for a queue pair that does not exist.
    pub(crate) fn state(&self, qpn: Qpn) -> QpState {
        self.qps.get(&qpn.0).map_or(QpState::Error, |qp| qp.state)
    }

    /// To ERROR, at once: what was posted is flushed in order, and the peer gets no more answers.
    pub(crate) fn set_error(&mut self, qpn: Qpn) -> Result<(), EngineError> {
        let qp = self.qps.get_mut(&qpn.0).ok_or(EngineError::Gone("queue pair"))?;
        qp.fail(None, &mut self.completions);
        qp.silence();
        qp.count_asker(&mut self.askers);
        Ok(())
    }

    /// As [`Self::set_error`], and then it is no more. Its completions stay until they are polled.
    pub(crate) fn destroy_qp(&mut self, qpn: Qpn) -> Result<(), EngineError> {
        self.set_error(qpn)?;
        if let Some(qp) = self.qps.remove(&qpn.0) {
            self.timers.clear(qp.alarm, qpn.0);
            self.completions.remove_user(qp.cq);
            *self.pd(qp.pd)? -= 1;
        }
        Ok(())
    }

    /// Posts all of the batch or, with an error, none of it. They complete in this order.
    pub(crate) fn post(&mut self, _now: Now, qpn: Qpn, batch: &[EngineRequest]) -> Result<(), EngineError> {
        let qp = self.qps.get_mut(&qpn.0).ok_or(EngineError::Gone("queue pair"))?;
        if !matches!(qp.state, QpState::ReadyToSend | QpState::Error) {
            return Err(EngineError::State(qp.state));
        }
        for request in batch {
            qp.check(&self.regions, request)?;
        }
        let (capacity, asked) = (qp.caps.send_queue, batch.len());
        let free = capacity.saturating_sub(qp.requester.len());
        if asked > free {
            return Err(EngineError::Full { what: "send queue", asked, free, capacity });
        }
        self.completions.reserve(qp.cq, asked)?;
        for request in batch {
            // `check` has seen each of them; a region that is not there is found out when it is sent.
            let start = qp.check(&self.regions, request)?;
            let remote = (request.remote_address, request.rkey);
            let work = Work::new(request.id, request.op, request.mr, (start, request.len), remote);
            qp.requester.post(qp.connection.as_ref(), work);
        }
        if qp.state == QpState::Error {
            qp.fail(None, &mut self.completions);
        } else {
            qp.wake(&mut self.ready);
        }
        Ok(())
    }

    /// Takes one datagram. Whatever is wrong with it, the sender at most gets a NAK.
    pub(crate) fn receive(&mut self, now: Now, from: SocketAddr, datagram: &[u8]) {
        self.receive_with(now, from, None, datagram);
    }

    /// The same of a datagram whose IPv4 identification is known.
    pub(crate) fn receive_with(&mut self, now: Now, from: SocketAddr, id: Option<u16>, datagram: &[u8]) {
        match self.take(now, from, id, datagram) {
            Ok(()) => self.counts.received += 1,
            Err(reason) => self.counts.drop(reason),
        }
    }

    fn take(&mut self, now: Now, from: SocketAddr, id: Option<u16>, datagram: &[u8]) -> Result<(), Dropped> {
        let packet = Packet::new(datagram)?;
        let bth = packet.bth;
        let qp = &mut **self.qps.get_mut(&bth.qpn).ok_or(Dropped::UnknownQueuePair)?;
        let (Some(connection), Some(responder)) = (&mut qp.connection, &mut qp.responder) else {
            return Err(Dropped::NotReady);
        };
        if !connection.is_peer(from) {
            return Err(Dropped::WrongSource);
        }
        if qp.state != QpState::ReadyToSend {
            return Err(Dropped::NotReady);
        }
        // The top bit tells full from limited members, and a full member talks to both.
        if bth.pkey & 0x7fff != DEFAULT_PKEY & 0x7fff {
            return Err(Dropped::PartitionKey);
        }
        if bth.version != 0 {
            return Err(Dropped::Version);
        }
        if !connection.is_whole(from.port(), id, &packet) {
            return Err(Dropped::Icrc);
        }
        let body = packet.body()?;
        if bth.opcode.is_response() {
            let outcome = qp.requester.on_response(now, connection, &self.regions, &bth, &body);
            qp.complete(&mut self.completions);
            qp.wake(&mut self.ready);
            if let Err(Stop::Failed(failure)) = outcome {
                qp.fail(Some(failure), &mut self.completions);
                qp.silence();
            }
            qp.count_asker(&mut self.askers);
            qp.set_alarm(&mut self.timers);
            return match outcome {
                Err(Stop::Dropped(reason)) => Err(reason),
                _ => Ok(()),
            };
        }
        let outcome = responder.on_request(connection, &self.regions, &bth, &body);
        qp.wake(&mut self.ready);
        if outcome? == Verdict::Refused {
            qp.fail(None, &mut self.completions);
            qp.count_asker(&mut self.askers);
        }
        Ok(())
    }

    /// Appends one datagram to `out`. None: there is none until the next call that changes something, or it is time to
    /// see what has arrived, and then [`Self::next_timeout`] is at once.
    pub(crate) fn poll_transmit(&mut self, now: Now, out: &mut impl Out) -> Option<Transmit> {
        while self.burst < BURST
            && let Some(qpn) = self.ready.pop_front()
        {
            let Some(qp) = self.qps.get_mut(&qpn) else { continue };
            qp.is_ready = false;
            let share = self.receive_buffer / self.askers.max(1);
            let sent = qp.next_packet((now, share), &self.regions, &mut self.completions, &mut self.counts, out);
            qp.count_asker(&mut self.askers);
            if let Some(transmit) = sent {
                qp.wake(&mut self.ready);
                qp.set_alarm(&mut self.timers);
                self.burst += 1;
                self.counts.sent += 1;
                return Some(transmit);
            }
        }
        self.burst = 0;
        None
    }

    /// When [`Self::on_timeout`] and [`Self::poll_transmit`] want to be called; it may turn out that nothing was due.
    /// None: only after the next call that changes something.
    pub(crate) fn next_timeout(&self) -> Option<Now> {
        if self.ready.is_empty() { self.timers.next() } else { Some(Now(0)) }
    }

    /// When [`Self::on_timeout`] wants to be called.
    pub(crate) fn next_alarm(&self) -> Option<Now> {
        self.timers.next()
    }

    /// Does what is due.
    pub(crate) fn on_timeout(&mut self, now: Now) {
        while let Some((_, qpn)) = self.timers.take_due(now) {
            let Some(qp) = self.qps.get_mut(&qpn) else { continue };
            qp.alarm = None;
            if qp.requester.deadline().is_some_and(|deadline| deadline <= now)
                && let Some(connection) = &qp.connection
            {
                match qp.requester.on_deadline(now, connection) {
                    Ok(()) => qp.wake(&mut self.ready),
                    Err(failure) => {
                        qp.fail(Some(failure), &mut self.completions);
                        qp.silence();
                        qp.count_asker(&mut self.askers);
                    }
                }
            }
            qp.set_alarm(&mut self.timers);
        }
    }

    pub(crate) fn counters(&self) -> crate::Counters {
        self.counts.report()
    }

    fn pd(&mut self, pd: PdHandle) -> Result<&mut usize, EngineError> {
        self.pds.get_mut(&pd.0).ok_or(EngineError::Gone("protection domain"))
    }

    fn qp(&mut self, qpn: Qpn) -> Result<&mut QueuePair, EngineError> {
        self.qps.get_mut(&qpn.0).map(|qp| &mut **qp).ok_or(EngineError::Gone("queue pair"))
    }
}

/// 0 and 1 are the management queue pairs of InfiniBand, and the highest number is its multicast.
fn is_ordinary(qpn: u32) -> bool {
    (2..0x00ff_ffff).contains(&qpn)
}

impl QueuePair {
    /// Whether a request may be posted; returns where in the region's memory it begins.
    fn check(&self, regions: &Regions, request: &EngineRequest) -> Result<usize, EngineError> {
        if !(1..=MAX_MESSAGE).contains(&request.len) {
            let what = "length of a request";
            return Err(EngineError::Limit { what, value: request.len, min: 1, max: MAX_MESSAGE });
        }
        if request.op == Op::Read && self.caps.outstanding_reads == 0 {
            return Err(EngineError::Limit { what: "READs of this queue pair", value: 1, min: 0, max: 0 });
        }
        let region = regions.get(request.mr).ok_or(EngineError::Gone("memory region"))?;
        if region.pd() != self.pd {
            return Err(EngineError::Foreign("memory region"));
        }
        let needs = if request.op == Op::Read { Access::LOCAL_WRITE } else { Access::empty() };
        region.local(request.offset, request.len, needs)
    }

    /// Appends its next packet; requests and answers take turns. `share` is its part of the receive buffer, in bytes.
    fn next_packet(
        &mut self,
        (now, share): (Now, usize),
        regions: &Regions,
        completions: &mut Completions,
        counts: &mut Counts,
        out: &mut impl Out,
    ) -> Option<Transmit> {
        let (Some(connection), Some(responder)) = (&self.connection, &mut self.responder) else { return None };
        let (to, alone, start) = (connection.peer, connection.counts_ids(), out.len());
        let sent = |len: usize| Some(Transmit { to, len: len - start, alone });
        for _ in 0..2 {
            self.answered_last = !self.answered_last;
            if self.answered_last {
                match responder.next_packet(connection, regions, out) {
                    Turn::Idle => {}
                    Turn::Sent { again } => {
                        counts.retransmitted += u64::from(again);
                        return sent(out.len());
                    }
                    Turn::Refused => {
                        self.fail(None, completions);
                        return sent(out.len());
                    }
                    Turn::Silenced => {
                        self.fail(None, completions);
                        return None;
                    }
                }
            } else if self.state == QpState::ReadyToSend {
                let most = connection.packets_within(share);
                match self.requester.next_packet(now, connection, regions, most, out) {
                    Some(Ok(packet)) => {
                        counts.retransmitted += u64::from(packet.again);
                        return sent(out.len());
                    }
                    Some(Err(failure)) => {
                        self.fail(Some(failure), completions);
                        self.silence();
                        return None;
                    }
                    None => {}
                }
            }
        }
        None
    }

    /// Hands over what is done.
    fn complete(&mut self, completions: &mut Completions) {
        let (requester, qpn) = (&mut self.requester, self.qpn);
        if let Some(first) = requester.next_done(qpn) {
            let rest = std::iter::from_fn(|| requester.next_done(qpn));
            completions.complete(self.cq, std::iter::once(first).chain(rest));
        }
    }

    /// To ERROR: everything posted completes, with `failure` for the one that brought it there.
    fn fail(&mut self, failure: Option<Failure>, completions: &mut Completions) {
        self.state = QpState::Error;
        let (requester, qpn) = (&mut self.requester, self.qpn);
        completions.complete(self.cq, std::iter::from_fn(|| requester.next_flushed(failure, qpn)));
    }

    /// No more answers.
    fn silence(&mut self) {
        if let Some(responder) = &mut self.responder {
            responder.silence();
        }
    }

    fn wake(&mut self, ready: &mut VecDeque<u32>) {
        if !self.is_ready {
            self.is_ready = true;
            ready.push_back(self.qpn);
        }
    }

    /// Keeps the number of askers right.
    fn count_asker(&mut self, askers: &mut usize) {
        match (self.is_asker, self.requester.is_asking()) {
            (false, true) => *askers += 1,
            (true, false) => *askers -= 1,
            _ => return,
        }
        self.is_asker = !self.is_asker;
    }

    /// Makes sure that an alarm rings at the deadline or before.
    fn set_alarm(&mut self, timers: &mut Timers) {
        if let Some(deadline) = self.requester.deadline()
            && self.alarm.is_none_or(|alarm| deadline < alarm)
        {
            timers.set(deadline, self.alarm, self.qpn);
            self.alarm = Some(deadline);
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
