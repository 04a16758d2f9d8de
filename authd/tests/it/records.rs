//! Somebody between a client and the auth daemon, who passes on what they say and changes its order.

use std::net::SocketAddr;
use std::time::Duration;

use overbank_fabric::channel::{self, Channel};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{BootId, CorrelationId, LeaseId};
use overbank_fabric::message::{Call, HeldLease, Offer, Reply, Role};
use overbank_fabric::time::Deadline;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::daemon::{Daemon, wish};
use crate::lender::Lender;

type Record = Vec<u8>;

/// Somebody between: every record waits until the test sends it on, or does not.
struct Between {
    address: SocketAddr,
    from_client: mpsc::UnboundedReceiver<Record>,
    from_authd: mpsc::UnboundedReceiver<Record>,
    to_client: mpsc::UnboundedSender<Record>,
    to_authd: mpsc::UnboundedSender<Record>,
}

impl Between {
    async fn new(authd: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (client_said, from_client) = mpsc::unbounded_channel();
        let (authd_said, from_authd) = mpsc::unbounded_channel();
        let (to_client, for_client) = mpsc::unbounded_channel();
        let (to_authd, for_authd) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.expect("the client");
            let authd = TcpStream::connect(authd).await.expect("it listens");
            let (client_read, client_write) = client.into_split();
            let (authd_read, authd_write) = authd.into_split();
            tokio::spawn(hear(client_read, client_said));
            tokio::spawn(hear(authd_read, authd_said));
            tokio::spawn(say(client_write, for_client));
            tokio::spawn(say(authd_write, for_authd));
        });
        Self { address, from_client, from_authd, to_client, to_authd }
    }

    /// A client's session through here, the handshake untouched.
    async fn session(&mut self, identity: &Identity, party: Party) -> Channel<TcpStream> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let connecting = channel::connect(stream, identity, party, |_| Ok(()));
        let passing = async {
            let first = self.next_of_client().await;
            self.to_authd(&first);
            let second = self.next_of_authd().await;
            self.to_client(&second);
            let third = self.next_of_client().await;
            self.to_authd(&third);
        };
        let (session, ()) = tokio::join!(connecting, passing);
        session.expect("a session").0
    }

    async fn next_of_client(&mut self) -> Record {
        timeout(Duration::from_secs(5), self.from_client.recv()).await.expect("in time").expect("a record")
    }

    async fn next_of_authd(&mut self) -> Record {
        timeout(Duration::from_secs(5), self.from_authd.recv()).await.expect("in time").expect("a record")
    }

    fn to_client(&self, record: &Record) {
        let _ = self.to_client.send(record.clone());
    }

    fn to_authd(&self, record: &Record) {
        let _ = self.to_authd.send(record.clone());
    }

    /// The auth daemon ends the session, and says nothing more but what it answers to good records.
    async fn authd_ends_it(&mut self) {
        let ending = async { while self.from_authd.recv().await.is_some() {} };
        timeout(Duration::from_secs(3), ending).await.expect("the daemon ends the session");
    }
}

/// Records as they come: a length and as many bytes.
async fn hear(mut from: tokio::net::tcp::OwnedReadHalf, said: mpsc::UnboundedSender<Record>) {
    while let Ok(length) = from.read_u16().await {
        let mut record = length.to_be_bytes().to_vec();
        record.resize(2 + usize::from(length), 0);
        if from.read_exact(&mut record[2..]).await.is_err() || said.send(record).is_err() {
            return;
        }
    }
}

/// Bytes as they are; an empty record closes.
async fn say(mut to: tokio::net::tcp::OwnedWriteHalf, mut records: mpsc::UnboundedReceiver<Record>) {
    while let Some(record) = records.recv().await {
        if record.is_empty() || to.write_all(&record).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_09_records_replayed_reordered_dropped_or_cut_end_the_session_and_do_nothing() {
    let daemon = Daemon::start().await;
    let lender = Lender::new(daemon.approved(Role::Provider, None).await);
    let _session = lender.connect(daemon.address).await;
    let alice = daemon.approved(Role::Consumer, Some("red")).await;
    let send = |session: Channel<TcpStream>| {
        let (caller, _, driver) = session.multiplex(8);
        tokio::spawn(driver);
        move || {
            let caller = caller.clone();
            tokio::spawn(async move { caller.call(CorrelationId::random(), 5000, Call::CreateLease(wish(1))).await })
        }
    };

    // Replayed: the second copy ends the session, and nothing is done twice.
    let mut between = Between::new(daemon.address).await;
    let ask = send(between.session(&alice, Party::Client).await);
    let asked = ask();
    let record = between.next_of_client().await;
    between.to_authd(&record);
    let answer = between.next_of_authd().await;
    between.to_authd(&record);
    between.authd_ends_it().await;
    // And the answer, played twice to the client.
    between.to_client(&answer);
    assert!(matches!(asked.await.expect("no panic"), Ok(Reply::Granted(_))));
    between.to_client(&answer);
    assert!(ask().await.expect("no panic").is_err());
    assert_eq!(lender.lock().held.len(), 1);

    // Reordered: neither of the two is done.
    let mut between = Between::new(daemon.address).await;
    let ask = send(between.session(&alice, Party::Client).await);
    let both = [ask(), ask()];
    let (first, second) = (between.next_of_client().await, between.next_of_client().await);
    between.to_authd(&second);
    between.to_authd(&first);
    between.authd_ends_it().await;
    between.to_client(&Vec::new());
    for asked in both {
        assert!(asked.await.expect("no panic").is_err());
    }
    // Dropped: what follows does not open.
    let mut between = Between::new(daemon.address).await;
    let ask = send(between.session(&alice, Party::Client).await);
    let _both = [ask(), ask()];
    let _dropped = between.next_of_client().await;
    let second = between.next_of_client().await;
    between.to_authd(&second);
    between.authd_ends_it().await;
    assert_eq!(lender.lock().held.len(), 1, "nothing of it was done");

    // Cut between two records of one message, and in the middle of one: a message is taken whole or not at all.
    let other = daemon.approved(Role::Provider, None).await;
    let fingerprint = other.public().fingerprint();
    let boot = BootId::random();
    let deadline = Deadline { boot, tick: lender.tick() };
    let leases = (0..3000).map(|_| HeldLease { lease: LeaseId::random(), deadline }).collect();
    let offer = Offer { boot, leases, ..lender.offer() };
    for cut in ["between", "within"] {
        let mut between = Between::new(daemon.address).await;
        let (caller, _, driver) = between.session(&other, Party::Provider).await.multiplex(8);
        tokio::spawn(driver);
        let offer = offer.clone();
        let asked = tokio::spawn(async move { caller.call(CorrelationId::random(), 5000, Call::Offer(offer)).await });
        let (first, second) = (between.next_of_client().await, between.next_of_client().await);
        assert!(first.len() > 65_000, "the message takes more than one record");
        between.to_authd(&first);
        if cut == "within" {
            between.to_authd(&second[..second.len() - 1].to_vec());
        }
        between.to_authd(&Vec::new());
        between.authd_ends_it().await;
        between.to_client(&Vec::new());
        assert!(asked.await.expect("no panic").is_err());
        let Reply::Status(status) = daemon.operate(Call::Status).await else { panic!("a status") };
        let taken = status.providers.iter().any(|it| it.fingerprint == fingerprint && it.connected);
        assert!(!taken, "cut {cut}: the offer was not taken");
    }
    println!("attack 09 -: seen each end the session, and nothing done");
}
