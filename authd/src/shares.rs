//! Places of which there are so many, and who may have how many of them: requests in flight, sessions.
//!
//! Each lane (a tenant, an operator, an address) may have as many as are still free, and each identity half as many:
//! one that takes all it can get leaves half to the others, and two of them a third.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::Tenant;

/// Who takes turns with whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Consumers of this tenant.
    Tenant(Tenant),
    /// An operator: none of them is held up by another.
    Operator(PublicKey),
    /// Providers.
    Providers,
    /// Who is not trusted.
    Strangers,
}

/// Counts the places that are taken.
pub(crate) struct Shares<L>(Arc<Mutex<Counts<L>>>);

struct Counts<L> {
    free: usize,
    lanes: HashMap<L, usize>,
    members: HashMap<PublicKey, usize>,
}

/// One place. Given back when dropped.
pub(crate) struct Place<L: Eq + Hash> {
    shares: Shares<L>,
    lane: L,
    member: PublicKey,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// The lane has its share.
    Lane,
    /// The identity has its share.
    Member,
}

impl<L> Clone for Shares<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Clone + Eq + Hash> Shares<L> {
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Counts { free: most, lanes: HashMap::new(), members: HashMap::new() })))
    }

    /// A place for one more of this member of that lane.
    pub(crate) fn take(&self, lane: &L, member: &PublicKey) -> Result<Place<L>, Full> {
        let mut counts = self.lock();
        let of_lane = counts.lanes.get(lane).copied().unwrap_or(0);
        let of_member = counts.members.get(member).copied().unwrap_or(0);
        if counts.free == 0 {
            return Err(Full::All);
        }
        if !cfg!(feature = "danger-no-shares") {
            if of_lane >= counts.free {
                return Err(Full::Lane);
            }
            if of_member * 2 > counts.free {
                return Err(Full::Member);
            }
        }
        counts.free -= 1;
        counts.lanes.insert(lane.clone(), of_lane + 1);
        counts.members.insert(*member, of_member + 1);
        Ok(Place { shares: self.clone(), lane: lane.clone(), member: *member })
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.lock().free
    }
}

impl<L> Shares<L> {
    fn lock(&self) -> MutexGuard<'_, Counts<L>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Eq + Hash> Drop for Place<L> {
    fn drop(&mut self) {
        let mut counts = self.shares.lock();
        counts.free += 1;
        less(&mut counts.lanes, &self.lane);
        less(&mut counts.members, &self.member);
    }
}

fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Lane {
        Lane::Tenant(name.parse().expect("a tenant"))
    }

    fn all(shares: &Shares<Lane>, lane: &Lane, members: u8) -> Vec<Place<Lane>> {
        let mut places = Vec::new();
        loop {
            let before = places.len();
            places.extend((0..members).filter_map(|member| shares.take(lane, &PublicKey([member; 32])).ok()));
            if places.len() == before {
                return places;
            }
        }
    }

    #[test]
    fn who_takes_all_it_can_leaves_half_and_two_leave_a_third() {
        let shares = Shares::new(512);
        let red = all(&shares, &tenant("red"), 20);
        assert_eq!((red.len(), shares.free()), (256, 256));
        assert_eq!(shares.take(&tenant("red"), &PublicKey([0; 32])).err(), Some(Full::Lane));
        let blue = all(&shares, &tenant("blue"), 20);
        assert_eq!((blue.len(), shares.free()), (128, 128));
        assert!(shares.take(&tenant("late"), &PublicKey([99; 32])).is_ok());
        drop((red, blue));
        assert_eq!(shares.free(), 512);
        let counts = shares.lock();
        assert!(counts.lanes.is_empty() && counts.members.is_empty(), "nothing is remembered of those who are through");
    }

    #[test]
    fn one_identity_leaves_room_for_others_of_its_tenant() {
        let shares = Shares::new(512);
        let one = all(&shares, &tenant("red"), 1);
        assert!((165..=175).contains(&one.len()), "{}", one.len());
        assert!(all(&shares, &tenant("red"), 8).len() > 50);
    }
}
