//! The rules of reliable connections as both ends keep them together, after volume 1 of the InfiniBand specification.

use std::time::Duration;

use super::engine::EngineRequest;
use super::port_sim::{Datagram, Net, address};
use super::sim_link::{Bottleneck, FLIGHT, Faults};
use super::sim_tests::{ALL, Pair, RETRY, Side, connect, statuses};
use super::test_peer::Peer;
use super::wire::{Bth, Opcode, Packet, Syndrome};
use crate::{Access, Mtu, Op, QpCaps, QpState, Retry, WcStatus};

fn headers(log: &[Datagram], from: usize) -> Vec<(Bth, usize)> {
    let sent = log.iter().filter(|sent| sent.from == address(from));
    sent.map(|sent| {
        let packet = Packet::new(&sent.bytes).unwrap();
        (packet.bth, packet.body().unwrap().data.len())
    })
    .collect()
}

fn is_data(bth: &Bth) -> bool {
    !matches!(bth.opcode, Opcode::ACKNOWLEDGE | Opcode::READ_REQUEST)
}

fn mixed(pair: &Pair, count: u64, len: usize) -> Vec<EngineRequest> {
    let op = |id: u64| if id.is_multiple_of(2) { Op::Read } else { Op::Write };
    (0..count).map(|id| pair.request(id, op(id), id as usize * len, id as usize * len, len)).collect()
}

// InfiniBand 9.7.5.1.2: coalesced acknowledgements.
#[test]
fn sec_9_7_5_one_acknowledgement_answers_for_all_before_it() {
    let mut pair = Pair::new(1, Faults::default(), Mtu::Mtu1024, 1 << 16);
    let (len, count) = (972, 20);
    // One packet each microsecond, and no answer before that to the last.
    pair.net.link(0, 1).bottleneck = Some(Bottleneck { bytes_per_second: 1_032_000_000, queue: 1 << 20 });
    pair.net.link(1, 0).dark = 0..count * 1000 + FLIGHT - 500;
    pair.net.log = Some(Vec::new());
    let batch: Vec<_> = (0..count).map(|id| pair.request(id, Op::Write, 0, 0, len)).collect();
    let expected: Vec<_> = (0..count).map(|id| (id, WcStatus::SUCCESS)).collect();
    assert_eq!(pair.run(&batch), expected);
    let log = pair.net.log.take().unwrap();
    assert_eq!(headers(&log, 0).len() as u64, count, "nothing is sent again");
    let answered = log.last().unwrap().at;
    assert_eq!(answered, count * 1000 + FLIGHT, "one answer has come, the last");
}

// InfiniBand 9.7.5.1.1: AckReq.
#[test]
fn sec_9_7_5_what_is_acknowledged_asked_for_it() {
    for len in [1, 1024, 1025, 40 * 1024, 63 * 1024 + 1] {
        let mut pair = Pair::new(2, Faults::default(), Mtu::Mtu1024, 1 << 16);
        pair.net.log = Some(Vec::new());
        let write = pair.request(1, Op::Write, 0, 0, len);
        assert_eq!(pair.run(&[write]), [(1, WcStatus::SUCCESS)]);
        let log = pair.net.log.take().unwrap();
        let (sent, answers) = (headers(&log, 0), headers(&log, 1));
        let asking: Vec<_> = sent.iter().filter(|(bth, _)| bth.ack_request).map(|(bth, _)| bth.psn).collect();
        assert_eq!(sent.len(), len.div_ceil(1024));
        assert!(sent.last().unwrap().0.ack_request, "the end of a message asks");
        assert!(!answers.is_empty() && answers.len() <= asking.len());
        assert!(answers.iter().all(|(bth, _)| asking.contains(&bth.psn) && !bth.ack_request), "{len} bytes");
    }
}

// InfiniBand 9.7.6.1.3: the retry counter.
#[test]
fn sec_9_7_6_silence_in_either_direction_ends_in_retries_exceeded() {
    for (from, to) in [(0, 1), (1, 0)] {
        for count in [0, 1, 5] {
            let retry = Retry { timeout: Duration::from_millis(2), count };
            let mut pair = Pair::with(3, Faults::default(), Mtu::Mtu1024, 1 << 16, ALL, retry);
            let ours = pair.a.fill(3);
            pair.net.link(from, to).faults.lost = 1_000_000;
            let batch: Vec<_> = (0..5).map(|id| pair.request(id, Op::Write, 0, 0, 3000)).collect();
            let flushed = WcStatus::WR_FLUSH_ERR;
            let expected = [(0, WcStatus::RETRY_EXC_ERR), (1, flushed), (2, flushed), (3, flushed), (4, flushed)];
            assert_eq!(pair.run(&batch), expected);
            let (least, took) = ((u64::from(count) + 1) * 2_000_000, pair.net.now().0);
            assert!((least..=4 * least).contains(&took), "{count} retries took {took} ns");
            assert_eq!(pair.states(), (QpState::Error, QpState::ReadyToSend), "the peer has nothing to complain of");
            // It may have been carried out for all that.
            assert_eq!(pair.b.bytes()[..3000] == ours[..3000], (from, to) == (1, 0));
        }
    }
}

// InfiniBand 9.7.6.1.3: an answer makes the counter start anew.
#[test]
fn sec_9_7_6_progress_makes_the_retries_start_anew() {
    let retry = Retry { timeout: Duration::from_millis(1), count: 2 };
    let mut pair = Pair::with(4, Faults::default(), Mtu::Mtu256, 1 << 16, ALL, retry);
    let theirs = pair.b.fill(4);
    // Answers get across for a moment at a time, in which there is progress and no end of it.
    pair.net.link(1, 0).bottleneck = Some(Bottleneck { bytes_per_second: 20_000_000, queue: 1 << 20 });
    let read = pair.request(1, Op::Read, 0, 0, 60_000);
    pair.post(&[read]);
    let mut gaps = 0;
    while pair.net.step() {
        let now = pair.net.now().0;
        let link = pair.net.link(1, 0);
        if now >= link.dark.end {
            gaps += 1;
            link.dark = now + 200_000..now + 1_400_000;
        }
    }
    assert!(gaps > 5, "{gaps} times");
    assert_eq!(statuses(&pair.a.poll(&mut pair.net)), [(1, WcStatus::SUCCESS)]);
    assert!(pair.a.bytes()[..60_000] == theirs[..60_000]);
}

// InfiniBand 9.7.5.2.8: receiver not ready is an answer to SENDs, and to WRITEs with immediate data.
#[test]
fn sec_9_7_5_receiver_not_ready_is_no_answer_to_reads_and_writes() {
    for op in [Op::Read, Op::Write] {
        for code in 0x20..=0x3f {
            let mut peer = Peer::new(Mtu::Mtu1024);
            let request = peer.request(1, op, 0, 8);
            assert_eq!(peer.post(&[request]).unwrap().len(), 1);
            assert_eq!(peer.acknowledge(0, code), [], "{op:?}, syndrome {code:#x}");
            assert!(peer.poll().is_empty());
            assert_eq!(peer.state(), QpState::ReadyToSend);
            if op == Op::Read {
                peer.respond(0, Opcode::READ_RESPONSE_ONLY, &[5; 8]);
            } else {
                peer.acknowledge(0, Syndrome::ACK.0);
            }
            assert_eq!(statuses(&peer.poll()), [(1, WcStatus::SUCCESS)]);
        }
    }
}

// InfiniBand 9.4.4: no more READs are outstanding than both have resources for.
#[test]
fn sec_9_4_4_no_more_reads_are_outstanding_than_there_are_resources() {
    for most in [1, 2, 16] {
        let bad = Faults { lost: 20_000, late: 100_000, doubled: 20_000, damaged: 0 };
        for faults in [Faults::default(), bad] {
            let mut net = Net::new(5, faults, &[Mtu::Mtu1024; 2]);
            let caps = QpCaps { send_queue: 64, outstanding_reads: most };
            let (a, b) = (Side::with(&mut net, 0, 1 << 18, caps), Side::with(&mut net, 1, 1 << 18, caps));
            let patient = Retry { count: 50, ..RETRY };
            connect(&mut net, (&a, Access::empty()), (&b, ALL), patient);
            let theirs = b.fill(5);
            net.log = Some(Vec::new());
            let mut pair = Pair { net, a, b };
            let batch: Vec<_> = (0..50)
                .map(|id| pair.request(id, Op::Read, id as usize * 5000, id as usize * 5000, 1 + id as usize * 99))
                .collect();
            let done = pair.run(&batch);
            assert!(done.len() == 50 && done.iter().all(|(_, status)| *status == WcStatus::SUCCESS), "{done:?}");
            for request in &batch {
                let range = request.offset..request.offset + request.len;
                assert!(pair.a.bytes()[range.clone()] == theirs[range]);
            }
            if faults.lost > 0 {
                continue;
            }
            // What has been asked for, and not all answered, at any moment.
            let (mut under_way, mut seen) = (0_u8, 0);
            for sent in pair.net.log.as_deref().unwrap_or_default() {
                match Packet::new(&sent.bytes).unwrap().bth.opcode {
                    Opcode::READ_REQUEST => under_way += 1,
                    Opcode::READ_RESPONSE_LAST | Opcode::READ_RESPONSE_ONLY => under_way -= 1,
                    _ => {}
                }
                seen = seen.max(under_way);
            }
            assert_eq!((seen, under_way), (most, 0));
        }
    }
}

// InfiniBand 10.3.1: in the error state all that is posted is flushed, in the order posted.
#[test]
fn sec_10_3_1_everything_is_flushed_in_the_order_posted() {
    for ended in [0, 1] {
        let mut pair = Pair::new(6, Faults::default(), Mtu::Mtu1024, 1 << 18);
        let batch = mixed(&pair, 40, 4000);
        pair.post(&batch);
        for _ in 0..25 {
            pair.net.step();
        }
        let qpn = [pair.a.qpn, pair.b.qpn][ended];
        pair.net.hosts[ended].set_error(qpn).unwrap();
        pair.net.settle();
        let done = statuses(&pair.a.poll(&mut pair.net));
        assert!(done.iter().map(|(id, _)| *id).eq(0..40), "{done:?}");
        let failed = done.iter().position(|(_, status)| *status != WcStatus::SUCCESS).unwrap();
        assert!(failed > 0 && failed < 40, "in the middle: {failed}");
        let first = [WcStatus::WR_FLUSH_ERR, WcStatus::RETRY_EXC_ERR][ended];
        assert_eq!(done[failed].1, first);
        assert!(done[failed + 1..].iter().all(|(_, status)| *status == WcStatus::WR_FLUSH_ERR));
        // And what is posted later.
        let late = mixed(&pair, 4, 100);
        let flushed: Vec<_> = (0..4).map(|id| (id, WcStatus::WR_FLUSH_ERR)).collect();
        assert_eq!(pair.run(&late), flushed);
    }
}

// InfiniBand 9.7.6.1.1, 9.7.5.2: a refused request fails, those before it are done, those behind it are flushed unseen.
#[test]
fn sec_9_7_5_nothing_behind_a_refused_request_is_carried_out() {
    for at in [0, 1, 7, 15] {
        for op in [Op::Read, Op::Write] {
            let mut pair = Pair::new(7, Faults::default(), Mtu::Mtu1024, 1 << 16);
            let (ours, theirs) = (pair.a.fill(1), pair.b.fill(2));
            let mut batch: Vec<_> =
                (0..16).map(|id| pair.request(id, Op::Write, id as usize * 2000, id as usize * 2000, 2000)).collect();
            batch[at].op = op;
            batch[at].remote_address = pair.b.memory.address() + (1 << 16) - 1999;
            let done = pair.run(&batch);
            let status = |id: usize| match id {
                _ if id < at => WcStatus::SUCCESS,
                _ if id == at => WcStatus::REM_ACCESS_ERR,
                _ => WcStatus::WR_FLUSH_ERR,
            };
            assert_eq!(done, (0..16).map(|id| (id as u64, status(id))).collect::<Vec<_>>());
            let bytes = pair.b.bytes();
            assert!(bytes[..at * 2000] == ours[..at * 2000] && bytes[at * 2000..] == theirs[at * 2000..]);
            assert_eq!(pair.states(), (QpState::Error, QpState::Error));
        }
    }
}

// InfiniBand 9.4.3, 9.4.4: every packet but a message's last has as many bytes as the smaller path MTU of both.
#[test]
fn sec_9_4_packets_are_of_the_path_mtu_of_both() {
    for ours in Mtu::ALL {
        for theirs in Mtu::ALL {
            let mtu = ours.bytes().min(theirs.bytes());
            for op in [Op::Read, Op::Write] {
                let mut net = Net::new(8, Faults::default(), &[ours, theirs]);
                let (a, b) = (Side::new(&mut net, 0, 1 << 15), Side::new(&mut net, 1, 1 << 15));
                connect(&mut net, (&a, ALL), (&b, ALL), RETRY);
                net.log = Some(Vec::new());
                let mut pair = Pair { net, a, b };
                let request = pair.request(1, op, 0, 0, 20_001);
                assert_eq!(pair.run(&[request]), [(1, WcStatus::SUCCESS)]);
                let log = pair.net.log.take().unwrap();
                let mut data = headers(&log, usize::from(op == Op::Read));
                data.retain(|(bth, _)| is_data(bth));
                let psns: Vec<_> = data.iter().map(|(bth, _)| bth.psn.get()).collect();
                assert_eq!(data.len(), 20_001_usize.div_ceil(mtu));
                assert!(psns.is_sorted_by(|before, after| (before + 1) & 0x00ff_ffff == *after));
                let (last, full) = data.split_last().unwrap();
                assert!(full.iter().all(|(_, len)| *len == mtu));
                assert_eq!(last.1, 20_001 % mtu);
            }
        }
    }
}

// InfiniBand 9.7.2: sequence numbers wrap, also where packets are lost on the way over.
#[test]
fn sec_9_7_2_numbers_wrap_in_the_middle_of_a_message() {
    let mut wrapped = 0;
    for seed in 0..60_u64 {
        let bad = Faults { lost: 30_000, doubled: 30_000, late: 50_000, damaged: 10_000 };
        let (patient, is_clean) = (Retry { count: 50, ..RETRY }, seed % 2 == 0);
        let faults = if is_clean { Faults::default() } else { bad };
        let mut pair = Pair::with(seed, faults, Mtu::Mtu256, 1 << 18, ALL, patient);
        let (ours, theirs) = (pair.a.fill(1), pair.b.fill(2));
        let first = pair.net.hosts[0].endpoint(pair.a.qpn).unwrap().psn;
        let len = 90_000;
        wrapped += u32::from(first + 2 * (len as u32 / 256) > 0x00ff_ffff);
        let batch = [pair.request(1, Op::Read, 100_000, 100_000, len), pair.request(2, Op::Write, 0, 0, len)];
        assert_eq!(pair.run(&batch), [(1, WcStatus::SUCCESS), (2, WcStatus::SUCCESS)], "seed {seed}");
        assert!(pair.a.bytes()[100_000..100_000 + len] == theirs[100_000..100_000 + len]);
        assert!(pair.b.bytes()[..len] == ours[..len]);
        let again: u64 = pair.net.hosts.iter().map(|host| host.counters().retransmitted).sum();
        assert!(!is_clean || again == 0, "seed {seed}: {again} sent again");
    }
    assert!(wrapped >= 5, "{wrapped} of 60");
}
