//! A thread that works off what others hand to it, in the order that a [`Queue`] says.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What waits to be done.
pub(crate) trait Queue: Send + 'static {
    type Job: Send;

    /// What is to be done now.
    fn next(&mut self, now: Instant) -> Due<Self::Job>;
}

/// What a queue has.
pub(crate) enum Due<T> {
    Now(T),
    /// Something, but not before this long.
    In(Duration),
    Nothing,
}

/// Hands work to the thread.
pub(crate) struct Line<Q>(Arc<Shared<Q>>);

struct Shared<Q> {
    state: Mutex<State<Q>>,
    changed: Condvar,
}

struct State<Q> {
    /// None once the thread has ended.
    queue: Option<Q>,
    closed: bool,
}

impl<Q> Clone for Line<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q> Line<Q> {
    fn lock(&self) -> MutexGuard<'_, State<Q>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the thread end after what it was handed so far, as far as that is due.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl<Q: Queue> Line<Q> {
    /// Starts the thread.
    pub(crate) fn start(
        name: &str,
        queue: Q,
        mut work: impl FnMut(Q::Job) + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let state = State { queue: Some(queue), closed: false };
        let line = Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }));
        let ending = Ending(line.clone());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(job) = ending.0.next() {
                work(job);
            }
        })?;
        Ok((line, thread))
    }

    /// Hands something over. `false`: the thread takes no more.
    pub(crate) fn push(&self, put: impl FnOnce(&mut Q)) -> bool {
        let mut state = self.lock();
        let closed = state.closed;
        let Some(queue) = state.queue.as_mut().filter(|_| !closed) else { return false };
        put(queue);
        drop(state);
        self.0.changed.notify_one();
        true
    }

    /// Waits for something to do. `None` once the line is closed and all is done.
    fn next(&self) -> Option<Q::Job> {
        let mut state = self.lock();
        loop {
            let closed = state.closed;
            let wait = match state.queue.as_mut()?.next(Instant::now()) {
                Due::Now(job) => return Some(job),
                // What may only be done later was not begun, and nobody waits for it any more.
                Due::Nothing | Due::In(_) if closed => return None,
                Due::In(wait) => wait,
                Due::Nothing => Duration::from_secs(3600),
            };
            let waited = self.0.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
        }
    }
}

/// Lets go of what waits when the thread ends, even by a panic, so that nobody waits for it for ever.
struct Ending<Q>(Line<Q>);

impl<Q> Drop for Ending<Q> {
    fn drop(&mut self) {
        let queue = self.0.lock().queue.take();
        drop(queue);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc;

    use super::*;

    impl Queue for VecDeque<u32> {
        type Job = u32;

        fn next(&mut self, _: Instant) -> Due<u32> {
            self.pop_front().map_or(Due::Nothing, Due::Now)
        }
    }

    #[test]
    fn what_was_handed_over_is_done_before_the_end() {
        let (done, all) = mpsc::channel();
        let (line, thread) =
            Line::start("line", VecDeque::new(), move |job| done.send(job).expect("heard")).expect("starts");
        for job in 0..100 {
            assert!(line.push(|queue: &mut VecDeque<u32>| queue.push_back(job)));
        }
        line.close();
        thread.join().expect("no panic");
        assert_eq!(all.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        assert!(!line.push(|queue| queue.push_back(7)));
    }

    #[test]
    fn nothing_waits_for_a_thread_that_died() {
        let (line, thread) = Line::start("line", VecDeque::new(), |_| panic!("on purpose")).expect("starts");
        line.push(|queue: &mut VecDeque<u32>| queue.extend([1, 2]));
        thread.join().expect_err("it panicked");
        assert!(!line.push(|queue| queue.push_back(7)));
    }
}
