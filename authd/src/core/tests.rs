//! The decisions, driven by hand: no socket, no thread, and a clock that moves when told to.

mod audit;
mod consent;
mod leases;
mod providers;
mod rotation;
mod sequences;
mod sharing;
mod trust;

use std::time::Duration;

use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce, Tenant};
use overbank_fabric::message::{
    Approve, Call, Carve, CreateLease, Fence, Granted, Heartbeat, HeldLease, LeaseInfo, LeaseState, Offer, RefusalCode,
    Reply, Role,
};
use overbank_fabric::receipt::{EndReason, Receipt, Step, StepDone};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::{Deadline, Tick};

use super::*;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 2 * MIB;

/// A core, an operator, and a clock.
struct Desk {
    core: Core,
    now: Now,
    operator: Person,
    sessions: u64,
}

struct Person {
    identity: Identity,
    asker: Asker,
}

impl Person {
    fn key(&self) -> PublicKey {
        self.identity.public()
    }
}

/// A lender, as its own process sees itself.
struct Lender {
    person: Person,
    boot: BootId,
    /// Its clock when the desk's was at its start.
    born: Tick,
}

fn tenant(name: &str) -> Tenant {
    name.parse().expect("a tenant")
}

fn wish(bytes: u64) -> CreateLease {
    CreateLease { nonce: Nonce::random(), bytes, block: 4096, ttl_ms: 60_000 }
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Fault>) -> RefusalCode {
    match outcome {
        Err(Fault::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn reply(next: Result<Next, Fault>) -> Reply {
    match next {
        Ok(Next::Answer(reply)) => reply,
        other => panic!("not answered: {other:?}"),
    }
}

fn order(next: Result<Next, Fault>) -> Order {
    match next {
        Ok(Next::Order(order)) => *order,
        other => panic!("no order: {other:?}"),
    }
}

fn granted(next: Result<Next, Fault>) -> Granted {
    match reply(next) {
        Reply::Granted(granted) => *granted,
        other => panic!("not granted: {other:?}"),
    }
}

fn refused<T>(code: RefusalCode) -> Result<T, OrderError> {
    Err(OrderError::Refused(Refusal::new(code, "no")))
}

impl Desk {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let identity = Arc::new(Identity::generate());
        let now = Now::read();
        let mut store = Store::in_memory(&identity.public());
        let invitation =
            crate::trust::first_invitation(&mut store, identity.public().fingerprint(), now.unix_ms + 1000);
        let join = overbank_fabric::message::Join { secret: invitation.expect("an invitation").secret };
        let core = Core::new(store, identity, limits, now);
        let operator = Person::new(Party::Client, SessionId(0));
        let mut desk = Self { core, now, operator, sessions: 0 };
        desk.core.admit(&desk.operator.key(), "127.0.0.1:1", now).expect("admitted");
        let asker = desk.operator.asker;
        reply(desk.ask(&asker, Call::Join(join)));
        desk
    }

    /// Somebody new whom nobody approved.
    fn stranger(&mut self, party: Party) -> Person {
        self.sessions += 1;
        let person = Person::new(party, SessionId(self.sessions));
        self.core.admit(&person.key(), "127.0.0.1:1", self.now).expect("admitted");
        person
    }

    fn approved(&mut self, role: Role, of: Option<&str>) -> Person {
        let person = self.stranger(if role == Role::Provider { Party::Provider } else { Party::Client });
        let approve = Approve { fingerprint: person.key().fingerprint(), role, tenant: of.map(tenant) };
        self.operate(Call::TrustApprove(approve));
        person
    }

    fn consumer(&mut self, of: &str) -> Person {
        self.approved(Role::Consumer, Some(of))
    }

    fn operate(&mut self, call: Call) -> Reply {
        let asker = self.operator.asker;
        reply(self.ask(&asker, call))
    }

    fn revoke(&mut self, person: &Person) {
        self.operate(Call::TrustRevoke(person.key().fingerprint()));
    }

    /// A lender with `pool` bytes free, connected.
    fn lender(&mut self, pool: u64) -> Lender {
        let person = self.approved(Role::Provider, None);
        let lender = Lender { person, boot: BootId::random(), born: Tick(1_000_000) };
        self.offer(&lender, pool, &[]);
        lender
    }

    fn ask(&mut self, asker: &Asker, call: Call) -> Result<Next, Fault> {
        self.core.request(asker, call, self.now)
    }

    fn answered(&mut self, order: Order, outcome: Result<Reply, OrderError>) -> Result<Next, Fault> {
        self.core.answered(order.then, outcome, self.now)
    }

    fn done(&mut self, order: Order) -> Result<Next, Fault> {
        self.answered(order, Ok(Reply::Done))
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix_ms += u64::try_from(time.as_millis()).expect("a short time");
    }

    /// The lender's true clock.
    fn tick(&self, lender: &Lender) -> Tick {
        lender.born.after_ms(self.now.instant.duration_since(self.core.started).as_millis() as u64)
    }

    fn beat(&self, lender: &Lender, free_bytes: u64) -> Heartbeat {
        Heartbeat { tick: self.tick(lender), free_bytes, quarantined_bytes: 0 }
    }

    fn try_offer(&mut self, lender: &Lender, pool: u64, leases: &[(LeaseId, Tick)]) -> Result<Next, Fault> {
        let held =
            |&(lease, tick): &(LeaseId, Tick)| HeldLease { lease, deadline: Deadline { boot: lender.boot, tick } };
        let offer = Offer {
            boot: lender.boot,
            heartbeat: self.beat(lender, pool),
            pool_bytes: pool,
            page_bytes: PAGE,
            device: "soft\u{1b}[31m".to_owned(),
            leases: leases.iter().map(held).collect(),
        };
        self.ask(&lender.person.asker, Call::Offer(offer))
    }

    fn offer(&mut self, lender: &Lender, pool: u64, leases: &[(LeaseId, Tick)]) {
        assert_eq!(reply(self.try_offer(lender, pool, leases)), Reply::Done);
    }

    fn heartbeat(&mut self, lender: &Lender, free: u64) {
        let beat = self.beat(lender, free);
        assert_eq!(reply(self.ask(&lender.person.asker, Call::Heartbeat(beat))), Reply::Done);
    }

    /// The lender's session breaks and it comes back over another.
    fn reconnect(&mut self, lender: &mut Lender) {
        self.core.session_closed(lender.person.asker.session);
        self.sessions += 1;
        lender.person.asker.session = SessionId(self.sessions);
    }

    fn create(&mut self, person: &Person, wish: CreateLease) -> Granted {
        let order = order(self.ask(&person.asker, Call::CreateLease(wish)));
        granted(self.done(order))
    }

    fn show(&mut self, lease: LeaseId) -> LeaseInfo {
        match self.operate(Call::ShowLease(lease)) {
            Reply::Leases(mut leases) => leases.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self, lease: LeaseId) -> LeaseState {
        self.show(lease).state
    }

    fn stored_deadline(&self, lease: LeaseId) -> Tick {
        crate::store::leases::find(self.core.store.read(), &lease).expect("readable").expect("there").deadline
    }

    fn due(&mut self, lender: &Lender) -> Vec<Order> {
        self.core.due_orders(lender.person.asker.session, self.now).expect("orders")
    }

    fn receipt(&self, lender: &Lender, granted: &Granted, steps: usize) -> Receipt {
        let steps = Step::ALL[..steps].iter().zip(1..).map(|(&step, at_us)| StepDone { step, at_us });
        Receipt {
            lease: granted.lease,
            tenant: granted.tenant.clone(),
            provider: lender.person.key(),
            boot: lender.boot,
            bytes: PAGE,
            reason: EndReason::Expired,
            due_us: 0,
            steps: steps.collect(),
        }
    }

    fn ended(&mut self, lender: &Lender, receipt: &Receipt) -> Result<Next, Fault> {
        let signed = Signed::new(receipt, &lender.person.identity);
        self.ask(&lender.person.asker, Call::Ended(signed))
    }
}

impl Person {
    fn new(party: Party, session: SessionId) -> Self {
        let identity = Identity::generate();
        let asker = Asker { key: identity.public(), party, session, from: None, correlation: None };
        Self { identity, asker }
    }
}

/// The lease and reason of an order to fence.
fn fence_of(order: &Order) -> (LeaseId, EndReason) {
    match &order.call {
        Call::Fence(Fence { lease, reason }) => (*lease, *reason),
        other => panic!("not a fence: {other:?}"),
    }
}

fn carve_of(order: &Order) -> Carve {
    match &order.call {
        Call::Carve(carve) => carve.clone(),
        other => panic!("not a carve: {other:?}"),
    }
}
