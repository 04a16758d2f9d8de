//! A model of the whole: an auth daemon, two providers of one page each, two consumers; sessions that break, processes that
//! crash, orders and WRITEs that come late or never, deregistrations that fail. [`system`] is the model, as data; here it
//! is explored, its guards are taken away one at a time to see that each is missed, and [`replay`] compares it with the
//! provider's real table, step by step.
//!
//! What it leaves out: more than one page a provider, narrowed attachments, the speed of anything (a tick is one bound of
//! 100 ms: time does not go on while a fence is due that has not begun).

mod replay;
mod system;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use system::{Budget, Guards, System};

/// States of the breadth-first run, the same ones met again included.
const STATES: usize = 1_500_000;
/// How long the random walks go on, far deeper.
const WALKS: Duration = Duration::from_secs(5);

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Walks at random until the time is over or one of `until` is found; adds what was, and returns how many states were seen.
fn walk(model: &System, time: Duration, until: &[&str], found: &mut BTreeSet<&'static str>) -> usize {
    let (begun, mut states, mut seed, properties) = (Instant::now(), 0, 0, model.properties());
    while begun.elapsed() < time && !until.iter().any(|name| found.contains(name)) {
        seed += 1;
        let (mut random, mut state, mut acts) = (Random::new(seed), model.start(), Vec::new());
        loop {
            acts.clear();
            model.actions(&state, &mut acts);
            // A step that changes nothing is another one's turn.
            let next = (0..20)
                .filter(|_| !acts.is_empty())
                .find_map(|_| model.next_state(&state, acts[random.below(acts.len())]));
            let Some(next) = next else { break };
            state = next;
            states += 1;
            for property in &properties {
                let holds = (property.condition)(model, &state);
                if holds == (property.expectation == Expectation::Sometimes) {
                    found.insert(property.name);
                }
            }
        }
    }
    states
}

/// What was found, and how much was looked at: all of two small worlds, a large one in breadth, and walks in it. Looks no
/// further when one of `until` was found.
fn explore(guards: Guards, states: usize, walks: Duration, until: &[&'static str]) -> (Vec<&'static str>, String) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let enough = || HasDiscoveries::AnyOf(until.iter().copied().collect());
    let check = |budget, states| {
        let checker = System::new(guards, budget).checker().threads(threads).finish_when(enough());
        let checked = checker.target_state_count(states).spawn_bfs().join();
        for (name, path) in checked.discoveries().iter().filter(|(name, _)| until.contains(name)) {
            println!("model: '{name}' breaks after {:?}", path.clone().into_actions());
        }
        checked
    };
    let (mut found, mut explored) = (BTreeSet::new(), Vec::new());
    // All of the small worlds, where nothing is to be found.
    let all = if until.len() > 1 { usize::MAX } else { STATES };
    for (world, budget, states) in
        [("lone", Budget::LONE, all), ("quiet", Budget::QUIET, all), ("large", Budget::LARGE, states)]
    {
        let checked = check(budget, states);
        found.extend(checked.discoveries().into_keys());
        explored.push(format!(
            "{world}: {} states, {} of them distinct, to depth {}",
            checked.state_count(),
            checked.unique_state_count(),
            checked.max_depth()
        ));
        if until.iter().any(|name| found.contains(name)) {
            break;
        }
    }
    let walked = walk(&System::new(guards, Budget::LARGE), walks, until, &mut found);
    explored.push(format!("random walks in the large one: {walked} states"));
    let explored = explored.join("; ");
    (found.into_iter().collect(), explored)
}

#[test]
fn the_properties_hold_whatever_crashes_is_lost_or_comes_late() {
    let (found, explored) = explore(Guards::ALL, STATES, WALKS, &system::PROPERTIES);
    println!("model: {explored}");
    // What can happen at all, so that the rest is not true of nothing.
    assert_eq!(found, system::CAN_HAPPEN, "{explored}");
}

#[test]
fn without_any_of_its_guards_a_property_is_seen_to_break() {
    for (guards, property) in Guards::each_missing() {
        let (found, explored) = explore(guards, STATES / 10, WALKS / 2, &[property]);
        assert!(found.contains(&property), "without {}: {found:?} after {explored}", guards.missing());
        println!("model: without {}: '{property}' breaks", guards.missing());
    }
}
