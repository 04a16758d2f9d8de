//! Keeps DPDK's own thread and ours apart. That thread handles what happens at the sockets of memifs, and unmaps a memif's
//! memory when its other end is gone, whoever is using it at that moment. So it may run only while the gate is closed, and
//! frames go and ports change only while it is open.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// That thread runs, or waits to.
const CLOSED: u32 = 1 << 31;
/// Of those who wait for the other side: first they spin so often, as it is done within microseconds.
const SPINS: u32 = 2000;
const PAUSE: Duration = Duration::from_micros(50);

/// One for the memifs of the process. Closed until that thread first rests.
pub(crate) static GATE: Gate = Gate(AtomicU32::new(CLOSED), AtomicU64::new(0));
/// Of ports that thread does nothing to: never closed.
pub(crate) static NO_GATE: Gate = Gate(AtomicU32::new(0), AtomicU64::new(0));

/// Whether it is closed and how many are inside, and how often it was opened.
pub(crate) struct Gate(AtomicU32, AtomicU64);

/// Somebody is inside until it is dropped.
pub(crate) struct Inside<'a>(&'a Gate);

impl Gate {
    /// Goes inside, where that is possible at once.
    #[inline]
    pub(crate) fn try_enter(&self) -> Option<Inside<'_>> {
        // Who only knocks does not keep that thread waiting.
        if self.0.load(Ordering::Relaxed) & CLOSED != 0 {
            return None;
        }
        let inside = Inside(self);
        (self.0.fetch_add(1, Ordering::Acquire) & CLOSED == 0).then_some(inside)
    }

    /// Goes inside within microseconds, as long as it mostly is closed.
    #[inline]
    pub(crate) fn enter_soon(&self) -> Option<Inside<'_>> {
        (0..SPINS).find_map(|_| {
            let inside = self.try_enter();
            if inside.is_none() {
                std::hint::spin_loop();
            }
            inside
        })
    }

    /// Goes inside. None: that thread has not come back for so long.
    pub(crate) fn enter(&self, patience: Duration) -> Option<Inside<'_>> {
        let until = Instant::now() + patience;
        loop {
            match self.enter_soon() {
                None if Instant::now() < until => std::thread::sleep(PAUSE),
                inside => return inside,
            }
        }
    }

    /// Lets nobody in any more, once all are out. False: somebody has stayed inside for so long, and it is open as before.
    pub(crate) fn close(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
        loop {
            for _ in 0..SPINS {
                if self.0.load(Ordering::Acquire) == CLOSED {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                self.0.fetch_and(!CLOSED, Ordering::Release);
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }

    pub(crate) fn open(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.fetch_and(!CLOSED, Ordering::Release);
    }

    /// How often it was opened. What was under way in that thread when it was so once is done when it is so twice more.
    pub(crate) fn rounds(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        static HERE: Gate = Gate(AtomicU32::new(CLOSED), AtomicU64::new(0));
        static ALONE: AtomicBool = AtomicBool::new(false);
        static OVER: AtomicBool = AtomicBool::new(false);
        let enters = [(); 2].map(|()| {
            std::thread::spawn(|| {
                let mut entered = 0_u64;
                while !OVER.load(Ordering::Relaxed) {
                    let Some(_inside) = HERE.try_enter() else { continue };
                    assert!(!ALONE.load(Ordering::Relaxed));
                    entered += 1;
                }
                entered
            })
        });
        assert!(HERE.try_enter().is_none() && HERE.enter(PAUSE).is_none());
        HERE.open();
        for _ in 0..200 {
            assert!(HERE.close(Duration::from_secs(20)));
            ALONE.store(true, Ordering::Relaxed);
            assert!(HERE.try_enter().is_none());
            std::thread::sleep(PAUSE);
            ALONE.store(false, Ordering::Relaxed);
            HERE.open();
            std::thread::sleep(PAUSE);
        }
        OVER.store(true, Ordering::Relaxed);
        let entered: u64 = enters.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(entered > 200 && HERE.rounds() == 201);
        // Who stays inside keeps it open for the others.
        let _inside = HERE.try_enter().unwrap();
        assert!(!HERE.close(PAUSE) && HERE.try_enter().is_some());
    }
}
