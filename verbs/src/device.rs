//! Devices: how they are found and opened.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::cq::CompletionQueue;
use crate::endpoint::Mtu;
use crate::pd::ProtectionDomain;
use crate::soft::device::SoftDevice;
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
    /// Largest path MTU. A network interface with smaller packets lowers it.
    pub mtu: Mtu,
}

impl DeviceOptions {
    /// The usual options at this address: port 4791 or any, 50 µs of polling, MTU 4096.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address, port: None, spin: Duration::from_micros(50), mtu: Mtu::Mtu4096 }
    }
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

/// An open device. It stays open until this, its clones and everything made from it are dropped.
#[derive(Clone)]
pub struct Device(Backend);

#[derive(Clone)]
enum Backend {
    Soft(Arc<SoftDevice>),
}

impl Device {
    /// Opens a device: "soft", or "auto" for the best there is.
    ///
    /// # Errors
    /// No device of that name; an address that is not local; a port in use; no memory or permission.
    pub fn open(name: &str, options: &DeviceOptions) -> Result<Self, VerbsError> {
        match name {
            "auto" | "soft" => Ok(Self(Backend::Soft(Arc::new(SoftDevice::open(options)?)))),
            _ => Err(VerbsError::DeviceNotFound { name: name.to_owned(), available: "auto, soft".to_owned() }),
        }
    }

    /// Its name: "soft".
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0 {
            Backend::Soft(_) => "soft",
        }
    }

    /// One line for people: which device, where, and why this one.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.0 {
            Backend::Soft(device) => device.describe(),
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match &self.0 {
            Backend::Soft(device) => device.counters(),
        }
    }

    /// A new protection domain: its regions serve its queue pairs and no others.
    ///
    /// # Errors
    /// A limit of the device.
    pub fn alloc_pd(&self) -> Result<ProtectionDomain, VerbsError> {
        match &self.0 {
            Backend::Soft(device) => Ok(ProtectionDomain(pd::Backend::Soft(Arc::new(device.alloc_pd()?)))),
        }
    }

    /// A new completion queue for `entries` completions: at least the sum of the send queues that use it.
    ///
    /// # Errors
    /// Zero entries, or more than the device has.
    pub fn create_cq(&self, entries: usize) -> Result<CompletionQueue, VerbsError> {
        match &self.0 {
            Backend::Soft(device) => Ok(CompletionQueue(cq::Backend::Soft(Arc::new(device.create_cq(entries)?)))),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
