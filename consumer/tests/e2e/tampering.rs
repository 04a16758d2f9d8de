//! A hostile lender changes, moves, plays back and erases blocks in its own memory: each is refused, each by its name.

use crate::memory::{Memory, STRIDE};
use crate::stack::{Stack, User, device, noise};

struct Scene {
    stack: Stack,
    user: User,
    lease: String,
    memory: Memory,
    /// Offset of the lease's first block in the pool.
    at: usize,
    bytes: Vec<u8>,
}

const BLOCK: usize = 4096;

/// A lease of 8 blocks, 6 of them written.
fn scene(test: &str) -> Option<Scene> {
    let stack = Stack::start();
    let user = stack.consumer("ann", "blue");
    let memory = Memory::of(&stack, test)?;
    let lease = user.lease("32KiB", "10m");
    let bytes = noise(6 * BLOCK, 1);
    user.put(&lease, &bytes).expect(0);
    let at = memory.lease();
    Some(Scene { stack, user, lease, memory, at, bytes })
}

impl Scene {
    fn stride(&self, block: usize) -> Vec<u8> {
        self.memory.read(self.at + block * STRIDE, STRIDE)
    }

    fn set(&self, block: usize, stride: &[u8]) {
        self.memory.write(self.at + block * STRIDE, stride);
    }

    /// The whole is refused with these words, and the blocks around the bad ones are still to be had.
    #[track_caller]
    fn refused(&self, blocks: &[usize], words: &str) {
        self.user.try_get(&self.lease).expect(9).saying(words);
        for block in 0..6 {
            let target = format!("{}@{}", self.lease, block * BLOCK);
            if blocks.contains(&block) {
                self.user.run(&["get", &target, "-", "--len", "1"]).expect(9).saying(words);
            } else {
                assert_eq!(self.user.get(&target, BLOCK), self.bytes[block * BLOCK..][..BLOCK], "block {block}");
            }
        }
    }

    #[track_caller]
    fn intact(&self) {
        let mut all = self.bytes.clone();
        all.resize(8 * BLOCK, 0);
        assert!(self.user.get(&self.lease, 8 * BLOCK) == all);
    }
}

#[test]
fn attack_24_a_flipped_bit_in_the_pool() {
    let Some(scene) = scene("attack_24_a_flipped_bit_in_the_pool") else { return };
    let good = scene.stride(2);
    // Salt, counter, tag, first and last byte of the payload.
    for byte in [0, 9, 15, 16, 31, 32, STRIDE - 1] {
        let mut bad = good.clone();
        bad[byte] ^= 0x10;
        scene.set(2, &bad);
        scene
            .user
            .run(&["get", &format!("{}@8KiB", scene.lease), "-", "--len", "1"])
            .expect(9)
            .saying("block 2 was changed");
    }
    scene.refused(&[2], "was changed by somebody");
    scene.set(2, &good);
    scene.intact();
    println!("attack 24 {}: seen get ends with status 9, block 2 was changed", device());
}

#[test]
fn attack_26_blocks_swapped_in_the_pool() {
    let Some(scene) = scene("attack_26_blocks_swapped_in_the_pool") else { return };
    let (one, four) = (scene.stride(1), scene.stride(4));
    scene.set(1, &four);
    scene.set(4, &one);
    scene.refused(&[1, 4], "somebody moved it");
    scene.user.try_get(&scene.lease).expect(9).saying("block 1 holds what was written to block 4");
    scene.set(1, &one);
    scene.set(4, &four);
    scene.intact();
    println!("attack 26 {}: seen get ends with status 9, and says from where a block was moved", device());
}

/// Two tenants on one provider, which gives each the other's block.
#[test]
fn attack_26_blocks_swapped_between_tenants() {
    let stack = Stack::start();
    let Some(memory) = Memory::of(&stack, "attack_26_blocks_swapped_between_tenants") else { return };
    let users = [stack.consumer("ann", "blue"), stack.consumer("bob", "red")];
    let leases = users.each_ref().map(|user| user.lease("32KiB", "10m"));
    for (at, (user, lease)) in users.iter().zip(&leases).enumerate() {
        user.put(lease, &noise(6 * BLOCK, at as u64 + 1)).expect(0);
    }
    let found = memory.leases();
    assert_eq!(found.len(), 2, "two leases");
    let [one, other] = [0, 1].map(|at| memory.read(found[at] + 2 * STRIDE, STRIDE));
    memory.write(found[0] + 2 * STRIDE, &other);
    memory.write(found[1] + 2 * STRIDE, &one);
    for (user, lease) in users.iter().zip(&leases) {
        user.try_get(lease).expect(9).saying("block 2 was changed");
    }
    memory.write(found[0] + 2 * STRIDE, &one);
    memory.write(found[1] + 2 * STRIDE, &other);
    for (at, (user, lease)) in users.iter().zip(&leases).enumerate() {
        assert!(user.get(lease, 6 * BLOCK) == noise(6 * BLOCK, at as u64 + 1));
    }
    println!("attack 26 {}: seen another tenant's block: get ends with status 9, the block was changed", device());
}

#[test]
fn attack_25_an_old_block_played_back_in_the_pool() {
    let Some(mut scene) = scene("attack_25_an_old_block_played_back_in_the_pool") else { return };
    let old = scene.stride(3);
    let new = noise(BLOCK, 2);
    scene.user.put(&format!("{}@12KiB", scene.lease), &new).expect(0);
    scene.bytes[3 * BLOCK..4 * BLOCK].copy_from_slice(&new);
    scene.intact();
    let latest = scene.stride(3);
    scene.set(3, &old);
    scene.refused(&[3], "played it back");
    scene.set(3, &latest);
    scene.intact();
    println!("attack 25 {}: seen get ends with status 9, somebody played it back", device());
}

#[test]
fn attack_27_a_block_erased_in_the_pool() {
    let Some(scene) = scene("attack_27_a_block_erased_in_the_pool") else { return };
    let good = scene.stride(0);
    scene.set(0, &[0; STRIDE]);
    scene.refused(&[0], "somebody erased it");
    // Its header alone, too.
    let mut headless = good.clone();
    headless[..32].fill(0);
    scene.set(0, &headless);
    scene.user.try_get(&scene.lease).expect(9).saying("somebody erased it");
    scene.set(0, &good);
    scene.intact();
    // Block 7 was never written; another block's content does not pass for it, nor does noise.
    scene.set(7, &good);
    scene.user.run(&["get", &format!("{}@28KiB", scene.lease), "-", "--len", "1"]).expect(9);
    scene.set(7, &noise(STRIDE, 3));
    scene
        .user
        .run(&["get", &format!("{}@28KiB", scene.lease), "-", "--len", "1"])
        .expect(9)
        .saying("was changed by somebody");
    scene.set(7, &[0; STRIDE]);
    scene.intact();
    println!("attack 27 {}: seen get ends with status 9, somebody erased it", device());
}

#[test]
fn a_part_of_a_block_is_not_written_over_one_that_was_changed() {
    let Some(scene) = scene("a_part_of_a_block_is_not_written_over_one_that_was_changed") else { return };
    let mut bad = scene.stride(5);
    bad[40] ^= 1;
    scene.set(5, &bad);
    scene.user.put(&format!("{}@20KiB", scene.lease), b"part").expect(9).saying("block 5 was changed");
    assert_eq!(scene.stride(5), bad, "nothing was written");
    // All of it, on the other hand, makes it good.
    scene.user.put(&format!("{}@20KiB", scene.lease), &scene.bytes[5 * BLOCK..]).expect(0);
    scene.intact();
    drop(scene.stack);
}
