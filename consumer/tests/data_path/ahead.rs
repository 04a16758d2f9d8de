//! Pages that are asked for before somebody wants them.

use std::time::Duration;

use overbank::data::SealedLane;
use proptest::prelude::*;

use crate::lender::*;

const PAGES: usize = 96;
const SIZE: usize = 4096;

fn read(lane: &mut SealedLane, pages: &[usize], ahead: &[usize]) -> Vec<u8> {
    let mut out = vec![0xa5; pages.len() * SIZE];
    lane.read_pages(pages, ahead, &mut out, soon()).unwrap();
    out
}

/// What a lane wrote, and that lane and another one.
fn written() -> (Lender, [SealedLane; 2], Vec<u8>) {
    let contents = contents(PAGES as u64, SIZE as u32);
    let mut lender = Lender::new(&contents);
    let mut lanes = [lender.attach(&contents), lender.attach(&contents)];
    let bytes = pattern(PAGES * SIZE, 1);
    lanes[0].write(0, &bytes, soon()).unwrap();
    (lender, lanes, bytes)
}

#[test]
fn what_was_asked_for_ahead_is_there_when_it_is_wanted() {
    let (lender, [mut lane, _], bytes) = written();
    let pages: Vec<usize> = (0..PAGES).collect();
    read(&mut lane, &pages[..4], &pages[4..12]);
    // Long enough for all of them; from here on the lender has nothing.
    std::thread::sleep(Duration::from_millis(300));
    (4..12).for_each(|page| lender.erase(page));
    // A call for others in between does not matter.
    assert!(read(&mut lane, &[50, 49], &[]) == [&bytes[50 * SIZE..][..SIZE], &bytes[49 * SIZE..][..SIZE]].concat());
    assert!(read(&mut lane, &pages[4..12], &pages[12..20]) == bytes[4 * SIZE..12 * SIZE]);
    // It is given once.
    lane.read_pages(&pages[4..12], &[], &mut vec![0; 8 * SIZE], soon()).unwrap_err();
    assert!(read(&mut lane, &pages[12..], &[]) == bytes[12 * SIZE..]);
}

#[test]
fn what_was_written_since_it_was_asked_for_is_asked_for_again() {
    let (_lender, [mut lane, mut other], bytes) = written();
    read(&mut lane, &[0, 1], &[2, 3, 4, 5]);
    std::thread::sleep(Duration::from_millis(100));
    let newer = pattern(SIZE, 9);
    other.write_pages(&[4], &newer, soon()).unwrap();
    let came = read(&mut lane, &[2, 3, 4, 5], &[]);
    assert!(came == [&bytes[2 * SIZE..4 * SIZE], &newer, &bytes[5 * SIZE..6 * SIZE]].concat());
}

#[test]
fn a_lane_that_broke_meanwhile_goes_on_after_a_new_attach() {
    let (mut lender, [mut lane, _], bytes) = written();
    read(&mut lane, &[0], &[1, 2, 3]);
    lender.hang_up();
    lender.attach_anew(&mut lane);
    assert!(read(&mut lane, &[1, 2, 3], &[4]) == bytes[SIZE..4 * SIZE]);
}

#[derive(Debug, Clone)]
enum Step {
    Read {
        pages: Vec<usize>,
        ahead: Vec<usize>,
    },
    /// Reads what the last step asked for ahead, or the first so many of it.
    Follow(usize),
    Write {
        lane: usize,
        pages: Vec<usize>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let runs = || (0..PAGES - 20, 1..20_usize).prop_map(|(first, count)| (first..first + count).collect::<Vec<_>>());
    let any = || proptest::sample::subsequence((0..PAGES).collect::<Vec<_>>(), 1..12);
    let pages = move || prop_oneof![runs(), any()];
    let step = prop_oneof![
        (pages(), pages()).prop_map(|(pages, ahead)| Step::Read { pages, ahead }),
        (1..40_usize).prop_map(Step::Follow),
        (0..2_usize, pages()).prop_map(|(lane, pages)| Step::Write { lane, pages }),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_asked_for_ahead_reads_give_what_was_written_last(steps in steps()) {
        let (_lender, mut lanes, mut bytes) = written();
        let (mut foreseen, mut seed) = (Vec::new(), 1);
        for step in steps {
            let (pages, ahead) = match step {
                Step::Read { pages, ahead } => (pages, ahead),
                Step::Follow(count) if foreseen.is_empty() => (vec![count], Vec::new()),
                Step::Follow(count) => (foreseen[..count.min(foreseen.len())].to_vec(), vec![3, 4, 5]),
                Step::Write { lane, pages } => {
                    seed += 1;
                    let new = pattern(pages.len() * SIZE, seed);
                    lanes[lane].write_pages(&pages, &new, soon()).unwrap();
                    for (page, new) in pages.iter().zip(new.chunks(SIZE)) {
                        bytes[page * SIZE..][..SIZE].copy_from_slice(new);
                    }
                    continue;
                }
            };
            let came = read(&mut lanes[0], &pages, &ahead);
            for (page, came) in pages.iter().zip(came.chunks(SIZE)) {
                prop_assert!(*came == bytes[page * SIZE..][..SIZE], "page {}", page);
            }
            foreseen = ahead;
        }
    }
}
