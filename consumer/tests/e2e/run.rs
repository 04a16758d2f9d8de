//! `overbank run`: programs with large memory, their ends, and the end of the lease.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::process::{Outcome, Running, program};
use crate::stack::{Stack, User, device, noise, seconds, text};

/// A run of that command, with 8 MiB of far memory.
fn run(user: &User, more: &[&str], command: &[&str]) -> Outcome {
    user.run(&words(more, command))
}

fn words<'a>(more: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    // The library is there, or these tests say what to do.
    program("liboverbank_preload.so");
    let local = if more.contains(&"--local") { &[][..] } else { &["--local", "1MiB"] };
    let parts = [&["run", "--remote", "8MiB"], local, more, &["--"], command];
    parts.concat()
}

fn leases(user: &User) -> Vec<Value> {
    let list = user.run(&["lease", "list", "--json"]).expect(0).json();
    list["leases"].as_array().expect("a list").clone()
}

/// Its one lease is over, because it was given back, and no file of it is left here.
#[track_caller]
fn all_is_given_back(stack: &Stack, user: &User) {
    let leases = leases(user);
    assert_eq!(leases.len(), 1, "{leases:?}");
    stack.wait_ended(user, text(&leases[0], "lease"));
    assert_eq!(text(&stack.lease(user, text(&leases[0], "lease")), "reason"), "released");
    nothing_is_left(user);
}

#[track_caller]
fn nothing_is_left(user: &User) {
    let left: Vec<_> = std::fs::read_dir(user.runtime.join("overbank")).expect("it").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_program_answers_as_ever_and_its_large_memory_is_accounted_for() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let (input, summary) = (user.home.join("input"), user.home.join("summary"));
    let lines: String = noise(200_000, 3).chunks(8).map(|word| format!("{word:02x?}\n")).collect();
    std::fs::write(&input, &lines).expect("written");
    let mut sorted: Vec<&str> = lines.lines().collect();
    sorted.sort_unstable();
    let (input, file) = (input.display().to_string(), summary.display().to_string());
    let more = ["--summary", &file, "--device", &device(), "--local", "512KiB"];
    let outcome = run(&user, &more, &["env", "LC_ALL=C", "sort", "--parallel=1", "-S", "4M", &input]).expect(0);
    assert_eq!(String::from_utf8(outcome.stdout.clone()).expect("text").lines().collect::<Vec<_>>(), sorted);
    outcome.saying("ended with status 0").saying("1 allocations").saying(" faults, half of them within ");
    let summary: Value = serde_json::from_slice(&std::fs::read(summary).expect("it")).expect("JSON");
    assert_eq!((summary["status"].as_u64(), summary["released"].as_bool()), (Some(0), Some(true)));
    assert!(summary["processes"][0]["bytes"].as_u64() >= Some(4 << 20), "{summary}");
    let region = &summary["processes"][0]["region"];
    assert!(region["fetched"].as_u64() > Some(0) && region["stored"].as_u64() > Some(0), "{region}");
    assert!(region["peak_resident_bytes"].as_u64() <= Some(512 << 10), "{region}");
    all_is_given_back(&stack, &user);
}

/// Whether these tests were started so that a signal is ignored, as `nohup` does: it is in all that they start.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("it");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a line");
    u64::from_str_radix(mask.trim(), 16).expect("a mask") >> (signal - 1) & 1 == 1
}

#[test]
fn the_end_of_the_program_is_passed_on() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    run(&user, &[], &["sh", "-c", "exit 7"]).expect(7).saying("ended with status 7").saying("nothing was placed");
    for signal in [15, 11, 9, 2].into_iter().filter(|&signal| !is_ignored(signal)) {
        let outcome = run(&user, &[], &["sh", "-c", &format!("kill -{signal} $$")]).expect(-signal);
        outcome.saying(&format!("was ended by signal {signal}"));
    }
    run(&user, &[], &["no-such-program"]).expect(127).saying("cannot start no-such-program");
    run(&user, &[], &["/dev/null"]).expect(126).saying("cannot start /dev/null");
    assert!(leases(&user).iter().all(|lease| lease["state"] != "active"), "{:?}", leases(&user));
    nothing_is_left(&user);
}

/// One that says its word, and when it is told to.
fn waiting(user: &User, more: &[&str], script: &str) -> (Running, String) {
    let mut command = user.command(&words(more, &["sh", "-c", script]));
    let fifo = user.home.join("said");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let running = Running::start(command.env("SAID", &fifo).stdin(Stdio::null()));
    let mut line = String::new();
    BufReader::new(std::fs::File::open(&fifo).expect("it")).read_line(&mut line).expect("a line");
    (running, line)
}

fn send(running: &Running, signal: Signal) {
    kill(Pid::from_raw(running.child.id().cast_signed()), signal).expect("it is there");
}

#[test]
fn signals_are_passed_on_and_the_lease_is_given_back() {
    let script = "trap 'exit 33' INT; trap 'exit 34' TERM; trap 'exit 35' HUP; trap 'exit 36' USR1; \
        echo ready >$SAID; while :; do sleep 0.05; done";
    for (signal, status) in [(Signal::SIGTERM, 34), (Signal::SIGHUP, 35), (Signal::SIGUSR1, 36)] {
        if is_ignored(signal as i32) {
            continue;
        }
        let stack = Stack::start();
        let user = stack.consumer("ann", "blue");
        let (running, _) = waiting(&user, &[], script);
        send(&running, signal);
        running.end().expect(status);
        all_is_given_back(&stack, &user);
    }
}

#[test]
fn a_program_that_dies_of_a_signal_that_was_passed_on_leaves_nothing() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let (running, _) = waiting(&user, &[], "echo ready >$SAID; exec sleep 100");
    send(&running, Signal::SIGTERM);
    running.end().expect(-15);
    all_is_given_back(&stack, &user);
}

#[test]
fn the_lease_is_renewed_while_the_program_runs_and_expires_where_nobody_is_left() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let (mut running, _) = waiting(&user, &["--ttl", &crate::stack::ttl(4)], "echo ready >$SAID; exec sleep 100");
    sleep(seconds(7.0));
    let leases = leases(&user);
    assert_eq!(text(&leases[0], "state"), "active", "{leases:?}");
    // Nothing of it can give anything back.
    running.child.kill().expect("it is there");
    let lease = text(&leases[0], "lease");
    stack.wait_ended(&user, lease);
    assert_eq!(text(&stack.lease(&user, lease), "reason"), "expired");
    // The program outlived it.
    let of_program = std::fs::read_dir("/proc").expect("it").flatten().find(|entry| {
        std::fs::read(entry.path().join("environ"))
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&format!("OVERBANK_RUN_LEASE={lease}")))
    });
    let pid = of_program.and_then(|entry| entry.file_name().to_str()?.parse().ok()).expect("it runs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
    running.end();
}

#[test]
fn what_the_program_is_told_by_its_environment() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let mut command =
        user.command(&words(&["--threshold", "1MiB", "--spill", "--page", "64KiB", "--local", "4MiB"], &["env"]));
    // A library that is preloaded already stays; what a run around this one says does not.
    let command = command.env("LD_PRELOAD", "libm.so.6").env("OVERBANK_RUN_VERBOSE", "1");
    let command = command.args(["-u", "OVERBANK_RUN_DEVICE"]);
    let outcome = Running::start(command).end().expect(0);
    let told = String::from_utf8(outcome.stdout).expect("text");
    let has = |start: &str, end: &str| told.lines().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(has("LD_PRELOAD=/", "/liboverbank_preload.so:libm.so.6"), "{told}");
    assert!(has("OVERBANK_RUN_THRESHOLD=1048576", "") && has("OVERBANK_RUN_SPILL=1", ""), "{told}");
    assert!(has("OVERBANK_RUN_PAGE=65536", "") && has("OVERBANK_RUN_REMOTE=8388608", ""), "{told}");
    assert!(!has("OVERBANK_RUN_VERBOSE", ""), "{told}");
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_leased() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    user.run(&["run", "--local", "1MiB", "--remote", "8MiB"]).expect(2).saying("COMMAND");
    user.run(&["run", "--local", "1KiB", "--remote", "8MiB", "--", "true"]).expect(2).saying("--local");
    user.run(&["run", "--local", "1MiB", "--remote", "8MiB", "--page", "5KiB", "--", "true"])
        .expect(2)
        .saying("--page");
    let mut command = user.command(&words(&[], &["true"]));
    let outcome = Running::start(command.env("OVERBANK_PRELOAD", "/nowhere/lib.so")).end();
    outcome.expect(1).saying("/nowhere/lib.so");
    let blank = user.home.join("a blank.so");
    std::fs::copy(program("liboverbank_preload.so"), &blank).expect("copied");
    let mut command = user.command(&words(&[], &["true"]));
    Running::start(command.env("OVERBANK_PRELOAD", &blank)).end().expect(1).saying("blank or a colon");
    user.run(&["run", "--local", "1MiB", "--remote", "1TiB", "--", "true"]).expect(6);
    assert!(leases(&user).is_empty() && Path::new(&user.home).is_dir());
}
