//! An adapter, or the kernel's soft-RoCE: found, judged, opened, and watched.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::cq::IbvCq;
use super::gid;
use super::pd::IbvPd;
use super::sys::{self, Context, Library, Pd, Port};
use crate::lane::OUTSTANDING_READS;
use crate::{
    Access, Counters, DeviceOptions, Endpoint, FoundDevice, Gid, Health, Limits, Mtu, QpCaps, Retry, VerbsError,
};

const INITIALISING: u32 = 2;
const ARMED: u32 = 3;
const ACTIVE: u32 = 4;
const INFINIBAND: u8 = 1;

fn broken(name: &str, reason: String) -> FoundDevice {
    FoundDevice {
        name: name.to_owned(),
        soft: false,
        state: "unknown",
        link: "unknown",
        mtu: None,
        gids: Vec::new(),
        limits: None,
        usable: Err(reason),
    }
}

/// Every port of every device, judged for use with this address.
///
/// # Errors
/// Why there can be none: libibverbs is missing or refuses.
pub(crate) fn find(address: IpAddr) -> Result<Vec<FoundDevice>, String> {
    let known = kernel_names();
    let all_broken = |reason: String| match known.is_empty() {
        true => Err(reason),
        false => Ok(known.iter().map(|name| broken(name, reason.clone())).collect()),
    };
    let library = match library() {
        Ok(library) => library,
        Err(reason) => return all_broken(reason),
    };
    let names = match library.names() {
        Ok(names) => names,
        Err(error) => return all_broken(no_devices(&error)),
    };
    let usable = names.iter().flat_map(|name| match open_context(library, name) {
        Ok((context, limits, ports)) => (1..=ports).map(|port| look(&context, limits, name, port, address)).collect(),
        Err(reason) => vec![broken(name, reason)],
    });
    let unknown = known.iter().filter(|name| !names.contains(name)).map(|name| broken(name, NO_DRIVER.to_owned()));
    Ok(usable.chain(unknown).collect())
}

const NO_DRIVER: &str = "libibverbs has no driver for it (Debian: apt-get install ibverbs-providers), or the kernel's \
    module ib_uverbs is not loaded (modprobe ib_uverbs)";

/// Devices that the kernel has, whether or not libibverbs knows them.
fn kernel_names() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/infiniband") else { return Vec::new() };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn library() -> Result<&'static Library, String> {
    Library::get().map_err(|error| {
        format!(
            "libibverbs cannot be loaded: {error}; install it (Debian: apt-get install libibverbs1 ibverbs-providers)"
        )
    })
}

fn no_devices(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no RDMA support loaded (modprobe ib_uverbs)".to_owned(),
        _ => format!("the RDMA devices cannot be listed: {error}"),
    }
}

fn open_context(library: &'static Library, name: &str) -> Result<(Context, Limits, u8), String> {
    let context = match Context::open(library, name) {
        Ok(Some(context)) => context,
        Ok(None) => return Err("it has gone".to_owned()),
        Err(error) => {
            // libibverbs answers "no such file" to a file that it may not open, too.
            let there = fs::read_dir("/dev/infiniband").is_ok_and(|mut files| files.next().is_some());
            let remedy = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM | libc::ENOENT | libc::ENODEV) if there => {
                    "; this user may not open /dev/infiniband/uverbs*: run as root, or let the user's group do it (udev)"
                }
                Some(libc::ENOENT | libc::ENODEV) => {
                    "; /dev/infiniband is missing here: load ib_uverbs, or pass the device into the container"
                }
                _ => "",
            };
            return Err(format!("it cannot be opened: {error}{remedy}"));
        }
    };
    let (limits, ports) = context.limits().map_err(|error| format!("it does not say what it can: {error}"))?;
    Ok((context, limits, ports))
}

fn look(context: &Context, limits: Limits, name: &str, port: u8, address: IpAddr) -> FoundDevice {
    let full_name = if port == 1 { name.to_owned() } else { format!("{name}:{port}") };
    let attributes = match context.port(port) {
        Ok(attributes) => attributes,
        Err(error) => return broken(&full_name, format!("port {port} does not answer: {error}")),
    };
    let gids = gid::table(name, port, attributes.gids, attributes.link_layer == INFINIBAND);
    let usable = enough(&limits).and_then(|()| judge(&attributes, &gids, Kind::of(name, port), address));
    FoundDevice {
        name: full_name,
        soft: false,
        state: state_name(attributes.state),
        link: if attributes.link_layer == INFINIBAND { "InfiniBand" } else { "Ethernet" },
        mtu: active_mtu(attributes.active_mtu),
        gids,
        limits: Some(limits),
        usable,
    }
}

/// The MTU with the code that the device says; none that RoCE and InfiniBand do not have.
fn active_mtu(code: u32) -> Option<Mtu> {
    u8::try_from(code).ok().and_then(Mtu::from_code).filter(|mtu| *mtu <= Mtu::Mtu4096)
}

/// Whether it has what each connection of this library asks for.
fn enough(limits: &Limits) -> Result<(), String> {
    let (has, needs) = (limits.outstanding_reads, OUTSTANDING_READS);
    if has >= needs { Ok(()) } else { Err(format!("it has {has} READs under way at once, and {needs} are needed")) }
}

/// The address to use, or why there is none and what mends it.
fn judge(port: &Port, gids: &[Gid], kind: Kind, wanted: IpAddr) -> Result<Gid, String> {
    let infiniband = port.link_layer == INFINIBAND;
    if kind.iwarp {
        return Err(
            "it is an iWARP adapter, which only a connection manager can connect; use the soft device".to_owned()
        );
    }
    let interface = kind.interface.as_deref().unwrap_or("INTERFACE");
    match (port.state, infiniband) {
        (ACTIVE, true) => gids.first().copied().ok_or_else(|| "it has no GID; is a subnet manager running?".to_owned()),
        (ACTIVE, false) => gid::choose(gids, wanted).map_err(|reason| reason.told(interface)),
        (INITIALISING | ARMED, true) => {
            Err("no subnet manager has configured its port; start one on the fabric (opensm)".to_owned())
        }
        (state, true) => Err(format!("its port is {}; look at the cable and at its other end", state_name(state))),
        (state, false) => {
            Err(format!("its port is {}; bring its interface up (ip link set {interface} up)", state_name(state)))
        }
    }
}

/// What the kernel says of a device, beside what libibverbs does.
#[derive(Debug, Default)]
struct Kind {
    iwarp: bool,
    interface: Option<String>,
}

impl Kind {
    fn of(name: &str, port: u8) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/sys/class/infiniband/{name}/{file}")).ok();
        let interface = read("parent").or_else(|| read(&format!("ports/{port}/gid_attrs/ndevs/0")));
        Self {
            iwarp: read("node_type").is_some_and(|kind| kind.starts_with('4')),
            interface: interface.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
        }
    }
}

fn state_name(state: u32) -> &'static str {
    ["unknown", "down", "initialising", "armed", "active", "active, deferred"]
        .get(state as usize)
        .copied()
        .unwrap_or("unknown")
}

pub(super) fn limit(what: &'static str, value: usize, min: usize, max: usize) -> Result<(), VerbsError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(VerbsError::Limit { what, value, min, max }) }
}

/// What the device did not make.
pub(super) fn refused(call: &'static str, source: io::Error) -> VerbsError {
    let likely = match source.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN) => {
            "the limit on locked memory is too low (ulimit -l unlimited, or LimitMEMLOCK=infinity), or the device is full"
        }
        Some(libc::EPERM | libc::EACCES) => "this user may not use the device",
        Some(libc::EFAULT) => "the memory is not there, or of a kind that cannot be pinned",
        _ => "the device's driver refused; the kernel's log may say more (dmesg)",
    };
    VerbsError::Refused { call, likely, source }
}

/// An open device, at one port and address of it.
pub(crate) struct IbvDevice {
    context: Arc<Context>,
    pub(super) name: String,
    pub(super) port: u8,
    pub(super) link_layer: u8,
    pub(super) lid: u16,
    pub(super) gid: Gid,
    pub(super) mtu: Mtu,
    pub(super) limits: Limits,
    pub(super) options: DeviceOptions,
    why: String,
    health: Mutex<Health>,
    /// The kernel's counters when it was opened.
    opened: Counters,
}

impl IbvDevice {
    /// The device of this name at port 1, or "NAME:PORT".
    pub(crate) fn open(name: &str, options: &DeviceOptions, why: String) -> Result<Self, VerbsError> {
        let (device, port) = match name.rsplit_once(':') {
            Some((device, port)) => (device, port.parse().unwrap_or(0)),
            None => (name, 1),
        };
        Self::open_port(device, port, options, why)
    }

    fn open_port(name: &str, port: u8, options: &DeviceOptions, why: String) -> Result<Self, VerbsError> {
        let unusable = |reason| VerbsError::DeviceUnusable { name: name.to_owned(), reason };
        let none = |reason| unusable(format!("{reason}; the soft device needs nothing of it"));
        let library = library().map_err(none)?;
        let names = library.names().map_err(|error| none(no_devices(&error)))?;
        if sys::plain_name(name).is_none() || !names.iter().any(|known| known == name) {
            if kernel_names().iter().any(|known| known == name) {
                return Err(unusable(NO_DRIVER.to_owned()));
            }
            let available = names.iter().map(String::as_str).chain(["auto", "soft"]).collect::<Vec<_>>().join(", ");
            return Err(VerbsError::DeviceNotFound { name: name.to_owned(), available });
        }
        let (context, limits, ports) = open_context(library, name).map_err(unusable)?;
        if !(1..=ports).contains(&port) {
            return Err(unusable(format!("it has ports 1 to {ports}")));
        }
        let attributes =
            context.port(port).map_err(|error| unusable(format!("port {port} does not answer: {error}")))?;
        let gids = gid::table(name, port, attributes.gids, attributes.link_layer == INFINIBAND);
        enough(&limits).map_err(unusable)?;
        let gid = judge(&attributes, &gids, Kind::of(name, port), options.address).map_err(unusable)?;
        let active = active_mtu(attributes.active_mtu).unwrap_or(Mtu::Mtu256);
        let mut device = Self {
            context: Arc::new(context),
            name: name.to_owned(),
            port,
            link_layer: attributes.link_layer,
            lid: attributes.lid,
            gid,
            mtu: active.min(options.mtu),
            limits,
            options: options.clone(),
            why,
            health: Mutex::new(Health::Good),
            opened: Counters::default(),
        };
        device.opened = device.kernel_counters();
        Ok(device)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "RDMA device {} port {}, GID {}, path MTU {}; {}",
            self.name,
            self.port,
            self.gid,
            self.mtu.bytes(),
            self.why
        )
    }

    pub(super) fn infiniband(&self) -> bool {
        self.link_layer == INFINIBAND
    }

    /// Takes what the device reported since the last call.
    pub(crate) fn health(&self) -> Health {
        // `ibv_event_type`. An overrun of a completion queue is one too: there is room for all that is posted.
        const CQ_ERROR: i32 = 0;
        const DEVICE_FATAL: i32 = 8;
        const PORT_ACTIVE: i32 = 9;
        const PORT_ERROR: i32 = 10;
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(event) = self.context.take_event() {
            let here = event.port == i32::from(self.port);
            let next = match event.kind {
                CQ_ERROR | DEVICE_FATAL => Health::Fatal,
                PORT_ERROR if here => Health::PortDown,
                PORT_ACTIVE if here => Health::Good,
                _ => {
                    tracing::debug!(device = %self.name, ?event, "asynchronous event");
                    continue;
                }
            };
            tracing::warn!(device = %self.name, ?event, health = ?next, "the device reports a change");
            // Nothing mends a fatal state but opening the device again.
            if *health != Health::Fatal {
                *health = next;
            }
        }
        *health
    }

    /// Sees whether the peer's address can be reached: the kernel resolves it when a queue pair becomes ready to
    /// receive, which takes a second where nobody has asked for it before, or nobody answers.
    pub(crate) fn reach(self: &Arc<Self>, remote: &Endpoint) -> Result<(), VerbsError> {
        let (pd, cq) = (self.alloc_pd()?, Arc::new(self.create_cq(1)?));
        let qp = pd.create_qp(&cq, QpCaps { send_queue: 1, outstanding_reads: 1 })?;
        // It serves nobody: the peer's queue pair knows nothing of it, and it grants nothing.
        let reached = qp.connect(remote, Access::empty(), Retry { timeout: Duration::ZERO, count: 0 });
        qp.destroy()?;
        reached
    }

    /// The kernel's own counters of the port, where it keeps them (rxe does), since the device was opened. They count
    /// for every process that uses it.
    pub(crate) fn counters(&self) -> Counters {
        let (now, before) = (self.kernel_counters(), &self.opened);
        let mut counters = Counters {
            sent: now.sent.saturating_sub(before.sent),
            received: now.received.saturating_sub(before.received),
            retransmitted: now.retransmitted.saturating_sub(before.retransmitted),
            dropped: now.dropped,
        };
        for (reason, count) in &mut counters.dropped {
            *count = count.saturating_sub(before.dropped.get(reason).copied().unwrap_or(0));
        }
        counters.dropped.retain(|_, count| *count > 0);
        counters
    }

    fn kernel_counters(&self) -> Counters {
        let read = |counter: &str| {
            let path = format!("/sys/class/infiniband/{}/ports/{}/hw_counters/{counter}", self.name, self.port);
            fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let mut counters = Counters { sent: read("sent_pkts"), received: read("rcvd_pkts"), ..Counters::default() };
        counters.retransmitted = read("completer_retry_err");
        for reason in ["duplicate_request", "out_of_seq_request", "rcvd_seq_err", "retry_exceeded_err", "send_err"] {
            match read(reason) {
                0 => {}
                count => drop(counters.dropped.insert(reason, count)),
            }
        }
        counters
    }

    pub(crate) fn alloc_pd(self: &Arc<Self>) -> Result<IbvPd, VerbsError> {
        let pd = Pd::new(&self.context).map_err(|source| refused("ibv_alloc_pd", source))?;
        Ok(IbvPd::new(self, pd))
    }

    pub(crate) fn create_cq(self: &Arc<Self>, entries: usize) -> Result<IbvCq, VerbsError> {
        IbvCq::new(self, &self.context, entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, GidKind};

    fn judged(state: u32, link_layer: u8, gids: &[Gid], kind: Kind) -> Result<IpAddr, String> {
        let port = Port { state, active_mtu: 5, lid: 1, gids: gids.len(), link_layer };
        judge(&port, gids, kind, "10.0.0.1".parse().expect("an address")).map(|gid| gid.address())
    }

    #[test]
    fn what_cannot_be_used_is_told_with_what_mends_it() {
        let address = "10.0.0.1".parse().expect("an address");
        let gid = |kind| [Gid { index: 0, raw: Endpoint::gid_of(address), kind }];
        let (ethernet, fabric) = (gid(GidKind::RoceV2), gid(GidKind::InfiniBand));
        assert_eq!(judged(ACTIVE, 2, &ethernet, Kind::default()), Ok(address));
        assert_eq!(judged(ACTIVE, INFINIBAND, &fabric, Kind::default()), Ok(address));
        let eth7 = || Kind { interface: Some("eth7".to_owned()), ..Kind::default() };
        const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for (state, link, gids, kind, expected) in [
            (1, 2, &ethernet[..], eth7(), "is down; bring its interface up (ip link set eth7 up)"),
            (1, 2, &ethernet, Kind::default(), "ip link set INTERFACE up"),
            (ACTIVE, 2, &[], eth7(), "eth7 has no address"),
            (ACTIVE, 2, &[Gid { index: 0, raw: LINK_LOCAL, kind: GidKind::RoceV2 }], eth7(), "link-local"),
            (ACTIVE, 2, &gid(GidKind::RoceV1), eth7(), "RoCE v1 addresses only"),
            (1, INFINIBAND, &fabric, Kind::default(), "cable"),
            (INITIALISING, INFINIBAND, &fabric, Kind::default(), "opensm"),
            (ARMED, INFINIBAND, &fabric, Kind::default(), "opensm"),
            (ACTIVE, INFINIBAND, &[], Kind::default(), "subnet manager"),
            (ACTIVE, 2, &ethernet, Kind { iwarp: true, interface: None }, "iWARP"),
            (99, 2, &ethernet, Kind::default(), "unknown"),
        ] {
            let reason = judged(state, link, gids, kind).expect_err(expected);
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn a_name_that_could_leave_its_folder_is_no_device() {
        for name in ["", ".", "..", "../rxe0", "a/b", "rxe0\0", "mlx5_99", "soft:2"] {
            let options = DeviceOptions::new("127.0.0.1".parse().expect("an address"));
            let Err(error) = IbvDevice::open(name, &options, String::new()) else { panic!("{name:?} was opened") };
            assert!(matches!(error, VerbsError::DeviceNotFound { .. } | VerbsError::DeviceUnusable { .. }), "{error}");
        }
    }
}
