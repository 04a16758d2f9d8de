//! The other process: it lends memory, on the server's end of a memif.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use overbank_verbs::{Device, DeviceOptions, Endpoint, MemoryRegion, Op, WorkRequest};

use crate::end::{ALL, End, PATIENT, REMOTE, bytes, memory, pattern};

/// Bytes that it lends, which are those of this seed's pattern.
pub(crate) const LEN: usize = 1 << 20;
pub(crate) const SEED: u8 = 7;
/// Set in the process that lends: the device that it opens.
const DEVICE: &str = "OVERBANK_TEST_LENDER";

pub(crate) fn options() -> DeviceOptions {
    let mut options = DeviceOptions::new("127.0.0.1".parse().unwrap());
    options.spin = Duration::from_micros(50);
    options
}

/// Tells contents apart.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Endpoint {
    let bytes: Vec<u8> =
        (0..Endpoint::LEN).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect();
    Endpoint::from_bytes(&bytes.try_into().unwrap()).unwrap()
}

/// Its memory, as a peer reaches it.
pub(crate) struct Theirs {
    pub(crate) endpoint: Endpoint,
    address: u64,
    rkey: u32,
}

impl Theirs {
    /// Memory that nobody lends.
    pub(crate) fn nowhere(device: &Device) -> Self {
        Self { endpoint: End::on(device).qp.endpoint(), address: 4096, rkey: 1 }
    }

    /// The first `len` bytes of both memories.
    pub(crate) fn request<'a>(&self, (id, op): (u64, Op), region: &'a MemoryRegion, len: usize) -> WorkRequest<'a> {
        WorkRequest { id, op, region, offset: 0, len, remote_address: self.address, rkey: self.rkey }
    }
}

pub(crate) struct Lender {
    process: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Lender {
    /// Its device is the server of a memif at this socket, and has this address.
    pub(crate) fn start(socket: &str, address: &str) -> Self {
        let device = format!("dpdk:net_memif0,role=server,socket={socket},address={address}/24");
        Self::on(&device)
    }

    pub(crate) fn on(device: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lender::process", "--nocapture", "--quiet"])
            .env(DEVICE, device)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, hear) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut lender = Self { process, say, hear };
        lender.line("ready");
        lender
    }

    /// What it says behind this word. The test harness says things too.
    fn line(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.hear.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(&format!("{word}: ")) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the lender ended: {:?}", self.process.wait());
    }

    /// Makes a queue pair that is connected with this one.
    pub(crate) fn connect(&mut self, to: &Endpoint) -> Theirs {
        writeln!(self.say, "connect {}", hex(&to.to_bytes())).unwrap();
        let line = self.line("lent");
        let mut words = line.split(' ');
        let endpoint = unhex(words.next().unwrap());
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        Theirs { endpoint, address: number(), rkey: u32::try_from(number()).unwrap() }
    }

    /// Of its memory.
    pub(crate) fn sum(&mut self) -> u64 {
        writeln!(self.say, "sum").unwrap();
        self.line("sum").parse().unwrap()
    }

    /// Stops it, or has it go on.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let process = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(process, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// No test: what the process that lends does.
#[test]
fn process() {
    let Ok(name) = std::env::var(DEVICE) else { return };
    let device = Device::open(&name, &options()).unwrap();
    let lent = memory(LEN, 0);
    lent.copy_in(0, &pattern(LEN, SEED)).unwrap();
    println!("\nready: {device:?}");
    let mut ends = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("connect", to)) => {
                let end = End::on(&device);
                let region = end.register(&lent, ALL);
                end.qp.connect(&unhex(to), REMOTE, PATIENT).unwrap();
                println!("lent: {} {} {}", hex(&end.qp.endpoint().to_bytes()), region.address(), region.rkey());
                ends.push((region, end));
            }
            _ => println!("sum: {}", sum(&bytes(&lent, 0..LEN))),
        }
    }
}
