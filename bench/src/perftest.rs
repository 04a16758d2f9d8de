//! perftest, the RDMA community's own measure of a device: its latency tests, started here, on the same devices.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use overbank_verbs::{Device, FoundDevice};

use crate::cpus::{self, Cpus};
use crate::ends::{self, Ends};
use crate::error::BenchError;
use crate::figures::{Plan, histogram};
use crate::peer::Peer;

/// How long its two ends may take to find each other.
const START: Duration = Duration::from_secs(20);
/// And one turn; generous, since soft-RoCE at times waits for the scheduler.
const TURN: Duration = Duration::from_secs(300);

/// One of its tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    /// READs, from posting one to its completion.
    ReadLatency,
    /// WRITEs that each end answers with a WRITE when it sees them; half of each round trip.
    WriteLatency,
}

impl Test {
    fn program(self) -> &'static str {
        match self {
            Self::ReadLatency => "ib_read_lat",
            Self::WriteLatency => "ib_write_lat",
        }
    }
}

/// perftest between two devices.
#[derive(Debug, Clone)]
pub(crate) struct Perftest {
    own: Vec<String>,
    other: Vec<String>,
    cpus: Cpus,
}

impl Perftest {
    /// On the devices, GIDs and MTU that our own ends use.
    pub(crate) fn new(ends: &Ends, cpus: Cpus) -> Result<Self, BenchError> {
        let (own, other) = (real(&ends.device)?, real(ends.peer_device())?);
        let mtu = own.mtu.min(other.mtu).unwrap_or(ends::options().mtu).bytes();
        Ok(Self { own: arguments(&own, mtu)?, other: arguments(&other, mtu)?, cpus })
    }

    /// Its version, as it says.
    pub(crate) fn version() -> Result<String, BenchError> {
        let program = Test::ReadLatency.program();
        match Command::new(program).arg("--version").output() {
            // It ends with 1 after it said so.
            Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().replace("Version: ", "")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message =
                    format!("there is no {program} here; install perftest (Debian: apt-get install perftest)");
                Err(BenchError::Usage(message))
            }
            Err(error) => Err(BenchError::io(format!("start {program}"))(error)),
        }
    }

    /// The command of its asking end, for the record.
    pub(crate) fn command(&self, test: Test, size: usize, plan: &Plan) -> String {
        let mut words = vec![test.program().to_owned()];
        words.extend(self.own.iter().cloned());
        words.extend(turn_arguments(size, plan, None));
        words.push(Ipv4Addr::LOCALHOST.to_string());
        words.join(" ")
    }

    /// One turn: both ends, started, run and ended. Its first operations are the warm-up and do not count.
    pub(crate) fn turn(&self, test: Test, size: usize, plan: &Plan) -> Result<Histogram<u64>, BenchError> {
        let dir = tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?;
        let port = free_port()?;
        let start = |arguments: &[String], cpu: usize, name: &str, host: Option<Ipv4Addr>| {
            let mut command = Command::new(test.program());
            command.args(arguments).args(turn_arguments(size, plan, Some(port)));
            command.args(host.map(|host| host.to_string())).current_dir(dir.path());
            let errors = dir.path().join(name);
            cpus::started_on(cpu, self.cpus.asker, || Peer::start(command, Some(&errors)))
        };
        let mut server = start(&self.other, self.cpus.answerer, "server", None)?;
        let end = Instant::now() + START;
        while !listens(port) {
            if !server.runs() {
                return Err(server.failed(&format!("ended before it was ready: {}", server.complaint())));
            }
            if Instant::now() > end {
                return Err(BenchError::Silent { what: "perftest's server", after: START });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut client = start(&self.own, self.cpus.asker, "client", Some(Ipv4Addr::LOCALHOST))?;
        let said = client.rest(TURN)?;
        server.rest(START)?;
        let times = times(&said);
        let expected = plan.warmup + plan.count;
        if (times.len() as u64) < expected {
            return Err(client.failed(&format!("gave {} times, not {expected}", times.len())));
        }
        let mut counted = histogram()?;
        let counting = times.into_iter().skip(plan.warmup as usize).take(plan.count as usize);
        counting.for_each(|time| counted.saturating_record(time));
        Ok(counted)
    }
}

/// The device that our own end would open, if it is a real one.
fn real(name: &str) -> Result<FoundDevice, BenchError> {
    let mut found = Device::find(&ends::options());
    let index = match name {
        "auto" => Some(found.auto.0),
        name => found.devices.iter().position(|device| device.name == name),
    };
    match index.map(|index| found.devices.swap_remove(index)) {
        Some(device) if !device.soft => Ok(device),
        Some(_) => Err(BenchError::Usage(
            "perftest needs a real RDMA device; scripts/rxe-vm gives any machine one: name it with --device".to_owned(),
        )),
        None => Err(BenchError::Usage(format!("there is no device {name} here"))),
    }
}

/// How perftest is told which device, port, GID and MTU.
fn arguments(device: &FoundDevice, mtu: usize) -> Result<Vec<String>, BenchError> {
    let unusable = |reason: &String| BenchError::Usage(format!("{} cannot be used: {reason}", device.name));
    let gid = device.usable.as_ref().map_err(unusable)?;
    let (name, port) = device.name.rsplit_once(':').unwrap_or((&device.name, "1"));
    let (gid, mtu) = (gid.index.to_string(), mtu.to_string());
    Ok(["-d", name, "-i", port, "-x", &gid, "-m", &mtu].map(str::to_owned).to_vec())
}

/// Its times lie between one operation and the next, so it takes one more than it gives; and at least five.
fn turn_arguments(size: usize, plan: &Plan, port: Option<u16>) -> Vec<String> {
    let iterations = (plan.warmup + plan.count + 1).max(5).to_string();
    let mut words = ["-s", &size.to_string(), "-n", &iterations, "-F", "--report-unsorted"].map(str::to_owned).to_vec();
    words.extend(port.into_iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
    words
}

/// The times in what it printed, in nanoseconds and in order: the lines "NUMBER, MICROSECONDS" below "#, usec".
fn times(said: &[String]) -> Vec<u64> {
    let time = |line: &String| {
        let (number, time) = line.split_once(", ")?;
        number.parse::<u64>().ok()?;
        let time = time.trim().parse::<f64>().ok().filter(|time| time.is_finite() && *time >= 0.0)?;
        Some((time * 1000.0).round() as u64)
    };
    said.iter().skip_while(|line| !line.starts_with("#, usec")).skip(1).map_while(time).collect()
}

/// A TCP port that nobody has at the moment.
fn free_port() -> Result<u16, BenchError> {
    let failed = || BenchError::io("find a free TCP port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    Ok(listener.local_addr().map_err(failed())?.port())
}

/// Whether somebody listens there. Asked of the kernel: a connection would be taken for the client's.
fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        std::fs::read_to_string(path).unwrap_or_default().lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some(LISTEN)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_times_are_read_in_order_and_nothing_else_is() {
        let said = [" 64      20          1351.94", "#, usec", "1, 5358.44", "2, 12.3", "3, 1.5e+06", "-----", "4, 7"];
        assert_eq!(times(&said.map(str::to_owned)), [5_358_440, 12_300, 1_500_000_000]);
        for bad in ["1, nan", "1, -5", "x, 5", "1 5", ""] {
            assert!(times(&["#, usec".to_owned(), bad.to_owned()]).is_empty(), "{bad}");
        }
        assert!(times(&["1, 5".to_owned()]).is_empty());
    }

    #[test]
    fn a_listener_is_seen_until_it_is_gone() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let port = listener.local_addr().expect("an address").port();
        assert!(listens(port));
        drop(listener);
        assert!(!listens(port));
    }

    #[test]
    fn perftest_is_not_started_on_what_is_no_real_device() {
        for name in ["soft", "no_such_device"] {
            assert!(matches!(real(name), Err(BenchError::Usage(_))), "{name}");
        }
    }
}
