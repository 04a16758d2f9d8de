//! `overbank-bench flood`: what a trusted consumer notices while strangers flood the auth daemon.

use std::process::Command;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use overbank::Client;
use overbank_fabric::channel::{self, Channel};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::{CorrelationId, Nonce};
use overbank_fabric::keyfile;
use overbank_fabric::message::{Call, CreateLease, Reply};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use crate::answer::own_binary;
use crate::error::BenchError;
use crate::figures::{Measured, histogram};
use crate::flooder::Flooded;
use crate::options::Output;
use crate::peer::Peer;
use crate::report::Report;
use crate::stack::{POOL, Places, Setup, Stack};

/// Handshakes a second that the auth daemon takes of strangers, which is its default.
const CAP: u64 = 100;
/// Payload of a lease: one block.
const BYTES: u64 = 4096;
/// Of the grants, one in so many is preceded by a new session.
const SESSION_EVERY: u64 = 10;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time from the beginning of a flood to the first grant that counts.
const RISING: Duration = Duration::from_secs(1);

/// What `flood` takes.
#[derive(clap::Args)]
pub(crate) struct Flood {
    /// Rounds; in each, the quiet and the flooded turns follow each other
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each turn
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Grants a second, each of a lease that is given back at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=120))]
    grants: u64,
    /// Connections a second, in multiples of what the auth daemon takes of strangers (100 a second)
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1000))]
    times: u64,
    /// Addresses that the second kind of flood comes from; the first kind comes from one
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=65_000))]
    addresses: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Plan {
    rounds: usize,
    seconds: u64,
    grants_per_second: u64,
}

/// Nobody floods, or from how many addresses.
#[derive(Clone, Copy)]
enum Weather {
    Quiet,
    From(u32),
}

/// What is known of the turns of one kind.
struct Turns {
    weather: Weather,
    grants: Measured,
    sessions: Measured,
    flooded: Flooded,
    authd_cpu: Duration,
    took: Duration,
}

pub(crate) fn run(flood: &Flood) -> Result<(), BenchError> {
    if flood.rounds == 0 || flood.seconds == 0 {
        return Err(BenchError::Usage("--rounds and --seconds are at least 1".to_owned()));
    }
    let cpus = flood.output.cpus()?;
    let plan = Plan { rounds: flood.rounds, seconds: flood.seconds, grants_per_second: flood.grants };
    let mut report = Report::new("flood", cpus, &plan)?;
    let places = Places { home: cpus.asker, authd: cpus.answerer, provider: cpus.asker };
    let mut setup = Setup::new("soft", POOL).with_a_large_log();
    setup.places = Some(places);
    let stack = Stack::set_up(&setup)?;
    let mut flooder = start_flooder(&stack, flood)?;
    let operator = Client::connect(&stack.operator)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("start a runtime"))?;
    let mut consumer = runtime.block_on(Consumer::connect(&stack))?;
    let before = operator.status()?.rejected;
    let resting = stack.authd_usage()?;

    let mut turns = [
        Turns::new("quiet", Weather::Quiet),
        Turns::new("flood_one_address", Weather::From(1)),
        Turns::new("flood_many_addresses", Weather::From(flood.addresses)),
    ];
    for round in 1..=flood.rounds {
        for turn in &mut turns {
            if let Weather::From(addresses) = turn.weather {
                flooder.say(&addresses.to_string())?;
                std::thread::sleep(RISING);
            }
            let (usage, start) = (stack.authd_usage()?, Instant::now());
            let (grants, sessions) = runtime.block_on(consumer.turn(flood))?;
            turn.took += start.elapsed();
            turn.authd_cpu += stack.authd_usage()?.cpu.saturating_sub(usage.cpu);
            if let Weather::From(_) = turn.weather {
                flooder.say("0")?;
                let line = flooder.line()?;
                let flooded: Flooded = serde_json::from_str(&line)
                    .map_err(|_| flooder.failed(&format!("said '{line}', not what it did")))?;
                turn.flooded.add(&flooded);
            }
            let p99 = |times: &Histogram<u64>| times.value_at_quantile(0.99) as f64 / 1000.0;
            eprintln!(
                "round {round} of {}: {}: grant p99 {:.0} µs, new session p99 {:.0} µs",
                flood.rounds,
                turn.grants.name,
                p99(&grants),
                p99(&sessions)
            );
            turn.grants.rounds.push(grants);
            turn.sessions.rounds.push(sessions);
        }
    }
    let after = operator.status()?.rejected;
    let peak = stack.authd_usage()?;
    let rejected: serde_json::Map<_, _> = after
        .iter()
        .map(|(reason, count)| (reason.clone(), count - before.get(reason).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason, count.into()))
        .collect();
    report.device("device", "soft");
    report.setting("times_the_cap", flood.times);
    report.setting("connections_per_second", flood.times * CAP);
    report.setting("addresses", flood.addresses);
    report.setting("authd_rss_before_bytes", resting.rss_bytes);
    report.setting("authd_rss_peak_bytes", peak.rss_peak_bytes);
    report.setting("rejected", rejected);
    report.setting("load_at_the_end", crate::machine::load().unwrap_or_default());
    for turn in &turns {
        let share = turn.authd_cpu.as_secs_f64() / turn.took.as_secs_f64();
        let flooded = serde_json::to_value(turn.flooded).map_err(|error| BenchError::Histogram(error.to_string()))?;
        let told = json!({ "authd_processor_share": (share * 1000.0).round() / 1000.0, "flood": flooded });
        report.setting(&turn.grants.name.replace("grant", "during"), told);
    }
    let quiet = [turns[0].grants.figures(), turns[0].sessions.figures()];
    for turn in &turns[1..] {
        for (quiet, measured) in quiet.iter().zip([&turn.grants, &turn.sessions]) {
            let figures = measured.figures();
            for (name, above, below) in [("p50", figures.p50_ns, quiet.p50_ns), ("p99", figures.p99_ns, quiet.p99_ns)] {
                let ratio = (above as f64 / below.max(1) as f64 * 1000.0).round() / 1000.0;
                report.ratios.insert(format!("{} / quiet, {name}", measured.name), json!(ratio));
            }
        }
    }
    report.times(turns.into_iter().flat_map(|turn| [turn.grants, turn.sessions]).collect())?;
    flood.output.finish(report)
}

/// It runs beside the consumer, and behind it: the consumer must not wait for who floods.
fn start_flooder(stack: &Stack, flood: &Flood) -> Result<Peer, BenchError> {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(own_binary()?).args(["flooder", "--authd", stack.config.authd()]);
    command.args(["--connections", &(flood.times * CAP).to_string(), "--handshakes", &CAP.to_string()]);
    Peer::start(command, None)
}

impl Turns {
    fn new(name: &str, weather: Weather) -> Self {
        let none = |what: &str| Measured::new(format!("{what}_{name}"), Vec::new());
        Self {
            weather,
            grants: none("grant"),
            sessions: none("session"),
            flooded: Flooded::default(),
            authd_cpu: Duration::ZERO,
            took: Duration::ZERO,
        }
    }
}

/// A trusted consumer.
struct Consumer {
    authd: String,
    identity: Identity,
    channel: Channel<TcpStream>,
}

impl Consumer {
    async fn connect(stack: &Stack) -> Result<Self, BenchError> {
        let identity = keyfile::load(&stack.config.identity_path())
            .map_err(|error| BenchError::Usage(format!("the consumer's identity: {error}")))?;
        let authd = stack.config.authd().to_owned();
        let channel = session(&authd, &identity).await?;
        Ok(Self { authd, identity, channel })
    }

    /// So many grants a second, and a new session before some: how long each took.
    async fn turn(&mut self, flood: &Flood) -> Result<(Histogram<u64>, Histogram<u64>), BenchError> {
        let (mut grants, mut sessions) = (histogram()?, histogram()?);
        let mut ticks = interval(Duration::from_secs(1) / flood.grants as u32);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..flood.grants * flood.seconds {
            ticks.tick().await;
            if number % SESSION_EVERY == 0 {
                let start = Instant::now();
                let mut fresh = session(&self.authd, &self.identity).await?;
                call(&mut fresh, Call::WhoAmI).await?;
                sessions.saturating_record(start.elapsed().as_nanos() as u64);
            }
            let wish = CreateLease { nonce: Nonce::random(), bytes: BYTES, block: 4096, ttl_ms: 60_000 };
            let start = Instant::now();
            let granted = call(&mut self.channel, Call::CreateLease(wish)).await?;
            grants.saturating_record(start.elapsed().as_nanos() as u64);
            let Reply::Granted(granted) = granted else { return Err(odd(&granted)) };
            call(&mut self.channel, Call::ReleaseLease(granted.lease)).await?;
        }
        Ok((grants, sessions))
    }
}

async fn session(authd: &str, identity: &Identity) -> Result<Channel<TcpStream>, BenchError> {
    let opening = async {
        let stream = TcpStream::connect(authd).await.map_err(BenchError::io("connect to the auth daemon"))?;
        stream.set_nodelay(true).map_err(BenchError::io("tune a connection"))?;
        let session = channel::connect(stream, identity, Party::Client, |_| Ok(())).await;
        session.map(|(channel, _)| channel).map_err(|error| failed(&error))
    };
    tokio::time::timeout(PATIENCE, opening).await.unwrap_or(Err(SILENT))
}

async fn call(channel: &mut Channel<TcpStream>, call: Call) -> Result<Reply, BenchError> {
    let asked = channel.call(CorrelationId::random(), PATIENCE.as_millis() as u32, call);
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    answered.map_err(|_| SILENT)?.map_err(|error| failed(&error))
}

const SILENT: BenchError = BenchError::Silent { what: "the auth daemon", after: PATIENCE };

fn failed(error: &dyn std::fmt::Display) -> BenchError {
    BenchError::Child { program: "overbank-authd".to_owned(), what: format!("did not do as asked: {error}") }
}

fn odd(reply: &Reply) -> BenchError {
    failed(&format!("it answered {reply:?}"))
}
