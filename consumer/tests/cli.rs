//! Every subcommand with input that makes no sense: one clear error, the right exit status, no panic, nothing done.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const FP: &str = "00112233445566778899aabbccddeeff00112233";
const LEASE: &str = "00112233445566778899aabbccddeeff";

/// Nobody listens on the port of the discard service.
fn overbank(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overbank"))
        .args(args)
        .stdin(Stdio::null())
        .env_clear()
        .env("OVERBANK_HOME", home.join("home"))
        .env("OVERBANK_AUTHD", "127.0.0.1:9")
        .env("XDG_RUNTIME_DIR", home)
        .output()
        .expect("it starts")
}

#[track_caller]
fn check(output: &Output, status: i32, words: &str, of: &str) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{of}: {stdout}{stderr}");
    assert_eq!(
        stderr.lines().filter(|line| ["error: ", "{\"error\":"].iter().any(|start| line.starts_with(start))).count(),
        1,
        "one error for {of}: {stderr}"
    );
    assert!(stderr.contains(words), "'{words}' is not said for {of}: {stderr}");
    assert!(!stderr.contains("panicked"), "{of}: {stderr}");
    assert_eq!(stdout, "", "{of}");
}

#[test]
fn bad_command_lines_are_refused_by_name() {
    let home = tempfile::tempdir().expect("a directory");
    let long = "9".repeat(300);
    let cases: &[(&[&str], &str)] = &[
        (&[], "subcommand"),
        (&["frobnicate"], "frobnicate"),
        (&["--bogus"], "--bogus"),
        (&["--authd", "a b", "id"], "'a b' is no address"),
        (&["--authd", "host:99999", "status"], "host:99999"),
        (&["--authd", "", "status"], "no address"),
        (&["--home", "", "id"], "--home"),
        (&["--request-deadline", "0s", "status"], "longer than nothing"),
        (&["--request-deadline", "5", "status"], "no duration"),
        (&["id", "extra"], "extra"),
        (&["join"], "CODE"),
        (&["join", ""], "no invitation"),
        (&["join", "hello"], "no invitation"),
        (&["join", FP], "no invitation"),
        (&["join", &format!("{FP}.00")], "no invitation"),
        (&["join", &format!("{FP}.{LEASE}00")], "no invitation"),
        (&["trust"], "Usage"),
        (&["trust", "approve"], "FINGERPRINT"),
        (&["trust", "approve", FP], "--role"),
        (&["trust", "approve", FP, "--role", "king"], "'king' is no role"),
        (&["trust", "approve", FP, "--role", "consumer"], "--tenant"),
        (&["trust", "approve", FP, "--role", "consumer", "--tenant", "A B"], "tenant's name"),
        (&["trust", "approve", FP, "--role", "operator", "--tenant", "blue"], "leave out --tenant"),
        (&["trust", "approve", "00112233", "--role", "provider"], "in full"),
        (&["trust", "approve", "xyz01234", "--role", "provider"], "in full"),
        (&["trust", "deny", "0011223"], "names no identity"),
        (&["trust", "deny", "xyz01234"], "names no identity"),
        (&["proposal", "show", "3fa9"], "names no proposal"),
        (&["proposal", "approve", "3fa95c0g"], "names no proposal"),
        (&["trust", "revoke"], "FINGERPRINT"),
        (&["trust", "revoke", ""], "names no identity"),
        (&["trust", "revoke", &long], "names no identity"),
        (&["trust", "invite"], "--role"),
        (&["trust", "invite", "--role", "consumer"], "--tenant"),
        (&["trust", "invite", "--role", "provider", "--ttl", "0s"], "longer than nothing"),
        (&["trust", "invite", "--role", "provider", "--ttl", "forever"], "no duration"),
        (&["lease"], "Usage"),
        (&["lease", "create"], "--size"),
        (&["lease", "create", "--size", "64MiB"], "--ttl"),
        (&["lease", "create", "--size", "0", "--ttl", "1m"], "at least one byte"),
        (&["lease", "create", "--size", "-1", "--ttl", "1m"], "-1"),
        (&["lease", "create", "--size", "64MB", "--ttl", "1m"], "no size"),
        (&["lease", "create", "--size", "99999999TiB", "--ttl", "1m"], "no size"),
        (&["lease", "create", "--size", "1MiB", "--ttl", "0ms"], "longer than nothing"),
        (&["lease", "create", "--size", "1MiB", "--ttl", "10"], "no duration"),
        (&["lease", "create", "--size", "1MiB", "--ttl", "99999999999999999999d"], "no duration"),
        (&["lease", "create", "--size", "1MiB", "--ttl", "1m", "--block", "256"], "power of two"),
        (&["lease", "create", "--size", "1MiB", "--ttl", "1m", "--block", "3KiB"], "power of two"),
        (&["lease", "create", "--size", "1MiB", "--ttl", "1m", "--block", "2MiB"], "power of two"),
        (&["lease", "renew", LEASE], "--ttl"),
        (&["lease", "renew", "", "--ttl", "1m"], "32 hexadecimal digits"),
        (&["lease", "renew", "xyz", "--ttl", "1m"], "32 hexadecimal digits"),
        (&["lease", "release"], "LEASE"),
        (&["lease", "release", "../../etc/passwd"], "32 hexadecimal digits"),
        (&["lease", "release", &long], "32 hexadecimal digits"),
        (&["put"], "LEASE"),
        (&["put", LEASE], "FILE"),
        (&["put", "zz", "/etc/passwd"], "32 hexadecimal digits"),
        (&["put", &format!("{LEASE}@"), "/etc/passwd"], "the offset"),
        (&["put", &format!("{LEASE}@x"), "/etc/passwd"], "the offset"),
        (&["put", &format!("{LEASE}@-1"), "/etc/passwd"], "the offset"),
        (&["put", &format!("{LEASE}@1@2"), "/etc/passwd"], "the offset"),
        (&["put", LEASE, "/etc/passwd", "--len", "0"], "at least one byte"),
        (&["put", LEASE, "/etc/passwd", "--len", "1GiB"], "fewer than --len"),
        (&["put", LEASE, "/"], "is a directory"),
        (&["put", LEASE, "/etc/passwd", "--deadline", "0s"], "longer than nothing"),
        (&["put", LEASE, "/etc/passwd", "--address", "here"], "here"),
        (&["get", LEASE], "FILE"),
        (&["get", LEASE, "out", "--len", "0"], "at least one byte"),
        (&["get", LEASE, "out", "--len", "x"], "no size"),
        (&["get", LEASE, "-", "--json"], "standard output"),
        (&["status", "extra"], "extra"),
    ];
    for (args, words) in cases {
        check(&overbank(home.path(), args), 2, words, &args.join(" "));
    }
    assert!(!home.path().join("home/known_authds").exists(), "nothing was pinned");
}

#[test]
fn without_an_auth_daemon_each_command_says_so() {
    let home = tempfile::tempdir().expect("a directory");
    let cases: &[&[&str]] = &[
        &["join", &format!("{FP}.{LEASE}")],
        &["trust", "list"],
        &["trust", "approve", FP, "--role", "provider"],
        &["trust", "revoke", "00112233"],
        &["trust", "invite", "--role", "operator"],
        &["lease", "create", "--size", "1MiB", "--ttl", "1m"],
        &["lease", "list"],
        &["lease", "renew", LEASE, "--ttl", "1m"],
        &["lease", "release", "0011"],
        &["put", LEASE, "/etc/passwd"],
        &["get", LEASE, "/dev/null"],
        &["status"],
    ];
    for args in cases {
        check(&overbank(home.path(), args), 3, "127.0.0.1:9", &args.join(" "));
        let json = overbank(home.path(), &[args, &["--json"][..]].concat());
        let error: serde_json::Value = serde_json::from_slice(&json.stderr).expect("one JSON object");
        assert_eq!((json.status.code(), &error["error"]["kind"]), (Some(3), &"authd-unreachable".into()), "{args:?}");
        assert_eq!(error["error"]["status"], 3);
    }
}

#[test]
fn files_that_cannot_be_read_or_made_are_named() {
    let home = tempfile::tempdir().expect("a directory");
    check(&overbank(home.path(), &["put", LEASE, "/nowhere/file"]), 1, "/nowhere/file", "put of no file");
    std::fs::write(home.path().join("file"), b"").expect("written");
    let below = home.path().join("file/home");
    let output = overbank(home.path(), &["--home", &below.display().to_string(), "id", "--offline"]);
    check(&output, 12, &below.display().to_string(), "a home below a file");
}

#[test]
fn key_files_and_pins_that_others_could_touch_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let home = tempfile::tempdir().expect("a directory");
    assert_eq!(overbank(home.path(), &["id", "--offline"]).status.code(), Some(0));
    let key = home.path().join("home/identity.key");
    chmod(&key, 0o644);
    check(&overbank(home.path(), &["status"]), 12, "identity.key", "an open key file");
    chmod(&key, 0o600);
    let good = std::fs::read(&key).expect("it");
    for bad in [&b""[..], b"hello", &good[..good.len() - 2], &[&good[..], b"x"].concat(), &[0xff; 86]] {
        std::fs::write(&key, bad).expect("written");
        check(&overbank(home.path(), &["status"]), 12, "identity.key", "a damaged key file");
    }
    std::fs::write(&key, &good).expect("written");
    let pins = home.path().join("home/known_authds");
    std::fs::write(&pins, "127.0.0.1:9 nonsense\n").expect("written");
    check(&overbank(home.path(), &["status"]), 12, "line 1", "a malformed pin");
    std::fs::remove_file(&pins).expect("it");
    chmod(&home.path().join("home"), 0o777);
    check(&overbank(home.path(), &["status"]), 12, "other users", "an open home");
    chmod(&home.path().join("home"), 0o700);
    check(&overbank(home.path(), &["status"]), 3, "127.0.0.1:9", "a home that is mended");
}

#[test]
fn help_shows_examples_and_every_exit_status() {
    let home = tempfile::tempdir().expect("a directory");
    let help = overbank(home.path(), &["--help"]);
    let text = String::from_utf8(help.stdout).expect("text");
    assert_eq!(help.status.code(), Some(0));
    assert!(text.contains("Examples:"), "{text}");
    for status in (0..=13).chain([130]) {
        assert!(text.lines().any(|line| line.trim_start().starts_with(&format!("{status}  "))), "{status} in {text}");
    }
    for command in [&["id"][..], &["join"], &["put"], &["get"], &["lease", "create"], &["trust", "approve"]] {
        let help = overbank(home.path(), &[command, &["--help"][..]].concat());
        let text = String::from_utf8(help.stdout).expect("text");
        assert!(text.contains("Example"), "{command:?}: {text}");
    }
}

#[test]
fn identity_is_made_once_and_shown_without_an_auth_daemon() {
    let home = tempfile::tempdir().expect("a directory");
    let show = |args: &[&str]| -> serde_json::Value {
        let output = overbank(home.path(), args);
        assert_eq!(output.status.code(), Some(0));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let first = show(&["id", "--offline", "--json"]);
    let second = show(&["id", "--json"]);
    assert_eq!((&first["created"], &second["created"]), (&true.into(), &false.into()));
    assert_eq!(first["fingerprint"], second["fingerprint"]);
    assert!(second["authd"]["error"].as_str().is_some_and(|error| error.contains("127.0.0.1:9")));
}
