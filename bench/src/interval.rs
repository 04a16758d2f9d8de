//! How far the ratio of two medians goes when the rounds are drawn anew: whether a difference is more than the noise.

use serde::Serialize;

use crate::figures;

/// How often the rounds are drawn.
const DRAWS: usize = 2000;
/// Of the ratios that come of it, so many of a thousand are left out at each end: 95 % stay.
const LEFT_OUT: usize = 25;
/// Fewer rounds say little: the interval is hardly more than the smallest and the largest of them.
pub(crate) const FEW: usize = 5;

/// Where 95 % of the ratios are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Interval {
    /// Whether both medians may well be the same.
    pub(crate) fn holds_one(self) -> bool {
        (self.low..=self.high).contains(&1.0)
    }
}

/// A ratio of the medians of two rows of rounds, and its interval (percentile bootstrap). The same each time it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Quotient {
    pub(crate) ratio: f64,
    /// None where there is one round alone: drawn anew it is the same again.
    pub(crate) interval: Option<Interval>,
    /// Rounds of the shorter row.
    pub(crate) rounds: usize,
    /// Whether a round of one row was drawn together with that of the other that it was measured beside.
    pub(crate) paired: bool,
}

impl Quotient {
    /// Of rounds that were measured beside each other, if there are as many: what disturbed both cancels out.
    pub(crate) fn paired(above: &[u64], below: &[u64]) -> Option<Self> {
        if above.len() == below.len() { Self::of(above, below, true) } else { Self::unpaired(above, below) }
    }

    /// Of rounds that have nothing to do with each other.
    pub(crate) fn unpaired(above: &[u64], below: &[u64]) -> Option<Self> {
        Self::of(above, below, false)
    }

    fn of(above: &[u64], below: &[u64], paired: bool) -> Option<Self> {
        let divided = |above: Vec<u64>, below: Vec<u64>| {
            let below = figures::median(below);
            (below > 0).then(|| figures::median(above) as f64 / below as f64)
        };
        if above.is_empty() {
            return None;
        }
        let ratio = divided(above.to_vec(), below.to_vec())?;
        let mut numbers = Numbers(1);
        let mut ratios: Vec<f64> = Vec::with_capacity(DRAWS);
        for _ in 0..DRAWS {
            let drawn =
                |numbers: &mut Numbers, from: usize| -> Vec<usize> { (0..from).map(|_| numbers.below(from)).collect() };
            let of_above = drawn(&mut numbers, above.len());
            let of_below = if paired { of_above.clone() } else { drawn(&mut numbers, below.len()) };
            let take = |rounds: &[u64], at: &[usize]| at.iter().map(|at| rounds[*at]).collect();
            ratios.extend(divided(take(above, &of_above), take(below, &of_below)));
        }
        ratios.sort_unstable_by(f64::total_cmp);
        let left_out = ratios.len() * LEFT_OUT / 1000;
        let rounds = above.len().min(below.len());
        let interval =
            Interval { low: *ratios.get(left_out)?, high: *ratios.get(ratios.len().checked_sub(1 + left_out)?)? };
        Some(Self { ratio, interval: (rounds > 1).then_some(interval), rounds, paired })
    }

    /// Whether the medians may well not be the same.
    pub(crate) fn is_beyond_the_noise(&self) -> bool {
        self.interval.is_some_and(|interval| !interval.holds_one())
    }

    /// Whether the interval says little, or nothing.
    pub(crate) fn has_few_rounds(&self) -> bool {
        self.rounds < FEW
    }
}

/// Numbers that look random, always the same ones (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut number = self.0;
        number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ number >> 31
    }

    /// From 0 to just below `end`.
    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(quotient: Quotient) -> Interval {
        quotient.interval.expect("several rounds")
    }

    #[test]
    fn numbers_are_those_of_the_algorithm() {
        // The first two of the reference implementation with the seed 1234567.
        let mut numbers = Numbers(1_234_567);
        assert_eq!([numbers.next(), numbers.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        let mut seen = [0; 7];
        (0..7000).for_each(|_| seen[numbers.below(7)] += 1);
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn a_difference_is_beyond_the_noise_or_within() {
        let one = [100, 101, 99, 103, 98, 102, 100];
        let other = [120, 121, 119, 123, 118, 122, 120];
        let far = Quotient::unpaired(&other, &one).expect("figures");
        assert!((far.ratio - 1.2).abs() < 1e-9 && far.is_beyond_the_noise() && drawn(far).low > 1.1, "{far:?}");
        let noisy = [101, 130, 80, 99, 104, 97, 102];
        let near = Quotient::unpaired(&noisy, &one).expect("figures");
        assert!(
            !near.is_beyond_the_noise() && drawn(near).low < near.ratio && near.ratio < drawn(near).high,
            "{near:?}"
        );
        // Of so many rounds, other draws would hardly give the same.
        let mut numbers = Numbers(7);
        let mut many = || (0..60).map(|_| 1000 + numbers.below(100_000) as u64).collect::<Vec<_>>();
        let (above, below) = (many(), many());
        assert_eq!(Quotient::unpaired(&above, &below), Quotient::unpaired(&above, &below), "the same each time");
        assert!(!far.has_few_rounds() && Quotient::unpaired(&one[..4], &one).expect("figures").has_few_rounds());
    }

    #[test]
    fn rounds_beside_each_other_share_what_disturbs_them() {
        // Each round of the one takes a tenth longer than that of the other, and the rounds differ by far more.
        let below: Vec<u64> = [100, 300, 120, 900, 150, 700, 200].iter().map(|round| round * 1000).collect();
        let above: Vec<u64> = below.iter().map(|round| round * 11 / 10).collect();
        let paired = Quotient::paired(&above, &below).expect("figures");
        assert!((drawn(paired).low - 1.1).abs() < 1e-9 && (drawn(paired).high - 1.1).abs() < 1e-9, "{paired:?}");
        assert!(!Quotient::unpaired(&above, &below).expect("figures").is_beyond_the_noise());
        assert!(!Quotient::paired(&above[1..], &below).expect("figures").paired);
    }

    #[test]
    fn what_is_not_there_is_not_divided() {
        assert_eq!(Quotient::unpaired(&[], &[1]), None);
        // One round is a ratio, and no interval.
        let one = Quotient::unpaired(&[3], &[2, 2, 2]).expect("a ratio");
        assert!(one.interval.is_none() && !one.is_beyond_the_noise() && one.has_few_rounds(), "{one:?}");
        assert_eq!(Quotient::paired(&[], &[]), None);
        assert_eq!(Quotient::unpaired(&[1, 2], &[0, 0]), None);
        assert!(Quotient::unpaired(&[1, 2], &[0, 5, 5]).is_some());
    }
}
