//! What an engine holds, for tests of its bounds.

use super::super::Engine;

impl Engine {
    /// Alarms that are set, also those that will turn out to be early.
    pub(in crate::soft) fn alarms(&self) -> usize {
        self.timers.len()
    }

    /// Turns that queue pairs wait for.
    pub(in crate::soft) fn turns(&self) -> usize {
        self.ready.len()
    }
    /// The askers that share the receive buffer, as counted, and as they are.
    pub(in crate::soft) fn askers(&self) -> (usize, usize) {
        (self.askers, self.qps.values().filter(|qp| qp.requester.is_asking()).count())
    }
}
