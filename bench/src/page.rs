//! `overbank-bench page`: a lease used as memory, and what its faults are to be compared with.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use overbank::floor::EmptyFaults;
use overbank::{AttachOptions, Client, Config, Faults, LeaseRequest, Region, RegionOptions, Size};
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::error::BenchError;
use crate::existing::Existing;
use crate::figures::{Subject, measure};
use crate::options::Measuring;
use crate::report::Report;
use crate::sealed::Sealed;
use crate::stack::{Places, Setup, Stack};

/// Pages that one timed step of a scan touches.
const STEP: usize = 256;
/// Pages from one to the next of a scan in steps.
const STRIDE: usize = 7;
/// Pages of the memory that is touched to see what the kernel alone takes.
const EMPTY: usize = 2048;
const TTL: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(1);

/// What `page` takes.
#[derive(clap::Args)]
pub(crate) struct Page {
    /// Bytes of each region, of which there are four; an eighth is local
    #[arg(long, default_value = "64MiB")]
    bytes: Size,
    /// Bytes that may be local [default: an eighth]
    #[arg(long)]
    local: Option<Size>,
    /// Bytes of a page: a power of two from 4 KiB to 1 MiB, which is the lease's block too
    #[arg(long, default_value = "4KiB")]
    page: Size,
    /// Who resolves faults: the thread that meets one, or one of the region's own
    #[arg(long, default_value = "signal", value_parser = ["signal", "thread"])]
    faults: String,
    /// Start an auth daemon and a provider for this measurement, from the programs beside this one
    #[arg(long, conflicts_with_all = ["authd", "home"])]
    self_contained: bool,
    #[command(flatten)]
    existing: Existing,
    /// The RDMA device of every end that is started here: auto, soft, or a name
    #[arg(long, default_value = "auto")]
    device: String,
    /// Of the order in which pages are touched at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    measuring: Measuring,
}

/// Measures and reports.
pub(crate) fn run(page: &Page) -> Result<(), BenchError> {
    let plan = page.measuring.plan()?;
    let cpus = page.measuring.cpus()?;
    let size = page.page.0 as usize;
    if !size.is_power_of_two() || !(4096..=1 << 20).contains(&size) || page.bytes.0 / page.page.0 < 1024 {
        return Err(BenchError::Usage(
            "--page is a power of two from 4KiB to 1MiB, --bytes 1024 of them or more".to_owned(),
        ));
    }
    let (config, _stack) = if page.self_contained {
        let places = Places { home: cpus.asker, authd: cpus.asker, provider: cpus.answerer };
        let pool = Size(page.bytes.0 * 6 + (128 << 20));
        let mut setup = Setup::new(&page.device, pool);
        setup.places = Some(places);
        let stack = Stack::set_up(&setup)?;
        (stack.config.clone(), Some(stack))
    } else {
        (page.existing.config()?, None)
    };
    let mut reads = Reads::new(&config, page)?;
    let empty = RefCell::new(EmptyFaults::new(EMPTY, size).map_err(overbank::Error::from)?);
    let random = RefCell::new(Touched::new(&config, page, 0)?);
    let demand = RefCell::new(Touched::new(&config, page, 0)?);
    let ahead = RefCell::new(Touched::new(&config, page, 256 << 10)?);
    let strided = RefCell::new(Touched::new(&config, page, 256 << 10)?);
    random.borrow_mut().shuffle(page.seed);
    strided.borrow_mut().stride(STRIDE);

    let mut subjects = vec![
        Subject::sampled("sealed_read", || reads.next()),
        Subject::sampled("empty_fault", || {
            let mut empty = empty.borrow_mut();
            empty.prepare().map_err(overbank::Error::from)?;
            Ok(nanos(|| empty.touch()))
        }),
        Subject::sampled("missing_fault", || Ok(random.borrow_mut().touch(1, false))),
        Subject::sampled("scan_on_demand", || Ok(demand.borrow_mut().touch(STEP, false) / STEP as u64)),
        Subject::sampled("scan_ahead", || Ok(ahead.borrow_mut().touch(STEP, false) / STEP as u64)),
        Subject::sampled("strided_ahead", || Ok(strided.borrow_mut().touch(STEP, false) / STEP as u64)),
        Subject::sampled("write_ahead", || Ok(ahead.borrow_mut().touch(STEP, true) / STEP as u64)),
    ];
    let measured = measure(&plan, &mut subjects)?;
    drop(subjects);
    reads.sealed.finish()?;

    let mut report = Report::new("page", cpus, &plan)?;
    report.times(measured)?;
    report.setting("page", size);
    report.setting("bytes", page.bytes.0);
    report.setting("faults", page.faults.clone());
    report.setting("seed", page.seed);
    report.setting("scan_step_pages", STEP);
    report.setting("stride_pages", STRIDE);
    report.device("device", &page.device);
    report.setting("self_contained", page.self_contained);
    report.ratio_to_sum("missing_fault", "sealed_read", 1.5, "empty_fault");
    report.ratio("scan_on_demand / scan_ahead", "scan_on_demand", "scan_ahead");
    report.ratio("scan_on_demand / strided_ahead", "scan_on_demand", "strided_ahead");
    let regions =
        [("missing_fault", random), ("scan_on_demand", demand), ("scan_ahead", ahead), ("strided_ahead", strided)];
    for (name, touched) in regions {
        let stats = touched.into_inner().finish()?;
        report.setting(&format!("{name}_stats"), serde_json::to_value(stats).unwrap_or_default());
    }
    page.measuring.finish(report)
}

/// Sealed reads of as many bytes as a page has, from a lease as large as a region, in the same order.
struct Reads {
    sealed: Sealed,
    order: Vec<u32>,
    next: usize,
    buffer: Vec<u8>,
}

impl Reads {
    fn new(config: &Config, page: &Page) -> Result<Self, BenchError> {
        let size = page.page.0 as usize;
        let mut sealed = Sealed::empty(config, None, &page.device, size, page.bytes.0)?;
        for _ in 0..sealed.places() {
            sealed.write()?;
        }
        let mut order: Vec<u32> = (0..sealed.places() as u32).collect();
        order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(page.seed));
        Ok(Self { sealed, order, next: 0, buffer: vec![0; size] })
    }

    /// How many nanoseconds the next one took.
    fn next(&mut self) -> Result<u64, BenchError> {
        let place = self.order[self.next];
        self.next = (self.next + 1) % self.order.len();
        let begun = Instant::now();
        self.sealed.read_at(place, &mut self.buffer)?;
        Ok(begun.elapsed().as_nanos() as u64)
    }
}

/// A region whose pages are all in its lease, and the order in which they are touched.
struct Touched {
    region: Region,
    order: Vec<u32>,
    next: usize,
}

impl Touched {
    fn new(config: &Config, page: &Page, ahead_bytes: u64) -> Result<Self, BenchError> {
        let client = Client::connect(config)?;
        let lease =
            client.lease(&LeaseRequest { block: page.page.0 as u32, ..LeaseRequest::new(page.bytes.0, TTL) })?;
        let mut region = lease.into_region(&RegionOptions {
            faults: if page.faults == "thread" { Faults::Thread } else { Faults::Signal },
            ahead_bytes,
            attach: AttachOptions { device: page.device.clone(), spin: crate::ends::SPIN, ..AttachOptions::default() },
            ..RegionOptions::new(page.local.map_or(page.bytes.0 / 8, |local| local.0))
        })?;
        // A page that was never written would come as zeros.
        let mut random = Xoshiro256PlusPlus::seed_from_u64(page.seed);
        region
            .as_mut_slice()
            .chunks_exact_mut(8)
            .for_each(|word| word.copy_from_slice(&random.random::<u64>().to_le_bytes()));
        let order = (0..(region.len() / region.page()) as u32).collect();
        Ok(Self { region, order, next: 0 })
    }

    /// From now on at random: each page as often as any other, and never soon after it was touched.
    fn shuffle(&mut self, seed: u64) {
        self.order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    }

    /// From now on every so many pages, and once through with those between.
    fn stride(&mut self, step: usize) {
        let pages = self.order.len() as u32;
        self.order = (0..step as u32).flat_map(|first| (first..pages).step_by(step)).collect();
    }

    /// Touches the next pages; how many nanoseconds that took.
    fn touch(&mut self, pages: usize, write: bool) -> u64 {
        let (page, bytes) = (self.region.page(), self.region.as_mut_slice());
        let (order, next) = (&self.order, &mut self.next);
        nanos(|| {
            for _ in 0..pages {
                let at = order[*next] as usize * page;
                black_box(bytes[at]);
                if write {
                    bytes[at] ^= 0xFF;
                }
                *next = (*next + 1) % order.len();
            }
        })
    }

    fn finish(self) -> Result<overbank::RegionStats, BenchError> {
        let stats = self.region.stats();
        self.region.release(PATIENCE)?;
        Ok(stats)
    }
}

fn nanos(act: impl FnOnce()) -> u64 {
    let begun = Instant::now();
    act();
    begun.elapsed().as_nanos() as u64
}
