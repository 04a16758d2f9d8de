//! `overbank devices`: what it says of this machine, whatever it has.

use std::process::{Command, Output};

use serde_json::Value;

fn overbank(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank"));
    command.args(arguments).envs(environment.iter().copied()).env_remove("HOME").env_remove("XDG_CONFIG_HOME");
    command.output().expect("the command runs")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_device_is_there_and_the_soft_one_can_be_used() {
    let found = json(&overbank(&["devices", "--json"], &[]));
    let devices = found["devices"].as_array().expect("a list");
    let soft = devices.last().expect("at least one");
    assert_eq!((soft["name"].as_str(), soft["kind"].as_str()), (Some("soft"), Some("soft")));
    assert_eq!((soft["usable"].as_bool(), soft["mtu"].as_u64()), (Some(true), Some(8192)));
    assert_eq!(soft["address"], "127.0.0.1");
    for device in devices {
        // One that can be used has an address, and one that cannot has a reason.
        assert_ne!(device["address"].is_null(), device["reason"].is_null(), "{device}");
    }
    let taken = devices.iter().find(|device| device["name"] == found["auto"]["device"]).expect("one of them");
    assert_eq!(taken["usable"], true, "auto takes what cannot be used: {found}");
    // Text for people names the same.
    let text = String::from_utf8(overbank(&["devices"], &[]).stdout).expect("text");
    assert!(text.contains(&format!("--device auto takes {}", taken["name"].as_str().expect("a name"))), "{text}");
}

#[test]
fn a_device_is_tested_through_itself() {
    let seen = json(&overbank(&["devices", "--check", "soft", "--json"], &[]));
    assert_eq!(seen["device"], "soft");
    assert!(seen["write_us"].as_f64() > Some(0.0) && seen["read_us"].as_f64() > Some(0.0), "{seen}");
    let missing = overbank(&["devices", "--check", "mlx5_99"], &[]);
    assert!(!missing.status.success() && stderr(&missing).contains("mlx5_99"), "{missing:?}");
    let foreign = overbank(&["devices", "--check", "soft", "--address", "192.0.2.1"], &[]);
    assert!(
        stderr(&foreign).contains("192.0.2.1") && stderr(&foreign).contains("address of this machine"),
        "{foreign:?}"
    );
}

#[test]
fn an_address_of_another_machine_is_no_use_to_the_soft_device() {
    let found = json(&overbank(&["devices", "--json", "--address", "192.0.2.1"], &[]));
    let soft = found["devices"].as_array().and_then(|devices| devices.last()).expect("the soft device");
    assert!(soft["reason"].as_str().expect("a reason").contains("192.0.2.1"), "{soft}");
}

/// The loader lists what a program cannot start without.
#[test]
fn the_program_starts_without_libibverbs() {
    let listed = overbank(&[], &[("LD_TRACE_LOADED_OBJECTS", "1")]);
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert!(listed.contains("libc.so"), "the loader's list is no list: {listed}");
    assert!(!listed.contains("ibverbs") && !listed.contains("rdmacm"), "{listed}");
}

/// A file that is no library stands in the place of the library.
#[test]
fn a_library_that_cannot_be_loaded_is_named_with_what_mends_it() {
    if cfg!(not(feature = "ibv")) {
        return;
    }
    let folder = tempfile::tempdir().expect("a directory");
    std::fs::write(folder.path().join("libibverbs.so.1"), "no library").expect("a file");
    let path = [("LD_LIBRARY_PATH", folder.path().to_str().expect("a path"))];
    let found = json(&overbank(&["devices", "--json"], &path));
    let reason = found["none_real"].as_str().expect("a reason");
    assert!(reason.contains("libibverbs cannot be loaded") && reason.contains("apt-get install"), "{reason}");
    assert_eq!(found["auto"]["device"], "soft");
    assert!(found["auto"]["why"].as_str().expect("why").contains("libibverbs"), "{found}");
    let asked = overbank(&["devices", "--check", "mlx5_0"], &path);
    assert!(!asked.status.success() && stderr(&asked).contains("libibverbs cannot be loaded"), "{asked:?}");
}
