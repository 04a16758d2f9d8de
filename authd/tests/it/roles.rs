//! Who may ask what, tried over real sessions: every role, every call, unknown ones, and those who were revoked.

use std::time::{Duration, Instant};

use overbank_fabric::channel::CallError;
use overbank_fabric::handshake::{self, Party};
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Call, Message, RefusalCode, Reply, Request, Response, Role, TrustState};
use overbank_fabric::signed::{from_cbor, to_cbor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::calls::{allowed, every_call, is_free, is_order};
use crate::daemon::{Daemon, refused};

/// With what a call is refused before anybody looks at what it asks.
async fn barred(daemon: &Daemon, identity: &Identity, party: Party, call: Call) -> Option<RefusalCode> {
    match daemon.connect(identity, party).await.call(call).await {
        Err(CallError::Refused(refusal)) => {
            let code = refusal.code;
            matches!(code, RefusalCode::Pending | RefusalCode::Revoked | RefusalCode::Forbidden).then_some(code)
        }
        Ok(_) => None,
        Err(error) => panic!("no answer: {error}"),
    }
}

fn party(role: &str) -> Party {
    if role == "provider" { Party::Provider } else { Party::Client }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_12_every_role_tries_every_call() {
    let daemon = Daemon::start().await;
    let people = [
        ("consumer", daemon.approved(Role::Consumer, Some("red")).await),
        ("provider", daemon.approved(Role::Provider, None).await),
        ("operator", daemon.approved(Role::Operator, None).await),
    ];
    let pending = Identity::generate();
    let revoked = daemon.approved(Role::Consumer, Some("red")).await;
    daemon.operate(Call::TrustRevoke(revoked.public().fingerprint())).await;
    // What stops the daemon comes last.
    for call in every_call().into_iter().filter(|call| *call != Call::Shutdown).chain([Call::Shutdown]) {
        let wanted = |role: &str| (!allowed(role, &call)).then_some(RefusalCode::Forbidden);
        let closed = |code| Some(if is_order(&call) { RefusalCode::Forbidden } else { code });
        let seen = barred(&daemon, &pending, Party::Client, call.clone()).await;
        assert_eq!(seen, if is_free(&call) { None } else { closed(RefusalCode::Pending) }, "pending: {call:?}");
        let seen = barred(&daemon, &revoked, Party::Client, call.clone()).await;
        let free = is_free(&call) && !matches!(call, Call::Join(_));
        assert_eq!(seen, if free { None } else { closed(RefusalCode::Revoked) }, "revoked: {call:?}");
        for (role, person) in &people {
            let seen = barred(&daemon, person, party(role), call.clone()).await;
            assert_eq!(seen, wanted(role), "{role}: {call:?}");
        }
    }
    println!("attack 12 -: seen each call answered to its roles alone, and to nobody pending or revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_06_a_key_in_the_mouth_of_another_kind_of_program() {
    let daemon = Daemon::start().await;
    let people = [
        ("consumer", daemon.approved(Role::Consumer, Some("red")).await),
        ("provider", daemon.approved(Role::Provider, None).await),
        ("operator", daemon.approved(Role::Operator, None).await),
    ];
    for call in every_call() {
        for (role, person) in &people {
            let other = if *role == "provider" { Party::Client } else { Party::Provider };
            let seen = barred(&daemon, person, other, call.clone()).await;
            let wanted = (!is_free(&call)).then_some(RefusalCode::Forbidden);
            assert_eq!(seen, wanted, "{role} as another party: {call:?}");
        }
    }
    println!("attack 06 -: seen a trusted key in another kind of program: refused every call");
}

/// A session of which each byte is ours.
struct Raw {
    stream: TcpStream,
    keys: handshake::Keys,
}

/// The first two messages of a handshake are through.
struct Half {
    stream: TcpStream,
    answered: handshake::Answered,
}

async fn message(stream: &mut TcpStream) -> Vec<u8> {
    let length = stream.read_u16().await.expect("a length");
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await.expect("a message");
    message
}

async fn send(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(u16::try_from(message.len()).expect("short")).await.expect("sent");
    stream.write_all(message).await.expect("sent");
}

impl Half {
    async fn begin(daemon: &Daemon) -> Self {
        let mut stream = TcpStream::connect(daemon.address).await.expect("the daemon listens");
        let (first, started) = handshake::start(Party::Client).expect("random numbers");
        send(&mut stream, &first).await;
        let (_, answered) = started.read(&message(&mut stream).await).expect("a good answer");
        Self { stream, answered }
    }

    async fn finish(mut self, me: &Identity) -> Raw {
        let (last, keys) = self.answered.finish(me).expect("finished");
        send(&mut self.stream, &last).await;
        Raw { stream: self.stream, keys }
    }
}

impl Raw {
    /// Says that, as one record, and hears the answer. None: the session is over.
    async fn says(&mut self, bytes: &[u8]) -> Option<Response> {
        let mut sealed = Vec::new();
        self.keys.send.seal(&[&[0], bytes].concat(), &mut sealed).expect("sealed");
        self.stream.write_u16(u16::try_from(sealed.len()).expect("short")).await.ok()?;
        self.stream.write_all(&sealed).await.ok()?;
        let length = timeout(Duration::from_secs(5), self.stream.read_u16()).await.expect("soon").ok()?;
        let mut sealed = vec![0; length.into()];
        self.stream.read_exact(&mut sealed).await.ok()?;
        let mut opened = Vec::new();
        self.keys.receive.open(&sealed, &mut opened).expect("good");
        match from_cbor(&opened[1..]).expect("a message") {
            Message::Response(response) => Some(response),
            other => panic!("{other:?}"),
        }
    }
}

fn request(call: Call) -> Vec<u8> {
    to_cbor(&Message::Request(Request { id: 0, correlation: CorrelationId([0; 8]), deadline_ms: 5000, call }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_12_a_call_that_nobody_knows() {
    let daemon = Daemon::start().await;
    let known = request(Call::TrustList);
    let at = known.windows(10).position(|it| it == b"trust_list").expect("by its name");
    for name in [*b"trust_lost", *b"TRUST_LIST", [0; 10], [0xff; 10]] {
        let mut raw = Half::begin(&daemon).await.finish(&daemon.operator).await;
        assert!(matches!(raw.says(&known).await, Some(Response { outcome: Ok(Reply::Trust(_)), .. })));
        let mut unknown = known.clone();
        unknown[at..at + 10].copy_from_slice(&name);
        assert_eq!(raw.says(&unknown).await, None, "the session ends");
    }
    daemon.client(&daemon.operator).await.who_am_i().await;
    println!("attack 12 -: seen a call that nobody knows: the session ended, nothing done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_08_revoked_in_mid_handshake() {
    let daemon = Daemon::start().await;
    let alice = daemon.approved(Role::Consumer, Some("red")).await;
    let mallory = daemon.approved(Role::Operator, None).await;
    let halves = [(&alice, Half::begin(&daemon).await), (&mallory, Half::begin(&daemon).await)];
    for revoked in [&alice, &mallory] {
        daemon.operate(Call::TrustRevoke(revoked.public().fingerprint())).await;
    }
    for (who, half) in halves {
        let mut raw = half.finish(who).await;
        for call in [Call::Status, Call::ListLeases, Call::TrustList] {
            match raw.says(&request(call.clone())).await {
                None => break,
                Some(Response { outcome: Err(refusal), .. }) if refusal.code == RefusalCode::Revoked => {}
                other => panic!("{call:?}: {other:?}"),
            }
        }
    }
    // At every moment of a handshake and of the first requests: what was asked once the revocation is answered is refused.
    for delay in 0..24 {
        let bob = daemon.approved(Role::Consumer, Some("red")).await;
        let fingerprint = bob.public().fingerprint();
        let talking = async {
            tokio::time::sleep(Duration::from_micros(200 * (delay % 12))).await;
            let mut session = daemon.client(&bob).await;
            let until = Instant::now() + Duration::from_millis(1500);
            let (mut last_good, mut over) = (None, 0);
            while Instant::now() < until {
                let asked = Instant::now();
                match session.call(Call::Status).await {
                    Ok(_) => last_good = Some(asked),
                    // It was closed: what is new is asked over another.
                    Err(CallError::Channel(_)) => session = daemon.client(&bob).await,
                    Err(CallError::Refused(refusal)) => {
                        assert_eq!(refusal.code, RefusalCode::Revoked);
                        over += 1;
                        if over == 20 {
                            break;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(Instant::now() < until, "it goes on for ever");
            last_good
        };
        let revoking = async {
            daemon.operate(Call::TrustRevoke(fingerprint)).await;
            Instant::now()
        };
        let (last_good, revoked) = tokio::join!(talking, revoking);
        assert!(last_good.is_none_or(|asked| asked < revoked), "asked after it was revoked, and answered");
    }
    let mut back = daemon.client(&alice).await;
    assert_eq!(back.who_am_i().await.state, TrustState::Revoked);
    assert_eq!(refused(back.call(Call::ListLeases).await), RefusalCode::Revoked);
    println!(
        "attack 08 -: seen a session that was begun before the revocation: no call sent after its answer was answered"
    );
}
