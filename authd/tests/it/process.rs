//! The program itself: its command line, its state, its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overbank_fabric::channel::{self, Channel};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{CorrelationId, LeaseId, Nonce};
use overbank_fabric::message::{Approve, Call, CreateLease, Invitation, Join, LeaseInfo, LeaseState, Reply, Role};
use tokio::net::TcpStream;

use crate::daemon::MIB;
use crate::lender::Lender;

pub(crate) fn authd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-authd"));
    clean(command.args(arguments));
    command
}

/// Without what these tests' own surroundings say.
pub(crate) fn clean(command: &mut Command) {
    command.env_remove("RUST_LOG").env_remove("OVERBANK_AUTHD_STATE");
    // cargo tells its tests where libraries are; a daemon refuses that.
    std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LD_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
}

/// Runs it to its end, which must come by itself.
fn run(arguments: &[&str]) -> Output {
    let mut child = authd(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let begun = Instant::now();
    while child.try_wait().expect("a status").is_none() {
        if begun.elapsed() > Duration::from_secs(20) {
            child.kill().expect("killed");
            panic!("{arguments:?} goes on and on: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("its output")
}

/// Runs it, and checks that it fails with this status and one line that says all of `words`.
fn fails(arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty());
    let error: Vec<&str> = said.lines().filter(|line| line.starts_with("overbank-authd: ")).collect();
    assert_eq!(error.len(), 1, "{arguments:?}: {said}");
    for word in words {
        assert!(error[0].contains(word), "{arguments:?} should say '{word}': {said}");
    }
}

#[test]
fn attack_40_preloaded_code() {
    let folder = tempfile::tempdir().expect("a directory");
    let dir = folder.path().join("state");
    let started = |command: &str, name: &str| {
        let output =
            authd(&[command, "--state", text(&dir)]).env(name, "/nonexistent/x.so").output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for name in ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GCONV_PATH"] {
        for command in ["init", "serve"] {
            let (status, said) = started(command, name);
            assert_eq!(status, Some(1), "{name}: {said}");
            assert!(said.contains(&format!("env -u {name}")), "it says the way out: {said}");
            assert!(!dir.exists(), "and made nothing before");
        }
    }
    println!("attack 40 -: seen refused before anything was made, with the way out");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

pub(crate) fn init(dir: &Path) -> Invitation {
    let output = run(&["init", "--state", text(dir), "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let invitation: Invitation = made["operator_invitation"].as_str().expect("a code").parse().expect("a code");
    assert_eq!(made["fingerprint"], invitation.authd.to_string());
    invitation
}

/// A daemon's process. Killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Process {
    pub(crate) fn serve(dir: &Path, more: &[&str]) -> Self {
        let mut command = authd(&["serve", "--state", text(dir), "--listen", "127.0.0.1:0"]);
        Self::start(command.args(more), dir.with_extension("log"))
    }

    /// One that a command becomes.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().expect("it starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a line");
        let words: Vec<&str> = ready.split_whitespace().collect();
        assert_eq!(words.len(), 6, "{ready:?} {}", fs::read_to_string(&log).unwrap_or_default());
        assert_eq!((words[0], words[1], words[2], words[4]), ("overbank-authd", "listening", "on", "fingerprint"));
        let address = words[3].trim_end_matches(',').parse().expect("an address");
        Self { child, address, log }
    }

    pub(crate) async fn connect(&self, identity: &Identity, party: Party) -> Channel<TcpStream> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        channel::connect(stream, identity, party, |_| Ok(())).await.expect("a session").0
    }

    /// Sends SIGTERM and says with which status it ended, and how soon.
    fn terminate(&mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it is there");
        (self.child.wait().expect("it ends").code(), begun.elapsed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn call(channel: &mut Channel<TcpStream>, call: Call) -> Reply {
    channel.call(CorrelationId::random(), 5000, call).await.expect("answered")
}

/// Trusts somebody new.
pub(crate) async fn approved(process: &Process, operator: &Identity, role: Role, tenant: Option<&str>) -> Identity {
    let identity = Identity::generate();
    let party = if role == Role::Provider { Party::Provider } else { Party::Client };
    call(&mut process.connect(&identity, party).await, Call::WhoAmI).await;
    let fingerprint = identity.public().fingerprint();
    let tenant = tenant.map(|name| name.parse().expect("a tenant"));
    let approve = Call::TrustApprove(Approve { fingerprint, role, tenant });
    call(&mut process.connect(operator, Party::Client).await, approve).await;
    identity
}

pub(crate) async fn first_operator(process: &Process, invitation: &Invitation) -> Identity {
    let operator = Identity::generate();
    let mut session = process.connect(&operator, Party::Client).await;
    call(&mut session, Call::Join(Join { secret: invitation.secret })).await;
    operator
}

#[test]
fn the_command_line_explains_itself() {
    for arguments in [&["--help"][..], &["init", "--help"], &["serve", "--help"]] {
        let output = run(arguments);
        assert!(output.status.success());
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        for status in ["  0  ", "  1  ", "  2  ", "  3  ", "  4  ", "  5  "] {
            assert!(help.contains(status), "{arguments:?} names status{status}");
        }
    }
    assert!(String::from_utf8_lossy(&run(&["--help"]).stdout).contains("Examples:"));
    for wrong in [
        &[][..],
        &["serve"],
        &["init"],
        &["frobnicate"],
        &["serve", "--state", "/x", "--listen", "nowhere"],
        &["serve", "--state", "/x", "--max-lease", "forever"],
        &["serve", "--state", "/x", "--max-lease", "0s"],
        &["serve", "--state", "/x", "--max-lease", "31d"],
        &["serve", "--state", "/x", "--quota-bytes", "-1"],
        &["serve", "--state", "/x", "--max-pending", "0"],
        &["serve", "--state", "/x", "--log-format", "xml"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn init_makes_a_state_for_its_owner_alone_and_never_overwrites() {
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("state");
    init(&dir);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).expect("readable") {
        let path = entry.expect("readable").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let before = (fs::read(dir.join("authd.key")).expect("a key"), fs::read(dir.join("authd.db")).expect("a database"));
    fails(&["init", "--state", text(&dir)], 3, &["authd.key", "exists already", "never overwrites"]);
    let after = (fs::read(dir.join("authd.key")).expect("a key"), fs::read(dir.join("authd.db")).expect("a database"));
    assert!(before == after);

    let open = top.path().join("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o750)).expect("set");
    fails(&["init", "--state", text(&open)], 3, &["0750", "chmod 700"]);
    assert_eq!(fs::read_dir(&open).expect("readable").count(), 0, "nothing is left");
    fails(&["init", "--state", text(&top.path().join("no/such"))], 3, &["no/such"]);
    fails(&["serve", "--state", text(&top.path().join("none"))], 3, &["no state", "init"]);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).expect("set");
    fails(&["serve", "--state", text(&open)], 3, &["no state", "init"]);
    assert_eq!(fs::read_dir(&open).expect("readable").count(), 0);
}

#[test]
fn a_state_that_cannot_be_trusted_is_refused() {
    let top = tempfile::tempdir().expect("a directory");
    let (good, other) = (top.path().join("good"), top.path().join("other"));
    init(&good);
    init(&other);
    let database = fs::read(good.join("authd.db")).expect("a database");
    let broken = |name: &str, spoil: &dyn Fn(&Path)| {
        let dir = top.path().join(name);
        fs::create_dir(&dir).expect("made");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("set");
        for file in ["authd.key", "authd.db"] {
            fs::copy(good.join(file), dir.join(file)).expect("copied");
        }
        spoil(&dir);
        dir
    };
    let sql = |dir: &Path, statement: &str| {
        let database = rusqlite::Connection::open(dir.join("authd.db")).expect("opens");
        database.execute_batch(statement).expect("done");
    };
    let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    type Spoil<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: Vec<(&str, Spoil<'_>, &[&str])> = vec![
        ("open", Box::new(|dir| mode(dir.to_owned(), 0o755)), &["0755", "chmod 700"]),
        ("open-key", Box::new(|dir| mode(dir.join("authd.key"), 0o644)), &["authd.key", "chmod 600"]),
        ("no-key", Box::new(|dir| fs::remove_file(dir.join("authd.key")).expect("removed")), &["authd.key"]),
        ("bad-key", Box::new(|dir| fs::write(dir.join("authd.key"), "x").expect("written")), &["authd.key"]),
        (
            "no-db",
            Box::new(|dir| fs::remove_file(dir.join("authd.db")).expect("removed")),
            &["authd.db", "does not exist"],
        ),
        ("empty", Box::new(|dir| fs::write(dir.join("authd.db"), "").expect("written")), &["authd.db"]),
        (
            "text",
            Box::new(|dir| fs::write(dir.join("authd.db"), "hello ".repeat(5000)).expect("written")),
            &["authd.db", "damaged"],
        ),
        (
            "cut",
            Box::new(|dir| fs::write(dir.join("authd.db"), &database[..database.len() / 2]).expect("written")),
            &["authd.db", "damaged"],
        ),
        ("foreign", Box::new(|dir| sql(dir, "PRAGMA application_id = 7")), &["authd.db", "another program"]),
        ("newer", Box::new(|dir| sql(dir, "PRAGMA user_version = 99")), &["authd.db", "99", "newer overbank-authd"]),
        (
            "twisted",
            Box::new(|dir| {
                // A row that its index lacks.
                sql(
                    dir,
                    "CREATE TABLE aside AS SELECT * FROM sqlite_schema WHERE name = 'pending_by_age';
                     PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'pending_by_age'",
                );
                sql(
                    dir,
                    "INSERT INTO identities (key, fingerprint, state, last_seen_unix_ms)
                     VALUES (zeroblob(32), zeroblob(20), 'pending', 1)",
                );
                sql(dir, "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM aside");
            }),
            &["authd.db", "damaged"],
        ),
        ("older", Box::new(|dir| sql(dir, "PRAGMA user_version = 0")), &["authd.db", "never in use"]),
        ("no-owner", Box::new(|dir| sql(dir, "DELETE FROM meta")), &["authd.db", "whose"]),
        (
            "mixed",
            Box::new(|dir| {
                fs::copy(other.join("authd.db"), dir.join("authd.db")).expect("copied");
            }),
            &["authd.db", "belongs to the identity"],
        ),
        (
            "file",
            Box::new(|dir| {
                fs::remove_dir_all(dir).expect("removed");
                fs::write(dir, "x").expect("written");
            }),
            &["not a directory"],
        ),
    ];
    for (name, spoil, words) in cases {
        let dir = broken(name, &spoil);
        fails(&["serve", "--state", text(&dir), "--listen", "127.0.0.1:0"], 3, words);
    }
    // Whatever the damaged pages say, it is one error and no crash.
    for case in 0..12 {
        let dir = broken(&format!("flipped-{case}"), &|dir| {
            fs::write(dir.join("authd.db"), spoilt(&database, case)).expect("written");
        });
        fails(&["serve", "--state", text(&dir), "--listen", "127.0.0.1:0"], 3, &["authd.db"]);
    }
}

/// A database with a few wrong bytes in each page, past the header of the file.
fn spoilt(database: &[u8], case: u64) -> Vec<u8> {
    let mut bytes = database.to_vec();
    let mut state = case.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (number, page) in bytes.chunks_mut(4096).enumerate() {
        let header = if number == 0 { 100 } else { 0 };
        for _ in 0..50 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            page[header + (state >> 33) as usize % (4096 - header)] ^= (state >> 20) as u8;
        }
        // How many cells it has.
        page[header + 3] ^= 0x31;
    }
    bytes
}

#[test]
fn a_second_daemon_and_a_taken_port_are_told_apart() {
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("state");
    init(&dir);
    let process = Process::serve(&dir, &[]);
    let pid = format!("process {}", process.child.id());
    fails(&["serve", "--state", text(&dir), "--listen", "127.0.0.1:0"], 4, &["in use", &pid]);
    let other = top.path().join("other");
    init(&other);
    let address = process.address.to_string();
    fails(&["serve", "--state", text(&other), "--listen", &address], 5, &[&address, "in use"]);
    drop(process);
    // The lock of a killed daemon is no lock.
    let mut process = Process::serve(&dir, &[]);
    assert_eq!(process.terminate().0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_it_soon_whatever_is_under_way() {
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("state");
    let invitation = init(&dir);
    let mut process = Process::serve(&dir, &[]);
    let operator = first_operator(&process, &invitation).await;
    let lender = Lender::new(approved(&process, &operator, Role::Provider, None).await);
    let _session = lender.connect(process.address).await;
    let alice = approved(&process, &operator, Role::Consumer, Some("red")).await;
    let _idle = process.connect(&alice, Party::Client).await;
    let _half = TcpStream::connect(process.address).await.expect("it listens");
    lender.lock().hangs = true;
    let mut session = process.connect(&alice, Party::Client).await;
    let hanging = tokio::spawn(async move {
        let wish = CreateLease { nonce: Nonce::random(), bytes: 1, block: 4096, ttl_ms: 60_000 };
        session.call(CorrelationId::random(), 30_000, Call::CreateLease(wish)).await
    });
    while lender.lock().orders.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, took) = process.terminate();
    assert_eq!(status, Some(0), "{}", fs::read_to_string(&process.log).expect("a log"));
    // 2 s on a machine with time to spare.
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(hanging.await.expect("no panic").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_name_request_and_peer_and_no_secret() {
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("state");
    let invitation = init(&dir);
    let seed = fs::read_to_string(dir.join("authd.key")).expect("a key").lines().nth(1).expect("a seed").to_owned();
    let mut process = Process::serve(&dir, &["--log-format", "json"]);
    let operator = first_operator(&process, &invitation).await;
    let mut session = process.connect(&operator, Party::Client).await;
    let correlation = CorrelationId::random();
    let fingerprint = operator.public().fingerprint();
    let revoke = Call::TrustRevoke(fingerprint);
    session.call(correlation, 5000, revoke).await.expect_err("the last operator stays");
    let invite = overbank_fabric::message::Invite { role: Role::Provider, tenant: None, ttl_ms: 60_000 };
    let Reply::Invitation(second) = call(&mut session, Call::TrustInvite(invite)).await else { panic!() };
    process.terminate();

    let log = fs::read_to_string(&process.log).expect("a log");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let about = |line: &&serde_json::Value| line["span"]["correlation"] == correlation.to_string();
    let about: Vec<_> = lines.iter().filter(about).collect();
    assert!(!about.is_empty(), "{log}");
    for line in about {
        assert_eq!(line["span"]["peer"], fingerprint.to_string());
        assert_eq!(line["span"]["call"], "trust-revoke");
    }
    for secret in [overbank_fabric::ids::hex(&invitation.secret), overbank_fabric::ids::hex(&second.secret), seed] {
        assert!(!log.contains(&secret));
    }
    assert!(!log.contains("secret: ["), "{log}");
}

/// What the consumers of one round know.
#[derive(Default)]
struct Told {
    granted: BTreeMap<Nonce, LeaseId>,
    unanswered: BTreeSet<Nonce>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_acknowledged_lease_and_doubles_none() {
    let top = tempfile::tempdir().expect("a directory");
    let dir = top.path().join("state");
    let invitation = init(&dir);
    let mut process = Process::serve(&dir, &[]);
    let operator = first_operator(&process, &invitation).await;
    let lender = Lender::new(approved(&process, &operator, Role::Provider, None).await);
    lender.lock().pool = 256 * MIB;
    let alice = Arc::new(approved(&process, &operator, Role::Consumer, Some("red")).await);
    let told: Arc<Mutex<Told>> = Arc::default();
    let wish = |nonce| Call::CreateLease(CreateLease { nonce, bytes: 1, block: 4096, ttl_ms: 3_600_000 });

    for round in 0..6 {
        let lending = lender.connect(process.address).await;
        let mut stream = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (mut session, told) = (process.connect(&alice, Party::Client).await, Arc::clone(&told));
            stream.spawn(async move {
                loop {
                    let nonce = Nonce::random();
                    told.lock().expect("no panic").unanswered.insert(nonce);
                    let Ok(reply) = session.call(CorrelationId::random(), 5000, wish(nonce)).await else { return };
                    let Reply::Granted(granted) = reply else { panic!("{reply:?}") };
                    let mut told = told.lock().expect("no panic");
                    told.unanswered.remove(&nonce);
                    told.granted.insert(nonce, granted.lease);
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(150 + 70 * round)).await;
        process.child.kill().expect("killed");
        process.child.wait().expect("dead");
        while stream.join_next().await.is_some() {}
        drop(lending);
        process = Process::serve(&dir, &[]);
    }
    let _lending = lender.connect(process.address).await;
    let mut session = process.connect(&alice, Party::Client).await;
    let mut told = std::mem::take(&mut *told.lock().expect("no panic"));
    assert!(told.granted.len() > 20 && !told.unanswered.is_empty(), "the kills came in the middle");
    for nonce in told.unanswered {
        let Reply::Granted(granted) = call(&mut session, wish(nonce)).await else { panic!() };
        assert_eq!(told.granted.insert(nonce, granted.lease), None);
    }
    // Asked again, each is the lease that it was.
    for (nonce, lease) in &told.granted {
        let Reply::Granted(granted) = call(&mut session, wish(*nonce)).await else { panic!() };
        assert_eq!(granted.lease, *lease);
    }
    let acknowledged: BTreeSet<LeaseId> = told.granted.values().copied().collect();
    assert_eq!(acknowledged.len(), told.granted.len());
    let Reply::Leases(infos) = call(&mut session, Call::ListLeases).await else { panic!() };
    let active = |info: &LeaseInfo| (info.state == LeaseState::Active).then_some(info.lease);
    assert_eq!(infos.iter().filter_map(active).collect::<BTreeSet<_>>(), acknowledged);
    assert_eq!(infos.len(), acknowledged.len(), "and there is no other");
    // What the lender carved and nobody was told of is fenced in the end.
    let begun = Instant::now();
    loop {
        let held: BTreeSet<LeaseId> = lender.lock().held.keys().copied().collect();
        assert!(acknowledged.is_subset(&held), "every lease is there");
        if held == acknowledged {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{} too many", held.len() - acknowledged.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
