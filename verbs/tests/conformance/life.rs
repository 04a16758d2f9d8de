//! Beginnings and ends: states, peers that are gone, and memory that is taken back while it is written to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use overbank_verbs::{Access, Memory, MemoryRegion, Op, QpCaps, QpState, VerbsError, WcStatus, WorkRequest};

use crate::ends::*;

#[test]
fn a_queue_pair_is_connected_once_and_works_only_then() {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    let (near, far) = (memory(100, 1), memory(100, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    assert_eq!(a.qp.state(), QpState::Reset);
    let write = request((1, Op::Write), &mr, 0..100, &remote, 0);
    assert!(matches!(a.qp.post(&[write]), Err(VerbsError::State { state: QpState::Reset, .. })));
    connect(&a, Access::empty(), &b, REMOTE, PATIENT);
    assert_eq!((a.qp.state(), b.qp.state()), (QpState::ReadyToSend, QpState::ReadyToSend));
    let again = a.qp.connect(&b.qp.endpoint(), Access::empty(), PATIENT);
    assert!(matches!(again, Err(VerbsError::State { state: QpState::ReadyToSend, .. })));
    assert_eq!(a.run(write), WcStatus::SUCCESS);
    a.qp.set_error().unwrap();
    assert_eq!(a.qp.state(), QpState::Error);
    assert!(a.qp.connect(&b.qp.endpoint(), Access::empty(), PATIENT).is_err());
    assert_eq!(a.run(write), WcStatus::WR_FLUSH_ERR);
    a.qp.set_error().unwrap();
    a.qp.destroy().unwrap();
}

#[test]
fn what_was_refused_before_the_connection_is_never_carried_out() {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    let (near, spare, far) = (memory(100, 1), memory(100, GUARD), memory(100, 2));
    let (mr, other, remote) = (a.register(&near, ALL), a.register(&spare, ALL), b.register(&far, ALL));
    let early = request((1, Op::Read), &other, 0..100, &remote, 0);
    assert!(matches!(a.qp.post(&[early]), Err(VerbsError::State { .. })));
    connect(&a, Access::empty(), &b, REMOTE, PATIENT);
    assert_eq!(a.run(request((2, Op::Write), &mr, 0..100, &remote, 0)), WcStatus::SUCCESS);
    assert!(!a.cq.wait(Instant::now() + Duration::from_millis(100)).unwrap(), "more completions than requests");
    assert_eq!(bytes(&spare, 0..100), [GUARD; 100]);
}

#[test]
fn a_queue_pair_without_a_connection_is_stopped_and_destroyed() {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    let (near, far) = (memory(100, 1), memory(100, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    // Real devices refuse this peer before anything happens; the soft one talks to any port.
    let elsewhere = overbank_verbs::Endpoint { port: 4792, ..b.qp.endpoint() };
    let _ = a.qp.connect(&elsewhere, Access::empty(), HASTY);
    a.qp.set_error().unwrap();
    assert_eq!(a.qp.state(), QpState::Error);
    assert!(a.qp.connect(&b.qp.endpoint(), Access::empty(), PATIENT).is_err());
    assert_eq!(a.run(request((1, Op::Write), &mr, 0..100, &remote, 0)), WcStatus::WR_FLUSH_ERR);
    a.qp.destroy().unwrap();
    let fresh = End::on(&open());
    fresh.qp.set_error().unwrap();
    assert_eq!(fresh.qp.state(), QpState::Error);
    fresh.qp.destroy().unwrap();
    End::on(&open()).qp.destroy().unwrap();
}

#[test]
fn a_queue_pair_that_asks_for_no_reads_refuses_them() {
    let (device, b) = (open(), End::on(&open_peer()));
    let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(4).unwrap());
    let qp = pd.create_qp(&cq, QpCaps { send_queue: 4, outstanding_reads: 0 }).unwrap();
    qp.connect(&b.qp.endpoint(), Access::empty(), PATIENT).unwrap();
    b.qp.connect(&qp.endpoint(), REMOTE, PATIENT).unwrap();
    let (near, far) = (memory(100, 1), memory(100, 2));
    let (mr, remote) = (pd.register(&near, 0..100, ALL).unwrap(), b.register(&far, ALL));
    let read = qp.post(&[request((1, Op::Read), &mr, 0..100, &remote, 0)]);
    assert!(matches!(read, Err(VerbsError::Limit { .. })), "{read:?}");
    qp.post(&[request((2, Op::Write), &mr, 0..100, &remote, 0)]).unwrap();
    assert!(cq.wait(Instant::now() + Duration::from_secs(5)).unwrap());
    let mut done = Vec::new();
    cq.poll(4, &mut done).unwrap();
    assert_eq!((done.len(), done[0].id, done[0].status), (1, 2, WcStatus::SUCCESS));
}

#[test]
fn no_more_is_posted_than_the_completion_queue_holds() {
    let (device, b) = (open(), End::on(&open_peer()));
    let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(3).unwrap());
    let mut qp = pd.create_qp(&cq, QpCaps { send_queue: 8, outstanding_reads: 1 }).unwrap();
    qp.connect(&b.qp.endpoint(), Access::empty(), PATIENT).unwrap();
    b.qp.connect(&qp.endpoint(), REMOTE, PATIENT).unwrap();
    let (near, far) = (memory(100, 1), memory(100, 2));
    let (mr, remote) = (pd.register(&near, 0..100, ALL).unwrap(), b.register(&far, ALL));
    let write = |id| request((id, Op::Write), &mr, 0..100, &remote, 0);
    let full = |posted| matches!(posted, Err(VerbsError::QueueFull { what: "completion queue", .. }));
    qp.post(&[write(1), write(2)]).unwrap();
    assert!(full(qp.post(&[write(3), write(4)])));
    qp.post(&[write(3)]).unwrap();
    // The room comes back when completions are polled, not when they are made.
    std::thread::sleep(Duration::from_millis(50));
    assert!(full(qp.post(&[write(4)])));
    let mut done = Vec::new();
    while done.len() < 3 {
        assert!(cq.wait(Instant::now() + Duration::from_secs(5)).unwrap());
        cq.poll(1, &mut done).unwrap();
    }
    qp.post(&[write(4)]).unwrap();
    // Nor does it come back with the end of the queue pair.
    qp.destroy().unwrap();
    qp = pd.create_qp(&cq, QpCaps { send_queue: 8, outstanding_reads: 1 }).unwrap();
    qp.set_error().unwrap();
    assert!(full(qp.post(&[write(5), write(6), write(7)])));
    qp.post(&[write(5), write(6)]).unwrap();
    done.clear();
    while cq.poll(1, &mut done).unwrap() > 0 {}
    assert_eq!(done.iter().map(|done| done.id).collect::<Vec<_>>(), [4, 5, 6]);
}

#[test]
fn a_peer_is_reached_or_it_is_said_why_not() {
    let (device, b) = (open(), End::on(&open_peer()));
    device.reach(&b.qp.endpoint()).unwrap();
    let nobody = overbank_verbs::Endpoint { gid: [0; 16], ..b.qp.endpoint() };
    assert!(device.reach(&nobody).is_err());
}

/// The peer's silence ends in RETRY_EXC_ERR between the first timeout and a bound, and everything else is flushed, in
/// the order it was posted.
fn silence(end: impl FnOnce(End) -> Option<End>) {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    connect(&a, Access::empty(), &b, REMOTE, HASTY);
    let (near, far) = (memory(100_000, 1), memory(100_000, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let op = |id| if id % 2 == 0 { Op::Write } else { Op::Read };
    let batch: Vec<_> = (0..20).map(|id| request((id, op(id)), &mr, 0..9000, &remote, 0)).collect();
    a.qp.post(&batch).unwrap();
    assert!(a.completions(20).iter().all(|completion| completion.status == WcStatus::SUCCESS));
    let _keep = end(b);
    let begun = Instant::now();
    a.qp.post(&batch).unwrap();
    let completions = a.completions(20);
    let took = begun.elapsed();
    assert!(took >= HASTY.timeout && took < Duration::from_secs(5), "{took:?}");
    for (at, completion) in completions.iter().enumerate() {
        let status = if at == 0 { WcStatus::RETRY_EXC_ERR } else { WcStatus::WR_FLUSH_ERR };
        assert_eq!((completion.id, completion.op, completion.status), (at as u64, op(at as u64), status));
    }
    assert_eq!(a.qp.state(), QpState::Error);
}

#[test]
fn a_peer_in_the_error_state_is_silent() {
    silence(|b| {
        b.qp.set_error().unwrap();
        Some(b)
    });
}

#[test]
fn a_peer_whose_queue_pair_is_destroyed_is_silent() {
    silence(|b| {
        b.qp.destroy().unwrap();
        None
    });
}

#[test]
fn a_peer_that_is_gone_with_its_device_is_silent() {
    silence(|b| {
        drop(b);
        None
    });
}

#[test]
fn an_error_flushes_what_is_under_way_in_order() {
    let (a, b) = pair();
    let (near, far) = (memory(100_000, 1), memory(100_000, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    b.qp.set_error().unwrap();
    let batch: Vec<_> = (0..30).map(|id| request((id, Op::Write), &mr, 0..9000, &remote, 0)).collect();
    a.qp.post(&batch[..20]).unwrap();
    a.qp.set_error().unwrap();
    a.qp.post(&batch[20..]).unwrap();
    for (at, completion) in a.completions(30).iter().enumerate() {
        assert_eq!((completion.id, completion.status), (at as u64, WcStatus::WR_FLUSH_ERR));
    }
    assert!(!a.cq.wait(Instant::now() + Duration::from_millis(20)).unwrap(), "more completions than requests");
}

#[test]
fn a_request_that_is_refused_takes_those_behind_it_along() {
    let (a, b) = pair();
    let (near, far) = (memory(1000, 1), memory(1000, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let good = |id| request((id, Op::Write), &mr, 0..10, &remote, id as usize * 10);
    let bad = WorkRequest { rkey: remote.rkey() ^ 1, ..good(2) };
    a.qp.post(&[good(0), good(1), bad, good(3), good(4)]).unwrap();
    let statuses: Vec<_> = a.completions(5).iter().map(|completion| (completion.id, completion.status)).collect();
    let (ok, flushed) = (WcStatus::SUCCESS, WcStatus::WR_FLUSH_ERR);
    assert_eq!(statuses, [(0, ok), (1, ok), (2, WcStatus::REM_ACCESS_ERR), (3, flushed), (4, flushed)]);
    assert_eq!(bytes(&far, 0..20), [1; 20]);
    assert_eq!(bytes(&far, 20..1000), [2; 980], "what was posted behind the refused request was done");
}

#[test]
fn an_error_wakes_whoever_waits() {
    let device = open();
    let slow = overbank_verbs::Retry { timeout: Duration::from_secs(30), count: 1 };
    let (near, far) = (memory(100, 1), memory(100, 2));
    // Of several waiters one may wait for the others: each must be woken, in whatever order they came.
    let ends: Vec<_> = (0..3)
        .map(|_| {
            let (a, b) = (End::on(&device), End::on(&open_peer()));
            connect(&a, Access::empty(), &b, REMOTE, slow);
            let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
            b.qp.set_error().unwrap();
            a.qp.post(&[request((1, Op::Write), &mr, 0..100, &remote, 0)]).unwrap();
            (a, b, mr)
        })
        .collect();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = ends
            .iter()
            .map(|(a, ..)| {
                scope.spawn(move || {
                    assert!(a.cq.wait(Instant::now() + Duration::from_secs(20)).unwrap());
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        for at in [1, 2, 0] {
            ends[at].0.qp.set_error().unwrap();
            let deadline = Instant::now() + Duration::from_secs(5);
            while !waiters[at].is_finished() {
                assert!(Instant::now() < deadline, "waiter {at} was not woken");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    for (a, ..) in &ends {
        assert_eq!(a.completions(1)[0].status, WcStatus::WR_FLUSH_ERR);
    }
}

#[test]
fn a_long_wait_holds_up_nobody_else() {
    let device = open();
    let (idle, peer) = (End::on(&device), End::on(&open_peer()));
    connect(&idle, Access::empty(), &peer, REMOTE, PATIENT);
    std::thread::scope(|scope| {
        scope.spawn(|| idle.cq.wait(Instant::now() + Duration::from_secs(4)).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        let (a, b) = (End::on(&device), End::on(&open_peer()));
        connect(&a, Access::empty(), &b, REMOTE, HASTY);
        let (near, far) = (memory(100, 1), memory(100, 2));
        let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
        // Nothing arrives that would wake anybody; only time passes.
        b.qp.set_error().unwrap();
        let begun = Instant::now();
        assert_eq!(a.run(request((1, Op::Write), &mr, 0..100, &remote, 0)), WcStatus::RETRY_EXC_ERR);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    });
}

#[test]
fn time_passes_while_nobody_polls() {
    let (a, b) = (End::on(&open()), End::on(&open_peer()));
    connect(&a, Access::empty(), &b, REMOTE, HASTY);
    let (near, far) = (memory(100, 1), memory(100, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    b.qp.set_error().unwrap();
    // Long enough for everything to have gone to sleep.
    std::thread::sleep(Duration::from_millis(50));
    a.qp.post(&[request((1, Op::Write), &mr, 0..100, &remote, 0)]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while a.qp.state() != QpState::Error {
        assert!(Instant::now() < deadline, "the retries never ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(a.completions(1)[0].status, WcStatus::RETRY_EXC_ERR);
}

/// Writes all of `far` over and over from another thread, through a queue pair that is made for it, until it fails.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Flood {
    fn start(a: End, remote: &MemoryRegion) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (rkey, address, len) = (remote.rkey(), remote.address(), remote.len());
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let near = memory(len, 0xee);
                let mr = a.register(&near, Access::empty());
                let mut done = 0;
                let mut posted = 0;
                let mut completions = Vec::new();
                'flood: while !stop.load(Ordering::Relaxed) {
                    while posted < 16 {
                        let request = WorkRequest {
                            id: 0,
                            op: Op::Write,
                            region: &mr,
                            offset: 0,
                            len,
                            remote_address: address,
                            rkey,
                        };
                        a.qp.post(&[request]).unwrap();
                        posted += 1;
                    }
                    completions.clear();
                    posted -= a.cq.poll(16, &mut completions).unwrap();
                    for completion in &completions {
                        if completion.status != WcStatus::SUCCESS {
                            break 'flood;
                        }
                        done += 1;
                    }
                }
                done
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn wait_for_bytes(memory: &Memory) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while memory.first_nonzero(0..memory.len()).unwrap().is_none() {
        assert!(Instant::now() < deadline, "the flood never arrived");
        std::thread::yield_now();
    }
}

/// In each round the flood is cut off by `end`; from then on not a byte may change.
fn cut(rounds: u32, end: impl Fn(MemoryRegion, &mut End) -> Option<MemoryRegion>) {
    let (device_a, device_b) = (open(), open_peer());
    let mut b = End::on(&device_b);
    let far = memory(40_000, 0);
    let (mut slowest, mut changed) = (Duration::ZERO, 0);
    for round in 0..rounds {
        let a = End::on(&device_a);
        b.replace_qp();
        connect(&a, Access::empty(), &b, REMOTE, HASTY);
        let remote = b.register(&far, ALL);
        let flood = Flood::start(a, &remote);
        wait_for_bytes(&far);
        // Cut at another moment each time.
        let until = Instant::now() + Duration::from_micros(u64::from(round * 37 % 900));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let begun = Instant::now();
        let keep = end(remote, &mut b);
        slowest = slowest.max(begun.elapsed());
        far.wipe(0..far.len()).unwrap();
        let until = Instant::now() + Duration::from_millis(3);
        while Instant::now() < until {
            changed += u32::from(far.first_nonzero(0..far.len()).unwrap().is_some());
        }
        flood.stop();
        assert_eq!((changed, far.first_nonzero(0..far.len()).unwrap()), (0, None), "round {round}");
        drop(keep);
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    println!("{rounds} rounds, slowest {slowest:?}");
}

#[test]
fn no_byte_changes_after_deregister_returned() {
    cut(100, |remote, _| {
        remote.deregister().unwrap();
        None
    });
}

#[test]
fn no_byte_changes_after_a_region_is_dropped() {
    cut(20, |remote, _| {
        drop(remote);
        None
    });
}

#[test]
fn no_byte_changes_after_the_error_state() {
    if differs("the ERROR state alone does not stop a packet that is being carried out") {
        return;
    }
    cut(40, |remote, b| {
        b.qp.set_error().unwrap();
        Some(remote)
    });
}

#[test]
fn no_byte_changes_after_the_queue_pair_is_destroyed() {
    cut(40, |remote, b| {
        // The old one is dropped.
        b.replace_qp();
        Some(remote)
    });
}

#[test]
fn no_byte_changes_here_after_a_queue_pair_with_reads_is_destroyed() {
    let (device_a, device_b) = (open(), open_peer());
    let far = memory(60_000, 0xee);
    let near = memory(60_000, 0);
    for round in 0..60_u64 {
        let (a, b) = (End::on(&device_a), End::on(&device_b));
        connect(&a, Access::empty(), &b, REMOTE, HASTY);
        let (mr, remote) = (a.register(&near, Access::LOCAL_WRITE), b.register(&far, ALL));
        let batch: Vec<_> = (0..8).map(|id| request((id, Op::Read), &mr, 0..60_000, &remote, 0)).collect();
        a.qp.post(&batch).unwrap();
        let until = Instant::now() + Duration::from_micros(round * 13 % 300);
        while Instant::now() < until {
            a.cq.poll(16, &mut Vec::new()).unwrap();
        }
        a.qp.destroy().unwrap();
        near.wipe(0..near.len()).unwrap();
        let until = Instant::now() + Duration::from_millis(2);
        while Instant::now() < until {
            a.cq.poll(16, &mut Vec::new()).unwrap();
            assert_eq!(near.first_nonzero(0..near.len()).unwrap(), None, "round {round}");
        }
    }
}

#[test]
fn a_region_keeps_its_memory_and_objects_keep_their_device() {
    let (a, b) = pair();
    let (near, far) = (memory(1000, 7), memory(1000, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let weak = Arc::downgrade(&near);
    drop(near);
    assert!(weak.upgrade().is_some());
    let End { device, pd, cq, qp } = b;
    drop((device, pd, cq));
    let b_qp = qp;
    assert_eq!(a.run(request((1, Op::Write), &mr, 0..1000, &remote, 0)), WcStatus::SUCCESS);
    assert_eq!(bytes(&far, 0..1000), [7; 1000]);
    drop(b_qp);
    mr.deregister().unwrap();
    assert!(weak.upgrade().is_none(), "deregistered memory is kept");
}

#[test]
fn limits_are_refused_by_name() {
    let device = open();
    assert!(device.create_cq(0).is_err());
    assert!(device.create_cq(usize::MAX).is_err());
    let (pd, cq) = (device.alloc_pd().unwrap(), device.create_cq(8).unwrap());
    for send_queue in [0, usize::MAX] {
        assert!(pd.create_qp(&cq, QpCaps { send_queue, outstanding_reads: 1 }).is_err(), "{send_queue}");
    }
    assert!(pd.create_qp(&cq, QpCaps { send_queue: 8, outstanding_reads: u8::MAX }).is_err());
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let options = overbank_verbs::DeviceOptions::new("127.0.0.1".parse().unwrap());
    let error = overbank_verbs::Device::open("mlx5_99", &options).unwrap_err().to_string();
    assert!(error.contains("'mlx5_99'") && error.contains("soft"), "{error}");
}

#[test]
fn a_device_passes_its_own_test() {
    let seen = open().self_test(Duration::from_secs(10)).unwrap();
    assert!(seen.bytes > 1 << 16 && seen.write > Duration::ZERO && seen.read > Duration::ZERO, "{seen:?}");
}

#[test]
fn devices_open_and_close_again_and_again() {
    for _ in 0..30 {
        let (a, b) = pair();
        let (near, far) = (memory(100, 7), memory(100, 0));
        let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
        assert_eq!(a.run(request((1, Op::Write), &mr, 0..100, &remote, 0)), WcStatus::SUCCESS);
    }
}

#[test]
fn everything_may_be_sent_and_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<overbank_verbs::Device>();
    shared::<overbank_verbs::ProtectionDomain>();
    shared::<overbank_verbs::CompletionQueue>();
    shared::<overbank_verbs::QueuePair>();
    shared::<MemoryRegion>();
    shared::<Memory>();
    shared::<overbank_verbs::Lane>();
    shared::<VerbsError>();
}
