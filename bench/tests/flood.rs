//! A flood, for a moment only: that it comes, that nobody trusted is turned away, and that the auth daemon stays small.

use std::path::Path;
use std::process::Command;

#[test]
fn a_trusted_consumer_goes_on_under_a_flood() {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    let missing = ["overbank-authd", "overbank-provider", "overbank"]
        .into_iter()
        .find(|it| !program.with_file_name(it).is_file());
    if let Some(missing) = missing {
        println!("SKIPPED flood: {missing} is not built (cargo build --workspace)");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(program)
        .args(["flood", "--rounds", "1", "--seconds", "1", "--grants", "20", "--json", "--out"])
        .arg(dir.path())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["quiet", "flood_one_address", "flood_many_addresses"] {
        assert_eq!(report["results"][format!("grant_{name}")]["count"], 20, "{name}");
    }
    let settings = &report["settings"];
    assert!(settings["during_flood_one_address"]["flood"]["begun"].as_u64() > Some(500), "{settings}");
    assert!(settings["rejected"]["handshakes-of-address"].as_u64() > Some(100), "{settings}");
    assert!(settings["authd_rss_peak_bytes"].as_u64() < Some(64 << 20), "{settings}");
    assert!(report["ratios"]["grant_flood_one_address / quiet, p99"].as_f64() > Some(0.0), "{report}");
    assert!(dir.path().join("flood.json").is_file() && dir.path().join("flood.hlog").is_file());
}
