//! The memory of the pool: a range of addresses that holds zeros until it is written.

use std::net::IpAddr;
use std::ops::Range;

use overbank::{AttachOptions, Client, Config, Error, Faults, LeaseFileError, LeaseId, Region, RegionOptions};
use serde_json::Value;

use crate::plain::Plain;
use crate::settings::{LeaseSettings, Settings};

/// A range of memory, for the rest of the process.
pub(crate) enum Backing {
    /// Kept in a lease.
    Region(Region),
    /// All of it this machine's own.
    Plain(Plain),
}

impl Backing {
    /// A new one; None where another process has the lease. The error is the cause and the way out.
    pub(crate) fn open(settings: &Settings) -> Result<Option<Self>, String> {
        let Some(lease) = &settings.lease else {
            return Plain::open(settings).map(|plain| Some(Self::Plain(plain)));
        };
        let id: LeaseId = lease.id.parse().map_err(|error| format!("OVERBANK_RUN_LEASE={}: {error}", lease.id))?;
        let address = match &lease.address {
            None => None,
            Some(text) => Some(text.parse().map_err(|error| format!("OVERBANK_RUN_ADDRESS={text}: {error}"))?),
        };
        match region(settings, lease, id, address) {
            Ok(region) => Ok(Some(Self::Region(region))),
            Err(Error::LeaseFile(LeaseFileError::InUse { .. })) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Where it begins: a multiple of [`Backing::page`].
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        match self {
            Self::Region(region) => region.start().as_ptr(),
            Self::Plain(plain) => plain.as_ptr(),
        }
    }

    /// How many bytes it has: a multiple of [`Backing::page`].
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Region(region) => region.len(),
            Self::Plain(plain) => plain.len(),
        }
    }

    /// Bytes of a page of it.
    pub(crate) fn page(&self) -> usize {
        match self {
            Self::Region(region) => region.page(),
            Self::Plain(plain) => plain.page(),
        }
    }

    /// Makes whole pages zeros, and gives their memory back. False where it cannot.
    pub(crate) fn discard(&self, range: Range<usize>) -> bool {
        match self {
            Self::Region(region) => region.discard(range.clone()).is_ok_and(|done| done == range),
            Self::Plain(plain) => plain.discard(range),
        }
    }

    /// Keeps pages in this machine's memory. False, and nothing is done, where they are more than it may take.
    pub(crate) fn pin(&self, range: Range<usize>) -> bool {
        match self {
            Self::Region(region) => region.hold(range).is_ok(),
            Self::Plain(plain) => plain.pin(range),
        }
    }

    /// The end of [`Backing::pin`].
    pub(crate) fn unpin(&self, range: Range<usize>) {
        match self {
            Self::Region(region) => {
                // The range is one of the pool's.
                let _ = region.unhold(range);
            }
            Self::Plain(plain) => plain.unpin(range),
        }
    }

    /// Which pages are in this machine's memory.
    pub(crate) fn resident(&self, range: Range<usize>, pages: &mut [bool]) {
        match self {
            Self::Region(region) => {
                let each = (region.page() / crate::real::page()).max(1);
                let seen = region.resident(range).unwrap_or_default();
                pages.iter_mut().zip(seen.chunks(each)).for_each(|(page, seen)| *page = seen.iter().all(|here| *here));
            }
            Self::Plain(plain) => plain.resident(range, pages),
        }
    }

    /// What happened in it.
    pub(crate) fn stats(&self) -> Value {
        match self {
            Self::Region(region) => serde_json::to_value(region.stats()).unwrap_or_default(),
            Self::Plain(plain) => plain.stats(),
        }
    }
}

fn region(settings: &Settings, lease: &LeaseSettings, id: LeaseId, address: Option<IpAddr>) -> Result<Region, Error> {
    let mut config = match (&lease.authd, &lease.home) {
        (Some(authd), Some(home)) => Config::new(authd, home)?,
        _ => Config::from_env()?,
    };
    if let Some(leases) = &lease.leases {
        config = config.with_leases(leases);
    }
    let device = lease.device.clone().unwrap_or_else(|| "auto".to_owned());
    Client::connect(&config)?.open_lease(id)?.into_region(&RegionOptions {
        // System calls of the program use any of its memory.
        faults: Faults::Thread,
        page: lease.page,
        attach: AttachOptions { device, address, ..AttachOptions::default() },
        ..RegionOptions::new(settings.local as u64)
    })
}
