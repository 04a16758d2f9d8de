//! Threads of a region's own, which end together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, Thread};

use crate::error::PagingError;

/// Told to stop, woken and waited for when this is dropped.
#[derive(Default)]
pub(crate) struct Threads {
    stop: Arc<AtomicBool>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// One more, until the flag that it is given says stop.
    pub(crate) fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> Result<Thread, PagingError> {
        let stop = Arc::clone(&self.stop);
        let spawned = Builder::new().name(name.to_owned()).spawn(move || body(&stop));
        let handle = spawned.map_err(|source| PagingError::Kernel { what: "starting a thread", source })?;
        let thread = handle.thread().clone();
        self.handles.push(handle);
        Ok(thread)
    }

    /// In a forked child, which does not have them.
    pub(crate) fn forget(&mut self) {
        self.handles.drain(..).for_each(std::mem::forget);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // One that panicked has said so.
            let _ = handle.join();
        }
    }
}
