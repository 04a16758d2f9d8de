//! Signals that ask to stop: the first lets a transfer end cleanly, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::exit::Failure;

/// Whether somebody asked to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP are noticed instead of being deadly.
    pub(crate) fn watch() -> Result<Self, Failure> {
        let failed = Failure::file("watch for signals in", "this process");
        let interrupt = Self::default();
        let noticed = interrupt.0.clone();
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
            Ok(runtime) => runtime,
            Err(error) => return Err(failed(error)),
        };
        let streams = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
        };
        let [Ok(mut int), Ok(mut term), Ok(mut hup)] = streams else {
            let error = streams.into_iter().find_map(Result::err);
            return Err(failed(error.unwrap_or_else(|| std::io::ErrorKind::Other.into())));
        };
        thread::spawn(move || {
            runtime.block_on(async move {
                loop {
                    tokio::select! { _ = int.recv() => {} _ = term.recv() => {} _ = hup.recv() => {} }
                    if noticed.swap(true, Ordering::Relaxed) {
                        std::process::exit(130);
                    }
                }
            });
        });
        Ok(interrupt)
    }

    /// Fails once somebody asked to stop.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.0.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }
}
