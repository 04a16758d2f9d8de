//! What a queue pair knows of its peer once it is connected, and the packets it sends there.

use std::net::SocketAddr;

use super::handles::{EngineError, PdHandle};
use super::icrc::Icrc;
use super::out::{Out, OutOfMemory};
use super::psn::Psn;
use super::timers::nanoseconds;
use super::wire::{Aeth, Bth, DEFAULT_PKEY, ICRC_LEN, Opcode, Packet, Reth};
use crate::{Access, Endpoint, Memory, Mtu, QpCaps, Retry};

/// Constant for the life of the connection, but for the peer's source port.
pub(super) struct Connection {
    /// Where packets go.
    pub(super) peer: SocketAddr,
    remote_qpn: u32,
    /// Payload bytes of a full packet.
    pub(super) mtu: usize,
    /// What the peer may do.
    pub(super) rights: Access,
    /// Nanoseconds without an answer until packets are sent again, at most, and until the peer is given up.
    pub(super) timeout: u64,
    pub(super) patience: u64,
    pub(super) pd: PdHandle,
    /// READs under way at once, in each direction.
    pub(super) reads: usize,
    send: Icrc,
    receive: Icrc,
    is_soft: bool,
}

/// What follows the BTH of a packet that is sent.
pub(super) enum Extension {
    None,
    Reth(Reth),
    Aeth(Aeth),
}

/// Data of a packet that is sent, where it lies.
pub(super) struct Data<'a> {
    pub(super) memory: &'a Memory,
    pub(super) offset: usize,
    pub(super) len: usize,
}

impl Connection {
    pub(super) fn new(
        local: SocketAddr,
        mtu: Mtu,
        remote: &Endpoint,
        rights: Access,
        retry: Retry,
        pd: PdHandle,
        caps: QpCaps,
    ) -> Result<Self, EngineError> {
        let peer = remote.socket_addr();
        if peer.is_ipv4() != local.is_ipv4() {
            return Err(EngineError::Endpoint("its address is of another family than ours"));
        }
        if peer.port() == 0 || peer.ip().is_unspecified() || peer.ip().is_multicast() {
            return Err(EngineError::Endpoint("its address is not of one machine"));
        }
        if !(2..=0x00ff_fffe).contains(&remote.qpn) || remote.psn > 0x00ff_ffff {
            return Err(EngineError::Endpoint("its queue pair number or PSN cannot be"));
        }
        let timeout = nanoseconds(retry.timeout);
        Ok(Self {
            peer,
            remote_qpn: remote.qpn,
            mtu: mtu.min(remote.mtu).bytes(),
            rights,
            timeout,
            patience: timeout.saturating_mul(u64::from(retry.count) + 1),
            pd,
            reads: caps.outstanding_reads.into(),
            send: Icrc::new(local, peer),
            receive: Icrc::new(peer, local),
            is_soft: remote.flags & Endpoint::SOFT != 0,
        })
    }

    /// Packets that `len` bytes take; an empty message is one packet too.
    pub(super) fn packets(&self, len: usize) -> u64 {
        len.div_ceil(self.mtu).max(1) as u64
    }

    /// Full packets that a socket's buffer of so many bytes holds for sure: it charges for each what the kernel uses for
    /// it, which is up to twice its length and some.
    pub(super) fn packets_within(&self, bytes: usize) -> u64 {
        (bytes / (2 * (self.mtu + 512))) as u64
    }

    /// Whether the peer sends from there. A soft one has one port, which nobody else on its machine can have; others
    /// use one for each queue pair.
    pub(super) fn is_peer(&self, from: SocketAddr) -> bool {
        self.peer.ip() == from.ip().to_canonical() && (!self.is_soft || self.peer.port() == from.port())
    }

    /// Whether the packet, which came from this port of the peer, is whole. `id`: its IPv4 identification, where that is
    /// known.
    pub(super) fn is_whole(&mut self, port: u16, id: Option<u16>, packet: &Packet<'_>) -> bool {
        self.receive.set_source_port(port);
        let (covered, icrc) = packet.split_icrc();
        match id {
            None if self.counts_ids() => return self.receive.matches_some_id(covered, icrc),
            Some(id) if self.counts_ids() => self.receive.set_id(id),
            _ => {}
        }
        self.receive.of(covered) == icrc
    }

    /// The peer is a soft device too, rather than the kernel's or a card.
    pub(super) fn is_soft(&self) -> bool {
        self.is_soft
    }

    /// Whether the IPv4 identification of a packet must be the one under its ICRC; soft devices take it as 0.
    pub(super) fn counts_ids(&self) -> bool {
        !self.is_soft && self.peer.is_ipv4()
    }

    /// Appends one packet to `out`, or nothing.
    pub(super) fn emit(
        &self,
        out: &mut impl Out,
        (opcode, psn, ack_request): (Opcode, Psn, bool),
        extension: &Extension,
        data: Option<&Data<'_>>,
    ) -> Result<(), OutOfMemory> {
        let len = data.map_or(0, |data| data.len);
        let pad = len.wrapping_neg() & 3;
        let mut head = [0; Bth::LEN + Reth::LEN];
        let (base, extended) = head.split_first_chunk_mut().ok_or(OutOfMemory)?;
        Bth {
            opcode,
            solicited: false,
            migrated: true,
            pad: pad as u8,
            version: 0,
            pkey: DEFAULT_PKEY,
            qpn: self.remote_qpn,
            ack_request,
            psn,
        }
        .emit(base);
        let head_len = match extension {
            Extension::None => Bth::LEN,
            Extension::Reth(reth) => {
                reth.emit(extended.first_chunk_mut().ok_or(OutOfMemory)?);
                Bth::LEN + Reth::LEN
            }
            Extension::Aeth(aeth) => {
                aeth.emit(extended.first_chunk_mut().ok_or(OutOfMemory)?);
                Bth::LEN + Aeth::LEN
            }
        };
        let start = out.len();
        out.append(&head[..head_len])?;
        if let Some(data) = data {
            let appended = out.append_memory(data.memory, data.offset, len);
            if appended.and_then(|()| out.append(&[0; 3][..pad])).is_err() {
                out.truncate(start);
                return Err(OutOfMemory);
            }
        }
        let icrc = self.send.of(out.since(start));
        if out.append(&icrc.to_le_bytes()).is_err() {
            out.truncate(start);
            return Err(OutOfMemory);
        }
        debug_assert_eq!((out.len() - start) % ICRC_LEN, 0);
        Ok(())
    }
}
