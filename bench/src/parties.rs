//! Consumers and operators as the auth daemon sees them: sessions with many requests at once, for measurements of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use overbank_fabric::channel::{self, CallError, Caller};
use overbank_fabric::handshake::Party as Kind;
use overbank_fabric::identity::Identity;
use overbank_fabric::ids::CorrelationId;
use overbank_fabric::message::{Call, Invite, Join, RefusalCode, Reply, Role};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::error::BenchError;

/// Most requests of one session at once.
const IN_FLIGHT: usize = 64;
/// For a request that is not measured: under load it waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session with the auth daemon.
pub(crate) struct Party {
    pub(crate) identity: Identity,
    caller: Caller,
}

/// A runtime for sessions, on this thread alone.
pub(crate) fn runtime() -> Result<Runtime, BenchError> {
    Builder::new_current_thread().enable_all().build().map_err(BenchError::io("start a runtime"))
}

impl Party {
    /// Opens a session.
    pub(crate) async fn connect(authd: &str, identity: Identity) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(authd).await.map_err(BenchError::io(format!("connect to {authd}")))?;
        stream.set_nodelay(true).map_err(BenchError::io("set up a connection"))?;
        let connected = timeout(PATIENCE, channel::connect(stream, &identity, Kind::Client, |_| Ok(()))).await;
        let connected = connected.map_err(|_| BenchError::Silent { what: "the auth daemon", after: PATIENCE })?;
        let (channel, _) = connected.map_err(|error| failed("the handshake", &error))?;
        let (caller, incoming, driver) = channel.multiplex(IN_FLIGHT);
        tokio::spawn(async move {
            // It asks nothing of a client.
            let _incoming = incoming;
            driver.await;
        });
        Ok(Self { identity, caller })
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn call(&self, what: &'static str, call: Call) -> Result<Reply, BenchError> {
        self.try_call(call).await.map_err(|error| failed(what, &error))
    }

    async fn try_call(&self, call: Call) -> Result<Reply, CallError> {
        let deadline = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
        self.caller.call(CorrelationId::random(), deadline, call).await
    }

    /// An operator lets somebody new in, as a consumer of this tenant.
    pub(crate) async fn let_in(&self, authd: &str, tenant: &str) -> Result<Self, BenchError> {
        let tenant = Some(tenant.parse().map_err(|error| failed("naming a tenant", &error))?);
        let invite = Invite { role: Role::Consumer, tenant, ttl_ms: 60_000 };
        let Reply::Invitation(invitation) = self.call("an invitation", Call::TrustInvite(invite)).await? else {
            return Err(failed("an invitation", &"something else came"));
        };
        let party = Self::connect(authd, Identity::generate()).await?;
        party.call("joining", Call::Join(Join { secret: invitation.secret })).await?;
        Ok(party)
    }
}

/// An error of the control plane.
pub(crate) fn failed(what: &str, error: &dyn std::fmt::Display) -> BenchError {
    BenchError::Child { program: "overbank-authd".to_owned(), what: format!("failed at {what}: {error}") }
}

/// Tenants whose requests keep the auth daemon busy, and identities of each.
const TENANTS: usize = 8;
const MEMBERS: usize = 2;

/// Requests that are always pending, until this is dropped.
pub(crate) struct Pressure {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    pending: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Pressure {
    /// Sixteen identities of eight tenants, which together have `requests` in flight all the time, on a thread of their own.
    pub(crate) async fn start(operator: &Party, authd: &str, requests: usize) -> Result<Self, BenchError> {
        let mut sessions = Vec::new();
        for at in 0..if requests == 0 { 0 } else { TENANTS * MEMBERS } {
            sessions.push(operator.let_in(authd, &format!("crowd{}", at % TENANTS)).await?.identity);
        }
        let counts = Arc::new(Counts::default());
        let (shared, authd) = (Arc::clone(&counts), authd.to_owned());
        let runtime = runtime()?;
        let work = move || {
            runtime.block_on(async move {
                let all = sessions.len();
                for (at, identity) in sessions.into_iter().enumerate() {
                    let Ok(party) = Party::connect(&authd, identity).await else { return };
                    let party = Arc::new(party);
                    for _ in 0..requests / all + usize::from(at < requests % all) {
                        let (party, counts) = (Arc::clone(&party), Arc::clone(&shared));
                        tokio::spawn(async move { counts.ask(&party).await });
                    }
                }
                while !shared.stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        };
        let thread = std::thread::Builder::new().name("crowd".to_owned()).spawn(work);
        Ok(Self { counts, thread: Some(thread.map_err(BenchError::io("start a thread"))?) })
    }

    /// Requests that wait for their answer at this moment.
    pub(crate) fn pending(&self) -> u64 {
        self.counts.pending.load(Ordering::Relaxed)
    }

    /// Requests that were answered, and that were refused, since the beginning.
    pub(crate) fn done(&self) -> (u64, u64) {
        (self.counts.answered.load(Ordering::Relaxed), self.counts.refused.load(Ordering::Relaxed))
    }
}

impl Counts {
    /// Asks again and again.
    async fn ask(&self, party: &Party) {
        while !self.stop.load(Ordering::Relaxed) {
            self.pending.fetch_add(1, Ordering::Relaxed);
            let outcome = party.try_call(Call::Status).await;
            self.pending.fetch_sub(1, Ordering::Relaxed);
            match outcome {
                Ok(_) => self.answered.fetch_add(1, Ordering::Relaxed),
                Err(CallError::Refused(refusal)) => {
                    if refusal.code == RefusalCode::Busy {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    self.refused.fetch_add(1, Ordering::Relaxed)
                }
                Err(CallError::Channel(_)) => return,
            };
        }
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}
