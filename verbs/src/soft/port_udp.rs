//! The soft device's UDP socket: datagrams in batches, in and out. Knows nothing of what they mean.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use super::engine::Transmit;
use crate::VerbsError;
use crate::endpoint::ROCE_PORT;

/// Messages in one system call.
const BATCH: usize = 16;
/// Bytes of one message: a datagram, or several that the kernel joined.
const MESSAGE: usize = 1 << 16;
/// Datagrams that the kernel cuts from one message, at most.
const SEGMENTS: usize = 64;
/// Bytes of the segments of one message, at most: what an IPv4 packet holds, headers left out.
const SEGMENTED: usize = 65_000;
/// Datagrams in a row that come by themselves, after which the kernel need not join them.
const SINGLES: u32 = 64;
/// Bytes of datagrams that are made before they are sent: more would fall out of the processor's cache, and hold up the
/// receiver.
const FILL: usize = 4 * MESSAGE;
/// Bytes asked for as the socket's buffers: nearly a thousand packets of 4 KiB, which all connections share.
const BUFFER: i32 = 8 << 20;

/// An unconnected, non-blocking UDP socket.
pub(crate) struct Socket {
    socket: UdpSocket,
    local: SocketAddr,
    buffer: ReceiveBuffer,
}

/// How much may arrive before we look, in bytes as sysctl(8) counts them. The kernel allows twice as much, and counts
/// what it keeps of each datagram: about as much again as the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceiveBuffer {
    pub(crate) wanted: usize,
    pub(crate) granted: usize,
}

impl ReceiveBuffer {
    /// What mends it, where the system granted less than we want.
    pub(crate) fn remedy(self) -> Option<String> {
        let Self { wanted, granted } = self;
        (granted < wanted).then(|| {
            format!(
                "run `sysctl -w net.core.rmem_max={wanted}`, or give this program CAP_NET_ADMIN, and start it again"
            )
        })
    }
}

impl Socket {
    /// Binds to the address: to this port, or without one to 4791 where it is free and else to any.
    pub(crate) fn open(address: IpAddr, port: Option<u16>) -> Result<Self, VerbsError> {
        Self::open_sized(address, port, BUFFER)
    }

    fn open_sized(address: IpAddr, port: Option<u16>, buffer: i32) -> Result<Self, VerbsError> {
        let socket = match port {
            Some(port) => bind(SocketAddr::new(address, port))?,
            None => match bind(SocketAddr::new(address, ROCE_PORT)) {
                Err(VerbsError::PortInUse { .. } | VerbsError::Permission { .. }) => bind(SocketAddr::new(address, 0))?,
                other => other?,
            },
        };
        let failed = |call| move |source| VerbsError::System { call, source };
        socket.set_nonblocking(true).map_err(failed("fcntl(O_NONBLOCK)"))?;
        let local = socket.local_addr().map_err(failed("getsockname"))?;
        let wanted = buffer.unsigned_abs() as usize;
        let mut this = Self { socket, local, buffer: ReceiveBuffer { wanted, granted: 0 } };
        // An IPv4 packet that may not be fragmented carries identification 0, which the ICRC covers.
        if address.is_ipv4() {
            this.option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
                .map_err(failed("setsockopt(IP_MTU_DISCOVER)"))?;
        } else {
            this.option(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
                .map_err(failed("setsockopt(IPV6_MTU_DISCOVER)"))?;
        }
        for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            if this.option(libc::SOL_SOCKET, force, buffer).is_err() {
                this.option(libc::SOL_SOCKET, plain, buffer).map_err(failed("setsockopt(SO_RCVBUF, SO_SNDBUF)"))?;
            }
        }
        let doubled = this.option_value(libc::SOL_SOCKET, libc::SO_RCVBUF).map_err(failed("getsockopt(SO_RCVBUF)"))?;
        this.buffer.granted = usize::try_from(doubled).unwrap_or(0) / 2;
        // The first time costs the kernel more: not while there is traffic.
        this.join(true);
        this.join(false);
        Ok(this)
    }

    /// Lets the kernel join datagrams. Kernels before 5.0 do not: there each comes by itself.
    fn join(&self, yes: bool) {
        let _ = self.option(libc::IPPROTO_UDP, libc::UDP_GRO, yes.into());
    }

    /// Whether nothing has arrived.
    fn is_empty(&self) -> bool {
        let mut bytes = 0_i32;
        // SAFETY: FIONREAD fills in one integer, which lives for the call.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        done == 0 && bytes == 0
    }

    /// Where it is bound.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// How much may arrive before we look.
    pub(crate) fn receive_buffer(&self) -> ReceiveBuffer {
        self.buffer
    }

    fn option_value(&self, level: i32, name: i32) -> io::Result<i32> {
        let (mut value, mut len) = (0_i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: the option's value is one i32, as the length says; both live for the call.
        let done =
            unsafe { libc::getsockopt(self.socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
        if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    }

    fn option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        let len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the option's value is one i32, alive for the call.
        match unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, name, (&raw const value).cast(), len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(address: SocketAddr) -> Result<UdpSocket, VerbsError> {
    UdpSocket::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => VerbsError::PortInUse { address, source },
        io::ErrorKind::PermissionDenied => {
            let remedy = "choose a port from 1024 up, or run as root";
            VerbsError::Permission { what: "bind the UDP port", remedy, source }
        }
        _ => VerbsError::Address { address, source },
    })
}

/// Bytes of the longest packet that a network interface of this thread's network namespace carries. /sys would say it
/// too, but of the namespace that it was mounted in.
pub(crate) fn interface_mtu(name: &str) -> io::Result<usize> {
    // Any socket will do.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: all-zero bytes are a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte as libc::c_char);
    // SAFETY: the request takes an ifreq with a name that ends in a zero byte, and fills in the MTU; it lives for the call.
    let mtu = unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_mtu
    };
    usize::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Room for one control message with an integer.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 32]);

/// What the system calls read and fill beside the bytes: made once, filled in for each call.
struct Headers {
    headers: [libc::mmsghdr; BATCH],
    iovecs: [libc::iovec; BATCH],
    names: [libc::sockaddr_storage; BATCH],
    controls: [Control; BATCH],
}

// SAFETY: the pointers in it are followed only by the system call that they were filled in for.
unsafe impl Send for Headers {}

impl Headers {
    fn new() -> Box<Self> {
        // SAFETY: all-zero bytes are valid values of these plain C structures.
        Box::new(unsafe { zeroed() })
    }

    /// Points the header to the bytes, its name and its control buffer, with their full lengths.
    fn fill(&mut self, at: usize, base: *mut u8, len: usize) -> &mut libc::msghdr {
        self.iovecs[at] = libc::iovec { iov_base: base.cast(), iov_len: len };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.names[at]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut self.iovecs[at];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[at]).cast();
        header.msg_controllen = size_of::<Control>();
        header
    }
}

/// The receiving half.
pub(crate) struct Receiver {
    headers: Box<Headers>,
    bytes: Box<[u8]>,
    /// The kernel may join datagrams. It has to look at more of each one for that, so where they come one by one it
    /// may not.
    joins: bool,
    /// Calls in a row that found as many messages as they asked for.
    streak: u32,
    /// Datagrams in a row that came by themselves while the kernel could have joined them.
    singles: u32,
    /// Messages cut short by the kernel.
    pub(crate) truncated: u64,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        let bytes = vec![0; BATCH * MESSAGE].into_boxed_slice();
        Self { headers: Headers::new(), bytes, joins: false, streak: 0, singles: 0, truncated: 0 }
    }

    /// Takes what has arrived, in one system call, and hands over each datagram; returns the number of messages. It asks
    /// for one message, so that this one waits for nothing, and for more as long as there are more.
    pub(crate) fn receive(&mut self, socket: &Socket, each: impl FnMut(SocketAddr, &[u8])) -> io::Result<usize> {
        if self.streak > 1 && !self.joins {
            self.joins = true;
            socket.join(true);
        }
        let received = if self.joins { self.receive_joined(socket, each) } else { self.receive_single(socket, each) };
        let Err(error) = received else { return received };
        self.streak = 0;
        if self.singles >= SINGLES {
            self.singles = 0;
            // What was joined before cannot be told apart afterwards: only while there is nothing. What the kernel is
            // taking in at this very moment may be lost, as on any network.
            socket.join(false);
            self.joins = !socket.is_empty();
            if self.joins {
                socket.join(true);
            }
        }
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(0),
            _ => Err(error),
        }
    }

    /// One datagram.
    fn receive_single(&mut self, socket: &Socket, mut each: impl FnMut(SocketAddr, &[u8])) -> io::Result<usize> {
        let name = &mut self.headers.names[0];
        let mut name_len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: the buffer has MESSAGE bytes, and the name the length that is given with it; both live for the call.
        let len = unsafe {
            let (fd, buffer) = (socket.socket.as_raw_fd(), self.bytes.as_mut_ptr());
            let (name, len) = (&raw mut *name, &raw mut name_len);
            libc::syscall(libc::SYS_recvfrom, fd, buffer, MESSAGE, libc::MSG_DONTWAIT, name, len)
        };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        self.streak += 1;
        if let Some(from) = address_of(name) {
            each(from, &self.bytes[..len.min(MESSAGE)]);
        }
        Ok(1)
    }

    /// A batch of messages, each of them one datagram or several.
    fn receive_joined(&mut self, socket: &Socket, mut each: impl FnMut(SocketAddr, &[u8])) -> io::Result<usize> {
        let wanted = (1 << self.streak.saturating_sub(1)).min(BATCH);
        let all = &mut *self.headers;
        for (at, buffer) in self.bytes.chunks_exact_mut(MESSAGE).enumerate().take(wanted) {
            all.fill(at, buffer.as_mut_ptr(), MESSAGE);
        }
        let fd = socket.socket.as_raw_fd();
        let headers = all.headers.as_mut_ptr();
        // SAFETY: each of the `wanted` headers points to one name, one iovec over a buffer of this value and one control
        // buffer, with their true lengths; the exclusive borrow keeps them for the call. The calls are made without
        // the C library's wrappers, which would make each a point of cancellation.
        let count = unsafe {
            if wanted == 1 {
                let len = libc::syscall(libc::SYS_recvmsg, fd, &raw mut (*headers).msg_hdr, libc::MSG_DONTWAIT);
                (*headers).msg_len = u32::try_from(len).unwrap_or(0);
                len.min(0) + i64::from(len >= 0)
            } else {
                let no_time = std::ptr::null_mut::<libc::timespec>();
                libc::syscall(libc::SYS_recvmmsg, fd, headers, wanted, libc::MSG_DONTWAIT, no_time)
            }
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let mut single = self.streak == 0;
        self.streak = if count == wanted { (self.streak + 1).min(BATCH.ilog2() + 1) } else { 0 };
        for (at, buffer) in self.bytes.chunks_exact(MESSAGE).enumerate().take(count) {
            let header = &all.headers[at];
            let Some(from) = address_of(&all.names[at]) else { continue };
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                self.truncated += 1;
                continue;
            }
            let bytes = &buffer[..(header.msg_len as usize).min(MESSAGE)];
            match segment_of(header) {
                Some(segment) => {
                    single = false;
                    bytes.chunks(segment).for_each(|datagram| each(from, datagram));
                }
                None => each(from, bytes),
            }
        }
        self.singles = if single { self.singles.saturating_add(1) } else { 0 };
        Ok(count)
    }
}

/// The length of the datagrams that the kernel joined in this message.
fn segment_of(header: &libc::mmsghdr) -> Option<usize> {
    // SAFETY: the header is as the kernel filled it, and its control buffer is alive and aligned; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay inside of msg_controllen, and the data of a UDP_GRO message is an i32.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&header.msg_hdr);
        while !message.is_null() {
            if (*message).cmsg_level == libc::IPPROTO_UDP && (*message).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(message).cast::<i32>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            message = libc::CMSG_NXTHDR(&header.msg_hdr, message);
        }
    }
    None
}

/// Chooses datagrams to lose: the same ones for the same seed.
pub(super) struct Loss {
    per_million: u32,
    /// SplitMix64.
    state: u64,
}

impl Loss {
    /// So many of a million; None for none.
    pub(super) fn new(per_million: u32, seed: u64) -> Option<Self> {
        (per_million > 0).then_some(Self { per_million, state: seed })
    }

    pub(super) fn strikes(&mut self) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The upper half, taken as a fraction of 2^32.
        ((mixed >> 32) * 1_000_000) >> 32 < u64::from(self.per_million)
    }
}

/// The sending half: datagrams that wait for the socket.
pub(crate) struct Sender {
    headers: Box<Headers>,
    /// The datagrams, one behind the other.
    bytes: Vec<u8>,
    queue: Vec<Transmit>,
    /// Datagrams, and their bytes, of `queue` that are done.
    done: usize,
    done_bytes: usize,
    /// The kernel may cut messages into datagrams.
    pub(crate) segment: bool,
    /// Datagrams that the system refused.
    pub(crate) refused: u64,
    /// Times that the socket had no room.
    pub(crate) blocked: u64,
    loss: Option<Loss>,
    /// Datagrams that [`Loss`] chose.
    pub(crate) lost: u64,
}

impl Sender {
    /// One that loses so many of a million datagrams.
    pub(crate) fn new(lose_per_million: u32, seed: u64) -> Self {
        Self {
            headers: Headers::new(),
            bytes: Vec::with_capacity(FILL + MESSAGE),
            queue: Vec::with_capacity(BATCH * SEGMENTS),
            done: 0,
            done_bytes: 0,
            segment: true,
            refused: 0,
            blocked: 0,
            loss: Loss::new(lose_per_million, seed),
            lost: 0,
        }
    }

    /// Datagrams are left, for which the socket had no room.
    pub(crate) fn waiting(&self) -> bool {
        self.done < self.queue.len()
    }

    /// Sends what `next` appends, one datagram a call, until it has no more or the socket has no room.
    pub(crate) fn send(&mut self, socket: &Socket, mut next: impl FnMut(&mut Vec<u8>) -> Option<Transmit>) {
        let mut more = true;
        loop {
            while self.waiting() {
                let room = if self.queue.len() == 1 { self.push_single(socket) } else { self.push(socket) };
                if !room {
                    self.blocked += 1;
                    return;
                }
            }
            if !more {
                return;
            }
            (self.done, self.done_bytes) = (0, 0);
            self.queue.clear();
            self.bytes.clear();
            while more && self.queue.len() < BATCH * SEGMENTS && self.bytes.len() < FILL {
                match next(&mut self.bytes) {
                    Some(datagram) if self.loss.as_mut().is_some_and(Loss::strikes) => {
                        self.bytes.truncate(self.bytes.len() - datagram.len);
                        self.lost += 1;
                    }
                    Some(datagram) => self.queue.push(datagram),
                    None => more = false,
                }
            }
        }
    }

    /// The only datagram. False: the socket has no room.
    fn push_single(&mut self, socket: &Socket) -> bool {
        let Transmit { to, len, .. } = self.queue[0];
        let name = &mut self.headers.names[0];
        let name_len = write_address(to, name);
        // SAFETY: the name has the length that is given with it, and the bytes are those of a live vector.
        let sent = unsafe {
            let (fd, bytes, name) = (socket.socket.as_raw_fd(), self.bytes[..len].as_ptr(), &raw const *name);
            libc::syscall(libc::SYS_sendto, fd, bytes, len, libc::MSG_DONTWAIT, name, name_len)
        };
        if sent < 0 {
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN) => return false,
                Some(libc::EINTR) => return true,
                _ => self.refused += 1,
            }
        }
        self.finish(1);
        true
    }

    /// One system call. False: the socket has no room.
    fn push(&mut self, socket: &Socket) -> bool {
        let all = &mut self.headers;
        let mut lengths = [0_usize; BATCH];
        let (mut count, mut at, mut offset) = (0, self.done, self.done_bytes);
        while count < BATCH && at < self.queue.len() {
            let Transmit { to, len, .. } = self.queue[at];
            let limit = if self.segment { SEGMENTS } else { 1 };
            let run = run(&self.queue[at..], limit);
            let bytes = self.queue[at..at + run].iter().map(|datagram| datagram.len).sum();
            let name_len = write_address(to, &mut all.names[count]);
            let header = all.fill(count, self.bytes[offset..offset + bytes].as_mut_ptr(), bytes);
            header.msg_namelen = name_len;
            header.msg_controllen = if run > 1 { write_segment(header, len as u16) } else { 0 };
            lengths[count] = run;
            count += 1;
            at += run;
            offset += bytes;
        }
        // SAFETY: `count` headers point to a name, an iovec over bytes of this value and a control buffer, each with
        // its true length; all live for the call.
        let sent = unsafe {
            let (fd, headers) = (socket.socket.as_raw_fd(), all.headers.as_mut_ptr());
            if count == 1 {
                let sent = libc::syscall(libc::SYS_sendmsg, fd, &raw const (*headers).msg_hdr, libc::MSG_DONTWAIT);
                sent.min(0) + i64::from(sent >= 0)
            } else {
                libc::syscall(libc::SYS_sendmmsg, fd, headers, count, libc::MSG_DONTWAIT)
            }
        };
        match usize::try_from(sent) {
            Ok(sent) => lengths[..sent.min(count)].iter().for_each(|run| self.finish(*run)),
            Err(_) => {
                let error = io::Error::last_os_error().raw_os_error();
                match error {
                    Some(libc::EAGAIN) => return false,
                    Some(libc::EINTR) => {}
                    // A path or a network interface that cannot cut: from now on, one datagram a message.
                    Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE) if lengths[0] > 1 => self.segment = false,
                    _ => {
                        self.refused += lengths[0] as u64;
                        self.finish(lengths[0]);
                    }
                }
            }
        }
        true
    }

    fn finish(&mut self, datagrams: usize) {
        let bytes: usize = self.queue[self.done..self.done + datagrams].iter().map(|datagram| datagram.len).sum();
        self.done += datagrams;
        self.done_bytes += bytes;
    }
}

/// How many datagrams from the first on one message can carry: one receiver, one length, and only the last shorter.
fn run(queue: &[Transmit], limit: usize) -> usize {
    let Transmit { to, len, alone } = queue[0];
    let (mut count, mut bytes) = (1, len);
    while !alone && count < limit.min(queue.len()) {
        let next = queue[count];
        if next.to != to || next.alone || next.len > len || bytes + next.len > SEGMENTED {
            break;
        }
        count += 1;
        bytes += next.len;
        if next.len < len {
            break;
        }
    }
    count
}

/// Puts a UDP_SEGMENT message into the header's control buffer; returns its length.
fn write_segment(header: &mut libc::msghdr, len: u16) -> usize {
    // SAFETY: the control buffer has 32 bytes, and CMSG_SPACE(2) is 24; it is aligned for a cmsghdr.
    unsafe {
        let space = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
        header.msg_controllen = space;
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = libc::IPPROTO_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
        libc::CMSG_DATA(message).cast::<u16>().write_unaligned(len);
        space
    }
}

fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds this structure.
            let v4 = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(address.into(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            // Peers are told apart by their GID, which has no scope.
            Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, 0).into())
        }
        _ => None,
    }
}

fn write_address(address: SocketAddr, name: &mut libc::sockaddr_storage) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage is large enough and aligned for each kind of address.
            let target = unsafe { &mut *(&raw mut *name).cast::<libc::sockaddr_in>() };
            target.sin_family = libc::AF_INET as libc::sa_family_t;
            target.sin_port = v4.port().to_be();
            target.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let target = unsafe { &mut *(&raw mut *name).cast::<libc::sockaddr_in6>() };
            target.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            target.sin6_port = v6.port().to_be();
            target.sin6_flowinfo = 0;
            target.sin6_addr.s6_addr = v6.ip().octets();
            target.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

#[cfg(test)]
#[path = "port_udp_tests.rs"]
mod tests;
