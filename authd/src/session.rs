//! One session, from the handshake's end to its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use overbank_fabric::channel::{Answer, Bounds, Channel};
use overbank_fabric::handshake::{Party, Peer};
use overbank_fabric::identity::PublicKey;
use overbank_fabric::ids::LeaseId;
use overbank_fabric::message::{Call, Refusal, RefusalCode, Reply, Request, Role, TrustEntry, TrustState};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use crate::audit::{Cause, Entry, Event};
use crate::clock::{Now, millis};
use crate::core::{Asker, Core};
use crate::desk::Turn;
use crate::door::Host;
use crate::hub::Hub;
use crate::shares::{Full, Lane, Place};
use crate::trust::rule;

/// Requests of one session at work at once, by who it is.
/// A provider's: clients' requests take 512 of them at most, so that there is always room for an order to fence.
const IN_FLIGHT_PROVIDER: usize = 1024;
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

/// Who has come in.
pub(crate) struct Guest {
    pub(crate) channel: Channel<TcpStream>,
    pub(crate) peer: Peer,
    pub(crate) from: SocketAddr,
    pub(crate) entry: TrustEntry,
}

/// Serves a peer until it leaves, is revoked or replaced, or the daemon stops.
pub(crate) async fn serve(hub: Arc<Hub>, guest: Guest, mut stop: watch::Receiver<bool>) {
    let Guest { channel, peer, from, entry } = guest;
    let key = peer.key;
    if entry.state == TrustState::Revoked {
        let cause = Cause { who: Some(key), ..Cause::from(from, Now::read()) };
        hub.note(None, cause, Entry::refused("session", RefusalCode::Revoked));
    }
    let mut standing = match Standing::of(&hub, key, Host::from(from.ip()), lane(&entry)) {
        Ok(standing) => standing,
        Err(reason) => return hub.rejected(reason, &from),
    };
    let in_flight = if peer.party == Party::Provider { IN_FLIGHT_PROVIDER } else { IN_FLIGHT_CLIENT };
    let (caller, mut incoming, driver) = channel.multiplex_within(in_flight, standing.bounds());
    let (id, mut signals) = match hub.enter(key, peer.party, caller) {
        Ok(entered) => entered,
        Err(reason) => return hub.rejected(reason, &from),
    };
    // Who was revoked since it was admitted was not found among the sessions to close.
    let still = hub.desk.run(move |core| core.entry(&key)).await.ok().flatten();
    if still.is_some_and(|still| still.state == TrustState::Revoked && entry.state != TrustState::Revoked) {
        hub.leave(id);
        return hub.rejected("revoked", &from);
    }
    let asker = Asker { key, party: peer.party, session: id, from: Some(from), correlation: None };
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
                    Call::Join(_) => match joins.answer(&hub, asker, &standing, request, answer).await {
                        Joined::Yes => {
                            if let Err(reason) = standing.look_again(&hub, key).await {
                                hub.rejected(reason, &from);
                                break;
                            }
                            incoming.widen(standing.bounds());
                        }
                        Joined::No => {}
                        Joined::TooManyTries => {
                            hub.rejected("guessing", &from);
                            break;
                        }
                    },
                    _ => take(&hub, asker, &standing, request, answer),
                },
            },
            _ = signals.close.changed() => { cut_off = true; break }
            _ = stop.changed() => break,
            () = signals.orders.notified() => hub.give_due_orders(key, id, &mut orders).await,
            _ = clock.tick(), if peer.party == Party::Provider => hub.give_due_orders(key, id, &mut orders).await,
            () = signals.standing.notified() => {
                if let Err(reason) = standing.look_again(&hub, key).await {
                    hub.rejected(reason, &from);
                    break;
                }
                incoming.widen(standing.bounds());
            }
            () = standing.time_is_up() => {
                hub.rejected("stranger-time", &from);
                break;
            }
            Some(_) = orders.join_next() => {}
        }
    }
    if cut_off {
        // First: what it asked last is given up below, and it is told nothing more.
        driver.abort();
        let _ = (&mut driver).await;
    }
    // In this order: no new orders come this way, then the provider is away.
    hub.leave(id);
    drop(incoming);
    let closed = move |core: &mut Core| match (core.session_closed(id), Now::read()) {
        (true, now) => core.word(Cause::of(&asker, now), &key, Entry::new(Event::ProviderAway), now),
        (false, _) => Ok(()),
    };
    // Fails only where the desk has ended, and then there is nothing to tell it.
    let _ = hub.desk.run(closed).await;
    if !cut_off && timeout(LAST_WORDS, &mut driver).await.is_err() {
        driver.abort();
    }
    // Orders under way see the session's end and settle what they were for.
    while orders.join_next().await.is_some() {}
    tracing::debug!(session = id.0, "a session is over");
}

/// Works on a request in a task of its own.
fn take(hub: &Arc<Hub>, asker: Asker, standing: &Standing, request: Request, answer: Answer) {
    let turn = standing.turn(hub, asker, &request.call);
    let admitted = match &turn {
        Turn::Request(lane, member) => admit(hub, lane, member, standing.host, &request),
        Turn::Word(provider) if matches!(request.call, Call::Offer(_)) => may_offer(hub, provider),
        _ => Ok((None, Duration::ZERO)),
    };
    match admitted {
        Ok((place, wait)) => {
            let hub = Arc::clone(hub);
            tokio::spawn(async move {
                let (outcome, place) = respond(&hub, asker, turn, request, wait, place).await;
                // In flight until the answer is out: who reads none gets no more of them.
                answer.send_holding(outcome, place);
            });
        }
        Err((reason, text)) => {
            hub.rejected(reason, &asker.key.fingerprint());
            tokio::spawn(answer.send(Err(Refusal::new(RefusalCode::Busy, text))));
        }
    }
}

/// A request's place, and how long it must wait.
type Admitted = (Option<Place<Lane>>, Duration);
/// The name of a limit, and what the asker is told.
type Limit = (&'static str, &'static str);

/// A place among the requests in flight, and how long a request must wait because of what was asked before; else which
/// limit stands against it.
fn admit(hub: &Hub, lane: &Lane, member: &PublicKey, host: Host, request: &Request) -> Result<Admitted, Limit> {
    // What consumers do, at an operator's address also, keeps no operator from looking.
    let (places, host) = match lane {
        Lane::Operator(_) => (&hub.operators, None),
        _ => (&hub.requests, Some(&host)),
    };
    let place = places.take(lane, member).map_err(|full| match full {
        Full::All => ("requests", "too many requests are being worked on: try again in a moment"),
        Full::Lane => ("requests-of-tenant", "your tenant has its share of requests in flight: wait for their answers"),
        Full::Member => ("requests-of-identity", "you have your share of requests in flight: wait for their answers"),
    })?;
    let most = Duration::from_millis(request.deadline_ms.into()).min(MAX_DEADLINE);
    match hub.rates.reserve(member, host, most, std::time::Instant::now()) {
        Some(wait) => Ok((Some(place), wait)),
        None => Err(("request-rate", "you ask more often than is allowed: ask again later, and more slowly")),
    }
}

/// Whether a provider may offer again. Each offer is held against all its leases.
fn may_offer(hub: &Hub, provider: &PublicKey) -> Result<Admitted, Limit> {
    match hub.rates.offer(provider, std::time::Instant::now()) {
        true => Ok((None, Duration::ZERO)),
        false => Err(("offer-rate", "you offer more often than is allowed: keep your session, or offer again later")),
    }
}

/// The outcome of a request, by its deadline, and its line in the log.
async fn respond(
    hub: &Arc<Hub>,
    asker: Asker,
    turn: Turn,
    request: Request,
    wait: Duration,
    place: Option<Place<Lane>>,
) -> (Result<Reply, Refusal>, Option<Place<Lane>>) {
    let (started, received) = (Instant::now(), Now::read());
    let Request { correlation, deadline_ms, call, .. } = request;
    let asker = Asker { correlation: Some(correlation), ..asker };
    let (name, _) = rule(&call);
    let peer = asker.key.fingerprint();
    let span = tracing::error_span!("request", %correlation, %peer, call = name, lease = tracing::field::Empty);
    let trusted = match turn {
        Turn::Request(Lane::Strangers, _) => None,
        _ => Some(asker.key),
    };
    let about = lease_of(&call);
    if let Some(lease) = about {
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
            false => {
                tokio::time::sleep(wait).await;
                let now = if wait.is_zero() { received } else { Now::read() };
                work.work(asker, turn, correlation, call, now, until).await
            }
        };
        (outcome, place)
    };
    let refused = |code, text| (Err(Refusal::new(code, text)), None);
    let (outcome, place) = match timeout_at(started + time, tokio::spawn(task.instrument(span.clone()))).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => refused(RefusalCode::Internal, "the auth daemon failed at this: see its log"),
        Err(_) => refused(RefusalCode::Deadline, "not done in the time that the request gave; it may still happen"),
    };
    let _inside = span.entered();
    let ms = millis(started.elapsed());
    match &outcome {
        Err(refusal) => {
            if matters(refusal.code) {
                let entry = Entry::refused(name, refusal.code);
                hub.note(
                    trusted,
                    Cause::of(&asker, received),
                    about.map_or_else(|| entry.clone(), |it| entry.clone().lease(it)),
                );
            }
            let reason = code_name(refusal.code);
            if let Some(pass) = hub.rejections.count(reason, std::time::Instant::now()) {
                let (rejected_total, unlogged) = (pass.total, pass.unlogged);
                tracing::warn!(reason, rejected_total, unlogged, ms, detail = refusal.message, "rejected");
            }
        }
        Ok(_) if quiet => tracing::debug!(ms, "answered"),
        Ok(_) => {
            if let Some(pass) = hub.answers.count(name, std::time::Instant::now()) {
                tracing::info!(ms, unlogged = pass.unlogged, "answered");
            }
        }
    }
    (outcome, place)
}

/// Whether a refusal goes into the audit log.
fn matters(code: RefusalCode) -> bool {
    use RefusalCode::{BadInvitation, BadSignature, BadToken, Forbidden, Pending, Revoked};
    matches!(code, Pending | Revoked | Forbidden | BadInvitation | BadToken | BadSignature)
}

/// The lease that a call is about, for the log.
fn lease_of(call: &Call) -> Option<LeaseId> {
    match call {
        Call::ShowLease(lease) | Call::ReleaseLease(lease) | Call::LeaseStop(lease) => Some(*lease),
        Call::RenewLease(renew) => Some(renew.lease),
        Call::Attach(attach) => Some(attach.lease),
        _ => None,
    }
}

/// The name of a refusal in `rejected_total` and in the log.
pub(crate) fn code_name(code: RefusalCode) -> &'static str {
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
        RefusalCode::NoSuchProposal => "no-such-proposal",
        RefusalCode::Deadline => "deadline",
        RefusalCode::Busy => "busy",
        RefusalCode::AuditFull => "audit-full",
        RefusalCode::Internal => "internal",
    }
}

/// Wrong invitations so far.
struct BadJoins(u32);

impl BadJoins {
    /// Answers an attempt to join.
    async fn answer(
        &mut self,
        hub: &Arc<Hub>,
        asker: Asker,
        standing: &Standing,
        request: Request,
        answer: Answer,
    ) -> Joined {
        let turn = Turn::Request(standing.lane.clone(), asker.key);
        let (outcome, _) = respond(hub, asker, turn, request, Duration::ZERO, None).await;
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

/// What the peer is trusted as, as far as load is concerned. What it may do is decided for each request.
struct Standing {
    host: Host,
    lane: Lane,
    seat: Seat,
}

/// A session's place among those of its kind.
enum Seat {
    /// Of somebody who is not trusted, and until when.
    Stranger(#[expect(dead_code, reason = "held")] Place<Host>, Instant),
    Consumer(#[expect(dead_code, reason = "held")] Place<Lane>),
    /// Operators and providers find one, as long as they have not too many themselves.
    Reserved,
}

impl Standing {
    /// The error is the reason why there is no place.
    fn of(hub: &Hub, key: PublicKey, host: Host, lane: Lane) -> Result<Self, &'static str> {
        let seat = match lane {
            Lane::Strangers => {
                let place = hub.strangers.take(&host, &key).map_err(|_| "strangers")?;
                Seat::Stranger(place, Instant::now() + STRANGER_TIME)
            }
            Lane::Tenant(_) => Seat::Consumer(hub.sessions.take(&lane, &key).map_err(|full| match full {
                Full::All => "sessions",
                Full::Lane => "sessions-of-tenant",
                Full::Member => "sessions-of-identity",
            })?),
            Lane::Operator(_) | Lane::Providers => Seat::Reserved,
        };
        Ok(Self { host, lane, seat })
    }

    /// Who is not a stranger any more gives its place back for another one, if there is one.
    async fn look_again(&mut self, hub: &Hub, key: PublicKey) -> Result<(), &'static str> {
        let entry = hub.desk.run(move |core| core.entry(&key)).await.ok().flatten();
        let lane = entry.as_ref().map(lane).filter(|lane| *lane != Lane::Strangers && *lane != self.lane);
        if let Some(lane) = lane {
            *self = Self::of(hub, key, self.host, lane)?;
        }
        Ok(())
    }

    async fn time_is_up(&self) {
        match &self.seat {
            Seat::Stranger(_, until) => tokio::time::sleep_until(*until).await,
            Seat::Consumer(_) | Seat::Reserved => std::future::pending().await,
        }
    }

    /// What its requests may take of memory.
    fn bounds(&self) -> Bounds {
        match self.lane {
            Lane::Strangers if cfg!(not(feature = "danger-open-door")) => Bounds { message: 4 << 10, open: 16 << 10 },
            Lane::Tenant(_) => Bounds { message: 64 << 10, open: 256 << 10 },
            Lane::Operator(_) | Lane::Providers | Lane::Strangers => Bounds::default(),
        }
    }

    /// When a call's turn is. Only [`Turn::Request`] and offers can be refused because of load.
    fn turn(&self, hub: &Hub, asker: Asker, call: &Call) -> Turn {
        match self.lane {
            Lane::Providers if asker.party == Party::Provider => Turn::Word(asker.key),
            Lane::Operator(key) if stops(call) && hub.rates.switch(&key, std::time::Instant::now()) => {
                Turn::Switch(key)
            }
            _ => Turn::Request(self.lane.clone(), asker.key),
        }
    }
}

fn lane(entry: &TrustEntry) -> Lane {
    match (entry.state, entry.role, &entry.tenant) {
        (TrustState::Trusted, Some(Role::Operator), _) => Lane::Operator(entry.key),
        (TrustState::Trusted, Some(Role::Provider), _) => Lane::Providers,
        (TrustState::Trusted, Some(Role::Consumer), Some(tenant)) => Lane::Tenant(tenant.clone()),
        _ => Lane::Strangers,
    }
}

/// Whether a call is a kill switch: an operator's is not refused because of load, and waits behind no request.
fn stops(call: &Call) -> bool {
    !cfg!(feature = "danger-no-switches")
        && matches!(
            call,
            Call::TrustRevoke(_)
                | Call::TrustDeny(_)
                | Call::LeaseStop(_)
                | Call::TenantStop(_)
                | Call::ProviderStop(_)
                | Call::ProviderDrain(_)
                | Call::Shutdown
                | Call::ProposalApprove(_)
        )
}
