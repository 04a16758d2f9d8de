//! How many requests a second an identity may make, and all identities at one address.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use overbank_fabric::identity::PublicKey;

use crate::bucket::{Buckets, Rate};
use crate::core::Load;
use crate::door::Host;

/// Identities, and hosts, whose rates are told apart.
const MOST: usize = 16_384;

/// A bucket for each identity and each host.
pub(crate) struct Rates(Mutex<(Buckets<PublicKey>, Buckets<Host>)>);

impl Rates {
    pub(crate) fn new(load: &Load, now: Instant) -> Self {
        let rate = Rate::new(load.requests_per_second_each, load.requests_per_second_each);
        Self(Mutex::new((Buckets::new(rate, MOST, now), Buckets::new(rate, MOST, now))))
    }

    /// Counts one request. How long it must wait, so that no more come a second than may; none, and not counted, where
    /// that is longer than `most`.
    pub(crate) fn reserve(&self, key: &PublicKey, host: &Host, most: Duration, now: Instant) -> Option<Duration> {
        if cfg!(feature = "danger-no-rates") {
            return Some(Duration::ZERO);
        }
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (identities, hosts) = &mut *rates;
        if identities.wait(key, now).max(hosts.wait(host, now)) > most {
            return None;
        }
        Some(identities.reserve(key, now).max(hosts.reserve(host, now)))
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
        let reserve = |key, last, now| rates.reserve(&PublicKey([key; 32]), &host(last), Duration::from_secs(1), now);
        let waits: Vec<_> = (0..1000).map(|_| reserve(1, 1, start)).collect();
        assert_eq!(waits.iter().filter(|wait| **wait == Some(Duration::ZERO)).count(), 100);
        assert_eq!(waits.iter().flatten().count(), 200);
        assert_eq!(reserve(2, 2, start), Some(Duration::ZERO), "somebody else, elsewhere");
        assert!(reserve(2, 1, start).is_none(), "somebody else at that address");
        assert!(reserve(1, 3, start).is_none(), "and the same one at another");
        // What was refused was not counted.
        assert_eq!(reserve(1, 1, start + Duration::from_secs(3)), Some(Duration::ZERO));
    }
}
