//! Waiting for what other threads do, where no lock may be taken: a little at once, then with pauses, until a deadline.

use std::time::{Duration, Instant};

const AT_ONCE: u32 = 64;
const YIELDS: u32 = 256;
const NAP: Duration = Duration::from_micros(50);

pub(crate) struct Pause {
    deadline: Instant,
    turns: u32,
}

impl Pause {
    pub(crate) fn until(deadline: Instant) -> Self {
        Self { deadline, turns: 0 }
    }

    /// Waits a moment; false once the deadline has come.
    pub(crate) fn wait(&mut self) -> bool {
        self.turns = self.turns.saturating_add(1);
        if self.turns < AT_ONCE {
            std::hint::spin_loop();
            return true;
        }
        if self.turns < YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
        Instant::now() < self.deadline
    }
}
