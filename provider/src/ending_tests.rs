use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope};

use super::*;
use crate::attach::Admission;
use crate::double::{Call, Double, TestClock, endpoint};
use crate::hold::Shape;

const PAGE: u64 = 4096;
const SHAPE: Shape = Shape { blocks: 10, stride: 544 };

fn admission(first_block: u64, blocks: u64, rights: Rights) -> Admission {
    let deadline = Deadline { boot: BootId([1; 16]), tick: Tick(1000) };
    let holder = Identity::from_seed(&[first_block as u8; 32]).public();
    let scope = Scope { lease: LeaseId([2; 16]), deadline, first_block, blocks, rights, holder };
    let remotes = vec![endpoint(1), endpoint(2)];
    Admission { scope, root: false, hands: vec![scope.holder], remotes, request: [0; 32], nonce: Nonce([3; 16]) }
}

/// A lease with two attachments, one of them narrowed, and memory that their peers have written.
fn attached(backend: &Double, pool: &mut Pool) -> Hold<Double> {
    let extent = pool.take(SHAPE.bytes()).expect("room");
    let mut hold = Hold::open(backend, extent, SHAPE).map_err(|(_, fault)| fault).expect("opens");
    hold.bind(backend, &admission(0, 10, Rights::READ_WRITE), |_| Ok(())).expect("binds");
    hold.bind(backend, &admission(3, 2, Rights::WRITE), |_| Ok(())).expect("binds");
    backend.world().peers_write(0xa5);
    hold
}

fn run(backend: &Double, pool: &mut Pool, hold: Hold<Double>) -> (Steps, Option<Step>) {
    let clock = TestClock::stepping();
    let ended = Closed::new(hold, clock.now()).fence(backend, &clock).and_then(|fenced| {
        assert!(backend.world().regions.is_empty() && backend.world().queues.is_empty());
        fenced.wipe(backend, &clock)
    });
    match ended {
        Ok(clean) => (clean.free(pool, clock.now()), None),
        Err(failed) => {
            let (step, steps, faults) = failed.quarantine(pool);
            assert!(!faults.is_empty());
            (steps, Some(step))
        }
    }
}

#[test]
fn every_step_is_done_in_order_and_the_memory_comes_back_clean() {
    let (backend, mut pool) = (Double::new(8 * PAGE as usize), Pool::new(8 * PAGE, PAGE));
    let hold = attached(&backend, &mut pool);
    assert!(backend.world().memory.contains(&0xa5));
    let (steps, failed) = run(&backend, &mut pool, hold);
    assert_eq!(failed, None);
    let steps = steps.into_vec();
    assert!(steps.iter().map(|done| done.step).eq(Step::ALL));
    assert!(steps.is_sorted_by(|one, next| one.at_us < next.at_us));
    assert!(backend.world().memory.iter().all(|byte| *byte == 0));
    assert_eq!((pool.free_bytes(), pool.quarantined_bytes()), (8 * PAGE, 0));
}

#[test]
fn a_failing_step_is_not_claimed_and_its_memory_never_comes_back() {
    for (call, step) in [
        (Call::Destroy, Step::QueuePairsDestroyed),
        (Call::Deregister, Step::Deregistered),
        (Call::Wipe, Step::Wiped),
        (Call::Check, Step::Verified),
        (Call::FindDirt, Step::Verified),
    ] {
        let (backend, mut pool) = (Double::new(8 * PAGE as usize), Pool::new(8 * PAGE, PAGE));
        let hold = attached(&backend, &mut pool);
        let pinned = SHAPE.bytes().next_multiple_of(PAGE);
        backend.world().fail = Some(call);
        let (steps, failed) = run(&backend, &mut pool, hold);
        assert_eq!(failed, Some(step), "{call:?}");
        assert_eq!(steps.is_fenced(), step > Step::Deregistered, "{call:?}");
        let before: Vec<_> = Step::ALL.into_iter().filter(|other| *other < step).collect();
        assert!(steps.into_vec().iter().map(|done| done.step).eq(before), "{call:?}");
        assert_eq!((pool.quarantined_bytes(), pool.used_bytes()), (pinned, 0), "{call:?}");
        // Whatever is taken from now on, none of it is that memory.
        while let Some(extent) = pool.take(1) {
            assert!(extent.bytes().start >= pinned, "{call:?}");
        }
    }
}

#[test]
fn what_one_failure_leaves_behind_does_not_keep_the_rest_alive() {
    let (backend, mut pool) = (Double::new(8 * PAGE as usize), Pool::new(8 * PAGE, PAGE));
    let hold = attached(&backend, &mut pool);
    backend.world().fail = Some(Call::Destroy);
    run(&backend, &mut pool, hold);
    let world = backend.world();
    assert_eq!(world.queues.len(), 1, "the stuck one");
    assert!(world.regions.is_empty(), "which reaches nothing");
}
