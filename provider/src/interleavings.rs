//! The keeper's threads in one order after the other: shuttle runs them one at a time, and lets another go on at each message,
//! each lock, and each call of the device. Who waits for ever is found as a deadlock.

/// In the place of [`crate::threads`].
mod threads {
    pub(crate) use shuttle::sync::Mutex;
    pub(crate) use shuttle::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

    pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        shuttle::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
    }
}
#[expect(dead_code, unreachable_pub, clippy::duplicate_mod, reason = "the same, with other threads")]
#[path = "keeper.rs"]
mod keeper;

use std::sync::Arc;

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::message::{Carve, Detach, Fence, RefusalCode, Reply};
use overbank_fabric::receipt::EndReason;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope};
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread::{JoinHandle, spawn, yield_now};
use shuttle::{Config, Runner};

use crate::attach::Admission;
use crate::clock::BootTime;
use crate::double::{Double, TestClock, endpoint};
use crate::pool::Pool;
use crate::table::{Table, Terms};

const BOOT: BootId = BootId([7; 16]);
const PAGE: u64 = 4096;
const BEGIN_US: u64 = 1_000_000;
/// Orders that are tried at random; and as many in which one thread is preferred, until it is not.
const RUNS: usize = 1000;

fn in_many_orders(test: fn()) {
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let mut config = Config::new();
        // Signing takes more than the default.
        config.stack_size = 1 << 20;
        Runner::new(scheduler, config).run(test)
    };
    assert_eq!(run(Box::new(RandomScheduler::new(RUNS))) + run(Box::new(PctScheduler::new(3, RUNS))), 2 * RUNS);
}

fn in_ms(ms: u64) -> Deadline {
    Deadline { boot: BOOT, tick: Tick(BEGIN_US / 1000 + ms) }
}

/// A provider whose pool is one page, and what a test looks at.
#[derive(Clone)]
struct Scene {
    keeper: keeper::Keeper<Double>,
    backend: Arc<Double>,
    clock: TestClock,
    me: Arc<Identity>,
}

impl Scene {
    fn new() -> Self {
        let me = Arc::new(Identity::from_seed(&[42; 32]));
        let terms = Terms { identity: Arc::clone(&me), boot: BOOT, max_lease_ms: 60_000 };
        let (clock, backend) = (TestClock::at(BEGIN_US), Arc::new(Double::new(PAGE as usize).pausing(yield_now)));
        let table = Table::new(terms, Pool::new(PAGE, PAGE));
        let keeper = keeper::Keeper::start(table, Arc::clone(&backend), clock.clone()).expect("threads");
        Self { keeper, backend, clock, me }
    }

    fn carve(&self, lease: u8, ms: u64) {
        let tenant = format!("t{lease}").parse().expect("a name");
        let carve = Carve { lease: LeaseId([lease; 16]), tenant, blocks: 1, block: 512, deadline: in_ms(ms) };
        assert_eq!(block_on(self.keeper.carve(carve)), Ok(Reply::Done));
    }

    /// Attaches in a thread of its own; what that came to.
    fn attach(&self, holder: u8, root: bool, number: u8) -> JoinHandle<Result<(), RefusalCode>> {
        let holder = Identity::from_seed(&[holder; 32]).public();
        let (lease, rights) = (LeaseId([1; 16]), Rights::READ_WRITE);
        let scope = Scope { lease, deadline: in_ms(30_000), first_block: 0, blocks: 1, rights, holder };
        let (remotes, nonce) = (vec![endpoint(number.into())], Nonce([number; 16]));
        let admission = Admission { scope, root, hands: vec![holder], remotes, request: [0; 32], nonce };
        let (keeper, until) = (self.keeper.clone(), BootTime(BEGIN_US).after_ms(30_000));
        spawn(move || block_on(keeper.bind(admission, until)).map(drop).map_err(|refusal| refusal.code))
    }

    fn assert_out_of_reach(&self) {
        let world = self.backend.world();
        assert!(!world.reachable(&(0..PAGE)) && world.queues.is_empty(), "within reach after the fence");
    }

    /// Waits for the lease's receipt. Its memory is another's then.
    fn next_lease(&self) {
        let receipt = block_on(async {
            loop {
                if let Some((_, receipt)) = self.keeper.receipts(None, 1).await.pop() {
                    return receipt.open(&self.me.public()).expect("signed by the provider");
                }
                self.keeper.receipt_made().await;
            }
        });
        assert!(receipt.is_complete() && receipt.steps[0].at_us >= receipt.due_us, "{receipt:?}");
        self.carve(2, 60_000);
    }

    /// Ends, and leaves nothing.
    fn drain(self) {
        block_on(self.keeper.drain());
        let (heartbeat, held) = block_on(self.keeper.look()).expect("it runs");
        assert_eq!((heartbeat.free_bytes, held.len()), (PAGE, 0));
        self.assert_out_of_reach();
        assert!(self.backend.world().memory.iter().all(|byte| *byte == 0));
    }
}

/// Only an end may have kept somebody out.
fn assert_fair(attached: JoinHandle<Result<(), RefusalCode>>) {
    let outcome = attached.join().expect("no panic");
    assert!(matches!(outcome, Ok(()) | Err(RefusalCode::LeaseEnded)), "{outcome:?}");
}

#[test]
fn an_order_to_fence_an_expiry_and_attaches_race() {
    in_many_orders(|| {
        let scene = Scene::new();
        scene.carve(1, 1000);
        // The same holder twice: the second one destroys what the first one made.
        let attaches = [scene.attach(1, true, 1), scene.attach(1, true, 2), scene.attach(2, false, 3)];
        let expiring = scene.clone();
        let expiring = spawn(move || {
            expiring.clock.advance_ms(1000);
            block_on(expiring.keeper.look())
        });
        let fence = Fence { lease: LeaseId([1; 16]), reason: EndReason::Revoked };
        assert_eq!(block_on(scene.keeper.fence(fence)), Ok(Reply::Done));
        scene.assert_out_of_reach();
        scene.next_lease();
        attaches.into_iter().for_each(assert_fair);
        expiring.join().expect("no panic").expect("it runs");
        scene.drain();
    });
}

#[test]
fn an_order_to_detach_an_expiry_and_attaches_race() {
    in_many_orders(|| {
        let scene = Scene::new();
        scene.carve(1, 1000);
        let own = scene.attach(1, true, 1);
        let barred = [scene.attach(2, false, 2), scene.attach(2, false, 3)];
        let expiring = scene.clone();
        let expiring = spawn(move || {
            expiring.clock.advance_ms(1000);
            block_on(expiring.keeper.look())
        });
        let holder = Identity::from_seed(&[2; 32]).public();
        let detached = block_on(scene.keeper.detach(Detach { lease: LeaseId([1; 16]), holder }));
        match detached.map_err(|refusal| refusal.code) {
            Ok(Reply::Done) => {
                let world = scene.backend.world();
                let mut served = world.queues.values().filter_map(|queue| queue.remote).map(|(remote, _)| remote.qpn);
                assert!(served.all(|number| number == 1), "served after the detach");
            }
            Err(RefusalCode::LeaseEnded) => {}
            other => panic!("{other:?}"),
        }
        assert_fair(own);
        for barred in barred {
            let outcome = barred.join().expect("no panic");
            assert!(matches!(outcome, Ok(()) | Err(RefusalCode::LeaseEnded | RefusalCode::BadToken)), "{outcome:?}");
        }
        expiring.join().expect("no panic").expect("it runs");
        scene.next_lease();
        scene.drain();
    });
}
