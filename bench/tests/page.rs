//! Memory kept in a lease under measurement, for a moment: that every figure is there, not which.

use std::path::Path;
use std::process::Command;

#[test]
fn a_touched_page_stands_beside_what_it_is_made_of() {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    for other in ["overbank", "overbank-authd", "overbank-provider"] {
        if !program.with_file_name(other).exists() {
            println!("SKIPPED page: {other} is not built (cargo build --workspace)");
            return;
        }
    }
    for faults in ["signal", "thread"] {
        let output = Command::new(program)
            .args(["page", "--self-contained", "--device", "soft", "--json", "--faults", faults, "--bytes", "8MiB"])
            .args(["--rounds", "1", "--count", "20", "--warmup", "2"])
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for name in [
            "sealed_read",
            "empty_fault",
            "missing_fault",
            "scan_on_demand",
            "scan_ahead",
            "strided_ahead",
            "write_ahead",
        ] {
            assert_eq!(report["results"][name]["count"], 20, "{name}");
        }
        for ratio in [
            "missing_fault / (sealed_read + 1.5 empty_fault)",
            "scan_on_demand / scan_ahead",
            "scan_on_demand / strided_ahead",
        ] {
            assert!(report["ratios"][ratio].as_f64().expect("a ratio") > 0.0, "{ratio}");
        }
        // Most pages that are touched at random are away, and each comes alone.
        let stats = &report["settings"]["missing_fault_stats"];
        assert!(stats["fetched"].as_u64().expect("a count") >= 10 && stats["ahead"] == 0, "{stats}");
        let stats = &report["settings"]["scan_ahead_stats"];
        assert!(stats["ahead"].as_u64().expect("a count") > 0, "{stats}");
    }
}
