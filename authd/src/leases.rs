//! A lease's life as its holder drives it: made, renewed, attached to, released.

use overbank_fabric::attach::MAX_REQUEST;
use overbank_fabric::block::{HEADER_LEN, MAX_BLOCK, MIN_BLOCK};
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{
    Attach, Call, Carve, CreateLease, Extend, Fence, Granted, Refusal, RefusalCode, RenewLease, Reply, TrustEntry,
    TrustState,
};
use overbank_fabric::receipt::{EndReason, Step};
use overbank_fabric::time::{Deadline, Tick};
use overbank_fabric::token::{Rights, Scope, Token};
use overbank_fabric::units::{Size, show_duration};
use std::time::Duration;

use crate::audit::{Entry, Event};
use crate::clock::{Now, millis};
use crate::core::{Core, Effect, Fault, Fencing, Next, Order, OrderError, Then, Waiting, refuse};
use crate::providers::{Provider, plain};
use crate::store::leases::{self, LeaseRow, Stage};

/// Shortest lease, milliseconds.
const MIN_TTL_MS: u64 = 1000;
/// Providers that are asked in turn, where one after the other turns out to be full.
const MAX_TRIED: usize = 4;
/// Of the leases of one holder that are over, the newest are kept.
const KEEP_OVER: u32 = 1000;
/// A lease's contents live once, under one id: there is no second generation of them.
const GENERATION: u64 = 1;

/// A lease that is being made.
#[derive(Debug)]
pub(crate) struct Making {
    lease: LeaseId,
    wish: CreateLease,
    /// Providers that were asked, this one included.
    tried: Vec<PublicKey>,
}

/// How a lease stands right now, its deadline considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Usable, for this many milliseconds.
    Active(u64),
    /// Over, for this reason.
    Over(EndReason),
    /// Its contents are gone.
    Lost,
}

/// Blocks that hold `bytes`, and the bytes of memory that they take in pages of `page` bytes.
fn footprint(bytes: u64, block: u32, page: u64) -> Option<(u64, u64)> {
    let blocks = bytes.div_ceil(u64::from(block));
    let stride = u64::from(block) + HEADER_LEN as u64;
    Some((blocks, blocks.checked_mul(stride)?.checked_next_multiple_of(page)?))
}

/// What a provider's failure to do as ordered means for who waits for it.
pub(crate) fn provider_failed(outcome: Result<Reply, OrderError>) -> Refusal {
    use RefusalCode::{
        BadSignature, BadToken, Busy, Deadline, Internal, Invalid, LeaseEnded, LeaseLost, NoSuchLease, PoolFull,
        ProviderAway,
    };
    match outcome {
        Err(OrderError::Refused(refusal)) => match refusal.code {
            BadToken | BadSignature | NoSuchLease | LeaseEnded | LeaseLost | Invalid | Busy | PoolFull | Deadline => {
                Refusal::new(refusal.code, plain(&refusal.message, 400))
            }
            _ => Refusal::new(Internal, format!("the provider refuses: {}", plain(&refusal.message, 400))),
        },
        Err(OrderError::Gone) => {
            Refusal::new(ProviderAway, "the lease's provider lost its session meanwhile: try again")
        }
        Err(OrderError::Late) => Refusal::new(Deadline, "the lease's provider did not answer in time: try again"),
        Ok(_) => Refusal::new(Internal, "the lease's provider answered something else than it was asked"),
    }
}

impl Core {
    /// Makes a lease, or finds the one that the same request made before.
    pub(crate) fn create(&mut self, me: &TrustEntry, wish: CreateLease, now: Now) -> Result<Next, Fault> {
        if wish.bytes == 0 {
            return Err(refuse(RefusalCode::Invalid, "a lease has at least 1 byte"));
        }
        if !wish.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&wish.block) {
            let text = format!("a block of {} bytes: use a power of two from {MIN_BLOCK} to {MAX_BLOCK}", wish.block);
            return Err(refuse(RefusalCode::Invalid, text));
        }
        self.check_ttl(wish.ttl_ms)?;
        let made = leases::find_by_nonce(self.store.read(), &me.key, &wish.nonce)?;
        let Some(row) = made.filter(|_| !cfg!(feature = "danger-no-nonce")) else {
            self.may_grant(me, now)?;
            return self.carve(&me.key, wish, Vec::new(), now);
        };
        if (row.bytes, row.block) != (wish.bytes, wish.block) {
            let text = format!("lease {} was made with this nonce and another size: use a fresh nonce", row.id);
            return Err(refuse(RefusalCode::Invalid, text));
        }
        match row.stage {
            Stage::Carving if self.making.contains(&row.id) => Ok(Next::Wait),
            // Cut off by a crash, or by a store that failed.
            Stage::Carving => {
                self.store.write(|tx| leases::update(tx, &Core::stopped(&row, EndReason::Unknown)))?;
                self.order_fences(&row.provider);
                self.carve(&me.key, wish, Vec::new(), now)
            }
            _ => self.granted(&row, now),
        }
    }

    fn check_ttl(&self, ttl_ms: u64) -> Result<(), Fault> {
        let max = self.limits.max_lease;
        if (MIN_TTL_MS..=millis(max)).contains(&ttl_ms) {
            return Ok(());
        }
        let asked = show_duration(Duration::from_millis(ttl_ms));
        let text = format!("a lease runs for 1s to {} before it is renewed, not for {asked}", show_duration(max));
        Err(refuse(RefusalCode::Invalid, text))
    }

    /// Picks a provider, writes the lease down as being made, and orders it.
    fn carve(
        &mut self,
        holder: &PublicKey,
        wish: CreateLease,
        mut tried: Vec<PublicKey>,
        now: Now,
    ) -> Result<Next, Fault> {
        let tenant = self.entry(holder)?.and_then(|entry| entry.tenant);
        let tenant =
            tenant.ok_or_else(|| refuse(RefusalCode::Forbidden, "only a consumer has a tenant to lease for"))?;
        let room = |provider: &Provider| {
            let (_, pinned) = footprint(wish.bytes, wish.block, provider.page_bytes)?;
            (provider.is_here(now.instant) && !provider.drained && pinned <= provider.free_bytes)
                .then_some(provider.free_bytes)
        };
        let candidates = self.providers.values().filter(|provider| !tried.contains(&provider.key));
        let best = candidates
            .filter_map(|provider| Some((room(provider)?, provider)))
            .max_by_key(|(free, provider)| (*free, provider.key));
        let Some((session, provider)) = best.and_then(|(_, provider)| Some((provider.session?, provider))) else {
            return Err(refuse(RefusalCode::PoolFull, self.pool_full(wish.bytes, wish.block, now)));
        };
        let (blocks, pinned_bytes) = footprint(wish.bytes, wish.block, provider.page_bytes)
            .ok_or_else(|| refuse(RefusalCode::Invalid, "the size is beyond all memory"))?;
        self.check_quota(&tenant, pinned_bytes)?;
        let deadline = Deadline { boot: provider.boot, tick: provider.tick_at(now.instant).after_ms(wish.ttl_ms) };
        let row = LeaseRow {
            id: LeaseId::random(),
            nonce: (!cfg!(feature = "danger-no-nonce")).then_some(wish.nonce),
            holder: *holder,
            tenant: tenant.clone(),
            provider: provider.key,
            boot: provider.boot,
            generation: GENERATION,
            bytes: wish.bytes,
            block: wish.block,
            blocks,
            pinned_bytes,
            deadline: deadline.tick,
            deadline_unix_ms: now.unix_ms.saturating_add(wish.ttl_ms),
            made_unix_ms: now.unix_ms,
            stage: Stage::Carving,
            reason: None,
            fenced: false,
            receipt: None,
            signer: provider.key,
        };
        self.store.write(|tx| leases::insert(tx, &row))?;
        if let Some(provider) = self.providers.get_mut(&row.provider) {
            provider.free_bytes = provider.free_bytes.saturating_sub(pinned_bytes);
        }
        self.making.insert(row.id);
        tried.push(row.provider);
        let call = Call::Carve(Carve { lease: row.id, tenant, blocks, block: row.block, deadline });
        let then = Then::Carved(Making { lease: row.id, wish, tried });
        Ok(Next::Order(Box::new(Order { session, call, then })))
    }

    /// How much is free and where, for who got nothing.
    fn pool_full(&self, bytes: u64, block: u32, now: Now) -> String {
        let (here, away): (Vec<&Provider>, Vec<&Provider>) =
            self.providers.values().partition(|provider| provider.is_here(now.instant));
        let pinned = footprint(bytes, block, here.iter().map(|provider| provider.page_bytes).min().unwrap_or(1));
        let pinned = pinned.map_or_else(|| "more than all memory".to_owned(), |(_, pinned)| Size(pinned).to_string());
        let mut text = format!("no provider has {pinned} free, which a lease of {} takes", Size(bytes));
        match here.len() {
            0 => text.push_str("; none is connected"),
            _ => {
                let mut free: Vec<_> = here.iter().map(|provider| (provider.free_bytes, provider.key)).collect();
                free.sort_unstable_by(|a, b| b.cmp(a));
                for (bytes, key) in free.iter().take(4) {
                    let drained = self.providers.get(key).is_some_and(|provider| provider.drained);
                    let drained = if drained { ", which is drained" } else { "" };
                    text.push_str(&format!("; {} free at {}{drained}", Size(*bytes), key.fingerprint()));
                }
            }
        }
        if !away.is_empty() {
            text.push_str(&format!("; {} away", away.len()));
        }
        text
    }

    /// The provider has carved, or not.
    pub(crate) fn carved(
        &mut self,
        making: Making,
        outcome: Result<Reply, OrderError>,
        now: Now,
    ) -> Result<Next, Fault> {
        self.making.remove(&making.lease);
        self.effect(Effect::Changed);
        let Some(mut row) = leases::find(self.store.read(), &making.lease)? else {
            let text = "the lease's provider restarted, ended it or was revoked while it was being made: try again";
            return Err(refuse(RefusalCode::ProviderAway, text));
        };
        if row.stage != Stage::Carving {
            self.order_fences(&row.provider);
            if self.entry(&row.holder)?.is_some_and(|holder| holder.state == TrustState::Trusted) {
                return Err(refuse(RefusalCode::LeaseEnded, "the lease was stopped while it was being made"));
            }
            return Err(refuse(RefusalCode::Revoked, "the lease's holder was revoked while it was being made"));
        }
        if outcome == Ok(Reply::Done) {
            row.stage = Stage::Active;
            self.store.write(|tx| {
                leases::forget_old(tx, &row.holder, KEEP_OVER)?;
                leases::update(tx, &row)?;
                tx.audit(Entry::new(Event::Granted).about(&row).detail(format!("{} bytes", row.bytes)))
            })?;
            let (tenant, provider) = (&row.tenant, row.provider.fingerprint());
            tracing::info!(lease = %row.id, %tenant, bytes = row.bytes, %provider, "a lease is granted");
            return self.granted(&row, now);
        }
        self.store.write(|tx| leases::update(tx, &Core::stopped(&row, EndReason::Unknown)))?;
        self.order_fences(&row.provider);
        match outcome {
            Err(OrderError::Refused(refusal)) if making.tried.len() < MAX_TRIED => {
                tracing::info!(provider = %row.provider.fingerprint(), code = ?refusal.code, "a provider would not carve");
                let full = refusal.code == RefusalCode::PoolFull;
                if full && let Some(provider) = self.providers.get_mut(&row.provider) {
                    let less = row.pinned_bytes.saturating_sub(provider.page_bytes);
                    provider.free_bytes = provider.free_bytes.min(less);
                }
                // The holder may have a new key since it asked.
                match self.carve(&row.holder, making.wish, making.tried, now) {
                    // There is no other, and room is not what this one lacks.
                    Err(Fault::Refused(none)) if none.code == RefusalCode::PoolFull && !full => {
                        Err(provider_failed(Err(OrderError::Refused(refusal))).into())
                    }
                    next => next,
                }
            }
            other => Err(provider_failed(other).into()),
        }
    }

    /// A lease that ends now, as it is to be written down.
    pub(crate) fn stopped(row: &LeaseRow, reason: EndReason) -> LeaseRow {
        match row.stage {
            Stage::Carving => LeaseRow { stage: Stage::Abandoned, nonce: None, ..row.clone() },
            _ => LeaseRow { stage: Stage::Ending, reason: Some(reason), fenced: false, ..row.clone() },
        }
    }

    /// Milliseconds left of a lease: by its provider's clock, or where that is not known by the wall clock.
    pub(crate) fn left_ms(&self, row: &LeaseRow, now: Now) -> u64 {
        match self.providers.get(&row.provider) {
            Some(provider) if provider.boot == row.boot && !cfg!(feature = "danger-wall-clock") => {
                row.deadline.ms_since(provider.tick_at(now.instant))
            }
            _ => row.deadline_unix_ms.saturating_sub(now.unix_ms),
        }
    }

    /// How a lease stands right now.
    pub(crate) fn stands(&self, row: &LeaseRow, now: Now) -> Standing {
        let left = self.left_ms(row, now);
        match row.stage {
            Stage::Active if left > 0 => Standing::Active(left),
            Stage::Active => Standing::Over(EndReason::Expired),
            Stage::Lost => Standing::Lost,
            _ => Standing::Over(row.reason.unwrap_or(EndReason::Unknown)),
        }
    }

    /// What the holder is told of a lease that is good.
    fn granted(&self, row: &LeaseRow, now: Now) -> Result<Next, Fault> {
        let left_ms = self.left_of_active(row, now)?;
        let scope = Scope {
            lease: row.id,
            deadline: Deadline { boot: row.boot, tick: row.deadline },
            first_block: 0,
            blocks: row.blocks,
            rights: Rights::READ_WRITE,
            holder: row.holder,
        };
        Ok(Next::Answer(Reply::Granted(Box::new(Granted {
            lease: row.id,
            generation: row.generation,
            tenant: row.tenant.clone(),
            provider: row.signer,
            boot: row.boot,
            bytes: row.bytes,
            block: row.block,
            left_ms,
            token: Token::grant(&scope, &self.identity),
        }))))
    }

    /// Milliseconds left of a lease that must be active.
    fn left_of_active(&self, row: &LeaseRow, now: Now) -> Result<u64, Fault> {
        match self.stands(row, now) {
            Standing::Active(left) => Ok(left),
            Standing::Over(reason) => {
                Err(refuse(RefusalCode::LeaseEnded, format!("lease {} is over: {reason}", row.id)))
            }
            Standing::Lost => Err(lost(row)),
        }
    }

    /// A lease that the asker holds.
    fn own(&self, me: &TrustEntry, lease: &LeaseId) -> Result<LeaseRow, Fault> {
        leases::find(self.store.read(), lease)?
            .filter(|row| row.holder == me.key && !matches!(row.stage, Stage::Carving | Stage::Abandoned))
            .ok_or_else(|| no_such_lease(lease))
    }

    /// The provider of a lease and its session, if it is there.
    fn provider_of(&self, row: &LeaseRow, now: Now) -> Result<(&Provider, crate::core::SessionId), Fault> {
        let here = self.providers.get(&row.provider).filter(|it| it.boot == row.boot && it.is_here(now.instant));
        here.and_then(|provider| Some((provider, provider.session?))).ok_or_else(|| {
            let left = show_duration(Duration::from_millis(self.left_ms(row, now)));
            let text = format!(
                "the provider of lease {}, {}, is not connected: try again; the lease ends by itself in {left}",
                row.id,
                row.provider.fingerprint()
            );
            refuse(RefusalCode::ProviderAway, text)
        })
    }

    /// Gives a lease more time.
    pub(crate) fn renew(&mut self, me: &TrustEntry, renew: &RenewLease, now: Now) -> Result<Next, Fault> {
        self.check_ttl(renew.ttl_ms)?;
        let row = self.own(me, &renew.lease)?;
        self.left_of_active(&row, now)?;
        let (provider, session) = self.provider_of(&row, now)?;
        let tick = provider.tick_at(now.instant).after_ms(renew.ttl_ms);
        if tick <= row.deadline {
            return self.granted(&row, now);
        }
        self.may_grant(me, now)?;
        let call = Call::Extend(Extend { lease: row.id, deadline: Deadline { boot: row.boot, tick } });
        Ok(Next::Order(Box::new(Order { session, call, then: Then::Extended(row.id, tick) })))
    }

    /// The provider has moved the deadline, or not. Only then does the holder get a longer token.
    pub(crate) fn extended(
        &mut self,
        lease: &LeaseId,
        tick: Tick,
        outcome: Result<Reply, OrderError>,
        now: Now,
    ) -> Result<Next, Fault> {
        if outcome != Ok(Reply::Done) {
            return Err(provider_failed(outcome).into());
        }
        let mut row = leases::find(self.store.read(), lease)?.ok_or_else(|| no_such_lease(lease))?;
        if row.stage == Stage::Active && tick > row.deadline {
            row.deadline_unix_ms = row.deadline_unix_ms.saturating_add(tick.ms_since(row.deadline));
            row.deadline = tick;
            self.store.write(|tx| {
                leases::update(tx, &row)?;
                tx.audit(Entry::new(Event::Renewed).about(&row))
            })?;
        }
        self.granted(&row, now)
    }

    /// Ends a lease because its holder gives it back.
    pub(crate) fn release(&mut self, me: &TrustEntry, lease: &LeaseId, now: Now) -> Result<Next, Fault> {
        let row = self.own(me, lease)?;
        let reason = match self.stands(&row, now) {
            Standing::Active(_) => EndReason::Released,
            Standing::Over(reason) => reason,
            Standing::Lost => return Err(lost(&row)),
        };
        if row.fenced {
            self.check_fenced(&row)?;
            return Ok(Next::Answer(Reply::Leases(vec![self.info(&row, now)])));
        }
        let (_, session) = self.provider_of(&row, now)?;
        if row.stage == Stage::Active {
            self.store.write(|tx| {
                leases::update(tx, &Core::stopped(&row, reason))?;
                tx.audit(Entry::new(Event::Ending).about(&row).detail(reason.to_string()))
            })?;
        }
        let fencing = Fencing { provider: row.provider, lease: row.id };
        if !self.fencing.insert(fencing) {
            return Ok(Next::Wait);
        }
        let call = Call::Fence(Fence { lease: row.id, reason });
        Ok(Next::Order(Box::new(Order { session, call, then: Then::Fenced(fencing, Waiting::Somebody) })))
    }

    /// A receipt may say that the fence failed, and then nobody may be told otherwise.
    fn check_fenced(&self, row: &LeaseRow) -> Result<(), Fault> {
        let receipt = row.receipt.as_ref().and_then(|signed| signed.open(&row.signer).ok());
        if receipt.is_none_or(|receipt| receipt.steps.iter().any(|done| done.step == Step::Deregistered)) {
            return Ok(());
        }
        let text = format!(
            "a step of the end of lease {} failed at its provider: its memory may be within reach, and is quarantined",
            row.id
        );
        Err(refuse(RefusalCode::Internal, text))
    }

    /// The provider has fenced, or not. Where not, it is ordered again as long as the lease ends.
    pub(crate) fn fenced(
        &mut self,
        fencing: &Fencing,
        waiting: Waiting,
        outcome: Result<Reply, OrderError>,
        now: Now,
    ) -> Result<Next, Fault> {
        self.fencing.remove(fencing);
        let Fencing { provider, lease } = fencing;
        self.effect(Effect::Changed);
        let unknown = matches!(&outcome, Err(OrderError::Refused(refusal)) if refusal.code == RefusalCode::NoSuchLease);
        let over = matches!(&outcome, Err(OrderError::Refused(refusal)) if refusal.code == RefusalCode::LeaseEnded);
        if outcome != Ok(Reply::Done) && !unknown && !over {
            return Err(provider_failed(outcome).into());
        }
        if let Some(provider) = self.providers.get_mut(provider) {
            provider.unknown.remove(lease);
        }
        // It may be more than are ordered at once.
        if waiting == Waiting::Nobody && !self.fencing.iter().any(|other| other.provider == *provider) {
            self.order_fences(provider);
        }
        // Who claims to hold another's lease is told to end it, and decides nothing about it.
        let row = leases::find(self.store.read(), lease)?.filter(|row| row.provider == *provider);
        let Some(mut row) = row else {
            return Ok(Next::Answer(Reply::Done));
        };
        match row.stage {
            Stage::Abandoned => self.store.write(|tx| leases::delete(tx, lease))?,
            Stage::Ending => {
                row.fenced = true;
                // A provider that knows nothing of it will never send a receipt.
                row.stage = if unknown && row.receipt.is_none() { Stage::Lost } else { Stage::Ending };
                self.store.write(|tx| leases::update(tx, &row))?;
            }
            Stage::Carving | Stage::Active | Stage::Ended | Stage::Lost => {}
        }
        Ok(Next::Answer(match waiting {
            Waiting::Somebody => Reply::Leases(vec![self.info(&row, now)]),
            Waiting::Nobody => Reply::Done,
        }))
    }

    /// Sends an attach on to the provider, which has the last word on it.
    pub(crate) fn attach(&mut self, me: &TrustEntry, attach: Attach, now: Now) -> Result<Next, Fault> {
        if attach.request.signed_bytes() > MAX_REQUEST {
            let text = format!("an attach request has at most {MAX_REQUEST} bytes");
            return Err(refuse(RefusalCode::Invalid, text));
        }
        let row = leases::find(self.store.read(), &attach.lease)?;
        // A lease that is older than this daemon's key may have been granted by the one before.
        let keys = self.keys_since(row.as_ref().map_or(u64::MAX, |row| row.made_unix_ms))?;
        let chain = keys
            .iter()
            .map(|key| attach.token.chain(key))
            .reduce(|one, other| one.or(other))
            .unwrap_or(Err(overbank_fabric::token::TokenError::Signature(0)))
            .map_err(|error| refuse(RefusalCode::BadToken, error.to_string()))?;
        let scope = chain.scope();
        if scope.holder != me.key {
            let text = format!("the token is for {}, not for {}", scope.holder.fingerprint(), me.fingerprint);
            return Err(refuse(RefusalCode::BadToken, text));
        }
        if scope.lease != attach.lease {
            return Err(refuse(RefusalCode::BadToken, "the token is for another lease than the request"));
        }
        let row = row.ok_or_else(|| no_such_lease(&attach.lease))?;
        self.left_of_active(&row, now)?;
        let (_, session) = self.provider_of(&row, now)?;
        self.may_grant(me, now)?;
        self.hand_on(&row, chain.holders())?;
        let then = Then::Bound(row.id);
        Ok(Next::Order(Box::new(Order { session, call: Call::Bind(attach), then })))
    }

    /// The provider's answer to an attach goes through as it came. What it refuses is not on record.
    pub(crate) fn bound(&mut self, lease: &LeaseId, outcome: Result<Reply, OrderError>) -> Result<Next, Fault> {
        let Ok(reply @ Reply::Attached(_)) = outcome else { return Err(provider_failed(outcome).into()) };
        let attached = Entry::new(Event::Attached);
        let attached = match leases::find(self.store.read(), lease)? {
            Some(row) => attached.about(&row),
            None => attached.lease(*lease),
        };
        self.store.write(|tx| tx.audit(attached.clone()))?;
        Ok(Next::Answer(reply))
    }
}

fn lost(row: &LeaseRow) -> Fault {
    let text = format!("lease {} is lost: its provider died or is trusted no more, and its contents are gone", row.id);
    refuse(RefusalCode::LeaseLost, text)
}

pub(crate) fn no_such_lease(lease: &LeaseId) -> Fault {
    refuse(RefusalCode::NoSuchLease, format!("no lease {lease}, or not yours: see `overbank lease list`"))
}
