//! Why there is no paged region, or something could not be done with it.

use std::io;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum PagingError {
    /// The page size is not one that works.
    #[error("pages of {page} bytes: it must be a power of two from {least} bytes to 2 MiB")]
    Page {
        /// What was asked for.
        page: usize,
        /// The kernel's own.
        least: usize,
    },
    /// Less local memory than the region needs to go on.
    #[error(
        "{pages} pages of local memory are too few: at least {least} are needed, since some are always coming or going"
    )]
    TooLittle {
        /// What was asked for.
        pages: usize,
        /// What is needed.
        least: usize,
    },
    /// Not a whole number of pages, or none, or more than can be counted.
    #[error("a region of {bytes} bytes in pages of {page}: it must be 1 to 2^31 whole pages")]
    Length {
        /// What was asked for.
        bytes: usize,
        /// Bytes of a page.
        page: usize,
    },
    /// More regions than the signal handler looks through.
    #[error("{most} regions are open already: close one, or open more with faults handled by a thread")]
    TooMany {
        /// How many there are at most.
        most: usize,
    },
    /// This user may not handle faults that happen in the kernel.
    #[error(
        "this user may not handle page faults of system calls: `sysctl vm.unprivileged_userfaultfd=1`, or give it read and \
         write access to /dev/userfaultfd, or CAP_SYS_PTRACE; or handle faults by signal, and give system calls memory \
         outside of the region"
    )]
    KernelFaultsForbidden,
    /// This user may not handle faults at all.
    #[error(
        "this user may not handle page faults ({source}): `sysctl vm.unprivileged_userfaultfd=1`, or a sandbox that forbids userfaultfd is in the way"
    )]
    Forbidden {
        /// What the system said.
        source: io::Error,
    },
    /// This kernel cannot do it.
    #[error(
        "this kernel has no userfaultfd with write protection ({source}): Linux 5.7 or later with CONFIG_USERFAULTFD is needed"
    )]
    Unsupported {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("{what}: {source}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// No whole pages of the region.
    #[error("bytes {start} to {end} are not within the region's {len}")]
    Range {
        /// First byte.
        start: usize,
        /// Behind the last byte.
        end: usize,
        /// Bytes of the region.
        len: usize,
    },
    /// More pages would be held than the local memory has room for.
    #[error(
        "holding {pages} pages more would leave too little of {most} for the rest: hold less, or allow more local memory"
    )]
    Held {
        /// Pages that were to be held.
        pages: usize,
        /// Pages of local memory.
        most: usize,
    },
    /// Pages cannot be brought or taken away any more.
    #[error("the region's memory is lost: {cause}")]
    Lost {
        /// Why.
        cause: String,
    },
}
