//! Reads and writes of places in an order that follows from a seed alone.

use aws_lc_rs::digest::{Context, SHA256};
use overbank_fabric::ids;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::error::BenchError;

/// Which places are accessed how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pattern {
    /// All alike
    Uniform,
    /// The k-th most popular in proportion to 1/k to the power of --theta; which one that is follows from the seed
    Zipf,
}

impl Pattern {
    /// As it appears in the result.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        }
    }
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Where.
    pub(crate) place: u32,
    /// Whether it is written there, rather than read.
    pub(crate) write: bool,
}

/// What it is drawn from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Places, from 0.
    pub(crate) places: u32,
    /// Reads of a hundred operations.
    pub(crate) reads: u8,
    /// Which places.
    pub(crate) pattern: Pattern,
    /// Of [`Pattern::Zipf`].
    pub(crate) theta: f64,
    /// What all follows from.
    pub(crate) seed: u64,
}

/// A sequence without an end.
pub(crate) struct Accesses {
    shape: Shape,
    random: Xoshiro256PlusPlus,
    /// None where all places are alike.
    popular: Option<Popular>,
    drawn: Context,
}

struct Popular {
    ranks: Zipf<f64>,
    /// By rank.
    places: Vec<u32>,
}

impl Accesses {
    /// From its beginning.
    pub(crate) fn new(shape: Shape) -> Result<Self, BenchError> {
        let bad = |what: &str| BenchError::Usage(what.to_owned());
        if shape.places == 0 || shape.reads > 100 {
            return Err(bad("there is no place, or more than a hundred reads in a hundred"));
        }
        let mut random = Xoshiro256PlusPlus::seed_from_u64(shape.seed);
        let popular = match shape.pattern {
            Pattern::Uniform => None,
            Pattern::Zipf => {
                let ranks = Zipf::new(f64::from(shape.places), shape.theta).map_err(|error| bad(&error.to_string()))?;
                // Popular places lie anywhere, not side by side.
                let mut places: Vec<u32> = (0..shape.places).collect();
                places.shuffle(&mut random);
                Some(Popular { ranks, places })
            }
        };
        Ok(Self { shape, random, popular, drawn: Context::new(&SHA256) })
    }

    /// The next so many.
    pub(crate) fn draw(&mut self, count: u64) -> Vec<Access> {
        let all: Vec<_> = (0..count).map(|_| self.next()).collect();
        for Access { place, write } in &all {
            self.drawn.update(&place.to_le_bytes());
            self.drawn.update(&[u8::from(*write)]);
        }
        all
    }

    /// SHA-256 of all that was drawn: of each operation the place, four bytes with the lowest first, and one byte, 1 for a
    /// write and 0 for a read.
    pub(crate) fn digest(self) -> String {
        ids::hex(self.drawn.finish().as_ref())
    }

    fn next(&mut self) -> Access {
        let write = self.random.random_range(0..100) >= u32::from(self.shape.reads);
        let place = match &self.popular {
            None => self.random.random_range(0..self.shape.places),
            Some(Popular { ranks, places }) => {
                // Ranks are whole numbers from 1.
                let rank = ranks.sample(&mut self.random) as usize;
                places.get(rank.saturating_sub(1)).copied().unwrap_or(0)
            }
        };
        Access { place, write }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZIPF: Shape = Shape { places: 1000, reads: 95, pattern: Pattern::Zipf, theta: 0.99, seed: 1 };
    const UNIFORM: Shape = Shape { pattern: Pattern::Uniform, ..ZIPF };

    fn drawn(shape: Shape, count: u64) -> Vec<Access> {
        Accesses::new(shape).expect("a sequence").draw(count)
    }

    /// How often each place, the most frequent first.
    fn by_place(accesses: &[Access]) -> Vec<usize> {
        let mut counts = vec![0; 1000];
        accesses.iter().for_each(|access| counts[access.place as usize] += 1);
        counts.sort_unstable_by(|one, other| other.cmp(one));
        counts
    }

    #[test]
    fn the_sequence_follows_from_the_seed_alone() {
        for shape in [ZIPF, UNIFORM] {
            let all = drawn(shape, 500);
            assert_eq!(drawn(shape, 500), all);
            assert_ne!(drawn(Shape { seed: 2, ..shape }, 500), all);
            // It does not matter in how many parts it is drawn.
            let mut parts = Accesses::new(shape).expect("a sequence");
            let mut joined = parts.draw(120);
            joined.extend(parts.draw(380));
            assert_eq!(joined, all);
            let mut whole = Accesses::new(shape).expect("a sequence");
            whole.draw(500);
            assert_eq!(whole.digest(), parts.digest());
        }
    }

    #[test]
    fn the_sequence_is_the_same_tomorrow() {
        let said = |shape| drawn(shape, 6).iter().map(|one| (one.place, one.write)).collect::<Vec<_>>();
        let uniform = [(747, false), (746, false), (590, false), (523, true), (134, false), (343, false)];
        assert_eq!(said(UNIFORM), uniform);
        let zipf = [(96, true), (823, true), (808, true), (773, true), (798, true), (891, false)];
        assert_eq!(said(Shape { reads: 50, ..ZIPF }), zipf);
    }

    #[test]
    fn reads_are_as_many_as_asked_for() {
        let writes = |reads| drawn(Shape { reads, ..ZIPF }, 20_000).iter().filter(|access| access.write).count();
        assert_eq!((writes(100), writes(0)), (0, 20_000));
        assert!((900..1100).contains(&writes(95)), "{}", writes(95));
    }

    #[test]
    fn places_are_as_popular_as_the_pattern_says() {
        let count = 200_000;
        let weights: Vec<f64> = (1..=1000).map(|rank| f64::from(rank).powf(-0.99)).collect();
        let all: f64 = weights.iter().sum();
        let found = by_place(&drawn(ZIPF, count));
        for rank in [0, 1, 9] {
            let (expected, found) = (weights[rank] / all, found[rank] as f64 / count as f64);
            assert!((found / expected - 1.0).abs() < 0.08, "rank {rank}: {found} in place of {expected}");
        }
        let found = by_place(&drawn(UNIFORM, count));
        assert!(found[0] < 300 && found[999] > 120, "{} to {}", found[999], found[0]);
        assert!(found.len() == 1000);
    }

    #[test]
    fn popular_places_are_not_side_by_side() {
        let mut counts = vec![0; 1000];
        drawn(ZIPF, 50_000).iter().for_each(|access| counts[access.place as usize] += 1);
        let first: usize = counts[..10].iter().sum();
        // The ten most popular have 38 of 100.
        assert!(first < 10_000, "{first}");
    }

    #[test]
    fn what_makes_no_sequence_is_refused() {
        for bad in [Shape { places: 0, ..UNIFORM }, Shape { reads: 101, ..UNIFORM }, Shape { theta: -1.0, ..ZIPF }] {
            assert!(matches!(Accesses::new(bad), Err(BenchError::Usage(_))), "{bad:?}");
        }
    }
}
