//! What one side of a connection tells the other: where its queue pair is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::VerbsError;

/// The most payload that one packet carries, with the codes of `ibv_mtu`; the last is known between soft devices only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mtu {
    /// 256 bytes.
    Mtu256 = 1,
    /// 512 bytes.
    Mtu512,
    /// 1024 bytes.
    Mtu1024,
    /// 2048 bytes.
    Mtu2048,
    /// 4096 bytes: the most that a RoCE packet carries (InfiniBand specification, 9.4.1).
    Mtu4096,
    /// 8192 bytes, between soft devices: a sealed block of 4096 is one packet, and jumbo frames carry it.
    Mtu8192,
}

impl Mtu {
    /// All of them, the smallest first.
    pub const ALL: [Self; 6] = [Self::Mtu256, Self::Mtu512, Self::Mtu1024, Self::Mtu2048, Self::Mtu4096, Self::Mtu8192];

    /// Payload bytes of a full packet.
    #[must_use]
    pub const fn bytes(self) -> usize {
        128 << self as usize
    }

    /// The MTU with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|mtu| *mtu as u8 == code)
    }
}

/// UDP port of every real RoCEv2 device.
pub(crate) const ROCE_PORT: u16 = 4791;

/// A queue pair as its peer addresses it.
///
/// On the wire, 32 bytes, big-endian: version 1, flags, MTU code, 0, QPN u32, PSN u32, UDP port u16, LID u16, GID 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// [`Endpoint::SOFT`] or 0.
    pub flags: u8,
    /// The largest path MTU that this side takes; a connection uses the smaller of the two.
    pub mtu: Mtu,
    /// Queue pair number, 24 bits, never 0 or 1.
    pub qpn: u32,
    /// Packet sequence number of the first request, 24 bits.
    pub psn: u32,
    /// UDP port that takes this device's packets: 4791 for every real RoCEv2 device.
    pub port: u16,
    /// Local identifier on an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// IPv6 address, or IPv4-mapped address.
    pub gid: [u8; 16],
}

impl Endpoint {
    /// Bytes on the wire.
    pub const LEN: usize = 32;
    /// Flag: a soft device, which leaves the IPv4 identification out of the ICRC when its peer is one too.
    pub const SOFT: u8 = 1;
    const VERSION: u8 = 1;

    /// The GID of an address.
    #[must_use]
    pub fn gid_of(address: IpAddr) -> [u8; 16] {
        match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = Self::VERSION;
        bytes[1] = self.flags;
        bytes[2] = self.mtu as u8;
        bytes[4..8].copy_from_slice(&self.qpn.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.psn.to_be_bytes());
        bytes[12..14].copy_from_slice(&self.port.to_be_bytes());
        bytes[14..16].copy_from_slice(&self.lid.to_be_bytes());
        bytes[16..].copy_from_slice(&self.gid);
        bytes
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`VerbsError::Endpoint`] names the field that no device could have sent.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, VerbsError> {
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let bad = |field| Err(VerbsError::Endpoint { field });
        let (qpn, psn) = (u32_at(4), u32_at(8));
        let port = u16::from_be_bytes([bytes[12], bytes[13]]);
        let lid = u16::from_be_bytes([bytes[14], bytes[15]]);
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[16..]);
        let address = Ipv6Addr::from(gid).to_canonical();
        let Some(mtu) = Mtu::from_code(bytes[2]) else { return bad("MTU") };
        if bytes[0] != Self::VERSION {
            bad("version")
        } else if bytes[1] & !Self::SOFT != 0 {
            bad("flags")
        } else if mtu > Mtu::Mtu4096 && bytes[1] & Self::SOFT == 0 {
            bad("MTU")
        } else if bytes[3] != 0 {
            bad("reserved bytes")
        } else if !(2..1 << 24).contains(&qpn) {
            bad("queue pair number")
        } else if psn >= 1 << 24 {
            bad("packet sequence number")
        } else if port == 0 {
            bad("UDP port")
        } else if address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST {
            bad("address")
        } else {
            Ok(Self { flags: bytes[1], mtu, qpn, psn, port, lid, gid })
        }
    }

    /// Where its packets go.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.gid).to_canonical(), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Endpoint = Endpoint {
        lid: 0x1234,
        flags: Endpoint::SOFT,
        mtu: Mtu::Mtu4096,
        qpn: 0x0012_3456,
        psn: 0x00ab_cdef,
        port: 4791,
        gid: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7],
    };

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = SAMPLE.to_bytes();
        assert_eq!(
            bytes,
            [
                1, 1, 5, 0, 0, 0x12, 0x34, 0x56, 0, 0xab, 0xcd, 0xef, 0x12, 0xb7, 0x12, 0x34, //
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7
            ]
        );
        assert_eq!(Endpoint::from_bytes(&bytes).unwrap(), SAMPLE);
        assert_eq!(SAMPLE.socket_addr(), "192.0.2.7:4791".parse().unwrap());
        assert_eq!(Endpoint::gid_of("192.0.2.7".parse().unwrap()), SAMPLE.gid);
    }

    #[test]
    fn each_field_is_checked_and_named() {
        for (at, value, field) in [
            (0, 0, "version"),
            (0, 2, "version"),
            (1, 2, "flags"),
            (2, 0, "MTU"),
            (2, 7, "MTU"),
            (3, 1, "reserved bytes"),
            (4, 1, "queue pair number"),
            (8, 1, "packet sequence number"),
        ] {
            let mut bytes = SAMPLE.to_bytes();
            bytes[at] = value;
            assert!(matches!(Endpoint::from_bytes(&bytes), Err(VerbsError::Endpoint { field: f }) if f == field));
        }
        for (range, field) in [(4..8, "queue pair number"), (12..14, "UDP port"), (16..32, "address")] {
            let mut bytes = SAMPLE.to_bytes();
            bytes[range].fill(0);
            assert!(matches!(Endpoint::from_bytes(&bytes), Err(VerbsError::Endpoint { field: f }) if f == field));
        }
    }

    #[test]
    fn mtu_codes_are_those_of_ibv_mtu() {
        assert_eq!(Mtu::ALL.map(Mtu::bytes), [256, 512, 1024, 2048, 4096, 8192]);
        assert_eq!(Mtu::ALL.map(|mtu| mtu as u8), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn packets_longer_than_any_adapter_takes_are_for_soft_devices() {
        let mut bytes = SAMPLE.to_bytes();
        bytes[2] = 6;
        assert_eq!(Endpoint::from_bytes(&bytes).unwrap().mtu, Mtu::Mtu8192);
        bytes[1] = 0;
        assert!(matches!(Endpoint::from_bytes(&bytes), Err(VerbsError::Endpoint { field: "MTU" })));
    }
}
