//! `lease release`: one lease, or all that this identity has, with the provider's word on each.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use overbank::{Client, Error, ErrorKind, LeaseInfo, LeaseState, write_bundle};
use serde_json::{Value, json};

use super::exit::Failure;
use super::lease::{LeaseName, info_json, steps};
use super::output::table;
use super::{Context, some_time};

/// How often it is asked whether receipts are in.
const AGAIN: Duration = Duration::from_millis(100);
/// Lists of leases that are gone through at most, whatever the auth daemon says.
const LISTS: usize = 100;

/// Give leases back.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The lease, or the first digits of it
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    lease: Option<LeaseName>,
    /// All leases of this identity, whoever uses them, on whatever machine they were made
    #[arg(long)]
    all: bool,
    /// Keep the provider's signed word on the wipe in this file
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    receipt: Option<PathBuf>,
    /// Keep that of each lease that is over in this directory, also of those that had ended before
    #[arg(long, value_name = "DIR", requires = "all", conflicts_with = "lease")]
    receipts: Option<PathBuf>,
    /// How long to wait for receipts, once no memory can be reached any more
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = some_time)]
    wait: Duration,
}

impl Release {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.connect()?;
        match &self.lease {
            Some(lease) => self.one(lease, &client, context),
            None => self.all(&client, context),
        }
    }

    fn one(&self, lease: &LeaseName, client: &Client, context: &Context) -> Result<(), Failure> {
        let lease = lease.resolve(client)?;
        let released = client.release(lease, self.wait)?;
        let mut text = format!("lease {lease} is {}", released.info.state);
        match &released.receipt {
            Some(receipt) => text += &steps(receipt),
            None => {
                text += ": its memory is out of reach; the receipt of its wipe is not in, or cannot be checked here"
            }
        }
        if let Some(out) = &self.receipt {
            let Some((file, _)) = client.receipt_file(&released.info)? else {
                return Err(self.late("the receipt of the lease, which is released,"));
            };
            write_bundle(out, &file)?;
            text += &format!("\nthe receipt is in {}", out.display());
        }
        context.output.answer(&text, &info_json(&released.info, released.receipt.as_ref(), false))
    }

    fn all(&self, client: &Client, context: &Context) -> Result<(), Failure> {
        // What cannot be released is no reason to keep the others.
        let mut failed: Option<Failure> = release_all(client)?.map(Failure::from);
        let until = Instant::now() + self.wait;
        let mut leases = client.leases()?;
        while leases.iter().any(is_ending) && Instant::now() < until {
            sleep(AGAIN);
            leases = client.leases()?;
        }
        let head = ["LEASE", "STATE", "RECEIPT"].map(str::to_owned).to_vec();
        let (mut rows, mut entries) = (vec![head], Vec::new());
        for info in &leases {
            let file = match &self.receipts {
                Some(directory) => keep(client, info, directory).unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    None
                }),
                None => None,
            };
            let shown = match &file {
                Some(file) => file.display().to_string(),
                None => if info.receipt.is_some() { "in" } else { "-" }.to_owned(),
            };
            rows.push(vec![info.lease.to_string(), info.state.to_string(), shown]);
            let mut entry = info_json(info, client.receipt(info).as_ref(), false);
            entry["file"] = file.map_or(Value::Null, |file| json!(file.display().to_string()));
            entries.push(entry);
        }
        context.output.answer(&table(&rows), &json!({ "leases": entries }))?;
        if let Some(error) = failed {
            return Err(error);
        }
        if leases.iter().any(is_ending) {
            return Err(self.late("the receipts of all leases, which are released,"));
        }
        Ok(())
    }

    fn late(&self, what: &'static str) -> Failure {
        Error::Deadline { what, deadline: self.wait }.into()
    }
}

/// Makes the memory of all leases unreachable. The first error of those that could not be released.
fn release_all(client: &Client) -> Result<Option<Error>, Error> {
    let mut failed = None;
    // A list has only so many; those that are not over come first.
    for _ in 0..LISTS {
        let before = client.leases()?;
        let active: Vec<_> = before.iter().filter(|info| info.state == LeaseState::Active).collect();
        let mut some = false;
        for info in &active {
            match client.release(info.lease, Duration::ZERO) {
                Ok(_) => some = true,
                // It ended meanwhile by itself.
                Err(error) if matches!(error.kind(), ErrorKind::LeaseOver | ErrorKind::LeaseLost) => some = true,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if !some || failed.is_some() {
            break;
        }
    }
    Ok(failed)
}

fn is_ending(info: &LeaseInfo) -> bool {
    info.state == LeaseState::Ending
}

/// Writes the receipt of a lease, where it is in; the file.
fn keep(client: &Client, info: &LeaseInfo, directory: &Path) -> Result<Option<PathBuf>, Failure> {
    let Some((bundle, _)) = client.receipt_file(info)? else { return Ok(None) };
    let file = directory.join(format!("{}.receipt", info.lease));
    write_bundle(&file, &bundle)?;
    Ok(Some(file))
}
