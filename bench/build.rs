//! Tells the program which commit it is built from: a figure is worth little without.

use std::path::Path;
use std::process::Command;

/// What the program is made of.
const SOURCES: [&str; 5] = [".", "../verbs", "../consumer", "../fabric", "../Cargo.lock"];

fn main() {
    for path in SOURCES.into_iter().chain(["../.git/logs/HEAD"]).filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let mut status = vec!["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"];
    status.extend(SOURCES);
    let changed = git(&status).is_some_and(|changes| !changes.is_empty());
    println!("cargo::rustc-env=OVERBANK_COMMIT={commit}{}", if changed { " with changes" } else { "" });
}

/// What git answers; None outside of a repository, or without git.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
