//! The floors, for a moment only: that they give a figure, not which.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What polls on both processors has them to itself.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_floor_gives_figures_and_its_raw_data() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_overbank-bench"))
        .args(["floor", "--rounds", "2", "--count", "200", "--warmup", "10", "--json", "--out"])
        .arg(dir.path())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["udp_read", "udp_write", "tcp_read", "tcp_write", "memcpy_hot", "memcpy_random"] {
        let figures = &report["results"][name];
        assert_eq!(figures["count"], 400, "{name}");
        assert!(figures["p50_ns"].as_u64().expect("a number") > 0, "{name}");
        assert!(figures["p50_ns"].as_u64() <= figures["p999_ns"].as_u64(), "{name}");
    }
    let machine = &report["machine"];
    assert_eq!((&machine["build"], &report["format"]), (&"debug".into(), &1.into()));
    assert!(machine["mitigations"].is_object() && machine["aes"].is_array() && machine["clock_source"].is_string());
    assert!(machine["load_before"].as_str().is_some_and(|load| load.parse::<f64>().is_ok()), "{machine}");
    assert!(machine["others_cpus"].as_f64().is_some_and(|others| others >= 0.0), "{machine}");
    assert!(!report["warnings"].as_array().expect("a list").is_empty(), "a debug build is warned of");

    let kept = std::fs::read(dir.path().join("floor.json")).expect("kept");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&kept).expect("JSON"), report);
    let log = std::fs::read(dir.path().join("floor.hlog")).expect("kept");
    let mut values = 0;
    let mut deserializer = hdrhistogram::serialization::Deserializer::new();
    for entry in hdrhistogram::serialization::interval_log::IntervalLogIterator::new(&log) {
        let hdrhistogram::serialization::interval_log::LogEntry::Interval(entry) = entry.expect("a log") else {
            continue;
        };
        let bytes = base64(entry.encoded_histogram());
        let histogram: hdrhistogram::Histogram<u64> = deserializer.deserialize(&mut &bytes[..]).expect("a histogram");
        values += histogram.len();
    }
    assert_eq!(values, 6 * 400);
}

#[test]
fn a_machine_with_other_work_is_called_busy() {
    let _alone = alone();
    let over = AtomicBool::new(false);
    let processors = std::thread::available_parallelism().expect("a number").get();
    let output = std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let arguments = ["floor", "--rounds", "1", "--count", "10000", "--warmup", "0", "--json"];
        let output = Command::new(env!("CARGO_BIN_EXE_overbank-bench")).args(arguments).output();
        over.store(true, Ordering::Relaxed);
        output.expect("the program runs")
    });
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["warnings"].to_string().contains("THE MACHINE WAS BUSY"), "{}", report["machine"]);
}

/// RFC 4648, for what the log holds.
fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'=').map(value).collect();
    let bits = digits.iter().flat_map(|digit| (0..6).rev().map(move |bit| digit >> bit & 1)).collect::<Vec<_>>();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit)).collect()
}
