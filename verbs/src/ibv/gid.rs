//! Which of a port's addresses to use. The table is read from /sys, where the kernel says what kind each entry is.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use crate::{Gid, GidKind};

/// All entries in use of a port's table.
pub(super) fn table(device: &str, port: u8, entries: usize, infiniband: bool) -> Vec<Gid> {
    let root = PathBuf::from(format!("/sys/class/infiniband/{device}/ports/{port}"));
    (0..=u8::MAX)
        .take(entries)
        .filter_map(|index| {
            let raw = fs::read_to_string(root.join(format!("gids/{index}"))).ok()?.trim().parse::<Ipv6Addr>().ok()?;
            if raw.is_unspecified() {
                return None;
            }
            // Reading the kind of an unused entry fails with EINVAL.
            let kind = fs::read_to_string(root.join(format!("gid_attrs/types/{index}"))).ok()?;
            let kind = match kind.trim() {
                "RoCE v2" => GidKind::RoceV2,
                _ if infiniband => GidKind::InfiniBand,
                _ => GidKind::RoceV1,
            };
            Some(Gid { index, raw: raw.octets(), kind })
        })
        .collect()
}

/// Why no entry of a table will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoGid {
    /// The table is empty: the interface has no address.
    Empty,
    /// Only RoCE v1: the interface or the adapter has version 2 switched off.
    OnlyVersion1,
    /// Only addresses that reach nobody but this machine.
    OnlyLoopback,
    /// Only link-local addresses, which name no interface and reach no other network.
    OnlyLinkLocal,
}

impl NoGid {
    /// What it is, and what mends it.
    pub(super) fn told(self, interface: &str) -> String {
        match self {
            Self::Empty => format!("{interface} has no address; give it one (ip addr add ADDRESS/LEN dev {interface})"),
            Self::OnlyVersion1 => {
                "it has RoCE v1 addresses only, which do not route; switch RoCE v2 on (cma_roce_mode, or the adapter's own tool)"
                    .to_owned()
            }
            Self::OnlyLoopback => {
                "its only RoCE v2 addresses are of this machine alone; ask for one (--address 127.0.0.1), or use a device \
                 on another interface"
                    .to_owned()
            }
            Self::OnlyLinkLocal => format!(
                "its only RoCE v2 addresses are link-local, which reach no other network and may stand for several \
                 interfaces; give {interface} another (ip addr add ADDRESS/LEN dev {interface})"
            ),
        }
    }
}

/// The entry for RoCE: version 2 and routable; the one of address `wanted` if it is there, else IPv4 before IPv6.
pub(super) fn choose(table: &[Gid], wanted: IpAddr) -> Result<Gid, NoGid> {
    if table.is_empty() {
        return Err(NoGid::Empty);
    }
    let version_2: Vec<_> = table.iter().filter(|gid| gid.kind == GidKind::RoceV2).collect();
    if version_2.is_empty() {
        return Err(NoGid::OnlyVersion1);
    }
    // Others reach it there; who asked for an address of this machine alone does not need that.
    let far = |gid: &&&Gid| !gid.is_link_local() && (wanted.is_loopback() || !gid.address().is_loopback());
    version_2
        .iter()
        .find(|gid| gid.address() == wanted)
        .or_else(|| version_2.iter().filter(far).find(|gid| gid.address().is_ipv4() == wanted.is_ipv4()))
        .or_else(|| version_2.iter().find(far))
        .map(|gid| **gid)
        .ok_or(match version_2.iter().any(|gid| gid.is_link_local()) {
            true => NoGid::OnlyLinkLocal,
            false => NoGid::OnlyLoopback,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        let raw = match address.parse().expect("an address") {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Gid { index, raw, kind }
    }

    #[test]
    fn the_wanted_address_wins_then_any_routable_one_of_version_2() {
        use GidKind::{RoceV1, RoceV2};
        let table = [
            gid(0, "fe80::1", RoceV1),
            gid(1, "fe80::1", RoceV2),
            gid(2, "10.0.0.1", RoceV1),
            gid(3, "2001:db8::1", RoceV2),
            gid(4, "10.0.0.1", RoceV2),
            gid(5, "10.0.0.2", RoceV2),
        ];
        let index = |wanted: &str| choose(&table, wanted.parse().expect("an address")).map(|gid| gid.index);
        assert_eq!(index("10.0.0.2"), Ok(5));
        assert_eq!(index("10.0.0.1"), Ok(4), "not its RoCE v1 twin");
        assert_eq!(index("127.0.0.1"), Ok(4));
        assert_eq!(index("::1"), Ok(3));
        assert_eq!(index("fe80::1"), Ok(1), "asked for by name");
        assert_eq!(choose(&table[..1], "10.0.0.1".parse().expect("an address")), Err(NoGid::OnlyVersion1));
        assert_eq!(choose(&table[..2], "10.0.0.1".parse().expect("an address")), Err(NoGid::OnlyLinkLocal));
        let here = [gid(0, "127.0.0.1", RoceV2)];
        assert_eq!(choose(&here, "10.0.0.1".parse().expect("an address")), Err(NoGid::OnlyLoopback));
        assert_eq!(choose(&here, "127.0.0.1".parse().expect("an address")), Ok(here[0]));
        assert_eq!(choose(&[], "10.0.0.1".parse().expect("an address")), Err(NoGid::Empty));
    }
}
