//! What the kernel says of a process's memory.

use std::fs;
use std::io;

/// Sum of the kilobytes that a file of `/proc/PID` gives under this name, in bytes.
fn sum(text: &str, field: &str) -> u64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    lines.map(|line| line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10).sum()
}

/// Bytes that only this process needs: heap, stacks and mappings, those that device memory is made of included; not the
/// pages of the program and its libraries, which are in files.
pub(crate) fn own_memory() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux 4.14 or later");
    ["Anonymous", "Private_Hugetlb", "Shared_Hugetlb"].map(|field| sum(&rollup, field)).iter().sum()
}

/// All resident bytes of a process but hugepages.
pub(crate) fn of(pid: u32) -> u64 {
    sum(&fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs"), "VmRSS")
}

/// Resident bytes of a process's only writable mapping of that size. None where it may not be looked at.
pub(crate) fn of_mapping(pid: u32, size: u64) -> Option<u64> {
    let maps = match fs::read_to_string(format!("/proc/{pid}/smaps")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
        maps => maps.expect("it runs"),
    };
    // Each mapping is a line `FROM-TO RIGHTS …`, followed by lines `Field: N kB`.
    let mut found = Vec::new();
    let mut rest = maps.as_str();
    while let Some((head, after)) = rest.split_once('\n') {
        let fields =
            after.lines().take_while(|line| line.split_whitespace().next().is_some_and(|word| word.ends_with(':')));
        let len = fields.map(|line| line.len() + 1).sum::<usize>().min(after.len());
        let mut words = head.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [range.0, range.1].map(|word| u64::from_str_radix(word, 16).expect("an address"));
        if to - from == size && words.next().is_some_and(|rights| rights.starts_with("rw")) {
            found.push(sum(&after[..len], "Rss"));
        }
        rest = &after[len..];
    }
    assert_eq!(found.len(), 1, "one mapping of {size} bytes:\n{maps}");
    Some(found[0])
}
