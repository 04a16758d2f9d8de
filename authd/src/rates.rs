//! How many requests a second an identity may make, and all identities at one address; and how often what goes before
//! requests may: kill switches and offers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use overbank_fabric::identity::PublicKey;

use crate::bucket::{Buckets, Rate};
use crate::core::Load;
use crate::door::Host;

/// Identities, and hosts, whose rates are told apart.
const MOST: usize = 16_384;

/// Kill switches of one operator that go before all requests; more of them are requests like others.
const SWITCHES: Rate = Rate::every(Duration::from_millis(50), 100);
/// Offers of one provider. An honest one makes one for each of its sessions.
const OFFERS: Rate = Rate::every(Duration::from_secs(1), 32);

/// A bucket for each identity and each host.
pub(crate) struct Rates(Mutex<Each>);

struct Each {
    identities: Buckets<PublicKey>,
    hosts: Buckets<Host>,
    operators: Buckets<PublicKey>,
    providers: Buckets<PublicKey>,
}

impl Rates {
    pub(crate) fn new(load: &Load, now: Instant) -> Self {
        let rate = Rate::new(load.requests_per_second_each, load.requests_per_second_each);
        Self(Mutex::new(Each {
            identities: Buckets::new(rate, MOST, now),
            hosts: Buckets::new(rate, MOST, now),
            operators: Buckets::new(SWITCHES, MOST, now),
            providers: Buckets::new(OFFERS, MOST, now),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Each> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one request, at its host too where that is given. How long it must wait, so that no more come a second than
    /// may; none, and not counted, where that is longer than `most`.
    pub(crate) fn reserve(
        &self,
        key: &PublicKey,
        host: Option<&Host>,
        most: Duration,
        now: Instant,
    ) -> Option<Duration> {
        if cfg!(feature = "danger-no-rates") {
            return Some(Duration::ZERO);
        }
        let Each { identities, hosts, .. } = &mut *self.lock();
        let at_host = host.map_or(Duration::ZERO, |host| hosts.wait(host, now));
        if identities.wait(key, now).max(at_host) > most {
            return None;
        }
        let at_host = host.map_or(Duration::ZERO, |host| hosts.reserve(host, now));
        Some(identities.reserve(key, now).max(at_host))
    }

    /// Counts one kill switch: whether it may go before all requests.
    pub(crate) fn switch(&self, operator: &PublicKey, now: Instant) -> bool {
        self.lock().operators.take(operator, now)
    }

    /// Counts one offer: whether it may be made.
    pub(crate) fn offer(&self, provider: &PublicKey, now: Instant) -> bool {
        cfg!(feature = "danger-no-rates") || self.lock().providers.take(provider, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_much_waits_and_then_is_refused_and_others_are_not() {
        let start = Instant::now();
        let rates = Rates::new(&Load { requests_per_second_each: 100, ..Load::default() }, start);
        let host = |last| Host::from(std::net::IpAddr::from([10, 0, 0, last]));
        let reserve =
            |key, last, now| rates.reserve(&PublicKey([key; 32]), Some(&host(last)), Duration::from_secs(1), now);
        let waits: Vec<_> = (0..1000).map(|_| reserve(1, 1, start)).collect();
        assert_eq!(waits.iter().filter(|wait| **wait == Some(Duration::ZERO)).count(), 100);
        assert_eq!(waits.iter().flatten().count(), 200);
        assert_eq!(reserve(2, 2, start), Some(Duration::ZERO), "somebody else, elsewhere");
        assert!(reserve(2, 1, start).is_none(), "somebody else at that address");
        assert!(reserve(1, 3, start).is_none(), "and the same one at another");
        let anywhere = rates.reserve(&PublicKey([4; 32]), None, Duration::ZERO, start);
        assert_eq!(anywhere, Some(Duration::ZERO), "who is not held to what its host may");
        // What was refused was not counted.
        assert_eq!(reserve(1, 1, start + Duration::from_secs(3)), Some(Duration::ZERO));
    }

    #[test]
    fn who_offers_or_stops_without_a_pause_does_it_ahead_of_others_a_while_only() {
        let start = Instant::now();
        let rates = Rates::new(&Load::default(), start);
        let (one, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        assert_eq!((0..1000).filter(|_| rates.offer(&one, start)).count(), 32);
        assert_eq!((0..1000).filter(|_| rates.switch(&one, start)).count(), 100);
        assert!(rates.offer(&other, start) && rates.switch(&other, start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| rates.offer(&one, later)).count(), 1);
        assert_eq!((0..1000).filter(|_| rates.switch(&one, later)).count(), 20);
    }
}
