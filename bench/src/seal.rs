//! `overbank-bench seal`: what sealing and opening a block cost, beside the engines alone and a copy of the bytes.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Instant;

use overbank_fabric::block::{BlockContext, ENGINE, HEADER_LEN, LeaseKey, MAX_BLOCK, MIN_BLOCK, Opener, Sealer};
use overbank_fabric::ids::LeaseId;

use crate::engine::{AesGcm, AwsLc, Engine, TAG_LEN};
use crate::error::BenchError;
use crate::figures::{Subject, measure};
use crate::memcpy::Copier;
use crate::options::Measuring;
use crate::report::Report;

/// Bytes timed together: one small block alone is hardly longer than two looks at the clock.
const TOGETHER: u64 = 32 << 10;

const EXAMPLES: &str = "\
seal_N and open_N are what the library does with a block of N bytes: stamp, associated data, nonce, tag. The engines
alone have the same bytes and a nonce, no associated data and no stamp. Each figure is the mean of as
many blocks in a row as make 32 KiB.

Examples
  overbank-bench seal
  overbank-bench seal --size 4096 --rounds 9 --json";

/// What `seal` takes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Seal {
    /// Bytes of a block, powers of two, 512 to 1048576; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [512, 4096, 65536])]
    size: Vec<u32>,
    #[command(flatten)]
    measuring: Measuring,
}

/// Measures and reports.
pub(crate) fn run(seal: &Seal) -> Result<(), BenchError> {
    let sizes: BTreeSet<u32> = seal.size.iter().copied().collect();
    if let Some(size) = sizes.iter().find(|size| !context(**size).is_valid()) {
        let message = format!("--size is a power of two from {MIN_BLOCK} to {MAX_BLOCK}, not {size}");
        return Err(BenchError::Usage(message));
    }
    let plan = seal.measuring.plan()?;
    let cpus = seal.measuring.cpus()?;
    let mut subjects = Vec::new();
    for &size in &sizes {
        subjects.extend(ours(size)?);
        subjects.extend(alone(size, AwsLc::new)?);
        subjects.extend(alone(size, AesGcm::new)?);
        let mut copier = Copier::hot(size as usize);
        subjects.push(Subject::sampled(format!("memcpy_{size}"), move || Ok(copier.sample())));
    }
    let measured = measure(&plan, &mut subjects)?;
    drop(subjects);

    let mut report = Report::new("seal", cpus, &plan)?;
    report.times(measured)?;
    report.setting("engine", ENGINE);
    for (size, what) in sizes.iter().flat_map(|size| [(size, "seal"), (size, "open")]) {
        let ours = format!("{what}_{size}");
        report.ratio(&format!("{ours} / {ENGINE} alone"), &ours, &format!("{ENGINE}_{ours}"));
    }
    seal.measuring.finish(report)
}

/// What a block of this size is bound to here.
pub(crate) fn context(block: u32) -> BlockContext {
    let tenant = "bench".parse().expect("a tenant's name");
    BlockContext { tenant, lease: LeaseId([7; 16]), generation: 1, block }
}

/// Nanoseconds of one of as many in a row as make [`TOGETHER`].
fn each(size: u32, once: impl FnMut(u64) -> Result<(), BenchError>) -> Result<u64, BenchError> {
    let batch = (TOGETHER / u64::from(size)).max(1);
    let start = Instant::now();
    (0..batch).try_for_each(once)?;
    Ok(start.elapsed().as_nanos() as u64 / batch)
}

fn failed(error: &dyn std::fmt::Display) -> BenchError {
    BenchError::Sealing(error.to_string())
}

/// The library's two.
fn ours(size: u32) -> Result<[Subject<'static>; 2], BenchError> {
    let (context, key) = (context(size), LeaseKey::generate());
    let (mut sealer, mut opener) = (Sealer::new(&key, &context), Opener::new(&key, &context));
    let payload = vec![0xA5; size as usize];
    let mut sealed = vec![0; HEADER_LEN + payload.len()];
    sealer.seal(0, &payload, &mut sealed).map_err(|error| failed(&error))?;
    let (stride, mut opened) = (sealed.clone(), payload.clone());
    let seal = move || {
        each(size, |at| {
            let stamp = sealer.seal(at, black_box(&payload), &mut sealed).map_err(|error| failed(&error))?;
            black_box((stamp, &mut sealed));
            Ok(())
        })
    };
    let open = move || {
        each(size, |_| {
            let stamp = opener.open(0, black_box(&stride), &mut opened).map_err(|error| failed(&error))?;
            black_box((stamp, &mut opened));
            Ok(())
        })
    };
    Ok([Subject::sampled(format!("seal_{size}"), seal), Subject::sampled(format!("open_{size}"), open)])
}

/// The library's opening alone.
pub(crate) fn opening(size: u32) -> Result<Subject<'static>, BenchError> {
    let [_, open] = ours(size)?;
    Ok(open)
}

/// An engine's two.
fn alone<E: Engine + 'static>(size: u32, new: impl Fn() -> Option<E>) -> Result<[Subject<'static>; 2], BenchError> {
    let engine = || new().ok_or_else(|| failed(&"the engine takes no key"));
    let (mut sealer, opener) = (engine()?, engine()?);
    let payload = vec![0xA5; size as usize];
    let (mut sealed, mut tag) = (vec![0; payload.len()], [0; TAG_LEN]);
    sealer.seal(0, &payload, &mut sealed, &mut tag).ok_or_else(|| failed(&E::NAME))?;
    let (ciphertext, its_tag, mut opened) = (sealed.clone(), tag, payload.clone());
    let mut next = 0;
    let seal = move || {
        each(size, |_| {
            next += 1;
            let done = sealer.seal(next, black_box(&payload), &mut sealed, &mut tag);
            black_box((&mut sealed, &mut tag));
            done.ok_or_else(|| failed(&E::NAME))
        })
    };
    let open = move || {
        each(size, |_| {
            let done = opener.open(0, black_box(&ciphertext), &its_tag, &mut opened);
            black_box(&mut opened);
            done.ok_or_else(|| failed(&E::NAME))
        })
    };
    let name = |what| format!("{}_{what}_{size}", E::NAME);
    Ok([Subject::sampled(name("seal"), seal), Subject::sampled(name("open"), open)])
}
