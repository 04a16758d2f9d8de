//! A hostile lender changes, moves, plays back and erases blocks in its own memory: each is refused, each by its name.

use crate::memory::{Memory, STRIDE};
use crate::stack::{Stack, User, noise};

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
fn a_flipped_bit_anywhere_in_a_block_is_found() {
    let Some(scene) = scene("a_flipped_bit_anywhere_in_a_block_is_found") else { return };
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
}

#[test]
fn swapped_blocks_are_found() {
    let Some(scene) = scene("swapped_blocks_are_found") else { return };
    let (one, four) = (scene.stride(1), scene.stride(4));
    scene.set(1, &four);
    scene.set(4, &one);
    scene.refused(&[1, 4], "somebody moved it");
    scene.user.try_get(&scene.lease).expect(9).saying("block 1 holds what was written to block 4");
    scene.set(1, &one);
    scene.set(4, &four);
    scene.intact();
}

#[test]
fn an_old_block_played_back_is_found() {
    let Some(mut scene) = scene("an_old_block_played_back_is_found") else { return };
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
}

#[test]
fn an_erased_block_is_found_and_an_empty_one_cannot_be_filled() {
    let Some(scene) = scene("an_erased_block_is_found_and_an_empty_one_cannot_be_filled") else { return };
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
