//! Random walks through the model, and the provider's real table made to take the same steps: after each, both must stand
//! the same. So what was proven of the model's provider is true of the code.

use std::sync::Arc;

use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::message::{Carve, Extend, Fence, RefusalCode};
use overbank_fabric::receipt::EndReason;
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope};
use stateright::Model;

use super::Random;
use super::system::{Act, Budget, Guards, LEASES, Packet, Provider, State, System};
use crate::attach::Admission;
use crate::clock::BootTime;
use crate::double::{Call, Double, TestClock, endpoint};
use crate::job::{Job, Task};
use crate::pool::Pool;
use crate::table::{Table, Terms};

const WALKS: u64 = 3000;
const STEPS: usize = 60;
const PAGE: u64 = 4096;
/// A tick of the model in milliseconds, and when it begins.
const TICK_MS: u64 = 1000;
const BEGIN_MS: u64 = 5000;

fn time(now: u8) -> BootTime {
    BootTime((BEGIN_MS + TICK_MS * u64::from(now)) * 1000)
}

fn lease(at: usize) -> LeaseId {
    LeaseId([at as u8 + 1; 16])
}

/// One life of a provider.
struct Real {
    boot: u8,
    table: Table<Double, u64>,
    backend: Double,
    jobs: Vec<Job<Double, u64>>,
    tickets: u64,
}

impl Real {
    fn new(boot: u8) -> Self {
        let identity = Arc::new(Identity::from_seed(&[42; 32]));
        let terms = Terms { identity, boot: BootId([boot; 16]), max_lease_ms: 3_600_000 };
        let (table, backend) = (Table::new(terms, Pool::new(PAGE, PAGE)), Double::new(PAGE as usize));
        Self { boot, table, backend, jobs: Vec::new(), tickets: 0 }
    }

    fn deadline(&self, at: u8) -> Deadline {
        Deadline { boot: BootId([self.boot; 16]), tick: Tick(time(at).0 / 1000) }
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Takes the jobs; addresses are reached at once, which the model knows nothing of. What was answered, if anything.
    fn collect(&mut self, now: BootTime) -> Vec<Result<(), RefusalCode>> {
        let mut answers = Vec::new();
        loop {
            let effects = self.table.take_effects();
            answers.extend(effects.answers.into_iter().map(|(_, outcome)| outcome.map(drop).map_err(|no| no.code)));
            self.jobs.extend(effects.jobs);
            let Some(at) = self.jobs.iter().position(|job| matches!(job.task, Task::Reach(_))) else { return answers };
            self.run(at, now);
        }
    }

    fn run(&mut self, at: usize, now: BootTime) {
        let job = self.jobs.remove(at);
        self.backend.world().peers_write(0xa5);
        let done = job.run(&self.backend, &TestClock::at(now.0));
        self.table.done(now, done);
    }

    fn job(&mut self, of: usize, now: BootTime, fail: Option<Call>) {
        let at = self.jobs.iter().position(|job| job.lease == lease(of)).expect("the table has a job for it");
        self.backend.world().fail = fail;
        self.run(at, now);
        self.backend.world().fail = None;
    }

    fn deliver(&mut self, packet: Packet, now: BootTime) {
        let ticket = self.ticket();
        match packet {
            Packet::Carve { lease: at, deadline, .. } => {
                let tenant = "t".parse().expect("a name");
                let deadline = self.deadline(deadline);
                let carve = Carve { lease: lease(at), tenant, blocks: 1, block: 512, deadline };
                self.table.carve(now, ticket, carve);
            }
            Packet::Bind { lease: at, consumer, .. } => {
                let scope = Scope {
                    lease: lease(at),
                    deadline: Deadline { tick: Tick(u64::MAX), ..self.deadline(0) },
                    first_block: 0,
                    blocks: 1,
                    rights: Rights::READ_WRITE,
                    holder: Identity::from_seed(&[consumer as u8; 32]).public(),
                };
                let nonce = Nonce((u128::from(ticket) << 8 | 1).to_be_bytes());
                let remotes = vec![endpoint(consumer as u32 + 1)];
                let admission =
                    Admission { scope, root: true, remotes, request: [0; 32], nonce, hands: vec![scope.holder] };
                self.table.bind(now, ticket, Box::new(admission), BootTime(u64::MAX));
            }
            Packet::Extend { lease: at, deadline, .. } => {
                let deadline = self.deadline(deadline);
                self.table.extend(now, ticket, &Extend { lease: lease(at), deadline });
            }
            Packet::Fence { lease: at, .. } => {
                self.table.fence(now, ticket, &Fence { lease: lease(at), reason: EndReason::Released });
            }
            Packet::Acknowledged { lease: at, .. } => self.table.acknowledge(lease(at)),
            // The auth daemon's and the consumers' part.
            _ => {}
        }
    }

    /// Whether both stand the same.
    fn check(&self, model: &Provider, now: u8) {
        for at in 0..LEASES {
            let expected = model.leases[at].map(|lease| (lease.phase, lease.ending));
            assert_eq!(self.table.stands(lease(at)), expected, "lease {at}");
            let receipt = self.table.receipts(None, LEASES).into_iter().find(|(id, _)| *id == lease(at));
            assert_eq!(receipt.is_some(), expected.is_some_and(|(phase, _)| phase == crate::lease::Name::Over));
        }
        let heartbeat = self.table.heartbeat(time(now));
        assert_eq!((heartbeat.free_bytes > 0, heartbeat.quarantined_bytes > 0), (model.free, model.withheld));
        let world = self.backend.world();
        assert_eq!(world.regions.len(), model.regions.count_ones() as usize, "regions");
        let served = world.queues.values().filter(|queue| !queue.stuck).filter_map(|queue| queue.remote.as_ref());
        let mut served: Vec<_> = served.map(|(remote, _)| remote.qpn as usize - 1).collect();
        let mut bound: Vec<_> = model.leases.iter().flatten().filter_map(|lease| lease.bound).collect();
        served.sort_unstable();
        bound.sort_unstable();
        assert_eq!(served, bound, "who is served");
        let due = model.leases.iter().flatten().any(|lease| !lease.ending && lease.deadline <= now);
        assert_eq!(self.table.next_due().is_some_and(|due| due <= time(now)), due, "what is due");
    }
}

fn follow(real: &mut [Real; 2], act: Act, before: &State, after: &State) {
    let now = time(before.now);
    let at = match act {
        Act::Tick(p) | Act::Connect(p) => {
            real[p].table.tick(now);
            p
        }
        Act::Deliver(
            packet @ (Packet::Carve { to, .. }
            | Packet::Bind { to, .. }
            | Packet::Extend { to, .. }
            | Packet::Fence { to, .. }
            | Packet::Acknowledged { to, .. }),
        ) => {
            real[to].deliver(packet, now);
            to
        }
        Act::Job(p, l) => {
            real[p].job(l, now, None);
            p
        }
        Act::JobFails(p, l) => {
            real[p].job(l, now, Some(Call::Deregister));
            p
        }
        Act::CrashProvider(p) => {
            real[p] = Real::new(after.providers[p].boot);
            p
        }
        _ => return,
    };
    let answers = real[at].collect(now);
    // What the model's provider says is what the real one does.
    for packet in after.net.iter().filter(|packet| !before.net.contains(packet)) {
        let (code, good) = match packet {
            Packet::Carved { good, .. } => ("carved", *good),
            Packet::Bound { .. } => ("bound", true),
            Packet::Extended { .. } => ("extended", true),
            Packet::Fenced { known, .. } => ("fenced", *known),
            _ => continue,
        };
        assert!(answers.iter().any(|answer| answer.is_ok() == good), "{code} {good}: {answers:?}");
    }
}

#[test]
fn the_real_table_takes_every_step_as_the_model_does() {
    let model = System::new(Guards::ALL, Budget::LARGE);
    let (mut steps, mut seen) = (0, std::collections::HashSet::new());
    for seed in 1..=WALKS {
        let mut random = Random::new(seed);
        let mut state = model.start();
        let mut real = [Real::new(0), Real::new(0)];
        let mut path = Vec::new();
        for _ in 0..STEPS {
            let mut acts = Vec::new();
            model.actions(&state, &mut acts);
            if acts.is_empty() {
                break;
            }
            let act = acts[random.below(acts.len())];
            let Some(next) = model.next_state(&state, act) else { continue };
            path.push(act);
            let compared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                follow(&mut real, act, &state, &next);
                for (real, provider) in real.iter().zip(&next.providers) {
                    real.check(provider, next.now);
                }
            }));
            assert!(compared.is_ok(), "seed {seed}: the model and the table part after {path:?}");
            state = next;
            steps += 1;
            seen.insert(state.providers.clone().map(|provider| (provider.leases, provider.regions)));
        }
    }
    println!("replay: {WALKS} walks, {steps} steps, {} distinct pairs of tables", seen.len());
    assert!(seen.len() > 1000);
}
