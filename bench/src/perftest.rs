//! perftest, the RDMA community's own measure of a device: its latency and bandwidth tests, started here, on the same
//! devices.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use overbank_verbs::{Device, FoundDevice, Mtu};

use crate::cpus::{self, Cpus};
use crate::ends::{self, Ends};
use crate::error::BenchError;
use crate::figures::{Plan, histogram};
use crate::peer::Peer;
use crate::rates::Rate;

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
    /// READs, a number outstanding.
    ReadBandwidth,
    /// WRITEs, a number outstanding.
    WriteBandwidth,
}

/// Most bytes that a turn of a bandwidth test moves.
const MAX_MOVED: u64 = 1 << 30;

impl Test {
    fn program(self) -> &'static str {
        match self {
            Self::ReadLatency => "ib_read_lat",
            Self::WriteLatency => "ib_write_lat",
            Self::ReadBandwidth => "ib_read_bw",
            Self::WriteBandwidth => "ib_write_bw",
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
        let mtu = own.mtu.min(other.mtu).unwrap_or(Mtu::Mtu4096).bytes();
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
    pub(crate) fn command(&self, test: Test, arguments: &[String]) -> String {
        let mut words = vec![test.program().to_owned()];
        words.extend(self.own.iter().chain(arguments).cloned());
        words.push(Ipv4Addr::LOCALHOST.to_string());
        words.join(" ")
    }

    /// One turn of single operations. Its first are the warm-up and do not count.
    pub(crate) fn times(&self, test: Test, size: usize, plan: &Plan) -> Result<Histogram<u64>, BenchError> {
        let said = self.turn(test, &timed(size, plan))?;
        let times = times(&said);
        let expected = plan.warmup + plan.count;
        if (times.len() as u64) < expected {
            return Err(failed(test, &format!("gave {} times, not {expected}", times.len())));
        }
        let mut counted = histogram()?;
        let counting = times.into_iter().skip(plan.warmup as usize).take(plan.count as usize);
        counting.for_each(|time| counted.saturating_record(time));
        Ok(counted)
    }

    /// One turn of many at once.
    pub(crate) fn rate(&self, test: Test, size: usize, depth: u32, plan: &Plan) -> Result<Rate, BenchError> {
        let said = self.turn(test, &rated(size, depth, plan))?;
        rate(&said).ok_or_else(|| failed(test, "gave no rate"))
    }

    /// Both ends, started, run and ended: what the asking one said.
    fn turn(&self, test: Test, arguments: &[String]) -> Result<Vec<String>, BenchError> {
        let dir = tempfile::tempdir().map_err(BenchError::io("make a temporary directory"))?;
        let port = free_port()?;
        let start = |device: &[String], cpu: usize, name: &str, host: Option<Ipv4Addr>| {
            let mut command = Command::new(test.program());
            command.args(device).args(arguments).args(["-p", &port.to_string()]);
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
        Ok(said)
    }
}

fn failed(test: Test, what: &str) -> BenchError {
    BenchError::Child { program: test.program().to_owned(), what: what.to_owned() }
}

/// Whether both ends are on real devices.
pub(crate) fn fits(ends: &Ends) -> bool {
    real(&ends.device).is_ok() && real(ends.peer_device()).is_ok()
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

/// What both ends are told for single operations. Its times lie between one operation and the next, so it takes one more
/// than it gives; and at least five.
pub(crate) fn timed(size: usize, plan: &Plan) -> Vec<String> {
    let iterations = (plan.warmup + plan.count + 1).max(5).to_string();
    ["-s", &size.to_string(), "-n", &iterations, "-F", "--report-unsorted"].map(str::to_owned).to_vec()
}

/// What both ends are told for many at once: as many operations as single ones, but no more bytes than a gibibyte, and
/// enough that the beginning and the end are a small part. Its own period (-D) is of whole seconds, with margins.
pub(crate) fn rated(size: usize, depth: u32, plan: &Plan) -> Vec<String> {
    let most = (MAX_MOVED / size.max(1) as u64).max(1);
    let iterations = plan.count.min(most).max(8 * u64::from(depth)).to_string();
    let (size, depth) = (size.to_string(), depth.to_string());
    ["-s", &size, "-n", &iterations, "-t", &depth, "-F", "--noPeak"].map(str::to_owned).to_vec()
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

/// The rate in what it printed: below "#bytes" stand the size, the number of operations, the peak, the mean, and millions
/// of operations a second.
fn rate(said: &[String]) -> Option<Rate> {
    let mut lines = said.iter().skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let head = lines.next()?;
    let fields: Vec<&str> = lines.next()?.split_whitespace().collect();
    let [_, operations, _, _, millions] = fields[..] else { return None };
    let (operations, millions) = (operations.parse::<u64>().ok()?, millions.parse::<f64>().ok()?);
    let right = head.trim_end().ends_with("MsgRate[Mpps]") && millions.is_finite() && millions > 0.0;
    right.then(|| Rate {
        operations,
        nanoseconds: (operations as f64 * 1000.0 / millions).round() as u64,
        packets: None,
    })
}

/// A TCP port that nobody has at the moment.
pub(crate) fn free_port() -> Result<u16, BenchError> {
    let failed = || BenchError::io("find a free TCP port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    Ok(listener.local_addr().map_err(failed())?.port())
}

/// Whether somebody listens there. Asked of the kernel: a connection would be taken for the client's.
pub(crate) fn listens(port: u16) -> bool {
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
    fn its_rate_is_read_from_the_line_below_the_head() {
        let head = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]";
        let said = |line: &str| rate(&["---", head, line, "---"].map(str::to_owned));
        let found = said(" 65536      1000             0.00               443.21 \t\t   0.007091").expect("a rate");
        assert_eq!((found.operations, found.nanoseconds), (1000, 141_023_833));
        for bad in ["", " 65536 1000 0.00 443.21", " 65536 1000 0.00 443.21 0.000000", " 65536 1000 0.00 443.21 nan"] {
            assert!(said(bad).is_none(), "{bad}");
        }
        assert!(rate(&[" 1 2 3 4 5".to_owned()]).is_none());
    }

    #[test]
    fn large_operations_are_fewer_and_more_than_are_outstanding() {
        let plan = Plan { rounds: 1, count: 20_000, warmup: 0, per_second: None };
        assert_eq!(rated(64, 16, &plan).join(" "), "-s 64 -n 20000 -t 16 -F --noPeak");
        assert_eq!(rated(1 << 20, 16, &plan)[3], "1024");
        assert_eq!(rated(8 << 20, 32, &plan)[3], "256");
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
