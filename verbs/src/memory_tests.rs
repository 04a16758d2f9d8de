use std::sync::Arc;

use super::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8 | 1).collect()
}

#[test]
fn bytes_come_out_as_they_went_in_at_any_offset_and_length() {
    let memory = Memory::map(20_000, Backing::Ordinary).unwrap();
    assert_eq!(memory.first_nonzero(0..20_000).unwrap(), None);
    for len in (0..200).chain([4095, 4096, 4097, 4128, 9999]) {
        for offset in [0, 1, 7, 63, 64, 65, 4095] {
            let sent = pattern(len);
            memory.copy_in(offset, &sent).unwrap();
            let mut got = vec![0xa5; len + 2];
            memory.copy_out(offset, &mut got[1..=len]).unwrap();
            assert_eq!((got[0], got[len + 1]), (0xa5, 0xa5), "bytes beside the target of {len} at {offset}");
            assert_eq!(got[1..=len], sent, "{len} at {offset}");
            let range = offset.saturating_sub(1)..offset + len + 1;
            let expected = (len > 0).then_some(offset);
            assert_eq!(memory.first_nonzero(range).unwrap(), expected, "bytes beside the copy of {len} to {offset}");
            memory.wipe(offset..offset + len).unwrap();
            assert_eq!(memory.first_nonzero(0..20_000).unwrap(), None, "{len} at {offset}");
        }
    }
}

#[test]
fn first_nonzero_finds_every_single_byte() {
    let memory = Memory::map(1024, Backing::Ordinary).unwrap();
    for at in 0..1024 {
        memory.copy_in(at, &[0x80]).unwrap();
        assert_eq!(memory.first_nonzero(0..1024).unwrap(), Some(at));
        assert_eq!(memory.first_nonzero(0..at).unwrap(), None);
        assert_eq!(memory.first_nonzero(at..1024).unwrap(), Some(at));
        assert_eq!(memory.first_nonzero(at + 1..1024).unwrap(), None);
        memory.wipe(at..at + 1).unwrap();
    }
}

#[test]
fn wipe_leaves_the_bytes_beside_its_range() {
    let memory = Memory::map(300, Backing::Ordinary).unwrap();
    let sent = pattern(300);
    for range in [0..0, 0..1, 1..2, 10..110, 100..300, 0..300] {
        memory.copy_in(0, &sent).unwrap();
        memory.wipe(range.clone()).unwrap();
        let mut got = vec![0; 300];
        memory.copy_out(0, &mut got).unwrap();
        for at in 0..300 {
            assert_eq!(got[at], if range.contains(&at) { 0 } else { sent[at] }, "{at} of {range:?}");
        }
    }
}

#[test]
#[allow(clippy::reversed_empty_ranges)]
fn what_is_out_of_range_is_refused() {
    let memory = Memory::map(100, Backing::Ordinary).unwrap();
    let mut bytes = [1; 10];
    for offset in [91, 100, 101, usize::MAX, usize::MAX - 5] {
        assert!(matches!(memory.copy_in(offset, &bytes), Err(VerbsError::OutOfRange { size: 100, .. })));
        assert!(matches!(memory.copy_out(offset, &mut bytes), Err(VerbsError::OutOfRange { .. })));
        assert!(memory.append_to(offset, 10, &mut Vec::new()).is_err());
    }
    for range in [0..101, 101..101, 5..4, usize::MAX..0, 0..usize::MAX, 90..usize::MAX] {
        assert!(matches!(memory.wipe(range.clone()), Err(VerbsError::OutOfRange { .. })), "{range:?}");
        assert!(matches!(memory.first_nonzero(range), Err(VerbsError::OutOfRange { .. })));
    }
    assert_eq!(memory.first_nonzero(0..100).unwrap(), None);
    memory.copy_in(100, &[]).unwrap();
}

#[test]
fn append_adds_behind_what_is_there() {
    let memory = Memory::map(200, Backing::Ordinary).unwrap();
    memory.copy_in(0, &pattern(200)).unwrap();
    let mut out = vec![9];
    memory.append_to(3, 130, &mut out).unwrap();
    assert_eq!(out[0], 9);
    assert_eq!(out[1..], pattern(200)[3..133]);
}

#[test]
fn lengths_that_cannot_be_mapped_are_refused() {
    for backing in [Backing::Ordinary, Backing::Transparent, Backing::Huge2M, Backing::Huge1G] {
        assert!(matches!(Memory::map(0, backing), Err(VerbsError::ZeroLength { .. })));
        assert!(matches!(Memory::map(usize::MAX, backing), Err(VerbsError::NoMemory { .. })));
    }
    assert!(matches!(
        Memory::map(HUGE_2M + 4096, Backing::Huge2M),
        Err(VerbsError::NotWholePages { page_bytes: HUGE_2M, .. })
    ));
    assert!(matches!(
        Memory::map(HUGE_2M, Backing::Huge1G),
        Err(VerbsError::NotWholePages { page_bytes: HUGE_1G, .. })
    ));
    assert!(matches!(Memory::map(1 << 46, Backing::Ordinary), Err(VerbsError::NoMemory { .. })));
}

#[test]
fn too_few_hugepages_names_the_command_that_mends_it() {
    // More than any machine of these tests has reserved.
    match Memory::map(HUGE_1G * 4096, Backing::Huge2M) {
        Err(error @ VerbsError::Hugepages { .. }) => {
            let text = error.to_string();
            assert!(text.contains("nr_hugepages"), "{text}");
            assert!(text.contains("2097152 hugepages of 2 MiB"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        Memory::map(HUGE_1G * 4096, Backing::Huge1G),
        Err(VerbsError::Hugepages { page_bytes: HUGE_1G, .. })
    ));
}

/// Of the mapping that begins at `start`: the value of a line of /proc/self/smaps.
fn smaps(start: u64, field: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("{start:x}-")));
    lines.find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("{field} at {start:x}")).trim().to_owned()
}

#[test]
fn memory_is_populated_and_left_out_of_dumps_and_children() {
    for backing in [Backing::Ordinary, Backing::Transparent] {
        let memory = Memory::map(4 * HUGE_2M, backing).unwrap();
        assert_eq!(memory.page_bytes(), if backing == Backing::Transparent { HUGE_2M } else { system_page() });
        assert_eq!(memory.address() % memory.page_bytes() as u64, 0);
        assert_eq!(smaps(memory.address(), "Rss:"), "8192 kB", "{backing:?}");
        let flags = smaps(memory.address(), "VmFlags:");
        let has = |flag| flags.split(' ').any(|found| found == flag);
        assert!(has("dd") && has("dc"), "{backing:?}: {flags}");
        assert_eq!(has("lo"), memory.locked(), "{flags}");
        assert_eq!(has("hg"), backing == Backing::Transparent, "{flags}");
    }
}

/// Where hugepages are reserved; else it says what it skipped.
fn hugepages(backing: Backing, page: usize, kernel_page: &str) {
    match Memory::map(page, backing) {
        Ok(memory) => {
            assert!(memory.locked());
            assert_eq!((memory.backing(), memory.page_bytes()), (backing, page));
            assert_eq!(smaps(memory.address(), "KernelPageSize:"), kernel_page);
            let flags = smaps(memory.address(), "VmFlags:");
            assert!(flags.contains(" dd") && flags.contains(" dc"), "{flags}");
            memory.copy_in(page - 3, b"end").unwrap();
            assert_eq!(memory.first_nonzero(0..page).unwrap(), Some(page - 3));
            memory.wipe(0..page).unwrap();
            assert_eq!(memory.first_nonzero(0..page).unwrap(), None);
        }
        Err(VerbsError::Hugepages { .. }) => eprintln!("SKIPPED: no hugepage of {kernel_page} is free"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn hugepages_of_2_mib_where_some_are_reserved() {
    hugepages(Backing::Huge2M, HUGE_2M, "2048 kB");
}

#[test]
fn hugepages_of_1_gib_where_some_are_reserved() {
    hugepages(Backing::Huge1G, HUGE_1G, "1048576 kB");
}

#[test]
fn copies_may_race() {
    let memory = Arc::new(Memory::map(4096, Backing::Ordinary).unwrap());
    let writer = std::thread::spawn({
        let memory = Arc::clone(&memory);
        move || (0..2000).for_each(|round| memory.copy_in(0, &[round as u8; 4096]).unwrap())
    });
    let mut got = [0; 4096];
    while !writer.is_finished() {
        memory.copy_out(0, &mut got).unwrap();
    }
    writer.join().unwrap();
    memory.copy_out(0, &mut got).unwrap();
    assert_eq!(got, [1999_u32 as u8; 4096]);
}
