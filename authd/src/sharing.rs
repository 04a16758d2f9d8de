//! Leases that their holders have shared: who may attach by a token that came from somebody else, and how that ends.

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{RefusalCode, Reply, Role, TrustState};

use crate::core::{Core, Fault, Next, OrderError, refuse};
use crate::leases::provider_failed;
use crate::store::delegates;
use crate::store::leases::LeaseRow;

/// Most identities with which one lease is shared, all who passed it on included.
const MAX_DELEGATES: u64 = 1024;

impl Core {
    /// Checks all through whose hands a token went, the lease's holder first, and writes down whom the provider is to be
    /// told of if one of them is revoked.
    pub(crate) fn hand_on(&mut self, row: &LeaseRow, mut hands: impl Iterator<Item = PublicKey>) -> Result<(), Fault> {
        if hands.next() != Some(row.holder) {
            return Err(refuse(RefusalCode::BadToken, "the token was not granted to the lease's holder"));
        }
        let mut fresh = Vec::new();
        for hand in hands.filter(|hand| *hand != row.holder) {
            let entry = self.entry(&hand)?;
            // Of whatever tenant: the holder has said that it may.
            let may =
                entry.is_some_and(|entry| entry.state == TrustState::Trusted && entry.role == Some(Role::Consumer));
            if !may {
                let text = format!(
                    "the token went through {}, which is no trusted consumer (any more): have the lease shared anew",
                    hand.fingerprint()
                );
                return Err(refuse(RefusalCode::BadToken, text));
            }
            if !fresh.contains(&hand) && !delegates::has(self.store.read(), &row.id, &hand)? {
                fresh.push(hand);
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        if delegates::count(self.store.read(), &row.id)? + fresh.len() as u64 > MAX_DELEGATES {
            let text = format!("lease {} is shared with {MAX_DELEGATES} identities, which is the most", row.id);
            return Err(refuse(RefusalCode::Busy, text));
        }
        self.store.write(|tx| fresh.iter().try_for_each(|hand| delegates::insert(tx, &row.id, hand)))?;
        Ok(())
    }

    /// The provider has detached somebody who was revoked, or not. Where not, it is told again.
    pub(crate) fn detached(
        &mut self,
        lease: LeaseId,
        holder: PublicKey,
        outcome: Result<Reply, OrderError>,
    ) -> Result<Next, Fault> {
        self.detaching.remove(&(lease, holder));
        let over = |code| matches!(code, RefusalCode::NoSuchLease | RefusalCode::LeaseEnded);
        match outcome {
            Ok(Reply::Done) => {}
            Err(OrderError::Refused(refusal)) if over(refusal.code) => {}
            other => return Err(provider_failed(other).into()),
        }
        self.store.write(|tx| delegates::told(tx, &lease, &holder))?;
        tracing::info!(%lease, identity = %holder.fingerprint(), "detached: it was revoked");
        Ok(Next::Answer(Reply::Done))
    }
}
