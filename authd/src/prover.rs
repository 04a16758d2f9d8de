//! The thread on which handshakes are reckoned, so that sessions never wait for strangers' arithmetic. Hosts of operators
//! come first, then those of others who are trusted, and hosts take turns.

use std::time::Instant;

use overbank_fabric::channel::Workplace;
use tokio::sync::oneshot;

use crate::door::{Class, Host};
use crate::line::{Due, Line, Queue};
use crate::turns::Turns;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Waiting([Turns<(), Host, Job>; Class::ALL.len()]);

impl Queue for Waiting {
    type Job = Job;

    fn next(&mut self, _: Instant) -> Due<Job> {
        self.0.iter_mut().find_map(Turns::pop).map_or(Due::Nothing, Due::Now)
    }
}

/// Has handshakes reckoned. What waits is bounded by how many may be under way.
#[derive(Clone)]
pub(crate) struct Prover(Line<Waiting>);

impl Prover {
    /// Starts the thread, which ends with the process or when it is closed.
    pub(crate) fn start() -> std::io::Result<Self> {
        Ok(Self(Line::start("handshakes", Waiting::default(), |job: Job| job())?.0))
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// Where the handshakes of one host are reckoned.
    pub(crate) fn place(&self, host: Host, class: Class) -> Place<'_> {
        Place { prover: self, host, class }
    }
}

/// See [`Prover::place`].
pub(crate) struct Place<'a> {
    prover: &'a Prover,
    host: Host,
    class: Class,
}

impl Workplace for Place<'_> {
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Whoever gave up on it, or was cut off, costs nothing more.
            if !done.is_closed() {
                let _ = done.send(work());
            }
        });
        let pushed = self.prover.0.push(|waiting| waiting.0[self.class as usize].push((), self.host, job));
        if !pushed {
            return None;
        }
        outcome.await.ok()
    }
}
