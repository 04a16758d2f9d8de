//! Programs of two ranks, with Open MPI: each with large memory of its own, and both at one lease.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{Outcome, Running, program};
use crate::programs::{Place, fetched, is_there};
use crate::stack::{User, device, run, text};

/// A program of two ranks, built; None where there is no MPI, which is said.
pub(crate) fn built(test: &str, name: &str, into: &Path, more: &[&str]) -> Option<PathBuf> {
    if !["mpirun", "mpicc"].iter().all(|name| is_there(test, name)) {
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/jobs/{name}.c"));
    let out = into.join(name);
    let mut command = Command::new("mpicc");
    command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&out).arg(source).args(more);
    run(&mut command).expect(0);
    Some(out)
}

/// Two ranks of a shell's command, with these parameters of Open MPI's.
fn ranks(user: &User, parameters: &[&str], script: &str) -> Outcome {
    let mut command = Command::new("mpirun");
    // Fewer processors than ranks, and perhaps root's: neither matters here.
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", "2"]).args(parameters).args(["sh", "-c", script]);
    for (variable, value) in user.command(&[]).get_envs() {
        if let Some(value) = value {
            command.env(variable, value);
        }
    }
    Running::start(command.stdin(Stdio::null())).end()
}

#[test]
fn ranks_exchange_memory_that_is_elsewhere() {
    let place = Place::new();
    let home = place.user.home.clone();
    let Some(program_of_two) = built("mpi::ranks_exchange_memory_that_is_elsewhere", "ranks", &home, &[]) else {
        return;
    };
    let program_of_two = program_of_two.display();
    program("liboverbank_preload.so");
    let overbank = program("overbank");
    let without = ranks(&place.user, &[], &format!("exec {program_of_two}")).expect(0);
    assert_eq!(without.stdout.len(), 34, "two digests: {}", text_of(&without));
    // Between ranks of one machine: by copies straight from one's memory to the other's; by shared memory; by sockets.
    let copies: &[&str] = &[];
    // Open MPI's windows over the last two take another component than the one that it chooses.
    let shared: &[&str] = &["--mca", "btl_vader_single_copy_mechanism", "none", "--mca", "osc", "pt2pt"];
    let sockets: &[&str] = &["--mca", "btl", "tcp,self", "--mca", "osc", "pt2pt"];
    for parameters in [copies, copies, copies, shared, sockets] {
        let script = format!(
            "exec {} run --device {} --local 8MiB --remote 64MiB --summary {}/$OMPI_COMM_WORLD_RANK -- {program_of_two}",
            overbank.display(),
            device(),
            home.display()
        );
        let with = ranks(&place.user, parameters, &script).expect(0);
        assert_eq!(text_of(&with), text_of(&without), "{parameters:?}");
        let summaries = ["0", "1"].map(|rank| {
            let bytes = std::fs::read(home.join(rank)).expect("written");
            serde_json::from_slice::<serde_json::Value>(&bytes).expect("JSON")
        });
        assert_ne!(text(&summaries[0], "lease"), text(&summaries[1], "lease"), "a lease each");
        for summary in &summaries {
            assert!(fetched(summary) > 5000, "{summary}");
        }
    }
}

#[test]
fn ranks_fill_their_rows_of_one_lease_by_a_share() {
    let place = Place::new();
    let (ann, ben) = (&place.user, place.stack.consumer("ben", "blue"));
    let prefix = ann.home.join("c").display().to_string();
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-c");
    run(Command::new(install).args(["--prefix", &prefix, "--library"]).arg(program("liboverbank.so"))).expect(0);
    let place_of_library = format!("-Wl,-rpath,{prefix}/lib");
    let more = [&format!("-I{prefix}/include"), &format!("-L{prefix}/lib"), "-loverbank", &place_of_library];
    let Some(rows) = built("mpi::ranks_fill_their_rows_of_one_lease_by_a_share", "rows", &ann.home, &more) else {
        return;
    };
    let lease = ann.lease("8MiB", "10m");
    let to = ben.run(&["id", "--json"]).expect(0).json();
    let share = ben.home.join("share").display().to_string();
    let to = text(&to, "fingerprint");
    ann.run(&["lease", "share", &lease, "--to", to, "--range", "4MiB..8MiB", "--out", &share]).expect(0);
    ben.run(&["lease", "open", &share]).expect(0);
    let script = format!(
        "[ $OMPI_COMM_WORLD_RANK = 0 ] || export OVERBANK_HOME={} XDG_RUNTIME_DIR={}; exec {} {lease} {}",
        ben.home.display(),
        ben.runtime.display(),
        rows.display(),
        device()
    );
    let outcome = ranks(ann, &[], &script).expect(0);
    assert!(text_of(&outcome).ends_with(" as written\n"), "{} {}", text_of(&outcome), outcome.stderr);
    // What the holder finds there is also what a command finds.
    assert_eq!(ann.run(&["get", &lease, "-"]).expect(0).stdout.len(), 8 << 20);
}

fn text_of(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}
