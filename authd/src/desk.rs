//! The one thread on which decisions are made and written down, so that no task of the network waits for a disk.

use std::thread::JoinHandle;

use overbank_fabric::message::{Refusal, RefusalCode};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::core::{Core, Effect, Fault};

/// Decisions that wait their turn.
const QUEUE: usize = 1024;

enum Job {
    Do(Box<dyn FnOnce(&mut Core) + Send>),
    Stop,
}

/// Has work done on the thread of the decisions.
#[derive(Clone)]
pub(crate) struct Desk {
    jobs: mpsc::Sender<Job>,
}

impl Desk {
    /// Starts the thread. What must happen outside comes out of the receiver, which ends when the thread does.
    pub(crate) fn open(mut core: Core) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Effect>, JoinHandle<()>)> {
        let (jobs, mut queue) = mpsc::channel(QUEUE);
        let (effects, happening) = mpsc::unbounded_channel();
        let work = move || {
            while let Some(Job::Do(job)) = queue.blocking_recv() {
                job(&mut core);
                for effect in core.take_effects() {
                    // Fails only where the server has stopped, and then nothing of it matters any more.
                    let _ = effects.send(effect);
                }
            }
        };
        let thread = std::thread::Builder::new().name("desk".to_owned()).spawn(work)?;
        Ok((Self { jobs }, happening, thread))
    }

    /// Does `work` there, in its turn. It is done even where the future is dropped while it waits for the outcome.
    pub(crate) async fn run<T: Send + 'static, E: Into<Fault>>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (outcome, done) = oneshot::channel();
        let span = Span::current();
        let job = move |core: &mut Core| {
            let _inside = span.entered();
            let result = work(core).map_err(|error| refusal(error.into()));
            // Nobody may be waiting any more, which is their right.
            let _ = outcome.send(result);
        };
        let stopping = || Refusal::new(RefusalCode::Internal, "the auth daemon is stopping: try again");
        self.jobs.send(Job::Do(Box::new(job))).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?
    }

    /// Ends the thread after what was asked of it so far.
    pub(crate) async fn close(&self) {
        // Fails only where it has ended already.
        let _ = self.jobs.send(Job::Stop).await;
    }
}

/// What the asker is told of a fault; what it is not told is logged here.
fn refusal(fault: Fault) -> Refusal {
    match fault {
        Fault::Refused(refusal) => refusal,
        Fault::Store(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::error!(%error, cause, "nothing was decided: the store failed");
            Refusal::new(RefusalCode::Internal, "the auth daemon could not write its decision down: see its log")
        }
    }
}
