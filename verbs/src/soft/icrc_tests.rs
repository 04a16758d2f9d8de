use super::*;
use crate::soft::vectors::{self, hex};

/// From a packet exchange of a UDP socket (10.9.0.2) with the rxe of Linux 6.1 (10.9.0.1) in a virtual machine: a WRITE that
/// rxe took, sent with IPv4 identification 0 and don't-fragment, from port 4791 to port 4791.
const WRITE_TAKEN_BY_RXE: &str = "0a40ffff000000118000138800007f68374530640000027d0000002468656c6c6f2066726f6d206120\
    55445020736f636b65742c206e6f7420616e20524e4943674b9328";

fn split(packet: &[u8]) -> (&[u8], u32) {
    let (covered, icrc) = packet.split_last_chunk().unwrap();
    (covered, u32::from_le_bytes(*icrc))
}

fn between(source: &str, target: &str) -> Icrc {
    Icrc::new(source.parse().unwrap(), target.parse().unwrap())
}

/// CRC-32 bit by bit, over the headers written out one by one.
fn slow(source: &str, target: &str, packet: &[u8], id: u16) -> u32 {
    let (source, target): (SocketAddr, SocketAddr) = (source.parse().unwrap(), target.parse().unwrap());
    let udp = (packet.len() + 4 + 8) as u16;
    let mut covered = vec![0xff; 8];
    match (source, target) {
        (SocketAddr::V4(source), SocketAddr::V4(target)) => {
            covered.extend([0x45, 0xff]);
            covered.extend((udp + 20).to_be_bytes());
            covered.extend(id.to_be_bytes());
            covered.extend([0x40, 0x00, 0xff, 17, 0xff, 0xff]);
            covered.extend(source.ip().octets());
            covered.extend(target.ip().octets());
        }
        (SocketAddr::V6(source), SocketAddr::V6(target)) => {
            covered.extend([0x6f, 0xff, 0xff, 0xff]);
            covered.extend(udp.to_be_bytes());
            covered.extend([17, 0xff]);
            covered.extend(source.ip().octets());
            covered.extend(target.ip().octets());
        }
        _ => panic!("two families"),
    }
    covered.extend(source.port().to_be_bytes());
    covered.extend(target.port().to_be_bytes());
    covered.extend(udp.to_be_bytes());
    covered.extend([0xff, 0xff]);
    covered.extend(&packet[..4]);
    covered.push(0xff);
    covered.extend(&packet[5..]);
    !covered.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    })
}

#[test]
fn a_packet_that_the_kernel_took() {
    let packet = hex(WRITE_TAKEN_BY_RXE);
    let (covered, icrc) = split(&packet);
    assert_eq!(between("10.9.0.2:4791", "10.9.0.1:4791").of(covered), icrc);
    assert_ne!(between("10.9.0.2:4792", "10.9.0.1:4791").of(covered), icrc, "the source port is covered");
    assert_ne!(between("10.9.0.1:4791", "10.9.0.2:4791").of(covered), icrc, "the addresses are covered");
}

#[test]
fn packets_that_the_kernel_sent() {
    for vector in vectors::rxe() {
        let (name, (covered, icrc)) = (vector.name, vector.split());
        let (source, target) = (vector.source.to_string(), vector.target.to_string());
        assert_eq!(slow(&source, &target, covered, vector.id), icrc, "{name}: over the identification in its header");
        // As we see it: the source port is known, the identification is not.
        let mut direction = Icrc::new(SocketAddr::new(vector.source.ip(), 4791), vector.target);
        assert!(!direction.matches_some_id(covered, icrc), "{name}: from another port");
        direction.set_source_port(vector.source.port());
        assert!(direction.matches_some_id(covered, icrc), "{name}");
        assert_ne!(direction.of(covered), icrc, "{name}: its identification is not 0");
        let id = id_behind(direction.of(covered) ^ icrc, IPV4_HEAD + covered.len() - ID_END);
        assert_eq!(id, Some(vector.id), "{name}");
        for bit in (0..covered.len() * 8).filter(|bit| bit / 8 != 4) {
            let mut damaged = covered.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!direction.matches_some_id(&damaged, icrc), "{name}: bit {bit}");
        }
        direction.set_id(vector.id);
        assert_eq!(direction.of(covered), icrc, "{name}: with the identification in its header");
    }
}

#[test]
fn it_is_the_crc_of_the_documented_bytes() {
    for len in [12, 16, 28, 60, 76, 116, 1052, 4124] {
        let packet: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
        for (source, target) in
            [("192.0.2.1:4791", "198.51.100.9:50000"), ("[2001:db8::1]:4791", "[2001:db8:1:2:3:4:5:6]:4791")]
        {
            assert_eq!(between(source, target).of(&packet), slow(source, target, &packet, 0), "{source} {len}");
        }
    }
}

#[test]
fn the_fifth_byte_of_the_bth_is_not_covered() {
    let direction = between("192.0.2.1:4791", "192.0.2.2:4791");
    let (a, mut b) = ([0x5a; 64], [0x5a; 64]);
    b[4] = 0;
    assert_eq!(direction.of(&a), direction.of(&b));
    for at in (0..64).filter(|at| *at != 4) {
        let mut other = a;
        other[at] ^= 0x10;
        assert_ne!(direction.of(&other), direction.of(&a), "byte {at}");
    }
}

#[test]
fn any_identification_is_found_out() {
    let (source, target) = ("192.0.2.1:4791", "192.0.2.2:4791");
    let direction = between(source, target);
    for len in [16, 20, 1040, 4112] {
        let packet: Vec<u8> = (0..len).map(|at| (at * 13) as u8).collect();
        for id in [1, 0x80, 0x100, 0x1234, 0x8000, 40222, 0xffff] {
            let icrc = slow(source, target, &packet, id);
            assert!(direction.matches_some_id(&packet, icrc));
            assert_eq!(id_behind(direction.of(&packet) ^ icrc, IPV4_HEAD + len - ID_END), Some(id));
        }
        assert!(direction.matches_some_id(&packet, direction.of(&packet)));
    }
}

#[test]
fn modulo_the_identification_damage_is_still_found() {
    let (source, target) = ("192.0.2.1:4791", "192.0.2.2:4791");
    let direction = between(source, target);
    let packet: Vec<u8> = (0..256).map(|at| (at * 31) as u8).collect();
    let icrc = slow(source, target, &packet, 777);
    for bit in (0..packet.len() * 8).filter(|bit| bit / 8 != 4) {
        let mut damaged = packet.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(!direction.matches_some_id(&damaged, icrc), "bit {bit}");
    }
    for bit in 0..32 {
        assert!(!direction.matches_some_id(&packet, icrc ^ 1 << bit), "ICRC bit {bit}");
    }
}

#[test]
fn ipv6_has_no_identification() {
    let direction = between("[2001:db8::1]:4791", "[2001:db8::2]:4791");
    let packet = [0x5a; 64];
    let icrc = direction.of(&packet);
    assert!(direction.matches_some_id(&packet, icrc));
    let difference = (0..=u16::MAX).map(|id| slow("192.0.2.1:1", "192.0.2.2:1", &packet, id));
    let base = slow("192.0.2.1:1", "192.0.2.2:1", &packet, 0);
    assert!(difference.skip(1).take(50).all(|other| !direction.matches_some_id(&packet, icrc ^ base ^ other)));
}
