//! Revocations under load, by real processes, here on the soft device and on the one that OVERBANK_TEST_DEVICE names.

use std::path::Path;
use std::process::Command;

const SECOND: u64 = 1_000_000_000;

/// What the command reports; None where the programs that it starts are not built.
fn revoke(arguments: &[&str]) -> Option<serde_json::Value> {
    let program = Path::new(env!("CARGO_BIN_EXE_overbank-bench"));
    for other in ["overbank", "overbank-authd", "overbank-provider"] {
        if !program.with_file_name(other).exists() {
            println!("SKIPPED revoke: {other} is not built (cargo build --workspace)");
            return None;
        }
    }
    let output = Command::new(program).arg("revoke").args(arguments).arg("--json").output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// 16 queue pairs with 32 WRITEs each, 512 requests at the auth daemon, and of the soft device's packets one in a hundred lost.
#[test]
fn attack_35_a_revocation_under_load_fences_in_a_second() {
    let device = std::env::var("OVERBANK_TEST_DEVICE").unwrap_or_else(|_| "soft".to_owned());
    let loss = if device == "soft" { "1" } else { "0" };
    let arguments = ["--rounds", "8", "--wipes", "0", "--size", "4MiB", "--wipe-size", "4MiB"];
    let arguments = [&arguments[..], &["--device", &device, "--loss", loss]].concat();
    // A machine that does other work besides may hold one of eight up; not in each of three runs.
    for run in 1..=3 {
        let Some(report) = revoke(&arguments) else { return };
        let settings = |name: &str| report["settings"][name].as_u64().expect("a number");
        assert_eq!(settings("pending_at_the_order_least"), 512);
        assert_eq!(settings("writes_outstanding_at_the_order_least"), 512);
        let fence = &report["results"]["order_to_fence"];
        assert_eq!(fence["count"], 8);
        let longest = fence["max_ns"].as_u64().expect("a number");
        println!("{device}: {} ms at most", longest / 1_000_000);
        // What the writer hears later than the fence was on its way back.
        let late = settings("write_known_after_the_fence_most_us");
        if longest < SECOND && late < 1_000_000 {
            break;
        }
        assert!(run < 3, "fenced only {longest} ns after the order, a WRITE acknowledged {late} µs after the fence");
    }
    let shown = if device == "soft" { "soft" } else { "rxe" };
    println!(
        "attack 35 {shown}: seen a lease of 4 MiB, attached once: fenced within 1 s of the order, 512 writes and 512 requests under way"
    );
}

#[test]
fn the_rate_of_a_wipe_stands_beside_memset() {
    let arguments =
        ["--device", "soft", "--rounds", "1", "--pending", "0", "--lanes", "1", "--depth", "2", "--size", "1MiB"];
    let Some(report) = revoke(&[&arguments[..], &["--wipes", "3", "--wipe-size", "8MiB"]].concat()) else { return };
    for rate in ["wipe_gb_per_s", "memset_gb_per_s", "check_gb_per_s"] {
        assert!(report["settings"][rate].as_f64().is_some_and(|rate| rate > 0.0), "{rate}");
    }
    assert!(report["ratios"]["wipe / memset"].as_f64().is_some_and(|ratio| ratio > 0.0));
}
