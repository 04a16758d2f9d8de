//! How a lease ends, and what is left of it: nothing.

use std::collections::HashSet;

use crate::memory::{Memory, STRIDE};
use crate::stack::{Stack, noise, seconds, text, ttl};

#[test]
fn a_full_pool_says_so() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("12MiB", "10m");
    user.run(&["lease", "create", "--size", "12MiB", "--ttl", "10m"]).expect(6);
    user.run(&["lease", "create", "--size", "1TiB", "--ttl", "10m"]).expect(6);
    user.run(&["lease", "release", &lease]).expect(0);
    user.lease("12MiB", "10m");
}

#[test]
fn a_released_lease_is_over_and_its_memory_zero() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("1MiB", "10m");
    user.put(&lease, &noise(1 << 20, 1)).expect(0);
    let memory = Memory::of(&stack, "a_released_lease_is_over_and_its_memory_zero");
    assert!(memory.as_ref().is_none_or(|memory| !memory.is_zero()));
    let answer = user.run(&["lease", "release", &lease[..10], "--json"]).expect(0).json();
    assert_eq!(text(&answer, "state"), "ended");
    let receipt = &answer["receipt"];
    assert_eq!((receipt["complete"].as_bool(), text(receipt, "reason")), (Some(true), "released"));
    assert_eq!(receipt["steps"].as_array().map(Vec::len), Some(6));
    assert!(memory.is_none_or(|memory| memory.is_zero()));
    assert!(!user.runtime.join(format!("overbank/{lease}.lease")).exists());
    user.run(&["get", &lease, "-", "--len", "1"]).expect(7).saying("released");
    user.put(&lease, b"x").expect(7);
    user.run(&["lease", "renew", &lease, "--ttl", "1h"]).expect(7);
    user.run(&["lease", "release", &"0".repeat(32)]).expect(7);
}

#[test]
fn an_expired_lease_is_over_and_its_memory_zero() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("1MiB", &ttl(4));
    user.put(&lease, &noise(1 << 20, 2)).expect(0);
    let memory = Memory::of(&stack, "an_expired_lease_is_over_and_its_memory_zero");
    stack.wait_ended(&user, &lease);
    assert!(memory.is_none_or(|memory| memory.is_zero()));
    let entry = stack.lease(&user, &lease);
    assert_eq!(text(&entry, "reason"), "expired");
    let receipt = &entry["receipt"];
    assert_eq!(receipt["complete"].as_bool(), Some(true));
    let (due, fenced) = (receipt["due_us"].as_u64(), receipt["steps"][0]["at_us"].as_u64());
    assert!(fenced >= due, "not before its deadline: {receipt}");
    user.run(&["get", &lease, "-", "--len", "1"]).expect(7);
    user.put(&lease, b"x").expect(7);
    user.run(&["lease", "renew", &lease, "--ttl", "1h"]).expect(7);
}

#[test]
fn a_renewed_lease_outlives_its_first_deadline() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let lease = user.lease("64KiB", &ttl(4));
    user.put(&lease, b"still here").expect(0);
    let answer = user.run(&["lease", "renew", &lease, "--ttl", "10m", "--json"]).expect(0).json();
    assert!((570_000..600_000).contains(&answer["left_ms"].as_u64().expect("a number")), "{answer}");
    std::thread::sleep(seconds(4.5));
    assert_eq!(user.get(&lease, 10), b"still here");
    // And a renewal never shortens.
    let answer = user.run(&["lease", "renew", &lease, "--ttl", "1s", "--json"]).expect(0).json();
    assert!(answer["left_ms"].as_u64() > Some(500_000), "{answer}");
}

#[test]
fn while_leased_the_provider_sees_nothing_of_it() {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let Some(memory) = Memory::of(&stack, "while_leased_the_provider_sees_nothing_of_it") else { return };
    let lease = user.lease("64KiB", "10m");
    let bytes: Vec<u8> = (0u32..4096).flat_map(|word| word.wrapping_mul(0x9E37_79B1).to_le_bytes()).collect();
    user.put(&lease, &bytes).expect(0);
    let (all, at) = (memory.all(), memory.lease());
    let (sealed, end) = (&all[at..at + 16 * STRIDE], at + 16 * STRIDE);
    assert!(all[..at].iter().chain(&all[end..]).all(|&byte| byte == 0), "all of it lies where the lease lies");
    let chunks: HashSet<&[u8]> = bytes.chunks_exact(16).collect();
    let telling = |chunk: &[u8]| chunk.iter().collect::<HashSet<_>>().len() >= 8;
    assert!(chunks.iter().filter(|chunk| telling(chunk)).count() > 1000);
    assert!(!sealed.windows(16).any(|window| telling(window) && chunks.contains(window)), "plaintext at the provider");
}
