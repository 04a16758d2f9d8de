//! Sequences of requests of our own and of answers, good, late, lost, lying and hostile, and what comes of them: which
//! packets go out, which bytes change, and how each request ends.
//!
//! The peer here answers by the specification (InfiniBand 9.7.5) as simply as can be, and the network in between does what
//! the case says. Hostile answers carry bytes that must never arrive.

use std::collections::{BTreeSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Outcome, fuzz};
use crate::soft::engine::{EngineRequest, Now};
use crate::soft::handles::Seeded;
use crate::soft::port_sim::address;
use crate::soft::test_peer::{Answer, MEMORY, Peer};
use crate::soft::wire::Opcode;
use crate::{Access, Completion, Endpoint, Mtu, Op, QpState, Retry, WcStatus};

const MTU: usize = 256;
/// Bytes of the places in our region that requests are about: some longer than one READ request asks for.
const SLOT: usize = 6000;
const SLOTS: usize = MEMORY / SLOT;
/// READs at once, as `Peer` has it.
const LIMIT: usize = 4;
const MILLISECOND: u64 = 1_000_000;
const RETRY: Retry = Retry { timeout: std::time::Duration::from_millis(1), count: 7 };
const REMOTE: u64 = 0x7000_0000_0000;
const RKEY: u32 = 0xbeef;
const POISON: u8 = 0xee;

#[derive(Debug, Clone)]
enum Step {
    Post {
        read: bool,
        slot: usize,
        len: usize,
    },
    /// Lets it send so many packets.
    Send(usize),
    /// Of what it sent, loses one.
    LoseRequest(usize),
    /// The peer takes so many.
    Serve(usize),
    /// One of the peer's answers arrives, and stays to arrive again or not.
    Deliver {
        which: usize,
        again: bool,
    },
    DeliverAll,
    LoseAnswer(usize),
    /// An acknowledgement of what the peer has, at any place.
    Acknowledge(usize),
    /// A gap behind any place that was sent, and an acknowledgement of it: the peer may lie.
    Lie {
        nak: bool,
        which: usize,
    },
    /// The same gap, or the same acknowledgement of all, again and again.
    Nag {
        nak: bool,
        times: usize,
    },
    Hostile {
        kind: u8,
        which: usize,
        value: u8,
    },
    Refuse {
        which: usize,
        syndrome: u8,
    },
    /// Microseconds go by.
    Wait(u64),
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..1000_usize;
    let len = prop_oneof![4 => 1..SLOT, 2 => 1..MTU * 3, 1 => Just(16 * MTU), 1 => Just(MTU)];
    prop_oneof![
        10 => (prop::bool::weighted(0.6), 0..SLOTS, len).prop_map(|(read, slot, len)| Step::Post { read, slot, len }),
        10 => prop_oneof![0..6_usize, 20..200_usize].prop_map(Step::Send),
        2 => which.clone().prop_map(Step::LoseRequest),
        10 => prop_oneof![1..4_usize, Just(100)].prop_map(Step::Serve),
        14 => (which.clone(), prop::bool::weighted(0.2)).prop_map(|(which, again)| Step::Deliver { which, again }),
        3 => Just(Step::DeliverAll),
        4 => which.clone().prop_map(Step::LoseAnswer),
        2 => which.clone().prop_map(Step::Acknowledge),
        1 => (any::<bool>(), which.clone()).prop_map(|(nak, which)| Step::Lie { nak, which }),
        2 => (any::<bool>(), 2..40_usize).prop_map(|(nak, times)| Step::Nag { nak, times }),
        8 => (any::<u8>(), which.clone(), any::<u8>())
            .prop_map(|(kind, which, value)| Step::Hostile { kind, which, value }),
        1 => (which, 0x61..0x64_u8).prop_map(|(which, syndrome)| Step::Refuse { which, syndrome }),
        2 => (1..2500_u64).prop_map(Step::Wait),
        4 => Just(Step::Poll),
    ]
}

/// One request of ours.
struct Work {
    op: Op,
    slot: usize,
    len: usize,
    /// Packets, counted from the connection's first.
    first: u64,
    end: u64,
    remote: u64,
    /// What the slot holds as far as nothing has arrived, and what arrives.
    before: Vec<u8>,
    oracle: Vec<u8>,
    status: Option<WcStatus>,
}

impl Work {
    fn chunk(&self, place: u64) -> std::ops::Range<usize> {
        let start = (place - self.first) as usize * MTU;
        start..self.len.min(start + MTU)
    }
}

/// On its way from the peer.
#[derive(Debug, Clone)]
struct Reply {
    place: u64,
    opcode: Opcode,
    /// None: a READ response in the middle.
    syndrome: Option<u8>,
    data: Vec<u8>,
}

struct Run {
    peer: Peer,
    works: Vec<Work>,
    /// Places taken by what was posted.
    posted: u64,
    /// Behind the last place that was sent.
    sent: u64,
    /// First times of READ requests.
    reads: Vec<(u64, u64)>,
    /// On the way to the peer, and from it.
    requests: VecDeque<Answer>,
    replies: Vec<Reply>,
    /// The peer's next place, and whether it reported the gap before it.
    expected: u64,
    reported: bool,
    /// READ answers that have arrived in their time.
    delivered: BTreeSet<u64>,
    /// Everything before was acknowledged by something that arrived.
    acknowledged: u64,
    lied: bool,
    refused: Option<u64>,
    completed: usize,
    /// What every byte that nobody reads into must be.
    image: Vec<u8>,
}

impl Run {
    fn new(flags: u8) -> Self {
        let peer = Peer::of_kind(flags, Mtu::Mtu256, Access::empty(), RETRY);
        let image = peer.bytes();
        Self {
            peer,
            works: Vec::new(),
            posted: 0,
            sent: 0,
            reads: Vec::new(),
            requests: VecDeque::new(),
            replies: Vec::new(),
            expected: 0,
            reported: false,
            delivered: BTreeSet::new(),
            acknowledged: 0,
            lied: false,
            refused: None,
            completed: 0,
            image,
        }
    }

    fn place(&self, psn: u32) -> u64 {
        let near = self.peer.engine_psn.wrapping_add(self.sent as u32);
        let ahead = i64::from(psn.wrapping_sub(near) << 8) as i32 >> 8;
        self.sent.wrapping_add_signed(ahead.into())
    }

    fn work_at(&self, place: u64) -> Option<&Work> {
        self.works.iter().find(|work| work.first <= place && place < work.end)
    }

    fn post(&mut self, read: bool, slot: usize, len: usize) {
        let busy = self.works.iter().any(|work| work.slot == slot && work.status.is_none());
        if busy || self.peer.state() != QpState::ReadyToSend {
            return;
        }
        let (id, op) = (self.works.len() as u64, if read { Op::Read } else { Op::Write });
        let remote = REMOTE + id * 0x10_0000 + 13;
        let mr = self.peer.mr;
        let request = EngineRequest { id, op, mr, offset: slot * SLOT, len, remote_address: remote, rkey: RKEY };
        self.peer.engine.post(Now(self.peer.now), self.peer.qpn, &[request]).unwrap();
        let before = self.image[slot * SLOT..][..len].to_vec();
        let oracle = crate::soft::sim_tests::pattern(id ^ 0xfeed, len);
        let (first, end) = (self.posted, self.posted + len.div_ceil(MTU) as u64);
        self.posted = end;
        self.works.push(Work { op, slot, len, first, end, remote, before, oracle, status: None });
    }

    /// Takes what it sends; returns whether there was something.
    fn send(&mut self, most: usize) -> Result<bool, TestCaseError> {
        let mut quiet = 0;
        for number in 0..most {
            let Some(packet) = self.peer.answer() else {
                quiet += 1;
                if quiet > 1 {
                    return Ok(number > 1);
                }
                continue;
            };
            quiet = 0;
            self.check_request(&packet)?;
            self.requests.push_back(packet);
        }
        prop_assert!(most < 5000, "does not come to an end");
        Ok(true)
    }

    // InfiniBand 9.7.3: what a requester may send.
    fn check_request(&mut self, packet: &Answer) -> Outcome {
        let place = self.place(packet.psn);
        prop_assert!(place <= self.sent, "leaves out a sequence number");
        let Some(work) = self.work_at(place) else {
            return Err(TestCaseError::fail("sends what was not posted"));
        };
        prop_assert!(work.status.is_none(), "sends what is done");
        let (done, left) = (work.chunk(place).start, work.len - work.chunk(place).start);
        prop_assert!(packet.aeth.is_none());
        let end = if work.op == Op::Read {
            prop_assert_eq!(packet.opcode, Opcode::READ_REQUEST);
            let Some((address, rkey, len)) = packet.reth else { return Err(TestCaseError::fail("no RETH")) };
            prop_assert_eq!((address, rkey), (work.remote + done as u64, RKEY));
            let len = len as usize;
            prop_assert!(len > 0 && (len == left || len < left && len.is_multiple_of(MTU)));
            place + len.div_ceil(MTU) as u64
        } else {
            let (first, last) = (place == work.first, place + 1 == work.end);
            let opcode = match (first, last) {
                (true, true) => Opcode::WRITE_ONLY,
                (true, false) => Opcode::WRITE_FIRST,
                (false, false) => Opcode::WRITE_MIDDLE,
                (false, true) => Opcode::WRITE_LAST,
            };
            prop_assert_eq!(packet.opcode, opcode);
            prop_assert_eq!(packet.reth, first.then_some((work.remote, RKEY, work.len as u32)));
            prop_assert!(packet.data == work.before[work.chunk(place)], "other bytes than were posted");
            place + 1
        };
        if work.op == Op::Read && place >= self.sent {
            self.reads.push((place, end));
            let delivered = &self.delivered;
            self.reads.retain(|(first, end)| (*first..*end).any(|place| !delivered.contains(&place)));
            prop_assert!(self.reads.len() <= LIMIT, "{} READs at once", self.reads.len());
        }
        self.sent = self.sent.max(end);
        Ok(())
    }

    /// The peer takes the next packet.
    fn serve(&mut self) {
        let Some(packet) = self.requests.pop_front() else { return };
        let place = self.place(packet.psn);
        let acknowledge = |place| Reply { place, opcode: Opcode::ACKNOWLEDGE, syndrome: Some(0x1f), data: vec![] };
        if place > self.expected {
            if !self.reported {
                self.reported = true;
                self.replies.push(Reply { syndrome: Some(0x60), ..acknowledge(self.expected) });
            }
            return;
        }
        let is_next = place == self.expected;
        self.reported &= !is_next;
        let Some((_, _, len)) = packet.reth.filter(|_| packet.opcode == Opcode::READ_REQUEST) else {
            if is_next {
                self.expected += 1;
            }
            if packet.ack_request || !is_next {
                // Not beyond: a READ there may be without its answer.
                self.replies.push(acknowledge(place));
            }
            return;
        };
        let end = place + u64::from(len).div_ceil(MTU as u64);
        if !is_next && end > self.expected {
            return;
        }
        self.expected = self.expected.max(end);
        for at in place..end {
            let Some(work) = self.work_at(at) else { continue };
            let (opcode, syndrome) = match (at == place, at + 1 == end) {
                (true, true) => (Opcode::READ_RESPONSE_ONLY, Some(0x1f)),
                (true, false) => (Opcode::READ_RESPONSE_FIRST, Some(0x1f)),
                (false, true) => (Opcode::READ_RESPONSE_LAST, Some(0x1f)),
                (false, false) => (Opcode::READ_RESPONSE_MIDDLE, None),
            };
            let data = work.oracle[work.chunk(at)].to_vec();
            self.replies.push(Reply { place: at, opcode, syndrome, data });
        }
    }

    fn say(&mut self, reply: &Reply) {
        let psn = self.peer.engine_psn.wrapping_add(reply.place as u32);
        let aeth = reply.syndrome.map_or(vec![], |syndrome| vec![syndrome, 0, 0, 0]);
        let draft = self.peer.draft_at(psn, reply.opcode, aeth, &reply.data);
        self.peer.say(&draft);
    }

    /// A reply arrives that may count: takes down what it proves.
    fn deliver(&mut self, reply: &Reply) {
        let is_read = (0x0d..=0x10).contains(&reply.opcode.0);
        if is_read {
            self.delivered.insert(reply.place);
        }
        let before = if is_read || reply.syndrome == Some(0x60) { reply.place } else { reply.place + 1 };
        self.acknowledged = self.acknowledged.max(before);
        self.say(reply);
    }

    /// Something that must not count, nor leave a byte.
    fn hostile(&mut self, kind: u8, which: usize, value: u8) {
        let poison = |len: usize| vec![POISON; len.min(4096)];
        let response = |place, data| Reply { place, opcode: Opcode::READ_RESPONSE_ONLY, syndrome: Some(0x1f), data };
        let acknowledge =
            |place, syndrome| Reply { place, opcode: Opcode::ACKNOWLEDGE, syndrome: Some(syndrome), data: vec![] };
        let ahead = self.sent + which as u64 % 300;
        let any = (which as u64 * 7).checked_rem(self.sent).unwrap_or(0);
        let found = self.work_at(any).map(|work| (work.op, work.status.is_some(), work.chunk(any).len()));
        match (kind % 8, found) {
            (0, _) => self.say(&response(ahead, poison(MTU))),
            (1, _) => self.say(&acknowledge(ahead, 0x1f)),
            (2, _) => self.say(&acknowledge(ahead, 0x60 + value % 5)),
            // Neither an ACK nor one of the codes that end something; among them "receiver not ready".
            (3, _) => self.say(&acknowledge(any, [0x20 + value % 64, 0x64 + value % 156][usize::from(value % 2)])),
            (4, Some((_, true, len))) => self.say(&response(any, poison(len))),
            (5, Some((Op::Read, false, len))) => {
                let wrong = usize::from(value) * 2;
                self.say(&response(any, poison(if wrong == len { len + 1 } else { wrong })));
            }
            (6, Some((Op::Write, _, len))) => self.say(&response(any, poison(len))),
            (7, _) => {
                let psn = self.peer.engine_psn.wrapping_add(any as u32);
                let draft = self.peer.draft_at(psn, Opcode::READ_RESPONSE_MIDDLE, vec![], &poison(MTU));
                let mut bytes = self.peer.seal(&draft.bytes());
                bytes[12 + usize::from(value)] ^= 1 << (which % 8);
                self.peer.engine.receive(Now(self.peer.now), address(1), &bytes);
            }
            _ => {
                let psn = self.peer.engine_psn.wrapping_add(any as u32);
                let draft = self.peer.draft_at(
                    psn,
                    Opcode::ATOMIC_ACKNOWLEDGE,
                    vec![0x1f, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
                    &[],
                );
                self.peer.say(&draft);
            }
        }
    }

    /// Says the same many times: it sends again what is missing, but not each time.
    fn nag(&mut self, nak: bool, times: usize) -> Outcome {
        self.send(4999)?;
        let Some(last) = self.sent.checked_sub(1) else { return Ok(()) };
        self.poll()?;
        let done = self.works.get(self.completed).map_or(self.sent, |work| work.first);
        let missing = self.sent - done.min(self.sent);
        let (place, syndrome) = if nak { (self.acknowledged.min(last), 0x60) } else { (last, 0x1f) };
        self.lied |= place >= self.expected;
        let (begun, fresh) = (self.peer.engine.counters().sent, self.sent);
        for _ in 0..times {
            self.deliver(&Reply { place, opcode: Opcode::ACKNOWLEDGE, syndrome: Some(syndrome), data: vec![] });
            self.send(4999)?;
        }
        let again = self.peer.engine.counters().sent - begun;
        let most = 3 * missing + (self.sent - fresh) + 8;
        prop_assert!(
            again <= most,
            "sends {again} packets because of one thing said {times} times, with {missing} missing"
        );
        Ok(())
    }

    fn poll(&mut self) -> Outcome {
        for Completion { id, status, op, .. } in self.peer.poll() {
            prop_assert_eq!(id, self.completed as u64, "completes out of order, or twice");
            let work = &self.works[self.completed];
            prop_assert_eq!(op, work.op);
            let failed = self.works[..self.completed].iter().any(|work| work.status != Some(WcStatus::SUCCESS));
            match status {
                WcStatus::SUCCESS => {
                    prop_assert!(!failed, "succeeds after a failure");
                    if work.op == Op::Read {
                        prop_assert!((work.first..work.end).all(|place| self.delivered.contains(&place)), "READ {id}");
                        self.image[work.slot * SLOT..][..work.len].copy_from_slice(&work.oracle);
                    } else {
                        prop_assert!(work.end <= self.acknowledged, "WRITE {id} was not acknowledged");
                    }
                }
                WcStatus::WR_FLUSH_ERR => prop_assert_eq!(self.peer.state(), QpState::Error),
                WcStatus::RETRY_EXC_ERR => prop_assert!(self.peer.now >= MILLISECOND, "gives up at once"),
                other => {
                    let named = self.refused.is_some_and(|place| work.first <= place && place < work.end);
                    prop_assert!(named && (9..=11).contains(&other.0), "{other:?} of {id}");
                }
            }
            if status != WcStatus::SUCCESS {
                // What had arrived by then stays.
                let range = work.slot * SLOT..work.slot * SLOT + work.len;
                self.image[range.clone()].copy_from_slice(&self.peer.bytes()[range]);
            }
            self.works[self.completed].status = Some(status);
            self.completed += 1;
        }
        Ok(())
    }

    /// Bytes change only where a READ is under way, and there only to what the peer sent.
    fn check_memory(&self) -> Outcome {
        let mut bytes = self.peer.bytes();
        for work in self.works.iter().filter(|work| work.op == Op::Read && work.status.is_none()) {
            let slot = work.slot * SLOT;
            for place in work.first..work.end {
                let chunk = work.chunk(place);
                let now = &bytes[slot + chunk.start..slot + chunk.end];
                let arrived = self.delivered.contains(&place) && now == &work.oracle[chunk.clone()];
                prop_assert!(arrived || now == &work.before[chunk], "other bytes than the peer's at {place}");
            }
            bytes[slot..slot + work.len].copy_from_slice(&self.image[slot..slot + work.len]);
        }
        prop_assert!(bytes == self.image, "bytes change that nobody reads into");
        Ok(())
    }

    fn wait(&mut self, microseconds: u64) {
        self.peer.now += microseconds * 1000;
        if self.peer.engine.next_timeout().is_some_and(|at| at.0 <= self.peer.now) {
            self.peer.engine.on_timeout(Now(self.peer.now));
        }
    }

    fn step(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Post { read, slot, len } => {
                // What is done is known first, so that its slot may be used again.
                self.poll()?;
                self.post(*read, *slot, *len);
            }
            Step::Send(count) => {
                self.send(*count)?;
            }
            Step::LoseRequest(which) => {
                if let Some(at) = which.checked_rem(self.requests.len()) {
                    self.requests.remove(at);
                }
            }
            Step::Serve(count) => (0..*count).for_each(|_| self.serve()),
            Step::Deliver { which, again } => {
                // Mostly one of the first.
                if let Some(at) = (which % 7).checked_rem(self.replies.len()) {
                    let reply = if *again { self.replies[at].clone() } else { self.replies.remove(at) };
                    self.deliver(&reply);
                }
            }
            Step::DeliverAll => std::mem::take(&mut self.replies).iter().for_each(|reply| self.deliver(reply)),
            Step::LoseAnswer(which) => {
                if let Some(at) = (which % 7).checked_rem(self.replies.len()) {
                    self.replies.remove(at);
                }
            }
            Step::Acknowledge(which) => {
                if let Some(place) = (*which as u64).checked_rem(self.expected) {
                    self.deliver(&Reply { place, opcode: Opcode::ACKNOWLEDGE, syndrome: Some(0x1f), data: vec![] });
                }
            }
            Step::Lie { nak, which } => {
                if let Some(place) = (*which as u64).checked_rem(self.sent) {
                    let syndrome = Some(if *nak { 0x60 } else { 0x1f });
                    self.lied |= place >= self.expected;
                    self.deliver(&Reply { place, opcode: Opcode::ACKNOWLEDGE, syndrome, data: vec![] });
                }
            }
            Step::Nag { nak, times } => self.nag(*nak, *times)?,
            Step::Hostile { kind, which, value } => self.hostile(*kind, *which, *value),
            Step::Refuse { which, syndrome } => {
                if let Some(place) = (*which as u64).checked_rem(self.sent)
                    && self.peer.state() == QpState::ReadyToSend
                {
                    let reply = Reply { place, opcode: Opcode::ACKNOWLEDGE, syndrome: Some(*syndrome), data: vec![] };
                    self.acknowledged = self.acknowledged.max(place);
                    self.refused = Some(place);
                    self.say(&reply);
                }
            }
            Step::Wait(microseconds) => self.wait(*microseconds),
            Step::Poll => self.poll()?,
        }
        self.check_memory()
    }

    /// From here on nothing is lost: everything must come to its end.
    fn finish(&mut self) -> Outcome {
        let waited = self.peer.now;
        for _ in 0..2000 {
            let mut moved = self.send(5000 - 1)?;
            moved |= !self.requests.is_empty() || !self.replies.is_empty();
            while !self.requests.is_empty() {
                self.serve();
            }
            std::mem::take(&mut self.replies).iter().for_each(|reply| self.deliver(reply));
            self.poll()?;
            self.check_memory()?;
            if self.completed == self.works.len() {
                break;
            }
            if !moved {
                let Some(at) = self.peer.engine.next_timeout() else {
                    return Err(TestCaseError::fail("waits for nothing"));
                };
                self.wait(at.0.saturating_sub(self.peer.now) / 1000 + 1);
            }
        }
        prop_assert_eq!(self.completed, self.works.len(), "does not come to an end");
        let good = self.works.iter().all(|work| work.status == Some(WcStatus::SUCCESS));
        let excused = self.lied || self.refused.is_some() || waited >= 3 * MILLISECOND;
        prop_assert!(good || excused, "{:?}", self.works.iter().map(|work| work.status).collect::<Vec<_>>());
        Ok(())
    }
}

/// The peer is a real device, or a soft one.
fn check((seed, is_real, steps): &(u64, bool, Vec<Step>)) -> Outcome {
    let _seeded = Seeded::new(*seed);
    let mut run = Run::new(if *is_real { 0 } else { Endpoint::SOFT });
    for step in steps {
        run.step(step)?;
    }
    run.finish()
}

#[test]
fn any_sequence_of_answers_completes_each_request_once_with_the_right_bytes() {
    fuzz("requester", 40, &(any::<u64>(), prop::bool::weighted(0.3), vec(step(), 1..120)), check);
}

/// Cases over which the requester and this once differed.
#[test]
fn cases_that_once_failed() {
    let post = |read, slot, len| Step::Post { read, slot, len };
    let deliver = |which| Step::Deliver { which, again: false };
    let nag = Step::Nag { nak: false, times: 2 };
    let mut acknowledged_early = vec![post(true, 0, 769), post(false, 1, 1793), nag.clone(), Step::Serve(1)];
    acknowledged_early.extend([deliver(46), nag.clone()]);
    // The last part of a READ comes first, and the timer in between.
    let mut late =
        vec![post(true, 0, 257), post(false, 1, 1793), Step::Send(20), Step::Serve(1), deliver(593), deliver(0)];
    late.extend([Step::Wait(783), Step::Serve(100), deliver(0), Step::Wait(217), nag]);
    for steps in [acknowledged_early, late] {
        for is_real in [false, true] {
            check(&(1, is_real, steps.clone())).unwrap();
        }
    }
}
