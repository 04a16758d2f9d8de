//! How long a polling end goes on polling.

use std::time::{Duration, Instant};

use crate::error::BenchError;

/// Nothing is lost on loopback: what takes this long will not come.
const LIMIT: Duration = Duration::from_secs(2);
/// Polls between two looks at the clock: a look costs as much as a poll.
const POLLS: u32 = 1 << 14;
/// Empty polls after which an answering end sleeps until it is asked again (some 10 ms): while another subject takes
/// its turn, it must not hold the processor.
const IDLE_POLLS: u32 = 1 << 16;

/// Of an asking end, in one wait.
pub(crate) struct Patience {
    peer: &'static str,
    polls: u32,
    since: Option<Instant>,
}

impl Patience {
    /// For the peer that the error names.
    pub(crate) fn with(peer: &'static str) -> Self {
        Self { peer, polls: 0, since: None }
    }

    /// After each poll that found nothing.
    pub(crate) fn spin(&mut self) -> Result<(), BenchError> {
        self.polls = self.polls.wrapping_add(1);
        let look = self.polls.is_multiple_of(POLLS);
        if look && self.since.get_or_insert_with(Instant::now).elapsed() > LIMIT {
            return Err(BenchError::Silent { what: self.peer, after: LIMIT });
        }
        // No pause: what is measured here is found at once, as other programs that poll find it.
        Ok(())
    }
}

/// Of an answering end, since it was last asked.
#[derive(Default)]
pub(crate) struct Idle {
    polls: u32,
}

impl Idle {
    /// After each poll that found nothing: whether it is time to sleep.
    pub(crate) fn spin(&mut self) -> bool {
        self.polls = self.polls.saturating_add(1);
        std::hint::spin_loop();
        self.is_over()
    }

    /// Whether polling has given way to sleeping.
    pub(crate) fn is_over(&self) -> bool {
        self.polls > IDLE_POLLS
    }
}
