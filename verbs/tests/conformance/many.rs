//! Many queue pairs, several threads, and a device that talks to itself.

use overbank_verbs::{Access, Op, WcStatus};

use crate::ends::*;

/// Each of `count` connections moves its own bytes; all are posted before any is looked at.
fn crowd(a: &[End], b: &[End], rounds: u8) {
    let len = 6000;
    let (near, far) = (memory(a.len() * len, 0), memory(a.len() * len, 0));
    let regions: Vec<_> = a
        .iter()
        .zip(b)
        .enumerate()
        .map(|(at, (a, b))| {
            let range = at * len..(at + 1) * len;
            (a.pd.register(&near, range.clone(), ALL).unwrap(), b.pd.register(&far, range, ALL).unwrap())
        })
        .collect();
    for round in 0..rounds {
        let sent = pattern(a.len() * len, round);
        near.copy_in(0, &sent).unwrap();
        for (end, (mr, remote)) in a.iter().zip(&regions) {
            end.qp.post(&[request((1, Op::Write), mr, 0..len, remote, 0)]).unwrap();
        }
        for end in a {
            assert_eq!(end.completions(1)[0].status, WcStatus::SUCCESS);
        }
        assert!(bytes(&far, 0..far.len()) == sent);
        near.wipe(0..near.len()).unwrap();
        for (end, (mr, remote)) in a.iter().zip(&regions) {
            end.qp.post(&[request((2, Op::Read), mr, 0..len, remote, 0)]).unwrap();
        }
        for end in a {
            assert_eq!(end.completions(1)[0].status, WcStatus::SUCCESS);
        }
        assert!(bytes(&near, 0..near.len()) == sent);
    }
}

fn ends(device: &overbank_verbs::Device, count: usize) -> Vec<End> {
    (0..count).map(|_| End::on(device)).collect()
}

#[test]
fn many_queue_pairs() {
    let (a, b) = (ends(&open(), 200), ends(&open_peer(), 200));
    a.iter().zip(&b).for_each(|(a, b)| connect(a, Access::empty(), b, REMOTE, PATIENT));
    crowd(&a, &b, 3);
}

#[test]
fn many_queue_pairs_on_one_completion_queue() {
    let (device_a, device_b) = (open(), open_peer());
    let cq = device_a.create_cq(256).unwrap();
    let pd = device_a.alloc_pd().unwrap();
    let b = ends(&device_b, 32);
    let caps = overbank_verbs::QpCaps { send_queue: 8, outstanding_reads: 1 };
    let qps: Vec<_> = b.iter().map(|_| pd.create_qp(&cq, caps).unwrap()).collect();
    let (near, far) = (memory(32 * 100, 7), memory(32 * 100, 0));
    let mr = pd.register(&near, 0..near.len(), ALL).unwrap();
    let remotes: Vec<_> = b.iter().map(|b| b.register(&far, ALL)).collect();
    for (at, ((qp, b), remote)) in qps.iter().zip(&b).zip(&remotes).enumerate() {
        qp.connect(&b.qp.endpoint(), Access::empty(), PATIENT).unwrap();
        b.qp.connect(&qp.endpoint(), REMOTE, PATIENT).unwrap();
        qp.post(&[request((at as u64, Op::Write), &mr, at * 100..(at + 1) * 100, remote, at * 100)]).unwrap();
    }
    let mut all = Vec::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while all.len() < 32 {
        assert!(cq.wait(deadline).unwrap());
        cq.poll(5, &mut all).unwrap();
    }
    for completion in &all {
        assert_eq!(completion.status, WcStatus::SUCCESS);
        assert_eq!(completion.qpn, qps[completion.id as usize].endpoint().qpn);
    }
    assert_eq!(bytes(&far, 0..3200), [7; 3200]);
}

#[test]
fn a_device_that_talks_to_itself() {
    let device = open();
    let (a, b) = (ends(&device, 4), ends(&device, 4));
    a.iter().zip(&b).for_each(|(a, b)| connect(a, Access::empty(), b, REMOTE, PATIENT));
    crowd(&a, &b, 10);
}

#[test]
fn threads_that_share_a_device() {
    let (device_a, device_b) = (open(), open_peer());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let (a, b) = (End::on(&device_a), End::on(&device_b));
                connect(&a, Access::empty(), &b, REMOTE, PATIENT);
                crowd(&[a], &[b], 100);
            });
        }
    });
}

#[test]
fn waiters_that_share_a_device_are_each_woken() {
    let (device_a, device_b) = (open(), open_peer());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (device_a, device_b) = (&device_a, &device_b);
            scope.spawn(move || {
                let (a, b) = (End::on(device_a), End::on(device_b));
                connect(&a, Access::empty(), &b, REMOTE, PATIENT);
                let (near, far) = (memory(100, 7), memory(100, 0));
                let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
                for round in 0..40 {
                    // Some wait long before there is anything, some find it there.
                    let pause = std::time::Duration::from_micros(thread * 700 * (round % 5));
                    let idle = std::time::Instant::now() + pause;
                    assert!(!a.cq.wait(idle).unwrap());
                    let begun = std::time::Instant::now();
                    assert_eq!(a.run(request((round, Op::Write), &mr, 0..100, &remote, 0)), WcStatus::SUCCESS);
                    let took = begun.elapsed();
                    assert!(took < std::time::Duration::from_secs(1), "{took:?}: woken by its deadline alone");
                }
            });
        }
    });
}
