//! The trust store as operators keep it: looked at, named, refused, and moved to another auth daemon.

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::message::{Import, Imported, RefusalCode, Rename, TrustEntry, TrustState};

use crate::audit::{Entry, Event};
use crate::clock::Now;
use crate::core::{Core, Effect, Fault, refuse};
use crate::reports::that_fit;
use crate::store::identities;
use crate::trust::{no_such_identity, standing};

/// Entries of one page of an export.
const PAGE: u32 = 2000;
/// Most entries of one import; a message holds no more of them anyway.
const MAX_IMPORT: usize = 10_000;

impl Core {
    /// The identity with this fingerprint, which must be there.
    pub(crate) fn trust_show(&self, fingerprint: &Fingerprint) -> Result<TrustEntry, Fault> {
        let entry = identities::find_by_fingerprint(self.store.read(), fingerprint)?;
        entry.ok_or_else(|| no_such_identity(fingerprint))
    }

    /// Refuses an identity that waits, for good.
    pub(crate) fn deny(&mut self, fingerprint: &Fingerprint) -> Result<TrustEntry, Fault> {
        let entry = self.trust_show(fingerprint)?;
        if entry.state == TrustState::Trusted {
            let text = format!("{fingerprint} is trusted: `overbank trust revoke` ends that");
            return Err(refuse(RefusalCode::Invalid, text));
        }
        self.store.write(|tx| {
            identities::revoke(tx, &entry.key)?;
            tx.audit(Entry::new(Event::Denied).target(entry.fingerprint))
        })?;
        self.effect(Effect::Close(entry.key));
        tracing::info!(identity = %fingerprint, "denied");
        self.trust_show(fingerprint)
    }

    /// Names an identity.
    pub(crate) fn rename(&mut self, rename: &Rename) -> Result<TrustEntry, Fault> {
        let entry = self.trust_show(&rename.fingerprint)?;
        self.store.write(|tx| {
            identities::rename(tx, &entry.key, rename.name.as_ref())?;
            let name = rename.name.as_ref().map_or_else(String::new, ToString::to_string);
            tx.audit(Entry::new(Event::Renamed).target(entry.fingerprint).detail(name))
        })?;
        self.trust_show(&rename.fingerprint)
    }

    /// The next entries that somebody has decided on.
    pub(crate) fn export(&self, after: Option<&PublicKey>) -> Result<Vec<TrustEntry>, Fault> {
        let mut entries = identities::decided_after(self.store.read(), after, PAGE)?;
        entries.truncate(that_fit(&entries));
        Ok(entries)
    }

    /// Takes in what another auth daemon had decided. What is decided on here stays as it is.
    pub(crate) fn import(&mut self, entries: &[Import], now: Now) -> Result<Imported, Fault> {
        if entries.len() > MAX_IMPORT {
            return Err(refuse(RefusalCode::Invalid, format!("an import has at most {MAX_IMPORT} identities")));
        }
        let mut decided = Vec::with_capacity(entries.len());
        for entry in entries {
            let given = match entry.role {
                Some(role) => Some(standing(role, entry.tenant.clone())?),
                None if entry.tenant.is_none() => None,
                None => return Err(refuse(RefusalCode::Invalid, "who has no role has no tenant either")),
            };
            decided.push((entry, given));
        }
        let outcome = self.store.write(|tx| {
            let mut outcome = Imported { added: 0, same: 0, different: 0 };
            for (entry, given) in &decided {
                match identities::find(tx, &entry.key)? {
                    Some(here) if here.state != TrustState::Pending => {
                        let same = match given {
                            None => here.state == TrustState::Revoked,
                            Some(given) => {
                                here.state == TrustState::Trusted
                                    && (here.role, &here.tenant) == (Some(given.role), &given.tenant)
                            }
                        };
                        *(if same { &mut outcome.same } else { &mut outcome.different }) += 1;
                        continue;
                    }
                    Some(_) => {}
                    None => identities::insert_unseen(tx, &entry.key, now.unix_ms)?,
                }
                match given {
                    Some(given) => identities::trust(tx, &entry.key, given)?,
                    None => identities::revoke(tx, &entry.key)?,
                }
                identities::rename(tx, &entry.key, entry.name.as_ref())?;
                let what = given.as_ref().map_or_else(|| "as revoked".to_owned(), |it| format!("as {}", it.role));
                let tenant = given.as_ref().and_then(|it| it.tenant.clone());
                tx.audit(Entry::new(Event::Imported).target(entry.key.fingerprint()).tenant(tenant).detail(what))?;
                outcome.added += 1;
            }
            Ok::<_, Fault>(outcome)
        })?;
        for (entry, given) in &decided {
            let here = self.entry(&entry.key)?.map(|here| here.state);
            self.effect(match given {
                None if here == Some(TrustState::Revoked) => Effect::Close(entry.key),
                _ => Effect::Standing(entry.key),
            });
        }
        let Imported { added, same, different } = outcome;
        tracing::info!(added, same, different, "trust was imported");
        Ok(outcome)
    }
}
