//! Who may come in to prove who it is: how many at once and how many a second, from one address and from all of them.
//!
//! Decided when a connection comes, before a byte of it is read, any memory is set aside or anything is computed. Hosts
//! from which a trusted identity came lately are counted apart from all others, so that a flood of strangers, from however
//! many addresses, does not keep them out; and those of operators apart from these, whatever other trusted ones do.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::bucket::{Bucket, Buckets, Rate};
use crate::core::Load;

/// Hosts whose rates are told apart.
const HOSTS: usize = 16_384;
/// Hosts that are remembered as those of operators, and as those of others who are trusted; and how long.
const KNOWN: usize = 4096;
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// What all known hosts of a class may do together, in hosts: one has a quarter of it at most.
const HOSTS_OF_KNOWN: u32 = 4;

/// What counts as one address: an IPv4 address, or an IPv6 network of 64 bits, which is what one machine can easily have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Host(IpAddr);

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
            four => four,
        })
    }
}

/// Connections whose peer has not proven who it is.
pub(crate) struct Door {
    load: Load,
    /// In order of arrival.
    open: BTreeMap<u64, Coming>,
    hosts: Buckets<Host>,
    /// By class.
    all: [All; Class::ALL.len()],
    operators: Known,
    others: Known,
}

/// All hosts of a class together.
struct All {
    rate: Rate,
    bucket: Bucket,
    /// What a host gets of the half that is kept for who has not come lately.
    welcomes: Buckets<Host>,
}

struct Coming {
    host: Host,
    class: Class,
}

/// Which hosts share what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// An operator came from there lately.
    Operators,
    /// Somebody else who is trusted did.
    Known,
    /// All others.
    Unknown,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Operators, Self::Known, Self::Unknown];

    fn all(self, load: &Load, now: Instant) -> All {
        let (hosts, welcome) = match self {
            Self::Unknown => (1, Rate::every(Duration::from_secs(10), 4)),
            Self::Operators | Self::Known => (HOSTS_OF_KNOWN, Rate::every(Duration::from_secs(1), 8)),
        };
        let of_hosts = |of_one: u32| of_one.saturating_mul(hosts);
        let rate = Rate::new(of_hosts(load.handshakes_per_second), of_hosts(load.handshake_burst));
        All { rate, bucket: Bucket::full(now), welcomes: Buckets::new(welcome, HOSTS, now) }
    }
}

/// Hosts, and when somebody trusted was last seen there.
#[derive(Default)]
struct Known(HashMap<Host, Instant>);

impl Known {
    fn has(&self, host: &Host, now: Instant) -> bool {
        self.0.get(host).is_some_and(|seen| now.saturating_duration_since(*seen) < KNOWN_FOR)
    }

    fn add(&mut self, host: Host, now: Instant) {
        if self.0.len() >= KNOWN && !self.0.contains_key(&host) {
            let oldest = self.0.iter().min_by_key(|(_, seen)| **seen).map(|(host, _)| *host);
            oldest.and_then(|host| self.0.remove(&host));
        }
        self.0.insert(host, now);
    }
}

/// A connection that may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered {
    /// Of the host that it comes from.
    pub(crate) class: Class,
    /// The connection that must go for it, and why.
    pub(crate) instead_of: Option<(u64, &'static str)>,
}

impl Door {
    pub(crate) fn new(load: Load, now: Instant) -> Self {
        let each = Rate::new(load.handshakes_per_second, load.handshake_burst);
        Self {
            load,
            open: BTreeMap::new(),
            hosts: Buckets::new(each, HOSTS, now),
            all: Class::ALL.map(|class| class.all(&load, now)),
            operators: Known::default(),
            others: Known::default(),
        }
    }

    fn class(&self, host: &Host, now: Instant) -> Class {
        match host {
            _ if self.operators.has(host, now) => Class::Operators,
            _ if self.others.has(host, now) => Class::Known,
            _ => Class::Unknown,
        }
    }

    /// A connection comes. The error is the reason why it must go at once.
    pub(crate) fn enter(&mut self, number: u64, host: Host, now: Instant) -> Result<Entered, &'static str> {
        if cfg!(feature = "danger-open-door") {
            self.open.insert(number, Coming { host, class: Class::Unknown });
            return Ok(Entered { class: Class::Unknown, instead_of: None });
        }
        let class = self.class(&host, now);
        if !self.hosts.take(&host, now) {
            return Err("handshakes-of-address");
        }
        // The second half of what there is belongs to who has not come lately.
        let All { rate, bucket, welcomes } = &mut self.all[class as usize];
        if !(bucket.is_half_full(*rate, now) || welcomes.take(&host, now)) || !bucket.take(*rate, now) {
            return Err("handshakes");
        }
        let of_host = self.open.values().filter(|coming| coming.host == host).count();
        let of_class = self.open.values().filter(|coming| coming.class == class).count();
        // An honest handshake takes milliseconds, so that the oldest of many is not one.
        let instead_of = if of_host >= self.load.unproven_each {
            self.oldest(|coming| coming.host == host).map(|number| (number, "connections-of-address"))
        } else if of_class >= self.load.unproven {
            let crowd = self.crowd(class);
            self.oldest(|coming| coming.class == class && Some(coming.host) == crowd).map(|it| (it, "connections"))
        } else {
            None
        };
        if let Some((number, _)) = instead_of {
            self.open.remove(&number);
        }
        self.open.insert(number, Coming { host, class });
        Ok(Entered { class, instead_of })
    }

    fn oldest(&self, which: impl Fn(&Coming) -> bool) -> Option<u64> {
        self.open.iter().find(|(_, coming)| which(coming)).map(|(number, _)| *number)
    }

    /// The host that has most connections of a class.
    fn crowd(&self, class: Class) -> Option<Host> {
        let mut counts: HashMap<Host, usize> = HashMap::new();
        for coming in self.open.values().filter(|coming| coming.class == class) {
            *counts.entry(coming.host).or_default() += 1;
        }
        counts.into_iter().max_by_key(|&(host, count)| (count, host)).map(|(host, _)| host)
    }

    /// A connection has proven who it is, or is over.
    pub(crate) fn leave(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// A trusted identity, an operator or not, has proven that it is there.
    pub(crate) fn trust(&mut self, host: Host, operator: bool, now: Instant) {
        let known = if operator { &mut self.operators } else { &mut self.others };
        known.add(host, now);
    }

    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn nth(number: u32) -> Host {
        Host(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into())
    }

    fn door(now: Instant) -> Door {
        let load = Load {
            unproven: 10,
            unproven_each: 4,
            handshakes_per_second: 100,
            handshake_burst: 100,
            ..Load::default()
        };
        Door::new(load, now)
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        assert_eq!(host("2001:db8:1:2::1"), host("2001:db8:1:2:ffff::9"));
        assert_ne!(host("2001:db8:1:2::1"), host("2001:db8:1:3::1"));
        assert_eq!(host("::ffff:10.0.0.1"), host("10.0.0.1"));
        assert_ne!(host("10.0.0.1"), host("10.0.0.2"));
    }

    #[test]
    fn one_address_has_its_share_and_the_oldest_of_it_goes() {
        let now = Instant::now();
        let mut door = door(now);
        for number in 0..4 {
            assert_eq!(door.enter(number, nth(1), now), Ok(Entered { class: Class::Unknown, instead_of: None }));
        }
        let entered = door.enter(4, nth(1), now).expect("it may");
        assert_eq!(entered.instead_of, Some((0, "connections-of-address")));
        assert_eq!(door.enter(5, nth(2), now).map(|entered| entered.instead_of), Ok(None));
        assert_eq!(door.open.len(), 5);
    }

    #[test]
    fn where_all_is_full_the_greatest_crowd_gives_way() {
        let now = Instant::now();
        let mut door = door(now);
        door.enter(0, nth(9), now).expect("it may");
        for number in 1..10 {
            door.enter(number, nth(number as u32 % 3), now).expect("it may");
        }
        let entered = door.enter(10, nth(50), now).expect("it may");
        let (gone, why) = entered.instead_of.expect("somebody goes");
        assert!((1..10).contains(&gone), "not the one that is alone");
        assert_eq!((why, door.open.len()), ("connections", 10));
    }

    #[test]
    fn a_flood_from_one_address_is_refused_before_anything_is_done() {
        let now = Instant::now();
        let mut door = door(now);
        let came_in = (0..2000).filter(|&number| door.enter(number, nth(1), now).is_ok()).count();
        assert!(came_in <= 100, "{came_in}");
        assert_eq!(door.enter(2000, nth(1), now), Err("handshakes-of-address"));
        assert!(door.enter(2001, nth(2), now).is_ok(), "another address comes in");
        assert!(door.enter(2002, nth(1), now + Duration::from_millis(200)).is_ok(), "and the first one later");
    }

    #[test]
    fn a_flood_from_many_addresses_leaves_room_for_the_known_and_the_new() {
        let start = Instant::now();
        let mut door = door(start);
        door.trust(nth(7), false, start);
        let mut came_in = 0;
        for ms in 0..1000_u32 {
            let now = start + Duration::from_millis(ms.into());
            for flood in 0..2 {
                let number = u64::from(ms) * 2 + flood;
                came_in += u32::from(door.enter(number, nth(1000 + (number % 64) as u32), now).is_ok());
            }
        }
        assert!((100..=250).contains(&came_in), "{came_in}");
        let now = start + Duration::from_secs(1);
        for number in 0..50 {
            assert_eq!(door.enter(10_000 + number, nth(7), now).expect("it may").class, Class::Known);
            assert!(door.enter(20_000 + number, nth(5000 + number as u32), now).is_ok(), "who never asked before");
        }
    }

    #[test]
    fn few_hosts_are_remembered() {
        let start = Instant::now();
        let mut door = door(start);
        for number in 0..5000_u32 {
            door.trust(nth(number), false, start + Duration::from_millis(number.into()));
        }
        door.trust(nth(10_000), true, start);
        let now = start + Duration::from_secs(5);
        assert_eq!(door.others.0.len(), KNOWN);
        assert_eq!(
            [4999, 0, 10_000].map(|number| door.class(&nth(number), now)),
            [Class::Known, Class::Unknown, Class::Operators]
        );
    }

    #[test]
    fn a_host_is_known_for_a_day_and_an_operators_host_is_one_whoever_else_comes_from_it() {
        let start = Instant::now();
        let mut door = door(start);
        door.trust(nth(1), true, start);
        door.trust(nth(1), false, start + KNOWN_FOR / 2);
        let at = |part| door.class(&nth(1), start + KNOWN_FOR / 4 * part);
        assert_eq!([at(3), at(4), at(6)], [Class::Operators, Class::Known, Class::Unknown]);
    }

    #[test]
    fn trusted_hosts_that_connect_without_a_pause_keep_out_no_other_one_and_no_operator() {
        let start = Instant::now();
        let mut door = door(start);
        let (operator, calm) = (nth(1000), nth(1001));
        door.trust(operator, true, start);
        door.trust(calm, false, start);
        (0..8).for_each(|number| door.trust(nth(number), false, start));
        let mut number = 0;
        let mut enter = |host, now| {
            number += 1;
            let came = door.enter(number, host, now).is_ok();
            door.leave(number);
            came
        };
        for ms in 0..20_000_u64 {
            let now = start + Duration::from_millis(ms);
            for hoarder in 0..8 {
                enter(nth(hoarder), now);
            }
            // One command a second.
            if ms % 1000 == 999 {
                assert!(enter(calm, now), "after {ms} ms");
                assert!((0..10).all(|_| enter(operator, now)), "an operator after {ms} ms");
            }
        }
    }
}
