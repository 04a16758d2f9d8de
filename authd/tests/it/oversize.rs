//! Lengths that lie, frames and messages that are too long: what the daemon's process takes of memory for them.

use std::time::Duration;

use overbank_fabric::channel::{self, CallError};
use overbank_fabric::handshake::{Party, start};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Call, HeldLease, Offer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::lender::Lender;
use crate::process::{Process, call, first_operator, init};

/// More than this is never taken on top of what the daemon takes at rest.
const MOST: u64 = 48 << 20;

/// Memory of a process at its most, bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

async fn connect(process: &Process, number: u32) -> TcpStream {
    let [.., third, fourth] = (1 + number).to_be_bytes();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 38, third, fourth], 0).into()).expect("an address of this machine");
    socket.connect(process.address).await.expect("it listens")
}

/// Whether the daemon ends the connection, soon.
async fn ends(stream: &mut TcpStream) -> bool {
    let mut sink = [0; 4096];
    let ending = async { while !matches!(stream.read(&mut sink).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(Duration::from_secs(8), ending).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_38_lengths_that_lie_take_no_memory() {
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("state");
    let invitation = init(&dir);
    let process = Process::serve(&dir, &[]);
    let operator = first_operator(&process, &invitation).await;
    let mut session = process.connect(&operator, Party::Client).await;
    let resting = peak(process.child.id());

    // Frames that claim all that a length can say, in place of a first message: refused by the length alone.
    for number in 0..300 {
        let mut stream = connect(&process, number).await;
        let _ = stream.write_u16(u16::MAX).await;
        let _ = stream.write_all(&[0x5a; 10]).await;
        if number % 100 == 0 {
            assert!(ends(&mut stream).await);
        }
    }
    // Strangers with good handshakes: a frame of 65,535 bytes of which two thirds come, and a message of 1 MiB.
    let identities: Vec<_> = (0..60).map(|_| Identity::generate()).collect();
    let mut halves = Vec::new();
    for (number, identity) in (1000..).zip(&identities) {
        let stream = connect(&process, number).await;
        let Ok((mut channel, _)) = channel::connect(stream, identity, Party::Client, |_| Ok(())).await else {
            continue;
        };
        if number % 2 == 0 {
            let lender = Lender::new(Identity::generate());
            let deadline = overbank_fabric::time::Deadline { boot: lender.boot, tick: lender.tick() };
            let held = HeldLease { lease: overbank_fabric::ids::LeaseId::random(), deadline };
            let offer = Offer { leases: vec![held; 10_000], ..lender.offer() };
            let said = channel.call(CorrelationId::random(), 5000, Call::Offer(offer)).await;
            assert!(matches!(said, Err(CallError::Channel(_))), "a stranger's message of hundreds of KiB: {said:?}");
        } else {
            halves.push(channel);
        }
    }
    // And good first messages, a byte short.
    let (first, _) = start(Party::Client).expect("a first message");
    let mut short = Vec::new();
    for number in 3000..3200 {
        let mut stream = connect(&process, number).await;
        let _ = stream.write_u16(u16::try_from(first.len()).expect("short")).await;
        let _ = stream.write_all(&first[..first.len() - 1]).await;
        short.push(stream);
    }
    call(&mut session, Call::Status).await;
    let grown = peak(process.child.id()) - resting;
    assert!(grown < MOST, "{} MiB", grown >> 20);
    println!("attack 38 -: seen lengths refused before memory is taken, at most 48 MiB for all of it");
}
