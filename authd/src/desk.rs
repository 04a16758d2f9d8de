//! The one thread on which decisions are made and written down, so that no task of the network waits for a disk; and who
//! is next there.

use std::collections::VecDeque;
use std::thread::JoinHandle;
use std::time::Instant;

use overbank_fabric::identity::PublicKey;
use overbank_fabric::message::{Refusal, RefusalCode};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::bucket::{Bucket, Rate};
use crate::clock::Now;
use crate::core::{Core, Effect, Fault};
use crate::door::{Class, Host};
use crate::line::{Due, Line, Queue};
use crate::shares::Lane;
use crate::turns::Turns;

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Who waits for the desk with something new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// What was begun goes on: before all others, in turns with switches.
    First,
    /// An operator's kill switch. Operators take turns.
    Switch(PublicKey),
    /// A provider's word, or its answer to an order that nobody waits for: providers take turns, and as many of them are heard as requests.
    Word(PublicKey),
    /// A request: lanes take turns, then identities, and all together are held to the daemon's rate.
    Request(Lane, PublicKey),
    /// Somebody has just come in, from a host of this class: classes take turns, then hosts.
    Arrival(Class, Host),
}

/// What waits, by who waits.
struct Waiting {
    first: VecDeque<Job>,
    switches: Turns<(), PublicKey, Job>,
    /// Whether the last one of these two was a switch.
    switched: bool,
    words: Turns<(), PublicKey, Job>,
    requests: Turns<Lane, PublicKey, Job>,
    arrivals: Turns<Class, Host, Job>,
    /// Which of these three is next.
    next: usize,
    rate: Rate,
    bucket: Bucket,
}

impl Waiting {
    /// Nothing yet; so many requests a second.
    fn new(per_second: u32, now: Instant) -> Self {
        Self {
            first: VecDeque::new(),
            switches: Turns::default(),
            switched: false,
            words: Turns::default(),
            requests: Turns::default(),
            arrivals: Turns::default(),
            next: 0,
            rate: Rate::new(per_second, per_second),
            bucket: Bucket::full(now),
        }
    }

    fn put(&mut self, turn: Turn, job: Job) {
        match turn {
            Turn::First => self.first.push_back(job),
            Turn::Switch(operator) => self.switches.push((), operator, job),
            Turn::Word(provider) => self.words.push((), provider, job),
            Turn::Request(..) if cfg!(feature = "danger-no-turns") => {
                self.requests.push(Lane::Strangers, PublicKey([0; 32]), job);
            }
            Turn::Request(lane, member) => self.requests.push(lane, member, job),
            Turn::Arrival(class, host) => self.arrivals.push(class, host, job),
        }
    }
}

impl Queue for Waiting {
    type Job = Job;

    fn next(&mut self, now: Instant) -> Due<Job> {
        self.switched = !self.switched;
        let ahead = match self.switched {
            true => self.switches.pop().or_else(|| self.first.pop_front()),
            false => self.first.pop_front().or_else(|| self.switches.pop()),
        };
        if let Some(job) = ahead {
            return Due::Now(job);
        }
        let mut wait = None;
        for _ in 0..3 {
            self.next = (self.next + 1) % 3;
            let job = match self.next {
                0 => self.words.pop(),
                1 => self.arrivals.pop(),
                _ if self.requests.is_empty() => None,
                _ if !self.bucket.take(self.rate, now) => {
                    wait = Some(self.bucket.wait(self.rate, now));
                    None
                }
                _ => self.requests.pop(),
            };
            if let Some(job) = job {
                return Due::Now(job);
            }
        }
        wait.map_or(Due::Nothing, Due::In)
    }
}

/// Has work done on the thread of the decisions. What waits there is bounded by who may come in at all.
#[derive(Clone)]
pub(crate) struct Desk {
    line: Line<Waiting>,
}

impl Desk {
    /// Starts the thread. What must happen outside comes out of the receiver, which ends when the thread does.
    pub(crate) fn open(core: Core) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Effect>, JoinHandle<()>)> {
        let waiting = Waiting::new(core.limits.load.requests_per_second, Instant::now());
        let mut desk = Closing(core);
        let (effects, happening) = mpsc::unbounded_channel();
        let (line, thread) = Line::start("desk", waiting, move |job: Job| {
            let core = &mut desk.0;
            job(core);
            core.settle(Now::read());
            for effect in core.take_effects() {
                // Fails only where the server has stopped, and then nothing of it matters any more.
                let _ = effects.send(effect);
            }
        })?;
        Ok((Self { line }, happening, thread))
    }

    /// Does `work` there, before what is new. It is done even where the future is dropped while it waits for the outcome.
    pub(crate) async fn run<T: Send + 'static, E: Into<Fault>>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.turn(Turn::First, None, work).await
    }

    /// Does `work` there in its turn, if that comes before `until`.
    pub(crate) async fn turn<T: Send + 'static, E: Into<Fault>>(
        &self,
        turn: Turn,
        until: Option<Instant>,
        work: impl FnOnce(&mut Core) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (outcome, done) = oneshot::channel();
        let span = Span::current();
        let job = move |core: &mut Core| {
            let _inside = span.entered();
            let result = match until {
                Some(until) if Instant::now() >= until => {
                    Err(Refusal::new(RefusalCode::Deadline, "not begun in the time that the request gave: try again"))
                }
                _ => work(core).map_err(|error| refusal(error.into())),
            };
            // Nobody may be waiting any more, which is their right.
            let _ = outcome.send(result);
        };
        let stopping = || Refusal::new(RefusalCode::Internal, "the auth daemon is stopping: try again");
        if !self.line.push(|waiting| waiting.put(turn, Box::new(job))) {
            return Err(stopping());
        }
        done.await.map_err(|_| stopping())?
    }

    /// Ends the thread after what was asked of it so far.
    pub(crate) fn close(&self) {
        self.line.close();
    }
}

/// The decisions, with a last record when they end in good order.
struct Closing(Core);

impl Drop for Closing {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.end_audit(Now::read());
        }
    }
}

/// What the asker is told of a fault; what it is not told is logged here.
pub(crate) fn refusal(fault: Fault) -> Refusal {
    match fault {
        Fault::Refused(refusal) => refusal,
        Fault::Store(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::error!(%error, cause, "nothing was decided: the store failed");
            Refusal::new(RefusalCode::Internal, "the auth daemon could not write its decision down: see its log")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn red() -> Lane {
        Lane::Tenant("red".parse().expect("a tenant"))
    }

    /// What is done, in its order, as far as it is done at once.
    fn done(waiting: &mut Waiting, now: Instant) -> usize {
        std::iter::from_fn(|| match waiting.next(now) {
            Due::Now(_) => Some(()),
            _ => None,
        })
        .count()
    }

    #[test]
    fn requests_are_held_to_the_rate_and_nothing_else_is() {
        let now = Instant::now();
        let mut waiting = Waiting::new(50, now);
        for _ in 0..100 {
            waiting.put(Turn::Request(red(), key(1)), Box::new(|_| ()));
            waiting.put(Turn::Word(key(2)), Box::new(|_| ()));
            waiting.put(Turn::First, Box::new(|_| ()));
            waiting
                .put(Turn::Arrival(Class::Known, Host::from(std::net::IpAddr::from([10, 0, 0, 1]))), Box::new(|_| ()));
        }
        assert_eq!(done(&mut waiting, now), 350);
        let Due::In(wait) = waiting.next(now) else { panic!("50 requests wait") };
        assert_eq!(wait, Duration::from_millis(20));
        assert_eq!(done(&mut waiting, now + Duration::from_millis(500)), 25);
    }

    #[test]
    fn a_flood_of_words_or_arrivals_leaves_requests_their_turns() {
        let now = Instant::now();
        let mut waiting = Waiting::new(50, now);
        for _ in 0..1000 {
            waiting.put(Turn::Word(key(2)), Box::new(|_| ()));
        }
        waiting.put(Turn::Request(red(), key(1)), Box::new(|_| ()));
        for _ in 0..2 {
            let Due::Now(_) = waiting.next(now) else { panic!("there is something") };
        }
        assert!(waiting.requests.is_empty());
    }

    #[test]
    fn what_was_begun_and_switches_take_turns_before_what_operators_look_at_and_so_do_operators() {
        let now = Instant::now();
        let mut waiting = Waiting::new(50, now);
        let (list, offered) = (Turn::Request(Lane::Operator(key(1)), key(1)), Turn::Word(key(2)));
        for _ in 0..1000 {
            waiting.put(list.clone(), Box::new(|_| ()));
            waiting.put(offered.clone(), Box::new(|_| ()));
            waiting.put(Turn::Switch(key(1)), Box::new(|_| ()));
            waiting.put(Turn::First, Box::new(|_| ()));
        }
        waiting.put(Turn::Switch(key(3)), Box::new(|_| ()));
        for left in [(999, 1, 1000), (999, 1, 999), (999, 0, 999), (999, 0, 998)] {
            let Due::Now(_) = waiting.next(now) else { panic!("there is something") };
            let [one, other] = [1, 3].map(|number| waiting.switches.of(&(), &key(number)));
            assert_eq!((one, other, waiting.first.len()), left);
        }
        for _ in 0..1997 {
            let Due::Now(_) = waiting.next(now) else { panic!("there is something") };
        }
        assert!(waiting.first.is_empty() && waiting.switches.is_empty());
        assert_eq!(waiting.words.of(&(), &key(2)), 1000);
        assert_eq!(waiting.requests.of(&Lane::Operator(key(1)), &key(1)), 1000);
    }
}
