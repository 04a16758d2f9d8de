//! The packets from the first that has no answer to the last that was sent, or asked for: which of them are answered, and
//! which are lost.
//!
//! A peer carries out requests in their order, and answers in the order in which they reach it. So an answer tells of what
//! lies before it too: WRITEs are done, and a response to a READ that was asked for earlier will not come any more.

use std::collections::VecDeque;
use std::ops::Range;

use super::psn::Seq;

/// What is under way to one peer.
pub(super) struct Flight {
    /// Everything before is answered.
    first: Seq,
    packets: VecDeque<Packet>,
    /// Sendings so far, of requests: one for a READ's whole response.
    sendings: u64,
    /// Packets sent, or asked for, that may still be answered.
    under_way: u64,
    lost: u64,
    /// Packets answered so far.
    answered: u64,
    /// None before is lost.
    lost_from: Seq,
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    /// The number of its last sending.
    sending: u64,
    state: State,
    /// Of a READ's response.
    is_read: bool,
    /// A request began here: the peer may know it as one, so none that is sent again reaches across.
    begins: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    UnderWay,
    Lost,
    Answered,
}

/// How an answer to a READ fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is waited for.
    Awaited,
    /// It was taken before.
    Taken,
    /// No READ asked for it.
    Unasked,
}

/// The number of the last sending of packets that turned out to be lost.
pub(super) type Loss = Option<u64>;

impl Flight {
    pub(super) fn new(start: Seq) -> Self {
        Self {
            first: start,
            packets: VecDeque::new(),
            sendings: 0,
            under_way: 0,
            lost: 0,
            answered: 0,
            lost_from: start,
        }
    }

    /// Everything before is answered.
    pub(super) fn first(&self) -> Seq {
        self.first
    }

    /// Everything before was sent at least once.
    pub(super) fn end(&self) -> Seq {
        self.first.plus(self.packets.len() as u64)
    }

    /// Packets sent, or asked for, that may still be answered.
    pub(super) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Packets answered so far, in whichever order.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Nothing is waited for any more.
    pub(super) fn clear(&mut self) {
        self.packets.clear();
        (self.under_way, self.lost) = (0, 0);
    }

    /// Of a READ's response.
    pub(super) fn is_read(&self, at: Seq) -> bool {
        self.packets.get(at.since(self.first) as usize).is_some_and(|packet| packet.is_read)
    }

    /// Sendings so far.
    pub(super) fn sendings(&self) -> u64 {
        self.sendings
    }

    /// `count` more packets were sent, or asked for.
    pub(super) fn send(&mut self, count: u64, is_read: bool) {
        self.sendings += 1;
        let packet = Packet { sending: self.sendings, state: State::UnderWay, is_read, begins: false };
        self.packets.push_back(Packet { begins: true, ..packet });
        self.packets.extend((1..count).map(|_| packet));
        self.under_way += count;
    }

    /// The first packet that is lost and may be sent again, and the end of the request that brings it.
    pub(super) fn next_lost(&mut self) -> Option<(Seq, Seq)> {
        if self.lost == 0 {
            return None;
        }
        let lost = |packet: &Packet| packet.state == State::Lost;
        let from = self.lost_from.since(self.first) as usize;
        let first = from + self.packets.range(from..).position(lost)?;
        self.lost_from = self.first.plus(first as u64);
        let at = (first..self.packets.len()).find(|at| lost(&self.packets[*at]) && self.may_go(*at))?;
        let is_read = self.packets[at].is_read;
        let more = self.packets.range(at + 1..).take_while(|next| is_read && lost(next) && !next.begins).count();
        let start = self.first.plus(at as u64);
        Some((start, start.plus(1 + more as u64)))
    }

    /// Of one READ request only the first gap is asked for, until it has been filled: rxe never again answers what lies
    /// before something that was asked for again.
    fn may_go(&self, index: usize) -> bool {
        let mut at = index;
        while at > 0 && self.packets[at].is_read && !self.packets[at].begins {
            at -= 1;
            if self.packets[at].state != State::Answered {
                return false;
            }
        }
        true
    }

    /// What [`Self::next_lost`] named was sent again.
    pub(super) fn send_again(&mut self, start: Seq, end: Seq) {
        self.sendings += 1;
        let (from, count) = (start.since(self.first) as usize, end.since(start));
        for packet in self.packets.range_mut(from..from + count as usize) {
            (packet.sending, packet.state) = (self.sendings, State::UnderWay);
        }
        self.lost -= count;
        self.under_way += count;
    }

    /// How a READ response fits.
    pub(super) fn fit(&self, at: Seq) -> Fit {
        if at < self.first {
            return Fit::Taken;
        }
        match self.packets.get(at.since(self.first) as usize) {
            Some(Packet { is_read: true, state: State::Answered, .. }) => Fit::Taken,
            Some(Packet { is_read: true, .. }) => Fit::Awaited,
            _ => Fit::Unasked,
        }
    }

    /// The packet at `at` is answered, so everything before it was carried out.
    pub(super) fn answer(&mut self, at: Seq) -> Loss {
        let loss = self.carried_out(at);
        self.settle(at.since(self.first) as usize);
        loss
    }

    /// The peer says that it has carried out everything up to `at`. A READ there is not answered by that.
    pub(super) fn acknowledge(&mut self, at: Seq) -> Loss {
        let loss = self.carried_out(at);
        let index = at.since(self.first) as usize;
        if self.packets.get(index).is_some_and(|packet| !packet.is_read) {
            self.settle(index);
        }
        loss
    }

    /// What lies before `at` was carried out: WRITEs are done, and what was asked for no later than it
    /// has been answered in vain.
    pub(super) fn carried_out(&mut self, at: Seq) -> Loss {
        let end = (at.since(self.first) as usize).min(self.packets.len());
        let sending = self.packets.get(end).map_or(u64::MAX, |packet| packet.sending);
        let mut loss = None;
        for index in 0..end {
            let packet = &mut self.packets[index];
            if !packet.is_read {
                self.settle(index);
            } else if packet.state == State::UnderWay && packet.sending <= sending {
                packet.state = State::Lost;
                loss = loss.max(Some(packet.sending));
                self.count_lost(index);
            }
        }
        loss
    }

    /// Nothing from `at` on was carried out, or none of it will be answered.
    pub(super) fn lose_from(&mut self, at: Seq) -> Loss {
        self.lose(at.since(self.first) as usize..self.packets.len())
    }

    /// The first packet without an answer is to be sent again, and the last request: if the peer waits for the first, it
    /// takes it now, and the last makes it report the gap between.
    pub(super) fn probe(&mut self) {
        let rest_of_first = self.packets.iter().skip(1).take_while(|next| next.is_read && !next.begins);
        let first = 0..1 + rest_of_first.count();
        let last = self.packets.iter().rposition(|packet| packet.begins).unwrap_or(0)..self.packets.len();
        if self.packets.range(last.clone()).all(|packet| packet.state == State::UnderWay) {
            self.lose(last);
        }
        let answered = self.packets.range(first.clone()).position(|packet| packet.state != State::UnderWay);
        self.lose(0..answered.unwrap_or(first.end));
    }

    fn lose(&mut self, range: Range<usize>) -> Loss {
        let mut loss = None;
        for index in range {
            let Some(packet) = self.packets.get_mut(index) else { break };
            if packet.state == State::UnderWay {
                packet.state = State::Lost;
                loss = loss.max(Some(packet.sending));
                self.count_lost(index);
            }
        }
        loss
    }

    pub(super) fn is_answered(&self, at: Seq) -> bool {
        let packet = self.packets.get(at.since(self.first) as usize);
        at < self.first || packet.is_some_and(|packet| packet.state == State::Answered)
    }

    /// Moves on over what is answered.
    pub(super) fn advance(&mut self) {
        while self.packets.front().is_some_and(|packet| packet.state == State::Answered) {
            self.packets.pop_front();
            self.first = self.first.plus(1);
        }
        self.lost_from = self.lost_from.max(self.first);
    }

    fn settle(&mut self, index: usize) {
        let Some(packet) = self.packets.get_mut(index) else { return };
        match packet.state {
            State::UnderWay => self.under_way -= 1,
            State::Lost => self.lost -= 1,
            State::Answered => return,
        }
        self.answered += 1;
        packet.state = State::Answered;
    }

    /// The packet was under way until now.
    fn count_lost(&mut self, index: usize) {
        self.under_way -= 1;
        self.lost += 1;
        self.lost_from = self.lost_from.min(self.first.plus(index as u64));
    }
}
