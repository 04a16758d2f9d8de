//! The pool's pages: hugepages where they can be had.

use overbank_fabric::units::Size;
use overbank_verbs::{Backing, Memory, VerbsError};

/// Which pages to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pages {
    /// 2 MiB hugepages where enough are free, else transparent ones with a warning.
    Auto,
    /// Reserved hugepages of 2 MiB.
    #[value(name = "2M")]
    Huge2M,
    /// Reserved hugepages of 1 GiB.
    #[value(name = "1G")]
    Huge1G,
    /// Transparent hugepages.
    Thp,
    /// Ordinary pages of 4 KiB.
    Plain,
}

/// Maps the pool: `size`, rounded up to whole pages.
///
/// # Errors
/// Where the system does not give it; names the command that would help.
pub fn map(pages: Pages, size: Size) -> Result<Memory, VerbsError> {
    match pages {
        Pages::Auto => match map_as(Backing::Huge2M, size) {
            Err(error @ VerbsError::Hugepages { .. }) => {
                tracing::warn!("{error} to reserve them before the next start; going on with transparent hugepages");
                map_as(Backing::Transparent, size)
            }
            other => other,
        },
        Pages::Huge2M => map_as(Backing::Huge2M, size),
        Pages::Huge1G => map_as(Backing::Huge1G, size),
        Pages::Thp => map_as(Backing::Transparent, size),
        Pages::Plain => map_as(Backing::Ordinary, size),
    }
}

fn map_as(backing: Backing, size: Size) -> Result<Memory, VerbsError> {
    let page: u64 = match backing {
        Backing::Huge2M | Backing::Transparent => 2 << 20,
        Backing::Huge1G => 1 << 30,
        Backing::Ordinary => 4096,
    };
    let whole = size.0.checked_next_multiple_of(page).and_then(|bytes| usize::try_from(bytes).ok());
    // Beyond what can be addressed: the mapping's own refusal says so.
    Memory::map(whole.unwrap_or(usize::MAX), backing)
}
