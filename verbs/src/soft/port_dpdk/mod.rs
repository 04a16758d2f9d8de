//! The soft device on ports of DPDK's: frames in bursts, in and out, with the headers that the kernel would write, and ARP.
//! Knows nothing of what datagrams mean.

mod call;
mod checks;
mod eal;
mod events;
mod frame;
mod gate;
mod mesh;
mod neighbours;
mod spec;
mod sys;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use smoltcp::wire::EthernetAddress;

use self::call::{Answer, Call, Farewell};
use self::eal::{BURST, Frame, Pool, Port};
use self::frame::{ARP, HEADERS, Heard, Ignored};
use self::mesh::Place;
use self::neighbours::{Hop, Neighbours, Route};
use self::spec::{Memif, Spec};
use super::engine::{Engine, Now, Transmit};
use super::out::Out;
use super::port_udp::Loss;
use super::wire::MAX_DATAGRAM;
use crate::endpoint::ROCE_PORT;
use crate::{DeviceOptions, VerbsError};

/// Frames that a ring holds.
const RING: u16 = 1024;
/// The same of a memif, as a power of two: its buffers are in it, and more of them would fall out of the cache.
const MEMIF_RING: u32 = 8;
/// Longest IP packet of a memif, where nothing else is asked for: of a datagram of ours.
const MEMIF_MTU: u16 = (MAX_DATAGRAM + 80).next_multiple_of(64) as u16;
/// Frames that a memif is given at once, and that are taken from it: few, so that one end works on them while the other
/// works on the next. (32 of each: 0.6 of the throughput.)
const MEMIF_SENT: usize = 4;
const MEMIF_TAKEN: usize = 8;
/// Frames that wait for a link, at most: more are lost, as on any network.
const QUEUE: usize = 4 * BURST;
/// Frames that wait to learn where they go, at most, and datagrams to ourselves.
const HELD: usize = 64;
/// The same to one address: who is not there does not keep others from being found.
const HELD_FOR_ONE: usize = 16;
const LOOPED: usize = 256;
/// Nanoseconds between attempts to reach the other end of a link that is down, and between the steps of one.
const AGAIN: u64 = 100_000_000;
const STEP: u64 = 1_000_000;
/// Nanoseconds that other links wait for the steps of one, and that an answer is good for.
const FRESH: u64 = 20_000_000;
/// Nanoseconds until an attempt that has reached it is given up.
const PATIENCE: u64 = 500_000_000;
/// Nanoseconds of the first sleep of an idle device; each one after it is twice as long.
const FIRST_NAP: u64 = 20_000;
/// Times in a row that nothing has come from a link, after which it is asked seldom; and how seldom.
const QUIET: u32 = 10_000;
const SELDOM: u32 = 16;
/// Times in a row that nothing has arrived, after which links are looked at.
const LOOK: u32 = 1 << 16;

/// What a device opens and its driver moves on.
pub(crate) struct DpdkPort {
    // Frames first, then ports, and the pool last.
    /// Frames to addresses that are asked for.
    held: VecDeque<(Ipv4Addr, Frame)>,
    /// Datagrams from us to us.
    looped: VecDeque<Frame>,
    /// A frame for the next packet.
    spare: Option<Frame>,
    links: Vec<Link>,
    _farewell: Farewell,
    pool: Pool,
    local: SocketAddrV4,
    /// The mask of our network, and who is asked for other ones.
    mask: u32,
    gateway: Option<Ipv4Addr>,
    neighbours: Neighbours,
    /// A link could not be asked what has arrived.
    unknown: bool,
    /// There was no buffer for what the engine has to send.
    starved: bool,
    /// When links are looked at next, and which; and how often nothing has arrived, because nobody looks at a clock then.
    look: Now,
    turn: usize,
    empty: u32,
    nap: u64,
    longest_nap: u64,
    loss: Option<Loss>,
    counts: Counts,
    /// Frames that are sent, and taken, at once.
    sent: usize,
    taken: usize,
    /// Room for what arrives at once.
    burst: Vec<Frame>,
    polls: u32,
    /// In a mesh: what nobody else takes meanwhile.
    _place: Option<Place>,
    _claim: Claim,
    /// Goes last: until then the port is open.
    _open: Arc<()>,
}

/// Frames that came to nothing.
#[derive(Default)]
struct Counts {
    ignored: u64,
    damaged: u64,
    no_room: u64,
    no_neighbour: u64,
    link_down: u64,
    lost: u64,
}

/// Ports of DPDK's that devices of this process have, and the devices' names.
static CLAIMS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// A port that no other device has, until it is dropped.
struct Claim(String);

impl Claim {
    fn on(port: &str, device: &str) -> Result<Self, String> {
        let port = port.to_ascii_lowercase();
        let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        match claims.iter().find(|(known, _)| *known == port) {
            Some((_, by)) => Err(format!("the device {by} of this process has {port}; use it by that name")),
            None => {
                claims.push((port.clone(), device.to_owned()));
                Ok(Self(port))
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| *known != self.0);
    }
}

/// A port of DPDK's, and what waits for it.
struct Link {
    queue: Vec<Frame>,
    port: Port,
    /// In a mesh: who is at its other end. What says that it is from another is not believed.
    peer: Option<Ipv4Addr>,
    /// To reach its other end; None: it waits for that one.
    call: Option<Call>,
    /// Since when it is called, and when it has answered.
    asked: Option<Now>,
    answered: Option<Now>,
    /// When the port was started.
    called: Now,
    was_up: bool,
    /// Times in a row that nothing has come from it.
    quiet: u32,
}

impl Link {
    fn new(port: Port, peer: Option<Ipv4Addr>, call: Option<Call>) -> Self {
        let (asked, answered) = (None, None);
        let queue = Vec::with_capacity(QUEUE);
        Self { queue, port, peer, call, asked, answered, called: Now(0), was_up: false, quiet: 0 }
    }

    /// Reaches for the other end if it is not there, by one step that waits for nothing. Returns whether the next one is
    /// due soon.
    fn reach(&mut self, now: Now) -> bool {
        let Some(call) = &mut self.call else { return false };
        let is_up = self.port.is_running() && self.port.is_up();
        // One that was reached may need a moment more to come up.
        let waits = !self.was_up && self.port.is_running() && now < self.called.after(PATIENCE);
        self.was_up = is_up;
        if is_up || waits {
            return false;
        }
        if self.answered.is_none_or(|at| at.after(FRESH) < now) {
            let asked = *self.asked.get_or_insert(now);
            let answer = call.answer();
            self.answered = (answer == Answer::Yes).then_some(now);
            if answer != Answer::NotYet {
                self.asked = None;
            }
            return answer == Answer::Yes || answer == Answer::NotYet && now < asked.after(FRESH);
        }
        // Where others change something, it is tried again.
        if self.port.stop(Duration::ZERO).is_err() {
            return true;
        }
        (self.called, self.answered) = (now, None);
        let _ = self.port.start(Duration::ZERO);
        false
    }
}

/// What people are told of a port.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) driver: String,
    pub(crate) local: SocketAddr,
    /// Longest IP packet.
    pub(crate) mtu: usize,
    pub(crate) cpu: Option<usize>,
    links: usize,
    /// Lives as long as the port.
    pub(crate) open: Weak<()>,
    /// Bytes, as sockets count them.
    pub(crate) receive_buffer: usize,
}

impl About {
    pub(crate) fn line(&self) -> String {
        let links = if self.links > 1 { format!(", {} links", self.links) } else { String::new() };
        format!("DPDK's {}{links}, UDP {}", self.driver, self.local)
    }
}

/// The network cards of this machine, and what keeps DPDK from each.
pub(crate) fn cards() -> Vec<(String, Result<(), String>)> {
    let (sys, dev) = (Path::new("/sys"), Path::new("/dev"));
    let usable = |card: &String| checks::card(sys, dev, card).and_then(|()| checks::hugepages(sys, spec::MEMORY));
    checks::cards(sys).into_iter().map(|card| (card.clone(), usable(&card))).collect()
}

/// Directories that DPDK and this port write in.
pub(crate) fn writes(spec: &str) -> Vec<PathBuf> {
    let Ok(spec) = Spec::parse(spec) else { return Vec::new() };
    let mut all = vec![eal::directory()];
    match spec.memif() {
        Ok(Some(Memif::End { socket, .. })) => all.extend(socket.parent().map(Path::to_owned)),
        Ok(Some(Memif::Mesh(directory))) => all.push(directory),
        _ => {}
    }
    for directory in &all {
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    }
    let of_the_system = [(spec.hugepages, "/dev/hugepages"), (spec.is_pci(), "/dev/vfio")];
    all.extend(of_the_system.iter().filter(|(needed, _)| *needed).map(|(_, directory)| PathBuf::from(directory)));
    all
}

fn unusable(name: &str, reason: String) -> VerbsError {
    VerbsError::DeviceUnusable { name: name.to_owned(), reason }
}

impl DpdkPort {
    /// Opens what `name` says, which begins with "dpdk:".
    pub(crate) fn open(name: &str, options: &DeviceOptions) -> Result<(Self, About), VerbsError> {
        let fail = |reason| unusable(name, reason);
        let spec = Spec::parse(name.strip_prefix("dpdk:").unwrap_or(name)).map_err(fail)?;
        let (address, bits) = match (spec.address, options.address) {
            (Some(known), _) => known,
            (None, IpAddr::V4(address)) => (address, 0),
            (None, IpAddr::V6(address)) => {
                return Err(fail(format!("{address} is an IPv6 address; give the device address=IPV4")));
            }
        };
        let claim = Claim::on(&spec.port, name).map_err(fail)?;
        let place = match spec.memif().map_err(fail)? {
            Some(Memif::Mesh(directory)) => Some(Place::take(&directory, spec.links).map_err(fail)?),
            Some(Memif::End { server: true, socket }) => Some(Place::only(&socket).map_err(fail)?),
            _ => None,
        };
        let number = place.as_ref().map_or(0, |place| place.number);
        let address = Ipv4Addr::from(u32::from(address).saturating_add(number.into()));
        let local = SocketAddrV4::new(address, options.port.filter(|port| *port != 0).unwrap_or(ROCE_PORT));
        if spec.is_pci() {
            checks::card(Path::new("/sys"), Path::new("/dev"), &spec.port).map_err(fail)?;
        }
        eal::start(&spec).map_err(fail)?;
        let frame = usize::from(spec.mtu.unwrap_or(0).max(MEMIF_MTU)) + frame::ETHERNET + 4;
        let frame = frame.max(spec.packet_socket_frame().unwrap_or(0));
        // What the rings of a card hold, and what is on its way to them; those of a memif or a packet socket hold no frames of
        // ours.
        let copies = spec.is_memif() || spec.packet_socket_frame().is_some();
        let rings = if copies { 0 } else { 2 * usize::from(RING) };
        let count = rings + (QUEUE + 2 * BURST) * usize::from(spec.links) + HELD + LOOPED + 2 * BURST;
        let pool = Pool::new(count.next_power_of_two() - 1, frame).map_err(fail)?;
        let links = Self::open_links(&spec, &pool, (number, address), frame).map_err(fail)?;
        let facts = &links[0].port.facts;
        let mtu = match spec.mtu {
            None if spec.is_memif() => MEMIF_MTU,
            Some(mtu) if copies => mtu,
            _ => facts.mtu,
        };
        let ring = if spec.is_memif() { 1 << MEMIF_RING } else { usize::from(facts.receive_ring) };
        let (sent, taken) = if spec.is_memif() { (MEMIF_SENT, MEMIF_TAKEN) } else { (BURST, BURST) };
        let open = Arc::new(());
        let about = About {
            open: Arc::downgrade(&open),
            driver: facts.driver.clone(),
            local: local.into(),
            mtu: mtu.into(),
            cpu: spec.cpu,
            links: links.len(),
            // What is in the ring is charged twice: see `Connection::packets_within`.
            receive_buffer: ring * 2 * usize::from(mtu),
        };
        let (per_million, seed) = (options.lose_per_million, u64::from(u32::from(address)));
        let port = Self {
            held: VecDeque::new(),
            looped: VecDeque::new(),
            spare: None,
            links,
            _farewell: Farewell,
            pool,
            local,
            mask: u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0),
            gateway: spec.gateway,
            neighbours: Neighbours::default(),
            unknown: false,
            starved: false,
            look: Now(0),
            turn: 0,
            empty: 0,
            nap: FIRST_NAP,
            longest_nap: u64::try_from(spec.nap.as_nanos()).unwrap_or(u64::MAX),
            loss: Loss::new(per_million, seed),
            counts: Counts::default(),
            sent,
            taken,
            burst: Vec::with_capacity(BURST),
            polls: 0,
            _place: place,
            _claim: claim,
            _open: open,
        };
        Ok((port, about))
    }

    fn open_links(
        spec: &Spec,
        pool: &Pool,
        (place, address): (u16, Ipv4Addr),
        frame: usize,
    ) -> Result<Vec<Link>, String> {
        let mut arguments = spec.for_driver().collect::<Vec<_>>().join(",");
        let Some(memif) = spec.memif()? else {
            let bus = if spec.is_pci() { c"pci" } else { c"vdev" };
            let mut mtu = spec.mtu.unwrap_or(0);
            if let Some(size) = spec.packet_socket_frame() {
                // Its driver names 1518 bytes as the longest frame, and takes what its rings are made for.
                arguments += &format!(",framesz={size},blocksz={size},framecnt={RING}");
                mtu = 0;
            }
            let mut port = Port::open((bus, &spec.port, &arguments), None, pool, RING, mtu)?;
            port.start(eal::PATIENCE)?;
            return Ok(vec![Link::new(port, None, None)]);
        };
        let ends = match memif {
            Memif::End { server, socket } => vec![(server, socket, None, None)],
            Memif::Mesh(directory) => {
                let others = (0..spec.links).filter(|other| *other != place);
                let first = u32::from(address).saturating_sub(place.into());
                let link = |other: u16| {
                    let (socket, id) = (Place::socket(&directory, place.min(other)), Some(other.max(place)));
                    (place < other, socket, id, Some(Ipv4Addr::from(first.saturating_add(other.into()))))
                };
                others.map(link).collect()
            }
        };
        if let Some((_, socket, ..)) = ends.iter().find(|(server, ..)| *server) {
            mesh::clear(socket)?;
        }
        let mac = mesh::mac_of(address).map(|byte| format!("{byte:02x}")).join(":");
        let mut links = Vec::new();
        let until = Instant::now() + call::PATIENCE;
        for (link, (server, socket, id, peer)) in ends.into_iter().enumerate() {
            let role = if server { "server" } else { "client" };
            // Buffers that are longer than ours: the driver then copies no more than ours hold, whatever the peer says.
            let mut own = format!(
                "role={role},socket={},bsize={},rsize={MEMIF_RING},socket-abstract=no,mac={mac}",
                socket.display(),
                frame + 64
            );
            if let Some(id) = id {
                own += &format!(",id={id}");
            }
            if !arguments.is_empty() {
                own += &format!(",{arguments}");
            }
            let name = format!("{}n{link}", spec.port);
            let mut port = Port::open((c"vdev", &name, &own), Some(&socket), pool, RING, 0)?;
            if server {
                port.start(eal::PATIENCE)?;
                links.push(Link::new(port, peer, None));
                continue;
            }
            // A server that is not there yet is called again.
            let mut call = Call::new(&socket);
            let mut answer = call.answer();
            while answer == Answer::NotYet && Instant::now() < until {
                std::thread::sleep(Duration::from_micros(200));
                answer = call.answer();
            }
            if answer == Answer::Yes {
                let _ = port.start(eal::PATIENCE);
            }
            links.push(Link::new(port, peer, Some(call)));
        }
        Ok(links)
    }

    /// Frames are left, for which there was no room, or packets, for which there was no frame.
    pub(crate) fn waiting(&self) -> bool {
        self.starved || !self.held.is_empty() || self.links.iter().any(|link| !link.queue.is_empty())
    }

    /// Whether something had arrived could not be known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// There is something to take at once.
    pub(crate) fn has_arrived(&self) -> bool {
        !self.looped.is_empty()
    }

    /// How long an idle device sleeps now, in nanoseconds: longer each time.
    pub(crate) fn next_nap(&mut self) -> u64 {
        let nap = self.nap.min(self.longest_nap);
        self.nap = (self.nap * 2).min(self.longest_nap);
        self.empty = LOOK;
        // The next look is at all links.
        self.polls = u32::MAX;
        nap
    }

    /// Takes what has arrived; returns the number of frames.
    pub(crate) fn receive(&mut self, mut now: impl FnMut() -> Now, engine: &mut Engine) -> usize {
        self.unknown = false;
        let mut count = self.looped.len();
        for _ in 0..count {
            if let Some(frame) = self.looped.pop_front()
                && let Some(bytes) = frame.bytes()
            {
                engine.receive(now(), self.local.into(), bytes.get(HEADERS..).unwrap_or_default());
            }
        }
        self.polls = self.polls.wrapping_add(1);
        let several = self.links.len() > 1;
        for link in 0..self.links.len() {
            // Of several links, most have nobody at their other end.
            if self.links[link].quiet >= QUIET && !self.polls.is_multiple_of(SELDOM) {
                continue;
            }
            let mut frames = std::mem::take(&mut self.burst);
            let taken = self.links[link].port.receive(&mut frames, self.taken);
            self.unknown |= taken.is_none();
            let taken = taken.unwrap_or(0);
            self.links[link].quiet = if taken > 0 || !several { 0 } else { self.links[link].quiet.saturating_add(1) };
            count += taken;
            for frame in frames.drain(..) {
                self.take(now(), link, &frame, engine);
            }
            self.burst = frames;
        }
        if count > 0 {
            (self.nap, self.empty) = (FIRST_NAP, 0);
        } else {
            self.empty += 1;
            if self.empty >= LOOK {
                self.empty = 0;
                self.look_at_links(now());
            }
        }
        count
    }

    fn take(&mut self, now: Now, link: usize, frame: &Frame, engine: &mut Engine) {
        let mac = EthernetAddress(self.links[link].port.facts.mac);
        let heard = match frame.bytes() {
            Some(bytes) if !frame.is_damaged() => frame::read(bytes, mac, self.local),
            _ => Err(Ignored::Damaged),
        };
        let peer = self.links[link].peer;
        match heard {
            Ok(heard) if peer.is_some_and(|peer| peer != heard.from()) => self.counts.ignored += 1,
            Ok(Heard::Datagram { from, id, payload }) => engine.receive_with(now, from.into(), Some(id), payload),
            // Of our own network, and who leads to others: what other addresses have is never asked for.
            Ok(Heard::Arp { from, .. }) if self.next_hop(from) != from => self.counts.ignored += 1,
            Ok(Heard::Arp { from, mac: theirs, asks }) => {
                self.neighbours.heard(now, from, Hop { link, mac: theirs }, !asks);
                if asks {
                    self.send_arp(link, (Some(theirs), from));
                }
                self.release(now, from);
            }
            Err(Ignored::NotForUs) => self.counts.ignored += 1,
            Err(Ignored::Damaged) => self.counts.damaged += 1,
        }
    }

    /// Sends what waited for this address.
    fn release(&mut self, now: Now, address: Ipv4Addr) {
        for _ in 0..self.held.len() {
            let Some((to, frame)) = self.held.pop_front() else { break };
            if to == address
                && let Route::To { hop, .. } = self.neighbours.route(now, to)
            {
                self.queue(hop, frame);
            } else {
                self.held.push_back((to, frame));
            }
        }
    }

    /// Sends what the engine has to send, until it has no more, or there is no room.
    pub(crate) fn send(&mut self, now: Now, engine: &mut Engine) {
        self.look_at_links(now);
        self.ask_again(now);
        loop {
            self.flush();
            if self.links.iter().all(|link| link.queue.len() >= QUEUE) {
                return;
            }
            for _ in 0..self.sent {
                let Some(mut frame) = self.spare.take().or_else(|| self.pool.frame()) else {
                    self.starved = true;
                    return self.flush();
                };
                self.starved = false;
                let mut writer = frame.writer();
                let written = writer.skip(HEADERS).ok().and_then(|()| engine.poll_transmit(now, &mut writer));
                let len = writer.len();
                let Some(Transmit { to, .. }) = written else {
                    self.spare = Some(frame);
                    return self.flush();
                };
                if self.loss.as_mut().is_some_and(Loss::strikes) {
                    self.counts.lost += 1;
                    continue;
                }
                self.dispatch(now, to, frame, len);
            }
        }
    }

    /// Gives a datagram, which lies in its frame behind room for headers, to whom it goes to next.
    fn dispatch(&mut self, now: Now, to: SocketAddr, mut frame: Frame, len: usize) {
        let SocketAddr::V4(to) = to else { return };
        let fills = self.links.iter().all(|link| link.port.facts.fills_checksum);
        let Some(bytes) = frame.finish(len) else { return };
        if to == self.local {
            if self.looped.len() < LOOPED {
                self.looped.push_back(frame)
            } else {
                self.counts.no_room += 1
            }
            return;
        }
        frame::write_headers(bytes, (self.local, to), len - HEADERS, fills);
        if fills {
            frame.want_checksum();
        }
        let there = self.next_hop(*to.ip());
        match self.neighbours.route(now, there) {
            Route::To { hop, ask } => {
                self.queue(hop, frame);
                if ask {
                    self.send_arp(hop.link, (None, there));
                }
            }
            Route::Unknown { ask, wait } => {
                let same = self.held.iter().filter(|(to, _)| *to == there).count();
                if !wait || self.held.len() >= HELD || same >= HELD_FOR_ONE {
                    self.counts.no_neighbour += 1;
                } else {
                    self.held.push_back((there, frame));
                }
                if ask {
                    (0..self.links.len()).for_each(|link| self.send_arp(link, (None, there)));
                }
            }
        }
    }

    /// Asks for the addresses that frames wait for, when it is time to, and gives up those who do not answer.
    fn ask_again(&mut self, now: Now) {
        for _ in 0..self.held.len() {
            let Some((to, frame)) = self.held.pop_front() else { break };
            match self.neighbours.route(now, to) {
                Route::To { hop, .. } => self.queue(hop, frame),
                Route::Unknown { ask, wait } => {
                    if ask {
                        (0..self.links.len()).for_each(|link| self.send_arp(link, (None, to)));
                    }
                    if wait { self.held.push_back((to, frame)) } else { self.counts.no_neighbour += 1 }
                }
            }
        }
    }

    fn next_hop(&self, to: Ipv4Addr) -> Ipv4Addr {
        let ours = (u32::from(to) ^ u32::from(*self.local.ip())) & self.mask == 0;
        if ours { to } else { self.gateway.unwrap_or(to) }
    }

    fn send_arp(&mut self, link: usize, to: (Option<EthernetAddress>, Ipv4Addr)) {
        let from = (EthernetAddress(self.links[link].port.facts.mac), *self.local.ip());
        let Some(mut frame) = self.pool.frame() else { return self.counts.no_room += 1 };
        if let Some(bytes) = frame.finish(ARP) {
            frame::write_arp(bytes, from, to);
            let link = &mut self.links[link];
            if link.queue.len() < QUEUE { link.queue.push(frame) } else { self.counts.no_room += 1 }
        }
    }

    /// Puts a frame in line, with the Ethernet addresses of this hop.
    fn queue(&mut self, hop: Hop, mut frame: Frame) {
        let Some(link) = self.links.get_mut(hop.link) else { return };
        let len = frame.bytes().map_or(0, <[u8]>::len);
        if link.queue.len() >= QUEUE {
            self.counts.no_room += 1;
        } else if let Some(bytes) = frame.finish(len) {
            frame::write_hop(bytes, (EthernetAddress(link.port.facts.mac), hop.mac));
            link.queue.push(frame);
        }
    }

    fn flush(&mut self) {
        for link in &mut self.links {
            while !link.queue.is_empty() && link.port.send(&mut link.queue) > 0 {}
            if !link.queue.is_empty() && !link.port.is_up() {
                self.counts.link_down += link.queue.len() as u64;
                link.queue.clear();
            }
        }
    }

    /// Reaches for the other ends that are not there, for one at a time.
    fn look_at_links(&mut self, now: Now) {
        if now < self.look {
            return;
        }
        let count = self.links.iter().filter(|link| link.call.is_some()).count();
        let mut calling = self.links.iter_mut().filter(|link| link.call.is_some());
        if calling.nth(self.turn % count.max(1)).is_some_and(|link| link.reach(now)) {
            self.look = now.after(STEP);
        } else {
            self.turn = self.turn.wrapping_add(1);
            self.look = now.after(AGAIN / count.max(1) as u64);
        }
    }

    /// What was not sent, or not taken, by reason.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("frames for others", self.counts.ignored),
            ("damaged frames", self.counts.damaged),
            ("no room in the port", self.counts.no_room),
            ("no such neighbour", self.counts.no_neighbour),
            ("link down", self.counts.link_down),
            ("lost on purpose", self.counts.lost),
        ]
    }

    /// Buffers of frames that nobody has, and that somebody has.
    #[cfg(test)]
    pub(crate) fn frames(&self) -> (u32, u32) {
        self.pool.count()
    }

    /// Whether it sleeps while nothing comes.
    pub(crate) fn naps(&self) -> bool {
        self.longest_nap > 0
    }
}

/// Writes a datagram into a frame, and reads it there, as ports do at each end of a wire.
#[cfg(test)]
pub(super) fn through_a_frame(
    (from, to): (SocketAddr, SocketAddr),
    payload: &[u8],
    take: impl FnOnce(SocketAddr, u16, &[u8]),
) {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { return };
    let macs = [from, to].map(|address| EthernetAddress(mesh::mac_of(*address.ip())));
    let mut frame = vec![0xa5; HEADERS];
    frame.extend_from_slice(payload);
    frame::write_headers(&mut frame, (from, to), payload.len(), false);
    frame::write_hop(&mut frame, macs.into());
    match frame::read(&frame, macs[1], to) {
        Ok(Heard::Datagram { from, id, payload }) => take(from.into(), id, payload),
        other => panic!("a whole frame from {from} to {to} was read as {other:?}"),
    }
}

#[cfg(test)]
mod tests;
