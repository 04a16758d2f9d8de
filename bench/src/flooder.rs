//! `overbank-bench flooder`: who floods an auth daemon with connections and handshakes. Started by `flood` itself.

use std::collections::VecDeque;
use std::io::BufRead;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use overbank_fabric::channel;
use overbank_fabric::handshake::{self, Party};
use overbank_fabric::identity::Identity;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::error::BenchError;

/// Connections that are held open, and never say the last word of their handshake.
const HELD: usize = 8192;
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a batch of connections is made.
const TICK: Duration = Duration::from_millis(5);

/// What `flooder` takes.
#[derive(clap::Args)]
pub(crate) struct Flooder {
    /// The auth daemon
    #[arg(long)]
    authd: SocketAddr,
    /// Connections a second; each says the first message of a handshake, and nothing more
    #[arg(long)]
    connections: u64,
    /// Whole handshakes a second, each of a new identity
    #[arg(long)]
    handshakes: u64,
}

/// What one flood came to. The addresses that it came from are `127.77.0.0/16`'s first.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Flooded {
    /// Connections begun.
    pub(crate) begun: u64,
    /// Of those, refused by the kernel: the auth daemon takes them slower than they come.
    pub(crate) unconnected: u64,
    /// Whole handshakes begun.
    pub(crate) handshakes: u64,
    /// Of those, taken to their end.
    pub(crate) finished: u64,
}

impl Flooded {
    /// Adds those of another flood.
    pub(crate) fn add(&mut self, other: &Self) {
        self.begun += other.begun;
        self.unconnected += other.unconnected;
        self.handshakes += other.handshakes;
        self.finished += other.finished;
    }
}

#[derive(Default)]
struct Counts {
    begun: AtomicU64,
    unconnected: AtomicU64,
    handshakes: AtomicU64,
    finished: AtomicU64,
}

/// Floods as it is told, line by line: a number of addresses to flood from, or 0 to rest and to say what came of it.
pub(crate) fn run(flooder: &Flooder) -> Result<(), BenchError> {
    set_pdeathsig(Signal::SIGKILL)
        .and_then(|()| getrlimit(Resource::RLIMIT_NOFILE))
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .map_err(|errno| BenchError::Io { what: "prepare to flood".to_owned(), source: errno.into() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("start a runtime"))?;
    let (orders, mut told) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = orders.send(line.trim().parse::<u32>().unwrap_or(0));
        }
    });
    runtime.block_on(async {
        let mut floods = tokio::task::JoinSet::new();
        let mut counts = Arc::new(Counts::default());
        while let Some(addresses) = told.recv().await {
            floods.shutdown().await;
            if addresses == 0 {
                let flooded = std::mem::take(&mut counts).read();
                println!("{}", serde_json::to_string(&flooded).unwrap_or_default());
                continue;
            }
            floods.spawn(half(flooder.authd, flooder.connections, addresses, Arc::clone(&counts)));
            floods.spawn(whole(flooder.authd, flooder.handshakes, addresses, Arc::clone(&counts)));
        }
    });
    Ok(())
}

impl Counts {
    fn read(&self) -> Flooded {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Flooded {
            begun: read(&self.begun),
            unconnected: read(&self.unconnected),
            handshakes: read(&self.handshakes),
            finished: read(&self.finished),
        }
    }
}

/// A connection from the `number`th of so many addresses of this machine's own network.
async fn connect(authd: SocketAddr, number: u64, addresses: u32) -> std::io::Result<TcpStream> {
    let [.., third, fourth] = (1 + (number % u64::from(addresses.max(1))) as u32).to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 77, third, fourth], 0).into())?;
    let connecting = timeout(PATIENCE, socket.connect(authd)).await;
    connecting.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Connections that say a good first message, which costs whoever answers it a whole handshake's arithmetic, and hold on.
async fn half(authd: SocketAddr, per_second: u64, addresses: u32, counts: Arc<Counts>) {
    // The same for all: nobody can see that before answering it, and it costs nothing here.
    let Ok((message, _)) = handshake::start(Party::Client) else { return };
    let first = Arc::new([&(message.len() as u16).to_be_bytes()[..], &message].concat());
    let mut held = VecDeque::new();
    let mut ticks = ticks(TICK);
    let mut number = 0;
    let begun = tokio::time::Instant::now();
    loop {
        ticks.tick().await;
        let due = begun.elapsed().as_micros() as u64 * per_second / 1_000_000;
        while number < due {
            counts.begun.fetch_add(1, Ordering::Relaxed);
            match connect(authd, number, addresses).await {
                Ok(mut stream) => {
                    // Refused ones are closed by now, as they should be.
                    let _ = stream.write_all(&first).await;
                    held.push_back(stream);
                }
                Err(_) => drop(counts.unconnected.fetch_add(1, Ordering::Relaxed)),
            }
            if held.len() > HELD {
                held.pop_front();
            }
            number += 1;
        }
    }
}

/// Whole handshakes, one after another, of identities that nobody ever saw.
async fn whole(authd: SocketAddr, per_second: u64, addresses: u32, counts: Arc<Counts>) {
    let mut sessions = VecDeque::new();
    let mut ticks = ticks(Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX));
    for number in 0.. {
        ticks.tick().await;
        counts.handshakes.fetch_add(1, Ordering::Relaxed);
        let identity = Identity::generate();
        let session = async {
            let stream = connect(authd, number, addresses).await.ok()?;
            channel::connect(stream, &identity, Party::Client, |_| Ok(())).await.ok()
        };
        if let Ok(Some(session)) = timeout(PATIENCE, session).await {
            counts.finished.fetch_add(1, Ordering::Relaxed);
            sessions.push_back(session);
        }
        if sessions.len() > HELD {
            sessions.pop_front();
        }
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
