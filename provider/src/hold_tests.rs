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
fn an_attach_asks_before_each_long_step_whether_another_is_due_to_end() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &narrowed(1, 1..3, 10)).expect("binds");
    let (due, asked) = (hold.next_detach(), std::cell::RefCell::new(Vec::new()));
    let go_on = |detach| {
        asked.borrow_mut().push(detach);
        Ok(())
    };
    hold.bind(&backend, &admission(2, 0..10, Rights::READ_WRITE, 20), go_on).expect("binds");
    assert!(due.is_some());
    assert_eq!(asked.take(), [due; 2], "each queue pair");
    hold.bind(&backend, &admission(2, 0..10, Rights::READ_WRITE, 30), go_on).expect("binds");
    assert_eq!(asked.take(), [due; 4], "what is replaced, the region, each queue pair");
    hold.bind(&backend, &narrowed(3, 0..10, 40), go_on).expect("binds");
    assert_eq!(asked.take(), [due; 3], "the region, each queue pair");
}

/// An attach that is given up at its nth question.
fn bind_until(hold: &mut Hold<Double>, backend: &Double, admission: &Admission, nth: usize) -> RefusalCode {
    let asked = std::cell::Cell::new(0);
    let go_on = |_| {
        asked.set(asked.get() + 1);
        if asked.get() < nth { Ok(()) } else { Err(crate::waiting::ended()) }
    };
    hold.bind(backend, admission, go_on).expect_err("given up").code
}

#[test]
fn no_end_waits_for_a_region_to_be_registered_anew() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    let (first, again) = (admission(1, 0..10, Rights::READ_WRITE, 10), admission(1, 0..10, Rights::READ_WRITE, 20));
    let old = bind(&mut hold, &backend, &first).expect("binds").key.rkey;
    assert_eq!(bind_until(&mut hold, &backend, &again, 1), RefusalCode::LeaseEnded);
    assert_eq!((served(&backend), backend.world().regions.len()), (vec![10, 11], 1), "nothing was touched");
    assert_eq!(bind_until(&mut hold, &backend, &again, 2), RefusalCode::LeaseEnded);
    assert_eq!((served(&backend), backend.world().regions.len()), (vec![], 0), "left to the end to do: nothing");
    let fresh = bind(&mut hold, &backend, &again).expect("binds").key.rkey;
    assert!(fresh != old && !backend.world().regions.contains_key(&old.into()));
    let (regions, faults) = hold.destroy_queues(&backend);
    assert!(faults.is_empty() && regions.deregister(&backend).1.is_empty() && backend.world().regions.is_empty());
}

#[test]
fn a_key_that_cannot_be_made_anew_is_not_used_again() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 10)).expect("binds");
    backend.world().fail = Some(Call::Register);
    let refusal = bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 20)).expect_err("fails");
    assert_eq!((refusal.code, backend.world().regions.len()), (RefusalCode::Internal, 0));
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 30)).expect("the next one works");
    assert_eq!((served(&backend), backend.world().regions.len()), (vec![30, 31], 1));
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

fn narrowed(holder: u8, range: std::ops::Range<u64>, first_qpn: u32) -> Admission {
    Admission { root: false, ..admission(holder, range, Rights::READ, first_qpn) }
}

#[test]
fn a_holder_has_few_narrowed_attachments_and_its_oldest_makes_way() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &narrowed(2, 0..1, 90)).expect("binds");
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 80)).expect("the lease's own");
    for first in 0..9 {
        bind(&mut hold, &backend, &narrowed(1, first..first + 1, 10 * first as u32)).expect("binds");
    }
    let mut left = served(&backend);
    left.sort_unstable();
    assert_eq!(
        left,
        [50, 51, 60, 61, 70, 71, 80, 80, 81, 81, 90, 91],
        "the newest four, the lease's own, and another's"
    );
    // One of these again replaces itself, and no other.
    bind(&mut hold, &backend, &narrowed(1, 6..7, 30)).expect("binds");
    assert!(!served(&backend).contains(&60) && served(&backend).contains(&50));
    assert_eq!(backend.world().regions.len(), 1 + MAX_NARROWED_EACH + 1);
}

#[test]
fn the_lease_s_own_grant_always_finds_a_place() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    for holder in 1..MAX_ATTACHMENTS {
        bind(&mut hold, &backend, &narrowed(u8::try_from(holder).expect("few"), 0..1, 10)).expect("binds");
    }
    let refusal = bind(&mut hold, &backend, &narrowed(255, 0..1, 10)).expect_err("one too many");
    assert_eq!(refusal.code, RefusalCode::Busy);
    bind(&mut hold, &backend, &admission(0, 0..10, Rights::READ_WRITE, 10)).expect("there is one place for it");
    bind(&mut hold, &backend, &narrowed(3, 0..1, 10)).expect("an attached one again");
}

#[test]
fn what_narrowed_attachments_register_is_bounded() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    assert_eq!(hold.most_narrowed, MAX_NARROWED_SMALL, "it is a small lease");
    hold.most_narrowed = MAX_NARROWED * SHAPE.bytes();
    for holder in 2..=5 {
        bind(&mut hold, &backend, &narrowed(holder, 0..10, 10 * u32::from(holder))).expect("four times the whole");
    }
    for range in [0..10, 9..10] {
        let refusal = bind(&mut hold, &backend, &narrowed(6, range, 60)).expect_err("no more");
        assert!(refusal.code == RefusalCode::Busy && refusal.message.contains("share less"), "{refusal}");
    }
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 70)).expect("the lease's own registers nothing");
    // One holder has at most half, and makes room for itself.
    hold.detach_due(&backend, Tick(1000), &BTreeSet::new());
    for (range, expected) in [(0..10, vec![10]), (0..9, vec![9, 10]), (0..8, vec![8, 9]), (0..3, vec![3, 8, 9])] {
        bind(&mut hold, &backend, &narrowed(2, range, 10)).expect("binds");
        let world = backend.world();
        let mut blocks: Vec<_> = world.regions.values().filter(|region| region.rights == Rights::READ).collect();
        blocks.sort_by_key(|region| region.bytes.end);
        assert!(blocks.iter().map(|region| region.bytes.end / 544).eq(expected));
    }
}

#[test]
fn queue_pairs_are_bounded_and_those_that_are_replaced_do_not_count() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    hold.set_room(Usage { queue_pairs: 4, narrowed: 0 });
    for holder in [1, 2] {
        bind(&mut hold, &backend, &admission(holder, 0..10, Rights::READ_WRITE, 10)).expect("binds");
    }
    let refusal = bind(&mut hold, &backend, &admission(3, 0..10, Rights::READ_WRITE, 10)).expect_err("full");
    assert_eq!((refusal.code, hold.usage().queue_pairs), (RefusalCode::Busy, 4));
    bind(&mut hold, &backend, &admission(2, 0..10, Rights::READ_WRITE, 20)).expect("an attached one again");
    // Others have taken what was left.
    hold.set_room(Usage::default());
    bind(&mut hold, &backend, &admission(1, 0..10, Rights::READ_WRITE, 30)).expect("it takes no more than it had");
    let more = Admission { remotes: (40..43).map(endpoint).collect(), ..admission(1, 0..10, Rights::READ_WRITE, 40) };
    let refusal = bind(&mut hold, &backend, &more).expect_err("more than it had");
    let mut left = served(&backend);
    left.sort_unstable();
    assert_eq!((refusal.code, left), (RefusalCode::Busy, vec![20, 21, 30, 31]), "nothing was destroyed for it");
}

#[test]
fn a_narrowed_attach_that_takes_no_more_than_it_had_is_never_refused() {
    let backend = Double::new(1 << 16);
    let mut hold = open(&backend);
    bind(&mut hold, &backend, &narrowed(2, 0..5, 10)).expect("binds");
    hold.set_room(Usage::default());
    bind(&mut hold, &backend, &narrowed(2, 0..5, 20)).expect("it takes no more than it had");
    let refusal = bind(&mut hold, &backend, &narrowed(2, 0..6, 30)).expect_err("more than it had");
    assert_eq!((refusal.code, served(&backend)), (RefusalCode::Busy, vec![20, 21]));
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
