//! `lease share` and `lease open`: a part of a lease for somebody else, and from somebody else.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use overbank::{Fingerprint, PublicKey, ShareRequest, Size, read_bundle, share, show_duration, write_bundle};
use serde_json::json;

use super::exit::Failure;
use super::lease::LeaseName;
use super::output::table;
use super::{Context, some_time};

/// Share a part of a lease.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  overbank lease share 3fa9 --to 90c1…3f --read-only --out bob.share
  overbank lease share 3fa9 --to 90c1…3f --range 1MiB..2MiB --for 10m --out bob.share

The file can be sent in any way: only that identity can open it. Where it may write, the lease's freshness is unknown
from then on, to you too. Range and read-only hold as long as the provider is honest: who opens the file has the key of the
whole lease. Make two leases where that is too much.")]
pub(crate) struct Share {
    /// The lease, or the first digits of it
    lease: LeaseName,
    /// With whom: its fingerprint, or its key (needs no auth daemon); `overbank id` shows both
    #[arg(long, value_name = "KEY")]
    to: Recipient,
    /// It may read, and not write
    #[arg(long)]
    read_only: bool,
    /// Only these bytes, whole blocks: FROM..END, such as 1MiB..2MiB [default: all]
    #[arg(long, value_name = "RANGE")]
    range: Option<ByteRange>,
    /// Only for this long [default: to the deadline that the lease has now]
    #[arg(long = "for", value_name = "TIME", value_parser = some_time)]
    ttl: Option<Duration>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Open what somebody shared.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  overbank lease open bob.share && overbank get 3fa9 part.bin")]
pub(crate) struct Open {
    /// The file, as it was sent to you
    file: PathBuf,
    /// Take it from this identity alone
    #[arg(long, value_name = "FINGERPRINT")]
    from: Option<Fingerprint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recipient {
    Key(PublicKey),
    Fingerprint(Fingerprint),
}

impl std::str::FromStr for Recipient {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(key) = overbank_fabric::ids::unhex("a key", text) {
            return Ok(Self::Key(PublicKey(key)));
        }
        let fingerprint = text.parse().map_err(|_| "give a fingerprint (40 digits) or a key (64 digits)")?;
        Ok(Self::Fingerprint(fingerprint))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ByteRange(std::ops::Range<u64>);

impl std::str::FromStr for ByteRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (from, end) = text.split_once("..").ok_or("a range is FROM..END")?;
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.0).map_err(|error| error.to_string());
        let range = bytes(from)?..bytes(end)?;
        if range.is_empty() { Err("the range has no bytes".to_owned()) } else { Ok(Self(range)) }
    }
}

impl Share {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let lease = self.lease.resolve_here(&context.config)?;
        let to = match self.to {
            Recipient::Key(key) => key,
            Recipient::Fingerprint(fingerprint) => context.connect()?.key_of(fingerprint)?,
        };
        let request =
            ShareRequest { to, read_only: self.read_only, range: self.range.map(|range| range.0), ttl: self.ttl };
        let bundle = share(&context.config, lease, &request)?;
        write_bundle(&self.out, &bundle)?;
        let what = if self.read_only { "for reading" } else { "for reading and writing" };
        let part = request.range.as_ref().map_or("all of it".to_owned(), |range| {
            format!("{} from offset {} on", Size(range.end - range.start), range.start)
        });
        let time =
            self.ttl.map_or("as long as the lease lasts now".to_owned(), |ttl| format!("for {}", show_duration(ttl)));
        let file = self.out.display().to_string();
        let text = format!(
            "lease {lease} is shared with {}: {part}, {what}, {time}. Send it {file}; `overbank lease open` takes it into use",
            to.fingerprint()
        );
        let answer = json!({
            "lease": lease.to_string(),
            "to": to.fingerprint().to_string(),
            "read_only": self.read_only,
            "range": request.range.map(|range| [range.start, range.end]),
            "file": file,
        });
        context.output.answer(&text, &answer)
    }
}

impl Open {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        let bundle = read_bundle(&self.file)?;
        let client = context.connect()?;
        let shared = client.open_share(&bundle, self.from)?;
        let rights = if shared.read_only { "read" } else { "read and write" };
        let text = table(&[
            vec!["lease".to_owned(), shared.lease.to_string()],
            vec!["from".to_owned(), shared.from.to_string()],
            vec![
                "bytes".to_owned(),
                format!("{} from offset {} on", Size(shared.range.end - shared.range.start), shared.range.start),
            ],
            vec!["rights".to_owned(), rights.to_owned()],
            vec!["freshness".to_owned(), "unknown: others may have written to it".to_owned()],
        ]);
        let answer = json!({
            "lease": shared.lease.to_string(),
            "from": shared.from.to_string(),
            "range": [shared.range.start, shared.range.end],
            "read_only": shared.read_only,
            "freshness_known": false,
        });
        context.output.answer(&text, &answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_keys_or_fingerprints() {
        assert_eq!("ab".repeat(32).parse(), Ok(Recipient::Key(PublicKey([0xab; 32]))));
        assert_eq!("ab".repeat(20).parse(), Ok(Recipient::Fingerprint(Fingerprint([0xab; 20]))));
        for bad in ["", "bob", &"ab".repeat(21), &"zz".repeat(20)] {
            assert!(bad.parse::<Recipient>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_have_two_ends_and_something_between() {
        assert_eq!("4KiB..1MiB".parse(), Ok(ByteRange(4096..1 << 20)));
        for bad in ["", "..", "1..", "..1", "1", "5..5", "6..5", "-1..5", "1..2..3"] {
            assert!(bad.parse::<ByteRange>().is_err(), "{bad}");
        }
    }
}
