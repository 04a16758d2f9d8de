//! DPDK itself: started once a process, its ports, its memory, and frames in it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::super::out::{Out, OutOfMemory};
use super::gate::{GATE, Gate, Inside, NO_GATE};
use super::spec::Spec;
use super::{checks, events, sys};
use crate::Memory;

/// Frames in one call of the driver, at most.
pub(crate) const BURST: usize = 32;
/// What DPDK loads when it starts: a program that is linked with its libraries may be without.
const PLUGINS: &str = "apt-get install librte-bus-vdev23 librte-mempool-stack23 librte-net-memif23, on Debian 12";
/// Bytes before a frame in its buffer, as DPDK is built.
const HEADROOM: usize = 128;

/// How long a change of a port waits for others, and for DPDK's own thread.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// One at a time changes anything in DPDK: its list of devices has no lock, and memif's of sockets has none.
static CONTROL: Mutex<()> = Mutex::new(());

/// Whether DPDK was started in this process; it can be once only, so a failure stays.
static STARTED: Mutex<Option<Result<Started, String>>> = Mutex::new(None);

#[derive(Clone)]
struct Started {
    hugepages: bool,
    pci: bool,
}

/// Starts DPDK for this port, unless it was started for another one.
pub(crate) fn start(spec: &Spec) -> Result<(), String> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let how = match &*started {
        Some(how) => how.clone()?,
        None => {
            if spec.hugepages {
                checks::hugepages(Path::new("/sys"), spec.memory)?;
            }
            started.insert(start_once(spec)?).clone()?
        }
    };
    if spec.is_pci() && !how.pci {
        return Err("this process has started DPDK for virtual ports; open the card's first".to_owned());
    }
    if spec.hugepages && !how.hugepages {
        return Err("this process has started DPDK without hugepages; open the device that needs them first".to_owned());
    }
    Ok(())
}

/// How it went; an error where it was not tried.
fn start_once(spec: &Spec) -> Result<Result<Started, String>, String> {
    // On a thread of its own: DPDK binds the thread that starts it to a processor.
    let spec = spec.clone();
    let starting = std::thread::Builder::new().name("dpdk-start".to_owned()).spawn(move || initialise(&spec));
    let starting = starting.map_err(|error| format!("there is no thread to start DPDK: {error}"))?;
    Ok(starting.join().unwrap_or_else(|_| Err("the thread that starts DPDK could not do it".to_owned())))
}

/// What DPDK is started with.
fn arguments(spec: &Spec) -> Vec<String> {
    let mut arguments = vec!["overbank".to_owned(), "--no-telemetry".to_owned(), "--no-shconf".to_owned()];
    // Its own threads run wherever this process may.
    arguments.push(format!("--lcores=0@({})", processors()));
    arguments.push(format!("--file-prefix=overbank-{}", std::process::id()));
    arguments.extend(["-m".to_owned(), spec.memory.to_string()]);
    arguments.push(if spec.hugepages { "--in-memory" } else { "--no-huge" }.to_owned());
    if spec.is_pci() {
        // It is a port from the start on, so its driver is told now.
        let card = [spec.port.clone()].into_iter().chain(spec.for_driver());
        arguments.extend(["-a".to_owned(), card.collect::<Vec<_>>().join(",")]);
    } else {
        arguments.push("--no-pci".to_owned());
    }
    arguments
}

fn initialise(spec: &Spec) -> Result<Started, String> {
    // SAFETY: takes nothing; DPDK's log goes to memory of the shim's.
    if unsafe { sys::ob_keep_log() } != 0 {
        return Err("DPDK's log could not be taken over".to_owned());
    }
    let arguments = arguments(spec);
    let arguments: Result<Vec<CString>, _> = arguments.into_iter().map(CString::new).collect();
    let arguments = arguments.map_err(|_| "a zero byte in an argument of DPDK's".to_owned())?;
    let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    pointers.push(null_mut());
    // SAFETY: as many arguments as it is told, each of which ends in a zero byte, and a null pointer behind them. It may
    // change their order, and keeps copies. Called once, under the lock of `start`.
    let done = unsafe { sys::rte_eal_init(arguments.len() as c_int, pointers.as_mut_ptr()) };
    if done < 0 {
        return Err(format!("DPDK did not start: {}{}", error_text(last_error()), log(0)));
    }
    // What DPDK makes for others to find this process by stays empty.
    let _ = std::fs::remove_dir(directory().join(format!("overbank-{}", std::process::id())));
    events::start()?;
    Ok(Started { hugepages: spec.hugepages, pci: spec.is_pci() })
}

/// Where DPDK makes a directory for each process, by its own rules.
pub(crate) fn directory() -> PathBuf {
    let base =
        if nix::unistd::geteuid().is_root() { Some("/var/run".into()) } else { std::env::var_os("XDG_RUNTIME_DIR") };
    PathBuf::from(base.unwrap_or_else(|| "/tmp".into())).join("dpdk")
}

/// The processors that this process may use, as DPDK lists them.
fn processors() -> String {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    let all = (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    let all: Vec<String> = all.map(|cpu| cpu.to_string()).collect();
    if all.is_empty() { "0".to_owned() } else { all.join(",") }
}

fn last_error() -> c_int {
    // SAFETY: reads a number of this thread's.
    unsafe { sys::ob_errno() }
}

fn error_text(error: c_int) -> String {
    std::io::Error::from_raw_os_error(error.abs()).to_string()
}

/// How much DPDK has said.
fn said() -> usize {
    // SAFETY: reads a number.
    unsafe { sys::ob_log_len() }
}

/// What DPDK said last, behind so much, as far as it bears on a failure.
fn log(behind: usize) -> String {
    let mut bytes = [0_u8; 2048];
    // SAFETY: the buffer has the length that is given with it.
    let len = unsafe { sys::ob_log(behind, bytes.as_mut_ptr().cast(), bytes.len()) };
    let text = String::from_utf8_lossy(&bytes[..len.min(bytes.len())]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    if last.is_empty() { String::new() } else { format!(" (DPDK says: {})", last.join("; ")) }
}

/// Waits for whoever changes something in DPDK.
fn control(patience: Duration) -> Result<MutexGuard<'static, ()>, String> {
    let until = Instant::now() + patience;
    loop {
        match CONTROL.try_lock() {
            Ok(control) => return Ok(control),
            Err(TryLockError::Poisoned(control)) => return Ok(control.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Err(TryLockError::WouldBlock) => return Err("DPDK does not come back from another port".to_owned()),
        }
    }
}

fn enter(gate: &Gate, patience: Duration) -> Result<Inside<'_>, String> {
    gate.enter(patience).ok_or_else(|| "DPDK's own thread does not come back".to_owned())
}

/// Buffers of frames. They are taken and given back by one thread at a time: whoever has the device's lock.
pub(crate) struct Pool(Arc<Buffers>);

/// Freed when neither the pool nor a port has them.
struct Buffers(NonNull<sys::rte_mempool>);

// SAFETY: they may be used by any thread, by one at a time; their owner is used so. A port that has them as well only
// keeps them.
unsafe impl Send for Buffers {}
// SAFETY: as above.
unsafe impl Sync for Buffers {}

impl Pool {
    /// Of `count` frames of up to `frame` bytes.
    pub(crate) fn new(count: usize, frame: usize) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = CString::new(format!("overbank-{}", MADE.fetch_add(1, Ordering::Relaxed))).unwrap_or_default();
        let room = HEADROOM + frame;
        // SAFETY: strings that live for the call. No cache: it would belong to a thread of DPDK's, and ours are not. The
        // buffer that came back last goes out first, while it is still in the processor's cache.
        let pool = unsafe {
            sys::rte_pktmbuf_pool_create_by_ops(
                name.as_ptr(),
                u32::try_from(count).unwrap_or(u32::MAX),
                0,
                0,
                u16::try_from(room).unwrap_or(u16::MAX),
                -1,
                c"stack".as_ptr(),
            )
        };
        let why = last_error();
        let mib = (count * (room + 256)).div_ceil(1 << 20) + 32;
        NonNull::new(pool).map(|pool| Self(Arc::new(Buffers(pool)))).ok_or_else(|| no_pool(why, count, mib))
    }

    /// An empty frame; None: all are under way.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        // SAFETY: a pool that lives; the exclusive borrow keeps other threads away from it.
        NonNull::new(unsafe { sys::ob_alloc(self.0.0.as_ptr()) }).map(Frame)
    }

    /// Buffers that nobody has, and that somebody has.
    #[cfg(test)]
    pub(crate) fn count(&self) -> (u32, u32) {
        let pool = self.0.0.as_ptr();
        // SAFETY: a pool that lives.
        unsafe { (sys::rte_mempool_avail_count(pool), sys::rte_mempool_in_use_count(pool)) }
    }
}

/// Why there are no frames, and the way out.
fn no_pool(error: c_int, count: usize, mib: usize) -> String {
    let why = error_text(error);
    match error.abs() {
        libc::ENOMEM => {
            format!("DPDK has no memory for {count} frames: {why}; give the device memory=MIB, {mib} at least")
        }
        _ => format!("DPDK makes no pool of {count} frames: {why}; its plugins may be missing: {PLUGINS}"),
    }
}

/// Why there is no port.
fn no_port(error: c_int, log: &str) -> String {
    let no_driver = log.contains("failed to parse device");
    let way_out = if no_driver { format!("; it has no driver of that name: {PLUGINS}") } else { String::new() };
    format!("DPDK did not take the port: {}{log}{way_out}", error_text(error))
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: made by `new`. Each port that uses it has gone, and its owner drops each `Frame` of it before.
        unsafe { sys::rte_mempool_free(self.0.as_ptr()) };
    }
}

/// What a port turned out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u16,
    pub(crate) receive_ring: u16,
    pub(crate) fills_checksum: bool,
    pub(crate) driver: String,
}

/// An Ethernet port, with a queue in each direction. Dropping it removes it.
pub(crate) struct Port {
    number: u16,
    bus: &'static CStr,
    name: CString,
    /// Where a memif has its socket.
    socket: Option<PathBuf>,
    gate: &'static Gate,
    /// Of a memif that calls.
    call: Option<RawFd>,
    running: bool,
    /// They outlive it.
    buffers: Arc<Buffers>,
    pub(crate) facts: Facts,
}

impl Port {
    /// Adds the port to DPDK and sets it up, with frames of this pool; a memif has its socket there. It does not run yet.
    pub(crate) fn open(
        (bus, name, arguments): (&'static CStr, &str, &str),
        socket: Option<&Path>,
        pool: &Pool,
        ring: u16,
        mtu: u16,
    ) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a zero byte in the port's name".to_owned());
        let (c_name, arguments) = (text(name)?, text(arguments)?);
        let gate = if socket.is_some() { &GATE } else { &NO_GATE };
        let control = control(PATIENCE)?;
        let inside = enter(gate, PATIENCE)?;
        let (behind, mut number) = (said(), 0);
        // SAFETY: a string, and a number to fill in; both live for the call.
        let known = unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut number) } == 0;
        if known && bus == c"vdev" {
            return Err(format!("this process uses {name} already"));
        }
        if !known {
            // SAFETY: three strings that live for the call.
            let added = unsafe { sys::rte_eal_hotplug_add(bus.as_ptr(), c_name.as_ptr(), arguments.as_ptr()) };
            if added != 0 {
                return Err(no_port(added, &log(behind)));
            }
        }
        if let Some(socket) = socket {
            events::add(socket);
        }
        let mut port = Self {
            number,
            bus,
            name: c_name,
            socket: socket.map(Path::to_owned),
            gate,
            call: None,
            running: false,
            buffers: Arc::clone(&pool.0),
            facts: Facts::default(),
        };
        let set_up = port.set_up(behind, ring, mtu);
        // What failed is removed, which waits for both.
        drop(inside);
        drop(control);
        set_up.map(|()| port)
    }

    fn set_up(&mut self, behind: usize, ring: u16, mtu: u16) -> Result<(), String> {
        // SAFETY: a string, and a number to fill in; both live for the call.
        if unsafe { sys::rte_eth_dev_get_port_by_name(self.name.as_ptr(), &raw mut self.number) } != 0 {
            return Err(format!("DPDK has no driver that makes {} a port{}", self.name.to_string_lossy(), log(behind)));
        }
        let (number, pool) = (self.number, self.buffers.0.as_ptr());
        // SAFETY: all-zero bytes are a valid value of this plain C structure.
        let (mut facts, mut step): (sys::ob_port, *const c_char) = (unsafe { std::mem::zeroed() }, std::ptr::null());
        // SAFETY: a port that is there and not set up, a pool that outlives it, and places to fill in that live for the call.
        let done = unsafe { sys::ob_port_setup(number, pool, ring, mtu, &raw mut facts, &raw mut step) };
        if done != 0 {
            // SAFETY: the shim sets it to a literal before each step.
            let step = unsafe { CStr::from_ptr(step) }.to_string_lossy();
            return Err(format!("{step} failed: {}{}", error_text(done), log(behind)));
        }
        let driver = facts.driver.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
        self.facts = Facts {
            mac: facts.mac,
            mtu: facts.mtu,
            receive_ring: facts.receive_ring,
            fills_checksum: facts.fills_checksum != 0,
            driver: String::from_utf8(driver).unwrap_or_default(),
        };
        Ok(())
    }

    /// Starts it; of a memif client that is to reach its server, which must have answered a moment ago.
    pub(crate) fn start(&mut self, patience: Duration) -> Result<(), String> {
        let _control = control(patience)?;
        let _inside = enter(self.gate, patience)?;
        let behind = said();
        let others = self.ends();
        // SAFETY: a port that is set up.
        match unsafe { sys::rte_eth_dev_start(self.number) } {
            0 => {
                self.call = self.ends().into_iter().find(|call| !others.contains(call));
                self.running = true;
                events::hurry();
                Ok(())
            }
            error => Err(format!("the port did not start: {}{}", error_text(error), log(behind))),
        }
    }

    /// Connections of its socket's.
    fn ends(&self) -> Vec<RawFd> {
        self.socket.as_deref().map(events::ends).unwrap_or_default()
    }

    pub(crate) fn stop(&mut self, patience: Duration) -> Result<(), String> {
        let _control = control(patience)?;
        let _inside = enter(self.gate, patience)?;
        self.stop_inside()
    }

    fn stop_inside(&mut self) -> Result<(), String> {
        if !self.running {
            return Ok(());
        }
        let (ends, behind) = (self.ends(), said());
        // A server that has not taken a connection yet would not survive its end.
        if let Some(call) = self.call.take().filter(|call| ends.contains(call) && !self.is_up()) {
            events::outlive(call);
        }
        // SAFETY: a port that runs.
        let done = unsafe { sys::rte_eth_dev_stop(self.number) };
        let left = self.ends();
        ends.into_iter().filter(|end| !left.contains(end)).for_each(events::block);
        self.running = done != 0;
        if done == 0 { Ok(()) } else { Err(format!("the port did not stop: {}{}", error_text(done), log(behind))) }
    }

    /// Takes it out of DPDK, which then has nothing of it any more.
    fn remove(&mut self) -> Result<(), String> {
        let _control = control(PATIENCE)?;
        if let Some(socket) = &self.socket
            && events::forget(socket)
        {
            events::retire(socket)?;
        }
        let _inside = enter(self.gate, PATIENCE)?;
        self.stop_inside()?;
        let behind = said();
        // SAFETY: the port is stopped, nobody else knows its number, and the strings live for the call. Removing closes it.
        let done = unsafe { sys::rte_eal_hotplug_remove(self.bus.as_ptr(), self.name.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(format!("DPDK did not remove it: {}{}", error_text(done), log(behind))) }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    pub(crate) fn is_up(&self) -> bool {
        // SAFETY: a port that is set up.
        unsafe { sys::ob_link_is_up(self.number) == 1 }
    }

    /// Takes what has arrived, so many frames at most, and a burst. None: it cannot be known now.
    pub(crate) fn receive(&mut self, to: &mut Vec<Frame>, most: usize) -> Option<usize> {
        if !self.running {
            return Some(0);
        }
        let _inside = self.gate.enter_soon()?;
        let mut frames = [null_mut(); BURST];
        // SAFETY: a port that runs, and room for as many pointers as it is told.
        let count = unsafe { sys::ob_receive(self.number, frames.as_mut_ptr(), most.min(BURST) as u16) };
        let count = usize::from(count).min(BURST);
        to.extend(frames[..count].iter().filter_map(|frame| NonNull::new(*frame)).map(Frame));
        Some(count)
    }

    /// Sends the first of these frames, as many as the port takes.
    pub(crate) fn send(&mut self, frames: &mut Vec<Frame>) -> usize {
        if !self.running || frames.is_empty() {
            return 0;
        }
        let Some(_inside) = self.gate.enter_soon() else { return 0 };
        let count = frames.len().min(usize::from(u16::MAX));
        // SAFETY: a port that runs, and that many frames of its own pool: `Frame` is one pointer, and nothing else. Those
        // that it takes are its own from then on.
        let sent = unsafe { sys::ob_send(self.number, frames.as_mut_ptr().cast(), count as u16) };
        let sent = usize::from(sent).min(count);
        frames.drain(..sent).for_each(std::mem::forget);
        sent
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            // The driver may go on using them.
            std::mem::forget(Arc::clone(&self.buffers));
            let port = self.name.to_string_lossy();
            tracing::error!(%port, %error, "a port of DPDK's could not be closed, so its memory stays in use");
        }
    }
}

/// A frame in a buffer of DPDK's, which is ours: neither in a ring nor in the pool. What a memif brought was copied into it
/// by the driver, so no peer can reach it.
#[repr(transparent)]
pub(crate) struct Frame(NonNull<sys::rte_mbuf>);

// SAFETY: it has its buffer for itself; it goes back to the pool where its port's lock is held.
unsafe impl Send for Frame {}

impl Frame {
    /// Its bytes. None: it is of several buffers, for which no frame of ours is too long, or lies about its length.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        let mut len = 0;
        // SAFETY: a buffer that is ours, and a number to fill in.
        let bytes = NonNull::new(unsafe { sys::ob_bytes(self.0.as_ptr(), &raw mut len) })?;
        // SAFETY: the shim has seen that so many bytes lie in the buffer, which is ours while this is borrowed. All of its
        // bytes have a value: DPDK's memory comes from the system as zeros.
        Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr(), len as usize) })
    }

    /// The port has found a checksum in it wrong.
    pub(crate) fn is_damaged(&self) -> bool {
        // SAFETY: a buffer that is ours.
        unsafe { sys::ob_is_damaged(self.0.as_ptr()) != 0 }
    }

    /// All that it has room for.
    fn room(&mut self) -> &mut [u8] {
        let mut room = 0;
        // SAFETY: a buffer that is ours, and a number to fill in.
        let bytes = unsafe { sys::ob_room(self.0.as_ptr(), &raw mut room) };
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(bytes, room as usize) }
    }

    /// To be written, from its first byte on.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        Writer { room: self.room(), len: 0 }
    }

    /// Its first bytes, to be written over, once it is `len` bytes long. None: it has no room for them.
    pub(crate) fn finish(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > self.room().len() {
            return None;
        }
        // SAFETY: a buffer that is ours, and has room for so many bytes: at most 65,535, as its pool was made.
        unsafe { sys::ob_set_len(self.0.as_ptr(), len as u16) };
        self.room().get_mut(..len)
    }

    /// The port is to fill in the checksum of its IPv4 header.
    pub(crate) fn want_checksum(&mut self) {
        let (ethernet, ipv4) = (super::frame::ETHERNET as u8, super::frame::IPV4 as u8);
        // SAFETY: a buffer that is ours.
        unsafe { sys::ob_want_checksum(self.0.as_ptr(), ethernet, ipv4) };
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: a buffer that is ours, and goes back to its pool.
        unsafe { sys::ob_free(self.0.as_ptr()) };
    }
}

/// A packet, written where its port takes it from.
pub(crate) struct Writer<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn next(&mut self, len: usize) -> Result<&mut [u8], OutOfMemory> {
        let end = self.len.checked_add(len).ok_or(OutOfMemory)?;
        let next = self.room.get_mut(self.len..end).ok_or(OutOfMemory)?;
        self.len = end;
        Ok(next)
    }

    /// Leaves so many bytes out, to be written later.
    pub(crate) fn skip(&mut self, len: usize) -> Result<(), OutOfMemory> {
        self.next(len).map(|_| ())
    }
}

impl Out for Writer<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), OutOfMemory> {
        self.next(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn append_memory(&mut self, memory: &Memory, offset: usize, len: usize) -> Result<(), OutOfMemory> {
        let start = self.len;
        let to = self.next(len)?;
        let copied = memory.copy_out(offset, to);
        if copied.is_err() {
            self.len = start;
        }
        copied.map_err(|_| OutOfMemory)
    }

    fn since(&self, start: usize) -> &[u8] {
        self.room.get(start..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null(number: u32) -> (Pool, Port) {
        start(&Spec::parse("net_null0").unwrap()).unwrap();
        let pool = Pool::new(63, 2048).unwrap();
        let port = Port::open((c"vdev", &format!("net_null{number}"), ""), None, &pool, 64, 0).unwrap();
        (pool, port)
    }

    #[test]
    fn buffers_stay_where_their_port_does() {
        for goes in [true, false] {
            let (pool, port) = null(70 + u32::from(goes));
            let buffers = Arc::downgrade(&pool.0);
            if !goes {
                // SAFETY: strings that live for the call; the port does not run.
                unsafe { sys::rte_eal_hotplug_remove(port.bus.as_ptr(), port.name.as_ptr()) };
            }
            drop(port);
            drop(pool);
            assert_eq!(buffers.strong_count() == 0, goes);
        }
    }

    #[test]
    fn a_failure_comes_with_what_dpdk_said_of_it_and_no_more() {
        let (pool, _port) = null(72);
        let open = |name| Port::open((c"vdev", name, ""), None, &pool, 64, 0).err().unwrap();
        let [first, second] = ["net_nonsense70", "net_nonsense71"].map(open);
        assert!(first.contains("DPDK says") && first.contains("net_nonsense70"), "{first}");
        assert!(second.contains("net_nonsense71") && !second.contains("net_nonsense70"), "{second}");
        assert_eq!(second.matches("Failed to attach").count(), 1, "{second}");
        assert!(first.contains("librte-net-memif23"), "{first}");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(no_pool(libc::ENOMEM, 5, 7).contains("memory=MIB, 7 at least"));
        let said = no_pool(-libc::EINVAL, 5, 7);
        assert!(said.contains("librte-mempool-stack23") && !said.contains("memory="), "{said}");
    }

    #[test]
    fn a_cards_driver_gets_its_arguments() {
        let arguments = arguments(&Spec::parse("0000:01:00.0,address=10.0.0.7,mprq_en=1,rxqs_min_mprq=1").unwrap());
        assert!(
            arguments.windows(2).any(|two| two == ["-a", "0000:01:00.0,mprq_en=1,rxqs_min_mprq=1"]),
            "{arguments:?}"
        );
    }
}
