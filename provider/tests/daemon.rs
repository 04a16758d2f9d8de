//! The program itself: what it prints, what it refuses, and how it stops.

mod scene;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;
use overbank_fabric::ids::BootId;
use overbank_fabric::message::Reply;
use overbank_fabric::receipt::EndReason;
use overbank_verbs::WcStatus;
use scene::daemon::{Daemon, clean, command};
use scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn it_lends_until_a_signal_and_cleans_up_before_it_stops() {
    let mut authd = Authd::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&authd.address.to_string(), state.path(), &[]);
    authd.session().await;
    let ready = daemon.line();
    assert!(ready.starts_with("overbank-provider ready: ") && ready.contains("4MiB in ordinary pages"), "{ready}");
    let mode = |name: &str| std::fs::metadata(state.path().join(name)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("provider.key"), mode("known_authd")), (0o600, 0o600));
    let status = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).expect("readable");
    let core = status.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");

    let (identity, _) = overbank_fabric::keyfile::load_or_create(&state.path().join("provider.key")).expect("a key");
    let boot: BootId = authd.heard.lock().expect("unpoisoned").offers[0].boot;
    assert_eq!(authd.order(carve(boot, lease(1), "a", 10, 60_000)).await, Ok(Reply::Done));
    let mut borrower = Borrower::new(&device());
    borrower.attach_to(&authd, &identity.public(), boot, lease(1), 10, 60_000).await.expect("attaches");
    assert_eq!(borrower.write(0, 0x77), WcStatus::SUCCESS);

    daemon.signal(Signal::SIGTERM);
    let receipt = authd.receipt(&identity.public(), lease(1)).await;
    assert!(receipt.is_complete() && receipt.reason == EndReason::Drained);
    let (status, errors) = daemon.end();
    assert_eq!(status, 0, "{errors}");
    assert_eq!(borrower.write(0, 0x77), WcStatus::RETRY_EXC_ERR);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_in_time_without_the_auth_daemon() {
    let mut authd = Authd::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&authd.address.to_string(), state.path(), &[]);
    authd.session().await;
    daemon.line();
    let boot = authd.heard.lock().expect("unpoisoned").offers[0].boot;
    authd.order(carve(boot, lease(1), "a", 10, 60_000)).await.expect("carves");
    authd.die().await;
    daemon.signal(Signal::SIGTERM);
    let (status, errors) = daemon.end();
    assert!(status == 0 && errors.contains("not taken every receipt"), "{status}: {errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_once_what_an_operator_has_to_do() {
    let authd = Authd::start().await;
    *authd.mood.lock().expect("unpoisoned") = Mood::Pending;
    let state = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&authd.address.to_string(), state.path(), &[]);
    let waiting = daemon.line();
    let (identity, _) = overbank_fabric::keyfile::load_or_create(&state.path().join("provider.key")).expect("a key");
    let approve = format!("overbank trust approve {} --role provider", identity.public().fingerprint());
    assert_eq!(waiting, format!("waiting for approval: {approve}"));
    *authd.mood.lock().expect("unpoisoned") = Mood::Trusts;
    assert!(daemon.line().starts_with("overbank-provider ready: "), "next, and nothing twice");
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.end().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auth_daemon_with_another_key_is_refused_with_a_way_out() {
    let mut authd = Authd::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&authd.address.to_string(), state.path(), &[]);
    authd.session().await;
    daemon.line();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().0, 0);
    let other = Authd::start().await;
    let (status, errors) = Daemon::start(&other.address.to_string(), state.path(), &[]).end();
    assert_eq!(status, 5, "{errors}");
    for named in [authd.identity.public().fingerprint().to_string(), other.identity.public().fingerprint().to_string()]
    {
        assert!(errors.contains(&named), "{errors}");
    }
    assert!(errors.contains("delete") && errors.contains("known_authd"), "{errors}");
    // On the command line, before anybody is asked.
    let fingerprint = other.identity.public().fingerprint().to_string();
    let (status, errors) = Daemon::start("127.0.0.1:1", state.path(), &["--authd-fingerprint", &fingerprint]).end();
    assert_eq!(status, 5, "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_status_and_names_the_thing() {
    let authd = Authd::start().await;
    let address = authd.address.to_string();
    let state = tempfile::tempdir().expect("a directory");
    let run = |more: &[&str]| Daemon::start(&address, state.path(), more).end();
    *authd.mood.lock().expect("unpoisoned") = Mood::Revoked;
    let (status, errors) = run(&[]);
    assert!(status == 4 && errors.contains("refuses the offer"), "{status}: {errors}");
    *authd.mood.lock().expect("unpoisoned") = Mood::Pending;
    let code = format!("{}.{}", authd.identity.public().fingerprint(), "06".repeat(16));
    let (status, errors) = run(&["--invitation", &code]);
    assert!(status == 4 && errors.contains("the invitation"), "{status}: {errors}");
    let (status, errors) = run(&["--pool", "lots"]);
    assert!(status == 2 && errors.contains("lots"), "{status}: {errors}");
    let (status, errors) = run(&["--device", "nosuch0"]);
    assert!(status == 1 && errors.contains("nosuch0"), "{status}: {errors}");
    if device_name() == "soft" {
        // A real device has addresses of its own, and takes one of those.
        let (status, errors) = run(&["--address", "192.0.2.1"]);
        assert!(status == 1 && errors.contains("192.0.2.1"), "{status}: {errors}");
    }

    std::fs::set_permissions(state.path().join("provider.key"), PermissionsExt::from_mode(0o644)).expect("changed");
    let (status, errors) = run(&[]);
    assert!(status == 12 && errors.contains("provider.key"), "{status}: {errors}");
    std::fs::set_permissions(state.path(), PermissionsExt::from_mode(0o777)).expect("changed");
    let (status, errors) = run(&[]);
    assert!(status == 12 && errors.contains("chmod 700"), "{status}: {errors}");
}

/// Each thread's line of /proc/PID/task/TID/status that begins so.
fn of_each_thread(pid: u32, begins: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let line = |thread: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(thread.expect("listed").path().join("status")).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix(begins)).expect("Linux says so");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut all: Vec<_> = threads.map(line).collect();
    all.dedup();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_confined_and_without_rights_and_lends_all_the_same() {
    let mut authd = Authd::start().await;
    let folder = tempfile::tempdir().expect("a directory");
    let state = folder.path().join("state");
    let root = nix::unistd::geteuid().is_root();
    let mut more = vec!["--sandbox", "auto"];
    if root {
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("changed");
        more.extend(["--user", "nobody"]);
    }
    let daemon = Daemon::start(&authd.address.to_string(), &state, &more);
    authd.session().await;
    daemon.line();
    let pid = daemon.child.id();
    assert_eq!(of_each_thread(pid, "NoNewPrivs:"), ["1"]);
    assert_eq!(of_each_thread(pid, "Seccomp:"), ["2"]);
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(of_each_thread(pid, set), ["0000000000000000"], "{set}");
    }
    if root {
        let nobody = nix::unistd::User::from_name("nobody").expect("readable").expect("there is one").uid;
        let all = format!("{nobody} {nobody} {nobody} {nobody}");
        assert_eq!(of_each_thread(pid, "Uid:"), [all]);
        let key = std::fs::metadata(state.join("provider.key")).expect("made");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&key), nobody.as_raw());
    }
    let provider = authd.heard.lock().expect("unpoisoned").offers[0].clone();
    assert_eq!(authd.order(carve(provider.boot, lease(1), "a", 10, 60_000)).await, Ok(Reply::Done));
    daemon.signal(Signal::SIGTERM);
    let (status, errors) = daemon.end();
    assert!(status == 0 && errors.contains("confined") && errors.contains("seccomp ("), "{status}: {errors}");
}

#[test]
fn attack_40_preloaded_code() {
    let state = tempfile::tempdir().expect("a directory");
    let preload = |name: &str, value: &str| {
        let mut started = command("127.0.0.1:1", &state.path().join("new"), &[]);
        started.env(name, value);
        Daemon::of(&mut started)
    };
    // No such file: the loader goes on without it, as it does after a library that it has loaded.
    for name in ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GCONV_PATH", "RDMAV_DRIVERS", "IBV_DRIVERS"] {
        let (status, errors) = preload(name, "/nonexistent/x.so").end();
        assert_eq!(status, 12, "{name}: {errors}");
        assert!(errors.contains(&format!("env -u {name}")), "it says the way out: {errors}");
        assert!(!state.path().join("new").exists(), "and made nothing before");
    }
    let (status, errors) = preload("LD_PRELOAD", "").end_with(Signal::SIGTERM);
    assert_eq!(status, 0, "an empty one loads nothing: {errors}");
    // The loader, told on its own command line.
    let loader = std::fs::read_to_string("/proc/self/maps").expect("readable");
    let loader = loader.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/ld-"));
    let program = env!("CARGO_BIN_EXE_overbank-provider");
    let mut by_hand = Command::new(loader.expect("a loader"));
    by_hand.args([program, "serve", "--authd", "127.0.0.1:1", "--pool", "4MiB", "--state"]).arg(state.path());
    let output = scene::daemon::clean(&mut by_hand).output().expect("runs");
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    println!("attack 40 -: seen refused before anything was made, with the way out");
}

#[test]
fn a_pool_that_cannot_be_had_is_refused() {
    let state = tempfile::tempdir().expect("a directory");
    let run = |more: &[&str]| Daemon::start("127.0.0.1:1", state.path(), more).end();
    // More hugepages of 1 GiB than any test machine has, and more bytes than there are addresses.
    let (status, errors) = run(&["--pages", "1G", "--pool", "512TiB"]);
    assert!(status == 6 && errors.contains("hugepages"), "{status}: {errors}");
    let (status, errors) = run(&["--pool", "16777215TiB"]);
    assert!(status == 6 && errors.contains("no pool of"), "{status}: {errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_hugepages_are_replaced_with_a_warning_that_names_the_command() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("Linux");
    let number = |field: &str| -> u64 {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
        value.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let (free, available) = (number("HugePages_Free:"), number("MemAvailable:") / 1024);
    // The pool is to be more than all hugepages, those that other tests give back included, and is touched.
    let pool = 2 * (free + 64);
    if pool > available / 2 {
        return eprintln!("SKIPPED: {free} hugepages are free, and a pool of more would not fit in {available} MiB");
    }
    let authd = Authd::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let pool = format!("{pool}MiB");
    let daemon = Daemon::start(&authd.address.to_string(), state.path(), &["--pages", "auto", "--pool", &pool]);
    assert!(daemon.line().contains("in transparent hugepages"));
    daemon.signal(Signal::SIGTERM);
    let (status, errors) = daemon.end();
    assert!(status == 0 && errors.contains("vm.nr_hugepages=") && errors.contains("transparent"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_with_its_key_where_the_auth_daemon_takes_no_new_one() {
    let mut authd = Authd::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let rotate = || {
        let state = state.path().to_owned();
        // The daemon's side of it goes on in this runtime.
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-provider"));
            clean(command.args(["rotate", "--state"]).arg(state)).output().expect("it runs")
        })
    };
    let nothing = rotate().await.expect("run");
    assert_eq!(nothing.status.code(), Some(12), "there is no key yet: {nothing:?}");
    let daemon = Daemon::start(&authd.address.to_string(), state.path(), &[]);
    authd.session().await;
    daemon.line();
    let key = || std::fs::read(state.path().join("provider.key")).expect("a key");
    let before = key();
    let refused = rotate().await.expect("run");
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert_eq!(key(), before);
    assert!(!state.path().join("provider.key.next").exists());
    // Not even its session was interrupted.
    let boot = authd.heard.lock().expect("unpoisoned").offers[0].boot;
    assert_eq!(authd.order(carve(boot, lease(1), "a", 10, 60_000)).await, Ok(Reply::Done));
    assert_eq!(authd.heard.lock().expect("unpoisoned").offers.len(), 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().0, 0);
}
