//! Packet sequence numbers: 24 bits on the wire, and never wrapping inside.

const MASK: u32 = 0x00ff_ffff;

/// A packet sequence number as the wire has it. It wraps, so it has no order: see [`Seq`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Psn(u32);

impl Psn {
    /// The low 24 bits of `value`.
    pub(crate) const fn new(value: u32) -> Self {
        Self(value & MASK)
    }

    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

/// A place in the sequence of a connection's packets. 2^63 of them do not wrap in the life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seq(u64);

impl Seq {
    /// Where a connection begins: one turn in, so that what came before has a place as well.
    pub(crate) const fn start(psn: Psn) -> Self {
        Self((1 << 24) + psn.0 as u64)
    }

    /// On the wire.
    pub(crate) const fn psn(self) -> Psn {
        Psn(self.0 as u32 & MASK)
    }

    /// The place nearest to this one that has this PSN: up to 2^23 behind, less than that ahead.
    pub(crate) const fn nearest(self, psn: Psn) -> Self {
        let ahead = (psn.0.wrapping_sub(self.0 as u32) & MASK) as u64;
        if ahead < 1 << 23 { Self(self.0 + ahead) } else { Self((self.0 + ahead).saturating_sub(1 << 24)) }
    }

    /// `packets` further on.
    pub(crate) const fn plus(self, packets: u64) -> Self {
        Self(self.0 + packets)
    }

    /// The one before.
    pub(crate) const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Packets from `earlier` to here; 0 where it lies ahead.
    pub(crate) const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // InfiniBand 9.7.2: PSN arithmetic is modulo 2^24, and the valid region is 2^23 of them.
    #[test]
    fn sec_9_7_2_the_nearest_place_is_found_across_the_wrap() {
        let start = Seq::start(Psn::new(0x00ff_fffe));
        assert_eq!(start.plus(1).psn().get(), 0x00ff_ffff);
        assert_eq!(start.plus(2).psn().get(), 0);
        assert_eq!(start.nearest(Psn::new(1)).since(start), 3);
        assert_eq!(start.since(start.nearest(Psn::new(0x00ff_fff0))), 14);
        let begin = Seq::start(Psn::new(0));
        assert_eq!(begin.since(begin.nearest(Psn::new(0x00ff_ffff))), 1);
    }

    #[test]
    fn half_a_turn_ahead_counts_as_behind() {
        let here = Seq::start(Psn::new(5));
        assert_eq!(here.nearest(Psn::new(5 + (1 << 23) - 1)).since(here), (1 << 23) - 1);
        assert_eq!(here.since(here.nearest(Psn::new(5 + (1 << 23)))), 1 << 23);
    }

    #[test]
    fn every_distance_comes_back() {
        for psn in [0, 1, 77, (1 << 23) - 1, 1 << 23, 0x00ff_ffff] {
            let here = Seq::start(Psn::new(psn)).plus(3 << 24);
            for distance in [0, 1, 2, 63, 64, 4096, (1 << 23) - 1] {
                assert_eq!(here.nearest(here.plus(distance).psn()), here.plus(distance));
                assert_eq!(here.plus(distance).nearest(here.psn()), here);
            }
        }
    }
}
