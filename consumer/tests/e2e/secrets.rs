//! Where secrets must not be: in no log, in no database, and in no memory after their time.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use overbank::LeaseRequest;
use sha2::{Digest, Sha256};

use crate::library::{client, options};
use crate::stack::{Stack, noise, seconds, text};
use crate::windows::{Windows, at_the_end_of, overwrite};

/// Where the key is in a lease's file.
const LEASE_KEY: std::ops::Range<usize> = 22..54;

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits"))
        .collect()
}

fn seed(path: &Path) -> Vec<u8> {
    unhex(fs::read_to_string(path).expect("a key file").lines().nth(1).expect("a seed"))
}

#[test]
fn no_secret_is_in_any_log_or_database() {
    let mut stack = Stack::loud(&["--audit-file", "audit.jsonl", "--audit-witness", "heads"]);
    let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
    let code = stack.invite(&["--role", "consumer", "--tenant", "blue"]);
    secrets.push(("an invitation".to_owned(), unhex(code.split('.').nth(1).expect("a secret"))));
    let unused = stack.invite(&["--role", "operator"]);
    secrets.push(("an unused invitation".to_owned(), unhex(unused.split('.').nth(1).expect("a secret"))));
    let ann = stack.stranger("ann");
    let mut said = String::new();
    said += &ann.run(&["join", &code]).expect(0).stderr;
    let wrong = format!("{}{}", &code[..41], "5a17c0de5a17c0de5a17c0de5a17c0de");
    secrets.push(("a wrong invitation".to_owned(), unhex(&wrong[41..])));
    said += &stack.stranger("eve").run(&["join", &wrong]).expect(4).stderr;

    let lease = ann.lease("64KiB", "10m");
    let contents = noise(3 * 4096, 77);
    said += &ann.put(&lease, &contents).expect(0).stderr;
    said += &ann.run(&["get", &lease, "-", "--len", "12288"]).expect(0).stderr;
    let file = fs::read(ann.runtime.join(format!("overbank/{lease}.lease"))).expect("a lease file");
    secrets.push(("the lease key".to_owned(), file[LEASE_KEY].to_vec()));
    secrets.push(("the contents".to_owned(), contents));
    said += &ann.run(&["lease", "release", &lease]).expect(0).stderr;
    stack.wait_ended(&ann, &lease);
    for (whose, path) in [
        ("the auth daemon's seed", "authd/authd.key"),
        ("the provider's seed", "provider/provider.key"),
        ("the operator's seed", "operator/identity.key"),
        ("the consumer's seed", "ann/identity.key"),
    ] {
        secrets.push((whose.to_owned(), seed(&stack.path().join(path))));
    }
    let audit = stack.operator.run(&["audit", "query", "--json"]).expect(0);
    assert!(String::from_utf8_lossy(&audit.stdout).contains("\"granted\""));
    said += &audit.stderr;

    let mut places: Vec<(String, Vec<u8>)> =
        vec![("what the commands said".to_owned(), said.into_bytes()), ("the audit log".to_owned(), audit.stdout)];
    for (name, daemon) in [("authd", &mut stack.authd), ("provider", &mut stack.provider)] {
        let daemon = daemon.take().expect("it runs");
        let log = daemon.log();
        assert!(log.contains("TRACE") || log.contains("DEBUG"), "{name} says all that it has to say: {log}");
        places.push((format!("the log of {name}"), log.into_bytes()));
    }
    for path in
        ["authd/authd.db", "authd/authd.db-wal", "audit.jsonl", "heads", "provider/known_authd", "provider/lock"]
    {
        if let Ok(bytes) = fs::read(stack.path().join(path)) {
            places.push((path.to_owned(), bytes));
        }
    }
    assert!(
        places.iter().any(|(name, bytes)| name == "authd/authd.db-wal" && !bytes.is_empty() || name == "audit.jsonl")
    );
    let planted = places.iter().find(|(name, _)| name == "the audit log").expect("it").1.clone();
    assert!(holds(&planted, &planted[100..140]), "what is there is found");
    for (whose, secret) in &secrets {
        for (place, bytes) in &places {
            assert!(!holds(bytes, secret), "{whose} is in {place}");
        }
    }
}

/// Whether 12 bytes in a row of a secret are there, as they are or written in one of the usual ways.
fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    let lower = bytes.to_ascii_lowercase();
    let piece = |piece: &[u8]| {
        let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        let list: Vec<String> = piece.iter().map(u8::to_string).collect();
        let spelt = [list.join(", "), list.join(",")];
        contains(bytes, piece)
            || contains(&lower, hex.as_bytes())
            || spelt.iter().any(|text| contains(bytes, text.as_bytes()))
    };
    secret.chunks_exact(12).any(piece)
}

fn contains(bytes: &[u8], piece: &[u8]) -> bool {
    memchr::memmem::find(bytes, piece).is_some()
}

#[test]
fn attack_36_keys_after_sigterm() {
    let mut stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let lease = ann.lease("8MiB", "10m");
    let contents = noise(5 << 20, 3);
    let (mut writing, stdin) = ann.half_way(&lease, &contents);
    let file = ann.runtime.join(format!("overbank/{lease}.lease"));
    let secrets = |path: &Path| {
        let mut windows = Windows::new();
        windows.add_key_file(path);
        windows
    };
    let mut consumers = secrets(&ann.home.join("identity.key"));
    consumers.add(&fs::read(&file).expect("it")[LEASE_KEY]);
    let [authd, provider] = ["authd/authd.key", "provider/provider.key"].map(|path| secrets(&stack.path().join(path)));

    let mut seen = 0;
    let consumer = writing.child.id();
    let mut look = |who: &str, pid: u32, windows: &Windows| {
        let Ok(living) = windows.find(pid) else {
            eprintln!("SKIPPED attack_36: no right to look into another process's memory");
            return;
        };
        assert!(!living.is_empty(), "the keys of a living {who} are found");
        let Some(left) = at_the_end_of(pid, Some(Signal::SIGTERM), || windows.find(pid).expect("it is still there"))
        else {
            return;
        };
        assert!(left.is_empty(), "{who}: {} windows, such as {:?}", left.len(), &left[..left.len().min(5)]);
        seen += 1;
    };
    // What it waits for ends with the signal's notice at the next piece.
    let feeding = std::thread::spawn(move || {
        use std::io::Write;
        let mut stdin = stdin;
        std::thread::sleep(seconds(1.0));
        let _ = stdin.write_all(&contents[..1 << 20]);
    });
    look("consumer", consumer, &consumers);
    feeding.join().expect("no panic");
    let _ = writing.child.wait();
    look("provider", stack.provider_pid(), &provider);
    look("auth daemon", stack.authd.as_ref().expect("it runs").pid(), &authd);
    drop((stack.provider.take(), stack.authd.take()));
    if seen == 3 {
        println!("attack 36 -: seen no window of a key after SIGTERM: consumer, provider, auth daemon");
    }
}

#[test]
fn attack_36_keys_after_drop_and_panic() {
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let mut windows = Windows::new();
    windows.add_key_file(&ann.home.join("identity.key"));
    let me = std::process::id();
    assert_eq!(windows.find(me).expect("one's own memory"), [""; 0], "before");

    let mut worked = |panics: bool| {
        let (tell, told) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let contents = Sha256::digest(b"contents");
        let borrowing = std::thread::scope(|scope| {
            let (stack, ann, contents) = (&stack, &ann, &contents);
            let borrower = scope.spawn(move || {
                let client = client(stack, ann);
                let mut lease = client.lease(&LeaseRequest::new(1 << 20, seconds(600.0))).expect("room");
                lease.attach(&options()).expect("attached");
                lease.write(100, contents).expect("written");
                tell.send(lease.path().to_owned()).expect("heard");
                gone.recv().expect("told to");
                if panics {
                    panic!("on purpose");
                }
                let mut back = [0; 32];
                lease.read(100, &mut back).expect("read");
                assert_eq!(back[..], contents[..]);
            });
            let mut file = fs::read(told.recv().expect("a path")).expect("a lease file");
            windows.add(&file[LEASE_KEY]);
            overwrite(&mut file);
            assert!(!windows.find(me).expect("one's own memory").is_empty(), "the keys in use are found");
            go.send(()).expect("heard");
            borrower.join()
        });
        assert_eq!(borrowing.is_err(), panics);
        let left = windows.find(me).expect("one's own memory");
        assert!(left.is_empty(), "{} windows, such as {:?}", left.len(), &left[..left.len().min(5)]);
    };
    worked(false);
    worked(true);
    // Who has ended has nothing more to hide: a whole run by the command's file.
    assert_eq!(text(&stack.operator.run(&["id", "--json"]).expect(0).json()["authd"]["you"], "state"), "trusted");
    println!("attack 36 -: seen no window of a key after drop and after a panic");
}
