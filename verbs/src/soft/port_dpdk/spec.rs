//! What follows "dpdk:" in a device's name: a port as DPDK names it, its driver's arguments, and ours.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// Keys that are ours; any other goes to the driver.
const OURS: [&str; 8] = ["address", "cpu", "gateway", "hugepages", "links", "memory", "mtu", "nap"];
/// Keys that a memif's driver is given as they are. It takes the last of each; and where there is one that it does not know,
/// it takes none of them, so what keeps its copies within our buffers depends on these.
const MEMIFS: [&str; 2] = ["id", "secret"];
/// What a name must look like, for who got it wrong.
const FORM: &str =
    "dpdk:PORT[,KEY=VALUE…], where PORT is a PCI address (0000:01:00.0) or a virtual port such as net_memif0";
/// MiB for DPDK, where nothing else is asked for.
pub(crate) const MEMORY: usize = 128;
/// Places of a mesh, at most: a process of DPDK's has 32 ports.
const MAX_LINKS: u16 = 24;

/// A port, and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// "0000:01:00.0" or "net_memif0".
    pub(crate) port: String,
    /// For its driver.
    pub(crate) arguments: Vec<(String, String)>,
    /// Our address and the bits of it that all of the network share.
    pub(crate) address: Option<(Ipv4Addr, u8)>,
    /// Whom packets to other networks go to.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Longest IP packet.
    pub(crate) mtu: Option<u16>,
    /// Memory of DPDK's, in MiB: of the whole process, so the first device decides.
    pub(crate) memory: usize,
    /// Whether that is of hugepages.
    pub(crate) hugepages: bool,
    /// The longest sleep of an idle device; zero: it never sleeps.
    pub(crate) nap: Duration,
    /// The processor that its thread stays on.
    pub(crate) cpu: Option<usize>,
    /// Places of a mesh of memifs.
    pub(crate) links: u16,
}

/// What a memif is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memif {
    /// One end, at this socket.
    End { server: bool, socket: PathBuf },
    /// Linked with every process that joins in this directory.
    Mesh(PathBuf),
}

impl Spec {
    /// Reads what follows "dpdk:".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let port = parts.next().unwrap_or("").to_owned();
        let is_pci = is_pci(&port);
        let is_virtual =
            port.starts_with("net_") && port.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
        if !is_pci && !is_virtual {
            return Err(format!("'{port}' is no port; the form is {FORM}"));
        }
        let mut spec = Self {
            hugepages: is_pci,
            port,
            arguments: Vec::new(),
            address: None,
            gateway: None,
            mtu: None,
            memory: MEMORY,
            nap: Duration::from_millis(1),
            cpu: None,
            links: 4,
        };
        for part in parts {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("'{part}' is not KEY=VALUE; the form is {FORM}"))?;
            if OURS.contains(&key) {
                spec.set(key, value).ok_or_else(|| format!("'{value}' is no value of '{key}': {}", help(key)))?;
            } else {
                spec.arguments.push((key.to_owned(), value.to_owned()));
            }
        }
        if spec.gateway.is_some() && spec.address.is_none_or(|(_, prefix)| prefix == 0) {
            return Err("a gateway needs address=ADDRESS/BITS, which says who is on the network itself".to_owned());
        }
        if spec.is_memif() {
            spec.arguments.iter().try_for_each(|(key, value)| spec.memif_takes(key, value))?;
        }
        if spec.argument("zero-copy").is_some_and(|value| value != "no") {
            return Err("zero-copy would show all memory of DPDK's to the other end: leave it out".to_owned());
        }
        spec.memif()?;
        Ok(spec)
    }

    /// One of our keys; None where the value cannot be.
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "address" => {
                let (address, bits) = match value.split_once('/') {
                    Some((address, bits)) => (address, bits.parse().ok().filter(|bits| (1..=32).contains(bits))?),
                    None => (value, 0),
                };
                self.address = Some((address.parse().ok().filter(is_of_a_machine)?, bits));
            }
            "gateway" => self.gateway = Some(value.parse().ok().filter(is_of_a_machine)?),
            "mtu" => self.mtu = Some(value.parse().ok().filter(|mtu| (576..=9600).contains(mtu))?),
            "memory" => self.memory = value.parse().ok().filter(|size| (32..=65_536).contains(size))?,
            "hugepages" => self.hugepages = ["no", "yes"].iter().position(|word| *word == value)? == 1,
            "nap" => self.nap = Duration::from_micros(value.parse().ok().filter(|micros| *micros <= 1_000_000)?),
            "cpu" => self.cpu = Some(value.parse().ok().filter(|cpu| *cpu < 1024)?),
            _ => self.links = value.parse().ok().filter(|links| (2..=MAX_LINKS).contains(links))?,
        }
        Some(())
    }

    pub(crate) fn is_pci(&self) -> bool {
        is_pci(&self.port)
    }

    pub(crate) fn is_memif(&self) -> bool {
        self.port.starts_with("net_memif")
    }

    fn memif_takes(&self, key: &str, value: &str) -> Result<(), String> {
        let id_is_ours = key == "id" && self.argument("role") == Some("mesh");
        if id_is_ours || !["role", "socket", "zero-copy"].iter().chain(&MEMIFS).any(|known| *known == key) {
            return Err(format!("'{key}' of a memif is not for you to set: leave it out"));
        }
        // What its driver, or DPDK before it, would read as something else than a part of the value.
        match value.chars().find(|letter| "[]=|\"'".contains(*letter)) {
            Some(letter) => Err(format!("'{value}' is no value of '{key}': {letter} cannot be in it")),
            None => Ok(()),
        }
    }

    /// What its driver is given.
    pub(crate) fn for_driver(&self) -> impl Iterator<Item = String> {
        let given = |key: &str| !self.is_memif() || MEMIFS.contains(&key);
        self.arguments.iter().filter(move |(key, _)| given(key)).map(|(key, value)| format!("{key}={value}"))
    }

    /// Bytes of a frame in the rings of a packet socket, where this port is one: so many that what the kernel puts before a
    /// packet of `mtu` bytes has room too, and that they fill whole pages.
    pub(crate) fn packet_socket_frame(&self) -> Option<usize> {
        let frame = usize::from(self.mtu.unwrap_or(1500)) + 80;
        self.port.starts_with("net_af_packet").then_some(frame.next_power_of_two().max(4096))
    }

    fn argument(&self, key: &str) -> Option<&str> {
        self.arguments.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The end of a memif that this is; None for another port.
    pub(crate) fn memif(&self) -> Result<Option<Memif>, String> {
        if !self.is_memif() {
            return Ok(None);
        }
        let Some(socket) = self.argument("socket").filter(|path| path.starts_with('/') && path.len() < 90) else {
            return Err("a memif has socket=PATH, an absolute one of less than 90 bytes".to_owned());
        };
        let socket = PathBuf::from(socket);
        match self.argument("role") {
            Some("server") => Ok(Some(Memif::End { server: true, socket })),
            Some("client") => Ok(Some(Memif::End { server: false, socket })),
            Some("mesh") if self.address.is_none() => Err("a mesh needs address=, that of its first place".to_owned()),
            Some("mesh") => Ok(Some(Memif::Mesh(socket))),
            _ => Err("a memif has role=server, role=client or role=mesh".to_owned()),
        }
    }
}

/// Domain, bus, device and function: 0000:01:00.0.
fn is_pci(port: &str) -> bool {
    let lengths = port.split([':', '.']).map(str::len);
    let digits = port.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.');
    digits && lengths.eq([4, 2, 2, 1]) && port.as_bytes().get(10) == Some(&b'.')
}

fn is_of_a_machine(address: &Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
}

fn help(key: &str) -> &'static str {
    match key {
        "address" => "an IPv4 address of this port, with the bits of its network: 10.9.0.1/24",
        "gateway" => "the IPv4 address of the router to other networks",
        "mtu" => "bytes of the longest IP packet, 576 to 9600",
        "memory" => "MiB of memory for DPDK, 32 to 65536",
        "hugepages" => "yes or no",
        "nap" => "microseconds that an idle device sleeps at most, up to a million; 0 for never",
        "cpu" => "the number of a processor",
        _ => "how many devices a mesh has at most, 2 to 24",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_port_driver_arguments_and_ours() {
        let spec = Spec::parse("net_memif0,role=client,socket=/run/m,address=10.9.0.2/24,id=3,nap=0,mtu=1500").unwrap();
        assert_eq!(spec.address, Some((Ipv4Addr::new(10, 9, 0, 2), 24)));
        assert_eq!((spec.nap, spec.mtu, spec.hugepages, spec.is_pci()), (Duration::ZERO, Some(1500), false, false));
        let keys: Vec<_> = spec.arguments.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["role", "socket", "id"]);
        assert_eq!(spec.for_driver().collect::<Vec<_>>(), ["id=3"]);
        let memif = spec.memif().unwrap().unwrap();
        assert_eq!(memif, Memif::End { server: false, socket: "/run/m".into() });
        let mesh = Spec::parse("net_memif0,role=mesh,socket=/run/m,links=3,address=10.9.0.1").unwrap();
        assert_eq!((mesh.memif(), mesh.links), (Ok(Some(Memif::Mesh("/run/m".into()))), 3));
        let card = Spec::parse("0000:01:00.0,address=10.0.0.7,gateway_unknown=1").unwrap();
        assert!(card.is_pci() && card.hugepages && card.memif().unwrap().is_none());
        assert_eq!(card.arguments, [("gateway_unknown".to_owned(), "1".to_owned())]);
        assert_eq!(card.packet_socket_frame(), None);
        for (mtu, frame) in [("1500", 4096), ("4016", 4096), ("4017", 8192), ("9600", 16_384)] {
            let socket = Spec::parse(&format!("net_af_packet0,iface=v1,mtu={mtu}")).unwrap();
            assert_eq!(socket.packet_socket_frame(), Some(frame));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (text, says) in [
            ("", "the form is"),
            ("eth0", "the form is"),
            ("01:00.0", "the form is"),
            ("0000:01:00:0", "the form is"),
            ("net_tap0;x", "the form is"),
            ("net_tap0,iface", "KEY=VALUE"),
            ("net_tap0,address=10.0.0.1/33", "10.9.0.1/24"),
            ("net_tap0,address=0.0.0.0", "10.9.0.1/24"),
            ("net_tap0,address=::1", "10.9.0.1/24"),
            ("net_tap0,mtu=100", "576"),
            ("net_tap0,nap=-1", "microseconds"),
            ("net_tap0,hugepages=maybe", "yes or no"),
            ("net_tap0,links=1", "2 to 24"),
            ("net_memif0,role=mesh,socket=/run/m", "address="),
            ("net_tap0,address=10.0.0.1,gateway=10.0.0.2", "BITS"),
            ("net_memif0,socket=/run/m", "role="),
            ("net_memif0,role=server", "socket="),
            ("net_memif0,role=server,socket=here", "absolute"),
            ("net_memif0,role=server,socket=/run/m,links=25", "2 to 24"),
            ("net_memif0,role=server,socket=/run/m,zero-copy=yes", "zero-copy"),
            ("net_memif0,role=server,socket=/run/m,bsize=2048", "'bsize' of a memif"),
            ("net_memif0,role=server,socket=/run/m,rsize=14", "'rsize' of a memif"),
            ("net_memif0,role=server,socket=/run/m,mac=02:00:00:00:00:01", "'mac' of a memif"),
            ("net_memif0,role=server,socket=/run/m,socket-abstract=yes", "'socket-abstract' of a memif"),
            ("net_memif0,role=server,socket=/run/m,unknown=1", "'unknown' of a memif"),
            ("net_memif0,role=mesh,socket=/run/m,address=10.9.0.1,id=3", "'id' of a memif"),
            ("net_memif0,role=server,socket=/run/[m", "[ cannot be in it"),
            ("net_memif0,role=server,socket=/run/bus=m", "= cannot be in it"),
        ] {
            let said = Spec::parse(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
