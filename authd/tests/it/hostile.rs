use std::time::{Duration, Instant};

use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::message::{Call, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::daemon::{Daemon, wish};
use crate::lender::Lender;

/// How long the daemon keeps a connection on which it hears nothing good.
async fn kept_open(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let mut sink = [0; 4096];
    let ended =
        timeout(Duration::from_secs(10), async { while !matches!(stream.read(&mut sink).await, Ok(0) | Err(_)) {} });
    ended.await.expect("the daemon closes it");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_cut_off_at_once() {
    let daemon = Daemon::start().await;
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 70_000],
        vec![0xff; 70_000],
        [&1232_u16.to_be_bytes()[..], &[0xa5; 1232]].concat(),
        [&0_u16.to_be_bytes()[..], &[0; 100]].concat(),
    ] {
        let mut stream = TcpStream::connect(daemon.address).await.expect("it listens");
        let _ = stream.write_all(&garbage).await;
        assert!(kept_open(&mut stream).await < Duration::from_secs(4), "sooner than silence is");
    }
    daemon.client(&daemon.operator).await.who_am_i().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_handshake_lasts_five_seconds() {
    let daemon = Daemon::start().await;
    let mut silent = TcpStream::connect(daemon.address).await.expect("it listens");
    let (message, _) = overbank_fabric::handshake::start(Party::Client).expect("a first message");
    let mut half = TcpStream::connect(daemon.address).await.expect("it listens");
    half.write_u16(u16::try_from(message.len()).expect("short")).await.expect("sent");
    half.write_all(&message[..500]).await.expect("sent");
    let mut first = TcpStream::connect(daemon.address).await.expect("it listens");
    first.write_u16(u16::try_from(message.len()).expect("short")).await.expect("sent");
    first.write_all(&message).await.expect("sent");
    let kept = tokio::join!(kept_open(&mut silent), kept_open(&mut half), kept_open(&mut first));
    for kept in [kept.0, kept.1, kept.2] {
        assert!((Duration::from_millis(4500)..Duration::from_millis(9000)).contains(&kept), "{kept:?}");
    }
}

/// How many of these connections the daemon has not closed.
async fn still_open(streams: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for stream in streams {
        let closed = timeout(Duration::from_millis(1), stream.read(&mut [0; 4096])).await;
        open += usize::from(closed.is_err());
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_38_a_flood_from_one_address_keeps_no_other_out() {
    let daemon = Daemon::start().await;
    let mut flood = Vec::new();
    for _ in 0..1000 {
        flood.push(daemon.connect_from([127, 0, 0, 2]).await);
    }
    assert!(still_open(&mut flood).await <= 64, "one address has its share");
    let begun = Instant::now();
    daemon.client(&daemon.operator).await.who_am_i().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let rejected = daemon.rejected().await;
    assert!(rejected["connections-of-address"] >= 100, "{rejected:?}");
    assert!(rejected["handshakes"] + rejected["handshakes-of-address"] >= 400, "{rejected:?}");
    println!("attack 38 -: seen one address held to 64 connections, others served, each refusal counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_38_a_flood_from_many_addresses_keeps_no_trusted_one_out() {
    let daemon = Daemon::start().await;
    // From here on this address is one of a trusted identity.
    let mut before = daemon.client(&daemon.operator).await;
    let mut flood = Vec::new();
    for number in 0..2000_u32 {
        let [.., third, fourth] = (256 + number % 500).to_be_bytes();
        flood.push(daemon.connect_from([127, 1, third, fourth]).await);
    }
    assert!(still_open(&mut flood).await <= 256, "all of them together have their share");
    let begun = Instant::now();
    before.who_am_i().await;
    daemon.client(&daemon.operator).await.who_am_i().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    println!("attack 38 -: seen all strangers held to 256 connections, trusted ones served");
}

/// What talks slowly is cut off after 5 s, whatever it has said so far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_38_slow_clients_have_five_seconds() {
    let daemon = Daemon::start().await;
    let (message, _) = overbank_fabric::handshake::start(Party::Client).expect("a first message");
    let begun = Instant::now();
    let slow = |byte_every: Duration| {
        let mut said = u16::try_from(message.len()).expect("short").to_be_bytes().to_vec();
        said.extend_from_slice(&message);
        let address = daemon.address;
        async move {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            for byte in said {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                let closed = timeout(byte_every, stream.read(&mut [0; 1])).await;
                if matches!(closed, Ok(Ok(0) | Err(_))) {
                    break;
                }
            }
            begun.elapsed()
        }
    };
    let (slow, slower) = tokio::join!(slow(Duration::from_millis(100)), slow(Duration::from_millis(900)));
    for kept in [slow, slower] {
        assert!((Duration::from_millis(4500)..Duration::from_millis(9000)).contains(&kept), "{kept:?}");
    }
    assert!(daemon.rejected().await["handshake-time"] >= 2);
    println!("attack 38 -: seen slow clients cut off after 5 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_good_handshakes_are_bounded_too() {
    let daemon = Daemon::start().await;
    let mut sessions = Vec::new();
    for _ in 0..140 {
        sessions.push(daemon.client(&Identity::generate()).await);
    }
    let mut open = 0;
    for session in &mut sessions {
        open += usize::from(session.call(Call::WhoAmI).await.is_ok());
    }
    assert_eq!(open, 64, "one address leaves half to the others");
    daemon.client(&daemon.operator).await.who_am_i().await;
}

/// Ciphertext that does not open, after a good handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_after_a_good_handshake_ends_that_session_alone() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let (alice, mut good) = daemon.consumer("red").await;

    // A relay that adds a record of its own to what the client says.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let through = relay.local_addr().expect("an address");
    let to = daemon.address;
    let relaying = tokio::spawn(async move {
        let (mut client, _) = relay.accept().await.expect("the client");
        let mut authd = TcpStream::connect(to).await.expect("it listens");
        // Message 1, 2 and 3 go through untouched.
        for turn in 0..3 {
            let (from, into) = if turn == 1 { (&mut authd, &mut client) } else { (&mut client, &mut authd) };
            let length = from.read_u16().await.expect("a length");
            let mut message = vec![0; length.into()];
            from.read_exact(&mut message).await.expect("a message");
            into.write_u16(length).await.expect("sent");
            into.write_all(&message).await.expect("sent");
        }
        authd.write_u16(64).await.expect("sent");
        authd.write_all(&[7; 64]).await.expect("sent");
        kept_open(&mut authd).await
    });
    let stream = TcpStream::connect(through).await.expect("the relay");
    let session = overbank_fabric::channel::connect(stream, &alice, Party::Client, |_| Ok(())).await;
    assert!(session.is_ok());
    assert!(relaying.await.expect("no panic") < Duration::from_secs(5));
    good.create(wish(4096)).await;
}
