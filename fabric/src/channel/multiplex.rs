//! Many requests at once, both ways, over one session.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{CallError, Channel, ChannelError, decode, frame};
use crate::ids::CorrelationId;
use crate::message::{Call, Message, Refusal, RefusalCode, Reply, Request, Response};
use crate::signed::to_cbor;

/// Most requests that can be open in each direction.
const IN_FLIGHT_MAX: usize = 1 << 16;
/// What the other side's requests may take of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a message, at most 1 MiB.
    pub message: usize,
    /// Bytes that all open requests have together, as they came.
    pub open: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { message: frame::MESSAGE_MAX, open: 4 << 20 }
    }
}

/// Abandoned calls whose late answers are still recognized. An answer to one longer forgotten ends the session.
const ABANDONED_MAX: usize = 4096;

/// Held by all who can still use the session; when the last is gone, so is the session.
type Alive = mpsc::Sender<Infallible>;

/// Asks.
#[derive(Clone)]
pub struct Caller {
    session: Arc<Session>,
    requests: mpsc::Sender<Encoded>,
    /// Sent before those.
    ahead: mpsc::Sender<Encoded>,
    _alive: Alive,
}

/// Requests of the other side, in order of arrival.
pub struct Incoming {
    requests: mpsc::Receiver<(Request, Answer)>,
    longest: Arc<AtomicUsize>,
    bytes: Arc<Semaphore>,
    bounds: Bounds,
    _alive: Alive,
}

/// Answers one request; dropping it answers [`RefusalCode::Internal`].
pub struct Answer {
    id: u64,
    /// Room for the answer, set aside when the request came: an answer never waits.
    room: Option<mpsc::OwnedPermit<Encoded>>,
    /// The request's share of what open requests may have.
    _bytes: OwnedSemaphorePermit,
    _alive: Alive,
}

/// A message ready to be sealed, and the id of its request.
struct Encoded {
    id: u64,
    message: Vec<u8>,
    /// Dropped when the message is sent, or given up.
    held: Option<Box<dyn Send>>,
}

/// What the callers and the driver share.
struct Session {
    slots: Semaphore,
    next_id: AtomicU64,
    calls: Mutex<Calls>,
}

/// One's own requests.
#[derive(Default)]
struct Calls {
    waiting: HashMap<u64, oneshot::Sender<Result<Reply, Refusal>>>,
    abandoned: BTreeSet<u64>,
    /// Why the session is over, once it is.
    over: Option<ChannelError>,
}

impl Session {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Why the session is over.
    fn reason(&self) -> ChannelError {
        self.calls().over.clone().unwrap_or(ChannelError::Closed)
    }

    /// Wakes everybody who waits for an answer; the first reason stays.
    fn end(&self, reason: ChannelError) {
        let mut calls = self.calls();
        calls.over.get_or_insert(reason);
        calls.waiting.clear();
        self.slots.close();
    }

    fn settle(&self, response: Response) -> Result<(), ChannelError> {
        let mut calls = self.calls();
        if let Some(waiting) = calls.waiting.remove(&response.id) {
            // The caller may have gone in this very moment, which is its right.
            let _ = waiting.send(response.outcome);
            return Ok(());
        }
        match calls.abandoned.remove(&response.id) {
            true => Ok(()),
            false => Err(ChannelError::Protocol("it answered a request that nobody made, or answered one twice")),
        }
    }
}

impl Caller {
    /// Asks and waits for the answer. Waits first while `in_flight` calls are open. Dropping the future abandons the
    /// call: its slot is free, and its answer, if one comes, is ignored. The other side may have done what was asked.
    ///
    /// # Errors
    /// [`CallError`]. After a refusal, and after [`ChannelError::TooLong`], the session goes on.
    pub async fn call(&self, correlation: CorrelationId, deadline_ms: u32, call: Call) -> Result<Reply, CallError> {
        self.ask(&self.requests, correlation, deadline_ms, call).await
    }

    /// Like [`Caller::call`], but sent ahead of all calls of this end that have not been sent yet. It needs one of the
    /// `in_flight` places like any other.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn call_ahead(
        &self,
        correlation: CorrelationId,
        deadline_ms: u32,
        call: Call,
    ) -> Result<Reply, CallError> {
        self.ask(&self.ahead, correlation, deadline_ms, call).await
    }

    async fn ask(
        &self,
        queue: &mpsc::Sender<Encoded>,
        correlation: CorrelationId,
        deadline_ms: u32,
        call: Call,
    ) -> Result<Reply, CallError> {
        let Ok(_slot) = self.session.slots.acquire().await else { return Err(self.session.reason().into()) };
        let id = self.session.next_id.fetch_add(1, Ordering::Relaxed);
        let message = to_cbor(&Message::Request(Request { id, correlation, deadline_ms, call }));
        if message.len() > frame::MESSAGE_MAX {
            return Err(ChannelError::TooLong { bytes: message.len() }.into());
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut calls = self.session.calls();
            if let Some(reason) = &calls.over {
                return Err(reason.clone().into());
            }
            calls.waiting.insert(id, answer);
        }
        let mut open = OpenCall { session: &self.session, id, queued: false };
        if queue.send(Encoded { id, message, held: None }).await.is_err() {
            return Err(self.session.reason().into());
        }
        open.queued = true;
        match answered.await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(self.session.reason().into()),
        }
    }
}

/// A call that may be abandoned.
struct OpenCall<'a> {
    session: &'a Session,
    id: u64,
    /// Whether the request was handed to the driver.
    queued: bool,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        let mut calls = self.session.calls();
        if calls.waiting.remove(&self.id).is_some() && self.queued {
            calls.abandoned.insert(self.id);
            if calls.abandoned.len() > ABANDONED_MAX {
                calls.abandoned.pop_first();
            }
        }
    }
}

impl Incoming {
    /// The next request; `None` when the session is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Request, Answer)> {
        self.requests.recv().await
    }

    /// Widens the bounds of [`Channel::multiplex_within`]. They never become narrower.
    pub fn widen(&mut self, bounds: Bounds) {
        self.longest.fetch_max(bounds.message, Ordering::Relaxed);
        let more = bounds.open.saturating_sub(self.bounds.open);
        self.bytes.add_permits(more);
        self.bounds.open += more;
    }
}

impl Answer {
    /// Answers. Does not wait for the answer to be on its way, and is lost where the session is over.
    pub async fn send(mut self, outcome: Result<Reply, Refusal>) {
        self.put(outcome, None);
    }

    /// Answers as [`Answer::send`] does, and drops `held` when the answer was sent, or never will be: what counts requests
    /// in flight then counts those whose answers nobody reads.
    pub fn send_holding(mut self, outcome: Result<Reply, Refusal>, held: impl Send + 'static) {
        self.put(outcome, Some(Box::new(held)));
    }

    fn put(&mut self, outcome: Result<Reply, Refusal>, held: Option<Box<dyn Send>>) {
        let Some(room) = self.room.take() else { return };
        let id = self.id;
        let mut message = to_cbor(&Message::Response(Response { id, outcome }));
        if message.len() > frame::MESSAGE_MAX {
            let refusal = Refusal::new(RefusalCode::Internal, "The answer is longer than 1 MiB: ask for less at once.");
            message = to_cbor(&Message::Response(Response { id, outcome: Err(refusal) }));
        }
        room.send(Encoded { id, message, held });
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let refusal =
            Refusal::new(RefusalCode::Internal, "The request was given up by the other side; its log says why.");
        self.put(Err(refusal), None);
    }
}

/// Ends the session when the driver is dropped before its end.
struct Ending(Arc<Session>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(ChannelError::Unusable);
    }
}

pub(super) fn multiplex<S: AsyncRead + AsyncWrite + Unpin>(
    channel: Channel<S>,
    in_flight: usize,
    bounds: Bounds,
) -> (Caller, Incoming, impl Future<Output = ChannelError> + use<S>) {
    let in_flight = in_flight.clamp(1, IN_FLIGHT_MAX);
    let session = Arc::new(Session {
        slots: Semaphore::new(in_flight),
        next_id: AtomicU64::new(channel.next_id),
        calls: Mutex::default(),
    });
    let (requests, requests_out) = mpsc::channel(in_flight);
    let (ahead, ahead_out) = mpsc::channel(in_flight);
    let (incoming, requests_in) = mpsc::channel(in_flight);
    let (responses, responses_out) = mpsc::channel(in_flight);
    let (busy, busy_out) = mpsc::channel(in_flight);
    let (alive, anybody) = mpsc::channel(1);

    let open = Arc::new(Mutex::new(HashSet::new()));
    let (longest, bytes) = (Arc::clone(&channel.receiver.longest), Arc::new(Semaphore::new(bounds.open)));
    longest.store(bounds.message, Ordering::Relaxed);
    let (read, write) = tokio::io::split(channel.stream);
    let reading = Reading {
        stream: read,
        receiver: channel.receiver,
        session: Arc::clone(&session),
        open: Arc::clone(&open),
        bytes: Arc::clone(&bytes),
        incoming,
        responses,
        busy,
        alive: alive.downgrade(),
    };
    let writing = Writing {
        stream: write,
        sender: channel.sender,
        session: Arc::clone(&session),
        open,
        requests: requests_out,
        ahead: ahead_out,
        responses: responses_out,
        busy: busy_out,
        anybody,
    };
    let usable = !channel.calling;
    let ending = Ending(Arc::clone(&session));
    let driver = async move {
        let reason = match usable {
            true => tokio::select! {
                reason = reading.run() => reason,
                reason = writing.run() => reason,
            },
            false => ChannelError::Unusable,
        };
        ending.0.end(reason.clone());
        reason
    };
    let caller = Caller { session, requests, ahead, _alive: alive.clone() };
    (caller, Incoming { requests: requests_in, longest, bytes, bounds, _alive: alive }, driver)
}

/// Ids of the other side's requests that are not answered yet.
type OpenRequests = Arc<Mutex<HashSet<u64>>>;

fn lock(open: &OpenRequests) -> MutexGuard<'_, HashSet<u64>> {
    open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What comes in.
struct Reading<S> {
    stream: ReadHalf<S>,
    receiver: frame::Receiver,
    session: Arc<Session>,
    open: OpenRequests,
    bytes: Arc<Semaphore>,
    incoming: mpsc::Sender<(Request, Answer)>,
    responses: mpsc::Sender<Encoded>,
    busy: mpsc::Sender<u64>,
    alive: mpsc::WeakSender<Infallible>,
}

impl<S: AsyncRead> Reading<S> {
    async fn run(mut self) -> ChannelError {
        loop {
            if let Err(reason) = self.step().await {
                return reason;
            }
        }
    }

    async fn step(&mut self) -> Result<(), ChannelError> {
        let message = self.receiver.receive(&mut self.stream).await?;
        match decode(&message)? {
            Message::Response(response) => self.session.settle(response),
            Message::Request(request) => self.accept(request, message.len()).await,
        }
    }

    async fn accept(&self, request: Request, bytes: usize) -> Result<(), ChannelError> {
        let id = request.id;
        if lock(&self.open).contains(&id) {
            return Err(ChannelError::Protocol("it used the id of a request again that is not answered yet"));
        }
        let Some(answer) = self.answer(id, bytes) else {
            // Waits while as many of these are unsent: a flood of requests is read no faster than it is answered.
            let _ = self.busy.send(id).await;
            return Ok(());
        };
        lock(&self.open).insert(id);
        // Fails only where nobody takes requests, and then the answer says so by being dropped. It is never full, since
        // every request in it holds room for its answer.
        let _ = self.incoming.try_send((request, answer));
        Ok(())
    }

    /// Everything that an open request needs, if there is room for one more.
    fn answer(&self, id: u64, bytes: usize) -> Option<Answer> {
        Some(Answer {
            id,
            room: Some(self.responses.clone().try_reserve_owned().ok()?),
            _bytes: Arc::clone(&self.bytes).try_acquire_many_owned(bytes as u32).ok()?,
            _alive: self.alive.upgrade()?,
        })
    }
}

/// What goes out next.
enum Outgoing {
    Response(Encoded),
    Request(Encoded),
    /// The id of a request that there was no room for.
    Busy(u64),
    /// Nothing any more.
    End,
}

/// What goes out.
struct Writing<S> {
    stream: WriteHalf<S>,
    sender: frame::Sender,
    session: Arc<Session>,
    open: OpenRequests,
    requests: mpsc::Receiver<Encoded>,
    ahead: mpsc::Receiver<Encoded>,
    responses: mpsc::Receiver<Encoded>,
    busy: mpsc::Receiver<u64>,
    anybody: mpsc::Receiver<Infallible>,
}

impl<S: AsyncWrite> Writing<S> {
    async fn run(mut self) -> ChannelError {
        loop {
            let others = async {
                tokio::select! {
                    Some(response) = self.responses.recv() => Outgoing::Response(response),
                    Some(request) = self.requests.recv() => Outgoing::Request(request),
                    Some(id) = self.busy.recv() => Outgoing::Busy(id),
                    _ = self.anybody.recv() => Outgoing::End,
                }
            };
            let next = tokio::select! {
                biased;
                Some(request) = self.ahead.recv() => Outgoing::Request(request),
                next = others => next,
            };
            let sent = match next {
                Outgoing::Response(response) => self.respond(response).await,
                Outgoing::Request(request) => self.request(request).await,
                Outgoing::Busy(id) => self.refuse(id).await,
                Outgoing::End => return self.finish().await,
            };
            if let Err(reason) = sent {
                return reason;
            }
        }
    }

    async fn respond(&mut self, response: Encoded) -> Result<(), ChannelError> {
        lock(&self.open).remove(&response.id);
        let sent = self.sender.send(&mut self.stream, &response.message).await;
        drop(response.held);
        sent
    }

    async fn request(&mut self, request: Encoded) -> Result<(), ChannelError> {
        // One that was abandoned before it was sent is not sent.
        if self.session.calls().abandoned.remove(&request.id) {
            return Ok(());
        }
        self.sender.send(&mut self.stream, &request.message).await
    }

    async fn refuse(&mut self, id: u64) -> Result<(), ChannelError> {
        let text = "As many requests are open in this session as may be: wait for an answer to one of them.";
        let outcome = Err(Refusal::new(RefusalCode::Busy, text));
        self.sender.send(&mut self.stream, &to_cbor(&Message::Response(Response { id, outcome }))).await
    }

    /// Nobody uses the session any more: the last answers go out, and the stream is closed.
    async fn finish(&mut self) -> ChannelError {
        while let Ok(response) = self.responses.try_recv() {
            if let Err(reason) = self.respond(response).await {
                return reason;
            }
        }
        match self.stream.shutdown().await {
            Ok(()) => ChannelError::Closed,
            Err(error) => ChannelError::io(error),
        }
    }
}

#[cfg(test)]
mod tests;
