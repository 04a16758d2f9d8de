//! The two ends of a connection through an RDMA device: on which devices, and how they find each other.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use overbank_fabric::ids;
use overbank_verbs::{Device, DeviceOptions, Endpoint, Retry};

use crate::error::BenchError;
use crate::peer::Peer;

/// Both ends poll as long as this after the last packet; in its turn an end never sleeps.
pub(crate) const SPIN: Duration = Duration::from_millis(10);
/// When an end gives up its peer: as the library does. On a busy machine a process may not run for most of a second.
pub(crate) const RETRY: Retry = Retry { timeout: Duration::from_millis(100), count: 15 };
/// Largest `--size`.
pub(crate) const MAX_SIZE: usize = 8 << 20;

/// On which devices.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Ends {
    /// The RDMA device of the asking end: auto, soft, or a name
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// The RDMA device of the answering end [default: the same]
    #[arg(long, value_name = "DEVICE")]
    peer_device: Option<String>,
}

impl Ends {
    /// Both on this device.
    pub(crate) fn on(device: &str) -> Self {
        Self { device: device.to_owned(), peer_device: None }
    }

    /// Each on its own.
    pub(crate) fn between(device: String, peer_device: String) -> Self {
        Self { device, peer_device: Some(peer_device) }
    }

    /// The answering end's device.
    pub(crate) fn peer_device(&self) -> &str {
        self.peer_device.as_deref().unwrap_or(&self.device)
    }
}

/// Which device `auto` takes here, while any other name stays as it is; and the bytes of a full packet through it.
pub(crate) fn chosen(device: &str) -> (String, Option<usize>) {
    let found = Device::find(&options());
    let chosen = match device {
        "auto" => found.devices.get(found.auto.0),
        name => found.devices.iter().find(|found| found.name == name),
    };
    let name = chosen.map_or_else(|| device.to_owned(), |chosen| chosen.name.clone());
    (name, chosen.and_then(|chosen| Some(chosen.mtu?.bytes())))
}

/// How every end opens its device: a real one at the best of its addresses, the soft one on loopback.
pub(crate) fn options() -> DeviceOptions {
    DeviceOptions { spin: SPIN, ..DeviceOptions::new(IpAddr::V4(Ipv4Addr::LOCALHOST)) }
}

/// Opens a device for one end.
pub(crate) fn open(device: &str) -> Result<Device, BenchError> {
    open_losing(device, 0)
}

/// Opens a device for one end; the soft one loses so many of a million datagrams that it would send.
pub(crate) fn open_losing(device: &str, lose_per_million: u32) -> Result<Device, BenchError> {
    Ok(Device::open(device, &DeviceOptions { lose_per_million, ..options() })?)
}

/// Where an end is reached, and its memory. Between processes it is a line: endpoint in hexadecimal, address, key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Its queue pair.
    pub(crate) endpoint: Endpoint,
    /// First byte of its memory.
    pub(crate) address: u64,
    /// Key of its memory; with the address 0 where it lends none.
    pub(crate) rkey: u32,
}

impl Reach {
    /// The line.
    pub(crate) fn to_line(self) -> String {
        format!("{} {} {}", ids::hex(&self.endpoint.to_bytes()), self.address, self.rkey)
    }

    /// Reads the line.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut fields = line.trim().split(' ');
        let endpoint = ids::unhex::<{ Endpoint::LEN }>("an endpoint", fields.next()?).ok()?;
        let (address, rkey) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let reach = Self { endpoint: Endpoint::from_bytes(&endpoint).ok()?, address, rkey };
        fields.next().is_none().then_some(reach)
    }

    /// What a peer that was just started says first.
    pub(crate) fn of(peer: &Peer) -> Result<Self, BenchError> {
        let hello = peer.line()?;
        Self::from_line(&hello).ok_or_else(|| peer.failed(&format!("said '{hello}', not where it is reached")))
    }

    /// Bytes of a full packet between two ends.
    pub(crate) fn path_mtu(&self, other: &Self) -> usize {
        self.endpoint.mtu.min(other.endpoint.mtu).bytes()
    }
}

#[cfg(test)]
mod tests {
    use overbank_verbs::Mtu;

    use super::*;

    #[test]
    fn a_line_says_where_an_end_is_reached() {
        let gid = Endpoint::gid_of("192.0.2.1".parse().expect("an address"));
        let endpoint = Endpoint { flags: 0, mtu: Mtu::Mtu1024, qpn: 17, psn: 5, port: 4791, lid: 0, gid };
        let reach = Reach { endpoint, address: u64::MAX, rkey: 7 };
        let line = reach.to_line();
        assert_eq!(Reach::from_line(&format!("{line}\n")), Some(reach));
        let cut = line.rsplit_once(' ').expect("three fields").0;
        for bad in ["", "connected", cut, &line[1..], &format!("{line} 1"), &format!("{cut} -1")] {
            assert_eq!(Reach::from_line(bad), None, "{bad}");
        }
        let other = Reach { endpoint: Endpoint { mtu: Mtu::Mtu4096, ..endpoint }, ..reach };
        assert_eq!((reach.path_mtu(&other), other.path_mtu(&reach)), (1024, 1024));
    }
}
