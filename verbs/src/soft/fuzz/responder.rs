//! Sequences of requests, good and bad, to a connected queue pair, and what it does about them beside what its model says.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::responder_model::{Model, Region, Request, Verdict};
use super::wire::headers;
use super::{Outcome, fuzz};
use crate::soft::engine::{MrHandle, Now};
use crate::soft::handles::Seeded;
use crate::soft::port_sim::address;
use crate::soft::sim_tests::pattern;
use crate::soft::test_peer::{Draft, MEMORY, Peer, reth};
use crate::soft::wire::Opcode;
use crate::{Access, Endpoint, Mtu, QpState, Retry};

/// READs at once, as `Peer` has it.
const LIMIT: usize = 4;
/// Packets in a row that one call of the engine may send, so many times that no READ here is longer.
const CALLS: usize = 8;

/// Which sequence number.
#[derive(Debug, Clone)]
enum Place {
    Next,
    Ahead(u32),
    Behind(u32),
    Any(u32),
}

/// Which memory.
#[derive(Debug, Clone)]
struct Aim {
    region: usize,
    place: Spot,
    /// Of the region's key. 0 is right.
    wrong: u32,
}

#[derive(Debug, Clone)]
enum Spot {
    Inside(u16),
    /// So many bytes behind where it would be the first, or the last, that fits.
    Start(i8),
    End(i8),
    Anywhere(u64),
}

#[derive(Debug, Clone)]
enum Step {
    /// A good WRITE, in as many packets as it takes; or its first alone, and the next by `GoOn`.
    Write {
        aim: Aim,
        len: u16,
        asks: bool,
        whole: bool,
    },
    GoOn {
        asks: bool,
    },
    /// In another way than the WRITE was announced: as its LAST packet or not, so many bytes from what is right, or from all.
    Stray {
        last: bool,
        all: bool,
        by: i8,
    },
    Read {
        aim: Aim,
        len: u32,
    },
    /// Anything: what does not belong to the opcode is left out.
    Other {
        opcode: u8,
        place: Place,
        aim: Aim,
        len: u32,
        data: u16,
        cut: u8,
        asks: bool,
    },
    /// A request that was there before, as it was.
    Again {
        back: usize,
    },
    /// So many small READs, each answered.
    Reads(u64),
    /// So many times the READs among the last few requests, one after the other.
    Storm {
        times: usize,
        last: usize,
    },
    /// The rest of a READ that was there before, from a later packet on.
    Rest {
        back: usize,
        skip: u32,
    },
    /// As the rest of a READ, but in one thing: never asked for.
    Guess {
        back: usize,
        skip: u32,
        kind: u8,
        by: i8,
    },
    /// Of the request that is next, so that it would be served but for this.
    Stranger {
        kind: u8,
        bit: u16,
    },
    /// Lets it send so many packets.
    Answer(u8),
    AnswerAll,
    Register {
        start: u16,
        len: u16,
        rights: u8,
    },
    Deregister(usize),
}

#[derive(Debug, Clone)]
struct Case {
    /// Of keys and numbers.
    seed: u64,
    mtu: Mtu,
    rights: u8,
    is_real: bool,
    steps: Vec<Step>,
}

fn aim() -> impl Strategy<Value = Aim> {
    let place = prop_oneof![
        20 => any::<u16>().prop_map(Spot::Inside),
        1 => any::<i8>().prop_map(Spot::Start),
        2 => (-3..=1_i8).prop_map(Spot::End),
        1 => any::<u64>().prop_map(Spot::Anywhere),
    ];
    let region = prop_oneof![20 => Just(0_usize), 6 => 0..8_usize];
    (region, place, prop_oneof![40 => Just(0), 1 => any::<u32>()]).prop_map(|(region, place, wrong)| Aim {
        region,
        place,
        wrong,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let place = prop_oneof![
        3 => Just(Place::Next),
        4 => (1..70_u32).prop_map(Place::Ahead),
        6 => (1..70_u32).prop_map(Place::Behind),
        2 => any::<u32>().prop_map(Place::Any),
    ];
    let len = prop_oneof![10 => 0..3000_u32, 1 => any::<u32>(), 1 => 250..260_u32, 1 => Just(1 << 31)];
    prop_oneof![
        12 => (aim(), prop_oneof![3 => 0..9000_u16, 1 => (0..12_u16).prop_map(|n| n * 256)], any::<bool>(), any::<bool>())
            .prop_map(|(aim, len, asks, whole)| Step::Write { aim, len, asks, whole }),
        6 => any::<bool>().prop_map(|asks| Step::GoOn { asks }),
        12 => (aim(), prop_oneof![20 => 0..4000_u32, 1 => 0..66_000_u32]).prop_map(|(aim, len)| Step::Read { aim, len }),
        8 => (0..=0x18_u8, place, aim(), len, prop_oneof![0..600_u16, Just(256), 4090..4100_u16, 8186..8200_u16],
              prop_oneof![9 => Just(0), 1 => 0..30_u8], any::<bool>())
            .prop_map(|(opcode, place, aim, len, data, cut, asks)| {
                Step::Other { opcode, place, aim, len, data, cut, asks }
            }),
        1 => (any::<bool>(), any::<bool>(), prop_oneof![Just(0_i8), -4..=4_i8])
            .prop_map(|(last, all, by)| Step::Stray { last, all, by }),
        8 => (0..12_usize).prop_map(|back| Step::Again { back }),
        1 => (1..20_u64).prop_map(Step::Reads),
        2 => (1..60_usize, 1..30_usize).prop_map(|(times, last)| Step::Storm { times, last }),
        6 => (0..12_usize, 0..12_u32).prop_map(|(back, skip)| Step::Rest { back, skip }),
        3 => (0..12_usize, 0..4_u32, 0..3_u8, -9..9_i8)
            .prop_map(|(back, skip, kind, by)| Step::Guess { back, skip, kind, by }),
        6 => (any::<u8>(), any::<u16>()).prop_map(|(kind, bit)| Step::Stranger { kind, bit }),
        10 => (0..9_u8).prop_map(Step::Answer),
        10 => Just(Step::AnswerAll),
        1 => (any::<u16>(), 1..5000_u16, any::<u8>())
            .prop_map(|(start, len, rights)| Step::Register { start, len, rights }),
        1 => (0..8_usize).prop_map(Step::Deregister),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let mtu =
        prop_oneof![3 => Just(Mtu::Mtu256), 1 => Just(Mtu::Mtu1024), 1 => Just(Mtu::Mtu4096), 1 => Just(Mtu::Mtu8192)];
    let rights = prop_oneof![12 => Just(3_u8), 1 => 0..3_u8];
    (any::<u64>(), mtu, rights, prop::bool::weighted(0.3), vec(step(), 1..60))
        .prop_map(|(seed, mtu, rights, is_real, steps)| Case { seed, mtu, rights, is_real, steps })
}

fn access(bits: u8) -> Access {
    let mut access = Access::LOCAL_WRITE;
    access.set(Access::REMOTE_READ, bits & 1 != 0);
    access.set(Access::REMOTE_WRITE, bits & 2 != 0);
    access
}

struct Run {
    peer: Peer,
    model: Model,
    regions: Vec<MrHandle>,
    /// What was sent, to be sent again.
    past: Vec<Request>,
    /// For data that is never twice the same.
    turn: u64,
}

impl Run {
    fn new(case: &Case) -> Self {
        let retry = Retry { timeout: std::time::Duration::from_millis(1), count: 3 };
        let flags = if case.is_real { 0 } else { Endpoint::SOFT };
        let peer = Peer::of_kind(flags, case.mtu, access(case.rights), retry);
        let mut model = Model::new(case.mtu.bytes(), LIMIT, peer.va(), peer.bytes(), peer.psn);
        model.is_real = case.is_real;
        (model.reads_allowed, model.writes_allowed) = (case.rights & 1 != 0, case.rights & 2 != 0);
        let whole =
            Region { rkey: peer.mr.rkey, start: peer.va(), len: MEMORY as u64, read: true, write: true, usable: true };
        model.regions.push(whole);
        let mut run = Self { regions: vec![peer.mr], peer, model, past: Vec::new(), turn: 1 << 32 };
        run.register(8192, 4096, 1, true);
        run.register(20_000, 1000, 2, true);
        run.register(30_000, 3000, 0, true);
        run.register(0, 60_000, 3, false);
        run
    }

    fn register(&mut self, start: usize, len: usize, rights: u8, ours: bool) {
        let (start, memory) = (start.min(MEMORY - 1), Arc::clone(&self.peer.memory));
        let end = (start + len).min(MEMORY);
        let pd = if ours { self.peer.pd } else { self.peer.engine.alloc_pd() };
        let mr = self.peer.engine.register(pd, memory, start..end, access(rights)).unwrap();
        self.regions.push(mr);
        self.model.regions.push(Region {
            rkey: mr.rkey,
            start: self.peer.va() + start as u64,
            len: (end - start) as u64,
            read: rights & 1 != 0,
            write: rights & 2 != 0,
            usable: ours,
        });
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        self.turn += 1;
        pattern(self.turn, len)
    }

    fn target(&self, aim: &Aim, len: u64) -> (u64, u32) {
        let region = &self.model.regions[aim.region % self.model.regions.len()];
        let last = region.len.saturating_sub(len);
        let address = match aim.place {
            Spot::Inside(at) => region.start + u64::from(at) % (last + 1),
            Spot::Start(by) => region.start.wrapping_add_signed(by.into()),
            Spot::End(by) => (region.start + last).wrapping_add_signed(by.into()),
            Spot::Anywhere(address) => address,
        };
        (address, region.rkey ^ aim.wrong)
    }

    fn psn(&self, place: &Place) -> u32 {
        let next = self.model.psn();
        let psn = match place {
            Place::Next => next,
            Place::Ahead(by) => next + by,
            Place::Behind(by) => next.wrapping_sub(*by),
            Place::Any(psn) => *psn,
        };
        psn & 0x00ff_ffff
    }

    /// The packet of a request, and whether it is whole.
    fn draft(&self, request: &Request, cut: usize) -> (Draft, bool) {
        let extended = headers(request.opcode).unwrap_or((0, true)).0;
        let mut extension = reth(request.address, request.rkey, request.len);
        extension.resize(extended, 0x33);
        extension.truncate(extended.saturating_sub(cut));
        let draft = Draft {
            ack_request: request.asks,
            ..self.peer.draft_at(request.psn, Opcode(request.opcode), extension, &request.data)
        };
        let whole = super::wire::reading(&self.peer.seal(&draft.bytes())).is_some();
        (draft, whole)
    }

    /// Says it to both.
    fn say(&mut self, request: &Request) -> Outcome {
        let (draft, whole) = self.draft(request, 0);
        prop_assert!(whole, "the test's own packet");
        self.past.push(request.clone());
        self.peer.say(&draft);
        let verdict = self.model.request(request);
        let dead = self.peer.state() == QpState::Error;
        match verdict {
            Verdict::MayDie(refusal) if dead => self.model.refuse(refusal),
            Verdict::MayDie(_) => self.model.spare(request),
            Verdict::Lives | Verdict::Dies => {}
        }
        prop_assert_eq!(dead, self.model.is_dead(), "the state of the queue pair");
        Ok(())
    }

    fn write(&mut self, aim: &Aim, len: u16, asks: bool, whole: bool) -> Outcome {
        if self.model.write_left().is_some() {
            return self.go_on(asks);
        }
        let (address, rkey) = self.target(aim, len.into());
        let mtu = self.model.mtu as usize;
        let (opcode, size) = if usize::from(len) <= mtu { (0x0a, len.into()) } else { (0x06, mtu) };
        let (psn, data) = (self.model.psn(), self.data(size));
        self.say(&Request { opcode, psn, asks, address, rkey, len: len.into(), data })?;
        while whole && self.model.write_left().is_some() {
            self.go_on(asks)?;
        }
        Ok(())
    }

    /// A READ that was there before, from a later packet on.
    fn rest_of(&self, request: Request, skip: u32) -> Option<Request> {
        let done = u64::from(skip) * self.model.mtu;
        if request.opcode != 0x0c || done > 0 && done >= u64::from(request.len) {
            return None;
        }
        let psn = (request.psn + skip) & 0x00ff_ffff;
        let (address, len) = (request.address.wrapping_add(done), request.len - done as u32);
        Some(Request { psn, address, len, ..request })
    }

    fn go_on(&mut self, asks: bool) -> Outcome {
        let Some(left) = self.model.write_left() else { return Ok(()) };
        let (opcode, size) = if left <= self.model.mtu { (0x08, left) } else { (0x07, self.model.mtu) };
        let (psn, data) = (self.model.psn(), self.data(size as usize));
        self.say(&Request { opcode, psn, asks, address: 0, rkey: 0, len: 0, data })
    }

    fn other(&mut self, request: &Request, cut: usize) -> Outcome {
        let (draft, whole) = self.draft(request, cut);
        if whole && cut == 0 && !(0x0d..=0x12).contains(&request.opcode) {
            return self.say(request);
        }
        // It is no packet, or none of the responder's: nothing comes of it.
        if cut == 0 || !whole {
            self.peer.say(&draft);
        }
        prop_assert_eq!(self.peer.state() == QpState::Error, self.model.is_dead());
        Ok(())
    }

    /// Lets it send as many packets; returns whether there were so many.
    fn answer(&mut self, count: usize) -> Result<bool, TestCaseError> {
        let (mut starts, mut quiet) = (0, 0);
        for _ in 0..count {
            let Some(answer) = self.peer.answer() else {
                if self.peer.state() == QpState::Error && !self.model.is_dead() {
                    self.model.fall_silent()?;
                }
                // It may have paused, to see what has arrived.
                quiet += 1;
                if quiet > 1 {
                    return Ok(false);
                }
                continue;
            };
            quiet = 0;
            starts += usize::from(matches!(answer.opcode.0, 0x0d | 0x10));
            prop_assert!(starts <= 2 * LIMIT, "{starts} READs were waiting");
            self.model.sent(&answer)?;
        }
        Ok(true)
    }

    fn answer_all(&mut self) -> Outcome {
        prop_assert!(!self.answer(CALLS * 260)?, "does not come to an end");
        self.model.silent()
    }

    fn stranger(&mut self, kind: u8, bit: u16) {
        let (address_in, data) = (self.peer.va() + 1000, self.data(8));
        let draft =
            self.peer.draft_at(self.model.psn(), Opcode::WRITE_ONLY, reth(address_in, self.peer.mr.rkey, 8), &data);
        let mut bytes = self.peer.seal(&draft.bytes());
        let mut from = address(1);
        match kind % 6 {
            0 => from = address(7),
            // A real device's ICRC is known but for 16 bits: some other ports would pass.
            1 if self.model.is_real => from = address(2),
            1 => from.set_port(from.port() ^ (bit | 1)),
            2 => bytes.truncate(usize::from(bit) % bytes.len()),
            3 => bytes = self.peer.seal(&Draft { pkey: 0x7ffe - (bit & 0xff), ..draft }.bytes()),
            4 => bytes = self.peer.seal(&Draft { qpn: draft.qpn ^ (1 << (bit % 24)), ..draft }.bytes()),
            _ => {
                let bit = usize::from(bit) % (bytes.len() * 8);
                // All but the reserved byte.
                if bit / 8 != 4 {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                } else {
                    bytes.clear();
                }
            }
        }
        self.peer.engine.receive(Now(0), from, &bytes);
    }

    fn step(&mut self, step: &Step) -> Outcome {
        let past = self.past.clone();
        let back = |back: usize| past.len().checked_sub(back + 1).map(|at| past[at].clone());
        match step {
            Step::Write { aim, len, asks, whole } => self.write(aim, *len, *asks, *whole)?,
            Step::GoOn { asks } => self.go_on(*asks)?,
            Step::Stray { last, all, by } => {
                if let Some(left) = self.model.write_left() {
                    let right = if *all { left } else { left.min(self.model.mtu) };
                    let size = right.saturating_add_signed((*by).into()).min(8192) as usize;
                    let (opcode, psn, data) = (if *last { 0x08 } else { 0x07 }, self.model.psn(), self.data(size));
                    self.say(&Request { opcode, psn, asks: true, address: 0, rkey: 0, len: 0, data })?;
                }
            }
            Step::Read { aim, len } => {
                let ((address, rkey), psn) = (self.target(aim, u64::from(*len)), self.model.psn());
                if self.model.write_left().is_none() {
                    self.say(&Request { opcode: 0x0c, psn, asks: true, address, rkey, len: *len, data: vec![] })?;
                }
            }
            Step::Other { opcode, place, aim, len, data, cut, asks } => {
                let ((address, rkey), psn) = (self.target(aim, u64::from(*len)), self.psn(place));
                let size = if headers(*opcode).is_some_and(|(_, data)| data) { usize::from(*data) } else { 0 };
                let data = self.data(size);
                let request = Request { opcode: *opcode, psn, asks: *asks, address, rkey, len: *len, data };
                self.other(&request, usize::from(*cut))?;
            }
            Step::Again { back: number } => {
                if let Some(request) = back(*number) {
                    let must = self.model.must_answer(&request);
                    if must {
                        // What is repeated beside others may be left out.
                        self.answer_all()?;
                    }
                    let before = self.peer.engine.counters().sent;
                    self.say(&request)?;
                    if must {
                        self.answer_all()?;
                        let sent = self.peer.engine.counters().sent - before;
                        prop_assert!(sent >= self.model.packets(request.len.into()), "does not answer again");
                    }
                }
            }
            Step::Reads(count) => {
                for number in 0..*count {
                    if self.model.write_left().is_none() {
                        let aim = Aim { region: 0, place: Spot::Inside(number as u16 * 300), wrong: 0 };
                        let ((address, rkey), psn) = (self.target(&aim, 300), self.model.psn());
                        self.say(&Request { opcode: 0x0c, psn, asks: true, address, rkey, len: 300, data: vec![] })?;
                        self.answer_all()?;
                    }
                }
            }
            Step::Storm { times, last } => {
                for number in 0..*times {
                    if let Some(request) = back(number % last).filter(|request| request.opcode == 0x0c) {
                        self.say(&request)?;
                    }
                }
            }
            Step::Rest { back: number, skip } => {
                if let Some(request) = back(*number).and_then(|request| self.rest_of(request, *skip)) {
                    self.say(&request)?;
                }
            }
            Step::Guess { back: number, skip, kind, by } => {
                if let Some(mut request) = back(*number).and_then(|request| self.rest_of(request, *skip)) {
                    match kind {
                        0 => request.len = request.len.wrapping_add_signed((*by).into()),
                        1 => request.address = request.address.wrapping_add_signed((*by).into()),
                        _ => request.rkey = self.model.regions[usize::from(by.unsigned_abs() % 3)].rkey,
                    }
                    self.say(&request)?;
                }
            }
            Step::Stranger { kind, bit } => self.stranger(*kind, *bit),
            Step::Answer(count) => {
                self.answer(usize::from(*count))?;
            }
            Step::AnswerAll => self.answer_all()?,
            Step::Register { start, len, rights } => {
                self.register((*start).into(), (*len).into(), rights & 3, rights & 4 == 0);
            }
            Step::Deregister(index) => {
                let index = index % self.regions.len();
                if self.peer.engine.deregister(self.regions[index]).is_ok() {
                    self.model.regions[index].usable = false;
                }
            }
        }
        prop_assert!(self.peer.bytes() == self.model.memory, "other bytes than the model's");
        Ok(())
    }
}

fn check(case: &Case) -> Outcome {
    let _seeded = Seeded::new(case.seed);
    let mut run = Run::new(case);
    for step in &case.steps {
        run.step(step)?;
        if run.model.is_dead() {
            break;
        }
    }
    run.answer_all()?;
    // Dead or alive, what comes then is taken as the model says.
    run.write(&Aim { region: 0, place: Spot::Inside(5), wrong: 0 }, 9, true, true)?;
    run.answer_all()?;
    prop_assert!(run.peer.bytes() == run.model.memory, "other bytes than the model's");
    Ok(())
}

#[test]
fn any_sequence_of_requests_is_answered_as_the_model_says() {
    fuzz("responder", 60, &case(), check);
}

/// Cases over which the two once differed.
#[test]
fn cases_that_once_failed() {
    let aim = || Aim { region: 0, place: Spot::Inside(0), wrong: 0 };
    let read = |len| Step::Read { aim: aim(), len };
    let other = |place, len, asks| Step::Other { opcode: 0x0c, place, aim: aim(), len, data: 0, cut: 0, asks };
    let cases = [
        // A READ that is asked for again before it is answered counts as one or as two.
        vec![read(0), read(0), read(0), Step::Again { back: 0 }, read(0), read(0)],
        vec![
            read(0),
            read(2817),
            read(0),
            Step::Rest { back: 1, skip: 1 },
            read(0),
            Step::Read { aim: Aim { region: 2, ..aim() }, len: 0 },
        ],
        // A repeated READ that nobody asked for, of more than a message holds.
        vec![other(Place::Any(1_300_234_238), (1 << 31) + 1, false)],
        // One READ is repeated while another that overlaps it waits.
        vec![read(2561), read(769), Step::AnswerAll, other(Place::Behind(3), 257, false), Step::Again { back: 1 }],
    ];
    for steps in cases {
        check(&Case { seed: 1, mtu: Mtu::Mtu256, rights: 3, is_real: false, steps }).unwrap();
    }
}
