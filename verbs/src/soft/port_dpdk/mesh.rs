//! Places in a mesh of memifs: each process that joins takes one, and is linked with every other. It is the server of those
//! in places behind its own, and a client of those before.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A place that nobody else has, until it is dropped.
pub(crate) struct Place {
    pub(crate) number: u16,
    _lock: Flock<File>,
}

impl Place {
    /// Takes the first of so many places that is free. Their locks lie in this directory, which is made if it is missing.
    pub(crate) fn take(directory: &Path, places: u16) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!("{}: {error}; give the device a directory that it may write", directory.display())
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        for number in 0..places {
            if let Some(place) = Self::lock(&directory.join(format!("{number}.lock")), number).map_err(failed)? {
                return Ok(place);
            }
        }
        let directory = directory.display();
        Err(format!("all {places} places of the mesh in {directory} are taken; give all its devices links=MORE"))
    }

    /// The place of the only server at this socket.
    pub(crate) fn only(socket: &Path) -> Result<Self, String> {
        let path = PathBuf::from(format!("{}.lock", socket.display()));
        match Self::lock(&path, 0) {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(format!(
                "another process is the server at {}; end it, or give the device another socket=PATH",
                socket.display()
            )),
            Err(error) => Err(format!("{}: {error}; give the device a socket=PATH that it may write", path.display())),
        }
    }

    /// None: another has it.
    fn lock(path: &Path, number: u16) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok().map(|lock| Self { number, _lock: lock }))
    }

    /// The socket of whoever has this place.
    pub(crate) fn socket(directory: &Path, number: u16) -> PathBuf {
        directory.join(format!("{number}.sock"))
    }
}

/// The Ethernet address that goes with an IPv4 address: whoever has it next is known by the same.
pub(crate) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x0b, a, b, c, d]
}

/// Removes what a process has left of its socket. Whoever calls has the lock beside it; to ask the socket would be a
/// connection, and DPDK's memif server does not survive each that is cut short.
pub(crate) fn clear(path: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(format!("{} is no socket; give the device another socket=PATH", path.display()));
        }
        Ok(_) => {}
    }
    std::fs::remove_file(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

    use super::*;

    #[test]
    fn each_takes_the_first_place_that_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh");
        let mut taken: Vec<_> = (0..3).map(|_| Place::take(&path, 3).unwrap()).collect();
        assert_eq!(taken.iter().map(|place| place.number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(Place::take(&path, 3).err().unwrap().contains("links="));
        taken.remove(1);
        assert_eq!(Place::take(&path, 3).unwrap().number, 1);
    }

    #[test]
    fn a_socket_that_is_left_is_cleared_and_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        clear(&path).unwrap();
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        drop(listener);
        let only = Place::only(&path).unwrap();
        assert!(Place::only(&path).err().unwrap().contains("another process is the server"));
        drop(only);
        Place::only(&path).unwrap();
        clear(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "no socket").unwrap();
        assert!(clear(&path).unwrap_err().contains("no socket"));
        assert!(path.exists());
    }
}
