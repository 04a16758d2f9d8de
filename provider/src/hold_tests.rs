use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::time::Deadline;

use super::*;
use crate::double::{Call, Double, endpoint};
use crate::pool::Pool;
use crate::waiting::Ending;

const SHAPE: Shape = Shape { blocks: 10, stride: 544 };

fn open(backend: &Double) -> Hold<Double> {
    let extent = Pool::new(1 << 16, 4096).take(SHAPE.bytes()).expect("room");
    Hold::open(backend, extent, SHAPE).map_err(|(_, fault)| fault).expect("opens")
}

fn admission(holder: u8, range: std::ops::Range<u64>, rights: Rights, first_qpn: u32) -> Admission {
    let deadline = Deadline { boot: BootId([1; 16]), tick: Tick(1000) };
    let (first_block, blocks) = (range.start, range.end - range.start);
    let holder = Identity::from_seed(&[holder; 32]).public();
    let scope = Scope { lease: LeaseId([2; 16]), deadline, first_block, blocks, rights, holder };
    let remotes = vec![endpoint(first_qpn), endpoint(first_qpn + 1)];
    Admission { scope, root: true, hands: vec![scope.holder], remotes, request: [0; 32], nonce: Nonce([3; 16]) }
}

fn bind(hold: &mut Hold<Double>, backend: &Double, admission: &Admission) -> Result<Binding, Refusal> {
    hold.bind(backend, admission, |_| Ok(()))
}

/// Endpoints that are served.
fn served(backend: &Double) -> Vec<u32> {
    backend.world().queues.values().filter_map(|queue| queue.remote.as_ref()).map(|(remote, _)| remote.qpn).collect()
}

#[test]
fn a_narrowed_attach_reaches_just_its_blocks_with_just_its_rights() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    let whole = bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 10)).expect("binds");
    let part = bind(&mut hold, &backend, &admission(2, 4..6, Rights::READ, 20)).expect("binds");
    assert_eq!((whole.key.address, part.key.address), (0, 4 * 544));
    let world = backend.world();
    for (lane, qpn) in whole.lanes.iter().zip(10..) {
        let served = world.queues[&u64::from(lane.qpn)].remote.expect("connected").0;
        assert_eq!(served.qpn, qpn, "lanes are answered in their order");
    }
    let narrow = &world.regions[&u64::from(part.key.rkey)];
    assert_eq!((narrow.bytes.clone(), narrow.rights), (4 * 544..6 * 544, Rights::READ));
    let whole = &world.regions[&u64::from(whole.key.rkey)];
    assert_eq!((whole.bytes.clone(), whole.rights), (0..10 * 544, Rights::READ_WRITE));
    assert_ne!(narrow.domain, whole.domain);
    for queue in world.queues.values() {
        let (remote, rights) = queue.remote.expect("connected");
        let expected = if remote.qpn < 20 { (whole.domain, Rights::READ_WRITE) } else { (narrow.domain, Rights::READ) };
        assert_eq!((queue.domain, rights), expected);
    }
}

#[test]
fn read_only_on_all_blocks_is_narrow_too() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    let binding = bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ, 10)).expect("binds");
    assert_eq!(backend.world().regions[&u64::from(binding.key.rkey)].rights, Rights::READ);
}

#[test]
fn attaching_again_leaves_only_the_new_queue_pairs() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    for range in [0..10, 2..4] {
        bind(&mut hold, &backend, &admission(1, range.clone(), Rights::READ_WRITE, 10)).expect("binds");
        bind(&mut hold, &backend, &admission(2, range.clone(), Rights::READ_WRITE, 20)).expect("another holder");
        bind(&mut hold, &backend, &admission(1, range.clone(), Rights::READ_WRITE, 30)).expect("again");
    }
    assert_eq!(served(&backend).len(), 8);
    assert!(!served(&backend).contains(&10));
    assert_eq!(backend.world().regions.len(), 3, "the lease's, and one for each narrowed holder");
}

#[test]
fn a_failed_attach_leaves_nothing_half_made() {
    for call in [Call::OpenDomain, Call::Register, Call::CreateQueue, Call::Connect] {
        let backend = Double::new(1 << 16);
        let mut hold = open(&backend);
        bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 10)).expect("binds");
        backend.world().fail = Some(call);
        let refusal = bind(&mut hold, &backend, &admission(2, 1..3, Rights::READ, 20)).expect_err("fails");
        assert_eq!(refusal.code, RefusalCode::Internal);
        assert_eq!((served(&backend), backend.world().queues.len()), (vec![10, 11], 2), "{call:?}");
        assert_eq!(backend.world().regions.len(), 1, "{call:?}");
        bind(&mut hold, &backend, &admission(2, 1..3, Rights::READ, 20)).expect("the next one works");
    }
}

#[test]
fn an_attach_stops_between_two_queue_pairs_when_the_end_has_begun() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 10)).expect("binds");
    let ending = Ending::default();
    backend.world().end_in_connect = Some(ending.clone());
    let refusal = hold.bind(&backend, &admission(2, 1..3, Rights::READ, 20), |_| ending.check()).expect_err("ended");
    assert_eq!(refusal.code, RefusalCode::LeaseEnded);
    let connected: Vec<_> = backend.world().connected.iter().map(|remote| remote.qpn).collect();
    assert_eq!(connected, [10, 11, 20], "and not 21");
    assert_eq!((served(&backend), backend.world().regions.len()), (vec![10, 11], 1), "nothing half-made stays");
}

#[test]
fn an_attach_asks_before_each_queue_pair_whether_another_is_due_to_end() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &Admission { root: false, ..admission(1, 1..3, Rights::READ, 10) }).expect("binds");
    let (due, asked) = (hold.next_detach(), std::cell::RefCell::new(Vec::new()));
    let go_on = |detach| {
        asked.borrow_mut().push(detach);
        Ok(())
    };
    let lanes = hold.bind(&backend, &admission(2, 0..10, Rights::READ_WRITE, 20), go_on).expect("binds").lanes.len();
    assert!(due.is_some());
    assert_eq!(asked.into_inner(), vec![due; lanes]);
}

#[test]
fn what_cannot_be_destroyed_ends_all_attaching() {
    for call in [Call::Destroy, Call::Deregister] {
        let backend = Double::new(1 << 16);
        let mut hold = open(&backend);
        bind(&mut hold, &backend, &admission(1, 1..3, Rights::READ, 10)).expect("binds");
        backend.world().fail = Some(call);
        for holder in [1, 2] {
            let refusal = bind(&mut hold, &backend, &admission(holder, 1..3, Rights::READ, 20)).expect_err("stuck");
            assert_eq!(refusal.code, RefusalCode::Internal, "{call:?}");
        }
        let (_, faults) = hold.destroy_queues(&backend);
        assert_eq!(faults.len(), 1, "{call:?}");
    }
}

#[test]
fn holders_are_bounded() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    for holder in 0..MAX_ATTACHMENTS {
        let admission = admission(u8::try_from(holder).expect("few"), 0..10, Rights::READ_WRITE, 10);
        bind(&mut hold, &backend, &admission).expect("binds");
    }
    let refusal = bind(&mut hold, &backend, &admission(255, 0..10, Rights::READ_WRITE, 10)).expect_err("one too many");
    assert_eq!(refusal.code, RefusalCode::Busy);
    bind(&mut hold, &backend, &admission(0, 0..10, Rights::READ_WRITE, 10)).expect("an attached one again");
}

#[test]
fn queue_pairs_are_bounded_and_those_that_are_replaced_do_not_count() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    hold.set_room(4);
    for holder in [1, 2] {
        bind(&mut hold, &backend, &admission(holder, 0..10, Rights::READ_WRITE, 10)).expect("binds");
    }
    let refusal = bind(&mut hold, &backend, &admission(3, 0..10, Rights::READ_WRITE, 10)).expect_err("full");
    assert_eq!((refusal.code, hold.queue_pairs()), (RefusalCode::Busy, 4));
    bind(&mut hold, &backend, &admission(2, 0..10, Rights::READ_WRITE, 20)).expect("an attached one again");
    hold.set_room(3);
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 30)).expect_err("less room now");
    assert_eq!(hold.queue_pairs(), 2, "what it replaced is gone all the same");
}

#[test]
fn a_narrowed_token_s_attachment_ends_with_the_token() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 10)).expect("binds");
    bind(&mut hold, &backend, &Admission { root: false, ..admission(2, 0..10, Rights::READ_WRITE, 20) })
        .expect("binds");
    assert_eq!(hold.next_detach(), Some(Tick(1000)));
    hold.detach_due(&backend, Tick(999), &BTreeSet::new());
    assert_eq!(served(&backend).len(), 4);
    hold.detach_due(&backend, Tick(1000), &BTreeSet::new());
    assert_eq!((served(&backend), hold.next_detach()), (vec![10, 11], None));
}
