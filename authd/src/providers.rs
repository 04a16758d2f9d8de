//! The lenders: what they offer, what they hold, and what they must still be told.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::{BootId, LeaseId};
use overbank_fabric::message::{Call, Detach, Extend, Fence, Heartbeat, Offer, RefusalCode, Reply, TrustEntry};
use overbank_fabric::receipt::{EndReason, Receipt};
use overbank_fabric::signed::{Signed, to_cbor};
use overbank_fabric::time::{Deadline, Tick};
use rusqlite::Connection;

use crate::audit::{Cause, Entry, Event};
use crate::clock::{Now, ProviderClock};
use crate::core::{Asker, Core, Effect, Fault, Fencing, Next, Order, OrderError, SessionId, Then, Waiting, refuse};
use crate::leases::provider_failed;
use crate::store::leases::{self, LeaseRow, Stage};
use crate::store::{StoreError, Tx, delegates, identities, successions};

/// A provider that was not heard of for this long gets no leases and no attaches.
const AWAY: Duration = Duration::from_secs(5);
/// A lease that is over by this long without a receipt is ordered to be fenced.
const OVERDUE_MS: u64 = 2000;
/// Most orders of a kind in one go.
const MAX_ORDERS: u32 = 256;
/// Longest receipt that is kept, bytes. A real one has some 600.
const MAX_RECEIPT: usize = 4096;
/// No pool and no clock is larger than this; sums of such numbers stay far from overflow.
const MAX_NUMBER: u64 = 1 << 50;

/// A provider, as it last introduced itself.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) key: PublicKey,
    /// None while it is not connected.
    pub(crate) session: Option<SessionId>,
    pub(crate) boot: BootId,
    clock: ProviderClock,
    pub(crate) pool_bytes: u64,
    pub(crate) page_bytes: u64,
    /// As of the last heartbeat, less what was carved since: an estimate, the provider decides.
    pub(crate) free_bytes: u64,
    pub(crate) quarantined_bytes: u64,
    pub(crate) device: String,
    /// Leases that it holds and that the store knows nothing of.
    pub(crate) unknown: HashSet<LeaseId>,
    /// Leases of which it knows an earlier deadline than the store.
    behind: HashSet<LeaseId>,
    /// Whether an operator keeps new leases from it.
    pub(crate) drained: bool,
}

impl Provider {
    /// Whether it is connected and was heard of lately.
    pub(crate) fn is_here(&self, now: Instant) -> bool {
        self.session.is_some() && self.clock.age_at(now) < AWAY
    }

    /// What its clock shows by now, at least.
    pub(crate) fn tick_at(&self, now: Instant) -> Tick {
        self.clock.tick_at(now)
    }
}

/// Text from outside, fit for a terminal and a log: without control characters, at most `most` characters.
pub(crate) fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|it| !it.is_control()).take(most).collect()
}

/// Writes down that a lease's contents are gone with its provider.
pub(crate) fn lose(db: &Connection, row: &LeaseRow, reason: Option<EndReason>) -> Result<(), StoreError> {
    match row.stage {
        Stage::Carving | Stage::Abandoned => leases::delete(db, &row.id),
        _ => leases::update(db, &LeaseRow { stage: Stage::Lost, reason: row.reason.or(reason), ..row.clone() }),
    }
}

/// What a provider's offer and the store disagree on.
struct Compared {
    /// Held, and not in the store.
    unknown: HashSet<LeaseId>,
    /// Held with an earlier deadline than in the store.
    behind: HashSet<LeaseId>,
    /// Number of leases that are active in the store, and are not there any more.
    missing: usize,
}

/// Writes down that a provider does not hold a lease that the store has it hold.
fn give_up(tx: &Tx<'_>, row: &LeaseRow, offer: &Offer) -> Result<(), StoreError> {
    let same_life = row.boot == offer.boot;
    let (event, why) = match row.stage {
        // Ended there while the session was down, well or not: its receipt, or the next order to fence it, says which.
        Stage::Active if same_life && row.deadline <= offer.heartbeat.tick => {
            leases::update(tx, &Core::stopped(row, EndReason::Expired))?;
            (Event::Ending, "expired while its provider was away")
        }
        Stage::Ending if same_life => return Ok(()),
        _ => {
            lose(tx, row, None)?;
            (Event::Lost, "its provider does not hold it")
        }
    };
    tx.audit(Entry::new(event).about(row).detail(why))
}

impl Core {
    /// A provider introduces itself: from now on this session speaks for it, and both sides agree on what it holds.
    pub(crate) fn offer(&mut self, asker: &Asker, offer: Offer, now: Now) -> Result<Reply, Fault> {
        let pages = offer.page_bytes.is_power_of_two() && (4096..=MAX_NUMBER).contains(&offer.page_bytes);
        if !pages || offer.pool_bytes > MAX_NUMBER {
            let text = "a pool has at most 1 PiB, in pages of a power of two of at least 4096 bytes";
            return Err(refuse(RefusalCode::Invalid, text));
        }
        if offer.leases.iter().any(|held| held.deadline.boot != offer.boot) {
            return Err(refuse(RefusalCode::Invalid, "a lease of another life cannot be held"));
        }
        check(&offer.heartbeat)?;
        let Compared { unknown, behind, missing } = self.compare(&asker.key, &offer, now)?;
        let (boot, holds) = (offer.boot, offer.leases.len());
        let (to_fence, to_extend) = (unknown.len(), behind.len());
        tracing::info!(%boot, holds, missing, to_fence, to_extend, "a provider offers its pool");
        let provider = Provider {
            key: asker.key,
            session: Some(asker.session),
            boot: offer.boot,
            clock: ProviderClock::new(offer.heartbeat.tick, now.instant),
            pool_bytes: offer.pool_bytes,
            page_bytes: offer.page_bytes,
            free_bytes: offer.heartbeat.free_bytes.min(offer.pool_bytes),
            quarantined_bytes: offer.heartbeat.quarantined_bytes.min(offer.pool_bytes),
            device: plain(&offer.device, 200),
            unknown,
            behind,
            drained: identities::is_drained(self.store.read(), &asker.key)?,
        };
        let before = self.providers.insert(asker.key, provider);
        if let Some(session) = before.and_then(|before| before.session).filter(|&session| session != asker.session) {
            self.effect(Effect::CloseSession(session));
        }
        self.effect(Effect::Orders(asker.session));
        self.effect(Effect::Changed);
        Ok(Reply::Done)
    }

    /// Compares what a provider holds with what the store has it hold. The store gives up what is not there.
    fn compare(&mut self, provider: &PublicKey, offer: &Offer, now: Now) -> Result<Compared, StoreError> {
        let open = leases::open_at(self.store.read(), provider)?;
        let held: HashMap<LeaseId, Tick> = offer.leases.iter().map(|held| (held.lease, held.deadline.tick)).collect();
        let known: HashSet<LeaseId> = open.iter().map(|row| row.id).collect();
        let unknown = held.keys().filter(|lease| !known.contains(lease)).copied().collect();

        let mut behind = HashSet::new();
        let mut missing = Vec::new();
        for row in &open {
            let same_life = row.boot == offer.boot;
            match (row.stage, held.get(&row.id).filter(|_| same_life)) {
                (Stage::Active, Some(&tick)) if tick < row.deadline => {
                    behind.insert(row.id);
                }
                (_, Some(_)) => {}
                // The order to carve, given over this session's forerunner, settles it by its own outcome.
                (Stage::Carving, None) if same_life && self.making.contains(&row.id) => {}
                (_, None) => missing.push(row),
            }
        }
        let lost = missing.iter().filter(|row| row.stage == Stage::Active).count();
        let unrecorded = self.keeping.lenders.pass(provider, now.instant);
        self.store.write(|tx| {
            if let Some(unrecorded) = unrecorded {
                let detail = format!("{} bytes, life {}, holds {}", offer.pool_bytes, offer.boot, offer.leases.len());
                tx.audit(Entry::new(Event::Offered).detail(detail).unrecorded(unrecorded))?;
            }
            missing.iter().try_for_each(|row| give_up(tx, row, offer))
        })?;
        Ok(Compared { unknown, behind, missing: lost })
    }

    /// A provider is alive.
    pub(crate) fn heartbeat(&mut self, asker: &Asker, beat: &Heartbeat, now: Now) -> Result<Reply, Fault> {
        check(beat)?;
        let provider =
            self.providers.get_mut(&asker.key).filter(|provider| provider.session == Some(asker.session)).ok_or_else(
                || refuse(RefusalCode::Invalid, "an offer comes before a heartbeat, in the same session"),
            )?;
        if beat.tick >= provider.clock.heard() {
            provider.clock = ProviderClock::new(beat.tick, now.instant);
            provider.free_bytes = beat.free_bytes.min(provider.pool_bytes);
            provider.quarantined_bytes = beat.quarantined_bytes.min(provider.pool_bytes);
        }
        Ok(Reply::Done)
    }

    /// A provider says how a lease ended. Said again, it is the same.
    pub(crate) fn ended(&mut self, me: &TrustEntry, signed: Signed<Receipt>, now: Now) -> Result<Reply, Fault> {
        let bad = |text: String| refuse(RefusalCode::BadSignature, text);
        if to_cbor(&signed).len() > MAX_RECEIPT {
            return Err(refuse(RefusalCode::Invalid, format!("a receipt has at most {MAX_RECEIPT} bytes")));
        }
        let signers = self.signers(&me.key)?;
        let opened = signers.iter().find_map(|key| Some((signed.open(key).ok()?, *key)));
        let (receipt, signer) = opened.ok_or_else(|| bad("the receipt is not signed by its provider".to_owned()))?;
        if receipt.provider != signer {
            return Err(bad(format!("the receipt of lease {} is another provider's", receipt.lease)));
        }
        let Some(mut row) = leases::find(self.store.read(), &receipt.lease)? else {
            tracing::info!(lease = %receipt.lease, "a receipt for a lease that nobody was told of");
            return Ok(Reply::Done);
        };
        if (row.provider, row.signer, row.boot, &row.tenant) != (me.key, signer, receipt.boot, &receipt.tenant) {
            return Err(bad(format!("lease {} was not lent by that provider, in that life, to that tenant", row.id)));
        }
        let had = row.receipt.as_ref().and_then(|signed| signed.open(&signer).ok());
        if had.is_some_and(|had| had.is_complete() || !receipt.is_complete()) {
            return Ok(Reply::Done);
        }
        let (complete, reason) = (receipt.is_complete(), receipt.reason);
        if matches!(row.stage, Stage::Carving | Stage::Abandoned) {
            self.store.write(|tx| leases::delete(tx, &row.id))?;
        } else {
            row.stage = if complete { Stage::Ended } else { Stage::Ending };
            row.fenced = true;
            row.reason = if reason == EndReason::Unknown { row.reason.or(Some(reason)) } else { Some(reason) };
            row.receipt = Some(signed);
            let memory = if complete { "clean" } else { "in quarantine" };
            self.store.write(|tx| {
                leases::update(tx, &row)?;
                tx.audit(Entry::new(Event::Ended).about(&row).detail(format!("{reason}; its memory is {memory}")))
            })?;
        }
        if complete
            && let Some(provider) = self.providers.get_mut(&me.key).filter(|provider| provider.boot == receipt.boot)
        {
            provider.free_bytes = provider.free_bytes.saturating_add(receipt.bytes).min(provider.pool_bytes);
        }
        self.effect(Effect::Changed);
        match complete {
            true => {
                tracing::info!(lease = %row.id, tenant = %row.tenant, %reason, "a lease has ended, its memory is clean")
            }
            false => tracing::warn!(lease = %row.id, tenant = %row.tenant, %reason, at_unix_ms = now.unix_ms,
                "a lease has ended, but a step of its end failed: the provider keeps its memory in quarantine"),
        }
        Ok(Reply::Done)
    }

    /// The keys by which a provider may have signed: its own, and those that it took over from.
    fn signers(&self, key: &PublicKey) -> Result<Vec<PublicKey>, StoreError> {
        let mut keys = vec![*key];
        keys.extend(successions::predecessors(self.store.read(), key)?);
        Ok(keys)
    }

    /// A session is over. Where it was a provider's, the provider is away now: whether it was.
    pub(crate) fn session_closed(&mut self, session: SessionId) -> bool {
        let theirs = self.providers.values_mut().find(|provider| provider.session == Some(session));
        theirs.is_some_and(|provider| provider.session.take().is_some())
    }

    /// Asks for [`Core::due_orders`] at a provider, if it is connected.
    pub(crate) fn order_fences(&mut self, provider: &PublicKey) {
        if let Some(session) = self.providers.get(provider).and_then(|provider| provider.session) {
            self.effect(Effect::Orders(session));
        }
    }

    /// What a provider must be told of the daemon's own accord: leases to fence, deadlines that it missed. Those that are
    /// under way are left out; those that failed come again.
    pub(crate) fn due_orders(&mut self, session: SessionId, now: Now) -> Result<Vec<Order>, Fault> {
        let Some(provider) = self.providers.values_mut().find(|provider| provider.session == Some(session)) else {
            return Ok(Vec::new());
        };
        let overdue = Tick(provider.tick_at(now.instant).0.saturating_sub(OVERDUE_MS));
        // Those that are in hand are left out below: they must not take the place of others here.
        let in_hand = u32::try_from(self.making.len() + self.fencing.len()).unwrap_or(u32::MAX);
        let most = MAX_ORDERS.saturating_add(in_hand);
        let rows = leases::to_fence(self.store.read(), &provider.key, &provider.boot, overdue, most)?;
        let mut fences: Vec<(LeaseId, EndReason)> = Vec::new();
        let mut stopped = Vec::new();
        for row in &rows {
            match row.stage {
                Stage::Carving if self.making.contains(&row.id) => continue,
                Stage::Carving => stopped.push(Core::stopped(row, EndReason::Unknown)),
                Stage::Active => stopped.push(Core::stopped(row, EndReason::Expired)),
                _ => {}
            }
            let reason = if row.stage == Stage::Active { EndReason::Expired } else { EndReason::Unknown };
            fences.push((row.id, row.reason.unwrap_or(reason)));
        }
        if !stopped.is_empty() {
            self.store.trail.cause = Cause::own(now);
            self.store.write(|tx| {
                stopped.iter().try_for_each(|row| {
                    leases::update(tx, row)?;
                    let reason = row.reason.unwrap_or(EndReason::Unknown);
                    tx.audit(Entry::new(Event::Ending).about(row).detail(reason.to_string()))
                })
            })?;
        }
        let key = provider.key;
        fences.retain(|(lease, _)| self.fencing.insert(Fencing { provider: key, lease: *lease }));
        // It may claim to hold any number of leases that nobody knows: these come last, and never more at once.
        let here = self.fencing.iter().filter(|fencing| fencing.provider == key).count();
        let claimed = provider.unknown.iter().map(|lease| (*lease, EndReason::Unknown));
        let claimed = claimed.filter(|(lease, _)| self.fencing.insert(Fencing { provider: key, lease: *lease }));
        fences.extend(claimed.take((MAX_ORDERS as usize).saturating_sub(here)));
        let mut orders: Vec<Order> = fences
            .into_iter()
            .map(|(lease, reason)| Order {
                session,
                call: Call::Fence(Fence { lease, reason }),
                then: Then::Fenced(Fencing { provider: key, lease }, Waiting::Nobody),
            })
            .collect();
        let boot = provider.boot;
        for (lease, holder) in delegates::due(self.store.read(), &provider.key, &boot, MAX_ORDERS)? {
            if self.detaching.insert((lease, holder)) {
                let call = Call::Detach(Detach { lease, holder });
                orders.push(Order { session, call, then: Then::Detached(lease, holder) });
            }
        }
        let behind: Vec<LeaseId> = provider.behind.iter().copied().take(MAX_ORDERS as usize).collect();
        for lease in behind {
            provider.behind.remove(&lease);
            let row = leases::find(self.store.read(), &lease)?;
            if let Some(row) = row.filter(|row| row.stage == Stage::Active && row.boot == boot) {
                let call = Call::Extend(Extend { lease, deadline: Deadline { boot, tick: row.deadline } });
                orders.push(Order { session, call, then: Then::CaughtUp(lease) });
            }
        }
        Ok(orders)
    }

    /// A provider that lagged behind knows the deadline now, or is told again.
    pub(crate) fn caught_up(&mut self, lease: &LeaseId, outcome: Result<Reply, OrderError>) -> Result<Next, Fault> {
        match outcome {
            Ok(Reply::Done) => Ok(Next::Answer(Reply::Done)),
            Err(OrderError::Late) => {
                let row = leases::find(self.store.read(), lease)?;
                if let Some(provider) = row.and_then(|row| self.providers.get_mut(&row.provider)) {
                    provider.behind.insert(*lease);
                }
                Err(provider_failed(Err(OrderError::Late)).into())
            }
            other => Err(provider_failed(other).into()),
        }
    }
}

/// Numbers that can be reckoned with.
fn check(beat: &Heartbeat) -> Result<(), Fault> {
    if beat.tick.0 <= MAX_NUMBER && beat.free_bytes <= MAX_NUMBER && beat.quarantined_bytes <= MAX_NUMBER {
        return Ok(());
    }
    Err(refuse(RefusalCode::Invalid, "a heartbeat's numbers are beyond all clocks and memories"))
}
