//! The audit log as the decisions see it: what is recorded, in whose name, and what happens where there is no room.
//!
//! A record is written by [`crate::store::Tx::audit`] inside the transaction of the decision that it is about: there is no
//! decision without its record, and no record of what was not decided. Classes of events share the room:
//! what *grants* something stops where the log is full; what *ends* something has a reserve beyond that, then memory, and
//! never stops; *words* of providers are recorded at a bounded rate where there is room, and so are *notes* of what was
//! refused, which get half of it. What a tenant may fill of it is bounded by its [`Budget`].

mod budget;
pub(crate) mod notes;
pub(crate) mod outlet;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use overbank_fabric::audit::{Checkpoint, Line, MAX_DETAIL, Page, Query, Record};
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{CorrelationId, Fingerprint, LeaseId, Tenant};
use overbank_fabric::message::{RefusalCode, Reply, Role, TrustEntry};
use overbank_fabric::signed::to_cbor;
use overbank_fabric::units::show_duration;

use crate::clock::Now;
use crate::core::{Asker, Core, Fault, refuse};
use crate::providers::plain;
use crate::state::AuditFiles;
use crate::store::leases::LeaseRow;
use crate::store::{StoreError, audit as rows, successions};
use budget::Budget;
use notes::Notes;

/// A checkpoint follows after so many records.
const SIGN_EVERY: u64 = 256;
/// And after so long, where there was a record.
const SIGN_AFTER: Duration = Duration::from_secs(60);
/// After a failure of the store, keeping the log in order waits this long.
const PAUSE: Duration = Duration::from_secs(1);
/// Records looked at for one page.
const SCAN: u32 = 2000;
/// Bytes of one page.
const PAGE: usize = 900 << 10;

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The daemon has begun to serve.
    Started,
    /// It stops.
    Stopped,
    /// The audit log has no room, its reserve included: records are missing from here on.
    AuditFull,
    /// It has room again, after a time in which it had none.
    AuditResumed,
    /// An operator has archived records: a checkpoint stands for them.
    Archived,
    /// An identity came for the first time, or from another host than the last time.
    Seen,
    /// Something was refused, for a reason that matters here.
    Refused,
    /// A connection did not get through the handshake.
    HandshakeFailed,
    /// An invitation was redeemed.
    Joined,
    /// An operator trusts an identity.
    Approved,
    /// An operator made an invitation.
    Invited,
    /// An identity is trusted no more.
    Revoked,
    /// An operator refused an identity that waited.
    Denied,
    /// An operator named an identity.
    Renamed,
    /// An operator took in what another auth daemon had decided.
    Imported,
    /// An identity took over from another.
    Rotated,
    /// An operator keeps new leases from a provider.
    Drained,
    /// And does so no more.
    Undrained,
    /// An operator stops a lease, a tenant, a provider or the daemon.
    StopOrdered,
    /// An operator asked for what takes several.
    Proposed,
    /// One more operator agreed; or as many as it takes had, and it could not be done.
    Consented,
    /// An operator set a tenant's quota.
    QuotaSet,
    /// A lease was granted.
    Granted,
    /// A lease was given more time.
    Renewed,
    /// A provider has bound queue pairs to a lease.
    Attached,
    /// A lease's end has been ordered: given back, revoked, stopped, expired.
    Ending,
    /// A provider's receipt is in: the lease has ended.
    Ended,
    /// A lease's contents are gone with its provider.
    Lost,
    /// A provider came with its pool.
    Offered,
    /// A provider's session is over.
    ProviderAway,
}

/// How an event is treated where room is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It gives somebody something.
    Grant,
    /// It takes something away, or just is so.
    End,
    /// A provider says it.
    Word,
    /// It was refused.
    Note,
}

impl Event {
    /// Its name in the log, and its class.
    fn word(self) -> (&'static str, Class) {
        use Class::{End, Grant, Note, Word};
        match self {
            Self::Started => ("started", End),
            Self::Stopped => ("stopped", End),
            Self::AuditFull => ("audit-full", End),
            Self::AuditResumed => ("audit-resumed", End),
            Self::Archived => ("archived", End),
            Self::Seen => ("seen", Note),
            Self::Refused => ("refused", Note),
            Self::HandshakeFailed => ("handshake-failed", Note),
            Self::Joined => ("joined", Grant),
            Self::Approved => ("approved", Grant),
            Self::Invited => ("invited", Grant),
            Self::Revoked => ("revoked", End),
            Self::Denied => ("denied", End),
            Self::Renamed => ("renamed", Grant),
            Self::Imported => ("imported", Grant),
            Self::Rotated => ("rotated", Grant),
            Self::Drained => ("drained", End),
            Self::Undrained => ("undrained", Grant),
            Self::StopOrdered => ("stop-ordered", End),
            // So that a switch that takes several operators works where the log is full.
            Self::Proposed => ("proposed", End),
            Self::Consented => ("consented", End),
            Self::QuotaSet => ("quota-set", End),
            Self::Granted => ("granted", Grant),
            Self::Renewed => ("renewed", Grant),
            // It is so by then; there was room for it when it was ordered.
            Self::Attached => ("attached", End),
            Self::Ending => ("ending", End),
            Self::Ended => ("ended", End),
            Self::Lost => ("lost", End),
            Self::Offered => ("offered", Word),
            Self::ProviderAway => ("provider-away", Word),
        }
    }

    /// How it is treated where room is short.
    pub(crate) fn class(self) -> Class {
        self.word().1
    }
}

/// How large the log may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Records.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { records: 1_000_000, bytes: 512 << 20 }
    }
}

impl Bounds {
    /// What a class of events may fill.
    pub(crate) fn of(self, class: Class) -> Self {
        let share = |all: u64, reserve: u64| match class {
            Class::Note => all / 2,
            Class::Grant | Class::Word => all,
            Class::End => all.saturating_add((all / 8).max(reserve)),
        };
        Self { records: share(self.records, 64), bytes: share(self.bytes, 64 << 10) }
    }
}

/// On whose behalf something is decided, and when.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cause {
    /// None: of the daemon's own accord.
    pub(crate) who: Option<PublicKey>,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) correlation: Option<CorrelationId>,
    pub(crate) unix_ms: u64,
}

impl Cause {
    /// Somebody's request.
    pub(crate) fn of(asker: &Asker, now: Now) -> Self {
        Self { who: Some(asker.key), from: asker.from, correlation: asker.correlation, unix_ms: now.unix_ms }
    }

    /// Somebody's who comes from there.
    pub(crate) fn from(from: SocketAddr, now: Now) -> Self {
        Self { from: Some(from), ..Self::own(now) }
    }

    /// Nobody's.
    pub(crate) fn own(now: Now) -> Self {
        Self { unix_ms: now.unix_ms, ..Self::default() }
    }
}

/// One thing to record; who, from where and when are the [`Cause`]'s.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) event: Event,
    refused: Option<RefusalCode>,
    lease: Option<LeaseId>,
    tenant: Option<Tenant>,
    target: Option<Fingerprint>,
    detail: String,
}

impl Entry {
    /// That this was done.
    pub(crate) fn new(event: Event) -> Self {
        Self { event, refused: None, lease: None, tenant: None, target: None, detail: String::new() }
    }

    /// That a call was refused.
    pub(crate) fn refused(call: &str, code: RefusalCode) -> Self {
        Self { refused: Some(code), ..Self::new(Event::Refused).detail(call) }
    }

    /// About this lease, its tenant and its provider.
    pub(crate) fn about(self, row: &LeaseRow) -> Self {
        Self { lease: Some(row.id), tenant: Some(row.tenant.clone()), target: Some(row.provider.fingerprint()), ..self }
    }

    /// About this lease alone.
    pub(crate) fn lease(self, lease: LeaseId) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// In this tenant's name.
    pub(crate) fn tenant(self, tenant: Option<Tenant>) -> Self {
        Self { tenant, ..self }
    }

    /// About this identity.
    pub(crate) fn target(self, target: Fingerprint) -> Self {
        Self { target: Some(target), ..self }
    }

    /// With these words. No secret, no contents: they are read by people and kept for good.
    pub(crate) fn detail(self, detail: impl AsRef<str>) -> Self {
        let mut detail = plain(detail.as_ref(), MAX_DETAIL);
        while detail.len() > MAX_DETAIL {
            detail.pop();
        }
        Self { detail, ..self }
    }

    /// And so many like it, of anybody's, that were not recorded before it.
    pub(crate) fn unrecorded(self, count: u64) -> Self {
        if count == 0 {
            return self;
        }
        let detail = format!("{} (and {count} like it before, not recorded)", self.detail);
        self.detail(detail)
    }

    /// The record, but for its number.
    pub(crate) fn record(self, cause: &Cause, role: Option<Role>) -> Record {
        Record {
            seq: 0,
            unix_ms: cause.unix_ms,
            event: self.event.word().0.to_owned(),
            outcome: self.refused.map_or("done", crate::session::code_name).to_owned(),
            who: cause.who.map(|key| key.fingerprint()),
            role,
            from: cause.from.map(|from| from.to_string()),
            correlation: cause.correlation,
            lease: self.lease,
            tenant: self.tenant,
            target: self.target,
            detail: self.detail,
        }
    }
}

/// Keeping the log in order between decisions.
pub(crate) struct Keeping {
    /// The last record that a checkpoint covers.
    signed: u64,
    /// When the first record after it was seen.
    unsigned_since: Option<Instant>,
    /// Nothing is tried before this, after a failure.
    not_before: Option<Instant>,
    /// It was said that there is no room.
    said_full: bool,
    pub(crate) outlets: Vec<outlet::Outlet>,
    /// Bounds what is recorded of those who come in.
    pub(crate) arrivals: Notes<()>,
    /// Bounds what is recorded of each provider's coming and going.
    pub(crate) lenders: Notes<PublicKey>,
    budget: Budget,
}

impl Keeping {
    pub(crate) fn new(signed: u64, bounds: Bounds, now: Instant) -> Self {
        Self {
            signed,
            unsigned_since: None,
            not_before: None,
            said_full: false,
            outlets: Vec::new(),
            arrivals: Notes::new(notes::STRANGERS, now),
            lenders: Notes::new(notes::TRUSTED, now),
            budget: Budget::new(bounds, now),
        }
    }
}

impl Core {
    /// What is decided from here on is decided for this reason.
    pub(crate) fn on_behalf(&mut self, cause: Cause) {
        self.store.trail.cause = cause;
    }

    /// Records something that is no decision of the store's.
    pub(crate) fn note(&mut self, cause: Cause, entry: Entry) -> Result<(), StoreError> {
        self.on_behalf(cause);
        match entry.event.class() {
            Class::Note => self.store.note(|tx| tx.audit(entry.clone())),
            Class::Grant | Class::End | Class::Word => self.store.write(|tx| tx.audit(entry.clone())),
        }
    }

    /// Records what a provider says or does, at a bounded rate.
    pub(crate) fn word(
        &mut self,
        cause: Cause,
        provider: &PublicKey,
        entry: Entry,
        now: Now,
    ) -> Result<(), StoreError> {
        match self.keeping.lenders.pass(provider, now.instant) {
            Some(unrecorded) => self.note(cause, entry.unrecorded(unrecorded)),
            None => Ok(()),
        }
    }

    /// Whether a member of a tenant may be granted one thing more: before anything of it is ordered.
    pub(crate) fn may_grant(&mut self, me: &TrustEntry, now: Now) -> Result<(), Fault> {
        if let Some(none) = self.store.trail.no_grants() {
            return Err(none.into());
        }
        let Some(tenant) = &me.tenant else { return Ok(()) };
        self.keeping.budget.take(tenant, &me.key, now.instant).map_err(|wait| {
            let text = format!(
                "you, or tenant {tenant}, have made as many grants lately as the audit log has room for: try again in {}",
                show_duration(Duration::from_secs(wait.as_secs() + 1))
            );
            refuse(RefusalCode::Busy, text)
        })
    }

    /// The daemon begins to serve.
    pub(crate) fn begin_audit(&mut self, now: Now) -> Result<(), StoreError> {
        let holds = self.check_tail();
        if let Err(error) = &holds {
            tracing::error!(%error, "the audit log does not hold: see `overbank audit verify`");
        }
        let version = env!("CARGO_PKG_VERSION");
        let detail = match holds {
            Ok(()) => format!("version {version}"),
            Err(error) => format!("version {version}; the log before this does not hold: {error}"),
        };
        self.note(Cause::own(now), Entry::new(Event::Started).detail(detail))?;
        self.sign(now)
    }

    /// The daemon stops: the last record, the last signature.
    pub(crate) fn end_audit(&mut self, now: Now) {
        let ended = self.note(Cause::own(now), Entry::new(Event::Stopped)).and_then(|()| self.sign(now));
        if let Err(error) = ended {
            tracing::error!(%error, "the end is not in the audit log");
        }
        self.let_out();
        for outlet in self.keeping.outlets.drain(..) {
            outlet.close();
        }
    }

    /// Whether the records since the last checkpoint follow from it.
    fn check_tail(&self) -> Result<(), String> {
        let last = rows::checkpoint_until(self.store.read(), self.store.trail.head.seq);
        let last = last.map_err(|error| error.to_string())?;
        let mut verifier = overbank_fabric::audit::Verifier::new(self.identity.public().fingerprint());
        let former = successions::former_keys(self.store.read()).map_err(|error| error.to_string())?;
        former.iter().for_each(|former| verifier.accept(former.key.fingerprint()));
        let mut outcome = Ok(());
        let from = match &last {
            Some(checkpoint) => {
                verifier.line(&Line::Checkpoint(checkpoint.clone())).map_err(|error| error.to_string())?;
                checkpoint.seq
            }
            None => 0,
        };
        let scanned = rows::scan(self.store.read(), from.max(1), u32::MAX, |hashed| {
            if hashed.record.seq == from {
                if last.as_ref().is_some_and(|checkpoint| checkpoint.hash != hashed.hash) {
                    outcome = Err(format!("record {from} is not the one that was signed"));
                }
            } else if let Err(error) = verifier.line(&Line::Record(Box::new(hashed))) {
                outcome = Err(error.to_string());
            }
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(|error| error.to_string())?;
        outcome?;
        let end = rows::checkpoint_from(self.store.read(), self.store.trail.head.seq.saturating_add(1));
        match end.map_err(|error| error.to_string())? {
            Some(beyond) => Err(format!("record {} was signed and is gone", beyond.seq)),
            None => Ok(()),
        }
    }

    /// Does what is due between decisions: writes what was kept, signs, lets out. Cheap where nothing is.
    pub(crate) fn settle(&mut self, now: Now) {
        if self.keeping.not_before.is_some_and(|until| now.instant < until) {
            return;
        }
        self.keeping.not_before = None;
        self.store.look_at_disk();
        let full = self.store.trail.gap.is_some();
        if full && !self.keeping.said_full {
            tracing::error!("the audit log is full: nothing is granted, what ends things is kept in memory");
        }
        self.keeping.said_full = full;
        let done = self.close_gap(now).and_then(|()| {
            let head = self.store.trail.head.seq;
            if head == self.keeping.signed {
                return Ok(());
            }
            let since = *self.keeping.unsigned_since.get_or_insert(now.instant);
            let due = now.instant.saturating_duration_since(since) >= SIGN_AFTER;
            if due || head - self.keeping.signed >= SIGN_EVERY { self.sign(now) } else { Ok(()) }
        });
        if let Err(error) = done {
            tracing::error!(%error, "the audit log is not in order; tried again soon");
            self.keeping.not_before = Some(now.instant + PAUSE);
        }
        self.let_out();
    }

    /// Writes what memory kept, now that there is room, and that there was none.
    fn close_gap(&mut self, now: Now) -> Result<(), StoreError> {
        if self.store.trail.can_close_gap() {
            self.store.write(|tx| tx.close_gap(now.unix_ms))?;
            tracing::warn!("the audit log has room again");
        }
        Ok(())
    }

    /// Signs the log as it is.
    fn sign(&mut self, now: Now) -> Result<(), StoreError> {
        let checkpoint = self.head(now);
        self.store.write(|tx| rows::insert_checkpoint(tx, &checkpoint))?;
        self.keeping.signed = checkpoint.seq;
        self.keeping.unsigned_since = None;
        Ok(())
    }

    /// How far the log goes, signed.
    fn head(&self, now: Now) -> Checkpoint {
        let head = self.store.trail.head;
        Checkpoint::new(head.seq, head.hash, now.unix_ms, &self.identity)
    }

    /// Opens the files that are to have the log.
    pub(crate) fn let_out_to(&mut self, files: &AuditFiles) -> Result<(), outlet::OutletError> {
        let named = [(&files.export, outlet::Kind::Export), (&files.witness, outlet::Kind::Witness)];
        for (path, kind) in named {
            if let Some(path) = path {
                let head = self.store.trail.head.seq;
                self.keeping.outlets.push(outlet::Outlet::open(path, kind, self.store.read(), head)?);
            }
        }
        Ok(())
    }

    /// Hands new lines to the files that are to have them.
    fn let_out(&mut self) {
        let (db, head) = (self.store.read(), self.store.trail.head.seq);
        for outlet in &mut self.keeping.outlets {
            if let Err(error) = outlet.feed(db, head) {
                tracing::error!(%error, "the audit log cannot be read");
            }
        }
        self.store.trail.stopped = self.keeping.outlets.iter().find_map(outlet::Outlet::why_stopped);
    }

    /// Forgets the records up to a head that the asker has, so that there is room. The head stays, and stands for them. Only
    /// what the audit file has on its disk is forgotten: no operator takes the daemon's last copy away.
    pub(crate) fn audit_forget(&mut self, head: &Checkpoint, now: Now) -> Result<Reply, Fault> {
        let invalid = |text: String| refuse(RefusalCode::Invalid, text);
        if head.verify().is_err() || head.authd() != self.identity.public() {
            return Err(invalid("that head is not signed by this auth daemon".to_owned()));
        }
        let seq = head.seq;
        let at = rows::at(self.store.read(), seq)?;
        let Some(at) = at.filter(|at| at.hash == head.hash) else {
            return Err(invalid(format!("record {seq} is not in this log, or is another")));
        };
        match self.keeping.outlets.iter().find_map(outlet::Outlet::on_disk) {
            Some(on_disk) if on_disk >= seq => {}
            Some(_) => {
                let text = format!("the audit file does not have record {seq} on its disk yet: try again in a moment");
                return Err(refuse(RefusalCode::Busy, text));
            }
            None => {
                let text = "records are forgotten once a file of the auth daemon's own has them: start it with \
                            --audit-file FILE, a file on a disk, and archive again";
                return Err(invalid(text.to_owned()));
            }
        }
        self.store.write(|tx| {
            rows::insert_checkpoint(tx, head)?;
            let count = tx.forget(at)?;
            tx.close_gap(now.unix_ms)?;
            tx.audit(Entry::new(Event::Archived).detail(format!("{count} records, to record {seq}")))
        })?;
        tracing::info!(to = seq, "records of the audit log are forgotten");
        Ok(Reply::Done)
    }

    /// A part of the log for an operator.
    pub(crate) fn audit_page(&self, query: &Query, now: Now) -> Result<Page, Fault> {
        let db = self.store.read();
        let head = self.head(now);
        let first = rows::first_seq(db)?.unwrap_or(head.seq + 1);
        let from = query.from_seq.max(first).min(head.seq + 1);
        let mut page = Page { lines: Vec::new(), next_seq: from, head };
        let mut room = PAGE;
        if query.all && from > 1 && query.from_seq <= first {
            // Stands for what is kept elsewhere.
            page.lines.extend(rows::checkpoint_until(db, from - 1)?.map(Line::Checkpoint));
        }
        let mut checkpoint = if query.all { rows::checkpoint_from(db, from)? } else { None };
        let mut failed = None;
        rows::scan(db, from, SCAN, |hashed| {
            let seq = hashed.record.seq;
            if query.all || query.wants(&hashed.record) {
                let size = to_cbor(&hashed).len() + 400;
                if size > room {
                    return ControlFlow::Break(());
                }
                room -= size;
                page.lines.push(Line::Record(Box::new(hashed)));
            }
            page.next_seq = seq + 1;
            if let Some(it) = checkpoint.take_if(|it| it.seq == seq) {
                page.lines.push(Line::Checkpoint(it));
                match rows::checkpoint_from(db, seq + 1) {
                    Ok(next) => checkpoint = next,
                    Err(error) => failed = Some(error),
                }
            }
            if failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(page),
        }
    }
}
