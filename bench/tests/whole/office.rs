//! The auth daemon's process: its decisions are the real ones; its sessions, requests and orders are as its own hub keeps
//! them, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use overbank_authd::Limits;
use overbank_authd::simulation::{Authd, Disk, Effect, Moment, Next, NoReply, Order, Purpose};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::message::{Approve, Call, Invitation, Join, Refusal, RefusalCode, Reply, Role};

use crate::history::{Event, History, MS, Packet, S, Who, note};

/// How long a provider has for an order that nobody waits for.
const ORDER_TIME: u64 = 5 * S;
const UNIX_START: u64 = 1_800_000_000_000;

pub(crate) struct Office {
    pub(crate) running: Option<Authd>,
    disk: Option<Disk>,
    pub(crate) key: PublicKey,
    operator: Arc<Identity>,
    /// Grows with every start.
    life: u64,
    works: BTreeMap<u64, Work>,
    orders: BTreeMap<u64, Given>,
    next: u64,
}

/// A request that is being worked on.
struct Work {
    session: u64,
    id: u64,
    who: Who,
    call: Call,
    until: u64,
    waits: bool,
}

/// An order under way.
struct Given {
    session: u64,
    then: Purpose,
    work: Option<u64>,
}

pub(crate) fn seeded(seed: u64, what: u8, number: usize) -> Identity {
    let mut bytes = [what; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = number as u8;
    Identity::from_seed(&bytes)
}

impl Office {
    pub(crate) fn new(seed: u64) -> (Self, Invitation) {
        let identity = seeded(seed, 1, 0);
        let key = identity.public();
        let (disk, invitation) = Disk::init(identity, UNIX_START + 60_000).expect("a store in memory");
        let operator = Arc::new(seeded(seed, 2, 0));
        let (works, orders) = (BTreeMap::new(), BTreeMap::new());
        (Self { running: None, disk: Some(disk), key, operator, life: 0, works, orders, next: 1 }, invitation)
    }
}

impl History {
    fn moment(&self) -> Moment {
        let unix_ms = (UNIX_START + self.now / MS).saturating_add_signed(self.wall_ms);
        Moment { monotonic: Duration::from_micros(self.now), unix_ms }
    }

    pub(crate) fn party(&self, who: Who) -> (PublicKey, Party) {
        match who {
            Who::Lender(lender) => (self.lenders[lender].identity.public(), Party::Provider),
            Who::Borrower(borrower) => (self.borrowers[borrower].identity.public(), Party::Client),
        }
    }

    /// Starts the daemon; the operator joins and trusts everybody.
    pub(crate) fn join_all(&mut self, invitation: Invitation) {
        self.office_starts();
        let moment = self.moment();
        let operator = self.office.operator.public();
        let everybody: Vec<(PublicKey, Role, usize)> = (0..self.lenders.len())
            .map(|at| (self.party(Who::Lender(at)).0, Role::Provider, at))
            .chain((0..self.borrowers.len()).map(|at| (self.party(Who::Borrower(at)).0, Role::Consumer, at)))
            .collect();
        let authd = self.office.running.as_mut().expect("it runs");
        authd.admit(&operator, "127.0.0.1:1", moment).expect("admitted");
        for (key, ..) in &everybody {
            authd.admit(key, "127.0.0.1:1", moment).expect("admitted");
        }
        self.operate(Call::Join(Join { secret: invitation.secret })).expect("joined");
        for (key, role, at) in everybody {
            // Two of one tenant, the others each of their own.
            let tenant = (role == Role::Consumer).then(|| format!("t{}", at / 2).parse().expect("a name"));
            self.operate(Call::TrustApprove(Approve { fingerprint: key.fingerprint(), role, tenant }))
                .expect("trusted");
        }
    }

    /// The operator asks, from beside the daemon.
    pub(crate) fn operate(&mut self, call: Call) -> Option<Reply> {
        let (moment, key) = (self.moment(), self.office.operator.public());
        let next = self.office.running.as_mut()?.request(key, Party::Client, 0, call, moment);
        self.apply_effects();
        match next {
            Ok(Next::Answer(reply)) => Some(reply),
            _ => None,
        }
    }

    pub(crate) fn revoke(&mut self, who: Who) {
        let fingerprint = self.party(who).0.fingerprint();
        if self.office.running.is_none() || !self.revoked.insert(who) {
            return;
        }
        note!(self, "{who:?} is revoked");
        self.seen.revoked += 1;
        for lease in 0..self.truth.len() {
            self.truth[lease].may_end |= match who {
                Who::Lender(lender) => self.truth[lease].lender == lender,
                Who::Borrower(borrower) => self.borrowers[borrower].holds(lease),
            };
        }
        if self.operate(Call::TrustRevoke(fingerprint)).is_none() {
            self.wrong(format!("{who:?} could not be revoked"));
        }
    }

    pub(crate) fn office_starts(&mut self) {
        let Some(disk) = self.office.disk.take() else { return };
        note!(self, "the auth daemon starts");
        self.office.life += 1;
        let limits = Limits { max_lease: Duration::from_secs(3600), ..Limits::default() };
        self.office.running = Some(Authd::start(disk, limits, self.moment()));
    }

    pub(crate) fn office_crashes(&mut self) {
        let Some(authd) = self.office.running.take() else { return };
        note!(self, "the auth daemon crashes");
        self.seen.crashes += 1;
        self.office.disk = Some(authd.crash());
        self.office.works.clear();
        self.office.orders.clear();
        let open: Vec<u64> = self.sessions.iter().filter(|(_, it)| it.at_authd).map(|(id, _)| *id).collect();
        for id in open {
            self.sessions.get_mut(&id).expect("there").at_authd = false;
            let delay = self.rng.below(300 * MS);
            self.at(delay, Event::ClosedForPeer(id));
        }
        let down = self.rng.between(100 * MS, 8 * S);
        self.at(down, Event::AuthdStarts);
    }

    /// A peer has come in.
    pub(crate) fn office_admits(&mut self, session: u64) -> bool {
        let moment = self.moment();
        let (who, life) = (self.sessions[&session].who, self.office.life);
        let key = self.party(who).0;
        let Some(authd) = self.office.running.as_mut() else { return false };
        if authd.admit(&key, "127.0.0.1:1", moment).is_err() {
            return false;
        }
        if matches!(who, Who::Lender(_)) {
            self.at(S, Event::OrdersDue(session, life));
        }
        true
    }

    /// The daemon's end of a session closes.
    pub(crate) fn office_closes(&mut self, id: u64) {
        self.office_loses(id);
        let delay = self.rng.below(200 * MS);
        self.at(delay, Event::ClosedForPeer(id));
    }

    pub(crate) fn office_loses(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.at_authd) else { return };
        session.at_authd = false;
        if let Some(authd) = &mut self.office.running {
            authd.session_closed(id);
        }
        let gone: Vec<u64> =
            self.office.orders.iter().filter(|(_, order)| order.session == id).map(|(order, _)| *order).collect();
        for order in gone {
            self.order_done(order, Err(NoReply::Gone));
        }
        self.apply_effects();
    }

    pub(crate) fn office_hears(&mut self, id: u64, packet: Packet) {
        let Some(session) = self.sessions.get(&id).filter(|session| session.at_authd) else { return };
        let who = session.who;
        match packet {
            Packet::Request { id: request, deadline_ms, call } => {
                let time = u64::from(deadline_ms) * MS;
                let until = self.now + time - (time / 10).min(250 * MS);
                self.office.next += 1;
                let work = self.office.next;
                self.office
                    .works
                    .insert(work, Work { session: id, id: request, who, call: call.clone(), until, waits: false });
                self.at(until - self.now, Event::WorkLate(work));
                let next = self.ask(who, id, call);
                self.work_goes_on(work, next);
                self.apply_effects();
            }
            Packet::Response { id: order, outcome } => {
                self.order_done(order, outcome.map_err(NoReply::Refused));
                self.apply_effects();
            }
        }
    }

    fn ask(&mut self, who: Who, session: u64, call: Call) -> Result<Next, Refusal> {
        let (moment, (key, party)) = (self.moment(), self.party(who));
        match &mut self.office.running {
            Some(authd) => authd.request(key, party, session, call, moment),
            None => Err(Refusal::new(RefusalCode::Internal, "down")),
        }
    }

    fn work_goes_on(&mut self, id: u64, next: Result<Next, Refusal>) {
        let outcome = match next {
            Ok(Next::Wait) => {
                if let Some(work) = self.office.works.get_mut(&id) {
                    work.waits = true;
                }
                return;
            }
            Ok(Next::Order(order)) => {
                let until = self.office.works.get(&id).map_or(self.now, |work| work.until);
                return self.give(*order, Some(id), until.max(self.now));
            }
            Ok(Next::Answer(reply)) => Ok(reply),
            Err(refusal) => Err(refusal),
        };
        if let Some(work) = self.office.works.remove(&id) {
            self.promised(&work, &outcome);
            self.send_peer(work.session, Packet::Response { id: work.id, outcome });
        }
    }

    /// What a holder is told counts from here.
    fn promised(&mut self, work: &Work, outcome: &Result<Reply, Refusal>) {
        let Ok(Reply::Granted(granted)) = outcome else { return };
        let lease = self.name(granted.lease);
        let until = self.now + granted.left_ms * MS;
        let truth = &mut self.truth[lease];
        truth.promised = truth.promised.max(until);
        if let (Who::Borrower(borrower), Call::CreateLease(wish)) = (work.who, &work.call) {
            let wish = u64::from_le_bytes(wish.nonce.0[..8].try_into().expect("16 bytes"));
            let before = *self.wishes.entry((borrower, wish)).or_insert(lease);
            if before != lease {
                self.wrong(format!("one wish of B{borrower} became L{before} and L{lease}"));
            }
        }
    }

    fn give(&mut self, order: Order, work: Option<u64>, until: u64) {
        let Order { session, call, then } = order;
        let asked = work.and_then(|work| self.office.works.get(&work)).map(|work| work.call.clone());
        match (&call, asked) {
            (Call::Carve(carve), Some(Call::CreateLease(wish))) => {
                let lease = self.name(carve.lease);
                note!(self, "authd orders carve of L{lease}, {} blocks, {} ms", carve.blocks, wish.ttl_ms);
                self.expect_end(lease, wish.ttl_ms);
            }
            (Call::Extend(extend), Some(Call::RenewLease(renew))) => {
                let lease = self.name(extend.lease);
                note!(self, "authd orders L{lease} extended by {} ms", renew.ttl_ms);
                self.expect_end(lease, renew.ttl_ms);
            }
            (Call::Fence(fence), _) => {
                let lease = self.name(fence.lease);
                self.truth[lease].may_end = true;
                note!(self, "authd orders L{lease} fenced: {}", fence.reason);
            }
            _ => {}
        }
        self.office.next += 1;
        let id = self.office.next;
        self.office.orders.insert(id, Given { session, then, work });
        if !self.sessions.get(&session).is_some_and(|session| session.at_authd) {
            return self.order_done(id, Err(NoReply::Gone));
        }
        let deadline_ms = ((until - self.now) / MS) as u32;
        self.at(until - self.now, Event::OrderLate(id));
        self.send_peer(session, Packet::Request { id, deadline_ms, call });
    }

    pub(crate) fn order_late(&mut self, order: u64) {
        self.order_done(order, Err(NoReply::Late));
        self.apply_effects();
    }

    fn order_done(&mut self, id: u64, outcome: Result<Reply, NoReply>) {
        let Some(Given { then, work, .. }) = self.office.orders.remove(&id) else { return };
        let moment = self.moment();
        let Some(authd) = &mut self.office.running else { return };
        let next = authd.answered(then, outcome, moment);
        match work {
            Some(work) => self.work_goes_on(work, next),
            None => {
                if let Ok(Next::Order(order)) = next {
                    let until = self.now + ORDER_TIME;
                    self.give(*order, None, until);
                }
            }
        }
    }

    pub(crate) fn work_late(&mut self, id: u64) {
        if self.office.works.get(&id).is_some_and(|work| work.waits) {
            self.work_goes_on(id, Err(Refusal::new(RefusalCode::Deadline, "not done in time")));
        }
    }

    pub(crate) fn office_orders(&mut self, session: u64, life: u64) {
        if life != self.office.life || !self.sessions.get(&session).is_some_and(|session| session.at_authd) {
            return;
        }
        self.at(S, Event::OrdersDue(session, life));
        self.give_due(session);
        self.apply_effects();
    }

    fn give_due(&mut self, session: u64) {
        let moment = self.moment();
        let Some(authd) = &mut self.office.running else { return };
        let Ok(mut due) = authd.due_orders(session, moment) else { return };
        due.sort_by_key(|order| self.order_of(&order.call));
        for order in due {
            let until = self.now + ORDER_TIME;
            self.give(order, None, until);
        }
    }

    /// Orders have their order from random ids: here, from the leases' numbers.
    fn order_of(&self, call: &Call) -> (u8, Option<usize>) {
        match call {
            Call::Fence(fence) => (0, self.names.get(&fence.lease).copied()),
            Call::Extend(extend) => (1, self.names.get(&extend.lease).copied()),
            _ => (2, None),
        }
    }

    pub(crate) fn apply_effects(&mut self) {
        loop {
            let Some(authd) = &mut self.office.running else { return };
            let effects = authd.take_effects();
            if effects.is_empty() {
                return;
            }
            let (mut sessions, mut changed) = (Vec::new(), false);
            for effect in effects {
                match effect {
                    Effect::Changed => changed = true,
                    Effect::Orders(session) => sessions.push(session),
                    Effect::CloseSession(session) => self.office_closes(session),
                    Effect::Close(key) => self.close_all(&key),
                    Effect::Farewell(key, session, mut calls) => {
                        calls.sort_by_key(|call| self.order_of(call));
                        for call in calls {
                            // Nobody waits for what comes of them.
                            self.office.next += 1;
                            let id = self.office.next;
                            self.send_peer(session, Packet::Request { id, deadline_ms: 2000, call });
                        }
                        let all: Vec<u64> = self.sessions_of(&key);
                        for session in all {
                            self.at(2 * S, Event::FarewellOver(session));
                        }
                    }
                }
            }
            sessions.sort_unstable();
            sessions.dedup();
            for session in sessions {
                if self.sessions.get(&session).is_some_and(|session| session.at_authd) {
                    self.give_due(session);
                }
            }
            if changed {
                let waiting: Vec<u64> =
                    self.office.works.iter().filter(|(_, work)| work.waits).map(|(id, _)| *id).collect();
                for id in waiting {
                    let Some(work) = self.office.works.get_mut(&id) else { continue };
                    work.waits = false;
                    let (who, session, call) = (work.who, work.session, work.call.clone());
                    let next = self.ask(who, session, call);
                    self.work_goes_on(id, next);
                }
            }
        }
    }

    fn sessions_of(&self, key: &PublicKey) -> Vec<u64> {
        let theirs = |who: Who| self.party(who).0 == *key;
        self.sessions.iter().filter(|(_, it)| it.at_authd && theirs(it.who)).map(|(id, _)| *id).collect()
    }

    fn close_all(&mut self, key: &PublicKey) {
        for session in self.sessions_of(key) {
            self.office_closes(session);
        }
    }
}
