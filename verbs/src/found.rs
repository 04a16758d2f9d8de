//! What devices this machine has, and whether each can be used.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::Mtu;

/// How packets that carry a GID are addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GidKind {
    /// InfiniBand: addresses of a fabric that has a subnet manager.
    InfiniBand,
    /// RoCE version 1: bare Ethernet, without an IP header, so nothing that routes.
    RoceV1,
    /// RoCE version 2: UDP over IP (InfiniBand specification, annex A17).
    RoceV2,
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InfiniBand => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
        })
    }
}

/// An address of a port: one entry of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid {
    /// Place in the table.
    pub index: u8,
    /// As it travels.
    pub raw: [u8; 16],
    /// How it is used.
    pub kind: GidKind,
}

impl Gid {
    /// The IP address that it stands for.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        Ipv6Addr::from(self.raw).to_canonical()
    }

    /// Only good on one link: fe80::/10 and 169.254.0.0/16.
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        match self.address() {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = if self.is_link_local() { ", link-local" } else { "" };
        write!(f, "{} (index {}, {}{local})", self.address(), self.index, self.kind)
    }
}

/// What a device holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Requests in the send queue of one queue pair.
    pub send_queue: usize,
    /// Entries of one completion queue.
    pub completions: usize,
    /// Memory regions.
    pub regions: usize,
    /// Bytes of one region.
    pub region_bytes: u64,
    /// Protection domains.
    pub domains: usize,
    /// READs under way at once on one queue pair.
    pub outstanding_reads: u8,
}

/// One port of one device, as a look at it found it.
#[derive(Debug, Clone)]
pub struct FoundDevice {
    /// What [`Device::open`](crate::Device::open) takes: "soft", "mlx5_0", or "mlx5_0:2" for a port beyond the first.
    pub name: String,
    /// Whether it is the soft device of this library.
    pub soft: bool,
    /// "active", "down" and so on.
    pub state: &'static str,
    /// "Ethernet", "InfiniBand" or, of the soft device, "UDP".
    pub link: &'static str,
    /// Largest path MTU at the moment.
    pub mtu: Option<Mtu>,
    /// Its addresses.
    pub gids: Vec<Gid>,
    /// What it holds at most.
    pub limits: Option<Limits>,
    /// The address that it would be used with; or why it cannot be used, and what mends that.
    pub usable: Result<Gid, String>,
}

/// All devices of this machine: see [`Device::find`](crate::Device::find).
#[derive(Debug, Clone)]
pub struct FoundDevices {
    /// Real devices first; the soft one is always there.
    pub devices: Vec<FoundDevice>,
    /// Why no real device was found, and what mends that.
    pub none_real: Option<String>,
    /// The place in `devices` of the one that "auto" takes, and why that one.
    pub auto: (usize, String),
}

/// The place among real devices of the one that "auto" takes, or None for the soft one; and why. `wanted`: the address to
/// be used.
pub(crate) fn choose(real: &Result<Vec<FoundDevice>, String>, wanted: IpAddr) -> (Option<usize>, String) {
    let devices = match real {
        Ok(devices) => devices,
        Err(reason) => return (None, reason.clone()),
    };
    let has_wanted = |device: &FoundDevice| device.usable.as_ref().is_ok_and(|gid| gid.address() == wanted);
    if let Some(index) = devices.iter().position(has_wanted) {
        (Some(index), format!("it is active and has the address {wanted}"))
    } else if let Some(index) = devices.iter().position(|device| device.usable.is_ok()) {
        (Some(index), "it is the first that is active".to_owned())
    } else if devices.is_empty() {
        (None, NONE.to_owned())
    } else {
        let why = |device: &FoundDevice| Some(format!("{}: {}", device.name, device.usable.as_ref().err()?));
        let all = devices.iter().filter_map(why).collect::<Vec<_>>().join("; ");
        (None, format!("no real device can be used ({all})"))
    }
}

const NONE: &str = "this machine has no RDMA device";

impl FoundDevice {
    /// A soft device that cannot be used like this.
    pub(crate) fn unusable(name: &str, state: &'static str, link: &'static str, reason: String) -> Self {
        let name = name.to_owned();
        Self { name, soft: true, state, link, mtu: None, gids: Vec::new(), limits: None, usable: Err(reason) }
    }
}

impl FoundDevices {
    /// `real`: what was found, or why nothing could be; `wanted`: the address to be used.
    pub(crate) fn new(real: Result<Vec<FoundDevice>, String>, soft: FoundDevice, wanted: IpAddr) -> Self {
        let (index, why) = choose(&real, wanted);
        let (mut devices, none_real) = match real {
            Ok(devices) if devices.is_empty() => (devices, Some(NONE.to_owned())),
            Ok(devices) => (devices, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        let auto = (index.unwrap_or(devices.len()), why);
        devices.push(soft);
        Self { devices, none_real, auto }
    }

    /// With these too, which nobody takes who did not ask for them: behind the real ones, and before the soft one.
    pub(crate) fn with(mut self, others: Vec<FoundDevice>) -> Self {
        let (last, count) = (self.devices.len().saturating_sub(1), others.len());
        self.devices.splice(last..last, others);
        if self.auto.0 == last {
            self.auto.0 += count;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, usable: Result<&str, &str>) -> FoundDevice {
        let gid = |address: &str| {
            let raw = crate::Endpoint::gid_of(address.parse().expect("an address"));
            Gid { index: 1, raw, kind: GidKind::RoceV2 }
        };
        FoundDevice {
            name: name.to_owned(),
            soft: name == "soft",
            state: "active",
            link: "Ethernet",
            mtu: None,
            gids: Vec::new(),
            limits: None,
            usable: usable.map(gid).map_err(str::to_owned),
        }
    }

    #[test]
    fn auto_takes_the_wanted_address_then_any_active_device_then_soft() {
        let wanted = "10.0.0.1".parse().expect("an address");
        let auto = |real| {
            let found = FoundDevices::new(real, device("soft", Ok("10.0.0.1")), wanted);
            assert_eq!(found.devices.last().map(|device| device.soft), Some(true));
            (found.devices[found.auto.0].name.clone(), found.auto.1)
        };
        let (down, other) = (device("a", Err("its port is down")), device("b", Ok("10.0.0.2")));
        let here = device("c", Ok("10.0.0.1"));
        assert_eq!(auto(Ok(vec![down.clone(), other.clone(), here])).0, "c");
        assert_eq!(auto(Ok(vec![down.clone(), other])).0, "b");
        let (name, why) = auto(Ok(vec![down]));
        assert!(name == "soft" && why.contains("a: its port is down"), "{why}");
        let (name, why) = auto(Ok(Vec::new()));
        assert!(name == "soft" && why.contains("no RDMA device"), "{why}");
        let (name, why) = auto(Err("libibverbs is missing".to_owned()));
        assert!(name == "soft" && why.contains("libibverbs is missing"), "{why}");
        let other = || vec![FoundDevice::unusable("dpdk:x", "unusable", "DPDK", "no".to_owned())];
        for (real, taken) in [(Vec::new(), "soft"), (vec![device("c", Ok("10.0.0.1"))], "c")] {
            let found = FoundDevices::new(Ok(real), device("soft", Ok("10.0.0.1")), wanted).with(other());
            assert_eq!(found.devices[found.auto.0].name, taken);
            assert_eq!(found.devices.last().map(|device| device.name.as_str()), Some("soft"));
        }
    }
}
