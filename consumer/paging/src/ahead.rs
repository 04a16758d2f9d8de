//! What will be touched next: faults that lie one step apart, several times, are a stream, and its next pages come with
//! the one that is asked for.

/// Streams that are followed at the same time.
const STREAMS: usize = 16;
/// Faults in a row, each one step from the last, before anything is fetched ahead.
const SURE: u8 = 2;
/// The longest step, in pages, either way.
const LONGEST: isize = 1024;

/// Pages that are wanted together: `count` of them from `first` on, `step` pages from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) first: usize,
    pub(crate) step: isize,
    pub(crate) count: usize,
}

impl Plan {
    /// The n-th page of it, if addresses go that far.
    pub(crate) fn page(&self, n: usize) -> Option<usize> {
        let offset = self.step.checked_mul(isize::try_from(n).ok()?)?;
        self.first.checked_add_signed(offset)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// The page that faulted last.
    last: usize,
    /// Where the next fault comes, if this is a stream.
    next: usize,
    step: isize,
    /// Faults where they were expected.
    sure: u8,
    /// Pages brought last time.
    window: usize,
    /// When it was of use last.
    used: u64,
}

/// The streams of a region.
#[derive(Debug)]
pub(crate) struct Ahead {
    streams: [Stream; STREAMS],
    most: usize,
    now: u64,
}

impl Ahead {
    /// That asks for `most` pages at a time, at most.
    pub(crate) fn new(most: usize) -> Self {
        Self { streams: [Stream::default(); STREAMS], most: most.max(1), now: 0 }
    }

    /// What to bring for a fault on `page`: that page, and perhaps what comes after it. And what will be wanted next, if
    /// that is known.
    pub(crate) fn plan(&mut self, page: usize) -> (Plan, Plan) {
        self.now += 1;
        let now = self.now;
        let alone = (Plan { first: page, step: 1, count: 1 }, Plan { first: page, step: 1, count: 0 });
        if self.most == 1 {
            return alone;
        }
        let most = self.most;
        let window = |stream: &Stream| if stream.sure < SURE { 1 } else { (stream.window * 2).clamp(4, most) };
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.used > 0 && stream.next == page) {
            stream.sure = stream.sure.saturating_add(1);
            let plan = Plan { first: page, step: stream.step, count: window(stream) };
            let last = plan.page(plan.count - 1).unwrap_or(page);
            let next = last.saturating_add_signed(stream.step);
            *stream = Stream { last, next, window: plan.count, used: now, ..*stream };
            let count = if plan.count == 1 { 0 } else { window(stream) };
            return (plan, Plan { first: next, step: stream.step, count });
        }
        // The second fault of a stream says how far apart they are.
        let near = |stream: &Stream| {
            let step = page.wrapping_sub(stream.last).cast_signed();
            stream.used > 0 && stream.sure == 0 && step != 0 && (-LONGEST..=LONGEST).contains(&step)
        };
        // The nearest of those with one fault.
        let nearest =
            self.streams.iter_mut().filter(|stream| near(stream)).min_by_key(|stream| page.abs_diff(stream.last));
        let next = |step: isize| page.saturating_add_signed(step);
        if let Some(stream) = nearest {
            let step = page.wrapping_sub(stream.last).cast_signed();
            *stream = Stream { last: page, next: next(step), step, sure: 1, window: 1, used: now };
            return alone;
        }
        if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = Stream { last: page, next: next(1), step: 1, sure: 0, window: 1, used: now };
        }
        alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults that touching these pages in order makes, and pages brought.
    fn faults(touched: impl IntoIterator<Item = usize>, most: usize) -> (usize, usize) {
        let mut ahead = Ahead::new(most);
        let (mut here, mut faults) = (std::collections::BTreeSet::new(), 0);
        let mut foreseen = std::collections::BTreeMap::new();
        for page in touched {
            if here.contains(&page) {
                continue;
            }
            faults += 1;
            let (plan, then) = ahead.plan(page);
            assert_eq!(plan.page(0), Some(page));
            assert!(foreseen.get(&page).is_none_or(|foreseen| *foreseen == plan), "{foreseen:?} {plan:?}");
            if then.count > 0 {
                foreseen.insert(then.first, then);
            }
            here.extend((0..plan.count).filter_map(|n| plan.page(n)));
        }
        (faults, here.len())
    }

    #[test]
    fn a_scan_faults_once_a_window() {
        let (count, brought) = faults(0..10_000, 64);
        assert!(count < 10_000 / 64 + 10, "{count}");
        assert!(brought < 10_000 + 64, "{brought}");
    }

    #[test]
    fn a_scan_backwards_and_one_in_steps_are_streams_too() {
        assert!(faults((0..10_000).rev(), 64).0 < 10_000 / 64 + 10);
        let (count, brought) = faults((0..1000).map(|n| n * 7), 64);
        assert!(count < 1000 / 64 + 10, "{count}");
        assert!(brought < 1000 + 64, "{brought}");
    }

    #[test]
    fn scans_that_take_turns_are_told_apart() {
        let turns = (0..4000).flat_map(|n| [n, 100_000 + n, 900_000 - n]);
        assert!(faults(turns, 32).0 < 3 * (4000 / 32 + 16));
    }

    #[test]
    fn random_touches_bring_little_that_nobody_asked_for() {
        let mut state = 7_u64;
        let pages: Vec<usize> = (0..5000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % 1_000_000
            })
            .collect();
        let (count, brought) = faults(pages.iter().copied(), 64);
        assert!(brought < count + count / 20, "{brought} of {count}");
    }

    #[test]
    fn one_page_at_a_time_where_that_is_asked_for() {
        assert_eq!(faults(0..100, 1), (100, 100));
    }

    #[test]
    fn a_plan_at_the_end_of_all_addresses_has_no_page_beyond() {
        let plan = Plan { first: 3, step: -2, count: 8 };
        assert_eq!((plan.page(1), plan.page(2)), (Some(1), None));
    }
}
