//! Completion queues.

use std::collections::VecDeque;

use super::handles::{CqHandle, EngineError, HandleMap, next_free};
use crate::Completion;

pub(super) const MAX_ENTRIES: usize = 1 << 22;

/// A queue that cannot overflow: room is reserved when a request is posted.
struct Queue {
    ready: VecDeque<Completion>,
    entries: usize,
    /// Posted and not yet completed.
    pending: usize,
    /// Queue pairs that complete here.
    users: usize,
}

/// All completion queues of a device.
#[derive(Default)]
pub(super) struct Completions {
    queues: HandleMap<Queue>,
    last: u32,
}

impl Completions {
    pub(super) fn create(&mut self, entries: usize) -> Result<CqHandle, EngineError> {
        if !(1..=MAX_ENTRIES).contains(&entries) {
            let what = "entries of a completion queue";
            return Err(EngineError::Limit { what, value: entries, min: 1, max: MAX_ENTRIES });
        }
        let handle = CqHandle(next_free(&self.queues, &mut self.last));
        self.queues.insert(handle.0, Queue { ready: VecDeque::new(), entries, pending: 0, users: 0 });
        Ok(handle)
    }

    pub(super) fn destroy(&mut self, handle: CqHandle) -> Result<(), EngineError> {
        if self.get(handle)?.users > 0 {
            return Err(EngineError::Busy("completion queue"));
        }
        self.queues.remove(&handle.0);
        Ok(())
    }

    pub(super) fn add_user(&mut self, handle: CqHandle) -> Result<(), EngineError> {
        self.get(handle)?.users += 1;
        Ok(())
    }

    pub(super) fn remove_user(&mut self, handle: CqHandle) {
        if let Ok(queue) = self.get(handle) {
            queue.users -= 1;
        }
    }

    /// Makes sure that `count` completions will find room.
    pub(super) fn reserve(&mut self, handle: CqHandle, count: usize) -> Result<(), EngineError> {
        let queue = self.get(handle)?;
        let free = queue.entries - queue.ready.len() - queue.pending;
        if count > free {
            let (what, capacity) = ("completion queue", queue.entries);
            return Err(EngineError::Full { what, asked: count, free, capacity });
        }
        queue.pending += count;
        Ok(())
    }

    /// Takes the completions of requests that were reserved for.
    pub(super) fn complete(&mut self, handle: CqHandle, completions: impl Iterator<Item = Completion>) {
        if let Ok(queue) = self.get(handle) {
            let before = queue.ready.len();
            queue.ready.extend(completions);
            queue.pending -= queue.ready.len() - before;
        }
    }

    pub(super) fn poll(
        &mut self,
        handle: CqHandle,
        max: usize,
        out: &mut Vec<Completion>,
    ) -> Result<usize, EngineError> {
        let queue = self.get(handle)?;
        let count = queue.ready.len().min(max);
        out.extend(queue.ready.drain(..count));
        Ok(count)
    }

    pub(super) fn is_ready(&self, handle: CqHandle) -> bool {
        self.queues.get(&handle.0).is_some_and(|queue| !queue.ready.is_empty())
    }

    fn get(&mut self, handle: CqHandle) -> Result<&mut Queue, EngineError> {
        self.queues.get_mut(&handle.0).ok_or(EngineError::Gone("completion queue"))
    }
}
