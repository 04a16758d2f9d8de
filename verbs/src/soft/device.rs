//! The soft device and what is made from it. Each object holds those it needs, and is undone when it is dropped.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
#[cfg(feature = "dpdk")]
use std::sync::{Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::driver::{Core, Driver};
use super::engine::{self, CqHandle, EngineError, EngineRequest, MrHandle, PdHandle, Qpn};
#[cfg(feature = "dpdk")]
use super::port_dpdk::{self, DpdkPort};
use super::port_udp::{self, ReceiveBuffer};
use crate::endpoint::ROCE_PORT;
use crate::{
    Access, Completion, Counters, DeviceOptions, Endpoint, FoundDevice, Gid, GidKind, Health, Memory, Mtu, QpCaps,
    QpState, Retry, VerbsError, WorkRequest,
};

/// Bytes of headers beside the payload that an interface's MTU must leave room for.
const HEADERS: usize = 80;

/// Those on ports of DPDK's: a port is opened once, and shared by those of this process who ask for it by the same name.
#[cfg(feature = "dpdk")]
static OPEN: Mutex<Vec<(Weak<SoftDevice>, Weak<()>)>> = Mutex::new(Vec::new());
/// How long a port may take to close.
#[cfg(feature = "dpdk")]
const CLOSING: Duration = Duration::from_secs(5);

/// An open soft device. Dropping it stops its thread.
pub(crate) struct SoftDevice {
    name: String,
    driver: Arc<Driver>,
    mtu: Mtu,
    /// What it is on, where that is no UDP socket.
    port: Option<String>,
    asked: DeviceOptions,
    why: String,
    thread: Option<JoinHandle<()>>,
}

impl SoftDevice {
    pub(crate) fn open(options: &DeviceOptions, why: String) -> Result<Self, VerbsError> {
        let device = Self::start(options, why)?;
        if let Some((ReceiveBuffer { wanted, granted }, remedy)) = device.small_buffer() {
            tracing::warn!(
                wanted,
                granted,
                "the soft device's receive buffer is small, so packets may be lost; {remedy}"
            );
        }
        Ok(device)
    }

    fn start(options: &DeviceOptions, why: String) -> Result<Self, VerbsError> {
        let address = options.address;
        if address.is_unspecified() || address.is_multicast() {
            let source = std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
            let address = SocketAddr::new(address, options.port.unwrap_or(ROCE_PORT));
            return Err(VerbsError::Address { address, source });
        }
        let mtu = options.mtu.min(interface_mtu(address));
        let driver = Arc::new(Driver::open(options, mtu)?);
        let thread = Self::start_thread(&driver, options, None)?;
        Ok(Self { name: "soft".to_owned(), driver, mtu, port: None, asked: options.clone(), why, thread })
    }

    /// On the port of DPDK's that the name says.
    #[cfg(feature = "dpdk")]
    pub(crate) fn open_dpdk(name: &str, options: &DeviceOptions, why: String) -> Result<Arc<Self>, VerbsError> {
        // DPDK starts threads of its own as soon as it starts.
        if let Some(then) = options.before_threads {
            then();
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.iter().filter_map(|(device, _)| device.upgrade()).find(|device| device.name == name)
        {
            let fixed = |asked: &DeviceOptions| (asked.address, asked.port, asked.mtu, asked.lose_per_million);
            if fixed(&device.asked) != fixed(options) {
                let reason = "this process has it open with another address, port, MTU or loss; ask for the same, or \
                              close it first"
                    .to_owned();
                return Err(VerbsError::DeviceUnusable { name: name.to_owned(), reason });
            }
            return Ok(device);
        }
        // Whoever drops one closes its port at last, on a thread of its own.
        let until = Instant::now() + CLOSING;
        while open.iter().any(|(device, port)| device.strong_count() == 0 && port.strong_count() > 0)
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        open.retain(|(device, _)| device.strong_count() > 0);
        let (port, about) = DpdkPort::open(name, options)?;
        let mtu = options.mtu.min(mtu_within(about.mtu));
        let driver = Arc::new(Driver::open_dpdk(name, (port, &about), (mtu, options.spin))?);
        let thread = Self::start_thread(&driver, options, about.cpu)?;
        let port = Some(about.line());
        let asked = options.clone();
        let device = Arc::new(Self { name: name.to_owned(), driver, mtu, port, asked, why, thread });
        open.push((Arc::downgrade(&device), about.open));
        Ok(device)
    }

    /// The cards that DPDK could have, and how other ports are named.
    #[cfg(feature = "dpdk")]
    pub(crate) fn look_dpdk(options: &DeviceOptions) -> Vec<FoundDevice> {
        let gid = Gid { index: 0, raw: Endpoint::gid_of(options.address), kind: GidKind::RoceV2 };
        let cards = port_dpdk::cards().into_iter().map(|(address, usable)| FoundDevice {
            state: if usable.is_ok() { "ready" } else { "unusable" },
            limits: Some(engine::LIMITS),
            usable: usable.map(|()| gid),
            ..FoundDevice::unusable(&format!("dpdk:{address}"), "", "DPDK", String::new())
        });
        let named =
            "a virtual port is named with what it needs: net_memif0,role=mesh,socket=/run/overbank,address=10.9.0.1/24";
        cards.chain([FoundDevice::unusable("dpdk:net_…", "virtual", "DPDK", named.to_owned())]).collect()
    }

    /// The thread, on that processor or on any.
    fn start_thread(
        driver: &Arc<Driver>,
        options: &DeviceOptions,
        cpu: Option<usize>,
    ) -> Result<Option<JoinHandle<()>>, VerbsError> {
        if let Some(then) = options.before_threads {
            then();
        }
        let driver = Arc::clone(driver);
        let progress = move || {
            if let Some(cpu) = cpu
                && let Err(error) = pin(cpu)
            {
                tracing::warn!(cpu, %error, "the soft device's thread could not be bound to its processor");
            }
            driver.progress();
        };
        let thread = std::thread::Builder::new().name("overbank-soft".to_owned()).spawn(progress);
        thread.map(Some).map_err(|source| VerbsError::System { call: "start of the progress thread", source })
    }

    #[cfg(all(test, feature = "dpdk"))]
    pub(crate) fn frames(&self) -> (u32, u32) {
        self.driver.control().frames()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The receive buffer, where it is smaller than we want, and what mends it.
    fn small_buffer(&self) -> Option<(ReceiveBuffer, String)> {
        let buffer = self.driver.receive_buffer()?;
        Some((buffer, buffer.remedy()?))
    }

    /// Opens one for a moment, to see whether that is possible.
    pub(crate) fn look(options: &DeviceOptions) -> FoundDevice {
        let gid = Gid { index: 0, raw: Endpoint::gid_of(options.address), kind: GidKind::RoceV2 };
        let opened = Self::start(options, String::new());
        FoundDevice {
            name: "soft".to_owned(),
            soft: true,
            state: if opened.is_ok() { "active" } else { "unusable" },
            link: "UDP",
            mtu: opened.as_ref().ok().map(|device| device.mtu),
            gids: vec![gid],
            limits: Some(engine::LIMITS),
            usable: opened.map(|_| gid).map_err(|error| error.to_string()),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let local = self.driver.local();
        let port = match (self.asked.port, local.port()) {
            (None, port) if port != ROCE_PORT => {
                format!(" (port {ROCE_PORT} is taken, so soft devices only can reach it)")
            }
            _ => String::new(),
        };
        let asked = self.asked.mtu.bytes();
        let mtu = match self.mtu.bytes() {
            mtu if mtu < asked => format!("{mtu} (the network interface does not carry {asked})"),
            mtu => mtu.to_string(),
        };
        let lossy = match self.asked.lose_per_million {
            0 => String::new(),
            lose => format!(", losing {lose} of a million datagrams on purpose"),
        };
        let small = match self.small_buffer() {
            Some((ReceiveBuffer { wanted, granted }, remedy)) => {
                format!(", receive buffer {granted} bytes of {wanted} (packets may be lost; {remedy})")
            }
            None => String::new(),
        };
        let why = &self.why;
        if let Some(on) = &self.port {
            return format!("soft device (RoCEv2 in user space) on {on}, path MTU {mtu}{lossy}; {why}");
        }
        format!("soft device (RoCEv2 in user space) on UDP {local}{port}, path MTU {mtu}{small}{lossy}; {why}")
    }

    pub(crate) fn health(&self) -> Health {
        if self.driver.failed() { Health::Fatal } else { Health::Good }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.driver.control().counters()
    }

    /// Whether a queue pair could be connected there: the address is of the right kind and the endpoint one of a device.
    pub(crate) fn reach(self: &Arc<Self>, remote: &Endpoint) -> Result<(), VerbsError> {
        let pd = Arc::new(self.alloc_pd()?);
        let cq = Arc::new(self.create_cq(1)?);
        let qp = pd.create_qp(&cq, QpCaps { send_queue: 1, outstanding_reads: 0 })?;
        qp.connect(remote, Access::empty(), Retry { timeout: Duration::from_secs(1), count: 0 })
    }

    pub(crate) fn alloc_pd(self: &Arc<Self>) -> Result<SoftPd, VerbsError> {
        let handle = self.driver.control().engine.alloc_pd();
        Ok(SoftPd { device: Arc::clone(self), handle })
    }

    pub(crate) fn create_cq(self: &Arc<Self>, entries: usize) -> Result<SoftCq, VerbsError> {
        let handle = self.driver.control().engine.create_cq(entries)?;
        Ok(SoftCq { device: Arc::clone(self), handle })
    }
}

impl Drop for SoftDevice {
    fn drop(&mut self) {
        self.driver.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) struct SoftPd {
    device: Arc<SoftDevice>,
    handle: PdHandle,
}

impl SoftPd {
    pub(crate) fn register(
        self: &Arc<Self>,
        memory: &Arc<Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<SoftMr, VerbsError> {
        let (start, len) = (range.start, range.len());
        let handle = self.device.driver.control().engine.register(self.handle, Arc::clone(memory), range, access)?;
        let address = memory.address() + start as u64;
        Ok(SoftMr { pd: Arc::clone(self), handle, memory: Arc::clone(memory), address, len, registered: true })
    }

    pub(crate) fn create_qp(self: &Arc<Self>, cq: &Arc<SoftCq>, caps: QpCaps) -> Result<SoftQp, VerbsError> {
        if !Arc::ptr_eq(&self.device, &cq.device) {
            return Err(VerbsError::Foreign { what: "completion queue", owner: "device" });
        }
        let mut core = self.device.driver.control();
        let qpn = core.engine.create_qp(self.handle, cq.handle, caps)?;
        let endpoint = core.engine.endpoint(qpn)?;
        drop(core);
        Ok(SoftQp { pd: Arc::clone(self), _cq: Arc::clone(cq), qpn, endpoint, exists: true })
    }
}

impl Drop for SoftPd {
    fn drop(&mut self) {
        if let Err(error) = self.device.driver.control().engine.dealloc_pd(self.handle) {
            tracing::error!(%error, "a protection domain could not be freed");
        }
    }
}

pub(crate) struct SoftMr {
    pd: Arc<SoftPd>,
    handle: MrHandle,
    memory: Arc<Memory>,
    address: u64,
    len: usize,
    registered: bool,
}

impl SoftMr {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn rkey(&self) -> u32 {
        self.handle.rkey
    }

    pub(crate) fn deregister(mut self) -> Result<(), VerbsError> {
        self.end()
    }

    /// The engine touches memory only under the lock, so nothing of it is under way when this returns.
    fn end(&mut self) -> Result<(), VerbsError> {
        self.registered = false;
        self.pd.device.driver.control().engine.deregister(self.handle).map_err(|error| VerbsError::Deregister {
            memory: Arc::clone(&self.memory),
            source: Box::new(error.into()),
        })
    }
}

impl Drop for SoftMr {
    fn drop(&mut self) {
        if self.registered
            && let Err(error) = self.end()
        {
            tracing::error!(%error, "a memory region was dropped and could not be deregistered");
            std::mem::forget(error);
        }
    }
}

pub(crate) struct SoftCq {
    device: Arc<SoftDevice>,
    handle: CqHandle,
}

impl SoftCq {
    pub(crate) fn poll(&self, max: usize, out: &mut Vec<Completion>) -> Result<usize, VerbsError> {
        let driver = &self.device.driver;
        let mut core = driver.hot()?;
        driver.drive_called(&mut core);
        Ok(core.engine.poll_cq(self.handle, max, out)?)
    }

    pub(crate) fn wait(&self, deadline: Instant) -> Result<bool, VerbsError> {
        Ok(self.device.driver.wait(self.handle, deadline)?.is_some())
    }

    pub(crate) fn poll_within(
        &self,
        deadline: Instant,
        max: usize,
        out: &mut Vec<Completion>,
    ) -> Result<usize, VerbsError> {
        match self.device.driver.wait(self.handle, deadline)? {
            Some(mut core) => Ok(core.engine.poll_cq(self.handle, max, out)?),
            None => Ok(0),
        }
    }
}

impl Drop for SoftCq {
    fn drop(&mut self) {
        if let Err(error) = self.device.driver.control().engine.destroy_cq(self.handle) {
            tracing::error!(%error, "a completion queue could not be destroyed");
        }
    }
}

pub(crate) struct SoftQp {
    pd: Arc<SoftPd>,
    _cq: Arc<SoftCq>,
    qpn: Qpn,
    endpoint: Endpoint,
    exists: bool,
}

impl SoftQp {
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn connect(&self, remote: &Endpoint, rights: Access, retry: Retry) -> Result<(), VerbsError> {
        let driver = &self.pd.device.driver;
        let (local, peer) = (driver.local(), remote.socket_addr());
        if local.is_ipv4() != peer.is_ipv4() {
            let reason = "one has an IPv4 address and the other an IPv6 address";
            return Err(VerbsError::Unreachable { peer, local, reason });
        }
        let mut core = driver.control();
        core.engine.connect(driver.now(), self.qpn, remote, rights, retry).map_err(|error| in_state(error, "connect"))
    }

    pub(crate) fn state(&self) -> QpState {
        self.pd.device.driver.control().engine.state(self.qpn)
    }

    pub(crate) fn post<'a>(
        &self,
        batch: impl Iterator<Item = (WorkRequest<'a>, &'a SoftMr)> + Clone,
    ) -> Result<(), VerbsError> {
        let device = &self.pd.device;
        if !batch.clone().all(|(_, mr)| Arc::ptr_eq(&mr.pd.device, device)) {
            return Err(VerbsError::Foreign { what: "memory region", owner: "device" });
        }
        let driver = &device.driver;
        let now = driver.called();
        let mut core = driver.hot()?;
        let Core { engine, requests, .. } = &mut *core;
        requests.clear();
        requests.extend(batch.map(|(request, mr)| EngineRequest {
            id: request.id,
            op: request.op,
            mr: mr.handle,
            offset: request.offset,
            len: request.len,
            remote_address: request.remote_address,
            rkey: request.rkey,
        }));
        engine.post(now, self.qpn, requests).map_err(|error| in_state(error, "post a request"))?;
        driver.transmit(&mut core, now);
        Ok(())
    }

    pub(crate) fn set_error(&self) -> Result<(), VerbsError> {
        let driver = &self.pd.device.driver;
        let mut core = driver.control();
        core.engine.set_error(self.qpn)?;
        driver.transmit(&mut core, driver.now());
        Ok(())
    }

    pub(crate) fn destroy(mut self) -> Result<(), VerbsError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), VerbsError> {
        self.exists = false;
        let driver = &self.pd.device.driver;
        let mut core = driver.control();
        core.engine.destroy_qp(self.qpn)?;
        driver.transmit(&mut core, driver.now());
        Ok(())
    }
}

impl Drop for SoftQp {
    fn drop(&mut self) {
        if self.exists
            && let Err(error) = self.end()
        {
            tracing::error!(%error, "a queue pair was dropped and could not be destroyed");
        }
    }
}

/// Binds this thread to a processor.
fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

/// The largest path MTU of the network interface that has this address.
fn interface_mtu(address: IpAddr) -> Mtu {
    let interface = nix::ifaddrs::getifaddrs().ok().and_then(|mut all| {
        all.find(|interface| {
            let Some(found) = interface.address else { return false };
            match address {
                IpAddr::V4(v4) => found.as_sockaddr_in().is_some_and(|found| found.ip() == v4),
                IpAddr::V6(v6) => found.as_sockaddr_in6().is_some_and(|found| found.ip() == v6),
            }
        })
    });
    let carries = interface.and_then(|interface| port_udp::interface_mtu(&interface.interface_name).ok());
    // Without an answer, what every network carries.
    mtu_within(carries.unwrap_or(1500))
}

fn mtu_within(carries: usize) -> Mtu {
    Mtu::ALL.into_iter().rev().find(|mtu| mtu.bytes() + HEADERS <= carries).unwrap_or(Mtu::Mtu256)
}

/// Where the queue pair's state forbids it: what it was.
fn in_state(error: EngineError, what: &'static str) -> VerbsError {
    match error {
        EngineError::State(state) => VerbsError::State { what, state },
        other => other.into(),
    }
}

impl From<EngineError> for VerbsError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Gone(what) => Self::Gone { what },
            EngineError::Busy(what) => Self::Busy { what },
            EngineError::Foreign(what) => Self::Foreign { what, owner: "protection domain" },
            EngineError::State(state) => Self::State { what: "go on", state },
            EngineError::OutOfRange { offset, len, size } => {
                Self::OutOfRange { what: "the memory region", offset, len, size }
            }
            EngineError::Limit { what, value, min, max } => Self::Limit { what, value, min, max },
            EngineError::Rights { has, needs } => Self::Rights { has, needs },
            EngineError::Full { what, asked, free, capacity } => Self::QueueFull { what, asked, free, capacity },
            EngineError::Endpoint(field) => Self::Endpoint { field },
            EngineError::Random(error) => Self::System { call: "getrandom", source: error.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stops_the_device_and_says_so() {
        let options = DeviceOptions { port: Some(0), ..DeviceOptions::new("127.0.0.1".parse().unwrap()) };
        let [user, lender] = [(); 2].map(|()| Arc::new(SoftDevice::open(&options, String::new()).unwrap()));
        let ends = [&user, &lender].map(|device| {
            let (pd, cq) = (Arc::new(device.alloc_pd().unwrap()), Arc::new(device.create_cq(4).unwrap()));
            let memory = Arc::new(Memory::map(4096, crate::Backing::Ordinary).unwrap());
            let mr = pd.register(&memory, 0..4096, Access::all()).unwrap();
            let qp = pd.create_qp(&cq, QpCaps { send_queue: 4, outstanding_reads: 1 }).unwrap();
            (cq, memory, mr, qp)
        });
        let [(cq, _, mr, qp), (other_cq, memory, lent, peer)] = ends;
        let retry = Retry { timeout: Duration::from_millis(20), count: 1 };
        qp.connect(&peer.endpoint(), Access::all(), retry).unwrap();
        peer.connect(&qp.endpoint(), Access::all(), retry).unwrap();
        let region = crate::MemoryRegion(crate::mr::Backend::Soft(mr));
        let mr = match &region.0 {
            crate::mr::Backend::Soft(mr) => mr,
            #[cfg(feature = "ibv")]
            crate::mr::Backend::Ibv(_) => panic!("it was just made"),
        };
        let write = WorkRequest {
            id: 1,
            op: crate::Op::Write,
            region: &region,
            offset: 0,
            len: 1,
            remote_address: lent.address(),
            rkey: lent.rkey(),
        };
        let post = || qp.post([(write, mr)].into_iter());
        let soon = || Instant::now() + Duration::from_secs(5);
        post().unwrap();
        assert!(cq.wait(soon()).unwrap());
        assert_eq!((user.health(), lender.health()), (Health::Good, Health::Good));

        let driver = Arc::clone(&lender.driver);
        let begun = Instant::now();
        let waiters = [(); 2].map(|()| {
            let cq = Arc::clone(&other_cq);
            std::thread::spawn(move || cq.wait(Instant::now() + Duration::from_secs(60)))
        });
        std::thread::sleep(Duration::from_millis(100));
        std::thread::spawn(move || {
            let mut core = driver.control();
            while begun.elapsed() < Duration::from_secs(60) {
                driver.drive(&mut core, || panic!("as if the engine had a fault"));
            }
        })
        .join()
        .unwrap_err();
        assert_eq!((user.health(), lender.health()), (Health::Good, Health::Fatal));
        // It takes no more packets: its peer is told nothing.
        memory.copy_in(0, &[7]).unwrap();
        let mut done = Vec::new();
        cq.poll(4, &mut done).unwrap();
        done.clear();
        post().unwrap();
        assert!(cq.wait(soon()).unwrap());
        cq.poll(4, &mut done).unwrap();
        assert_eq!(done[0].status, crate::WcStatus::RETRY_EXC_ERR);
        let mut byte = [0];
        memory.copy_out(0, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        // Its owner is told everywhere, and can undo what there is.
        let queue = Arc::new(lender.create_cq(1).unwrap());
        let fatal = |error| matches!(error, VerbsError::DeviceFatal { .. });
        // One of these watched the socket, and the other waited for it.
        waiters.into_iter().for_each(|waiter| assert!(fatal(waiter.join().unwrap().unwrap_err())));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        assert!(fatal(queue.poll(1, &mut done).unwrap_err()));
        assert!(fatal(queue.wait(soon()).unwrap_err()));
        assert!(fatal(peer.post([].into_iter()).unwrap_err()));
        peer.destroy().unwrap();
        lent.deregister().unwrap();
    }

    #[test]
    fn the_path_mtu_leaves_room_for_headers() {
        for (carries, mtu) in [
            (0, 256),
            (1280, 1024),
            (1500, 1024),
            (2127, 1024),
            (2128, 2048),
            (4175, 2048),
            (4176, 4096),
            (8271, 4096),
            (8272, 8192),
            (65_536, 8192),
        ] {
            assert_eq!(mtu_within(carries).bytes(), mtu, "{carries}");
        }
        assert_eq!(interface_mtu("127.0.0.1".parse().unwrap()), Mtu::Mtu8192);
        assert_eq!(interface_mtu("192.0.2.1".parse().unwrap()), Mtu::Mtu1024);
    }
}
