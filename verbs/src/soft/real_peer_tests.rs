//! What the responder does otherwise for a peer that is the kernel's soft-RoCE or a card: docs/wire-format.md says why.

use std::time::Duration;

use super::engine::Now;
use super::port_sim::address;
use super::test_peer::{Peer, reth};
use super::wire::Opcode;
use crate::{Access, Endpoint, Mtu, QpState, Retry};

const RETRY: Retry = Retry { timeout: Duration::from_millis(1), count: 3 };

fn dropped(peer: &Peer, reason: &str) -> u64 {
    peer.engine.counters().dropped.get(reason).copied().unwrap_or(0)
}

fn assert_alive(peer: &mut Peer) {
    assert_eq!(peer.state(), QpState::ReadyToSend);
    let answers = peer.write(0, b"alive");
    assert_eq!(answers.last().unwrap().aeth.unwrap().0, 0x1f);
}

// rxe counts each report of a gap as a retry, until something is acknowledged.
#[test]
fn a_real_peer_hears_an_acknowledgement_before_each_report_of_a_gap() {
    for (flags, expected) in [(Endpoint::SOFT, vec![0x60]), (0, vec![0x1f, 0x60])] {
        let mut peer = Peer::of_kind(flags, Mtu::Mtu1024, Access::all(), RETRY);
        for _ in 0..3 {
            peer.write(0, b"data");
            let (psn, extension) = (peer.psn, reth(peer.va(), peer.mr.rkey, 4));
            let later = peer.draft_at(psn + 1, Opcode::WRITE_ONLY, extension, b"late");
            let answers = peer.ask(&later);
            assert_eq!(answers.iter().map(|answer| answer.aeth.unwrap().0).collect::<Vec<_>>(), expected);
            assert_eq!(answers[0].psn, psn.wrapping_sub(u32::from(flags == 0)) & 0x00ff_ffff);
            assert_eq!(peer.ask(&later), [], "once");
        }
        // Not where that would acknowledge a READ.
        let read = peer.read_draft(0, 8, 1);
        peer.ask(&read);
        let extension = reth(peer.va(), peer.mr.rkey, 4);
        let later = peer.draft_at(peer.psn + 1, Opcode::WRITE_ONLY, extension, b"late");
        let answers = peer.ask(&later);
        assert_eq!(answers.iter().map(|answer| answer.aeth.unwrap().0).collect::<Vec<_>>(), [0x60]);
        assert_alive(&mut peer);
    }
}

#[test]
fn a_real_peer_is_not_told_of_a_region_lost_in_the_middle_of_its_read() {
    for (flags, again, late) in [
        (Endpoint::SOFT, false, false),
        (Endpoint::SOFT, true, true),
        (0, false, false),
        (0, true, false),
        (0, true, true),
    ] {
        let mut peer = Peer::of_kind(flags, Mtu::Mtu1024, Access::all(), RETRY);
        let read = peer.read_draft(0, 3000, 3);
        peer.say(&read);
        peer.answer().unwrap();
        if again {
            assert_eq!(peer.answers().len(), 2);
        }
        if again && !late {
            peer.say(&read);
        }
        let mr = peer.mr;
        peer.engine.deregister(mr).unwrap();
        if late {
            peer.say(&read);
        }
        let told: Vec<_> = peer.answers().iter().map(|answer| answer.aeth.unwrap().0).collect();
        assert_eq!(told, if flags == 0 { vec![] } else { vec![0x62] });
        assert_eq!(peer.state(), QpState::Error);
    }
}

#[test]
fn nothing_acknowledges_the_packets_of_a_read() {
    let mut peer = Peer::of_kind(0, Mtu::Mtu1024, Access::all(), RETRY);
    let read = peer.read_draft(0, 8 * 1024, 8);
    assert_eq!(peer.ask(&read).len(), 8);
    for at in 0..8 {
        for opcode in [Opcode::WRITE_MIDDLE, Opcode::WRITE_LAST, Opcode::SEND_ONLY, Opcode::FETCH_ADD] {
            let extension = if opcode == Opcode::FETCH_ADD { vec![0; 28] } else { vec![] };
            let data: &[u8] = if opcode == Opcode::FETCH_ADD { b"" } else { b"evil" };
            let draft = peer.draft_at(read.psn + at, opcode, extension, data);
            assert_eq!(peer.ask(&draft), [], "{at}: rxe would take it for the rest of the READ");
        }
    }
    assert_eq!(dropped(&peer, "READ repeated"), 32);
    assert_alive(&mut peer);
}

#[test]
fn the_source_port_of_a_real_device_may_be_any_but_is_covered() {
    let mut peer = Peer::of_kind(0, Mtu::Mtu4096, Access::all(), RETRY);
    let draft = peer.read_draft(0, 8, 1);
    let bytes = peer.seal(&draft.bytes());
    let mut from = address(1);
    from.set_port(50_000);
    peer.engine.receive(Now(0), from, &bytes);
    assert_eq!(dropped(&peer, "ICRC"), 1);
    let mut sealed = draft.bytes();
    sealed.extend(super::icrc::Icrc::new(from, address(0)).of(&draft.bytes()).to_le_bytes());
    peer.engine.receive(Now(0), from, &sealed);
    let answers = peer.answers();
    assert_eq!(answers.len(), 1, "and the answer goes to the peer's own port");
    assert_alive(&mut peer);
}

// A port of DPDK's knows it; of a packet in which only that is damaged a socket cannot tell.
#[test]
fn the_identification_of_a_real_devices_packet_is_covered_where_it_is_known() {
    let mut peer = Peer::of_kind(0, Mtu::Mtu4096, Access::all(), RETRY);
    let draft = peer.read_draft(0, 8, 1);
    let mut direction = super::icrc::Icrc::new(address(1), address(0));
    direction.set_id(777);
    let mut sealed = draft.bytes();
    sealed.extend(direction.of(&draft.bytes()).to_le_bytes());
    for (wrong, dropped_by_now) in [(0, 1), (776, 2)] {
        peer.engine.receive_with(Now(0), address(1), Some(wrong), &sealed);
        assert_eq!((peer.answers(), dropped(&peer, "ICRC")), (vec![], dropped_by_now));
    }
    peer.engine.receive_with(Now(0), address(1), Some(777), &sealed);
    assert_eq!(peer.answers().len(), 1);
    assert_alive(&mut peer);
}

#[test]
fn a_soft_peer_has_one_source_port() {
    let mut peer = Peer::new(Mtu::Mtu4096);
    let draft = peer.read_draft(0, 8, 1);
    let mut from = address(1);
    from.set_port(50_000);
    let mut sealed = draft.bytes();
    sealed.extend(super::icrc::Icrc::new(from, address(0)).of(&draft.bytes()).to_le_bytes());
    peer.engine.receive(Now(0), from, &sealed);
    assert_eq!(peer.answers(), []);
    assert_eq!(dropped(&peer, "wrong source address"), 1);
    assert_eq!(peer.ask(&draft).len(), 1);
    assert_alive(&mut peer);
}
