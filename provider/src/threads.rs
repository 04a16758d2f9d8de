//! The keeper's threads, and what goes between them. The test of their interleavings puts others in this module's place.

pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::{io, process, thread};

/// A thread whose panic ends the process: a provider that no longer fences must not go on lending. Its leases are lost
/// then, and their memory goes back to the kernel.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            if thread::panicking() {
                process::abort();
            }
        }
    }
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _abort = Abort;
            run();
        })
        .map(drop)
}
