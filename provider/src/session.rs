//! The provider's session with the auth daemon: offer, heartbeats and receipts one way, orders the other. It is made
//! again whenever it breaks; leases do not depend on it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overbank_fabric::channel::{self, CallError, Caller, ChannelError, Incoming};
use overbank_fabric::handshake::Party;
use overbank_fabric::identity::{Identity, PublicKey};
use overbank_fabric::ids::{BootId, CorrelationId};
use overbank_fabric::message::{Call, Join, Offer, Refusal, RefusalCode, Reply, Rotate, TrustState};
use overbank_fabric::signed::Signed;
use overbank_fabric::succession::{Handover, learn};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior, timeout};
use zeroize::Zeroizing;

use crate::attach::Gate;
use crate::backend::Backend;
use crate::keeper::Keeper;
use crate::known_authd::{KnownAuthd, PinError};
use crate::orders;
use crate::own_key::OwnKey;

/// For a TCP connection, and again for the handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer to a call.
const CALL: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Until a receipt that was refused for the moment is sent again.
const RECEIPT_AGAIN: Duration = Duration::from_secs(5);
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(5);
/// Requests open at once, each way: 512 of clients, and as many that the auth daemon gives by itself, to fence.
const IN_FLIGHT: usize = 1024;
/// Receipts asked of the keeper at once.
const BATCH: usize = 64;

/// Why a session came to its end, or to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody answers there.
    #[error("the auth daemon at {authd} cannot be reached: {source}")]
    Unreachable {
        /// Its address.
        authd: String,
        /// The cause.
        source: io::Error,
    },
    /// Another auth daemon than the pinned one, or the pin cannot be kept.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The session broke, or never came about.
    #[error("the session with the auth daemon at {authd} ended: {source}")]
    Channel {
        /// Its address.
        authd: String,
        /// The cause.
        source: ChannelError,
    },
    /// No answer in time.
    #[error("the auth daemon did not answer {0} in time")]
    Silent(&'static str),
    /// It answered something else than was asked.
    #[error("the auth daemon gave an answer that does not fit {0}")]
    Confused(&'static str),
    /// It refuses.
    #[error("the auth daemon refuses {what}: {refusal}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        refusal: Refusal,
    },
    /// It has a new key, which the old one has signed: the next session is with that.
    #[error("the auth daemon has a new key")]
    Followed,
    /// This provider has a new key, which the auth daemon has taken: the next session is with that.
    #[error("this provider has a new key")]
    NewKey,
    /// The thread that keeps the leases has ended.
    #[error("the provider is shutting down")]
    Stopping,
}

impl SessionError {
    /// Whether trying again leads nowhere.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Pin(_) | Self::Stopping => true,
            Self::Refused { refusal, .. } => matches!(
                refusal.code,
                RefusalCode::Revoked | RefusalCode::Forbidden | RefusalCode::BadInvitation | RefusalCode::Invalid
            ),
            _ => false,
        }
    }

    fn is_pending(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.code == RefusalCode::Pending)
    }
}

/// What people should be told, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The offer was accepted for the first time.
    Ready,
    /// An operator has to approve this provider first.
    WaitingForApproval,
}

/// What an offer says that does not change.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This life.
    pub boot: BootId,
    /// Bytes of the pool.
    pub pool_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// The device in plain words.
    pub device: String,
}

/// One provider's link to its auth daemon.
pub struct Link<B: Backend> {
    /// Address of the auth daemon, `HOST:PORT`.
    pub authd: String,
    /// Which one it is.
    pub known: KnownAuthd,
    /// Who this is.
    pub key: OwnKey,
    /// Secret of an invitation, to join with where this identity is not yet trusted.
    pub invitation: Option<Zeroizing<[u8; 16]>>,
    /// The leases.
    pub keeper: Keeper<B>,
    /// What is offered.
    pub facts: Facts,
}

impl<B: Backend> Link<B> {
    /// Keeps a session up until trying again leads nowhere; as long as leases are held it is tried nevertheless.
    pub async fn run(mut self, mut news: impl FnMut(News)) -> SessionError {
        let (mut accepted, mut waiting) = (false, false);
        let mut backoff = *BACKOFF.start();
        loop {
            let mut offered = false;
            let error = self
                .session(|| {
                    offered = true;
                    if !std::mem::replace(&mut accepted, true) {
                        news(News::Ready);
                    }
                })
                .await;
            if offered {
                backoff = *BACKOFF.start();
            }
            if error.is_pending() {
                if !std::mem::replace(&mut waiting, true) {
                    news(News::WaitingForApproval);
                }
            } else if !error.is_final() || self.key.has_next() {
                tracing::warn!(%error, "no session with the auth daemon; trying again");
            } else if self.keeper.look().await.is_some_and(|(_, held)| !held.is_empty()) {
                tracing::error!(%error, "no session with the auth daemon; leases go on until their deadlines");
            } else {
                return error;
            }
            time::sleep(backoff.mul_f64(jitter())).await;
            backoff = (backoff * 2).min(*BACKOFF.end());
        }
    }

    /// One session, from the connection to its end.
    async fn session(&mut self, offered: impl FnOnce()) -> SessionError {
        if self.known.pinned().is_some() {
            self.take_next_key().await;
        }
        match self.connect().await {
            Ok((gate, caller, incoming, driver)) => {
                let broken = |source| SessionError::Channel { authd: self.authd.clone(), source };
                tokio::select! {
                    reason = driver => broken(reason),
                    never = take_orders(&self.keeper, gate, incoming) => match never {},
                    error = self.talk(&caller, offered) => error,
                    error = self.new_key() => error,
                }
            }
            Err(error) => error,
        }
    }

    /// Hands over to a new key as soon as there is one, beside the session of the old one, which ends by it.
    async fn new_key(&self) -> SessionError {
        loop {
            time::sleep(HEARTBEAT).await;
            if let Some(next) = self.next_key()
                && self.hand_over(&next).await
            {
                return SessionError::NewKey;
            }
        }
    }

    /// Is the new key, where there is one, if the auth daemon takes it or has taken it.
    async fn take_next_key(&mut self) {
        let Some(next) = self.next_key() else { return };
        if next.public() != self.key.identity().public() && !self.hand_over(&next).await {
            return;
        }
        let old = self.key.identity().public().fingerprint();
        if let Err(error) = self.key.take_next(next) {
            tracing::error!(%error, "the new key is not in its place: the next start hands over once more");
        }
        self.keeper.take_key(Arc::clone(self.key.identity()));
        let new = self.key.identity().public().fingerprint();
        tracing::warn!(%old, %new, "a new key has taken over; what was lent before goes on by the old one");
    }

    fn next_key(&self) -> Option<Identity> {
        self.key.next().unwrap_or_else(|error| {
            tracing::error!(%error, "there is a new key, and it cannot be used");
            None
        })
    }

    /// Has the auth daemon take a key in place of this one, over a session of its own; whether it has. It is asked again
    /// where that is not known, and not where it will never do it.
    async fn hand_over(&self, next: &Identity) -> bool {
        let Err(error) = self.ask_to_take(next).await else { return true };
        match &error {
            SessionError::Refused { refusal, .. } if !is_passing(refusal.code) => {
                tracing::error!(%error, "the auth daemon takes no new key: it is removed, and this provider goes on");
                self.key.forget_next();
            }
            _ => tracing::warn!(%error, "not handed over to the new key yet"),
        }
        false
    }

    async fn ask_to_take(&self, next: &Identity) -> Result<(), SessionError> {
        let broken = |source| SessionError::Channel { authd: self.authd.clone(), source };
        let check = |key: &PublicKey| self.known.check(key.fingerprint()).map_err(|error| error.to_string());
        let stream = self.dial().await?;
        let connected = timeout(CONNECT, channel::connect(stream, next, Party::Provider, check)).await;
        let (mut channel, peer) =
            connected.map_err(|_| SessionError::Silent("the new key's handshake"))?.map_err(broken)?;
        let old = self.key.identity();
        let handover = Signed::<Handover>::to(&peer.key, old, &next.public(), unix_ms());
        let call = Call::Rotate(Rotate { old: old.public(), handover });
        match timeout(CALL, channel.call(CorrelationId::random(), call_ms(), call)).await {
            Ok(Ok(Reply::You(entry))) if entry.key == next.public() => Ok(()),
            Ok(Ok(_)) => Err(SessionError::Confused("the new key")),
            Ok(Err(CallError::Refused(refusal))) => Err(SessionError::Refused { what: "the new key", refusal }),
            Ok(Err(CallError::Channel(source))) => Err(broken(source)),
            Err(_) => Err(SessionError::Silent("the new key")),
        }
    }

    /// A connection to the auth daemon.
    async fn dial(&self) -> Result<TcpStream, SessionError> {
        let unreachable = |source| SessionError::Unreachable { authd: self.authd.clone(), source };
        let stream = timeout(CONNECT, TcpStream::connect(&self.authd))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(stream)
    }

    /// Where the pinned key has signed another, from now on obeys that one; false where it has not.
    async fn follow(&mut self) -> Result<bool, SessionError> {
        let Some(pinned) = self.known.pinned() else { return Ok(false) };
        let stream = self.dial().await?;
        let Ok(Some((key, former))) = timeout(CONNECT, learn(stream, &pinned)).await else { return Ok(false) };
        self.known.follow(key.fingerprint(), former)?;
        tracing::warn!(old = %pinned, new = %key.fingerprint(), kept_in = ?self.known.path(),
            "the auth daemon has a new key, which its old one has signed: the new one is pinned");
        Ok(true)
    }

    async fn connect(
        &mut self,
    ) -> Result<(Gate, Caller, Incoming, impl Future<Output = ChannelError> + use<B>), SessionError> {
        let stream = self.dial().await?;
        let mut pin = Ok(());
        let check = |key: &PublicKey| {
            pin = self.known.check(key.fingerprint());
            pin.as_ref().map_err(ToString::to_string).copied()
        };
        let connected = timeout(CONNECT, channel::connect(stream, self.key.identity(), Party::Provider, check)).await;
        if let Err(changed) = pin {
            return Err(match self.follow().await? {
                true => SessionError::Followed,
                false => changed.into(),
            });
        }
        let (channel, peer) = connected
            .map_err(|_| SessionError::Silent("the handshake"))?
            .map_err(|source| SessionError::Channel { authd: self.authd.clone(), source })?;
        let fingerprint = peer.key.fingerprint();
        if self.known.keep(fingerprint)? {
            tracing::warn!(
                authd = self.authd,
                %fingerprint,
                kept_in = ?self.known.path(),
                "first contact with the auth daemon: compare the fingerprint with the one it prints at its start"
            );
        }
        let (caller, incoming, driver) = channel.multiplex(IN_FLIGHT);
        let former = self.known.former().to_vec();
        let gate = Gate { authd: peer.key, former, provider: self.key.all(), boot: self.facts.boot };
        Ok((gate, caller, incoming, driver))
    }

    async fn talk(&self, caller: &Caller, offered: impl FnOnce()) -> SessionError {
        if let Err(error) = self.introduce(caller).await {
            return error;
        }
        tracing::info!(authd = self.authd, "offer accepted");
        offered();
        tokio::select! {
            error = self.beat(caller) => error,
            error = self.deliver(caller) => error,
        }
    }

    async fn introduce(&self, caller: &Caller) -> Result<(), SessionError> {
        if let Some(secret) = &self.invitation {
            let Reply::You(me) = self.call(caller, "who this is", Call::WhoAmI).await? else {
                return Err(SessionError::Confused("who this is"));
            };
            if me.state == TrustState::Pending {
                self.call(caller, "the invitation", Call::Join(Join { secret: **secret })).await?;
            }
        }
        let (heartbeat, leases) = self.keeper.look().await.ok_or(SessionError::Stopping)?;
        let Facts { boot, pool_bytes, page_bytes, device } = self.facts.clone();
        let offer = Offer { boot, heartbeat, pool_bytes, page_bytes, device, leases };
        self.done(caller, "the offer", Call::Offer(offer)).await
    }

    async fn beat(&self, caller: &Caller) -> SessionError {
        let mut ticks = time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some((heartbeat, _)) = self.keeper.look().await else { return SessionError::Stopping };
            match self.done(caller, "a heartbeat", Call::Heartbeat(heartbeat)).await {
                Err(SessionError::Refused { refusal, .. }) if refusal.code == RefusalCode::Busy => {}
                Err(error) => return error,
                Ok(()) => {}
            }
        }
    }

    /// Sends receipts until each is acknowledged.
    async fn deliver(&self, caller: &Caller) -> SessionError {
        loop {
            let mut after = None;
            loop {
                let batch = self.keeper.receipts(after, BATCH).await;
                for (lease, receipt) in &batch {
                    after = Some(*lease);
                    match self.done(caller, "a receipt", Call::Ended(receipt.clone())).await {
                        Ok(()) => self.keeper.acknowledge(*lease),
                        Err(SessionError::Refused { refusal, .. }) => match refusal.code {
                            RefusalCode::NoSuchLease | RefusalCode::Invalid | RefusalCode::BadSignature => {
                                tracing::error!(%lease, %refusal, "the auth daemon will not have this receipt");
                                self.keeper.acknowledge(*lease);
                            }
                            _ => tracing::warn!(%lease, %refusal, "receipt not taken yet"),
                        },
                        Err(error) => return error,
                    }
                }
                if batch.len() < BATCH {
                    break;
                }
            }
            // Either there are new ones, or it is time for those that were not taken.
            let _ = timeout(RECEIPT_AGAIN, self.keeper.receipt_made()).await;
        }
    }

    async fn done(&self, caller: &Caller, what: &'static str, call: Call) -> Result<(), SessionError> {
        match self.call(caller, what, call).await? {
            Reply::Done => Ok(()),
            _ => Err(SessionError::Confused(what)),
        }
    }

    async fn call(&self, caller: &Caller, what: &'static str, call: Call) -> Result<Reply, SessionError> {
        match timeout(CALL, caller.call(CorrelationId::random(), call_ms(), call)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(CallError::Refused(refusal))) => Err(SessionError::Refused { what, refusal }),
            Ok(Err(CallError::Channel(source))) => Err(SessionError::Channel { authd: self.authd.clone(), source }),
            Err(_) => Err(SessionError::Silent(what)),
        }
    }
}

/// Carries out orders, many at a time, as long as the session lives.
async fn take_orders<B: Backend>(keeper: &Keeper<B>, gate: Gate, mut incoming: Incoming) -> std::convert::Infallible {
    let (mut orders, gate) = (JoinSet::new(), Arc::new(gate));
    while let Some((request, answer)) = incoming.next().await {
        let (keeper, gate) = (keeper.clone(), Arc::clone(&gate));
        orders.spawn(async move { answer.send(orders::carry_out(&keeper, &gate, request).await).await });
        while orders.try_join_next().is_some() {}
    }
    // The driver says why.
    std::future::pending().await
}

fn call_ms() -> u32 {
    u32::try_from(CALL.as_millis()).unwrap_or(u32::MAX)
}

/// Whether it may be otherwise when asked again.
fn is_passing(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::Busy | RefusalCode::AuditFull | RefusalCode::Deadline | RefusalCode::Internal)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// 0.5 to 1.5, so that providers that lost the same auth daemon do not all come back at once.
fn jitter() -> f64 {
    0.5 + RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}
