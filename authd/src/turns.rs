//! Who is next: lanes take turns, and in a lane its members do. Whoever asks for much waits behind itself alone.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Things that wait, by lane and member.
pub(crate) struct Turns<L, M, T>(Ring<L, Ring<M, VecDeque<T>>>);

/// Keys in the order of their turns, and what each has waiting.
struct Ring<K, V> {
    order: VecDeque<K>,
    waiting: HashMap<K, V>,
}

impl<K, V> Default for Ring<K, V> {
    fn default() -> Self {
        Self { order: VecDeque::new(), waiting: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, V: Default> Ring<K, V> {
    fn of(&mut self, key: K) -> &mut V {
        let Self { order, waiting } = self;
        waiting.entry(key).or_insert_with_key(|key| {
            order.push_back(key.clone());
            V::default()
        })
    }

    /// Takes something of the first in the order. `take` says also whether there is more of it, and then it goes last.
    fn next<T>(&mut self, take: impl FnOnce(&mut V) -> (Option<T>, bool)) -> Option<T> {
        let key = self.order.pop_front()?;
        let (taken, more) = take(self.waiting.get_mut(&key)?);
        match more {
            true => self.order.push_back(key),
            false => drop(self.waiting.remove(&key)),
        }
        taken
    }
}

impl<L, M, T> Default for Turns<L, M, T> {
    fn default() -> Self {
        Self(Ring::default())
    }
}

impl<L: Clone + Eq + Hash, M: Clone + Eq + Hash, T> Turns<L, M, T> {
    pub(crate) fn push(&mut self, lane: L, member: M, item: T) {
        self.0.of(lane).of(member).push_back(item);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.next(|lane| {
            let taken = lane.next(|items| {
                let taken = items.pop_front();
                (taken, !items.is_empty())
            });
            (taken, !lane.order.is_empty())
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.order.is_empty()
    }

    /// How much of one member's waits.
    #[cfg(test)]
    pub(crate) fn of(&self, lane: &L, member: &M) -> usize {
        let members = self.0.waiting.get(lane).map(|lane| &lane.waiting);
        members.and_then(|members| members.get(member)).map_or(0, VecDeque::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_turns_and_so_do_members() {
        let mut turns = Turns::default();
        for number in 0..4 {
            turns.push("flood", "a", ("flood a", number));
        }
        turns.push("flood", "b", ("flood b", 0));
        turns.push("quiet", "c", ("quiet c", 0));
        turns.push("quiet", "c", ("quiet c", 1));
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        let wanted = [
            ("flood a", 0),
            ("quiet c", 0),
            ("flood b", 0),
            ("quiet c", 1),
            ("flood a", 1),
            ("flood a", 2),
            ("flood a", 3),
        ];
        assert_eq!(order, wanted);
        assert!(turns.is_empty());
        assert!(turns.0.waiting.is_empty(), "nothing is remembered of those who are through");
    }

    #[test]
    fn whoever_comes_late_waits_for_one_turn_of_each_lane() {
        let mut turns = Turns::default();
        for number in 0..1000 {
            turns.push(0, number % 7, "flood");
        }
        turns.pop();
        turns.push(1, 0, "late");
        let waited = std::iter::from_fn(|| turns.pop()).position(|it| it == "late");
        assert_eq!(waited, Some(1));
    }
}
