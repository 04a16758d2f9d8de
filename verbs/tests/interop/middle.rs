//! Ends that come in the middle of a full queue: what was answered is right, the next says so, the rest is flushed, and
//! from the moment that a region or a queue pair is gone not a byte moves.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overbank_verbs::{Completion, Memory, MemoryRegion, Op, QpState, Retry, WcStatus, WorkRequest};

use crate::ends::*;
use crate::loss::Cut;
use crate::transfers::pipeline;

/// Places; the queue is full of requests to each in turn, so that it is not done before the end comes.
const COUNT: usize = 16;
const LEN: usize = (1 << 20) + 13;
/// So many are done when it comes.
const DONE: usize = 3;
const HASTY: Retry = Retry { timeout: Duration::from_millis(40), count: 4 };

/// Long requests under way, of which the first are done.
struct Middle {
    what: String,
    op: Op,
    a: End,
    near: Arc<Memory>,
    mr: MemoryRegion,
    far: Arc<Memory>,
    data: Vec<u8>,
    done: Vec<Completion>,
}

impl Middle {
    fn begin(scene: &Scene, (asker, op): (Asker, Op)) -> (Self, End, MemoryRegion) {
        let (a, b) = scene.pair(asker, REMOTE, HASTY);
        let (near, far) = (memory(COUNT * LEN, GUARD), memory(COUNT * LEN, GUARD));
        let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
        let data = pattern(COUNT * LEN, 9);
        if op == Op::Read { &far } else { &near }.copy_in(0, &data).unwrap();
        let all: Vec<_> =
            (0..SEND_QUEUE).map(|at| request((at as u64, op), &mr, place(at), &remote, place(at).start)).collect();
        a.qp.post(&all).unwrap();
        let done = a.completions(DONE);
        (Self { what: format!("{asker:?} asks, {op:?}"), op, a, near, mr, far, data, done }, b, remote)
    }

    fn target(&self) -> &Memory {
        if self.op == Op::Read { &self.near } else { &self.far }
    }

    /// The rest of the completions: successes, one with one of these statuses, and flushed ones. Returns how many are
    /// successes; None where all are, because the end came late.
    fn finish(&mut self, statuses: &[WcStatus]) -> Option<usize> {
        let what = &self.what;
        self.done.extend(self.a.completions(SEND_QUEUE - DONE));
        assert!(self.done.iter().map(|done| done.id).eq(0..SEND_QUEUE as u64), "{what}: out of order: {:?}", self.done);
        let good = self.done.iter().take_while(|done| done.status == WcStatus::SUCCESS).count();
        if good == SEND_QUEUE {
            println!("{what}: all was done before the end came");
            return None;
        }
        let status = self.done[good].status;
        assert!(statuses.contains(&status), "{what}: number {good} ended with {status}");
        let flushed = |done: &Completion| done.status == WcStatus::WR_FLUSH_ERR;
        assert!(self.done[good + 1..].iter().all(flushed), "{what}: {:?}", self.done);
        assert_eq!(self.a.qp.state(), QpState::Error, "{what}");
        println!("{what}: {good} done, then {status}");
        Some(good)
    }

    /// What was done is there; of the rest, nothing or a part, and nowhere anything else.
    fn check(&self, now: &[u8], good: usize) {
        for at in 0..good {
            assert!(
                now[place(at)] == self.data[place(at)],
                "{}: number {at} is a success, with wrong bytes",
                self.what
            );
        }
        let guard = [GUARD; 1024];
        for (now, data) in now.chunks(guard.len()).zip(self.data.chunks(guard.len())) {
            let strange = |at: usize| now[at] != data[at] && now[at] != GUARD;
            let plain = now == data || *now == guard[..now.len()];
            assert!(plain || !(0..now.len()).any(strange), "{}: a byte that nobody sent", self.what);
        }
    }
}

fn place(at: usize) -> Range<usize> {
    let start = at % COUNT * LEN;
    start..start + LEN
}

fn whole(memory: &Memory) -> Vec<u8> {
    bytes(memory, 0..memory.len())
}

/// Again where the end came late, as on a busy machine.
fn each(mut case: impl FnMut(&Scene, (Asker, Op)) -> Option<()>) {
    let Some(scene) = scene() else { return };
    for asker in BOTH {
        for op in [Op::Read, Op::Write] {
            let in_time = (0..5).any(|_| case(&scene, (asker, op)).is_some());
            assert!(in_time, "{asker:?} asks, {op:?}: the end never comes in the middle");
        }
    }
}

fn wait_for_error(end: &End, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while end.qp.state() != QpState::Error {
        assert!(Instant::now() < deadline, "{what}: still in {:?}", end.qp.state());
        std::thread::yield_now();
    }
}

#[test]
fn a_region_deregistered() {
    each(|scene, (asker, op)| {
        let (mut middle, b, remote) = Middle::begin(scene, (asker, op));
        remote.deregister().unwrap();
        let then = whole(middle.target());
        if op == Op::Read {
            // Bytes that nobody may read.
            middle.far.copy_in(0, &middle.data.iter().map(|byte| !byte).collect::<Vec<_>>()).unwrap();
        }
        // A refusal that rxe would take for the rest of the READ is not sent: then it is time that tells it.
        let good = middle.finish(&[WcStatus::REM_ACCESS_ERR, WcStatus::RETRY_EXC_ERR])?;
        let now = whole(middle.target());
        middle.check(&now, good);
        if op == Op::Write {
            assert!(then == now, "{}: bytes moved after the region was deregistered", middle.what);
        }
        wait_for_error(&b, &middle.what);
        Some(())
    });
}

#[test]
fn the_answering_queue_pair_destroyed() {
    each(|scene, (asker, op)| {
        let (mut middle, b, remote) = Middle::begin(scene, (asker, op));
        b.qp.destroy().unwrap();
        let then = whole(&middle.far);
        let good = middle.finish(&[WcStatus::RETRY_EXC_ERR])?;
        middle.check(&whole(middle.target()), good);
        assert!(then == whole(&middle.far), "{}: bytes moved after the queue pair was destroyed", middle.what);
        remote.deregister().unwrap();
        Some(())
    });
}

/// What still arrives for it moves nothing, and its peer serves others as before.
#[test]
fn the_asking_queue_pair_destroyed() {
    each(|scene, (asker, op)| {
        let (middle, b, _remote) = Middle::begin(scene, (asker, op));
        let Middle { what, a, near, mr, far, .. } = middle;
        a.qp.destroy().unwrap();
        mr.deregister().unwrap();
        near.copy_in(0, &vec![GUARD; near.len()]).unwrap();
        pipeline(scene, asker, 1);
        assert!(whole(&near).iter().all(|byte| *byte == GUARD), "{what}: bytes moved after it was destroyed");
        assert_eq!(b.qp.state(), QpState::ReadyToSend, "{what}");
        let then = whole(&far);
        std::thread::sleep(Duration::from_millis(50));
        assert!(then == whole(&far), "{what}: bytes moved long after it was destroyed");
        Some(())
    });
}

/// Queue pairs beside one that ends badly notice nothing.
#[test]
fn one_of_several_queue_pairs_destroyed() {
    let Some(scene) = scene() else { return };
    std::thread::scope(|threads| {
        for asker in BOTH {
            let scene = &*scene;
            threads.spawn(move || pipeline(scene, asker, 4));
        }
        for (asker, op) in [(Asker::Soft, Op::Write), (Asker::Real, Op::Read)] {
            let in_time = (0..5).any(|_| {
                let (mut middle, b, _remote) = Middle::begin(&scene, (asker, op));
                b.qp.destroy().unwrap();
                let good = middle.finish(&[WcStatus::RETRY_EXC_ERR]);
                good.inspect(|good| middle.check(&whole(middle.target()), *good)).is_some()
            });
            assert!(in_time, "{asker:?} asks, {op:?}: the end never comes in the middle");
        }
    });
}

/// Of a full queue one request is refused: all before it are done, all behind it flushed.
#[test]
fn one_of_a_full_queue_refused() {
    const BAD: usize = 40;
    each(|scene, (asker, op)| {
        let (slot, mtu) = (30_000, scene.mtu());
        let (a, b) = scene.pair(asker, REMOTE, PATIENT);
        let (near, far) = (memory(SEND_QUEUE * slot, GUARD), memory(SEND_QUEUE * slot, GUARD));
        let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
        let lengths = [1, mtu + 1, 29_997, 64, 5 * mtu + 3, 17, mtu - 1];
        let (mut near_expected, mut far_expected) = (whole(&near), whole(&far));
        let mut batch = Vec::new();
        for at in 0..SEND_QUEUE {
            let len = lengths[at % lengths.len()];
            let range = at * slot..at * slot + len;
            // In turn, so that READs and WRITEs are on both sides of the refused one.
            let turn = if at == BAD { op } else { [Op::Write, Op::Write, Op::Read][at % 3] };
            let data = pattern(len, at as u8);
            let (source, source_expected, target_expected) = match turn {
                Op::Read => (&far, &mut far_expected, &mut near_expected),
                Op::Write => (&near, &mut near_expected, &mut far_expected),
            };
            source.copy_in(range.start, &data).unwrap();
            source_expected[range.clone()].copy_from_slice(&data);
            if at < BAD {
                target_expected[range.clone()].copy_from_slice(&data);
            }
            let good = request((at as u64, turn), &mr, range.clone(), &remote, range.start);
            batch.push(if at == BAD { WorkRequest { rkey: good.rkey ^ 1, ..good } } else { good });
        }
        a.qp.post(&batch).unwrap();
        for (at, done) in a.completions(SEND_QUEUE).iter().enumerate() {
            let expected = match at {
                ..BAD => WcStatus::SUCCESS,
                BAD => WcStatus::REM_ACCESS_ERR,
                _ => WcStatus::WR_FLUSH_ERR,
            };
            assert_eq!((done.id, done.status), (at as u64, expected), "{asker:?} asks, a {op:?} is refused");
        }
        assert!(whole(&far) == far_expected, "{asker:?} asks, a {op:?} is refused: wrong bytes at the peer");
        assert!(whole(&near) == near_expected, "{asker:?} asks, a {op:?} is refused: wrong bytes here");
        wait_for_error(&b, "the peer of a refused request");
        Some(())
    });
}

/// The wire is cut while requests are under way.
#[test]
fn the_peer_out_of_reach() {
    if scene().is_some() && setting("NETEM").is_none() {
        return println!("SKIPPED: OVERBANK_INTEROP_NETEM does not say that packets can be lost");
    }
    each(|scene, (asker, op)| {
        let cut = Cut::ready();
        std::thread::sleep(Duration::from_millis(300));
        let (mut middle, _b, _remote) = Middle::begin(scene, (asker, op));
        let netem = cut.now();
        let begun = Instant::now();
        let good = middle.finish(&[WcStatus::RETRY_EXC_ERR])?;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{}: {took:?}", middle.what);
        middle.check(&whole(middle.target()), good);
        drop(netem);
        pipeline(scene, asker, 1);
        Some(())
    });
}
