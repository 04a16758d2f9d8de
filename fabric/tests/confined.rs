//! A confined process cannot do what its daemon never does: read /etc/shadow, execute, trace, or talk to whom it likes.

use std::fs::{self, File};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::getppid;
use overbank_fabric::daemon::sandbox::{Mode, Needs, confine};
use overbank_fabric::daemon::user::give_up_rights;

/// Set where this program is that process: the directory that is its own.
const CONFINED: &str = "OVERBANK_TEST_CONFINED";

/// What can be done, by name.
fn attempts(own: &Path, port: u16) -> Vec<(&'static str, bool)> {
    let parent = getppid();
    let mut byte = [0; 1];
    let there = RemoteIoVec { base: byte.as_ptr() as usize, len: 1 };
    let outside = own.with_extension("outside");
    let wrote = File::create(&outside).is_ok();
    let _ = fs::remove_file(&outside);
    vec![
        ("read /etc/shadow", fs::read("/etc/shadow").is_ok()),
        ("read /etc/passwd", fs::read("/etc/passwd").is_ok()),
        ("write elsewhere", wrote),
        ("execute", Command::new("/bin/true").status().is_ok_and(|status| status.success())),
        ("trace", ptrace::attach(parent).is_ok_and(|()| ptrace::detach(parent, None).is_ok())),
        (
            "read another's memory",
            process_vm_readv(parent, &mut [IoSliceMut::new(&mut byte)], &[there]) != Err(Errno::EPERM),
        ),
        ("connect to any port", TcpStream::connect(("127.0.0.1", port)).is_ok()),
    ]
}

/// Not a test of its own.
#[test]
fn confined_process() {
    let Some(own) = std::env::var_os(CONFINED).map(PathBuf::from) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    // All of it works, where this is root.
    let before = attempts_before(&own, port);
    give_up_rights(None, Some(&own), &[]).expect("root may");
    let needs =
        Needs { write: vec![own.clone()], connect: vec![1], listen: vec![0], devices: true, memory_files: false };
    let status = confine(Mode::Strict, &needs).expect("this kernel has it all");
    for (what, done) in attempts(&own, port) {
        println!("CONFINED {what}: {}", if done { "done" } else { "refused" });
    }
    let cannot_signal = kill(getppid(), None) == Err(Errno::EPERM);
    // What its daemon does still works.
    fs::write(own.join("file"), b"x").expect("its own directory");
    fs::rename(own.join("file"), own.join("other")).expect("its own directory");
    fs::read("/proc/meminfo").expect("what pages there are");
    std::thread::spawn(|| {
        assert_eq!(fs::read("/etc/shadow").map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied))
    })
    .join()
    .expect("a thread, as confined");
    assert!(TcpListener::bind("127.0.0.1:0").is_ok(), "any free port");
    println!("CONFINED status: {status}");
    println!("CONFINED before: {before:?}");
    println!("CONFINED signals: {cannot_signal}");
}

fn attempts_before(own: &Path, port: u16) -> Vec<(&'static str, bool)> {
    let shadow = fs::read("/etc/shadow").is_ok();
    let executed = Command::new("/bin/true").status().is_ok_and(|status| status.success());
    let connected = TcpStream::connect(("127.0.0.1", port)).is_ok();
    let traced = ptrace::attach(getppid());
    if traced.is_ok() {
        let _ = nix::sys::wait::waitpid(getppid(), None);
        let _ = ptrace::detach(getppid(), None);
    }
    let outside = own.with_extension("before");
    let wrote = File::create(&outside).is_ok();
    let _ = fs::remove_file(outside);
    vec![
        ("read /etc/shadow", shadow),
        ("execute", executed),
        ("connect to any port", connected),
        ("trace", traced.is_ok()),
        ("write elsewhere", wrote),
    ]
}

#[test]
fn a_confined_process_can_do_nothing_that_a_daemon_does_not() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!(
            "SKIPPED a_confined_process_can_do_nothing_that_a_daemon_does_not: only root could do it before"
        );
    }
    let folder = tempfile::tempdir().expect("a directory");
    let own = folder.path().join("own");
    fs::create_dir(&own).expect("made");
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "confined_process", "--nocapture"])
        .env(CONFINED, &own)
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&child.stderr).into_owned();
    if wrong.contains("for the sandbox: ") {
        return eprintln!("SKIPPED a_confined_process_can_do_nothing_that_a_daemon_does_not: {wrong}");
    }
    assert!(child.status.success(), "{said}\n{wrong}");
    let lines: Vec<_> = said.lines().filter_map(|line| line.split_once("CONFINED ").map(|(_, text)| text)).collect();
    let before = lines.iter().find(|line| line.starts_with("before: ")).expect("what it could do");
    assert!(!before.contains("false"), "root could do all that before: {before}");
    let done: Vec<_> = lines.iter().filter(|line| line.ends_with(": done")).collect();
    let port_rules = !lines.iter().any(|line| line.contains("as far as this kernel goes"));
    assert!(done.iter().all(|line| !port_rules && line.starts_with("connect")), "{done:?}");
    assert_eq!(lines.iter().filter(|line| line.ends_with(": refused")).count() + done.len(), 7, "{said}");
    println!("{}", lines.iter().find(|line| line.starts_with("status: ")).expect("a status"));
}
