//! What an engine holds, for tests of its bounds.

use super::super::Engine;

impl Engine {
    /// Alarms that are set, also those that will turn out not to be due.
    pub(in crate::soft) fn alarms(&self) -> usize {
        self.timers.len()
    }

    /// Turns that queue pairs wait for.
    pub(in crate::soft) fn turns(&self) -> usize {
        self.ready.len()
    }
}
