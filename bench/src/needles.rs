//! Finding pieces of a file anywhere in memory, at any offset, fast.

/// Bytes of a piece. Pieces begin at multiples of this in the file.
pub(crate) const PIECE: usize = 16;
/// A piece with fewer distinct bytes than this (zeros, padding) proves nothing when found.
const DISTINCT: usize = 8;

/// The pieces of a file that are telling enough to look for.
pub(crate) struct Needles {
    /// Sorted.
    pieces: Vec<u128>,
    /// One bit for each hash of a piece's first half: says no at once for nearly every place in memory.
    filter: Vec<u64>,
    shift: u32,
}

impl Needles {
    /// The telling pieces of `file`.
    pub(crate) fn of(file: &[u8]) -> Self {
        let (pieces, _) = file.as_chunks::<PIECE>();
        let mut pieces: Vec<u128> =
            pieces.iter().filter(|piece| telling(piece)).map(|piece| u128::from_le_bytes(*piece)).collect();
        pieces.sort_unstable();
        pieces.dedup();
        let bits = (pieces.len().max(2) as u64 * 32).next_power_of_two().ilog2();
        let mut needles = Self { filter: vec![0; (1usize << bits) / 64], shift: 64 - bits, pieces };
        for index in 0..needles.pieces.len() {
            let at = needles.hash(needles.pieces[index] as u64);
            needles.filter[at / 64] |= 1 << (at % 64);
        }
        needles
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Offsets in `memory` at which a piece begins, at most `most`.
    pub(crate) fn find(&self, memory: &[u8], most: usize) -> Vec<usize> {
        let mut found = Vec::new();
        for (at, window) in memory.windows(PIECE).enumerate() {
            let window = u128::from_le_bytes(*window.first_chunk().expect("windows are a piece long"));
            let hash = self.hash(window as u64);
            let maybe = self.filter[hash / 64] >> (hash % 64) & 1 == 1;
            if maybe && self.pieces.binary_search(&window).is_ok() {
                found.push(at);
                if found.len() >= most {
                    break;
                }
            }
        }
        found
    }

    fn hash(&self, half: u64) -> usize {
        (half.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }
}

fn telling(piece: &[u8; PIECE]) -> bool {
    let mut seen = [0u64; 4];
    for &byte in piece {
        seen[usize::from(byte / 64)] |= 1 << (byte % 64);
    }
    seen.iter().map(|word| word.count_ones()).sum::<u32>() as usize >= DISTINCT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_found_at_every_offset_and_nothing_else_is() {
        let file: Vec<u8> = (0..48u8).map(|byte| byte.wrapping_mul(37)).collect();
        let needles = Needles::of(&file);
        assert_eq!(needles.count(), 3);
        for at in 0..200 {
            let mut memory = vec![0xA5; 256];
            memory[at..at + PIECE].copy_from_slice(&file[16..32]);
            assert_eq!(needles.find(&memory, 10), [at]);
            memory[at] ^= 1;
            assert_eq!(needles.find(&memory, 10), [0usize; 0]);
        }
        // Not aligned in the file: not a piece.
        assert!(needles.find(&file[1..17], 10).is_empty());
        assert_eq!(needles.find(&file, 2).len(), 2);
        assert!(needles.find(&[], 1).is_empty());
    }

    #[test]
    fn dull_pieces_are_not_looked_for() {
        assert_eq!(Needles::of(&[0; 64]).count(), 0);
        assert_eq!(Needles::of(b"abcdefgabcdefgab").count(), 0);
        assert_eq!(Needles::of(b"abcdefghabcdefgh").count(), 1);
        assert!(Needles::of(&[]).find(&[0; 64], 1).is_empty());
    }
}
