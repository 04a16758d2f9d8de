//! Tokens and packets made by hand, as somebody makes them who uses none of our code.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
use overbank_fabric::attach::{AttachAnswer, AttachRequest, EndpointBytes};
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{BootId, LeaseId, Nonce};
use overbank_fabric::labels;
use overbank_fabric::message::{Attach, Call, Reply};
use overbank_fabric::signed::{Signed, from_cbor, to_cbor};
use overbank_fabric::token::{Scope, Token};
use overbank_verbs::{Endpoint, Mtu};

use crate::scene::Authd;

// -- tokens -----------------------------------------------------------------------------------------------------------

/// Bytes of a block: fields and signature.
pub(crate) const BLOCK: usize = 16 + 16 + 8 + 8 + 8 + 1 + 32 + 64;

/// A token as it lies in a message, without the head of its byte string.
pub(crate) fn token_bytes(token: &Token) -> Vec<u8> {
    let cbor = to_cbor(token);
    let head = match cbor[0] {
        0x58 => 2,
        0x59 => 3,
        other => panic!("a token of few bytes or of many: {other:x}"),
    };
    cbor[head..].to_vec()
}

pub(crate) fn forged_token(bytes: &[u8]) -> Token {
    let len = u32::try_from(bytes.len()).expect("short");
    from_cbor(&[&[0x5a][..], &len.to_be_bytes(), bytes].concat()).expect("any bytes travel as a token")
}

/// The token with one more block, whatever it says and whoever signs it.
pub(crate) fn with_block(token: &Token, scope: &Scope, signer: &Identity) -> Token {
    let mut bytes = token_bytes(token);
    bytes.extend(scope.lease.0);
    bytes.extend(scope.deadline.boot.0);
    bytes.extend(scope.deadline.tick.0.to_be_bytes());
    bytes.extend(scope.first_block.to_be_bytes());
    bytes.extend(scope.blocks.to_be_bytes());
    bytes.push(scope.rights.into());
    bytes.extend(scope.holder.0);
    let signature = signer.sign(labels::TOKEN, &[&bytes[..1], &bytes[2..]]);
    bytes.extend(signature.0);
    bytes[1] += 1;
    forged_token(&bytes)
}

// -- packets ----------------------------------------------------------------------------------------------------------

const WRITE_ONLY: u8 = 0x0a;

/// A RoCEv2 packet, its ICRC right between these two sockets: CRC-32 over the headers as they arrive, what may change on
/// the way set to ones.
fn packet(from: SocketAddrV4, to: SocketAddrV4, opcode: u8, qpn: u32, psn: u32, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![opcode, 0x40 | (rest.len().wrapping_neg() as u8 & 3) << 4, 0xff, 0xff];
    bytes.extend(qpn.to_be_bytes());
    bytes.extend((1 << 31 | psn & 0xff_ffff).to_be_bytes());
    bytes.extend(rest);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let udp = (8 + bytes.len() + 4) as u16;
    let mut covered = vec![0xff; 8];
    covered.extend([0x45, 0xff]);
    covered.extend((20 + udp).to_be_bytes());
    covered.extend([0, 0, 0x40, 0, 0xff, 17, 0xff, 0xff]);
    covered.extend(from.ip().octets());
    covered.extend(to.ip().octets());
    covered.extend(from.port().to_be_bytes());
    covered.extend(to.port().to_be_bytes());
    covered.extend(udp.to_be_bytes());
    covered.extend([0xff; 2]);
    let bth = covered.len();
    covered.extend(&bytes);
    covered[bth + 4] = 0xff;
    bytes.extend(crc32fast::hash(&covered).to_le_bytes());
    bytes
}

fn reth(address: u64, rkey: u32, len: u32) -> Vec<u8> {
    [&address.to_be_bytes()[..], &rkey.to_be_bytes(), &len.to_be_bytes()].concat()
}

fn v4(endpoint: &Endpoint) -> SocketAddrV4 {
    match endpoint.socket_addr() {
        SocketAddr::V4(address) => address,
        other => panic!("no IPv4: {other}"),
    }
}

/// Sends packets in the name of `ours` to `theirs`, from somewhere else on the way: the next of the connection's numbers,
/// and so many after it, each a WRITE whose length is not that of its data. False where the system lets nobody do that.
pub(crate) fn malformed(ours: &Endpoint, theirs: &Endpoint, many: u32) -> bool {
    let lie = [reth(0x1000, 1, 4096), b"short".to_vec()].concat();
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
    let Ok(raw) = raw else { return false };
    let (from, to) = (v4(ours), v4(theirs));
    for psn in ours.psn..ours.psn + many {
        let body = packet(from, to, WRITE_ONLY, theirs.qpn, psn, &lie);
        let udp = (8 + body.len()) as u16;
        let mut bytes = vec![0x45, 0];
        bytes.extend((20 + udp).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        bytes.extend(from.ip().octets());
        bytes.extend(to.ip().octets());
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        bytes.extend(udp.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(body);
        let sent = sendto(raw.as_raw_fd(), &bytes, &SockaddrIn::from(to), MsgFlags::empty());
        assert_eq!(sent, Ok(bytes.len()));
    }
    std::thread::sleep(Duration::from_millis(50));
    true
}

/// What the other side said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack,
    Nak(u8),
}

pub(crate) const ACK: Option<Answer> = Some(Answer::Ack);

type Rest = fn(u64, u32) -> Vec<u8>;

/// A borrower without a device: a socket, and packets by hand.
pub(crate) struct Peer {
    pub(crate) identity: Identity,
    socket: UdpSocket,
    at: SocketAddrV4,
    /// Of the attach that holds.
    qpn: u32,
    psn: u32,
    remote: Option<(Endpoint, AttachAnswer)>,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        let SocketAddr::V4(at) = socket.local_addr().expect("bound") else { panic!("no IPv4") };
        Self { identity: Identity::generate(), socket, at, qpn: 0x70_0000, psn: 0, remote: None }
    }

    pub(crate) async fn attach(
        &mut self,
        authd: &Authd,
        provider: &PublicKey,
        boot: BootId,
        lease: LeaseId,
        token: &Token,
    ) {
        self.qpn += 1;
        self.psn = 0x00ff_ff00;
        let endpoint = Endpoint {
            flags: Endpoint::SOFT,
            mtu: Mtu::Mtu4096,
            qpn: self.qpn,
            psn: self.psn,
            port: self.at.port(),
            lid: 0,
            gid: Endpoint::gid_of((*self.at.ip()).into()),
        };
        let request = AttachRequest {
            token: token.hash(),
            lanes: vec![EndpointBytes(endpoint.to_bytes())],
            provider: *provider,
            boot,
            nonce: Nonce::random(),
        };
        let request = Signed::new(&request, &self.identity);
        let reply = authd.order(Call::Bind(Attach { lease, token: token.clone(), request })).await.expect("attaches");
        let Reply::Attached(answer) = reply else { panic!("{reply:?}") };
        let answer = answer.open(provider).expect("signed by the provider");
        let remote = Endpoint::from_bytes(&answer.lanes[0].0).expect("an endpoint");
        self.remote = Some((remote, answer));
    }

    /// Where its first granted block is.
    pub(crate) fn target(&self) -> (u64, u32) {
        let (_, answer) = self.remote.as_ref().expect("attached");
        (answer.address, answer.rkey)
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Option<Answer> {
        let (address, rkey) = self.target();
        let len = u32::try_from(data.len()).expect("short");
        self.ask(WRITE_ONLY, &[reth(address, rkey, len), data.to_vec()].concat())
    }

    /// Sends one request; the answer to it.
    pub(crate) fn ask(&mut self, opcode: u8, rest: &[u8]) -> Option<Answer> {
        let (remote, _) = self.remote.as_ref().expect("attached");
        let to = v4(remote);
        let bytes = packet(self.at, to, opcode, remote.qpn, self.psn, rest);
        self.socket.send_to(&bytes, to).expect("sent");
        let mut answer = [0; 4200];
        loop {
            let (len, _) = self.socket.recv_from(&mut answer).ok()?;
            let number = |at: usize| u32::from_be_bytes([0, answer[at], answer[at + 1], answer[at + 2]]);
            // An answer to what an earlier queue pair of ours asked is none.
            if len < 20 || number(5) != self.qpn || number(9) != self.psn {
                continue;
            }
            assert!(matches!(answer[0], 0x11 | 0x12), "a packet that carries something: {:x}", answer[0]);
            self.psn = (self.psn + 1) & 0xff_ffff;
            return Some(if answer[12] < 0x20 { Answer::Ack } else { Answer::Nak(answer[12]) });
        }
    }

    /// Requests that no grant covers: what they are, their opcode, and what follows the transport header.
    pub(crate) fn atomics_and_sends(&self) -> Vec<(&'static str, u8, Rest)> {
        // Address, key, and the two operands.
        let atomic: Rest = |address, rkey| {
            let address = address.next_multiple_of(8);
            [&address.to_be_bytes()[..], &rkey.to_be_bytes(), &[0x77; 16]].concat()
        };
        let data: Rest = |_, _| vec![0x77; 64];
        let immediate: Rest = |_, _| vec![0x77; 4 + 64];
        let write_immediate: Rest = |address, rkey| [reth(address, rkey, 64), vec![0x77; 4 + 64]].concat();
        vec![
            ("COMPARE AND SWAP", 0x13, atomic),
            ("FETCH AND ADD", 0x14, atomic),
            ("SEND ONLY", 0x04, data),
            ("SEND ONLY with immediate", 0x05, immediate),
            ("SEND FIRST", 0x00, |_, _| vec![0x77; 4096]),
            ("SEND ONLY with invalidate", 0x17, |_, rkey| [&rkey.to_be_bytes()[..], &[0x77; 64]].concat()),
            ("WRITE ONLY with immediate", 0x0b, write_immediate),
            ("a UD SEND", 0x64, immediate),
        ]
    }
}
