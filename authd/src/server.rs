//! The listener: who may connect, how many at once, and for how long without saying who they are.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use overbank_fabric::channel;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::Fingerprint;
use overbank_fabric::message::{Role, TrustState};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use crate::audit::outlet::OutletError;
use crate::audit::{Cause, Entry, Event};
use crate::clock::Now;
use crate::core::{Core, Effect, Limits, Load};
use crate::desk::{Desk, Turn};
use crate::door::{Class, Door, Host};
use crate::hub::Hub;
use crate::prover::Prover;
use crate::session::{self, Guest};
use crate::state::State;
use crate::store::StoreError;

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
    /// A file for the audit log cannot be used.
    #[error(transparent)]
    AuditFile(#[from] OutletError),
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
    prover: Prover,
    load: Load,
    effects: mpsc::UnboundedReceiver<Effect>,
    desk: JoinHandle<()>,
    // Last: the directory is free for another daemon only when nothing uses it any more.
    _lock: Option<std::fs::File>,
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
        let State { identity, store, lock, audit_files } = state;
        let identity = Arc::new(identity);
        let mut core = Core::new(store, Arc::clone(&identity), limits, Now::read());
        core.let_out_to(&audit_files)?;
        core.begin_audit(Now::read())?;
        let (desk, effects, thread) = Desk::open(core)?;
        let load = limits.load;
        let hub = Arc::new(Hub::new(desk, load));
        let prover = Prover::start()?;
        Ok(Self { listener, address, identity, hub, prover, load, effects, desk: thread, _lock: lock })
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
        let porter = Arc::new(Porter::new(self.load, self.prover.clone()));
        let mut number = 0_u64;
        let mut clock = tokio::time::interval(Duration::from_secs(1));
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(stop);
        let outcome = loop {
            tokio::select! {
                () = &mut stop => break Ok(()),
                effect = self.effects.recv() => match effect {
                    Some(Effect::Shutdown) => break Ok(()),
                    Some(effect) => self.hub.apply(effect),
                    None => break Err(ServeError::Failed),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        number += 1;
                        let host = Host::from(from.ip());
                        match porter.enter(number, host) {
                            Err(reason) => self.hub.rejected(reason, &from),
                            Ok((class, instead_of)) => {
                                if let Some(reason) = instead_of {
                                    self.hub.rejected(reason, &from);
                                }
                                let coming = Coming { stream, from, class, number, porter: Arc::clone(&porter) };
                                let (hub, identity) = (Arc::clone(&self.hub), Arc::clone(&self.identity));
                                let task = peers.spawn(coming.serve(hub, identity, stopped.clone()));
                                porter.spawned(number, task);
                            }
                        }
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: what is open must end first.
                        self.hub.rejected("accept", &error);
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = peers.join_next() => {}
                _ = clock.tick() => self.hub.keep_in_order(),
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
        self.hub.desk.close();
        self.prover.close();
        // Ends after at most the transaction that it is in.
        let joined = tokio::task::spawn_blocking(move || self.desk.join()).await;
        match joined {
            Ok(Ok(())) => outcome,
            _ => Err(ServeError::Failed),
        }
    }
}

/// A connection whose peer has not proven who it is. Dropped, it leaves its place to others.
struct Coming {
    stream: TcpStream,
    from: SocketAddr,
    /// Of the host that it comes from.
    class: Class,
    number: u64,
    porter: Arc<Porter>,
}

impl Coming {
    /// The handshake, then the session.
    async fn serve(self, hub: Arc<Hub>, identity: Arc<Identity>, stopped: watch::Receiver<bool>) {
        let Self { stream, from, class, number, porter } = self;
        let leaving = Leaving(porter, number);
        let porter = &leaving.0;
        let host = Host::from(from.ip());
        if let Err(error) = tune(&stream) {
            tracing::debug!(%from, %error, "a connection is not tuned");
        }
        let place = porter.prover.place(host, class);
        let (channel, peer) = match timeout(porter.handshake_time, channel::accept_at(stream, &identity, &place)).await
        {
            Err(_) => {
                hub.note(None, Cause::from(from, Now::read()), Entry::new(Event::HandshakeFailed).detail("too slow"));
                return hub.rejected("handshake-time", &from);
            }
            Ok(Err(error)) => {
                let entry = Entry::new(Event::HandshakeFailed).detail(error.to_string());
                hub.note(None, Cause::from(from, Now::read()), entry);
                return hub.rejected("handshake", &format_args!("{from}: {error}"));
            }
            Ok(Ok(proven)) => proven,
        };
        let admitted = hub
            .desk
            .turn(Turn::Arrival(class, host), None, move |core| core.admit(&peer.key, &from.to_string(), Now::read()));
        let Ok(entry) = admitted.await else { return };
        if entry.state == TrustState::Trusted {
            porter.trust(host, entry.role == Some(Role::Operator));
        }
        drop(leaving);
        let span = tracing::error_span!("session", peer = %peer.key.fingerprint(), %from);
        session::serve(hub, Guest { channel, peer, from, entry }, stopped).instrument(span).await;
    }
}

/// Gives a connection's place at the door back when dropped.
struct Leaving(Arc<Porter>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave(self.1);
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

/// Keeps the door.
struct Porter {
    prover: Prover,
    handshake_time: Duration,
    inside: Mutex<(Door, HashMap<u64, AbortHandle>)>,
}

impl Porter {
    fn new(load: Load, prover: Prover) -> Self {
        let door = Door::new(load, std::time::Instant::now());
        Self { prover, handshake_time: load.handshake_time, inside: Mutex::new((door, HashMap::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, (Door, HashMap<u64, AbortHandle>)> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection may come in: then the class of its host, and why another one was dropped for it, if one was.
    fn enter(&self, number: u64, host: Host) -> Result<(Class, Option<&'static str>), &'static str> {
        let mut inside = self.lock();
        let entered = inside.0.enter(number, host, std::time::Instant::now())?;
        let Some((dropped, reason)) = entered.instead_of else { return Ok((entered.class, None)) };
        inside.1.remove(&dropped).inspect(AbortHandle::abort);
        Ok((entered.class, Some(reason)))
    }

    /// The task that serves it, which may have left already.
    fn spawned(&self, number: u64, task: AbortHandle) {
        let mut inside = self.lock();
        if inside.0.is_open(number) {
            inside.1.insert(number, task);
        }
    }

    fn leave(&self, number: u64) {
        let mut inside = self.lock();
        inside.0.leave(number);
        inside.1.remove(&number);
    }

    fn trust(&self, host: Host, operator: bool) {
        self.lock().0.trust(host, operator, std::time::Instant::now());
    }
}
