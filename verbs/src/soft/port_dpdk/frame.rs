//! Bytes of Ethernet frames: a UDP datagram in IPv4, and ARP. No frame is believed before all its lengths are.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet,
    UdpPacket,
};

/// Bytes of the Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// Bytes of headers before the payload of a datagram.
pub(crate) const HEADERS: usize = ETHERNET + IPV4 + 8;
/// Bytes of a frame with ARP.
pub(crate) const ARP: usize = ETHERNET + 28;
const BROADCAST: EthernetAddress = EthernetAddress::BROADCAST;

/// What a frame holds for us.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    Datagram {
        from: SocketAddrV4,
        id: u16,
        payload: &'a [u8],
    },
    /// Somebody asks for our Ethernet address, or answers our question.
    Arp {
        from: Ipv4Addr,
        mac: EthernetAddress,
        asks: bool,
    },
}

impl Heard<'_> {
    /// Who says so.
    pub(crate) fn from(&self) -> Ipv4Addr {
        match self {
            Self::Datagram { from, .. } => *from.ip(),
            Self::Arp { from, .. } => *from,
        }
    }
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// Of another protocol, or for somebody else.
    NotForUs,
    /// Lengths or a checksum in it are wrong, or it is a fragment.
    Damaged,
}

/// Reads a frame that came to `local`, whose Ethernet address is `mac`.
pub(crate) fn read(frame: &[u8], mac: EthernetAddress, local: SocketAddrV4) -> Result<Heard<'_>, Ignored> {
    let frame = EthernetFrame::new_checked(frame).map_err(|_| Ignored::Damaged)?;
    let to = frame.dst_addr();
    if to != mac && to != BROADCAST {
        return Err(Ignored::NotForUs);
    }
    match frame.ethertype() {
        EthernetProtocol::Ipv4 => read_ipv4(frame.payload(), local),
        EthernetProtocol::Arp => read_arp(frame.payload(), *local.ip()),
        _ => Err(Ignored::NotForUs),
    }
}

fn read_ipv4(bytes: &[u8], local: SocketAddrV4) -> Result<Heard<'_>, Ignored> {
    let ip = Ipv4Packet::new_checked(bytes).map_err(|_| Ignored::Damaged)?;
    if ip.version() != 4 {
        return Err(Ignored::Damaged);
    }
    let from = ip.src_addr();
    if ip.dst_addr() != *local.ip() || ip.next_header() != IpProtocol::Udp || !is_of_another(from, *local.ip()) {
        return Err(Ignored::NotForUs);
    }
    // The ICRC covers a header without options of a whole packet.
    if usize::from(ip.header_len()) != IPV4 || ip.more_frags() || ip.frag_offset() != 0 || !ip.verify_checksum() {
        return Err(Ignored::Damaged);
    }
    let id = ip.ident();
    let payload = bytes.get(IPV4..usize::from(ip.total_len())).ok_or(Ignored::Damaged)?;
    let udp = UdpPacket::new_checked(payload).map_err(|_| Ignored::Damaged)?;
    if udp.dst_port() != local.port() {
        return Err(Ignored::NotForUs);
    }
    // The ICRC tells damage; a datagram that says another length than its packet is none of RoCE's.
    if usize::from(udp.len()) != payload.len() {
        return Err(Ignored::Damaged);
    }
    let from = SocketAddrV4::new(from, udp.src_port());
    Ok(Heard::Datagram { from, id, payload: payload.get(8..).ok_or(Ignored::Damaged)? })
}

fn read_arp<'a>(bytes: &[u8], local: Ipv4Addr) -> Result<Heard<'a>, Ignored> {
    let arp = ArpPacket::new_checked(bytes).map_err(|_| Ignored::Damaged)?;
    let Ok(ArpRepr::EthernetIpv4 {
        operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, ..
    }) = ArpRepr::parse(&arp)
    else {
        return Err(Ignored::NotForUs);
    };
    let asks = match operation {
        ArpOperation::Request => true,
        ArpOperation::Reply => false,
        ArpOperation::Unknown(_) => return Err(Ignored::NotForUs),
    };
    let from = source_protocol_addr;
    // Who looks whether an address is free asks from nowhere.
    if target_protocol_addr != local || !is_of_another(from, local) {
        return Err(Ignored::NotForUs);
    }
    Ok(Heard::Arp { from, mac: source_hardware_addr, asks })
}

/// Whether a frame from the network can have come from there: what is ours never takes that way.
fn is_of_another(from: Ipv4Addr, local: Ipv4Addr) -> bool {
    from != local && !from.is_unspecified() && !from.is_multicast() && !from.is_loopback() && !from.is_broadcast()
}

/// Writes the Ethernet addresses that a frame goes from and to.
pub(crate) fn write_hop(frame: &mut [u8], (from, to): (EthernetAddress, EthernetAddress)) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    ethernet.set_src_addr(from);
    ethernet.set_dst_addr(to);
}

/// Writes the headers of a datagram of `len` bytes into the first [`HEADERS`] bytes of its frame, Ethernet addresses left
/// out. Identification 0, not to be fragmented: as its ICRC has it. The IPv4 checksum is left to the port where that
/// `fills` it.
pub(crate) fn write_headers(frame: &mut [u8], (from, to): (SocketAddrV4, SocketAddrV4), len: usize, fills: bool) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    ip.set_version(4);
    ip.set_header_len(IPV4 as u8);
    ip.set_dscp(0);
    ip.set_ecn(0);
    ip.set_total_len((IPV4 + 8 + len) as u16);
    ip.set_ident(0);
    ip.clear_flags();
    ip.set_dont_frag(true);
    ip.set_frag_offset(0);
    ip.set_hop_limit(64);
    ip.set_next_header(IpProtocol::Udp);
    ip.set_src_addr(*from.ip());
    ip.set_dst_addr(*to.ip());
    if fills {
        ip.set_checksum(0);
    } else {
        ip.fill_checksum();
    }
    let mut udp = UdpPacket::new_unchecked(ip.payload_mut());
    udp.set_src_port(from.port());
    udp.set_dst_port(to.port());
    udp.set_len((8 + len) as u16);
    // None, as RoCE has it: the ICRC covers what it would.
    udp.set_checksum(0);
}

/// Writes a question for `target`'s Ethernet address into the first [`ARP`] bytes of a frame; or, where that is known, the
/// answer to its question.
pub(crate) fn write_arp(
    frame: &mut [u8],
    (mac, local): (EthernetAddress, Ipv4Addr),
    (to, target): (Option<EthernetAddress>, Ipv4Addr),
) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    ethernet.set_src_addr(mac);
    ethernet.set_dst_addr(to.unwrap_or(BROADCAST));
    ethernet.set_ethertype(EthernetProtocol::Arp);
    let arp = ArpRepr::EthernetIpv4 {
        operation: if to.is_some() { ArpOperation::Reply } else { ArpOperation::Request },
        source_hardware_addr: mac,
        source_protocol_addr: local,
        target_hardware_addr: to.unwrap_or(EthernetAddress([0; 6])),
        target_protocol_addr: target,
    };
    arp.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
    const PEER: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 2]);
    const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4791);
    const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 4793);

    /// From there to here, in a buffer that was something else before.
    fn sample(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xa5; HEADERS];
        frame.extend_from_slice(payload);
        write_headers(&mut frame, (THERE, HERE), payload.len(), false);
        write_hop(&mut frame, (PEER, MAC));
        frame
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written() {
        let frame = sample(b"hello, world");
        assert_eq!(
            frame[..HEADERS],
            [
                2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, // Ethernet
                0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 17, 0x26, 0xc3, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
                0x12, 0xb9, 0x12, 0xb7, 0, 20, 0, 0, // UDP
            ]
        );
        let payload = &b"hello, world"[..];
        assert_eq!(read(&frame, MAC, HERE), Ok(Heard::Datagram { from: THERE, id: 0, payload }));
        // What Ethernet adds to reach its shortest frame is no part of it.
        let mut padded = frame.clone();
        padded.extend_from_slice(&[0; 9]);
        assert_eq!(read(&padded, MAC, HERE), Ok(Heard::Datagram { from: THERE, id: 0, payload }));
    }

    #[test]
    fn a_frame_cut_at_any_length_is_damaged() {
        let frame = sample(b"hello, world");
        for len in 0..frame.len() {
            assert_eq!(read(&frame[..len], MAC, HERE), Err(Ignored::Damaged), "{len}");
        }
    }

    #[test]
    fn any_byte_of_the_headers_changed_is_noticed_or_means_nothing() {
        let frame = sample(b"hello, world");
        for at in 0..HEADERS {
            for bit in 0..8 {
                let mut other = frame.clone();
                other[at] ^= 1 << bit;
                let heard = read(&other, MAC, HERE);
                let harmless = match at {
                    // The sender's Ethernet address is read of ARP only; its UDP port is under the ICRC; a checksum is not.
                    6..=11 | 34..=35 | 40..=41 => true,
                    _ => false,
                };
                assert_eq!(heard.is_ok(), harmless, "byte {at} bit {bit}: {heard:?}");
            }
        }
    }

    #[test]
    fn fragments_and_options_and_wrong_lengths_are_damaged() {
        let whole = sample(&[7; 64]);
        for (at, value) in [(20, 0x20), (20, 0x01), (21, 0x01), (14, 0x46), (14, 0x65), (39, 71), (39, 73), (39, 7)] {
            let mut frame = whole.clone();
            frame[at] = value;
            let mut ip = Ipv4Packet::new_unchecked(&mut frame[ETHERNET..]);
            ip.fill_checksum();
            assert_eq!(read(&frame, MAC, HERE), Err(Ignored::Damaged), "{at} {value:#x}");
        }
    }

    #[test]
    fn nothing_from_the_network_is_from_ourselves_or_from_nobody() {
        for from in [*HERE.ip(), Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, [224, 0, 0, 1].into()]
        {
            let mut frame = sample(b"x");
            write_headers(&mut frame, (SocketAddrV4::new(from, 4791), HERE), 1, false);
            assert_eq!(read(&frame, MAC, HERE), Err(Ignored::NotForUs), "{from}");
            let mut question = [0; ARP];
            write_arp(&mut question, (PEER, from), (None, *HERE.ip()));
            assert_eq!(read(&question, MAC, HERE), Err(Ignored::NotForUs), "{from} asks");
        }
    }

    #[test]
    fn a_question_is_heard_and_its_answer_too() {
        let (us, them) = (*HERE.ip(), *THERE.ip());
        let mut frame = [0xa5; ARP];
        write_arp(&mut frame, (PEER, them), (None, us));
        assert_eq!(read(&frame, MAC, HERE), Ok(Heard::Arp { from: them, mac: PEER, asks: true }));
        // Not for us, though everybody hears it.
        write_arp(&mut frame, (PEER, them), (None, Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(read(&frame, MAC, HERE), Err(Ignored::NotForUs));
        write_arp(&mut frame, (MAC, us), (Some(PEER), them));
        assert_eq!(read(&frame, PEER, THERE), Ok(Heard::Arp { from: us, mac: MAC, asks: false }));
        for len in 0..ARP {
            assert_eq!(read(&frame[..len], PEER, THERE), Err(Ignored::Damaged), "{len}");
        }
    }
}
