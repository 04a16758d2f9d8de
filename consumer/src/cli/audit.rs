//! `audit`: what the auth daemon decided, as its log has it, and whether that log holds.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use overbank::audit::{Checkpoint, Line, Page, Query, Record, Verified, Verifier};
use overbank::{Client, Error, Fingerprint, LeaseId, RefusalCode, parse_duration, pinned_authd};
use serde_json::json;

use super::Context;
use super::exit::Failure;
use super::output::printable;

/// A line of a log is never longer, bytes.
const LONGEST: u64 = 64 << 10;
/// How long the auth daemon's own file has to be on its disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often `tail -f` looks.
const LOOK: Duration = Duration::from_millis(500);

/// What the auth daemon decided.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the last records, and with -f those that come
    #[command(after_help = "\
Example:
  overbank audit tail -f --json        one JSON object a line, for other programs")]
    Tail {
        /// Go on with what comes, until interrupted
        #[arg(short, long, conflicts_with = "file")]
        follow: bool,
        /// How many of the last records
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
        records: u32,
        #[command(flatten)]
        source: Source,
    },
    /// Show the records that match
    #[command(after_help = "\
Examples:
  overbank audit query --event revoked --since 24h
  overbank audit query --lease 3fa95c… --file /var/log/overbank/audit.jsonl")]
    Query {
        /// By or about this identity: its whole fingerprint
        #[arg(long, value_name = "FINGERPRINT")]
        who: Option<Fingerprint>,
        /// Of this kind, such as granted, revoked, refused
        #[arg(long, value_name = "WORD")]
        event: Option<String>,
        /// Of the last so long, such as 1h
        #[arg(long, value_name = "TIME", value_parser = |text: &str| parse_duration(text).map_err(|error| error.to_string()))]
        since: Option<Duration>,
        /// About this lease: its whole id
        #[arg(long, value_name = "LEASE")]
        lease: Option<LeaseId>,
        #[command(flatten)]
        source: Source,
    },
    /// Write the whole log to a new file, and have the auth daemon forget it: there is room again
    ///
    /// What it goes on with begins with a signature that stands for what is in the file. Keep the file: together they are the
    /// log. The auth daemon forgets only what its own --audit-file has on a disk as well.
    Archive {
        /// A new file
        file: PathBuf,
    },
    /// Check the chain, every signature, and what witnesses saw
    #[command(after_help = "\
Examples:
  overbank audit verify --witness /mnt/elsewhere/authd.heads
  overbank audit verify --file audit.jsonl --witness authd.heads      without the auth daemon")]
    Verify {
        /// Heads of the log that another machine kept (overbank-authd serve --audit-witness)
        #[arg(long, value_name = "FILE")]
        witness: Vec<PathBuf>,
        /// A key that the auth daemon has or had, whose signatures count besides the pinned one's; of a daemon that is asked, those
        /// that signed the next one count without it
        #[arg(long, value_name = "FINGERPRINT")]
        signed_by: Vec<Fingerprint>,
        #[command(flatten)]
        source: Source,
    },
}

/// Where the log is.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// A log in a file (overbank-authd serve --audit-file) instead of the auth daemon's own
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Tail { follow, records, source } => match &source.file {
                Some(path) => tail_file(context, path, records as usize),
                None => tail(context, u64::from(records), follow),
            },
            Self::Query { who, event, since, lease, source } => {
                let since_unix_ms = since.map(|since| ms(now().saturating_sub(since)));
                let query = Query { who, event, since_unix_ms, lease, ..Query::default() };
                match &source.file {
                    Some(path) => each_line(path, |line| match record(line) {
                        Some(record) if query.wants(record) => show(context, record),
                        _ => Ok(()),
                    }),
                    None => pages(&context.connect()?, query, |page| show_all(context, &page)).map(|_| ()),
                }
            }
            Self::Archive { file } => archive(context, &file),
            Self::Verify { witness, signed_by, source } => {
                let verified = match &source.file {
                    Some(path) => verify_file(context, path, &signed_by, &witness)?,
                    None => verify(context, &signed_by, &witness)?,
                };
                say(context, &verified)
            }
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn record(line: &Line) -> Option<&Record> {
    match line {
        Line::Record(hashed) => Some(&hashed.record),
        Line::Checkpoint(_) => None,
    }
}

/// Asks for page after page until the end of the log. Says where to go on.
fn pages(client: &Client, mut query: Query, mut each: impl FnMut(Page) -> Result<(), Failure>) -> Result<u64, Failure> {
    loop {
        let page = client.audit(&query)?;
        let (last, next) = (page.is_last(), page.next_seq);
        // Whoever answers with the same page again would be asked for ever.
        if !last && next <= query.from_seq {
            return Err(Failure::Usage(format!("the auth daemon has no record {}", query.from_seq)));
        }
        each(page)?;
        query.from_seq = next;
        if last {
            return Ok(next);
        }
    }
}

fn tail(context: &Context, records: u64, follow: bool) -> Result<(), Failure> {
    let client = context.connect()?;
    let end = client.audit(&Query { from_seq: u64::MAX, ..Query::default() })?.head.seq;
    let mut query = Query { from_seq: (end + 1).saturating_sub(records), ..Query::default() };
    loop {
        query.from_seq = pages(&client, query.clone(), |page| show_all(context, &page))?;
        if !follow {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn tail_file(context: &Context, path: &Path, records: usize) -> Result<(), Failure> {
    let mut last: VecDeque<Record> = VecDeque::new();
    each_line(path, |line| {
        if let Some(record) = record(line) {
            last.push_back(record.clone());
            if last.len() > records {
                last.pop_front();
            }
        }
        Ok(())
    })?;
    last.iter().try_for_each(|record| show(context, record))
}

/// Reads a log, or a witness's heads, line by line. A last line without its end is one that is being written.
fn each_line(path: &Path, mut each: impl FnMut(&Line) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut file = BufReader::new(File::open(path).map_err(Failure::file("read", path))?);
    let mut text = Vec::new();
    for number in 1u64.. {
        text.clear();
        let read = (&mut file).take(LONGEST).read_until(b'\n', &mut text).map_err(Failure::file("read", path))?;
        if text.pop_if(|last| *last == b'\n').is_none() {
            return match read as u64 {
                LONGEST => {
                    Err(Failure::Log(format!("line {number} of {} is too long for one of a log", path.display())))
                }
                _ => Ok(()),
            };
        }
        let line: Line = serde_json::from_slice(&text)
            .map_err(|error| Failure::Log(format!("line {number} of {} is none of a log: {error}", path.display())))?;
        each(&line)?;
    }
    Ok(())
}

fn verifier(authd: Fingerprint, former: &[Fingerprint], witnesses: &[PathBuf]) -> Result<Verifier, Failure> {
    let mut verifier = Verifier::new(authd);
    former.iter().for_each(|former| verifier.accept(*former));
    for path in witnesses {
        each_line(path, |line| match line {
            Line::Checkpoint(head) => verifier.witness(head).map_err(Failure::log),
            Line::Record(_) => Err(Failure::Log(format!("{} is a log, not the heads of one", path.display()))),
        })?;
    }
    Ok(verifier)
}

fn verify(context: &Context, signed_by: &[Fingerprint], witnesses: &[PathBuf]) -> Result<Verified, Failure> {
    let client = context.connect()?;
    let former = [client.former_keys()?.as_slice(), signed_by].concat();
    let mut verifier = verifier(client.authd(), &former, witnesses)?;
    let mut head = None;
    pages(&client, Query { all: true, ..Query::default() }, |page| {
        page.lines.iter().try_for_each(|line| verifier.line(line)).map_err(Failure::log)?;
        head = page.is_last().then_some(page.head);
        Ok(())
    })?;
    verifier.finish(head.as_ref()).map_err(Failure::log)
}

/// Nothing is forgotten that is not on disk, whole and verified.
fn archive(context: &Context, path: &Path) -> Result<(), Failure> {
    let client = context.connect()?;
    let mut file = File::create_new(path).map(BufWriter::new).map_err(Failure::file("make", path))?;
    let mut verifier = verifier(client.authd(), &client.former_keys()?, &[])?;
    let mut head = None;
    let mut write = |line: &Line| -> Result<(), Failure> {
        let text = serde_json::to_string(line).unwrap_or_default();
        writeln!(file, "{text}").map_err(Failure::file("write", path))
    };
    pages(&client, Query { all: true, ..Query::default() }, |page| {
        for line in &page.lines {
            verifier.line(line).map_err(Failure::log)?;
            write(line)?;
        }
        head = page.is_last().then_some(page.head);
        Ok(())
    })?;
    let Some(head) = head else { return Err(Failure::Log("the log has no end".to_owned())) };
    write(&Line::Checkpoint(head.clone()))?;
    let verified = verifier.finish(Some(&head)).map_err(Failure::log)?;
    let file = file.into_inner().map_err(|error| Failure::file("write", path)(error.into_error()))?;
    file.sync_all().map_err(Failure::file("write", path))?;
    forget(&client, &head)?;
    say(context, &verified)
}

/// The auth daemon's own file has on its disk a moment later what it has just been given.
fn forget(client: &Client, head: &Checkpoint) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match client.audit_forget(head) {
            Err(Error::Refused { refusal, .. }) if refusal.code == RefusalCode::Busy && Instant::now() < until => {
                std::thread::sleep(LOOK);
            }
            forgotten => return Ok(forgotten?),
        }
    }
}

fn verify_file(
    context: &Context,
    path: &Path,
    signed_by: &[Fingerprint],
    witnesses: &[PathBuf],
) -> Result<Verified, Failure> {
    let pinned = pinned_authd(&context.config)?;
    let authd = pinned.or(signed_by.first().copied()).ok_or_else(|| {
        let authd = context.config.authd();
        Failure::Usage(format!("no key is pinned for {authd}: say who must have signed, with --signed-by FINGERPRINT"))
    })?;
    let mut verifier = verifier(authd, signed_by, witnesses)?;
    each_line(path, |line| verifier.line(line).map_err(Failure::log))?;
    verifier.finish(None).map_err(Failure::log)
}

/// Says that a log holds, and how far that was proven.
fn say(context: &Context, it: &Verified) -> Result<(), Failure> {
    let mut text = match it.last {
        0 => "the log is empty".to_owned(),
        _ => format!("records {} to {} hold", it.first, it.last),
    };
    text +=
        &format!("; {} signatures, to record {}; {} heads that witnesses saw", it.checkpoints, it.signed, it.witnessed);
    if it.earlier > 0 {
        text += &format!(", {} of records before these", it.earlier);
    }
    if it.signed < it.last {
        text += &format!("; the {} after the last signature rest on the chain alone", it.last - it.signed);
    }
    let answer = json!({
        "first": it.first,
        "last": it.last,
        "hash": it.hash.to_string(),
        "signed_to": it.signed,
        "signatures": it.checkpoints,
        "witnessed": it.witnessed,
        "witnessed_earlier": it.earlier,
    });
    context.output.answer(&text, &answer)
}

fn show_all(context: &Context, page: &Page) -> Result<(), Failure> {
    page.lines.iter().filter_map(record).try_for_each(|record| show(context, record))
}

fn show(context: &Context, record: &Record) -> Result<(), Failure> {
    let line = match context.output.json {
        true => serde_json::to_string(record).unwrap_or_default(),
        false => words(record),
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| if stdout.is_terminal() { stdout.flush() } else { Ok(()) }).map_err(
        |error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::File { doing: "write to", path: "standard output".into(), source: error },
        },
    )
}

/// A record on one line for people.
fn words(it: &Record) -> String {
    let mut line = format!("{:>7}  {}  {}", it.seq, utc(it.unix_ms), printable(&it.event));
    if it.outcome != "done" {
        line += &format!(" ({})", printable(&it.outcome));
    }
    if let Some(target) = it.target {
        line += &format!("  {target}");
    }
    if let Some(lease) = it.lease {
        line += &format!("  lease {lease}");
    }
    if let Some(tenant) = &it.tenant {
        line += &format!("  of {tenant}");
    }
    if !it.detail.is_empty() {
        line += &format!("  {}", printable(&it.detail));
    }
    match (it.who, it.role) {
        (Some(who), Some(role)) => line += &format!("  by {who} ({role})"),
        (Some(who), None) => line += &format!("  by {who}"),
        (None, _) => {}
    }
    if let Some(from) = &it.from {
        line += &format!("  from {}", printable(from));
    }
    if let Some(correlation) = it.correlation {
        line += &format!("  [{correlation}]");
    }
    line
}

/// A time as `2026-09-21T13:46:40.000Z`.
pub(super) fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Days since 1 March of the year 0, in cycles of 400 years of the Gregorian calendar.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month > 9), if month > 9 { month - 9 } else { month + 3 });
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_735_689_600_001, "2025-01-01T00:00:00.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(unix_ms), text);
        }
    }
}
