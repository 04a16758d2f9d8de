//! A look into a process that holds what it should not, or what it should.

use std::process::{Command, Output};

use overbank_verbs::{Backing, Memory};

/// Larger than anything else that this process maps, and within the usual limit of locked memory.
const MAPPING: usize = 6 << 20;

/// Looks into this very test process; None where the machine does not let a child look into its parent.
fn look(arguments: &[&str]) -> Option<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_overbank-bench"))
        .args(["inspect", "--pid", &std::process::id().to_string()])
        .args(arguments)
        .output()
        .expect("the program runs");
    if output.status.code() == Some(77) {
        println!("SKIPPED inspect: no ptrace rights: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(output)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_lies_in_memory_is_found_at_any_offset_and_what_does_not_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    // A file whose bytes this process holds nowhere but in `memory`: made by a generator, written, forgotten.
    let piece = |index: u64| (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    let file: Vec<u8> = (0..2000).flat_map(piece).collect();
    std::fs::write(&path, &file).expect("written");
    let secret: Vec<u8> = file[160..176].iter().map(|byte| !byte).collect();
    drop(file);
    let path = path.to_str().expect("a plain path");

    let memory = Memory::map(MAPPING, Backing::Ordinary).expect("a few MiB");
    let put = |at: usize, bytes: &[u8]| memory.copy_in(at, bytes).expect("inside");
    let Some(output) = look(&["--at-least", "6MiB", "--zero"]) else { return };
    assert!(output.status.success(), "{}", said(&output));

    // Anything at all, in the last byte.
    put(MAPPING - 1, &[1]);
    let output = look(&["--at-least", "6MiB", "--zero"]).expect("as before");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let output = look(&["--at-least", "6MiB", "--lacks", path, "--holds", "1"]).expect("as before");
    assert!(output.status.success(), "{}", said(&output));
    let output = look(&["--at-least", "6MiB", "--lacks", path, "--holds", "2"]).expect("as before");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));

    // One piece of the file, at odd offsets, also across what is read at once.
    for at in [1, 4093, (1 << 20) - 7, (3 << 20) - 15, MAPPING - 17] {
        let bytes: Vec<u8> = secret.iter().map(|hidden| !hidden).collect();
        put(at, &bytes);
        let output = look(&["--at-least", "6MiB", "--lacks", path]).expect("as before");
        assert_eq!(output.status.code(), Some(1), "at {at}: {}", said(&output));
        put(at, &[0; 16]);
        let output = look(&["--at-least", "6MiB", "--lacks", path]).expect("as before");
        assert!(output.status.success(), "at {at}: {}", said(&output));
    }
}

#[test]
fn a_wrong_command_line_or_process_is_named() {
    for (arguments, status) in [
        (vec!["inspect"], 2),
        (vec!["inspect", "--pid", "1"], 2),
        (vec!["inspect", "--pid", "4194305", "--zero"], 1),
        (vec!["floor", "--size", "1"], 2),
        (vec!["floor", "--size", "70000"], 2),
        (vec!["floor", "--rounds", "0"], 2),
        (vec!["floor", "--cpus", "0"], 2),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_overbank-bench")).args(&arguments).output().expect("the program runs");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", said(&output));
        assert!(!said(&output).contains("panicked"), "{}", said(&output));
    }
    let output = look(&["--at-least", "99TiB", "--zero"]);
    assert!(output.is_none_or(|output| output.status.code() == Some(2)));
}
