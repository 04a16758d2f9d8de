//! Strangers on real sockets: what they send at a live connection of soft devices is dropped, counted by name, cheap, and
//! answered by nothing.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use overbank_verbs::{
    Access, Backing, Device, DeviceOptions, Endpoint, Lane, Memory, MemoryRegion, Op, QpCaps, QpState, QueuePair,
    Retry, Transfer, WcStatus,
};

const LEN: usize = 20_000;
const RETRY: Retry = Retry { timeout: Duration::from_millis(50), count: 7 };
const RIGHTS: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
const LENDER: Ipv4Addr = Ipv4Addr::LOCALHOST;
const USER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A lender and its user, connected, on two addresses.
struct Connection {
    flags: u8,
    lender: Device,
    lent: Endpoint,
    region: MemoryRegion,
    memory: Arc<Memory>,
    qp: QueuePair,
    user: Device,
    lane: Lane,
}

/// Of two soft devices; or, with these flags 0, as if each took the other for a real one, which may send from any port.
fn connect(flags: u8, retry: Retry) -> Connection {
    let open = |address: Ipv4Addr| {
        let options = DeviceOptions { port: Some(0), ..DeviceOptions::new(address.into()) };
        Device::open("soft", &options).unwrap()
    };
    let (lender, user) = (open(LENDER), open(USER));
    let memory = Arc::new(Memory::map(LEN, Backing::Ordinary).unwrap());
    let (pd, cq) = (lender.alloc_pd().unwrap(), lender.create_cq(1).unwrap());
    let region = pd.register(&memory, 0..LEN, Access::LOCAL_WRITE | RIGHTS).unwrap();
    let qp = pd.create_qp(&cq, QpCaps { send_queue: 1, outstanding_reads: 16 }).unwrap();
    let mut lane = Lane::new(&user, 2, LEN).unwrap();
    qp.connect(&Endpoint { flags, ..lane.endpoint() }, RIGHTS, retry).unwrap();
    let lent = qp.endpoint();
    lane.connect(&Endpoint { flags, ..lent }, retry).unwrap();
    Connection { flags, lender, lent, region, memory, qp, user, lane }
}

impl Connection {
    /// Writes a pattern and reads it back, through everything between the two.
    fn exchange(&mut self, round: u64) {
        let pattern: Vec<u8> = (0..LEN as u64).map(|at| (at.wrapping_mul(round * 2 + 1) >> 3) as u8).collect();
        let (out, back) = (self.lane.take().unwrap(), self.lane.take().unwrap());
        self.lane.bytes_mut(out).unwrap().copy_from_slice(&pattern);
        for (slot, op) in [(out, Op::Write), (back, Op::Read)] {
            let (remote_address, rkey) = (self.region.address(), self.region.rkey());
            self.lane.post(&[Transfer { slot, op, len: LEN, remote_address, rkey }]).unwrap();
            assert!(
                self.lane.wait(Instant::now() + Duration::from_secs(20)).unwrap(),
                "round {round}: no end of a {op:?}"
            );
            let mut done = Vec::new();
            self.lane.poll(&mut done).unwrap();
            assert_eq!(
                (done.len(), done[0].slot, done[0].status),
                (1, slot, WcStatus::SUCCESS),
                "round {round}: {op:?}"
            );
        }
        assert!(self.lane.bytes(back).unwrap() == pattern, "round {round}");
        self.lane.give(out);
        self.lane.give(back);
    }

    fn assert_unharmed(&mut self) {
        self.exchange(77);
        assert_eq!(self.qp.state(), QpState::ReadyToSend);
        let mut lent = vec![0; LEN];
        self.memory.copy_out(0, &mut lent).unwrap();
        assert!(lent.windows(8).all(|bytes| bytes != POISON));
    }
}

const POISON: &[u8] = b"stranger";

/// A request, or an answer, whose fields a stranger chose.
#[derive(Clone)]
struct Packet {
    opcode: u8,
    flags: u8,
    pkey: u16,
    qpn: u32,
    psn: u32,
    rest: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.opcode, self.flags];
        bytes.extend(self.pkey.to_be_bytes());
        bytes.extend(self.qpn.to_be_bytes());
        bytes.extend((1 << 31 | self.psn).to_be_bytes());
        bytes.extend(&self.rest);
        bytes
    }

    /// With the ICRC that is right between these two sockets: CRC-32 over the headers as they arrive, what may change on
    /// the way set to ones.
    fn sealed(&self, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
        let mut bytes = self.bytes();
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
}

/// A socket of a stranger, which listens too.
struct Stranger {
    socket: UdpSocket,
    at: SocketAddrV4,
}

impl Stranger {
    fn new(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        let std::net::SocketAddr::V4(at) = socket.local_addr().unwrap() else { panic!("no IPv4") };
        Self { socket, at }
    }

    fn assert_heard_nothing(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let heard = self.socket.recv_from(&mut [0; 4200]).map(|(len, from)| format!("{len} bytes from {from}"));
        assert_eq!(heard.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// What a stranger sends.
enum Datagram {
    /// With the ICRC that is right for his own socket.
    Sealed(Packet),
    Raw(Vec<u8>),
}

/// One end of the connection, as a stranger sees it.
struct Target {
    flags: u8,
    at: SocketAddrV4,
    peer: SocketAddrV4,
    /// What the peer could send next, and would be taken.
    good: Packet,
}

impl Target {
    /// Both ends: a WRITE to the lender and an answer to the user.
    fn both(connection: &Connection) -> [Self; 2] {
        let (flags, lent, used) = (connection.flags, connection.lent, connection.lane.endpoint());
        let mut reth = connection.region.address().to_be_bytes().to_vec();
        reth.extend(connection.region.rkey().to_be_bytes());
        reth.extend((POISON.len() as u32).to_be_bytes());
        reth.extend(POISON);
        let write = Packet { opcode: 0x0a, flags: 0x40, pkey: 0xffff, qpn: lent.qpn, psn: used.psn, rest: reth };
        let answer = [&[0x1f, 0, 0, 0], POISON].concat();
        let answer = Packet { opcode: 0x10, qpn: used.qpn, rest: answer, ..write.clone() };
        let (lender, user) = (SocketAddrV4::new(LENDER, lent.port), SocketAddrV4::new(USER, used.port));
        [Self { flags, at: lender, peer: user, good: write }, Self { flags, at: user, peer: lender, good: answer }]
    }

    /// Each kind of datagram that is not the peer's, by the name of what is wrong with it: whether it comes from another
    /// address, rather than from another port of the peer's. But for that one fault all is right.
    fn forgeries(&self) -> Vec<(&'static str, bool, Datagram)> {
        let sealed = |change: fn(&mut Packet)| {
            let mut packet = self.good.clone();
            change(&mut packet);
            Datagram::Sealed(packet)
        };
        let whole = self.good.sealed(self.peer, self.at);
        let cut = |len: usize| Datagram::Raw(whole[..len].to_vec());
        // Another program of a soft peer's machine cannot have its port; of another's, more has to be looked at.
        let near = |reason| if self.flags == Endpoint::SOFT { "wrong source address" } else { reason };
        vec![
            ("wrong source address", true, sealed(|_| {})),
            // Heard on the way, and sent again: from elsewhere, and from the peer's own machine.
            ("wrong source address", true, cut(whole.len())),
            (near("ICRC"), false, cut(whole.len())),
            ("unknown queue pair", false, sealed(|packet| packet.qpn ^= 0x40)),
            (near("partition key"), false, sealed(|packet| packet.pkey = 0x1234)),
            (near("transport header version"), false, sealed(|packet| packet.flags |= 3)),
            (near("unknown opcode"), false, sealed(|packet| packet.opcode = 0x64)),
            (near("truncated"), false, sealed(|packet| (packet.opcode, packet.rest) = (0x14, vec![0; 12]))),
            ("truncated", false, cut(0)),
            ("truncated", true, cut(12)),
            ("impossible length", true, cut(whole.len() - 2)),
            ("impossible length", false, Datagram::Raw(vec![0xff; 60_000])),
        ]
    }

    /// Sends each of them so many times; returns how many of each name.
    fn molest(&self, near: &Stranger, far: &Stranger, rounds: u64) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (reason, is_far, datagram) in self.forgeries() {
            let from = if is_far { far } else { near };
            let bytes = match datagram {
                Datagram::Sealed(packet) => packet.sealed(from.at, self.at),
                Datagram::Raw(bytes) => bytes,
            };
            *counts.entry(reason).or_default() += rounds;
            for _ in 0..rounds {
                from.socket.send_to(&bytes, self.at).unwrap();
                // No faster than the other side looks: the system's buffers are not what is tested.
                thread::sleep(Duration::from_micros(100));
            }
        }
        counts
    }
}

/// The names that the strangers' packets were dropped by, when all of them were.
fn dropped(device: &Device, expected: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut dropped = device.counters().dropped;
        dropped.retain(|reason, _| expected.contains_key(reason));
        if dropped == *expected || Instant::now() > deadline {
            return dropped;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

const KINDS: [u8; 2] = [Endpoint::SOFT, 0];

#[test]
fn strangers_at_a_working_connection_are_counted_by_name() {
    for flags in KINDS {
        let mut connection = connect(flags, RETRY);
        let [lender, user] = Target::both(&connection);
        let (far, near_user, near_lender) = (Stranger::new(ELSEWHERE), Stranger::new(USER), Stranger::new(LENDER));
        let expected = thread::scope(|scope| {
            let strangers =
                scope.spawn(|| [lender.molest(&near_user, &far, 100), user.molest(&near_lender, &far, 100)]);
            let mut round = 0;
            while !strangers.is_finished() || round < 3 {
                connection.exchange(round);
                round += 1;
            }
            strangers.join().unwrap()
        });
        assert_eq!(dropped(&connection.lender, &expected[0]), expected[0]);
        assert_eq!(dropped(&connection.user, &expected[1]), expected[1]);
        [far, near_user, near_lender].iter().for_each(Stranger::assert_heard_nothing);
        connection.assert_unharmed();
    }
}

#[test]
fn a_stranger_makes_an_idle_connection_send_nothing() {
    for flags in KINDS {
        let mut connection = connect(flags, RETRY);
        let [lender, user] = Target::both(&connection);
        let (far, near_user, near_lender) = (Stranger::new(ELSEWHERE), Stranger::new(USER), Stranger::new(LENDER));
        let expected = [lender.molest(&near_user, &far, 10), user.molest(&near_lender, &far, 10)];
        for (device, expected) in [(&connection.lender, &expected[0]), (&connection.user, &expected[1])] {
            assert_eq!(dropped(device, expected), *expected);
            let counters = device.counters();
            assert_eq!((counters.sent, counters.received, counters.retransmitted), (0, 0, 0));
            assert_eq!(counters.dropped, *expected, "and by no other name");
        }
        [far, near_user, near_lender].iter().for_each(Stranger::assert_heard_nothing);
        connection.assert_unharmed();
    }
}

// What the others send differs from this by one fault. Here is none, and the peer may send from any port.
#[test]
fn the_same_packet_without_a_fault_is_taken() {
    let connection = connect(0, RETRY);
    let [lender, _] = Target::both(&connection);
    let near = Stranger::new(USER);
    near.socket.send_to(&lender.good.sealed(near.at, lender.at), lender.at).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut start = [0; 8];
    while start != POISON && Instant::now() < deadline {
        connection.memory.copy_out(0, &mut start).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((connection.lender.counters().received, &start[..]), (1, POISON));
}

#[test]
fn a_flood_from_a_stranger_stops_no_connection() {
    // The flood takes room in the socket's buffer too, so that packets of the connection are lost, and sent again.
    let mut connection = connect(Endpoint::SOFT, Retry { timeout: Duration::from_millis(20), count: 100 });
    let [lender, user] = Target::both(&connection);
    let stranger = Stranger::new(ELSEWHERE);
    let over = AtomicBool::new(false);
    let flood = || {
        let (mut sent, packets) = (0_u64, [&lender, &user].map(|end| (end.good.sealed(stranger.at, end.at), end.at)));
        while !over.load(Ordering::Relaxed) {
            for (bytes, to) in &packets {
                sent += u64::from(stranger.socket.send_to(bytes, to).is_ok());
            }
        }
        sent
    };
    let (sent, rounds) = thread::scope(|scope| {
        let flood = scope.spawn(flood);
        let (begun, mut rounds) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(1) || rounds < 3 {
            connection.exchange(rounds);
            rounds += 1;
        }
        over.store(true, Ordering::Relaxed);
        (flood.join().unwrap(), rounds)
    });
    let counts = [&connection.lender, &connection.user].map(|device| {
        let counters = device.counters();
        (counters.dropped.get("wrong source address").copied().unwrap_or(0), counters.retransmitted)
    });
    println!(
        "{rounds} rounds of a WRITE and a READ in a second, beside {sent} packets: dropped, sent again {counts:?}"
    );
    assert!(counts[0].0 > 1000 && counts[1].0 > 1000, "{counts:?}");
    connection.assert_unharmed();
}
