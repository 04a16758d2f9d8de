//! The package for Python (consumer/python): its own tests, which start daemons themselves.
//!
//! Needs the library and the other programs: run `cargo build --workspace` first. OVERBANK_TEST_DEVICE names the device, the
//! soft one by default.

#[allow(dead_code, reason = "of the tests of the consumer, which use all of it")]
#[path = "../../tests/e2e/process.rs"]
mod process;

use std::path::Path;
use std::process::Command;

/// A Python that has numpy: the one in the path, or the system's.
fn python() -> Option<&'static str> {
    let has_numpy = |python: &str| {
        let tried = Command::new(python).args(["-c", "import numpy, sys; assert sys.version_info >= (3, 9)"]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(|python| has_numpy(python))
}

fn unittest(modules: &[&str]) {
    let Some(python) = python() else {
        println!("SKIPPED python: there is none with numpy here (Debian: apt-get install python3-numpy)");
        return;
    };
    let programs = process::program("overbank");
    let mut command = Command::new(python);
    command
        .args(["-W", "error::ResourceWarning", "-m", "unittest", "--verbose"])
        .args(modules)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("OVERBANK_BIN", programs.parent().expect("its folder"))
        .env_remove("OVERBANK_LIBRARY");
    let outcome = process::Running::start(&mut command).end();
    println!("{}", outcome.stderr);
    assert_eq!(outcome.status, 0);
    let ran = outcome.stderr.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse::<u32>().ok());
    assert!(ran.is_some_and(|ran| ran > 3) && !outcome.stderr.contains("skipped"), "{ran:?} ran");
}

#[test]
fn leases_and_errors_in_python() {
    unittest(&["tests.test_lease"]);
}

#[test]
fn arrays_that_ranks_share_in_python() {
    unittest(&["tests.test_array"]);
}

#[test]
fn arrays_that_outgrow_the_machine_in_python() {
    unittest(&["tests.test_region"]);
}
