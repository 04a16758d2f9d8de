//! Devices: how they are found and opened.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cq::CompletionQueue;
use crate::endpoint::{Endpoint, Mtu};
use crate::found::{self, FoundDevice, FoundDevices};
#[cfg(feature = "ibv")]
use crate::ibv::device::IbvDevice;
use crate::pd::ProtectionDomain;
use crate::soft::device::SoftDevice;
#[cfg(feature = "dpdk")]
use crate::soft::port_dpdk;
use crate::{VerbsError, cq, pd};

/// What a device is opened with.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// The local address that peers reach this device at.
    pub address: IpAddr,
    /// UDP port of the soft device. None: 4791 where it is free, else any, and [`Device::describe`] says so.
    pub port: Option<u16>,
    /// How long the progress thread and [`CompletionQueue::wait`] poll after the last traffic before they sleep.
    pub spin: Duration,
    /// Largest path MTU. A network interface with smaller packets lowers it, and so does a real device at either end.
    pub mtu: Mtu,
    /// So many of a million datagrams the soft device does not send, chosen at random: for tests and measurements of
    /// loss. Real devices take no other value than 0.
    pub lose_per_million: u32,
    /// Called where the soft device's socket is open, with the buffers that only some may ask for, and before its thread
    /// starts: the place to give up the right to ask for them. Of a device on DPDK before anything of it: DPDK has threads
    /// too.
    pub before_threads: Option<fn()>,
}

impl DeviceOptions {
    /// The usual options at this address: port 4791 or any, 50 µs of polling, MTU 8192.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            port: None,
            spin: Duration::from_micros(50),
            mtu: Mtu::Mtu8192,
            lose_per_million: 0,
            before_threads: None,
        }
    }
}

/// How a device is, as far as it has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Nothing wrong.
    Good,
    /// Its port is down; what is posted fails until it is up again.
    PortDown,
    /// It has failed; nothing but opening it again mends it.
    Fatal,
}

/// What a device did since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sent, those sent again included.
    pub sent: u64,
    /// Packets received and taken.
    pub received: u64,
    /// Packets sent again.
    pub retransmitted: u64,
    /// Packets not taken, or not sent, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// What the name of a soft device on DPDK begins with.
const DPDK: &str = "dpdk:";
#[cfg(not(feature = "dpdk"))]
const NO_DPDK: &str = "this program was built without DPDK (feature `dpdk`); \
    run `apt-get install libdpdk-dev libclang-dev`, and build it with `--features dpdk`";
#[cfg(not(feature = "ibv"))]
const NO_IBV: &str = "this program was built without real RDMA devices (feature `ibv`)";

/// An open device. It stays open until this, its clones and everything made from it are dropped.
#[derive(Clone)]
pub struct Device(Backend);

#[derive(Clone)]
enum Backend {
    Soft(Arc<SoftDevice>),
    #[cfg(feature = "ibv")]
    Ibv(Arc<IbvDevice>),
}

/// Every real device, judged for use with this address; or why there can be none.
fn find_real(address: IpAddr) -> Result<Vec<FoundDevice>, String> {
    #[cfg(feature = "ibv")]
    return crate::ibv::device::find(address);
    #[cfg(not(feature = "ibv"))]
    {
        let _ = address;
        Err(NO_IBV.to_owned())
    }
}

impl Device {
    /// Opens a device: "soft"; "dpdk:" and a port of DPDK's for the soft device on it; a real one by the name that [`Device::find`] gives it ("mlx5_0", or "mlx5_0:2" for its
    /// port 2); or "auto": a real one where one is active, else soft. [`Device::describe`] says which, and why.
    ///
    /// # Errors
    /// No device of that name, or one that cannot be used; an address that is not local; a port in use; no memory or
    /// permission; more than a million of a million datagrams to lose.
    pub fn open(name: &str, options: &DeviceOptions) -> Result<Self, VerbsError> {
        if name == "auto" {
            let real = find_real(options.address);
            let (chosen, why) = found::choose(&real, options.address);
            let chosen = chosen.and_then(|index| Some(&real.as_ref().ok()?.get(index)?.name));
            return Self::open_known(chosen.map_or("soft", String::as_str), options, format!("chosen because {why}"));
        }
        Self::open_known(name, options, "asked for by name".to_owned())
    }

    fn open_known(name: &str, options: &DeviceOptions, why: String) -> Result<Self, VerbsError> {
        let (value, max) = (options.lose_per_million as usize, 1_000_000);
        if value > max {
            return Err(VerbsError::Limit { what: "number of datagrams in a million to lose", value, min: 0, max });
        }
        let soft = name == "soft" || name.starts_with(DPDK);
        if value > 0 && !soft {
            let reason = "it loses no packets on purpose; only the soft device does".to_owned();
            return Err(VerbsError::DeviceUnusable { name: name.to_owned(), reason });
        }
        if name == "soft" {
            return Ok(Self(Backend::Soft(Arc::new(SoftDevice::open(options, why)?))));
        }
        if name.starts_with(DPDK) {
            #[cfg(feature = "dpdk")]
            return Ok(Self(Backend::Soft(SoftDevice::open_dpdk(name, options, why)?)));
            #[cfg(not(feature = "dpdk"))]
            return Err(VerbsError::DeviceUnusable { name: name.to_owned(), reason: NO_DPDK.to_owned() });
        }
        #[cfg(feature = "ibv")]
        return Ok(Self(Backend::Ibv(Arc::new(IbvDevice::open(name, options, why)?))));
        #[cfg(not(feature = "ibv"))]
        Err(VerbsError::DeviceUnusable { name: name.to_owned(), reason: format!("{NO_IBV}; there are: auto, soft") })
    }

    /// Looks for every device of this machine, and says of each whether it can be used with these options.
    #[must_use]
    pub fn find(options: &DeviceOptions) -> FoundDevices {
        let found = FoundDevices::new(find_real(options.address), SoftDevice::look(options), options.address);
        #[cfg(feature = "dpdk")]
        return found.with(SoftDevice::look_dpdk(options));
        #[cfg(not(feature = "dpdk"))]
        found.with(vec![FoundDevice::unusable(DPDK, "not built in", "DPDK", NO_DPDK.to_owned())])
    }

    /// Directories that a device of this name writes in, where a program allows itself no others: on DPDK alone. They are
    /// made, where they can be.
    #[must_use]
    pub fn writes(name: &str) -> Vec<PathBuf> {
        #[cfg(feature = "dpdk")]
        return name.strip_prefix(DPDK).map(port_dpdk::writes).unwrap_or_default();
        #[cfg(not(feature = "dpdk"))]
        {
            let _ = name;
            Vec::new()
        }
    }

    /// How it is. Worth a look every second or so: a device that failed says so here.
    #[must_use]
    pub fn health(&self) -> Health {
        match &self.0 {
            Backend::Soft(device) => device.health(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => device.health(),
        }
    }

    /// Its name, as it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0 {
            Backend::Soft(device) => device.name(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => device.name(),
        }
    }

    /// One line for people: which device, where, and why this one.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.0 {
            Backend::Soft(device) => device.describe(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => device.describe(),
        }
    }

    /// What it did so far; of a real device, what it did for all processes.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match &self.0 {
            Backend::Soft(device) => device.counters(),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => device.counters(),
        }
    }

    /// Sees whether a peer can be reached at its endpoint's address, before anything depends on it. A real device takes
    /// a second where nobody answers there; the soft one does not wait for its peers, and only looks at the endpoint.
    ///
    /// # Errors
    /// What [`QueuePair::connect`](crate::QueuePair::connect) would say.
    pub fn reach(&self, remote: &Endpoint) -> Result<(), VerbsError> {
        match &self.0 {
            Backend::Soft(device) => device.reach(remote),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => device.reach(remote),
        }
    }

    /// A new protection domain: its regions serve its queue pairs and no others.
    ///
    /// # Errors
    /// A limit of the device.
    pub fn alloc_pd(&self) -> Result<ProtectionDomain, VerbsError> {
        match &self.0 {
            Backend::Soft(device) => Ok(ProtectionDomain(pd::Backend::Soft(Arc::new(device.alloc_pd()?)))),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => Ok(ProtectionDomain(pd::Backend::Ibv(Arc::new(device.alloc_pd()?)))),
        }
    }

    /// A new completion queue for `entries` completions: at least the sum of the send queues that use it.
    ///
    /// # Errors
    /// Zero entries, or more than the device has.
    pub fn create_cq(&self, entries: usize) -> Result<CompletionQueue, VerbsError> {
        match &self.0 {
            Backend::Soft(device) => Ok(CompletionQueue(cq::Backend::Soft(Arc::new(device.create_cq(entries)?)))),
            #[cfg(feature = "ibv")]
            Backend::Ibv(device) => Ok(CompletionQueue(cq::Backend::Ibv(Arc::new(device.create_cq(entries)?)))),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
