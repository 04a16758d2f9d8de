//! What the requester sends, and what it makes of answers: good, late, wrong and none.

use std::time::Duration;

use super::engine::{EngineError, Now};
use super::test_peer::{Answer, Peer};
use super::wire::Opcode;
use crate::{Access, Completion, Mtu, Op, QpState, Retry, WcStatus};

const MTU: usize = 1024;
const ACK: u8 = 0x1f;

fn outcomes(completions: &[Completion]) -> Vec<(u64, WcStatus)> {
    completions.iter().map(|completion| (completion.id, completion.status)).collect()
}

fn opcodes(answers: &[Answer]) -> Vec<u8> {
    answers.iter().map(|answer| answer.opcode.0).collect()
}

/// Places in the sequence of the engine's requests.
fn places(peer: &Peer, answers: &[Answer]) -> Vec<u32> {
    answers.iter().map(|answer| peer.request_of(answer)).collect()
}

fn dropped(peer: &Peer, reason: &str) -> u64 {
    peer.engine.counters().dropped.get(reason).copied().unwrap_or(0)
}

/// The time at which the engine wants to be called has come.
fn ring(peer: &mut Peer) {
    let at = peer.engine.next_timeout().unwrap();
    peer.now = peer.now.max(at.0);
    peer.engine.on_timeout(at);
}

// InfiniBand 9.4.3: RDMA WRITE in packets of the path MTU, RETH in the first, an acknowledgement asked for in the last.
#[test]
fn sec_9_4_3_a_write_is_cut_into_packets() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let ours = peer.bytes();
    let request = peer.request(1, Op::Write, 100, 3 * MTU - 1);
    let sent = peer.post(&[request]).unwrap();
    assert_eq!(opcodes(&sent), [0x06, 0x07, 0x08]);
    assert_eq!(places(&peer, &sent), [0, 1, 2]);
    assert_eq!(sent.iter().map(|answer| answer.ack_request).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(sent[0].reth, Some((request.remote_address, request.rkey, 3 * MTU as u32 - 1)));
    assert!(sent[1].reth.is_none() && sent[2].reth.is_none());
    let data: Vec<u8> = sent.into_iter().flat_map(|answer| answer.data).collect();
    assert!(data == ours[100..100 + 3 * MTU - 1]);
    assert!(peer.poll().is_empty());
    peer.acknowledge(2, ACK);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS)]);
    let exact = peer.request(2, Op::Write, 0, MTU);
    let sent = peer.post(&[exact]).unwrap();
    assert_eq!((opcodes(&sent), sent[0].data.len(), sent[0].ack_request), (vec![0x0a], MTU, true));
}

// InfiniBand 9.4.4: a READ takes as many PSNs as its response has packets.
#[test]
fn sec_9_4_4_a_read_takes_the_psns_of_its_response() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Read, 0, 2 * MTU + 1), peer.request(2, Op::Write, 0, 1)];
    let sent = peer.post(&batch).unwrap();
    assert_eq!((opcodes(&sent), places(&peer, &sent)), (vec![0x0c, 0x0a], vec![0, 3]));
    assert_eq!(sent[0].reth, Some((batch[0].remote_address, batch[0].rkey, 2 * MTU as u32 + 1)));
    peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[1; MTU]);
    peer.respond(1, Opcode::READ_RESPONSE_MIDDLE, &[2; MTU]);
    peer.respond(2, Opcode::READ_RESPONSE_LAST, &[3]);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS)]);
    assert_eq!(peer.bytes()[..2 * MTU + 1], [vec![1; MTU], vec![2; MTU], vec![3]].concat());
    peer.acknowledge(3, ACK);
    assert_eq!(outcomes(&peer.poll()), [(2, WcStatus::SUCCESS)]);
}

#[test]
fn a_long_read_is_asked_for_in_pieces() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Read, 0, 20 * MTU + 5);
    let sent = peer.post(&[request]).unwrap();
    assert_eq!(places(&peer, &sent), [0, 16]);
    assert_eq!(sent[0].reth, Some((request.remote_address, request.rkey, 16 * MTU as u32)));
    let rest = request.remote_address + 16 * MTU as u64;
    assert_eq!(sent[1].reth, Some((rest, request.rkey, 4 * MTU as u32 + 5)));
}

#[test]
fn no_more_reads_are_under_way_than_the_queue_pair_has() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..10).map(|id| peer.request(id, Op::Read, 0, 8)).collect();
    let sent = peer.post(&batch).unwrap();
    assert_eq!(places(&peer, &sent), [0, 1, 2, 3]);
    for number in 0..6 {
        let sent = peer.respond(number, Opcode::READ_RESPONSE_ONLY, &[0; 8]);
        assert_eq!(places(&peer, &sent), [number + 4], "one ends, one begins");
    }
    for number in 6..10 {
        assert_eq!(peer.respond(number, Opcode::READ_RESPONSE_ONLY, &[0; 8]), []);
    }
    assert_eq!(outcomes(&peer.poll()).len(), 10);
}

#[test]
fn no_more_packets_are_under_way_than_the_window() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Write, 0, 60 * MTU);
    let sent = peer.post(&[request]).unwrap();
    assert_eq!(sent.len(), 32);
    let asked: Vec<u32> = places(&peer, &sent).into_iter().filter(|at| sent[*at as usize].ack_request).collect();
    assert_eq!(asked, [7, 15, 23, 31], "so that the window moves on");
    assert_eq!(peer.acknowledge(7, ACK).len(), 16, "as many as were answered, and as many more");
    // READs of many packets count as many.
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..4).map(|id| peer.request(id, Op::Read, 0, 12 * MTU)).collect();
    let sent = peer.post(&batch).unwrap();
    assert_eq!(places(&peer, &sent), [0, 12], "24 of 32 packets; 12 more do not fit");
}

#[test]
fn the_window_shrinks_by_loss_and_grows_by_progress() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Write, 0, 60 * MTU);
    assert_eq!(peer.post(&[request]).unwrap().len(), 32);
    ring(&mut peer);
    let again = peer.answers();
    assert_eq!(places(&peer, &again), [0, 31], "a question whether anything arrived");
    ring(&mut peer);
    let again = peer.answers();
    assert_eq!(places(&peer, &again), [0, 1, 2, 3], "after a silence, as little as can be");
    assert_eq!(peer.engine.counters().retransmitted, 6);
    ring(&mut peer);
    assert_eq!(peer.answers().len(), 4, "and no less");
    let mut end = 3;
    let mut windows = Vec::new();
    while end < 31 {
        let sent = peer.acknowledge(end, ACK);
        windows.push(sent.len());
        end = peer.request_of(sent.last().unwrap());
    }
    assert_eq!(windows, [8, 16, 17], "doubled each round trip to half of what it was, then one more");
    let again = peer.acknowledge(end - 7, 0x60);
    assert_eq!(places(&peer, &again), (37..52).collect::<Vec<_>>(), "17 less a tenth");
}

#[test]
fn the_window_grows_fast_at_first() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..10).map(|id| peer.request(id, Op::Write, 0, 60 * MTU)).collect();
    let mut end = peer.post(&batch).unwrap().len() as u32 - 1;
    let mut windows = vec![end + 1];
    while windows.len() < 5 {
        let sent = peer.acknowledge(end, ACK);
        windows.push(sent.len() as u32);
        end = peer.request_of(sent.last().unwrap());
    }
    assert_eq!(windows, [32, 64, 128, 256, 120], "the rest is all that there was");
}

// InfiniBand 9.7.6: the requester's answer to silence.
#[test]
fn sec_9_7_6_retries_run_out() {
    let mut peer = Peer::with(Mtu::Mtu1024, Access::all(), Retry { timeout: Duration::from_millis(5), count: 3 });
    let batch = [peer.request(1, Op::Write, 0, 4), peer.request(2, Op::Read, 0, 4), peer.request(3, Op::Write, 0, 4)];
    assert_eq!(peer.post(&batch).unwrap().len(), 3);
    for retry in 1..=3_u64 {
        peer.engine.on_timeout(Now(retry * 5_000_000 - 1));
        assert_eq!(peer.answers(), [], "not early");
        ring(&mut peer);
        assert_eq!(peer.now, retry * 5_000_000);
        let again = peer.answers();
        let all = (vec![0x0a, 0x0c, 0x0a], vec![0, 1, 2]);
        let probe = (vec![0x0a, 0x0a], vec![0, 2]);
        assert_eq!((opcodes(&again), places(&peer, &again)), if retry == 1 { probe } else { all });
    }
    assert_eq!(peer.engine.counters().retransmitted, 8);
    assert!(peer.poll().is_empty());
    ring(&mut peer);
    let (flushed, exceeded) = (WcStatus::WR_FLUSH_ERR, WcStatus::RETRY_EXC_ERR);
    assert_eq!(outcomes(&peer.poll()), [(1, exceeded), (2, flushed), (3, flushed)]);
    assert_eq!(peer.state(), QpState::Error);
    assert_eq!((peer.answers(), peer.engine.next_timeout()), (vec![], None));
}

#[test]
fn progress_resets_the_retries() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..4).map(|id| peer.request(id, Op::Write, 0, 4)).collect();
    peer.post(&batch).unwrap();
    for number in 0..4 {
        for retry in 0..3 {
            ring(&mut peer);
            let left = 4 - number as usize;
            assert_eq!(peer.answers().len(), if retry == 0 { left.min(2) } else { left });
        }
        peer.acknowledge(number, ACK);
        assert_eq!(outcomes(&peer.poll()), [(u64::from(number), WcStatus::SUCCESS)]);
    }
    assert_eq!(peer.state(), QpState::ReadyToSend);
    ring(&mut peer);
    assert_eq!(peer.engine.next_timeout(), None, "nothing is left to wait for");
}

#[test]
fn the_first_count_may_be_none() {
    let mut peer = Peer::with(Mtu::Mtu1024, Access::all(), Retry { timeout: Duration::ZERO, count: 0 });
    let request = peer.request(1, Op::Write, 0, 4);
    peer.post(&[request]).unwrap();
    ring(&mut peer);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::RETRY_EXC_ERR)]);
}

// InfiniBand 9.7.6: NAK codes and what they do to the requests before and after.
#[test]
fn sec_9_7_6_a_refusal_fails_one_and_flushes_the_rest() {
    for (syndrome, status) in
        [(0x61, WcStatus::REM_INV_REQ_ERR), (0x62, WcStatus::REM_ACCESS_ERR), (0x63, WcStatus::REM_OP_ERR)]
    {
        let mut peer = Peer::new(Mtu::Mtu1024);
        let mut batch: Vec<_> = (0..3).map(|id| peer.request(id, Op::Write, 0, 4)).collect();
        batch[1].len = 3 * MTU;
        peer.post(&batch).unwrap();
        peer.acknowledge(2, syndrome);
        let expected = [(0, WcStatus::SUCCESS), (1, status), (2, WcStatus::WR_FLUSH_ERR)];
        assert_eq!(outcomes(&peer.poll()), expected);
        assert_eq!(peer.state(), QpState::Error);
        let late = [peer.request(3, Op::Write, 0, 4), peer.request(4, Op::Read, 0, 4)];
        assert_eq!(peer.post(&late).unwrap(), []);
        let flushed = WcStatus::WR_FLUSH_ERR;
        assert_eq!(outcomes(&peer.poll()), [(3, flushed), (4, flushed)]);
    }
}

#[test]
fn a_read_without_its_response_is_flushed_before_a_refusal() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Read, 0, 4), peer.request(2, Op::Write, 0, 4), peer.request(3, Op::Write, 0, 4)];
    peer.post(&batch).unwrap();
    peer.acknowledge(1, 0x62);
    let flushed = WcStatus::WR_FLUSH_ERR;
    assert_eq!(outcomes(&peer.poll()), [(1, flushed), (2, WcStatus::REM_ACCESS_ERR), (3, flushed)]);
}

// InfiniBand 9.7.5: NAK, PSN sequence error: everything before was received, everything from there on is sent again.
#[test]
fn sec_9_7_6_a_reported_gap_is_sent_again_once() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..5).map(|id| peer.request(id, Op::Write, 0, 4)).collect();
    peer.post(&batch).unwrap();
    let again = peer.acknowledge(2, 0x60);
    assert_eq!(places(&peer, &again), [2, 3, 4]);
    assert_eq!(outcomes(&peer.poll()), [(0, WcStatus::SUCCESS), (1, WcStatus::SUCCESS)]);
    assert_eq!(peer.acknowledge(2, 0x60), [], "a doubled NAK");
    assert_eq!(peer.acknowledge(1, 0x60), [], "a late NAK");
    assert_eq!(dropped(&peer, "stale response"), 1);
    peer.acknowledge(4, ACK);
    assert_eq!(outcomes(&peer.poll()).len(), 3);
    assert_eq!(peer.engine.counters().retransmitted, 3);
}

#[test]
fn a_gap_in_the_middle_of_a_write_is_sent_again_from_there() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let ours = peer.bytes();
    let request = peer.request(1, Op::Write, 0, 4 * MTU + 7);
    peer.post(&[request]).unwrap();
    let again = peer.acknowledge(3, 0x60);
    assert_eq!((opcodes(&again), places(&peer, &again)), (vec![0x07, 0x08], vec![3, 4]));
    assert!(again[0].data == ours[3 * MTU..4 * MTU] && again[1].data == ours[4 * MTU..4 * MTU + 7]);
}

#[test]
fn a_gap_in_a_read_is_asked_for_from_there() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Read, 0, 3 * MTU + 1), peer.request(2, Op::Write, 0, 4)];
    peer.post(&batch).unwrap();
    peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[1; MTU]);
    let again = peer.respond(2, Opcode::READ_RESPONSE_MIDDLE, &[3; MTU]);
    assert_eq!((opcodes(&again), places(&peer, &again)), (vec![0x0c], vec![1]), "the gap alone");
    let reth = (batch[0].remote_address + MTU as u64, batch[0].rkey, MTU as u32);
    assert_eq!(again[0].reth, Some(reth));
    assert_eq!(peer.respond(3, Opcode::READ_RESPONSE_LAST, &[4]), [], "once is enough");
    assert_eq!(peer.acknowledge(4, ACK), []);
    assert!(peer.poll().is_empty(), "nothing is done out of order");
    // Its opcode says where it lies in what the peer makes of the request: rxe has LAST here.
    peer.respond(1, Opcode::READ_RESPONSE_ONLY, &[2; MTU]);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS), (2, WcStatus::SUCCESS)]);
    assert_eq!(peer.bytes()[..3 * MTU + 1], [vec![1; MTU], vec![2; MTU], vec![3; MTU], vec![4]].concat());
    assert_eq!(peer.engine.counters().retransmitted, 1);
}

// rxe answers a part of a READ again, and then nothing before that part any more.
#[test]
fn gaps_of_one_read_are_asked_for_one_after_the_other() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Read, 0, 8 * MTU), peer.request(2, Op::Read, 8 * MTU, 2 * MTU)];
    peer.post(&batch).unwrap();
    let mut asked = Vec::new();
    for at in [2, 5, 9] {
        let again = peer.respond(at, Opcode::READ_RESPONSE_LAST, &[at as u8; MTU]);
        asked.push(again.iter().map(|answer| (peer.request_of(answer), answer.reth.unwrap().2)).collect::<Vec<_>>());
    }
    let len = |packets: u32| packets * MTU as u32;
    assert_eq!(asked, [vec![(0, len(2))], vec![], vec![(8, len(1))]], "another READ has gaps of its own");
    assert_eq!(peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[0; MTU]), []);
    let again = peer.respond(1, Opcode::READ_RESPONSE_LAST, &[1; MTU]);
    assert_eq!(
        again.iter().map(|answer| (peer.request_of(answer), answer.reth.unwrap().2)).collect::<Vec<_>>(),
        [(3, len(2))]
    );
    peer.respond(8, Opcode::READ_RESPONSE_ONLY, &[8; MTU]);
    for at in [3, 4] {
        peer.respond(at, Opcode::READ_RESPONSE_MIDDLE, &[at as u8; MTU]);
    }
    assert!(peer.poll().is_empty());
    let again = peer.answers();
    assert_eq!(places(&peer, &again), []);
    // Nothing came after the end of the first READ but the second's: it is asked for as what it is.
    for at in [6, 7] {
        peer.respond(at, Opcode::READ_RESPONSE_LAST, &[at as u8; MTU]);
    }
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS), (2, WcStatus::SUCCESS)]);
    let expected: Vec<u8> = (0..10).flat_map(|at| [at; MTU]).collect();
    assert!(peer.bytes()[..10 * MTU] == expected);
}

#[test]
fn the_same_gap_is_asked_for_again_after_a_silence() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Read, 0, 3 * MTU);
    peer.post(&[request]).unwrap();
    let again = peer.respond(1, Opcode::READ_RESPONSE_MIDDLE, &[2; MTU]);
    assert_eq!(places(&peer, &again), [0]);
    assert_eq!(peer.respond(2, Opcode::READ_RESPONSE_LAST, &[3; MTU]), []);
    for _ in 0..2 {
        ring(&mut peer);
        let again = peer.answers();
        assert_eq!((places(&peer, &again), again[0].reth.unwrap().2), (vec![0], MTU as u32));
    }
    peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[1; MTU]);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS)]);
}

#[test]
fn a_gap_that_is_lost_again_is_seen_by_what_comes_after() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..4).map(|id| peer.request(id, Op::Read, 0, 8)).collect();
    peer.post(&batch).unwrap();
    let again = peer.respond(1, Opcode::READ_RESPONSE_ONLY, &[0; 8]);
    assert_eq!(places(&peer, &again), [0]);
    // These were asked for before the first was again: they tell nothing.
    assert_eq!(peer.respond(2, Opcode::READ_RESPONSE_ONLY, &[0; 8]), []);
    assert_eq!(peer.respond(3, Opcode::READ_RESPONSE_ONLY, &[0; 8]), []);
    let later = peer.request(4, Op::Write, 0, 4);
    assert_eq!(peer.post(&[later]).unwrap().len(), 1);
    let again = peer.acknowledge(4, ACK);
    assert_eq!(places(&peer, &again), [0]);
    peer.respond(0, Opcode::READ_RESPONSE_ONLY, &[0; 8]);
    assert_eq!(outcomes(&peer.poll()).len(), 5);
}

// A silence is noticed after a few round trips, long before the time after which the specification would send again.
#[test]
fn the_wait_follows_the_round_trip() {
    let retry = Retry { timeout: Duration::from_millis(100), count: 3 };
    let mut peer = Peer::with(Mtu::Mtu1024, Access::all(), retry);
    let ms = |at: Option<Now>, since: u64| at.map(|Now(at)| (at - since) / 1_000_000);
    for id in 0..40 {
        let request = peer.request(id, Op::Write, 0, 4);
        peer.post(&[request]).unwrap();
        if id == 0 {
            assert_eq!(ms(peer.engine.next_timeout(), peer.now), Some(20), "before anything is known");
        }
        peer.now += 500_000;
        peer.acknowledge(id as u32, ACK);
    }
    while let Some(Now(at)) = peer.engine.next_timeout() {
        peer.now = at;
        peer.engine.on_timeout(Now(at));
    }
    let request = peer.request(40, Op::Write, 0, 4);
    peer.post(&[request]).unwrap();
    let (begun, mut waits) = (peer.now, Vec::new());
    while peer.state() == QpState::ReadyToSend {
        waits.push(ms(peer.engine.next_timeout(), peer.now).unwrap());
        ring(&mut peer);
        peer.answers();
    }
    assert_eq!(waits[..7], [1, 2, 5, 10, 20, 20, 20], "a question, two milliseconds, and the double a few times");
    assert_eq!((peer.now - begun) / 1_000_000, 400, "given up when the specification would");
    assert_eq!(outcomes(&peer.poll()).last(), Some(&(40, WcStatus::RETRY_EXC_ERR)));
}

// The report of a gap may be lost, or what was sent again because of it: nothing follows then by itself.
#[test]
fn a_probe_makes_the_peer_report_its_gap() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [Op::Read, Op::Write, Op::Read, Op::Write].map(|op| peer.request(1, op, 0, 3 * MTU));
    peer.post(&batch).unwrap();
    ring(&mut peer);
    let probe = peer.answers();
    assert_eq!((opcodes(&probe), places(&peer, &probe)), (vec![0x0c, 0x08], vec![0, 11]));
    for (at, opcode) in [(0, Opcode::READ_RESPONSE_FIRST), (1, Opcode::READ_RESPONSE_MIDDLE)] {
        assert_eq!(peer.respond(at, opcode, &[0; MTU]), []);
    }
    assert_eq!(peer.respond(2, Opcode::READ_RESPONSE_LAST, &[0; MTU]), []);
    let again = peer.acknowledge(3, 0x60);
    assert_eq!(places(&peer, &again), [3, 4, 5, 6, 9, 10, 11]);
    // Half of a READ has come: the rest of it is asked for.
    peer.acknowledge(5, ACK);
    peer.respond(6, Opcode::READ_RESPONSE_FIRST, &[0; MTU]);
    let probe = loop {
        ring(&mut peer);
        let sent = peer.answers();
        if !sent.is_empty() {
            break sent;
        }
    };
    assert_eq!((opcodes(&probe), places(&peer, &probe)), (vec![0x0c, 0x08], vec![7, 11]));
    assert_eq!(probe[0].reth.unwrap().2, 2 * MTU as u32);
}

#[test]
fn a_failure_of_ours_ends_the_answers_to_the_peer() {
    for refused in [false, true] {
        let retry = Retry { timeout: Duration::from_millis(1), count: 0 };
        let mut peer = Peer::with(Mtu::Mtu1024, Access::all(), retry);
        let request = peer.request(1, Op::Write, 0, 4);
        peer.post(&[request]).unwrap();
        let read = peer.read_draft(0, 3 * MTU as u32, 3);
        peer.say(&read);
        assert_eq!(peer.answer().unwrap().opcode, Opcode::READ_RESPONSE_FIRST);
        if refused {
            assert_eq!(peer.acknowledge(0, 0x62), []);
        } else {
            peer.engine.on_timeout(Now(1_000_000));
            assert_eq!(peer.answers(), []);
        }
        assert_eq!(peer.state(), QpState::Error);
        assert_eq!(peer.poll().len(), 1);
    }
}

#[test]
fn an_acknowledgement_beyond_a_read_means_that_its_response_is_lost() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Write, 0, 4), peer.request(2, Op::Read, 0, 4), peer.request(3, Op::Write, 0, 4)];
    peer.post(&batch).unwrap();
    let again = peer.acknowledge(2, ACK);
    assert_eq!((opcodes(&again), places(&peer, &again)), (vec![0x0c], vec![1]));
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS)]);
    peer.respond(1, Opcode::READ_RESPONSE_ONLY, b"read");
    assert_eq!(outcomes(&peer.poll()), [(2, WcStatus::SUCCESS), (3, WcStatus::SUCCESS)]);
}

#[test]
fn a_response_acknowledges_the_writes_before_it() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Write, 0, 4), peer.request(2, Op::Write, 0, 4), peer.request(3, Op::Read, 0, 4)];
    peer.post(&batch).unwrap();
    peer.respond(2, Opcode::READ_RESPONSE_ONLY, b"read");
    assert_eq!(outcomes(&peer.poll()), [1, 2, 3].map(|id| (id, WcStatus::SUCCESS)));
}

#[test]
fn answers_that_overtake_what_is_sent_again_count() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..3).map(|id| peer.request(id, Op::Write, 0, 4)).collect();
    peer.post(&batch).unwrap();
    peer.engine.on_timeout(Now(1_000_000));
    let first = peer.answer().unwrap();
    assert_eq!(peer.request_of(&first), 0);
    assert_eq!(peer.acknowledge(1, ACK).len(), 1, "only the last is left to be sent again");
    assert_eq!(outcomes(&peer.poll()).len(), 2);
}

// InfiniBand 9.7.6: ghost, duplicate and malformed responses.
#[test]
fn sec_9_7_6_wrong_answers_are_dropped() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Read, 0, 2 * MTU + 8), peer.request(2, Op::Write, 0, 4)];
    peer.post(&batch).unwrap();
    let before = peer.bytes();
    let wrong: [(u32, Opcode, usize); 9] = [
        (0, Opcode::READ_RESPONSE_FIRST, MTU - 4),
        (0, Opcode::READ_RESPONSE_FIRST, MTU + 4),
        (0, Opcode::READ_RESPONSE_FIRST, 0),
        (2, Opcode::READ_RESPONSE_MIDDLE, 8),
        (2, Opcode::READ_RESPONSE_LAST, 9),
        (2, Opcode::READ_RESPONSE_LAST, 7),
        (3, Opcode::READ_RESPONSE_ONLY, 4),
        (4, Opcode::READ_RESPONSE_ONLY, 4),
        (1 << 23, Opcode::READ_RESPONSE_ONLY, 4),
    ];
    for (at, opcode, len) in wrong {
        assert_eq!(peer.respond(at, opcode, &vec![9; len]), [], "{at} {opcode:?} {len}");
    }
    assert_eq!(dropped(&peer, "unexpected response"), wrong.len() as u64 - 1);
    assert_eq!(dropped(&peer, "stale response"), 1, "half a turn away lies behind");
    for syndrome in [0x20, 0x2c, 0x40, 0x64, 0x7f, 0x80, 0xff] {
        assert_eq!(peer.acknowledge(0, syndrome), [], "{syndrome:#x}");
    }
    assert_eq!(peer.acknowledge(4, ACK), [], "of what was never sent");
    assert_eq!(peer.acknowledge(4, 0x62), []);
    let atomic = peer.draft_at(peer.engine_psn, Opcode::ATOMIC_ACKNOWLEDGE, vec![0x1f; 12], &[]);
    assert_eq!(peer.ask(&atomic), []);
    assert_eq!(dropped(&peer, "unexpected response"), wrong.len() as u64 - 1 + 10);
    assert!(peer.bytes() == before);
    assert!(peer.poll().is_empty());
    peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[1; MTU]);
    assert_eq!(peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[7; MTU]), []);
    assert_eq!(dropped(&peer, "stale response"), 2);
    assert_eq!(peer.bytes()[..MTU], [1; MTU], "a doubled response changes nothing");
    assert_eq!(peer.state(), QpState::ReadyToSend);
}

#[test]
fn our_own_region_ends_under_a_request() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Read, 0, 2 * MTU), peer.request(2, Op::Write, 0, 4)];
    peer.post(&batch).unwrap();
    peer.respond(0, Opcode::READ_RESPONSE_FIRST, &[1; MTU]);
    let (mr, before) = (peer.mr, peer.bytes());
    peer.engine.deregister(mr).unwrap();
    peer.respond(1, Opcode::READ_RESPONSE_LAST, &[2; MTU]);
    assert!(peer.bytes() == before);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::LOC_PROT_ERR), (2, WcStatus::WR_FLUSH_ERR)]);
    assert_eq!(peer.state(), QpState::Error);

    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch = [peer.request(1, Op::Write, 0, 4), peer.request(2, Op::Write, 0, 40 * MTU)];
    peer.post(&batch).unwrap();
    let mr = peer.mr;
    peer.engine.deregister(mr).unwrap();
    assert_eq!(peer.acknowledge(20, ACK), []);
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::SUCCESS), (2, WcStatus::LOC_PROT_ERR)]);
}

#[test]
fn a_bad_request_is_refused_with_its_batch() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let good = peer.request(1, Op::Write, 0, 4);
    let memory = std::sync::Arc::clone(&peer.memory);
    let read_only = peer.engine.register(peer.pd, memory, 0..4096, Access::REMOTE_READ).unwrap();
    let memory = std::sync::Arc::clone(&peer.memory);
    let other_pd = peer.engine.alloc_pd();
    let other = peer.engine.register(other_pd, memory, 0..4096, Access::all()).unwrap();
    let stale = super::engine::MrHandle { index: good.mr.index + 7, ..good.mr };
    let mut bad = [good; 8];
    bad[0].len = 0;
    bad[1].len = (1 << 31) + 1;
    bad[2].offset = super::test_peer::MEMORY - 3;
    bad[3].offset = usize::MAX;
    bad[4].mr = stale;
    bad[5].mr = other;
    (bad[6].mr, bad[6].op) = (read_only, Op::Read);
    bad[7].len = super::test_peer::MEMORY + 1;
    for (number, bad) in bad.into_iter().enumerate() {
        let error = peer.post(&[good, bad]).unwrap_err();
        let expected = match number {
            0 | 1 => matches!(error, EngineError::Limit { .. }),
            2 | 3 | 7 => matches!(error, EngineError::OutOfRange { .. }),
            4 => matches!(error, EngineError::Gone(_)),
            5 => matches!(error, EngineError::Foreign(_)),
            _ => matches!(error, EngineError::Rights { .. }),
        };
        assert!(expected, "{number}: {error}");
        assert_eq!(peer.answers(), [], "all or none");
    }
    let error = peer.post(&[good; 129]).unwrap_err();
    assert!(matches!(error, EngineError::Full { asked: 129, free: 128, capacity: 128, .. }));
    assert_eq!(peer.post(&[good; 128]).unwrap().len(), 32);
    let error = peer.post(&[good]).unwrap_err();
    assert!(matches!(error, EngineError::Full { asked: 1, free: 0, .. }));
    // A region that a peer may not touch, and that is read-only here, may still be sent from.
    let mut peer = Peer::new(Mtu::Mtu1024);
    let memory = std::sync::Arc::clone(&peer.memory);
    let mr = peer.engine.register(peer.pd, memory, 0..4096, Access::empty()).unwrap();
    let request = super::engine::EngineRequest { mr, ..peer.request(1, Op::Write, 0, 4) };
    assert_eq!(peer.post(&[request]).unwrap().len(), 1);
}

#[test]
fn a_probe_goes_however_full_the_window_is() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Write, 0, 60 * MTU);
    assert_eq!(peer.post(&[request]).unwrap().len(), 32);
    // As if many others had begun.
    peer.engine.set_receive_buffer(16 * 2 * (MTU + 512));
    ring(&mut peer);
    let probe = peer.answers();
    assert_eq!(places(&peer, &probe), [0, 31]);
}

#[test]
fn a_probe_is_two_requests_however_much_is_lost() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let batch: Vec<_> = (0..100).map(|id| peer.request(id, Op::Write, 0, 4)).collect();
    assert_eq!(peer.post(&batch).unwrap().len(), 32);
    while peer.answers().len() != 4 {
        ring(&mut peer);
    }
    // All counts as lost, and one comes through.
    assert_eq!(peer.acknowledge(0, ACK).len(), 2);
    let mut sent = Vec::new();
    while sent.is_empty() {
        ring(&mut peer);
        sent = peer.answers();
    }
    assert_eq!(places(&peer, &sent).len(), 2, "though many more are lost");
}

#[test]
fn an_alarm_follows_a_wait_that_is_found_to_be_shorter() {
    let retry = Retry { timeout: Duration::from_millis(100), count: 3 };
    let mut peer = Peer::with(Mtu::Mtu1024, Access::all(), retry);
    let batch: Vec<_> = (0..2).map(|id| peer.request(id, Op::Write, 0, 4)).collect();
    peer.post(&batch).unwrap();
    assert_eq!(peer.engine.next_timeout(), Some(Now(20_000_000)));
    peer.now = 10_000;
    assert_eq!(peer.acknowledge(0, ACK), []);
    assert_eq!(peer.engine.next_timeout(), Some(Now(10_000 + 2 * 10_000 + 4 * 5_000 + 100_000)));
}

#[test]
fn time_in_which_nobody_looked_is_no_silence() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Write, 0, 4);
    peer.post(&[request]).unwrap();
    // The process was stopped: the answer may lie in the socket.
    for hour in 1..=3 {
        peer.now = hour * 3_600_000_000_000;
        peer.engine.on_timeout(Now(peer.now));
        let again = peer.answers();
        assert_eq!(places(&peer, &again), [0]);
    }
    while peer.state() == QpState::ReadyToSend {
        ring(&mut peer);
        peer.answers();
    }
    assert_eq!(outcomes(&peer.poll()), [(1, WcStatus::RETRY_EXC_ERR)], "but this is");
}
