//! The invariant CRC: zlib's CRC-32 over eight FF bytes, the IP and UDP headers with what routers change set to ones, the
//! BTH with its fifth byte set to ones, and the rest; little-endian at the packet's end.
//!
//! The IPv4 header under it has the identification field, which a UDP socket can neither choose nor see. We send with
//! identification 0 and don't-fragment, and the port makes the kernel do so too. Between two soft devices it is taken as
//! 0. Others may send any. A port that sees it says so; for one that does not: CRC-32 is linear, so [`Icrc::matches_some_id`] accepts what fits one of the 2^16 values. That
//! check tells damage with 2^16 times less certainty, and the UDP checksum is often the better one there.

use std::net::SocketAddr;

use super::wire::{Bth, ICRC_LEN};

const IPV4_HEAD: usize = 8 + 20 + 8;
const IPV6_HEAD: usize = 8 + 40 + 8;
/// Where in the covered bytes the IPv4 identification ends.
const ID_END: usize = 8 + 6;

/// The covered headers of one direction of a connection, with the lengths left open.
#[derive(Clone)]
pub(crate) struct Icrc {
    head: [u8; IPV6_HEAD],
    v4: bool,
}

impl Icrc {
    /// For packets from `source` to `target`, which are of one address family.
    pub(crate) fn new(source: SocketAddr, target: SocketAddr) -> Self {
        let mut head = [0xff; IPV6_HEAD];
        let v4 = match (source, target) {
            (SocketAddr::V4(source), SocketAddr::V4(target)) => {
                head[8] = 0x45;
                head[12..14].fill(0);
                head[14..16].copy_from_slice(&[0x40, 0]);
                head[17] = 17;
                head[20..24].copy_from_slice(&source.ip().octets());
                head[24..28].copy_from_slice(&target.ip().octets());
                true
            }
            (source, target) => {
                let octets = |address: SocketAddr| match address {
                    SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
                    SocketAddr::V6(v6) => v6.ip().octets(),
                };
                head[8] = 0x6f;
                head[14] = 17;
                head[16..32].copy_from_slice(&octets(source));
                head[32..48].copy_from_slice(&octets(target));
                false
            }
        };
        let ports = if v4 { IPV4_HEAD } else { IPV6_HEAD } - 8;
        head[ports..ports + 2].copy_from_slice(&source.port().to_be_bytes());
        head[ports + 2..ports + 4].copy_from_slice(&target.port().to_be_bytes());
        Self { head, v4 }
    }

    /// The same direction from another UDP port: a peer's source port is its own business, but it is covered.
    pub(crate) fn set_source_port(&mut self, port: u16) {
        let at = self.head_len() - 8;
        self.head[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }

    /// The same direction with another IPv4 identification than 0, of which there is none in IPv6.
    pub(crate) fn set_id(&mut self, id: u16) {
        if self.v4 {
            self.head[ID_END - 2..ID_END].copy_from_slice(&id.to_be_bytes());
        }
    }

    /// The ICRC of a packet, given without it.
    pub(crate) fn of(&self, packet: &[u8]) -> u32 {
        let len = self.head_len();
        let mut bytes = [0; IPV6_HEAD + Bth::LEN];
        bytes[..len].copy_from_slice(&self.head[..len]);
        // A packet is far shorter than 64 KiB: `Packet` and the MTU see to that.
        let udp = (8 + packet.len() + ICRC_LEN) as u16;
        if self.v4 {
            bytes[10..12].copy_from_slice(&(20 + udp).to_be_bytes());
        } else {
            bytes[12..14].copy_from_slice(&udp.to_be_bytes());
        }
        bytes[len - 4..len - 2].copy_from_slice(&udp.to_be_bytes());
        let (bth, rest) = packet.split_at(packet.len().min(Bth::LEN));
        bytes[len..len + bth.len()].copy_from_slice(bth);
        bytes[len + 4] = 0xff;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..len + bth.len()]);
        hasher.update(rest);
        hasher.finalize()
    }

    /// Whether `icrc` is right for `packet` under some IPv4 identification.
    pub(crate) fn matches_some_id(&self, packet: &[u8], icrc: u32) -> bool {
        let difference = self.of(packet) ^ icrc;
        difference == 0 || self.v4 && id_behind(difference, self.head_len() + packet.len() - ID_END).is_some()
    }

    const fn head_len(&self) -> usize {
        if self.v4 { IPV4_HEAD } else { IPV6_HEAD }
    }
}

/// The identification that, with `after` more covered bytes behind it, changes the CRC by `difference`; None where no 16
/// bits can.
///
/// As polynomials the difference is id · x^(8·after + 32) modulo the CRC's polynomial: divided by that power of x, only 16
/// coefficients may be left. Bit 31 is the coefficient of x^0.
fn id_behind(difference: u32, after: usize) -> Option<u16> {
    let mut value = difference;
    let bytes = after + 4;
    for (bit, inverse) in INVERSES.iter().enumerate() {
        if bytes >> bit & 1 == 1 {
            value = multiply(value, *inverse);
        }
    }
    let id = (value >> 16) as u16;
    (value & 0xffff == 0).then_some(id.swap_bytes())
}

const POLYNOMIAL: u32 = 0xedb8_8320;

/// x^(-8 · 2^k) for each k: enough for any datagram.
const INVERSES: [u32; 17] = {
    let mut value = 0x8000_0000_u32;
    let mut step = 0;
    while step < 8 {
        value = if value >> 31 == 1 { (value ^ POLYNOMIAL) << 1 | 1 } else { value << 1 };
        step += 1;
    }
    let mut table = [0; 17];
    let mut k = 0;
    while k < 17 {
        table[k] = value;
        value = multiply(value, value);
        k += 1;
    }
    table
};

/// The product of two polynomials modulo the CRC's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    }
    product
}

#[cfg(test)]
#[path = "icrc_tests.rs"]
mod tests;
