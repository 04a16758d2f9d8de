//! Who moves the engine and its port on: whoever polls or waits does, and a thread of the device while nobody does.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::engine::{CqHandle, Engine, EngineRequest, Now};
use super::port::Port;
#[cfg(feature = "dpdk")]
use super::port_dpdk::{self, DpdkPort};
use super::port_udp::{ReceiveBuffer, Receiver, Sender, Socket};
use crate::{Counters, DeviceOptions, Mtu, VerbsError};

/// Nanoseconds after a caller's last poll that the thread leaves the device to it.
const CALLER: u64 = 2_000_000;
/// Nanoseconds that the thread stays away at most, while callers poll.
const PARKED: u64 = 8_000_000;
/// Nanoseconds that the thread stays away for a caller who waits for the lock.
const HANDOVER: u64 = 200_000;
/// Nanoseconds between looks at the timers while the socket has no room.
const BLOCKED: u64 = 1_000_000;
/// Times in a row that nothing has arrived, after which the device looks at the clock: a look costs a tenth of asking
/// the socket.
const LOOK: u32 = 8;
/// Looks at the socket, at most, before what is due is done.
const ROUNDS: u32 = 8;
/// Attempts to take the lock before a caller yields, and before it sleeps.
const SPINS: u32 = 200;
const YIELDS: u32 = 20;
/// Times that a poller steps back for a caller who waits for the lock.
const PATIENCE: u32 = 100;

/// What callers and the thread share.
pub(crate) struct Driver {
    /// What a sleep watches; without it, sleeps are short.
    socket: Option<Arc<Socket>>,
    local: SocketAddr,
    name: String,
    spin: Duration,
    start: Instant,
    core: Mutex<Core>,
    /// The leader has left, or there may be a completion for a follower.
    turn: Condvar,
    /// When a caller last moved the device on, in nanoseconds since `start`.
    caller: AtomicU64,
    /// Callers who want the lock for something else than polling.
    urgent: AtomicU32,
    thread_wake: Wake,
    leader_wake: Wake,
    stop: AtomicBool,
}

/// What the lock protects.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    /// Room for a batch that is being posted.
    pub(crate) requests: Vec<EngineRequest>,
    port: Port,
    receive_failed: u64,
    /// The last look at the clock.
    now: Now,
    /// Times in a row that nothing has arrived.
    empty: u32,
    /// Of the waiters, one watches the socket: the queue it waits for.
    leader: Option<CqHandle>,
    leader_sleeps: Option<Asleep>,
    /// The other waiters.
    followers: usize,
    thread_sleeps: Option<Asleep>,
}

/// A sleep on the socket.
#[derive(Clone, Copy)]
struct Asleep {
    /// When it ends by itself.
    until: u64,
    /// It ends too when the socket has room.
    for_room: bool,
    /// How long it lasts where no socket ends it, in nanoseconds.
    nap: u64,
}

impl Core {
    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.engine.counters();
        for (reason, count) in self.port.counts().into_iter().chain([("receive failed", self.receive_failed)]) {
            if count > 0 {
                counters.dropped.insert(reason, count);
            }
        }
        counters
    }

    #[cfg(all(test, feature = "dpdk"))]
    pub(crate) fn frames(&self) -> (u32, u32) {
        match &self.port {
            Port::Udp { .. } => (0, 0),
            Port::Dpdk(port) => port.frames(),
        }
    }

    /// When the engine must be moved on without traffic.
    fn next_timeout(&self) -> u64 {
        self.engine.next_timeout().map_or(u64::MAX, |Now(at)| at)
    }

    /// As that, for a sleep. What the engine would send at once must wait for the socket, which ends the sleep.
    fn wakes_at(&self, Now(now): Now) -> u64 {
        if self.port.has_arrived() {
            return 0;
        }
        let at_once = if self.port.waiting() { now.saturating_add(BLOCKED) } else { 0 };
        self.next_timeout().max(at_once)
    }

    /// The longest sleep that misses nothing.
    fn sleep(&mut self, now: Now) -> Asleep {
        let nap = self.port.next_nap();
        if nap.is_some() {
            // After it the clock has moved on.
            self.empty = LOOK - 1;
        }
        Asleep { until: self.wakes_at(now), for_room: self.port.waiting(), nap: nap.unwrap_or(u64::MAX) }
    }

    /// Whether a sleep that began earlier would miss something by now.
    fn oversleeps(&self, now: Now, asleep: Asleep) -> bool {
        self.wakes_at(now) < asleep.until || self.port.waiting() && !asleep.for_room
    }
}

impl Driver {
    /// `mtu` instead of that of the options, which may be too large for the network interface.
    pub(crate) fn open(options: &DeviceOptions, mtu: Mtu) -> Result<Self, VerbsError> {
        let socket = Arc::new(Socket::open(options.address, options.port)?);
        // Two devices of one machine lose different datagrams.
        let local = socket.local();
        let sender = Sender::new(options.lose_per_million, local.port().into());
        let port = Port::Udp { socket: Arc::clone(&socket), receiver: Receiver::new(), sender };
        let buffer = socket.receive_buffer().granted;
        Self::start("soft", port, Some(socket), (local, mtu, buffer), options.spin)
    }

    /// On a port of DPDK's: of the name, and with the MTU of the options, which may be too large for the port.
    #[cfg(feature = "dpdk")]
    pub(crate) fn open_dpdk(
        name: &str,
        (port, about): (DpdkPort, &port_dpdk::About),
        (mtu, spin): (Mtu, Duration),
    ) -> Result<Self, VerbsError> {
        // Where it never sleeps, it spins for ever.
        let spin = if port.naps() { spin } else { Duration::MAX };
        Self::start(name, Port::Dpdk(Box::new(port)), None, (about.local, mtu, about.receive_buffer), spin)
    }

    fn start(
        name: &str,
        port: Port,
        socket: Option<Arc<Socket>>,
        (local, mtu, buffer): (SocketAddr, Mtu, usize),
        spin: Duration,
    ) -> Result<Self, VerbsError> {
        let mut engine = Engine::new(local, mtu);
        engine.set_receive_buffer(buffer);
        let core = Core {
            engine,
            requests: Vec::new(),
            port,
            receive_failed: 0,
            now: Now(0),
            empty: 0,
            leader: None,
            leader_sleeps: None,
            followers: 0,
            thread_sleeps: None,
        };
        Ok(Self {
            socket,
            local,
            name: name.to_owned(),
            spin,
            start: Instant::now(),
            core: Mutex::new(core),
            turn: Condvar::new(),
            caller: AtomicU64::new(0),
            urgent: AtomicU32::new(0),
            thread_wake: Wake::new()?,
            leader_wake: Wake::new()?,
            stop: AtomicBool::new(false),
        })
    }

    /// Where peers send to.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Of the socket, where there is one.
    pub(crate) fn receive_buffer(&self) -> Option<ReceiveBuffer> {
        self.socket.as_ref().map(|socket| socket.receive_buffer())
    }

    pub(crate) fn now(&self) -> Now {
        Now(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Whether a thread panicked while it moved the device on. What it left half done is unknown, so no packet is taken or
    /// sent any more: memory stays as it is, and can be deregistered.
    pub(crate) fn failed(&self) -> bool {
        self.core.is_poisoned()
    }

    /// The lock, for anything but moving the device on, of a failed device too. Pollers and the thread step back for it.
    pub(crate) fn control(&self) -> MutexGuard<'_, Core> {
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let core = self.lock();
        self.urgent.fetch_sub(1, Ordering::Relaxed);
        core
    }

    /// The lock, for a caller that moves the device on.
    pub(crate) fn hot(&self) -> Result<MutexGuard<'_, Core>, VerbsError> {
        self.step_back();
        let core = self.lock_soon();
        if self.failed() { Err(self.failure()) } else { Ok(core) }
    }

    fn failure(&self) -> VerbsError {
        VerbsError::DeviceFatal { name: self.name.clone() }
    }

    /// Keeps the thread away from now on for a while, because a caller moves the device on.
    pub(crate) fn called(&self) -> Now {
        let now = self.now();
        self.caller.store(now.0, Ordering::Relaxed);
        now
    }

    /// The lock, without a place in its queue while it is passed on quickly: whoever passes it on to a sleeper pays for
    /// waking it.
    fn lock_soon(&self) -> MutexGuard<'_, Core> {
        for attempt in 0..SPINS + YIELDS {
            if let Some(core) = self.try_lock() {
                return core;
            }
            if attempt < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.control()
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Core>> {
        match self.core.try_lock() {
            Ok(core) => Some(core),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step_back(&self) {
        for _ in 0..PATIENCE {
            if self.urgent.load(Ordering::Relaxed) == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Takes what has arrived, sees to timers, and sends. Returns whether there may be more to do at once. `clock` is
    /// looked at only where something has arrived, or has not for a while.
    pub(crate) fn drive(&self, core: &mut Core, clock: impl Fn() -> Now) -> bool {
        let _waiters = Waiters(self);
        let mut now = None;
        let mut arrived = self.receive(core, || *now.get_or_insert_with(&clock));
        core.empty = if arrived > 0 { 0 } else { core.empty.wrapping_add(1) };
        let (now, due) = match now {
            Some(now) => (now, core.next_timeout() <= now.0),
            None if core.next_timeout() == 0 || core.port.waiting() || core.empty.is_multiple_of(LOOK) => {
                let now = clock();
                (now, core.next_timeout() <= now.0)
            }
            None => return false,
        };
        core.now = now;
        if core.engine.next_alarm().is_some_and(|at| at <= now) {
            // What waits for an answer may have it in the socket.
            let rounds = if arrived > 0 { ROUNDS } else { 1 };
            for _ in 0..rounds {
                match self.receive(core, || now) {
                    0 => break,
                    more => arrived += more,
                }
            }
            // What came may end the wait, so a look that saw nothing of it is no reason to give up.
            if !core.port.is_unknown() {
                core.engine.on_timeout(now);
            }
        }
        if !due && arrived == 0 && !core.port.waiting() {
            return false;
        }
        self.transmit(core, now);
        arrived > 0 || core.wakes_at(now) <= now.0
    }

    /// Takes what has arrived; returns the number of messages.
    fn receive(&self, core: &mut Core, mut now: impl FnMut() -> Now) -> usize {
        let Core { engine, port, .. } = core;
        port.receive(engine, &mut now).unwrap_or_else(|| {
            core.receive_failed += 1;
            0
        })
    }

    /// As [`drive`](Self::drive), by a caller: the thread stays away for a while.
    pub(crate) fn drive_called(&self, core: &mut Core) -> bool {
        self.drive(core, || self.called())
    }

    /// Sends what the engine has to send, and wakes those whom its new state concerns. Comes after whatever may have made
    /// packets, completions or timers.
    pub(crate) fn transmit(&self, core: &mut Core, now: Now) {
        if self.failed() {
            return;
        }
        let _waiters = Waiters(self);
        let Core { engine, port, .. } = core;
        port.send(engine, now);
        if core.followers > 0 {
            self.turn.notify_all();
        }
        if let (Some(cq), Some(asleep)) = (core.leader, core.leader_sleeps)
            && (core.engine.cq_ready(cq) || core.oversleeps(now, asleep))
        {
            core.leader_sleeps = None;
            self.leader_wake.wake();
        }
        if let Some(asleep) = core.thread_sleeps
            && core.oversleeps(now, asleep)
        {
            core.thread_sleeps = None;
            self.thread_wake.wake();
        }
    }

    /// Moves the device on until the queue has a completion, and returns the lock with it; None where the deadline has come.
    pub(crate) fn wait(&self, cq: CqHandle, deadline: Instant) -> Result<Option<MutexGuard<'_, Core>>, VerbsError> {
        let deadline = u64::try_from(deadline.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let spin = u64::try_from(self.spin.as_nanos()).unwrap_or(u64::MAX);
        let mut core = self.hot()?;
        let (mut leading, begun) = (false, core.now);
        // From the first look at the clock on.
        let mut spin_until = u64::MAX;
        let result = loop {
            if self.failed() {
                break Err(self.failure());
            }
            let busy = self.drive_called(&mut core);
            if core.engine.cq_ready(cq) {
                break Ok(true);
            }
            let now = core.now;
            if now.0 >= deadline {
                break Ok(false);
            }
            if busy || spin_until == u64::MAX && now != begun {
                spin_until = now.0.saturating_add(spin);
            }
            if now.0 < spin_until {
                drop(core);
                self.step_back();
                core = self.lock_soon();
            } else if leading || core.leader.is_none() {
                leading = true;
                core.leader = Some(cq);
                let asleep = core.sleep(now);
                core.leader_sleeps = Some(asleep);
                drop(core);
                let asleep = Asleep { until: deadline.min(asleep.until), ..asleep };
                let slept = self.sleep(&self.leader_wake, asleep);
                core = self.lock();
                core.leader_sleeps = None;
                if let Err(error) = slept {
                    break Err(error);
                }
            } else {
                core.followers += 1;
                let time = Duration::from_nanos(deadline.saturating_sub(now.0));
                core = self.turn.wait_timeout(core, time).unwrap_or_else(PoisonError::into_inner).0;
                core.followers -= 1;
            }
        };
        if leading {
            core.leader = None;
            self.turn.notify_all();
        }
        Ok(result?.then_some(core))
    }

    /// The thread: moves the device on while no caller does.
    pub(crate) fn progress(&self) {
        let spin = u64::try_from(self.spin.as_nanos()).unwrap_or(u64::MAX);
        let (mut spin_until, mut park) = (0, CALLER);
        // The last caller, who has been away for long enough.
        let mut gone = None;
        while !self.stop.load(Ordering::Acquire) {
            let caller = self.caller.load(Ordering::Relaxed);
            if gone != Some(caller) {
                if caller.saturating_add(CALLER) > self.now().0 {
                    self.park(park);
                    park = (park * 2).min(PARKED);
                    continue;
                }
                gone = Some(caller);
            }
            self.step_back();
            if self.urgent.load(Ordering::Relaxed) > 0 {
                // Whoever waits for the lock sleeps, and would find it taken again.
                self.park(HANDOVER);
                continue;
            }
            let Some(mut core) = self.try_lock() else {
                std::thread::yield_now();
                continue;
            };
            if self.failed() {
                return tracing::error!("the soft device has failed: a thread panicked while it moved it on");
            }
            core.thread_sleeps = None;
            if core.leader.is_some() {
                drop(core);
                self.park(PARKED);
                continue;
            }
            park = CALLER;
            if self.drive(&mut core, || self.now()) {
                spin_until = core.now.0.saturating_add(spin);
            }
            if core.now.0 < spin_until {
                continue;
            }
            let now = core.now;
            let asleep = core.sleep(now);
            core.thread_sleeps = Some(asleep);
            drop(core);
            if let Err(error) = self.sleep(&self.thread_wake, asleep) {
                // Only a lack of kernel memory: go on as if it had been a short sleep.
                tracing::warn!(%error, "the soft device's thread could not sleep");
                std::thread::sleep(Duration::from_nanos(PARKED));
            }
            // Short sleeps follow one another until something has come.
            spin_until = if self.socket.is_some() { self.now().0.saturating_add(spin) } else { 0 };
        }
    }

    /// Ends [`progress`](Self::progress).
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.thread_wake.wake();
    }

    fn park(&self, nanoseconds: u64) {
        let until = self.now().0.saturating_add(nanoseconds);
        if self.sleep_until(&self.thread_wake, None, until).is_err() {
            std::thread::sleep(Duration::from_nanos(nanoseconds));
        }
    }

    /// Sleeps until the wake, or what else ends this sleep.
    fn sleep(&self, wake: &Wake, asleep: Asleep) -> Result<(), VerbsError> {
        match &self.socket {
            Some(socket) => self.sleep_until(wake, Some((socket, asleep.for_room)), asleep.until),
            None => self.sleep_until(wake, None, asleep.until.min(self.now().0.saturating_add(asleep.nap))),
        }
    }

    /// Sleeps until the wake, the time, or (where it is watched) the socket has something, or room if that is watched too.
    fn sleep_until(&self, wake: &Wake, socket: Option<(&Socket, bool)>, until: u64) -> Result<(), VerbsError> {
        let time = (until != u64::MAX)
            .then(|| TimeSpec::from_duration(Duration::from_nanos(until.saturating_sub(self.now().0))));
        let events = match socket {
            Some((_, true)) => PollFlags::POLLIN | PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        };
        let second = socket.map_or_else(|| wake.reader.as_fd(), |(socket, _)| socket.as_fd());
        let mut watched = [PollFd::new(wake.reader.as_fd(), PollFlags::POLLIN), PollFd::new(second, events)];
        let count = if socket.is_some() { 2 } else { 1 };
        match ppoll(&mut watched[..count], time, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(VerbsError::System { call: "ppoll", source: errno.into() }),
        }
        if watched[0].any() == Some(true) {
            wake.take();
        }
        Ok(())
    }
}

/// Whoever sleeps hears of a panic.
struct Waiters<'a>(&'a Driver);

impl Drop for Waiters<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.leader_wake.wake();
            self.0.thread_wake.wake();
            self.0.turn.notify_all();
        }
    }
}

/// A pipe that wakes a sleeper in poll(2).
struct Wake {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Wake {
    fn new() -> Result<Self, VerbsError> {
        let (reader, writer) = pipe().map_err(|source| VerbsError::System { call: "pipe", source })?;
        Ok(Self { reader, writer })
    }

    /// Called at most once for each sleep, so the pipe never fills.
    fn wake(&self) {
        let _ = (&self.writer).write(&[0]);
    }

    /// Called after poll(2) said that there is something.
    fn take(&self) {
        let _ = (&self.reader).read(&mut [0; 16]);
    }
}
