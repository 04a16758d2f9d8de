//! Random sequences of everything that can happen, against what must always be true.

use std::collections::{BTreeMap, HashMap};

use overbank_fabric::message::RenewLease;
use proptest::prelude::*;

use super::*;

/// How an order goes. The lender may do it and its answer be lost.
#[derive(Debug, Clone, Copy)]
enum Luck {
    Done,
    Refused,
    Late { done: bool },
    Broken { done: bool },
}

#[derive(Debug, Clone)]
enum Op {
    Create(Luck),
    /// The request that made the lease of this number comes again.
    Again(usize),
    Renew(usize, u64, Luck),
    Release(usize, Luck),
    Pass(u64),
    Break(bool),
    Return(bool),
    Reboot(bool),
    Orders(bool, Luck),
    RestartDaemon,
}

fn luck() -> impl Strategy<Value = Luck> {
    prop_oneof![
        5 => Just(Luck::Done),
        1 => Just(Luck::Refused),
        1 => any::<bool>().prop_map(|done| Luck::Late { done }),
        1 => any::<bool>().prop_map(|done| Luck::Broken { done }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => luck().prop_map(Op::Create),
        2 => (0_usize..20).prop_map(Op::Again),
        3 => (0_usize..20, 1000_u64..20_000, luck()).prop_map(|(which, ttl, luck)| Op::Renew(which, ttl, luck)),
        3 => (0_usize..20, luck()).prop_map(|(which, luck)| Op::Release(which, luck)),
        4 => (0_u64..4000).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Break),
        3 => any::<bool>().prop_map(Op::Return),
        1 => any::<bool>().prop_map(Op::Reboot),
        3 => (any::<bool>(), luck()).prop_map(|(which, luck)| Op::Orders(which, luck)),
        1 => Just(Op::RestartDaemon),
    ]
}

struct World {
    desk: Desk,
    alice: Person,
    lenders: [Lender; 2],
    connected: [bool; 2],
    /// What each lender truly holds.
    held: [HashMap<LeaseId, Tick>; 2],
    /// What it has fenced, and no receipt of which was taken yet.
    receipts: [Vec<Receipt>; 2],
    /// What the consumer was told, with the last state that was shown.
    told: BTreeMap<Nonce, (Granted, CreateLease, LeaseState)>,
    order_of: Vec<Nonce>,
}

impl World {
    fn new() -> Self {
        let mut desk = Desk::new();
        let lenders = [desk.lender(64 * MIB), desk.lender(64 * MIB)];
        let alice = desk.consumer("red");
        Self {
            desk,
            alice,
            lenders,
            connected: [true; 2],
            held: Default::default(),
            receipts: Default::default(),
            told: BTreeMap::new(),
            order_of: Vec::new(),
        }
    }

    /// Which lender's session this is.
    fn lender_at(&self, session: SessionId) -> usize {
        self.lenders.iter().position(|lender| lender.person.asker.session == session).expect("a lender's session")
    }

    fn end_at_lender(&mut self, which: usize, lease: LeaseId, reason: EndReason) {
        self.held[which].remove(&lease);
        let Some((granted, ..)) = self.told.values().find(|(granted, ..)| granted.lease == lease) else { return };
        let receipt = Receipt { reason, ..self.desk.receipt(&self.lenders[which], granted, 6) };
        self.receipts[which].push(receipt);
    }

    fn obey(&mut self, which: usize, call: &Call) -> Reply {
        match call {
            Call::Carve(carve) => drop(self.held[which].insert(carve.lease, carve.deadline.tick)),
            Call::Extend(extend) => {
                if let Some(tick) = self.held[which].get_mut(&extend.lease) {
                    *tick = (*tick).max(extend.deadline.tick);
                }
            }
            Call::Fence(fence) if self.held[which].contains_key(&fence.lease) => {
                self.end_at_lender(which, fence.lease, fence.reason);
            }
            _ => {}
        }
        Reply::Done
    }

    /// Gives an order and hands back what came of it, until something is answered.
    fn settle(&mut self, mut next: Result<Next, Fault>, luck: Luck) -> Result<Reply, Fault> {
        loop {
            let order = match next {
                Ok(Next::Answer(reply)) => return Ok(reply),
                Ok(Next::Wait) => panic!("nothing else is under way"),
                Err(fault) => return Err(fault),
                Ok(Next::Order(order)) => *order,
            };
            let which = self.lender_at(order.session);
            assert!(self.connected[which], "nobody is ordered who is away");
            let knows = match &order.call {
                Call::Carve(_) => true,
                Call::Extend(extend) => self.held[which].contains_key(&extend.lease),
                Call::Fence(fence) => self.held[which].contains_key(&fence.lease),
                _ => false,
            };
            let outcome = match luck {
                _ if !knows => refused(RefusalCode::NoSuchLease),
                Luck::Done => Ok(self.obey(which, &order.call)),
                Luck::Refused => refused(RefusalCode::Busy),
                Luck::Late { done } | Luck::Broken { done } => {
                    if done {
                        self.obey(which, &order.call);
                    }
                    match luck {
                        Luck::Late { .. } => Err(OrderError::Late),
                        _ => {
                            self.part(which);
                            Err(OrderError::Gone)
                        }
                    }
                }
            };
            next = self.desk.answered(order, outcome);
        }
    }

    fn part(&mut self, which: usize) {
        if std::mem::replace(&mut self.connected[which], false) {
            self.desk.reconnect(&mut self.lenders[which]);
        }
    }

    fn come_back(&mut self, which: usize) {
        if std::mem::replace(&mut self.connected[which], true) {
            return;
        }
        let held: Vec<_> = self.held[which].iter().map(|(&lease, &tick)| (lease, tick)).collect();
        self.desk.offer(&self.lenders[which], 64 * MIB, &held);
    }

    /// Leases end by the lender's own clock, and who is connected is heard of.
    fn live(&mut self) {
        for which in 0..2 {
            let tick = self.desk.tick(&self.lenders[which]);
            let over: Vec<_> = self.held[which].iter().filter(|(_, end)| **end <= tick).map(|(&it, _)| it).collect();
            for lease in over {
                self.end_at_lender(which, lease, EndReason::Expired);
            }
            if self.connected[which] {
                self.desk.heartbeat(&self.lenders[which], 60 * MIB);
                for receipt in std::mem::take(&mut self.receipts[which]) {
                    reply(self.desk.ended(&self.lenders[which], &receipt));
                }
            }
        }
    }

    fn remember(&mut self, wish: CreateLease, granted: Granted) {
        let scope = granted.token.verify(&self.desk.core.identity.public()).expect("good");
        let which = self.lenders.iter().position(|lender| lender.person.key() == granted.provider).expect("a lender");
        if granted.boot == self.lenders[which].boot {
            let latest = self.desk.tick(&self.lenders[which]).after_ms(24 * 3_600_000);
            assert!(scope.deadline.tick <= latest);
            if let Some(held) = self.held[which].get(&granted.lease) {
                assert!(scope.deadline.tick <= *held, "no token promises more than the lender holds");
            }
        }
        let state = self.told.get(&wish.nonce).map_or(LeaseState::Active, |(_, _, state)| *state);
        if self.told.insert(wish.nonce, (granted, wish.clone(), state)).is_none() {
            self.order_of.push(wish.nonce);
        }
    }

    fn nth(&self, which: usize) -> Option<(Granted, CreateLease)> {
        let nonce = self.order_of.get(which % self.order_of.len().max(1))?;
        self.told.get(nonce).map(|(granted, wish, _)| (granted.clone(), wish.clone()))
    }

    fn step(&mut self, op: Op) {
        let asker = self.alice.asker;
        match op {
            Op::Create(luck) => {
                let wish = CreateLease { ttl_ms: 10_000, ..wish(MIB) };
                let next = self.desk.ask(&asker, Call::CreateLease(wish.clone()));
                if let Ok(Reply::Granted(granted)) = self.settle(next, luck) {
                    assert!(granted.left_ms <= 10_000);
                    self.remember(wish, *granted);
                }
            }
            Op::Again(which) => {
                let Some((before, wish)) = self.nth(which) else { return };
                let next = self.desk.ask(&asker, Call::CreateLease(wish.clone()));
                match self.settle(next, Luck::Done) {
                    Ok(Reply::Granted(granted)) => {
                        assert_eq!(granted.lease, before.lease);
                        self.remember(wish, *granted);
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(fault) => {
                        let code = code::<()>(Err(fault));
                        assert!(matches!(code, RefusalCode::LeaseEnded | RefusalCode::LeaseLost), "{code:?}");
                    }
                }
            }
            Op::Renew(which, ttl_ms, luck) => {
                let Some((granted, wish)) = self.nth(which) else { return };
                let deadline = self.desk.stored_deadline(granted.lease);
                let next = self.desk.ask(&asker, Call::RenewLease(RenewLease { lease: granted.lease, ttl_ms }));
                if let Ok(Reply::Granted(renewed)) = self.settle(next, luck) {
                    self.remember(wish, *renewed);
                }
                assert!(self.desk.stored_deadline(granted.lease) >= deadline, "never shortens");
            }
            Op::Release(which, luck) => {
                let Some((granted, _)) = self.nth(which) else { return };
                let next = self.desk.ask(&asker, Call::ReleaseLease(granted.lease));
                if let Ok(Reply::Leases(_)) = self.settle(next, luck) {
                    assert!(self.held.iter().all(|held| !held.contains_key(&granted.lease)), "answered when fenced");
                }
            }
            Op::Pass(ms) => self.desk.pass(Duration::from_millis(ms)),
            Op::Break(which) => self.part(usize::from(which)),
            Op::Return(which) => self.come_back(usize::from(which)),
            Op::Reboot(which) => {
                let which = usize::from(which);
                self.part(which);
                self.lenders[which].boot = BootId::random();
                self.held[which].clear();
                self.receipts[which].clear();
                self.come_back(which);
            }
            Op::Orders(which, luck) => self.orders(usize::from(which), luck),
            Op::RestartDaemon => {
                for which in 0..2 {
                    self.part(which);
                }
                let identity = Arc::clone(&self.desk.core.identity);
                let blank = Core::new(
                    Store::in_memory(&identity.public()),
                    Arc::clone(&identity),
                    Limits::default(),
                    self.desk.now,
                );
                let before = std::mem::replace(&mut self.desk.core, blank);
                let started = before.started;
                let after = Core::new(before.store, identity, Limits::default(), self.desk.now);
                self.desk.core = Core { started, ..after };
            }
        }
        self.live();
        self.check();
    }

    fn orders(&mut self, which: usize, luck: Luck) {
        if !self.connected[which] {
            return;
        }
        for order in self.desk.due(&self.lenders[which]) {
            if self.connected[which] {
                let _ = self.settle(Ok(Next::Order(Box::new(order))), luck);
            } else {
                let _ = self.desk.answered(order, Err(OrderError::Gone));
            }
        }
    }

    fn check(&mut self) {
        let leases: Vec<_> = self.told.iter().map(|(nonce, (granted, ..))| (*nonce, granted.clone())).collect();
        for (nonce, granted) in leases {
            let info = self.desk.show(granted.lease);
            let which = self.lenders.iter().position(|it| it.person.key() == granted.provider).expect("a lender");
            if info.state == LeaseState::Active && self.connected[which] {
                assert!(self.held[which].contains_key(&granted.lease), "what is shown as active is there");
            }
            if info.state == LeaseState::Ended {
                assert!(info.receipt.is_some_and(|it| it.open(&granted.provider).is_ok_and(|it| it.is_complete())));
            }
            let rank = |state| match state {
                LeaseState::Active => 0,
                LeaseState::Ending => 1,
                LeaseState::Lost => 2,
                LeaseState::Ended => 3,
            };
            let (.., before) = self.told.get_mut(&nonce).expect("told");
            assert!(rank(info.state) >= rank(*before), "{before} became {}", info.state);
            *before = info.state;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_told_stays_true(ops in proptest::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        // At peace, both sides hold the same.
        for which in 0..2 {
            world.come_back(which);
        }
        for _ in 0..3 {
            for which in 0..2 {
                world.orders(which, Luck::Done);
            }
            world.live();
        }
        world.check();
        let told: Vec<_> = world.told.values().map(|(granted, ..)| granted.lease).collect();
        for lease in world.held.iter().flat_map(HashMap::keys) {
            prop_assert!(told.contains(lease), "memory is held for a lease that nobody knows");
        }
        for lease in told {
            let held = world.held.iter().any(|held| held.contains_key(&lease));
            let info = world.desk.show(lease);
            // One that outstayed its deadline is fenced by order, but not at once.
            let outstaying = (info.state, info.reason) == (LeaseState::Ending, Some(EndReason::Expired));
            prop_assert!(held == (info.state == LeaseState::Active) || (held && outstaying), "{}", info.state);
        }
        prop_assert!(world.desk.core.fencing.is_empty());
    }
}
