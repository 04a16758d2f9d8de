//! What the engine holds: who may be destroyed when, what is refused, and what idle things cost.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::soft::port_sim::{Net, address};
use crate::soft::sim_link::Faults;
use crate::soft::sim_tests::{ALL, CAPS, Pair, RETRY, Side, connect, statuses};
use crate::soft::test_peer::Peer;
use crate::{Backing, WcStatus};

#[path = "engine_sizes.rs"]
mod sizes;

fn engine() -> Engine {
    Engine::new(address(0), Mtu::Mtu4096)
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::map(8192, Backing::Ordinary).unwrap())
}

fn endpoint() -> Endpoint {
    let gid = Endpoint::gid_of(address(1).ip());
    Endpoint { flags: Endpoint::SOFT, mtu: Mtu::Mtu4096, qpn: 77, psn: 0, port: 4791, lid: 0, gid }
}

#[test]
fn what_is_in_use_stays() {
    let mut engine = engine();
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    let mr = engine.register(pd, memory(), 0..8192, ALL).unwrap();
    assert!(matches!(engine.dealloc_pd(pd), Err(EngineError::Busy("protection domain"))));
    engine.deregister(mr).unwrap();
    let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
    assert!(matches!(engine.dealloc_pd(pd), Err(EngineError::Busy("protection domain"))));
    assert!(matches!(engine.destroy_cq(cq), Err(EngineError::Busy("completion queue"))));
    engine.destroy_qp(qpn).unwrap();
    engine.dealloc_pd(pd).unwrap();
    engine.destroy_cq(cq).unwrap();
}

#[test]
fn what_is_gone_is_gone() {
    let mut engine = engine();
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    let mr = engine.register(pd, memory(), 0..8192, ALL).unwrap();
    let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
    engine.destroy_qp(qpn).unwrap();
    engine.deregister(mr).unwrap();
    engine.destroy_cq(cq).unwrap();
    engine.dealloc_pd(pd).unwrap();
    let gone = |outcome: Result<(), EngineError>| assert!(matches!(outcome, Err(EngineError::Gone(_))));
    gone(engine.destroy_qp(qpn));
    gone(engine.set_error(qpn));
    gone(engine.endpoint(qpn).map(|_| ()));
    gone(engine.connect(Now(0), qpn, &endpoint(), ALL, RETRY));
    gone(engine.post(Now(0), qpn, &[]));
    gone(engine.deregister(mr));
    gone(engine.destroy_cq(cq));
    gone(engine.poll_cq(cq, 1, &mut Vec::new()).map(|_| ()));
    gone(engine.dealloc_pd(pd));
    gone(engine.register(pd, memory(), 0..8192, ALL).map(|_| ()));
    gone(engine.create_qp(pd, cq, CAPS).map(|_| ()));
    assert_eq!(engine.state(qpn), QpState::Error);
    assert!(!engine.cq_ready(cq));
    // A queue pair that could not be made holds nothing.
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    gone(engine.create_qp(PdHandle(99), cq, CAPS).map(|_| ()));
    gone(engine.create_qp(pd, CqHandle(99), CAPS).map(|_| ()));
    engine.destroy_cq(cq).unwrap();
    engine.dealloc_pd(pd).unwrap();
}

#[test]
fn numbers_and_keys_are_random_and_differ() {
    let mut engine = engine();
    let (pd, cq, memory) = (engine.alloc_pd(), engine.create_cq(16).unwrap(), memory());
    let count = 1000_u64;
    let mrs: Vec<_> = (0..count).map(|_| engine.register(pd, Arc::clone(&memory), 0..64, ALL).unwrap()).collect();
    let ends: Vec<_> = (0..count)
        .map(|_| {
            let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
            engine.endpoint(qpn).unwrap()
        })
        .collect();
    let keys: HashSet<u32> = mrs.iter().map(|mr| mr.rkey).collect();
    let numbers: HashSet<u32> = ends.iter().map(|end| end.qpn).collect();
    assert_eq!((keys.len(), numbers.len()), (1000, 1000));
    assert!(!keys.contains(&0));
    assert!(numbers.iter().all(|qpn| is_ordinary(*qpn)));
    assert!(
        [2, 0x00ff_fffe].into_iter().all(is_ordinary) && ![0, 1, 0x00ff_ffff, 1 << 24].into_iter().any(is_ordinary)
    );
    assert!(ends.iter().all(|end| end.psn < 1 << 24));
    assert_eq!((ends[0].port, ends[0].gid, ends[0].flags), (4791, Endpoint::gid_of(address(0).ip()), Endpoint::SOFT));
    // Each bit of each is set in about half.
    let half = |values: &mut dyn Iterator<Item = u32>, bits: u32| {
        let values: Vec<u32> = values.collect();
        for bit in 0..bits {
            let set = values.iter().filter(|value| *value >> bit & 1 == 1).count();
            assert!((350..650).contains(&set), "bit {bit}: {set}");
        }
    };
    half(&mut mrs.iter().map(|mr| mr.rkey), 32);
    half(&mut ends.iter().map(|end| end.qpn), 24);
    half(&mut ends.iter().map(|end| end.psn), 24);
}

#[test]
fn regions_lie_within_their_memory() {
    let mut engine = engine();
    let pd = engine.alloc_pd();
    let mut register = |range| engine.register(pd, memory(), range, ALL).map(|_| ());
    register(0..8192).unwrap();
    register(8191..8192).unwrap();
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..8193, 8192..8193, 5..4, usize::MAX..usize::MAX] {
        assert!(matches!(register(range), Err(EngineError::OutOfRange { .. })));
    }
    assert!(matches!(register(4..4), Err(EngineError::Limit { .. })));
}

#[test]
fn sizes_have_limits() {
    let mut engine = engine();
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    for (send_queue, outstanding_reads) in [(0, 1), (MAX_SEND_QUEUE + 1, 1), (1, 129)] {
        let caps = QpCaps { send_queue, outstanding_reads };
        assert!(matches!(engine.create_qp(pd, cq, caps), Err(EngineError::Limit { .. })));
    }
    assert!(matches!(engine.create_cq(0), Err(EngineError::Limit { .. })));
    assert!(matches!(engine.create_cq(usize::MAX), Err(EngineError::Limit { .. })));
}

// InfiniBand 10.3.1: RESET takes no work, RTS and ERROR take it, and there is one way through.
#[test]
fn sec_10_3_1_states_allow_what_they_should() {
    let mut engine = engine();
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    let mr = engine.register(pd, memory(), 0..8192, ALL).unwrap();
    let request = |id| EngineRequest { id, op: Op::Write, mr, offset: 0, len: 4, remote_address: 0, rkey: 1 };
    let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
    assert_eq!(engine.state(qpn), QpState::Reset);
    assert!(matches!(engine.post(Now(0), qpn, &[request(1)]), Err(EngineError::State(QpState::Reset))));
    engine.connect(Now(0), qpn, &endpoint(), ALL, RETRY).unwrap();
    assert_eq!(engine.state(qpn), QpState::ReadyToSend);
    let again = engine.connect(Now(0), qpn, &endpoint(), ALL, RETRY);
    assert!(matches!(again, Err(EngineError::State(QpState::ReadyToSend))));
    engine.set_error(qpn).unwrap();
    let again = engine.connect(Now(0), qpn, &endpoint(), ALL, RETRY);
    assert!(matches!(again, Err(EngineError::State(QpState::Error))));
    // From RESET straight to ERROR, there to flush.
    let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
    engine.set_error(qpn).unwrap();
    engine.post(Now(0), qpn, &[request(1), request(2)]).unwrap();
    let mut completions = Vec::new();
    assert_eq!(engine.poll_cq(cq, 1, &mut completions).unwrap(), 1);
    assert_eq!(engine.poll_cq(cq, 9, &mut completions).unwrap(), 1);
    assert_eq!(statuses(&completions), [(1, WcStatus::WR_FLUSH_ERR), (2, WcStatus::WR_FLUSH_ERR)]);
}

#[test]
fn endpoints_that_cannot_be_are_refused() {
    let mut engine = engine();
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
    let gid = |text: &str| Endpoint::gid_of(text.parse().unwrap());
    for bad in [
        Endpoint { qpn: 1, ..endpoint() },
        Endpoint { qpn: 0x00ff_ffff, ..endpoint() },
        Endpoint { qpn: 1 << 24, ..endpoint() },
        Endpoint { psn: 1 << 24, ..endpoint() },
        Endpoint { port: 0, ..endpoint() },
        Endpoint { gid: gid("2001:db8::1"), ..endpoint() },
        Endpoint { gid: gid("224.0.0.1"), ..endpoint() },
        Endpoint { gid: gid("0.0.0.0"), ..endpoint() },
    ] {
        let outcome = engine.connect(Now(0), qpn, &bad, ALL, RETRY);
        assert!(matches!(outcome, Err(EngineError::Endpoint(_))), "{bad:?}");
        assert_eq!(engine.state(qpn), QpState::Reset);
    }
    engine.connect(Now(0), qpn, &endpoint(), ALL, RETRY).unwrap();
}

#[test]
fn an_unconnected_queue_pair_takes_no_packets() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let (pd, cq) = (peer.pd, peer.cq);
    let fresh = peer.engine.create_qp(pd, cq, CAPS).unwrap();
    let draft = peer.read_draft(0, 4, 1);
    let other = crate::soft::test_peer::Draft { qpn: fresh.0, ..draft };
    assert_eq!(peer.ask(&other), []);
    assert_eq!(peer.engine.counters().dropped["queue pair not ready"], 1);
}

#[test]
fn a_completion_queue_never_overflows() {
    let mut pair = Pair::new(1, Faults::default(), Mtu::Mtu4096, 8192);
    let engine = &mut pair.net.hosts[0];
    let cq = engine.create_cq(3).unwrap();
    let pd = pair.a.pd;
    let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
    let small = Side { cq, qpn, ..pair.a.clone() };
    let theirs = Side::new(&mut pair.net, 1, 8192);
    connect(&mut pair.net, (&small, ALL), (&theirs, ALL), RETRY);
    let request = |id| EngineRequest {
        id,
        op: Op::Write,
        mr: small.mr,
        offset: 0,
        len: 4,
        remote_address: theirs.memory.address(),
        rkey: theirs.mr.rkey,
    };
    let full = |outcome| matches!(outcome, Err(EngineError::Full { what: "completion queue", .. }));
    let now = pair.net.now();
    assert!(full(pair.net.hosts[0].post(now, qpn, &[1, 2, 3, 4].map(request))));
    pair.net.hosts[0].post(now, qpn, &[1, 2].map(request)).unwrap();
    assert!(full(pair.net.hosts[0].post(now, qpn, &[3, 4].map(request))));
    pair.net.settle();
    let now = pair.net.now();
    assert!(full(pair.net.hosts[0].post(now, qpn, &[3, 4].map(request))), "not polled, not free");
    pair.net.hosts[0].post(now, qpn, &[request(3)]).unwrap();
    pair.net.hosts[0].destroy_qp(qpn).unwrap();
    let expected = [(1, WcStatus::SUCCESS), (2, WcStatus::SUCCESS), (3, WcStatus::WR_FLUSH_ERR)];
    assert_eq!(statuses(&small.poll(&mut pair.net)), expected, "they outlive their queue pair");
    pair.net.hosts[0].destroy_cq(cq).unwrap();
}

#[test]
fn idle_queue_pairs_cost_nothing() {
    let mut net = Net::new(1, Faults::default(), &[Mtu::Mtu4096; 2]);
    let ends: Vec<_> = (0..200).map(|_| (Side::new(&mut net, 0, 4096), Side::new(&mut net, 1, 4096))).collect();
    for (a, b) in &ends {
        connect(&mut net, (a, ALL), (b, ALL), RETRY);
    }
    assert!(!net.step(), "no alarm and nothing to send");
    assert_eq!(net.hosts[0].ready.len(), 0);
    let (a, b) = &ends[7];
    let (remote_address, rkey) = (b.memory.address(), b.mr.rkey);
    let request = EngineRequest { id: 1, op: Op::Read, mr: a.mr, offset: 0, len: 4, remote_address, rkey };
    net.hosts[0].post(Now(0), a.qpn, &[request]).unwrap();
    net.settle();
    assert!(net.hosts[0].next_timeout().is_none() && net.hosts[1].next_timeout().is_none());
}

#[test]
fn one_queue_pair_has_one_alarm_however_busy() {
    let mut pair = Pair::new(1, Faults::default(), Mtu::Mtu1024, 1 << 20);
    let batch: Vec<_> = (0..16).map(|id| pair.request(id, Op::Read, 0, 0, 1 << 20)).collect();
    pair.post(&batch);
    let mut most = 0;
    while pair.net.step() {
        most = most.max(pair.net.hosts[0].timers.len());
    }
    assert_eq!(most, 1);
    assert!(pair.net.now().0 > 2_000_000, "it rang, and nothing was due");
    assert_eq!(pair.net.hosts[0].counters().retransmitted, 0);
}

#[test]
fn a_long_answer_is_sent_in_bursts() {
    let mut peer = Peer::new(Mtu::Mtu256);
    let draft = peer.read_draft(0, 64 << 10, 256);
    peer.say(&draft);
    let more = peer.read_draft(0, 64 << 10, 256);
    peer.say(&more);
    assert_eq!(peer.answers().len(), BURST);
    assert_eq!(peer.engine.next_timeout(), Some(Now(0)), "at once");
    assert_eq!(peer.answers().len(), 512 - BURST);
    assert_eq!(peer.answers().len(), 0);
    assert_eq!(peer.engine.next_timeout(), None);
}

#[test]
fn a_queue_pair_waits_for_its_turn_once() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    for _ in 0..100 {
        let draft = peer.draft_at(peer.psn.wrapping_sub(1), crate::soft::wire::Opcode::WRITE_LAST, vec![], &[]);
        peer.say(&draft);
    }
    assert_eq!((peer.engine.counters().received, peer.engine.ready.len()), (100, 1));
}

#[test]
fn a_path_takes_the_smaller_mtu() {
    for (ours, theirs) in [(Mtu::Mtu256, Mtu::Mtu4096), (Mtu::Mtu4096, Mtu::Mtu256), (Mtu::Mtu256, Mtu::Mtu256)] {
        let mut net = Net::new(1, Faults::default(), &[ours, theirs]);
        let (a, b) = (Side::new(&mut net, 0, 8192), Side::new(&mut net, 1, 8192));
        connect(&mut net, (&a, ALL), (&b, ALL), RETRY);
        net.log = Some(Vec::new());
        let (remote_address, rkey) = (b.memory.address(), b.mr.rkey);
        let request = EngineRequest { id: 1, op: Op::Write, mr: a.mr, offset: 0, len: 1024, remote_address, rkey };
        net.hosts[0].post(Now(0), a.qpn, &[request]).unwrap();
        net.settle();
        let sent = net.log.iter().flatten().filter(|datagram| datagram.from == address(0)).count();
        assert_eq!(sent, 4);
    }
}

#[test]
fn two_ipv6_devices_talk() {
    let locals: [SocketAddr; 2] = ["[2001:db8::1]:4791".parse().unwrap(), "[2001:db8::2]:5000".parse().unwrap()];
    let mut engines = locals.map(|local| Engine::new(local, Mtu::Mtu1024));
    let memories = [memory(), memory()];
    memories[1].copy_in(0, &[7; 3000]).unwrap();
    let sides = [0, 1].map(|side: usize| {
        let engine = &mut engines[side];
        let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
        let mr = engine.register(pd, Arc::clone(&memories[side]), 0..8192, ALL).unwrap();
        (cq, mr, engine.create_qp(pd, cq, CAPS).unwrap())
    });
    for side in [0, 1] {
        let remote = engines[1 - side].endpoint(sides[1 - side].2).unwrap();
        engines[side].connect(Now(0), sides[side].2, &remote, ALL, RETRY).unwrap();
    }
    let (remote_address, rkey) = (memories[1].address(), sides[1].1.rkey);
    let request = EngineRequest { id: 1, op: Op::Read, mr: sides[0].1, offset: 1, len: 3000, remote_address, rkey };
    engines[0].post(Now(0), sides[0].2, &[request]).unwrap();
    let mut bytes = Vec::new();
    for side in [0, 1] {
        while let Some(transmit) = engines[side].poll_transmit(Now(0), &mut bytes) {
            assert_eq!(transmit.to, locals[1 - side]);
            engines[1 - side].receive(Now(0), locals[side], &bytes);
            bytes.clear();
        }
    }
    let mut completions = Vec::new();
    engines[0].poll_cq(sides[0].0, 9, &mut completions).unwrap();
    assert_eq!(statuses(&completions), [(1, WcStatus::SUCCESS)]);
    let mut read = [0; 3002];
    memories[0].copy_out(0, &mut read).unwrap();
    assert!(read[0] == 0 && read[1..3001] == [7; 3000] && read[3001] == 0);
}

#[test]
fn names_are_not_used_twice_when_they_run_out() {
    let mut map = HandleMap::default();
    let mut last = u32::MAX - 1;
    for name in [u32::MAX, 0, 2] {
        map.insert(1, ());
        assert_eq!(next_free(&map, &mut last), name);
    }
}

#[test]
fn a_peer_that_is_no_soft_device_may_send_any_identification() {
    // The same packet with an ICRC over identification 0x1234: right for a real device, damage for a soft one. A device
    // may have peers of both kinds.
    let mut engine = engine();
    let (pd, cq) = (engine.alloc_pd(), engine.create_cq(16).unwrap());
    let qps = [0, Endpoint::SOFT].map(|flags| {
        let qpn = engine.create_qp(pd, cq, CAPS).unwrap();
        engine.connect(Now(0), qpn, &Endpoint { flags, ..endpoint() }, ALL, RETRY).unwrap();
        qpn
    });
    for (qpn, id, taken) in [(qps[0], 0x1234, true), (qps[1], 0x1234, false), (qps[1], 0, true)] {
        let before = engine.counters();
        engine.receive(Now(0), address(1), &read_under(id, qpn));
        let answer = engine.poll_transmit(Now(0), &mut Vec::new());
        assert_eq!(engine.counters().received - before.received, u64::from(taken), "{id:#x}");
        assert_eq!(engine.counters().dropped.contains_key("ICRC"), qpn == qps[1]);
        // What the kernel cuts would have other identifications than the ICRC says: only a soft peer takes it.
        assert_eq!(answer.map(|answer| answer.alone), taken.then_some(qpn == qps[0]));
    }
}

/// A READ of an unknown key, with the ICRC over this IPv4 identification.
fn read_under(id: u16, qpn: Qpn) -> Vec<u8> {
    let mut packet = vec![0x0c, 0x40, 0xff, 0xff];
    packet.extend(qpn.0.to_be_bytes());
    packet.extend((1_u32 << 31).to_be_bytes());
    packet.extend([0; 16]);
    let [high, low] = id.to_be_bytes();
    let mut covered = vec![0xff; 8];
    covered.extend([0x45, 0xff, 0, 60, high, low, 0x40, 0, 0xff, 17, 0xff, 0xff, 192, 0, 2, 2, 192, 0, 2, 1]);
    covered.extend([0x12, 0xb7, 0x12, 0xb7, 0, 40, 0xff, 0xff]);
    covered.extend(&packet);
    covered[36 + 4] = 0xff;
    packet.extend(crc32fast::hash(&covered).to_le_bytes());
    packet
}

#[test]
fn any_bytes_do_no_harm() {
    let mut peer = Peer::new(Mtu::Mtu1024);
    let request = peer.request(1, Op::Read, 0, 3000);
    peer.post(&[request]).unwrap();
    let before = peer.bytes();
    let mut random = crate::soft::port_sim::Random(1);
    for round in 0..50_000_u64 {
        let len = random.below(120) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        // Half of them get as far as the ICRC, half of those through it.
        if round % 2 == 0 && len >= 12 {
            bytes[1] &= 0xf0;
            bytes[2..4].fill(0xff);
            bytes[4..8].copy_from_slice(&peer.qpn.0.to_be_bytes());
            if round % 4 == 0 {
                bytes.truncate(len & !3);
                bytes[9..12].copy_from_slice(&(peer.psn + 5).to_be_bytes()[1..]);
                bytes = peer.seal(&bytes);
            }
        }
        peer.engine.receive(Now(round), address(1), &bytes);
        peer.answers();
    }
    assert!(peer.bytes() == before);
    assert_eq!(peer.state(), QpState::ReadyToSend);
    assert!(peer.engine.qps.len() == 1 && peer.engine.ready.is_empty());
}

#[test]
fn long_timeouts_end_rather_than_wrap() {
    let retry = Retry { timeout: Duration::MAX, count: 1 };
    let mut peer = Peer::with(Mtu::Mtu1024, ALL, retry);
    let request = peer.request(1, Op::Read, 0, 8);
    peer.post(&[request]).unwrap();
    let mut last = Now(0);
    for _ in 0..100 {
        let at = peer.engine.next_timeout().unwrap();
        peer.engine.on_timeout(at);
        assert_eq!(peer.answers().len(), 1, "asked for again");
        assert!(at >= last, "{at:?} comes before {last:?}");
        last = at;
    }
    assert!(last > Now(1_000_000_000));
}
