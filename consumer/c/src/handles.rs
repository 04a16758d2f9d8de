//! Handles: numbers in the shape of a pointer, looked up and never followed. One that is used after its end, twice, or
//! in the place of another kind's is an error and touches no memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::guard::Failure;

/// No two handles of this process were ever the same, of whatever kind. Odd, so that none looks like a true pointer.
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// All open handles of one kind.
pub(crate) struct Table<T> {
    kind: &'static str,
    open: RwLock<BTreeMap<usize, Arc<T>>>,
}

impl<T> Table<T> {
    /// None yet. `kind`: what people call one.
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self { kind, open: RwLock::new(BTreeMap::new()) }
    }

    /// A new handle for that.
    pub(crate) fn add<H>(&self, value: T) -> *mut H {
        let handle = NEXT.fetch_add(2, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(value));
        std::ptr::without_provenance_mut(handle)
    }

    /// What a handle stands for.
    pub(crate) fn find<H>(&self, handle: *const H) -> Result<Arc<T>, Failure> {
        if handle.is_null() {
            return Err(Failure::usage(format!("the {} is null: give a handle that is open", self.kind)));
        }
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.addr()).cloned().ok_or_else(|| self.closed())
    }

    /// From here on the handle stands for nothing.
    pub(crate) fn remove<H>(&self, handle: *const H) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.addr())
    }

    /// What is wrong with a handle that is not in here.
    pub(crate) fn closed(&self) -> Failure {
        let kind = self.kind;
        Failure::closed(format!(
            "this handle is no open {kind}: it was closed before, or never was one; open a {kind} first"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cup;
    struct Plate;

    #[test]
    fn a_handle_stands_for_what_it_was_made_for_and_after_its_end_for_nothing() {
        static CUPS: Table<u8> = Table::new("cup");
        static PLATES: Table<u8> = Table::new("plate");
        let (cup, other): (*mut Cup, *mut Cup) = (CUPS.add(1), CUPS.add(2));
        let plate: *mut Plate = PLATES.add(3);
        assert!(cup != other && cup.addr() % 2 == 1 && plate.addr() != cup.addr());
        assert_eq!((*CUPS.find(cup).expect("open"), *CUPS.find(other).expect("open")), (1, 2));
        CUPS.find(plate).expect_err("of another kind");
        CUPS.find::<Cup>(std::ptr::null()).expect_err("null");
        CUPS.find::<Cup>(std::ptr::without_provenance(1 << 40)).expect_err("never was one");
        let used = CUPS.find(cup).expect("open");
        assert_eq!(CUPS.remove(cup).as_deref(), Some(&1));
        assert_eq!(*used, 1, "who is in the middle of something keeps it");
        CUPS.find(cup).expect_err("closed");
        assert!(CUPS.remove(cup).is_none());
        let again: *mut Cup = CUPS.add(4);
        assert!(again != cup, "no handle is used twice");
    }
}
