//! `lease`: borrow memory and give it back; and how a lease is named on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use overbank::{
    Client, Config, Error, LeaseId, LeaseInfo, LeaseRequest, LeaseState, MAX_BLOCK, MIN_BLOCK, Receipt, Size,
    local_leases, show_duration, write_bundle,
};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::table;
use super::{Context, some_size, some_time};

/// Leases.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Borrow memory
    #[command(after_help = "\
Example:
  overbank lease create --size 64MiB --ttl 10m --json")]
    Create {
        /// Usable bytes, such as 64MiB
        #[arg(long, value_name = "SIZE", value_parser = some_size)]
        size: u64,
        /// How long, such as 10m; `lease renew` makes it longer
        #[arg(long, value_name = "TIME", value_parser = some_time)]
        ttl: Duration,
        /// Bytes that are sealed at a time: a power of two from 512 to 1MiB
        #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = block_size)]
        block: u32,
    },
    /// Show your leases; an operator sees all
    List,
    /// Make a lease last longer: until TTL from now
    Renew {
        /// The lease, or the first digits of it
        lease: LeaseName,
        /// How long from now
        #[arg(long, value_name = "TIME", value_parser = some_time)]
        ttl: Duration,
    },
    /// Share a part of a lease with another identity, as a file that only it can open
    Share(super::share::Share),
    /// Take into use what somebody shared with you
    Open(super::share::Open),
    /// End anybody's lease, now (operators only)
    #[command(after_help = "\
Example:
  overbank lease stop 3fa9")]
    Stop {
        /// The lease, or the first digits of it
        lease: LeaseName,
    },
    /// Give a lease back: its memory is made unreachable, then wiped
    #[command(after_help = "\
Examples:
  overbank lease release 3fa9 --receipt 3fa9.receipt
  overbank lease release --all --receipts job17       all that this identity has; a receipt each, LEASE.receipt")]
    Release(super::release::Release),
    /// Keep the provider's signed word on how a lease ended, once it is in; `overbank receipt verify` checks it anywhere
    Receipt {
        /// The lease, or the first digits of it
        lease: LeaseName,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// A lease's id, or enough of its first digits to tell it from the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeaseName {
    Whole(LeaseId),
    Begins(String),
}

impl std::str::FromStr for LeaseName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(lease) = text.parse() {
            return Ok(Self::Whole(lease));
        }
        if text.is_empty() || text.len() >= 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("a lease is named by its 32 hexadecimal digits, or the first few of them".to_owned());
        }
        Ok(Self::Begins(text.to_ascii_lowercase()))
    }
}

impl LeaseName {
    /// The lease: among those with a file here, else among those that the auth daemon knows of us.
    pub(crate) fn resolve(&self, client: &Client) -> Result<LeaseId, Failure> {
        let mut found = self.matching(client.local_leases()?);
        if found.is_empty() {
            found = self.matching(client.leases()?.iter().map(|info| info.lease).collect());
        }
        self.only(&found)
    }

    /// The lease, among those with a file here: nobody is asked.
    pub(crate) fn resolve_here(&self, config: &Config) -> Result<LeaseId, Failure> {
        self.only(&self.matching(local_leases(config)?))
    }

    fn matching(&self, leases: Vec<LeaseId>) -> Vec<LeaseId> {
        match self {
            Self::Whole(lease) => vec![*lease],
            Self::Begins(prefix) => leases.into_iter().filter(|id| id.to_string().starts_with(prefix)).collect(),
        }
    }

    fn only(&self, found: &[LeaseId]) -> Result<LeaseId, Failure> {
        let prefix = match self {
            Self::Whole(lease) => return Ok(*lease),
            Self::Begins(prefix) => prefix,
        };
        match found[..] {
            [lease] => Ok(lease),
            [] => {
                let why = format!("no lease of yours begins with {prefix}: see `overbank lease list`");
                Err(Error::LeaseOver { lease: None, why }.into())
            }
            _ => Err(Failure::Usage(format!("more than one lease begins with {prefix}: write more digits"))),
        }
    }
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create { size, ttl, block } => create(context, &LeaseRequest { bytes: size, ttl, block }),
            Self::List => list(context),
            Self::Share(share) => share.run(context),
            Self::Open(open) => open.run(context),
            Self::Renew { lease, ttl } => {
                let client = context.connect()?;
                let lease = lease.resolve(&client)?;
                let left = client.renew(lease, ttl)?;
                let text = format!("lease {lease} can be used for {} from now on", show_duration(left));
                context.output.answer(&text, &json!({ "lease": lease.to_string(), "left_ms": ms(left) }))
            }
            Self::Stop { lease } => {
                let client = context.connect()?;
                let lease = lease.resolve(&client)?;
                let info = client.stop_lease(lease)?;
                let text = format!("lease {lease} is {}", info.state);
                context.output.answer(&text, &info_json(&info, None, false))
            }
            Self::Receipt { lease, out } => {
                let client = context.connect()?;
                let info = client.show_lease(lease.resolve(&client)?)?;
                let Some((file, pinned)) = client.receipt_file(&info)? else {
                    let text = format!(
                        "lease {} is {}, and no receipt of its end is in yet: try again",
                        info.lease, info.state
                    );
                    return Err(Failure::Usage(text));
                };
                write_bundle(&out, &file)?;
                if !pinned {
                    context.output.notice(&format!(
                        "the lease's file is not here, so that its provider was {} is the auth daemon's word",
                        info.provider
                    ));
                }
                let text = format!("the receipt of lease {} is in {}", info.lease, out.display());
                let answer = json!({
                    "lease": info.lease.to_string(),
                    "provider": info.provider.to_string(),
                    "provider_pinned": pinned,
                    "file": out.display().to_string(),
                });
                context.output.answer(&text, &answer)
            }
            Self::Release(release) => release.run(context),
        }
    }
}

fn create(context: &Context, request: &LeaseRequest) -> Result<(), Failure> {
    let client = context.connect()?;
    let lease = client.lease(request)?;
    if context.config.leases_are_in_home() {
        context.output.notice(&format!(
            "XDG_RUNTIME_DIR is not set, so the lease's key is kept in {}, which may be on a disk or on another machine",
            context.config.leases().display()
        ));
    }
    let id = lease.id().to_string();
    let left = lease.time_left();
    let text = table(&[
        vec!["lease".to_owned(), id.clone()],
        vec!["size".to_owned(), format!("{} in blocks of {}", Size(lease.bytes()), Size(lease.block().into()))],
        vec!["tenant".to_owned(), lease.tenant().to_string()],
        vec!["time".to_owned(), format!("usable for {}", show_duration(left))],
        vec!["key".to_owned(), lease.path().display().to_string()],
    ]);
    let answer = json!({
        "lease": id,
        "bytes": lease.bytes(),
        "block": lease.block(),
        "tenant": lease.tenant().to_string(),
        "ttl_ms": ms(request.ttl),
        "left_ms": ms(left),
        "file": lease.path().display().to_string(),
    });
    context.output.answer(&text, &answer)
}

fn list(context: &Context) -> Result<(), Failure> {
    let client = context.connect()?;
    let leases = client.leases()?;
    let here = client.local_leases()?;
    let has_key = |lease| here.binary_search(&lease).is_ok();
    let mut rows = vec![["LEASE", "SIZE", "STATE", "LEFT", "TENANT", "KEY"].map(str::to_owned).to_vec()];
    let mut entries = Vec::new();
    for info in &leases {
        let state = match info.reason {
            Some(reason) if info.state != LeaseState::Active => format!("{}: {reason}", info.state),
            _ => info.state.to_string(),
        };
        let left = if info.left_ms == 0 { "-".to_owned() } else { show_duration(Duration::from_millis(info.left_ms)) };
        rows.push(vec![
            info.lease.to_string(),
            Size(info.bytes).to_string(),
            state,
            left,
            info.tenant.to_string(),
            if has_key(info.lease) { "here" } else { "-" }.to_owned(),
        ]);
        entries.push(info_json(info, client.receipt(info).as_ref(), has_key(info.lease)));
    }
    context.output.answer(&table(&rows), &json!({ "leases": entries }))
}

/// A lease as the auth daemon lists it. `receipt` is null until it is in and could be checked.
pub(crate) fn info_json(info: &LeaseInfo, receipt: Option<&Receipt>, key_here: bool) -> Value {
    let receipt = receipt.map(|receipt| {
        let steps: Vec<Value> =
            receipt.steps.iter().map(|done| json!({ "step": done.step, "at_us": done.at_us })).collect();
        json!({
            "complete": receipt.is_complete(),
            "reason": receipt.reason,
            "bytes": receipt.bytes,
            "due_us": receipt.due_us,
            "steps": steps,
        })
    });
    json!({
        "lease": info.lease.to_string(),
        "bytes": info.bytes,
        "state": info.state.to_string(),
        "reason": info.reason,
        "left_ms": info.left_ms,
        "tenant": info.tenant.to_string(),
        "holder": info.holder.to_string(),
        "provider": info.provider.to_string(),
        "key_here": key_here,
        "receipt_in": info.receipt.is_some(),
        "receipt": receipt,
    })
}

/// The steps of a receipt, with the time since the end was due.
pub(crate) fn steps(receipt: &Receipt) -> String {
    let mut text = if receipt.is_complete() {
        format!("; the provider's receipt, for {}:", Size(receipt.bytes))
    } else {
        "; the provider's receipt lacks a step, so its memory is kept apart and not used again:".to_owned()
    };
    for done in &receipt.steps {
        let after = done.at_us.saturating_sub(receipt.due_us);
        text += &format!("\n  {:<24} +{}.{:03} ms", done.step.to_string(), after / 1000, after % 1000);
    }
    text
}

fn block_size(text: &str) -> Result<u32, String> {
    let size = text.parse::<Size>().map_err(|error| error.to_string())?;
    u32::try_from(size.0)
        .ok()
        .filter(|block| block.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(block))
        .ok_or_else(|| "a block is a power of two from 512B to 1MiB".to_owned())
}

pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_named_whole_or_by_their_first_digits() {
        assert_eq!("AB".repeat(16).parse(), Ok(LeaseName::Whole(LeaseId([0xab; 16]))));
        assert_eq!("3F".parse(), Ok(LeaseName::Begins("3f".to_owned())));
        for bad in ["", "x", "3f/../x", &"a".repeat(33), "-1", "é"] {
            assert!(bad.parse::<LeaseName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn blocks_are_powers_of_two_within_bounds() {
        assert_eq!(block_size("512"), Ok(512));
        assert_eq!(block_size("1MiB"), Ok(1 << 20));
        for bad in ["0", "256", "2MiB", "4097", "4GiB", "x"] {
            assert!(block_size(bad).is_err(), "{bad}");
        }
    }
}
