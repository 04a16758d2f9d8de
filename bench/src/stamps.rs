//! What was written last to each place, as marks in its bytes: whether a read brought that is seen at little cost.

use crate::error::BenchError;

/// Bytes of a mark: the place, the number of the part, and how many times the place was written.
pub(crate) const MARK: usize = 16;
/// Each part of a place has a mark of its own: blocks are sealed one by one.
const PART: usize = 4096;

/// By place, how many times it was written.
pub(crate) struct Stamps(Vec<u64>);

impl Stamps {
    /// Of places that were not written yet.
    pub(crate) fn new(places: u32) -> Self {
        Self(vec![0; places as usize])
    }

    /// Marks what is written to `place` next.
    pub(crate) fn stamp(&mut self, place: u32, bytes: &mut [u8]) {
        let times = &mut self.0[place as usize];
        *times += 1;
        for (part, bytes) in (0..).zip(bytes.chunks_mut(PART)) {
            if let Some(to) = bytes.first_chunk_mut() {
                *to = mark(place, part, *times);
            }
        }
    }

    /// Whether what was read from `place` is what was written there last.
    pub(crate) fn check(&self, place: u32, bytes: &[u8]) -> Result<(), BenchError> {
        let times = self.0[place as usize];
        for (part, bytes) in (0..).zip(bytes.chunks(PART)) {
            match bytes.first_chunk() {
                Some(found) if *found != mark(place, part, times) => {
                    return Err(BenchError::Contents { place, part, times, found: described(found) });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn mark(place: u32, part: u32, times: u64) -> [u8; MARK] {
    let mut mark = [0; MARK];
    mark[..4].copy_from_slice(&place.to_le_bytes());
    mark[4..8].copy_from_slice(&part.to_le_bytes());
    mark[8..].copy_from_slice(&times.to_le_bytes());
    mark
}

fn described(found: &[u8; MARK]) -> String {
    let number = |at: usize| found[at..at + 4].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let times = number(12) << 32 | number(8);
    format!("part {} of place {}, written {times} times", number(4), number(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_last_passes() {
        let mut stamps = Stamps::new(4);
        for len in [MARK, 4096, 10_000, 8192 + 5] {
            let (mut older, mut last, mut other) = (vec![1; len], vec![1; len], vec![1; len]);
            stamps.stamp(2, &mut older);
            stamps.stamp(2, &mut last);
            stamps.stamp(3, &mut other);
            stamps.check(2, &last).expect("the last");
            stamps.check(3, &other).expect("the last");
            for bad in [&older, &other, &vec![0; len]] {
                let error = stamps.check(2, bad).expect_err("it is not the last");
                assert!(error.to_string().contains("place 2"), "{error}");
            }
            // One part of an older write among those of the last.
            if len > PART + MARK {
                let mut torn = last.clone();
                torn[PART..PART + MARK].copy_from_slice(&older[PART..PART + MARK]);
                assert!(stamps.check(2, &torn).is_err());
            }
        }
        let error = stamps.check(1, &mark(9, 7, 1 << 33)).expect_err("nothing was written");
        assert!(error.to_string().contains("part 7 of place 9, written 8589934592 times"), "{error}");
    }
}
