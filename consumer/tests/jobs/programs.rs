//! The programs.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::process::{Outcome, Running, program};
use crate::stack::{Stack, User, device, noise, text};

/// A borrower of a pool that is large enough.
pub(crate) struct Place {
    pub(crate) user: User,
    // After what uses it.
    pub(crate) stack: Stack,
}

impl Place {
    pub(crate) fn new() -> Self {
        let mut stack = Stack::start();
        stack.provider = None;
        stack.provider = Some(stack.start_provider(&["--pool", "400MiB"]));
        Self { user: stack.consumer("ann", "blue"), stack }
    }

    /// Runs a command with so many MiB of local memory and so much of it elsewhere; its output, and what its region did.
    fn run(&self, local: u32, remote: u32, more: &[&str], command: &[&str]) -> (Outcome, Value) {
        program("liboverbank_preload.so");
        let summary = self.user.home.join("summary");
        let (local, remote) = (format!("{local}MiB"), format!("{remote}MiB"));
        let file = summary.display().to_string();
        let options = ["run", "--local", &local, "--remote", &remote, "--summary", &file, "--device", &device()];
        let outcome = self.user.run(&[&options, more, &["--"], command].concat());
        let summary = std::fs::read(summary).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).expect("JSON"));
        println!("{} {}", command[0], summary["processes"]);
        (outcome, summary)
    }
}

/// Pages that came back from elsewhere, in all processes of a run.
pub(crate) fn fetched(summary: &Value) -> u64 {
    let processes = summary["processes"].as_array().expect("a list");
    processes.iter().filter_map(|process| process["region"]["fetched"].as_u64()).sum()
}

fn without(command: &[&str]) -> Outcome {
    Running::start(Command::new(command[0]).args(&command[1..]).stdin(Stdio::null())).end()
}

/// Whether a program is there; where not, says that the test is skipped.
pub(crate) fn is_there(test: &str, name: &str) -> bool {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    if !found {
        println!("SKIPPED {test}: {name} is not installed");
    }
    found
}

#[test]
fn gnu_sort() {
    if !is_there("programs::gnu_sort", "sort") {
        return;
    }
    let place = Place::new();
    let input = place.user.home.join("input");
    let lines: String = noise(1 << 20, 3).chunks(8).map(|word| format!("{word:02x?}\n")).collect();
    std::fs::write(&input, &lines).expect("written");
    let input = input.display().to_string();
    // Text, and a pointer to each line: some 12 MiB.
    let command = ["env", "LC_ALL=C", "sort", "--parallel=1", "-S", "16M", &input];
    let (outcome, summary) = place.run(3, 64, &[], &command);
    assert!(outcome.expect(0).stdout == without(&command).expect(0).stdout);
    assert!(fetched(&summary) > 1000, "{summary}");
}

const NUMPY: &str = "
import numpy, hashlib
random = numpy.random.default_rng(7)
a = random.random((2000, 1000))
b = numpy.sort(a, axis=None)
c = numpy.cumsum(b[::-1]).reshape(1000, 2000)
d = (a.T + c)[::3] * 2
e = numpy.fft.rfft(a, axis=1).real
print(hashlib.sha256(b''.join(x.tobytes() for x in (a, b, c, d, e))).hexdigest())
";

#[test]
fn numpy() {
    let python = "/usr/bin/python3";
    let numpy = Command::new(python).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED programs::numpy: {python} has no numpy");
        return;
    }
    let place = Place::new();
    let command = ["env", "OPENBLAS_NUM_THREADS=1", python, "-c", NUMPY];
    // Five arrays of 5 to 16 MiB, and what they are made of.
    let (outcome, summary) = place.run(16, 256, &[], &command);
    assert_eq!(outcome.expect(0).stdout, without(&command).expect(0).stdout);
    assert!(fetched(&summary) > 1000, "{summary}");
}

#[test]
fn sqlite_in_memory() {
    if !is_there("programs::sqlite_in_memory", "sqlite3") {
        return;
    }
    let place = Place::new();
    let sql = "
        CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c INTEGER);
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000)
            INSERT INTO t SELECT x, printf('%0200d', x * 7919 % 20011), x * 31 % 1009 FROM n;
        CREATE INDEX tc ON t (c, b);
        UPDATE t SET b = b || 'x' WHERE a % 3 = 0;
        SELECT count(*), sum(a), max(b), min(b), total(length(b)) FROM t;
        SELECT c, count(*), sum(length(b)) FROM t GROUP BY c ORDER BY 2 DESC, 1 LIMIT 5;
        PRAGMA integrity_check;";
    // Its pages lie in one block: each alone would be too small to be placed.
    let command = ["sqlite3", "-pagecache", "4400", "4000", ":memory:", sql];
    let (outcome, summary) = place.run(3, 64, &[], &command);
    assert_eq!(text_of(outcome.expect(0)), text_of(without(&command).expect(0)));
    assert!(fetched(&summary) > 1000, "{summary}");
}

fn text_of(outcome: Outcome) -> String {
    String::from_utf8(outcome.stdout).expect("text")
}

#[test]
fn redis_with_its_own_benchmark() {
    if !["redis-server", "redis-cli", "redis-benchmark"]
        .iter()
        .all(|name| is_there("programs::redis_with_its_own_benchmark", name))
    {
        return;
    }
    let place = Place::new();
    let script = place.user.home.join("redis.sh");
    std::fs::write(&script, REDIS).expect("written");
    let (script, socket) = (script.display().to_string(), place.user.home.join("socket").display().to_string());
    let command = ["sh", &script, &socket];
    // It tells its digest of all keys and values before and after it was asked for half of them.
    let (outcome, summary) = place.run(12, 192, &[], &command);
    let with = text_of(outcome.expect(0));
    assert_eq!(with, text_of(without(&command).expect(0)));
    assert_eq!(with.lines().filter(|line| line.len() == 40).count(), 2, "{with}");
    assert!(fetched(&summary) > 1000, "{summary}");
}

/// Twenty thousand values of 2 KB, put and got by Redis's own benchmark; then others, the same each time.
const REDIS: &str = "
set -e
redis-server --port 0 --unixsocket $1 --save '' --appendonly no --daemonize no --enable-debug-command yes >/dev/null &
server=$!
cli() { redis-cli -s \"$socket\" \"$@\"; }
socket=$1
for try in 1 2 3 4 5 6 7 8 9 10; do cli ping >/dev/null 2>&1 && break; sleep 0.3; done
redis-benchmark -s $socket -t set,get -n 20000 -r 20000 -d 2000 -P 16 -q >/dev/null
cli flushall
cli debug populate 20000 key 2000
cli debug digest
redis-benchmark -s $socket -n 10000 -r 20000 -P 16 -q get key:__rand_int__ >/dev/null
cli append key:77 more
cli debug digest
cli shutdown nosave || true
wait $server
";

#[test]
fn stress_ng_that_verifies() {
    if !is_there("programs::stress_ng_that_verifies", "stress-ng") {
        return;
    }
    let place = Place::new();
    let directory = place.user.home.display().to_string();
    for method in ["walk-1d", "rand-set", "swap", "move-inv"] {
        let vm = ["--vm", "1", "--vm-bytes", "32M", "--vm-method", method, "--vm-keep", "--verify", "--vm-ops", "60"];
        let command = [&["stress-ng", "--temp-path", &directory, "--timeout", "20s"], &vm[..]].concat();
        let (outcome, summary) = place.run(8, 96, &[], &command);
        assert_eq!(outcome.status, 0, "{method}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("fail:"), "{method}: {}", outcome.stderr);
        let used = summary["processes"].as_array().is_some_and(|processes| !processes.is_empty());
        assert!(used, "{method}: {summary}");
        assert_eq!(text(&summary, "lease").len(), 32);
    }
    assert!(Path::new(&directory).is_dir());
}
