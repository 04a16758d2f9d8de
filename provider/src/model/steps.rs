//! What each step does.

use super::*;

impl System {
    /// One step; None where it changes nothing.
    pub(super) fn step(&self, state: &mut State, act: Act) -> Option<()> {
        match act {
            Act::Advance => {
                state.now += 1;
                let overdue = |lease: &Lease| !lease.ending && lease.deadline < state.now;
                state.history.late |= state.providers.iter().flat_map(|p| p.leases.iter().flatten()).any(overdue);
            }
            Act::Tick(p) => state.providers[p].tick(state.now, &self.guards),
            Act::Deliver(packet) => {
                state.take(packet);
                self.deliver(state, packet)?;
            }
            Act::Lose(packet) => state.take(packet),
            Act::Job(p, l) => self.job(state, p, l, true),
            Act::JobFails(p, l) => {
                state.faults -= 1;
                self.job(state, p, l, false);
            }
            Act::SendReceipt(p, l) => {
                let lease = state.providers[p].leases[l].filter(|lease| lease.phase == Name::Over)?;
                state.send(Packet::Receipt { from: p, lease: l, complete: lease.complete });
            }
            Act::Connect(p) => {
                let (now, provider) = (state.now, &mut state.providers[p]);
                provider.tick(now, &self.guards);
                provider.session = Session::Offering { held: provider.held(), tick: now };
            }
            Act::HearOffer(p) => self.hear_offer(state, p),
            Act::DueOrder(p, l) => {
                if let Some(row) = state.authd.rows.get_mut(l).filter(|row| row.provider == p) {
                    row.stage = match row.stage {
                        Stage::Making => Stage::Abandoned,
                        Stage::Active => Stage::Ending,
                        other => other,
                    };
                }
                state.send(Packet::Fence { to: p, lease: l });
            }
            Act::Create(c, p) => self.create(state, c, p),
            Act::Attach(c) => {
                let lease = state.consumers[c].lease?;
                let row = state.authd.rows[lease];
                let good = row.stage == Stage::Active && row.deadline > state.now && state.is_up(row.provider);
                if !good || row.boot != state.providers[row.provider].boot {
                    return None;
                }
                state.consumers[c].attaches -= 1;
                state.send(Packet::Bind { to: row.provider, lease, consumer: c });
            }
            Act::Write(c) => {
                let consumer = &mut state.consumers[c];
                let (to, boot, lease) = consumer.attached?;
                let salt = if self.guards.fresh_salt { consumer.life } else { 0 };
                let nonce = 1 << (salt * 2 + consumer.sealed);
                consumer.sealed += 1;
                state.history.nonce |= consumer.used & nonce != 0;
                consumer.used |= nonce;
                state.send(Packet::Write { to, boot, lease, consumer: c });
            }
            Act::Renew(c) | Act::Release(c) => {
                let lease = state.consumers[c].lease?;
                let row = state.authd.rows[lease];
                if row.stage != Stage::Active || row.deadline <= state.now || !state.is_up(row.provider) {
                    return None;
                }
                state.consumers[c].extras -= 1;
                if matches!(act, Act::Release(_)) {
                    state.authd.rows[lease].stage = Stage::Ending;
                    state.send(Packet::Fence { to: row.provider, lease });
                } else {
                    state.send(Packet::Extend { to: row.provider, lease, deadline: state.now + TTL });
                }
            }
            Act::CrashAuthd => {
                state.crashes -= 1;
                // Nobody is left who makes what was being made.
                state.authd.making = 0;
                (0..2).for_each(|p| state.cut(p));
            }
            Act::CrashProvider(p) => {
                state.crashes -= 1;
                state.cut(p);
                state.providers[p] = Provider::new(state.providers[p].boot + 1);
            }
            Act::CrashConsumer(c) => {
                state.deaths -= 1;
                let consumer = &mut state.consumers[c];
                (consumer.life, consumer.sealed, consumer.attached) = (consumer.life + 1, 0, None);
            }
            Act::Break(p) => {
                state.breaks -= 1;
                state.cut(p);
            }
        }
        Some(())
    }

    fn create(&self, state: &mut State, consumer: usize, provider: usize) {
        state.consumers[consumer].requests -= 1;
        let same = state.authd.rows.iter().position(|row| {
            // A request that was given up is forgotten.
            row.consumer == consumer && row.stage != Stage::Abandoned
        });
        if let Some(at) = same.filter(|_| self.guards.remembers_requests) {
            let being_made = has(state.authd.making, at);
            let row = &mut state.authd.rows[at];
            match row.stage {
                Stage::Making if being_made => return,
                Stage::Making => row.stage = Stage::Abandoned,
                Stage::Active => return state.consumers[consumer].lease = Some(at),
                _ => return,
            }
        }
        let lease = state.authd.rows.len();
        let (deadline, boot) = (state.now + TTL, state.providers[provider].boot);
        state.authd.rows.push(Row { consumer, provider, boot, stage: Stage::Making, deadline, fenced: false });
        state.authd.making |= 1 << lease;
        state.send(Packet::Carve { to: provider, lease, deadline });
    }

    fn hear_offer(&self, state: &mut State, p: usize) {
        let Session::Offering { held, tick } = state.providers[p].session else { return };
        state.providers[p].session = Session::Up;
        let boot = state.providers[p].boot;
        let open = |row: &Row| row.provider == p && row.stage != Stage::Closed;
        for (at, held) in held.iter().enumerate() {
            let known = state.authd.rows.get(at).is_some_and(open);
            if held.is_some() && !known {
                state.authd.unknown[p] |= 1 << at;
            }
        }
        if !self.guards.gives_up {
            return;
        }
        for (at, row) in state.authd.rows.iter_mut().enumerate().filter(|(_, row)| open(row)) {
            let same_life = row.boot == boot;
            if held[at].is_some() && same_life
                || (row.stage == Stage::Making && same_life && has(state.authd.making, at))
            {
                continue;
            }
            match row.stage {
                Stage::Active if same_life && row.deadline <= tick => (row.stage, row.fenced) = (Stage::Ending, true),
                Stage::Ending if same_life => row.fenced = true,
                _ => row.stage = Stage::Closed,
            }
        }
    }

    /// A job of a provider's lease is done; `good`: its device did as it was told.
    fn job(&self, state: &mut State, p: usize, l: usize, good: bool) {
        let guards = &self.guards;
        let (now, provider) = (state.now, &mut state.providers[p]);
        // The job went by what was so when it began; the clock is looked at before its result is.
        let was_ending = provider.leases[l].is_some_and(|lease| lease.ending);
        provider.tick(now, guards);
        let Some(mut lease) = provider.leases[l] else { return };
        let mut answer = None;
        match lease.phase {
            Name::Opening => {
                provider.regions |= 1 << l;
                lease.enter(Name::Open);
                answer = Some(Packet::Carved { from: p, lease: l, good: !lease.ending });
                if lease.ending {
                    end(&mut lease);
                }
            }
            Name::Busy => {
                lease.enter(Name::Open);
                let consumer = lease.binding.take();
                // What its holder had before is destroyed first; at an ending lease nothing is touched.
                if !was_ending {
                    lease.bound = consumer;
                }
                if lease.ending {
                    end(&mut lease);
                } else if let Some(consumer) = consumer {
                    answer = Some(Packet::Bound { from: p, lease: l, consumer });
                }
            }
            Name::Fencing => {
                if guards.fences {
                    lease.bound = None;
                }
                if good {
                    if guards.fences {
                        provider.regions &= !(1 << l);
                    }
                    lease.fenced = true;
                    lease.enter(Name::Wiping);
                } else {
                    provider.withheld = guards.quarantines;
                    provider.free = !guards.quarantines;
                    lease.enter(Name::Over);
                }
                let asked = std::mem::take(&mut lease.asked);
                answer = (asked && good).then_some(Packet::Fenced { from: p, lease: l, known: true });
            }
            Name::Wiping => {
                if guards.wipes {
                    provider.content = None;
                }
                provider.free = true;
                lease.complete = true;
                lease.enter(Name::Over);
            }
            Name::Open | Name::Over => return,
        }
        provider.leases[l] = Some(lease);
        // Where the session is down there is nobody to answer.
        if let Some(answer) = answer.filter(|_| state.is_up(p)) {
            state.send(answer);
        }
    }

    fn deliver(&self, state: &mut State, packet: Packet) -> Option<()> {
        match packet {
            Packet::Carve { to, lease, deadline } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                if !provider.free || deadline <= now || provider.leases[lease].is_some() {
                    state.send(Packet::Carved { from: to, lease, good: false });
                    return Some(());
                }
                state.history.lent_again |= provider.leases.iter().flatten().any(|other| other.complete);
                provider.free = false;
                provider.leases[lease] = Some(Lease {
                    phase: Name::Opening,
                    ending: false,
                    deadline,
                    bound: None,
                    binding: None,
                    fenced: false,
                    complete: false,
                    asked: false,
                });
            }
            Packet::Bind { to, lease, consumer } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                // Refused, which needs no answer here.
                let Some(lease) = provider.leases[lease].as_mut().filter(|lease| !lease.ending) else {
                    return Some(());
                };
                match lease.phase {
                    Name::Open => {
                        lease.binding = Some(consumer);
                        lease.enter(Name::Busy);
                    }
                    // It waits.
                    _ => return None,
                }
            }
            Packet::Extend { to, lease, deadline } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                // Refused, which needs no answer here.
                let Some(held) = provider.leases[lease].as_mut().filter(|lease| !lease.ending) else { return Some(()) };
                held.deadline = held.deadline.max(deadline);
                state.send(Packet::Extended { from: to, lease, deadline });
            }
            Packet::Fence { to, lease } => {
                let now = state.now;
                let provider = &mut state.providers[to];
                provider.tick(now, &self.guards);
                match &mut provider.leases[lease] {
                    None => state.send(Packet::Fenced { from: to, lease, known: false }),
                    Some(held) => {
                        end(held);
                        match (held.fenced, held.phase) {
                            (true, _) => state.send(Packet::Fenced { from: to, lease, known: true }),
                            // Refused: it could not be.
                            (false, Name::Over) => {}
                            (false, _) => held.asked = true,
                        }
                    }
                }
            }
            Packet::Carved { lease, good, .. } => {
                state.authd.making &= !(1 << lease);
                let row = &mut state.authd.rows[lease];
                if row.stage == Stage::Making {
                    row.stage = if good { Stage::Active } else { Stage::Abandoned };
                    if good {
                        state.consumers[row.consumer].lease = Some(lease);
                    }
                }
            }
            Packet::Bound { from, lease, consumer } => {
                let boot = state.providers[from].boot;
                state.consumers[consumer].attached = Some((from, boot, lease));
            }
            Packet::Extended { lease, deadline, .. } => {
                let row = &mut state.authd.rows[lease];
                if row.stage == Stage::Active {
                    row.deadline = row.deadline.max(deadline);
                }
            }
            Packet::Fenced { from, lease, known } => {
                state.authd.unknown[from] &= !(1 << lease);
                if let Some(row) = state.authd.rows.get_mut(lease).filter(|row| row.provider == from) {
                    match row.stage {
                        Stage::Abandoned => row.stage = Stage::Closed,
                        Stage::Ending if known => row.fenced = true,
                        Stage::Ending => row.stage = Stage::Closed,
                        _ => {}
                    }
                }
            }
            Packet::Receipt { from, lease, complete } => {
                if let Some(row) = state.authd.rows.get_mut(lease).filter(|row| row.provider == from) {
                    row.fenced = true;
                    let abandoned = matches!(row.stage, Stage::Making | Stage::Abandoned);
                    row.stage = if complete || abandoned { Stage::Closed } else { Stage::Ending };
                }
                state.send(Packet::Acknowledged { to: from, lease });
            }
            Packet::Acknowledged { to, lease } => state.providers[to].leases[lease] = None,
            Packet::Write { to, boot, lease, consumer } => {
                let provider = &mut state.providers[to];
                let held = provider.leases[lease].filter(|_| provider.boot == boot);
                let reached = held.filter(|held| held.bound == Some(consumer) && has(provider.regions, lease));
                match reached {
                    // READ first: what it finds there is nobody's, or its own.
                    Some(held) => {
                        state.history.reached |= held.fenced || provider.content.is_some_and(|other| other != consumer);
                        provider.content = Some(consumer);
                    }
                    None => state.history.came_too_late |= held.is_none_or(|held| held.ending),
                }
            }
        }
        Some(())
    }
}
