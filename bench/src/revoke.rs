//! `overbank-bench revoke`: from an operator's word to the fence, under load; and how fast memory is wiped.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use overbank_fabric::attach::{AttachRequest, EndpointBytes};
use overbank_fabric::block::HEADER_LEN;
use overbank_fabric::ids::{LeaseId, Nonce};
use overbank_fabric::keyfile;
use overbank_fabric::message::{Attach, Call, CreateLease, Granted, Reply};
use overbank_fabric::receipt::{Receipt, Step};
use overbank_fabric::signed::Signed;
use overbank_fabric::units::Size;
use overbank_verbs::{Device, Endpoint};
use serde::Serialize;

use crate::cpus::Cpus;
use crate::ends::{self, RETRY};
use crate::error::BenchError;
use crate::figures::{Measured, histogram};
use crate::options::Output;
use crate::parties::{Party, Pressure, failed, runtime};
use crate::report::Report;
use crate::stack::{self, Setup, Stack};
use crate::writer::{Target, Writer, boottime_us, lanes};

/// Payload of a block of the leases.
const BLOCK: u32 = 4096;
/// Bytes of one WRITE.
const WRITE: usize = 4096;
/// Until everything is under way, and until a receipt is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// A lease of a measurement runs longer than its round.
const TTL_MS: u64 = 120_000;

/// What `revoke` takes.
#[derive(clap::Args)]
pub(crate) struct Revoke {
    /// Revocations
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// Queue pairs that write into the lease, 1 to 16
    #[arg(long, default_value_t = 16)]
    lanes: usize,
    /// WRITEs of 4 KiB outstanding on each
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Requests of other consumers that are pending at the auth daemon all the time
    #[arg(long, default_value_t = 512)]
    pending: usize,
    /// Bytes of the lease
    #[arg(long, default_value = "16MiB")]
    size: Size,
    /// Bytes of the leases that are made and given back to see how fast memory is wiped
    #[arg(long, default_value = "256MiB")]
    wipe_size: Size,
    /// Of those leases, how many; 0: none
    #[arg(long, default_value_t = 21)]
    wipes: usize,
    /// Percent of the datagrams that both ends' soft devices lose
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Let the auth daemon decide on so many requests a second, also of one identity and from one address. With its own
    /// defaults, 500 and 250, whoever else is at the crowd's address waits 2 s for each answer, and a round takes 8 s
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    requests_per_second: u32,
    /// The RDMA device of both ends: auto, soft, or a name
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Plan {
    rounds: usize,
}

/// What one revocation came to, in microseconds since the order was sent.
struct Round {
    answered: u64,
    closed: u64,
    fenced: u64,
    /// None where none arrived after the order.
    last_write: Option<u64>,
    /// From the fence's first step to its last.
    fencing: u64,
    wipe: Wipe,
    pending: u64,
    outstanding: u64,
    /// A WRITE was known to have arrived this long after the fence; its answer travelled meanwhile.
    after_fence: u64,
}

/// What a wipe took.
struct Wipe {
    bytes: u64,
    us: u64,
    check_us: u64,
}

/// Measures and reports.
pub(crate) fn run(revoke: &Revoke) -> Result<(), BenchError> {
    let lose = (revoke.loss * 10_000.0).round();
    if revoke.rounds == 0 || !(1..=16).contains(&revoke.lanes) || !(1..=1024).contains(&revoke.depth) {
        return Err(BenchError::Usage("--rounds is at least 1, --lanes 1 to 16, --depth 1 to 1024".to_owned()));
    }
    if !(0.0..=500_000.0).contains(&lose) {
        return Err(BenchError::Usage("--loss is 0 to 50 percent".to_owned()));
    }
    let lose = lose as u32;
    let (places, size) = (revoke.wipe_size.0.max(revoke.size.0), revoke.size.0);
    // Room for the lease of a round, the one before it that is still being wiped, and the headers of their blocks.
    let pool = Size((places + size + (64 << 20)).next_multiple_of(2 << 20));
    let mut setup = Setup::new(&revoke.device, pool);
    // All that are to be pending find a place, also those of one tenant.
    let (places, rate) = ((revoke.pending * 2).max(512).to_string(), revoke.requests_per_second.to_string());
    setup.authd = ["--max-requests", &places, "--requests-per-second", &rate, "--requests-per-second-each", &rate]
        .map(str::to_owned)
        .to_vec();
    // Pages as a program's own memory has, which is what a wipe is compared with.
    setup.provider = ["--pages", "plain"].map(str::to_owned).to_vec();
    if lose > 0 {
        let lose = ["--lose-per-million".to_owned(), lose.to_string()];
        if !stack::provider_takes(&lose)? {
            let why = "--loss takes an overbank-provider that can lose packets, which a release build cannot: build all with \
                       `--features overbank-provider/lossy`";
            return Err(BenchError::Usage(why.to_owned()));
        }
        setup.provider.extend(lose);
    }
    let stack = Stack::set_up(&setup)?;
    let device = ends::open_losing(&revoke.device, lose)?;
    let mut report = Report::new("revoke", Cpus::choose(None)?, &Plan { rounds: revoke.rounds })?;
    report.device("device", &revoke.device);
    report.setting("device_is", device.describe());
    runtime()?.block_on(measure(revoke, &stack, &device, &mut report))?;
    for (name, value) in [("lanes", revoke.lanes as u64), ("depth", revoke.depth.into()), ("size", size)] {
        report.setting(name, value);
    }
    report.setting("loss_percent", revoke.loss);
    report.setting("requests_per_second", revoke.requests_per_second);
    revoke.output.finish(report)
}

async fn measure(revoke: &Revoke, stack: &Stack, device: &Device, report: &mut Report) -> Result<(), BenchError> {
    let authd = stack.config.authd();
    let key = stack.operator.home().join("identity.key");
    let identity = keyfile::load(&key).map_err(|error| failed("reading the operator's key", &error))?;
    let operator = Party::connect(authd, identity).await?;
    let pressure = Pressure::start(&operator, authd, revoke.pending).await?;
    until("the crowd", || pressure.pending() >= revoke.pending as u64).await?;

    let mut rounds = Vec::new();
    for number in 1..=revoke.rounds {
        let round = one(revoke, authd, &operator, device, &pressure).await?;
        if number.is_power_of_two() || number == revoke.rounds {
            eprintln!("round {number} of {}: fenced after {} µs", revoke.rounds, round.fenced);
        }
        rounds.push(round);
    }
    let (answered, refused) = pressure.done();
    drop(pressure);

    let least = |of: fn(&Round) -> u64| rounds.iter().map(of).min().unwrap_or(0);
    report.setting("pending_at_the_order_least", least(|round| round.pending));
    report.setting("writes_outstanding_at_the_order_least", least(|round| round.outstanding));
    report.setting("crowd_answered", answered);
    report.setting("crowd_refused", refused);
    report.setting("rounds_with_writes_after_the_order", rounds.iter().filter(|it| it.last_write.is_some()).count());
    report.setting("write_known_after_the_fence_most_us", rounds.iter().map(|it| it.after_fence).max().unwrap_or(0));
    let rate = |wipe: &Wipe| wipe.bytes as f64 / 1000.0 / wipe.us.max(1) as f64;
    let mut rates: Vec<f64> = rounds.iter().map(|round| rate(&round.wipe)).collect();
    rates.sort_by(f64::total_cmp);
    report.setting("wipe_under_load_gb_per_s", round_to(rates[rates.len() / 2]));

    let figure = |name: &str, of: &dyn Fn(&Round) -> Option<u64>| -> Result<Measured, BenchError> {
        let mut times: Histogram<u64> = histogram()?;
        rounds.iter().filter_map(of).for_each(|us| times.saturating_record(us.max(1) * 1000));
        Ok(Measured::new(name, vec![times]))
    };
    report.times(vec![
        figure("order_to_fence", &|round| Some(round.fenced))?,
        figure("order_to_closed", &|round| Some(round.closed))?,
        figure("closed_to_fence", &|round| Some(round.fencing))?,
        figure("order_to_answer", &|round| Some(round.answered))?,
        figure("order_to_last_write", &|round| round.last_write)?,
    ])?;
    if revoke.wipes > 0 {
        wipes(revoke, authd, &operator, report).await?;
    }
    Ok(())
}

fn round_to(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Waits for something that is on its way.
async fn until(what: &'static str, there: impl Fn() -> bool) -> Result<(), BenchError> {
    let end = Instant::now() + PATIENCE;
    while !there() {
        if Instant::now() > end {
            return Err(BenchError::Silent { what, after: PATIENCE });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Somebody new leases, attaches and writes; then the operator revokes him.
async fn one(
    revoke: &Revoke,
    authd: &str,
    operator: &Party,
    device: &Device,
    pressure: &Pressure,
) -> Result<Round, BenchError> {
    let victim = operator.let_in(authd, "victim").await?;
    let granted = lease(&victim, revoke.size.0).await?;
    let mut lanes = lanes(device, revoke.lanes, revoke.depth, WRITE)?;
    let request = AttachRequest {
        token: granted.token.hash(),
        lanes: lanes.iter().map(|lane| EndpointBytes(lane.endpoint().to_bytes())).collect(),
        provider: granted.provider,
        boot: granted.boot,
        nonce: Nonce::random(),
    };
    let request = Signed::new(&request, &victim.identity);
    let attach = Attach { lease: granted.lease, token: granted.token.clone(), request };
    let Reply::Attached(answer) = victim.call("attaching", Call::Attach(attach)).await? else {
        return Err(failed("attaching", &"something else came"));
    };
    let answer = answer.open(&granted.provider).map_err(|error| failed("attaching", &error))?;
    for (lane, remote) in lanes.iter_mut().zip(&answer.lanes) {
        lane.connect(&Endpoint::from_bytes(&remote.0)?, RETRY)?;
    }
    let target = Target { address: answer.address, rkey: answer.rkey, len: answer.blocks * u64::from(answer.stride) };
    let writer = Writer::start(lanes, WRITE, target)?;
    let all = revoke.lanes as u64 * u64::from(revoke.depth);
    until("the writer", || writer.arrived() >= 2 * all && writer.outstanding() >= all).await?;
    until("the crowd", || pressure.pending() >= revoke.pending as u64).await?;

    let (pending, outstanding) = (pressure.pending(), writer.outstanding());
    let fingerprint = victim.identity.public().fingerprint();
    let order = boottime_us();
    operator.call("revoking", Call::TrustRevoke(fingerprint)).await?;
    let answered = boottime_us() - order;
    let receipt = receipt(operator, &granted).await?;
    let last = writer.stop()?;
    let at = |step| at_us(&receipt, step);
    let (closed, fenced) = (at(Step::Closed)?, at(Step::Deregistered)?);
    Ok(Round {
        answered,
        closed: closed.saturating_sub(order),
        fenced: fenced.saturating_sub(order),
        last_write: last.checked_sub(order),
        fencing: fenced.saturating_sub(closed),
        wipe: wipe_of(&receipt)?,
        pending,
        outstanding,
        after_fence: last.saturating_sub(fenced),
    })
}

async fn lease(consumer: &Party, bytes: u64) -> Result<Granted, BenchError> {
    let wish = CreateLease { nonce: Nonce::random(), bytes, block: BLOCK, ttl_ms: TTL_MS };
    match consumer.call("leasing", Call::CreateLease(wish)).await? {
        Reply::Granted(granted) => Ok(*granted),
        _ => Err(failed("leasing", &"something else came")),
    }
}

/// The provider's word on a lease's end, as soon as it is there.
async fn receipt(asker: &Party, granted: &Granted) -> Result<Receipt, BenchError> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(receipt) = shown(asker, granted.lease).await? {
            return receipt.open(&granted.provider).map_err(|error| failed("a receipt", &error));
        }
        if Instant::now() > end {
            return Err(BenchError::Silent { what: "the provider", after: PATIENCE });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn shown(asker: &Party, lease: LeaseId) -> Result<Option<Signed<Receipt>>, BenchError> {
    match asker.call("looking at a lease", Call::ShowLease(lease)).await? {
        Reply::Leases(mut leases) => Ok(leases.pop().and_then(|info| info.receipt)),
        _ => Err(failed("looking at a lease", &"something else came")),
    }
}

fn at_us(receipt: &Receipt, step: Step) -> Result<u64, BenchError> {
    let found = receipt.steps.iter().find(|done| done.step == step).map(|done| done.at_us);
    found.ok_or_else(|| failed("ending a lease", &format!("the receipt lacks '{step}'")))
}

fn wipe_of(receipt: &Receipt) -> Result<Wipe, BenchError> {
    let (fenced, wiped) = (at_us(receipt, Step::Deregistered)?, at_us(receipt, Step::Wiped)?);
    let check_us = at_us(receipt, Step::Verified)?.saturating_sub(wiped);
    Ok(Wipe { bytes: receipt.bytes, us: wiped.saturating_sub(fenced), check_us })
}

/// Large leases are made and given back, and in turn as many bytes are set to zero here: nobody else works meanwhile.
async fn wipes(revoke: &Revoke, authd: &str, operator: &Party, report: &mut Report) -> Result<(), BenchError> {
    let consumer = operator.let_in(authd, "wipes").await?;
    let (mut wiped, mut checked, mut set) = (histogram()?, histogram()?, histogram()?);
    let mut memory = Vec::new();
    let mut pinned = 0;
    for _ in 0..revoke.wipes {
        let granted = lease(&consumer, revoke.wipe_size.0).await?;
        consumer.call("giving back", Call::ReleaseLease(granted.lease)).await?;
        let wipe = wipe_of(&receipt(&consumer, &granted).await?)?;
        wiped.saturating_record(wipe.us * 1000);
        checked.saturating_record(wipe.check_us * 1000);
        pinned = wipe.bytes;
        memory.resize(pinned as usize, 0xA5_u8);
        // Somewhere else than in a cache, and there.
        memory.fill(0xA5);
        let start = Instant::now();
        memory.fill(0);
        black_box(&mut memory);
        set.saturating_record(start.elapsed().as_nanos() as u64);
    }
    let rate = |times: &Histogram<u64>| round_to(pinned as f64 / times.value_at_quantile(0.5).max(1) as f64);
    report.setting("wipe_bytes", pinned);
    report.setting("wipe_gb_per_s", rate(&wiped));
    report.setting("check_gb_per_s", rate(&checked));
    report.setting("memset_gb_per_s", rate(&set));
    let measured = |name: &str, times| Measured::new(name, vec![times]);
    report.times(vec![measured("wipe", wiped), measured("check", checked), measured("memset", set)])?;
    report.ratio("wipe / memset", "wipe", "memset");
    debug_assert!(u64::from(BLOCK) + HEADER_LEN as u64 > WRITE as u64);
    Ok(())
}
