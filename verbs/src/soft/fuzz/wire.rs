//! The decoder: any bytes, and packets that are whole but for a few bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Outcome, fuzz};
use crate::soft::wire::{Aeth, Bth, ICRC_LEN, MAX_DATAGRAM, Malformed, Packet, Reth};

/// A second reading of the format, of InfiniBand 9.2 and 9.3: bytes of headers behind the BTH, and whether data may follow.
pub(super) fn headers(opcode: u8) -> Option<(usize, bool)> {
    const RETH: [u8; 3] = [0x06, 0x0a, 0x0b];
    Some(match opcode {
        0x0c => (16, false),
        0x11 => (4, false),
        0x12 => (12, false),
        0x13 | 0x14 => (28, false),
        0x0b => (20, true),
        _ if RETH.contains(&opcode) => (16, true),
        0x03 | 0x05 | 0x09 | 0x0d | 0x0f | 0x10 | 0x16 | 0x17 => (4, true),
        0x00..=0x0e => (0, true),
        _ => return None,
    })
}

/// Whether the datagram is a packet, read by that; the length of its data.
pub(super) fn reading(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < 16 || bytes.len() > MAX_DATAGRAM || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let (extended, may_have_data) = headers(bytes[0])?;
    let padded = bytes.len().checked_sub(16 + extended)?;
    let len = padded.checked_sub(usize::from(bytes[1] >> 4 & 3))?;
    (may_have_data || padded == 0).then_some(len)
}

fn check(bytes: &[u8]) -> Outcome {
    let decoded = Packet::new(bytes).and_then(|packet| Ok((packet, packet.body()?)));
    let (packet, body) = match (decoded, reading(bytes)) {
        (Ok(decoded), Some(len)) => {
            prop_assert_eq!(decoded.1.data.len(), len);
            decoded
        }
        (Err(reason), None) => {
            let expected = match headers(bytes.first().copied().unwrap_or(0)) {
                _ if bytes.len() < 16 => Malformed::Truncated,
                _ if bytes.len() > MAX_DATAGRAM || !bytes.len().is_multiple_of(4) => Malformed::Length,
                None => Malformed::Opcode,
                Some((extended, true)) => {
                    prop_assert!(bytes.len() < 16 + extended + 3);
                    Malformed::Truncated
                }
                Some((extended, false)) if bytes.len() < 16 + extended + usize::from(bytes[1] >> 4 & 3) => {
                    Malformed::Truncated
                }
                Some(_) => Malformed::Length,
            };
            prop_assert_eq!(reason, expected);
            return Ok(());
        }
        (decoded, reading) => {
            return Err(TestCaseError::fail(format!("{:?}, and {reading:?}", decoded.map(|(_, body)| body))));
        }
    };
    // What it reports lies inside, in its place.
    let place = body.data.as_ptr() as usize - bytes.as_ptr() as usize;
    let pad = usize::from(packet.bth.pad);
    prop_assert_eq!(place + body.data.len() + pad + ICRC_LEN, bytes.len());
    let (covered, icrc) = packet.split_icrc();
    prop_assert_eq!(&[covered, &icrc.to_le_bytes()].concat()[..], bytes);
    // Written again it is the same, but for what is reserved.
    let mut again = [0xa5; Bth::LEN];
    packet.bth.emit(&mut again);
    let mut canonical = bytes[..Bth::LEN].to_vec();
    canonical[4] = 0;
    canonical[8] &= 0x80;
    prop_assert_eq!(&again[..], &canonical[..]);
    if let Some(reth) = body.reth {
        let mut again = [0xa5; Reth::LEN];
        reth.emit(&mut again);
        prop_assert_eq!(&again[..], &bytes[12..28]);
    }
    if let Some(aeth) = body.aeth {
        let mut again = [0xa5; Aeth::LEN];
        aeth.emit(&mut again);
        prop_assert_eq!(&again[..], &bytes[12..16]);
    }
    prop_assert_eq!(body.reth.is_some(), matches!(bytes[0], 0x06 | 0x0a | 0x0b | 0x0c));
    prop_assert_eq!(body.aeth.is_some(), matches!(bytes[0], 0x0d | 0x0f..=0x12));
    Ok(())
}

/// A packet that some opcode allows.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let lengths = prop_oneof![0..40_usize, 250..260_usize, 4090..=4096_usize, 8186..=8192_usize];
    (0..=0x17_u8, any::<[u8; 12]>(), lengths, any::<u8>()).prop_map(|(opcode, head, len, fill)| {
        let (extended, may_have_data) = headers(opcode).unwrap_or((28, true));
        let len = if may_have_data { len } else { 0 };
        let pad = len.wrapping_neg() & 3;
        let mut bytes = head.to_vec();
        bytes[0] = opcode;
        bytes[1] = bytes[1] & 0xcf | (pad as u8) << 4;
        bytes.extend((0..extended + len).map(|at| fill.wrapping_add(at as u8)));
        bytes.extend(&[0; 3][..pad]);
        bytes.extend([fill; ICRC_LEN]);
        bytes
    })
}

/// As that, with some bytes changed, cut off or added.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let edits = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let ends = prop_oneof![3 => Just(0_i32), 1 => -60..60_i32];
    // Mostly where the headers are.
    let heads = vec((0..32_usize, any::<u8>()), 0..3);
    (packet(), edits, heads, ends).prop_map(|(mut bytes, edits, heads, ends)| {
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        for (at, value) in heads {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.resize(bytes.len().saturating_add_signed(ends as isize), 0x77);
        bytes
    })
}

#[test]
fn any_bytes_are_a_packet_or_none() {
    let anything = vec(any::<u8>(), 0..80);
    let long = (any::<u8>(), 4000..70_000_usize).prop_map(|(fill, len)| vec![fill & 0x1f; len]);
    fuzz("decoder", 200, &prop_oneof![4 => anything, 8 => damaged(), 1 => long], |bytes| check(bytes));
}

#[test]
fn whole_packets_are_read() {
    fuzz("decoder of whole packets", 100, &packet(), |bytes| {
        prop_assert_eq!(reading(bytes).is_some(), headers(bytes[0]).is_some());
        check(bytes)
    });
}
