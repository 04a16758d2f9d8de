//! Writes one packet of each kind that the real device sends to a file, as test vectors for `wire` and `icrc`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use overbank_verbs::{Access, Op, WcStatus, WorkRequest};

use crate::ends::*;
use crate::loss::Netem;

/// Opcode and, of an acknowledgement, syndrome; and the name in the file.
const KINDS: [(u8, Option<u8>, &str); 12] = [
    (0x06, None, "WRITE_FIRST"),
    (0x07, None, "WRITE_MIDDLE"),
    (0x08, None, "WRITE_LAST"),
    (0x0a, None, "WRITE_ONLY"),
    (0x0c, None, "READ_REQUEST"),
    (0x0d, None, "READ_RESPONSE_FIRST"),
    (0x0e, None, "READ_RESPONSE_MIDDLE"),
    (0x0f, None, "READ_RESPONSE_LAST"),
    (0x10, None, "READ_RESPONSE_ONLY"),
    (0x11, Some(0x1f), "ACK"),
    (0x11, Some(0x60), "NAK_SEQUENCE"),
    (0x11, Some(0x62), "NAK_REMOTE_ACCESS"),
];

/// Every frame that arrives in the soft device's namespace, or leaves it.
fn listen() -> OwnedFd {
    inside(&namespace_handle().unwrap(), || {
        let protocol = SockProtocol::EthAll;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, protocol).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        socket
    })
}

/// The next IPv4 packet to UDP port 4791, from its header on.
fn next(socket: &OwnedFd) -> Option<Vec<u8>> {
    const ETHERNET: usize = 14;
    loop {
        let mut frame = vec![0; 1 << 16];
        let len = match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => return None,
            Err(error) => panic!("{error}"),
        };
        let packet = frame.get(ETHERNET..len).unwrap_or_default();
        let is_roce = packet.len() >= 44
            && frame[12..14] == [0x08, 0x00]
            && packet[0] == 0x45
            && packet[9] == 17
            && packet[22..24] == 4791_u16.to_be_bytes();
        if is_roce {
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            return Some(packet[..total].to_vec());
        }
    }
}

#[test]
fn capture() {
    let Some(file) = setting("CAPTURE") else {
        return println!("SKIPPED: OVERBANK_INTEROP_CAPTURE names no file for the packets");
    };
    let Some(scene) = scene() else { return };
    let socket = listen();
    for asker in BOTH {
        exchange(&scene, asker);
    }
    lose_one(&scene);
    let theirs = End::on(&scene.real).qp.endpoint().socket_addr().ip();
    let mut found = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while found.len() < KINDS.len() {
        let Some(packet) = next(&socket) else {
            assert!(Instant::now() < deadline, "only {:?} were sent", found.keys());
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let kind = KINDS.iter().position(|(opcode, syndrome, _)| {
            packet[28] == *opcode && syndrome.is_none_or(|syndrome| packet[40] == syndrome)
        });
        if let Some(kind) =
            kind.filter(|_| packet[12..16] == theirs.to_string().parse::<std::net::Ipv4Addr>().unwrap().octets())
        {
            found.entry(kind).or_insert(packet);
        }
    }
    let mut text = String::new();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let date = String::from_utf8(Command::new("date").args(["-u", "+%F"]).output().unwrap().stdout).unwrap();
    writeln!(text, "# What {} of Linux {} sent on {}:", scene.real.name(), kernel.trim(), date.trim()).unwrap();
    text +=
        "# one packet of each kind, from the IPv4 header to the ICRC. Made by the case `capture` of tests/interop:\n";
    text += "# OVERBANK_INTEROP_DEVICE=rxe0 OVERBANK_INTEROP_MTU=256 OVERBANK_INTEROP_CAPTURE=FILE scripts/rxe-vm --net far \\\n";
    text += "#     --module sch_netem --share DIRECTORY-OF-FILE -- PROGRAM capture --nocapture\n";
    for (kind, packet) in found {
        let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{} {hex}", KINDS[kind].2).unwrap();
    }
    std::fs::write(&file, text).unwrap();
}

/// Messages of one packet and of several, with pad; and one that is refused.
fn exchange(scene: &Scene, asker: Asker) {
    let (a, b) = scene.pair(asker, REMOTE, PATIENT);
    let len = 3 * scene.mtu() + 57;
    let (near, far) = (memory(len, 0), memory(len, 0));
    near.copy_in(0, &pattern(len, 1)).unwrap();
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    for op in [Op::Write, Op::Read] {
        a.run_all(&[request((1, op), &mr, 0..5, &remote, 1)]);
        a.run_all(&[request((2, op), &mr, 0..len, &remote, 0)]);
    }
    let wrong = WorkRequest { rkey: remote.rkey() ^ 1, ..request((3, Op::Write), &mr, 0..5, &remote, 0) };
    assert_eq!(a.run(wrong), WcStatus::REM_ACCESS_ERR);
}

/// Two WRITEs of the soft device, of which the first is lost: a gap, until it is sent again.
fn lose_one(scene: &Scene) {
    let (a, b) = scene.pair(Asker::Soft, Access::REMOTE_WRITE, PATIENT);
    let (near, far) = (memory(64, 7), memory(64, 0));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let netem = Netem::begin(scene, &["loss", "100%"], false);
    a.qp.post(&[request((1, Op::Write), &mr, 0..8, &remote, 0)]).unwrap();
    drop(netem);
    a.qp.post(&[request((2, Op::Write), &mr, 8..16, &remote, 8)]).unwrap();
    assert!(a.completions(2).iter().all(|done| done.status == WcStatus::SUCCESS));
}
