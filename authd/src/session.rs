//! One session, from the handshake's end to its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use overbank_fabric::channel::{Answer, Channel};
use overbank_fabric::handshake::{Party, Peer};
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{Call, Refusal, RefusalCode, Reply, Request, TrustState};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use crate::clock::{Now, millis};
use crate::core::{Asker, Core};
use crate::hub::Hub;
use crate::trust::rule;

/// Requests of one session at work at once, by who it is.
const IN_FLIGHT_PROVIDER: usize = 512;
const IN_FLIGHT_CLIENT: usize = 64;
/// Longest time that a request can ask for.
const MAX_DEADLINE: Duration = Duration::from_secs(30);
/// A session of somebody who is not trusted closes after this long.
const STRANGER_TIME: Duration = Duration::from_secs(60);
/// Wrong invitations in one session, and the time that each costs.
const MAX_BAD_JOINS: u32 = 3;
const BAD_JOIN_DELAY: Duration = Duration::from_millis(200);
/// How often a provider's due orders are looked at without a reason.
const ORDERS_EVERY: Duration = Duration::from_secs(1);
/// How long the last answers have to get out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves a peer until it leaves, is revoked or replaced, or the daemon stops.
pub(crate) async fn serve(
    hub: Arc<Hub>,
    channel: Channel<TcpStream>,
    peer: Peer,
    from: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    let key = peer.key;
    let admitted = hub.desk.run(move |core| core.admit(&key, &from.to_string(), Now::read())).await;
    let Ok(entry) = admitted else { return };
    let Some(mut stranger) = Stranger::enter(&hub, entry.state == TrustState::Trusted) else {
        return hub.rejected("strangers", &from);
    };
    let in_flight = if peer.party == Party::Provider { IN_FLIGHT_PROVIDER } else { IN_FLIGHT_CLIENT };
    let (caller, mut incoming, driver) = channel.multiplex(in_flight);
    let Some((id, mut signals)) = hub.enter(key, caller) else {
        return hub.rejected("sessions", &from);
    };
    let asker = Asker { key, party: peer.party, session: id };
    let mut driver = tokio::spawn(driver);
    let mut joins = BadJoins(0);
    let mut orders = JoinSet::new();
    let mut clock = tokio::time::interval(ORDERS_EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tracing::debug!(session = id.0, state = %entry.state, "a session has begun");
    let mut cut_off = false;
    loop {
        tokio::select! {
            request = incoming.next() => match request {
                None => break,
                Some((request, answer)) => match request.call {
                    // One at a time: guessing is slow.
                    Call::Join(_) => match joins.answer(&hub, asker, request, answer).await {
                        Joined::Yes => stranger = Stranger(None),
                        Joined::No => {}
                        Joined::TooManyTries => {
                            hub.rejected("guessing", &from);
                            break;
                        }
                    },
                    _ => take(&hub, asker, request, answer, &stranger),
                },
            },
            _ = signals.close.changed() => { cut_off = true; break }
            _ = stop.changed() => break,
            () = signals.orders.notified() => hub.give_due_orders(id, &mut orders).await,
            _ = clock.tick(), if peer.party == Party::Provider => hub.give_due_orders(id, &mut orders).await,
            () = stranger.time_is_up() => {
                if stranger.is_still_one(&hub, asker).await {
                    hub.rejected("stranger-time", &from);
                    break;
                }
            }
            Some(_) = orders.join_next() => {}
        }
    }
    // In this order: no new orders come this way, then the provider is away.
    hub.leave(id);
    drop(incoming);
    let closed = move |core: &mut Core| {
        core.session_closed(id);
        Ok::<_, Refusal>(())
    };
    // Fails only where the desk has ended, and then there is nothing to tell it.
    let _ = hub.desk.run(closed).await;
    if cut_off || timeout(LAST_WORDS, &mut driver).await.is_err() {
        driver.abort();
    }
    // Orders under way see the session's end and settle what they were for.
    while orders.join_next().await.is_some() {}
    tracing::debug!(session = id.0, "a session is over");
}

/// Works on a request in a task of its own.
fn take(hub: &Arc<Hub>, asker: Asker, request: Request, answer: Answer, stranger: &Stranger) {
    // A trusted provider's word always counts: its session bounds how much there is of it.
    let slot = match (asker.party, stranger) {
        (Party::Provider, Stranger(None)) => None,
        _ => match Arc::clone(&hub.requests).try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => {
                hub.rejected("requests", &asker.key.fingerprint());
                let text = "too many requests are being worked on: try again in a moment";
                tokio::spawn(answer.send(Err(Refusal::new(RefusalCode::Busy, text))));
                return;
            }
        },
    };
    let hub = Arc::clone(hub);
    tokio::spawn(async move { answer.send(respond(&hub, asker, request, slot).await).await });
}

/// The outcome of a request, by its deadline, and its line in the log.
async fn respond(
    hub: &Arc<Hub>,
    asker: Asker,
    request: Request,
    slot: Option<OwnedSemaphorePermit>,
) -> Result<Reply, Refusal> {
    let (started, received) = (Instant::now(), Now::read());
    let Request { correlation, deadline_ms, call, .. } = request;
    let (name, _) = rule(&call);
    let peer = asker.key.fingerprint();
    let span = tracing::error_span!("request", %correlation, %peer, call = name, lease = tracing::field::Empty);
    if let Some(lease) = lease_of(&call) {
        span.record("lease", tracing::field::display(lease));
    }
    let quiet =
        matches!(call, Call::WhoAmI | Call::Heartbeat(_) | Call::ListLeases | Call::ShowLease(_) | Call::Status);

    let time = Duration::from_millis(deadline_ms.into()).min(MAX_DEADLINE);
    // What a provider is asked meanwhile is given up a little sooner, so that its failure is still told in time.
    let until = started + time - (time / 10).min(Duration::from_millis(250));
    let work = Arc::clone(hub);
    // Never cut off half way: a task that outlives its deadline still settles what it began.
    let task = async move {
        let outcome = match time.is_zero() {
            true => Err(Refusal::new(RefusalCode::Deadline, "the request gave no time at all")),
            false => work.work(asker, correlation, call, received, until).await,
        };
        drop(slot);
        outcome
    };
    let outcome = match timeout_at(started + time, tokio::spawn(task.instrument(span.clone()))).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Refusal::new(RefusalCode::Internal, "the auth daemon failed at this: see its log")),
        Err(_) => {
            Err(Refusal::new(RefusalCode::Deadline, "not done in the time that the request gave; it may still happen"))
        }
    };
    let _inside = span.entered();
    let ms = millis(started.elapsed());
    match &outcome {
        Err(refusal) => {
            let reason = code_name(refusal.code);
            if let Some(pass) = hub.gate.count(reason, std::time::Instant::now()) {
                let (rejected_total, unlogged) = (pass.total, pass.unlogged);
                tracing::warn!(reason, rejected_total, unlogged, ms, detail = refusal.message, "rejected");
            }
        }
        Ok(_) if quiet => tracing::debug!(ms, "answered"),
        Ok(_) => {
            if let Some(pass) = hub.gate.count(name, std::time::Instant::now()) {
                tracing::info!(ms, unlogged = pass.unlogged, "answered");
            }
        }
    }
    outcome
}

/// The lease that a call is about, for the log.
fn lease_of(call: &Call) -> Option<LeaseId> {
    match call {
        Call::ShowLease(lease) | Call::ReleaseLease(lease) => Some(*lease),
        Call::RenewLease(renew) => Some(renew.lease),
        Call::Attach(attach) => Some(attach.lease),
        _ => None,
    }
}

/// The name of a refusal in `rejected_total` and in the log.
fn code_name(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Pending => "pending",
        RefusalCode::Revoked => "revoked",
        RefusalCode::Forbidden => "forbidden",
        RefusalCode::Invalid => "invalid",
        RefusalCode::BadInvitation => "bad-invitation",
        RefusalCode::NoSuchLease => "no-such-lease",
        RefusalCode::LeaseEnded => "lease-ended",
        RefusalCode::LeaseLost => "lease-lost",
        RefusalCode::PoolFull => "pool-full",
        RefusalCode::Quota => "quota",
        RefusalCode::ProviderAway => "provider-away",
        RefusalCode::BadToken => "bad-token",
        RefusalCode::BadSignature => "bad-signature",
        RefusalCode::NoSuchIdentity => "no-such-identity",
        RefusalCode::Deadline => "deadline",
        RefusalCode::Busy => "busy",
        RefusalCode::Internal => "internal",
    }
}

/// Wrong invitations so far.
struct BadJoins(u32);

impl BadJoins {
    /// Answers an attempt to join.
    async fn answer(&mut self, hub: &Arc<Hub>, asker: Asker, request: Request, answer: Answer) -> Joined {
        let outcome = respond(hub, asker, request, None).await;
        let joined = match &outcome {
            Ok(_) => Joined::Yes,
            Err(refusal) if refusal.code == RefusalCode::BadInvitation => {
                self.0 += 1;
                tokio::time::sleep(BAD_JOIN_DELAY).await;
                if self.0 < MAX_BAD_JOINS { Joined::No } else { Joined::TooManyTries }
            }
            Err(_) => Joined::No,
        };
        answer.send(outcome).await;
        joined
    }
}

/// What came of an attempt to join.
enum Joined {
    Yes,
    No,
    TooManyTries,
}

/// The place of somebody who is not trusted, as long as that is so.
struct Stranger(Option<(OwnedSemaphorePermit, Instant)>);

impl Stranger {
    /// `None` where there are too many of them.
    fn enter(hub: &Hub, trusted: bool) -> Option<Self> {
        if trusted {
            return Some(Self(None));
        }
        let permit = Arc::clone(&hub.strangers).try_acquire_owned().ok()?;
        Some(Self(Some((permit, Instant::now() + STRANGER_TIME))))
    }

    async fn time_is_up(&self) {
        match &self.0 {
            Some((_, until)) => tokio::time::sleep_until(*until).await,
            None => std::future::pending().await,
        }
    }

    /// Whether the peer is not trusted to this day; gives its place back where it is.
    async fn is_still_one(&mut self, hub: &Hub, asker: Asker) -> bool {
        let trusted = hub.desk.run(move |core| core.is_trusted(&asker.key)).await.unwrap_or(false);
        if trusted {
            self.0 = None;
        }
        !trusted
    }
}
