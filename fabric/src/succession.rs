//! How one key takes over from another: the old one signs the new, and the new one proves itself in a handshake.

use serde::{Deserialize, Serialize};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::channel;
use crate::handshake::Party;
use crate::identity::{Identity, PublicKey};
use crate::ids::{CorrelationId, Fingerprint};
use crate::labels;
use crate::message::{Call, Reply};
use crate::signed::{Signed, Statement};

/// Longest chain that is followed: as many rotations as may lie between two contacts.
pub const MAX_STEPS: usize = 64;

/// How long a [`Handover`] is good once it is signed, milliseconds.
pub const HANDOVER_MS: u64 = 3_600_000;

/// "That key takes over from me": an identity's word to one auth daemon, for a while. Whoever finds it later, or takes it to
/// another auth daemon that trusts the same key, has nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The auth daemon that is to take it so.
    pub authd: PublicKey,
    /// Who signs this, and gives way.
    pub old: PublicKey,
    /// Who takes over.
    pub new: PublicKey,
    /// Wall-clock time, milliseconds since 1970, when it is void.
    pub expires_unix_ms: u64,
}

impl Statement for Handover {
    const LABEL: &'static [u8] = labels::HANDOVER;
}

impl Signed<Handover> {
    /// The old identity's word to `authd`, signed at that wall-clock time, that `new` takes over from it.
    #[must_use]
    pub fn to(authd: &PublicKey, old: &Identity, new: &PublicKey, unix_ms: u64) -> Self {
        let expires_unix_ms = unix_ms.saturating_add(HANDOVER_MS);
        Self::new(&Handover { authd: *authd, old: old.public(), new: *new, expires_unix_ms }, old)
    }
}

/// "From now on I am that key": the auth daemon's own, which who knows the old key follows whenever it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// Who signs this, and gives way.
    pub old: PublicKey,
    /// Who takes over.
    pub new: PublicKey,
}

impl Statement for Succession {
    const LABEL: &'static [u8] = labels::SUCCESSION;
}

impl Signed<Succession> {
    /// The old key's word that `new` takes over from it.
    #[must_use]
    pub fn of(old: &Identity, new: &PublicKey) -> Self {
        Self::new(&Succession { old: old.public(), new: *new }, old)
    }
}

/// Whether `steps` lead from the key with this fingerprint to `to`, each signed by the one before. The keys from
/// which they lead, the first the oldest, are then known to be its predecessors. `to` must have proven itself otherwise.
#[must_use]
pub fn follow(from: &Fingerprint, steps: &[Signed<Succession>], to: &PublicKey) -> Option<Vec<PublicKey>> {
    let mut before: Vec<PublicKey> = Vec::new();
    let mut next: Option<PublicKey> = None;
    if steps.len() > MAX_STEPS {
        return None;
    }
    for step in steps {
        let claim = step.claim()?;
        let due = match next {
            // Steps before the key that is asked about are none of its business.
            None => claim.old.fingerprint() == *from,
            Some(key) => claim.old == key,
        };
        match (due, next) {
            (true, _) if step.open(&claim.old).is_ok() => {
                before.push(claim.old);
                next = Some(claim.new);
            }
            (false, None) => {}
            _ => return None,
        }
    }
    (next == Some(*to)).then_some(before)
}

/// The keys that came before `to`, the first the oldest, as far as the signed steps to it show. `to` must have proven itself
/// otherwise.
#[must_use]
pub fn former(steps: &[Signed<Succession>], to: &PublicKey) -> Vec<PublicKey> {
    let first = steps.first().and_then(Signed::claim);
    first.and_then(|first| follow(&first.old.fingerprint(), steps, to)).unwrap_or_default()
}

/// Asks an auth daemon whose key is not the one with the fingerprint `from` by which steps it came by its key: its key, and
/// those it had before, the first the one of `from`. None where no signed steps lead there: it is to be taken for somebody
/// else then. It asks with a key made for that, so that nobody learns who asks.
pub async fn learn<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    from: &Fingerprint,
) -> Option<(PublicKey, Vec<PublicKey>)> {
    let nobody = Identity::generate();
    let (mut channel, peer) = channel::connect(stream, &nobody, Party::Client, |_| Ok(())).await.ok()?;
    if peer.party != Party::Authd {
        return None;
    }
    match channel.call(CorrelationId::random(), 5000, Call::Successions).await.ok()? {
        Reply::Successions(steps) => Some((peer.key, follow(from, &steps, &peer.key)?)),
        _ => None,
    }
}

impl Signed<Succession> {
    /// What it says, not yet believed: who should have signed it stands in it.
    fn claim(&self) -> Option<Succession> {
        self.unverified().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unbroken_signed_chain_leads_anywhere() {
        let keys: Vec<Identity> = (0..4).map(|_| Identity::generate()).collect();
        let step = |old: usize, new: usize| Signed::of(&keys[old], &keys[new].public());
        let chain = [step(0, 1), step(1, 2), step(2, 3)];
        let print = |key: usize| keys[key].public().fingerprint();
        let public = |key: usize| keys[key].public();
        assert_eq!(follow(&print(0), &chain, &public(3)), Some(vec![public(0), public(1), public(2)]));
        assert_eq!(follow(&print(1), &chain, &public(3)), Some(vec![public(1), public(2)]), "from the middle");
        assert_eq!(follow(&print(0), &chain, &public(2)), None, "not to where it ends");
        assert_eq!(follow(&print(3), &chain, &public(3)), None, "no step");
        assert_eq!(follow(&print(0), &[step(0, 1), step(2, 3)], &public(3)), None, "a step is missing");
        assert_eq!(former(&chain, &public(3)), [public(0), public(1), public(2)]);
        assert_eq!(former(&chain, &public(2)), [], "not to where it ends");
        assert_eq!(former(&[step(0, 1), step(2, 3)], &public(3)), [], "a step is missing");
        // Signed by the new one, or by a stranger, and not by the old one.
        let forged = Signed::new(&Succession { old: public(0), new: public(3) }, &keys[3]);
        assert_eq!(follow(&print(0), std::slice::from_ref(&forged), &public(3)), None);
        assert_eq!(follow(&print(0), &[step(0, 1), forged], &public(3)), None);
        assert_eq!(follow(&print(0), &vec![step(0, 0); MAX_STEPS + 1], &public(0)), None, "endless");
    }
}
