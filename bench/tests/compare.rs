//! Other programs' and libraries' ends beside ours, for a moment: that they take their turns, that lost ends are seen and
//! none is left behind, and that what is missing is named.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

fn compare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-bench"));
    command.args(["compare", "--device", "soft"]).args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What polls on both processors has them to itself.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHORT: [&str; 6] = ["--rounds", "1", "--count", "50", "--warmup", "10"];

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Why there can be no sealed operations.
fn no_daemons() -> Option<&'static str> {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    let all = ["overbank", "overbank-authd", "overbank-provider"];
    (!all.iter().all(|other| program.with_file_name(other).exists()))
        .then_some("the daemons are not built (cargo build --workspace)")
}

/// Why Redis cannot be compared with here.
fn no_redis() -> Option<&'static str> {
    let runs = |program: &str, argument: &str| Command::new(program).arg(argument).output().is_ok();
    if !runs("redis-server", "--version") {
        return Some("redis-server is not installed");
    }
    (!runs("openssl", "version")).then_some("openssl is not installed")
}

/// What `results` is read by: every field of every row, of its type, and null where nothing was measured.
fn rows(report: &serde_json::Value) -> &[serde_json::Value] {
    const SYSTEMS: [&str; 9] = [
        "overbank-sealed",
        "overbank-raw",
        "overbank-raw-stride",
        "ucx-tcp",
        "libfabric-tcp",
        "libfabric-tcp-rxm",
        "redis-tcp",
        "redis-tls",
        "perftest",
    ];
    let rows = report["results"].as_array().expect("a list");
    for row in rows {
        let one_of = |field: &str, names: &[&str]| row[field].as_str().is_some_and(|name| names.contains(&name));
        assert!(one_of("system", &SYSTEMS) && one_of("op", &["read", "write", "ping_pong"]), "{row}");
        assert!(row["size"].as_u64() > Some(0) && row["depth"].as_u64() > Some(0), "{row}");
        let [p50, p99, p999, gib] = ["p50_us", "p99_us", "p999_us", "gib_per_s"].map(|field| {
            let value = row.get(field).unwrap_or_else(|| panic!("no {field} in {row}"));
            assert!(value.is_null() || value.as_f64().is_some_and(|number| number >= 0.0), "{field} in {row}");
            value.as_f64()
        });
        assert!(p50 <= p99 && p99 <= p999 && p50.is_some() != gib.is_some(), "{row}");
        // Who waits, waits for all of it: half of a ping-pong is what its subject says.
        let subject = &report["subjects"][row["subject"].as_str().expect("a subject")];
        let halves = if row["op"] == "ping_pong" { 2.0 } else { 1.0 };
        assert_eq!(p50, subject["p50_ns"].as_f64().map(|half| half * halves / 1000.0), "{row}");
        assert_eq!(gib, subject["gib_per_second"].as_f64(), "{row}");
    }
    rows
}

#[test]
fn libraries_over_tcp_take_their_turns() {
    let _alone = alone();
    let mut arguments = vec!["--ours", "raw", "--peers", "ucx-tcp,libfabric-tcp,libfabric-tcp-rxm"];
    arguments.extend(["--size", "1,20000", "--depth", "16", "--json"]);
    arguments.extend(["--seconds", "0.05", "--warmup-seconds", "0.01"]);
    arguments.extend(SHORT);
    let output = compare(&arguments).output().expect("the program runs");
    if said(&output).contains("nothing to compare with") {
        println!("SKIPPED compare with libraries: {}", said(&output).trim());
        return;
    }
    let report = report(&output);
    let missing = report["settings"]["missing"].to_string();
    for system in ["ucx-tcp", "libfabric-tcp-rxm", "libfabric-tcp"] {
        let library = system.replace('-', "_");
        if missing.contains(&format!("{system}: ")) {
            println!("SKIPPED compare with {system}: {missing}");
            continue;
        }
        assert!(!report["settings"][&library].as_str().expect("a version").is_empty());
        for operation in ["read_1", "read_20000", "write_1", "write_20000"] {
            assert_eq!(report["subjects"][format!("{library}_{operation}")]["count"], 50, "{library} {operation}");
            for suffix in ["", "_x16"] {
                let ratio = format!("overbank_raw_{operation}{suffix} / {library}_{operation}{suffix}");
                assert!(report["ratios"][&ratio].as_f64().expect("a ratio") > 0.0, "{ratio}");
            }
            let rate = &report["subjects"][format!("{library}_{operation}_x16")];
            assert_eq!(rate["rounds"].as_array().expect("rounds").len(), 1, "{library} {operation}");
        }
        let commands = report["settings"]["peer_commands"].to_string();
        assert!(commands.contains(&format!("{system} ")), "{commands}");
    }
    assert!(report["subjects"].get("overbank_raw_ping_pong_1").is_none(), "nobody else has a ping-pong");
    assert!(rows(&report).iter().all(|row| row["system"] != "overbank-sealed"), "nobody asked for it");
}

/// Every system, operation, size and depth has its row; every operation and size has its drawing.
#[test]
fn sealed_plain_and_redis_stand_in_one_list() {
    if let Some(reason) = no_daemons().or(no_redis()) {
        println!("SKIPPED compare with redis: {reason}");
        return;
    }
    let _alone = alone();
    let mut arguments = vec!["--peers", "redis-tcp,redis-tls", "--size", "64,5000", "--depth", "4", "--json"];
    arguments.extend(["--seconds", "0.05", "--warmup-seconds", "0.01"]);
    arguments.extend(SHORT);
    let dir = tempfile::tempdir().expect("a directory");
    let out = compare(&arguments).arg("--out").arg(dir.path()).output().expect("the program runs");
    let report = report(&out);
    let rows = rows(&report);
    let mut seen = 0;
    for (system, depths) in [
        ("overbank-sealed", &[1, 4][..]),
        ("overbank-raw", &[1, 4]),
        ("overbank-raw-stride", &[1]),
        ("redis-tcp", &[1, 4]),
        ("redis-tls", &[1, 4]),
    ] {
        for op in ["read", "write"] {
            for (size, single, many) in [(64, 4128, 4128 / 4), (5000, 2 * 4128, 5 * 4128 / 4)] {
                for &depth in depths {
                    let is = |row: &&serde_json::Value| {
                        row["system"] == system && row["op"] == op && row["size"] == size && row["depth"] == depth
                    };
                    let found: Vec<_> = rows.iter().filter(is).collect();
                    let [row] = found[..] else { panic!("{system} {op} {size} {depth}: {found:?}") };
                    seen += 1;
                    let sealed = ["overbank-sealed", "overbank-raw-stride"].contains(&system);
                    let moved = if depth == 1 || op == "read" { single } else { many };
                    assert_eq!(row["moved_bytes"], if sealed { moved } else { size }, "{row}");
                    for (field, at) in [("p50_us", 1), ("p99_us", 1), ("p999_us", 1), ("gib_per_s", 4), ("per_s", 4)] {
                        assert_eq!(row[field].as_f64().is_some(), depth == at, "{field} in {row}");
                    }
                    let rounds = if depth == 1 { "p50_us_by_round" } else { "per_s_by_round" };
                    assert_eq!(row[rounds].as_array().expect("rounds").len(), 1, "{row}");
                    let subject = &report["subjects"][row["subject"].as_str().expect("a subject")];
                    assert!(subject["p50_ns"].is_u64() || subject["per_second"].is_u64(), "{row}");
                    let command = row["command"].as_str().expect("a command");
                    let wanted = if system.starts_with("redis") {
                        "redis-server /"
                    } else {
                        "overbank-bench compare --device soft"
                    };
                    assert!(command.starts_with(wanted), "{command}");
                    assert_eq!(command.contains("--tls-port"), system == "redis-tls", "{command}");
                    assert!(!row["not_alike"].as_str().expect("a statement").is_empty(), "{row}");
                }
            }
        }
    }
    assert_eq!(rows.iter().filter(|row| row["op"] != "ping_pong").count(), seen, "nothing else");
    for ratio in [
        "overbank_sealed_read_64 / redis_tcp_read_64",
        "overbank_sealed_write_5000_x4 / redis_tls_write_5000_x4",
        "overbank_sealed_read_64 / overbank_raw_read_4128",
        "overbank_raw_read_64 / redis_tls_read_64",
    ] {
        assert!(report["ratios"][ratio].as_f64().is_some_and(|ratio| ratio > 0.0), "{ratio} in {}", report["ratios"]);
    }
    let drawn = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("drawn");
    for (op, other) in [("read", "write"), ("write", "read")] {
        for size in [64, 5000] {
            let svg = drawn(&format!("compare-percentiles-{op}_{size}.svg"));
            let names = ["overbank_sealed", "overbank_raw", "redis_tcp", "redis_tls"];
            assert!(names.iter().all(|name| svg.contains(&format!("{name}_{op}_{size}\n"))), "{op} {size}: {svg}");
            assert!(!svg.contains(&format!("_{other}_")) && !svg.contains("_x4"), "{op} {size}: {svg}");
        }
    }
    assert!(drawn("compare-rates.svg").contains("overbank_sealed_read_x4"));
    assert!(!dir.path().join("compare-percentiles.svg").exists(), "too many lines for one");
    assert!(report["settings"]["redis_tls"].as_str().expect("a version").contains("Redis"));
    assert!(report["settings"]["missing"].is_null(), "{}", report["settings"]["missing"]);
}

#[test]
fn redis_ends_with_its_comparison_and_ends_it_where_it_stops() {
    if let Some(reason) = no_redis() {
        println!("SKIPPED end of redis: {reason}");
        return;
    }
    let _alone = alone();
    let arguments = ["--ours", "raw", "--peers", "redis-tcp", "--size", "64", "--op", "read", "--count", "100000"];
    let start = || {
        let mut bench = compare(&arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
        let server = wait_for(Duration::from_secs(60), || {
            assert!(bench.try_wait().expect("a child").is_none(), "it ended too early");
            child_of(bench.id(), |words| words[0].contains("redis-server 127.0.0.1:"))
        });
        (bench, server)
    };
    let (mut bench, server) = start();
    bench.kill().expect("killed");
    bench.wait().expect("gone");
    let gone = || (!Path::new("/proc").join(&server).exists() || is_zombie(&server)).then_some(());
    wait_for(Duration::from_secs(10), gone);

    let (mut bench, server) = start();
    assert!(Command::new("kill").args(["-STOP", &server]).status().expect("kill runs").success());
    // It waits for the answer, then for the server's end.
    let status = wait_for(Duration::from_secs(60), || bench.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(1));
    assert!(!Path::new("/proc").join(&server).exists(), "it is left behind");
}

#[test]
fn an_answering_library_that_stops_ends_the_comparison() {
    let _alone = alone();
    for (peer, header) in [("ucx-tcp", "ucp/api/ucp.h"), ("libfabric-tcp", "rdma/fabric.h")] {
        let look = Command::new("cc").args(["-E", "-include", header, "-x", "c", "/dev/null"]).output();
        if !look.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED stopped end of {peer}: there is no {header}");
            continue;
        }
        let arguments = ["--ours", "raw", "--peers", peer, "--size", "64", "--op", "read", "--rounds", "1"];
        let mut bench = compare(&arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
        let server = wait_for(Duration::from_secs(60), || server_of(bench.id()));
        // Worse than dead: its connection stays.
        assert!(Command::new("kill").args(["-STOP", &server]).status().expect("kill runs").success());
        let status = wait_for(Duration::from_secs(60), || bench.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(1), "{peer}");
        return;
    }
}

/// The process beneath this one that answers for a library.
fn server_of(parent: u32) -> Option<String> {
    child_of(parent, |words| words.get(3).is_some_and(|word| word == "server"))
}

/// The process beneath this one with such a command line.
fn child_of(parent: u32, is: impl Fn(&[String]) -> bool) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let wanted = |pid: &&str| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is(&words.split('\0').map(str::to_owned).collect::<Vec<_>>())
    };
    children.split_whitespace().find(wanted).map(str::to_owned)
}

/// Dead, and nobody took note: where no process takes over orphans.
fn is_zombie(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

fn wait_for<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "nothing within {time:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_missing_is_named() {
    let bare = |arguments: &[&str]| {
        let mut command = compare(arguments);
        command.env("CC", "/no/such/compiler").env("PATH", "/no/such/directory").output().expect("runs")
    };
    // Asked for by name.
    let peers = "ucx-tcp,libfabric-tcp,libfabric-tcp-rxm,redis-tcp,redis-tls,perftest";
    let output = bare(&["--peers", peers]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for name in peers.split(',').chain(["/no/such/compiler", "no redis-server", "needs a real RDMA device"]) {
        assert!(said(&output).contains(name), "{}", said(&output));
    }
    // All there are: none, but ours are two.
    let output = bare(&["--ours", "raw", "--op", "read"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("nothing to compare with"), "{}", said(&output));
    if let Some(reason) = no_daemons() {
        println!("SKIPPED compare with what is missing: {reason}");
        return;
    }
    let mut arguments = vec!["--size", "64", "--op", "read,ping-pong", "--json"];
    arguments.extend(SHORT);
    let _alone = alone();
    let report = report(&bare(&arguments));
    let systems: Vec<_> = rows(&report).iter().map(|row| row["system"].as_str()).collect();
    assert_eq!(
        systems,
        ["overbank-raw", "overbank-raw-stride", "overbank-sealed"].map(Some),
        "a ping-pong has only one"
    );
    let (missing, warnings) = (report["settings"]["missing"].to_string(), report["warnings"].to_string());
    for name in ["ucx-tcp: ", "libfabric-tcp: ", "libfabric-tcp-rxm: ", "redis-tcp: ", "redis-tls: "] {
        assert!(
            missing.contains(name) && warnings.contains(&format!("not compared with {name}")),
            "{missing} {warnings}"
        );
    }
    assert!(!missing.contains("perftest"), "it does not fit the device: {missing}");
}

#[test]
fn what_of_several_is_missing_is_named_in_the_result() {
    if let Some(reason) = no_redis() {
        println!("SKIPPED compare without openssl: {reason}");
        return;
    }
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let path = std::env::var_os("PATH").expect("a path");
    let server = std::env::split_paths(&path).map(|dir| dir.join("redis-server")).find(|path| path.exists());
    std::os::unix::fs::symlink(server.expect("it ran"), dir.path().join("redis-server")).expect("a link");
    let mut arguments =
        vec!["--ours", "raw", "--peers", "redis-tls,redis-tcp", "--size", "64", "--op", "read", "--json"];
    arguments.extend(SHORT);
    let report = report(&compare(&arguments).env("PATH", dir.path()).output().expect("runs"));
    let missing = report["settings"]["missing"].to_string();
    assert!(missing.contains("redis-tls: there is no openssl") && !missing.contains("redis-tcp"), "{missing}");
    assert_eq!(report["settings"]["peers"], serde_json::json!(["redis-tcp"]));
    assert!(report["ratios"]["overbank_raw_read_64 / redis_tcp_read_64"].is_f64(), "{}", report["ratios"]);
}

#[test]
fn a_compiler_that_fails_is_no_missing_library() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let compiler = dir.path().join("cc");
    std::fs::write(&compiler, "#!/bin/sh\n[ \"$1\" = -E ] || { echo broken >&2; exit 1; }\n").expect("written");
    std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o755)).expect("may be started");
    let output = compare(&["--peers", "ucx-tcp"]).env("CC", &compiler).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("did not compile ucx.c: broken"), "{}", said(&output));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    for (arguments, message) in [
        (&["--peers", "ucx-tcp", "--size", "0"][..], "--size is 1 to"),
        (&["--peers", "ucx-tcp", "--depth", "0"], "--depth is 1 to"),
        (&["--peers", "ucx-tcp", "--depth", "1", "--seconds", "0"], "--seconds 0.001 to"),
        (&["--peers", "ucx-tcp", "--depth", "4097"], "--depth is 1 to"),
        (&["--peers", "ucx-tcp", "--rate", "1000"], "--rate is not for compare"),
        (&["--peers", "ucx"], "invalid value 'ucx'"),
        (&["--peers", "overbank-raw"], "invalid value 'overbank-raw'"),
    ] {
        let output = compare(arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(message), "{arguments:?}: {}", said(&output));
    }
}
