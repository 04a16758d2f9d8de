//! Who may come in to prove who it is: how many at once and how many a second, from one address and from all of them.
//!
//! Decided when a connection comes, before a byte of it is read, any memory is set aside or anything is computed. Hosts
//! from which a trusted identity came lately are counted apart from all others, so that a flood of strangers, from however
//! many addresses, does not keep them out.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::bucket::{Bucket, Buckets, Rate};
use crate::core::Load;

/// Hosts whose rates are told apart.
const HOSTS: usize = 16_384;
/// Connections of a host that has not come lately, and how soon it is one again.
const WELCOME: Rate = Rate::every(Duration::from_secs(10), 4);
/// Hosts that are remembered as those of trusted identities.
const KNOWN: usize = 4096;

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
    /// What a host gets of the half that is kept for who has not come lately.
    welcomes: Buckets<Host>,
    rate: Rate,
    /// Of all hosts of a class together.
    classes: [Bucket; 2],
    /// When a trusted identity was last seen there.
    known: HashMap<Host, Instant>,
}

struct Coming {
    host: Host,
    class: Class,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Known,
    Unknown,
}

/// A connection that may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered {
    /// From a host of a trusted identity.
    pub(crate) known: bool,
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
            welcomes: Buckets::new(WELCOME, HOSTS, now),
            rate: each,
            classes: [Bucket::full(now); 2],
            known: HashMap::new(),
        }
    }

    /// A connection comes. The error is the reason why it must go at once.
    pub(crate) fn enter(&mut self, number: u64, host: Host, now: Instant) -> Result<Entered, &'static str> {
        if cfg!(feature = "danger-open-door") {
            self.open.insert(number, Coming { host, class: Class::Unknown });
            return Ok(Entered { known: false, instead_of: None });
        }
        let class = if self.known.contains_key(&host) { Class::Known } else { Class::Unknown };
        if !self.hosts.take(&host, now) {
            return Err("handshakes-of-address");
        }
        // The second half of what there is belongs to who has not come lately.
        let all = &mut self.classes[class as usize];
        if !(all.is_half_full(self.rate, now) || self.welcomes.take(&host, now)) || !all.take(self.rate, now) {
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
        Ok(Entered { known: class == Class::Known, instead_of })
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

    /// A trusted identity has proven that it is there.
    pub(crate) fn trust(&mut self, host: Host, now: Instant) {
        if self.known.len() >= KNOWN && !self.known.contains_key(&host) {
            let oldest = self.known.iter().min_by_key(|(_, seen)| **seen).map(|(host, _)| *host);
            oldest.and_then(|host| self.known.remove(&host));
        }
        self.known.insert(host, now);
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
            assert_eq!(door.enter(number, nth(1), now), Ok(Entered { known: false, instead_of: None }));
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
        door.trust(nth(7), start);
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
            assert!(door.enter(10_000 + number, nth(7), now).expect("it may").known);
            assert!(door.enter(20_000 + number, nth(5000 + number as u32), now).is_ok(), "who never asked before");
        }
    }

    #[test]
    fn few_hosts_are_remembered() {
        let start = Instant::now();
        let mut door = door(start);
        for number in 0..5000_u32 {
            door.trust(nth(number), start + Duration::from_millis(number.into()));
        }
        assert_eq!(door.known.len(), KNOWN);
        assert!(door.known.contains_key(&nth(4999)) && !door.known.contains_key(&nth(0)));
    }
}
