//! A store in this process that keeps pages as they were handed over, and can be made to fail.
#![allow(clippy::result_large_err)] // A cause holds its text: it is made where nothing may be allocated.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use overbank_paging::{Cause, Keeper, Lane, Region, RegionOptions, Trouble};

pub(crate) const PAGE: usize = 4096;

#[derive(Default)]
pub(crate) struct Vault {
    pages: Mutex<HashMap<usize, Vec<u8>>>,
    pub(crate) fetches: AtomicU64,
    pub(crate) stores: AtomicU64,
    /// Lanes fail until they are mended.
    pub(crate) broken: AtomicBool,
    /// There is nothing to be had any more.
    pub(crate) lost: AtomicBool,
    /// The keeper cannot mend so many times.
    pub(crate) stubborn: AtomicUsize,
    pub(crate) mends: AtomicU64,
}

pub(crate) struct VaultLane(pub(crate) Arc<Vault>);

impl Vault {
    fn check(&self) -> Result<(), Trouble> {
        if self.lost.load(Ordering::SeqCst) {
            return Err(Trouble::Lost(Cause::new(&"the vault is gone")));
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(Trouble::Broken(Cause::new(&"the way to the vault is broken")));
        }
        Ok(())
    }

    /// Pages that it holds.
    pub(crate) fn held(&self) -> usize {
        self.pages.lock().unwrap().len()
    }
}

impl Lane for VaultLane {
    fn fetch(&mut self, pages: &[usize], _ahead: &[usize], out: &mut [u8]) -> Result<(), Trouble> {
        self.0.check()?;
        assert!(!pages.is_empty() && out.len().is_multiple_of(pages.len()));
        let kept = self.0.pages.lock().unwrap();
        let page = out.len() / pages.len();
        for (number, out) in pages.iter().zip(out.chunks_exact_mut(page)) {
            out.copy_from_slice(kept.get(number).expect("only what was stored is fetched"));
        }
        self.0.fetches.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn store(&mut self, pages: &[usize], bytes: &[u8]) -> Result<(), Trouble> {
        self.0.check()?;
        let mut kept = self.0.pages.lock().unwrap();
        for (number, bytes) in pages.iter().zip(bytes.chunks_exact(bytes.len() / pages.len())) {
            assert!(bytes.iter().any(|&byte| byte != 0), "pages of zeros never travel");
            kept.insert(*number, bytes.to_vec());
        }
        self.0.stores.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Keeper<VaultLane> for Arc<Vault> {
    fn tend(&mut self) -> Result<Duration, Cause> {
        Ok(Duration::from_secs(1))
    }

    fn mend(&mut self, lanes: &mut [&mut VaultLane]) -> Result<(), Trouble> {
        assert_eq!(lanes.len(), 3);
        self.mends.fetch_add(1, Ordering::SeqCst);
        if self.stubborn.load(Ordering::SeqCst) > 0 {
            self.stubborn.fetch_sub(1, Ordering::SeqCst);
            return Err(Trouble::Broken(Cause::new(&"not yet")));
        }
        self.broken.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// A region of so many pages over a new vault.
pub(crate) fn region(pages: usize, options: &RegionOptions) -> (Region<VaultLane>, Arc<Vault>) {
    let vault = Arc::new(Vault::default());
    let lanes = (0..3).map(|_| VaultLane(Arc::clone(&vault))).collect();
    let region = Region::new(pages * options.page, lanes, Arc::clone(&vault), options).expect("a region");
    (region, vault)
}
