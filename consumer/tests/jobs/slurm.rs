//! A Slurm cluster of one node on this machine, with the prolog and the epilog of `scripts/slurm`: real jobs, real ends.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mpi::built;
use crate::process::{Outcome, Running, eventually, program};
use crate::programs::is_there;
use crate::stack::{Stack, device, noise, text};

/// What the prolog allows a job on a node.
const ALLOWANCE: &str = "128MiB 4";
/// Longest that a job may take to be where a test wants it.
const SOON: Duration = Duration::from_secs(40);

/// A daemon of Slurm's: ended when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        for _ in 0..100 {
            if self.0.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    // The node first, the keys of all last.
    services: Vec<Service>,
    stack: Stack,
    dir: tempfile::TempDir,
}

/// A cluster, or None where Slurm is not there, which is said.
fn cluster(test: &str) -> Option<Cluster> {
    let test = format!("slurm::{test}");
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: a prolog runs as root, and this is another user");
        return None;
    }
    if !["munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "sinfo"].iter().all(|name| is_there(&test, name))
    {
        return None;
    }
    program("liboverbank_preload.so");
    let mut stack = Stack::start();
    stack.provider = None;
    stack.provider = Some(stack.start_provider(&["--pool", "200MiB"]));
    let dir = tempfile::tempdir().expect("a directory");
    // Jobs of other users come by.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let mut cluster = Cluster { services: Vec::new(), stack, dir };
    cluster.install();
    cluster.start();
    Some(cluster)
}

impl Cluster {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The scripts and the programs, as an operator would put them.
    fn install(&self) {
        for name in ["etc", "bin", "state", "spool", "munge"] {
            fs::create_dir(self.path(name)).expect("made");
        }
        for name in ["overbank", "liboverbank_preload.so"] {
            fs::copy(program(name), self.path("bin").join(name)).expect("copied");
        }
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/slurm");
        for entry in fs::read_dir(scripts).expect("it").flatten() {
            fs::copy(entry.path(), self.path("etc").join(entry.file_name())).expect("copied");
        }
        let conf = self.path("etc/overbank.conf");
        let mut lines: Vec<String> = fs::read_to_string(&conf).expect("it").lines().map(str::to_owned).collect();
        let dir = self.dir.path().display();
        for (name, value) in [
            ("authd", self.stack.address.clone()),
            ("overbank", format!("{dir}/bin/overbank")),
            ("operator", self.stack.operator.home.display().to_string()),
            ("state", format!("{dir}/overbank.state")),
            ("run", format!("{dir}/overbank.run")),
            ("spool", format!("{dir}/overbank.spool")),
            ("wait", "20".to_owned()),
        ] {
            let line = lines.iter_mut().find(|line| line.starts_with(&format!("{name}="))).expect("it is set there");
            *line = format!("{name}={value}");
        }
        let text = lines.join("\n").replace("64GiB 16", ALLOWANCE) + "\n";
        assert!(text.contains(ALLOWANCE));
        fs::write(&conf, text).expect("written");
        fs::write(self.path("munge.key"), noise(1024, u64::from(std::process::id()))).expect("written");
        fs::set_permissions(self.path("munge.key"), fs::Permissions::from_mode(0o400)).expect("closed");
        let ports = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [controller, node] = ports.map(|port| port.local_addr().expect("bound").port());
        let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("it");
        let host = host.trim().split('.').next().unwrap_or_default().to_owned();
        let conf = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmdPort={node}\n\
             SlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\nAuthInfo=socket={dir}/munge/socket\nCredType=cred/munge\n\
             StateSaveLocation={dir}/state\nSlurmdSpoolDir={dir}/spool\nSlurmctldPidFile={dir}/slurmctld.pid\n\
             SlurmdPidFile={dir}/slurmd.pid\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             SelectType=select/cons_tres\nReturnToService=2\nMpiDefault=none\nSwitchType=switch/none\n\
             AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\nKillWait=2\nPrologFlags=Alloc\n\
             Prolog={dir}/etc/prolog\nEpilog={dir}/etc/epilog\nTaskProlog={dir}/etc/task-prolog\n\
             NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=1 RealMemory=100\n\
             PartitionName=all Nodes=node1 Default=YES MaxTime=10 State=UP OverSubscribe=FORCE:4\n"
        );
        fs::write(self.path("slurm.conf"), conf).expect("written");
    }

    fn start(&mut self) {
        let (dir, conf) = (self.dir.path().display().to_string(), self.path("slurm.conf").display().to_string());
        let munge: Vec<String> = [
            "key-file=munge.key",
            "socket=munge/socket",
            "pid-file=munge/pid",
            "log-file=munge/log",
            "seed-file=munge/seed",
        ]
        .iter()
        .map(|option| option.replacen('=', &format!("={dir}/"), 1))
        .map(|option| format!("--{option}"))
        .collect();
        let munge: Vec<&str> =
            ["--foreground", "--force"].into_iter().chain(munge.iter().map(String::as_str)).collect();
        self.service("munged", &munge);
        eventually("munged listens", SOON, || self.path("munge/socket").exists());
        self.service("slurmctld", &["-D", "-f", &conf]);
        self.service("slurmd", &["-D", "-N", "node1", "-f", &conf]);
        eventually("the node is there", SOON, || self.node() == "idle");
    }

    fn service(&mut self, name: &str, args: &[&str]) {
        let log = File::create(self.path(&format!("{name}.log"))).expect("made");
        let mut command = Command::new(name);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().expect("a copy")).stderr(log);
        self.services.insert(0, Service(command.spawn().expect("it starts")));
    }

    fn slurm(&self, name: &str, args: &[&str]) -> Outcome {
        let mut command = Command::new(name);
        command.args(args).env("SLURM_CONF", self.path("slurm.conf")).current_dir("/").stdin(Stdio::null());
        // What a job has of who submits it must not pass for its own.
        command.env("OVERBANK_HOME", "/of/the/submitter").env("OVERBANK_AUTHD", "192.0.2.1");
        Running::start(&mut command).end()
    }

    /// What a job says that asks for Overbank, and is waited for.
    fn srun(&self, more: &[&str], script: &str) -> Outcome {
        let script = format!("PATH=$PATH:{}\n{script}", self.path("bin").display());
        self.slurm("srun", &[&["--comment=overbank", "--job-name=test"], more, &["sh", "-c", &script]].concat())
    }

    fn node(&self) -> String {
        String::from_utf8_lossy(&self.slurm("sinfo", &["-h", "-o", "%T"]).stdout).trim().to_owned()
    }

    /// What the epilog left of a job, once it has.
    fn report(&self, job: u32) -> (PathBuf, String) {
        let place = self.path(&format!("overbank.spool/{job}"));
        // The state goes last.
        eventually("the epilog has ended", SOON, || {
            place.join("report").exists() && !self.path(&format!("overbank.state/{job}")).exists()
        });
        (place.clone(), fs::read_to_string(place.join("report")).expect("it"))
    }

    /// Nothing is leased, and the provider has all of its pool.
    #[track_caller]
    fn all_is_given_back(&self) {
        let status = self.stack.operator.run(&["status", "--json"]).expect(0).json();
        assert_eq!(status["leases"], 0, "{status}");
        assert_eq!(status["providers"][0]["free_bytes"], status["providers"][0]["pool_bytes"], "{status}");
        let tenants = self.stack.operator.run(&["tenant", "list", "--json"]).expect(0).json();
        assert!(!tenants.to_string().contains("quota_leases\":0"), "a quota that is left over: {tenants}");
        assert_eq!(fs::read_dir(self.path("overbank.run")).expect("it").count(), 0);
    }

    fn active(&self) -> usize {
        let list = self.stack.operator.run(&["lease", "list", "--json"]).expect(0).json();
        list["leases"].as_array().expect("a list").iter().filter(|lease| lease["state"] == "active").count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["munged.log", "slurmctld.log", "slurmd.log"] {
                let log = fs::read_to_string(self.path(name)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!("--- the last of {name}");
                last.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

#[test]
fn a_job_runs_with_more_memory_than_is_here_and_leaves_a_receipt() {
    let Some(cluster) = cluster("a_job_runs_with_more_memory_than_is_here_and_leaves_a_receipt") else { return };
    let input = cluster.path("input");
    let lines: String = noise(1 << 19, 3).chunks(8).map(|word| format!("{word:02x?}\n")).collect();
    fs::write(&input, &lines).expect("written");
    let mut sorted: Vec<&str> = lines.lines().collect();
    sorted.sort_unstable();
    let summary = cluster.path("summary");
    let sort = format!(
        "overbank run --device {} --local 2MiB --remote 32MiB --summary {} -- env LC_ALL=C sort --parallel=1 -S 8M {}",
        device(),
        summary.display(),
        input.display()
    );
    let outcome = cluster.srun(&[], &sort).expect(0);
    assert!(outcome.stdout == (sorted.join("\n") + "\n").as_bytes(), "{}", outcome.stderr);
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(summary).expect("it")).expect("JSON");
    assert!(summary["processes"][0]["region"]["fetched"].as_u64() > Some(500), "{summary}");
    let (place, report) = cluster.report(1);
    let lease = text(&summary, "lease");
    assert!(report.contains(&format!("{lease}: wiped")) && report.contains("1 receipts hold, 0 do not"), "{report}");
    let receipt = place.join(format!("{lease}.receipt")).display().to_string();
    let verified = cluster.stack.operator.run(&["receipt", "verify", &receipt, "--json"]).expect(0).json();
    assert!(report.contains(&format!("wiped, says {}", text(&verified, "provider"))), "{report}");
    cluster.all_is_given_back();

    // More than it may have; and a job that did not ask has nothing.
    cluster.srun(&[], "overbank lease create --size 160MiB --ttl 1m").expect(6).saying("quota");
    let outcome = cluster.slurm("srun", &["env"]).expect(0);
    assert!(!String::from_utf8_lossy(&outcome.stdout).contains("OVERBANK_"));
    assert!(!cluster.path("overbank.spool/3").exists());
}

#[test]
fn a_run_that_is_killed_with_its_program_leaves_nothing_leased() {
    let Some(cluster) = cluster("a_run_that_is_killed_with_its_program_leaves_nothing_leased") else { return };
    let script = cluster.path("job");
    // It sorts what it has been given so far for as long as there may come more.
    let job = format!(
        "#!/bin/sh\nPATH=$PATH:{}\n(head -c 6000000 /dev/urandom | od -An -tx8; sleep 100) |\n\
         overbank run --device {} --local 2MiB --remote 48MiB -- sort --parallel=1 -S 32M >/dev/null\n",
        cluster.path("bin").display(),
        device()
    );
    fs::write(&script, job).expect("written");
    let log = cluster.path("log").display().to_string();
    let script = script.display().to_string();
    cluster.slurm("sbatch", &["--comment=overbank", "--output", &log, &script]).expect(0);
    eventually("it has a lease", SOON, || cluster.active() == 1);
    // Long enough to have pages there.
    std::thread::sleep(Duration::from_secs(2));
    cluster.slurm("scancel", &["--signal=KILL", "--full", "1"]).expect(0);
    let (_, report) = cluster.report(1);
    assert!(report.contains("1 receipts hold, 0 do not"), "{report}");
    cluster.all_is_given_back();
}

#[test]
fn ranks_of_a_job_have_a_lease_each() {
    let Some(cluster) = cluster("ranks_of_a_job_have_a_lease_each") else { return };
    let Some(ranks) = built("slurm::ranks_of_a_job_have_a_lease_each", "ranks", cluster.dir.path(), &[]) else {
        return;
    };
    let plugins = cluster.slurm("srun", &["--mpi=list"]);
    if !(String::from_utf8_lossy(&plugins.stdout).into_owned() + &plugins.stderr).contains("pmix") {
        println!("SKIPPED slurm::ranks_of_a_job_have_a_lease_each: this Slurm has no PMIx");
        return;
    }
    let two = ["--mpi=pmix", "--ntasks=2", "--overcommit"];
    let ranks = ranks.display();
    let without = cluster.srun(&two, &format!("exec {ranks}")).expect(0);
    let run = format!("exec overbank run --device {} --local 8MiB --remote 48MiB -- {ranks}", device());
    let with = cluster.srun(&two, &run).expect(0);
    assert_eq!(String::from_utf8_lossy(&with.stdout), String::from_utf8_lossy(&without.stdout));
    assert_eq!(with.stdout.len(), 34, "two digests");
    let (_, report) = cluster.report(2);
    assert!(report.contains("2 receipts hold, 0 do not"), "{report}");
    cluster.all_is_given_back();
}

#[test]
fn what_a_killed_job_of_another_user_had_is_taken_back_and_its_identity_is_worth_nothing_more() {
    let Some(cluster) =
        cluster("what_a_killed_job_of_another_user_had_is_taken_back_and_its_identity_is_worth_nothing_more")
    else {
        return;
    };
    // As one who may touch nothing of root's. A kernel may keep paging from them, so that they use leases as files.
    let copies = cluster.path("copies");
    fs::create_dir(&copies).expect("made");
    fs::set_permissions(&copies, fs::Permissions::from_mode(0o777)).expect("opened");
    let script = cluster.path("job");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\nPATH=$PATH:{}\ncd {}\nsrun sh -c '\numask 077\ncp $OVERBANK_HOME/* .\n\
             lease=$(overbank lease create --size 16MiB --ttl 10m --json | sed -E \"s/.*\\\"lease\\\":\\\"([0-9a-f]*).*/\\1/\")\n\
             head -c 5000000 /dev/urandom | overbank put --device {} $lease -\n\
             overbank lease create --size 8MiB --ttl 10m >created\nsleep 100'\n",
            cluster.path("bin").display(),
            copies.display(),
            device(),
        ),
    )
    .expect("written");
    let log = copies.join("log").display().to_string();
    let script = script.display().to_string();
    cluster.slurm("sbatch", &["--uid=nobody", "--comment=overbank", "--output", &log, &script]).expect(0);
    eventually("it has two leases", SOON, || {
        copies.join("created").exists() && fs::metadata(copies.join("created")).is_ok_and(|it| it.len() > 0)
    });
    assert_eq!(cluster.active(), 2, "{}", fs::read_to_string(&log).unwrap_or_default());
    let owner = fs::metadata(cluster.path("overbank.run/1")).expect("it").uid();
    cluster.slurm("scancel", &["--signal=KILL", "--full", "1"]).expect(0);
    let (place, report) = cluster.report(1);
    assert_eq!(report.matches(": wiped").count(), 2, "{report}");
    assert!(report.contains("2 receipts hold, 0 do not"), "{report}");
    let its = fs::metadata(place.join("report")).expect("it");
    assert_eq!((owner, its.uid(), its.mode() & 0o777), (65534, 65534, 0o400));
    cluster.all_is_given_back();
    eventually("the node is not drained", SOON, || cluster.node() == "idle");
    // The copy of the identity that it made.
    let thief = cluster.stack.stranger("thief");
    crate::process::private(&thief.home);
    for file in ["identity.key", "known_authds"] {
        fs::copy(copies.join(file), thief.home.join(file)).expect("copied");
    }
    thief.run(&["lease", "create", "--size", "1MiB", "--ttl", "1m"]).expect(4).saying("revoked");
}

#[test]
fn an_auth_daemon_that_is_away_drains_no_node_and_what_is_left_is_taken_back_later() {
    let Some(mut cluster) = cluster("an_auth_daemon_that_is_away_drains_no_node_and_what_is_left_is_taken_back_later")
    else {
        return;
    };
    let script = cluster.path("job");
    let job = format!(
        "#!/bin/sh\nPATH=$PATH:{}\nsrun sh -c 'overbank lease create --size 16MiB --ttl 10m; sleep 100'\n",
        cluster.path("bin").display()
    );
    fs::write(&script, job).expect("written");
    let script = script.display().to_string();
    cluster.slurm("sbatch", &["--comment=overbank", "--output=/dev/null", &script]).expect(0);
    eventually("it has a lease", SOON, || cluster.active() == 1);
    cluster.stack.authd = None;
    cluster.slurm("scancel", &["1"]).expect(0);
    eventually("the epilog has ended", SOON, || cluster.node() == "idle");
    assert!(cluster.path("overbank.state/1/over").exists() && !cluster.path("overbank.run/1").exists());
    // The next one runs, and is told.
    let outcome = cluster.srun(&[], "echo ran ${OVERBANK_HOME-without}").expect(0);
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(said.contains("goes without memory of other machines") && said.ends_with("ran without\n"), "{said}");
    eventually("the epilog has ended", SOON, || cluster.node() == "idle");
    let address = cluster.stack.address.clone();
    cluster.stack.restart_authd();
    assert_eq!(cluster.stack.address, address);
    eventually("the provider is back", SOON, || {
        cluster.stack.operator.run(&["status", "--json"]).expect(0).json()["providers"][0]["connected"] == true
    });
    Running::start(&mut Command::new(cluster.path("etc/reclaim"))).end().expect(0);
    let (_, report) = cluster.report(1);
    assert!(report.contains("1 receipts hold, 0 do not"), "{report}");
    cluster.all_is_given_back();
    assert_eq!(fs::read_dir(cluster.path("overbank.state")).expect("it").count(), 0);
}

#[test]
fn a_job_that_gives_its_identity_away_keeps_nothing_by_it() {
    let Some(cluster) = cluster("a_job_that_gives_its_identity_away_keeps_nothing_by_it") else { return };
    let kept = cluster.path("kept");
    let [before, after] = ["before", "after"].map(|name| cluster.path(name));
    let script = format!(
        "overbank lease create --size 1MiB --ttl 10m --json >{} && overbank id --rotate && cp -r $OVERBANK_HOME {} && \
         overbank lease create --size 2MiB --ttl 10m --json >{}",
        before.display(),
        kept.display(),
        after.display()
    );
    cluster.srun(&[], &script).expect(0);
    let (_, report) = cluster.report(1);
    for file in [before, after] {
        let made: serde_json::Value = serde_json::from_slice(&fs::read(file).expect("it")).expect("JSON");
        assert!(report.contains(&format!("{}: wiped", text(&made, "lease"))), "{made} {report}");
    }
    assert!(report.contains("2 receipts hold, 0 do not, 0 leases have none"), "{report}");
    cluster.all_is_given_back();
    let mut thief = cluster.stack.operator.command(&["lease", "create", "--size", "1MiB", "--ttl", "1m"]);
    Running::start(thief.env("OVERBANK_HOME", kept)).end().expect(4);
}

#[test]
fn an_identity_ends_without_its_providers_word_and_the_report_names_what_has_no_receipt() {
    let Some(cluster) = cluster("an_identity_ends_without_its_providers_word_and_the_report_names_what_has_no_receipt")
    else {
        return;
    };
    // An auth daemon that does not let this operator take a quota away, either.
    let (conf, real) = (cluster.path("etc/overbank.conf"), cluster.path("bin/overbank").display().to_string());
    let reluctant = cluster.path("bin/reluctant");
    let script = format!("#!/bin/sh\ncase \"$*\" in *'--leases 0'*) exit 5 ;; esac\nexec {real} \"$@\"\n");
    fs::write(&reluctant, script).expect("written");
    fs::set_permissions(&reluctant, fs::Permissions::from_mode(0o755)).expect("a program");
    let said = fs::read_to_string(&conf).expect("it");
    let said = said.replace(&real, &reluctant.display().to_string()).replace("wait=20", "wait=1");
    fs::write(&conf, said).expect("written");

    let (copy, script) = (cluster.path("copy"), cluster.path("job"));
    let job = format!(
        "#!/bin/sh\nPATH=$PATH:{}\ncp -r $OVERBANK_HOME {}\noverbank lease create --size 16MiB --ttl 10m\nsleep 100\n",
        cluster.path("bin").display(),
        copy.display()
    );
    fs::write(&script, job).expect("written");
    let script = script.display().to_string();
    cluster.slurm("sbatch", &["--comment=overbank", "--output=/dev/null", &script]).expect(0);
    eventually("it has a lease", SOON, || cluster.active() == 1);
    let list = cluster.stack.operator.run(&["lease", "list", "--json"]).expect(0).json();
    let provider = Pid::from_raw(cluster.stack.provider_pid().cast_signed());
    kill(provider, Signal::SIGSTOP).expect("it is there");
    cluster.slurm("scancel", &["--signal=KILL", "--full", "1"]).expect(0);
    eventually("the epilog has begun", SOON, || cluster.path("overbank.state/1/over").exists());
    eventually("the epilog has ended", SOON, || cluster.node() == "idle");
    let mut thief = cluster.stack.operator.command(&["lease", "create", "--size", "1MiB", "--ttl", "1m"]);
    Running::start(thief.env("OVERBANK_HOME", copy)).end().expect(4).saying("revoked");
    // The receipt is still waited for.
    assert!(cluster.path("overbank.state/1").exists() && !cluster.path("overbank.spool/1").exists());
    let over = File::options().write(true).open(cluster.path("overbank.state/1/over")).expect("it");
    over.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).expect("set");
    Running::start(&mut Command::new(cluster.path("etc/reclaim"))).end().expect(0);
    let (_, report) = cluster.report(1);
    let line = format!("{}: no receipt, it is ending", text(&list["leases"][0], "lease"));
    assert!(report.contains(&line) && report.contains("0 receipts hold, 0 do not, 1 leases have none"), "{report}");
}

/// The scripts alone, without a cluster: where they work, with these directories in it.
fn library(test: &str, made: &[&str]) -> Option<tempfile::TempDir> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED slurm::{test}: an epilog runs as root, and this is another user");
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    for name in made {
        fs::create_dir_all(dir.path().join(name)).expect("made");
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/slurm");
    for name in ["lib.sh", "prolog", "task-prolog"] {
        fs::copy(scripts.join(name), dir.path().join(name)).expect("copied");
    }
    let conf = fs::read_to_string(scripts.join("overbank.conf")).expect("it");
    let here = dir.path().display();
    fs::write(dir.path().join("overbank.conf"), format!("{conf}run={here}/run\nstate={here}/state\n"))
        .expect("written");
    Some(dir)
}

#[track_caller]
fn in_library(dir: &tempfile::TempDir, call: &str) {
    let script = format!("set -euo pipefail; . {}/lib.sh; {call}", dir.path().display());
    Running::start(Command::new("bash").args(["-c", &script])).end().expect(0);
}

#[test]
fn what_a_user_goes_on_filling_goes_away_for_good() {
    let Some(dir) = library("what_a_user_goes_on_filling_goes_away_for_good", &["run/7/home/a"]) else { return };
    for name in ["run/7", "run/7/home", "run/7/home/a"] {
        std::os::unix::fs::chown(dir.path().join(name), Some(65534), Some(65534)).expect("given");
    }
    // Until it cannot, and no longer than 20 seconds: files, and directories with more of them.
    let fill = "i=0; while [ $SECONDS -lt 20 ] && mkdir $$.$i && cd $$.$i && true >x && cd .. && true >$$.f$i; do i=$((i+1)); done
                [ $SECONDS -lt 20 ]";
    let fillers: Vec<Running> = ["run/7", "run/7/home", "run/7/home/a", "run/7/home/a"]
        .iter()
        .map(|place| {
            let mut command = Command::new("bash");
            command.args(["-c", fill]).current_dir(dir.path().join(place)).uid(65534).gid(65534);
            Running::start(&mut command)
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    in_library(&dir, "put_away 7");
    for filler in fillers {
        filler.end().expect(0);
    }
    let left: Vec<_> = fs::read_dir(dir.path().join("run")).expect("it").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_jobs_refusal_stays_for_it_until_its_end() {
    let Some(dir) = library("a_jobs_refusal_stays_for_it_until_its_end", &["run/8", "run/9", "state/8", "state/9"])
    else {
        return;
    };
    // The second is a user's own, who wrote that himself.
    std::os::unix::fs::chown(dir.path().join("run/9"), Some(65534), Some(65534)).expect("given");
    for job in ["8", "9"] {
        fs::write(dir.path().join("run").join(job).join("refused"), "why").expect("written");
        fs::write(dir.path().join("state").join(job).join("over"), "").expect("written");
    }
    in_library(&dir, "sweep 20");
    assert_eq!(fs::read_dir(dir.path().join("state")).expect("it").count(), 0);
    assert!(dir.path().join("run/8/refused").exists() && !dir.path().join("run/9").exists());
}

#[test]
fn a_job_whose_prolog_fails_is_told() {
    let Some(dir) = library("a_job_whose_prolog_fails_is_told", &[]) else { return };
    // Nothing can be kept of it there.
    fs::write(dir.path().join("state"), "").expect("written");
    let run = |script| {
        let mut command = Command::new(dir.path().join(script));
        command.env("SLURM_JOB_ID", "5").env("SLURM_JOB_UID", "0").env("SLURM_JOB_COMMENT", "overbank");
        String::from_utf8_lossy(&Running::start(&mut command).end().expect(0).stdout).into_owned()
    };
    assert_eq!(run("prolog"), "");
    let said = run("task-prolog");
    assert!(
        said.contains("\nprint overbank: this job goes without memory of other machines: its prolog failed"),
        "{said}"
    );
}

#[test]
fn what_is_no_number_becomes_part_of_no_path() {
    let Some(cluster) = cluster("what_is_no_number_becomes_part_of_no_path") else { return };
    for (job, uid) in
        [("../../x", "0"), ("", "0"), ("1;touch x", "0"), ("7", "x"), ("7", ""), ("12345678901", "0"), ("07", "0")]
    {
        for script in ["prolog", "epilog", "task-prolog"] {
            let mut command = Command::new(cluster.path("etc").join(script));
            command.env("SLURM_JOB_ID", job).env("SLURM_JOB_UID", uid).env("SLURM_JOB_COMMENT", "overbank");
            let outcome = Running::start(&mut command).end().expect(0);
            let said = String::from_utf8_lossy(&outcome.stdout);
            assert!(said.lines().all(|line| line.starts_with("unset ")), "{script} {job} {uid}: {said}");
        }
        assert!(!cluster.path("overbank.state").exists() && !cluster.path("overbank.run").exists(), "{job} {uid}");
    }
}
