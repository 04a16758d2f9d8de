//! A borrower's process: blocks are sealed and opened, and what was written last is remembered, by the real code; grants
//! and answers are believed as the library believes them. It asks one thing at a time, writes and reads through its
//! lanes, crashes, is stopped, and goes on writing when it should not.

use std::sync::Arc;

use overbank::freshness::Freshness;
use overbank::freshness::simulation::{self as table, Verdict};
use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes};
use overbank_fabric::block::{BlockContext, LeaseKey, Opener, Sealer, Stamp};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Nonce;
use overbank_fabric::message::{Attach, Call, CreateLease, Granted, Refusal, RefusalCode, RenewLease, Reply};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::{Deadline, Tick, early_stop_ms};
use overbank_fabric::token::{Rights, Scope};
use overbank_verbs::{Endpoint, Mtu};

use crate::history::{Event, History, MS, Packet, S, Who, note};
use crate::office::seeded;

/// Payload of a block.
pub(crate) const BLOCK: u32 = 512;

pub(crate) struct Borrower {
    pub(crate) identity: Arc<Identity>,
    /// Grows with every restart.
    life: u64,
    session: Option<u64>,
    rpc: Option<Rpc>,
    next: u64,
    wishes: u64,
    /// A wish whose outcome is open: asked again with the same nonce.
    open_wish: Option<CreateLease>,
    leases: Vec<Holding>,
    pub(crate) stopped_until: u64,
}

struct Rpc {
    id: u64,
    asked_us: u64,
    what: Asked,
}

enum Asked {
    Create,
    Renew(usize),
    Release(usize),
    Attach(usize, Box<Pending>),
}

/// An attach that was asked for.
struct Pending {
    hash: [u8; 32],
    lanes: Vec<Endpoint>,
    scope: Scope,
}

/// A lease that it holds.
struct Holding {
    lease: usize,
    granted: Granted,
    key: LeaseKey,
    /// The key's number: the same for the life of the lease.
    key_number: usize,
    context: BlockContext,
    fresh: Freshness,
    saved: Vec<u8>,
    dirty: bool,
    /// When it stops by itself.
    until: u64,
    lanes: Vec<Lane>,
    /// What is in the lender's memory, by block.
    landed: Vec<Option<u64>>,
    over: bool,
}

/// A queue pair and what goes through it.
struct Lane {
    mine: Endpoint,
    qpn: u32,
    rkey: u32,
    address: u64,
    first: u64,
    blocks: u64,
    write: bool,
    sealer: Sealer,
}

/// A WRITE on the wire.
pub(crate) struct Landing {
    borrower: usize,
    life: u64,
    lease: usize,
    block: u64,
    stride: Vec<u8>,
    stamp: Stamp,
    content: u64,
    way: (Endpoint, u32, u32),
    address: u64,
}

impl Borrower {
    pub(crate) fn new(number: usize, seed: u64) -> Self {
        Self {
            identity: Arc::new(seeded(seed, 4, number)),
            life: 1,
            session: None,
            rpc: None,
            next: 0,
            wishes: 0,
            open_wish: None,
            leases: Vec::new(),
            stopped_until: 0,
        }
    }

    pub(crate) fn holds(&self, lease: usize) -> bool {
        self.leases.iter().any(|holding| holding.lease == lease)
    }
}

fn payload(content: u64) -> Vec<u8> {
    content.to_le_bytes().into_iter().cycle().take(BLOCK as usize).collect()
}

impl History {
    pub(crate) fn borrower_acts(&mut self, number: usize) {
        let next = self.rng.between(10 * MS, 250 * MS);
        self.at(next, Event::Act(number));
        if self.now < self.borrowers[number].stopped_until || self.revoked.contains(&Who::Borrower(number)) {
            return;
        }
        let borrower = &mut self.borrowers[number];
        // What is over is forgotten, but for a few whose keys are tried again.
        while borrower.leases.iter().filter(|it| it.over).count() > 3 {
            let at = borrower.leases.iter().position(|it| it.over).expect("there are some");
            borrower.leases.remove(at);
        }
        let (leases, busy) = (borrower.leases.len() as u64, borrower.rpc.is_some());
        let which = if leases == 0 { None } else { Some(self.rng.below(leases) as usize) };
        match (self.rng.below(100), which) {
            (0..=14, _) | (_, None) => {
                if !busy && !self.calm {
                    self.wishes(number);
                }
            }
            (15..=19, Some(at)) if !busy => self.asks_to_renew(number, at),
            (20..=23, Some(at)) if !busy => self.asks_to_release(number, at),
            (24..=40, Some(at)) if !busy => self.asks_to_attach(number, at),
            (41..=79, Some(at)) => {
                for _ in 0..3 {
                    self.writes(number, at);
                }
            }
            (_, Some(at)) => self.reads(number, at),
        }
    }

    fn wishes(&mut self, number: usize) {
        let wish = match self.borrowers[number].open_wish.clone() {
            Some(wish) => wish,
            None => {
                if self.borrowers[number].leases.iter().filter(|it| !it.over).count() >= 5 {
                    return;
                }
                let (blocks, ttl_ms) = (self.rng.between(1, 30), self.rng.between(1000, 12_000));
                let borrower = &mut self.borrowers[number];
                borrower.wishes += 1;
                let mut nonce = Nonce([number as u8; 16]);
                nonce.0[..8].copy_from_slice(&borrower.wishes.to_le_bytes());
                let wish = CreateLease { nonce, bytes: blocks * u64::from(BLOCK), block: BLOCK, ttl_ms };
                borrower.open_wish = Some(wish.clone());
                wish
            }
        };
        self.asks(number, Asked::Create, Call::CreateLease(wish));
    }

    fn asks_to_renew(&mut self, number: usize, at: usize) {
        let ttl_ms = self.rng.between(1000, 12_000);
        let holding = &self.borrowers[number].leases[at];
        if holding.over || self.calm {
            return;
        }
        let (lease, id) = (holding.lease, holding.granted.lease);
        self.asks(number, Asked::Renew(lease), Call::RenewLease(RenewLease { lease: id, ttl_ms }));
    }

    fn asks_to_release(&mut self, number: usize, at: usize) {
        let holding = &self.borrowers[number].leases[at];
        if holding.over {
            return;
        }
        let (lease, id) = (holding.lease, holding.granted.lease);
        note!(self, "B{number} releases L{lease}");
        self.truth[lease].may_end = true;
        self.asks(number, Asked::Release(lease), Call::ReleaseLease(id));
    }

    fn asks_to_attach(&mut self, number: usize, at: usize) {
        let lanes = self.rng.between(1, 3);
        let mut mine = || {
            let (qpn, psn) = (self.rng.between(2, 1 << 23) as u32, self.rng.below(1 << 24) as u32);
            Endpoint { flags: 0, mtu: Mtu::Mtu1024, qpn, psn, port: 4791, lid: 0, gid: [number as u8 + 1; 16] }
        };
        let lanes: Vec<Endpoint> = (0..lanes).map(|_| mine()).collect();
        let (narrow, cut) = (self.rng.chance(250), self.rng.next());
        let authd = self.office.key;
        let borrower = &self.borrowers[number];
        let holding = &borrower.leases[at];
        if holding.over {
            return;
        }
        let Ok(mut scope) = holding.granted.token.verify(&authd) else {
            return self.wrong("a token that the auth daemon did not sign");
        };
        let mut token = holding.granted.token.clone();
        if narrow {
            scope.first_block = cut % scope.blocks;
            scope.blocks -= scope.first_block;
            scope.rights = if cut & 1024 == 0 { Rights::READ } else { Rights::READ_WRITE };
            let sooner = Tick(scope.deadline.tick.0.saturating_sub((cut >> 16) % 6000));
            scope.deadline = Deadline { tick: sooner, ..scope.deadline };
            match token.narrow(&authd, &scope, &borrower.identity) {
                Ok(narrowed) => token = narrowed,
                Err(error) => return self.wrong(format!("a token could not be narrowed: {error}")),
            }
        }
        let request = AttachRequest {
            token: token.hash(),
            lanes: lanes.iter().map(|lane| EndpointBytes(lane.to_bytes())).collect(),
            provider: holding.granted.provider,
            boot: holding.granted.boot,
            nonce: Nonce::random(),
        };
        let request = Signed::new(&request, &borrower.identity);
        let (lease, id) = (holding.lease, holding.granted.lease);
        let pending = Box::new(Pending { hash: request.hash(), lanes, scope });
        self.asks(number, Asked::Attach(lease, pending), Call::Attach(Attach { lease: id, token, request }));
    }

    fn asks(&mut self, number: usize, what: Asked, call: Call) {
        if self.borrowers[number].session.is_none() {
            if self.office.running.is_none() {
                return;
            }
            let session = self.open_session(Who::Borrower(number));
            if !self.office_admits(session) {
                return;
            }
            self.borrowers[number].session = Some(session);
        }
        let deadline_ms = if self.rng.chance(150) { self.rng.between(5, 400) as u32 } else { 5000 };
        let borrower = &mut self.borrowers[number];
        borrower.next += 1;
        let id = borrower.next;
        borrower.rpc = Some(Rpc { id, asked_us: self.now, what });
        let session = borrower.session.expect("just made");
        self.at(u64::from(deadline_ms) * MS, Event::RpcLate(number, id));
        self.send_authd(session, Packet::Request { id, deadline_ms, call });
    }

    pub(crate) fn rpc_late(&mut self, number: usize, rpc: u64) {
        if self.borrowers[number].rpc.as_ref().is_some_and(|it| it.id == rpc) {
            // A call that was cut off takes its session with it.
            self.borrowers[number].rpc = None;
            if let Some(session) = self.borrowers[number].session.take() {
                self.peer_leaves(session);
            }
        }
    }

    pub(crate) fn borrower_loses(&mut self, number: usize, session: u64) {
        let borrower = &mut self.borrowers[number];
        if borrower.session == Some(session) {
            (borrower.session, borrower.rpc) = (None, None);
        }
    }

    pub(crate) fn borrower_hears(&mut self, number: usize, session: u64, packet: Packet) {
        let borrower = &mut self.borrowers[number];
        let Packet::Response { id, outcome } = packet else { return };
        if borrower.session != Some(session) || borrower.rpc.as_ref().is_none_or(|rpc| rpc.id != id) {
            return;
        }
        let Rpc { asked_us, what, .. } = borrower.rpc.take().expect("just looked");
        match (what, outcome) {
            (Asked::Create, Ok(Reply::Granted(granted))) => self.is_granted(number, asked_us, *granted),
            (Asked::Create, Err(refusal)) => {
                let again =
                    matches!(refusal.code, RefusalCode::Deadline | RefusalCode::ProviderAway | RefusalCode::Busy);
                if !again {
                    self.borrowers[number].open_wish = None;
                }
            }
            (Asked::Renew(lease), Ok(Reply::Granted(granted))) => {
                if let Some(holding) = self.holding(number, lease) {
                    holding.until = usable(asked_us, granted.left_ms);
                    holding.granted = *granted;
                }
            }
            (Asked::Release(lease), Ok(Reply::Leases(infos))) => {
                note!(self, "B{number}: L{lease} is given back");
                let fenced = self.truth[lease].fenced;
                let (lender, life) = (self.truth[lease].lender, self.truth[lease].life);
                let lives = self.lenders[lender].life.as_ref().is_some_and(|it| it.number == life);
                if lives && !fenced && !self.truth[lease].free {
                    self.wrong(format!("L{lease} is said to be fenced and is not: {infos:?}"));
                }
                if let Some(holding) = self.holding(number, lease) {
                    holding.over = true;
                }
            }
            (Asked::Attach(lease, pending), Ok(Reply::Attached(answer))) => {
                self.is_attached(number, lease, &pending, &answer);
            }
            (Asked::Renew(lease) | Asked::Release(lease) | Asked::Attach(lease, _), Err(refusal)) => {
                self.is_refused(number, lease, &refusal);
            }
            (_, Ok(other)) => self.wrong(format!("B{number} is answered something else: {other:?}")),
        }
    }

    fn is_refused(&mut self, number: usize, lease: usize, refusal: &Refusal) {
        if matches!(refusal.code, RefusalCode::LeaseEnded | RefusalCode::LeaseLost | RefusalCode::NoSuchLease) {
            note!(self, "B{number}: L{lease} is over: {:?}", refusal.code);
            self.seen.lost += u64::from(refusal.code == RefusalCode::LeaseLost);
            if let Some(holding) = self.holding(number, lease) {
                holding.over = true;
            }
        }
    }

    fn holding(&mut self, number: usize, lease: usize) -> Option<&mut Holding> {
        self.borrowers[number].leases.iter_mut().find(|it| it.lease == lease)
    }

    fn is_granted(&mut self, number: usize, asked_us: u64, granted: Granted) {
        let lease = self.name(granted.lease);
        self.borrowers[number].open_wish = None;
        note!(self, "B{number} has L{lease} for {} ms", granted.left_ms);
        if self.borrowers.iter().any(|it| it.holds(lease)) {
            return self.wrong(format!("L{lease} is granted twice"));
        }
        let blocks = granted.bytes.div_ceil(u64::from(granted.block));
        let key = LeaseKey::generate();
        let context = BlockContext {
            tenant: granted.tenant.clone(),
            lease: granted.lease,
            generation: granted.generation,
            block: granted.block,
        };
        let fresh = Freshness::new(blocks);
        let saved = fresh.to_bytes(&key, &context);
        let until = usable(asked_us, granted.left_ms);
        self.borrowers[number].leases.push(Holding {
            lease,
            granted,
            key,
            key_number: lease,
            context,
            fresh,
            saved,
            dirty: false,
            until,
            lanes: Vec::new(),
            landed: vec![None; blocks as usize],
            over: false,
        });
    }

    fn is_attached(&mut self, number: usize, lease: usize, pending: &Pending, answer: &Signed<AttachAnswer>) {
        let Some(holding) = self.holding(number, lease) else { return };
        let Ok(answer) = answer.open(&holding.granted.provider) else {
            return self.wrong("an attach that the lender did not sign");
        };
        let scope = &pending.scope;
        let fits = answer.request == pending.hash
            && answer.lanes.len() == pending.lanes.len()
            && (answer.first_block, answer.blocks, answer.rights) == (scope.first_block, scope.blocks, scope.rights);
        if !fits {
            return self.wrong("an attach that was not asked for");
        }
        // What it had before for the same blocks is gone now.
        let write = scope.rights.contains(Rights::WRITE);
        holding.lanes.retain(|lane| (lane.first, lane.blocks, lane.write) != (scope.first_block, scope.blocks, write));
        for (mine, theirs) in pending.lanes.iter().zip(&answer.lanes) {
            let Ok(theirs) = Endpoint::from_bytes(&theirs.0) else { continue };
            holding.lanes.push(Lane {
                mine: *mine,
                qpn: theirs.qpn,
                rkey: answer.rkey,
                address: answer.address,
                first: answer.first_block,
                blocks: answer.blocks,
                write,
                sealer: Sealer::new(&holding.key, &holding.context),
            });
        }
    }

    fn writes(&mut self, number: usize, at: usize) {
        let (pick, block, content) = (self.rng.next(), self.rng.next(), self.rng.next() | 1);
        let late = self.rng.chance(60);
        let travel = if late { self.rng.between(S, 15 * S) } else { self.rng.between(10, 20 * MS) };
        let (life, now) = (self.borrowers[number].life, self.now);
        let holding = &mut self.borrowers[number].leases[at];
        let lanes: Vec<usize> = (0..holding.lanes.len()).filter(|lane| holding.lanes[*lane].write).collect();
        if lanes.is_empty() || (now >= holding.until && !late) {
            return;
        }
        let lane = &mut holding.lanes[lanes[pick as usize % lanes.len()]];
        let block = lane.first + block % lane.blocks;
        if !table::begin(&holding.fresh, block) {
            return;
        }
        holding.dirty = true;
        let mut stride = vec![0; holding.context.stride()];
        let stamp = match lane.sealer.seal(block, &payload(content), &mut stride) {
            Ok(stamp) => stamp,
            Err(error) => return self.wrong(format!("a block could not be sealed: {error}")),
        };
        let address = lane.address + (block - lane.first) * holding.context.stride() as u64;
        let way = (lane.mine, lane.qpn, lane.rkey);
        let (lease, key) = (holding.lease, holding.key_number);
        if !self.sealed.insert((key, stamp)) {
            self.wrong(format!("a nonce of L{lease}'s key is used twice: counter {}", stamp.counter));
        }
        self.seen.writes += 1;
        let landing = Landing { borrower: number, life, lease, block, stride, stamp, content, way, address };
        self.at(travel, Event::Lands(Box::new(landing)));
    }

    /// A WRITE arrives at the lender, whether or not anybody still wants it.
    pub(crate) fn lands(&mut self, landing: Landing) {
        let Landing { borrower, life, lease, block, stride, stamp, content, way: (mine, qpn, rkey), address } = landing;
        let truth = &self.truth[lease];
        let (lender, lives, fenced) = (truth.lender, truth.life, truth.fenced);
        let landed = match &self.lenders[lender].life {
            Some(it) if it.number == lives => {
                it.device.world().access((&mine, qpn, rkey), address, Some(&stride), 0).is_some()
            }
            _ => false,
        };
        if landed && fenced {
            self.wrong(format!("a WRITE of L{lease} landed after its fence"));
        }
        self.seen.late_writes += u64::from(!landed);
        let same_life = self.borrowers[borrower].life == life;
        let Some(holding) = self.holding(borrower, lease) else { return };
        if landed {
            holding.landed[block as usize] = Some(content);
        }
        match (same_life, landed) {
            (true, true) => {
                if !table::commit(&holding.fresh, block, stamp) {
                    self.wrong("no room for a salt");
                }
            }
            (true, false) => table::abandon(&holding.fresh, block),
            (false, _) => {}
        }
    }

    fn reads(&mut self, number: usize, at: usize) {
        let (pick, block) = (self.rng.next(), self.rng.next());
        let holding = &self.borrowers[number].leases[at];
        let Some(lane) = holding.lanes.get(pick as usize % holding.lanes.len().max(1)) else { return };
        let block = lane.first + block % lane.blocks;
        let (lease, stride) = (holding.lease, holding.context.stride());
        let address = lane.address + (block - lane.first) * stride as u64;
        let truth = &self.truth[lease];
        let Some(life) = self.lenders[truth.lender].life.as_ref().filter(|it| it.number == truth.life) else { return };
        let found = life.device.world().access((&lane.mine, lane.qpn, lane.rkey), address, None, stride);
        let Some(bytes) = found else { return };
        if truth.begun.is_some() {
            // Its memory is anybody's noise until the fence is done; nobody believes it without a seal.
            if truth.fenced {
                self.wrong(format!("L{lease} is read after its fence"));
            }
            return;
        }
        let mut out = vec![0; BLOCK as usize];
        let stamp = Opener::stamp(&bytes);
        let opened = Opener::new(&holding.key, &holding.context).open(block, &bytes, &mut out);
        let expected = holding.landed[block as usize];
        let verdict = table::judge(&holding.fresh, block, stamp);
        let right = match expected {
            None => stamp.is_none(),
            Some(content) => opened.is_ok() && out == payload(content),
        };
        self.seen.reads += 1;
        if !right || verdict == Verdict::Stale {
            self.wrong(format!(
                "B{number} reads block {block} of L{lease}: {opened:?}, {verdict:?}, as written: {right}"
            ));
        }
    }

    /// Ends, well or not, and starts again: keys are in its files, salts are new.
    pub(crate) fn borrower_restarts(&mut self, number: usize) {
        let well = self.rng.chance(500);
        note!(self, "B{number} {}", if well { "ends well and starts again" } else { "is killed and starts again" });
        let borrower = &mut self.borrowers[number];
        borrower.life += 1;
        borrower.rpc = None;
        let session = borrower.session.take();
        let mut unreadable = false;
        for holding in &mut borrower.leases {
            holding.lanes.clear();
            if well {
                holding.saved = holding.fresh.to_bytes(&holding.key, &holding.context);
                holding.dirty = false;
            }
            let blocks = holding.landed.len() as u64;
            holding.fresh = match holding.dirty {
                true => Freshness::unknown(blocks),
                false => match Freshness::from_bytes(&holding.saved, &holding.key, &holding.context, blocks) {
                    Ok(fresh) => fresh,
                    Err(_) => {
                        unreadable = true;
                        Freshness::unknown(blocks)
                    }
                },
            };
        }
        if unreadable {
            self.wrong("a saved table cannot be read");
        }
        if let Some(session) = session {
            self.peer_leaves(session);
        }
    }
}

fn usable(asked_us: u64, left_ms: u64) -> u64 {
    asked_us + left_ms.saturating_sub(early_stop_ms(left_ms)) * MS
}
