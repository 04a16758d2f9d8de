//! What goes out comes back, at any offset and length.

use std::io::Write;
use std::process::Stdio;

use crate::process::Running;
use crate::stack::{Stack, noise};

#[test]
fn any_offset_and_length_comes_back_and_what_was_never_written_is_zero() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    for (size, block) in [(100_003, "4KiB"), (20_001, "512")] {
        let created =
            user.run(&["lease", "create", "--size", &size.to_string(), "--ttl", "10m", "--block", block, "--json"]);
        let created = created.expect(0).json();
        assert_eq!(created["bytes"], size);
        assert_eq!(created["ttl_ms"], 600_000);
        let lease = created["lease"].as_str().expect("an id").to_owned();
        let mut shadow = vec![0; size];
        assert_eq!(user.get(&lease, size), shadow, "never written");
        // Each of these is a command, so a process, of its own.
        for (seed, (offset, len)) in
            [(0, 1), (4095, 2), (5000, 511), (8192, 4096), (8191, 8195), (511, 513), (size - 1, 1), (size - 9000, 9000)]
                .into_iter()
                .enumerate()
        {
            let bytes = noise(len, seed as u64 + 1);
            user.put(&format!("{lease}@{offset}"), &bytes).expect(0);
            shadow[offset..offset + len].copy_from_slice(&bytes);
            assert_eq!(user.get(&format!("{lease}@{offset}"), len), bytes, "{len} at {offset}");
        }
        assert_eq!(user.get(&lease, size), shadow);
        // By a few of its first digits, and all to its end.
        let file = user.home.join("all");
        user.run(&["get", &lease[..8], &file.display().to_string()]).expect(0);
        assert_eq!(std::fs::read(file).expect("it"), shadow);
    }
}

#[test]
fn megabytes_go_through_in_many_chunks() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("10MiB", "10m");
    let bytes = noise((9 << 20) + 12_345, 7);
    let answer = user.put(&format!("{lease}@777"), &bytes).expect(0);
    assert!(answer.stderr.is_empty(), "no bar where there is no terminal: {}", answer.stderr);
    assert!(user.get(&format!("{lease}@777"), bytes.len()) == bytes);
}

#[test]
fn standard_input_and_output_serve_as_files() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("64KiB", "10m");
    let bytes = noise(10_000, 3);
    let put = |args: &[&str], bytes: &[u8]| {
        let mut running = Running::start(user.command(args).stdin(Stdio::piped()));
        let mut stdin = running.child.stdin.take().expect("piped");
        // A command that refuses early does not read all.
        let _ = stdin.write_all(bytes);
        drop(stdin);
        running.end()
    };
    put(&["put", &lease, "-"], &bytes).expect(0);
    assert_eq!(user.get(&lease, bytes.len()), bytes);
    put(&["put", &lease, "-", "--len", "5000"], &bytes[5000..]).expect(0);
    assert_eq!(user.get(&lease, 5000), bytes[5000..]);
    // More than fits is noticed before anything is written; less than was promised when it ends.
    let before = user.get(&lease, 65_536);
    put(&["put", &format!("{lease}@60000"), "-"], &bytes).expect(10).saying("nothing was written");
    put(&["put", &lease, "-", "--len", "65537"], &bytes).expect(10);
    assert_eq!(user.get(&lease, 65_536), before);
    put(&["put", &lease, "-", "--len", "20000"], &bytes).expect(1).saying("it ended before");
    assert_eq!(user.get(&lease, 65_536), before);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("8KiB", "10m");
    user.put(&lease, &noise(8193, 1)).expect(10).saying("nothing was written");
    user.put(&format!("{lease}@1"), &noise(8192, 1)).expect(10);
    user.put(&format!("{lease}@9000"), b"x").expect(10);
    user.put(&format!("{lease}@9000"), b"").expect(10);
    assert_eq!(user.get(&lease, 8192), [0; 8192]);
    user.run(&["get", &lease, "-", "--len", "8193"]).expect(10);
    user.run(&["get", &format!("{lease}@8192"), "-", "--len", "1"]).expect(10);
    user.run(&["get", &format!("{lease}@15TiB"), "-", "--len", "15TiB"]).expect(10);
    user.run(&["get", &format!("{lease}@8192"), "/dev/null"]).expect(10);
}

#[test]
fn one_process_uses_a_lease_at_a_time() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("8MiB", "10m");
    let (first, mut stdin) = user.half_way(&lease, &noise(4 << 20, 1));
    user.run(&["get", &lease, "/dev/null"]).expect(12).saying("in use by another process");
    // Which does not keep it from being renewed.
    user.run(&["lease", "renew", &lease, "--ttl", "20m"]).expect(0);
    stdin.write_all(&noise(2 << 20, 2)).expect("taken");
    drop(stdin);
    first.end().expect(0);
    assert!(user.get(&format!("{lease}@4MiB"), 2 << 20) == noise(2 << 20, 2));
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("8MiB", "10m");
    let mut running = Running::start(&mut user.command(&["get", &lease, "/dev/full"]));
    let _ = running.child.stdin.take();
    running.end().expect(1).saying("/dev/full");
    let shell = format!(
        "'{}' get {lease} - --device '{}' | head -c 10 | wc -c; exit ${{PIPESTATUS[0]}}",
        crate::process::program("overbank").display(),
        crate::stack::device()
    );
    let mut command = user.command(&[]);
    let mut piped = std::process::Command::new("bash");
    piped.args(["-c", &shell]);
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => piped.env(key, value),
            None => piped.env_remove(key),
        };
    }
    let _ = &mut command;
    let outcome = Running::start(&mut piped).end().expect(1);
    assert_eq!(outcome.stdout.trim_ascii(), b"10");
    assert_eq!(outcome.stderr, "");
}
