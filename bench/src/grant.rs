//! `overbank-bench grant`: what the control plane costs a consumer, step by step, from the connection to the receipt.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use overbank::{AttachOptions, Client, Config, LeaseRequest, LeaseState, MAX_LANES, Size, verify_receipt};
use tempfile::TempDir;

use crate::error::BenchError;
use crate::existing::Existing;
use crate::options::Measuring;
use crate::parties::failed;
use crate::report::Report;
use crate::several::{Watch, in_steps, measure};
use crate::stack::{POOL, Places, Setup, Stack};

/// A lease lasts as long, and after it was renewed twice as long, if nobody releases it.
const TTL: Duration = Duration::from_secs(60);
/// Until a receipt is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks for it.
const PAUSE: Duration = Duration::from_micros(250);
/// Largest `--size`.
const MAX_BYTES: u64 = 1 << 40;
/// Where lease files are in memory, as they are in a session's own directory.
const MEMORY: &str = "/dev/shm";

const STEPS: [&str; 6] = ["handshake", "allocate", "attach", "renew", "release", "receipt"];
const HANDSHAKE: usize = 0;
const ALLOCATE: usize = 1;
const ATTACH: usize = 2;
const RENEW: usize = 3;
const RELEASE: usize = 4;
const RECEIPT: usize = 5;

const EXAMPLES: &str = "\
Each operation is the whole life of a lease, through the library:
  handshake   connecting by TCP, the Noise handshake, and the first answer
  allocate    the lease is made, and its key kept
  attach      queue pairs are bound on both ends, ready to read
  renew       the deadline is moved
  release     until that is confirmed: nothing reaches the memory any more
  receipt     from the same order until the provider's word that the memory is wiped is in
  life        all of it
With --rate lives are due at that rate, and life is also counted from when each was due.

Examples
  overbank-bench grant --self-contained --device soft
  overbank-bench grant --self-contained --size 64MiB --lanes 16 --count 100 --json
  overbank-bench grant --self-contained --rate 20 --out DIR
  overbank-bench grant --authd 10.0.0.1 --home ~/.config/overbank --count 50 --rate 2";

/// What `grant` takes.
#[derive(clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("count", |arg| arg.default_value("200").help("Lives timed in each turn")),
    mut_arg("warmup", |arg| arg.default_value("20").help("Lives before each turn, untimed")),
    mut_arg("rate", |arg| arg.help(
        "Lives due each second, whether or not the one before has ended [default: each begins when the one before has ended]"
    ))
)]
pub(crate) struct Grant {
    /// Bytes of the lease
    #[arg(long, default_value = "1MiB")]
    size: Size,
    /// Queue pairs of the attach, 1 to 16
    #[arg(long, default_value_t = 1)]
    lanes: usize,
    /// Start an auth daemon and a provider for this measurement, from the programs beside this one
    #[arg(long, conflicts_with_all = ["authd", "home"])]
    self_contained: bool,
    #[command(flatten)]
    existing: Existing,
    /// Let the auth daemon that is started take so many requests, and so many handshakes, a second. Its own defaults hold
    /// back who asks as fast as this does
    #[arg(long, value_name = "N", default_value_t = 100_000, requires = "self_contained",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests_per_second: u32,
    /// The RDMA device of every end that is started here: auto, soft, or a name
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    measuring: Measuring,
}

/// Measures and reports.
pub(crate) fn run(grant: &Grant) -> Result<(), BenchError> {
    if !(1..=MAX_BYTES).contains(&grant.size.0) || !(1..=MAX_LANES).contains(&grant.lanes) {
        return Err(BenchError::Usage(format!("--size is 1B to 1TiB, --lanes 1 to {MAX_LANES}")));
    }
    let plan = grant.measuring.plan()?;
    let cpus = grant.measuring.cpus()?;
    let places = Places { home: cpus.asker, authd: cpus.answerer, provider: cpus.answerer };
    let (config, _own) = match grant.self_contained {
        true => {
            let own = Own::start(grant, places)?;
            (own.config.clone(), Some(own))
        }
        false => (grant.existing.config()?, None),
    };
    let mut lives = Lives { config, grant };
    lives.try_out()?;
    let subject = in_steps(&STEPS, "life", "", |watch| lives.once(watch));
    let measured = measure(&plan, &mut [subject])?;

    let mut report = Report::new("grant", cpus, &plan)?;
    report.times(measured)?;
    report.setting("size", grant.size.0);
    report.setting("lanes", grant.lanes);
    report.device("device", &grant.device);
    report.setting("self_contained", grant.self_contained);
    if grant.self_contained {
        report.setting("requests_per_second", grant.requests_per_second);
        report.setting("authd_state_in_memory", in_memory(&std::env::temp_dir()));
    }
    report.setting("lease_files_in_memory", in_memory(lives.config.leases()));
    report.setting("receipt_looked_for_every_us", PAUSE.as_micros() as u64);
    grant.measuring.finish(report)
}

/// Whether what is written there never waits for a disk.
fn in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// Daemons of this measurement, and a directory for lease files that is in memory where there is one.
struct Own {
    config: Config,
    _stack: Stack,
    _leases: Option<TempDir>,
}

impl Own {
    fn start(grant: &Grant, places: Places) -> Result<Self, BenchError> {
        // Room for two, and for the headers of their blocks.
        let pool = Size((2 * grant.size.0 + grant.size.0 / 8).next_multiple_of(2 << 20).max(POOL.0));
        let mut setup = Setup::new(&grant.device, pool).with_a_large_log();
        setup.places = Some(places);
        let rate = grant.requests_per_second.to_string();
        for option in
            ["--requests-per-second", "--requests-per-second-each", "--handshakes-per-second", "--handshake-burst"]
        {
            setup.authd.extend([option.to_owned(), rate.clone()]);
        }
        let stack = Stack::set_up(&setup)?;
        // Where there is no such place they stay beside the rest.
        let leases = tempfile::tempdir_in(Path::new(MEMORY)).ok();
        let config = match &leases {
            Some(leases) => stack.config.clone().with_leases(leases.path().join("leases")),
            None => stack.config.clone(),
        };
        Ok(Self { config, _stack: stack, _leases: leases })
    }
}

/// Leases, one after the other.
struct Lives<'a> {
    config: Config,
    grant: &'a Grant,
}

impl Lives<'_> {
    /// One life.
    fn once(&mut self, watch: &mut Watch) -> Result<(), BenchError> {
        let client = watch.time(HANDSHAKE, || self.connect())?;
        let mut lease = watch.time(ALLOCATE, || Ok(client.lease(&self.request())?))?;
        watch.time(ATTACH, || Ok(lease.attach(&self.options())?))?;
        watch.time(RENEW, || Ok(lease.renew(2 * TTL)?))?;
        let id = lease.id();
        let order = Instant::now();
        let mut info = lease.release(Duration::ZERO)?.info;
        watch.note(RELEASE, order.elapsed());
        while info.receipt.is_none() {
            if !matches!(info.state, LeaseState::Ending) || order.elapsed() > PATIENCE {
                return Err(failed("releasing a lease", &format!("no receipt after {:?}", order.elapsed())));
            }
            std::thread::sleep(PAUSE);
            info = client.show_lease(id)?;
        }
        watch.note(RECEIPT, order.elapsed());
        let receipt = client.receipt_file(&info)?;
        let (file, _) = receipt.ok_or_else(|| failed("releasing a lease", &"its receipt is gone again"))?;
        verify_receipt(&file, None).map_err(|error| failed("releasing a lease", &error))?;
        Ok(())
    }

    /// That what is attached can be written and read.
    fn try_out(&self) -> Result<(), BenchError> {
        let client = self.connect()?;
        let mut lease = client.lease(&self.request())?;
        lease.attach(&self.options())?;
        let mut back = [0];
        lease.write(0, &[0xA5])?;
        lease.read(0, &mut back)?;
        lease.release(PATIENCE)?;
        if back == [0xA5] {
            Ok(())
        } else {
            Err(failed("trying a lease out", &"other bytes came back than were written"))
        }
    }

    fn connect(&self) -> Result<Client, BenchError> {
        let client = Client::connect(&self.config)?;
        client.who_am_i()?;
        Ok(client)
    }

    fn request(&self) -> LeaseRequest {
        LeaseRequest::new(self.grant.size.0, TTL)
    }

    fn options(&self) -> AttachOptions {
        AttachOptions { device: self.grant.device.clone(), lanes: self.grant.lanes, ..AttachOptions::default() }
    }
}
