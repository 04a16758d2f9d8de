//! Packets that a real device sent, from the IPv4 header on: each file says which, when, and how to make it again.

use std::net::{Ipv4Addr, SocketAddr};

const IPV4: usize = 20;
const UDP: usize = 8;

/// One packet of a file.
pub(super) struct Vector {
    pub(super) name: &'static str,
    pub(super) source: SocketAddr,
    pub(super) target: SocketAddr,
    /// The IPv4 identification.
    pub(super) id: u16,
    /// From the BTH to the ICRC.
    pub(super) datagram: Vec<u8>,
}

impl Vector {
    /// The datagram without its ICRC, and the ICRC.
    pub(super) fn split(&self) -> (&[u8], u32) {
        let (covered, icrc) = self.datagram.split_last_chunk().unwrap();
        (covered, u32::from_le_bytes(*icrc))
    }
}

/// Those of rxe.
pub(super) fn rxe() -> Vec<Vector> {
    let lines = include_str!("rxe-6.1.hex").lines().filter(|line| !line.starts_with('#'));
    let vectors: Vec<_> = lines.map(read).collect();
    assert_eq!(vectors.len(), 12);
    vectors
}

pub(super) fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn read(line: &'static str) -> Vector {
    let (name, text) = line.split_once(' ').unwrap();
    let packet = hex(text);
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    // No options, never fragmented, UDP, and lengths that agree.
    assert_eq!((packet[0], word(6), packet[9]), (0x45, 0x4000, 17), "{name}");
    assert_eq!((usize::from(word(2)), usize::from(word(24))), (packet.len(), packet.len() - IPV4), "{name}");
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Vector {
        name,
        source: (address(12), word(20)).into(),
        target: (address(16), word(22)).into(),
        id: word(4),
        datagram: packet[IPV4 + UDP..].to_vec(),
    }
}
