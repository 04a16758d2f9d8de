//! What a responder must do, by chapter 9 of the InfiniBand specification, said without regard to how it is done: which
//! request changes which bytes, and which packets may, and must, answer.
//!
//! Where the specification leaves a choice (which of two faults a NAK names, how many packets one ACK answers for, whether
//! a repeated READ is answered or dropped) the model takes either. It shares no code with the responder.

use std::collections::HashMap;

use proptest::prelude::*;

use super::Outcome;
use crate::soft::test_peer::Answer;

const INVALID_REQUEST: u8 = 0x61;
const REMOTE_ACCESS: u8 = 0x62;
const MAX_MESSAGE: u64 = 1 << 31;

/// Memory that is lent.
#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) rkey: u32,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    /// In the queue pair's protection domain, and not deregistered.
    pub(super) usable: bool,
}

/// A request that is whole. Address, key and length are 0 where its opcode has none.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) opcode: u8,
    pub(super) psn: u32,
    pub(super) asks: bool,
    pub(super) address: u64,
    pub(super) rkey: u32,
    pub(super) len: u32,
    pub(super) data: Vec<u8>,
}

/// The end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    at: u64,
    /// Any of these.
    syndromes: Vec<u8>,
    sent: bool,
}

/// What a request must come to.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The queue pair stays as it is, or goes on.
    Lives,
    /// It goes to ERROR.
    Dies,
    /// Either: a repeated READ whose region is gone, or one READ more than the limit, of which some were repeated before
    /// they were answered. [`Model::refuse`] or [`Model::spare`] says which.
    MayDie(Refusal),
}

struct Read {
    first: u64,
    end: u64,
    address: u64,
    len: u64,
    region: usize,
    rkey: u32,
    /// Of one that was not asked for before: the next packet that nobody has seen yet.
    next: Option<u64>,
}

struct Write {
    region: usize,
    address: u64,
    left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    None,
    Seen,
    Reported,
}

/// One queue pair, as its peer sees it. Places in the sequence are counted on, beyond the wrap.
pub(super) struct Model {
    pub(super) mtu: u64,
    pub(super) reads_allowed: bool,
    pub(super) writes_allowed: bool,
    /// The peer is no soft device: it may hear nothing of a region that is lost in the middle of a READ, which rxe would
    /// take for the READ's success.
    pub(super) is_real: bool,
    /// READs at once.
    pub(super) limit: usize,
    /// Of the first byte of `memory`.
    pub(super) base: u64,
    pub(super) memory: Vec<u8>,
    pub(super) regions: Vec<Region>,
    expected: u64,
    /// Ends of the messages carried out, in order.
    messages: Vec<u64>,
    write: Option<Write>,
    reads: Vec<Read>,
    /// READ responses seen for each place.
    responses: HashMap<u64, usize>,
    gap: Gap,
    /// Up to here an answer is due.
    owed: Option<u64>,
    /// ACKs that were asked for.
    budget: u64,
    refusal: Option<Refusal>,
}

impl Model {
    pub(super) fn new(mtu: usize, limit: usize, base: u64, memory: Vec<u8>, psn: u32) -> Self {
        Self {
            mtu: mtu as u64,
            reads_allowed: true,
            writes_allowed: true,
            is_real: false,
            limit,
            base,
            memory,
            regions: Vec::new(),
            expected: (1 << 24) + u64::from(psn),
            messages: Vec::new(),
            write: None,
            reads: Vec::new(),
            responses: HashMap::new(),
            gap: Gap::None,
            owed: None,
            budget: 0,
            refusal: None,
        }
    }

    /// The next request's.
    pub(super) fn psn(&self) -> u32 {
        self.expected as u32 & 0x00ff_ffff
    }

    pub(super) fn is_dead(&self) -> bool {
        self.refusal.is_some()
    }

    /// Bytes of the WRITE under way that have not come.
    pub(super) fn write_left(&self) -> Option<u64> {
        self.write.as_ref().map(|write| write.left)
    }

    pub(super) fn packets(&self, len: u64) -> u64 {
        len.div_ceil(self.mtu).max(1)
    }

    // InfiniBand 9.7.2: what lies less than half a turn ahead is new, all else was there before.
    fn place(&self, psn: u32) -> u64 {
        let ahead = u64::from(psn.wrapping_sub(self.psn()) & 0x00ff_ffff);
        if ahead < 1 << 23 { self.expected + ahead } else { self.expected + ahead - (1 << 24) }
    }

    fn unanswered(&self) -> Option<(u64, usize)> {
        self.reads.iter().find_map(|read| read.next.filter(|next| *next < read.end).map(|next| (next, read.region)))
    }

    fn unanswered_reads(&self) -> usize {
        self.reads.iter().filter(|read| read.next.is_some_and(|next| next < read.end)).count()
    }

    /// Of those, the ones that nobody asked for again.
    fn unrepeated_reads(&self) -> usize {
        let again = |read: &Read| {
            self.reads.iter().any(|other| other.next.is_none() && other.first < read.end && read.first < other.end)
        };
        self.reads.iter().filter(|read| read.next.is_some_and(|next| next < read.end) && !again(read)).count()
    }

    fn messages_before(&self, place: u64) -> u32 {
        self.messages.iter().filter(|end| **end <= place).count() as u32
    }

    fn bytes(&self, address: u64, len: u64) -> &[u8] {
        let at = (address - self.base) as usize;
        &self.memory[at..at + len as usize]
    }

    /// Takes a whole packet of the peer's.
    pub(super) fn request(&mut self, request: &Request) -> Verdict {
        if self.is_dead() {
            return Verdict::Lives;
        }
        let at = self.place(request.psn);
        // 9.7.4.1.1: behind a gap nothing is carried out; the gap is reported, once.
        if at > self.expected {
            if self.gap == Gap::None {
                self.gap = Gap::Seen;
                // An ACK of all before it may go ahead of the NAK: some requesters count that as progress.
                self.budget += 1;
            }
            return Verdict::Lives;
        }
        if at < self.expected {
            return self.repeated(at, request);
        }
        self.gap = Gap::None;
        let mut faults = self.faults(request);
        let refusal = |syndromes| Refusal { at, syndromes, sent: false };
        let many_reads = request.opcode == 0x0c && self.unanswered_reads() >= self.limit;
        if !faults.is_empty() {
            faults.extend(many_reads.then_some(INVALID_REQUEST));
            self.refuse(refusal(faults));
            return Verdict::Dies;
        }
        if many_reads {
            return Verdict::MayDie(refusal(vec![INVALID_REQUEST]));
        }
        self.carry_out(request);
        Verdict::Lives
    }

    /// The request did not end the connection, though it might have.
    pub(super) fn spare(&mut self, request: &Request) {
        if self.place(request.psn) == self.expected {
            self.carry_out(request);
        }
    }

    // 9.7.5.1: a request that was there before is answered again and changes nothing.
    fn repeated(&mut self, at: u64, request: &Request) -> Verdict {
        if request.opcode != 0x0c {
            self.budget += 1;
            // Nobody but a stranger has another request at the place of a READ.
            let is_reads = self.reads.iter().any(|read| read.first <= at && at < read.end);
            if !is_reads && matches!(request.opcode, 0x06..=0x0a) {
                self.owed = Some(self.owed.map_or(at, |owed| owed.max(at)));
            }
            return Verdict::Lives;
        }
        let len = u64::from(request.len);
        let end = at + self.packets(len);
        // Only what was asked for before may be asked for again, or a part of it; anything else is somebody's guess, and
        // dropped. Its region may be gone by now.
        let part_of = |read: &Read| {
            let done = at.wrapping_sub(read.first).wrapping_mul(self.mtu);
            read.first <= at
                && end <= read.end
                && read.rkey == request.rkey
                && request.address == read.address.wrapping_add(done)
                && done + len <= read.len
        };
        let Some(region) = self.reads.iter().find(|read| part_of(read)).map(|read| read.region) else {
            return Verdict::Lives;
        };
        let faults = self.access(request, false);
        if !faults.is_empty() {
            return Verdict::MayDie(Refusal { at, syndromes: faults, sent: self.is_real });
        }
        let rkey = request.rkey;
        self.reads.push(Read { first: at, end, address: request.address, len, region, rkey, next: None });
        Verdict::Lives
    }

    /// Every fault of the next request; each has its code, and any may be named.
    fn faults(&self, request: &Request) -> Vec<u8> {
        let (len, data) = (u64::from(request.len), request.data.len() as u64);
        let mut faults = Vec::new();
        // 9.7.4.1.2: the sequence of opcodes. A WRITE goes on until its last packet.
        let goes_on = matches!(request.opcode, 0x07..=0x09);
        if goes_on != self.write.is_some() {
            return vec![INVALID_REQUEST];
        }
        match request.opcode {
            // 9.7.4.1.6: lengths.
            0x06 | 0x0a => {
                let right = match request.opcode {
                    0x06 => data == self.mtu && len > self.mtu,
                    _ => data == len && len <= self.mtu,
                };
                if !right || !self.writes_allowed || len > MAX_MESSAGE {
                    faults.push(INVALID_REQUEST);
                }
                faults.extend(self.access(request, true));
            }
            0x07 | 0x08 => {
                let Some(write) = &self.write else { return vec![INVALID_REQUEST] };
                let right = match request.opcode {
                    0x07 => data == self.mtu && write.left > self.mtu,
                    _ => data == write.left && write.left <= self.mtu,
                };
                if !right {
                    faults.push(INVALID_REQUEST);
                }
                if !self.regions[write.region].usable {
                    faults.push(REMOTE_ACCESS);
                }
            }
            0x0c => {
                if !self.reads_allowed || len > MAX_MESSAGE || self.unrepeated_reads() >= self.limit {
                    faults.push(INVALID_REQUEST);
                }
                faults.extend(self.access(request, false));
            }
            // 9.7.4.1.3: SENDs, immediate data and atomics, which nobody granted.
            _ => faults.push(INVALID_REQUEST),
        }
        faults
    }

    /// 9.7.4.1.5: rights, key and bounds.
    fn access(&self, request: &Request, write: bool) -> Vec<u8> {
        let mut faults = Vec::new();
        let allowed = if write { self.writes_allowed } else { self.reads_allowed };
        if !allowed || u64::from(request.len) > MAX_MESSAGE {
            faults.push(INVALID_REQUEST);
        }
        let reaches = self.region(request.rkey).is_some_and(|index| {
            let region = &self.regions[index];
            let end = u128::from(request.address) + u128::from(request.len);
            (if write { region.write } else { region.read })
                && request.address >= region.start
                && end <= u128::from(region.start) + u128::from(region.len)
        });
        if !reaches {
            faults.push(REMOTE_ACCESS);
        }
        faults
    }

    fn region(&self, rkey: u32) -> Option<usize> {
        self.regions.iter().position(|region| region.rkey == rkey && region.usable)
    }

    fn carry_out(&mut self, request: &Request) {
        let (at, len) = (self.expected, u64::from(request.len));
        if request.opcode == 0x0c {
            let end = at + self.packets(len);
            if let Some(region) = self.region(request.rkey) {
                let (address, rkey) = (request.address, request.rkey);
                self.reads.push(Read { first: at, end, address, len, region, rkey, next: Some(at) });
            }
            self.expected = end;
            self.messages.push(end - 1);
            return;
        }
        let write = match self.write.take() {
            Some(write) => write,
            None => {
                Write { region: self.region(request.rkey).unwrap_or(usize::MAX), address: request.address, left: len }
            }
        };
        let (start, size) = ((write.address - self.base) as usize, request.data.len());
        self.memory[start..start + size].copy_from_slice(&request.data);
        let left = write.left - size as u64;
        if left > 0 {
            self.write = Some(Write { address: write.address + size as u64, left, ..write });
        } else {
            self.messages.push(at);
        }
        self.expected += 1;
        if request.asks {
            self.budget += 1;
            self.owed = Some(at);
        }
    }

    /// The queue pair is in ERROR without a word: a READ of a real peer's may have lost its region on the way.
    pub(super) fn fall_silent(&mut self) -> Outcome {
        prop_assert!(self.may_fall_silent(), "in ERROR, and does not say why");
        self.refuse(Refusal { at: 0, syndromes: vec![], sent: true });
        Ok(())
    }

    fn may_fall_silent(&self) -> bool {
        self.is_real && self.reads.iter().any(|read| !self.regions[read.region].usable)
    }

    /// The queue pair ends here: what was asked for before this place is answered yet.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.write = None;
        self.owed = None;
        self.reads.retain(|read| read.end <= refusal.at);
        self.refusal = Some(refusal);
    }

    /// Takes a packet that the responder sent.
    pub(super) fn sent(&mut self, answer: &Answer) -> Outcome {
        prop_assert!(!self.refusal.as_ref().is_some_and(|refusal| refusal.sent), "speaks after its refusal");
        prop_assert!(!answer.ack_request && answer.reth.is_none(), "not an answer");
        let place = self.place(answer.psn);
        if let Some((syndrome, messages)) = answer.aeth {
            // A refusal, or the first part of a READ, need not count the message that it is about.
            let ends = matches!(answer.opcode.0, 0x0f..=0x11) && syndrome < 0x20;
            let (least, most) = (self.messages_before(place - u64::from(!ends)), self.messages.len() as u32);
            prop_assert!((least..=most).contains(&messages), "MSN {messages}, and not {least} to {most}");
        }
        match (answer.opcode.0, answer.aeth) {
            (0x0d..=0x10, _) => self.responded(place, answer),
            (0x11, Some((syndrome, _))) if syndrome < 0x20 => {
                prop_assert!(place < self.expected, "ACK of what has not come");
                let unanswered = self.unanswered();
                prop_assert!(unanswered.is_none_or(|(next, _)| place < next), "ACK of a READ without its data");
                prop_assert!(self.budget > 0, "more ACKs than were asked for");
                self.budget -= 1;
                self.acknowledged(place);
                Ok(())
            }
            (0x11, Some((0x60, _))) => {
                prop_assert_eq!(self.gap, Gap::Seen, "reports a gap that is not, or again");
                prop_assert_eq!(place, self.expected, "reports another gap");
                self.gap = Gap::Reported;
                self.acknowledged(place - 1);
                Ok(())
            }
            (0x11, Some((syndrome, _))) => self.refused(place, syndrome),
            (opcode, _) => Err(TestCaseError::fail(format!("answers with opcode {opcode:#x}"))),
        }
    }

    fn acknowledged(&mut self, place: u64) {
        if self.owed.is_some_and(|owed| owed <= place) {
            self.owed = None;
        }
    }

    fn responded(&mut self, place: u64, answer: &Answer) -> Outcome {
        let (first, last) = (matches!(answer.opcode.0, 0x0d | 0x10), matches!(answer.opcode.0, 0x0f | 0x10));
        prop_assert_eq!(answer.aeth.is_some(), first || last);
        prop_assert!(answer.aeth.is_none_or(|(syndrome, _)| syndrome < 0x20));
        let covers = |read: &&Read| read.first <= place && place < read.end;
        let asked = self.reads.iter().filter(covers).count();
        prop_assert!(asked > 0, "answers no READ");
        let fits = self.reads.iter().filter(covers).any(|read| {
            let done = (place - read.first) * self.mtu;
            let len = self.mtu.min(read.len - done);
            (first, last) == (place == read.first, place + 1 == read.end)
                && self.regions[read.region].usable
                && answer.data == self.bytes(read.address + done, len)
        });
        prop_assert!(fits, "another answer than the READ's");
        let seen = self.responses.entry(place).or_default();
        *seen += 1;
        prop_assert!(*seen <= asked, "answers more often than it was asked");
        if let Some((next, _)) = self.unanswered() {
            prop_assert!(place <= next, "leaves out a part of a READ");
            let read = self.reads.iter_mut().find(|read| read.next == Some(place) && place < read.end);
            if let Some(read) = read {
                read.next = Some(place + 1);
            }
        }
        self.acknowledged(place);
        Ok(())
    }

    fn refused(&mut self, place: u64, syndrome: u8) -> Outcome {
        // A READ has lost its region while it was answered.
        let lost = |read: &Read| {
            let pending = match read.next {
                Some(next) => next == place && place < read.end,
                None => read.first <= place && place < read.end,
            };
            pending && !self.regions[read.region].usable
        };
        if syndrome == REMOTE_ACCESS && self.reads.iter().any(lost) {
            self.refuse(Refusal { at: place, syndromes: vec![syndrome], sent: true });
            return Ok(());
        }
        let unanswered = self.unanswered();
        let Some(refusal) = &mut self.refusal else {
            return Err(TestCaseError::fail(format!("refuses with {syndrome:#x} what it must not")));
        };
        prop_assert!(unanswered.is_none(), "refuses before it has answered what came before");
        prop_assert_eq!(place, refusal.at, "refuses another packet");
        prop_assert!(refusal.syndromes.contains(&syndrome), "{:#x}, not one of {:x?}", syndrome, refusal.syndromes);
        refusal.sent = true;
        Ok(())
    }

    /// It has nothing more to say: was that all?
    pub(super) fn silent(&self) -> Outcome {
        let refused = self.refusal.as_ref().is_none_or(|refusal| refusal.sent);
        prop_assert!(refused || self.may_fall_silent(), "did not refuse");
        if self.refusal.is_none() {
            prop_assert_eq!(self.unanswered().map(|(next, _)| next), None, "leaves a READ without its answer");
            prop_assert_eq!(self.owed, None, "owes an ACK");
            prop_assert!(self.gap != Gap::Seen, "does not report the gap");
        }
        Ok(())
    }

    /// Whether a repeated READ must be answered: it was asked for and answered just so, and nothing else is under way.
    pub(super) fn must_answer(&self, request: &Request) -> bool {
        let at = self.place(request.psn);
        let asked = |read: &Read| {
            read.next == Some(read.end)
                && (read.first, read.address, read.len) == (at, request.address, request.len.into())
        };
        let recent = self.reads.iter().filter(|read| read.next.is_some()).rev().take(self.limit);
        !self.is_dead()
            && request.opcode == 0x0c
            && self.access(request, false).is_empty()
            && self.unanswered().is_none()
            && recent.into_iter().any(asked)
    }
}
