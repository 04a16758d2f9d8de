//! Somebody on the way who has heard everything: packets in the borrower's name, right to the last bit, replace what was
//! written and acknowledged. No device can tell; sealing does, at the next read.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
use overbank::data::{DataError, SealedLane, bounce_lane};
use overbank_verbs::{Endpoint, Op, Transfer, WcStatus};

use crate::lender::*;

const SIZE: usize = 512;

/// A WRITE ONLY of these bytes as the IPv4 packet that the borrower would send, its ICRC right.
fn forged(
    from: SocketAddrV4,
    to: SocketAddrV4,
    qpn: u32,
    psn: u32,
    (address, rkey): (u64, u32),
    data: &[u8],
) -> Vec<u8> {
    let mut body = vec![0x0a, 0x40, 0xff, 0xff];
    body.extend(qpn.to_be_bytes());
    body.extend((1 << 31 | psn & 0xff_ffff).to_be_bytes());
    body.extend(address.to_be_bytes());
    body.extend(rkey.to_be_bytes());
    body.extend((data.len() as u32).to_be_bytes());
    body.extend(data);
    let udp = (8 + body.len() + 4) as u16;
    let header = |varying: u8, checksums: [u8; 2]| {
        let mut header = vec![0x45, varying];
        header.extend((20 + udp).to_be_bytes());
        header.extend([0, 0, 0x40, 0, if varying == 0 { 64 } else { varying }, 17]);
        header.extend(checksums);
        header.extend(from.ip().octets());
        header.extend(to.ip().octets());
        header.extend(from.port().to_be_bytes());
        header.extend(to.port().to_be_bytes());
        header.extend(udp.to_be_bytes());
        header.extend(checksums);
        header
    };
    // What may change on the way counts as ones.
    let mut covered = vec![0xff; 8];
    covered.extend(header(0xff, [0xff; 2]));
    let bth = covered.len();
    covered.extend(&body);
    covered[bth + 4] = 0xff;
    [header(0, [0; 2]), body, crc32fast::hash(&covered).to_le_bytes().to_vec()].concat()
}

fn v4(endpoint: &Endpoint) -> SocketAddrV4 {
    match endpoint.socket_addr() {
        SocketAddr::V4(address) => address,
        other => panic!("no IPv4: {other}"),
    }
}

/// How somebody else writes.
enum Means {
    Packet(OwnedFd),
    QueuePair,
}

/// A connection, and who listens to it.
struct Wire {
    lender: Lender,
    lane: SealedLane,
    ours: Endpoint,
    theirs: Endpoint,
    /// Packets that the borrower has sent.
    sent: u32,
}

impl Wire {
    fn write(&mut self, seed: u64) {
        self.lane.write(0, &pattern(SIZE, seed), soon()).expect("acknowledged");
        self.sent += 1;
    }

    /// Block 0 becomes this: by a packet in the borrower's name, or by a queue pair of the attacker's own, which comes to
    /// the same in memory.
    fn replace(&mut self, stride: &[u8], means: &Means) {
        let window = self.lender.window();
        match means {
            Means::Packet(raw) => {
                let (from, to, psn) = (v4(&self.ours), v4(&self.theirs), self.ours.psn.wrapping_add(self.sent));
                let bytes = forged(from, to, self.theirs.qpn, psn, (window.address, window.rkey), stride);
                let sent = sendto(raw.as_raw_fd(), &bytes, &SockaddrIn::from(to), MsgFlags::empty());
                assert_eq!(sent, Ok(bytes.len()));
            }
            Means::QueuePair => {
                let mut lane = bounce_lane(&device(), SIZE as u32).expect("a lane");
                let remote = self.lender.accept(&lane.endpoint());
                lane.connect(&remote, PATIENT).expect("connects");
                let slot = lane.take().expect("free");
                lane.bytes_mut(slot).expect("held")[..stride.len()].copy_from_slice(stride);
                let (remote_address, rkey) = (window.address, window.rkey);
                lane.post(&[Transfer { slot, op: Op::Write, len: stride.len(), remote_address, rkey }]).expect("posts");
                assert!(lane.wait(soon()).expect("the device works"));
                let mut done = Vec::new();
                lane.poll(&mut done).expect("the device works");
                assert_eq!(done[0].status, WcStatus::SUCCESS);
            }
        }
        let until = Instant::now() + Duration::from_secs(5);
        while self.lender.stride_of(0) != stride {
            assert!(Instant::now() < until, "the device did not take it");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn refused(&mut self) -> DataError {
        let mut out = vec![0xa5; SIZE];
        let mut error = self.lane.read(0, &mut out, soon()).expect_err("it was believed");
        if self.lane.is_broken() {
            // The forged packet took the number of the borrower's next one, which costs the connection. After an attach:
            self.lender.attach_anew(&mut self.lane);
            error = self.lane.read(0, &mut out, soon()).expect_err("it was believed");
        }
        assert!(out.iter().all(|&byte| byte == 0), "bytes were left: {error}");
        error
    }
}

fn wire() -> Wire {
    let contents = contents(4, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lane = bounce_lane(&device(), SIZE as u32).expect("a lane");
    let ours = lane.endpoint();
    let theirs = lender.accept(&ours);
    lane.connect(&theirs, HASTY).expect("connects");
    let lane = SealedLane::new(lane, &contents, lender.window(), long_hence()).expect("attached");
    Wire { lender, lane, ours, theirs, sent: 0 }
}

#[test]
fn attack_21_a_forged_packet_that_replaces_an_acknowledged_write_is_found() {
    // A packet that one host sends to itself does not come by the kernel's RDMA device.
    let means = match socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw) {
        _ if device_name() != "soft" => Means::QueuePair,
        Ok(raw) => Means::Packet(raw),
        Err(error) => {
            println!("SKIPPED: no packet can be forged without CAP_NET_RAW: {error}");
            return;
        }
    };
    for case in ["noise", "changed", "played back", "erased"] {
        let mut wire = wire();
        wire.write(1);
        let old = wire.lender.stride_of(0);
        wire.write(2);
        let mut changed = wire.lender.stride_of(0);
        let last = changed.len() - 1;
        changed[last] ^= 1;
        let stride = match case {
            "noise" => pattern(old.len(), 3),
            "changed" => changed,
            "played back" => old,
            _ => vec![0; old.len()],
        };
        wire.replace(&stride, &means);
        let error = wire.refused();
        let named = match case {
            "played back" => matches!(error, DataError::Stale { block: 0 }),
            "erased" => matches!(error, DataError::Erased { block: 0 }),
            _ => matches!(error, DataError::Tampered { block: 0 }),
        };
        assert!(named, "{case}: {error}");
    }
    let Means::Packet(_) = means else {
        println!("attack 21 rxe: seen by a queue pair: found at the next read, changed, played back or erased");
        return;
    };
    // A WRITE that bears the number that the forged one took is acknowledged as if it had been seen before, and nothing of
    // it arrives. The acknowledgement proves nothing; the next read does.
    let mut wire = wire();
    wire.write(1);
    let noise = pattern(wire.lender.stride_of(0).len(), 4);
    wire.replace(&noise, &means);
    wire.lane.write(0, &pattern(SIZE, 5), soon()).expect("acknowledged");
    assert_eq!(wire.lender.stride_of(0), noise, "the number was not taken");
    assert!(matches!(wire.refused(), DataError::Tampered { block: 0 }));
    println!("attack 21 soft: seen by a packet: found at the next read, changed, played back or erased");
}
