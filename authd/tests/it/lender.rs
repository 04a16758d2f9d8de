//! A lender without memory: it speaks the protocol, keeps a list of what it would hold, and misbehaves when told to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use overbank_fabric::attach::{AttachAnswer, EndpointBytes};
use overbank_fabric::channel::{self, Answer, CallError, Caller};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, CorrelationId, LeaseId, Tenant};
use overbank_fabric::message::{Attach, Call, Heartbeat, HeldLease, Offer, Refusal, RefusalCode, Reply};
use overbank_fabric::receipt::{EndReason, Receipt, Step, StepDone};
use overbank_fabric::signed::Signed;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::Rights;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::daemon::MIB;

const PAGE: u64 = 4096;

/// One life of a lender's process. Cloned, it is the same one.
#[derive(Clone)]
pub(crate) struct Lender {
    pub(crate) identity: Arc<Identity>,
    pub(crate) boot: BootId,
    pub(crate) inside: Arc<Mutex<Inside>>,
    born: Instant,
}

pub(crate) struct Inside {
    pub(crate) pool: u64,
    pub(crate) held: HashMap<LeaseId, Held>,
    /// Orders, in the order of their coming.
    pub(crate) orders: Vec<Call>,
    /// Orders are never answered.
    pub(crate) hangs: bool,
    /// Attaches are never answered.
    pub(crate) keeps_attaches: bool,
    /// Nothing is said by itself: no heartbeat, no receipt.
    pub(crate) silent: bool,
    pub(crate) fenced: Vec<(LeaseId, EndReason)>,
}

#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) tenant: Tenant,
    pub(crate) bytes: u64,
    pub(crate) deadline: Deadline,
}

/// A session of a lender. Dropped, it breaks.
pub(crate) struct Session {
    pub(crate) caller: Caller,
    _tasks: JoinSet<()>,
}

impl Lender {
    pub(crate) fn new(identity: Identity) -> Self {
        let inside = Inside {
            pool: 64 * MIB,
            held: HashMap::new(),
            orders: Vec::new(),
            hangs: false,
            keeps_attaches: false,
            silent: false,
            fenced: Vec::new(),
        };
        Self {
            identity: Arc::new(identity),
            boot: BootId::random(),
            inside: Arc::new(Mutex::new(inside)),
            born: Instant::now(),
        }
    }

    /// The same machine, its process started again.
    pub(crate) fn reborn(&self) -> Self {
        let identity = Identity::from_seed(&self.identity.seed());
        Self { born: self.born, ..Self::new(identity) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no panic inside")
    }

    pub(crate) fn tick(&self) -> Tick {
        Tick(1_000_000).after_ms(self.born.elapsed().as_millis() as u64)
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let inside = self.lock();
        let used: u64 = inside.held.values().map(|held| held.bytes).sum();
        Heartbeat { tick: self.tick(), free_bytes: inside.pool - used, quarantined_bytes: 0 }
    }

    pub(crate) fn offer(&self) -> Offer {
        let heartbeat = self.heartbeat();
        let inside = self.lock();
        let held = inside.held.iter().map(|(&lease, held)| HeldLease { lease, deadline: held.deadline });
        Offer {
            boot: self.boot,
            heartbeat,
            pool_bytes: inside.pool,
            page_bytes: PAGE,
            device: "none".to_owned(),
            leases: held.collect(),
        }
    }

    /// Connects, offers, and from then on does as ordered.
    pub(crate) async fn connect(&self, authd: SocketAddr) -> Session {
        let stream = TcpStream::connect(authd).await.expect("the daemon listens");
        let (channel, _) =
            channel::connect(stream, &self.identity, Party::Provider, |_| Ok(())).await.expect("a session");
        let (caller, mut incoming, driver) = channel.multiplex(1024);
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            driver.await;
        });
        let (me, asks) = (self.clone(), caller.clone());
        tasks.spawn(async move {
            let mut hanging = Vec::new();
            while let Some((request, answer)) = incoming.next().await {
                if let Some(answer) = me.obey(&asks, request.call, answer).await {
                    hanging.push(answer);
                }
            }
        });
        ask(&caller, Call::Offer(self.offer())).await.expect("the offer is accepted");
        let (me, asks) = (self.clone(), caller.clone());
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if !me.lock().silent && ask(&asks, Call::Heartbeat(me.heartbeat())).await.is_err() {
                    return;
                }
            }
        });
        Session { caller, _tasks: tasks }
    }

    /// Does as ordered; gives the answer back where it hangs.
    async fn obey(&self, asks: &Caller, call: Call, answer: Answer) -> Option<Answer> {
        let (hangs, silent) = {
            let mut inside = self.lock();
            inside.orders.push(call.clone());
            let keeps = inside.keeps_attaches && matches!(call, Call::Bind(_));
            (inside.hangs || keeps, inside.silent)
        };
        if hangs {
            return Some(answer);
        }
        let outcome = self.outcome(&call);
        answer.send(outcome).await;
        if let Call::Fence(fence) = call {
            let ended = self.lock().held.remove(&fence.lease);
            if let Some(held) = ended.filter(|_| !silent) {
                let receipt = self.receipt(fence.lease, &held, fence.reason);
                let _ = ask(asks, Call::Ended(receipt)).await;
            }
        }
        None
    }

    fn outcome(&self, call: &Call) -> Result<Reply, Refusal> {
        let mut inside = self.lock();
        match call {
            Call::Carve(carve) => {
                let bytes = (carve.blocks * (u64::from(carve.block) + 32)).next_multiple_of(PAGE);
                let used: u64 = inside.held.values().map(|held| held.bytes).sum();
                if used + bytes > inside.pool {
                    return Err(Refusal::new(RefusalCode::PoolFull, "full"));
                }
                let held = Held { tenant: carve.tenant.clone(), bytes, deadline: carve.deadline };
                inside.held.insert(carve.lease, held);
                Ok(Reply::Done)
            }
            Call::Extend(extend) => match inside.held.get_mut(&extend.lease) {
                Some(held) => {
                    held.deadline.tick = held.deadline.tick.max(extend.deadline.tick);
                    Ok(Reply::Done)
                }
                None => Err(Refusal::new(RefusalCode::NoSuchLease, "not held")),
            },
            Call::Fence(fence) if inside.held.contains_key(&fence.lease) => {
                inside.fenced.push((fence.lease, fence.reason));
                Ok(Reply::Done)
            }
            Call::Bind(attach) => Ok(Reply::Attached(self.attached(attach))),
            _ => Err(Refusal::new(RefusalCode::NoSuchLease, "not held")),
        }
    }

    pub(crate) fn attached(&self, attach: &Attach) -> Signed<AttachAnswer> {
        let answer = AttachAnswer {
            request: attach.request.hash(),
            lease: attach.lease,
            lanes: vec![EndpointBytes([7; 32])],
            address: 4096,
            rkey: 9,
            first_block: 0,
            blocks: 1,
            stride: 4128,
            rights: Rights::READ_WRITE,
            left_ms: 1000,
        };
        Signed::new(&answer, &self.identity)
    }

    pub(crate) fn receipt(&self, lease: LeaseId, held: &Held, reason: EndReason) -> Signed<Receipt> {
        let at_us = self.tick().0 * 1000;
        let receipt = Receipt {
            lease,
            tenant: held.tenant.clone(),
            provider: self.identity.public(),
            boot: self.boot,
            bytes: held.bytes,
            reason,
            due_us: at_us,
            steps: Step::ALL.iter().map(|&step| StepDone { step, at_us }).collect(),
        };
        Signed::new(&receipt, &self.identity)
    }
}

pub(crate) async fn ask(caller: &Caller, call: Call) -> Result<Reply, CallError> {
    caller.call(CorrelationId::random(), 5000, call).await
}
