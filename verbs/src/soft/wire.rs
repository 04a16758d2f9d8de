//! Bytes of RoCEv2: a checked view of a datagram, and a plain value for each header.
//!
//! The payload of the UDP datagram is BTH 12 · extended headers · data · 0 to 3 bytes of pad · ICRC 4; all big-endian but
//! the ICRC.

use super::psn::Psn;

/// The default partition, with full membership: the only one a soft device is in.
pub(crate) const DEFAULT_PKEY: u16 = 0xffff;
/// Bytes of the invariant CRC at the end.
pub(crate) const ICRC_LEN: usize = 4;
/// The longest datagram: a WRITE ONLY with immediate data and a payload of 8,192 bytes.
pub(crate) const MAX_DATAGRAM: usize = Bth::LEN + Reth::LEN + 4 + 8192 + ICRC_LEN;

/// What a packet is. A foreign code is data, so an unknown one is no panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opcode(pub(crate) u8);

impl Opcode {
    pub(crate) const SEND_FIRST: Self = Self(0x00);
    pub(crate) const SEND_MIDDLE: Self = Self(0x01);
    pub(crate) const SEND_LAST: Self = Self(0x02);
    pub(crate) const SEND_LAST_IMMEDIATE: Self = Self(0x03);
    pub(crate) const SEND_ONLY: Self = Self(0x04);
    pub(crate) const SEND_ONLY_IMMEDIATE: Self = Self(0x05);
    pub(crate) const WRITE_FIRST: Self = Self(0x06);
    pub(crate) const WRITE_MIDDLE: Self = Self(0x07);
    pub(crate) const WRITE_LAST: Self = Self(0x08);
    pub(crate) const WRITE_LAST_IMMEDIATE: Self = Self(0x09);
    pub(crate) const WRITE_ONLY: Self = Self(0x0a);
    pub(crate) const WRITE_ONLY_IMMEDIATE: Self = Self(0x0b);
    pub(crate) const READ_REQUEST: Self = Self(0x0c);
    pub(crate) const READ_RESPONSE_FIRST: Self = Self(0x0d);
    pub(crate) const READ_RESPONSE_MIDDLE: Self = Self(0x0e);
    pub(crate) const READ_RESPONSE_LAST: Self = Self(0x0f);
    pub(crate) const READ_RESPONSE_ONLY: Self = Self(0x10);
    pub(crate) const ACKNOWLEDGE: Self = Self(0x11);
    pub(crate) const ATOMIC_ACKNOWLEDGE: Self = Self(0x12);
    pub(crate) const COMPARE_SWAP: Self = Self(0x13);
    pub(crate) const FETCH_ADD: Self = Self(0x14);
    pub(crate) const SEND_LAST_INVALIDATE: Self = Self(0x16);
    pub(crate) const SEND_ONLY_INVALIDATE: Self = Self(0x17);

    /// Bytes between BTH and data, and whether data may follow. None: not an opcode of reliable connections.
    const fn layout(self) -> Option<(usize, bool)> {
        Some(match self {
            Self::SEND_FIRST | Self::SEND_MIDDLE | Self::SEND_LAST | Self::SEND_ONLY => (0, true),
            Self::SEND_LAST_IMMEDIATE | Self::SEND_ONLY_IMMEDIATE | Self::WRITE_LAST_IMMEDIATE => (4, true),
            Self::SEND_LAST_INVALIDATE | Self::SEND_ONLY_INVALIDATE => (4, true),
            Self::WRITE_FIRST | Self::WRITE_ONLY => (Reth::LEN, true),
            Self::WRITE_ONLY_IMMEDIATE => (Reth::LEN + 4, true),
            Self::WRITE_MIDDLE | Self::WRITE_LAST | Self::READ_RESPONSE_MIDDLE => (0, true),
            Self::READ_REQUEST => (Reth::LEN, false),
            Self::READ_RESPONSE_FIRST | Self::READ_RESPONSE_LAST | Self::READ_RESPONSE_ONLY => (Aeth::LEN, true),
            Self::ACKNOWLEDGE => (Aeth::LEN, false),
            Self::ATOMIC_ACKNOWLEDGE => (Aeth::LEN + 8, false),
            Self::COMPARE_SWAP | Self::FETCH_ADD => (ATOMIC_ETH_LEN, false),
            _ => return None,
        })
    }

    /// An answer to the requester, rather than a request.
    pub(crate) const fn is_response(self) -> bool {
        self.0 >= Self::READ_RESPONSE_FIRST.0 && self.0 <= Self::ATOMIC_ACKNOWLEDGE.0
    }
}

/// AtomicETH: address 8, rkey 4, two operands of 8. Nobody here grants atomics, so it is only stepped over.
const ATOMIC_ETH_LEN: usize = 28;

/// Why bytes are no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Shorter than its headers, pad and ICRC.
    Truncated,
    /// A length no packet can have.
    Length,
    /// Not an opcode of reliable connections.
    Opcode,
}

/// A datagram that has room for BTH and ICRC and a length that packets can have.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a> {
    bytes: &'a [u8],
    /// Its base transport header.
    pub(crate) bth: Bth,
}

/// What follows the BTH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Body<'a> {
    /// In WRITE FIRST and ONLY and READ requests.
    pub(crate) reth: Option<Reth>,
    /// In acknowledgements and all READ responses but MIDDLE.
    pub(crate) aeth: Option<Aeth>,
    /// Without the pad.
    pub(crate) data: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (head, _) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        if bytes.len() < Bth::LEN + ICRC_LEN {
            return Err(Malformed::Truncated);
        }
        if bytes.len() > MAX_DATAGRAM || !bytes.len().is_multiple_of(4) {
            return Err(Malformed::Length);
        }
        Ok(Self { bytes, bth: Bth::parse(head) })
    }

    /// All that the ICRC covers, and the ICRC itself.
    pub(crate) fn split_icrc(&self) -> (&'a [u8], u32) {
        match self.bytes.split_last_chunk() {
            Some((covered, icrc)) => (covered, u32::from_le_bytes(*icrc)),
            None => (&[], 0),
        }
    }

    /// Reads what the opcode says must follow.
    pub(crate) fn body(&self) -> Result<Body<'a>, Malformed> {
        let (extended, may_have_data) = self.bth.opcode.layout().ok_or(Malformed::Opcode)?;
        let after = self.split_icrc().0.get(Bth::LEN..).ok_or(Malformed::Truncated)?;
        let (head, padded) = after.split_at_checked(extended).ok_or(Malformed::Truncated)?;
        let len = padded.len().checked_sub(self.bth.pad.into()).ok_or(Malformed::Truncated)?;
        let data = padded.get(..len).ok_or(Malformed::Truncated)?;
        if !may_have_data && !padded.is_empty() {
            return Err(Malformed::Length);
        }
        let (mut reth, mut aeth) = (None, None);
        match self.bth.opcode {
            Opcode::WRITE_FIRST | Opcode::WRITE_ONLY | Opcode::WRITE_ONLY_IMMEDIATE | Opcode::READ_REQUEST => {
                reth = head.first_chunk().map(Reth::parse);
            }
            opcode if opcode.is_response() => aeth = head.first_chunk().map(Aeth::parse),
            _ => {}
        }
        Ok(Body { reth, aeth, data })
    }
}

/// Base transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bth {
    pub(crate) opcode: Opcode,
    /// Asks the receiver for an event on its completion; means nothing here.
    pub(crate) solicited: bool,
    /// Path migration state; sent as 1, ignored.
    pub(crate) migrated: bool,
    /// Bytes, 0 to 3, that fill the data to a multiple of four.
    pub(crate) pad: u8,
    /// Version of the transport header: 0.
    pub(crate) version: u8,
    pub(crate) pkey: u16,
    /// The destination's queue pair number.
    pub(crate) qpn: u32,
    /// The requester wants an acknowledgement of this packet.
    pub(crate) ack_request: bool,
    pub(crate) psn: Psn,
}

impl Bth {
    pub(crate) const LEN: usize = 12;

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            opcode: Opcode(bytes[0]),
            solicited: bytes[1] & 0x80 != 0,
            migrated: bytes[1] & 0x40 != 0,
            pad: bytes[1] >> 4 & 3,
            version: bytes[1] & 0x0f,
            pkey: u16::from_be_bytes([bytes[2], bytes[3]]),
            qpn: word(4) & 0x00ff_ffff,
            ack_request: bytes[8] & 0x80 != 0,
            psn: Psn::new(word(8)),
        }
    }

    /// Writes every byte.
    pub(crate) fn emit(&self, bytes: &mut [u8; Self::LEN]) {
        let flags = u8::from(self.solicited) << 7 | u8::from(self.migrated) << 6 | self.pad << 4 | self.version;
        bytes[0] = self.opcode.0;
        bytes[1] = flags;
        bytes[2..4].copy_from_slice(&self.pkey.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.qpn.to_be_bytes());
        bytes[8..12].copy_from_slice(&(u32::from(self.ack_request) << 31 | self.psn.get()).to_be_bytes());
    }
}

/// RDMA extended transport header: what a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reth {
    pub(crate) address: u64,
    pub(crate) rkey: u32,
    /// Bytes of the whole message.
    pub(crate) len: u32,
}

impl Reth {
    pub(crate) const LEN: usize = 16;

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { address: u64::from(word(0)) << 32 | u64::from(word(4)), rkey: word(8), len: word(12) }
    }

    /// Writes every byte.
    pub(crate) fn emit(&self, bytes: &mut [u8; Self::LEN]) {
        bytes[..8].copy_from_slice(&self.address.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.rkey.to_be_bytes());
        bytes[12..].copy_from_slice(&self.len.to_be_bytes());
    }
}

/// How an acknowledgement went: the first byte of an AETH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Syndrome(pub(crate) u8);

impl Syndrome {
    /// ACK that grants no counted credits.
    pub(crate) const ACK: Self = Self(0x1f);
    /// NAK: a packet before this one is missing.
    pub(crate) const SEQUENCE: Self = Self(0x60);
    /// NAK: not a request that this queue pair takes.
    pub(crate) const INVALID_REQUEST: Self = Self(0x61);
    /// NAK: not memory that this peer may use so.
    pub(crate) const REMOTE_ACCESS: Self = Self(0x62);
    /// NAK: could not be carried out.
    pub(crate) const REMOTE_OPERATION: Self = Self(0x63);

    /// An ACK, with any number of credits.
    pub(crate) const fn is_ack(self) -> bool {
        self.0 & 0xe0 == 0
    }
}

/// ACK extended transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aeth {
    pub(crate) syndrome: Syndrome,
    /// Messages that the responder has completed, modulo 2^24.
    pub(crate) msn: u32,
}

impl Aeth {
    pub(crate) const LEN: usize = 4;

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let word = u32::from_be_bytes(*bytes);
        Self { syndrome: Syndrome((word >> 24) as u8), msn: word & 0x00ff_ffff }
    }

    /// Writes every byte.
    pub(crate) fn emit(&self, bytes: &mut [u8; Self::LEN]) {
        let word = u32::from(self.syndrome.0) << 24 | self.msn & 0x00ff_ffff;
        bytes.copy_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
