//! What the kernel does about faults on a range of addresses: userfaultfd, `ioctl_userfaultfd(2)`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use userfaultfd::{Event, FaultKind, FeatureFlags, ReadWrite, RegisterMode, Uffd, UffdBuilder};

use crate::error::PagingError;
use crate::map::Map;

/// `struct uffdio_copy`: the crate's own call cannot map a page that is protected from writing.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_move`, Linux 6.8.
#[repr(C)]
struct Move {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    moved: i64,
}

/// `struct uffdio_poison`, Linux 6.6.
#[repr(C)]
struct Poison {
    start: u64,
    len: u64,
    mode: u64,
    poisoned: i64,
}

const COPY_PROTECTED: u64 = 1 << 1;

nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_move, 0xAA, 0x05, Move);
nix::ioctl_readwrite!(uffdio_poison, 0xAA, 0x08, Poison);

/// Who is told of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Faults {
    /// The thread that touched the page resolves the fault itself, in a signal handler: the fastest way. A system call that
    /// is given an address whose page is not there fails with `EFAULT`.
    #[default]
    Signal,
    /// A thread of the region's own is woken. System calls work as on any memory; the process must be allowed to handle
    /// faults of the kernel.
    Thread,
}

impl Faults {
    /// Whether this process may resolve faults that way.
    ///
    /// # Errors
    /// [`PagingError::KernelFaultsForbidden`], [`PagingError::Forbidden`] and [`PagingError::Unsupported`].
    pub fn check(self) -> Result<(), PagingError> {
        open(self).map(drop)
    }

    fn features(self) -> FeatureFlags {
        match self {
            Self::Signal => FeatureFlags::PAGEFAULT_FLAG_WP | FeatureFlags::SIGBUS,
            Self::Thread => FeatureFlags::PAGEFAULT_FLAG_WP,
        }
    }
}

fn open(faults: Faults) -> Result<Uffd, PagingError> {
    let asked = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(faults == Faults::Signal)
        .require_features(faults.features())
        .create();
    let asked = match asked {
        // The system call may be allowed where the device is not, and the crate does not try it then.
        Err(userfaultfd::Error::OpenDevUserfaultfd(_)) => open_by_call(faults),
        asked => asked.map_err(|error| os(&error)),
    };
    asked.map_err(|source| refused(faults, source))
}

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, Api);

/// Without /dev/userfaultfd: any user may have it for faults of his own code, and `vm.unprivileged_userfaultfd` allows the rest.
fn open_by_call(faults: Faults) -> io::Result<Uffd> {
    const USER_MODE_ONLY: libc::c_int = 1;
    let user_mode_only = if faults == Faults::Signal { USER_MODE_ONLY } else { 0 };
    // SAFETY: takes flags and returns a new descriptor, or -1.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | user_mode_only) };
    let made = Errno::result(made)?;
    // SAFETY: a descriptor that was made just now, and that nobody else knows.
    let uffd = unsafe { Uffd::from_raw_fd(made as RawFd) };
    let mut api = Api { api: 0xAA, features: faults.features().bits(), ioctls: 0 };
    // SAFETY: the kernel reads and writes a struct that lives.
    unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }?;
    Ok(uffd)
}

/// What a thread wanted to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A fault that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) address: usize,
    pub(crate) access: Access,
}

/// The faults of one [`Map`].
#[derive(Debug)]
pub(crate) struct Kernel {
    uffd: Uffd,
}

/// What has become of bytes that were to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    /// So many are mapped now.
    pub(crate) bytes: usize,
    /// Why those behind them are not: `EEXIST` where a page is there already.
    pub(crate) error: Option<Errno>,
}

impl Kernel {
    /// Has the faults on a map told to us. Nothing is mapped in it yet.
    pub(crate) fn new(map: &Map, faults: Faults) -> Result<Self, PagingError> {
        let uffd = open(faults)?;
        let modes = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
        let registered = uffd.register_with_mode(map.start().as_ptr().cast(), map.len(), modes);
        let failed = |error| PagingError::Kernel { what: "watching the range for faults", source: os(&error) };
        registered.map(|_| Self { uffd }).map_err(failed)
    }

    /// Maps pages with these bytes, protected from writing where that is wanted, and wakes who waits for them. All of them
    /// must lie in one piece of memory as the kernel has it, or none is mapped.
    pub(crate) fn copy_in(&self, address: usize, bytes: &[u8], protected: bool) -> Copied {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let mut copy = Copy {
                dst: (address + done) as u64,
                src: rest.as_ptr() as u64,
                len: rest.len() as u64,
                mode: if protected { COPY_PROTECTED } else { 0 },
                copied: 0,
            };
            // SAFETY: the kernel reads `len` bytes of a slice that lives, and maps pages only where none are, in a range
            // that is registered with this descriptor.
            let result = unsafe { uffdio_copy(self.uffd.as_raw_fd(), &raw mut copy) };
            done += usize::try_from(copy.copied).unwrap_or(0).min(rest.len());
            match result {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Copied { bytes: done, error: Some(error) },
            }
        }
        Copied { bytes: done, error: None }
    }

    /// Moves pages from one place to another that has none: as many from the start as can be. One that somebody has asked the
    /// kernel for cannot (`EBUSY`). Not every kernel has that (`EINVAL`).
    pub(crate) fn move_pages(&self, to: usize, from: usize, len: usize) -> Copied {
        let mut done = 0;
        while done < len {
            let left = (len - done) as u64;
            let mut range = Move { dst: (to + done) as u64, src: (from + done) as u64, len: left, mode: 0, moved: 0 };
            // SAFETY: the kernel takes pages away that the caller has taken, and maps them where none are, in a range that is
            // registered with this descriptor; it changes no byte.
            let result = unsafe { uffdio_move(self.uffd.as_raw_fd(), &raw mut range) };
            let moved = usize::try_from(range.moved).unwrap_or(0).min(len - done);
            done += moved;
            match result {
                Ok(_) => {}
                Err(Errno::EAGAIN) if moved > 0 => {}
                Err(error) => return Copied { bytes: done, error: Some(error) },
            }
        }
        Copied { bytes: done, error: None }
    }

    /// Protects pages from writing: from here on a write is a fault.
    pub(crate) fn protect(&self, address: usize, len: usize) -> io::Result<()> {
        self.uffd.write_protect(address as *mut libc::c_void, len).map_err(|error| os(&error))
    }

    /// Lets pages be written, and wakes who waits for that.
    pub(crate) fn unprotect(&self, address: usize, len: usize) -> io::Result<()> {
        self.uffd.remove_write_protection(address as *mut libc::c_void, len, true).map_err(|error| os(&error))
    }

    /// Wakes who waits for pages: they are there.
    pub(crate) fn wake(&self, address: usize, len: usize) -> io::Result<()> {
        self.uffd.wake(address as *mut libc::c_void, len).map_err(|error| os(&error))
    }

    /// Makes each further touch of a page that is not there end in `SIGBUS`. Not every kernel can.
    pub(crate) fn poison(&self, address: usize, len: usize) -> io::Result<()> {
        let mut poison = Poison { start: address as u64, len: len as u64, mode: 0, poisoned: 0 };
        // SAFETY: the range is registered with this descriptor; only pages that are not there are marked.
        match unsafe { uffdio_poison(self.uffd.as_raw_fd(), &raw mut poison) } {
            Ok(_) => Ok(()),
            // It has come meanwhile.
            Err(Errno::EEXIST) => self.wake(address, len),
            Err(error) => Err(error.into()),
        }
    }

    /// The next fault, if one waits.
    pub(crate) fn next(&self) -> io::Result<Option<Fault>> {
        loop {
            match self.uffd.read_event().map_err(|error| os(&error))? {
                None => return Ok(None),
                Some(Event::Pagefault { kind, rw, addr, .. }) => {
                    let write = rw == ReadWrite::Write || kind == FaultKind::WriteProtected;
                    let access = if write { Access::Write } else { Access::Read };
                    return Ok(Some(Fault { address: addr as usize, access }));
                }
                // None other was asked for.
                Some(_) => {}
            }
        }
    }

    /// A way to wait for the next fault, for one thread.
    pub(crate) fn waiter(&self) -> Result<Waiter, PagingError> {
        let waiter = || {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            epoll.add(self.uffd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, 0))?;
            Ok(Waiter { epoll })
        };
        waiter().map_err(|error: Errno| PagingError::Kernel { what: "waiting for faults", source: error.into() })
    }
}

/// Waits for faults: of all threads that do, each fault wakes one.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: Epoll,
}

impl Waiter {
    /// Waits until a fault comes, or for so long.
    pub(crate) fn wait(&self, patience: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match self.epoll.wait(&mut [EpollEvent::empty()], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The system's number for what a call of the crate's ended with.
fn os(error: &userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(*errno as i32),
        userfaultfd::Error::CopyFailed(errno) | userfaultfd::Error::ZeropageFailed(errno) => {
            io::Error::from_raw_os_error(*errno as i32)
        }
        userfaultfd::Error::OpenDevUserfaultfd(error) => {
            error.raw_os_error().map_or_else(|| io::Error::other("opening it failed"), io::Error::from_raw_os_error)
        }
        other => io::Error::other(other.to_string()),
    }
}

fn refused(faults: Faults, source: io::Error) -> PagingError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if faults == Faults::Thread => PagingError::KernelFaultsForbidden,
        Some(libc::EPERM | libc::EACCES) => PagingError::Forbidden { source },
        Some(libc::ENOSYS | libc::EINVAL) => PagingError::Unsupported { source },
        _ => PagingError::Kernel { what: "asking for a userfaultfd", source },
    }
}
