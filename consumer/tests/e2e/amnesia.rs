//! Daemons that are to leave nothing on any disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{Daemon, private};
use crate::stack::{User, address, device, noise, program_with, text};

/// All that this process writes by a relative name, or where programs are used to, lands in `place`.
fn at(mut command: Command, place: &Path) -> Daemon {
    private(place);
    for variable in ["HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "SQLITE_TMPDIR"] {
        command.env(variable, place);
    }
    Daemon::start(command.current_dir(place))
}

fn files(place: &Path) -> Vec<String> {
    fs::read_dir(place).expect("it").map(|entry| entry.expect("it").path().display().to_string()).collect()
}

/// Files on a disk that a process has open or mapped for writing; removed ones too.
fn open_files(pid: u32) -> Vec<String> {
    let entries =
        fs::read_dir(format!("/proc/{pid}/fd")).map(|entries| entries.flatten().collect()).unwrap_or_default();
    let names = |entry: fs::DirEntry| {
        let name = fs::read_link(entry.path()).ok()?.display().to_string();
        let on_disk = name.starts_with('/')
            && !["/dev/", "/proc/", "/sys/", "/anon_hugepage", "/memfd:"].iter().any(|at| name.starts_with(at));
        on_disk.then_some(name)
    };
    let entries: Vec<fs::DirEntry> = entries;
    entries.into_iter().filter_map(names).collect()
}

#[test]
fn amnesia_leaves_no_file() {
    let root = tempfile::tempdir().expect("a directory");
    let (here, there) = (root.path().join("authd"), root.path().join("provider"));
    let authd = at(program_with("overbank-authd", &["serve", "--amnesia", "--listen", "127.0.0.1:0"]), &here);
    let invitation = authd.line();
    let code = invitation.strip_prefix("operator invitation: ").expect("an invitation");
    let address = address(&authd);
    let operator = User::new(root.path(), "operator", &address);
    operator.run(&["join", code]).expect(0);
    let invite = |role: &[&str]| {
        let args: Vec<&str> = ["trust", "invite", "--json"].iter().chain(role).copied().collect();
        text(&operator.run(&args).expect(0).json(), "invitation").to_owned()
    };
    let (lender, borrower) = (invite(&["--role", "provider"]), invite(&["--role", "consumer", "--tenant", "blue"]));
    let device = device();
    let serve = [
        "serve",
        "--amnesia",
        "--authd",
        &address,
        "--invitation",
        &lender,
        "--pool",
        "16MiB",
        "--pages",
        "plain",
        "--device",
        &device,
    ];
    let provider = at(program_with("overbank-provider", &serve), &there);

    let ann = User::new(root.path(), "ann", &address);
    ann.run(&["join", &borrower]).expect(0);
    let lease = ann.lease("64KiB", "10m");
    let contents = noise(20_000, 5);
    ann.put(&lease, &contents).expect(0);
    assert_eq!(ann.get(&lease, contents.len()), contents);
    let mut open = [open_files(authd.pid()), open_files(provider.pid())].concat();
    // A lock that holds nothing: of a provider's place in a mesh of DPDK's.
    open.retain(|path| !path.ends_with(".lock") || !device.starts_with("dpdk:"));
    assert!(open.is_empty(), "{open:?}");
    ann.run(&["lease", "release", &lease]).expect(0);
    let kept = [files(&here), files(&there)].concat();
    assert!(kept.is_empty(), "while they run: {kept:?}");
    assert_eq!((provider.terminate(), authd.terminate()), (Some(0), Some(0)));
    let left = [files(&here), files(&there)].concat();
    assert!(left.is_empty(), "{left:?}");
}
