use std::sync::atomic::AtomicU64;

use overbank_fabric::block::{BlockContext, LeaseKey};
use overbank_fabric::ids::LeaseId;
use overbank_fabric::labels;
use proptest::prelude::*;

use super::*;

fn key() -> LeaseKey {
    LeaseKey::from_bytes([7; 32])
}

fn context() -> BlockContext {
    BlockContext { tenant: "team-7".parse().unwrap(), lease: LeaseId([9; 16]), generation: 5, block: 4096 }
}

fn salt(byte: u8) -> Salt {
    Salt([byte; 10])
}

/// What an entry says, whatever its salt's number.
#[derive(Debug, PartialEq)]
enum Said {
    Never,
    Unknown,
    Written(Salt, u64),
}

fn said(table: &Freshness, block: u64) -> Said {
    let mut salts = Vec::new();
    table.more_salts(&mut salts);
    match table.entry(block) {
        Entry::NEVER => Said::Never,
        Entry::UNKNOWN | Entry::UNSETTLED => Said::Unknown,
        entry => {
            let (number, counter) = entry.sealing().unwrap();
            Said::Written(salts[usize::from(number.0)], counter)
        }
    }
}

fn written(table: &Freshness, block: u64, by: u8, counter: u64) {
    assert!(table.begin(block));
    table.commit(block, Entry::new(table.salt_number(salt(by)).unwrap(), counter));
}

fn again(table: &Freshness) -> Freshness {
    Freshness::from_bytes(&table.to_bytes(&key(), &context()), &key(), &context(), table.blocks()).unwrap()
}

#[test]
fn a_block_has_one_writer_and_each_end_leaves_its_entry() {
    let table = Freshness::new(10_000);
    assert_eq!((table.entry(9_999), table.is_writing(9_999)), (Entry::NEVER, false));
    assert!(table.begin(9_999));
    assert!(table.is_writing(9_999) && !table.is_writing(9_998));
    assert!(!table.begin(9_999));
    table.release(9_999);
    assert_eq!((table.entry(9_999), table.is_writing(9_999)), (Entry::NEVER, false));

    written(&table, 9_999, 1, 42);
    assert_eq!(said(&table, 9_999), Said::Written(salt(1), 42));
    assert!(table.begin(9_999));
    table.unsettle(9_999);
    assert!(table.is_writing(9_999) && !table.begin(9_999));
    assert_eq!(table.entry(9_999), Entry::UNSETTLED);
    assert!(!table.is_known());
    table.abandon(9_999);
    assert_eq!((table.entry(9_999), table.is_writing(9_999)), (Entry::UNKNOWN, false));
    assert!(!table.is_known());
    written(&table, 9_999, 1, 43);
    assert!(table.is_known());
}

#[test]
fn what_is_found_fills_in_only_what_is_unknown() {
    let table = Freshness::unknown(5000);
    assert!(!table.is_known());
    let found = Entry::new(table.salt_number(salt(1)).unwrap(), 3);
    table.learn(4999, found);
    assert_eq!(table.entry(4999), found);
    table.learn(4999, found.after(1));
    assert_eq!(table.entry(4999), found);
    assert_eq!(table.entry(0), Entry::UNKNOWN);
}

#[test]
fn blocks_outside_are_unknown_and_nobody_can_write_them() {
    let table = Freshness::new(5000);
    for outside in [5000, 8191, 8192, u64::MAX] {
        assert_eq!((table.entry(outside), table.is_writing(outside)), (Entry::UNKNOWN, false));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.begin(outside))).is_err());
    }
}

#[test]
fn salts_have_numbers_up_to_a_limit() {
    let table = Freshness::new(1);
    let mut view = SaltView::default();
    let nth = |n: usize| Salt(std::array::from_fn(|i| if i < 8 { (n as u64).to_be_bytes()[i] } else { 1 }));
    for n in 0..MAX_SALTS {
        assert_eq!(table.salt_number(nth(n)), Ok(SaltNumber(n as u16)));
    }
    assert_eq!(table.salt_number(nth(MAX_SALTS)), Err(TooManySalts));
    assert_eq!(table.salt_number(nth(3)), Ok(SaltNumber(3)));
    let last = Entry::new(SaltNumber((MAX_SALTS - 1) as u16), MAX_COUNTER);
    assert!(last.sealing().is_some(), "no salt's number makes a reserved word");
    let stamp = Stamp { salt: nth(MAX_SALTS - 1), counter: MAX_COUNTER };
    assert!(view.matches(&table, last, stamp));
    assert!(!view.matches(&table, last, Stamp { counter: 1, ..stamp }));
    assert!(!view.matches(&table, last, Stamp { salt: nth(0), ..stamp }));
    assert!(!view.matches(&table, Entry::NEVER, stamp));
    assert_eq!(view.known_entry_of(&table, stamp), Some(last));
    assert_eq!(view.known_entry_of(&table, Stamp { counter: 0, ..stamp }), None);
    assert_eq!(view.entry_of(&table, Stamp { salt: nth(MAX_SALTS), counter: 1 }), None);
}

#[test]
fn threads_exclude_each_other_block_by_block() {
    let table = Freshness::new(CHUNK + 10);
    let (number, total) = (table.salt_number(salt(1)).unwrap(), AtomicU64::new(0));
    let counters: Vec<AtomicU64> = (0..CHUNK + 10).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..20_000_u64 {
                    let block = round * 7919 % (CHUNK + 10);
                    if !table.begin(block) {
                        continue;
                    }
                    // Not atomic as a whole, so that two writers at once would lose a count.
                    let counter = counters[block as usize].load(Ordering::Relaxed) + 1;
                    std::hint::spin_loop();
                    counters[block as usize].store(counter, Ordering::Relaxed);
                    table.commit(block, Entry::new(number, counter));
                    total.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let counted: u64 = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
    assert_eq!(counted, total.load(Ordering::Relaxed));
    for (block, counter) in (0..).zip(&counters) {
        let counter = counter.load(Ordering::Relaxed);
        let entry = if counter == 0 { Entry::NEVER } else { Entry::new(number, counter) };
        assert_eq!(table.entry(block), entry);
    }
}

#[test]
fn a_table_takes_memory_and_file_for_what_was_written_only() {
    let tebibyte = Freshness::new((1 << 40) / 4096);
    assert!(tebibyte.to_bytes(&key(), &context()).len() < 64);
    assert!(Freshness::unknown((1 << 40) / 4096).to_bytes(&key(), &context()).len() < 64);
    (0..100_000).for_each(|block| written(&tebibyte, 5000 + block, 1, 1 + block));
    assert!(tebibyte.to_bytes(&key(), &context()).len() < 128, "one run");
    let again = again(&tebibyte);
    assert_eq!(said(&again, 104_999), Said::Written(salt(1), 100_000));
    assert_eq!((said(&again, 4999), said(&again, 105_000)), (Said::Never, Said::Never));
    assert!(again.chunks.iter().filter(|chunk| chunk.get().is_some()).count() <= 26);

    // In the worst case, little more than an entry for each block.
    let scattered = Freshness::new(4096);
    (0..4096).for_each(|block| written(&scattered, block, 1, 1 + 2 * (4096 - block)));
    assert!(scattered.to_bytes(&key(), &context()).len() < 4096 * 9 + 100);
    // At the usual block size, less than 1 % of what is leased even where all is written.
    assert!(size_of::<OnceLock<Chunk>>() + 4096 * 8 + 4096 / 8 < 4096 * 4096 / 100);
}

#[test]
fn salts_that_no_block_bears_are_not_saved() {
    let table = Freshness::new(10);
    (0..10).for_each(|by| written(&table, 0, by, 1));
    written(&table, 1, 3, 7);
    let again = again(&table);
    assert_eq!((said(&again, 0), said(&again, 1)), (Said::Written(salt(9), 1), Said::Written(salt(3), 7)));
    assert_eq!(again.salt_number(salt(100)), Ok(SaltNumber(2)));
}

#[test]
fn a_write_that_is_going_on_is_saved_as_unknown() {
    let table = Freshness::new(10);
    written(&table, 0, 1, 1);
    assert!(table.begin(0) && table.begin(1) && table.begin(2));
    table.unsettle(1);
    let again = again(&table);
    assert_eq!(
        [0, 1, 2, 3].map(|block| said(&again, block)),
        [Said::Unknown, Said::Unknown, Said::Unknown, Said::Never]
    );
    assert!(!again.is_known() && again.begin(0));
}

#[test]
fn a_saved_table_is_of_one_key_one_lease_and_one_size() {
    let table = Freshness::new(100);
    (0..50).for_each(|block| written(&table, block, block as u8 % 3, 100 + block));
    let bytes = table.to_bytes(&key(), &context());
    let load = |bytes: &[u8], key: &LeaseKey, context: &BlockContext, blocks| {
        Freshness::from_bytes(bytes, key, context, blocks).err()
    };
    assert_eq!(load(&bytes, &key(), &context(), 100), None);
    assert_eq!(load(&bytes, &LeaseKey::generate(), &context(), 100), Some(FreshnessError::Forged));
    let other = BlockContext { lease: LeaseId::random(), ..context() };
    assert_eq!(load(&bytes, &key(), &other, 100), Some(FreshnessError::Forged));
    assert_eq!(load(&bytes, &key(), &BlockContext { generation: 6, ..context() }, 100), Some(FreshnessError::Forged));
    assert!(matches!(load(&bytes, &key(), &context(), 99), Some(FreshnessError::Malformed(_))));
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(load(&changed, &key(), &context(), 100), Some(FreshnessError::Forged), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(load(&bytes[..len], &key(), &context(), 100), Some(FreshnessError::Forged), "cut to {len}");
    }
}

/// What a holder of the key could have written wrongly is an error too, and no panic.
#[test]
fn malformed_tables_are_refused_even_with_a_good_code() {
    let head = |blocks: u64, elsewhere: u8, salts: &[u8]| {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&blocks.to_be_bytes());
        bytes.push(elsewhere);
        bytes.extend_from_slice(&(salts.len() as u16).to_be_bytes());
        salts.iter().for_each(|&by| bytes.extend_from_slice(&salt(by).0));
        bytes
    };
    let load = |mut bytes: Vec<u8>, runs: &[u8]| {
        bytes.extend_from_slice(runs);
        let mut bound = vec![9; 16];
        bound.extend_from_slice(&5_u64.to_be_bytes());
        let code = key().authenticate(labels::FRESHNESS, &bound, &bytes);
        bytes.extend_from_slice(&code);
        Freshness::from_bytes(&bytes, &key(), &context(), 3)
    };
    let run = |count: u8, number: u16, counter: u64| {
        let mut run = vec![count << 2 | 2];
        run.extend_from_slice(&number.to_be_bytes());
        run.extend_from_slice(&counter.to_be_bytes()[2..]);
        run
    };
    assert!(load(head(3, 0, &[]), &[3 << 2]).is_ok());
    assert!(load(head(3, 1, &[]), &[1 << 2, 2 << 2 | 1]).is_ok());
    assert!(load(head(3, 0, &[1]), &run(3, 0, MAX_COUNTER - 2)).is_ok());

    let bad = [
        ("no blocks told", load(head(3, 0, &[]), &[])),
        ("too few", load(head(3, 0, &[]), &[2 << 2])),
        ("too many", load(head(3, 0, &[]), &[4 << 2])),
        ("an empty run", load(head(3, 0, &[]), &[0, 3 << 2])),
        ("a kind of its own", load(head(3, 0, &[]), &[3 << 2 | 3])),
        ("another elsewhere", load(head(3, 2, &[]), &[3 << 2])),
        ("a salt twice", load(head(3, 0, &[1, 1]), &[3 << 2])),
        ("no such salt", load(head(3, 0, &[1]), &run(3, 1, 1))),
        ("counter zero", load(head(3, 0, &[1]), &run(3, 0, 0))),
        ("counters too high", load(head(3, 0, &[1]), &run(3, 0, MAX_COUNTER - 1))),
        ("bytes after the end", load(head(3, 0, &[]), &[3 << 2, 0])),
        ("a number without end", load(head(3, 0, &[]), &[0x80; 30])),
        ("a huge number", load(head(3, 0, &[]), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])),
        ("a cut run", load(head(3, 0, &[1]), &run(3, 0, 1)[..8])),
        ("more salts than bytes", load(vec![1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0xff, 0xff], &[])),
    ];
    for (what, loaded) in bad {
        assert!(matches!(loaded.err(), Some(FreshnessError::Malformed(_))), "{what}");
    }
    let mut newer = head(3, 0, &[]);
    newer[0] = 2;
    assert_eq!(load(newer, &[3 << 2]).err(), Some(FreshnessError::Newer(2)));
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u8),
    Abandon(u64),
    Learn(u64, u8),
    Reload,
}

fn steps(blocks: u64) -> impl Strategy<Value = Vec<Step>> {
    let block = prop_oneof![4 => 0..blocks, 1 => (CHUNK - 3)..(CHUNK + 3)];
    prop::collection::vec(
        prop_oneof![
            8 => (block.clone(), 0..4_u8).prop_map(|(block, by)| Step::Write(block, by)),
            1 => block.clone().prop_map(Step::Abandon),
            1 => (block, 0..4_u8).prop_map(|(block, by)| Step::Learn(block, by)),
            1 => Just(Step::Reload),
        ],
        0..200,
    )
}

proptest! {
    /// Against a plain list.
    #[test]
    fn a_table_says_what_was_written_last(unknown: bool, steps in steps(CHUNK + 20)) {
        let blocks = CHUNK + 20;
        let mut table = if unknown { Freshness::unknown(blocks) } else { Freshness::new(blocks) };
        let start = || if unknown { Said::Unknown } else { Said::Never };
        let mut list: Vec<Said> = (0..blocks).map(|_| start()).collect();
        let mut counter = 0;
        for step in steps {
            counter += 1;
            match step {
                Step::Write(block, by) => {
                    written(&table, block, by, counter);
                    list[block as usize] = Said::Written(salt(by), counter);
                }
                Step::Abandon(block) => {
                    prop_assert!(table.begin(block));
                    table.unsettle(block);
                    table.abandon(block);
                    list[block as usize] = Said::Unknown;
                }
                Step::Learn(block, by) => {
                    table.learn(block, Entry::new(table.salt_number(salt(by)).unwrap(), counter));
                    if list[block as usize] == Said::Unknown {
                        list[block as usize] = Said::Written(salt(by), counter);
                    }
                }
                Step::Reload => table = again(&table),
            }
        }
        let table = again(&table);
        for (block, expected) in (0..).zip(&list) {
            prop_assert_eq!(&said(&table, block), expected);
        }
        prop_assert_eq!(table.is_known(), !list.contains(&Said::Unknown));
    }

    #[test]
    fn arbitrary_bytes_are_no_table(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Freshness::from_bytes(&bytes, &key(), &context(), 3).is_err());
    }
}
