use proptest::prelude::*;

use super::*;
use crate::soft::vectors;

const BTH: Bth = Bth {
    opcode: Opcode::WRITE_LAST,
    solicited: false,
    migrated: true,
    pad: 3,
    version: 0,
    pkey: DEFAULT_PKEY,
    qpn: 0x0012_3456,
    ack_request: true,
    psn: Psn::new(0x00ab_cdef),
};

// InfiniBand 9.2: base transport header.
#[test]
fn sec_9_2_base_transport_header() {
    let mut bytes = [0xa5; Bth::LEN];
    BTH.emit(&mut bytes);
    assert_eq!(bytes, [0x08, 0x70, 0xff, 0xff, 0, 0x12, 0x34, 0x56, 0x80, 0xab, 0xcd, 0xef]);
    assert_eq!(Bth::parse(&bytes), BTH);
    bytes[4] = 0xaa;
    bytes[8] |= 0x7f;
    assert_eq!(Bth::parse(&bytes), BTH, "reserved bits are ignored");
    let other = Bth { solicited: true, migrated: false, pad: 0, version: 15, ack_request: false, ..BTH };
    other.emit(&mut bytes);
    assert_eq!((bytes[1], bytes[4], bytes[8]), (0x8f, 0, 0));
    assert_eq!(Bth::parse(&bytes), other);
}

// InfiniBand 9.3.3: RDMA extended transport header.
#[test]
fn sec_9_3_3_rdma_extended_transport_header() {
    let reth = Reth { address: 0x0102_0304_0506_0708, rkey: 0x1122_3344, len: 0x8000_0000 };
    let mut bytes = [0xa5; Reth::LEN];
    reth.emit(&mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x22, 0x33, 0x44, 0x80, 0, 0, 0]);
    assert_eq!(Reth::parse(&bytes), reth);
}

// InfiniBand 9.3.5: ACK extended transport header.
#[test]
fn sec_9_3_5_ack_extended_transport_header() {
    let aeth = Aeth { syndrome: Syndrome::REMOTE_ACCESS, msn: 0xff12_3456 };
    let mut bytes = [0xa5; Aeth::LEN];
    aeth.emit(&mut bytes);
    assert_eq!(bytes, [0x62, 0x12, 0x34, 0x56]);
    assert_eq!(Aeth::parse(&bytes), Aeth { syndrome: Syndrome::REMOTE_ACCESS, msn: 0x0012_3456 });
    for syndrome in 0..=255 {
        assert_eq!(Syndrome(syndrome).is_ack(), syndrome < 32, "{syndrome:#x}");
    }
}

/// The payload of every message that rxe's packets are of.
fn payload(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(1)).collect()
}

// Of 5 bytes, and of 825 with a path MTU of 256.
#[test]
fn packets_of_the_kernel_are_read_and_written_again() {
    let reth = |len| Some((None, Some(len)));
    let aeth = |syndrome| Some((Some(syndrome), None));
    let expected = [
        ("WRITE_FIRST", 0x06, reth(825), payload(0..256)),
        ("WRITE_MIDDLE", 0x07, None, payload(256..512)),
        ("WRITE_LAST", 0x08, None, payload(768..825)),
        ("WRITE_ONLY", 0x0a, reth(5), payload(0..5)),
        ("READ_REQUEST", 0x0c, reth(5), vec![]),
        ("READ_RESPONSE_FIRST", 0x0d, aeth(0x1f), payload(0..256)),
        ("READ_RESPONSE_MIDDLE", 0x0e, None, payload(256..512)),
        ("READ_RESPONSE_LAST", 0x0f, aeth(0x1f), payload(768..825)),
        ("READ_RESPONSE_ONLY", 0x10, aeth(0x1f), payload(1..6)),
        ("ACK", 0x11, aeth(0x1f), vec![]),
        ("NAK_SEQUENCE", 0x11, aeth(0x60), vec![]),
        ("NAK_REMOTE_ACCESS", 0x11, aeth(0x62), vec![]),
    ];
    for (vector, (name, opcode, extension, data)) in vectors::rxe().iter().zip(expected) {
        assert_eq!(vector.name, name);
        let packet = Packet::new(&vector.datagram).unwrap();
        let (bth, body) = (packet.bth, packet.body().unwrap());
        assert_eq!((bth.opcode, usize::from(bth.pad)), (Opcode(opcode), data.len().wrapping_neg() & 3), "{name}");
        assert_eq!((bth.pkey, bth.version, bth.migrated, bth.solicited), (DEFAULT_PKEY, 0, false, false), "{name}");
        let (syndrome, len) = extension.unwrap_or_default();
        assert_eq!(body.aeth.map(|aeth| aeth.syndrome.0), syndrome, "{name}");
        assert_eq!(body.reth.map(|reth| reth.len), len, "{name}");
        assert_eq!(body.data, data, "{name}");

        let mut again = vec![0; Bth::LEN];
        bth.emit(again.first_chunk_mut().unwrap());
        if let Some(reth) = body.reth {
            let mut bytes = [0; Reth::LEN];
            reth.emit(&mut bytes);
            again.extend(bytes);
        }
        if let Some(aeth) = body.aeth {
            let mut bytes = [0; Aeth::LEN];
            aeth.emit(&mut bytes);
            again.extend(bytes);
        }
        again.extend(body.data);
        again.extend(&[0; 3][..bth.pad.into()]);
        assert_eq!(again, vector.split().0, "{name}");
    }
}

/// Opcode, bytes between BTH and data, and whether data may follow: written out by hand from InfiniBand table 38.
const LAYOUTS: [(u8, usize, bool); 23] = [
    (0x00, 0, true),
    (0x01, 0, true),
    (0x02, 0, true),
    (0x03, 4, true),
    (0x04, 0, true),
    (0x05, 4, true),
    (0x06, 16, true),
    (0x07, 0, true),
    (0x08, 0, true),
    (0x09, 4, true),
    (0x0a, 16, true),
    (0x0b, 20, true),
    (0x0c, 16, false),
    (0x0d, 4, true),
    (0x0e, 0, true),
    (0x0f, 4, true),
    (0x10, 4, true),
    (0x11, 4, false),
    (0x12, 12, false),
    (0x13, 28, false),
    (0x14, 28, false),
    (0x16, 4, true),
    (0x17, 4, true),
];

fn sample(opcode: u8, extended: usize, data: usize, pad: u8) -> Vec<u8> {
    let mut bytes = vec![0xa5; Bth::LEN + extended + data + usize::from(pad) + ICRC_LEN];
    let bth = Bth { opcode: Opcode(opcode), pad, ..BTH };
    bth.emit(bytes.first_chunk_mut().unwrap());
    bytes
}

// InfiniBand 9.2.1: every opcode that exists is read with its headers, and no other is.
#[test]
fn sec_9_2_1_every_opcode_is_read_or_refused() {
    for opcode in 0..=255 {
        let layout = LAYOUTS.iter().find(|(known, ..)| *known == opcode);
        let bytes = sample(opcode, layout.map_or(28, |layout| layout.1), 0, 0);
        let packet = Packet::new(&bytes).unwrap();
        match layout {
            None => assert_eq!(packet.body(), Err(Malformed::Opcode), "{opcode:#x}"),
            Some((_, extended, data)) => {
                let body = packet.body().unwrap();
                assert!(body.data.is_empty());
                assert_eq!(body.reth.is_some(), matches!(opcode, 6 | 10 | 11 | 12), "{opcode:#x}");
                assert_eq!(body.aeth.is_some(), matches!(opcode, 13 | 15 | 16 | 17 | 18), "{opcode:#x}");
                let longer = sample(opcode, *extended, 8, 0);
                let expected = if *data { Ok(8) } else { Err(Malformed::Length) };
                assert_eq!(Packet::new(&longer).unwrap().body().map(|body| body.data.len()), expected, "{opcode:#x}");
            }
        }
        assert_eq!(Opcode(opcode).is_response(), (0x0d..=0x12).contains(&opcode));
    }
}

#[test]
fn each_packet_is_cut_at_each_length() {
    for (opcode, extended, has_data) in LAYOUTS {
        let whole = sample(opcode, extended, if has_data { 9 } else { 0 }, if has_data { 3 } else { 0 });
        assert!(Packet::new(&whole).unwrap().body().is_ok());
        for len in 0..whole.len() {
            let outcome = Packet::new(&whole[..len]).and_then(|packet| packet.body().map(|body| body.data.len()));
            let headers = Bth::LEN + extended + ICRC_LEN;
            match outcome {
                Ok(data) => assert_eq!(data, len - headers - 3, "{opcode:#x} cut to {len}"),
                Err(Malformed::Length) => assert!(!len.is_multiple_of(4) && len >= 16, "{opcode:#x} cut to {len}"),
                Err(error) => {
                    assert_eq!(error, Malformed::Truncated);
                    assert!(len < headers + 3 || len < 16, "{opcode:#x} cut to {len}");
                }
            }
        }
    }
}

#[test]
fn pad_that_is_not_there_is_truncation() {
    for pad in 1..=3 {
        let mut bytes = sample(0x0a, 16, 0, 0);
        bytes[1] |= pad << 4;
        assert_eq!(Packet::new(&bytes).unwrap().body(), Err(Malformed::Truncated));
    }
}

#[test]
fn the_longest_datagram_is_bounded() {
    assert!(Packet::new(&sample(0x0b, 20, 8192, 0)).is_ok());
    assert_eq!(Packet::new(&sample(0x0b, 20, 8196, 0)).map(|_| ()), Err(Malformed::Length));
    assert_eq!(Packet::new(&vec![0; 65_532]).map(|_| ()), Err(Malformed::Length));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(packet) = Packet::new(&bytes) {
            let (covered, _) = packet.split_icrc();
            prop_assert_eq!(covered.len() + ICRC_LEN, bytes.len());
            if let Ok(body) = packet.body() {
                prop_assert!(body.data.len() <= covered.len() - Bth::LEN);
            }
        }
    }
}
