//! The client against an auth daemon that stalls, lies, or is somebody else. It proves the key it has, and then answers
//! what the test wants.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use overbank::{Client, Config, Error, ErrorKind, ExpectedBy, Invitation, LeaseRequest, RefusalCode};
use overbank_fabric::channel;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{BootId, Fingerprint, LeaseId};
use overbank_fabric::message::{Call, CreateLease, Granted, Message, Refusal, Reply, Response};
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope, Token};
use tokio::net::{TcpListener, TcpStream};

/// What to do with a request.
#[allow(clippy::large_enum_variant, reason = "few of them")]
enum Do {
    Answer(Result<Reply, Refusal>),
    Stall,
    Close,
}

type Plan = dyn Fn(usize, Call, PublicKey) -> Do + Send + Sync;

/// An auth daemon that does as it is told: the plan gets the number of the session, the call and who asks.
struct Authd {
    address: SocketAddr,
    sessions: Arc<AtomicUsize>,
    /// Of these, those in which the client said who it is.
    introduced: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Authd {
    fn start(identities: Vec<Identity>, plan: impl Fn(usize, Call, PublicKey) -> Do + Send + Sync + 'static) -> Self {
        let plan: Arc<Plan> = Arc::new(plan);
        let introduced = Arc::new(AtomicUsize::new(0));
        let counted = introduced.clone();
        let served = Self::serve(move |number, stream| {
            let seed = *identities[number.min(identities.len() - 1)].seed();
            let (plan, counted) = (plan.clone(), counted.clone());
            async move {
                let Ok((mut channel, peer)) = channel::accept(stream, &Identity::from_seed(&seed)).await else {
                    return;
                };
                counted.fetch_add(1, Ordering::SeqCst);
                while let Ok(Message::Request(request)) = channel.receive().await {
                    match plan(number, request.call, peer.key) {
                        Do::Answer(outcome) => {
                            let _ = channel.send(&Message::Response(Response { id: request.id, outcome })).await;
                        }
                        Do::Stall => std::future::pending().await,
                        Do::Close => return,
                    }
                }
            }
        });
        Self { introduced, ..served }
    }

    fn serve<F: Future<Output = ()> + Send + 'static>(each: impl Fn(usize, TcpStream) -> F + Send + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let (address, sessions) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
        let counted = sessions.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(each(counted.fetch_add(1, Ordering::SeqCst), stream));
            }
        });
        Self { address, sessions, introduced: Arc::default(), _runtime: runtime }
    }

    fn config(&self, home: &Path) -> Config {
        let mut config = Config::new(&self.address.to_string(), home.join("home")).expect("an address");
        config.deadline = Duration::from_millis(600);
        config.with_leases(home.join("leases"))
    }

    fn sessions(&self) -> usize {
        self.sessions.load(Ordering::SeqCst)
    }
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn in_time<T>(what: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = what();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    result
}

fn refusal(message: &str) -> Do {
    Do::Answer(Err(Refusal::new(RefusalCode::Internal, message)))
}

#[test]
fn silence_and_noise_instead_of_a_handshake_are_unreachable_in_time() {
    let home = home();
    let silent = Authd::serve(|_, stream| async move {
        let _held = stream;
        std::future::pending().await
    });
    let closing = Authd::serve(|_, stream| async move { drop(stream) });
    let noisy = Authd::serve(|_, mut stream| async move {
        use tokio::io::AsyncWriteExt;
        let _ = stream.write_all(&[0xA5; 4096]).await;
        std::future::pending().await
    });
    for authd in [&silent, &closing, &noisy] {
        let error = in_time(|| Client::connect(&authd.config(home.path()))).err().expect("no auth daemon");
        assert_eq!(error.kind(), ErrorKind::AuthdUnreachable, "{error}");
    }
    assert!(!home.path().join("home/known_authds").exists(), "nothing was pinned");
}

#[test]
fn a_call_that_is_not_answered_ends_at_its_deadline_and_the_next_one_starts_afresh() {
    let home = home();
    let authd =
        Authd::start(
            vec![Identity::generate()],
            |session, _, _| {
                if session == 0 { Do::Stall } else { refusal("second session") }
            },
        );
    let client = Client::connect(&authd.config(home.path())).expect("connected");
    let error = in_time(|| client.status()).expect_err("no answer");
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    let error = in_time(|| client.status()).expect_err("refused");
    assert!(error.to_string().contains("second session"), "{error}");
    assert_eq!(authd.sessions(), 2);
}

#[test]
fn a_call_on_a_broken_session_is_repeated_once_and_only_where_that_does_no_harm() {
    let home = home();
    let authd = Authd::start(vec![Identity::generate()], |session, call, _| match call {
        Call::Join(_) => Do::Close,
        _ if session == 0 => Do::Close,
        _ => refusal("found again"),
    });
    let client = Client::connect(&authd.config(home.path())).expect("connected");
    let error = client.status().expect_err("refused on the second session");
    assert!(error.to_string().contains("found again"), "{error}");
    assert_eq!(authd.sessions(), 2);
    let invitation = Invitation { authd: client.authd(), secret: [1; 16] };
    let error = client.join(&invitation).expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::AuthdUnreachable, "{error}");
    assert_eq!(authd.sessions(), 2, "an invitation is not sent twice");

    let never = Authd::start(vec![Identity::generate()], |_, _, _| Do::Close);
    let client = Client::connect(&never.config(&home.path().join("other"))).expect("connected");
    let error = in_time(|| client.status()).expect_err("closed each time");
    assert_eq!(error.kind(), ErrorKind::AuthdUnreachable, "{error}");
    assert_eq!(never.sessions(), 2);
}

#[test]
fn a_key_that_changes_between_two_sessions_is_refused() {
    let home = home();
    let (first, second) = (Identity::generate(), Identity::generate());
    let got = second.public().fingerprint();
    let authd = Authd::start(vec![first, second], |_, _, _| Do::Close);
    let client = Client::connect(&authd.config(home.path())).expect("connected");
    assert!(client.first_contact());
    match client.status().expect_err("another key") {
        Error::AuthdKeyChanged { expected, got: found, expected_by: ExpectedBy::Session, .. } => {
            assert_eq!((expected, found), (client.authd(), got));
        }
        other => panic!("{other}"),
    }
    match Client::connect(&authd.config(home.path())).err().expect("another key than is pinned") {
        Error::AuthdKeyChanged { expected_by: ExpectedBy::Pin(_), .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn a_fingerprint_that_is_known_leaves_nothing_to_trust() {
    let home = home();
    let identity = Identity::generate();
    let right = identity.public().fingerprint();
    let (heard, hears) = std::sync::mpsc::channel();
    let authd = Authd::start(vec![identity], move |_, _, key| {
        let _ = heard.send(key.fingerprint());
        Do::Stall
    });
    let mut config = authd.config(home.path());
    config.authd_fingerprint = Some(Fingerprint([1; 20]));
    match Client::connect(&config).err().expect("another key") {
        Error::AuthdKeyChanged { expected_by: ExpectedBy::Caller, .. } => {}
        other => panic!("{other}"),
    }
    assert!(!config.pins_path().exists(), "nothing was pinned");
    // The second asks who follows the key that was expected, with a key made for that.
    assert_eq!((authd.sessions(), authd.introduced.load(Ordering::SeqCst)), (2, 1));
    let mine = overbank::identity(&config).expect("made at the first contact").0;
    assert_ne!(hears.try_recv(), Ok(mine), "it does not hear who asks");
    config.authd_fingerprint = Some(right);
    assert!(Client::connect(&config).expect("connected").first_contact());
    assert!(!Client::connect(&config).expect("connected").first_contact());
    // A pin that says otherwise is not overruled.
    config.authd_fingerprint = Some(Fingerprint([1; 20]));
    assert_eq!(Client::connect(&config).err().expect("refused").kind(), ErrorKind::AuthdKeyChanged);
    // An invitation of another auth daemon is not sent to this one.
    config.authd_fingerprint = None;
    let client = Client::connect(&config).expect("connected");
    let error = in_time(|| client.join(&Invitation { authd: Fingerprint([1; 20]), secret: [1; 16] }));
    assert_eq!(error.expect_err("another's").kind(), ErrorKind::AuthdKeyChanged);
}

#[test]
fn answers_to_what_was_not_asked_are_the_auth_daemons_fault() {
    let home = home();
    let authd = Authd::start(vec![Identity::generate()], |_, call, _| {
        Do::Answer(Ok(match call {
            Call::Status => Reply::Done,
            _ => Reply::Leases(vec![]),
        }))
    });
    let client = Client::connect(&authd.config(home.path())).expect("connected");
    for error in [
        client.status().err(),
        client.who_am_i().err(),
        client.show_lease(LeaseId([1; 16])).err(),
        client.renew(LeaseId([1; 16]), Duration::from_secs(1)).err(),
        client.release(LeaseId([1; 16]), Duration::ZERO).err(),
        client.trust_revoke(Fingerprint([1; 20])).err(),
        client.lease(&LeaseRequest::new(4096, Duration::from_secs(60))).err(),
    ] {
        let error = error.expect("odd");
        assert!(matches!(error, Error::MisbehavingAuthd(_)), "{error}");
    }
}

#[test]
fn grants_that_are_not_what_was_asked_for_leave_no_lease_behind() {
    let home = home();
    let seed = *Identity::generate().seed();
    let grant = move |create: CreateLease, holder: PublicKey, spoil: u32| {
        let authd = Identity::from_seed(&seed);
        let (lease, boot) = (LeaseId::random(), BootId::random());
        let bytes = if spoil == 1 { create.bytes * 2 } else { create.bytes };
        let block = if spoil == 2 { create.block * 2 } else { create.block };
        let scope = Scope {
            lease,
            deadline: Deadline { boot, tick: Tick(1) },
            first_block: 0,
            blocks: bytes.div_ceil(u64::from(block)),
            rights: Rights::READ_WRITE,
            holder: if spoil == 3 { authd.public() } else { holder },
        };
        let signer = if spoil == 4 { Identity::generate() } else { authd };
        Reply::Granted(Box::new(Granted {
            lease,
            generation: 1,
            tenant: "blue".parse().expect("a name"),
            provider: Identity::generate().public(),
            boot,
            bytes,
            block,
            left_ms: 60_000,
            token: Token::grant(&scope, &signer),
        }))
    };
    let authd = Authd::start(vec![Identity::from_seed(&seed)], move |_, call, peer| match call {
        // The time to live tells the test's auth daemon what to get wrong.
        Call::CreateLease(create) => {
            let spoil = (create.ttl_ms / 1000) as u32;
            Do::Answer(Ok(grant(create, peer, spoil)))
        }
        _ => refusal("nothing else"),
    });
    let client = Client::connect(&authd.config(home.path())).expect("connected");
    let ask = |spoil| client.lease(&LeaseRequest::new(100_000, Duration::from_secs(spoil)));
    for spoil in 1..=4 {
        let error = ask(spoil).err().expect("spoilt");
        assert!(matches!(error, Error::MisbehavingAuthd(_)), "{spoil}: {error}");
        assert_eq!(client.local_leases().expect("read"), []);
    }
    let lease = ask(9).expect("as asked for");
    assert_eq!(client.local_leases().expect("read"), [lease.id()]);
    assert_eq!((lease.bytes(), lease.block(), lease.freshness_is_known()), (100_000, 4096, true));
}

#[test]
fn what_an_auth_daemon_writes_cannot_drive_the_terminal() {
    let home = home();
    let authd = Authd::start(vec![Identity::generate()], |_, _, _| refusal("\x1b]0;owned\x07\r\nfine"));
    let client = Client::connect(&authd.config(home.path())).expect("connected");
    let error = client.status().expect_err("refused").to_string();
    assert!(error.contains("fine") && !error.contains(char::is_control), "{error:?}");
}
