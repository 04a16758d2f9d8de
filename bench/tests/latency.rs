//! The whole of Overbank under measurement, for a moment: that every figure is there, not which.

use std::path::Path;
use std::process::Command;

#[test]
fn one_command_gives_the_sealed_figures_and_their_floors() {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    for other in ["overbank", "overbank-authd", "overbank-provider"] {
        if !program.with_file_name(other).exists() {
            println!("SKIPPED latency: {other} is not built (cargo build --workspace)");
            return;
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(program)
        .args(["latency", "--self-contained", "--with-floor", "--device", "soft", "--json"])
        .args(["--rounds", "2", "--count", "100", "--warmup", "10", "--out"])
        .arg(dir.path())
        // Of no use to what starts its own.
        .env("OVERBANK_AUTHD", "192.0.2.1:1")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["sealed_read", "sealed_write", "unsealed_read", "unsealed_write", "raw_read", "udp_read", "udp_write"]
    {
        assert_eq!(report["results"][name]["count"], 200, "{name}");
    }
    assert_eq!(report["settings"]["wire_bytes"], 4128);
    assert_eq!((&report["settings"]["device"], &report["settings"]["device_mtu"]), (&"soft".into(), &8192.into()));
    assert!(report["ratios"]["sealed_read / udp_read"].as_f64().expect("a ratio") > 0.0);
    assert!(dir.path().join("latency.hlog").exists() && dir.path().join("latency.json").exists());
}
