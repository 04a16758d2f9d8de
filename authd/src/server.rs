//! The listener: who may connect, how many at once, and for how long without saying who they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use overbank_fabric::channel;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Fingerprint;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use crate::clock::Now;
use crate::core::{Core, Effect, Limits};
use crate::desk::Desk;
use crate::hub::Hub;
use crate::session;
use crate::state::State;
use crate::store::StoreError;

/// Connections whose peer has not proven who it is. One more, and the oldest of them is dropped.
const MAX_HANDSHAKES: usize = 256;
/// Time to prove it.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Time that everything under way has to end when the daemon stops.
const STOP_TIME: Duration = Duration::from_millis(1500);
/// A silent connection is probed after this many seconds, this often, and dropped after as many failures.
const KEEPALIVE: (u32, u32, u32) = (30, 10, 3);

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is in use, not this machine's, or privileged.
    #[error("cannot listen on {address}: give another --listen ADDRESS:PORT, or stop what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The store failed at the start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread, no socket address.
    #[error("the operating system refused")]
    System(#[from] std::io::Error),
    /// The thread of the decisions died. What was acknowledged is in the store.
    #[error("the auth daemon failed and stops, so that nothing is decided halfway: its log says why; start it again")]
    Failed,
}

/// The auth daemon, listening.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    identity: Arc<Identity>,
    hub: Arc<Hub>,
    effects: mpsc::UnboundedReceiver<Effect>,
    desk: JoinHandle<()>,
    // Last: the directory is free for another daemon only when nothing uses it any more.
    _lock: std::fs::File,
}

impl Server {
    /// Takes up a state and listens. Port 0 takes any free port.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind(state: State, address: SocketAddr, limits: Limits) -> Result<Self, ServeError> {
        let listen = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr()?;
        let State { identity, store, lock } = state;
        let identity = Arc::new(identity);
        let core = Core::new(store, Arc::clone(&identity), limits, Now::read());
        let (desk, effects, thread) = Desk::open(core)?;
        let hub = Arc::new(Hub::new(desk));
        Ok(Self { listener, address, identity, hub, effects, desk: thread, _lock: lock })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who it is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.public().fingerprint()
    }

    /// Serves until `stop` is done, then lets what is under way end, for at most 2 s.
    ///
    /// # Errors
    /// [`ServeError::Failed`].
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let (stopping, stopped) = watch::channel(false);
        let mut peers = JoinSet::new();
        let handshakes = Handshakes::default();
        let mut number = 0_u64;
        tokio::pin!(stop);
        let outcome = loop {
            tokio::select! {
                () = &mut stop => break Ok(()),
                effect = self.effects.recv() => match effect {
                    Some(effect) => self.hub.apply(effect),
                    None => break Err(ServeError::Failed),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        number += 1;
                        if let Some(dropped) = handshakes.make_room() {
                            self.hub.rejected("connections", &dropped);
                        }
                        let serving = serve(
                            Arc::clone(&self.hub),
                            Arc::clone(&self.identity),
                            (stream, from),
                            stopped.clone(),
                            (handshakes.clone(), number),
                        );
                        handshakes.begin(number, from);
                        handshakes.spawned(number, peers.spawn(serving));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: what is open must end first.
                        self.hub.rejected("accept", &error);
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = peers.join_next() => {}
            }
        };
        drop(self.listener);
        stopping.send_replace(true);
        let under_way = async {
            loop {
                tokio::select! {
                    Some(effect) = self.effects.recv() => self.hub.apply(effect),
                    left = peers.join_next() => if left.is_none() { break },
                }
            }
        };
        if timeout(STOP_TIME, under_way).await.is_err() {
            tracing::warn!(sessions = peers.len(), "cut off what did not end in time");
        }
        peers.shutdown().await;
        self.hub.desk.close().await;
        // Ends after at most the transaction that it is in.
        let joined = tokio::task::spawn_blocking(move || self.desk.join()).await;
        match joined {
            Ok(Ok(())) => outcome,
            _ => Err(ServeError::Failed),
        }
    }
}

/// One connection: the handshake, then the session.
async fn serve(
    hub: Arc<Hub>,
    identity: Arc<Identity>,
    (stream, from): (TcpStream, SocketAddr),
    stopped: watch::Receiver<bool>,
    (handshakes, number): (Handshakes, u64),
) {
    if let Err(error) = tune(&stream) {
        tracing::debug!(%from, %error, "a connection is not tuned");
    }
    let outcome = timeout(HANDSHAKE_TIME, channel::accept(stream, &identity)).await;
    handshakes.end(number);
    match outcome {
        Err(_) => hub.rejected("handshake-time", &from),
        Ok(Err(error)) => hub.rejected("handshake", &format_args!("{from}: {error}")),
        Ok(Ok((channel, peer))) => {
            let span = tracing::error_span!("session", peer = %peer.key.fingerprint(), %from);
            session::serve(hub, channel, peer, from, stopped).instrument(span).await;
        }
    }
}

/// Answers go out at once, and peers that vanished are noticed.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &count)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &((idle + interval * count) * 1000))?;
    Ok(())
}

/// Connections in their handshake, by number, the oldest first.
#[derive(Clone, Default)]
struct Handshakes(Arc<Mutex<BTreeMap<u64, Handshake>>>);

struct Handshake {
    from: SocketAddr,
    /// None for the moment until its task is spawned.
    task: Option<AbortHandle>,
}

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Handshake>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the oldest where there is no room for one more. An honest handshake takes milliseconds, so that the oldest
    /// of very many is not one.
    fn make_room(&self) -> Option<SocketAddr> {
        let mut open = self.lock();
        if open.len() < MAX_HANDSHAKES {
            return None;
        }
        let (_, oldest) = open.pop_first()?;
        oldest.task.inspect(AbortHandle::abort);
        Some(oldest.from)
    }

    fn begin(&self, number: u64, from: SocketAddr) {
        self.lock().insert(number, Handshake { from, task: None });
    }

    /// The task that does it; it may be through with it already.
    fn spawned(&self, number: u64, task: AbortHandle) {
        if let Some(handshake) = self.lock().get_mut(&number) {
            handshake.task = Some(task);
        }
    }

    fn end(&self, number: u64) {
        self.lock().remove(&number);
    }
}
