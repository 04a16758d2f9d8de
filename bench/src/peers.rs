//! The other programs and libraries that are here, ready to take their turns.

use overbank_verbs::Op;

use crate::contest::{Contest, Entry};
use crate::cpus::Cpus;
use crate::ends::Ends;
use crate::error::BenchError;
use crate::figures::{Plan, Times};
use crate::library::{self, Client, Missing, Wanted};
use crate::perftest::{self, Perftest, Test};
use crate::pipeline::Shape;
use crate::rates::Pace;
use crate::raw::Kind;
use crate::redis::Redis;
use crate::report::Report;
use crate::systems::System;

/// As far as they were asked for and are here.
#[derive(Default)]
pub(crate) struct Peers {
    perftest: Option<(String, Perftest)>,
    libraries: Vec<Client>,
    redis: Vec<(System, Redis)>,
    missing: Vec<Missing>,
}

/// The operation that a one-sided one is; none of a ping-pong.
pub(crate) fn op(kind: Kind) -> Option<Op> {
    match kind {
        Kind::Read => Some(Op::Read),
        Kind::Write => Some(Op::Write),
        Kind::PingPong => None,
    }
}

/// The test of perftest that times the same. It has none of a WRITE to its completion.
fn test(kind: Kind) -> Option<Test> {
    match kind {
        Kind::Read => Some(Test::ReadLatency),
        Kind::Write => None,
        Kind::PingPong => Some(Test::WriteLatency),
    }
}

impl Peers {
    /// Starts those that were asked for, or all that fit the device. It is an error where none of those that were asked
    /// for is here.
    pub(crate) fn find(asked: &[System], ends: &Ends, cpus: Cpus) -> Result<Self, BenchError> {
        let mut peers = Self::default();
        let wants = |system: System| asked.is_empty() || asked.contains(&system);
        for (wanted, systems) in
            [(Wanted::Ucx, &[System::UcxTcp][..]), (Wanted::Fabric, &[System::LibfabricTcp, System::LibfabricTcpRxm])]
        {
            if systems.iter().any(|system| wants(*system)) {
                let (found, missing) = library::find(wanted, cpus)?;
                peers.libraries.extend(found.into_iter().filter(|library| wants(library.system)));
                peers.missing.extend(missing.into_iter().filter(|(system, _)| wants(*system)));
            }
        }
        for (system, tls) in [(System::RedisTcp, false), (System::RedisTls, true)] {
            if wants(system) {
                match Redis::start(tls, cpus)? {
                    Ok(redis) => peers.redis.push((system, redis)),
                    Err(reason) => peers.missing.push((system, reason)),
                }
            }
        }
        // Where nobody asked for it, it is not missed on a device that is none of its.
        if asked.contains(&System::Perftest) || asked.is_empty() && perftest::fits(ends) {
            match Perftest::new(ends, cpus).and_then(|perftest| Ok((Perftest::version()?, perftest))) {
                Ok(found) => peers.perftest = Some(found),
                Err(BenchError::Usage(reason)) => peers.missing.push((System::Perftest, reason)),
                Err(error) => return Err(error),
            }
        }
        if !asked.is_empty() && peers.systems().is_empty() {
            return Err(BenchError::Usage(format!("nothing to compare with: {}", peers.lacking().join("; "))));
        }
        Ok(peers)
    }

    /// Those that are here.
    pub(crate) fn systems(&self) -> Vec<System> {
        let libraries = self.libraries.iter().map(|library| library.system);
        let redis = self.redis.iter().map(|(system, _)| *system);
        libraries.chain(redis).chain(self.perftest.iter().map(|_| System::Perftest)).collect()
    }

    /// Those that are not, and why.
    pub(crate) fn lacking(&self) -> Vec<String> {
        self.missing.iter().map(|(system, reason)| format!("{}: {reason}", system.name())).collect()
    }

    /// Their single operations of this kind and size.
    pub(crate) fn singles<'a>(&'a self, kind: Kind, size: usize, plan: &Plan, contest: &mut Contest<'a>) {
        let entry = |system, command| Entry { system, kind, size, depth: 1, moved: size, command };
        if let Some(op) = op(kind) {
            for library in &self.libraries {
                let command = library.command(&library::timed(op, size, plan));
                let turn = move |plan: &Plan| library.times(op, size, plan).map(Times::from);
                contest.single(entry(library.system, command), turn);
            }
            for (system, redis) in &self.redis {
                contest.single(entry(*system, redis.command.clone()), move |plan| redis.times(op, size, plan));
            }
        }
        if let (Some((_, perftest)), Some(test)) = (&self.perftest, test(kind)) {
            let command = perftest.command(test, &perftest::timed(size, plan));
            let turn = move |plan: &Plan| perftest.times(test, size, plan).map(Times::from);
            contest.single(entry(System::Perftest, command), turn);
        }
    }

    /// Many of their operations at once.
    pub(crate) fn many<'a>(&'a self, kind: Kind, shape: Shape, plan: Plan, pace: &Pace, contest: &mut Contest<'a>) {
        let (Some(op), Shape { size, depth, .. }) = (op(kind), shape) else { return };
        let entry = |system, command| Entry { system, kind, size, depth, moved: size, command };
        for library in &self.libraries {
            let command = library.command(&library::rated(op, size, depth, pace));
            contest.many(entry(library.system, command), move |pace| library.rate(op, size, depth, pace));
        }
        for (system, redis) in &self.redis {
            let turn = move |pace: &Pace| redis.rate(op, size, depth, pace);
            contest.many(entry(*system, redis.command.clone()), turn);
        }
        if let Some((_, perftest)) = &self.perftest {
            let test = if op == Op::Read { Test::ReadBandwidth } else { Test::WriteBandwidth };
            let command = perftest.command(test, &perftest::rated(size, depth, &plan));
            let turn = move |_: &Pace| perftest.rate(test, size, depth, &plan);
            contest.many(entry(System::Perftest, command), turn);
        }
    }

    /// Notes in the report who they are, and who is not here.
    pub(crate) fn describe(&self, report: &mut Report) {
        let libraries = self.libraries.iter().map(|library| (library.system, &library.version));
        let redis = self.redis.iter().map(|(system, redis)| (*system, &redis.version));
        let perftest = self.perftest.iter().map(|(version, _)| (System::Perftest, version));
        for (system, version) in libraries.chain(redis).chain(perftest) {
            report.setting(&system.stem(), version.as_str());
        }
        let missing = self.lacking();
        if !missing.is_empty() {
            report.warnings.extend(missing.iter().map(|missing| format!("not compared with {missing}")));
            report.setting("missing", missing);
        }
        report.setting("peers", self.systems().into_iter().map(System::name).collect::<Vec<_>>());
    }
}
