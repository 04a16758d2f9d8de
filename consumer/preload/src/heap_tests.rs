//! The heap against a list that holds what each page is.

use proptest::prelude::*;

use super::*;

const PAGES: usize = 48;

#[derive(Debug, Clone)]
enum Step {
    HandOut { pages: usize, align: usize, mapping: bool, roomy: bool },
    At(usize, usize),
    Free(usize),
    Resize(usize, usize),
    Extend(usize, usize),
    Cut(usize, usize),
    Claim(usize, usize),
    Retire(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..PAGES, 1..12_usize).prop_map(|(start, pages)| (start, (start + pages).min(PAGES)));
    prop::collection::vec(
        prop_oneof![
            4 => (1..12_usize, 0..3_u32, any::<bool>(), any::<bool>()).prop_map(|(pages, align, mapping, roomy)| {
                Step::HandOut { pages, align: 1 << align, mapping, roomy }
            }),
            1 => range().prop_map(|(start, end)| Step::At(start, end)),
            3 => (0..PAGES).prop_map(Step::Free),
            2 => (0..PAGES, 1..16_usize).prop_map(|(first, pages)| Step::Resize(first, pages)),
            1 => (0..=PAGES, 1..8_usize).prop_map(|(end, more)| Step::Extend(end, more)),
            3 => range().prop_map(|(start, end)| Step::Cut(start, end)),
            1 => range().prop_map(|(start, end)| Step::Claim(start, end)),
            1 => range().prop_map(|(start, end)| Step::Retire(start, end)),
        ],
        0..60,
    )
}

/// What a page is: the kind, and of an allocation where it begins.
type Page = Option<(Kind, usize)>;

fn give_back(heap: &mut Heap, pages: &mut [Page], gone: &GivenUp) {
    pages[gone.pages.clone()].fill(None);
    heap.give_back(gone.pages.clone());
}

proptest! {
    #[test]
    fn it_does_as_a_list_of_pages_does(steps in steps()) {
        let mut heap = Heap::new(0..PAGES);
        let mut pages: Vec<Page> = vec![None; PAGES];
        for step in steps {
            match step {
                Step::HandOut { pages: count, align, mapping, roomy } => {
                    let kind = if mapping { Kind::Mapping } else { Kind::Allocation };
                    let could = (0..PAGES).step_by(align).any(|first| {
                        first + count <= PAGES && pages[first..first + count].iter().all(Option::is_none)
                    });
                    let first = heap.hand_out(count, align, kind, roomy);
                    prop_assert_eq!(first.is_some(), could);
                    if let Some(first) = first {
                        prop_assert!(pages[first..first + count].iter().all(Option::is_none));
                        pages[first..first + count].fill(Some((kind, first)));
                    }
                }
                Step::At(start, end) => {
                    let could = pages[start..end].iter().all(Option::is_none);
                    prop_assert_eq!(heap.hand_out_at(start..end), could);
                    if could {
                        pages[start..end].fill(Some((Kind::Mapping, start)));
                    }
                }
                Step::Free(first) => {
                    let own = |page: &Page| *page == Some((Kind::Allocation, first));
                    let length = pages.iter().filter(|page| own(page)).count();
                    let begins = own(&pages[first]);
                    let gone = heap.give_up(first);
                    prop_assert_eq!(gone.clone().map(|gone| gone.pages), begins.then_some(first..first + length));
                    if let Some(gone) = gone {
                        give_back(&mut heap, &mut pages, &gone);
                    }
                }
                Step::Resize(first, count) => {
                    let own = |page: &Page| *page == Some((Kind::Allocation, first));
                    let length = pages.iter().filter(|page| own(page)).count();
                    if !own(&pages[first]) {
                        prop_assert_eq!(heap.resize(first, count), None);
                        continue;
                    }
                    let (end, new_end) = (first + length, first + count);
                    let room = new_end <= end || (new_end <= PAGES && pages[end..new_end].iter().all(Option::is_none));
                    match heap.resize(first, count) {
                        Some(Resized::Stuck) => prop_assert!(!room),
                        Some(Resized::Shrunk(gone)) => {
                            prop_assert_eq!(&gone.pages, &(new_end..end));
                            give_back(&mut heap, &mut pages, &gone);
                        }
                        Some(Resized::Done) => {
                            prop_assert!(room && new_end >= end);
                            pages[first..new_end].fill(Some((Kind::Allocation, first)));
                        }
                        None => prop_assert!(false),
                    }
                }
                Step::Extend(end, more) => {
                    let free = end + more <= PAGES && pages[end..end + more].iter().all(Option::is_none);
                    let behind = end > 0 && matches!(pages[end - 1], Some((Kind::Mapping, _)));
                    prop_assert_eq!(heap.extend_mapping(end, more), free && behind);
                    if free && behind {
                        let before = pages[end - 1];
                        pages[end..end + more].fill(before);
                    }
                }
                Step::Cut(start, end) => {
                    for gone in heap.cut(start..end) {
                        prop_assert!(pages[gone.pages.clone()].iter().all(|page| matches!(page, Some((Kind::Mapping, _)))));
                        give_back(&mut heap, &mut pages, &gone);
                    }
                    prop_assert!(!pages[start..end].iter().any(|page| matches!(page, Some((Kind::Mapping, _)))));
                }
                Step::Claim(start, end) => {
                    heap.claim(start..end);
                    pages[start..end].iter_mut().filter(|page| page.is_none()).for_each(|page| *page = Some((Kind::Mapping, 0)));
                }
                Step::Retire(start, end) => {
                    // What is behind the retired part of an allocation is one of its own from then on.
                    if end < PAGES && let Some((Kind::Allocation, first)) = pages[end] && first < end {
                        pages[end..].iter_mut().filter(|page| **page == Some((Kind::Allocation, first)))
                            .for_each(|page| *page = Some((Kind::Allocation, end)));
                    }
                    heap.retire(start..end);
                    pages[start..end].fill(Some((Kind::Retired, 0)));
                }
            }
            let pieces = heap.pieces(0..PAGES);
            prop_assert_eq!(pieces.iter().map(|(range, _)| range.len()).sum::<usize>(), PAGES);
            for (range, piece) in pieces {
                for page in range {
                    let expected = pages[page].map_or(Piece::Hole, |(kind, _)| Piece::Used(kind));
                    prop_assert_eq!(piece, expected, "page {}", page);
                }
            }
            prop_assert_eq!(heap.used().0, pages.iter().flatten().count());
            prop_assert_eq!(heap.free_pages(), pages.iter().filter(|page| page.is_none()).count());
        }
    }
}

#[test]
fn a_protection_stays_with_its_pages_until_they_go() {
    let mut heap = Heap::new(0..32);
    assert_eq!(heap.hand_out(8, 1, Kind::Mapping, false), Some(0));
    assert_eq!(heap.hand_out(8, 1, Kind::Mapping, false), Some(8));
    heap.protect(3..4);
    assert!(heap.is_protected(&(0..1)) && !heap.is_protected(&(8..16)));
    let gone = heap.cut(2..10);
    let protected: Vec<_> = gone.iter().map(|gone| (gone.pages.clone(), gone.protected)).collect();
    assert_eq!(protected, [(2..8, true), (8..10, false)]);
    gone.into_iter().for_each(|gone| heap.give_back(gone.pages));
    assert_eq!(heap.hand_out(8, 1, Kind::Mapping, false), Some(2));
    assert!(!heap.is_protected(&(2..10)));
}
