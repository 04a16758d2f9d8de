//! One identity takes over from another: with its role, tenant, name and leases.

use overbank_fabric::handshake::Party;
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::message::{RefusalCode, Role, Rotate, TrustEntry, TrustState};
use overbank_fabric::signed::Signed;
use overbank_fabric::succession::{HANDOVER_MS, MAX_STEPS, Succession};

use crate::audit::{Entry, Event};
use crate::clock::Now;
use crate::core::{Core, Effect, Fault, refuse};
use crate::store::identities::{self, Standing};
use crate::store::{leases, successions};
use crate::trust::{no_such_identity, party_of};

/// Each leaves two rows for good, so there are only so many.
const MAX_A_DAY: u64 = 8;
const DAY_MS: u64 = 86_400_000;
/// A handover that is good for longer was signed by a clock that is ahead by more than a day.
const MAX_HANDOVER_MS: u64 = HANDOVER_MS + DAY_MS;

impl Core {
    /// The asker takes over from the identity that has signed so. That one is revoked in the same stroke, and its
    /// sessions end; nothing that it leased or lent does. The asker may repeat it, having missed the answer.
    pub(crate) fn rotate(
        &mut self,
        me: &TrustEntry,
        party: Party,
        rotate: &Rotate,
        now: Now,
    ) -> Result<TrustEntry, Fault> {
        let bad = |text: &str| refuse(RefusalCode::BadSignature, text);
        let done = successions::successor(self.store.read(), &rotate.old)?;
        if done == Some(me.key) {
            return Ok(me.clone());
        }
        let step = rotate.handover.open(&rotate.old).map_err(|_| bad("the old identity has not signed this"))?;
        if (step.old, step.new) != (rotate.old, me.key) {
            return Err(bad("the old identity has signed another successor"));
        }
        if step.authd != self.identity.public() {
            return Err(bad(
                "the old identity has signed this for another auth daemon, or for a former key of this one",
            ));
        }
        if !(1..=MAX_HANDOVER_MS).contains(&step.expires_unix_ms.saturating_sub(now.unix_ms)) {
            return Err(bad("the old identity has signed this for another time: sign anew, or set the clocks"));
        }
        if me.state != TrustState::Pending {
            let text = format!("{} is {} already: a successor is a new identity", me.fingerprint, me.state);
            return Err(refuse(RefusalCode::Invalid, text));
        }
        let old = self.entry(&rotate.old)?.ok_or_else(|| no_such_identity(&rotate.old.fingerprint()))?;
        let (TrustState::Trusted, Some(role)) = (old.state, old.role) else {
            let text = format!("{} is {}: it can hand nothing over", old.fingerprint, old.state);
            return Err(refuse(
                if old.state == TrustState::Revoked { RefusalCode::Revoked } else { RefusalCode::Pending },
                text,
            ));
        };
        if party != party_of(role) {
            let text = format!("{} is a {role}, which this program is not", old.fingerprint);
            return Err(refuse(RefusalCode::Forbidden, text));
        }
        let since = now.unix_ms.saturating_sub(DAY_MS);
        if successions::steps_since(self.store.read(), &old.key, since)? >= MAX_A_DAY {
            let text = format!("{} was handed over {MAX_A_DAY} times within a day: wait", old.fingerprint);
            return Err(refuse(RefusalCode::Busy, text));
        }
        let standing = Standing { role, tenant: old.tenant.clone() };
        let drained = role == Role::Provider && identities::is_drained(self.store.read(), &old.key)?;
        self.store.write(|tx| {
            identities::trust(tx, &me.key, &standing)?;
            identities::rename(tx, &me.key, old.name.as_ref())?;
            identities::drain(tx, &me.key, drained)?;
            leases::hand_over(tx, &old.key, &me.key)?;
            identities::revoke(tx, &old.key)?;
            successions::insert(tx, &step, &rotate.handover, now.unix_ms)?;
            let what = format!("takes over from {}", old.fingerprint);
            tx.audit(Entry::new(Event::Rotated).target(me.fingerprint).tenant(old.tenant.clone()).detail(what))
        })?;
        if let Some(mut provider) = self.providers.remove(&old.key) {
            // Comes back over a session of its own: until then it is away, its clock runs on.
            provider.key = me.key;
            provider.session = None;
            self.providers.insert(me.key, provider);
        }
        self.effect(Effect::Close(old.key));
        self.effect(Effect::Standing(me.key));
        self.effect(Effect::Changed);
        tracing::info!(old = %old.fingerprint, new = %me.fingerprint, %role, "an identity took over from another");
        self.entry(&me.key)?.ok_or_else(|| no_such_identity(&me.fingerprint))
    }

    /// The identity with this fingerprint, or who took over from it last.
    pub(crate) fn newest(&self, fingerprint: &Fingerprint) -> Result<TrustEntry, Fault> {
        let mut entry = self.trust_show(fingerprint)?;
        // Ends: a successor was new when it took over.
        while let Some(next) = successions::successor(self.store.read(), &entry.key)? {
            entry = self.entry(&next)?.ok_or_else(|| no_such_identity(&next.fingerprint()))?;
        }
        Ok(entry)
    }

    /// The steps to this daemon's key. Who asks before it is trusted asks in order to learn whom it talks to, with a key
    /// made for that: nothing of it is kept.
    pub(crate) fn successions(&mut self, me: &TrustEntry) -> Result<Vec<Signed<Succession>>, Fault> {
        if me.state == TrustState::Pending {
            self.store.note(|tx| identities::forget_pending(tx, &me.key))?;
        }
        let mut steps: Vec<_> =
            successions::former_keys(self.store.read())?.into_iter().map(|former| former.statement).collect();
        steps.drain(..steps.len().saturating_sub(MAX_STEPS));
        Ok(steps)
    }

    /// The keys by which a lease that was made at that time may have been granted, this daemon's own first.
    pub(crate) fn keys_since(&self, made_unix_ms: u64) -> Result<Vec<PublicKey>, Fault> {
        let former = successions::former_keys(self.store.read())?;
        let mut keys = vec![self.identity.public()];
        keys.extend(former.iter().rev().take_while(|former| former.until_unix_ms >= made_unix_ms).map(|it| it.key));
        Ok(keys)
    }
}
